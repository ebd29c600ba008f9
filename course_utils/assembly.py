"""From a layout to token ids, and where the graded runs begin and end among them.

The special tokens that the template wrote cut a layout into pieces. Pieces without marks are
encoded once; the others when a conversation's values are known. Then every edge of a graded run is
placed between two tokens, by one rule: *the text before the edge, encoded alone, must give the
first ids of the whole.* At the beginning of a reply that is what serving means, since the model
gets the ids of the prompt alone and continues them. Elsewhere it is enough that a token ends there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from course_utils.encoding import PieceEncoder
from course_utils.plans import Layout, is_mark
from course_utils.rerendering import MaskError
from course_utils.watching import FIRST_MARK


@dataclass(frozen=True)
class Run:
    """A graded stretch of the marked text; `message` is None outside the assistant's turns."""

    start: int
    end: int
    message: int | None


@dataclass(frozen=True)
class Piece:
    """Ordinary text with marks: strings, and numbers of values.

    edges: (number of the edge, is it the beginning of a reply, what stands before it in the piece)
    """

    parts: tuple
    edges: tuple[tuple[int, bool, tuple], ...]


class Assembly:
    """A layout made ready for one choice of graded `runs`. Edge 2i begins run i, 2i + 1 ends it."""

    def __init__(self, layout: Layout, runs: list[Run], encoder: PieceEncoder):
        self.runs, self.encoder = runs, encoder
        self.turn_of = {2 * i: run.message for i, run in enumerate(runs)}
        places = [place for run in runs for place in (run.start, run.end)]
        self.cuts = range(len(places), len(places) + len(layout.turns))
        places += [turn.after for turn in layout.turns]
        edges_at: dict[int, list[int]] = {}
        for edge, place in enumerate(places):
            edges_at.setdefault(place, []).append(edge)
        self.edges = len(places)
        self.parts = _parts(layout.marked)
        served = {turn.start for turn in layout.turns}
        # Ids that never change, edges that fall between two items, and pieces, in their order.
        self.items: list[list[int] | int | Piece] = []
        text, position = layout.marked, 0
        for match in [*encoder.specials.finditer(text), None]:
            start, end = match.span() if match else (len(text), len(text))
            if position < start:
                self._add_piece(text, position, start, edges_at, served)
            if match:
                self.items += edges_at.get(start, [])
                self._add_ids([encoder.special_id(match[0])])
            position = end
        self.items += edges_at.get(len(text), [])
        # The special token behind each piece with marks.
        behind = [item for item in self.items if type(item) is not int]
        self.stops = [
            following[0] if following else None
            for piece, following in zip(behind, [*behind[1:], None], strict=True)
            if type(piece) is Piece
        ]

    def _add_ids(self, ids: list[int]) -> None:
        if self.items and isinstance(self.items[-1], list):
            self.items[-1] = self.items[-1] + ids
        else:
            self.items.append(list(ids))

    def _add_piece(self, text: str, start: int, end: int, edges_at: dict, served: set) -> None:
        self.items += edges_at.get(start, [])
        inner = [
            (edge, place in served and edge % 2 == 0, _parts(text[start:place]))
            for place in range(start + 1, end)
            for edge in edges_at.get(place, [])
        ]
        piece = Piece(_parts(text[start:end]), tuple(inner))
        if any(map(is_mark, text[start:end])):
            self.items.append(piece)
            return
        ids, cut = self.encoder.constant(text[start:end]), 0
        for edge, is_start, before in piece.edges:
            found = self.place((piece.parts, ()), ids, is_start, "".join(before), edge)
            self._add_ids(ids[cut:found])
            self.items.append(edge)
            cut = found
        self._add_ids(ids[cut:])

    def texts(self, values: list) -> list[str]:
        """The texts of the pieces, in order: what has to be encoded for these values."""
        return [_filled(item.parts, values) for item in self.items if type(item) is Piece]

    def whole(self, values: list) -> str:
        """The whole text."""
        return _filled(self.parts, values)

    def pieces_of(self, ids: list[int]) -> list[list[int]] | None:
        """The ids of the pieces among those of the whole; None if it has other special tokens.

        Encoding the whole is faster with Hugging Face's tokenizers than encoding every piece, and
        the special tokens that the template wrote show where the pieces are.
        """
        pieces, position, stops = [], 0, iter(self.stops)
        ids = [*ids, None]  # what the last piece ends with
        for item in self.items:
            if type(item) is list:
                if ids[position : position + len(item)] != item:
                    return None
                position += len(item)
            elif type(item) is Piece:
                try:
                    end = ids.index(next(stops), position)
                except ValueError:
                    return None
                pieces.append(ids[position:end])
                position = end
        others = map(self.encoder.special_ids.isdisjoint, pieces)
        return pieces if position == len(ids) - 1 and all(others) else None

    def finish(self, values: list, encoded: Iterator[list[int]]) -> tuple[list[int], list[int]]:
        """The ids of the whole, and for each edge how many of them stand before it."""
        ids: list[int] = []
        edges = [0] * self.edges
        for item in self.items:
            if type(item) is list:
                ids += item
            elif type(item) is int:
                edges[item] = len(ids)
            else:
                found = next(encoded)
                for edge, is_start, before in item.edges:
                    prefix = _filled(before, values)
                    behind = item.parts, values
                    edges[edge] = len(ids) + self.place(behind, found, is_start, prefix, edge)
                ids += found
        return ids, edges

    def place(self, filling, ids: list[int], is_start: bool, before: str, edge: int) -> int:
        """How many of the `ids` of a piece stand before the edge that follows `before`."""
        # Short texts before an edge are a template's own words, the same again and again.
        alone = (
            self.encoder.constant(before)
            if len(before) < 64
            else self.encoder.encode_many([before])[0]
        )
        if ids[: len(alone)] == alone:
            return len(alone)
        text = _filled(*filling)
        ends = self.encoder.ends(text)
        if is_start:
            across = min((end for end in ends if end > len(before)), default=len(text))
            raise MaskError(
                f"turn {self.turn_of.get(edge)}: the reply's first characters "
                f"{text[len(before) : across]!r} merge with the prompt into one token, so the "
                "model would be trained on ids that no server sends. Strip the reply; or pass the "
                "option with which the template is served (enable_thinking=False, say); or end its "
                "generation prompt with a special token."
            )
        if len(before) in ends:
            return sum(end <= len(before) for end in ends if end)
        raise MaskError(
            f"a token lies across the edge of a graded span, after {before[-15:]!r}: the tokenizer "
            "merged text across it, and either answer would be wrong. Write a special token or a "
            "line break at that edge in the template."
        )


def _parts(marked: str) -> tuple:
    """The marked text as strings and numbers of values."""
    parts, literal = [], ""
    for character in marked:
        if is_mark(character):
            parts += (
                [literal, ord(character) - FIRST_MARK] if literal else [ord(character) - FIRST_MARK]
            )
            literal = ""
        else:
            literal += character
    return (*parts, literal) if literal else tuple(parts)


def _filled(parts: tuple, values: list) -> str:
    return "".join([part if type(part) is str else values[part] for part in parts])
