"""Tables: HTML without styles, and the same in aligned plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Number

from course_utils.show.style import columns, pad, printable


@dataclass(frozen=True, repr=False)
class Table:
    """A table (`html`) with its twin in plain text (`text`); both can be shown anywhere."""

    html: str
    text: str

    def __post_init__(self):
        object.__setattr__(self, "html", printable(self.html))
        object.__setattr__(self, "text", printable(self.text))

    def __repr__(self):
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": self.html, "text/plain": self.text}


def table(rows: Sequence[Mapping], caption: str | None = None) -> Table:
    """A table of dicts: the keys are the columns, in the order in which they first appear.

    Numbers stand at the right, floats with three significant digits; None and what a row lacks is
    shown as –.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError("nothing to show: the table has no rows, or rows without columns.")
    cells = [[_shown(row.get(name)) for name in names] for row in rows]
    numeric = [all(_is_number(row.get(name)) for row in rows) for name in names]
    return Table(_html(names, cells, numeric, caption), _text(names, cells, numeric, caption))


def _is_number(value) -> bool:
    return value is None or (isinstance(value, Number) and not isinstance(value, bool))


def _shown(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return printable(str(value))


def _html(names, cells, numeric, caption) -> str:
    sides = ["right" if number else "left" for number in numeric]
    head = "".join(
        f'<th scope="col" align="{side}">{escape(str(name))}</th>'
        for name, side in zip(names, sides, strict=True)
    )
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for row in cells:
        data = "".join(
            f'<td align="{side}">{escape(cell).replace(chr(10), "<br>")}</td>'
            for cell, side in zip(row, sides, strict=True)
        )
        lines.append(f"<tr>{data}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def _text(names, cells, numeric, caption) -> str:
    lines = [[printable(str(name)).replace("\n", "↵") for name in names]]
    lines += [[cell.replace("\n", "↵") for cell in row] for row in cells]
    widths = [max(columns(line[n]) for line in lines) for n in range(len(names))]
    rule = ["-" * width for width in widths]
    shown = [
        "  ".join(
            pad(cell, width, right=number)
            for cell, width, number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join([caption, *shown] if caption else shown)
