"""Checks of the exercises of lecture 05."""

import copy
import random
from types import SimpleNamespace

from course_utils.check.core import call, expect, fail, number, passed, plain, refusing, shorten
from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.masking import IGNORE_INDEX, MASK_MODES, graded_spans, training_samples
from course_utils.templates import render
from course_utils.tokenizers import WordTokenizer

THREE_REPLIES = conversation(
    ("user", "Capital of Australia?"),
    ("assistant", "Sydney."),
    ("user", "Really?"),
    ("assistant", "No, it is Canberra."),
    ("user", "Thanks"),
    ("assistant", "You are welcome."),
)


def which_mask(function):
    exercise = "5.1"
    expected = {
        "A": "assistant_content",
        "B": "everything",
        "C": "assistant_and_header",
        "D": "last_turn",
        "E": "inverted",
    }
    hints = {
        "A": "A never writes an end of turn: which mask leaves just that out?",
        "B": "B writes a user's turn: some mask must have graded it, and the replies as well.",
        "C": "C was graded on something after the user's end of turn, and on no user's turn.",
        "D": "D has never been graded on the answer to an opening question.",
        "E": "E has never been graded on a reply at all.",
    }
    got = call(exercise, function)
    if not isinstance(got, dict) or got.keys() != expected.keys():
        hint = 'a dict with the keys "A" to "E".'
        fail(exercise, f"which_mask() returned {shorten(got)}", hint)
    for model, mode in got.items():
        if mode not in expected.values():
            hint = f"choose from {', '.join(sorted(expected.values()))}."
            fail(exercise, f"which_mask() says {mode!r} for {model}", hint)
    wrong = [model for model in expected if got[model] != expected[model]]
    if wrong:
        # Without the answer: the message may say which entry is wrong, not what it should be.
        said = f"which_mask() says {got[wrong[0]]!r} for {wrong[0]}, and that is not right"
        fail(exercise, said, hints[wrong[0]])
    passed(exercise)


def trained_positions(function):
    exercise = "5.2"
    (walkthrough,) = training_samples(WALKTHROUGH, WordTokenizer())
    (several,) = training_samples(THREE_REPLIES, WordTokenizer())
    cases = [
        [-100, -100, 7, 8],
        [-100, 0, -100, 0, 5, -100],
        [4, 5, 6],
        [-100, -100],
        [],
        walkthrough.labels,
        several.labels,
    ]
    for labels in cases:
        kept = [at for at, label in enumerate(labels) if label != IGNORE_INDEX]
        expected = [at - 1 for at in kept if at]
        got = call(exercise, function, list(labels))
        hint = "position i is trained if the label at i + 1 is kept."
        if got == kept:
            hint = "these are the kept labels; the logits that predict them are one to the left."
        elif got == [at + 1 for at in kept] or got == [
            at + 1 for at in kept if at + 1 < len(labels)
        ]:
            hint = "shifted the wrong way: logits predict the token to their right."
        elif got == [at for at, label in enumerate(labels[1:]) if label > 0]:
            hint = "0 is a token id like any other; only -100 is masked."
        elif isinstance(got, list) and -1 in got:
            hint = "nothing predicts the first token, so a label at 0 trains no position."
        expect(exercise, got, expected, hint, call=f"trained_positions({shorten(labels, 50)})")
    passed(exercise)


def grade_only(function):
    exercise = "5.3"
    for chat in (THREE_REPLIES, TINY_CHATS[1]):
        (sample,) = training_samples(chat, WordTokenizer())
        before = copy.deepcopy(sample)
        for messages in ({1}, {3}, {1, 3}, {1, 3, 5, 99}, {0, 3}):
            expected = [
                label if any(s.start <= at < s.end for s in sample.graded if s.message in messages)
                else IGNORE_INDEX
                for at, label in enumerate(sample.labels)
            ]  # fmt: skip
            got = call(exercise, function, sample, set(messages))
            said = f"grade_only(sample of {len(sample)} tokens, {messages})"
            if sample != before:
                hint = "work on a new list; the sample may be used again."
                fail(exercise, f"{said} changed the sample", hint)
            hint = "keep the labels of the spans whose message is in the set."
            if isinstance(got, list) and len(got) == len(expected):
                hint = _grade_only_hint(sample, messages, got, expected) or hint
            expect(exercise, got, expected, hint, call=said)
        for messages in ({0}, set()):
            got = call(exercise, refusing(function), sample, set(messages))
            said = f"grade_only(sample of {len(sample)} tokens, {messages or '{}'})"
            if got is not ValueError:
                hint = "a row with nothing graded has a loss of 0/0: raise ValueError."
                fail(exercise, f"{said} returned {shorten(got)}, expected a ValueError", hint)
    passed(exercise)


