"""What is checked before anything is written: the place, what is there, and the room for more."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path


class OutputError(ValueError):
    """An output cannot be written, or must not be; the message says why and what to do."""


def checked(path: Path, overwrite: bool, inputs: Iterable, folder: bool, parents: bool) -> Path:
    """The place that `path` names, links followed, if it may be written to."""
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise OutputError(
                f"{link} is a link to {os.readlink(link)}, where nothing is. Remove the link, or "
                "choose another output."
            )
    target = Path(os.path.realpath(path))
    there = found(path, target, folder)
    for other in inputs:
        _check_apart(path, target, Path(other))
    if there:
        check_replaceable(path, target, overwrite, folder)
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


def found(path: Path, target: Path, folder: bool) -> bool:
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


def check_replaceable(path: Path, target: Path, overwrite: bool, folder: bool) -> None:
    kind = "folder" if folder else "file"
    if not overwrite:
        raise OutputError(f"{path} exists. Choose another {kind} or add --overwrite.")
    as_it_runs = os.access in os.supports_effective_ids
    if not os.access(target, os.W_OK, effective_ids=as_it_runs):
        raise OutputError(f"{path} is write-protected. Choose another {kind}.")
    if folder and os.path.ismount(target):
        raise OutputError(f"{path} is a mounted file system. Name a folder in it.")
    if folder and not replaceable(target):
        raise OutputError(
            f"{path} holds files that this course did not write, so it is not replaced. Choose "
            "another folder."
        )


def replaceable(folder: Path) -> bool:
    from course_utils.manifests import is_ours

    return not any(folder.iterdir()) or is_ours(folder)


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


@contextlib.contextmanager
def explained(path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None
