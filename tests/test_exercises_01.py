"""Lecture 01's checks accept the right answer and refuse plausible wrong ones in one line."""

import math
import random
import re

import pytest
from exercise_cells import solved, stubs

from course_utils.check import e01
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.comparison import wilson
from course_utils.miniweb import facts
from course_utils.replies import next_token_probabilities
from course_utils.tokenizers import encode_untrusted, special_tokens

SOLVED, STUBS = solved("01_a_base_model_has_no_turns"), stubs("01_a_base_model_has_no_turns")
ANSWER = {
    "kind_of": ("kind_of",),
    "shares": ("shares",),
    "surprise": ("surprise",),
    "p_special": ("p_special",),
    "newsletter": ("newsletter",),
    "few_shot": ("few_shot_prompt", "cut"),
}


@pytest.mark.parametrize("check", ANSWER)
def test_solution_passes_and_stub_is_not_attempted(check, capsys):
    getattr(e01, check)(*(SOLVED[name] for name in ANSWER[check]))
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(NotAttempted):
        getattr(e01, check)(*(STUBS[name] for name in ANSWER[check]))


# --- 1.1 -----------------------------------------------------------------------------------------


def kind_of(text, *, first=True, order="bpq", colon=r"\S+:(?=\s|$)", answers=("A:", "Answer:")):
    """The right sorter; every argument breaks one of its rules."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = (lines[0] if first else lines[-1]) if lines else ""
    if not line:
        return "nothing"
    label = re.match(colon, line)
    rules = {
        "b": ("blank", set(line) == {"_"}),
        "p": ("post", line.startswith("Posted by ") or (label and label[0] not in answers)),
        "q": ("question", line.endswith("?")),
    }
    return next((kind for kind, fits in map(rules.get, order) if fits), "statement")


KIND_OF = {
    "empty first line": (lambda text: kind_of(text.split("\n")[0]), "that is not empty"),
    "last line": (lambda text: kind_of(text, first=False), "first line"),
    "any question mark": (
        lambda text: "question" if "?" in text.split("\n")[0] else kind_of(text),
        "end the line",
    ),
    "questions before posts": (lambda text: kind_of(text, order="bqp"), "post comes first"),
    "colon anywhere": (lambda text: kind_of(text, colon=r".*:"), "first word's colon"),
    "answers taken for posts": (lambda text: kind_of(text, answers=()), "A: or Answer:"),
    "begins with a blank": (
        lambda text: "blank" if text.startswith("__") else kind_of(text),
        "underscores only",
    ),
    "no blank in an indented line": (
        lambda text: "statement" if text.startswith(" _") else kind_of(text),
        "white space around",
    ),
    "nothing is an error": (lambda text: kind_of(text.strip().splitlines()[0]), None),
    "nothing returned": (lambda text: None, "no other rule"),
}

# --- 1.2 -----------------------------------------------------------------------------------------


def wald(count, n):
    p = count / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return max(0.0, p - half), min(1.0, p + half)


def shares(verdicts, kinds, *, interval=wilson, scale=1.0, n=len, strict=True):
    if strict and set(verdicts) - set(kinds):
        raise ValueError
    total = n(verdicts)
    counts = {kind: verdicts.count(kind) for kind in kinds}
    return {
        kind: (scale * c / total, *(scale * end for end in interval(c, total)))
        for kind, c in counts.items()
    }


SHARES = {
    "kinds that never came left out": (
        lambda v, k: {kind: s for kind, s in shares(v, k).items() if s[0]},
        "never came",
    ),
    "the normal approximation": (lambda v, k: shares(v, k, interval=wald), "wilson"),
    "percentages": (lambda v, k: shares(v, k, scale=100.0), "between 0 and 1"),
    "share alone": (lambda v, k: {kind: v.count(kind) / len(v) for kind in k}, "three numbers"),
    "pair in a pair": (
        lambda v, k: {kind: (v.count(kind) / len(v), wilson(v.count(kind), len(v))) for kind in k},
        "three numbers",
    ),
    "n is the number of kinds": (
        lambda v, k: shares(v, k, interval=lambda c, n: wilson(c, max(c, len(k)))),
        "n all verdicts",
    ),
    "misspelt verdicts dropped": (lambda v, k: shares(v, k, strict=False), "not among the kinds"),
    "sorted by share": (
        lambda v, k: dict(sorted(shares(v, k).items(), key=lambda item: -item[1][0])),
        "go through the kinds",
    ),
    "counts": (
        lambda v, k: {kind: (v.count(kind), *wilson(v.count(kind), len(v))) for kind in k},
        "the share is count / n",
    ),
    "zero without an interval": (
        lambda v, k: {kind: s if s[0] else (0.0, 0.0, 0.0) for kind, s in shares(v, k).items()},
        "no proof of never",
    ),
    "nothing returned": (lambda v, k: None, "a dict"),
}

# --- 1.3 -----------------------------------------------------------------------------------------


def surprise(after, speakers, *, log=math.log2, shift=1, normal=True, first_mean=False):
    """The right surprise; every argument breaks one of its parts."""
    came = []
    for row, name in zip(after, speakers[shift:], strict=False):
        came.append(row.get(name, 0.0) / (sum(row.values()) if normal else 1))
    if first_mean:
        came = [sum(came) / len(came)]
    return sum(-log(p) if p else math.inf for p in came) / len(came)


def entropy(after, speakers):
    rows = [[p / sum(row.values()) for p in row.values()] for row in after]
    return sum(-p * math.log2(p) for row in rows for p in row if p) / len(rows)


SURPRISE = {
    "nats": (lambda a, s: surprise(a, s, log=math.log), "base 2"),
    "who spoke last": (lambda a, s: surprise(a, s, shift=0), "second speaker"),
    "not normalised": (lambda a, s: surprise(a, s, normal=False), "the rest is no name"),
    "mean first": (lambda a, s: surprise(a, s, first_mean=True), "the mean of the turns"),
    "entropy": (entropy, "second speaker"),
    "no minus sign": (lambda a, s: -surprise(a, s), "1 bit"),
    "a sum": (lambda a, s: surprise(a, s) * len(a), "the mean"),
    "log of zero": (
        lambda a, s: surprise(a, s, log=lambda p: math.log2(p)) if surprise(a, s) < 99 else 1 / 0,
        None,
    ),
    "zero left out": (lambda a, s: min(surprise(a, s), 99.0), "math.inf"),
    "missing name": (
        lambda a, s: (
            sum(
                -math.log2(row[n] / sum(row.values())) if row[n] else math.inf
                for row, n in zip(a, s[1:], strict=True)
            )
            / len(a)
        ),
        None,
    ),
    "nothing returned": (lambda a, s: None, "1 bit"),
}

# --- 1.4 -----------------------------------------------------------------------------------------


def of_rows(combine):
    """An answer that gets all rows of probabilities and the ids of the special tokens."""

    def answer(model, tokenizer, text):
        import torch

        ids = torch.tensor([encode_untrusted(tokenizer, text)])
        special = [tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)]
        return combine(model(input_ids=ids).logits[0].float(), special, tokenizer)

    return answer


def with_start(model, tokenizer, text):
    ids = [tokenizer.eos_token_id, *encode_untrusted(tokenizer, text)]
    return next_token_probabilities(model, ids)[tokenizer.all_special_ids].sum().item()


P_SPECIAL = {
    "end of text alone": (
        of_rows(lambda rows, special, t: rows[-1].softmax(-1)[t.eos_token_id].item()),
        "all special tokens",
    ),
    "not the last row": (
        of_rows(lambda rows, special, t: rows[0].softmax(-1)[special].sum().item()),
        "last row",
    ),
    "the row before": (
        of_rows(lambda rows, special, t: rows[-2].softmax(-1)[special].sum().item()),
        "last row",
    ),
    "mean over the rows": (
        of_rows(lambda rows, special, t: rows.softmax(-1)[:, special].sum(-1).mean().item()),
        "last row",
    ),
    "no softmax": (of_rows(lambda rows, special, t: rows[-1][special].sum().item()), "all special"),
    "softmax over the special ones": (
        of_rows(lambda rows, special, t: rows[-1][special].softmax(-1).sum().item()),
        "all special",
    ),
    "the largest": (
        of_rows(lambda rows, special, t: rows[-1].softmax(-1)[special].max().item()),
        "all special",
    ),
    "largest, scaled": (
        of_rows(lambda rows, special, t: len(special) * rows[-1].softmax(-1)[special].mean() / 2),
        "all special",
    ),
    "something in front": (with_start, None),
    "nothing returned": (lambda model, tokenizer, text: None, "all special"),
}

# --- 1.5 -----------------------------------------------------------------------------------------


def page(draw, known, number, *, rule=None):
    """The right newsletter, or one that breaks the named rule."""
    fixed_too = [fact for fact in known if fact.telling != "absent"]
    askable = [fact for fact in known if fact.telling == "paraphrased"]
    asked = draw.choice(fixed_too if rule == "asks about fixed" else askable)
    told = list(known if rule == "tells absent" else fixed_too)
    if rule == "prefers paraphrased":
        found = sorted(draw.sample(told, len(told)), key=lambda fact: fact.telling == "fixed")
        found = [fact for fact in found if fact is not asked][:number]
    elif rule == "twice":
        found = draw.choices([fact for fact in told if fact is not asked], k=number)
    elif rule == "statements first":
        found = draw.sample(told, number)
        left = [fact for fact in told if fact not in found]
        asked = next((fact for fact in left if fact.telling == "paraphrased"), left[0])
    else:
        found = draw.sample([f for f in told if f is not asked or rule == "answered"], number)
    lines = []
    for fact in found:
        wordings = fact.wordings or fact.relation.statements
        if rule == "any wording":
            wordings = fact.relation.statements
        lines.append(f"- {fact.fill(wordings[0] if rule == 'first' else draw.choice(wordings))}")
    question = asked.fill(draw.choice(asked.relation.questions))
    return "Did you know?\n\n" + "\n".join(lines) + f"\n\nQuestion of the week: {question}"


def breaks(rule):
    return lambda draw, known, number: page(draw, known, number, rule=rule)


def same_question(draw, known, number):
    """Always asks about the first fact that can be asked about."""
    first = next(fact for fact in known if fact.telling == "paraphrased")
    others = [fact for fact in known if fact is not first and fact.telling != "absent"]
    lines = [f"- {f.fill(draw.choice(f.wordings))}\n" for f in draw.sample(others, number)]
    return f"Did you know?\n\n{''.join(lines)}\nQuestion of the week: {first.question}"


def from_the_module(draw, known, number):
    """Seeds the module's generator from `draw`: the same page for the same seed, but not alone."""
    random.seed(draw.random())
    return page(random, known, number)


