"""The token strip: one box for each token, with its kind and whether it is graded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from course_utils.masking import IGNORE_INDEX, Sample, graded_spans
from course_utils.show import svg
from course_utils.show.style import (
    EDGE,
    GRADED,
    INK,
    KIND_NAMES,
    KINDS,
    MASKED,
    PALE_INK,
    PALETTE,
    PAPER,
    SPECIAL_KINDS,
    chunks,
    columns,
    count,
    pad,
    runs,
    share,
    visible,
)
from course_utils.show.svg import MARGIN, Picture
from course_utils.templates import FAMILIES, Rendered
from course_utils.tokenizers import WordTokenizer, special_tokens

WIDEST = 960  # px
BOX, PAD, GAP = 24, 6, 4
HEAD, FOOT = 15, 16  # the line with number and kind above a box, the line with the sign below it
PALE_GREY = "#F2F2F2"
Cells = list[tuple[float, "Cell"]]


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
             colour. A header opener starts a new row.
    numbers: write the positions, counted from 0
    special: a special token has a strong edge; by default the kinds decide
    """
    return _strip(Tokens.of(tokens, graded, kinds, special), numbers, title, "token")


def rendered(text: Rendered, mode: str = "assistant", *, title: str | None = None) -> Picture:
    """The strip of what `templates.render` returns: one box for each span."""
    spans = text.spans
    tokens = Tokens.of(
        [span.text for span in spans],
        graded_spans(text, mode),
        [span.kind for span in spans],
        [span.special for span in spans],
    )
    return _strip(tokens, True, title, "span")


def sample(one: Sample, tokenizer, *, title: str | None = None) -> Picture:
    """The strip of a training sample: one box for each token of `tokenizer`.

    Kinds are told from the special tokens of the course's families; those of other templates are
    just "special". A token that is only part of a character is shown as �.
    """
    tokens, special = _decode(one.input_ids, tokenizer)
    graded = [label != IGNORE_INDEX for label in one.labels]
    return _strip(Tokens.of(tokens, graded, _kinds(tokens, special), special), True, title, "token")


def masks(
    tokens: Sequence[str],
    modes: Mapping[str, Sequence[bool]],
    title: str | None = None,
    *,
    kinds: Sequence[str | None] | None = None,
    special: Sequence[bool] | None = None,
) -> Picture:
    """Several masks over the same tokens: a row for each, with the share that it grades."""
    if not modes:
        raise ValueError("nothing to show: give at least one mask, as {name: list of booleans}.")
    shown = Tokens.of(tokens, None, kinds, special)
    for name, graded in modes.items():
        _same_length(f"mask {name!r}", graded, shown.tokens)
    return _masks(shown, {name: list(map(bool, g)) for name, g in modes.items()}, title)


# --- what is shown -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Checked input: lists of one length."""

    tokens: list[str]
    graded: list[bool] | None
    kinds: list[str | None]
    special: list[bool]

    @classmethod
    def of(cls, tokens, graded, kinds, special) -> "Tokens":
        if isinstance(tokens, str):
            raise TypeError("tokens is one string: give a list of strings, one for each token.")
        tokens = list(tokens)
        if not tokens:
            raise ValueError("nothing to show: there are no tokens.")
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(
                    f"a token is {type(token).__name__}, not text: decode ids first, or use "
                    "show.sample."
                )
        kinds = [None] * len(tokens) if kinds is None else list(kinds)
        for kind in kinds:
            if kind is not None and kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}: choose from {', '.join(KINDS)}.")
        special = [kind in SPECIAL_KINDS for kind in kinds] if special is None else list(special)
        graded = None if graded is None else [bool(one) for one in graded]
        for name, values in (("graded", graded), ("kinds", kinds), ("special", special)):
            if values is not None:
                _same_length(name, values, tokens)
        return cls(tokens, graded, kinds, special)

    def __len__(self):
        return len(self.tokens)


def _same_length(name: str, values, tokens) -> None:
    if len(values) != len(tokens):
        raise ValueError(f"{name} has {len(values)} entries, but there are {len(tokens)} tokens.")


