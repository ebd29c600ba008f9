"""Records of JSON read as conversations: one record, or a file of them.

What a record says is honored or refused, never dropped:

    system                  the first system message
    functions               read as `tools`; a single definition or JSON text will do for both
    id                      a whole number is read as its digits
    messages[].reasoning, .thinking      read as `reasoning_content`
    messages[].content      a list of text parts is joined; thinking parts are `reasoning_content`
    messages[].weight: 0    `train: false`
    images, documents, ...  refused: a model reads them, and nothing here would
    everything else         the meta

Null means that a field is not there, as `datasets` writes it. It does so in the arguments of tool
calls too, where null may as well be a value: it is kept there, and a `ConversationWarning` tells.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from course_utils.conversation import ROLES, Conversation, Message, turn_faults
from course_utils.faults import REMEDIES, ConversationError, Faults
from course_utils.json_files import entries
from course_utils.strict_json import JSONError, is_empty, plain, printable, shown
from course_utils.tool_schema import without_nulls

# The names on disk of what a message may hold besides role and content.
MESSAGE_FIELDS = {
    "reasoning_content": "reasoning",
    "tool_calls": "tool_calls",
    "name": "name",
    "tool_call_id": "tool_call_id",
    "train": "train",
    "weight": "weight",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
# Notes of a service to itself, which no model reads.
PART_NOTES = ("signature", "cache_control")


class ConversationWarning(UserWarning):
    """A file can be read, but what it says is perhaps not meant."""


def from_record(record: Mapping, where: str = "the record") -> Conversation:
    """Read one decoded line of JSON; `where` names it in errors."""
    try:
        found = plain(record)
    except JSONError as error:
        id = record.get("id") if isinstance(record, Mapping) else None
        raise _of_json(error).inside(_named(where, id)) from None
    return _read(found, where)


def load_conversations(path: str | Path, *, alternate: bool = True) -> list[Conversation]:
    """Read a JSONL file of conversations, each checked.

    With `alternate` (the default) turns must alternate as `check_turns` says. Every error is a
    `ConversationError` (a missing file a `FileNotFoundError`) that names file, line and remedy.
    Blank lines are skipped; nothing else is. A `.json` file may hold one array of records, and
    either may be packed with gzip.

    Null in the arguments of tool calls is kept and null in tool definitions left out; a
    `ConversationWarning` says how often that was, and where first.
    """
    conversations, nulls = [], Nulls()
    for reading in read_file(path, alternate=alternate, nulls=nulls):
        if isinstance(reading.found, ConversationError):
            where = f"{path}, {reading.place}" if reading.place else str(path)
            raise reading.found.inside(_named(where, reading.id))
        conversations.append(reading.found)
    nulls.warn(path)
    return conversations


def save_conversations(conversations: Iterable[Conversation], path: str | Path) -> None:
    """Write JSONL that `load_conversations` reads back as it was; a file that is there is replaced.

    The file appears when it is complete. Raises `OutputError` where it cannot be written.
    """
    from course_utils.outputs import new_file

    with new_file(path, overwrite=True) as file:
        for conversation in conversations:
            line = json.dumps(conversation.as_record(), ensure_ascii=False, allow_nan=False)
            file.write(line.encode("utf-8") + b"\n")


# --- a file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A record of a file as it was read: its place, and what was found there."""

    number: int
    place: str
    id: object
    found: Conversation | ConversationError


