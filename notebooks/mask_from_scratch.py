"""A loss mask from nothing but the standard library: render, tokenize, inherit the mask, label.

    python mask_from_scratch.py

prints the walkthrough's table: every position with its token, id, label, and whether it is graded.

A chat is a list of (role, text) pairs. It is written in the Llama-3 format. While the text grows,
two lists grow in lock-step with it, one entry per character: is this character graded, and did the
template write it? Nothing is ever searched for afterwards, so nothing can be found in the wrong
place. The tokenizer is a toy: one token per special token, line break (or two) or word.
"""

import re

IGNORE_INDEX = -100  # the label that torch's cross_entropy skips by default

BOS = "<|begin_of_text|>"
OPEN = "<|start_header_id|>"
CLOSE = "<|end_header_id|>"
EOT = "<|eot_id|>"
SPECIAL = "|".join(re.escape(token) for token in (BOS, OPEN, CLOSE, EOT))
PIECE = re.compile(rf"({SPECIAL})|\n\n|\n|(?:(?!{SPECIAL})\S)+")

WALKTHROUGH = [
    ("system", "Answer in one sentence."),
    ("user", "What is the boiling point of water?"),
    ("assistant", "Water boils at 100 degrees Celsius at sea level."),
]


def render(chat):
    """The text, and for each character: is it graded, and did the template write it?"""
    text, graded, by_template = "", [], []

    def write(piece, is_graded, is_template):
        nonlocal text
        text += piece
        graded.extend([is_graded] * len(piece))
        by_template.extend([is_template] * len(piece))

    write(BOS, False, True)
    for role, content in chat:
        reply = role == "assistant"
        for piece in (OPEN, role, CLOSE, "\n\n"):
            write(piece, False, True)
        write(content.strip(), reply, False)
        write(EOT, reply, True)
    return text, graded, by_template


def tokenize(text, by_template):
    """The (start, end) range of characters of every token, and for each: is it special?

    Only the template can write a special token. A "<" that somebody typed is another character for
    the search, so nothing that begins with it matches. Spaces belong to no token.
    """
    searched = "".join(
        "?" if character == "<" and not ours else character
        for character, ours in zip(text, by_template, strict=True)
    )
    found = list(PIECE.finditer(searched))
    return [match.span() for match in found], [match[1] is not None for match in found]


def number(pieces, special, vocabulary):
    """The id of every token: the next free number for one that was not seen before."""
    return [
        vocabulary.setdefault((piece, is_special), len(vocabulary))
        for piece, is_special in zip(pieces, special, strict=True)
    ]


def inherit(graded, ranges):
    """For each token: is it graded? It is if all of its characters are, and not if none is.

    A token with some graded characters and some others has no right answer, so it is refused.
    """
    mask = []
    for start, end in ranges:
        inside = graded[start:end]
        if any(inside) != all(inside):
            raise ValueError(f"the token at characters {start} to {end} is graded only in part")
        mask.append(all(inside))
    return mask


def make_labels(ids, mask):
    """The token's own id where it is graded, IGNORE_INDEX elsewhere. Not shifted: the loss does."""
    return [
        token if is_graded else IGNORE_INDEX for token, is_graded in zip(ids, mask, strict=True)
    ]


def make_sample(chat, vocabulary):
    """Tokens, ids, labels, and whether each is special or graded, in lists of equal length."""
    text, graded, by_template = render(chat)
    ranges, special = tokenize(text, by_template)
    tokens = [text[start:end] for start, end in ranges]
    ids = number(tokens, special, vocabulary)
    mask = inherit(graded, ranges)
    labels = make_labels(ids, mask)
    return {"tokens": tokens, "ids": ids, "labels": labels, "special": special, "mask": mask}


def main():
    sample = make_sample(WALKTHROUGH, vocabulary={})
    print(f"{'position':>8}  {'token':<19}  {'id':>3}  {'label':>5}  graded")
    rows = zip(sample["tokens"], sample["ids"], sample["labels"], sample["mask"], strict=True)
    for position, (token, token_id, label, is_graded) in enumerate(rows):
        shown = token.replace("\n", "\\n")
        sign = "yes" if is_graded else "-"
        print(f"{position:>8}  {shown:<19}  {token_id:>3}  {label:>5}  {sign}")
    total, special, graded = len(sample["ids"]), sum(sample["special"]), sum(sample["mask"])
    print(f"{total} tokens, {special} special, {graded} graded ({graded / total:.0%})")


if __name__ == "__main__":
    main()
