"""The one way of writing: complete or not at all, never over an input, one run at a time.

What is being written lies in a hidden folder beside its output, `.course-` and 16 hex digits made
from the output's name, and is moved to that name in one step when it is complete. The folder also
holds the lock that keeps a second run out of the same output: `flock`, which the kernel gives up
with the process, however that ends.

`output_checks` decides whether an output may be written, `placing` holds its place and fills it,
`atomic` has the steps on the file system that this takes.
"""

import contextlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from course_utils.output_checks import OutputError, check_room
from course_utils.placing import Nothing, reserved

__all__ = [
    "Nothing",
    "OutputError",
    "check_file",
    "check_folder",
    "check_room",
    "new_file",
    "new_folder",
    "rescue",
    "reserve_file",
    "reserve_folder",
    "write_text",
]


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
    with reserved(path, overwrite, inputs, folder=False, parents=parents):
        yield


@contextlib.contextmanager
def reserve_folder(path, *, overwrite=False, inputs=()) -> Iterator[None]:
    """`check_folder`, and until the end of the block no other run can write there."""
    with reserved(path, overwrite, inputs, folder=True, parents=True):
        yield


@contextlib.contextmanager
def new_file(path, *, overwrite=False, inputs=(), parents=False) -> Iterator[BinaryIO]:
    """A binary file to write to, which appears as `path` at the end of the block.

    Arguments as in `check_file`; a replaced file hands on its permissions. An error in the block
    leaves everything as it was.
    """
    with reserved(path, overwrite, inputs, folder=False, parents=parents) as held, held.writing():
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
    with reserved(path, overwrite, inputs, folder=True, parents=True) as held, held.writing():
        held.made.mkdir()
        yield held.made
        held.place(path, overwrite, folder=True)


def write_text(path, text: str, **options) -> None:
    """Write a text in UTF-8 through `new_file`; lone surrogates become JSON's escape for them."""
    with new_file(path, **options) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


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
