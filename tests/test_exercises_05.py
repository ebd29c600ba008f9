"""The checks of lecture 05: each accepts the solution and refuses what a learner may well write."""

import pytest

torch = pytest.importorskip("torch")

from exercise_cells import solved, stubs  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from course_utils.check import e05  # noqa: E402
from course_utils.check.core import CheckFailed, NotAttempted  # noqa: E402

X = -100


SOLVED, STUBS = solved("05_what_to_grade"), stubs("05_what_to_grade")


@pytest.mark.parametrize("check", e05.__all__)
def test_solution_passes_and_stub_is_not_attempted(check, capsys):
    getattr(e05, check)(SOLVED[check])
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(NotAttempted):
        getattr(e05, check)(STUBS[check])


# --- plausible wrong answers ---------------------------------------------------------------------

RIGHT_MASKS = SOLVED["which_mask"]()


def masks(**changes):
    return lambda: RIGHT_MASKS | changes


WHICH_MASK = {
    "B and C swapped": (masks(B="assistant_and_header", C="everything"), "B writes a user's turn"),
    "A and D swapped": (masks(A="last_turn", D="assistant_content"), "never writes an end of turn"),
    "E taken for everything": (masks(B="inverted", E="everything"), "B writes a user's turn"),
    "a mode that was not asked for": (masks(A="assistant"), "choose from"),
    "a list": (lambda: list(RIGHT_MASKS.values()), "a dict with the keys"),
}

TRAINED = {
    "the labels' own positions": (
        lambda labels: [at for at, y in enumerate(labels) if y != X],
        "one to the left",
    ),
    "shifted the wrong way": (
        lambda labels: [at + 1 for at, y in enumerate(labels) if y != X],
        "the wrong way",
    ),
    "the wrong way, cut at the end": (
        lambda labels: [at + 1 for at, y in enumerate(labels[:-1]) if y != X],
        "the wrong way",
    ),
    "id 0 taken for masked": (
        lambda labels: [at for at, y in enumerate(labels[1:]) if y > 0],
        "0 is a token id",
    ),
    "position -1": (
        lambda labels: [at - 1 for at, y in enumerate(labels) if y != X],
        "nothing predicts the first token",
    ),
    "last position included": (
        lambda labels: [
            at for at in range(len(labels)) if at + 1 == len(labels) or labels[at + 1] != X
        ],
        "label at i + 1",
    ),
    "a tensor of the wrong thing": (lambda labels: len(labels), "returned"),
}


def graded_by(keep, ends=0, starts=0):
    def answer(sample, messages):
        labels = [X] * len(sample)
        for order, span in enumerate(sample.graded):
            if keep(order, span.message, messages):
                where = slice(span.start + starts, span.end + ends)
                labels[where] = sample.labels[where]
        if all(label == X for label in labels):
            raise ValueError("nothing left")
        return labels

    return answer


def header_graded(sample, messages):
    labels = [X] * len(sample)
    for span in sample.graded:
        if span.message in messages:
            where = slice(span.start - 1, span.end)
            labels[where] = sample.input_ids[where]
    if all(label == X for label in labels):
        raise ValueError
    return labels


def changes_the_sample(sample, messages):
    for span in sample.graded:
        if span.message not in messages:
            sample.labels[span.start : span.end] = [X] * (span.end - span.start)
    if all(label == X for label in sample.labels):
        raise ValueError
    return sample.labels


def never_refuses(sample, messages):
    try:
        return graded_by(lambda order, message, wanted: message in wanted)(sample, messages)
    except ValueError:
        return [X] * len(sample)


GRADE_ONLY = {
    "end of turn masked": (graded_by(lambda o, m, wanted: m in wanted, ends=-1), "half-open"),
    "one token late": (graded_by(lambda o, m, wanted: m in wanted, starts=1), "expected"),
    "header's last token, too": (header_graded, "ends the header"),
    "the others kept": (graded_by(lambda o, m, wanted: m not in wanted), "other way round"),
    "spans counted": (graded_by(lambda o, m, wanted: o in wanted), "count messages"),
    "last turn only": (graded_by(lambda o, m, wanted: m == max(wanted or {0})), "expected"),
    "sample changed": (changes_the_sample, "work on a new list"),
    "nothing refused": (never_refuses, "raise ValueError"),
}


