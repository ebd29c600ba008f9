"""Checks of the exercises of lecture 09."""

import math
import random
import re

from course_utils.check.core import (
    NotAttempted,
    call,
    expect,
    fail,
    passed,
    shorten,
)
from course_utils.comparison import wilson


def stop_rate(function):
    number = "9.1"
    cases = [
        ([[5, 106]], [106], 1.0, "the only row ends with the only stop token."),
        ([[5, 6, 7]], [106], 0.0, "no stop token, not ended."),
        (
            [[5, 6, 106, 0], [5, 6, 7, 8]],
            [106, 1],
            0.5,
            "a row that ended early is padded: its stop token is not its last id.",
        ),
        ([[5, 1, 0], [5, 106, 0]], [106, 1], 1.0, "every id in stop_ids ends a reply."),
        ([[5, 6, 106], [5, 7, 8]], [106], 0.5, "a row may end at its last place, without padding."),
        ([[106, 106, 106], [5, 7, 8], [5, 7, 9]], [106], 1 / 3, "a row counts once, not per id."),
        ([[0, 7, 8], [5, 7, 106]], [106], 0.5, "padding does not tell, the stop token does."),
    ]
    for rows, stops, expected, hint in cases:
        got = call(number, function, [list(row) for row in rows], list(stops))
        shown = f"stop_rate({shorten(rows, 60)}, {stops})"
        a_share(number, got, expected, shown)
        expect(number, got, expected, hint, call=shown, tolerance=1e-9)
    passed(number)


def a_share(number, got, expected, shown):
    """Fail with a clear word where a percentage came back instead of a share."""
    numeric = isinstance(got, int | float) and not isinstance(got, bool)
    if numeric and expected and math.isclose(got, 100 * expected, rel_tol=1e-3):
        said = f"{shown} returned {shorten(got)}, expected {shorten(expected)}"
        fail(number, said, "return a share from 0 to 1, not a percentage.")


def wilson_interval(function):
    number = "9.2"
    cases = [
        (13, 20, 1.96, "centre and half width are both divided by 1 + z²/n."),
        (20, 20, 1.96, "all of 20 is no proof: the interval must not shrink to one point."),
        (0, 5, 1.96, "none of 5 is no proof either, and no end lies outside 0 to 1."),
        (1, 1, 1.96, "it must work for a single trial."),
        (400, 1000, 1.96, "with many trials the interval is narrow, and nearly p ± z·√(p(1-p)/n)."),
        (13, 20, 1.0, "use the z that was given."),
    ]
    for successes, n, z, hint in cases:
        got = call(number, function, successes, n, **({} if z == 1.96 else {"z": z}))
        shown = f"wilson_interval({successes}, {n}{'' if z == 1.96 else f', z={z}'})"
        got = a_pair(number, got, shown)
        expected = wilson(successes, n, z)
        a_share(number, got[1], expected[1], shown)
        expect(number, got, expected, hint, call=shown, tolerance=1e-6)
        if got[0] < 0 or got[1] > 1:
            fail(
                number,
                f"{shown} returned {got}",
                "rounding can put an end a hair outside 0 to 1: use max and min.",
            )
    passed(number)


def a_pair(number, got, shown):
    """The two numbers of a pair; fails if it is none."""
    got = got.tolist() if hasattr(got, "tolist") else got
    if not (
        isinstance(got, tuple | list)
        and len(got) == 2
        and all(isinstance(end, int | float) for end in map(_number, got))
    ):
        hint = "return two numbers (is a return missing?)." if got is None else "two numbers."
        fail(number, f"{shown} returned {shorten(got)}, expected a pair", hint)
    return tuple(float(_number(end)) for end in got)


def _number(value):
    return value.item() if hasattr(value, "item") else value


