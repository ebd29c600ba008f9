"""Steps on the file system that are seen done or not at all, whenever the process ends."""

import contextlib
import ctypes
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

ENDING = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2, from linux/fs.h


def rename(source: Path, target: Path, flags: int) -> bool:
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


def move(source: Path, target: Path) -> None:
    """Rename, but never onto something that is there."""
    if not rename(source, target, NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def exchange(made: Path, target: Path, former: Path) -> Path:
    """Put `made` in the place of `target`; returns where that is now: at `made`, or at `former`."""
    if rename(made, target, EXCHANGE):
        return made
    target.rename(former)
    try:
        made.rename(target)
    except BaseException:
        former.rename(target)
        raise
    return former


def sync(folder: Path) -> None:
    """Have the disk hold every file of a folder, before the folder replaces another one."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
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
