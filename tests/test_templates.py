"""Templates: rendering and parsing are inverse on the canonical class and refused outside it."""

import json
import re
from dataclasses import replace

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
from conftest import how_many
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.conversation import Conversation, Message, conversation, from_record
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


EVERY_ROLE = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", "add(2, 2)"),
        Message("tool", "4", name="add", tool_call_id="1"),
        Message("assistant", "4", train=False),
    )
)
WITH_EVERY_ROLE = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\nadd(2, 2)<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nadd(2, 2)<|eot_id|>"
        "<|start_header_id|>ipython<|end_header_id|>\n\n4<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>"
    ),
}


@pytest.mark.parametrize("family", WITH_EVERY_ROLE)
def test_plain_turns_of_every_role(family, toy):
    assert str(render(EVERY_ROLE, family)) == WITH_EVERY_ROLE[family]
    messages = EVERY_ROLE.as_messages()
    assert toy(family).apply_chat_template(messages, tokenize=False) == WITH_EVERY_ROLE[family]


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

    count = how_many(500, 2000)

    @settings(max_examples=count, suppress_health_check=QUICK)
    @given(canonical_chats(family))
    def inverse(chat):
        seen.append(chat)
        text = str(render(chat, family))
        assert parse(text, family) == chat

    inverse()
    assert len(seen) >= count
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


# --- tools, calls and reasoning ------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the sky, für alle <Orte> & 'more'.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}
IN_BERN = {"name": "weather", "arguments": {"city": "Bern", "sure": True, "day": None}}
IN_ZURICH = {"name": "weather", "arguments": {"city": "Zürich"}}


def with_tools(*messages, tools=(WEATHER, CLOCK)):
    return Conversation((Message("user", "Sky?"), *messages), tools=tools)


# Written out from the published templates: Qwen 3's, and Llama 3.1's without its system turn.
CHATML_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "description": "Tells the sky, für alle <Orte>\
 & 'more'.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
{"type": "function", "function": {"name": "clock", "parameters": {}}}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
LLAMA3_TOOLS = """Given the following functions, please respond with a JSON for a function call \
with its proper arguments that best answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its \
value}.Do not use variables.

{
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the sky, für alle <Orte> & 'more'.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                }
            }
        }
    }
}

{
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {}
    }
}

"""
BERN_CHATML = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "sure": true, "day": null}}\n'
    "</tool_call>"
)
ZURICH_CHATML = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
BERN_LLAMA3 = '{"name": "weather", "parameters": {"city": "Bern", "sure": true, "day": null}}'
GRAMMAR = [
    (
        "chatml",
        with_tools(
            Message("assistant", "Both.", "Two cities.", (IN_BERN, IN_ZURICH)),
            Message("tool", "clear"),
            Message("tool", "rain"),
            Message("assistant", "Clear in Bern.", ""),
        ),
        f"<|im_start|>system\n{CHATML_TOOLS}<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nTwo cities.\n</think>\n\n"
        f"Both.\n{BERN_CHATML}\n{ZURICH_CHATML}<|im_end|>\n"
        "<|im_start|>tool\nclear<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nClear in Bern.<|im_end|>\n",
        [
            f"<think>\nTwo cities.\n</think>\n\nBoth.\n{BERN_CHATML}\n{ZURICH_CHATML}<|im_end|>",
            "<think>\n\n</think>\n\nClear in Bern.<|im_end|>",
        ],
    ),
    (
        "chatml",
        Conversation(
            (
                Message("system", "Be brief."),
                Message("user", "Sky?"),
                Message("assistant", "", None, (IN_BERN,)),
            ),
            tools=(WEATHER, CLOCK),
        ),
        f"<|im_start|>system\nBe brief.\n\n{CHATML_TOOLS}<|im_end|>\n"
        f"<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n{BERN_CHATML}<|im_end|>\n",
        [f"{BERN_CHATML}<|im_end|>"],
    ),
    (
        "llama3",
        with_tools(
            Message("assistant", "", None, (IN_BERN,)),
            Message("tool", "clear"),
            Message("assistant", "Clear."),
            Message("user", "And now?"),
        ),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{LLAMA3_TOOLS}Sky?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        f"{BERN_LLAMA3}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\nclear<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nClear.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>",
        [f"{BERN_LLAMA3}<|eot_id|>", "Clear.<|eot_id|>"],
    ),
]


