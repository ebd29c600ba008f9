"""The one way of writing: complete or not at all, never over an input, one run at a time.

What is being written lies in a hidden folder beside its output, `.course-` and 16 hex digits made
from the output's name, and is moved to that name in one step when it is complete. The folder also
holds the lock that keeps a second run out of the same output: `flock`, which the kernel gives up
with the process, however that ends. Whatever ends the work, an error, Ctrl-C or a signal that the
frame in `commands` catches, takes the folder along. After SIGKILL or a power cut it stays; the next
run that writes to the same place removes it.

A checkpoint takes a former one's place by `renameat2(RENAME_EXCHANGE)`, one step in which neither
can be lost. Where the file system lacks it the former one is moved into the hidden folder first,
and should the process die before the second move, the next run to write there brings it back.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: the hidden folder alone keeps a second run out
    fcntl = None

SCRATCH = re.compile(r"\.course-[0-9a-f]{16}")
ENDING = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2, from linux/fs.h


class OutputError(ValueError):
    """An output cannot be written, or must not be; the message says why and what to do."""


class Nothing(Exception):
    """Raised in the block of `new_file` or `new_folder`, it ends it and leaves all as it was."""


def check_file(path, *, overwrite=False, inputs=(), parents=False) -> None:
    """Raise `OutputError` if `new_file` could not write there: before the work, not after it.

    overwrite: a file that is there may be replaced
    inputs:    files and folders that must stay as they are: what the work reads, and what else it
               writes; neither `path` itself nor a folder around it may be one of them
    parents:   folders above it that are missing are made
    """
    with reserve_file(path, overwrite=overwrite, inputs=inputs, parents=parents):
        pass


def check_folder(path, *, overwrite=False, inputs=()) -> None:
    """Raise `OutputError` if `new_folder` could not write there; arguments as in `check_file`.

    `overwrite` allows an empty folder, or one in which this course wrote every file, to be
    replaced.
    """
    with reserve_folder(path, overwrite=overwrite, inputs=inputs):
        pass


@contextlib.contextmanager
def reserve_file(path, *, overwrite=False, inputs=(), parents=False) -> Iterator[None]:
    """`check_file`, and until the end of the block no other run can write there."""
    with _reserved(path, overwrite, inputs, folder=False, parents=parents):
        yield


@contextlib.contextmanager
def reserve_folder(path, *, overwrite=False, inputs=()) -> Iterator[None]:
    """`check_folder`, and until the end of the block no other run can write there."""
    with _reserved(path, overwrite, inputs, folder=True, parents=True):
        yield


@contextlib.contextmanager
def new_file(path, *, overwrite=False, inputs=(), parents=False) -> Iterator[BinaryIO]:
    """A binary file to write to, which appears as `path` at the end of the block.

    Arguments as in `check_file`; a replaced file hands on its permissions. An error in the block
    leaves everything as it was.
    """
    with _reserved(path, overwrite, inputs, folder=False, parents=parents) as held, held.writing():
        file = io.BufferedWriter(_Named(held.made, path))
        try:
            yield file
            with _failing_as(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                if held.target.exists():
                    held.made.chmod(stat.S_IMODE(held.target.stat().st_mode))
        finally:
            with contextlib.suppress(OSError):  # what is in its buffer goes with it
                file.close()
        held.place(path, overwrite, folder=False)


@contextlib.contextmanager
def new_folder(path, *, overwrite=False, inputs=()) -> Iterator[Path]:
    """An empty folder to fill, which appears as `path` at the end of the block.

    Arguments as in `check_folder`. An error in the block leaves everything as it was.
    """
    with _reserved(path, overwrite, inputs, folder=True, parents=True) as held, held.writing():
        held.made.mkdir()
        yield held.made
        held.place(path, overwrite, folder=True)


def write_text(path, text: str, **options) -> None:
    """Write a text in UTF-8 through `new_file`; lone surrogates become JSON's escape for them."""
    with new_file(path, **options) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def check_room(path, size: int) -> None:
    """Raise `OutputError` if `size` bytes do not fit where `path` is to be written."""
    place = next(p for p in Path(os.path.realpath(path)).parents if p.is_dir())
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputError(
            f"{path} needs {size / 2**20:,.1f} MiB, and only {free / 2**20:,.1f} MiB are free. "
            "Make room, or choose another place."
        )
    with contextlib.suppress(ImportError):
        import resource

        largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if largest != resource.RLIM_INFINITY and size > largest:
            raise OutputError(
                f"{path} needs {size / 2**20:,.1f} MiB, and this shell lets a file grow to "
                f"{largest / 2**20:,.1f} MiB only (ulimit -f). Raise the limit."
            )


