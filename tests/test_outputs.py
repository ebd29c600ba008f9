"""Writing: complete or not at all, over nothing that should stay, and by one run at a time."""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from course_utils import atomic, placing
from course_utils.manifests import is_ours, write_manifest
from course_utils.outputs import (
    Nothing,
    OutputError,
    check_file,
    check_folder,
    check_room,
    new_file,
    new_folder,
    rescue,
    reserve_file,
    reserve_folder,
    write_text,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["one step", "two renames"])
def exchange(request, monkeypatch):
    """Both ways of taking a former output's place: with renameat2 and without it."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "rename", lambda *_: False)
    return request.param


def save(path, content, size=1, **options):
    """A folder as a checkpoint's: some files and a manifest, all of them saying `content`."""
    with new_folder(path, **options) as made:
        for number in range(size):
            (made / f"{number}.json").write_text(json.dumps(content))
        write_manifest(made)


def saved(path):
    """What a folder of `save` says: one and the same in every file, and nothing is missing."""
    assert is_ours(path)
    (content,) = {file.read_text() for file in path.glob("[0-9]*.json")}
    return json.loads(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- complete or not at all ----------------------------------------------------------------------


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "out.jsonl"
    with new_file(path) as file:
        file.write(b"one\n")
        assert not path.exists()
        file.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n" and names(tmp_path) == ["out.jsonl"]
    with new_file(path, overwrite=True) as file:
        file.write(b"three\n")
        assert path.read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n" and names(tmp_path) == ["out.jsonl"]


def test_a_folder_appears_when_it_is_complete(tmp_path, exchange):
    path = tmp_path / "runs" / "first"
    with new_folder(path) as made:
        (made / "inner").mkdir()
        (made / "inner" / "a.json").write_text("1")
        write_manifest(made)
        assert not path.exists()
    assert (path / "inner" / "a.json").read_text() == "1" and names(tmp_path / "runs") == ["first"]
    save(path, 2, overwrite=True)
    assert saved(path) == 2 and names(path) == ["0.json", "manifest.json"]
    assert names(tmp_path / "runs") == ["first"]


@pytest.mark.parametrize(
    "failure", [OSError("disk"), ValueError("bad"), KeyboardInterrupt(), SystemExit(3)]
)
def test_what_fails_leaves_everything_as_it_was(failure, tmp_path):
    (tmp_path / "old.txt").write_text("old")
    save(tmp_path / "old", "old")
    for path, overwrite in (("old", True), ("new", False), ("far/away/new", False)):
        options = {"overwrite": overwrite}
        with pytest.raises(type(failure)), new_folder(tmp_path / path, **options) as made:
            (made / "half").write_text("x")
            raise failure
        options |= {"parents": True}
        with pytest.raises(type(failure)), new_file(tmp_path / f"{path}.txt", **options) as file:
            file.write(b"x" * 100_000)
            raise failure
    assert names(tmp_path) == ["old", "old.txt"]
    assert saved(tmp_path / "old") == "old" and (tmp_path / "old.txt").read_text() == "old"


def test_nothing_to_write_is_no_error_and_leaves_everything_as_it_was(tmp_path):
    save(tmp_path / "old", "old")
    for path in ("old", "new"):
        with new_folder(tmp_path / path, overwrite=True) as made:
            (made / "x").write_text("x")
            raise Nothing
    with new_file(tmp_path / "out.txt") as file:
        file.write(b"x")
        raise Nothing
    assert names(tmp_path) == ["old"] and saved(tmp_path / "old") == "old"


def test_permissions_are_those_of_the_user_or_of_the_file_before(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "a")
        save(tmp_path / "folder", 1)
    finally:
        os.umask(before)
    mode = lambda name: stat.S_IMODE((tmp_path / name).stat().st_mode)  # noqa: E731
    assert (mode("a.txt"), mode("folder"), mode("folder/0.json")) == (0o640, 0o750, 0o640)
    (tmp_path / "a.txt").chmod(0o600)
    write_text(tmp_path / "a.txt", "b", overwrite=True)
    assert mode("a.txt") == 0o600 and (tmp_path / "a.txt").read_text() == "b"


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk: writing on fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [10_000, 200_000])  # fails at the end, or while writing
def test_a_full_disk_names_the_output_and_leaves_everything_as_it_was(size, tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with (
        files_of_at_most(8192),
        pytest.raises(OSError) as raised,
        new_file(path, overwrite=True) as file,
    ):
        for _ in range(size // 1000):
            file.write(b"x" * 1000)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert path.read_text() == "old" and names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("size", [0, 1, 1000])  # not even the lock, a part of it, or no more
def test_a_full_disk_is_noticed_before_the_work(size, tmp_path):
    with files_of_at_most(size):
        for check in (check_file, check_folder):
            with pytest.raises(OutputError, match="out cannot be written: File too large"):
                check(tmp_path / "out")
            assert names(tmp_path) == []
    with files_of_at_most(100_000):
        check_folder(tmp_path / "out")
        with pytest.raises(OutputError, match=r"needs 1.0 MiB, and .* 0.1 MiB only \(ulimit -f\)"):
            check_room(tmp_path / "far" / "out", 2**20)
    check_room(tmp_path / "out", 2**20)
    with pytest.raises(OutputError, match="MiB are free. Make room, or choose another place"):
        check_room(tmp_path / "far" / "out", 2**60)
    assert names(tmp_path) == []


def test_what_cannot_be_written_is_kept_where_there_is_room(tmp_path, monkeypatch):
    full, roomy, tried = tmp_path / "full", tmp_path / "roomy", []
    full.mkdir(), roomy.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(full))
    monkeypatch.setenv("HOME", str(roomy))

    def write(path):
        tried.append(path)
        if full in path.parents:
            raise RuntimeError("I/O error: no space left")  # a library's own
        path.write_text("kept")

    kept = rescue("result.json", write)
    assert kept.read_text() == "kept" and roomy in kept.parents and len(tried) == 2
    assert names(full) == []
    monkeypatch.setenv("HOME", str(full))
    monkeypatch.chdir(full)
    assert rescue("result.json", write) is None and names(full) == []


# --- over nothing that should stay ---------------------------------------------------------------


def links_to(path, folder):
    """The same file under other names."""
    (folder / "symbolic").symlink_to(path)
    (folder / "through").symlink_to(path.parent, target_is_directory=True)
    yield path
    yield folder / "symbolic"
    yield folder / "through" / path.name
    yield path.parent / "." / ".." / path.parent.name / path.name
    yield Path(os.path.relpath(path))
    if path.is_file():
        os.link(path, folder / "hard")
        yield folder / "hard"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output_by_whatever_name(overwrite, tmp_path):
    (tmp_path / "data").mkdir(), (tmp_path / "links").mkdir()
    chats = tmp_path / "data" / "chats.jsonl"
    chats.write_text("input")
    for output in links_to(chats, tmp_path / "links"):
        for source in (chats, output):
            with pytest.raises(OutputError, match="is the same file as"):
                check_file(output, overwrite=overwrite, inputs=[source])
            with pytest.raises(OutputError, match="is the same file as"):
                check_file(chats, overwrite=overwrite, inputs=[output])
    assert chats.read_text() == "input" and names(tmp_path / "data") == ["chats.jsonl"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_read_stays_whole(overwrite, tmp_path):
    save(tmp_path / "base", 1)
    (tmp_path / "links").mkdir()
    options = {"overwrite": overwrite, "inputs": [tmp_path / "base"]}
    for folder in links_to(tmp_path / "base", tmp_path / "links"):
        with pytest.raises(OutputError, match="is the same file as"):
            check_folder(folder, **options)
        for name in ("new", "0.json", "new/inner"):
            with pytest.raises(OutputError, match="is in the folder"):
                check_folder(folder / name if name != "0.json" else folder / "x", **options)
            with pytest.raises(OutputError, match="is in the folder"):
                check_file(folder / name, parents=True, **options)
    for read in ("base/0.json", "base/inner/deep"):
        with pytest.raises(OutputError, match="base holds .*, which this command reads"):
            check_folder(tmp_path / "base", overwrite=overwrite, inputs=[tmp_path / read])
    assert saved(tmp_path / "base") == 1


def test_two_outputs_that_are_one_are_refused_before_they_exist(tmp_path):
    with pytest.raises(OutputError, match="is the same file as"):
        check_file(tmp_path / "a", inputs=[tmp_path / "b" / ".." / "a"])


def test_a_former_output_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "ours", 1)
    for path, check in (("a.txt", check_file), ("ours", check_folder), ("empty", check_folder)):
        with pytest.raises(OutputError, match="exists. Choose another f.* or add --overwrite."):
            check(tmp_path / path)
        check(tmp_path / path, overwrite=True)
    save(tmp_path / "empty", 2, overwrite=True)
    assert saved(tmp_path / "empty") == 2


@pytest.mark.parametrize(
    "theirs",
    ["notes.txt", "deep/notes.txt", ".hidden", "sft.json", "chat_template.jinja"],
)
def test_a_folder_with_files_of_others_is_never_replaced(theirs, tmp_path):
    save(tmp_path / "run", 1)
    (tmp_path / "run" / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / theirs).write_text("mine")
    with pytest.raises(OutputError, match="holds files that this course did not write"):
        check_folder(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / theirs).read_text() == "mine" and names(tmp_path) == ["run"]


@pytest.mark.parametrize("when", ["while it is made", "between the check and the exchange"])
def test_a_file_put_into_a_former_output_meanwhile_is_not_lost(
    when, tmp_path, exchange, monkeypatch
):
    save(tmp_path / "run", 1)
    swap = atomic.exchange

    def swap_late(made, target, former):
        if target == tmp_path / "run" and not (target / "notes.txt").exists():
            (target / "notes.txt").write_text("mine")
        return swap(made, target, former)

    with (
        pytest.raises(OutputError, match="did not write|has changed meanwhile"),
        new_folder(tmp_path / "run", overwrite=True) as made,
    ):
        (made / "0.json").write_text("2")
        if when == "while it is made":
            (tmp_path / "run" / "notes.txt").write_text("mine")
        else:
            monkeypatch.setattr(atomic, "exchange", swap_late)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "0.json").read_text() == "1" and names(tmp_path) == ["run"]


