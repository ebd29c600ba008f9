"""Lecture 02's checks accept the right answer and refuse plausible wrong ones in one line."""

import re

import jupytext
import pytest

from course_utils import FAMILIES
from course_utils.check import e02
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.conversation import conversation
from course_utils.templates import TemplateError, parse, render
from course_utils.tokenizers import GUARD
from tools.build import MARKER, ROOT

SOURCE = ROOT / "source" / "02_conversation_to_tokens.exercises.py"
NAMES = [
    "render_chatml",
    "gemma_twin",
    "template_tokens_per_turn",
    "parse_chatml",
    "is_canonical_llama3",
    "neutralise",
]


@pytest.fixture(scope="module")
def solved():
    """The functions of the solutions, by name."""
    namespace = {}
    for cell in jupytext.read(SOURCE).cells:
        if cell.cell_type == "code" and "exercise-" not in str(cell.metadata.get("tags")):
            exec(MARKER.sub("", cell.source), namespace)
    return namespace


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes(name, solved, capsys):
    getattr(e02, name)(solved[name])
    assert capsys.readouterr().out.endswith("passed\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted(name):
    def stub(*args, **kwargs):
        raise NotImplementedError

    with pytest.raises(NotAttempted):
        getattr(e02, name)(stub)


# --- 2.1 -----------------------------------------------------------------------------------------


def chatml(turns, prompt=False, *, bos="", before="\n", trim=False, eot="<|im_end|>", gap="\n"):
    """A ChatML renderer in which any one piece can be wrong."""
    text = bos
    for role, content in turns:
        content = content.strip() if trim else content
        text += f"<|im_start|>{role}{before}{content}{eot}{gap}"
    return text + "<|im_start|>assistant\n" * prompt


RENDERERS = {
    "no line break behind the turn": lambda t, p=False, **k: chatml(t, prompt(p, k), gap=""),
    "no line break behind the role": lambda t, p=False, **k: chatml(t, prompt(p, k), before=""),
    "two line breaks, as Llama 3 has": lambda t, p=False, **k: chatml(
        t, prompt(p, k), before="\n\n"
    ),
    "trimmed": lambda t, p=False, **k: chatml(t, prompt(p, k), trim=True),
    "a sequence start": lambda t, p=False, **k: chatml(t, prompt(p, k), bos="<s>"),
    "no end of turn": lambda t, p=False, **k: chatml(t, prompt(p, k), eot=""),
    "no generation prompt": lambda t, p=False, **k: chatml(t),
    "always a generation prompt": lambda t, p=False, **k: chatml(t, True),
    "line break missing in the prompt": lambda t, p=False, **k: (
        chatml(t) + "<|im_start|>assistant" * prompt(p, k)
    ),
    "last line break dropped": lambda t, p=False, **k: chatml(t, prompt(p, k)).rstrip("\n"),
    "nothing returned": lambda t, p=False, **k: None,
}


def prompt(positional, keywords):
    return keywords.get("add_generation_prompt", positional)


# --- 2.2 -----------------------------------------------------------------------------------------

TWINS = {
    "the same conversation": lambda turns: turns,
    "only trimmed": lambda turns: [(r, c.strip()) for r, c in turns],
    "system text dropped": lambda turns: turns[1:],
    "one line break": lambda turns: [("user", f"{turns[0][1]}\n{turns[1][1]}"), *turns[2:]],
    "a turn of its own": lambda turns: [("user", turns[0][1]), *turns[1:]],
    "later turns lost": lambda turns: [("user", f"{turns[0][1]}\n\n{turns[1][1]}")],
    "user's white space kept": lambda turns: [
        ("user", f"{turns[0][1]}\n\n{turns[1][1]}"),
        *turns[2:],
    ],
    "no pairs": lambda turns: f"{turns[0][1]}\n\n{turns[1][1]}",
    "as the assistant": lambda turns: [("assistant", turns[0][1]), *turns[1:]],
}


# --- 2.3 -----------------------------------------------------------------------------------------


def counter(template, owner_of=lambda span: span.turn, pick=lambda covered: covered):
    """Count the tokens for which `template(spans covered)` holds."""

    def count(rendered, encoded):
        owners = [span for span in rendered.spans for _ in span.text]
        counts = [0] * (max(s.turn for s in rendered.spans if s.turn is not None) + 1)
        for start, end in encoded.offsets:
            covered = owners[start:end]
            if owner_of(covered[0]) is not None and template(pick(covered)):
                counts[owner_of(covered[0])] += 1
        return counts

    return count


def no_content(covered):
    return all(span.kind != "content" for span in covered)


COUNTERS = {
    "all tokens": counter(lambda covered: True),
    "content tokens": counter(lambda covered: not no_content(covered)),
    "special tokens alone": counter(lambda covered: all(span.special for span in covered)),
    "the first character decides": counter(no_content, pick=lambda covered: covered[:1]),
    "sequence start counted": counter(no_content, owner_of=lambda span: span.turn or 0),
    "one total": lambda rendered, encoded: sum(counter(no_content)(rendered, encoded)),
    "white space not counted": counter(
        lambda covered: no_content(covered) and any(s.kind != "space" for s in covered)
    ),
}


# --- 2.4 -----------------------------------------------------------------------------------------

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.S)