def micro(of):
    def answer(losses, labels):
        kept = [
            [x for x, y in zip(row, ys, strict=True) if y != X]
            for row, ys in zip(losses, labels, strict=True)
        ]
        count = sum(map(len, kept))
        if not count:
            raise ValueError
        return of(losses, kept, count)

    return answer


def nan_mean(found):
    return sum(found) / len(found) if found else float("nan")


MICRO = {
    "each by itself": (
        micro(lambda losses, kept, n: [sum(k) / max(len(k), 1) for k in kept]),
        "averaged by itself",
    ),
    "mean of means": (
        micro(lambda losses, kept, n: [sum(k) / max(len(k), 1) / len(kept) for k in kept]),
        "averaged by itself",
    ),
    "all tokens below": (
        micro(lambda losses, kept, n: [sum(k) / sum(map(len, losses)) for k in kept]),
        "graded tokens, not by all",
    ),
    "mask forgotten": (
        micro(lambda losses, kept, n: [sum(row) / sum(map(len, losses)) for row in losses]),
        "label -100",
    ),
    "sums": (micro(lambda losses, kept, n: [sum(k) for k in kept]), "a mean"),
    "one number": (micro(lambda losses, kept, n: sum(map(sum, kept)) / n), "one loss for each"),
    "NaN": (
        micro(lambda losses, kept, n: [nan_mean(k) * len(k) / n for k in kept]),
        "not NaN",
    ),
    "0/0 not refused": (
        lambda losses, labels: (
            SOLVED["micro_losses"](losses, labels)
            if any(y != X for ys in labels for y in ys)
            else [0.0] * len(losses)
        ),
        "raise ValueError",
    ),
    "id 0 taken for masked": (
        lambda losses, labels: SOLVED["micro_losses"](
            losses, [[y if y > 0 else X for y in ys] for ys in labels]
        ),
        "graded",
    ),
}


def weighted(of):
    def answer(logits, ids, graded, prompt_weight):
        losses = cross_entropy(logits[:-1], ids[1:], reduction="none")
        return of(losses, graded, prompt_weight)

    return answer


def unshifted(logits, ids, graded, prompt_weight):
    weights = torch.where(graded, 1.0, prompt_weight)
    return (weights * cross_entropy(logits, ids, reduction="none")).sum() / weights.sum()


def weigh(graded, weight):
    return torch.where(graded, 1.0, weight)


WEIGHTED = {
    "no shift": (unshifted, "predicts token i + 1"),
    "weights not shifted": (
        weighted(lambda x, g, w: (weigh(g[:-1], w) * x).sum() / weigh(g[:-1], w).sum()),
        "shift the weights",
    ),
    "divided by the count": (
        weighted(lambda x, g, w: (weigh(g[1:], w) * x).mean()),
        "not by the number of predictions",
    ),
    "divided by the graded": (
        weighted(lambda x, g, w: (weigh(g[1:], w) * x).sum() / g[1:].sum()),
        "the prompt's included",
    ),
    "two means added": (
        weighted(lambda x, g, w: x[g[1:]].mean() + w * x[~g[1:]].mean()),
        "not the sum of two means",
    ),
    "inverted": (
        weighted(
            lambda x, g, w: (weigh(~g[1:], w) * x).sum() / weigh(~g[1:], w).sum().clamp(min=1e-9)
        ),
        "the other way round",
    ),
    "no gradient": (
        lambda *arguments: SOLVED["weighted_loss"](*arguments).detach(),
        "no gradient",
    ),
    "a float": (lambda *arguments: SOLVED["weighted_loss"](*arguments).item(), "scalar tensor"),
}


def positions(logits, embeddings):
    def answer(model, ids, labels):
        kept = [at for at, y in enumerate(labels[0].tolist()) if y != X]
        trained = [at - 1 for at in kept if at]
        every = list(range(ids.shape[1]))
        return {"logits": logits(kept, trained), "embeddings": embeddings(kept, trained, every)}

    return answer