def rescue(name: str, write: Callable[[Path], object]) -> Path | None:
    """Keep what could not be written where it belongs: the path where there was room, or None.

    `write` is called with a path that ends in `name`: in the folder for temporary files, at home,
    and in the current folder, until it succeeds.
    """
    for place in (tempfile.gettempdir, Path.home, Path.cwd):
        with contextlib.ExitStack() as undo:
            try:
                folder = Path(tempfile.mkdtemp(prefix="course-kept-", dir=place()))
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                write(folder / name)
            except Exception:  # a full disk raises what each library makes of it
                continue
            undo.pop_all()
            return folder / name
    return None


# --- checking ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


def _checked(path: Path, overwrite: bool, inputs: Iterable, folder: bool, parents: bool) -> Path:
    """The place that `path` names, links followed, if it may be written to."""
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise OutputError(
                f"{link} is a link to {os.readlink(link)}, where nothing is. Remove the link, or "
                "choose another output."
            )
    target = Path(os.path.realpath(path))
    found = _found(path, target, folder)
    for other in inputs:
        _check_apart(path, target, Path(other))
    if found:
        _check_replaceable(path, target, overwrite, folder)
    if not parents and not target.parent.is_dir():
        raise OutputError(f"{path} cannot be written: {path.parent}: no such folder.")
    return target


def _check_apart(path: Path, target: Path, other: Path) -> None:
    real = Path(os.path.realpath(other))
    if target == real or _same(target, real):
        raise OutputError(
            f"{path} is the same file as {other}, which this command reads or writes as well. "
            "Choose another output."
        )
    if any(_same(above, real) for above in target.parents):
        raise OutputError(
            f"{path} is in the folder {other}, which this command reads. Choose another output."
        )
    if any(_same(above, target) for above in real.parents):
        raise OutputError(f"{path} holds {other}, which this command reads. Choose another output.")