def written(tokenizer, chat, **options):
    """What transformers makes of a conversation."""
    tools = list(chat.tools) or None
    return tokenizer.apply_chat_template(chat.as_messages(), tools=tools, tokenize=False, **options)


@pytest.mark.parametrize(("family", "chat", "text", "replies"), GRAMMAR)
def test_the_grammar_letter_by_letter(family, chat, text, replies, toy):
    rendered = render(chat, family)
    assert str(rendered) == text
    assert written(toy(family), chat) == text
    assert parse(text, family) == chat
    generated = {}
    for span in rendered.spans:
        assert span.kind in SPAN_KINDS
        assert span.special == (span.text in FAMILIES[family].special_tokens)
        if span.generated:
            generated[span.turn] = generated.get(span.turn, "") + span.text
            assert chat[span.turn].role == span.role == "assistant"
    assert list(generated.values()) == replies


@pytest.mark.parametrize(("family", "chat", "text", "replies"), GRAMMAR)
def test_the_generation_tag_holds_what_the_model_writes(family, chat, text, replies, toy):
    tokenizer = toy(chat_template(family, generation_tag=True))
    found = tokenizer.apply_chat_template(
        chat.as_messages(),
        tools=list(chat.tools),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    masks = zip(found["input_ids"], found["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, graded in masks if graded]) == "".join(replies)


LONG = '{"name": "weather", "arguments": {"city": "Bern"}}'
LOOKALIKES = [
    *(
        ("chatml", 1, Message("assistant", text), "message 1 holds '<.*', a marker of chatml")
        for text in (
            "a <think> b",
            "</think>",
            f"<tool_call>\n{LONG}\n</tool_call>",
            "</tool_call>",
        )
    ),
    ("chatml", 1, Message("assistant", "", "x</think>"), "message 1 holds '</think>'"),
    ("chatml", 0, Message("system", "a </tools>"), "message 0 holds '</tools>', a marker"),
    *(
        (family, 1, Message("assistant", "", None, (call,)), f"message 1 holds '{stop}'")
        for family, stop in (("chatml", "<.im_end.>"), ("llama3", "<.eot_id.>"))
        for call in (
            {"name": "f", "arguments": {"deep": [{"a": FAMILIES[family].stop}]}},
            {"name": "f", "arguments": {FAMILIES[family].stop: 1}},
            {"name": FAMILIES[family].stop, "arguments": {}},
        )
    ),
    *(
        ("llama3", 1, Message("assistant", text), "message 1 would be read back as something else")
        for text in (
            BERN_LLAMA3,
            '{"parameters":{}, "name":"f"}',
            '{ "name": "f", "parameters": {}}',
        )
    ),
    ("llama3", 0, Message("user", LLAMA3_TOOLS + "Hi"), "message 0 would be read back as"),
]


@pytest.mark.parametrize(("family", "place", "message", "refusal"), LOOKALIKES)
def test_what_looks_like_the_grammar_is_refused(family, place, message, refusal, toy):
    messages = [Message("user", "Hi"), Message("assistant", "Hello")]
    messages[place] = message
    chat = Conversation(tuple(messages))
    with pytest.raises(TemplateError, match=refusal):
        render(chat, family)
    assert str(render(chat, family, lossy=True)) == written(toy(family), chat)


@pytest.mark.parametrize("name", ["a", "name"])
def test_a_text_that_begins_like_a_tool_is_refused(name):
    text = f'{{"{name}": "b"}}\n\nWhat is it?'
    chat = Conversation((Message("user", text),), tools=(WEATHER,))
    with pytest.raises(TemplateError, match="would be read back as something else"):
        render(chat, "llama3")
    assert parse(render(chat, "chatml"), "chatml") == chat


@pytest.mark.parametrize("family", ["chatml", "llama3"])
@pytest.mark.parametrize("described", ["<tools>", "stop"])
def test_markers_in_the_description_of_a_tool(family, described):
    described = FAMILIES[family].stop if described == "stop" else described
    chat = with_tools(tools=({"type": "function", "function": {"name": described}},))
    if described == "<tools>" and family == "llama3":
        assert parse(render(chat, family), family) == chat
    else:
        with pytest.raises(TemplateError, match="the description of a tool holds '<"):
            render(chat, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_no_family_has_are_refused(family):
    chat = Conversation((Message("user", "Hi"),), template_options={"enable_thinking": False})
    with pytest.raises(TemplateError, match=f"template .enable_thinking., and {family} has none"):
        render(chat, family, lossy=True)


def test_what_llama3_cannot_write(toy):
    from jinja2.exceptions import TemplateError as JinjaError

    asked, call = Message("user", "Hi"), Message("assistant", "", None, (CALL,))
    for chat, message in (
        (Conversation((asked, replace(call, content="I look."))), "in a turn, and message 1 has "),
        (Conversation((asked, replace(call, tool_calls=(CALL, CALL)))), "and message 1 has "),
        (Conversation((Message("system", "S"),), tools=(CLOCK,)), "into the first user turn"),
        (
            Conversation((Message("assistant", "Hi"), asked), tools=(CLOCK,)),
            "into the first user turn, .* message 0 is none",
        ),
    ):
        for lossy in (False, True):
            with pytest.raises(TemplateError, match=message):
                render(chat, "llama3", lossy=lossy)
        with pytest.raises(JinjaError, match=message):
            written(toy("llama3"), chat)
        render(chat, "chatml")


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_outputs_in_another_order_than_their_calls_are_refused(family, toy):
    from jinja2.exceptions import TemplateError as JinjaError

    asked, ids = Message("user", "Hi"), ("a", "b") if family == "chatml" else ("a",)
    calls = tuple({"id": name, "function": CALL} for name in ids)

    def answered(*outputs):
        turns = (Message("tool", str(name), tool_call_id=name) for name in outputs)
        return Conversation((asked, Message("assistant", "", None, calls), *turns))

    for chat in (answered(*ids), answered(None, *ids[1:]), answered(*ids, "c")):
        assert str(render(chat, family)) == written(toy(family), chat)
    for chat in (answered("c"), answered("b", "a")):
        with pytest.raises(TemplateError, match=f"message 2 answers .*{family} writes no ids"):
            render(chat, family)
        with pytest.raises(JinjaError, match=f"message 2 answers .*{family} writes no ids"):
            written(toy(family), chat)


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_jinja_refuses_what_no_conversation_can_hold(family, toy):
    """Whoever calls the template by hand may pass anything."""
    from jinja2.exceptions import TemplateError as JinjaError

    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "Hi"}]
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(JinjaError, match="as an object, and those of message 1 are none"):
        toy(family).apply_chat_template(messages, tokenize=False)
    call["function"]["arguments"] = {}
    with pytest.raises(JinjaError, match="message 0 is no assistant turn"):
        toy(family).apply_chat_template([messages[0] | {"tool_calls": [call]}], tokenize=False)
    text = toy(family).apply_chat_template(messages, tokenize=False)
    assert "None" not in text and '{"name": "f", ' in text


# --- random conversations with tools -------------------------------------------------------------

GRAMMAR_LIKE = ["<think>", "</think>", "<think>\nx\n</think>\n\n", BERN_CHATML, "\n" + BERN_CHATML]
GRAMMAR_LIKE += [BERN_LLAMA3, CHATML_TOOLS, LLAMA3_TOOLS, "<tools>", "</tool_call>", '{"a": 1}\n\n']
SAFE = st.sampled_from(["", "yes", " é", "\n", "水 1\n\n", "a\u2028b", "{", "'\"\\", "# Tools\n\n"])
UNSAFE = st.sampled_from(GRAMMAR_LIKE + ALL_MARKERS) | st.text(max_size=5)


def rich_chats(family: str, texts=SAFE | UNSAFE):
    """Conversations with tools, calls, reasoning, ids and names, in orders the family may refuse.

    Half of what is beyond a role and a text is left out, so that many are within every family.
    """
    text = st.lists(texts, max_size=2).map("".join)
    number = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    value = st.recursive(
        st.none() | st.booleans() | number | text,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
        max_leaves=4,
    )
    ids, objects = st.sampled_from([None, "a", "b"]), st.dictionaries(text, value, max_size=2)
    function = st.fixed_dictionaries({"name": text, "arguments": objects})
    named = st.sampled_from(["f", "sky über"])
    tool = st.fixed_dictionaries({"name": named, "description": text, "parameters": objects})
    calls = st.lists(
        st.fixed_dictionaries({"id": ids, "function": function}), min_size=1, max_size=2
    )

    def message(role, **fields):
        return st.builds(Message, st.just(role), fields.pop("content", text), **fields)

    call = {"tool_calls": calls.map(tuple)}
    messages = {
        "system": message("system"),
        "user": message("user"),
        "assistant": st.one_of(
            message("assistant"),
            message("assistant", content=st.just(""), **call),
            message("assistant", reasoning=text),
            message("assistant", reasoning=st.none() | text, **call),
        ),
        "tool": message("tool", tool_call_id=ids, name=ids),
    }
    usual = ["system user assistant tool assistant", "user assistant tool tool assistant user"]
    usual += ["user assistant user assistant", "system user assistant", "user"]
    order = st.one_of(
        st.lists(st.sampled_from(ROLES[family]), min_size=1, max_size=4),
        st.sampled_from(usual).map(str.split),
    )
    return st.builds(
        Conversation,
        order.flatmap(lambda roles: st.tuples(*map(messages.get, roles))),
        tools=st.just(()) | st.lists(tool, max_size=2).map(tuple),
    )


def outcome(make, *arguments, **options):
    """The text that `make` gives for the arguments, or None if it refuses them."""
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        return str(make(*arguments, **options))
    except (TemplateError, JinjaError):
        return None


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("generation_tag", [False, True])
def test_jinja_equals_python_with_tools_or_both_refuse(family, generation_tag, toy):
    tokenizer = toy(chat_template(family, generation_tag=generation_tag))
    outcomes = {"refused": 0, "equal": 0, "equal with more": 0}
    # Of families that write no tools one in ten is not refused.
    count = 200 if family in ("chatml", "llama3") else 400

    @settings(max_examples=count, suppress_health_check=QUICK)
    @given(rich_chats(family))
    def same(chat):
        for prompt in (False, True)[: 1 + (chat.roles[-1] != "assistant")]:
            ours = outcome(render, chat, family, lossy=True, add_generation_prompt=prompt)
            assert outcome(written, tokenizer, chat, add_generation_prompt=prompt) == ours
        plain = all(m.reasoning is None and not m.tool_calls for m in chat) and not chat.tools
        kind = "refused" if ours is None else "equal" if plain else "equal with more"
        outcomes[kind] += 1

    same()
    assert outcomes["equal"] > 20, outcomes
    assert outcomes["refused"] > 20 or family == "chatml", outcomes
    assert (outcomes["equal with more"] > 20) == (family in ("chatml", "llama3")), outcomes


def seen(chat: Conversation) -> Conversation:
    """The conversation without what no text holds."""
    messages = []
    for message in chat:
        calls = tuple(call["function"] for call in message.tool_calls)
        messages.append(replace(message, tool_calls=calls, name=None, tool_call_id=None))
    return Conversation(tuple(messages), tools=chat.tools)


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_what_is_written_with_tools_is_parsed_back(family):
    found = {"refused": 0, "tools": 0, "calls": 0, "several": 0, "reasoning": 0}

    @settings(max_examples=600, suppress_health_check=QUICK)
    @given(rich_chats(family, st.one_of(SAFE, SAFE, UNSAFE)))
    def inverse(chat):
        text = outcome(render, chat, family)
        found["refused"] += text is None
        if text is None:
            return
        assert parse(text, family) == seen(chat)
        found["tools"] += bool(chat.tools)
        found["calls"] += any(m.tool_calls for m in chat)
        found["several"] += any(len(m.tool_calls) > 1 for m in chat)
        found["reasoning"] += any(m.reasoning is not None for m in chat)

    inverse()
    least = [found["refused"], found["tools"], found["calls"]]
    least += [found["several"], found["reasoning"]] if family == "chatml" else []
    assert min(least) > 10, found


def within(chat: Conversation, family: str) -> Conversation:
    """The nearest conversation in the canonical class, of texts that are `SAFE`."""
    messages = []
    for message in seen(chat):
        if family == "llama3":
            message = replace(message, reasoning=None, tool_calls=message.tool_calls[:1])
            message = replace(message, content=message.content.strip())
            message = replace(message, content="" if message.tool_calls else message.content)
        messages.append(message)
    opened = chat.roles[0] == "user" or chat.roles[:2] == ["system", "user"]
    tools = chat.tools if family == "chatml" or opened else ()
    return Conversation(tuple(messages), tools=tools)


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_nothing_in_the_canonical_class_is_refused(family):
    @settings(max_examples=500, suppress_health_check=QUICK)
    @given(rich_chats(family, SAFE))
    def inverse(chat):
        chat = within(chat, family)
        assert parse(render(chat, family), family) == chat

    inverse()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_more_turns_never_change_the_earlier_ones(family):
    compared = {"prefix": 0, "prompt": 0}

    @settings(max_examples=200, suppress_health_check=QUICK)
    @given(rich_chats(family))
    def prefixes(chat):
        whole = outcome(render, chat, family, lossy=True)
        for turns in range(1, len(chat) + 1 if whole is not None else 0):
            part = outcome(render, chat.prefix(turns), family, lossy=True)
            # Only a system text alone is refused where more turns are not.
            assert part is not None or set(chat.roles[:turns]) == {"system"}
            compared["prefix"] += part is not None and turns < len(chat)
            assert whole.startswith(part or "")
            if chat.roles[turns - 1 : turns + 1] == ["user", "assistant"]:
                prompt = render(chat.prefix(turns), family, lossy=True, add_generation_prompt=True)
                assert whole.startswith(str(prompt))
                compared["prompt"] += 1

    prefixes()
    assert min(compared.values()) > 10, compared


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_masks_grade_what_the_spans_say_the_model_writes(family, toy):
    from course_utils.masking import MaskError, training_samples
    from course_utils.tokenizers import special_tokens

    tokenizer = toy(family)
    specials = {tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)}
    outcomes = {"refused": 0, "exact": 0, "calls": 0, "markers": 0}

    @settings(max_examples=200, suppress_health_check=QUICK)
    @given(rich_chats(family))
    def exact(chat):
        try:
            (sample,) = training_samples(chat, tokenizer)
        except MaskError:
            outcomes["refused"] += 1
            return
        spans = render(chat, family, lossy=True).spans
        written = {}
        for span in spans:
            if span.generated:
                written[span.turn] = written.get(span.turn, "") + span.text
        graded = {
            run.message: tokenizer.decode(sample.input_ids[run.start : run.end])
            for run in sample.graded
        }
        assert graded == written
        assert sample.graded_tokens == sum(run.end - run.start for run in sample.graded)
        text = "".join(span.text for span in spans)
        assert tokenizer.decode(sample.input_ids) == text
        assert sum(t in specials for t in sample.input_ids) == sum(s.special for s in spans)
        outcomes["exact"] += 1
        outcomes["calls"] += any(m.tool_calls for m in chat)
        outcomes["markers"] += text.count("<|") > 2 * len(chat) + (family == "llama3")

    exact()
    assert min(outcomes.values()) > 3, outcomes


README_ROW = {
    "messages": [
        {"role": "user", "content": "Sky in Bern?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I must ask.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}],
        },
        {"role": "tool", "content": "clear"},
        {"role": "assistant", "content": "Clear."},
    ],
    "tools": [WEATHER],
}


@pytest.mark.parametrize(
    ("family", "how", "call"),
    [
        (
            "chatml",
            "grade",
            "<think>\nI must ask.\n</think>\n\n<tool_call>\n"
            '{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|im_end|>',
        ),
        (
            "chatml",
            "mask",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
            "<|im_end|>",
        ),
        ("llama3", "grade", '{"name": "weather", "parameters": {"city": "Bern"}}<|eot_id|>'),
    ],
)
def test_a_call_is_graded_to_its_end(family, how, call):
    from course_utils.checkpoints import use_family
    from course_utils.masking import MaskError, training_samples
    from course_utils.tokenizers import toy_tokenizer

    chat, tokenizer = from_record(README_ROW), use_family(toy_tokenizer(["Sky?"]), family)
    if family == "llama3":
        with pytest.raises(MaskError, match="llama3 cannot write reasoning .message 1."):
            training_samples(chat, tokenizer)
        chat = replace(chat, messages=tuple(replace(m, reasoning=None) for m in chat))
    (sample,) = training_samples(chat, tokenizer, reasoning=how)
    graded = [tokenizer.decode(sample.input_ids[run.start : run.end]) for run in sample.graded]
    assert graded == [call, "Clear." + FAMILIES[family].stop]


def test_damaged_grammar_is_refused_or_says_something_else():
    for family, _, text, _ in GRAMMAR:
        parsed = 0
        for place in range(0, len(text), 3):
            damaged = text[:place] + text[place + 5 :]
            try:
                found = parse(damaged, family)
            except TemplateError:
                continue
            parsed += 1
            assert str(render(found, family)) == damaged
        assert parsed > 5


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
ABLE = {
    "tools": "chatml, llama3",
    "a tool call .message 1.": "chatml, llama3",
    "reasoning .message 1.": "chatml",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lossy", [False, True])
def test_what_a_family_has_no_grammar_for_is_refused(family, lossy, toy):
    from jinja2.exceptions import TemplateError as JinjaError

    asked, replied = Message("user", "Hi"), Message("assistant", "")
    for chat, what in (
        (Conversation((asked, replied), tools=(WEATHER,)), "tools"),
        (Conversation((asked, replace(replied, reasoning="Hm."))), "reasoning .message 1."),
        (Conversation((asked, replace(replied, reasoning=""))), "reasoning .message 1."),
        (Conversation((asked, replace(replied, tool_calls=(CALL,)))), "a tool call .message 1."),
    ):
        if family in ABLE[what]:
            render(chat, family, lossy=lossy)
            continue
        message = f"{family} cannot write {what}: take a family that can .{ABLE[what]}."
        with pytest.raises(TemplateError, match=message):
            render(chat, family, lossy=lossy)
        if family != "raw":
            with pytest.raises(JinjaError, match=message):
                written(toy(family), chat)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_only_training_needs_is_in_no_text(family):
    for fields in ({"train": False}, {"weight": 2}):
        chat = Conversation((Message("user", "Hi"), Message("assistant", "Hello", **fields)))
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

    for turns, message in (
        ([USER, USER], "alternate"),
        ([REPLY], "alternate"),
        ([USER, ("system", "S")], "alternate"),
        ([USER, REPLY, ("tool", "4")], f"{family} has no tool role .message 2.*such as chatml"),
        ([("system", "S")], "no user turn to fold the system text into"),
    ):
        with pytest.raises(JinjaError, match=message):
            written(toy(family), conversation(*turns))


def test_the_generation_tag_is_left_out_by_default():
    for family in FAMILY_NAMES:
        assert "generation" in chat_template(family, generation_tag=True)
        assert not re.search(r"{%-? *(end)?generation", chat_template(family))


def test_the_tag_is_around_a_plain_reply_as_lecture_06_shows():
    line = "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    assert line in chat_template("chatml", generation_tag=True)


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


# What templates do to other texts and names is their own affair: they strip them, or quote nothing.
PLAIN = st.sampled_from(["yes", "No. Why?", "é 水 1", "a\n\nb", "<think"])
PLAIN_CALL = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["weather", "get_time"]),
        "arguments": st.dictionaries(PLAIN, st.none() | st.floats(0, 1) | PLAIN, max_size=2),
    }
)