def _grade_only_hint(sample, messages, got, expected):
    wanted = [at for at, label in enumerate(expected) if label != IGNORE_INDEX]
    found = [at for at, label in enumerate(got) if label != IGNORE_INDEX]
    ends = [span.end - 1 for span in sample.graded if span.message in messages]
    by_order = [
        at
        for order, span in enumerate(sample.graded)
        if order in messages
        for at in range(span.start, span.end)
    ]
    if found == [at for at in wanted if at not in ends]:
        return "a span's `end` is half-open already: the end of turn belongs to it."
    if sorted(found + wanted) == [a for a, y in enumerate(sample.labels) if y != IGNORE_INDEX]:
        return "the other way round: `messages` are the ones to keep."
    if found and found[0] in [span.start - 1 for span in sample.graded]:
        return "the token before span.start ends the header, which the server writes."
    if found == by_order:
        return "count messages of the chat (`span.message`), not graded spans."
    if len(found) == len(wanted) and found != wanted:
        return (
            "same number of graded tokens, other places: use span.start and span.end as they are."
        )
    return None


def micro_losses(function):
    exercise = "5.4"
    chance = random.Random(5)
    long = [[round(chance.uniform(0, 4), 1) for _ in range(n)] for n in (7, 2, 5)]
    cases = [
        ([[1.0, 3.0], [8.0, 9.0]], [[5, 6], [7, -100]]),
        ([[2.0, 4.0], [6.0, 8.0]], [[0, 5], [-100, 0]]),
        ([[1.0, 2.0], [5.0], [4.0, 7.0, 9.0]], [[-100, -100], [3], [3, -100, 3]]),
        (long, [[chance.choice([-100, 0, 9]) for _ in row] for row in long]),
        ([[3.0]], [[1]]),
    ]
    for losses, labels in cases:
        kept = [
            [x for x, y in zip(row, ys, strict=True) if y != IGNORE_INDEX]
            for row, ys in zip(losses, labels, strict=True)
        ]
        count = sum(map(len, kept))
        expected = [sum(found) / count for found in kept]
        got = call(exercise, function, copy.deepcopy(losses), copy.deepcopy(labels))
        said = f"micro_losses({shorten(losses, 40)}, {shorten(labels, 40)})"
        hint = _micro_hint(plain(got), losses, labels, kept, expected)
        expect(exercise, got, expected, hint, call=said, tolerance=1e-6)
    got = call(exercise, refusing(function), [[1.0], [2.0, 3.0]], [[-100], [-100, -100]])
    if got is not ValueError:
        hint = "nothing in the whole step is graded, the mean would be 0/0: raise ValueError."
        said = "micro_losses([[1.0], [2.0, 3.0]], [[-100], [-100, -100]])"
        fail(exercise, f"{said} returned {shorten(got)}, expected a ValueError", hint)
    passed(exercise)


def _micro_hint(got, losses, labels, kept, expected):
    def close(values):
        return (
            isinstance(got, list)
            and len(got) == len(values)
            and all(number(a) and abs(a - b) < 1e-6 for a, b in zip(got, values, strict=True))
        )

    means = [sum(found) / len(found) if found else 0.0 for found in kept]
    tokens = sum(map(len, losses))
    if close(means) or close([mean / len(means) for mean in means]):
        return "each micro-batch is averaged by itself; divide all of them by the step's count."
    if close([sum(row) / tokens for row in losses]):
        return "tokens with the label -100 are not graded: they count neither above nor below."
    if close([sum(found) / tokens for found in kept]):
        return "divide by the graded tokens, not by all tokens."
    if close([sum(found) for found in kept]):
        return "these are sums; the step's loss is a mean."
    if isinstance(got, list) and any(number(value) and value != value for value in got):
        return "a micro-batch with nothing graded adds 0, not NaN: divide by the step's count."
    if number(got) and abs(got - sum(expected)) < 1e-6:
        return "right as a sum; return one loss for each micro-batch."
    return "sum the graded losses of the micro-batch, divide by the graded tokens of the step."