def _same(one: Path, other: Path) -> bool:
    """One and the same file or folder, by whatever names: links, hard links, mounts."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _found(path: Path, target: Path, folder: bool) -> bool:
    """Is there something, and of the right kind?"""
    try:
        mode = os.stat(path if os.path.exists(path) else target).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode) and not folder:
        raise OutputError(f"{path} is a folder. Name a file.")
    if stat.S_ISREG(mode) and folder:
        raise OutputError(f"{path} is a file. Name a folder.")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise OutputError(f"{path} is a device, a pipe or a socket. Choose another output.")
    return True


def _check_replaceable(path: Path, target: Path, overwrite: bool, folder: bool) -> None:
    kind = "folder" if folder else "file"
    if not overwrite:
        raise OutputError(f"{path} exists. Choose another {kind} or add --overwrite.")
    as_it_runs = os.access in os.supports_effective_ids
    if not os.access(target, os.W_OK, effective_ids=as_it_runs):
        raise OutputError(f"{path} is write-protected. Choose another {kind}.")
    if folder and os.path.ismount(target):
        raise OutputError(f"{path} is a mounted file system. Name a folder in it.")
    if folder and not _replaceable(target):
        raise OutputError(
            f"{path} holds files that this course did not write, so it is not replaced. Choose "
            "another folder."
        )


def _replaceable(folder: Path) -> bool:
    from course_utils.manifests import is_ours

    return not any(folder.iterdir()) or is_ours(folder)


# --- holding a place, and filling it -------------------------------------------------------------


@dataclass
class _Held:
    """A place that this process holds: its hidden folder and the lock in it."""

    target: Path
    lock: int
    overwrite: bool = False  # what the block around says counts for those inside
    owner: tuple[int, int] = field(default_factory=lambda: (os.getpid(), threading.get_ident()))
    busy: bool = False

    @property
    def scratch(self) -> Path:
        return _scratch(self.target)

    @property
    def made(self) -> Path:
        return self.scratch / "made"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        if self.busy:
            raise OutputError(f"{self.target} is being written already.")
        self.busy = True
        try:
            with contextlib.suppress(Nothing):
                yield
        finally:
            self.busy = False
            if self.owner[0] == os.getpid():  # not in a child that was forked in the block
                with _undisturbed():
                    _remove(self.made)

    def place(self, path, overwrite: bool, folder: bool) -> None:
        """Move what was made to its name, and what was there out of the way, in one step."""
        overwrite = overwrite and self.overwrite
        if folder:
            _sync(self.made)
        with _explained(path), _undisturbed():
            # Again: hours may have passed.
            if _found(Path(path), self.target, folder):
                _check_replaceable(Path(path), self.target, overwrite, folder)
            if not self.target.exists():
                _move(self.made, self.target)
            elif not folder:
                os.replace(self.made, self.target)
            else:
                former = _exchange(self.made, self.target, self.scratch / "old")
                if not _replaceable(former):  # somebody has put a file into it just now
                    _exchange(former, self.target, self.scratch / "new")
                    raise OutputError(f"{path} has changed meanwhile, so it is not replaced.")
            _sync_folder(self.target.parent)


_held: dict[Path, _Held] = {}


@contextlib.contextmanager
def _reserved(path, overwrite, inputs, *, folder: bool, parents: bool) -> Iterator[_Held]:
    path = Path(path)
    with _explained(path):
        target = _checked(path, overwrite, inputs, folder, parents)
    around = _held.get(target)
    if around and around.owner == (os.getpid(), threading.get_ident()):
        yield around  # reserved by a block around this one
        return
    held, made = None, []
    try:
        with _explained(path), _undisturbed():
            held = _acquire(path, target, made)
            held.overwrite = overwrite
            _held[target] = held
            # Again: another run may just have finished.
            _checked(path, overwrite, inputs, folder, parents)
            _try_out(held)
            _clean_up_after_others(target)
        yield held
    finally:
        try:
            _let_go(held, made)
        except BaseException:  # a signal in the moment before it could wait: once more
            _let_go(held, made)
            raise


def _let_go(held: _Held | None, made: list[Path]) -> None:
    """Give up a place, if that has not been done, and remove the parents that hold nothing."""
    if held and held.owner[0] != os.getpid():
        return  # a child that was forked in the block
    with _undisturbed():
        if held and _held.get(held.target) is held:
            del _held[held.target]
            _release(held.scratch, held.lock, held.target)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # it is in use by now
                folder.rmdir()


def _scratch(target: Path) -> Path:
    # The name of fixed length: the output's own may be as long as a name can be.
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return target.with_name(f".course-{digest[:16]}")


def _acquire(path: Path, target: Path, made: list[Path]) -> _Held:
    """Make and lock the hidden folder of an output; the parents that were missing go to `made`."""
    scratch = _scratch(target)
    why = "other runs come in between"
    for _ in range(100):  # another run may remove the folder at every moment
        _make_parents(target.parent, made)
        try:
            scratch.mkdir(0o700)
            fresh = True
        except FileExistsError:
            fresh = False
        except FileNotFoundError as error:
            why = error.strerror
            continue
        try:
            lock = _open_lock(scratch, os.O_CREAT)
        except OSError:
            if fresh:
                scratch.rmdir()
            raise
        if lock is None:
            continue
        if (got := _lock(lock)) or (got is None and fresh):
            if _still_there(scratch, lock):
                try:
                    _empty(scratch, target)
                    os.truncate(lock, 0)
                    os.write(lock, os.fsencode(target.name))
                except OSError:
                    _release(scratch, lock, target)
                    raise
                return _Held(target, lock)
            os.close(lock)
            continue
        os.close(lock)
        raise OutputError(
            f"{path} is being written by another run. Wait for its end, or choose another output."
            + (f" If there is none, delete {scratch}." if got is None else "")
        )
    raise OutputError(f"{path} cannot be written: {why}.")


def _make_parents(folder: Path, made: list[Path]) -> None:
    if folder.exists():
        return
    _make_parents(folder.parent, made)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        made.append(folder)


def _open_lock(scratch: Path, flags: int = 0) -> int | None:
    """The lock file in a hidden folder of ours, open; None if the folder is not there."""
    try:
        about = scratch.lstat()
        mine = not hasattr(os, "geteuid") or about.st_uid == os.geteuid()
        if not stat.S_ISDIR(about.st_mode) or not mine:
            raise OutputError(f"{scratch} is in the way: it belongs to somebody else. Delete it.")
        return os.open(scratch / "lock", os.O_RDWR | flags, 0o600)
    except FileNotFoundError:
        return None


def _lock(file: int) -> bool | None:
    """Lock an open file for this process; None where that is impossible."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None


