"""A place for an output, held by one run: the hidden folder and its lock, and the move to its name.

Whatever ends the work, an error, Ctrl-C or a signal that the frame in `commands` catches, takes the
hidden folder along. After SIGKILL or a power cut it stays; the next run that writes to the same
place removes it.

A checkpoint takes a former one's place by `renameat2(RENAME_EXCHANGE)`, one step in which neither
can be lost. Where the file system lacks it the former one is moved into the hidden folder first,
and should the process die before the second move, the next run to write there brings it back.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from course_utils import atomic
from course_utils.output_checks import (
    OutputError,
    check_replaceable,
    checked,
    explained,
    found,
    replaceable,
)

try:
    import fcntl
except ImportError:  # Windows: the hidden folder alone keeps a second run out
    fcntl = None

SCRATCH = re.compile(r"\.course-[0-9a-f]{16}")


class Nothing(Exception):
    """Raised in the block of `new_file` or `new_folder`, it ends it and leaves all as it was."""


@dataclass
class Held:
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
                with atomic.undisturbed():
                    _remove(self.made)

    def place(self, path, overwrite: bool, folder: bool) -> None:
        """Move what was made to its name, and what was there out of the way, in one step."""
        overwrite = overwrite and self.overwrite
        if folder:
            atomic.sync(self.made)
        with explained(path), atomic.undisturbed():
            # Again: hours may have passed.
            if found(Path(path), self.target, folder):
                check_replaceable(Path(path), self.target, overwrite, folder)
            if not self.target.exists():
                atomic.move(self.made, self.target)
            elif not folder:
                os.replace(self.made, self.target)
            else:
                former = atomic.exchange(self.made, self.target, self.scratch / "old")
                if not replaceable(former):  # somebody has put a file into it just now
                    atomic.exchange(former, self.target, self.scratch / "new")
                    raise OutputError(f"{path} has changed meanwhile, so it is not replaced.")
            atomic.sync_folder(self.target.parent)


_held: dict[Path, Held] = {}


@contextlib.contextmanager
def reserved(path, overwrite, inputs, *, folder: bool, parents: bool) -> Iterator[Held]:
    """Hold the place of `path`, checked, until the end of the block; arguments as in `outputs`."""
    path = Path(path)
    with explained(path):
        target = checked(path, overwrite, inputs, folder, parents)
    around = _held.get(target)
    if around and around.owner == (os.getpid(), threading.get_ident()):
        yield around  # reserved by a block around this one
        return
    held, made = None, []
    try:
        with explained(path), atomic.undisturbed():
            held = _acquire(path, target, made)
            held.overwrite = overwrite
            _held[target] = held
            # Again: another run may just have finished.
            checked(path, overwrite, inputs, folder, parents)
            _try_out(held)
            _clean_up_after_others(target)
        yield held
    finally:
        try:
            _let_go(held, made)
        except BaseException:  # a signal in the moment before it could wait: once more
            _let_go(held, made)
            raise


def _let_go(held: Held | None, made: list[Path]) -> None:
    """Give up a place, if that has not been done, and remove the parents that hold nothing."""
    if held and held.owner[0] != os.getpid():
        return  # a child that was forked in the block
    with atomic.undisturbed():
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


def _acquire(path: Path, target: Path, made: list[Path]) -> Held:
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
                return Held(target, lock)
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


def _try_out(held: Held) -> None:
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
