"""Reading a record's fields, and rejecting what cannot be read with a reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from course_utils import strict_json
from course_utils.conversation import PROMPT_FIELDS
from course_utils.strict_json import JSONError, plain
from course_utils.strict_json import is_empty as is_empty
from course_utils.strict_json import shown as shown

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
    "tool tags in the text",
    "turn not to be graded",
    "reply marked as bad",
    "deleted or refused message",
    "broken worked solution",
)
# What is converted and worth a look. Reports count these, too.
WARNINGS = (
    "null in arguments",
    "null left out of tools",
    "grammar of calls in the system text",
    "repeated id",
)

# Fields of a record that change what a model reads. A converter uses them or turns the record away.
MEANING_FIELDS = (*PROMPT_FIELDS, "system", "tools", "functions")
NO_TEXT_FIELDS = tuple(
    name for name in PROMPT_FIELDS if name.startswith(("image", "video", "audio", "media"))
)


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


def decode(text: str, *, exact: bool = False) -> object:
    """Read strict JSON; `Rejected` if it is none."""
    try:
        return strict_json.decode(text, exact=exact)
    except JSONError as error:
        raise Rejected(error.reason, "", error.detail) from None


def decode_at(text: str, place: str, otherwise: str) -> object:
    """`decode` a string inside a record, to the last digit; broken JSON counts as `otherwise`."""
    try:
        return decode(text, exact=True)
    except Rejected as error:
        reason = otherwise if error.reason == "broken JSON" else error.reason
        raise Rejected(reason, place, f"JSON in a string: {error.detail}") from None


def check_plain(value: object, place: str) -> None:
    """Reject what JSON lacks: a record that was not read from a file may hold it."""
    try:
        plain(value)
    except JSONError as error:
        dot = "." if place and error.place and not error.place.startswith("[") else ""
        raise Rejected(error.reason, f"{place}{dot}{error.place}", error.detail) from None


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
