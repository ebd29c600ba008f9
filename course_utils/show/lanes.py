"""Several masks over the same tokens."""

from collections.abc import Iterator, Mapping, Sequence

from course_utils.show import boxes, svg
from course_utils.show.boxes import Cell
from course_utils.show.style import (
    GRADED,
    GRADED_FILL,
    INK,
    MASKED,
    MASKED_FILL,
    PALE_INK,
    pad,
    runs,
    share,
    visible,
)
from course_utils.show.svg import MARGIN, WIDEST, Picture
from course_utils.show.tokens import Tokens, checked, mask

LANE = 19  # px


def masks(
    tokens: Sequence[str],
    masks: Mapping[str, Sequence[bool]],
    title: str | None = None,
    *,
    kinds: Sequence[str | None] | None = None,
    special: Sequence[bool] | None = None,
) -> Picture:
    """A row for each mask, {name: list of booleans}, with the share of tokens that it grades."""
    if not masks:
        raise ValueError("nothing to show: give at least one mask, as {name: list of booleans}.")
    shown = checked(tokens, None, kinds, special)
    return picture(
        shown,
        {name: mask(f"mask {name!r}", graded, shown.tokens) for name, graded in masks.items()},
        title,
    )


def picture(shown: Tokens, modes: dict[str, list[bool]], title: str | None) -> Picture:
    widest_name = max(map(len, modes))
    shares = {name: f"{sum(g)}/{len(g)} {share(g):>5}" for name, g in modes.items()}
    captions = {name: f"{pad(name, widest_name)}  {shares[name]:>12}" for name in modes}
    left = MARGIN + max(svg.width_of(caption, 11) for caption in captions.values()) + 10
    parts, y, right = [], MARGIN, 0.0
    if title:
        parts.append(svg.text(MARGIN, y + 10, title, size=13, bold=True))
        y, right = y + 18, MARGIN + svg.width_of(title, 13)
    for row in boxes.rows(shown, left, WIDEST - MARGIN, numbers=True, row_per_turn=False):
        for cell in row:
            parts += boxes.head(cell, shown, y, numbers=True)
            parts += boxes.box(cell, shown, y + boxes.HEAD)
        y += boxes.HEAD + boxes.BOX + 5
        for name, graded in modes.items():
            parts.append(svg.text(MARGIN, y + 12, captions[name], size=11))
            parts += _lane(row, graded, y)
            y += LANE
        y += 12
        right = max(right, row[-1].end)
    everything = [shown.with_mask(graded) for graded in modes.values()]
    legend, y, width = boxes.legend(everything, y, right + MARGIN)
    drawing = svg.document(
        parts + legend,
        width,
        y + MARGIN,
        title=title or "Masks over the same tokens",
        description="; ".join(
            f"{name}: {shares[name]} graded, positions {runs(graded)}"
            for name, graded in modes.items()
        ),
    )
    return Picture(drawing, _text(shown, modes, shares, title))


def _lane(row: list[Cell], graded: list[bool], y: float) -> Iterator[str]:
    yield svg.rect(row[0].x, y, row[-1].end - row[0].x, LANE - 3, fill=MASKED_FILL)
    for value, sign, ink in ((True, GRADED, INK), (False, MASKED, PALE_INK)):
        cells = [cell for cell in row if graded[cell.position] == value]
        if value:
            for cell in cells:
                yield svg.rect(cell.x, y, cell.width, LANE - 3, fill=GRADED_FILL, stroke=INK)
        if cells:
            yield svg.signs([cell.middle for cell in cells], y + 12, sign, fill=ink)


def _text(shown: Tokens, modes, shares, title: str | None) -> str:
    """In plain text: a column for each mask, its name in the lines above."""
    digits = len(str(len(shown) - 1))
    lines = [title] if title else []
    for number, name in enumerate(modes):
        bars = "│  " * number
        lines.append(f"{' ' * digits}  {bars}┌ {name}: {shares[name].replace('  ', ' ')}")
    for position, token in enumerate(shown.tokens):
        signs = "  ".join(GRADED if graded[position] else MASKED for graded in modes.values())
        lines.append(f"{position:>{digits}}  {signs}  {visible(token)}")
    return "\n".join(lines)
