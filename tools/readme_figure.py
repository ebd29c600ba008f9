"""Draw data/figures/readme.svg: python -m tools.readme_figure

The tokens and their labels are those that the course computes for the walkthrough's chat.
"""

from html import escape
from pathlib import Path

from course_utils import IGNORE_INDEX, training_samples
from course_utils.examples import WALKTHROUGH
from course_utils.tokenizers import WordTokenizer

OUTPUT = Path(__file__).resolve().parents[1] / "data/figures/readme.svg"
GRADED, MASKED, SPECIAL, INK = "#009E73", "#E5E5E5", "#0072B2", "#1A1A1A"  # Okabe-Ito and greys
WIDTH, MARGIN, BOX, GAP, CHARACTER = 980, 20, 26, 4, 7.25
ALT = (
    "A conversation of three turns becomes {n} tokens. {graded} of them, the assistant's reply and "
    "its end of turn, carry a filled dot: they are graded. All others carry a dash: they are "
    "masked. Fine-tuning on the graded tokens turns a base model into one that answers and stops."
)


def text(x, y, words, size=13, colour=INK, anchor="start", extra=""):
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f"{extra}>{escape(words)}</text>"
    )


def heading(number, y, words):
    return text(MARGIN, y, f"{number}  {words}", 15, extra='font-weight="bold" font-family="serif"')


def token_boxes(tokens, labels, y):
    """The strip: one box for each token, a dot under graded and a dash under masked ones."""
    x = MARGIN
    for token, label in zip(tokens, labels, strict=True):
        graded, special = label != IGNORE_INDEX, token.startswith("<|")
        shown = token.replace("\n", "⏎")
        width = CHARACTER * len(shown) + 12
        if x + width > WIDTH - MARGIN:
            x, y = MARGIN, y + BOX + 22
        edge = SPECIAL if special else "none"
        yield (
            f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{BOX}" rx="4" stroke="{edge}" '
            f'stroke-width="2" fill="{GRADED if graded else MASKED}"/>'
        )
        middle = x + width / 2
        yield text(middle, y + 17, shown, 12, INK, "middle")
        yield text(middle, y + BOX + 13, "●" if graded else "–", 11, INK, "middle")
        x += width + GAP
    yield y + BOX + 22


def draw():
    tokenizer = WordTokenizer()
    (sample,) = training_samples(WALKTHROUGH, tokenizer)
    words = {number: word for word, number in tokenizer.vocabulary.items()}
    tokens = [words[number] for number in sample.input_ids]
    graded = sum(label != IGNORE_INDEX for label in sample.labels)
    parts = [heading("1", 28, "A conversation: a list of turns")]
    for row, message in enumerate(WALKTHROUGH.messages):
        y = 52 + 22 * row
        parts += [text(MARGIN + 22, y, message.role, extra='font-weight="bold"')]
        parts += [text(MARGIN + 110, y, message.content)]
    y = 138
    parts.append(
        heading("2", y, f"The template and the mask: {len(tokens)} tokens, {graded} graded")
    )
    *boxes, y = token_boxes(tokens, sample.labels, y + 16)
    parts += boxes
    legend = "● graded (green) | – masked (grey) | blue edge: special token | ⏎ line break"
    parts.append(text(MARGIN, y + 10, legend, 12))
    y += 50
    parts.append(
        heading("3", y, "Supervised fine-tuning: the loss is taken at the graded tokens only")
    )
    y += 34
    parts.append(
        heading("4", y, "The reply: does it answer, stop, and keep to its role? Measured.")
    )
    height = y + 20
    alt = ALT.format(n=len(tokens), graded=graded)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="{WIDTH}" height="{height}" font-family="monospace" aria-labelledby="t">\n'
        f'<title id="t">{escape(alt)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#FFFFFF"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(draw(), encoding="utf-8")
    print(OUTPUT)
