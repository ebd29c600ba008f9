"""What a strip shows: tokens with their kinds and masks, checked, from wherever they come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from course_utils.examples import WALKTHROUGH
from course_utils.masking import IGNORE_INDEX, Sample, character_mask, graded_spans, token_labels
from course_utils.show.style import KINDS, SPECIAL_KINDS, count
from course_utils.templates import FAMILIES, Rendered, render
from course_utils.tokenizers import WordTokenizer, special_tokens


@dataclass(frozen=True)
class Tokens:
    """Lists of one length. `noun` says what they are; `graded` is None where there is no mask."""

    tokens: list[str]
    graded: list[bool] | None
    kinds: list[str | None]
    special: list[bool]
    noun: str = "token"

    def __len__(self):
        return len(self.tokens)

    @property
    def summary(self) -> str:
        return count(self.graded, self.special, self.noun)

    def with_mask(self, graded: list[bool] | None) -> "Tokens":
        return replace(self, graded=graded)


def checked(
    tokens: Sequence[str],
    graded: Sequence[bool] | None = None,
    kinds: Sequence[str | None] | None = None,
    special: Sequence[bool] | None = None,
) -> Tokens:
    """What a reader passed in; raises an error that says what does not fit."""
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
    same_length("kinds", kinds, tokens)
    special = [kind in SPECIAL_KINDS for kind in kinds] if special is None else list(special)
    same_length("special", special, tokens)
    return Tokens(tokens, mask("graded", graded, tokens), kinds, list(map(bool, special)))


def mask(name: str, graded: Sequence[bool] | None, tokens: Sequence[str]) -> list[bool] | None:
    """A mask over `tokens` as plain booleans. Labels are refused: -100 would count as true."""
    if graded is None:
        return None
    graded = list(graded)
    same_length(name, graded, tokens)
    for value in graded:
        if value not in (0, 1):
            raise ValueError(
                f"{name} holds {value!r}: a mask is a list of booleans. From labels it is made "
                "with [label != -100 for label in labels]."
            )
    return [bool(value) for value in graded]


def same_length(name: str, values: Sequence, tokens: Sequence) -> None:
    if len(values) != len(tokens):
        raise ValueError(f"{name} has {len(values)} entries, but there are {len(tokens)} tokens.")


def of_spans(rendered: Rendered, mode: str) -> Tokens:
    spans = rendered.spans
    return Tokens(
        [span.text for span in spans],
        graded_spans(rendered, mode),
        [span.kind for span in spans],
        [span.special for span in spans],
        noun="span",
    )


def of_words(rendered: Rendered, mode: str = "assistant") -> Tokens:
    """The words and markers of rendered text, each with the kind of the span that it begins in."""
    text, owners = rendered.text, [span for span in rendered.spans for _ in span.text]
    markers = tuple(dict.fromkeys(span.text for span in rendered.spans if span.special))
    encoded = WordTokenizer(rendered.family).encode(text, markers)
    labels = token_labels(encoded, character_mask(rendered, mode))
    first = [owners[start] for start, _ in encoded.offsets]
    return Tokens(
        [text[start:end] for start, end in encoded.offsets],
        [label != IGNORE_INDEX for label in labels],
        [span.kind for span in first],
        [span.special for span in first],
    )


def of_sample(one: Sample, tokenizer) -> Tokens:
    if isinstance(tokenizer, WordTokenizer):
        tokens = [tokenizer.token(number) for number in one.input_ids]
        markers = FAMILIES[tokenizer.family].special_tokens
        special = [token in markers for token in tokens]
    else:
        # One by one, so that each token keeps its own text, its leading space included.
        tokens = [tokenizer.decode([number]) for number in one.input_ids]
        markers = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
        special = [number in markers for number in one.input_ids]
    graded = [label != IGNORE_INDEX for label in one.labels]
    return Tokens(tokens, graded, _kinds(tokens, special), special)


def _kinds(tokens: list[str], special: list[bool]) -> list[str]:
    """Each token's kind, told from the special tokens around it.

    What follows a header opener is the role, up to the next special token or white space.
    """
    markers, kinds = _marker_kinds(), []
    for token, is_special in zip(tokens, special, strict=True):
        before = kinds[-1] if kinds else None
        if is_special:
            kinds.append(markers.get(token, "special"))
        elif token and not token.strip():
            kinds.append("gap" if before in ("eot", "gap") else "space")
        else:
            kinds.append("role" if before in ("open", "role") else "content")
    return kinds


def _marker_kinds() -> dict[str, str]:
    """The special tokens of all families, each with its kind."""
    return {
        span.text: span.kind
        for family in FAMILIES
        for span in render(WALKTHROUGH, family, lossy=True).spans
        if span.special
    }


def turn_starts(kinds: Sequence[str | None]) -> set[int]:
    """Where a turn's header begins: at its opener, or at a role name that has none."""
    starts, before = set(), None
    for position, kind in enumerate(kinds):
        if kind == "open" or (kind == "role" and before not in ("open", "role")):
            starts.add(position)
        before = kind
    return starts