class Nulls:
    """How many nulls the records of a file hold where `datasets` may have put them."""

    def __init__(self):
        self.kept = self.left_out = 0
        self.first_kept = self.first_left_out = ""

    def add(self, record: dict | list, place: str) -> None:
        """Count the nulls of a good record, in arguments of calls and in definitions of tools."""
        if isinstance(record, list):
            record = {"messages": record}
        for position, message in enumerate(record["messages"]):
            for call in message.get("tool_calls") or ():
                inner = call.get("function") or call
                for null in nulls_in(inner["arguments"]):
                    self.kept += 1
                    self.first_kept = (
                        self.first_kept or f"{place}, message {position}, arguments{null}"
                    )
        for name in ("tools", "functions"):
            meant = None
            for null in nulls_in(record.get(name)):
                if meant is None:
                    meant = set(nulls_in(without_nulls(record[name])))
                if null not in meant:
                    self.left_out += 1
                    self.first_left_out = self.first_left_out or f"{place}, {name}{null}"

    def warn(self, path: str | Path) -> None:
        """Tell of them, if there are any, in one `ConversationWarning`."""
        texts = []
        if self.kept:
            texts.append(
                f"{_count(self.kept)} in the arguments of tool calls kept, and graded with them "
                f"(the first: {self.first_kept})"
            )
        if self.left_out:
            texts.append(
                f"{_count(self.left_out)} in tool definitions left out "
                f"(the first: {self.first_left_out})"
            )
        if texts:
            text = (
                f"{path}: {'; '.join(texts)}. `datasets` gives each row the keys of all rows: "
                "where null is not meant, remove the key, or keep arguments as JSON text."
            )
            warnings.warn(printable(text), ConversationWarning, stacklevel=3)


def _count(number: int) -> str:
    return f"{number:,} null{'s' * (number != 1)}"


def read_file(
    path: str | Path, *, alternate: bool = True, nulls: Nulls | None = None
) -> Iterator[Reading]:
    """Every record of a file, read or refused. `nulls` counts what should be warned of.

    Both `load_conversations` and the command `check` are made of this, so what one accepts the
    other does. It holds one number for each id.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"{printable(str(path))}: no such file. Expected JSONL, one conversation per line."
        )
    first_with, entry = {}, None
    for entry in entries(path):
        place = f"{entry.unit} {entry.number}"
        faults, found = Faults(), None
        if isinstance(entry.record, JSONError):
            faults.add_errors([_of_json(entry.record, entry.text if entry.number == 1 else "")])
        else:
            try:
                found = _read_record(entry.record)
            except ConversationError as error:
                faults.add_errors([error])
            if alternate:
                faults.add_errors(turn_faults(*_roles(entry.record)))
        id = entry.id if isinstance(entry.record, JSONError) else _id(entry.record)
        # A hash for each id instead of the id: a file of any size fits.
        if isinstance(id, str) and first_with.setdefault(hash(id), place) != place:
            faults.add(
                f"the id {shown(id)} already stands in {first_with[hash(id)]}. "
                "Give every conversation an id of its own.",
                "id",
            )
        error = faults.first()
        if nulls is not None and not error:
            nulls.add(entry.record, place)
        yield Reading(entry.number, place, id, error or found)
    if entry is None:
        error = ConversationError("no conversation in it. Expected JSONL, one per line.")
        yield Reading(1, "", None, error)


def _roles(record: object) -> tuple[list[str | None], int]:
    """(the roles of a record, None for what is none; the number of the first message)"""
    messages = record if isinstance(record, list) else None
    if isinstance(record, dict):
        messages = record.get("messages")
    roles = [m.get("role") if isinstance(m, dict) else None for m in _list(messages)]
    roles = [role if role in ROLES else None for role in roles]
    system = isinstance(record, dict) and record.get("system")
    return (["system", *roles], -1) if system and roles[:1] != ["system"] else (roles, 0)


def _list(value: object) -> list:
    return value if isinstance(value, list) else []


def _of_json(error: JSONError, text: str = "") -> ConversationError:
    """`text` is the beginning of the first record."""
    place = f" in {error.place}" if error.place else ""
    remedy = REMEDIES[error.reason]
    if text.strip() in ("{", "["):
        remedy += " This one goes over several lines: an array needs a file named .json."
    inside = re.match(r"messages\[(\d+)\]\.?(.*)", error.place)
    return ConversationError(
        f"{error.reason} ({error.detail}{place}). {remedy}",
        message=int(inside[1]) if inside else None,
        field=inside[2] if inside else re.split(r"[.\[]", error.place)[0] or None,
    )


def _named(where: str, id: object) -> str:
    return where if id is None else f"{where} (id {shown(id)})"


def _id(record: object) -> object:
    """The id of a record; a whole number is read as its digits."""
    id = record.get("id") if isinstance(record, Mapping) else None
    return str(id) if isinstance(id, int) and not isinstance(id, bool) else id


def nulls_in(value: object, place: str = "") -> Iterator[str]:
    """Places where an object holds null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key[:40]}"
            if inner is None:
                yield here
            else:
                yield from nulls_in(inner, here)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from nulls_in(inner, f"{place}[{position}]")


