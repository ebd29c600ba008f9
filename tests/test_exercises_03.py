"""The checks of lecture 03: each accepts the solution and refuses plausible wrong answers."""

import re

import pytest
from exercise_cells import solved, stubs

from course_utils.check import e03
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.examples import WALKTHROUGH
from tools.build import ROOT

BOS, OPEN, CLOSE, EOT = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


SOLVED, STUBS = solved("03_render_by_hand"), stubs("03_render_by_hand")
EXERCISES = [
    "tokens_by_hand",
    "chatml_counts",
    "graded_positions",
    "trained_positions",
    "diagnose",
    "predict_counts",
    "shortest_reply",
]


@pytest.mark.parametrize("name", EXERCISES)
def test_solution_passes_and_stub_is_not_attempted(name, capsys):
    getattr(e03, name)(SOLVED[name])
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(NotAttempted):
        getattr(e03, name)(STUBS[name])


def hand(*, bos=(BOS,), header_space="\n\n", end=EOT, more=()):
    user = [OPEN, "user", CLOSE, header_space, "Name", "a", "colour.", EOT]
    reply = [OPEN, "assistant", CLOSE, header_space, "Blue.", end]
    return [token for token in [*bos, *user, *reply, *more] if token]


def chatml(graded):
    """Counts that are right but for the graded tokens, which `graded` picks."""

    def counts(chat):
        from course_utils import render

        spans = render(chat, "chatml").spans
        size = {True: lambda text: len(text.split()), False: lambda text: 1}
        return SOLVED["chatml_counts"](chat) | {
            "graded": sum(size[s.kind == "content"](s.text) for s in spans if graded(s))
        }

    return counts


def graded(tokens):
    return SOLVED["graded_positions"](tokens)


def last_turn(tokens):
    last = len(tokens) - 1 - tokens[::-1].index("assistant")
    return [p for p in graded(tokens) if p > last]


def whole_turns(tokens):
    found, role = [], None
    for p, token in enumerate(tokens):
        role = tokens[p + 1] if token == OPEN else role
        found += [p] * (role == "assistant")
    return found


def after_assistant(tokens):
    """Takes the word "assistant" for a header wherever it stands."""
    found, inside = [], False
    for p, token in enumerate(tokens):
        if token == "assistant":
            inside, start = True, p + 3
        elif inside and p >= start:
            found.append(p)
            inside = token != EOT
    return found