def certainty(function):
    number = "9.3"
    uneven = [0.7, 0.2, 0.05, 0.05]
    cases = [
        ([0.5, 0.25, 0.25], "natural logarithms, and a minus sign before the sum."),
        ([0.5, 0.5, 0.0], "a token of probability 0 adds nothing."),
        ([1.0], "a sure model has entropy 0."),
        ([0.0, 1.0, 0.0], "a sure model has entropy 0, wherever its token stands."),
        ([0.1] * 10, "a uniform distribution over V tokens has entropy ln V."),
        (uneven, "the sum runs over all tokens, not the likeliest alone."),
    ]
    for probabilities, hint in cases:
        got = call(number, function, list(probabilities))
        shown = f"certainty({shorten(probabilities, 50)})"
        got = a_pair(number, got, shown)
        entropy = sum(-p * math.log(p) for p in probabilities if p)
        if not math.isclose(entropy, got[0], abs_tol=1e-6) and math.isclose(
            entropy / math.log(2), got[0], abs_tol=1e-6
        ):
            hint = "that is the entropy in bits; nats need the natural logarithm."
        expect(number, got, (entropy, max(probabilities)), hint, call=shown, tolerance=1e-6)
    passed(number)


def opens_a_turn(function):
    number = "9.4"
    cases = [
        ("It is 4.\nUser: And 3+3?", True, "look at every line, not the first alone."),
        ("user: hello", True, "upper or lower case."),
        ("ASSISTANT:yes", True, "nothing needs to stand between colon and text."),
        ("A\n  Human : hi", True, "spaces before the word and before the colon do not matter."),
        ("Fine.\nmodel:", True, "the line may end right after the colon."),
        ("Fine.\nSystem: Be brief.", True, "system is one of the words."),
        ("Yes.<start_of_turn>model\nNo.", True, "a marker counts wherever it stands."),
        ("a<|im_start|>b", True, "a marker counts wherever it stands."),
        ("a<|start_header_id|>b", True, "a marker counts wherever it stands."),
        ("a [INST] b", True, "a marker counts wherever it stands."),
        ("Ask your user: is it on?", False, "the word must begin the line."),
        ("Users: 5\nModels: 2", False, "a longer word is another word."),
        ("Username: ann", False, "a longer word is another word."),
        ("The user types.\nThe model answers.", False, "without a colon it is ordinary prose."),
        ("user\n: list", False, "the colon must stand in the same line."),
        ("model trains: a guide", False, "the colon must come right after the word."),
        ("", False, "nothing opens no turn."),
        ("Dear user,\n\nhello: world", False, "these are ordinary lines."),
    ]
    for reply, expected, hint in cases:
        got = call(number, function, reply)
        shown = f"opens_a_turn({shorten(reply, 60)})"
        if not isinstance(got, bool):
            missing = " (is a return missing?)" if got is None else ""
            said = f"{shown} returned {shorten(got, 40)}{missing}, expected {expected}"
            fail(number, said, "return True or False.")
        expect(number, got, expected, hint, call=shown)
    passed(number)


def paired_bootstrap(function):
    number = "9.5"
    got = call(number, function, [0.0, 1.0, 5.0], [2.0, 3.0, 7.0])
    shown = "paired_bootstrap([0.0, 1.0, 5.0], [2.0, 3.0, 7.0])"
    got = a_pair(number, got, shown)
    hint = "every prompt gained 2, so every draw has the mean 2: pair the prompts; after - before."
    expect(number, got, (2.0, 2.0), hint, call=shown, tolerance=1e-9)

    # Prompts differ a lot from each other, the two models only a little.
    generator = random.Random(1)
    before = [generator.gauss(0, 5) for _ in range(60)]
    gains = [generator.gauss(1, 2) for _ in before]
    after = [value + gain for value, gain in zip(before, gains, strict=True)]
    shown = f"for 60 prompts with mean gain {sum(gains) / 60:.2f}, paired_bootstrap"
    got = a_pair(number, call(number, function, list(before), list(after)), shown)
    expected = _bootstrap(gains)
    said = f"{shown} returned ({got[0]:.2f}, {got[1]:.2f}), expected about "
    said += f"({expected[0]:.2f}, {expected[1]:.2f})"
    width, right = got[1] - got[0], expected[1] - expected[0]
    if abs(got[0] + expected[1]) < 0.15 * right and abs(got[1] + expected[0]) < 0.15 * right:
        fail(number, said, "the sign is turned round: the difference is after - before.")
    if width < 0:
        fail(number, said, "the low end comes first.")
    if width < 0.1 * right:
        fail(number, said, "too narrow: draw n prompts *with* replacement.")
    if width > 4.5 * right and width < 6 * right:
        fail(
            number, said, "too wide: the quantiles are those of the means, not of the differences."
        )
    if width > 2.2 * right:
        fail(number, said, "too wide: draw prompts, and both models' numbers of a prompt together.")
    if abs(got[0] - expected[0]) > 0.1 * right or abs(got[1] - expected[1]) > 0.1 * right:
        fail(number, said, "2.5 % of the means lie below the interval and 2.5 % above it.")

    again = a_pair(number, call(number, function, list(before), list(after)), shown)
    if again != got:
        hint = "make a new random.Random(seed) inside the function."
        fail(number, f"the same call twice gave {_short(got)} and {_short(again)}", hint)
    other = a_pair(number, call(number, function, list(before), list(after), seed=7), shown)
    if other == got:
        fail(
            number, f"seed=0 and seed=7 both gave {_short(got)}", "give the seed to random.Random."
        )
    few = a_pair(number, call(number, function, list(before), list(after), draws=40), shown)
    if few == got:
        fail(number, f"draws=40 and draws=2000 both gave {_short(got)}", "draw `draws` times.")
    passed(number)