def calling(most, **fields):
    calls = st.lists(PLAIN_CALL, min_size=1, max_size=most).map(tuple)
    return st.builds(Message, st.just("assistant"), tool_calls=calls, **fields)


def trl_template(name, toy, **variables):
    from real_templates import templates

    tokenizer = toy(templates()[name].source)
    return lambda chat: written(tokenizer, chat, **variables)


def test_tools_and_reasoning_as_qwen3_writes_them(toy):
    theirs = trl_template("qwen3", toy)
    reply = st.builds(Message, st.just("assistant"), PLAIN, reasoning=PLAIN)
    called = calling(3, content=PLAIN | st.just(""), reasoning=PLAIN)

    @settings(max_examples=100, suppress_health_check=QUICK)
    @given(st.sampled_from([(), (Message("system", "S"),)]), PLAIN, reply | called, st.booleans())
    def same(opening, question, answer, tools):
        messages = (*opening, Message("user", question), answer)
        chat = Conversation(messages, tools=(WEATHER, CLOCK) if tools else ())
        assert theirs(chat) == str(render(chat, "chatml"))

    same()


def test_calls_in_every_turn_as_qwen2_5_writes_them(toy):
    theirs = trl_template("qwen2_5", toy)
    asked, answered = st.builds(Message, st.just("user"), PLAIN), calling(2, content=PLAIN)

    @settings(max_examples=100, suppress_health_check=QUICK)
    @given(st.lists(st.tuples(asked, answered), max_size=3), PLAIN, st.booleans())
    def same(exchanges, output, tools):
        messages = [Message("system", "S"), *(m for pair in exchanges for m in pair)]
        if exchanges:
            messages.append(Message("tool", output))
        chat = Conversation(tuple(messages), tools=(WEATHER, CLOCK) if tools else ())
        ours = str(render(chat, "chatml"))
        # Qwen has no role for outputs, and puts them into a user turn.
        theirs_of_output = f"user\n<tool_response>\n{output}\n</tool_response><|im_end|>"
        assert theirs(chat) == ours.replace(f"tool\n{output}<|im_end|>", theirs_of_output)

    same()


def test_tools_and_calls_as_llama3_1_writes_them(toy):
    theirs = trl_template("llama3_1", toy, bos_token="<|begin_of_text|>")
    added = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

    @settings(max_examples=100, suppress_health_check=QUICK)
    @given(PLAIN, st.lists(calling(1, content=st.just("")), max_size=2), PLAIN, st.booleans())
    def same(question, calls, output, tools):
        messages = [Message("system", "S"), Message("user", question)]
        for call in calls:
            messages += [call, Message("tool", output)]
        chat = Conversation(tuple(messages), tools=(WEATHER, CLOCK) if tools else ())
        text = theirs(chat).replace("Environment: ipython\n" * tools + added, "")
        # It takes a text for a list, and so writes outputs in quotes; Meta's own code does not.
        quoted = f"ipython<|end_header_id|>\n\n{json.dumps(output, ensure_ascii=False)}<|eot_id|>"
        assert text.replace(quoted, f"ipython<|end_header_id|>\n\n{output}<|eot_id|>") == str(
            render(chat, "llama3")
        )

    same()


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
