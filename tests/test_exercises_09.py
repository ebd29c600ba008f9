"""Lecture 09's checks accept the right answer and refuse plausible wrong ones in one line."""

import math
import random
import re

import jupytext
import pytest

from course_utils.check import e09
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.comparison import wilson
from tools.build import MARKER, ROOT

SOURCE = ROOT / "source" / "09_base_against_sft.exercises.py"
NAMES = [
    "stop_rate",
    "wilson_interval",
    "certainty",
    "opens_a_turn",
    "paired_bootstrap",
    "relative_change",
    "fair_comparison",
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
    getattr(e09, name)(solved[name])
    assert capsys.readouterr().out.endswith("passed\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_attempted(name):
    def stub(*args, **kwargs):
        raise NotImplementedError

    with pytest.raises(NotAttempted):
        getattr(e09, name)(stub)


# --- 9.1 -----------------------------------------------------------------------------------------

STOP_RATES = {
    "the last id decides": lambda rows, stops: sum(r[-1] in stops for r in rows) / len(rows),
    "the first stop token alone": lambda rows, stops: sum(stops[0] in r for r in rows) / len(rows),
    "padding decides": lambda rows, stops: sum(0 in r for r in rows) / len(rows),
    "padding at the end decides": lambda rows, stops: sum(r[-1] == 0 for r in rows) / len(rows),
    "counted per id": lambda rows, stops: sum(i in stops for r in rows for i in r) / len(rows),
    "a percentage": lambda rows, stops: (
        100 * sum(any(i in stops for i in r) for r in rows) / len(rows)
    ),
    "a count": lambda rows, stops: sum(any(i in stops for i in r) for r in rows),
    "the other way round": lambda rows, stops: (
        sum(not any(i in stops for i in r) for r in rows) / len(rows)
    ),
    "nothing returned": lambda rows, stops: None,
}


# --- 9.2 -----------------------------------------------------------------------------------------


def wald(successes, n, z=1.96):
    p = successes / n
    half = z * math.sqrt(p * (1 - p) / n)
    return max(0, p - half), min(1, p + half)


def wilson_with(successes, n, z=1.96, *, centre=True, half=True, inside=True, root=True):
    """Wilson's interval; every argument breaks one part of the formula."""
    p = successes / n
    middle = p + z * z / (2 * n) if centre else p
    spread = p * (1 - p) / n + (z * z / (4 * n * n) if inside else 0)
    spread = z * (math.sqrt(spread) if root else spread)
    denominator = 1 + z * z / n
    spread /= denominator if half else 1
    return max(0.0, middle / denominator - spread), min(1.0, middle / denominator + spread)


INTERVALS = {
    "the normal approximation": wald,
    "half width not divided": lambda s, n, z=1.96: wilson_with(s, n, z, half=False),
    "centre not shifted": lambda s, n, z=1.96: wilson_with(s, n, z, centre=False),
    "nothing added under the root": lambda s, n, z=1.96: wilson_with(s, n, z, inside=False),
    "ends outside 0 to 1": lambda s, n, z=1.96: tuple(e - 1e-9 for e in wilson(s, n, z)),
    "root forgotten": lambda s, n, z=1.96: wilson_with(s, n, z, root=False),
    "a fixed z": lambda s, n, z=1.96: wilson(s, n),
    "percentages": lambda s, n, z=1.96: tuple(100 * end for end in wilson(s, n, z)),
    "high before low": lambda s, n, z=1.96: wilson(s, n, z)[::-1],
    "one number": lambda s, n, z=1.96: wilson(s, n, z)[1],
    "nothing returned": lambda s, n, z=1.96: None,
}


# --- 9.3 -----------------------------------------------------------------------------------------


def entropy(p, log=math.log, sign=-1):
    return sign * sum(x * log(x) for x in p if x > 0)


CERTAINTIES = {
    "bits": lambda p: (entropy(p, math.log2), max(p)),
    "no minus sign": lambda p: (entropy(p, sign=1), max(p)),
    "log of zero": lambda p: (-sum(x * math.log(x) for x in p), max(p)),
    "perplexity": lambda p: (math.exp(entropy(p)), max(p)),
    "the likeliest token's surprise": lambda p: (-math.log(max(p)), max(p)),
    "position of the likeliest": lambda p: (entropy(p), p.index(max(p))),
    "divided by the vocabulary": lambda p: (entropy(p) / len(p), max(p)),
    "the other way round": lambda p: (max(p), entropy(p)),
    "entropy alone": entropy,
    "nothing returned": lambda p: None,
}


# --- 9.4 -----------------------------------------------------------------------------------------

ROLES = "system|user|assistant|human|model"
MARKERS = ("<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "[INST]")


def opens(reply, pattern=rf"^[ \t]*({ROLES})[ \t]*:", flags=re.I | re.M, markers=MARKERS):
    """A right detector; every argument breaks one of its rules."""
    return any(marker in reply for marker in markers) or bool(re.search(pattern, reply, flags))


DETECTORS = {
    "first line alone": lambda reply: opens(reply, flags=re.I),
    "case matters": lambda reply: opens(reply, flags=re.M),
    "anywhere in a line": lambda reply: opens(reply, rf"({ROLES})[ \t]*:"),
    "no colon needed": lambda reply: opens(reply, rf"^[ \t]*({ROLES})\b"),
    "longer words, too": lambda reply: opens(reply, rf"^[ \t]*({ROLES})\w*[ \t]*:"),
    "colon in the next line": lambda reply: opens(reply, rf"^\s*({ROLES})\s*:"),
    "colon later in the line": lambda reply: opens(reply, rf"^[ \t]*({ROLES})\b.*:"),
    "no spaces allowed": lambda reply: opens(reply, rf"^({ROLES}):"),
    "text needed after the colon": lambda reply: opens(reply, rf"^[ \t]*({ROLES})[ \t]*: "),
    "markers alone": lambda reply: any(marker in reply for marker in MARKERS),
    "no markers": lambda reply: opens(reply, markers=()),
    "one family's markers": lambda reply: opens(reply, markers=MARKERS[:1]),
    "user and assistant alone": lambda reply: opens(reply, r"^[ \t]*(user|assistant)[ \t]*:"),
    "the match itself": lambda reply: re.search(rf"^[ \t]*({ROLES})[ \t]*:", reply, re.I | re.M),
}


# --- 9.5 -----------------------------------------------------------------------------------------


def bootstrap_with(before, after, draws=2000, seed=0, *, draw=None, low=0.025, sign=1):
    """A paired bootstrap of which `draw`, the quantiles or the sign can be wrong."""
    generator = random.Random(seed)
    pairs = list(zip(before, after, strict=True))
    draw = draw or (
        lambda generator, pairs: mean(b - a for a, b in generator.choices(pairs, k=len(pairs)))
    )
    means = sorted(sign * draw(generator, pairs) for _ in range(draws))
    return means[int(low * draws)], means[int((1 - low) * draws) - 1]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def unpaired(generator, pairs):
    before = generator.choices([a for a, _ in pairs], k=len(pairs))
    after = generator.choices([b for _, b in pairs], k=len(pairs))
    return mean(after) - mean(before)


BOOTSTRAPS = {
    "unpaired": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, seed, draw=unpaired),
    "before - after": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, seed, sign=-1),
    "a 50 % interval": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, seed, low=0.25),
    "all means": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, seed, low=0),
    "without replacement": lambda a, b, draws=2000, seed=0: bootstrap_with(
        a, b, draws, seed, draw=lambda g, p: mean(y - x for x, y in g.sample(p, len(p)))
    ),
    "single differences": lambda a, b, draws=2000, seed=0: bootstrap_with(
        a, b, draws, seed, draw=lambda g, p: (lambda pair: pair[1] - pair[0])(g.choice(p))
    ),
    "half of the prompts": lambda a, b, draws=2000, seed=0: bootstrap_with(
        a, b, draws, seed, draw=lambda g, p: mean(y - x for x, y in g.choices(p, k=len(p) // 2))
    ),
    "mean of after": lambda a, b, draws=2000, seed=0: bootstrap_with(
        a, b, draws, seed, draw=lambda g, p: mean(y for _, y in g.choices(p, k=len(p)))
    ),
    "a sum": lambda a, b, draws=2000, seed=0: bootstrap_with(
        a, b, draws, seed, draw=lambda g, p: sum(y - x for x, y in g.choices(p, k=len(p)))
    ),
    "seed ignored": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws),
    "never seeded": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, None),
    "draws ignored": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, seed=seed),
    "high before low": lambda a, b, draws=2000, seed=0: bootstrap_with(a, b, draws, seed)[::-1],
    "nothing returned": lambda a, b, draws=2000, seed=0: None,
}


