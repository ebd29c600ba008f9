"""Layouts: replies left out or weighted, reasoning told apart, long chats, what is cut."""

import pytest

from course_utils.conversation import Conversation, Message, conversation
from course_utils.masking import (
    IGNORE_INDEX,
    MaskError,
    Options,
    character_mask,
    samples_of,
    spans_by_rerendering,
    token_labels,
    training_samples,
)
from course_utils.tokenizers import encode

# As Qwen 3's: reasoning is written behind the last question only, and cut out of the content.
QWEN = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role != 'assistant' %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- else %}
{%- set content, reasoning = m.content, '' %}
{%- if m.reasoning_content is string %}{% set reasoning = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and reasoning %}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{ content }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def user(text):
    return Message("user", text)


def reply(text, **fields):
    return Message("assistant", text, **fields)


def chat(*messages, **fields):
    return Conversation(messages, **fields)


def sample_of(conversation, tokenizer, **options):
    (sample,) = training_samples(conversation, tokenizer, **options)
    return sample


def graded_texts(sample, tokenizer):
    return [tokenizer.decode(sample.labels[run.start : run.end]) for run in sample.graded]


def reference_labels(conversation, tokenizer, mode="assistant"):
    rendered = spans_by_rerendering(conversation, tokenizer)
    return token_labels(encode(tokenizer, rendered.text), character_mask(rendered, mode))


# --- replies that do not count, or count more ----------------------------------------------------


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_reply_that_is_not_trained_on_is_text_like_any_other(toy, left_out):
    tokenizer = toy("chatml")
    texts = ["Yes.", "No.", "100"]
    chats = [
        chat(
            *(
                message
                for place, text in enumerate(texts)
                for message in (user("Hi?"), reply(text, train=place != skipped))
            )
        )
        for skipped in (None, left_out)
    ]
    whole, sample = (sample_of(one, tokenizer) for one in chats)
    assert sample.input_ids == whole.input_ids
    kept = [text for place, text in enumerate(texts) if place != left_out]
    assert graded_texts(sample, tokenizer) == [text + "<|im_end|>" for text in kept]
    assert [run.message for run in sample.graded] == [
        2 * place + 1 for place in range(3) if place != left_out
    ]


def test_an_opening_reply_may_stand_if_it_is_not_graded(toy):
    opening = chat(reply("Hello!", train=False), user("Hi"), reply("Yes."))
    assert graded_texts(sample_of(opening, toy("chatml")), toy("chatml")) == ["Yes.<|im_end|>"]


def test_without_a_reply_to_grade_there_is_no_sample(toy):
    with pytest.raises(MaskError, match="nothing is left to grade"):
        training_samples(chat(user("Hi"), reply("Yes.", train=False)), toy("chatml"))


def test_weights_stand_at_the_replys_own_tokens(toy):
    tokenizer = toy("chatml")
    weighted = chat(user("Hi"), reply("Yes.", weight=0.5), user("Why?"), reply("No.", weight=3))
    sample = sample_of(weighted, tokenizer)
    first, second = sample.graded
    assert len(sample.weights) == len(sample)
    assert set(sample.weights[first.start : first.end]) == {0.5}
    assert set(sample.weights[second.start : second.end]) == {3}
    others = [
        weight
        for weight, label in zip(sample.weights, sample.labels, strict=True)
        if label == IGNORE_INDEX
    ]
    assert set(others) == {1.0}


def test_weights_of_one_are_no_weights(toy):
    assert sample_of(chat(user("Hi"), reply("Yes.", weight=1)), toy("chatml")).weights is None


def test_weights_follow_each_reply_into_its_own_sample(toy):
    rewritten = chat(
        user("Hi"),
        reply("Yes.", reasoning="hm", weight=2),
        user("Why?"),
        reply("No.", reasoning="so"),
    )
    first, second = training_samples(rewritten, toy(QWEN))
    (run,) = first.graded
    assert set(first.weights[run.start : run.end]) == {2}
    (run,) = second.graded
    assert run.message == 3 and set(second.weights[run.start : run.end]) == {1.0}


# --- reasoning -----------------------------------------------------------------------------------

THOUGHT = chat(user("Hi?"), reply("Yes.", reasoning="hm\nso"))
INLINE = chat(user("Hi?"), reply("<think>\nhm\nso\n</think>\n\nYes."))


@pytest.mark.parametrize("one", [THOUGHT, INLINE], ids=["field", "inline"])
def test_reasoning_is_graded_or_masked(toy, one):
    tokenizer = toy(QWEN)
    graded, masked = (sample_of(one, tokenizer, reasoning=how) for how in ("grade", "mask"))
    assert graded.input_ids == masked.input_ids
    assert graded_texts(graded, tokenizer) == ["<think>\nhm\nso\n</think>\n\nYes.<|im_end|>"]
    assert graded_texts(masked, tokenizer) == ["Yes.<|im_end|>"]


