"""What every converter builds on: rejections with a reason, tool calls as text, and the draft."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from course_utils.conversation import (
    NEXT_ROLES,
    Conversation,
    ConversationError,
    Message,
)

# Every reason for which a record is turned away. Reports count by these.
REASONS = (
    "broken JSON",
    "not UTF-8",
    "line too long",
    "nested too deeply",
    "repeated key",
    "number that JSON lacks",
    "not an object",
    "missing field",
    "wrong type",
    "unknown field",
    "unknown role",
    "null content",
    "empty text",
    "lone surrogate",
    "no turns",
    "turn order",
    "no reply at the end",
    "part that is no text",
    "reasoning apart from the text",
    "text after a tool call",
    "broken tool call",
    "broken tool definitions",
    "result without its call",
    "text that reads as a tool call",
    "turn not to be graded",
    "reply marked as bad",
    "deleted or refused message",
    "broken worked solution",
)

CALL_OPENING = '{"tool_call": '
# Fields of a record that change what a model reads. A converter uses them or turns the record away.
NO_TEXT_FIELDS = ("image", "images", "video", "videos", "audio", "audios")
MEANING_FIELDS = ("system", "system_prompt", "history", "tools", "functions", *NO_TEXT_FIELDS)


class Rejected(ValueError):
    """A record cannot be converted: `reason` is one of `REASONS`, `place` is inside the record."""

    def __init__(self, reason: str, place: str, detail: str):
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {place}: {detail}" if place else f"{reason}: {detail}")
        self.reason, self.place, self.detail = reason, place, detail


@dataclass(frozen=True)
class Options:
    """`roles` are added to the source's own; message fields named in `keep` go into the meta."""

    roles: Mapping[str, str] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()


# --- strict JSON ---------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Rejected("repeated key", "", f"{twice!r} occurs twice in one object")
    return found