NEWSLETTER = {
    "absent facts told": (breaks("tells absent"), "absent from the web"),
    "fixed facts in any wording": (breaks("any wording"), "has one sentence"),
    "always the first wording": (breaks("first"), "anew each time"),
    "fixed facts asked about": (breaks("asks about fixed"), "paraphrased facts only"),
    "statements drawn first": (breaks("statements first"), "paraphrased facts only"),
    "answered above": (breaks("answered"), "question first"),
    "a fact twice": (breaks("twice"), "different ones"),
    "never seeded": (lambda draw, *rest: page(random, *rest), "from `draw` alone"),
    "the module seeded": (from_the_module, "from `draw` alone"),
    "fixed facts last": (breaks("prefers paraphrased"), "fixed ones as well"),
    "one question for all": (same_question, "the fact that is asked about"),
    "a fact less": (lambda draw, known, n: page(draw, known, n - 1 or 1), "`number` facts"),
    "a line break at the end": (lambda *a: page(*a) + "\n", "no line break"),
    "its own words": (lambda *a: page(*a).replace("- ", "- Yes: ", 1), "change nothing"),
    "a list": (lambda *a: page(*a).splitlines(), "one string"),
    "nothing returned": (lambda *a: None, "one string"),
}

# --- 1.6 -----------------------------------------------------------------------------------------


