"""What a model's folder, or its place on the Hub, may hold: data and never code.

transformers asks on the terminal before it runs code that a folder brings along, and `yes` answers.
So it is told not to, everywhere, and what it would be asked about is refused here, before it looks.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from course_utils.manifests import MANIFEST, CheckpointError, content_is, verify_manifest

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".h5", ".msgpack")
MUST_HOLD = f"The folder must hold config.json, {WEIGHTS} and the tokenizer's files."
ASKED_OF_THE_HUB = (
    *("config.json", "tokenizer_config.json", "generation_config.json"),
    *(ADAPTER, INDEX),
)


def is_folder(name: str | Path) -> bool:
    """Is there such a folder? (A name may be too long for one, or no name at all.)"""
    return os.path.isdir(name)


def check_model(
    source: str | Path, *, weights: bool = False, local_files_only: bool = False
) -> str | None:
    """Look at a folder or a Hub id before transformers does; raises `CheckpointError`.

    A folder must be data, and what its manifest says if it has one. Of a Hub id the commit that was
    looked at is returned, which is the one to load. `weights` as in `check_folder_is_data`.
    """
    if not is_folder(source):
        return check_hub_is_data(str(source), local_files_only=local_files_only)
    folder = Path(source)
    if (folder / MANIFEST).is_file():
        verify_manifest(folder, "What it holds now is not used: get or make the folder again.")
    elif (folder / "sft.json").is_file():
        raise CheckpointError(
            f"{folder} was made by python -m course_utils.sft but has no {MANIFEST}, by which its "
            "files could be checked: an older version wrote it, or it was lost. Make it again."
        )
    check_folder_is_data(folder, weights=weights)
    return None


def check_folder_is_data(folder: str | Path, *, weights: bool = False) -> None:
    """Raise `CheckpointError` if loading `folder` could run code, or read outside of it.

    weights: are the model's weights to be loaded as well as its tokenizer?

    Code comes in by `auto_map` (Python files), by an attention kernel from the Hub, and by weights
    that are pickles. Files that nothing loads, a `.bin` beside safetensors for example, may be
    there. A link must lead into the folder, or, as in the Hub's cache, into the blobs beside it.
    """
    folder = Path(folder)
    check_links(folder)
    for path in sorted(folder.glob("*config*.json")):
        check_settings(path)
    for path in sorted(folder.glob("*.safetensors.index.json")):
        for name in check_index(path):
            if not (folder / name).is_file():
                raise CheckpointError(f"{path} names {name}, which is not in the folder.")
    if weights and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder} holds its weights in {pickles[0]}, a format that can run code when it "
                f"is read, and not in {WEIGHTS}. Convert them to safetensors first."
            )
        raise CheckpointError(f"{folder}: cannot load this model. {MUST_HOLD}")


def check_links(folder: Path) -> None:
    """Refuse a link out of `folder`: what it leads to would be copied into what is saved."""
    inside = folder.resolve()
    allowed = [inside]
    if inside.parent.name == "snapshots":  # the Hub's cache: snapshots/COMMIT beside blobs
        allowed.append(inside.parents[1] / "blobs")
    for path in folder.rglob("*"):
        if path.is_symlink() and not any(map(path.resolve().is_relative_to, allowed)):
            raise CheckpointError(
                f"{path} is a link out of the folder. Put the file itself in its place."
            )


def check_hub_is_data(repo: str, *, local_files_only: bool = False) -> str | None:
    """The same for a model on the Hub; returns the commit that was looked at, if it has files.

    Only its settings are fetched. Whatever cannot be had here is left for transformers to report.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    commit = None
    for name in ASKED_OF_THE_HUB:
        path = cached_file(
            repo,
            name,
            revision=commit,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None:
            continue
        commit = commit or extract_commit_hash(path, None)
        if name == INDEX:
            check_index(Path(path))
        else:
            check_settings(Path(path))
    return commit


def check_hub_cache(repo: str, commit: str | None) -> None:
    """Raise `CheckpointError` if a large file that the Hub gave is not what it gave any more.

    Its own client stores such a file under its SHA-256 and compares nothing when it uses it.
    """
    from huggingface_hub import try_to_load_from_cache

    if commit is None:
        return
    found = (try_to_load_from_cache(repo, name, revision=commit) for name in ASKED_OF_THE_HUB)
    snapshot = next((Path(path).parent for path in found if isinstance(path, str)), None)
    for path in sorted(snapshot.glob("*")) if snapshot else ():
        content = path.resolve()
        read = path.suffix in (".safetensors", ".json", ".model", ".txt", ".jinja")
        if read and len(content.name) == 64 and content_is(content, content.name) is False:
            raise CheckpointError(
                f"{path} has changed since it was fetched from the Hub. Delete {content} to fetch "
                "it again."
            )


def check_settings(path: Path) -> None:
    """Raise `CheckpointError` if a settings file names code to run or the weights of another."""
    if path.name == ADAPTER:
        raise CheckpointError(
            f"{path} makes this an adapter: its weights belong to another model, which it names. "
            "Merge the adapter into that model and save the whole."
        )
    for key, value in _entries(_read(path)):
        if key == "auto_map" and value:
            raise CheckpointError(
                f"{path} has auto_map, which names Python code that comes with the model. This "
                "course runs no such code. If transformers knows the architecture without it, "
                "take auto_map out."
            )
        if key == "transformers_weights" and value:
            raise CheckpointError(
                f"{path} names a weights file of its own ({value!r}). Call it {WEIGHTS} and take "
                "transformers_weights out."
            )
        if key in ("configuration_files", "fast_tokenizer_files") and any(
            map(os.path.dirname, _texts(value))
        ):
            raise CheckpointError(
                f"{path} names files that are not beside it: {key} is {value!r}. Take them out."
            )
        if key.endswith("_implementation") and any("/" in text for text in _texts(value)):
            raise CheckpointError(
                f"{path} asks for code from the Hub: {key} is {value!r}. Take that entry out."
            )


def check_index(path: Path) -> set[str]:
    """The weights files that an index names: safetensors, beside it. Raises `CheckpointError`."""
    content = _read(path)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{path} is broken: it has no weight_map.")
    for name in names.values():
        plain = isinstance(name, str) and name == os.path.basename(name) and "\\" not in name
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {name!r}, which is not a safetensors file beside it. Other formats "
                "can run code when they are read."
            )
    return set(names.values())


def _read(path: Path) -> object:
    """Decoded as transformers decodes it, so that both see the same."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken JSON: {error}") from None


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Every key and its value, at any depth."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _texts(value: object) -> list[str]:
    """The text itself, those of a list, or those among the values of an object."""
    inner = value if isinstance(value, list) else [value, *dict(_entries(value)).values()]
    return [text for text in inner if isinstance(text, str)]