MARKS = ("<|im_start|>", "<|im_end|>")


def strict(text, pattern=TURN, roles=("system", "user", "assistant", "tool"), marks=MARKS):
    """A right parser; every argument turns one of its checks off."""
    turns, position = [], 0
    while position < len(text):
        match = pattern.match(text, position)
        if not match or (roles and match[1] not in roles):
            raise ValueError("no turn")
        if any(mark in match[2] for mark in marks):
            raise ValueError("nested")
        turns.append((match[1], match[2]))
        position = match.end()
    if not turns:
        raise ValueError("empty")
    return turns


PARSERS = {
    "findall skips the rest": TURN.findall,
    "empty text accepted": lambda text: strict(text) if text else [],
    "any word is a role": lambda text: strict(text, roles=None),
    "header inside a content accepted": lambda text: strict(text, marks=MARKS[1:]),
    "end of turn inside a content accepted": lambda text: strict(text, marks=MARKS[:1]),
    "greedy content": lambda text: strict(text, re.compile(TURN.pattern.replace("*?", "*"), re.S)),
    "no line breaks in a content": lambda text: strict(text, re.compile(TURN.pattern)),
    "last line break optional": lambda text: strict(text, re.compile(TURN.pattern + "?", re.S)),
    "contents stripped": lambda text: [(r, c.strip()) for r, c in strict(text)],
    "split": lambda text: [
        tuple(part.split("<|im_end|>")[0].split("\n", 1)) for part in text.split("<|im_start|>")[1:]
    ],
    "None instead of an error": lambda text: strict(text) if TURN.match(text) else None,
}


# --- 2.5 -----------------------------------------------------------------------------------------

MARKERS = FAMILIES["llama3"].special_tokens


def canonical(turns, strip=str.strip, markers=MARKERS):
    return all(c == strip(c) and not any(m in c for m in markers) for _, c in turns)


JUDGES = {
    "always": lambda turns: True,
    "white space alone": lambda turns: canonical(turns, markers=()),
    "markers alone": lambda turns: canonical(turns, strip=lambda text: text),
    "end of turn alone": lambda turns: canonical(turns, markers=["<|eot_id|>"]),
    "right end alone": lambda turns: canonical(turns, strip=str.rstrip),
    "spaces alone": lambda turns: canonical(turns, strip=lambda text: text.strip(" ")),
    "first turn alone": lambda turns: canonical(turns[:1]),
    "anything that looks like a marker": lambda turns: canonical(turns, markers=["<|"]),
    "alternation demanded": lambda turns: (
        canonical(turns) and all(a[0] != b[0] for a, b in zip(turns, turns[1:], strict=False))
    ),
    "empty contents refused": lambda turns: canonical(turns) and all(c for _, c in turns),
    "not a bool": lambda turns: [m for _, c in turns for m in MARKERS if m in c],
}