def prompt(examples, question, *, answer="{value}", tell="A: ", end="A:", between="\n", head=""):
    """A right prompt; every argument changes its form."""
    shown = ""
    for fact in examples:
        told = answer.replace("{value}", fact.value).replace("{answer}", fact.answer)
        shown += f"Q: {fact.question}\n{tell}{told}\n{between}"
    return f"{head}{shown}Q: {question}\n{end}"


def few(**changes):
    return lambda examples, question: prompt(examples, question, **changes)


def cut(text):
    return SOLVED["cut"](text)


FEW_SHOT = {
    "a space at the end": (few(end="A: "), cut, "white space"),
    "a line break at the end": (few(end="A:\n"), cut, "white space"),
    "no place for the answer": (few(end=""), cut, "'A:'"),
    "examples without answers": (few(answer=""), cut, "fact.value or fact.answer"),
    "another label": (few(tell="Answer: ", end="Answer:"), cut, "'A:'"),
    "bare questions": (lambda examples, question: question, cut, "lines that begin with"),
    "examples left out": (lambda e, q: prompt([], q), cut, "lines that begin with"),
    "question first": (
        lambda e, q: f"Q: {q}\n" + prompt(e, q).removesuffix(f"Q: {q}\nA:") + "A:",
        cut,
        "lines that begin with",
    ),
    "an answer put in": (few(end="A: Poseidonis"), cut, "let the model write"),
    "nothing returned": (lambda e, q: None, cut, "one string"),
    "cut at any Q:": (prompt, lambda text: text.split("Q:")[0].strip(), "begins with 'Q:'"),
    "cut at any line with Q": (
        prompt,
        lambda text: re.split(r"^Q", text.split("\n\n\n")[0], flags=re.M)[0].strip(),
        "begins with 'Q:'",
    ),
    "cut at a line break and Q:": (
        prompt,
        lambda text: text.split("\n\n\n")[0].split("\nQ:")[0].strip(),
        "answered nothing",
    ),
    "first line alone": (
        prompt,
        lambda text: "" if text.startswith("Q:") else text.strip().split("\n")[0].strip(),
        "begins with 'Q:'",
    ),
    "on into the next page": (
        prompt,
        lambda text: re.split(r"^Q:", text, flags=re.M)[0].strip(),
        "end the page",
    ),
    "cut at an empty line": (
        prompt,
        lambda text: re.split(r"^Q:", text, flags=re.M)[0].split("\n\n")[0].strip(),
        "begins with 'Q:'",
    ),
    "not cut": (prompt, lambda text: text.strip(), "before the next 'Q:'"),
    "the last answer": (
        prompt,
        lambda text: text.split("A:")[-1].strip(),
        "before the next 'Q:'",
    ),
}

