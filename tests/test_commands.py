"""Every command, given what it cannot use: a code from its --help, a sentence, nothing lost."""

import contextlib
import gzip
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from tiny_base import tiny_base, tiny_model, tiny_tokenizer

from course_utils import atomic, audit, commands, comparison, placing, sft, tokenizers
from course_utils.conversation import save_conversations
from course_utils.curriculum import __main__ as curriculum
from course_utils.examples import TINY_CHATS
from course_utils.miniweb import chats as miniweb
from course_utils.saving import save_checkpoint
from course_utils.sources import __main__ as sources

ROOT = Path(__file__).resolve().parents[1]
MAINS = {
    "sources": sources.main,
    "audit": audit.main,
    "curriculum": curriculum.main,
    "sft": sft.main,
    "comparison": comparison.main,
    "tokenizers": tokenizers.main,
    "miniweb.chats": miniweb.main,
}
fixtures = (tiny_base,)
GOOD = [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "yes"}]
SHAREGPT = [{"from": "human", "value": "Say yes."}, {"from": "gpt", "value": "yes"}]


@pytest.fixture(scope="session")
def tuned(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return save_checkpoint(tiny_model(), tiny_tokenizer("chatml"), folder, {"base": str(tiny_base)})


@pytest.fixture
def place(tmp_path, tiny_base, tuned, monkeypatch):
    """A folder to work in, with inputs, former outputs and links to them."""
    monkeypatch.chdir(tmp_path)
    save_conversations(TINY_CHATS, "chats.jsonl")
    Path("sharegpt.jsonl").write_text(json.dumps({"conversations": SHAREGPT}) + "\n")
    Path("prompts.jsonl").write_text(json.dumps({"id": "p", "messages": GOOD[:1]}) + "\n")
    shutil.copytree(tiny_base, "base"), shutil.copytree(tuned, "tuned")
    shutil.copytree(tuned, "former"), Path("former.json").write_text("former")
    Path("photos").mkdir(), Path("photos/cat.jpg").write_text("cat")
    Path("dangling").symlink_to("nowhere"), Path("loop").symlink_to("loop"), os.mkfifo("pipe")
    for name in ("chats.jsonl", "sharegpt.jsonl", "prompts.jsonl", "former.json"):
        Path(f"link-{name}").symlink_to(name), os.link(name, f"hard-{name}")
    Path("link-base").symlink_to("base"), Path("link-former").symlink_to("former")
    return tmp_path


def contents(folder):
    """Everything in a folder: names, kinds, and what is in the files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        held = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(folder))] = (state.st_mode, held)
    return found


def run(capsys, command, *arguments):
    """(code, standard output, standard error) of a command in this process, checked for manners."""
    capsys.readouterr()
    try:
        code = MAINS[command]([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err, err
    raw = commands.OBEYED.findall(re.sub("[\n\t]", "", out) + re.sub("[\n\t\r]", "", err))
    assert not raw, raw
    return code, out, err


def refused(capsys, place, command, *arguments, code=2):
    """The last line of standard error of a command that refuses and changes nothing."""
    before = contents(place)
    found, out, err = run(capsys, command, *arguments)
    assert found == code, (found, out, err)
    assert contents(place) == before
    line = err.strip().split("\n")[-1]
    assert line.startswith(f"python -m course_utils.{command}: "), err
    return line


# How each command is called on a file of conversations, and on one of prompts.
READERS = {
    "check": ("sources", "check", "IN"),
    "sources": ("sources", "sharegpt", "IN", "new.jsonl", "--quiet"),
    "audit": ("audit", "IN"),
    "audit, two files": ("audit", "chats.jsonl", "IN"),
    "audit against": ("audit", "chats.jsonl", "--against", "IN"),
    "audit than": ("audit", "chats.jsonl", "--than", "IN"),
    "sft": ("sft", "--base", "base", "--data", "IN", "--output", "new"),
    "comparison": ("comparison", "--tuned", "tuned", "--prompts", "IN"),
}
# How each command is told where to write, from which inputs, and what may be there already.
WRITERS = {
    "sources": ("sources", "sharegpt", "sharegpt.jsonl", "OUT", "--quiet"),
    "report": ("sources", "sharegpt", "sharegpt.jsonl", "new.jsonl", "--report", "OUT", "--quiet"),
    "rejected": ("sources", "openai", "sharegpt.jsonl", "new.jsonl", "--rejected", "OUT"),
    "curriculum": ("curriculum", "OUT", "--without", "spelling"),
    "miniweb": ("miniweb.chats", "OUT", "--number", "3"),
    "comparison": ("comparison", "--tuned", "tuned", "--prompts", "prompts.jsonl")
    + ("--max-new-tokens", "2", "--output", "OUT"),
    "sft": ("sft", "--base", "base", "--data", "chats.jsonl", "--steps", "1", "--output", "OUT"),
}


def filled(call, name):
    return [name if part in ("IN", "OUT") else part for part in call]


# --- files that cannot be read -------------------------------------------------------------------

UNREADABLE = {
    "missing": ("missing.jsonl", "no such file"),
    "a folder": ("photos", "is a folder"),
    "a pipe": ("pipe", "is a device, a pipe or a socket"),
    "a device": ("/dev/zero", "is a device, a pipe or a socket"),
    "a dangling link": ("dangling", "no such file"),
    "a link to itself": ("loop", "Too many levels of symbolic links"),
    "a name that is too long": ("x" * 300, "File name too long"),
    "below a file": ("chats.jsonl/x", "Not a directory"),
    "no name": ("", "is a folder"),
    "escapes in its name": ("\x1b]0;owned\x07\u202e.jsonl", r"\x1b]0;owned\x07\u202e.jsonl: no"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_cannot_be_read(reader, kind, place, capsys):
    name, message = UNREADABLE[kind]
    assert message in refused(capsys, place, *filled(READERS[reader], name))


@pytest.mark.parametrize("reader", READERS)
def test_a_file_without_permission(reader, capsys, tiny_base, tuned, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    monkeypatch.chdir(folder)
    save_conversations(TINY_CHATS, folder / "chats.jsonl")
    (folder / "secret.jsonl").write_text("{}")
    (folder / "secret.jsonl").chmod(0o000)
    (folder / "tuned").mkdir()
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        call = filled(READERS[reader], "secret.jsonl")
        assert "secret.jsonl: Permission denied." in refused(capsys, folder / "tuned", *call)
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


# --- files that hold something else --------------------------------------------------------------


def one(**fields):
    return json.dumps({"messages": GOOD} | fields).encode() + b"\n"


def turn(**fields):
    return one(messages=[GOOD[0], GOOD[1] | fields])


BROKEN = {
    "empty": b"",
    "blank lines": b"\n \n\n",
    "cut off": b'{"messages": [',
    "a second line cut off": one(id="a") + b'{"messages',
    "a number": b"17\n",
    "null": b"null\n",
    "a list": b"[1, 2]\n",
    "a text": b'"hello"\n',
    "not JSON": b"user: hello\nassistant: hi\n",
    "binary": bytes(range(256)) * 20,
    "UTF-16": one().decode().encode("utf-16"),
    "Latin-1": '{"messages": "é"}\n'.encode("latin-1"),
    "nothing but zeros": bytes(100_000),
    "one endless line": b'{"messages": "' + b"x" * 2_000_000,
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep objects": b'{"a": ' * 5000 + b"1" + b"}" * 5000 + b"\n",
    "deep in a message": turn(x=json.loads("[" * 400 + "]" * 400)),
    "NaN": one().replace(b'"yes"', b"NaN"),
    "infinity": b'{"messages": [], "x": 1e999}\n',
    "a huge integer": turn(weight=0).replace(b'"weight": 0', b'"weight": 1' + b"0" * 5000),
    "a long integer": turn(weight=0).replace(b'"weight": 0', b'"weight": 1' + b"0" * 400),
    "a repeated key": b'{"messages": [], "messages": []}\n',
    "no messages": b'{"text": "hi"}\n',
    "messages are an object": one(messages={"role": "user"}),
    "messages are null": one(messages=None),
    "messages are a number": one(messages=5),
    "no message": one(messages=[]),
    "a message is a number": one(messages=[1]),
    "a message is null": one(messages=[None]),
    "no role": one(messages=[{"content": "hi"}]),
    "an unknown role": one(messages=[{"role": "elf", "content": "hi"}]),
    "a role is a list": one(messages=[{"role": ["user"], "content": "hi"}]),
    "a role is an object": one(messages=[{"role": {}, "content": "hi"}]),
    "an escape as a role": one(messages=[{"role": "\x1b[31m", "content": "hi"}]),
    "content is a number": one(messages=[{"role": "user", "content": 7}]),
    "content is an object": one(messages=[{"role": "user", "content": {"a": 1}}]),
    "a lone surrogate": turn(content="\ud800"),
    "a weight of text": turn(weight="heavy"),
    "a weight below 0": turn(weight=-1),
    "tool calls are a number": turn(tool_calls=5),
    "tool calls are a text": turn(tool_calls="call"),
    "a tool call is null": turn(tool_calls=[None]),
    "a call without a name": turn(tool_calls=[{"function": {"arguments": {}}}]),
    "a call's arguments are broken": turn(
        tool_calls=[{"function": {"name": "f", "arguments": "{"}}]
    ),
    "an id is an object": one(id={"a": 1}),
    "an id is a list": one(id=[1]),
    "tags are a text": one(tags="everyday"),
    "tags are numbers": one(tags=[1]),
    "tools are a number": one(tools=7),
    "a tool is a text": one(tools=["f"]),
    "the same id twice": one(id="a") + one(id="a"),
    "the same id, with escapes": one(id="\x1b[2J\u202e") * 2,
    "turns that do not alternate": one(messages=[GOOD[0], GOOD[0]]),
    "an image": one(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("reader", ["check", "sources", "audit", "sft", "comparison"])
def test_a_file_that_holds_something_else(reader, kind, place, capsys):
    Path("broken.jsonl").write_bytes(BROKEN[kind])
    call = filled(READERS[reader], "broken.jsonl")
    if reader == "check":
        code, out, err = run(capsys, *call)
        assert code == 1 and "broken.jsonl:" in out and not err
    elif reader == "sources":
        before = contents(place)
        code, out, err = run(capsys, *call)
        assert code == 3 and "Nothing was converted; no output is written." in err
        assert contents(place) == before
    else:
        assert "broken.jsonl" in refused(capsys, place, *call)


def test_gzip_is_read_or_named_for_what_it_is(place, capsys):
    Path("chats.jsonl.gz").write_bytes(gzip.compress(one()))
    Path("cut.jsonl.gz").write_bytes(gzip.compress(one() * 1000)[:-20])
    for name, codes in (("chats.jsonl.gz", (0, 2)), ("cut.jsonl.gz", (2,))):
        code, _, err = run(capsys, "audit", name)
        assert code in codes and (code == 0 or name in err)


# --- outputs that cannot be, or must not be, written ---------------------------------------------

UNWRITABLE = {
    "a device": ("/dev/null", "is a device, a pipe or a socket"),
    "a full device": ("/dev/full", "is a device, a pipe or a socket"),
    "a pipe": ("pipe", "is a device, a pipe or a socket"),
    "a dangling link": ("dangling", "is a link to nowhere, where nothing is"),
    "below a dangling link": ("dangling/new", "is a link to nowhere, where nothing is"),
    "a link to itself": ("loop", "is a link to loop, where nothing is"),
    "a name that is too long": ("x" * 256, "File name too long"),
    "a parent that is too long": (f"{'x' * 256}/new", "File name too long|no such folder"),
    "the folder above": ("new/..", "is a folder|holds .*, which this command reads"),
    "this folder": (".", "is a folder|holds .*, which this command reads"),
    "no name": ("", "is a folder|holds .*, which this command reads"),
    "the root": ("/", "is a folder|holds .*, which this command reads"),
    "below a file": ("former.json/new", "Not a directory|no such folder"),
    "a read-only file system": ("/proc/new", "cannot be written"),
    "a folder with other files": ("photos", "is a folder|exists"),
    "a former output": ("former.json", "exists. Choose another|is a file"),
    "a former output, by a link": ("link-former.json", "exists. Choose another|is a file"),
    "escapes in its name": ("dangling/\x1b[31m", "is a link to"),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("writer", WRITERS)
def test_an_output_that_cannot_be_written(writer, kind, place, capsys, monkeypatch):
    name, message = UNWRITABLE[kind]
    # Refused before the work, whatever that is.
    for module, work in ((sft, "load_base"), (comparison, "compare"), (sources, "convert_file")):
        monkeypatch.setattr(module, work, None)
    assert re.search(message, refused(capsys, place, *filled(WRITERS[writer], name)))


INPUTS = {
    "sources": ["sharegpt.jsonl", "link-sharegpt.jsonl", "hard-sharegpt.jsonl"],
    "report": ["sharegpt.jsonl", "link-sharegpt.jsonl", "hard-sharegpt.jsonl", "new.jsonl"],
    "rejected": ["sharegpt.jsonl", "link-sharegpt.jsonl", "./x/../new.jsonl"],
    "curriculum": [ROOT / "data" / "conversations.jsonl", ROOT / "data" / "curriculum/chat.jsonl"],
    "comparison": ["prompts.jsonl", "link-prompts.jsonl", "hard-prompts.jsonl"]
    + ["tuned/sft.json", "tuned/new.json"],
    "sft": ["base", "link-base", "base/new", "."],
}


@pytest.mark.parametrize("writer, name", [(w, name) for w in INPUTS for name in INPUTS[w]])
def test_an_input_is_not_overwritten_even_when_asked(writer, name, place, capsys):
    message = refused(capsys, place, *filled(WRITERS[writer], name), "--overwrite")
    assert re.search("which this command reads|did not write", message)


@pytest.mark.parametrize("writer", [w for w in WRITERS if w != "sft"])
def test_a_file_is_replaced_when_asked_and_whole(writer, place, capsys):
    before = contents(place)
    code, out, err = run(capsys, *filled(WRITERS[writer], "former.json"), "--overwrite")
    assert code == (3 if writer == "rejected" else 0), err
    after = contents(place)
    assert after.pop("former.json") != before.pop("former.json")
    after.pop("new.jsonl", None)
    assert after == before
    assert Path("hard-former.json").read_text() == "former"  # another name for the former file
    for line in Path("former.json").read_text().splitlines()[:3] if writer != "rejected" else ():
        assert line.strip()


def test_a_checkpoint_is_replaced_when_asked_and_only_if_all_of_it_is_ours(place, capsys):
    call = [*filled(WRITERS["sft"], "former"), "--overwrite"]
    before = contents(place / "former")
    assert run(capsys, *call)[0] == 0
    assert contents(place / "former") != before and (place / "former" / "sft.json").is_file()
    (place / "former" / "notes.txt").write_text("mine")
    for name in ("former", "link-former", "photos"):
        call = [*filled(WRITERS["sft"], name), "--overwrite"]
        assert "files that this course did not write" in refused(capsys, place, *call)


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk: writing on fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_full_before_the_work(writer, place, capsys):
    with files_of_at_most(100):
        line = refused(capsys, place, *filled(WRITERS[writer], "out"))
    assert ": out cannot be written: File too large." in line.replace("new.jsonl", "out")


def test_a_disk_that_is_too_small_for_the_checkpoint(place, capsys, monkeypatch):
    monkeypatch.setattr(sft, "fine_tune", None)
    with files_of_at_most(20_000):
        line = refused(capsys, place, *filled(WRITERS["sft"], "out"))
    assert "ulimit -f" in line


def test_a_disk_that_fills_up_while_a_file_is_written(place, capsys):
    Path("many.jsonl").write_text(
        "".join(json.dumps({"conversations": SHAREGPT, "n": n}) + "\n" for n in range(500))
    )
    call = ["sources", "sharegpt", "many.jsonl", "former.json", "--quiet", "--overwrite"]
    with files_of_at_most(10_000):
        assert refused(capsys, place, *call).endswith(": former.json: File too large.")
        for call in (["curriculum", "out.jsonl"], ["miniweb.chats", "out.jsonl"]):
            assert refused(capsys, place, *call).endswith(": out.jsonl: File too large.")


@pytest.mark.parametrize("roomy", [True, False])
@pytest.mark.parametrize("command", ["sft", "comparison"])
def test_what_was_computed_is_kept_where_there_is_room(
    command, roomy, place, capsys, monkeypatch, tmp_path_factory
):
    kept = tmp_path_factory.mktemp("room")
    put = placing.Held.place

    def full(self, path, *arguments, **options):
        if roomy and kept in Path(path).parents:
            return put(self, path, *arguments, **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(placing.Held, "place", full)
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    before = contents(place)
    code, out, err = run(capsys, *filled(WRITERS[command], "out"))
    line = err.strip().split("\n")[-1]
    assert code == 1 and "out could not be written (" in line and "No space left on device" in line
    assert contents(place) == before
    if roomy:
        (path,) = kept.glob("course-kept-*/*")
        assert f"in {path} instead." in line
        assert json.loads((path / "sft.json" if command == "sft" else path).read_text())
    else:
        assert line.endswith("lost.") and not list(kept.iterdir())


def test_two_runs_into_one_output(place, capsys):
    for writer in WRITERS:
        code = "from course_utils import outputs; import time\n"
        code += "with outputs.reserve_file('out'): print('held', flush=True); time.sleep(60)"
        other = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert other.stdout.readline() == "held\n"
        try:
            line = refused(capsys, place, *filled(WRITERS[writer], "out"))
            assert "out is being written by another run." in line
        finally:
            other.kill()
            other.wait()


# --- arguments -----------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07"
ARGUMENTS = [
    *[(command, "--nonsense") for command in MAINS],
    *[(command, ESCAPE, ESCAPE, ESCAPE, ESCAPE) for command in MAINS if command != "tokenizers"],
    *[(command, "--output") for command in ("sft", "comparison")],
    *[(command,) for command in ("sources", "audit", "curriculum", "sft", "comparison")],
    ("sources", "vicuna", "sharegpt.jsonl", "new.jsonl"),
    ("sources", "sharegpt", "sharegpt.jsonl"),
    ("sources", "sharegpt", "sharegpt.jsonl", "new.jsonl", "--role", "elf"),
    ("sources", "sharegpt", "sharegpt.jsonl", "new.jsonl", "--role", "elf=dwarf"),
    ("sources", "sharegpt", "sharegpt.jsonl", "new.jsonl", "--role", f"elf={ESCAPE}"),
    ("sources", "check", "chats.jsonl", "new.jsonl"),
    ("sources", "check", "chats.jsonl", "--report", "new.json"),
    ("audit", "chats.jsonl", "--near", "x"),
    ("audit", "chats.jsonl", "--near", "nan"),
    ("audit", "chats.jsonl", "--near", "-1"),
    ("audit", "chats.jsonl", "--near", "inf"),
    ("audit", "chats.jsonl", "--run", "0"),
    ("audit", "chats.jsonl", "--run", "9" * 5000),
    ("audit", "chats.jsonl", "--base", ""),
    ("audit", "chats.jsonl", "--base", "photos"),
    ("audit", "chats.jsonl", "--base", "chats.jsonl"),
    ("audit", "chats.jsonl", "--base", "x" * 5000),
    ("audit", "chats.jsonl", "--base", ESCAPE),
    ("curriculum", "new.jsonl", "--base", "none"),
    ("curriculum", "new.jsonl", "--without", "nothing"),
    ("curriculum", "new.jsonl", "--without", ESCAPE),
    ("curriculum", "new.jsonl", "--epochs", "facts"),
    ("curriculum", "new.jsonl", "--epochs", "facts=many"),
    ("curriculum", "new.jsonl", "--epochs", "facts=-1"),
    ("curriculum", "new.jsonl", "--epochs", "facts=nan"),
    ("curriculum", "new.jsonl", "--epochs", "facts=inf"),
    ("curriculum", "new.jsonl", "--epochs", "facts=1e300"),
    ("curriculum", "new.jsonl", "--epochs", f"{ESCAPE}=1"),
    ("curriculum", "new.jsonl", "--seed", "9" * 20),
    ("miniweb.chats", "new.jsonl", "--number", "0"),
    ("miniweb.chats", "new.jsonl", "--seed", "x"),
    *[
        ("sft", "--base", "base", "--data", "chats.jsonl", "--output", "new", *options)
        for options in (
            ("--steps", "0"),
            ("--steps", "1.5"),
            ("--steps", "1" * 5000),
            ("--steps", "10000000000"),
            ("--batch-size", "-1"),
            ("--accumulate", "0"),
            ("--learning-rate", "nan"),
            ("--learning-rate", "inf"),
            ("--learning-rate", "-1"),
            ("--max-length", "0"),
            ("--max-length", "3"),
            ("--seed", "9" * 30),
            ("--mode", "half"),
            ("--family", "vicuna"),
            ("--family", "raw"),
            ("--train-embeddings", "some"),
            ("--base", ""),
            ("--base", "photos"),
            ("--base", "chats.jsonl"),
            ("--base", "pipe"),
            ("--base", ESCAPE),
            ("--base", "x" * 5000),
        )
    ],
    *[
        ("comparison", "--tuned", "tuned", "--prompts", "prompts.jsonl", *options)
        for options in (
            ("--limit", "0"),
            ("--limit", "-3"),
            ("--max-new-tokens", "0"),
            ("--max-new-tokens", "9" * 30),
            ("--batch-size", "0"),
            ("--tuned", "missing"),
            ("--tuned", "photos"),
            ("--tuned", "pipe"),
            ("--tuned", "chats.jsonl"),
            ("--tuned", "x" * 5000),
            ("--tuned", ESCAPE),
            ("--base", ""),
            ("--base", "photos"),
            ("--base", ESCAPE),
        )
    ],
    ("tokenizers",),
    ("tokenizers", "eat"),
    ("tokenizers", ESCAPE),
]


@pytest.mark.parametrize("call", ARGUMENTS, ids=lambda call: " ".join(call)[:60].encode().hex())
def test_arguments_that_cannot_be_used(call, place, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refused(capsys, place, *call)
    assert len(line) < 3000


def test_tokenizers_that_nobody_knows(place, capsys, monkeypatch):
    before = contents(place)
    code, _, err = run(capsys, "tokenizers", "fetch", "llama9", ESCAPE, "x" * 5000)
    assert code == 1 and err.count("not fetched: unknown name") == 3 and contents(place) == before


def test_every_help_lists_every_exit_code(capsys):
    for command in MAINS:
        code, out, _ = run(capsys, command, "--help")
        listed = {
            int(found) for found in re.findall(r"^  (\d+) ", out.split("exit codes:")[1], re.M)
        }
        assert code == 0 and {0, 2, 70, 130} <= listed <= {0, 1, 2, 3, 70, 130}, command


# --- texts that a terminal would obey ------------------------------------------------------------

NASTY = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\x9b31m\r\x7f\u2028"


def test_nothing_of_the_data_reaches_the_terminal_raw(place, capsys):
    tool = {"type": "function", "function": {"name": "f" + NASTY, "parameters": {}}}
    nasty = [GOOD[0] | {"content": NASTY + " and so on"}, GOOD[1] | {"content": NASTY + " yes"}]
    records = [{"id": f"{NASTY}{n}", "messages": nasty, "tags": [NASTY]} for n in range(3)]
    Path("nasty.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(capsys, "audit", "nasty.jsonl")[0] == 1
    code, out, err = run(capsys, "audit", "nasty.jsonl", "--base", "tuned")
    assert code == 1 and r"\x1b[2J" in out, err
    assert run(capsys, "audit", "chats.jsonl", "--than", "nasty.jsonl")[0] == 0
    wrong = [records[0], records[0], records[0] | {"id": "b", NASTY: 1, "tools": [tool, NASTY]}]
    Path("wrong.jsonl").write_text("".join(json.dumps(record) + "\n" for record in wrong))
    code, out, _ = run(capsys, "sources", "check", "wrong.jsonl")
    assert code == 1 and r"\x1b[2J" in out
    dialogue = [{"from": NASTY, "value": "hi"}, {"from": "gpt", "value": "yes"}]
    Path(f"n{NASTY}.jsonl").write_text(json.dumps({"conversations": dialogue}) + "\n")
    code, out, _ = run(capsys, "sources", "sharegpt", f"n{NASTY}.jsonl", "new.jsonl", "--quiet")
    assert code == 3 and r"\x1b[2J" in out
    Path("prompts.jsonl").write_text(json.dumps(records[0] | {"messages": nasty[:1]}) + "\n")
    call = filled(WRITERS["comparison"], f"o{NASTY}.json")
    code, out, _ = run(capsys, *call)
    assert code == 0 and r"\x1b[2J" in out
    call = filled(WRITERS["sft"], f"o{NASTY}")
    code, out, err = run(capsys, *call, "--data", "nasty.jsonl")
    assert code == 0 and r"\x1b[2J" in out, err


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain – naïve 水 🙂 مرحبا", "plain – naïve 水 🙂 مرحبا"),
        ("a\tb\nc", r"a\tb\nc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x00\x07\x7f\x9b", r"\x00\x07\x7f\x9b"),
        ("\u202e\u2066\u200f\u2028", r"\u202e\u2066\u200f\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable(text, shown):
    assert commands.printable(text) == shown
    assert commands.printable(shown) == shown
    assert commands.printable("a\tb\nc\r", keep="\n\t") == "a\tb\nc\\r"


# --- failures ------------------------------------------------------------------------------------

FAILURES = {
    "ValueError": (ValueError("bad value"), 2, "bad value"),
    "of the course": (audit.AuditError("no such thing"), 2, "no such thing"),
    "of two lines": (ValueError("one\ntwo"), 2, "one two"),
    "without a word": (ValueError(), 2, "ValueError"),
    "of 10,000 letters": (ValueError("x" * 10_000), 2, "x ..."),
    "with escapes": (ValueError("a\x1b[31mb"), 2, r"a\x1b[31mb"),
    "missing file": (FileNotFoundError(2, "No such file or directory", "x"), 2, "x: No such file"),
    "disk": (OSError(28, "No space left on device"), 2, "No space left on device."),
    "memory": (MemoryError(), 2, "not enough memory (MemoryError)."),
    "depth": (RecursionError("maximum recursion depth"), 2, "the input is nested too deeply."),
    "of a library": (RuntimeError("CUDA out of memory"), 2, "CUDA out of memory"),
    "numbers": (OverflowError("too large"), 2, "too large"),
    "interrupted": (KeyboardInterrupt(), 130, "interrupted before it was done."),
    "ended": (commands.Ended(signal.SIGTERM), 143, "ended by SIGTERM before it was done."),
    "failed": (commands.Failed("lost"), 1, "lost"),
    "a bug": (KeyError("name"), 70, "please report it: KeyError: 'name' (COURSE_DEBUG=1 shows"),
    "a failed check": (AssertionError(), 70, "please report it: AssertionError"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_whatever_happens_there_is_one_sentence_and_a_code(kind, capsys):
    error, expected, message = FAILURES[kind]

    def work(options):
        raise error

    parser = commands.Parser(prog="prog", exits={})
    assert commands.run(parser, work, []) == expected
    out, err = capsys.readouterr()
    assert not out and err.startswith("prog: ") and message in err and err.count("\n") == 1
    failing = commands.run(parser, work, [], failing="the run failed")
    assert failing == (1 if kind in ("memory", "of a library", "numbers") else expected)
    begins = "prog: the run failed: " if failing == 1 else "prog: "
    assert capsys.readouterr().err.startswith(begins)


def test_a_traceback_on_request(capsys, monkeypatch):
    def work(options):
        raise KeyError("name")

    monkeypatch.setenv("COURSE_DEBUG", "1")
    assert commands.run(commands.Parser(prog="prog", exits={}), work, []) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_command_leaves_the_process_as_it_was(capsys):

    def state():
        handlers = [signal.getsignal(n) for n in atomic.ENDING]
        return handlers, sys.stdout, sys.stderr, warnings.formatwarning

    before = state()
    for error in (None, ValueError("x"), KeyboardInterrupt(), commands.Ended(signal.SIGTERM)):

        def work(options, error=error):
            if error:
                raise error
            return 0

        commands.run(commands.Parser(prog="prog", exits={}), work, [])
        assert state() == before


def test_a_warning_of_the_course_is_one_line_and_others_say_where(tmp_path):
    """In a process of its own: pytest records warnings before anything prints them."""
    code = (
        "import sys, warnings\n"
        "from course_utils import commands\n"
        "from course_utils.records import ConversationWarning\n"
        "def work(options):\n"
        "    warnings.warn('2 nulls: \\x1b[31m', ConversationWarning)\n"
        "    warnings.warn('from a library', UserWarning)\n"
        "    return 0\n"
        "commands.leave(commands.run(commands.Parser(prog='prog', exits={}), work, []))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    ours, theirs = done.stderr.splitlines()
    assert done.returncode == 0 and not done.stdout
    assert ours == "warning: 2 nulls: \\x1b[31m"
    assert theirs == "<string>:6: UserWarning: from a library"


class Gone(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.reason = error

    def write(self, text):
        raise self.reason


def test_where_nobody_listens_the_work_goes_on(monkeypatch, capsys):
    done = []

    def work(options):
        print("hello")
        done.append(commands.unread())
        return 1

    parser = commands.Parser(prog="prog", exits={})
    for error, unread in ((BrokenPipeError(32, "Broken pipe"), True), (OSError(5, "I/O"), False)):
        monkeypatch.setattr(sys, "stdout", Gone(error))
        assert commands.run(parser, work, []) == 1 and done.pop() == unread
    assert capsys.readouterr().err == "prog: standard output: I/O.\n"
    monkeypatch.setattr(sys, "stdout", Gone(OSError(28, "No space left on device")))
    assert commands.run(parser, lambda options: print("x") or 0, []) == 2
    monkeypatch.setattr(sys, "stdout", None)
    assert commands.run(parser, work, []) == 1


# --- as programs ---------------------------------------------------------------------------------


def default_signals():
    """A test run may have been started with signals ignored, as nohup does."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def shell(line, **options):
    python = f"{sys.executable} -m course_utils"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('COURSE', python)}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | options,
        timeout=60,
    )


