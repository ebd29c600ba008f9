"""Padding, the order of training, and preparing a data set."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_base import tiny_model, tiny_samples, tiny_tokenizer

from course_utils.batching import (
    collate,
    collate_packed,
    forward_passes,
    length_batches,
    pack,
    prepare,
)
from course_utils.conversation import Conversation, Message, conversation
from course_utils.examples import TINY_CHATS
from course_utils.masking import IGNORE_INDEX, MaskError, Sample
from course_utils.sft import graded_loss


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
    assert all(line.count(f"endless-{i}") == 1 for i, line in enumerate(lines[1:6]))


def test_prepare_names_a_conversation_without_an_id_by_its_place():
    data = prepare([TINY_CHATS[0], conversation(("user", "Hi"))], tiny_tokenizer("chatml"))
    assert [name for name, _ in data.refused] == ["conversation 1"]


@pytest.mark.parametrize("chats", [[], TINY_CHATS])
def test_prepare_raises_if_nothing_is_left(chats):
    with pytest.raises(MaskError, match=f"none of {len(chats)} conversations can be trained on"):
        prepare(chats, tiny_tokenizer("chatml"), max_length=3)


# --- weights, and what was cut -------------------------------------------------------------------


def test_collate_passes_weights_on():
    weighted = replace(sample([5, 6, 7]), weights=[1.0, 0.5, 2.0])
    batch = collate([weighted, sample([8])], pad_token_id=9, pad_to_multiple_of=4)
    assert batch["loss_weights"].tolist() == [[1.0, 0.5, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert batch["loss_weights"].dtype == torch.float32
    assert "loss_weights" not in collate([sample([8])], pad_token_id=9)


def two_exchanges(id, **fields):
    turns = (Message("user", "Hi"), Message("assistant", "Hello", **fields))
    return Conversation((*turns, Message("user", "Bye"), Message("assistant", "Bye.")), id)


def test_prepare_reports_what_was_cut():
    tokenizer = tiny_tokenizer("chatml")
    (whole,) = prepare([two_exchanges("whole")], tokenizer).samples
    limit = len(whole) - 1
    data = prepare([two_exchanges("a"), TINY_CHATS[0].prefix(3)], tokenizer, max_length=limit)
    cut = [one for one in data.samples if one.id == "a"]
    assert data.truncated == cut and len(cut) == 1
    assert cut[0].dropped_replies == 1
    assert cut[0].dropped_tokens == len(whole) - len(cut[0]) == len(whole) - whole.cuts[0]
    dropped = cut[0].dropped_tokens
    line = f"  1 sample cut at the end of a turn; replies dropped: 1, tokens: {dropped}"
    assert line in str(data).splitlines()
    uncut = prepare([two_exchanges("a")], tokenizer, max_length=limit + 1)
    assert not uncut.truncated and "cut" not in str(uncut)


def test_prepare_keeps_weights_and_options():
    tokenizer = tiny_tokenizer("chatml")
    (one,) = prepare([two_exchanges("a", weight=0.25)], tokenizer).samples
    first, second = one.graded
    assert set(one.weights[first.start : first.end]) == {0.25}
    assert set(one.weights[second.start : second.end]) == {1.0}
    assert prepare([two_exchanges("a")], tokenizer).samples[0].weights is None
    content = prepare([two_exchanges("a")], tokenizer, mode="assistant_content")
    assert content.graded_tokens == one.graded_tokens - 2
    with pytest.raises(MaskError, match="reasoning is 'no': choose from grade, mask"):
        prepare([two_exchanges("a")], tokenizer, reasoning="no")


# --- packing -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 60))
def test_packing_keeps_every_sample_whole_and_no_row_too_long(lengths, length):
    samples = [sample([1] * n, id=str(i)) for i, n in enumerate(lengths)]
    rows = pack(samples, length)
    assert Counter(one.id for row in rows for one in row) == Counter(one.id for one in samples)
    sums = [sum(map(len, row)) for row in rows]
    assert all(0 < total <= length for total in sums)
    # Two rows that would fit into one are never left apart.
    assert len(rows) < 2 or sum(sorted(sums)[:2]) > length


def test_each_sample_goes_where_the_least_room_is_left():
    samples = [sample([1] * n) for n in (2, 7, 5, 3)]
    assert [[len(one) for one in row] for row in pack(samples, 10)] == [[7, 3], [5, 2]]
    assert [[len(one) for one in row] for row in pack(samples, 9)] == [[7, 2], [5, 3]]
    assert pack([], 10) == []


def test_a_sample_that_is_longer_than_a_row_is_named():
    with pytest.raises(ValueError, match="sample 1 .id 'long'. has 6 tokens, and a row 5.*max_len"):
        pack([sample([1]), sample([1] * 6, id="long")], 5)


def test_a_packed_batch_by_hand():
    rows = [[sample([5, 6]), sample([7, 8], [7, -100])], [sample([9])]]
    batch = collate_packed(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100, -100], [-100] * 4]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert batch["attention_mask"].shape == (2, 1, 4, 4)
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].int().tolist() == [
        [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]],
        [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]],
    ]
    assert "loss_weights" not in batch
    rows[0][1] = replace(rows[0][1], weights=[0.5, 2.0])
    weights = collate_packed(rows, pad_token_id=0)["loss_weights"]
    assert weights.tolist() == [[1.0, 1.0, 0.5, 2.0], [1.0, 0.0, 0.0, 0.0]]
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="no samples to collate"):
            collate_packed(nothing, 0)


def loss_of(model, batch):
    """The definition, with whatever the batch says of positions, attention and weights."""
    names = ("input_ids", "attention_mask", "position_ids")
    logits = model(**{name: batch[name] for name in names if name in batch}).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    return (each * batch["loss_weights"][:, 1:]).sum() if "loss_weights" in batch else each.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_packed_batch_has_the_loss_of_its_samples_one_by_one(weighted):
    model, samples = tiny_model(), tiny_samples()
    if weighted:
        samples = [replace(one, weights=[0.5 + i] * len(one)) for i, one in enumerate(samples)]
    rows = pack(samples, len(samples[0]) + len(samples[1]))
    assert len(rows) < len(samples)
    batch = collate_packed(rows, pad_token_id=3)
    alone = sum(loss_of(model, collate([one], 0)) for one in samples)
    packed = loss_of(model, batch)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(graded_loss(model, batch)[0], alone, rtol=1e-4, atol=1e-4)
    packed.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_mask_that_leaks_across_the_seam_gives_another_loss():
    model, samples = tiny_model(), tiny_samples()
    batch = collate_packed([list(samples)], pad_token_id=3)
    right = loss_of(model, batch)
    for leaky in ("attention_mask", "position_ids"):
        changed = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
        if leaky == "position_ids":
            del changed["position_ids"]
        assert abs(loss_of(model, changed) - right) > 1e-2


def test_only_the_samples_own_tokens_reach_its_logits():
    """Another neighbour in the row changes nothing, which the plain causal mask would let it."""
    model, (first, second, _) = tiny_model(), tiny_samples()
    other = replace(second, input_ids=second.input_ids[::-1])

    def last(rows):
        batch = collate_packed(rows, pad_token_id=3)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids")}
        return model(**inputs).logits[0, -len(first) :]

    torch.testing.assert_close(last([[second, first]]), last([[other, first]]))