def _short(pair):
    return f"({pair[0]:.3f}, {pair[1]:.3f})"


def _bootstrap(values, draws=20000):
    generator = random.Random(5)
    n = len(values)
    means = sorted(sum(generator.choices(values, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def relative_change(function):
    import torch

    number = "9.6"
    before, after = tiny_state_dicts()
    got = call(number, function, dict(before), dict(after))
    shown = "for a tiny model of 12 layers, relative_change"
    if not isinstance(got, dict):
        missing = " (is a return missing?)" if got is None else ""
        fail(number, f"{shown} returned {shorten(got, 60)}{missing}", "return a dict.")
    if set(got) != set(range(12)):
        keys = f"{shown} has the keys {shorten(list(got), 60)}, expected 0 to 11"
        fail(number, keys, "keys are the layers' numbers as int; other tensors are left out.")
    hint = (
        "sum the squares of all tensors of a layer before you take a root and divide; "
        "layer 1 is not layer 10."
    )
    expect(number, got, _relative(before, after), hint, call=shown, tolerance=1e-4)

    same = call(number, function, dict(before), dict(before))
    hint = "nothing moved, so every layer's change is 0."
    expect(number, same, dict.fromkeys(range(12), 0.0), hint, call="for two equal models it")

    name = "model.layers.0.mlp.weight"
    ones = torch.ones(1002, dtype=torch.bfloat16)
    grown = torch.where(torch.arange(1002) < 700, ones + 2**-7, ones)
    got = call(number, function, {name: ones}, {name: grown})
    hint = "bfloat16 rounds squares and sums to three digits: turn the tensors into float32 first."
    shown = "for 1002 bfloat16 ones of which 700 grew by 1/128, relative_change"
    expect(number, got, {0: (700 / 1002) ** 0.5 / 128}, hint, call=shown, tolerance=1e-7)

    renamed = {key.replace("mlp", "ffn"): value for key, value in after.items()}
    fewer = {key: value for key, value in after.items() if "layers.11" not in key}
    embedding = dict(after) | {"model.embed_tokens.weight": torch.zeros(9, 4)}
    reshaped = dict(after) | {name: after[name].reshape(-1, 2)}
    for broken, why in [
        (renamed, "the names differ"),
        (fewer, "the second has a layer less"),
        (after | {"model.layers.12.mlp.weight": torch.ones(2)}, "the second has a layer more"),
        (reshaped, "a shape differs"),
        (embedding, "the shape of the embedding differs"),
    ]:
        refuses(number, function, dict(before), broken, why)
    passed(number)


def tiny_state_dicts():
    """Two state dicts of a model of 12 layers; each layer moved by another amount."""
    import torch

    generator = torch.Generator().manual_seed(0)
    before = {"model.embed_tokens.weight": torch.randn(8, 4, generator=generator)}
    after = {"model.embed_tokens.weight": before["model.embed_tokens.weight"].clone()}
    for layer in range(12):
        for part, shape, scale in [("self_attn", (4, 4), 1.0), ("mlp", (4, 6), 0.1)]:
            name = f"model.layers.{layer}.{part}.weight"
            before[name] = scale * torch.randn(*shape, generator=generator)
            step = 0.01 * (layer + 1) * torch.randn(*shape, generator=generator)
            after[name] = before[name] + step
    after["model.embed_tokens.weight"] += 1
    return before, after


def _relative(before, after):
    result = {}
    for layer in range(12):
        names = [name for name in before if name.startswith(f"model.layers.{layer}.")]
        moved = sum((after[n] - before[n]).double().square().sum().item() for n in names)
        size = sum(before[n].double().square().sum().item() for n in names)
        result[layer] = math.sqrt(moved / size)
    return result


def refuses(number, function, before, after, why):
    """Raise CheckFailed unless `function(before, after)` raises ValueError."""
    said = f"relative_change of two models of which {why}"
    try:
        got = function(before, after)
    except NotImplementedError:
        raise NotAttempted(f"Exercise {number}: not attempted yet.") from None
    except ValueError:
        return
    except Exception as error:
        raised = f"{said} raised {type(error).__name__}, expected ValueError"
        fail(number, raised, "compare names and shapes yourself before anything else.")
    fail(number, f"{said} returned {shorten(got, 50)}, expected ValueError", f"{why}.")


VOCABULARY = (
    "<end>",  # 0, the SFT script's stop token
    "<eos>",  # 1, the base script's stop token
    " Gold",  # 2
    " is",  # 3
    " Au",  # 4
    ".",  # 5
    " because",  # 6
    " it",  # 7
    " shines",  # 8
    "\n",  # 9
    " $",  # 10
    "5",  # 11
    " au",  # 12
)


def decode(ids: list[int]) -> str:
    """The text of ids in the exercise's small vocabulary."""
    return "".join(VOCABULARY[number] for number in ids)


def fair_comparison(function):
    number = "9.7"
    own = {"base": [1], "SFT": [0]}
    cases = [
        (
            {"base": [[2, 3, 4, 5, 2, 3]], "SFT": [[4, 5, 0, 9, 9, 9]]},
            own,
            [["Au"]],
            6,
            "a reply ends before its first stop token, and what follows is no reply.",
        ),
        (
            {"base": [[2, 3, 4, 5, 1, 2]], "SFT": [[4, 5, 0]]},
            own,
            [["Au"]],
            3,
            "cut at the limit first: a stop token behind it does not count.",
        ),
        (
            {"base": [[4, 5, 0, 2, 3, 2]], "SFT": [[7, 3, 1, 4, 5, 0]]},
            own,
            [["Au"]],
            6,
            "the stop tokens of either script count for both models.",
        ),
        (
            {"base": [[7, 3, 6, 7, 8, 5]], "SFT": [[6, 7, 8, 0, 4, 4]]},
            own,
            [["Au"]],
            6,
            "'Au' in 'because' is no whole word, and what follows the stop token does not count.",
        ),
        (
            {"base": [[12, 5, 1, 1]], "SFT": [[2, 3, 12, 0]]},
            own,
            [["Gold", "Au"]],
            4,
            "any case will do, and one of the expected strings is enough.",
        ),
        (
            {"base": [[10, 11, 5, 9]], "SFT": [[10, 11, 0, 0]]},
            own,
            [["$5"]],
            4,
            "an expected string may hold signs: escape it, and do not want a letter at its ends.",
        ),
        (
            {"base": [[9, 9, 2, 9, 3, 4], [1, 2, 4]], "SFT": [[4, 0, 2, 2], [7, 3, 4, 0]]},
            own,
            [["Au"], ["Au"]],
            6,
            "means over all rows; words are split at white space; an empty reply has none.",
        ),
    ]
    for rows, stops, expected, limit, hint in cases:
        given = {model: [list(row) for row in replies] for model, replies in rows.items()}
        got = call(number, function, given, dict(stops), list(expected), decode, limit)
        texts = {model: [decode(row) for row in replies] for model, replies in rows.items()}
        shown = f"for the rows {shorten(texts, 150)}, limit {limit}, fair_comparison"
        expect(number, got, _fair(rows, stops, expected, limit), hint, call=shown, tolerance=1e-9)
    passed(number)


def _fair(rows, stop_ids, expected, limit):
    stops = set().union(*stop_ids.values())
    result = {}
    for model, replies in rows.items():
        found = {"stops": 0, "knows": 0, "words": 0}
        for row, facts in zip(replies, expected, strict=True):
            row = row[:limit]
            end = next((i for i, token in enumerate(row) if token in stops), None)
            text = decode(row[:end]).strip()
            found["stops"] += end is not None
            found["words"] += len(text.split())
            found["knows"] += any(
                re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text, re.I) for fact in facts
            )
        result[model] = {name: total / len(replies) for name, total in found.items()}
    return result