# --- a record ------------------------------------------------------------------------------------


def _read(record: object, where: str) -> Conversation:
    try:
        return _read_record(record)
    except ConversationError as error:
        raise error.inside(_named(where, _id(record))) from None


def _read_record(record: object) -> Conversation:
    if isinstance(record, list):
        if record and isinstance(record[0], dict) and "messages" in record[0]:
            raise ConversationError(
                "a list of records. Write one record per line, or name the file .json."
            )
        record = {"messages": record}  # a bare list of messages
    if not isinstance(record, dict):
        raise ConversationError(
            f"expected a JSON object with 'messages', got {type(record).__name__}. "
            "Write one conversation per line."
        )
    if "messages" not in record:
        hint = "A conversation's turns are in 'messages'."
        if "conversations" in record:
            hint = (
                "'conversations' is the ShareGPT layout: convert the file with "
                "`python -m course_utils.sources sharegpt`."
            )
        raise ConversationError(
            f"no field 'messages', only {shown(list(record))}. {hint}", field="messages"
        )
    faults, fields = Faults(), dict(record)
    messages = _with_system(fields.pop("messages"), fields.pop("system", None), faults)
    if faults.errors:
        messages = [Message("user", "")]  # in their place, so that the other fields are checked
    tools, functions = fields.pop("tools", None), fields.pop("functions", None)
    if not is_empty(tools) and not is_empty(functions):
        faults.add("it has 'tools' and 'functions', which mean the same. Keep one.", "functions")
    fields.pop("id", None)
    tags, options = fields.pop("tags", None), fields.pop("chat_template_kwargs", None)
    if isinstance(options, dict):
        options = {name: value for name, value in options.items() if value is not None}
    found = None
    try:
        found = Conversation(
            messages=messages,
            id=_id(record),
            tags=() if tags is None else tags,
            meta=fields,
            tools=functions if is_empty(tools) else tools,
            template_options={} if options is None else options,
        )
    except ConversationError as error:
        faults.add_errors([error])
    faults.check()
    return found


def _with_system(messages: object, system: object, faults: Faults) -> list[Message]:
    """The messages, after the record's system text; in errors they keep their numbers."""
    found = read_messages(messages, faults, decoded=True)
    if system in (None, "") or not isinstance(messages, list):
        return found
    if not isinstance(system, str):
        faults.add(f"the system text is {type(system).__name__}. Write it in quotes.", "system")
    elif any(isinstance(m, dict) and m.get("role") == "system" for m in messages[:1]):
        faults.add(
            "it has the field 'system' and a system message. Put both into one message.", "system"
        )
    else:
        return [Message("system", system), *found]
    return found


def read_messages(messages: object, faults: Faults, decoded: bool = False) -> list[Message]:
    """The messages of a conversation; what is wrong with them is added to `faults`.

    `decoded`: they come from the strict decoder, so they need not be looked at for anything that
    JSON lacks.
    """
    if not isinstance(messages, list | tuple):
        faults.add("'messages' must be a list of role-and-content objects.", "messages")
        return []
    if not messages:
        faults.add(
            "the conversation is empty. Give it at least one message, or drop the record.",
            "messages",
        )
    found = []
    for position, message in enumerate(messages):
        if faults.full:
            break
        try:
            if not isinstance(message, Message):
                message = _read_message(message if decoded else plain(message))
            found.append(message)
        except JSONError as error:
            faults.add_errors([_of_json(error).inside(f"message {position}", position)])
        except ConversationError as error:
            faults.add_errors([error.inside(f"message {position}", position)])
    return found


