"""A model's folder, or its place on the Hub, is data: nothing in it is run, whoever says yes."""

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_base import tiny_model, tiny_tokenizer

from course_utils import checkpoints
from course_utils.checkpoints import CheckpointError, load_checkpoint
from course_utils.model_files import check_folder_is_data
from course_utils.saving import save_checkpoint
from course_utils.tokenizers import TokenizerError, load_tokenizer

WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A base's folder in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_model(tied=False).save_pretrained(folder)
    tiny_tokenizer("chatml").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """ran(): was code run that came with a model, or asked for? Whoever asks is told yes."""
    asked = []

    class Yes(io.StringIO):
        def readline(self, *_):
            asked.append(True)
            return "yes\n"

    monkeypatch.setattr(sys, "stdin", Yes())
    return lambda: asked or (tmp_path / "ran").exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def code(folder):
    marker = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom transformers import LlamaConfig as C\n"
        "from transformers import LlamaForCausalLM as M, PreTrainedTokenizerFast as T\n"
    )


def pickled(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Evil(folder.parent / "ran")))


def indexed(folder, name):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weights = {weight: "a.safetensors" for weight in load_file(folder / "a.safetensors")}
    index = {"metadata": {}, "weight_map": weights | {WEIGHT: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MAP = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}
CODE = {
    "config": lambda f: edit(f / "config.json", auto_map=MAP),
    "config of an unknown kind": lambda f: edit(f / "config.json", auto_map=MAP, model_type="evil"),
    "code on the Hub": lambda f: edit(
        f / "config.json", auto_map={"AutoConfig": "who/what--evil.C"}
    ),
    "config within": lambda f: edit(f / "config.json", text_config=[{"auto_map": MAP}]),
    "tokenizer": lambda f: edit(f / "tokenizer_config.json", auto_map=MAP),
    "tokenizer, as of old": lambda f: edit(f / "tokenizer_config.json", auto_map=["evil.T", None]),
    "generation": lambda f: edit(f / "generation_config.json", auto_map=MAP),
    "config for a version": lambda f: (
        edit(f / "config.json", configuration_files=["config.4.0.0.json"]),
        (f / "config.4.0.0.json").write_text(json.dumps({"auto_map": MAP})),
    ),
    "attention": lambda f: edit(f / "config.json", attn_implementation="who/what"),
    "attention of a part": lambda f: edit(f / "config.json", _attn_implementation={"": "who/what"}),
    "experts": lambda f: edit(f / "config.json", experts_implementation="who/what@main"),
}
CODE_IN_WEIGHTS = {
    "pickle": lambda f: pickled(f, "pytorch_model.bin"),
    "pickle of another name": lambda f: pickled(f, "weights.pt"),
    "pickle in parts": lambda f: (
        pickled(f, "pytorch_model-00001-of-00001.bin"),
        (f / "pytorch_model.bin.index.json").write_text("{}"),
    ),
    "index to a pickle": lambda f: (
        indexed(f, "x.bin"),
        (f / "x.bin").write_bytes(pickle.dumps(Evil(f.parent / "ran"))),
    ),
    "index to the outside": lambda f: indexed(f, "../model/a.safetensors"),
    "index to a folder": lambda f: indexed(f, "sub/a.safetensors"),
    "index to a path": lambda f: indexed(f, str(f / "a.safetensors")),
    "index to Windows": lambda f: indexed(f, "..\\a.safetensors"),
    "index to a number": lambda f: indexed(f, 5),
    "index to nothing": lambda f: indexed(f, "b.safetensors"),
    "index without": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors.index.json").write_text("[]"),
    ),
    "adapter": lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}'),
    "settings elsewhere": lambda f: edit(
        f / "config.json", configuration_files=["../config.4.json"]
    ),
    "vocabulary elsewhere": lambda f: edit(
        f / "tokenizer_config.json", fast_tokenizer_files=["/elsewhere/tokenizer.4.0.0.json"]
    ),
    "weights elsewhere": lambda f: edit(f / "config.json", transformers_weights="../x.safetensors"),
    "pickle under safetensors' name": lambda f: (f / "model.safetensors").write_bytes(
        pickle.dumps(Evil(f.parent / "ran"))
    ),
}


