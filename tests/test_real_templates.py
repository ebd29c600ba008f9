"""The material of the differential suite is what it says it is."""

import pytest
from real_templates import (
    FAMILIES,
    borrowed,
    control_words,
    family_of,
    guess,
    names,
    templates,
    tokenizer_for,
)
from shapes import INJECTED, MARKERS, SHAPES

from course_utils.conversation import ConversationError, check_turns, from_record


def test_every_template_has_a_family_and_every_family_a_template():
    assert {family_of(name) for name in templates()} == set(FAMILIES)
    with pytest.raises(KeyError, match="'alpaca': add it to FAMILIES"):
        family_of("alpaca")


def test_twins_mark_what_is_graded_and_originals_do_not():
    found = templates()
    for name, template in found.items():
        if name.endswith("_training"):
            assert template.twin == template.source
            assert found[name.removesuffix("_training")].twin == template.source
    assert sum(template.twin is not None for template in found.values()) > 50
    assert found["llama3_1"].twin is None


@pytest.mark.parametrize("name", names())
def test_control_words_are_single_special_tokens(name):
    tokenizer = tokenizer_for(name)
    assert tokenizer.chat_template == templates()[name].source
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = control_words(templates()[name].source)
    for word in (*words, tokenizer.bos_token, tokenizer.eos_token):
        if word:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert len(ids) == 1 and ids[0] in special, word


def test_control_words_are_found_in_code_but_not_in_comments():
    source = "{# <|no|> #}{{ '<|im_start|>' + '</s>' }}<think>[gMASK]<turn|>"
    assert control_words(source) == ("</s>", "<turn|>", "<|im_start|>", "[gMASK]")


def test_brackets_are_tokens_where_there_are_tools():
    assert control_words("[INST] {{ content }} [/INST]") == ()
    source = "[AVAILABLE_TOOLS]...[INST] {{ content }} [/INST] [not me]"
    assert control_words(source) == ("[/INST]", "[AVAILABLE_TOOLS]", "[INST]")


@pytest.mark.parametrize(
    ("source", "words", "bos", "eos"),
    [
        ("<|im_start|>{{ x }}<|im_end|>", ("<|im_end|>", "<|im_start|>"), "<s>", "<|im_end|>"),
        (
            "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}",
            ("<s>", "<|assistant|>", "<|system|>", "<|user|>"),
            "<s>",
            "</s>",
        ),
        ("<start_of_turn>{{ 1/0 }}", ("<start_of_turn>",), "<bos>", "</s>"),
        ("{% broken", (), "<s>", "</s>"),
        ("[|user|]{{ x }}[|endofturn|]", ("[|endofturn|]", "[|user|]"), "[BOS]", "[|endofturn|]"),
    ],
)
def test_special_tokens_are_guessed_from_source_and_output(source, words, bos, eos):
    guessed = guess(source)
    assert (guessed.words, guessed.bos, guessed.eos) == (words, bos, eos)


def test_a_borrowed_tokenizer_has_what_was_guessed():
    guessed = guess("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|stop|>{% endfor %}")
    tokenizer = borrowed(guessed)
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    for word in (*guessed.words, "<s>", "</s>"):
        (number,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert number in special
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert len(tokenizer("<|nobody|>", add_special_tokens=False)["input_ids"]) > 1


def test_the_shapes_are_many_and_differ():
    assert len(SHAPES) >= 26
    texts = [repr(chat.as_record()) for chat in SHAPES.values()]
    assert len(set(texts)) == len(texts)
    for name, chat in SHAPES.items():
        assert from_record(chat.as_record()) == chat, name
        assert any(m.role == "assistant" and m.train for m in chat), name
    assert set(SHAPES) > set(INJECTED)
    assert max(len(message.content) for chat in SHAPES.values() for message in chat) > 20_000
    assert max(len(chat) for chat in SHAPES.values()) == 60


def test_only_these_shapes_do_not_alternate():
    broken = set()
    for name, chat in SHAPES.items():
        try:
            check_turns(chat)
        except ConversationError:
            broken.add(name)
    assert broken == {
        "two assistant turns in a row",
        "two user turns in a row",
        "assistant first",
        "system and assistant",
        "system later",
    }


def test_markers_stand_only_in_the_shapes_that_say_so():
    for name, chat in SHAPES.items():
        assert any(marker in repr(chat) for marker in MARKERS) == (name in INJECTED), name