def test_what_appears_at_a_free_place_meanwhile_is_not_lost(tmp_path, exchange):
    with pytest.raises(OutputError, match="exists"), new_file(tmp_path / "out.txt") as file:
        file.write(b"ours")
        (tmp_path / "out.txt").write_text("theirs")
    with pytest.raises(OutputError, match="exists"), reserve_file(tmp_path / "late.txt"):
        (tmp_path / "late.txt").write_text("theirs")
        write_text(tmp_path / "late.txt", "ours", overwrite=True)
    with pytest.raises(OutputError, match="exists"), new_folder(tmp_path / "run"):
        (tmp_path / "run").mkdir()
    assert (tmp_path / "out.txt").read_text() == (tmp_path / "late.txt").read_text() == "theirs"
    assert names(tmp_path) == ["late.txt", "out.txt", "run"]


REFUSED = {
    "a folder for a file": ("folder", check_file, "is a folder. Name a file."),
    "a file for a folder": ("file", check_folder, "is a file. Name a folder."),
    "a dangling link": ("dangling", check_file, "dangling is a link to .*nowhere, where nothing"),
    "a dangling link, folder": ("dangling", check_folder, "is a link to"),
    "below a dangling link": ("dangling/run", check_folder, "dangling is a link to"),
    "a link to itself": ("loop", check_file, "is a link to loop, where nothing is"),
    "a link to a folder": ("to_folder", check_file, "is a folder"),
    "a pipe": ("pipe", check_file, "is a device, a pipe or a socket"),
    "a device": ("/dev/null", check_file, "is a device, a pipe or a socket"),
    "a device for a folder": ("/dev/null", check_folder, "is a device, a pipe or a socket"),
    "a name that is too long": ("x" * 256, check_file, "File name too long"),
    "a folder's name that is too long": ("é" * 128, check_folder, "File name too long"),
    "too long below a new folder": (f"new/{'x' * 256}", check_folder, "File name too long"),
    "a parent that is too long": (f"{'x' * 256}/new", check_folder, "File name too long"),
    "a path that is too long": ("/".join(["x" * 200] * 21), check_folder, "File name too long"),
    "nearly too long a path": ("", check_folder, "File name too long"),
    "the folder above": ("new/..", check_folder, "exists"),
    "this folder": (".", check_folder, "exists"),
    "the root": ("/", check_folder, "exists"),
    "the root as a file": ("/", check_file, "is a folder"),
    "below a file": ("file/out", check_file, "Not a directory"),
    "far below a file": ("file/out/run", check_folder, "Not a directory"),
    "no folder for a file": ("new/out", check_file, "new: no such folder"),
    "a read-only file system": ("/proc/out", check_file, "cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_before_the_work(case, tmp_path, monkeypatch):
    place, check, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir(), Path("file").write_text("x"), os.mkfifo("pipe")
    Path("dangling").symlink_to(tmp_path / "nowhere"), Path("loop").symlink_to("loop")
    Path("to_folder").symlink_to("folder")
    if case == "nearly too long a path":
        room = 4090 - len(str(tmp_path)) - 1
        place = "/".join(["x" * 99] * (room // 100 - 1) + ["y" * (room % 100 + 99)])
    before = names(tmp_path)
    with pytest.raises(OutputError, match=message):
        check(place)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 250, "é" * 127, " ", "-rf", "a\nb", "\udcff", "~", "'\"$;"])
def test_unusual_names_are_written_to(name, tmp_path):
    write_text(tmp_path / name, "a")
    write_text(tmp_path / name, "b", overwrite=True)
    assert (tmp_path / name).read_text() == "b" and len(names(tmp_path)) == 1
    (tmp_path / name).unlink()
    save(tmp_path / name, 1)
    save(tmp_path / name, 2, overwrite=True)
    assert saved(tmp_path / name) == 2 and len(names(tmp_path)) == 1


def test_a_link_to_a_former_output_is_followed(tmp_path):
    (tmp_path / "big").mkdir()
    save(tmp_path / "big" / "run", 1)
    write_text(tmp_path / "big" / "a.txt", "1")
    (tmp_path / "run").symlink_to("big/run")
    (tmp_path / "a.txt").symlink_to("big/a.txt")
    save(tmp_path / "run", 2, overwrite=True)
    write_text(tmp_path / "a.txt", "2", overwrite=True)
    assert saved(tmp_path / "big" / "run") == 2 and (tmp_path / "run").is_symlink()
    assert (tmp_path / "big" / "a.txt").read_text() == "2" and (tmp_path / "a.txt").is_symlink()
    assert names(tmp_path / "big") == ["a.txt", "run"]


@pytest.fixture
def stranger():
    """A folder of another user's, and this process without the rights of root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    save(folder / "run", 1)
    (folder / "a.txt").write_text("theirs")
    (folder / "a.txt").chmod(0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        folder.chmod(0o555), (folder / "run").chmod(0o555)
    yield folder
    if os.getuid() == 0:
        os.seteuid(0)
    folder.chmod(0o755)
    subprocess.run(["rm", "-rf", folder], check=True)


def test_a_place_without_permission_is_refused_before_the_work(stranger):
    for path, check in (("new", check_file), ("new", check_folder), ("far/new", check_folder)):
        with pytest.raises(OutputError, match="new cannot be written: Permission denied"):
            check(stranger / path)
    for path, check in (("a.txt", check_file), ("run", check_folder)):
        with pytest.raises(OutputError, match="is write-protected"):
            check(stranger / path, overwrite=True)


# --- one run at a time ---------------------------------------------------------------------------


def python(code, *arguments, **options):
    command = [sys.executable, "-c", f"from test_outputs import *\n{code}", *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths}
    options |= {"env": environment, "text": True, "preexec_fn": default_signals}
    return subprocess.Popen(command, **options)


def default_signals():
    """A test run may have been started with signals ignored, as nohup does."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def hold(path, how="reserve_folder"):
    """Another process that holds `path`."""
    code = f"with {how}(sys.argv[1]) as made:\n    print('held', flush=True)\n    time.sleep(60)"
    other = python(code, path, stdout=subprocess.PIPE)
    assert other.stdout.readline() == "held\n"
    return other


@pytest.mark.parametrize("how", ["reserve_file", "reserve_folder", "new_file", "new_folder"])
def test_a_second_run_is_refused_before_it_works_and_a_dead_one_holds_nothing(how, tmp_path):
    first = hold(tmp_path / "run", how)
    for check in (check_file, check_folder):
        with pytest.raises(OutputError, match="run is being written by another run. Wait for"):
            check(tmp_path / "run")
    check_folder(tmp_path / "another")
    first.kill()
    first.wait()
    (left,) = names(tmp_path)
    assert placing.SCRATCH.fullmatch(left)
    save(tmp_path / "run", 2)
    assert saved(tmp_path / "run") == 2 and names(tmp_path) == ["run"]


def test_what_a_dead_run_left_is_removed_by_the_next_one_beside_it(tmp_path):
    dead, living = hold(tmp_path / "one", "new_folder"), hold(tmp_path / "two", "new_folder")
    dead.kill()
    dead.wait()
    write_text(tmp_path / "three", "3")
    assert len(names(tmp_path)) == 2 and living.poll() is None
    with pytest.raises(OutputError, match="by another run"):
        check_folder(tmp_path / "two")
    living.kill()
    living.wait()
    write_text(tmp_path / "four", "4")
    assert names(tmp_path) == ["four", "three"]


def test_hidden_folders_that_are_not_ours_stay(tmp_path):
    for name in (".course-abc", ".course-0123456789abcdef0", "course-0123456789abcdef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("theirs")
    (tmp_path / ".course-0123456789abcdef").mkdir()
    (tmp_path / ".course-0123456789abcdef" / "a.txt").write_text("theirs")  # but no lock
    write_text(tmp_path / "new", "1")
    assert len(list(tmp_path.glob("*course-*/a.txt"))) == 4


def test_threads_and_forked_children_are_other_runs(tmp_path):
    refused = []

    def attempt():
        try:
            check_folder(tmp_path / "run")
        except OutputError as error:
            refused.append(str(error))

    with reserve_folder(tmp_path / "run"):
        thread = threading.Thread(target=attempt)
        thread.start(), thread.join()
        child = os.fork()
        if child == 0:
            attempt()
            os._exit(len(refused))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        save(tmp_path / "run", 1)
        assert saved(tmp_path / "run") == 1
    assert len(refused) == 1 and "by another run" in refused[0]
    assert names(tmp_path) == ["run"]


def test_many_threads_into_one_output_write_one_whole_one_each(tmp_path):
    path, done = tmp_path / "run", []

    def write(number):
        with contextlib.suppress(OutputError):
            save(path, number, size=20, overwrite=True)
            done.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert saved(path) in done and names(tmp_path) == ["run"]


def test_two_blocks_of_one_run_into_one_output(tmp_path):
    with new_file(tmp_path / "a") as first:
        first.write(b"1")
        with pytest.raises(OutputError, match="is being written already"), new_file(tmp_path / "a"):
            pass
    assert (tmp_path / "a").read_bytes() == b"1"


def test_without_locks_a_second_run_is_refused_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(placing, "fcntl", None)
    with reserve_folder(tmp_path / "run"):
        thread = threading.Thread(target=lambda: errors.append(refusal(tmp_path / "run")))
        errors = []
        thread.start(), thread.join()
    assert "another run" in errors[0] and "If there is none, delete" in errors[0]
    save(tmp_path / "run", 1)
    assert names(tmp_path) == ["run"]


def refusal(path):
    with pytest.raises(OutputError) as raised:
        check_folder(path)
    return str(raised.value)


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", atomic.ENDING)
def test_a_signal_between_the_two_renames_waits_for_the_second(
    number, tmp_path, exchange, monkeypatch
):
    class Came(BaseException):
        pass

    def end(*_):
        raise Came

    swap, before = atomic.exchange, signal.signal(number, end)

    def swap_under_fire(made, target, former):
        signal.raise_signal(number)
        try:
            return swap(made, target, former)
        finally:
            signal.raise_signal(number)

    save(tmp_path / "run", 1)
    monkeypatch.setattr(atomic, "exchange", swap_under_fire)
    try:
        with pytest.raises(Came):
            save(tmp_path / "run", 2, overwrite=True)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert saved(tmp_path / "run") == 2 and names(tmp_path) == ["run"]


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path):
    save(tmp_path / "run", 1)
    code = """
atomic.rename = lambda *_: False
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_and_die
save(Path(sys.argv[1]), 2, overwrite=True)
"""
    assert python(code, tmp_path / "run").wait() == -signal.SIGKILL
    assert not (tmp_path / "run").exists() and len(names(tmp_path)) == 1
    write_text(tmp_path / "beside.txt", "any run that writes there")
    assert saved(tmp_path / "run") == 1 and names(tmp_path) == ["beside.txt", "run"]


WRITER = """
from course_utils import commands
def work(options):
    print("started", flush=True)
    for number in range(100_000):
        save(Path(sys.argv[1]), number, size=5, overwrite=True)
        write_text(sys.argv[1] + ".txt", str(number) * 1000, overwrite=True)
commands.leave(commands.run(commands.Parser(prog="writer", exits={}), work, []))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_whenever_a_signal_comes_an_output_is_whole(name, tmp_path):
    number, chance = getattr(signal, name), random.Random(name)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    path = tmp_path / "run"
    save(path, 0, size=5)
    write_text(tmp_path / "run.txt", "0" * 1000)
    for _ in range(5):
        writer = python(WRITER, path, **pipes)
        assert writer.stdout.readline() == "started\n"
        time.sleep(chance.uniform(0.02, 0.2))
        writer.send_signal(number)
        _, error = writer.communicate(timeout=20)
        assert saved(path) >= 0
        text = (tmp_path / "run.txt").read_text()
        assert text == text[: len(text) // 1000] * 1000
        if name == "SIGKILL":
            assert writer.returncode == -number and len(names(tmp_path)) <= 4
        else:
            assert writer.returncode == 128 + number and error.count("\n") == 1, error
            assert names(tmp_path) == ["run", "run.txt"]
    check_file(tmp_path / "next")
    assert names(tmp_path) == ["run", "run.txt"]
