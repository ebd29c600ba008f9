"""From samples to batches: preparing a whole data set, padding, and the order of training."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from course_utils.conversation import Conversation
from course_utils.masking import IGNORE_INDEX, MaskError, Options, Sample, samples_of
from course_utils.strict_json import printable


@dataclass(frozen=True)
class Prepared:
    """A data set ready for training, and what could not be used with the reason for each."""

    samples: list[Sample]
    refused: list[tuple[str, str]]

    @property
    def tokens(self) -> int:
        return sum(len(sample) for sample in self.samples)

    @property
    def graded_tokens(self) -> int:
        return sum(sample.graded_tokens for sample in self.samples)

    @property
    def unstopped(self) -> int:
        """Graded replies that nothing ends: trained on them, a model does not learn to stop."""
        return sum(sample.unstopped for sample in self.samples)

    @property
    def truncated(self) -> list[Sample]:
        """The samples of which something was cut off, with how much."""
        return [sample for sample in self.samples if sample.dropped_tokens]

    def __str__(self):
        share = self.graded_tokens / self.tokens
        lines = [
            f"{_count(len(self.samples), 'sample')}, {self.tokens} tokens, of which "
            f"{self.graded_tokens} ({share:.0%}) are graded; "
            f"{_count(len(self.refused), 'conversation')} refused"
        ]
        if cut := self.truncated:
            replies = sum(sample.dropped_replies for sample in cut)
            tokens = sum(sample.dropped_tokens for sample in cut)
            lines.append(
                f"  {_count(len(cut), 'sample')} cut at the end of a turn; "
                f"replies dropped: {replies}, tokens: {tokens}"
            )
        if self.unstopped:
            lines.append(
                f"  graded replies without a stop: {self.unstopped}; the template writes nothing "
                "after them at which a server could stop"
            )
        for name, reason in self.refused[:5]:
            reason = reason.removeprefix(f"conversation {name!r}: ")
            lines.append(f"  {printable(name)}: {printable(reason)}")
        if len(self.refused) > 5:
            lines.append(f"  and {len(self.refused) - 5} more, all listed in `refused`")
        return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def prepare(
    conversations: Iterable[Conversation],
    tokenizer,
    *,
    mode: str = "assistant",
    max_length: int | None = None,
    reasoning: str = "grade",
    **template_options,
) -> Prepared:
    """`training_samples` of every conversation; those it refuses are listed with the reason.

    The options are those of `training_samples`. Raises `MaskError` if no sample is left, with the
    first reason.
    """
    samples, refused = [], []
    options = Options(mode, max_length, reasoning, True, tuple(template_options.items()))
    outcomes = samples_of(conversations, tokenizer, options)
    for position, (chat, outcome) in enumerate(outcomes):
        if isinstance(outcome, MaskError):
            refused.append((chat.id or f"conversation {position}", str(outcome)))
        else:
            samples += outcome
    if not samples:
        reason = f" The first: {refused[0][1]}" if refused else ""
        raise MaskError(f"none of {len(refused)} conversations can be trained on.{reason}")
    return Prepared(samples, refused)


def collate(samples: Sequence[Sample], pad_token_id: int, *, pad_to_multiple_of: int = 1) -> dict:
    """Pad samples on the right to one length T and stack them.

    Returns tensors of shape (B, T): `input_ids` padded with `pad_token_id`, `attention_mask`
    with 0, and `labels` with `IGNORE_INDEX`. The label of padding is never the pad token: that
    would grade the model on writing padding. Where pad and end of turn share an id it would be
    impossible to mask one without the other. If a sample has weights, `loss_weights` hold them,
    padded with 0.
    """
    import torch

    if not samples:
        raise ValueError("no samples to collate: a batch needs at least one.")
    if pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of must be at least 1, not {pad_to_multiple_of}.")
    longest = max(len(sample) for sample in samples)
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for sample in samples:
        missing = length - len(sample)
        rows["input_ids"].append([*sample.input_ids, *[pad_token_id] * missing])
        rows["attention_mask"].append([1] * len(sample) + [0] * missing)
        rows["labels"].append([*sample.labels, *[IGNORE_INDEX] * missing])
    if any(sample.weights for sample in samples):
        rows["loss_weights"] = [
            [*(sample.weights or [1.0] * len(sample)), *[0.0] * (length - len(sample))]
            for sample in samples
        ]
    return {name: torch.tensor(values) for name, values in rows.items()}


def pack(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """Rows of whole samples, each of at most `length` tokens: best fit, the longest sample first.

    Each sample goes into the fullest row that still has room for it. Raises `ValueError`, naming
    it, for a sample that is longer than a row: cutting it is for `training_samples`, which cuts
    where turns end.
    """
    rows: list[list[Sample]] = []
    free: list[int] = []
    for place, sample in sorted(enumerate(samples), key=lambda item: -len(item[1])):
        if len(sample) > length:
            raise ValueError(
                f"sample {place} (id {sample.id!r}) has {len(sample)} tokens, and a row {length}. "
                "Make the rows longer, or the samples with max_length."
            )
        fitting = [row for row, room in enumerate(free) if room >= len(sample)]
        if not fitting:
            fitting = [len(rows)]
            rows.append([])
            free.append(length)
        row = min(fitting, key=free.__getitem__)
        rows[row].append(sample)
        free[row] -= len(sample)
    return rows


def collate_packed(rows: Sequence[Sequence[Sample]], pad_token_id: int) -> dict:
    """Stack rows of several samples each, so that the model sees every sample as if it were alone.

    Returns tensors of shape (B, T): `input_ids`, `position_ids`, which start again with every
    sample, and `labels`. The first label of a sample is `IGNORE_INDEX`: what stands before it in
    the row is the end of another one. `attention_mask` is boolean, of shape (B, 1, T, T), and True
    where position i (third axis) may look at position j (fourth): j is in the same sample and not
    behind i. Padding sees itself only, so that no row of the softmax is empty. It is for models
    with PyTorch's own attention ("sdpa", the default): "eager" would add True and False to the
    scores. If a sample has weights, `loss_weights` hold them, padded with 0.
    """
    import torch

    if not rows or not all(rows):
        raise ValueError("no samples to collate: a batch needs a row, and a row a sample.")
    length = max(sum(map(len, row)) for row in rows)
    shape = (len(rows), length)
    batch = {
        "input_ids": torch.full(shape, pad_token_id),
        "labels": torch.full(shape, IGNORE_INDEX),
        "position_ids": torch.zeros(shape, dtype=torch.long),
    }
    weights = torch.zeros(shape)
    # Numbers of the samples in a row; padding has a number of its own at each position.
    owner = torch.arange(-length, 0).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = 0
        for place, sample in enumerate(row):
            own = number, slice(start, start + len(sample))
            start += len(sample)
            batch["input_ids"][own] = torch.tensor(sample.input_ids)
            batch["labels"][own] = torch.tensor([IGNORE_INDEX, *sample.labels[1:]])
            batch["position_ids"][own] = torch.arange(len(sample))
            weights[own] = torch.tensor(sample.weights or [1.0] * len(sample))
            owner[own] = place
    same = owner[:, :, None] == owner[:, None, :]
    batch["attention_mask"] = same.tril()[:, None]
    if any(sample.weights for row in rows for sample in row):
        batch["loss_weights"] = weights
    return batch


def length_batches(
    samples: Sequence[Sample], batch_size: int, *, seed: int = 0
) -> Iterator[list[Sample]]:
    """Batches of `batch_size` samples without end, every sample once per epoch in a random order.

    Within each random group of eight batches the samples are sorted by length before they are cut
    into batches, so that a batch holds little padding; the batches come in random order again. The
    last batch of an epoch may be smaller.
    """
    if not samples:
        raise ValueError("no samples to batch.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    generator = random.Random(seed)
    while True:
        order = list(range(len(samples)))
        generator.shuffle(order)
        batches = []
        for group in _pieces(order, 8 * batch_size):
            by_length = sorted(group, key=lambda index: len(samples[index]))
            batches += _pieces(by_length, batch_size)
        generator.shuffle(batches)
        for batch in batches:
            yield [samples[index] for index in batch]


def forward_passes(batch: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Cut a batch into parts of at most `max_tokens` tokens, padding included.

    Samples of similar length share a part; a sample that is longer than `max_tokens` is one by
    itself. Together the parts hold every sample of the batch once.
    """
    parts: list[list[Sample]] = []
    for sample in sorted(batch, key=len):
        # The newest sample is the longest, so all of its part would be padded to its length.
        if parts and (len(parts[-1]) + 1) * len(sample) <= max_tokens:
            parts[-1].append(sample)
        else:
            parts.append([sample])
    return parts


def _pieces(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