def _read_message(fields: object) -> Message:
    if not isinstance(fields, dict):
        raise ConversationError(
            f"it is {type(fields).__name__}. Write it as an object with 'role' and 'content'."
        )
    faults = Faults()
    given = {name: value for name, value in fields.items() if value is not None}
    content, thought = _content(fields, faults)
    if missing := {"role", "content"} - {*fields, *(["content"] if content is not None else [])}:
        faults.add(
            f"it has no field {' and '.join(sorted(missing))}, only {shown(list(fields))}. "
            "Every message needs 'role' and 'content'.",
            min(missing),
        )
    known = {"role", "content", *MESSAGE_FIELDS, *REASONING}
    # Dropping a field would change what is trained without a word.
    if extra := [name for name, v in given.items() if name not in known and not is_empty(v)]:
        faults.add(
            f"it has fields this schema does not know: {shown(sorted(map(str, extra)))}. "
            "Write them into the content or remove them first.",
            str(extra[0]),
        )
    if given.get("role") in ("system", "user", "tool"):
        for name in ("train", "weight"):
            if given.get(name) in (True, 1):
                faults.add(
                    f"the {given['role']} turn has the field {name!r}, but only an assistant turn "
                    "can be graded. Remove it.",
                    name,
                )
    if given.get("train") is True and given.get("weight") == 0 and "weight" in given:
        faults.add("it has 'train': true and 'weight': 0. Keep the one that is meant.", "weight")
    thoughts = [given[name] for name in REASONING if name in given]
    thoughts += [thought] if thought is not None else []
    if any(other != thoughts[0] for other in thoughts):
        faults.add("its reasoning is given twice, and not alike. Keep one.", "reasoning_content")
    others = {
        MESSAGE_FIELDS[name]: value
        for name, value in given.items()
        if name in MESSAGE_FIELDS and name != "reasoning_content"
    }
    message = None
    try:
        message = Message(
            fields.get("role", "assistant"),  # if missing, that is told already
            "" if "content" in missing else content,
            reasoning=thoughts[0] if thoughts else None,
            **others,
        )
    except ConversationError as error:
        faults.add_errors([error])
    faults.check()
    return message


def _content(fields: Mapping, faults: Faults) -> tuple[object, str | None]:
    """(content, reasoning) where content may be a list of parts. It may be null beside a call."""
    content = fields.get("content")
    if content is None and fields.get("tool_calls"):
        return "", None
    if not isinstance(content, list | tuple):
        return content, None
    texts, thoughts = [], []
    for position, part in enumerate(content):
        if faults.full:
            break
        here = f"content[{position}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        thinking = kind == "thinking" and fields.get("role") == "assistant"
        if not thinking and kind not in TEXT_PARTS:
            what = f"of type {shown(kind)}" if kind else shown(part)
            faults.add(
                f"{here} is a part {what}, and only text can be trained on. Write it as text; "
                "`python -m course_utils.sources content-blocks` converts calls and results.",
                here,
            )
            continue
        name = "thinking" if thinking else "text"
        known = ("type", name, *PART_NOTES)
        extra = [key for key, v in part.items() if key not in known and not is_empty(v)]
        if extra or not isinstance(part.get(name), str):
            wrong = f"unknown fields {shown(extra)}" if extra else f"no text in {name!r}"
            faults.add(f"{here} has {wrong}. Write {{'type': '{kind}', '{name}': ...}}.", here)
        elif thinking and texts:
            faults.add(f"{here} is thinking after text, which no message can hold.", here)
        else:
            (thoughts if thinking else texts).append(part[name])
    if not content and not fields.get("tool_calls"):
        faults.add(
            "the content is an empty list. A turn without text has the content ''.", "content"
        )
    return "".join(texts), "".join(thoughts) if thoughts else None