def _still_there(scratch: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(scratch / "lock"), os.fstat(lock))
    except FileNotFoundError:
        return False


def _try_out(held: _Held) -> None:
    """Write a block as the work will, so that a full or read-only disk is noticed before it."""
    held.made.mkdir()
    # A checkpoint's files have names of up to 30 letters.
    with (held.made / ("x" * 32)).open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    # The output's own name may be too long, or the whole path with it.
    (held.made / held.target.name).mkdir()
    _remove(held.made)


def _clean_up_after_others(target: Path) -> None:
    """Remove what runs left beside `target` that ended without a chance to do so."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            scratch = Path(entry.path)
            if not SCRATCH.fullmatch(entry.name) or scratch == _scratch(target):
                continue
            with contextlib.suppress(OSError, ValueError):
                lock = _open_lock(scratch)
                if lock is None:
                    scratch.rmdir()
                elif _lock(lock) and _still_there(scratch, lock):
                    theirs = scratch.with_name(os.fsdecode(os.read(lock, 4096)) or "x")
                    _release(scratch, lock, theirs)
                else:
                    os.close(lock)


def _empty(scratch: Path, target: Path) -> None:
    """Empty a hidden folder; a former output in it whose place is free goes back there."""
    former = scratch / "old"
    if former.exists() and not os.path.lexists(target):
        former.rename(target)
    for entry in list(os.scandir(scratch)):
        if entry.name != "lock":
            _remove(Path(entry.path))


def _release(scratch: Path, lock: int, target: Path) -> None:
    with contextlib.suppress(OSError):
        _empty(scratch, target)
        # The lock last: without it the folder would be taken for an abandoned one.
        os.unlink(scratch / "lock")
        scratch.rmdir()
    os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- the file system -----------------------------------------------------------------------------


class _Named(io.FileIO):
    """An unbuffered new file whose errors name the output instead of the hidden file."""

    def __init__(self, made: Path, path):
        super().__init__(made, "xb")
        self.path = path

    def write(self, data):
        with _failing_as(self.path):
            return super().write(data)


@contextlib.contextmanager
def _failing_as(path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _rename(source: Path, target: Path, flags: int) -> bool:
    """renameat2; False where it is missing."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = -100  # AT_FDCWD: paths are relative to the current folder
    names = os.fsencode(source), os.fsencode(target)
    if call(here, names[0], here, names[1], flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(target))


def _move(source: Path, target: Path) -> None:
    """Rename, but never onto something that is there."""
    if not _rename(source, target, NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _exchange(made: Path, target: Path, former: Path) -> Path:
    """Put `made` in the place of `target`; returns where that is now: at `made`, or at `former`."""
    if _rename(made, target, EXCHANGE):
        return made
    target.rename(former)
    try:
        made.rename(target)
    except BaseException:
        former.rename(target)
        raise
    return former


def _sync(folder: Path) -> None:
    """Have the disk hold every file of a folder, before the folder replaces another one."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C, and the signals that ask a process to end, wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    came = []
    try:
        with contextlib.ExitStack() as restoring:
            for number in ENDING:
                if (handler := signal.getsignal(number)) is not None:
                    restoring.callback(signal.signal, number, handler)
                    signal.signal(number, lambda number, _: came.append(number))
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)