def test_a_reply_without_reasoning_is_graded_whole(toy):
    tokenizer = toy(QWEN)
    sample = sample_of(chat(user("Hi?"), reply("Yes.")), tokenizer, reasoning="mask")
    assert graded_texts(sample, tokenizer) == ["Yes.<|im_end|>"]


def test_rewritten_reasoning_gives_one_sample_for_each_reply(toy):
    tokenizer = toy(QWEN)
    two = chat(*THOUGHT, user("Why?"), reply("No.", reasoning="ah"))
    for how, thoughts in (
        ("grade", ["<think>\nhm\nso\n</think>\n\n", "<think>\nah\n</think>\n\n"]),
        ("mask", ["", ""]),
    ):
        samples = training_samples(two, tokenizer, reasoning=how)
        assert [graded_texts(sample, tokenizer) for sample in samples] == [
            [thoughts[0] + "Yes.<|im_end|>"],
            [thoughts[1] + "No.<|im_end|>"],
        ]
        for sample, turn in zip(samples, (1, 3), strict=True):
            served = tokenizer.apply_chat_template(
                two.as_messages()[:turn], add_generation_prompt=True, return_dict=False
            )
            assert sample.input_ids[: len(served)] == served


def test_inline_reasoning_cannot_be_masked_where_the_template_does_not_cut_it_out(toy):
    with pytest.raises(MaskError, match="turn 1: the reasoning is inside the content"):
        training_samples(INLINE, toy("chatml"), reasoning="mask")
    assert sample_of(INLINE, toy("chatml")).graded_tokens > 0


def test_reasoning_that_the_template_drops_is_refused(toy):
    with pytest.raises(MaskError, match="drops or rewrites"):
        training_samples(THOUGHT, toy(QWEN.replace("reasoning.strip('\\n')", "''")))


# --- long conversations --------------------------------------------------------------------------


def long_chat(turns, words=("Hi", "Why?", "100", " é", "Water boils")):
    return conversation(
        *(
            (("user", "assistant")[place % 2], words[place * place % len(words)] + str(place))
            for place in range(turns)
        )
    )


@pytest.mark.parametrize("family", ["plain", "chatml", "gemma", "mistral"])
def test_a_conversation_of_130_turns_has_the_labels_of_the_reference(toy, family):
    tokenizer = toy(family)
    one = long_chat(130)
    sample = sample_of(one, tokenizer)
    assert [run.message for run in sample.graded] == list(range(1, 130, 2))
    assert sample.labels == reference_labels(one, tokenizer)


def test_a_long_conversation_with_empty_and_odd_texts_has_them_too(toy):
    tokenizer = toy("chatml")
    one = long_chat(130, words=("", "<|im_end|>", " ", "\n", "</think>"))
    assert sample_of(one, tokenizer).labels == reference_labels(one, tokenizer)


def test_a_long_conversation_with_replies_left_out_has_them_too(toy):
    tokenizer = toy("chatml")
    one = long_chat(130)
    messages = [
        reply(m.content, train=place % 3 != 0) if m.role == "assistant" else m
        for place, m in enumerate(one)
    ]
    sample = sample_of(Conversation(tuple(messages)), tokenizer)
    expected = [place for place in range(1, 130, 2) if place % 3]
    assert [run.message for run in sample.graded] == expected
    assert graded_texts(sample, tokenizer) == [
        one[place].content + "<|im_end|>" for place in expected
    ]


# --- what is cut is reported ---------------------------------------------------------------------


def test_a_cut_sample_says_what_was_dropped(toy):
    tokenizer = toy("chatml")
    whole = sample_of(long_chat(8), tokenizer)
    assert (whole.dropped_replies, whole.dropped_tokens) == (0, 0)
    for kept, cut in enumerate(whole.cuts[:-1], start=1):
        sample = sample_of(long_chat(8), tokenizer, max_length=cut)
        assert len(sample) == cut and len(sample.graded) == kept
        assert sample.dropped_replies == 4 - kept
        assert sample.dropped_tokens == len(whole) - cut
        assert sample.labels == whole.labels[:cut]


def test_a_reply_whose_own_sample_is_too_long_is_counted(toy):
    tokenizer = toy(QWEN)
    two = chat(*THOUGHT, user("Why? " * 20), reply("No.", reasoning="ah"))
    first, second = training_samples(two, tokenizer)
    sample = sample_of(two, tokenizer, max_length=len(first))
    assert sample.labels == first.labels
    assert (sample.dropped_replies, sample.dropped_tokens) == (1, len(second))


def test_a_conversation_that_does_not_fit_at_all_is_refused_by_name(toy):
    ((_, refusal),) = samples_of(
        [conversation(("user", "Hi"), ("assistant", "Yes."), id="long")],
        toy("chatml"),
        Options(max_length=2),
    )
    assert isinstance(refusal, MaskError)
    assert str(refusal).startswith("conversation 'long': no assistant turn ends within 2 tokens")