def _constant(name: str):
    raise Rejected("number that JSON lacks", "", f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        _constant(digits)
    return number


def _exact(digits: str) -> float:
    number = _finite(digits)
    if Decimal(digits) != Decimal(repr(number)):
        raise Rejected("broken tool call", "", f"{digits} has more digits than a float holds")
    return number


HOOKS = {"object_pairs_hook": _unique, "parse_constant": _constant, "parse_float": _finite}
STRICT = json.JSONDecoder(**HOOKS)
EXACT = json.JSONDecoder(**HOOKS | {"parse_float": _exact})


def decode(text: str, decoder: json.JSONDecoder = STRICT):
    """Read JSON in which a key stands once and every number is one; `Rejected` if it is not so."""
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise Rejected("broken JSON", "", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Rejected("nested too deeply", "", "more levels than can be read") from None
    except Rejected:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Rejected("number that JSON lacks", "", str(error)) from None


def decode_at(text: str, place: str, otherwise: str):
    """`decode` a string that stands inside a record; broken JSON counts as `otherwise`."""
    try:
        return decode(text, EXACT)
    except Rejected as error:
        reason = otherwise if error.reason == "broken JSON" else error.reason
        raise Rejected(reason, place, f"JSON in a string: {error.detail}") from None


def _check_numbers(value, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Rejected("number that JSON lacks", place, f"{value} is no JSON number")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check_numbers(inner, f"{place}[{position}]")


# --- tool calls as text --------------------------------------------------------------------------


def write_calls(text: str, calls: Sequence[Mapping]) -> str:
    """The content of an assistant turn that says `text` and then makes `calls`.

    Each call is one line of JSON, behind the text:

        Let me look.
        {"tool_call": {"name": "weather", "arguments": {"city": "Oslo"}}}

    This is the course's own neutral form. A template family's grammar is made from it by reading
    it back with `read_calls`.
    """
    lines = [
        json.dumps(
            {"tool_call": {"name": call["name"], "arguments": call["arguments"]}},
            ensure_ascii=False,
            allow_nan=False,
        )
        for call in calls
    ]
    return "\n".join([text] * bool(text) + lines)


def read_calls(content: str) -> tuple[str, list[dict]]:
    """(text, calls) of an assistant turn: the inverse of `write_calls`.

    Only whole lines at the end count, and only "\\n" ends a line.
    """
    if CALL_OPENING not in content:
        return content, []
    lines, calls = content.split("\n"), []
    while lines and (call := _call_in(lines[-1])) is not None:
        calls.append(call)
        lines.pop()
    return "\n".join(lines), calls[::-1]


def _call_in(line: str) -> dict | None:
    if not (line.startswith(CALL_OPENING) and line.endswith("}")):
        return None
    try:
        found = decode(line)
    except Rejected:
        return None
    call = found["tool_call"]
    fits = len(found) == 1 and isinstance(call, dict) and set(call) == {"name", "arguments"}
    fits = fits and isinstance(call["name"], str) and isinstance(call["arguments"], dict)
    return call if fits else None


# --- reading fields ------------------------------------------------------------------------------


def shown(value: object, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def require(record: Mapping, key: str, kind: type, place: str = ""):
    """The record's field, present and of its kind."""
    here = f"{place}.{key}" if place else key
    if key not in record:
        raise Rejected("missing field", here, f"only {shown(list(record))} are there")
    value = record[key]
    if isinstance(value, kind):
        return value
    if value is None and kind is str:
        raise Rejected("null content", here, "null is no text")
    raise Rejected("wrong type", here, f"{type(value).__name__} instead of {kind.__name__}")


def optional(record: Mapping, key: str, kind: type, place: str = ""):
    """The record's field, or None where it is absent, null or empty."""
    if record.get(key) is None:
        return None
    return require(record, key, kind, place) or None


def role_of(message: Mapping, key: str, table: Mapping, options: Options, place: str) -> str:
    """The canonical role for a source's role name. Names are matched exactly, case included."""
    here = f"{place}.{key}"
    if key not in message:
        raise Rejected("missing field", here, f"only {shown(list(message))} are there")
    name = message[key]
    known = {**table, **options.roles} if options.roles else table
    if not isinstance(name, str) or name not in known:
        names = ", ".join(name for name, role in known.items() if role)
        raise Rejected("unknown role", here, f"{shown(name)} is none of {names}")
    if known[name] is None:
        raise Rejected(
            "unknown role",
            here,
            f"{name!r} names the call in some data sets and its result in others: say which",
        )
    return known[name]


def messages_in(record: Mapping, key: str) -> Iterable[tuple[str, Mapping]]:
    """(place, message) for each message of a list."""
    found = require(record, key, list)
    if not found:
        raise Rejected("no turns", key, "the list is empty")
    for position, message in enumerate(found):
        place = f"{key}[{position}]"
        if not isinstance(message, Mapping):
            raise Rejected("wrong type", place, f"{type(message).__name__} instead of an object")
        yield place, message


def one_call(call: object, place: str) -> dict:
    """A call as {"name", "arguments"}: arguments may be an object or a string that holds one."""
    if not isinstance(call, Mapping):
        raise Rejected("broken tool call", place, f"{type(call).__name__} instead of an object")
    for key in ("name", "arguments"):
        if key not in call:
            raise Rejected("broken tool call", place, f"no {key!r}")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name:
        raise Rejected("broken tool call", f"{place}.name", f"{shown(name)} is no name")
    here = f"{place}.arguments"
    if isinstance(arguments, str):
        arguments = decode_at(arguments, here, "broken tool call")
    if not isinstance(arguments, Mapping):
        raise Rejected("broken tool call", here, f"{type(arguments).__name__} instead of an object")
    _check_numbers(arguments, here)
    if rest := set(call) - {"name", "arguments"}:
        raise Rejected("unknown field", place, f"{shown(sorted(rest))} in a call")
    return {"name": name, "arguments": dict(arguments)}


# --- the draft -----------------------------------------------------------------------------------


class Draft:
    """A conversation in the making, and beside it what content alone cannot say."""

    def __init__(self, options: Options):
        self.options = options
        self.messages: list[Message] = []
        self.meta: dict = {}
        self.places: list[str] = []
        self._open_calls: list[str | None] = []

    def turn(
        self,
        role: str,
        text: str,
        place: str,
        *,
        calls: Sequence[Mapping] = (),
        parts: Sequence[str] = (),
        joint: str = "",
    ) -> None:
        """Add a turn. `parts` are the source's pieces of `text`, which `joint` joined."""
        if not calls and role in ("user", "assistant") and not text.strip():
            raise Rejected("empty text", place, f"the {role} says nothing")
        if role == "assistant" and CALL_OPENING in text and read_calls(text)[1]:
            raise Rejected(
                "text that reads as a tool call", place, "its last line looks like a written call"
            )
        content = write_calls(text, calls) if calls else text
        try:
            message = Message(role, content)
        except ConversationError as error:
            raise Rejected("lone surrogate", place, str(error)) from None
        if len(parts) > 1:
            about = {"lengths": [len(part) for part in parts]}
            self.note("parts", about | ({"joint": joint} if joint else {}))
        self.messages.append(message)
        self.places.append(place)

    def note(self, name: str, about: Mapping) -> None:
        """Put `about` into the meta under `name`, with the position of the coming message."""
        self.meta.setdefault(name, []).append({"message": len(self.messages), **about})

    def call_ids(self, ids: Sequence[str | None], place: str) -> None:
        """The ids that the source gave to the coming message's calls."""
        named = [name for name in ids if name is not None]
        if len(set(named)) != len(named):
            raise Rejected("broken tool call", place, "two calls have the same id")
        self._open_calls = list(ids)
        if named:
            self.note("tool_ids", {"ids": list(ids)})

    def result_of(self, call: str | None, place: str, **about) -> None:
        """Which call the coming tool turn answers: one of the last assistant turn's."""
        if call is not None and call not in self._open_calls:
            raise Rejected("result without its call", place, f"no call has the id {shown(call)}")
        about = {key: value for key, value in about.items() if value is not None}
        if call is not None or about:
            self.note("tool_ids", ({"answers": call} if call is not None else {}) | about)

    def rest_of_message(self, message: Mapping, used: Collection[str], place: str) -> None:
        """Every other field of a message: empty, kept on request, or a reason to reject."""
        kept = {}
        for name in [name for name in message if name not in used]:
            value = message[name]
            if name == "weight" and name not in self.options.keep:
                if value not in (None, 1):
                    detail = f"weight {shown(value)}: the schema grades every reply"
                    raise Rejected("turn not to be graded", f"{place}.weight", detail)
            elif name in self.options.keep:
                kept[name] = value
            elif value not in (None, "", [], {}):
                detail = f"{shown(value)}: keep it in the meta by name, or remove it"
                raise Rejected("unknown field", f"{place}.{name}", detail)
        if kept:
            _check_numbers(kept, place)
            self.note("message_fields", {"fields": kept})

    def tools(self, record: Mapping, key: str = "tools") -> None:
        """The definitions of the tools, as a list or as a string that holds one, go to the meta."""
        value = record.get(key)
        if value in (None, "", [], {}):
            return
        if isinstance(value, str):
            value = decode_at(value, key, "broken tool definitions")
        if not isinstance(value, list | dict):
            raise Rejected("broken tool definitions", key, f"{type(value).__name__} is no list")
        _check_numbers(value, key)
        self.meta[key] = value

    def finish(self, record: Mapping, source: str, used: Collection[str], id: str | None):
        """The conversation, its turns in an order that the schema allows and a reply at its end."""
        rest = {key: value for key, value in record.items() if key not in used}
        for name in MEANING_FIELDS:
            if rest.get(name) not in (None, "", [], {}) and name not in self.options.keep:
                reason = "part that is no text" if name in NO_TEXT_FIELDS else "unknown field"
                raise Rejected(reason, name, f"source {source!r} has no such field")
        _check_numbers(rest, "")
        if not self.messages:
            raise Rejected("no turns", "", "nothing was said")
        previous = None
        for message, place in zip(self.messages, self.places, strict=True):
            if message.role not in NEXT_ROLES[previous]:
                after = f"after {previous}" if previous else "at the start"
                detail = f"{message.role} {after}, where only {' or '.join(NEXT_ROLES[previous])}"
                raise Rejected("turn order", place, f"{detail} may stand")
            previous = message.role
        if previous != "assistant":
            raise Rejected("no reply at the end", self.places[-1], f"the last turn is {previous}")
        meta = {"source": source, **self.meta, **({"fields": rest} if rest else {})}
        return Conversation(tuple(self.messages), id, (), meta)


def parts_of(conversation: Conversation, position: int) -> list[str]:
    """The pieces in which the source held the text of one message."""
    message = conversation[position]
    text, _ = read_calls(message.content) if message.role == "assistant" else (message.content, [])
    for about in conversation.meta.get("parts", []):
        if about["message"] == position:
            pieces, start = [], 0
            for length in about["lengths"]:
                pieces.append(text[start : start + length])
                start += length + len(about.get("joint", ""))
            return pieces
    return [text]