def test_the_cases_of_2_5_agree_with_the_renderer(solved):
    """What the check expects is what `render` and `parse` do."""
    for content in ["Hi", "Hi ", "\nHi", "a <|eot_id|> b", "<|begin_of_text|>", "<|im_end|>", ""]:
        chat = conversation(("user", content))
        try:
            back = parse(render(chat, "llama3"), "llama3").messages == chat.messages
        except TemplateError:
            back = False
        assert solved["is_canonical_llama3"]([("user", content)]) is back


# --- 2.6 -----------------------------------------------------------------------------------------


def marked(text, tokens, count=0, place=lambda m: m[0] + GUARD + m[1:]):
    """Insert a GUARD into the markers; origins by walking through the result."""
    pattern = "|".join(map(re.escape, tokens))
    safe = re.sub(pattern, lambda match: place(match[0]), text, count=count)
    positions = iter(range(len(safe)))
    return safe, [None if character == GUARD else next(positions) for character in safe]


def deleted(text, tokens):
    for token in tokens:
        text = text.replace(token, "")
    return text, list(range(len(text)))


def escaped(text, tokens):
    safe = text.replace("<", "&lt;")
    return safe, list(range(len(safe)))


NEUTRALISERS = {
    "deleted": deleted,
    "escaped": escaped,
    "unchanged": lambda text, tokens: (text, list(range(len(text)))),
    "in front of the marker": lambda text, tokens: marked(text, tokens, place=lambda m: GUARD + m),
    "first marker alone": lambda text, tokens: marked(text, tokens, count=1),
    "first kind of marker alone": lambda text, tokens: marked(text, tokens[:1]),
    "behind every <": lambda text, tokens: marked(text, ["<"], place=lambda m: m + GUARD),
    "origins not shifted": lambda text, tokens: (
        (safe := marked(text, tokens)[0]),
        list(range(len(safe))),
    ),
    "origins without the guards": lambda text, tokens: (
        marked(text, tokens)[0],
        list(range(len(text))),
    ),
    "no origins": lambda text, tokens: marked(text, tokens)[0],
}


def test_deleting_markers_can_make_one():
    """The trap that exercise 2.6 warns of."""
    assert deleted("<|eot<|eot_id|>_id|>", ["<|eot_id|>"])[0] == "<|eot_id|>"


WRONG = {
    "render_chatml": RENDERERS,
    "gemma_twin": TWINS,
    "template_tokens_per_turn": COUNTERS,
    "parse_chatml": PARSERS,
    "is_canonical_llama3": JUDGES,
    "neutralise": NEUTRALISERS,
}


def test_the_helpers_are_right_where_nothing_is_changed():
    """So that each wrong answer is wrong in the one way that its name says."""
    e02.render_chatml(lambda t, p=False, **k: chatml(t, prompt(p, k)))
    e02.template_tokens_per_turn(counter(no_content))
    e02.parse_chatml(strict)
    e02.is_canonical_llama3(canonical)
    e02.neutralise(marked)


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, wrong in WRONG.items() for mistake in wrong]
)
def test_a_wrong_answer_is_refused_in_one_line(name, mistake):
    with pytest.raises(CheckFailed) as caught:
        getattr(e02, name)(WRONG[name][mistake])
    assert not isinstance(caught.value, NotAttempted)
    message = str(caught.value)
    assert message.startswith(f"Exercise 2.{NAMES.index(name) + 1}: ") and "\n" not in message
    assert ("Hint: " in message or " raised " in message) and len(message) < 600, len(message)
