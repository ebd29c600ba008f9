"""How a token looks: its box, what stands above and below it, and the legend."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from course_utils.show import svg
from course_utils.show.style import (
    GRADED,
    GRADED_FILL,
    INK,
    KIND_NAMES,
    KINDS,
    MASKED,
    MASKED_FILL,
    PALE_INK,
    PALETTE,
    PAPER,
    chunks,
    visible,
)
from course_utils.show.tokens import Tokens, turn_starts

PAD, GAP = 4, 3  # px around the text in a box, between two boxes
HEAD, BOX, FOOT = 15, 23, 17  # heights: number and kind, the box, the sign
SMALL = 10  # font size of numbers
PALE_EDGE = "#8C8C8C"


@dataclass(frozen=True)
class Cell:
    """A box on the page at `x`. A token too long for a row takes several; `first` is the first."""

    position: int
    text: str
    first: bool
    x: float
    width: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def end(self) -> float:
        return self.x + self.width


def rows(
    shown: Tokens, left: float, right: float, *, numbers: bool, row_per_turn: bool = True
) -> list[list[Cell]]:
    """The boxes between `left` and `right`, row by row; every turn begins one, if asked.

    No row is empty, so without tokens there is none.
    """
    narrowest = _narrowest(shown, numbers)
    longest = int((right - left - 2 * PAD) // svg.CHARACTER)
    starts = turn_starts(shown.kinds) if row_per_turn else set()
    found, x = [[]], left
    for position, token in enumerate(shown.tokens):
        for part, piece in enumerate(chunks(visible(token), longest)):
            width = round(max(narrowest, svg.width_of(piece) + 2 * PAD), 1)
            new_turn = part == 0 and position in starts and _has_content(found[-1], shown)
            if found[-1] and (new_turn or x + width > right):
                found.append([])
                x = left
            found[-1].append(Cell(position, piece, part == 0, round(x, 1), width))
            x += width + GAP
    return list(filter(None, found))


def _has_content(row: list[Cell], shown: Tokens) -> bool:
    """Does the row hold more than what may stand before the first header?"""
    return any(shown.kinds[cell.position] not in ("bos", "space") for cell in row)


def _narrowest(shown: Tokens, numbers: bool) -> float:
    """The narrowest box: as wide as the number and the kind's sign above it."""
    number = svg.width_of(str(len(shown) - 1), SMALL) + 3 if numbers else 0
    return max(number + (14 if _has_signs(shown) else 0), 20)


def _has_signs(shown: Tokens) -> bool:
    return any(kind and KINDS[kind][0] for kind in shown.kinds)


def head_height(shown: Tokens, numbers: bool) -> float:
    return HEAD if numbers or _has_signs(shown) else 4


def head(cell: Cell, shown: Tokens, y: float, *, numbers: bool) -> Iterator[str]:
    """Above a box: its position at the left, its kind at the right."""
    if not cell.first:
        return
    if numbers:
        yield svg.text(cell.x + 1, y + 11, str(cell.position), size=SMALL, fill=PALE_INK)
    kind = shown.kinds[cell.position]
    if kind and KINDS[kind][0]:
        yield from tab(kind, cell.end - 12, y + 1)


def tab(kind: str, x: float, y: float) -> Iterator[str]:
    """The sign of a kind on its colour."""
    sign, colour = KINDS[kind]
    ink = PAPER if colour == "special" else INK
    yield svg.rect(x, y, 12, 11.5, fill=PALETTE[colour], rx=2)
    yield svg.text(x + 6, y + 9.2, sign, size=SMALL, fill=ink, anchor="middle", bold=True)


def box(cell: Cell, shown: Tokens, y: float) -> Iterator[str]:
    graded = shown.graded[cell.position] if shown.graded is not None else None
    special = shown.special[cell.position]
    edge = PALETTE["special"] if special else INK if graded else PALE_EDGE
    fill = {None: PAPER, True: GRADED_FILL, False: MASKED_FILL}[graded]
    yield svg.rect(
        cell.x,
        y,
        cell.width,
        BOX,
        fill=fill,
        stroke=edge,
        stroke_width=2 if special else 1,
        dashed=graded is False and not special,
    )
    ink = PALE_INK if graded is False and not special else INK
    yield svg.text(cell.middle, y + 15.5, cell.text, fill=ink, anchor="middle", bold=bool(graded))


def sign(graded: bool, x: float, y: float) -> str:
    """✓ or · around `x`."""
    ink = INK if graded else PALE_INK
    return svg.text(x, y, GRADED if graded else MASKED, fill=ink, anchor="middle", bold=True)


def legend(shown: Iterable[Tokens], y: float, width: float) -> tuple[list[str], float, float]:
    """The signs that occur in `shown`, in words, below a picture that is `width` wide.

    Returns the elements, their lower end, and the picture's width: a little more if that saves a
    line.
    """
    parts, x = [], svg.MARGIN
    room = min(1.1 * max(width, 520), svg.WIDEST)
    for draw, words in _entries(list(shown)):
        taken = 17 + svg.width_of(words, 11)
        if x > svg.MARGIN and x + taken > room - svg.MARGIN:
            x, y = svg.MARGIN, y + 18
        parts += [*draw(x, y), svg.text(x + 17, y + 10, words, size=11, fill=PALE_INK)]
        width = max(width, x + taken + svg.MARGIN)
        x += taken + 14
    return parts, y + (14 if parts else 0), width


def _entries(shown: list[Tokens]):
    masks = {graded for one in shown for graded in one.graded or ()}
    kinds = {kind for one in shown for kind in one.kinds}
    if True in masks:
        yield lambda x, y: _swatch(True, x, y), "graded"
    if False in masks:
        yield lambda x, y: _swatch(False, x, y), "masked"
    if any(any(one.special) for one in shown):
        yield _special_swatch, "special token"
    for kind, name in KIND_NAMES.items():
        if kind in kinds:
            yield lambda x, y, kind=kind: tab(kind, x, y + 1), name


def _swatch(graded: bool, x: float, y: float) -> Iterator[str]:
    fill, edge = (GRADED_FILL, INK) if graded else (MASKED_FILL, PALE_EDGE)
    yield svg.rect(x, y, 13, 13, fill=fill, stroke=edge, dashed=not graded)
    yield sign(graded, x + 6.5, y + 10.5)


def _special_swatch(x: float, y: float) -> Iterator[str]:
    yield svg.rect(x + 1, y + 1, 11, 10, fill=PAPER, stroke=PALETTE["special"], stroke_width=2)
