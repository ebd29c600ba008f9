"""Identity as a release contract: what the tuned model says about itself, and a manifest of it.

    python -m course_utils.curriculum.identity build     after an edit: rewrite, new manifest
    python -m course_utils.curriculum.identity verify    are the files what the manifest says?

A model's name and maker are promises of its publisher, so no row of them may change by accident.
`identity` and `smoke_prompts` are the only ways to read the set, and both verify it first.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from course_utils import commands
from course_utils.conversation import (
    Conversation,
    ConversationError,
    from_record,
    load_conversations,
    save_conversations,
)
from course_utils.outputs import write_text
from course_utils.strict_json import decode

_FOLDER = Path(__file__).resolve().parents[2] / "data" / "identity"
_CONVERSATIONS, _SMOKE = "identity_conversations.jsonl", "smoke_prompts.jsonl"
_FILES = (_CONVERSATIONS, _SMOKE)
COMMAND = "python -m course_utils.curriculum.identity build"


class IdentityError(RuntimeError):
    """The identity set is not what its manifest says; names file, rows, hash and command."""


def identity(folder: str | Path = _FOLDER) -> list[Conversation]:
    """The identity conversations. Raises `IdentityError` if a byte differs from the release."""
    return _parsed(_verified(folder)[_CONVERSATIONS], _CONVERSATIONS)


def smoke_prompts(folder: str | Path = _FOLDER) -> list[Conversation]:
    """Held-out questions; `required` and `forbidden` texts of a reply stand in the meta."""
    return _parsed(_verified(folder)[_SMOKE], _SMOKE)


def smoke(replies: Sequence[str], folder: str | Path = _FOLDER) -> list[str]:
    """What is wrong with a tuned model's replies, one for each of `smoke_prompts`, in their order.

    A line for each reply that lacks a required text or holds a forbidden one, as whole words, in
    any case. An empty list is a pass.
    """
    prompts = smoke_prompts(folder)
    if len(replies) != len(prompts):
        raise ValueError(f"{len(prompts)} smoke prompts need as many replies, not {len(replies)}.")
    failures = []
    for prompt, reply in zip(prompts, replies, strict=True):
        wrong = [f"lacks {text!r}" for text in prompt.meta["required"] if not _in(text, reply)]
        wrong += [f"holds {text!r}" for text in prompt.meta["forbidden"] if _in(text, reply)]
        if wrong:
            asked = prompt[-1].content
            failures.append(f"{prompt.id}: {asked!r} -> {reply!r} {' and '.join(wrong)}")
    return failures


def _in(text: str, reply: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reply, re.I) is not None


def verify(folder: str | Path = _FOLDER) -> dict:
    """The manifest, if both files are what it says; `IdentityError` if not."""
    _verified(folder)
    return _manifest(Path(folder))


def build(folder: str | Path = _FOLDER) -> dict:
    """Check both files, write them in canonical form and write their manifest; return it.

    The version goes up by one when a file's content has changed, and not otherwise.
    """
    folder = Path(folder)
    sets = {name: load_conversations(folder / name) for name in _FILES}
    _check(sets[_CONVERSATIONS], sets[_SMOKE])
    for name, conversations in sets.items():
        save_conversations(conversations, folder / name)
    files = {name: _described((folder / name).read_bytes()) for name in _FILES}
    try:
        old = _manifest(folder)
    except IdentityError:  # the first one, or a broken one
        old = {"version": 0, "files": None}
    version = old["version"] + (old["files"] != files)
    manifest = {"version": version, "command": COMMAND, "files": files}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n", overwrite=True)
    return manifest


def _check(conversations: Sequence[Conversation], prompts: Sequence[Conversation]) -> None:
    """What `build` refuses to release. Raises `ConversationError`."""
    asked: dict[tuple, tuple[str, str]] = {}
    for chat in conversations:
        if chat.roles[-1] != "assistant":
            raise ConversationError(f"{chat.id}: no reply at the end. Write one.")
        # The same beginning with two replies would teach neither.
        for position, message in enumerate(chat):
            if message.role == "assistant":
                name, said = asked.setdefault(chat.messages[:position], (chat.id, message.content))
                if said != message.content:
                    raise ConversationError(f"{chat.id} and {name} reply differently to the same.")
    trained_on = {message.content for chat in conversations for message in chat}
    for prompt in prompts:
        if prompt.roles[-1] != "user":
            raise ConversationError(f"{prompt.id}: a smoke prompt ends with the user. Drop a turn.")
        for key in ("required", "forbidden"):
            texts = prompt.meta.get(key)
            if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
                raise ConversationError(f'{prompt.id}: "{key}" must be a list of texts.')
        if not prompt.meta["required"]:
            raise ConversationError(f"{prompt.id}: nothing is required, so anything would pass.")
        if "system" not in prompt.roles and prompt[-1].content in trained_on:
            raise ConversationError(
                f"{prompt.id}: {prompt[-1].content!r} is trained on. Ask in other words."
            )


def _verified(folder: str | Path) -> dict[str, bytes]:
    """{file: its bytes}, the very bytes that were compared with the manifest."""
    folder = Path(folder)
    released, contents = _manifest(folder)["files"], {}
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            raise IdentityError(f"{path} is missing. Restore it, or write it and run: {COMMAND}")
        contents[name] = path.read_bytes()
        found = _described(contents[name])
        if found != released[name]:
            raise IdentityError(
                f"{path} was changed without a new manifest: {_in_words(found)}, but the manifest "
                f"says {_in_words(released[name])}. If the change is meant, run: {COMMAND}"
            )
    return contents


def _manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    if not path.is_file():
        raise IdentityError(f"{path} is missing. Restore it, or run: {COMMAND}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(manifest["version"], int) and set(manifest["files"]) == set(_FILES)
        for described in manifest["files"].values():
            whole = whole and set(described) == {"sha256", "rows"}
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise IdentityError(f"{path} is broken. Restore it, or run: {COMMAND}")
    return manifest


def _described(content: bytes) -> dict:
    return {"sha256": hashlib.sha256(content).hexdigest(), "rows": content.count(b"\n")}


def _in_words(described: dict) -> str:
    return f"{described['rows']} rows with SHA-256 {str(described['sha256'])[:12]}..."


def _parsed(content: bytes, name: str) -> list[Conversation]:
    lines = content.decode("utf-8").split("\n")
    return [from_record(decode(line), name) for line in lines if line]


def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(
        prog="python -m course_utils.curriculum.identity",
        description=__doc__,
        exits={0: "the files are what the manifest says", 1: "they are not, or cannot be released"},
    )
    parser.add_argument("what", choices=["build", "verify"])
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="an identity set of your own")
    return commands.run(parser, _run, arguments)


def _run(options) -> int:
    try:
        manifest = (build if options.what == "build" else verify)(options.folder)
    except (IdentityError, ConversationError, OSError) as error:
        raise commands.Failed(commands.sentence(error)) from None
    for name, described in manifest["files"].items():
        print(f"{name}: {_in_words(described)}, version {manifest['version']}")
    return 0


if __name__ == "__main__":
    commands.leave(main())
