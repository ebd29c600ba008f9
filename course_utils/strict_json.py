"""JSON from outside, read so that nothing in it can be taken for something else.

Python's own decoder keeps the last of two equal keys, reads `NaN`, rounds `1e999` to infinity, and
stops at deep nesting with `RecursionError`. Here each of these is a `JSONError` with its reason.
"""

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal

DEEPEST = 100  # objects and lists inside each other; a template walks them as well
LARGEST = 10**308  # about what a 64-bit float holds; other programs read numbers as such


class JSONError(ValueError):
    """A text or a value is not JSON.

    reason: "broken JSON", "nested too deeply", "repeated key", "number that JSON lacks",
            "lone surrogate" or (a Python value only) "wrong type"
    detail: what it is
    place:  where in the value, such as `messages[0].content`; "" at the top, or where a text breaks
    """

    def __init__(self, reason: str, detail: str, place: str = ""):
        self.reason, self.detail, self.place = reason, printable(detail), printable(place)
        super().__init__(reason, self.detail, self.place)

    def __str__(self):
        return f"{self.reason}: {self.detail}" + (f" in {self.place}" if self.place else "")

    def inside(self, key: str | int) -> "JSONError":
        """The same error, in the value that an object or a list holds under this key."""
        if key == "" or len(self.place) > 200:
            return self
        inner = self.place
        outer = f"[{key}]" if isinstance(key, int) else key[:40]
        dot = "." if inner and not inner.startswith("[") else ""
        return JSONError(self.reason, self.detail, f"{outer}{dot}{inner}")


def decode(text: str, *, exact: bool = False):
    """The value of a JSON text, or `JSONError`.

    `exact` refuses a number of more digits than a float holds: for JSON that is the text of a tool
    call and will be written again.
    """
    if text.startswith("\ufeff"):
        raise JSONError("broken JSON", "a byte-order mark at column 1")
    value, end = decode_from(text, WHITE_SPACE.match(text).end(), exact=exact)
    end = WHITE_SPACE.match(text, end).end()
    if end != len(text):
        raise JSONError("broken JSON", f"Extra data at {_position(text, end)}")
    return value


def decode_from(text: str, start: int, *, exact: bool = False) -> tuple[object, int]:
    """(value, where it ends): the one JSON value that begins at `start`, or `JSONError`."""
    try:
        value, end = (EXACT if exact else STRICT).raw_decode(text, start)
    except json.JSONDecodeError as error:
        # "Unterminated string starting at", and similar, already end with the word.
        what = re.sub(r"( starting)? at$", "", error.msg.rstrip(": "))
        raise JSONError("broken JSON", f"{what} at {_position(text, error.pos)}") from None
    except RecursionError:
        raise JSONError("nested too deeply", f"more than {DEEPEST} levels") from None
    if _suspicious(text[start:end]):
        plain(value)
    return value, end


def plain(value, *, deepest: int = DEEPEST):
    """A copy of a Python value in JSON's own types, or `JSONError`.

    Mappings become dicts, tuples lists. Every text can be encoded, every number is finite, nothing
    is nested in more than `deepest` levels.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_text(value)
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int):
        if not -LARGEST < value < LARGEST:
            raise JSONError("number that JSON lacks", "an integer of over 308 digits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise JSONError("number that JSON lacks", f"{value} is no JSON number")
        return float(value)
    if not isinstance(value, (dict, list, tuple, Mapping)):
        raise JSONError("wrong type", f"a Python {type(value).__name__}")
    if deepest <= 0:
        raise JSONError("nested too deeply", f"more than {DEEPEST} levels")
    if isinstance(value, (list, tuple)):
        items = []
        try:
            for inner in value:
                items.append(plain(inner, deepest=deepest - 1))
        except JSONError as error:
            raise error.inside(len(items)) from None
        return items
    copy = {}
    for key, inner in value.items():
        if not isinstance(key, str):
            raise JSONError("wrong type", f"the key {shown(key)} is not text")
        _check_text(key, "the key ")
        try:
            copy[key] = plain(inner, deepest=deepest - 1)
        except JSONError as error:
            raise error.inside(key) from None
    return copy


def is_empty(value) -> bool:
    """Does a field say nothing: null, or an empty text, list or object?"""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def printable(text: str) -> str:
    """The text on one line, with escapes for what a terminal would obey or not show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value, width: int = 60) -> str:
    """A value as it is quoted in a message: at most `width` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4,300 digits, or a circle
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= width else text[: width - 3] + "..."


# --- the decoder's hooks -------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise JSONError("repeated key", f"{shown(twice)} occurs twice in one object")
    return found


def _constant(name: str):
    raise JSONError("number that JSON lacks", f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > 308:
        raise JSONError("number that JSON lacks", f"{digits[:20]}... has over 308 digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    lost = not number and re.match(r"-?[0.]*[1-9]", digits)  # 1e-999
    if lost or math.isinf(number):
        raise JSONError("number that JSON lacks", f"no float holds {shown(digits, 40)}")
    return number


def _exact(digits: str) -> float:
    number = _float(digits)
    if number and Decimal(digits) != Decimal(repr(number)):
        detail = f"{shown(digits, 40)} has more digits than a float holds"
        raise JSONError("number that JSON lacks", detail)
    return number


HOOKS = {"object_pairs_hook": _unique, "parse_constant": _constant, "parse_int": _integer}
STRICT = json.JSONDecoder(**HOOKS, parse_float=_float)
EXACT = json.JSONDecoder(**HOOKS, parse_float=_exact)
WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def _suspicious(text: str) -> bool:
    """Whether the value could hold a lone surrogate or too many levels: seldom, and then it is
    looked at piece by piece."""
    escapes = "\\ud" in text or "\\uD" in text
    return escapes or text.count("[") + text.count("{") > DEEPEST or not _encodable(text)


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _check_text(text: str, what: str = "") -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{what}{shown(text[error.start])} at character {error.start}"
        raise JSONError("lone surrogate", detail) from None


def _position(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    column = f"column {at - text.rfind(chr(10), 0, at)}"
    return f"line {line}, {column}" if "\n" in text[:-1] else column
