"""Padding, the order of training, and preparing a data set."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_base import tiny_tokenizer

from course_utils.batching import collate, forward_passes, length_batches, prepare
from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS
from course_utils.masking import IGNORE_INDEX, MaskError, Sample


def sample(ids, labels=None, id=None):
    return Sample(list(ids), list(labels or ids), (), (), id)


def test_collate_pads_ids_mask_and_labels():
    batch = collate([sample([5, 6, 7], [-100, 6, 7]), sample([8], [8])], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {values.dtype for values in batch.values()} == {torch.int64}


def test_a_pad_token_that_is_also_the_end_of_turn_stays_graded_where_it_was_written():
    end = 3
    batch = collate([sample([1, end], [-100, end]), sample([1, 2, 2, end])], pad_token_id=end)
    assert batch["labels"].tolist()[0] == [-100, end, -100, -100]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 0, 0]


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=6),
    st.integers(1, 16),
)
def test_collate_keeps_every_sample_and_marks_the_rest_as_padding(rows, multiple):
    samples = [sample(row, [IGNORE_INDEX, *row[1:]]) for row in rows]
    batch = collate(samples, pad_token_id=77, pad_to_multiple_of=multiple)
    length = batch["input_ids"].shape[1]
    assert {tuple(values.shape) for values in batch.values()} == {(len(rows), length)}
    longest = max(map(len, rows))
    assert length % multiple == 0 and longest <= length < longest + multiple
    for number, one in enumerate(samples):
        n = len(one)
        assert batch["input_ids"][number].tolist() == one.input_ids + [77] * (length - n)
        assert batch["attention_mask"][number].tolist() == [1] * n + [0] * (length - n)
        assert batch["labels"][number].tolist() == one.labels + [IGNORE_INDEX] * (length - n)


def test_collate_refuses_what_makes_no_batch():
    with pytest.raises(ValueError, match="no samples to collate"):
        collate([], 0)
    with pytest.raises(ValueError, match="pad_to_multiple_of must be at least 1, not 0"):
        collate([sample([1])], 0, pad_to_multiple_of=0)


def epoch(samples, batch_size, seed=0, skip=0):
    """The batches of one epoch, as lists of sample ids."""
    count = -(-len(samples) // batch_size)
    batches = islice(length_batches(samples, batch_size, seed=seed), skip * count, None)
    return [[one.id for one in batch] for batch in islice(batches, count)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_every_sample_comes_exactly_once_per_epoch(lengths, batch_size, seed):
    samples = [sample([1] * length, id=str(i)) for i, length in enumerate(lengths)]
    for number in range(3):
        batches = epoch(samples, batch_size, seed, skip=number)
        assert Counter(sum(batches, [])) == Counter(one.id for one in samples)
        assert all(0 < len(batch) <= batch_size for batch in batches)


def test_the_order_is_the_seeds_and_every_epoch_has_another():
    samples = [sample([1] * (1 + i % 7), id=str(i)) for i in range(50)]
    assert epoch(samples, 4, seed=1) == epoch(samples, 4, seed=1)
    assert epoch(samples, 4, seed=1) != epoch(samples, 4, seed=2)
    assert epoch(samples, 4, seed=1) != epoch(samples, 4, seed=1, skip=1)


def test_batches_hold_samples_of_similar_length():
    samples = [sample([1] * (1 + 37 * i % 100), id=str(i)) for i in range(64)]
    length = {one.id: len(one) for one in samples}

    def padding(batches):
        return sum(max(length[i] for i in b) * len(b) - sum(length[i] for i in b) for b in batches)

    in_file_order = [[s.id for s in samples[i : i + 4]] for i in range(0, 64, 4)]
    assert padding(epoch(samples, 4)) < 0.5 * padding(in_file_order)


def test_length_batches_refuses_what_it_cannot_cut():
    with pytest.raises(ValueError, match="no samples"):
        next(length_batches([], 4))
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        next(length_batches([sample([1])], 0))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), max_tokens=st.integers(1, 120)
)
def test_forward_passes_hold_every_sample_and_no_more_tokens_than_allowed(lengths, max_tokens):
    batch = [sample([1] * length) for length in lengths]
    parts = forward_passes(batch, max_tokens)
    assert Counter(len(one) for part in parts for one in part) == Counter(lengths)
    assert all(len(part) == 1 or len(part) * max(map(len, part)) <= max_tokens for part in parts)


def test_a_batch_that_fits_is_one_forward_pass():
    batch = [sample([1] * length) for length in (3, 9, 5)]
    assert [len(part) for part in forward_passes(batch, 27)] == [3]
    assert len(forward_passes(batch, 26)) == 2


def test_prepare_counts_and_names_what_it_refuses():
    tokenizer = tiny_tokenizer("chatml")
    endless = [conversation(("user", "Hi"), id=f"endless-{i}") for i in range(7)]
    data = prepare([*TINY_CHATS, *endless], tokenizer)
    assert [one.id for one in data.samples] == [chat.id for chat in TINY_CHATS]
    assert data.tokens == sum(map(len, data.samples))
    assert data.graded_tokens == sum(one.graded_tokens for one in data.samples)
    assert [name for name, _ in data.refused] == [f"endless-{i}" for i in range(7)]
    assert all("nothing is left to grade" in reason for _, reason in data.refused)
    lines = str(data).splitlines()
    assert lines[0].startswith("3 samples") and lines[0].endswith("7 conversations refused")
    assert len(lines) == 7 and lines[-1].strip().startswith("and 2 more")


def test_prepare_names_a_conversation_without_an_id_by_its_place():
    data = prepare([TINY_CHATS[0], conversation(("user", "Hi"))], tiny_tokenizer("chatml"))
    assert [name for name, _ in data.refused] == ["conversation 1"]


@pytest.mark.parametrize("chats", [[], TINY_CHATS])
def test_prepare_raises_if_nothing_is_left(chats):
    with pytest.raises(MaskError, match=f"none of {len(chats)} conversations can be trained on"):
        prepare(chats, tiny_tokenizer("chatml"), max_length=3)