# --- 9.6 -----------------------------------------------------------------------------------------


def change_with(
    before, after, *, check="both", owner=None, exact=True, ratio=None, root=True, key=int
):
    """A right answer; every argument breaks one part of it."""
    shapes = [{n: tuple(t.shape) for n, t in d.items()} for d in (before, after)]
    if check == "both" and shapes[0] != shapes[1]:
        raise ValueError("another architecture")
    if check == "names" and set(before) != set(after):
        raise ValueError("other names")
    layers = sorted({int(n.split(".")[2]) for n in before if ".layers." in n})
    owner = owner or (lambda name, layer: name.startswith(f"model.layers.{layer}."))
    result = {}
    for layer in layers:
        names = [n for n in before if owner(n, layer)]
        old = [before[n].double() if exact else before[n] for n in names]
        new = [after[n].double() if exact else after[n] for n in names]
        if ratio:
            result[key(layer)] = ratio(old, new)
            continue
        power = 0.5 if root else 1
        moved = sum((b - a).square().sum().item() for a, b in zip(old, new, strict=True))
        result[key(layer)] = (moved / sum(a.square().sum().item() for a in old)) ** power
    return result


def ratios(old, new):
    return [((b - a).norm() / a.norm()).item() for a, b in zip(old, new, strict=True)]


