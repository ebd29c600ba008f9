"""Templates: rendering and parsing are inverse on the canonical class and refused outside it."""

import re

import pytest
from chats import (
    ALL_MARKERS,
    ALTERNATES,
    FAMILY_NAMES,
    HARMLESS,
    MARKERS,
    ROLES,
    TRIMS,
    alternating,
    any_chats,
    any_order,
    as_conversation,
    canonical,
    canonical_chats,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.conversation import Conversation, Message, conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.templates import (
    FAMILIES,
    SPAN_KINDS,
    TemplateError,
    chat_template,
    parse,
    render,
)

QUICK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
USER, REPLY = ("user", "Hi"), ("assistant", "Hello")


# --- what each family writes, letter by letter ---------------------------------------------------

CHAT = conversation(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
EXPECTED = {
    "raw": "Hi Hello Bye",
    "plain": "User: Hi\nAssistant: Hello\nUser: Bye\n",
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
    ),
    "mistral": "<s> [INST] Hi [/INST] Hello</s> [INST] Bye [/INST]",
}
PROMPT = {
    "raw": " ",
    "plain": "Assistant:",
    "chatml": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>model\n",
    "mistral": "",
}
GENERATED = {
    "raw": "Hello",
    "plain": " Hello\n",
    "chatml": "Hello<|im_end|>",
    "llama3": "Hello<|eot_id|>",
    "gemma": "Hello<end_of_turn>",
    "mistral": " Hello</s>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_writes_its_format(family):
    assert str(render(CHAT, family)) == EXPECTED[family]
    prompt = render(CHAT, family, add_generation_prompt=True)
    assert prompt.text == EXPECTED[family] + PROMPT[family]
    assert "".join(s.text for s in prompt.spans if s.generated) == GENERATED[family]


def test_every_family_is_tested():
    assert set(FAMILIES) == {"raw", *FAMILY_NAMES}
    for name in FAMILY_NAMES:
        assert FAMILIES[name].trims == (name in TRIMS)
        assert FAMILIES[name].alternates == (name in ALTERNATES)
        assert FAMILIES[name].roles == ROLES[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_say_kind_turn_and_role(family):
    for span in render(CHAT, family).spans:
        assert span.kind in SPAN_KINDS
        if span.kind == "bos":
            assert span.turn is None and span.role is None
        else:
            assert span.role == CHAT[span.turn].role
        if span.kind == "content":
            assert span.text == CHAT[span.turn].content
        assert span.special == (span.text in FAMILIES[family].special_tokens)
        assert not span.generated or span.role == "assistant"
    stops = [s.text for s in render(CHAT, family).spans if s.generated and s.kind == "eot"]
    assert stops == ([FAMILIES[family].stop] if FAMILIES[family].stop else [])


# --- the round trip ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_round_trip(family):
    seen = []

    @settings(max_examples=2000, suppress_health_check=QUICK)
    @given(canonical_chats(family))
    def inverse(chat):
        seen.append(chat)
        text = str(render(chat, family))
        assert parse(text, family) == chat

    inverse()
    assert len(seen) >= 2000
    texts = {text for chat in seen for text in (m.content for m in chat)}
    assert {"", "<|im_end|", "[/INST"} <= texts
    assert sum("\n" in text for text in texts) > 100
    others = [m for m in ALL_MARKERS if not MARKERS[family].search(m)]
    assert all(any(m.strip() in text for text in texts) for m in others)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_content_never_changes_the_number_of_turns(family):
    outcomes = {"refused": 0, "parsed": 0}

    @settings(max_examples=500, suppress_health_check=QUICK)
    @given(any_chats(family))
    def same_turns(chat):
        try:
            text = str(render(chat, family))
        except TemplateError:
            outcomes["refused"] += 1
            assert any(m.content != canonical(m.content, family) for m in chat) or (
                family in ALTERNATES and chat.roles[0] == "system"
            )
        else:
            outcomes["parsed"] += 1
            assert parse(text, family).roles == chat.roles
        render(chat, family, lossy=True)
        if chat.roles[-1] != "assistant":
            render(chat, family, lossy=True, add_generation_prompt=True)

    if family in ALTERNATES:
        # A system text alone is the one thing that lossy=True still refuses.
        with pytest.raises(TemplateError, match="no user turn to fold"):
            render(conversation(("system", "Be brief.")), family, lossy=True)
    same_turns()
    assert min(outcomes.values()) > 10, outcomes


# --- what is refused -----------------------------------------------------------------------------

REFUSED = [
    *((f, [("user", " Hi")], "white space around message 0.*Strip.*lossy=True") for f in TRIMS),
    *((f, [USER, ("assistant", "Hi\n")], "white space around message 1") for f in TRIMS),
    *(
        (f, [("user", f"a{marker}b")], re.escape(f"message 0 holds {marker!r}, a marker of {f}"))
        for f, markers in {
            "chatml": ["<|im_start|>", "<|im_end|>"],
            "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
            "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
            "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
        }.items()
        for marker in markers
    ),
    ("llama3", [USER, ("assistant", "<|eot_id|>")], "message 1 holds .*never becomes a special"),
    ("plain", [("user", "a\nUser: b")], "message 0 holds 'User:', a marker of plain"),
    ("plain", [("user", "a\nAssistant: b")], "message 0 holds 'Assistant:'"),
    *((f, [("system", "S"), USER], f"{f} has no system role.*lossy=True") for f in ALTERNATES),
    *(
        (f, [USER, REPLY, ("tool", "4"), REPLY], f"{f} has no tool role .message 2.*such as chatml")
        for f in ("plain", "gemma", "mistral")
    ),
    *((f, [USER, USER], f"{f} needs alternating turns.*message 1 is user") for f in ALTERNATES),
    *((f, [REPLY, USER], f"{f} needs alternating.*at the start, where only") for f in ALTERNATES),
    *((f, [USER, REPLY, REPLY], "message 2 is assistant after assistant") for f in ALTERNATES),
    *((f, [USER, ("system", "S")], "message 1 is system after user") for f in ALTERNATES),
]


@pytest.mark.parametrize(("family", "turns", "message"), REFUSED)
def test_outside_the_canonical_class_is_refused(family, turns, message):
    with pytest.raises(TemplateError, match=message):
        render(conversation(*turns), family)


@pytest.mark.parametrize("family", ALTERNATES)
@pytest.mark.parametrize("turns", [[USER, USER], [REPLY], [USER, REPLY, ("tool", "4")]])
def test_a_refused_order_of_turns_is_refused_with_lossy_too(family, turns):
    with pytest.raises(TemplateError):
        render(conversation(*turns), family, lossy=True)


CALL = {"name": "f", "arguments": {}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lossy", [False, True])
def test_reasoning_and_tool_calls_are_refused(family, lossy):
    asked = Message("user", "Hi")
    for fields, what in (
        ({"reasoning": "Hm."}, "reasoning"),
        ({"reasoning": ""}, "reasoning"),
        ({"tool_calls": (CALL,)}, "a tool call"),
    ):
        chat = Conversation((asked, Message("assistant", "Hello", **fields)))
        with pytest.raises(TemplateError, match=f"{family} cannot write {what} .message 1.*Write"):
            render(chat, family, lossy=lossy)
    for fields in ({"train": False}, {"weight": 2}):  # which no template sees
        chat = Conversation((asked, Message("assistant", "Hello", **fields)))
        assert str(render(chat, family)) == str(render(conversation(USER, REPLY), family))


def test_no_second_generation_prompt():
    with pytest.raises(TemplateError, match="already ends with an assistant turn.*Drop the last"):
        render(WALKTHROUGH, "chatml", add_generation_prompt=True)


@pytest.mark.parametrize("function", [render, parse])
def test_unknown_family(function):
    argument = WALKTHROUGH if function is render else "text"
    with pytest.raises(TemplateError, match="unknown family 'alpaca': choose from raw, plain"):
        function(argument, "alpaca")


def test_raw_text_cannot_be_parsed():
    with pytest.raises(TemplateError, match="nothing in it says where a turn ends"):
        parse("Hi Hello", "raw")
    with pytest.raises(TemplateError, match="raw has no template"):
        chat_template("raw")


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("damage", ["", "head", "tail", "double", "role", "hello", "prompt"])
def test_damaged_text_is_refused(family, damage):
    text = EXPECTED[family]
    damaged = {
        "": "",
        "head": text[1:],
        "tail": text[:-1],
        "double": text + "\n" + text,
        "role": text.replace("user", "bob").replace("User", "Bob").replace("INST", "INSTR"),
        "hello": "hello",
        "prompt": text + (PROMPT[family] or " "),
    }[damage]
    with pytest.raises(TemplateError):
        parse(damaged, family)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_text_with_a_hole_is_refused_or_says_something_else(family):
    outcomes = {"refused": 0, "parsed": 0}

    @settings(max_examples=200, suppress_health_check=QUICK)
    @given(canonical_chats(family), st.integers(0, 10_000), st.integers(1, 12))
    def no_other_error(chat, place, width):
        text = str(render(chat, family))
        place %= len(text)
        damaged = text[:place] + text[place + width :]
        try:
            found = parse(damaged, family)
        except TemplateError:
            outcomes["refused"] += 1
        else:
            outcomes["parsed"] += 1
            assert str(render(found, family)) == damaged
            assert (found == chat) == (damaged == text)

    no_other_error()
    assert min(outcomes.values()) > 2, outcomes


def test_lossy_folds_the_system_text_as_it_stands():
    chat = conversation(("system", " S "), ("user", " q "))
    assert render(chat, "mistral", lossy=True).text == "<s> [INST]  S \n\n q  [/INST]"
    gemma = render(chat, "gemma", lossy=True).text
    assert gemma == "<bos><start_of_turn>user\n S \n\nq<end_of_turn>\n"
    assert parse(render(conversation(("user", "S\n\nq")), "gemma"), "gemma").roles == ["user"]


# --- the Jinja templates are the same ------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("generation_tag", [False, True])
def test_jinja_equals_python(family, generation_tag, toy):
    tokenizer = toy(chat_template(family, generation_tag=generation_tag))

    @settings(max_examples=150, suppress_health_check=QUICK)
    @given(any_chats(family))
    def same(chat):
        for prompt in (False, True)[: 1 + (chat.roles[-1] != "assistant")]:
            jinja = tokenizer.apply_chat_template(
                chat.as_messages(), tokenize=False, add_generation_prompt=prompt
            )
            ours = render(chat, family, lossy=True, add_generation_prompt=prompt)
            assert jinja == str(ours)

    same()


@pytest.mark.parametrize("family", ALTERNATES)
def test_jinja_refuses_what_python_refuses(family, toy):
    from jinja2.exceptions import TemplateError as JinjaError

    for turns in ([USER, USER], [REPLY], [USER, REPLY, ("tool", "4")], [USER, ("system", "S")]):
        with pytest.raises(JinjaError, match="alternate"):
            toy(family).apply_chat_template(conversation(*turns).as_messages(), tokenize=False)


def test_the_generation_tag_is_left_out_by_default():
    for family in FAMILY_NAMES:
        assert "generation" in chat_template(family, generation_tag=True)
        assert not re.search(r"{%-? *(end)?generation", chat_template(family))


# --- against the originals -----------------------------------------------------------------------


def same_as_original(real, name, family, chats, examples=120):
    tokenizer = real(name)

    @settings(max_examples=examples, suppress_health_check=QUICK)
    @given(chats)
    def same(chat):
        for prompt in (False, True)[: 1 + (chat.roles[-1] != "assistant")]:
            theirs = tokenizer.apply_chat_template(
                chat.as_messages(), tokenize=False, add_generation_prompt=prompt
            )
            ours = str(render(chat, family, lossy=True, add_generation_prompt=prompt))
            if name == "llama3" and not prompt:  # it writes the generation prompt unasked
                theirs = theirs.removesuffix(PROMPT["llama3"])
            assert theirs == ours

    same()


def test_gemma_as_gemma_3_writes_it(real):
    same_as_original(real, "gemma3", "gemma", any_chats("gemma"))


@pytest.mark.parametrize("name", ["llama3", "llama3_1"])
def test_llama3_as_its_tokenizers_write_it(real, name):
    roles = ("system", "user", "assistant")
    same_as_original(real, name, "llama3", any_order(roles).map(as_conversation))


def test_chatml_as_qwen3_writes_it(real):
    """Prompts are equal; replies are too, but for the empty think block that Qwen3 puts there."""
    prompts = alternating().map(lambda turns: conversation(*turns[: 1 + (turns[0][0] == "system")]))
    same_as_original(real, "qwen3", "chatml", prompts.filter(lambda c: c.roles[-1] == "user"))

    @settings(max_examples=50, suppress_health_check=QUICK)
    @given(alternating(HARMLESS, full=True))
    def single_turn(turns):
        turns = turns[: 2 + (turns[0][0] == "system")]
        chat = conversation(*turns)
        theirs = real("qwen3").apply_chat_template(chat.as_messages(), tokenize=False)
        assert theirs.count("<think>\n\n</think>\n\n") == 1
        assert theirs.replace("<think>\n\n</think>\n\n", "") == str(render(chat, "chatml"))

    single_turn()


def test_mistral_as_mistral_common_writes_it():
    pytest.importorskip("sentencepiece", reason="needs mistral-common[sentencepiece]")
    pytest.importorskip("mistral_common", reason="needs the dev extra")
    from mistral_common.protocol.instruct.messages import (
        AssistantMessage,
        SystemMessage,
        UserMessage,
    )
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.v1()
    pieces = theirs.instruct_tokenizer.tokenizer
    classes = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}

    def ids(rendered):
        """Turn by turn, as they encode; their tokenizer puts the leading space there itself."""
        ids, turns = [pieces.bos_id], {}
        for span in rendered.spans[1:]:
            owner = 1 if span.role == "system" else span.turn
            turns.setdefault(owner, []).append(span)
        for spans in turns.values():
            stop = spans[-1].kind == "eot"
            text = "".join(span.text for span in spans[: -1 if stop else None])
            assert text.startswith(" ")
            ids += pieces.encode(text[1:], bos=False, eos=stop)
        return ids

    @settings(max_examples=150, suppress_health_check=QUICK)
    @given(alternating())
    def same(turns):
        turns = turns if turns[-1][0] == "user" else turns[:-1]
        turns = [(role, text or "x") for role, text in turns]  # theirs refuses empty replies
        request = ChatCompletionRequest(messages=[classes[r](content=c) for r, c in turns])
        found = theirs.encode_chat_completion(request)
        rendered = render(conversation(*turns), "mistral", lossy=True)
        assert found.tokens == ids(rendered)

    same()


def test_llama3_as_llama_models_writes_it():
    pytest.importorskip("llama_models", reason="needs the dev extra")
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    tokenizer = Tokenizer.get_instance()
    theirs = ChatFormat(tokenizer)
    chats = [*TINY_CHATS[:2], CHAT, conversation(("system", "S"), USER, REPLY, ("tool", "4"))]
    for chat in chats:
        messages = [RawMessage(role=m.role, content=m.content, **extra(m)) for m in chat]
        found = theirs.encode_dialog_prompt(messages)
        assert tokenizer.decode(found.tokens) == str(render(chat, "llama3")) + PROMPT["llama3"]


def extra(message):
    return {"call_id": "1"} if message.role == "tool" else {}