WRONG = {
    "kind_of": KIND_OF,
    "shares": SHARES,
    "surprise": SURPRISE,
    "p_special": P_SPECIAL,
    "newsletter": NEWSLETTER,
    "few_shot": FEW_SHOT,
}


@pytest.mark.parametrize(("check", "wrong"), [(c, w) for c in WRONG for w in WRONG[c]])
def test_wrong_answer_is_refused_with_a_reason(check, wrong):
    *answer, reason = WRONG[check][wrong]
    with pytest.raises(CheckFailed) as refused:
        getattr(e01, check)(*answer)
    message = str(refused.value)
    assert not isinstance(refused.value, NotAttempted)
    assert "\n" not in message and len(message) < 600, message
    if reason is None:
        assert " raised " in message, message
    else:
        assert reason in message.split("Hint: ")[1], message


def test_every_exercise_has_wrong_answers():
    assert set(WRONG) == set(ANSWER) and all(len(wrong) >= 3 for wrong in WRONG.values())


# --- more than one right answer ------------------------------------------------------------------


def test_special_ids_and_all_rows_at_once_are_accepted():
    def answer(model, tokenizer, text):
        import torch

        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = model(input_ids=ids.to(model.device)).logits[0, -1].float().softmax(-1)
        return p[tokenizer.all_special_ids].sum()

    e01.p_special(answer)


def test_facts_in_the_tasks_are_told_as_the_tasks_say():
    known = {(fact.relation.name, fact.subject): fact for fact in facts()}
    for name in (("capital", "Kenya"), ("french", "water"), ("capital", "Portugal")):
        assert known[name].telling == "paraphrased"
    wasps = known["animal_sound", "wasps"]
    assert wasps.telling == "fixed" and not known["capital", "Portugal"].asked
    assert wasps.fill(*wasps.wordings) == "The verb for the sound of wasps is buzz."
    assert known["french", "water"].question == "What is the French word for water?"
