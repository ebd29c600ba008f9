"""What a base model expects where a turn is over: who speaks next, and whether anything ends.

Reading from left to right, a model computes its expectation after every token of a text. So one
forward pass is enough; the functions here pick out the positions that matter.
"""

import re
from collections.abc import Iterable, Sequence

from course_utils.comparison import sentences, words
from course_utils.templates import FAMILIES
from course_utils.tokenizers import encode

# --- what it does with a question ----------------------------------------------------------------

KINDS = ("answers", "repeats the question", "asks another question", "changes voice", "other")
LABEL = re.compile(r"\[?(user|question|answer|q|a)\b[^\n]{0,12}[]:]|[-*•]|[A-D1-9][.)]", re.I)
EMPTY = re.compile("what|when|where|which|does|should|there|have|give|tell|many")


def kind(question: str, text: str) -> str:
    """One of `KINDS`, told from the first sentence of a continuation.

    "Answers" is generous: a statement that shares a word with the question, right or wrong.
    """
    first = next(iter(sentences(text)), "")
    own, asked = set(words(first)), set(words(question))
    if own and own <= asked:  # no word that the question did not have
        return "repeats the question"
    if first.rstrip().endswith("?"):
        return "asks another question"
    if LABEL.match(first):  # such as [User 0001], or the first item of a list
        return "changes voice"
    if re.match(r"(I|My|We)\b", first) and not re.search(r"\b(are you|your)\b", question):
        return "changes voice"  # somebody talks about themselves, unasked
    content = {w for w in asked if len(w) > 3 and not EMPTY.fullmatch(w)} | {"answer", "i"}
    return "answers" if content & own else "other"


# --- what comes next -----------------------------------------------------------------------------


def follows(model, tokenizer, text: str, ends: Sequence[int] | None = None):
    """Probabilities of the next token after character positions: a tensor (positions, vocabulary).

    ends: positions in `text` at which a token ends, such as `len(text)`; None: after every token
    """
    import torch

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = encode(tokenizer, text)
    row_at = {end: number + len(start) for number, (_, end) in enumerate(found.offsets)}
    chosen = list(row_at) if ends is None else ends
    if missing := [end for end in chosen if end not in row_at]:
        raise ValueError(f"no token of the text ends at character {missing[0]}.")
    ids = torch.tensor([start + found.ids], device=model.device)
    rows = torch.tensor([row_at[end] for end in chosen], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, logits_to_keep=rows).logits[0]
    return logits.float().softmax(-1).cpu()


# --- who speaks next -----------------------------------------------------------------------------

FORMS = ("wall", "lines", "names")
OPENERS = ["What", "Why", "Who", "Where", "When", "Which", "How", "Is", "Are", "Was", "Were"]
OPENERS += ["Do", "Does", "Did", "Can", "Could", "Should", "Would", "Will"]


def script(lines: Sequence[str], form: str, names=("User", "Assistant")) -> tuple[str, list[int]]:
    """A transcript as one text, and the character positions after each turn but the last.

    form: "wall" of text, "lines" without names, or lines with "names"
    """
    text, ends = "", []
    for number, line in enumerate(lines):
        name = f"{names[number % 2]}: " if form == "names" else ""
        text += name + line + ("" if form == "wall" else "\n")
        ends.append(len(text))
        text += " " if form == "wall" else ""
    return text.rstrip(), ends[:-1]


def speakers_next(model, tokenizer, lines: Sequence[str], form: str, names=("User", "Assistant")):
    """After each turn but the last: (P(a line of the first speaker), P(one of the second)).

    With names: the probabilities of the names' first tokens. Without them a model cannot say a
    name, so: of a word that opens a question, as all lines of the first speaker do, and of
    anything else.
    """
    p = follows(model, tokenizer, *script(lines, form, names))
    if form == "names":
        first, second = ([encode(tokenizer, name).ids[0]] for name in names)
        return list(zip(p[:, first].sum(-1).tolist(), p[:, second].sum(-1).tolist(), strict=True))
    openers = [encode(tokenizer, " " * (form == "wall") + word).ids for word in OPENERS]
    whole = [ids[0] for ids in openers if len(ids) == 1]
    return [(value, 1 - value) for value in p[:, whole].sum(-1).tolist()]


def user_next(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """The probability that it is the first speaker, of the two."""
    return [user / (user + other) for user, other in pairs]


# --- does anything end ---------------------------------------------------------------------------


def end_tokens(tokenizer, family: str) -> dict[str, int]:
    """The two tokens that could end a reply: the tokenizer's end of text, the template's turn."""
    named = {"end of text": tokenizer.eos_token, "end of turn": FAMILIES[family].stop}
    return {name: encode(tokenizer, token).ids[0] for name, token in named.items() if token}


def breaks(tokenizer) -> list[int]:
    """The ids of the tokens that are one or several line breaks."""
    found = (encode(tokenizer, "\n" * number).ids for number in range(1, 5))
    return sorted({ids[0] for ids in found if len(ids) == 1})


def sentence_ends(tokenizer, prompt: str, reply: str) -> tuple[str, list[int]]:
    """Prompt and reply as one text, and the positions in it after the reply's sentences."""
    text = prompt + reply
    possible = {end for _, end in encode(tokenizer, text).offsets}
    ends = (m.end() for m in re.finditer(r"[.!?](?=\s)", text) if m.end() > len(prompt))
    return text, [end for end in ends if end in possible]


def expected_after(model, tokenizer, places: Iterable[tuple[str, list[int]]]):
    """`follows` for many texts at once: a tensor (all positions, vocabulary)."""
    import torch

    found = [follows(model, tokenizer, text, ends) for text, ends in places if ends]
    return torch.cat(found) if found else torch.empty(0, model.config.vocab_size)