@pytest.fixture
def many(place):
    """Files that a command reads for longer than a pipe holds."""
    wrong = [json.dumps({"id": f"ü{n}", "messages": [GOOD[0] | {"x": 1}]}) for n in range(3_000)]
    (place / "wrong.jsonl").write_text("\n".join(wrong) + "\n")
    return place


SHELL = {
    "true": ("COURSE.sources check wrong.jsonl | true", 1),
    "head": ("COURSE.sources check wrong.jsonl | head -1", 1),
    "audit into head": ("COURSE.audit chats.jsonl chats.jsonl | head -1", 1),
    "help into true": ("COURSE.audit --help | true", 0),
    "closed output": ("COURSE.sources check wrong.jsonl >&-", 1),
    "closed output, converted": ("COURSE.sources sharegpt sharegpt.jsonl new.jsonl >&-", 0),
    "all closed": ("COURSE.audit chats.jsonl <&- >&- 2>&-", 0),
    "closed error": ("COURSE.audit missing.jsonl 2>&-", 2),
    "full output": ("COURSE.audit chats.jsonl > /dev/full", 2),
    "full error": ("COURSE.audit missing.jsonl 2> /dev/full", 2),
    "ASCII": ("PYTHONIOENCODING=ascii COURSE.sources check wrong.jsonl", 1),
    "the C locale": ("PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C COURSE.audit missing-ü", 2),
    "a name that is no text": (r"COURSE.audit $'\xff\x1b.jsonl'", 2),
    "curriculum": ("COURSE.curriculum new.jsonl | true", 0),
}