WRONG = {
    "tokens_by_hand": {
        "no sequence start": (lambda: hand(bos=()), "sequence start"),
        "double BOS": (lambda: hand(bos=(BOS, BOS)), "stands once"),
        "single line break": (lambda: hand(header_space="\n"), "double line break"),
        "reply without end": (lambda: hand(end=""), "ends with"),
        "generation prompt": (lambda: hand(more=[OPEN, "assistant", CLOSE, "\n\n"]), "complete"),
    },
    "chatml_counts": {
        "end of turn masked": (chatml(lambda s: s.generated and s.kind != "eot"), "<|im_end|>"),
        "header graded": (chatml(lambda s: s.role == "assistant" and s.kind != "gap"), "header"),
        "gap graded": (
            chatml(lambda s: s.generated or (s.role, s.kind) == ("assistant", "gap")),
            "line break",
        ),
        "spans, not words": (
            lambda chat: SOLVED["chatml_counts"](chat) | {"tokens": 6 * len(chat)},
            "number of words",
        ),
        "with a sequence start": (
            lambda chat: SOLVED["chatml_counts"](chat) | {"special": 2 * len(chat) + 1},
            "span.special",
        ),
    },
    "graded_positions": {
        "end of turn masked": (lambda t: [p for p in graded(t) if t[p] != EOT], "to stop"),
        "last turn only": (last_turn, "every assistant turn"),
        "off by one": (lambda t: [p - 1 for p in graded(t)], "header is masked"),
        "header graded": (whole_turns, "header is masked"),
        "every end of turn": (
            lambda t: sorted(set(graded(t)) | {p for p, x in enumerate(t) if x == EOT}),
            "only the assistant's end of turn",
        ),
        "the word assistant": (after_assistant, "masked"),
    },
    "trained_positions": {
        "label positions": (
            lambda labels: [i for i, x in enumerate(labels) if x != -100],
            "one earlier",
        ),
        "the other way": (
            lambda labels: [
                i + 1 for i, x in enumerate(labels) if x != -100 and i + 1 < len(labels)
            ],
            "wrong way",
        ),
        "position -1": (
            lambda labels: [i - 1 for i, x in enumerate(labels) if x != -100],
            "position 0",
        ),
        "truth of the label": (
            lambda labels: [i for i in range(len(labels) - 1) if labels[i + 1] > 0],
            "not -100",
        ),
        "the last one wraps": (
            lambda labels: [i for i in range(len(labels)) if labels[(i + 1) % len(labels)] != -100],
            "label at i + 1",
        ),
    },
    "diagnose": {
        "counts only": (
            lambda tokens, mask: "right" if sum(mask) == len(graded(tokens)) else "no end",
            "moved to the left",
        ),
        "always right": (lambda tokens, mask: "right", "moved to the left"),
        "only looks at the end": (
            lambda tokens, mask: (
                SOLVED["diagnose"](tokens, mask) if mask[graded(tokens)[-1]] else "no end"
            ),
            "moved to the left",
        ),
        "header for early": (
            lambda tokens, mask: SOLVED["diagnose"](tokens, mask).replace("early", "header"),
            "moved to the left",
        ),
    },
    "predict_counts": {
        "no sequence start": (
            lambda turns: (
                SOLVED["predict_counts"](turns)[0] - 1,
                *SOLVED["predict_counts"](turns)[1:],
            ),
            "sequence start",
        ),
        "end of turn masked": (
            lambda turns: (
                *SOLVED["predict_counts"](turns)[:2],
                sum(words for role, words in turns if role == "assistant"),
            ),
            "end of turn",
        ),
        "last turn only": (
            lambda turns: (*SOLVED["predict_counts"](turns)[:2], turns[-1][1] + 1),
            "every assistant turn",
        ),
        "two special per turn": (
            lambda turns: (SOLVED["predict_counts"](turns)[0], 1 + 2 * len(turns), 0),
            "opener, closer and end of turn",
        ),
    },
    "shortest_reply": {
        "end of turn masked": (
            lambda turns, p: SOLVED["shortest_reply"](turns, p) + 1,
            "one word off",
        ),
        "rounded down": (
            lambda turns, p: max(0, SOLVED["shortest_reply"](turns, p) - 1),
            "one word off",
        ),
        "earlier replies forgotten": (
            lambda turns, p: SOLVED["shortest_reply"]([("user", w) for _, w in turns], p),
            "earlier turns",
        ),
        "below zero": (
            lambda turns, p: -(-(p * (6 + sum(5 + w for _, w in turns)) - 100) // (100 - p)),
            "fewer than 0",
        ),
        "no error at 100": (
            lambda turns, p: SOLVED["shortest_reply"](turns, p) if p < 100 else 10**9,
            "never graded",
        ),
    },
}


@pytest.mark.parametrize(("name", "wrong"), [(n, w) for n in WRONG for w in WRONG[n]])
def test_wrong_answer_is_refused_with_a_reason(name, wrong):
    answer, reason = WRONG[name][wrong]
    with pytest.raises(CheckFailed) as refused:
        getattr(e03, name)(answer)
    message = str(refused.value)
    assert not isinstance(refused.value, NotAttempted)
    assert "\n" not in message and "Hint: " in message
    assert reason in message.split("Hint: ")[1], message


def test_every_exercise_has_wrong_answers():
    assert set(WRONG) == set(EXERCISES) and all(len(wrong) >= 3 for wrong in WRONG.values())


def test_pencil_answers_are_what_the_renderer_gives():
    """The folded answers of the lecture are typed; they must stay what its cells compute."""
    tokens, graded, _ = e03.llama3(WALKTHROUGH)
    lecture = (ROOT / "source" / "03_render_by_hand.py").read_text("utf-8")
    block = re.search(r"^# ```text\n(.*?)^# ```", lecture, re.M | re.S)[1]
    typed = re.findall(r"(\d+) (\S+)", block.replace("# ", ""))
    assert typed == [(str(p), tokens[p].replace("\n", "\\n")) for p in range(1, 10)]
    assert tokens[10] == tokens[22] == OPEN and tokens[9] == tokens[21] == tokens[35] == EOT
    assert [p for p, is_graded in enumerate(graded) if is_graded] == list(range(26, 36))