def weighted_loss(function):
    import torch
    from torch.nn.functional import cross_entropy

    exercise = "5.5"
    torch.manual_seed(0)
    # The first token is graded in the second case, where nothing predicts it.
    for graded in ([0, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1]):
        ids, graded = torch.randint(11, (7,)), torch.tensor(graded, dtype=torch.bool)
        for weight in (0.0, 1.0, 0.25):
            logits = torch.randn(7, 11, requires_grad=True)
            losses = cross_entropy(logits[:-1], ids[1:], reduction="none")
            weights = torch.where(graded[1:], 1.0, weight)
            expected = (weights * losses).sum() / weights.sum()
            got = call(exercise, function, logits, ids.clone(), graded.clone(), weight)
            said = f"weighted_loss(logits, ids, graded={graded.int().tolist()}, {weight})"
            if not isinstance(got, torch.Tensor) or got.dim():
                hint = "return a scalar tensor, so that backward() can be called on it."
                fail(exercise, f"{said} returned {shorten(got)}", hint)
            hint = _weighted_hint(
                got.detach(), logits.detach(), ids, graded, weight, losses.detach()
            )
            expect(exercise, got, expected.item(), hint, call=said, tolerance=1e-4)
            if not got.requires_grad:
                hint = "no detach, no item(), no no_grad: the loss must lead back to the logits."
                fail(exercise, f"{said} has the right value but no gradient", hint)
    passed(exercise)


def _weighted_hint(got, logits, ids, graded, weight, losses):
    import torch
    from torch.nn.functional import cross_entropy

    def weights_of(mask):
        return torch.where(mask, 1.0, weight)

    right = weights_of(graded[1:])
    unshifted = cross_entropy(logits, ids, reduction="none")
    wrong = {
        "a weight belongs to the token that is predicted: shift the weights with the ids.": (
            (weights_of(graded[:-1]) * losses).sum() / weights_of(graded[:-1]).sum()
        ),
        "row i of the logits predicts token i + 1: shift.": (
            (weights_of(graded) * unshifted).sum() / weights_of(graded).sum()
        ),
        "divide by the sum of the weights, not by the number of predictions.": (
            (right * losses).sum() / len(losses)
        ),
        "divide by the sum of all weights, the prompt's included.": (
            (right * losses).sum() / graded[1:].sum()
        ),
        "a weighted mean over all tokens, not the sum of two means.": (
            losses[graded[1:]].mean() + weight * losses[~graded[1:]].mean()
        ),
        "the other way round: graded tokens weigh 1.": (
            (torch.where(graded[1:], weight, 1.0) * losses).sum()
            / torch.where(graded[1:], weight, 1.0).sum()
        ),
    }
    for hint, value in wrong.items():
        if torch.isclose(got, value, atol=1e-5):
            return hint
    return "weighted sum of the losses of the predictions, divided by the sum of their weights."