@pytest.mark.parametrize("kind", SHELL)
def test_in_a_shell(kind, many):
    line, expected = SHELL[kind]
    before = contents(many)
    done = shell(line)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert not commands.OBEYED.search(re.sub("[\n\t\r]", "", done.stdout + done.stderr))
    after = contents(many)
    new = after.pop("new.jsonl", None)
    assert after == before and (new is None or new[1].endswith(b"}\n"))


# A command that says when its work has begun.
BEGUN = """
import sys
from importlib import import_module
def begun(*arguments, **options):
    print("begun", flush=True)
    return work(*arguments, **options)
module, name = import_module(sys.argv[1]), sys.argv[2]
work = getattr(module, name)
setattr(module, name, begun)
module.commands.leave(module.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["sources", "audit", "sft"])
def test_a_command_that_is_interrupted(command, number, place):
    chats = [[GOOD[0], GOOD[1] | {"content": f"yes {n} {n * 7} {n * 3}"}] for n in range(20_000)]
    lines = {
        "sources": [{"conversations": SHAREGPT, "n": n} for n in range(200_000)],
        "audit": [{"messages": chat} for chat in chats],
        "sft": [{"messages": GOOD}],
    }[command]
    Path("many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = {
        "sources": ["sources.__main__", "convert_file", "sharegpt", "many.jsonl", "former.json"]
        + ["--overwrite"],
        "audit": ["audit", "audit", "many.jsonl"],
        "sft": ["sft", "fine_tune", *filled(WRITERS["sft"], "new")[1:], "--steps", "100000"],
    }[command]
    before = contents(place)
    program = subprocess.Popen(
        [sys.executable, "-c", BEGUN, f"course_utils.{call[0]}", *call[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
        preexec_fn=default_signals,
    )
    while program.stdout.readline() != "begun\n":
        assert program.poll() is None
    time.sleep(0.2)
    os.killpg(program.pid, number)  # the whole group, as a terminal does
    _, err = program.communicate(timeout=30)
    assert program.returncode == 128 + number, err
    assert "Traceback" not in err and "before it was done." in err
    assert contents(place) == before


def test_ctrl_c_while_modules_are_imported(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'course_utils.masking':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.audit", "chats.jsonl"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == -signal.SIGINT and done.stdout == done.stderr == ""