@pytest.mark.parametrize("case", [*CODE, *CODE_IN_WEIGHTS])
def test_nothing_of_a_folder_is_run_whoever_says_yes(case, folder, ran):
    code(folder)
    (CODE | CODE_IN_WEIGHTS)[case](folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, torch.float32, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not ran()


@pytest.mark.parametrize("case", CODE)
def test_a_tokenizer_alone_brings_no_code_along_either(case, folder, ran):
    code(folder)
    CODE[case](folder)
    with pytest.raises(TokenizerError, match="auto_map|asks for code from the Hub"):
        load_tokenizer(str(folder))
    assert not ran()


def test_transformers_is_told_not_to_run_code_even_if_nothing_was_seen(folder, ran, monkeypatch):
    """The second lock: what the look before has missed."""
    code(folder)
    CODE["config of an unknown kind"](folder)
    monkeypatch.setattr(checkpoints, "check_model", lambda *_, **__: None)
    with pytest.raises(CheckpointError, match="cannot load this model"):
        load_checkpoint(folder, torch.float32, "cpu")
    assert not ran()


def test_what_nothing_loads_may_be_there(folder):
    (folder / "README.md").write_text("hello")
    (folder / "train.py").write_text("1/0")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "preprocessor_config.json").write_text('{"auto_map": {}, "size": null}')
    check_folder_is_data(folder, weights=True)
    load_checkpoint(folder)
    load_tokenizer(str(folder))


def test_weights_in_parts_and_links_to_files_are_data(folder):
    """The Hub's cache holds links: from snapshots/COMMIT to the blobs beside it."""
    indexed(folder, "b.safetensors")
    weights = load_file(folder / "a.safetensors")
    save_file({WEIGHT: weights.pop(WEIGHT)}, folder / "b.safetensors", {"format": "pt"})
    save_file(weights, folder / "a.safetensors", {"format": "pt"})
    cache = folder.parent / "models--somebody--model"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    for number, name in enumerate(("config.json", "a.safetensors")):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    model, _ = load_checkpoint(snapshot, torch.float32, "cpu")
    assert torch.equal(model.state_dict()[WEIGHT], tiny_model(tied=False).state_dict()[WEIGHT])