CHANGES = {
    "mean of the tensors' ratios": lambda a, b: change_with(
        a, b, ratio=lambda o, n: mean(ratios(o, n))
    ),
    "difference of the norms": lambda a, b: change_with(
        a,
        b,
        ratio=lambda o, n: abs(
            math.sqrt(sum(t.square().sum().item() for t in n))
            / math.sqrt(sum(t.square().sum().item() for t in o))
            - 1
        ),
    ),
    "absolute change": lambda a, b: change_with(
        a,
        b,
        ratio=lambda o, n: math.sqrt(
            sum((y - x).square().sum().item() for x, y in zip(o, n, strict=True))
        ),
    ),
    "squares, no root": lambda a, b: change_with(a, b, root=False),
    "layer 1 is layer 10, too": lambda a, b: change_with(
        a, b, owner=lambda name, layer: name.startswith(f"model.layers.{layer}")
    ),
    "keys are texts": lambda a, b: change_with(a, b, key=str),
    "names not compared": lambda a, b: change_with(a, b, check=None),
    "shapes not compared": lambda a, b: change_with(a, b, check="names"),
    "summed in bfloat16": lambda a, b: change_with(a, b, exact=False),
    "the embedding as layer -1": lambda a, b: {-1: 0.0, **change_with(a, b)},
    "one number": lambda a, b: sum(change_with(a, b).values()),
    "nothing returned": lambda a, b: None,
}


# --- 9.7 -----------------------------------------------------------------------------------------


def compare_with(
    rows, stop_ids, expected, decode, limit, *, shared=True, cut=True, first=True, strip=True,
    keep=False, find=None, words=None,
):  # fmt: skip
    """A right comparison; every argument breaks one of its rules."""
    find = find or (lambda fact, text: re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text, re.I))
    words = words or (lambda text: len(text.split()))
    result = {}
    for model, replies in rows.items():
        stops = set().union(*stop_ids.values()) if shared else set(stop_ids[model])
        counts = [0, 0, 0]
        for row, facts in zip(replies, expected, strict=True):
            row = row[:limit] if cut else row
            ends = [place for place, token in enumerate(row) if token in stops]
            end = (ends[0] if first else ends[-1]) if ends else len(row)
            text = decode(row[: end + keep] if strip is not None else row)
            text = text.strip() if strip else text
            counts[0] += bool(ends)
            counts[1] += any(bool(find(fact, text)) for fact in facts)
            counts[2] += words(text)
        n = len(replies)
        result[model] = dict(zip(("stops", "knows", "words"), (c / n for c in counts), strict=True))
    return result


def changed(**changes):
    return lambda *arguments: compare_with(*arguments, **changes)


COMPARISONS = {
    "own stop tokens": changed(shared=False),
    "no limit": changed(cut=False),
    "last stop token": changed(first=False),
    "reply not cut": changed(strip=None),
    "stop token kept": changed(keep=True),
    "part of a word": changed(find=lambda fact, text: fact.lower() in text.lower()),
    "case matters": changed(
        find=lambda fact, text: re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text)
    ),
    "word boundaries": changed(
        find=lambda fact, text: re.search(rf"\b{re.escape(fact)}\b", text, re.I)
    ),
    "not escaped": changed(find=lambda fact, text: re.search(rf"(?<!\w){fact}(?!\w)", text, re.I)),
    "characters counted": changed(words=len),
    "split at single spaces": changed(words=lambda text: len(text.split(" "))),
    "only the first expected string": lambda rows, stops, expected, decode, limit: compare_with(
        rows, stops, [facts[:1] for facts in expected], decode, limit
    ),
    "counts instead of shares": lambda rows, *rest: {
        model: {name: value * len(rows[model]) for name, value in found.items()}
        for model, found in compare_with(rows, *rest).items()
    },
    "nothing returned": lambda *arguments: None,
}

WRONG = {
    "stop_rate": STOP_RATES,
    "wilson_interval": INTERVALS,
    "certainty": CERTAINTIES,
    "opens_a_turn": DETECTORS,
    "paired_bootstrap": BOOTSTRAPS,
    "relative_change": CHANGES,
    "fair_comparison": COMPARISONS,
}


def test_the_helpers_are_right_where_nothing_is_changed():
    """So that each wrong answer is wrong in the one way that its name says."""
    e09.wilson_interval(wilson_with)
    e09.certainty(lambda p: (entropy(p), max(p)))
    e09.opens_a_turn(opens)
    e09.paired_bootstrap(bootstrap_with)
    e09.relative_change(change_with)
    e09.fair_comparison(compare_with)


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, wrong in WRONG.items() for mistake in wrong]
)
def test_a_wrong_answer_is_refused_in_one_line(name, mistake):
    with pytest.raises(CheckFailed) as caught:
        getattr(e09, name)(WRONG[name][mistake])
    assert not isinstance(caught.value, NotAttempted)
    message = str(caught.value)
    assert message.startswith(f"Exercise 9.{NAMES.index(name) + 1}: ") and "\n" not in message
    assert ("Hint: " in message or " raised " in message) and len(message) < 600, len(message)
