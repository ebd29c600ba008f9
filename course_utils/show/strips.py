"""The token strip: one box for each token, with its kind and whether it is graded."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from course_utils.masking import Sample
from course_utils.show import boxes, svg
from course_utils.show import tokens as _tokens
from course_utils.show.style import (
    GRADED,
    MASKED,
    PALE_INK,
    chunks,
    columns,
    runs,
    visible,
)
from course_utils.show.svg import MARGIN, WIDEST, Picture
from course_utils.show.tokens import Tokens
from course_utils.templates import Rendered
from course_utils.tokenizers import special_pattern, special_tokens
from course_utils.watching import FIRST_MARK, LAST_MARK


def strip(
    tokens: Sequence[str],
    graded: Sequence[bool] | None = None,
    kinds: Sequence[str | None] | None = None,
    *,
    numbers: bool = True,
    title: str | None = None,
    special: Sequence[bool] | None = None,
) -> Picture:
    """One box for each token, white space made visible.

    graded:  a graded token's box is filled, with ✓ below; a masked one's is pale, with · below
    kinds:   for each token one of `templates.SPAN_KINDS`, "special" or None; shown as sign and
             colour. A header opener begins a new row.
    numbers: write the positions, counted from 0
    special: a special token has a strong edge; by default the kinds decide
    """
    return picture([Strip(_tokens.checked(tokens, graded, kinds, special), title, numbers)])


def rendered(rendered: Rendered, mode: str = "assistant", *, title: str | None = None) -> Picture:
    """The strip of what `templates.render` returns: one box for each span."""
    return picture([Strip(_tokens.of_spans(rendered, mode), title)])


def sample(sample: Sample, tokenizer, *, title: str | None = None) -> Picture:
    """The strip of a training sample: one box for each token of `tokenizer`.

    Kinds are told from the special tokens of the course's families; those of other templates are
    "special". A token that is only part of a character is shown as �.
    """
    return picture([Strip(_tokens.of_sample(sample, tokenizer), title)])


def plan(
    marked: str, tokenizer, name: Callable[[int], str] = str, *, title: str | None = None
) -> Picture:
    """The strip of a marked text: special tokens, holes, and what else the template wrote.

    marked: a template's output with the mark U+F0000 + k where text k belongs (see `watching`)
    name:   what stands in hole k
    """
    specials = special_tokens(tokenizer)
    marks = f"[{chr(FIRST_MARK)}-{chr(LAST_MARK)}]"
    parts = re.split(f"({special_pattern(specials).pattern}|{marks})", marked)
    parts = [part for part in parts if part]
    words = [
        f"⟨{name(ord(part) - FIRST_MARK)}⟩" if re.fullmatch(marks, part) else part for part in parts
    ]
    shown = _tokens.checked(words, special=[part in specials for part in parts])
    return picture([Strip(replace(shown, noun="piece"), title, numbers=False)])


@dataclass(frozen=True)
class Strip:
    """One strip of a picture.

    counts: the line below it; by default how many tokens there are, special and graded ones
    note:   a sentence below that
    """

    shown: Tokens
    title: str | None = None
    numbers: bool = True
    counts: str | None = None
    note: str | None = None

    @property
    def summary(self) -> str:
        return self.counts or self.shown.summary


def picture(
    strips: Sequence[Strip], title: str | None = None, *, notes: Sequence[str] = ()
) -> Picture:
    """Strips below each other, with one legend, and `notes` in the end."""
    parts, y, width = [], MARGIN, 0.0
    if title:
        parts.append(svg.text(MARGIN, y + 11, title, size=14, bold=True))
        y, width = y + 26, svg.width_of(title, 14) + 2 * MARGIN
    for number, one in enumerate(strips):
        more, y, right = _draw(one, y + (14 if number else 0))
        parts += more
        width = max(width, right + MARGIN)
    for line in (line for note in notes for line in _wrapped(note)):
        parts.append(svg.text(MARGIN, y + 22, line, size=11, fill=PALE_INK))
        width, y = max(width, svg.width_of(line, 11) + 2 * MARGIN), y + 17
    legend, y, width = boxes.legend([one.shown for one in strips], y + (18 if notes else 0), width)
    drawing = svg.document(
        parts + legend,
        width,
        y + MARGIN,
        title=title or (strips[0].title if len(strips) == 1 else None) or "Token strip",
        description=" ".join([*map(_description, strips), *notes]),
    )
    paragraphs = [*([title] if title else []), *map(_text, strips), *notes]
    return Picture(drawing, "\n\n".join(paragraphs))


def _draw(one: Strip, y: float) -> tuple[list[str], float, float]:
    """A strip's elements, its lower end and its right end."""
    shown, parts, right = one.shown, [], 0.0
    if one.title:
        parts.append(svg.text(MARGIN, y + 10, one.title, size=13, bold=True))
        y, right = y + 18, MARGIN + svg.width_of(one.title, 13)
    top = boxes.head_height(shown, one.numbers)
    for row in boxes.rows(shown, MARGIN, WIDEST - MARGIN, numbers=one.numbers):
        for cell in row:
            parts += boxes.head(cell, shown, y, numbers=one.numbers)
            parts += boxes.box(cell, shown, y + top)
            if shown.graded is not None:
                graded = shown.graded[cell.position]
                parts.append(boxes.sign(graded, cell.middle, y + top + boxes.BOX + 12))
        right = max(right, row[-1].end)
        y += top + boxes.BOX + (boxes.FOOT if shown.graded is not None else 4)
    y += 4
    notes = [(line, False) for line in _wrapped(one.note)] if one.note else []
    for words, bold in [(one.summary, True), *notes]:
        parts.append(svg.text(MARGIN, y + 10, words, size=11, fill=PALE_INK, bold=bold))
        right = max(right, MARGIN + svg.width_of(words, 11))
        y += 17
    return parts, y + (8 if one.note else 2), right


def _wrapped(note: str) -> list[str]:
    width = int((WIDEST - 2 * MARGIN) // svg.width_of("x", 11))
    return [line.rstrip() for line in chunks(note, width)]


def _description(one: Strip) -> str:
    title = f"{one.title}: " if one.title else ""
    graded = one.shown.graded
    which = "" if graded is None else f" Graded positions: {runs(graded)}."
    return f"{title}{one.summary}.{which} " + " ".join(map(visible, one.shown.tokens))


def _text(one: Strip) -> str:
    """The strip in plain text: a line for each token."""
    shown = one.shown
    digits = len(str(len(shown) - 1))
    widest_kind = max((columns(kind or "") for kind in shown.kinds), default=0)
    lines = [one.title] if one.title else []
    for position, token in enumerate(shown.tokens):
        line = [f"{position:>{digits}}"] if one.numbers else []
        if shown.graded is not None:
            line.append(GRADED if shown.graded[position] else MASKED)
        if widest_kind:
            line.append((shown.kinds[position] or "").ljust(widest_kind))
        lines.append(" ".join([*line, visible(token)]))
    return "\n".join([*lines, one.summary, *([one.note] if one.note else [])])