@pytest.mark.parametrize("content", ["", "{", '{"a": ' * 10_000, "\ufeff{}", "[]"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_broken_json_is_one_sentence(name, content, folder):
    (folder / name).write_text(content)
    for load, error in ((load_checkpoint, CheckpointError), (load_tokenizer, TokenizerError)):
        with pytest.raises(error) as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", " ", "a/" * 300, "../" * 50, "?*|"])
def test_a_name_that_is_none_is_one_sentence(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)


# --- weights that do not fit ---------------------------------------------------------------------


def rewrite(change):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return spoil


def with_one(value):
    def change(weights):
        weights[WEIGHT].view(-1)[-1] = value

    return rewrite(change)


def zeroed(first, last):
    def spoil(folder):
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        start = int.from_bytes(content[:8], "little") + 8
        size = len(content) - start
        part = slice(start + int(first * size), start + int(last * size))
        content[part] = bytes(len(content[part]))
        path.write_bytes(content)

    return spoil


BROKEN = {
    "not a number": (with_one(float("nan")), "up_proj.weight hold numbers that are not finite"),
    "infinite": (with_one(float("-inf")), "up_proj.weight hold numbers that are not finite"),
    "one missing": (rewrite(lambda w: w.pop(WEIGHT)), "1 of the weights are not in it, such as"),
    "one too many": (
        rewrite(lambda w: w.update({WEIGHT.replace("0", "7"): w[WEIGHT].clone()})),
        "have no place in the model of its config.json, such as model.layers.7",
    ),
    "another shape": (
        rewrite(lambda w: w.update({WEIGHT: w[WEIGHT][1:].clone()})),
        "weights have another shape than config.json asks for",
    ),
    "a layer less asked for": (
        lambda f: edit(f / "config.json", num_hidden_layers=1),
        "have no place in the model of its config.json, such as model.layers.1",
    ),
    "a layer more asked for": (
        lambda f: edit(f / "config.json", num_hidden_layers=3),
        "of the weights are not in it, such as model.layers.2",
    ),
    "another vocabulary": (lambda f: edit(f / "config.json", vocab_size=10**12), "another shape"),
    "zeros behind": (zeroed(0.5, 1), "matrices of nothing but zeros"),
    "zeros before": (zeroed(0, 0.5), "matrices of nothing but zeros"),
    "cut off": (lambda f: os.truncate(f / "model.safetensors", 20_000), "cannot load this model"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), "cannot load this model"),
    "a pipe": (
        lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")),
        "The folder must hold config.json, model.safetensors and the tokenizer's files",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_do_not_fit_are_refused(case, folder):
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder, torch.float32, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_matrix_that_somebody_took_out_may_be_zero(folder):
    rewrite(lambda w: w[WEIGHT.replace("mlp.up", "self_attn.k")].zero_())(folder)
    load_checkpoint(folder)


# --- tuned folders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return save_checkpoint(tiny_model(), tiny_tokenizer("chatml"), folder, {"base": "tiny"})


@pytest.fixture
def tuned(tuned_once, tmp_path):
    return Path(shutil.copytree(tuned_once, tmp_path / "tuned"))


def swap_vocabulary(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content))


def manifest(change):
    def spoil(folder):
        path = folder / "manifest.json"
        hashes = json.loads(path.read_text())["sha256"]
        path.write_text(json.dumps({"sha256": change(hashes)}))

    return spoil


TAMPERED = {
    "vocabulary": (swap_vocabulary, "tokenizer.json has changed"),
    "weights": (with_one(0.5), "model.safetensors has changed"),
    "zeros": (zeroed(0.9, 1), "model.safetensors has changed"),
    "template": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
        "chat_template.jinja has changed",
    ),
    "record": (lambda f: (f / "sft.json").write_text("[]"), "sft.json has changed"),
    "a file more": (lambda f: (f / "added_tokens.json").write_text("{}"), "does not list it"),
    "code": (code, "does not list it"),
    "a folder more": (
        lambda f: (
            (f / "additional_chat_templates").mkdir(),
            (f / "additional_chat_templates" / "tool_use.jinja").write_text("x"),
        ),
        "additional_chat_templates/tool_use.jinja .*does not list it",
    ),
    "a link more": (lambda f: (f / "vocab.json").symlink_to("nowhere"), "does not list it"),
    "a link instead": (
        lambda f: (
            (f / "sft.json").rename(f.parent / "sft.json"),
            (f / "sft.json").symlink_to(f.parent / "sft.json"),
        ),
        "sft.json has changed",
    ),
    "a file less": (lambda f: (f / "chat_template.jinja").unlink(), "jinja is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json, by which"),
    "empty manifest": (manifest(lambda hashes: {}), "manifest.json is broken"),
    "shorter manifest": (
        manifest(lambda hashes: {n: h for n, h in hashes.items() if n != "tokenizer.json"}),
        "tokenizer.json .*does not list it",
    ),
    "manifest to the outside": (
        manifest(lambda hashes: hashes | {"../x": "0" * 64}),
        "is not the name of a file in the folder",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tuned_folder_is_what_was_saved_or_refused(case, tuned):
    load_checkpoint(tuned)
    spoil, message = TAMPERED[case]
    spoil(tuned)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tuned)
    assert "\n" not in str(caught.value)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(str(tuned))