def _decode(ids: list[int], tokenizer) -> tuple[list[str], list[bool]]:
    """Each id's text, and whether it is a special token."""
    if isinstance(tokenizer, WordTokenizer):
        tokens = [tokenizer.token(number) for number in ids]
        markers = FAMILIES[tokenizer.family].special_tokens
        return tokens, [token in markers for token in tokens]
    tokens = [tokenizer.decode([number], skip_special_tokens=False) for number in ids]
    markers = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    return tokens, [number in markers for number in ids]


def _marker_kinds() -> dict[str, str]:
    """The special tokens of all families, each with its kind."""
    from course_utils.examples import WALKTHROUGH
    from course_utils.templates import render

    return {
        span.text: span.kind
        for family in FAMILIES
        for span in render(WALKTHROUGH, family, lossy=True).spans
        if span.special
    }


def _kinds(tokens: list[str], special: list[bool]) -> list[str]:
    """Each token's kind. What follows a header opener is the role, up to a marker or white space."""
    markers, kinds = _marker_kinds(), []
    for token, is_special in zip(tokens, special, strict=True):
        if is_special:
            kinds.append(markers.get(token, "special"))
        elif not token.strip():
            kinds.append("gap" if kinds and kinds[-1] == "eot" else "space")
        elif kinds and kinds[-1] in ("open", "role"):
            kinds.append("role")
        else:
            kinds.append("content")
    return kinds


def turn_starts(kinds: Sequence[str | None]) -> set[int]:
    """Where a turn's header begins: at its opener, or at a role name that has none."""
    return {
        position
        for position, kind in enumerate(kinds)
        if kind == "open"
        or (kind == "role" and kinds[position - 1 : position] not in (["open"], ["role"]))
    }


# --- layout --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A box on the page. A token that is too long for a row takes several; `first` is the first."""

    position: int
    text: str
    first: bool
    width: float


def _rows(shown: Tokens, room: float, narrowest: float) -> list[Cells]:
    """The boxes, row by row, each with its x from 0 to `room`."""
    rows, x, starts = [[]], 0.0, turn_starts(shown.kinds)
    for cell in _cells(shown, room, narrowest):
        opens = (
            cell.first
            and cell.position in starts
            and any(shown.kinds[other.position] not in ("bos", "space") for _, other in rows[-1])
        )
        if rows[-1] and (opens or x + cell.width > room):
            rows.append([])
            x = 0.0
        rows[-1].append((x, cell))
        x += cell.width + GAP
    return rows