def without_shift(model, ids, labels):
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    logits.retain_grad()
    cross_entropy(logits[0], labels[0]).backward()
    return {
        "logits": logits.grad[0].ne(0).any(-1).nonzero().flatten().tolist(),
        "embeddings": embedded.grad[0].ne(0).any(-1).nonzero().flatten().tolist(),
    }


GRADIENT = {
    "no shift": (without_shift, "label at i + 1"),
    "only masked out": (positions(lambda k, t: t, lambda k, t, e: t), "masked positions get"),
    "labels' positions": (positions(lambda k, t: t, lambda k, t, e: k), "masked positions get"),
    "everywhere": (positions(lambda k, t: t, lambda k, t, e: e), "get no gradient"),
    "reasoned, not measured": (
        positions(lambda k, t: t, lambda k, t, e: list(range(t[-1] + 1))),
        "only 2 positions back",
    ),
    "a pair": (lambda model, ids, labels: ([], []), "return {"),
}


def without(*dropped):
    """The doctor with a blind spot."""
    return lambda pieces: [c for c in SOLVED["complaints"](pieces) if c not in dropped]


def last_turn_only(pieces):
    last = max((turn for _, role, turn, _ in pieces if role == "assistant"), default=None)
    return SOLVED["complaints"](
        [piece for piece in pieces if piece[1] != "assistant" or piece[2] == last]
    )


def by_share(pieces):
    share = sum(graded for *_, graded in pieces) / len(pieces)
    return [] if 0.05 < share < 0.5 else ["others graded"]


def sequence_start_forgotten(pieces):
    return SOLVED["complaints"]([piece for piece in pieces if piece[1] is not None])


COMPLAINTS = {
    "blind to the masked end": (without("end masked"), "'end masked' is missing"),
    "blind to the header": (without("header graded"), "'header graded' is missing"),
    "blind to the gap": (without("gap graded"), "'gap graded' is missing"),
    "blind to masked text": (without("text masked"), "'text masked' is missing"),
    "looks at the last turn only": (last_turn_only, "'turn skipped' is missing"),
    "judges by the share": (by_share, "is missing"),
    "not sorted": (lambda p: SOLVED["complaints"](p)[::-1], "alphabetical"),
    "a set": (lambda p: set(SOLVED["complaints"](p)), "return a list"),
}

WRONG = {
    "which_mask": WHICH_MASK,
    "trained_positions": TRAINED,
    "grade_only": GRADE_ONLY,
    "micro_losses": MICRO,
    "weighted_loss": WEIGHTED,
    "gradient_positions": GRADIENT,
    "complaints": COMPLAINTS,
}


@pytest.mark.parametrize(
    ("check", "wrong"), [(check, wrong) for check, answers in WRONG.items() for wrong in answers]
)
def test_wrong_answer_is_refused_in_one_line(check, wrong):
    answer, words = WRONG[check][wrong]
    with pytest.raises(CheckFailed) as caught:
        getattr(e05, check)(answer)
    message = str(caught.value)
    assert not isinstance(caught.value, NotAttempted)
    assert words in message and "Hint: " in message
    assert "\n" not in message and len(message) < 500


def test_every_check_refuses_at_least_three_wrong_answers():
    assert WRONG.keys() == set(e05.__all__)
    assert all(len(answers) >= 3 for answers in WRONG.values())


def test_the_check_of_5_1_does_not_give_the_answer_away():
    for name, (answer, _) in WHICH_MASK.items():
        with pytest.raises(CheckFailed) as caught:
            e05.which_mask(answer)
        if "swapped" in name:
            said = str(caught.value)
            assert sum(f"'{mode}'" in said for mode in RIGHT_MASKS.values()) == 1


def test_an_error_in_the_answer_is_reported_as_one():
    with pytest.raises(CheckFailed, match="IndexError"):
        e05.trained_positions(lambda labels: labels[10**6])
