"""What all pictures share: colours, signs, and how text is made visible."""

import unicodedata
from collections.abc import Iterator, Sequence

# Okabe and Ito's colours, which people with any colour vision can tell apart.
# https://jfly.uni-koeln.de/color/
PALETTE = {
    "graded": "#009E73",
    "masked": "#999999",
    "special": "#0072B2",
    "role": "#F0E442",
    "space": "#E69F00",
    "base": "#56B4E9",
    "tuned": "#D55E00",
    "accent": "#CC79A7",
}
INK, PALE_INK, PAPER = "#1A1A1A", "#595959", "#FFFFFF"
# What boxes are filled with: 60 % of "graded", so that text on it can be read in grey too.
GRADED_FILL, MASKED_FILL = "#66C5AB", "#F2F2F2"

GRADED, MASKED = "✓", "·"

# Kind of a piece of rendered text -> its sign and its colour's name in the palette. "special" is a
# special token whose job is not known.
KINDS = {
    "bos": ("^", "special"),
    "open": ("[", "special"),
    "role": ("@", "role"),
    "close": ("]", "special"),
    "space": ("␣", "space"),
    "content": ("", None),
    "eot": ("■", "special"),
    "gap": ("~", "space"),
    "tools": ("§", "base"),
    "reasoning": ("…", "accent"),
    "call": ("ƒ", "tuned"),
    "special": ("◆", "special"),
}
KIND_NAMES = {
    "bos": "sequence start",
    "open": "header opens",
    "role": "role",
    "close": "header closes",
    "space": "white space",
    "eot": "end of turn",
    "gap": "gap after the turn",
    "tools": "tools",
    "reasoning": "reasoning",
    "call": "tool call",
    "special": "special token",
}
SPECIAL_KINDS = ("bos", "open", "close", "eot", "special")


def visible(text: str) -> str:
    """`text` with its white space made visible: · for a space, ↵ for a line break, → for a tab.

    A single space between two other characters of the same token stays a space, so that sentences
    can be read. What cannot be printed at all is written as its code point, such as ⟨200B⟩.
    """
    if not text:
        return "∅"
    return "".join(_shown(text, position) for position in range(len(text)))


def _shown(text: str, position: int) -> str:
    character = text[position]
    if character == " ":
        around = text[max(position - 1, 0) : position + 2]
        return " " if len(around) == 3 and not around[0].isspace() + around[2].isspace() else "·"
    if character in "\n\t":
        return {"\n": "↵", "\t": "→"}[character]
    return character if character.isprintable() else _code(character)


def printable(text: str) -> str:
    """`text` as any picture and any terminal can show it; line breaks and spaces stay.

    What would steer a terminal or break an SVG (control characters, marks of direction, lone
    surrogates) is written as its code point, such as ⟨001B⟩.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" else _code(c)
        for c in text
    )


def _code(character: str) -> str:
    return f"⟨{ord(character):04X}⟩"


def columns(text: str) -> int:
    """How many columns `text` takes in a monospace font."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, width: int, *, right: bool = False) -> str:
    """`text` filled with spaces to `width` columns."""
    spaces = " " * (width - columns(text))
    return spaces + text if right else text + spaces


def chunks(text: str, width: int) -> Iterator[str]:
    """`text` in pieces of at most `width` columns, cut after a space where there is one."""
    start = 0
    while start < len(text):
        end, taken = start, 0
        while end < len(text) and taken + _columns(text[end]) <= width:
            taken += _columns(text[end])
            end += 1
        if end < len(text) and (space := text.rfind(" ", start, end)) > start:
            end = space + 1
        end = max(end, start + 1)
        yield text[start:end]
        start = end


def count(graded: Sequence[bool] | None, special: Sequence[bool], noun: str) -> str:
    """Such as "36 tokens, 10 special, 10 graded (28 %)"; a share only where tokens are counted."""
    total = len(special)
    parts = [f"{total} {noun if total == 1 else noun + 's'}"]
    if any(special):
        parts.append(f"{sum(special)} special")
    if graded is not None:
        of_all = f" ({share(graded)})" if noun == "token" else ""
        parts.append(f"{sum(graded)} graded{of_all}")
    return ", ".join(parts)


def share(graded: Sequence[bool]) -> str:
    return f"{100 * sum(graded) / len(graded):.0f} %" if graded else "none"


def runs(graded: Sequence[bool]) -> str:
    """The graded positions in words, such as "26 to 35"."""
    found, position = [], 0
    while position < len(graded):
        start = position
        while position < len(graded) and graded[position]:
            position += 1
        if position > start:
            last = position - 1
            found.append(str(start) if start == last else f"{start} to {last}")
        position += 1
    return ", ".join(found) or "none"