def _cells(shown: Tokens, room: float, narrowest: float) -> Iterator[Cell]:
    longest = int((room - 2 * PAD) // svg.CHARACTER)
    for position, token in enumerate(shown.tokens):
        for part, piece in enumerate(chunks(visible(token), longest)):
            width = max(narrowest, svg.width_of(piece) + 2 * PAD)
            yield Cell(position, piece, part == 0, round(width, 1))


def _narrowest(shown: Tokens, numbers: bool) -> float:
    """The narrowest box: as wide as the number and the kind's sign above it."""
    number = svg.width_of(str(len(shown) - 1), 10) + 3 if numbers else 0
    return max(number + (14 if any(shown.kinds) else 0), 20)


def _head(cell: Cell, shown: Tokens, x: float, y: float, numbers: bool) -> Iterator[str]:
    """The line above a box: position at the left, kind at the right."""
    if not cell.first:
        return
    if numbers:
        yield svg.text(x + 1, y + 11, str(cell.position), size=10, fill=PALE_INK)
    sign, colour = KINDS.get(shown.kinds[cell.position], ("", None))
    if sign:
        yield from _kind_tab(sign, colour, x + cell.width - 13, y + 2)


def _kind_tab(sign: str, colour: str, x: float, y: float) -> Iterator[str]:
    ink = PAPER if colour == "special" else INK
    yield svg.rect(x, y, 12, 11, fill=PALETTE[colour], rx=2)
    yield svg.text(x + 6, y + 9, sign, size=10, fill=ink, anchor="middle", bold=True)


def _box(cell: Cell, shown: Tokens, x: float, y: float) -> Iterator[str]:
    graded = None if shown.graded is None else shown.graded[cell.position]
    special = shown.special[cell.position]
    edge = PALETTE["special"] if special else INK if graded else "#8C8C8C"
    fill = {None: PAPER, True: PALETTE["graded"], False: PALE_GREY}[graded]
    yield svg.rect(
        x,
        y,
        cell.width,
        BOX,
        fill=fill,
        stroke=edge,
        stroke_width=2 if special else 1,
        dashed=graded is False and not special,
    )
    ink = PALE_INK if graded is False and not special else INK
    middle = x + cell.width / 2
    yield svg.text(middle, y + 16.5, cell.text, fill=ink, anchor="middle", bold=bool(graded))


def _sign(graded: bool, x: float, y: float) -> str:
    if graded:
        return svg.text(x, y, GRADED, fill=INK, anchor="middle", bold=True)
    return svg.text(x, y, MASKED, fill=PALE_INK, anchor="middle", bold=True)


def _strip(shown: Tokens, numbers: bool, title: str | None, noun: str) -> Picture:
    parts, width, height, name, description = strip_parts(shown, numbers, title, noun)
    drawing = svg.document(parts, width, height, title=name, description=description)
    return Picture(drawing, strip_text(shown, numbers, title, noun))


def strip_parts(shown: Tokens, numbers: bool, title: str | None, noun: str):
    """The strip's elements, its width and height, its name and its description."""
    rows = _rows(shown, WIDEST - 2 * MARGIN, _narrowest(shown, numbers))
    head = HEAD if numbers or any(KINDS.get(kind, ("",))[0] for kind in shown.kinds) else 4
    foot = FOOT if shown.graded is not None else 4
    parts, y = [], MARGIN / 2
    if title:
        parts.append(svg.text(MARGIN, y + 16, title, bold=True))
        y += 24
    for row in rows:
        for offset, cell in row:
            x = MARGIN + offset
            parts += _head(cell, shown, x, y, numbers)
            parts += _box(cell, shown, x, y + head)
            if shown.graded is not None:
                sign = shown.graded[cell.position]
                parts.append(_sign(sign, x + cell.width / 2, y + head + BOX + 13))
        y += head + BOX + foot + 4
    summary = count(shown.graded, shown.special, noun)
    widest = max(row[-1][0] + row[-1][1].width for row in rows) + 2 * MARGIN
    widest = max(widest, svg.width_of(title or "") + 2 * MARGIN, min(WIDEST, 460))
    legend, y = _legend(shown, summary, y, widest)
    graded = "" if shown.graded is None else f" Graded positions: {runs(shown.graded)}."
    text = " ".join(visible(token) for token in shown.tokens)
    return parts + legend, widest, y, title or "Token strip", f"{summary}.{graded} {text}"


def _legend(shown: Tokens, summary: str, y: float, width: float) -> tuple[list[str], float]:
    """The signs that occur, in words, and the counts. Returns the elements and the lower end."""
    entries = [(None, None, summary)]
    if shown.graded is not None:
        entries += [(GRADED, None, "graded")] * any(shown.graded)
        entries += [(MASKED, None, "masked")] * (not all(shown.graded))
    if any(shown.special):
        entries.append(("edge", "special", "special token"))
    for kind, name in KIND_NAMES.items():
        if kind in shown.kinds and kind != "special":
            entries.append((*KINDS[kind], name))
    parts, x, y = [], MARGIN, y + 4
    for sign, colour, words in entries:
        taken = (0 if sign is None else 17) + svg.width_of(words, 11)
        if x > MARGIN and x + taken > width - MARGIN:
            x, y = MARGIN, y + 18
        if sign == "edge":
            parts.append(
                svg.rect(x + 1, y + 1, 11, 10, fill=PAPER, stroke=PALETTE[colour], stroke_width=2)
            )
        elif sign and colour:
            parts += _kind_tab(sign, colour, x, y + 1)
        elif sign:
            fill, edge = (PALETTE["graded"], INK) if sign == GRADED else (PALE_GREY, "#8C8C8C")
            parts.append(svg.rect(x, y, 13, 13, fill=fill, stroke=edge, dashed=sign == MASKED))
            parts.append(_sign(sign == GRADED, x + 6.5, y + 10.5))
        parts.append(svg.text(x + taken - svg.width_of(words, 11), y + 10, words, size=11))
        x += taken + 14
    return parts, y + 13 + MARGIN


def strip_text(shown: Tokens, numbers: bool, title: str | None, noun: str) -> str:
    """The strip in plain text: a line for each token."""
    digits = len(str(len(shown) - 1))
    kind_width = max(len(kind or "") for kind in shown.kinds)
    lines = [title] if title else []
    for position, token in enumerate(shown.tokens):
        line = [f"{position:>{digits}}"] if numbers else []
        if shown.graded is not None:
            line.append(GRADED if shown.graded[position] else MASKED)
        if kind_width:
            line.append((shown.kinds[position] or "").ljust(kind_width))
        lines.append(" ".join([*line, visible(token)]))
    return "\n".join([*lines, count(shown.graded, shown.special, noun)])


# --- several masks -------------------------------------------------------------------------------

LANE = 19


def _masks(shown: Tokens, modes: dict[str, list[bool]], title: str | None) -> Picture:
    labels = {name: f"{sum(g)}/{len(g)} {share(g):>5}" for name, g in modes.items()}
    longest = max(columns(name) for name in modes)
    captions = {name: f"{pad(name, longest)}  {labels[name]}" for name in modes}
    left = MARGIN + max(svg.width_of(caption, 11) for caption in captions.values()) + 10
    rows = _rows(shown, WIDEST - left - MARGIN, _narrowest(shown, True))
    parts, y = [], MARGIN / 2
    if title:
        parts.append(svg.text(MARGIN, y + 16, title, bold=True))
        y += 24
    for row in rows:
        for offset, cell in row:
            parts += _head(cell, shown, left + offset, y, True)
            parts += _box(cell, shown, left + offset, y + HEAD)
        y += HEAD + BOX + 4
        for name, graded in modes.items():
            parts.append(svg.text(MARGIN, y + 12, captions[name], size=11))
            for offset, cell in row:
                parts += _lane(graded[cell.position], left + offset, y, cell.width)
            y += LANE
        y += 10
    widest = max(left + row[-1][0] + row[-1][1].width for row in rows) + MARGIN
    widest = max(widest, svg.width_of(title or "") + 2 * MARGIN)
    description = "; ".join(
        f"{name}: {count(g, [False] * len(g), 'token')}, positions {runs(g)}"
        for name, g in modes.items()
    )
    drawing = svg.document(
        parts, widest, y, title=title or "Masks over the same tokens", description=description
    )
    return Picture(drawing, _masks_text(shown, modes, labels, title))


def _lane(graded: bool, x: float, y: float, width: float) -> Iterator[str]:
    if graded:
        yield svg.rect(x, y, width, LANE - 3, fill=PALETTE["graded"], stroke=INK)
    else:
        yield svg.rect(x, y, width, LANE - 3, fill=PALE_GREY, stroke=EDGE, dashed=True)
    yield _sign(graded, x + width / 2, y + 12.5)


def _masks_text(shown: Tokens, modes, labels, title: str | None) -> str:
    digits = len(str(len(shown) - 1))
    lines = [title] if title else []
    lines += [f"{' ' * digits}{'   ' * n} ┌ {name}: {labels[name]}" for n, name in enumerate(modes)]
    for position, token in enumerate(shown.tokens):
        signs = [GRADED if graded[position] else MASKED for graded in modes.values()]
        lines.append(f"{position:>{digits}}  {'  '.join(signs)}  {visible(token)}")
    return "\n".join(lines)
