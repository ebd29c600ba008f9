"""Masks of plans against the slow reference, which renders every prefix of a chat anew."""

import pytest
from chats import ALTERNATES, FAMILY_NAMES, TRIMS, any_chats
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from course_utils.conversation import Conversation, Message
from course_utils.masking import (
    IGNORE_INDEX,
    MASK_MODES,
    MaskError,
    character_mask,
    spans_by_rerendering,
    token_labels,
    training_samples,
)
from course_utils.tokenizers import encode

QUICK = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]


def reference(chat, tokenizer, mode):
    """Ids and labels from the reference's spans; those of replies that are not to be graded out."""
    only_last = mode == "last_turn"
    rendered = spans_by_rerendering(chat, tokenizer, only_last=only_last)
    encoded = encode(tokenizer, rendered.text)
    return encoded.ids, token_labels(encoded, character_mask(rendered, mode))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("mode", MASK_MODES)
def test_labels_are_those_of_the_reference(family, mode, toy):
    tokenizer = toy(family)
    counts = {"same": 0, "refused": 0}

    @settings(max_examples=60, suppress_health_check=QUICK)
    @given(any_chats(family), st.integers(0, 255))
    def same(chat, left_out):
        assume("assistant" in chat.roles and chat.roles[0] != "assistant")
        messages = [
            Message(m.role, m.content, train=m.role != "assistant" or not left_out >> place & 1)
            for place, m in enumerate(chat)
        ]
        chat = Conversation(tuple(messages))
        assume(any(m.role == "assistant" and m.train for m in chat))
        if (family, mode) == ("plain", "assistant_content"):
            # In front of an empty reply the reference takes the space for the end of turn.
            assume(all(m.content.strip() for m in chat if m.role == "assistant"))
        try:
            expected = reference(chat, tokenizer, mode)
        except MaskError:
            expected = None
        try:
            (sample,) = training_samples(chat, tokenizer, mode=mode)
        except MaskError as error:
            counts["refused"] += 1
            # The reference may well grade nothing; a sample may not.
            nothing = expected and set(expected[1]) == {IGNORE_INDEX}
            assert expected is None or nothing, (error, expected)
            return
        counts["same"] += 1
        if expected is not None:
            assert (sample.input_ids, sample.labels) == expected

    same()
    assert counts["same"] > 20, counts


def long_chat(turns, family):
    """As many exchanges, in which texts repeat, are empty, or look like special tokens."""
    texts = ["Hi", "", " a b ", "Hi\n", "<|im_end|>", "x" * 40, "水 é"]
    texts = [t.strip() for t in texts] if family in TRIMS else texts
    messages = [] if family in ALTERNATES else [Message("system", "Be brief.")]
    for turn in range(turns):
        messages.append(Message("user", texts[turn * 3 % len(texts)]))
        messages.append(Message("assistant", texts[turn * 5 % len(texts)], train=turn % 4 != 1))
        if family not in (*ALTERNATES, "plain") and turn % 6 == 5:
            messages += [Message("tool", "42"), Message("assistant", texts[turn % len(texts)])]
    return Conversation(tuple(messages))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("turns", [23, 70, 104, 131])
def test_long_conversations_have_the_labels_of_the_reference(family, turns, toy):
    tokenizer, chat = toy(family), long_chat(turns, family)
    (sample,) = training_samples(chat, tokenizer)
    assert (sample.input_ids, sample.labels) == reference(chat, tokenizer, "assistant")
    trained = [place for place, m in enumerate(chat) if m.role == "assistant" and m.train]
    assert sorted({run.message for run in sample.graded}) == trained