def tiny_network(window, size=13, width=8):
    """A causal network in which each position sees itself and `window` - 1 before it."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(size, width)
            self.head = torch.nn.Linear(width, size)

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids=None, inputs_embeds=None):
            hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
            length = hidden.shape[1]
            back = torch.arange(length)[:, None] - torch.arange(length)[None]
            seen = ((back >= 0) & (back < window)).float()
            mixed = seen / seen.sum(1, keepdim=True) @ torch.tanh(hidden)
            return SimpleNamespace(logits=self.head(mixed))

    torch.manual_seed(1)
    return Network()


def gradient_positions(function):
    import torch

    exercise = "5.6"
    x = IGNORE_INDEX
    rows = [
        [x, x, 7, x],
        [x, x, x, 4, 5, x, x, 6],
        [3, x, x, x, 2, 0, x],
        [x, 1, x, x, x, x, x, 8, 9],
    ]
    for window in (99, 3):
        for labels in rows:
            model, length = tiny_network(window), len(labels)
            torch.manual_seed(length)
            ids = torch.randint(13, (1, length))
            at_logits = [at - 1 for at, label in enumerate(labels) if at and label != x]
            seen = sorted({p for at in at_logits for p in range(max(0, at - window + 1), at + 1)})
            expected = {"logits": at_logits, "embeddings": seen}
            got = call(exercise, function, model, ids, torch.tensor([labels]))
            looks = "all positions" if window > length else f"{window - 1} positions back"
            said = f"gradient_positions(a model that sees {looks}, ids, {labels})"
            hint = _gradient_hint(got, labels, at_logits, seen, window)
            expect(exercise, got, expected, hint, call=said)
    passed(exercise)


def _gradient_hint(got, labels, at_logits, seen, window):
    kept = [at for at, label in enumerate(labels) if label != IGNORE_INDEX]
    if not isinstance(got, dict) or got.keys() != {"logits", "embeddings"}:
        return 'return {"logits": [...], "embeddings": [...]}.'
    logits, embeddings = got["logits"], got["embeddings"]
    if logits == kept:
        return "compare the logits at i with the label at i + 1: logits[0, :-1], labels[0, 1:]."
    if logits == at_logits and embeddings == list(range(at_logits[-1] + 1)) != seen:
        return f"this model sees only {window - 1} positions back; measure with autograd."
    if logits == at_logits and embeddings in (kept, at_logits):
        return "masked positions get a gradient too, if a graded prediction looks at them: measure."
    if logits == at_logits and embeddings == list(range(len(labels))):
        return "positions after the last graded prediction get no gradient: is zero counted, too?"
    return "backward() on the masked, shifted loss; then look where .grad is not zero."


def complaints(function):
    exercise = "5.7"
    example = [
        ("role", "assistant", 0, True),
        ("content", "assistant", 0, True),
        ("eot", "assistant", 0, False),
    ]
    cases = [("the example", example)]
    for family in ("llama3", "chatml"):
        for chat in (WALKTHROUGH, THREE_REPLIES):
            spans = render(chat, family).spans
            for mode in MASK_MODES:
                mask = graded_spans(render(chat, family), mode)
                name = f"{len(chat)} turns of {family}, mask {mode!r}"
                cases.append((name, _pieces(spans, mask)))
            only_ends = [span.generated and span.kind == "eot" for span in spans]
            with_gap = [s.generated or (s.kind == "gap" and s.role == "assistant") for s in spans]
            late = [False, *(span.generated for span in spans)][: len(spans)]
            early = [*(span.generated for span in spans), False][1:]
            cases += [
                (f"{len(chat)} turns of {family}, only ends graded", _pieces(spans, only_ends)),
                (f"{len(chat)} turns of {family}, gaps graded", _pieces(spans, with_gap)),
                (f"{len(chat)} turns of {family}, one piece late", _pieces(spans, late)),
                (f"{len(chat)} turns of {family}, one piece early", _pieces(spans, early)),
                (f"{len(chat)} turns of {family}, nothing graded", _pieces(spans, [False] * 99)),
            ]
    spans = render(THREE_REPLIES, "llama3").spans
    mixed = [s.generated and (s.turn, s.kind) not in {(1, "eot"), (3, "content")} for s in spans]
    cases.append(("three replies with three different masks", _pieces(spans, mixed)))
    for name, pieces in cases:
        expected = diagnose(pieces)
        got = call(exercise, function, list(pieces))
        hint = _complaint_hint(plain(got), expected)
        expect(exercise, got, expected, hint, call=f"complaints({name})")
    passed(exercise)


def _pieces(spans, mask):
    return [(s.kind, s.role, s.turn, bool(g)) for s, g in zip(spans, mask, strict=False)]


def diagnose(pieces):
    """The answer of 5.7."""
    of_turn = {}
    for kind, role, turn, graded in pieces:
        if role == "assistant":
            of_turn.setdefault(turn, {})[kind] = graded
    text_and_end = {(turn["content"], turn["eot"]) for turn in of_turn.values()}
    header = ("open", "role", "close", "space")
    found = {
        "others graded": any(g for _, role, _, g in pieces if role != "assistant"),
        "header graded": any(g for k, r, _, g in pieces if r == "assistant" and k in header),
        "gap graded": any(g for k, r, _, g in pieces if r == "assistant" and k == "gap"),
        "turn skipped": (False, False) in text_and_end,
        "end masked": (True, False) in text_and_end,
        "text masked": (False, True) in text_and_end,
    }
    return sorted(complaint for complaint, applies in found.items() if applies)


def _complaint_hint(got, expected):
    if not isinstance(got, list):
        return "return a list, sorted; an empty one if the mask is right."
    reasons = {
        "others graded": "a graded piece of another role, or the sequence start.",
        "header graded": "open, role, close and space make up the assistant's header.",
        "gap graded": "what comes after the assistant's end of turn is written by the server.",
        "turn skipped": "look at every assistant turn, not only the last: one has nothing graded.",
        "end masked": "for each assistant turn with graded content, is its end graded?",
        "text masked": "for each assistant turn with a graded end, is its content graded?",
    }
    for complaint in expected:
        if complaint not in got:
            return f"{complaint!r} is missing: {reasons[complaint]}"
    for complaint in got:
        if complaint not in expected:
            return f"{complaint!r} does not apply here."
    return "each complaint once, in alphabetical order."


__all__ = [
    "complaints",
    "grade_only",
    "gradient_positions",
    "micro_losses",
    "trained_positions",
    "weighted_loss",
    "which_mask",
]
