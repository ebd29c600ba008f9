"""Manifests: the SHA-256 of every file of a checkpoint's folder, written last and checked first."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath

from course_utils import strict_json

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A model cannot be had, or is not what it should be; says what to do."""


def write_manifest(folder: Path) -> None:
    """Record the SHA-256 of every file in `folder`, those in its folders too, in its manifest."""
    hashes = {name: sha256(folder / name) for name in _files(folder) if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=1) + "\n", "utf-8")


def verify_manifest(folder: Path, remedy: str) -> None:
    """Raise `CheckpointError` unless `folder` holds what its manifest says, and nothing else.

    Hidden files (a file manager's, an editor's) may be there: no loader reads them.
    """
    hashes = _read(folder, remedy)
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. {remedy}")
        if path.is_symlink() or sha256(path) != expected:
            raise CheckpointError(
                f"{path} has changed since it was written: its SHA-256 is not the manifest's. "
                f"{remedy}"
            )
    for name in _files(folder):
        hidden = any(part.startswith(".") for part in PurePosixPath(name).parts)
        if name not in hashes and name != MANIFEST and not hidden:
            raise CheckpointError(
                f"{folder / name} has come in since the folder was written: the manifest does not "
                f"list it. Take it out. {remedy}"
            )


def is_ours(folder: Path) -> bool:
    """Did this course write `folder`, and every single file in it, so that it may be replaced?

    Files may have changed since; hidden ones count.
    """
    try:
        hashes = _read(folder, "")
    except CheckpointError:
        return False
    return set(_files(folder)) == {*hashes, MANIFEST}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_is(path: Path, announced: str) -> bool | None:
    """Is a file's content what its hash says? None if `announced` is no hash of a content.

    The Hub announces the SHA-256 of a large file, and for a small one git's id of it.
    """
    if re.fullmatch("[0-9a-f]{64}", announced):
        return sha256(path) == announced
    if re.fullmatch("[0-9a-f]{40}", announced):
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(2**20):
                found.update(piece)
        return found.hexdigest() == announced
    return None


def _files(folder: Path) -> list[str]:
    """The names of everything in `folder` that is not itself a folder, sorted; "a/b" for nested."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _read(folder: Path, remedy: str) -> dict[str, str]:
    """The hashes in the manifest of `folder`, by name; raises `CheckpointError` if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {remedy}")
    try:
        hashes = strict_json.decode(path.read_text("utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        hashes = None
    if not isinstance(hashes, dict) or not hashes:
        raise CheckpointError(f"{path} is broken. {remedy}")
    for name, expected in hashes.items():
        plain = PurePosixPath(name)
        inside = name == plain.as_posix() and not plain.is_absolute() and ".." not in plain.parts
        if not inside or "\\" in name or "\0" in name or name in ("", ".", MANIFEST):
            raise CheckpointError(
                f"{path} is broken: {name!r} is not the name of a file in the folder. {remedy}"
            )
        if not isinstance(expected, str) or not re.fullmatch("[0-9a-f]{64}", expected):
            raise CheckpointError(f"{path} is broken: {name} has no SHA-256. {remedy}")
    return hashes
