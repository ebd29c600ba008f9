"""Manifests: the SHA-256 of every file of a checkpoint's folder."""

import hashlib
import json
from pathlib import Path


class CheckpointError(RuntimeError):
    """A model cannot be had, or is not what it should be; says what to do."""


def write_manifest(folder: Path) -> None:
    """Record the SHA-256 of every file in `folder` in its manifest.json."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    files.pop("manifest.json", None)
    (folder / "manifest.json").write_text(json.dumps({"sha256": files}, indent=1) + "\n")


def verify_manifest(folder: Path, remedy: str) -> None:
    """Raise `CheckpointError` if a file of `folder` is missing or not what its manifest says."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise CheckpointError(f"{manifest} is missing. {remedy}")
    try:
        hashes = json.loads(manifest.read_text())["sha256"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{manifest} is broken. {remedy}") from None
    for name, expected in hashes:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. {remedy}")
        if sha256(path) != expected:
            raise CheckpointError(
                f"{path} has changed since it was written: its SHA-256 is not the manifest's. "
                f"{remedy}"
            )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
