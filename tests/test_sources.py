"""The converters: records of the real shape, broken ones of each kind, and that no text is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chats import FRAGMENTS
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from benchmarks import convert as benchmark
from course_utils import json_files
from course_utils.conversation import Conversation, load_conversations
from course_utils.sources import (
    REASONS,
    SOURCES,
    Rejection,
    Report,
    convert,
    convert_file,
    parts_of,
    problems,
    stream,
    with_calculations,
)
from course_utils.sources.__main__ import main
from course_utils.sources.reading import entries

ROOT = Path(__file__).parent.parent


def only(record, source, **options):
    """The one conversation that a record gives."""
    (found,) = convert(record, source, **options)
    assert isinstance(found, Conversation), str(found)
    return found


def calls_of(message):
    return [dict(call["function"]) for call in message.tool_calls]


def turns(chat):
    """(role, content) of each message, and its calls if it makes any."""
    return [(m.role, m.content, *([calls_of(m)] if m.tool_calls else [])) for m in chat]


def weather(city):
    return {"name": "weather", "arguments": {"city": city}}


def openai_call(id, arguments='{"city": "Oslo"}', name="weather"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CLOCK = {"name": "clock", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = ("user", "Weather in Oslo?")
CALLED = ("assistant", "", [weather("Oslo")])
CALL = json.dumps(weather("Oslo"))
TOLD = [("tool", "4 degrees"), ("assistant", "It is 4 degrees.")]


# --- records of the real shape -------------------------------------------------------------------

# Source: the record as its documentation shows it, the turns that it must give.
REAL = {
    "openai": (
        {
            "messages": [
                {"role": "developer", "content": "Answer in one sentence."},
                {"role": "user", "content": "Weather in Oslo?"},
                {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [openai_call("call_1")],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "4 degrees"},
                {"role": "assistant", "content": "It is 4 degrees.", "weight": 1},
            ],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        [("system", "Answer in one sentence."), ASK, CALLED, *TOLD],
    ),
    "sharegpt": (
        {
            "system": "Be brief.",
            "tools": json.dumps([TOOL]),
            "conversations": [
                {"from": "human", "value": "Weather in Oslo?"},
                {"from": "function_call", "value": json.dumps(weather("Oslo"))},
                {"from": "observation", "value": "4 degrees"},
                {"from": "gpt", "value": "It is 4 degrees."},
            ],
        },
        [("system", "Be brief."), ASK, CALLED, *TOLD],
    ),
    "alpaca": (
        {
            "instruction": "Translate into French.",
            "input": "Good morning.",
            "output": "Bonjour.",
            "system": "",
            "history": [["Hi", "Hello"]],
        },
        [
            ("user", "Hi"),
            ("assistant", "Hello"),
            ("user", "Translate into French.\n\nGood morning."),
            ("assistant", "Bonjour."),
        ],
    ),
    "prompt-completion": (
        {"prompt": "The sky is", "completion": " blue."},
        [("user", "The sky is"), ("assistant", " blue.")],
    ),
    "messages": (
        {
            "id": "ai2-adapt-dev/flan_1",
            "source": "flan",
            "prompt": "Hi",
            "messages": [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}],
        },
        [("user", "Hi"), ("assistant", "Hello")],
    ),
    "content-blocks": (
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "Let me look."},
                        {
                            "type": "tool_use",
                            "id": "t1",
                            "name": "weather",
                            "input": {"city": "Oslo"},
                        },
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [{"type": "text", "text": "4 degrees"}],
                        }
                    ],
                },
                {"role": "assistant", "content": "It is 4 degrees."},
            ],
        },
        [("system", "Be brief."), ASK, ("assistant", "Let me look.", CALLED[2]), *TOLD],
    ),
    "oasst": (
        {
            "message_tree_id": "m1",
            "tree_state": "ready_for_export",
            "prompt": {
                "message_id": "m1",
                "parent_id": None,
                "text": "Why?",
                "role": "prompter",
                "lang": "en",
                "rank": None,
                "replies": [
                    {
                        "message_id": "m2",
                        "text": "Because.",
                        "role": "assistant",
                        "rank": 0,
                        "replies": [],
                    }
                ],
            },
        },
        [("user", "Why?"), ("assistant", "Because.")],
    ),
    "worked-math": (
        {
            "question": "How many clips?",
            "answer": "He sold 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*2=48>>48.\n#### 48",
        },
        [
            ("user", "How many clips?"),
            ("assistant", "He sold 48/2 = 24 clips.\nThat is $48.\n#### 48"),
        ],
    ),
    "code-trace": (
        {
            "messages": [
                {"role": "user", "type": "message", "content": "What is 2380*3875?"},
                {"role": "assistant", "type": "message", "content": "I calculate it."},
                {
                    "role": "assistant",
                    "type": "code",
                    "format": "python",
                    "content": "x = 2380*3875\nx",
                },
                {"role": "computer", "type": "console", "format": "output", "content": "9222500"},
                {"role": "assistant", "type": "message", "content": "It is 9222500."},
            ]
        },
        [
            ("user", "What is 2380*3875?"),
            (
                "assistant",
                "I calculate it.",
                [
                    {
                        "name": "execute",
                        "arguments": {"language": "python", "code": "x = 2380*3875\nx"},
                    }
                ],
            ),
            ("tool", "9222500"),
            ("assistant", "It is 9222500."),
        ],
    ),
    "tool-trace": (
        {
            "id": 0,
            "query": "Weather in Oslo and Bergen?",
            "answers": json.dumps([weather("Oslo"), weather("Bergen")]),
            "tools": json.dumps([{"name": "weather", "description": "", "parameters": {}}]),
        },
        [
            ("user", "Weather in Oslo and Bergen?"),
            ("assistant", "", [weather("Oslo"), weather("Bergen")]),
        ],
    ),
}


def test_every_source_has_a_record_of_its_real_shape():
    assert set(REAL) == set(SOURCES)


@pytest.mark.parametrize("source", REAL)
def test_a_record_of_the_real_shape(source, tmp_path):
    record, expected = REAL[source]
    chat = only(record, source, id="r")
    assert turns(chat) == expected
    assert chat.id == "r" and chat.meta["source"] == source
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert not convert_file(path, source, tmp_path / "out.jsonl").rejections
    assert [turns(c) for c in load_conversations(tmp_path / "out.jsonl")] == [expected]
    assert not list(problems(tmp_path / "out.jsonl"))


@pytest.mark.parametrize("source", SOURCES)
def test_every_converter_cites_its_documentation(source):
    assert "https://" in SOURCES[source].convert.__doc__
    assert SOURCES[source].about.endswith(".")


def test_other_fields_go_to_the_meta():
    chat = only(REAL["messages"][0], "messages")
    assert chat.id == "ai2-adapt-dev/flan_1"
    assert chat.meta["fields"] == {"source": "flan", "prompt": "Hi"}
    assert only(REAL["openai"][0], "openai").meta["fields"] == {"parallel_tool_calls": False}
    assert "fields" not in only(REAL["worked-math"][0], "worked-math").meta


def test_tools_ids_and_names_are_the_schemas():
    chat = only(REAL["openai"][0], "openai")
    assert chat.tools == (TOOL,) == only(REAL["sharegpt"][0], "sharegpt").tools
    assert [call["id"] for call in chat[2].tool_calls] == ["call_1"]
    assert (chat[3].name, chat[3].tool_call_id) == ("weather", "call_1")
    assert not {"tools", "tool_ids"} & set(chat.meta)
    blocks = only(REAL["content-blocks"][0], "content-blocks")
    assert [call["id"] for call in blocks[2].tool_calls] == ["t1"] == [blocks[3].tool_call_id]
    code = only(REAL["code-trace"][0], "code-trace")
    assert (code[2].name, code[2].tool_call_id) == ("execute", None)


def test_parallel_calls_keep_their_order_and_that_of_their_results():
    record = {
        "messages": [
            {"role": "user", "content": "Both?"},
            {
                "role": "assistant",
                "content": "Two calls.",
                "tool_calls": [openai_call("a"), openai_call("b", '{"city": "Bergen"}')],
            },
            {"role": "tool", "tool_call_id": "b", "content": "rain"},
            {"role": "tool", "tool_call_id": "a", "content": "sun"},
            {"role": "assistant", "content": "Rain and sun."},
        ]
    }
    chat = only(record, "openai")
    assert turns(chat)[1] == ("assistant", "Two calls.", [weather("Oslo"), weather("Bergen")])
    assert [m.content for m in chat][2:4] == ["rain", "sun"]
    assert [m.tool_call_id for m in chat][2:4] == ["b", "a"]


def test_the_old_function_call_of_openai():
    record = {
        "messages": [
            {"role": "user", "content": "Weather in Oslo?", "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'},
            },
            {"role": "function", "name": "weather", "content": "4 degrees"},
            {"role": "assistant", "content": "It is 4 degrees."},
        ],
        "functions": [TOOL["function"]],
    }
    chat = only(record, "openai")
    assert turns(chat) == [ASK, CALLED, *TOLD]
    assert chat.tools == (TOOL,) and chat[2].name == "weather"
    assert chat.meta == {
        "source": "openai",
        "message_fields": [{"message": 0, "fields": {"name": "ann"}}],
    }


@pytest.mark.parametrize("source", ["openai", "content-blocks"])
def test_parts_are_joined_and_can_be_told_apart(source):
    parts = [{"type": "text", "text": text} for text in ("one ", "", "two")]
    record = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    }
    chat = only(record, source)
    assert chat[0].content == "one two"
    assert parts_of(chat, 0) == ["one ", "", "two"] and parts_of(chat, 1) == ["x"]


def test_instruction_and_input_can_be_told_apart():
    chat = only(REAL["alpaca"][0], "alpaca")
    assert parts_of(chat, 2) == ["Translate into French.", "Good morning."]
    bare = only({"instruction": "Hi", "input": "", "output": "Hello"}, "alpaca")
    assert turns(bare) == [("user", "Hi"), ("assistant", "Hello")] and "parts" not in bare.meta


def test_a_prompt_of_messages():
    record = {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
        "label": True,
    }
    assert only(record, "prompt-completion").roles == ["system", "user", "assistant"]


def test_the_marks_of_worked_mathematics_can_be_put_back():
    record = REAL["worked-math"][0]
    chat = only(record, "worked-math")
    assert chat.meta["answer"] == "48"
    assert chat.meta["calculations"] == [[15, "48/2=24"], [34, "24*2=48"]]
    assert with_calculations(chat) == record["answer"]
    plain = {"question": "Q", "answer": "So it is.\n#### 1,000"}
    assert only(plain, "worked-math").meta == {"source": "worked-math", "answer": "1,000"}


def node(text, role="assistant", *replies, **fields):
    return {"text": text, "role": role, "replies": list(replies)} | fields


def test_a_tree_gives_a_conversation_for_every_last_reply():
    tree = node(
        "q",
        "prompter",
        node(
            "a0",
            "assistant",
            node("q0", "prompter", node("a00", rank=1), node("a01", rank=0)),
            node("q1", "prompter", message_id="nobody"),
            rank=0,
        ),
        node("a1", "assistant", node("q2", "prompter"), rank=1),
        node("spam", deleted=True),
        node("bad", "assistant", node("x", "prompter", node("y")), review_result=False),
    )
    found = convert({"message_tree_id": "t", "prompt": tree}, "oasst", id="t")
    chats = [c for c in found if isinstance(c, Conversation)]
    assert [" ".join(m.content for m in c) for c in chats] == ["q a0 q0 a00", "q a0 q0 a01", "q a1"]
    assert [c.meta["best_ranked"] for c in chats] == [False, True, False]
    assert len({c.id for c in chats}) == 3 and all(c.id.startswith("t.") for c in chats)
    assert chats[0].meta["message_fields"][-1] == {"message": 3, "fields": {"rank": 1}}
    rejected = [(r.reason, r.place) for r in found if isinstance(r, Rejection)]
    assert rejected == [
        ("no reply at the end", "prompt.replies[0].replies[1]"),
        ("no reply at the end", "prompt.replies[1].replies[0]"),
        ("deleted or refused message", "prompt.replies[2]"),
        ("deleted or refused message", "prompt.replies[3]"),
    ]
    assert "2 messages under it" in found[-1].detail
    report = Report()
    report.add("oasst", found)
    counts = report.as_dict()["oasst"]
    assert (counts["records"], counts["converted"], counts["partly"]) == (1, 1, 1)
    assert counts["conversations"] == 3 and sum(counts["reasons"].values()) == 4


def test_a_thread_and_a_table_of_messages():
    thread = [{"text": "q", "role": "prompter"}, {"text": "a", "role": "assistant"}]
    assert turns(only({"thread_id": "t", "thread": thread}, "oasst")) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    (found,) = convert(thread[0], "oasst")
    assert found.reason == "missing field"


def test_a_tree_without_ranks_has_no_best_path():
    found = convert({"prompt": node("q", "prompter", node("a"), node("b"))}, "oasst")
    assert [c.meta["best_ranked"] for c in found] == [False, False]


def test_code_twice_and_code_without_words():
    code = {"role": "assistant", "type": "code", "format": "python", "content": "1"}
    user = {"role": "user", "type": "message", "content": "Run it."}
    out = {"role": "computer", "type": "console", "format": "output", "content": ""}
    end = {"role": "assistant", "type": "message", "content": "Done."}
    chat = only({"messages": [user, code, code, out, out, end]}, "code-trace")
    assert chat.roles == ["user", "assistant", "tool", "tool", "assistant"]
    assert len(chat[1].tool_calls) == 2
    (found,) = convert({"messages": [user, code, out, out, end]}, "code-trace")
    assert (found.reason, found.place) == ("result without its call", "messages[3]")


# --- roles ---------------------------------------------------------------------------------------


def dialogue(*pairs):
    return {"conversations": [{"from": name, "value": text} for name, text in pairs]}


def test_role_names_are_mapped():
    for user in ("human", "user"):
        for model in ("gpt", "bot", "model", "assistant", "chatgpt"):
            assert only(dialogue((user, "a"), (model, "b")), "sharegpt").roles == [
                "user",
                "assistant",
            ]
    for tool in ("observation", "tool", "function_response"):
        record = dialogue(("human", "a"), ("function_call", CALL), (tool, "c"), ("gpt", "d"))
        assert only(record, "sharegpt").roles == ["user", "assistant", "tool", "assistant"]


def test_a_role_that_could_mean_two_things_is_no_guess():
    record = dialogue(("human", "a"), ("function_call", CALL), ("function", "c"), ("gpt", "d"))
    (found,) = convert(record, "sharegpt")
    assert found.reason == "unknown role" and "say which" in found.detail
    assert only(record, "sharegpt", roles={"function": "tool"}).roles[2] == "tool"
    call = dialogue(("human", "a"), ("function", CALL))
    assert turns(only(call, "sharegpt", roles={"function": "call"}))[1] == CALLED


def test_a_role_in_capitals_may_mean_another():
    record = dialogue(("USER", "Hi"), ("SYSTEM", "Hello"))
    (found,) = convert(record, "sharegpt")
    assert (found.reason, found.place) == ("unknown role", "conversations[0].from")
    chat = only(record, "sharegpt", roles={"USER": "user", "SYSTEM": "assistant"})
    assert turns(chat) == [("user", "Hi"), ("assistant", "Hello")]


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="no source 'vicuna': there are openai"):
        convert({}, "vicuna")
    with pytest.raises(ValueError, match="'x' cannot mean 'narrator': the roles are system"):
        convert({}, "sharegpt", roles={"x": "narrator"})
    with pytest.raises(ValueError, match="cannot mean 'call'"):
        convert({}, "openai", roles={"x": "call"})


# --- broken records ------------------------------------------------------------------------------


def shape_of(source, path, value):
    """The real record with the value at `path` replaced, or removed if it is DELETE."""
    record = json.loads(json.dumps(REAL[source][0]))
    place = record
    for step in path[:-1]:
        place = place[step]
    if value is DELETE:
        del place[path[-1]]
    elif path[-1] == len(place):
        place.append(value)
    else:
        place[path[-1]] = value
    return record


DELETE = object()

# Where each source keeps its turns, a turn's role (if it names one) and a turn's text.
TURNS = {
    "openai": (["messages"], ["messages", 1, "role"], ["messages", 1, "content"]),
    "sharegpt": (["conversations"], ["conversations", 0, "from"], ["conversations", 0, "value"]),
    "alpaca": (["instruction"], None, ["output"]),
    "prompt-completion": (["prompt"], None, ["completion"]),
    "messages": (["messages"], ["messages", 0, "role"], ["messages", 0, "content"]),
    "content-blocks": (["messages"], ["messages", 0, "role"], ["messages", 3, "content"]),
    "oasst": (["prompt"], ["prompt", "role"], ["prompt", "text"]),
    "worked-math": (["question"], None, ["answer"]),
    "code-trace": (["messages"], ["messages", 0, "role"], ["messages", 0, "content"]),
    "tool-trace": (["query"], None, ["query"]),
}


def broken(source):
    """(what is wrong, record, reason) of every kind that a source can have."""
    where, role, text = TURNS[source]
    yield "a list", [1], "not an object"
    yield "a text", "hi", "not an object"
    yield "null", None, "not an object"
    yield "empty", {}, "missing field"
    yield "no turns", shape_of(source, where, DELETE), "missing field"
    yield "turns a number", shape_of(source, where, 7), "wrong type"
    yield "no text", shape_of(source, text, DELETE), "missing field"
    yield "text null", shape_of(source, text, None), "null content"
    yield "text a number", shape_of(source, text, 7), "wrong type"
    yield "text NaN", shape_of(source, text, float("nan")), "wrong type"
    empty = "broken worked solution" if source == "worked-math" else "empty text"
    yield "text empty", shape_of(source, text, ""), empty
    yield "text blank", shape_of(source, text, " \n"), empty
    yield "surrogate", shape_of(source, text, "a\ud83d\n#### 1"), "lone surrogate"
    yield "NaN beside", REAL[source][0] | {"score": float("nan")}, "number that JSON lacks"
    yield "Infinity", REAL[source][0] | {"a": [{"b": -float("inf")}]}, "number that JSON lacks"
    yield "images", REAL[source][0] | {"images": ["a.png"]}, "part that is no text"
    if isinstance(REAL[source][0][where[0]], list):
        yield "empty list", shape_of(source, where, []), "no turns"
        yield "a turn a text", shape_of(source, [*where, 0], "hi"), "wrong type"
        yield "a turn null", shape_of(source, [*where, 0], None), "wrong type"
        yield "unknown field", shape_of(source, [*where, 0, "mood"], "sad"), "unknown field"
        first = REAL[source][0][where[0]][0]
        last = REAL[source][0][where[0]][-1]
        ends = json.loads(json.dumps(REAL[source][0]))
        ends[where[0]] = ends[where[0]][:1] + (ends[where[0]][1:2] if source == "openai" else [])
        yield "ends with user", ends, "no reply at the end"
        twice = json.loads(json.dumps(REAL[source][0]))
        twice[where[0]] = [first, *twice[where[0]]]
        yield "first turn twice", twice, "turn order"
        twice[where[0]] = [*REAL[source][0][where[0]], last]
        yield "two replies", twice, "turn order"
    if role:
        for name in ("narrator", "User", "", None, 3, ["user"]):
            yield f"role {name!r}", shape_of(source, role, name), "unknown role"
        yield "no role", shape_of(source, role, DELETE), "missing field"


BROKEN = [(s, kind, record, reason) for s in SOURCES for kind, record, reason in broken(s)]


def with_call(**function):
    call = {"id": "call_1", "type": "function", "function": function}
    return shape_of("openai", ["messages", 2, "tool_calls"], [call])


def block(value):
    return shape_of("content-blocks", ["messages", 0, "content"], [value])


def lmc(**fields):
    return shape_of("code-trace", ["messages", 3], {"role": "computer", "content": "x"} | fields)


TOOL_TURN = ["messages", 3]
MORE_BROKEN = {
    "openai": [
        (shape_of("openai", ["messages", 1, "role"], "system"), "turn order"),
        (shape_of("openai", ["messages", 1, "content"], [{"type": "text"}]), "missing field"),
        (shape_of("openai", ["messages", 1, "content"], ["hi"]), "wrong type"),
        (shape_of("openai", ["messages", 1, "content"], []), "empty text"),
        (
            shape_of(
                "openai", ["messages", 1, "content"], [{"type": "image_url", "image_url": {}}]
            ),
            "part that is no text",
        ),
        (shape_of("openai", ["messages", 4, "weight"], -1), "wrong type"),
        (shape_of("openai", ["messages", 4, "weight"], True), "wrong type"),
        (shape_of("openai", ["messages", 4, "weight"], 1e-9), "wrong type"),
        (shape_of("openai", ["messages", 4, "train"], "no"), "wrong type"),
        (shape_of("openai", ["messages", 1, "train"], True), "turn not to be graded"),
        (shape_of("openai", ["messages", 1, "weight"], 2), "turn not to be graded"),
        (shape_of("openai", ["messages", 2, "tool_calls", 0, "id"], 7), "wrong type"),
        (shape_of("openai", [*TOOL_TURN, "tool_call_id"], 7), "wrong type"),
        (shape_of("openai", [*TOOL_TURN, "name"], "clock"), "result without its call"),
        (shape_of("openai", ["functions"], [CLOCK]), "broken tool definitions"),
        (shape_of("openai", ["tools", 0, "function", "name"], DELETE), "broken tool definitions"),
        (shape_of("openai", ["tools", 0], "weather"), "broken tool definitions"),
        (shape_of("openai", ["tools", 0, "type"], "web_search"), "broken tool definitions"),
        (shape_of("openai", ["tools", 0, "a"], "\ud83d"), "lone surrogate"),
        (shape_of("openai", ["chat_template_kwargs"], [1]), "wrong type"),
        (shape_of("openai", ["chat_template_kwargs"], {"tools": []}), "wrong type"),
        (shape_of("openai", ["documents"], [{"text": "x"}]), "unknown field"),
        (shape_of("openai", ["messages", 4, "refusal"], "No."), "unknown field"),
        (shape_of("openai", ["messages", 2, "tool_calls"], None), "null content"),
        (shape_of("openai", ["messages", 2, "tool_calls"], []), "null content"),
        (shape_of("openai", ["messages", 2, "tool_calls"], "x"), "wrong type"),
        (shape_of("openai", ["messages", 2, "tool_calls"], ["x"]), "broken tool call"),
        (
            shape_of("openai", ["messages", 2, "tool_calls", 0, "type"], "custom"),
            "broken tool call",
        ),
        (shape_of("openai", ["messages", 1, "tool_calls"], [openai_call("a")]), "unknown field"),
        (
            shape_of("openai", ["messages", 2, "tool_calls"], [openai_call("call_1")] * 2),
            "broken tool call",
        ),
        (with_call(name="weather"), "broken tool call"),
        (with_call(name="", arguments="{}"), "broken tool call"),
        (with_call(name="weather", arguments=""), "broken tool call"),
        (with_call(name="weather", arguments="{city: 1}"), "broken tool call"),
        (with_call(name="weather", arguments="[1]"), "broken tool call"),
        (with_call(name="weather", arguments='"{}"'), "broken tool call"),
        (with_call(name="weather", arguments=None), "broken tool call"),
        (with_call(name="weather", arguments="{}", strict=True), "unknown field"),
        (with_call(name="weather", arguments='{"a": NaN}'), "number that JSON lacks"),
        (with_call(name="weather", arguments='{"a": 1e999}'), "number that JSON lacks"),
        (with_call(name="weather", arguments={"a": float("nan")}), "number that JSON lacks"),
        (with_call(name="weather", arguments='{"a": 1, "a": 2}'), "repeated key"),
        (
            with_call(name="weather", arguments='{"a": 0.12345678901234567890}'),
            "number that JSON lacks",
        ),
        (with_call(name="weather", arguments='{"a": "\\ud83d"}'), "lone surrogate"),
        (shape_of("openai", [*TOOL_TURN, "tool_call_id"], "call_9"), "result without its call"),
        (shape_of("openai", [*TOOL_TURN, "content"], None), "null content"),
        (shape_of("openai", ["tools"], "[{"), "broken tool definitions"),
        (shape_of("openai", ["tools"], 7), "broken tool definitions"),
        (shape_of("openai", ["messages", 4, "content"], "<tool_call>"), "tool tags in the text"),
    ],
    "sharegpt": [
        (shape_of("sharegpt", ["system"], ["x"]), "wrong type"),
        (shape_of("sharegpt", ["conversations", 0, "value"], ["x"]), "wrong type"),
        (shape_of("sharegpt", ["conversations", 0, "from"], "system"), "turn order"),
        (shape_of("sharegpt", ["conversations", 1, "value"], "weather()"), "broken tool call"),
        (shape_of("sharegpt", ["conversations", 1, "value"], "{}"), "broken tool call"),
        (shape_of("sharegpt", ["conversations", 1, "value"], "[]"), "empty text"),
        (shape_of("sharegpt", ["conversations", 0, "train"], True), "turn not to be graded"),
        (
            dialogue(("human", "a"), ("gpt", "b"), ("tool", "c"), ("gpt", "d")),
            "result without its call",
        ),
        (dialogue(("system", "a"), ("system", "b"), ("human", "c"), ("gpt", "d")), "turn order"),
        (dialogue(("gpt", "a"), ("human", "b"), ("gpt", "c")), "turn order"),
    ],
    "alpaca": [
        (shape_of("alpaca", ["history"], ["x"]), "wrong type"),
        (shape_of("alpaca", ["history"], [["a"]]), "wrong type"),
        (shape_of("alpaca", ["history"], [["a", None]]), "null content"),
        (shape_of("alpaca", ["input"], 7), "wrong type"),
        (shape_of("alpaca", ["instruction"], ""), "empty text"),
        (shape_of("alpaca", ["kto_tag"], False), "reply marked as bad"),
        (shape_of("alpaca", ["kto_tag"], "no"), "wrong type"),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "missing field"),
    ],
    "prompt-completion": [
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "wrong type"),
        ({"prompt": [], "completion": []}, "no turns"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "missing field"),
        (shape_of("prompt-completion", ["label"], False), "reply marked as bad"),
        (shape_of("prompt-completion", ["history"], [["a", "b"]]), "unknown field"),
    ],
    "messages": [
        (shape_of("messages", ["messages", 0, "content"], [{"type": "text"}]), "missing field"),
        (shape_of("messages", ["messages", 1, "tool_calls"], [{}]), "broken tool call"),
        (shape_of("messages", ["tools"], [{}]), "broken tool definitions"),
        (shape_of("messages", ["messages", 0, "reasoning"], "hm"), "unknown field"),
    ],
    "content-blocks": [
        (block({"type": "image", "source": {}}), "part that is no text"),
        (block({"type": "text", "text": None}), "null content"),
        (block({"type": "text", "text": "x", "citations": [1]}), "unknown field"),
        (block({"text": "x"}), "missing field"),
        (block("x"), "wrong type"),
        (block(None), "wrong type"),
        (block({"type": "tool_use", "id": "a", "name": "f", "input": {}}), "broken tool call"),
        (shape_of("content-blocks", ["messages", 0, "content"], []), "empty text"),
        (
            shape_of("content-blocks", ["messages", 3, "content"], [{"type": "thinking"}]),
            "reasoning apart from the text",
        ),
        (
            shape_of(
                "content-blocks",
                ["messages", 3, "content"],
                [{"type": "redacted_thinking", "data": "x"}],
            ),
            "reasoning apart from the text",
        ),
        (block({"type": "thinking", "thinking": "hm"}), "reasoning apart from the text"),
        (
            shape_of(
                "content-blocks",
                ["messages", 1, "content", 2],
                {"type": "thinking", "thinking": "hm"},
            ),
            "reasoning apart from the text",
        ),
        (
            shape_of(
                "content-blocks", ["messages", 1, "content", 2], {"type": "text", "text": "after"}
            ),
            "text after a tool call",
        ),
        (
            shape_of("content-blocks", ["messages", 1, "content", 1, "input"], None),
            "broken tool call",
        ),
        (
            shape_of("content-blocks", ["messages", 2, "content", 0, "tool_use_id"], "t9"),
            "result without its call",
        ),
        (
            shape_of(
                "content-blocks", ["messages", 2, "content", 1], {"type": "text", "text": "x"}
            ),
            "turn order",
        ),
    ],
    "oasst": [
        (shape_of("oasst", ["prompt", "replies"], {}), "wrong type"),
        (shape_of("oasst", ["prompt", "replies"], []), "no reply at the end"),
        (shape_of("oasst", ["prompt", "replies"], None), "no reply at the end"),
        (shape_of("oasst", ["prompt", "deleted"], True), "deleted or refused message"),
        (shape_of("oasst", ["prompt", "role"], "assistant"), "turn order"),
    ],
    "worked-math": [
        (shape_of("worked-math", ["answer"], "It is 4."), "broken worked solution"),
        (shape_of("worked-math", ["answer"], "#### 4\nor\n#### 5"), "broken worked solution"),
        (shape_of("worked-math", ["answer"], "#### 4\nThe end."), "broken worked solution"),
        (shape_of("worked-math", ["answer"], "x\n####"), "broken worked solution"),
        (shape_of("worked-math", ["answer"], "<<1+1=2 2\n#### 2"), "broken worked solution"),
        (shape_of("worked-math", ["answer"], "1+1=2>> 2\n#### 2"), "broken worked solution"),
    ],
    "code-trace": [
        (lmc(type="console", format="active_line"), "part that is no text"),
        (lmc(type="image", format="base64.png"), "part that is no text"),
        (lmc(), "missing field"),
        (shape_of("code-trace", ["messages", 2, "format"], DELETE), "missing field"),
        (shape_of("code-trace", ["messages", 2, "content"], " "), "empty text"),
        (shape_of("code-trace", ["messages", 3], DELETE), "text after a tool call"),
    ],
    "tool-trace": [
        (shape_of("tool-trace", ["answers"], "[]"), "empty text"),
        (shape_of("tool-trace", ["answers"], "[{]"), "broken tool call"),
        (shape_of("tool-trace", ["answers"], '{"name": "f", "arguments": {}}'), "wrong type"),
        (shape_of("tool-trace", ["answers"], [{"name": "f"}]), "broken tool call"),
        (shape_of("tool-trace", ["answers"], None), "wrong type"),
        (shape_of("tool-trace", ["tools"], "none"), "broken tool definitions"),
    ],
}
BROKEN += [
    (source, str(number), record, reason)
    for source, cases in MORE_BROKEN.items()
    for number, (record, reason) in enumerate(cases)
]


@pytest.mark.parametrize(
    ("source", "kind", "record", "reason"), BROKEN, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_broken_record_is_rejected_with_its_reason(source, kind, record, reason):
    found = convert(record, source, id="here")
    assert [r.reason for r in found] == [reason], [str(r) for r in found]
    assert found[0].where == "here" and found[0].detail and found[0].record is record
    assert "\n" not in str(found[0])


def test_every_reason_is_tested():
    of_files = {"broken JSON", "not UTF-8", "line too long", "nested too deeply", "repeated key"}
    assert {reason for *_, reason in BROKEN} | of_files == set(REASONS)


def test_places_are_exact():
    for source, path in (
        ("openai", ["messages", 2, "tool_calls", 0, "function", "arguments"]),
        ("sharegpt", ["conversations", 3, "value"]),
        ("content-blocks", ["messages", 1, "content", 0, "text"]),
        ("alpaca", ["output"]),
    ):
        (found,) = convert(shape_of(source, path, 7), source)
        steps = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)
        assert found.place == steps.removeprefix(".")


def test_a_field_is_kept_on_request():
    record = shape_of("sharegpt", ["conversations", 3, "weight"], 0)
    chat = only(record, "sharegpt", keep=["weight"])
    assert chat.meta["message_fields"] == [{"message": 4, "fields": {"weight": 0}}]
    chat = only(REAL["messages"][0] | {"documents": ["x"]}, "messages", keep=["documents"])
    assert chat.meta["fields"]["documents"] == ["x"]


@settings(max_examples=300)
@given(st.sampled_from(list(SOURCES)), st.data())
def test_any_damage_gives_a_result_and_no_other_error(source, data):
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=4,
    )
    record = json.loads(json.dumps(REAL[source][0]))
    place, steps = record, data.draw(st.integers(0, 4))
    for _ in range(steps):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list):
            place[key] = data.draw(json_values)
            break
        if data.draw(st.booleans()):
            place[key] = data.draw(json_values)
            break
        place = place[key]
    found = convert(record, source)
    assert found
    for result in found:
        if isinstance(result, Rejection):
            assert result.reason in REASONS
        else:
            json.dumps(result.as_record(), allow_nan=False)


# --- no text is lost, merged or reordered --------------------------------------------------------

TEXTS = [*FRAGMENTS, CALL, "\n" + CALL, '{"tool_call": ', "<tool>", "#### 1"]


def in_source(source, chat):
    """A chat of (role, text) pairs as a record of the source, or None if it has no such shape."""
    system = [text for role, text in chat if role == "system"]
    rest = [(role, text) for role, text in chat if role != "system"]
    if source in ("openai", "messages", "code-trace"):
        more = {"type": "message"} if source == "code-trace" else {}
        return {"messages": [{"role": r, "content": t} | more for r, t in chat]}
    if source == "content-blocks":
        halves = [[t[: len(t) // 2], t[len(t) // 2 :]] for _, t in chat]
        return {
            "messages": [
                {"role": r, "content": [{"type": "text", "text": half} for half in pair]}
                for (r, _), pair in zip(chat, halves, strict=True)
            ]
        }
    if source == "sharegpt":
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        return dialogue(*((names[role], text) for role, text in chat))
    if source == "alpaca":
        texts = [text for _, text in rest]
        history = [texts[n : n + 2] for n in range(0, len(texts) - 2, 2)]
        if system == [""]:
            return None
        return {
            "system": "".join(system),
            "history": history,
            "instruction": texts[-2],
            "output": texts[-1],
        }
    if source == "prompt-completion":
        as_messages = [{"role": role, "content": text} for role, text in chat]
        return {"prompt": as_messages[:-1], "completion": as_messages[-1:]}
    if source == "oasst" and not system:
        below = []
        for role, text in reversed(rest):
            below = [node(text, {"user": "prompter"}.get(role, role), *below)]
        return {"prompt": below[0]}
    return None


CHAT_SOURCES = [source for source in SOURCES if source not in ("worked-math", "tool-trace")]


# Mostly texts that can be converted: some whole chats are to come through in every source.
WORDY = st.tuples(
    st.lists(st.sampled_from(TEXTS), max_size=2).map("".join),
    st.sampled_from(["one", "two", "three", " four ", "five\n", "\r\nsix", *TEXTS[:4]]),
    st.sampled_from(["", "", "", *TEXTS]),
).map("".join)


def as_chat(drawn):
    system, pairs = drawn
    texts = [text for pair in pairs for text in pair]
    roles = ("user", "assistant") * len(pairs)
    opening = [] if system is None else [("system", system)]
    return opening + list(zip(roles, texts, strict=True))


CHATS = st.tuples(
    st.none() | st.sampled_from(TEXTS) | WORDY,
    st.lists(st.tuples(WORDY, WORDY), min_size=1, max_size=4),
).map(as_chat)


@settings(max_examples=600)
@given(st.sampled_from(CHAT_SOURCES), CHATS)
@example("openai", [("user", "x"), ("assistant", "a\n" + CALL)])
@example("sharegpt", [("system", ""), ("user", "x"), ("assistant", "a")])
def test_no_text_is_lost_merged_or_reordered(source, chat):
    record = in_source(source, chat)
    assume(record is not None)
    reasons = set()
    if any(role != "system" and not text.strip() for role, text in chat):
        reasons.add("empty text")
    results = convert(json.loads(json.dumps(record)), source)
    found = results[-1]
    if (
        source == "oasst" and len(results) > 1
    ):  # a later turn is rejected, what stands before is not
        assert len(results) == 2 and isinstance(found, Conversation) and reasons
        assert turns(found) == chat[: len(found)] and results[0].reason in reasons
        return
    assert len(results) == 1
    if reasons:
        assert found.reason in reasons
    else:
        assert isinstance(found, Conversation), str(found)
        assert turns(found) == chat
        if source == "content-blocks":
            for position, (_, text) in enumerate(chat):
                half = len(text) // 2
                assert parts_of(found, position) == [text[:half], text[half:]]


ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from(TEXTS),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=4,
    ),
    max_size=3,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": st.text(min_size=1, max_size=5), "arguments": ARGUMENTS}),
    min_size=1,
    max_size=3,
)


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*TEXTS, "<<1+1=2>>", "<<>>", "<<", ">>", "2 "]), max_size=8))
def test_a_worked_solution_loses_nothing(pieces):
    solution = "".join(pieces) + "\n#### 7"
    (found,) = convert({"question": "Q", "answer": solution}, "worked-math")
    if isinstance(found, Conversation):
        assert with_calculations(found) == solution
        assert "<<" not in found[1].content
    else:
        assert found.reason == "broken worked solution"


# --- files ---------------------------------------------------------------------------------------

GOOD = dialogue(("human", "Hi"), ("gpt", "Hello"))


def lines(tmp_path, *records, name="chats.jsonl"):
    path = tmp_path / name
    encoded = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


# What stands in line 2, and the reason for which it is rejected.
BAD_LINES = {
    "broken": (b'{"conversations": [', "broken JSON"),
    "two objects": (b"{} {}", "broken JSON"),
    "latin-1": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NaN": (b'{"a": NaN}', "number that JSON lacks"),
    "-Infinity": (b'{"a": -Infinity}', "number that JSON lacks"),
    "too large": (b'{"a": 1e999}', "number that JSON lacks"),
    "many digits": (b'{"a": ' + b"1" * 5000 + b"}", "number that JSON lacks"),
    "repeated key": (b'{"from": "human", "from": "gpt"}', "repeated key"),
    "deep": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    "not an object": (b"[1]", "not an object"),
    "too long": (b'{"a": "' + b"x" * 3_000_000 + b'"}', "line too long"),
}
for _kind in ("latin-1", "UTF-16"):
    BAD_LINES[_kind] = (BAD_LINES[_kind], "not UTF-8")


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_rejected_and_the_next_is_read(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(entries, "__defaults__", (1_000_000,))
    line, reason = BAD_LINES[kind]
    report = Report()
    first, bad, last = stream(lines(tmp_path, GOOD, line, GOOD), "sharegpt", report=report)
    assert bad.reason == reason and bad.where == "chats-2" and len(bad.text) <= 2000
    assert turns(first) == turns(last) and (first.id, last.id) == ("chats-1", "chats-3")
    assert report.as_dict()["sharegpt"]["reasons"] == {reason: 1}
    assert (
        list(entries(tmp_path / "chats.jsonl"))[-1].read
        == (tmp_path / "chats.jsonl").stat().st_size
    )


def test_bom_line_ends_and_line_separators(tmp_path):
    odd = dialogue(("human", "a\u2028b\u0085c\rd"), ("gpt", "x"))
    path = tmp_path / "windows.jsonl"
    text = json.dumps(odd, ensure_ascii=False)
    path.write_bytes(f"\ufeff{text}\r\n\r\n  \n{text}\r\n".encode())
    found = list(stream(path, "sharegpt"))
    assert [chat.id for chat in found] == ["windows-1", "windows-4"]
    assert all(chat[0].content == "a\u2028b\u0085c\rd" for chat in found)


def test_a_lone_surrogate_anywhere_is_rejected(tmp_path):
    bad = [GOOD | {"note": {"deep": ["\ud800"]}}, GOOD | {"\udc00": 1}]
    report = Report()
    found = stream(lines(tmp_path, *bad), "sharegpt", report=report)
    assert [(one.reason, one.place) for one in found] == [
        ("lone surrogate", "note.deep[0]"),
        ("lone surrogate", ""),
    ]


def test_a_stream_is_read_as_it_is_asked_for(tmp_path):
    path = lines(tmp_path, *[GOOD] * 5000)
    first = next(entries(path))
    assert first.read < 200
    array = tmp_path / "chats.json"
    array.write_text(json.dumps([GOOD] * 50_000))
    assert next(entries(array)).read <= json_files.CHUNK < array.stat().st_size


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            [GOOD, {}, [], [[]], 12, -1.5e3, True, None, 'a]\\",[{', "é🙂", {"a": [1]}]
        ),
        max_size=5,
    ),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", ":\t")]),
    st.integers(1, 40),
    st.booleans(),
)
def test_an_array_is_read_in_pieces(tmp_path_factory, records, separators, chunk, indent):
    path = tmp_path_factory.getbasetemp() / "array.json"
    text = json.dumps(
        records, ensure_ascii=False, separators=separators, indent=2 if indent else None
    )
    path.write_bytes(b"\xef\xbb\xbf \n" + text.encode() + b"\n")
    before, json_files.CHUNK = json_files.CHUNK, chunk
    try:
        found = list(entries(path))
    finally:
        json_files.CHUNK = before
    assert [entry.record for entry in found] == records
    assert [entry.number for entry in found] == list(range(1, len(records) + 1))


# An array's text, and (how many records are read, why the last one is rejected).
BAD_ARRAYS = {
    "cut off": ('[{"a": 1}, {"b": ', 1, "broken JSON"),
    "not closed": ('[{"a": 1}', 1, "broken JSON"),
    "no comma": ('[{"a": 1} {"b": 2}]', 1, "broken JSON"),
    "comma at the end": ('[{"a": 1},]', 1, "broken JSON"),
    "more behind": ('[{"a": 1}] x', 1, "broken JSON"),
    "broken element": ('[{"a": 1}, {b}, {"c": 3}]', 1, "broken JSON"),
    "deep": ('[{"a": 1}, ' + "[" * 200_000, 1, "nested too deeply"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_bad_array(tmp_path, kind):
    text, good, reason = BAD_ARRAYS[kind]
    path = tmp_path / "array.json"
    path.write_text(text)
    found = list(entries(path))
    assert len(found) == good + 1 and found[-1].record.reason == reason
    assert "the rest of the file is unread" in found[-1].record.detail


def test_a_bad_element_that_is_json_does_not_end_the_array(tmp_path):
    path = tmp_path / "array.json"
    path.write_text('[{"a": NaN}, {"b": 1, "b": 2}, {"c": 3}]')
    first, second, third = entries(path)
    assert first.record.reason == "number that JSON lacks" and "NaN" in first.text
    assert second.record.reason == "repeated key" and third.record == {"c": 3}
    path.write_bytes(b'[{"a": 1}, "caf\xe9"]')
    assert list(entries(path))[-1].record.reason == "not UTF-8"


def test_a_long_element_is_rejected(tmp_path):
    path = tmp_path / "array.json"
    path.write_text(json.dumps(["x" * 5_000_000]))
    (found,) = entries(path, 1_000_000)
    assert found.record.reason == "line too long" and len(found.text) <= 2000


def test_every_record_counts_once(tmp_path):
    records = [GOOD, dialogue(("human", "Hi")), GOOD, b"{", dialogue(("elf", "Hi")), b"[]"]
    report = convert_file(lines(tmp_path, *records), "sharegpt", tmp_path / "out.jsonl")
    counts = report.as_dict()["sharegpt"]
    assert (counts["records"], counts["converted"], counts["rejected"]) == (6, 2, 4)
    assert counts["reasons"] == {
        "no reply at the end": 1,
        "broken JSON": 1,
        "unknown role": 1,
        "not an object": 1,
    }
    assert "chats-5" in counts["examples"]["unknown role"]
    assert "6 records, 2 converted into 2 conversations, 4 rejected" in str(report)
    assert str(Report()) == "no records"


def test_a_report_counts_several_sources(tmp_path):
    report = Report()
    math = lines(tmp_path, REAL["worked-math"][0], {}, name="math.jsonl")
    convert_file(lines(tmp_path, GOOD), "sharegpt", tmp_path / "a.jsonl", report=report)
    assert convert_file(math, "worked-math", tmp_path / "b.jsonl", report=report) is report
    counts = {name: (n["records"], n["converted"]) for name, n in report.as_dict().items()}
    assert counts == {"sharegpt": (1, 1), "worked-math": (2, 1)}
    assert (report.conversations, report.rejections) == (2, 1)


@pytest.mark.parametrize("where", ["score", "conversations"])
def test_any_depth_is_converted_or_rejected(tmp_path, where):
    depths = [*range(100, 1000, 97), *range(930, 1010, 4), 5000]
    values = [("[" * depth + "]" * depth).encode() for depth in depths]
    good = b'"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
    head = b"{" + (good + b", " if where == "score" else b"")
    path = lines(tmp_path, *[head + f'"{where}": '.encode() + v + b"}" for v in values])
    out = tmp_path / "out.jsonl"
    report = convert_file(path, "sharegpt", out, rejected=tmp_path / "bad.jsonl")
    counts = report.as_dict()["sharegpt"]
    assert counts["converted"] + counts["rejected"] == len(depths)
    assert set(counts["reasons"]) <= {"nested too deeply", "wrong type"}


def test_rejected_records_go_to_a_file_on_request(tmp_path):
    bad = dialogue(("elf", "Hi"))
    convert_file(
        lines(tmp_path, GOOD, bad, b"{"),
        "sharegpt",
        tmp_path / "out.jsonl",
        rejected=tmp_path / "bad.jsonl",
    )
    first, second = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert first["record"] == bad and first["place"] == "conversations[0].from"
    assert (second["where"], second["reason"], second["text"]) == ("chats-3", "broken JSON", "{")


def test_output_appears_only_when_complete(tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    path = lines(tmp_path, GOOD, GOOD)
    seen = []

    def interrupted(*arguments, **options):
        for found in stream(*arguments, **options):
            yield found
            seen.append(out.read_text())
            raise KeyboardInterrupt

    monkeypatch.setattr("course_utils.sources.report.stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_file(path, "sharegpt", out, rejected=tmp_path / "bad.jsonl")
    assert seen == ["before"] and out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chats.jsonl", "out.jsonl"]


def test_the_files_must_differ(tmp_path):
    path = lines(tmp_path, GOOD)
    for output, rejected in (
        (path, None),
        (tmp_path / "o", tmp_path / "o"),
        (tmp_path / "o", path),
    ):
        with pytest.raises(ValueError, match="is the same file as"):
            convert_file(path, "sharegpt", output, rejected=rejected)
    assert path.read_bytes() and not (tmp_path / "o").exists()


# --- the validator -------------------------------------------------------------------------------


def test_the_validator_finds_every_fault_and_its_place(tmp_path):
    def chat(*messages, **fields):
        return {"messages": list(messages)} | fields

    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    path = lines(
        tmp_path,
        chat(user, reply, id="a"),
        chat({"role": "gpt", "content": None}, {"content": "x"}, "hi", id="a", tags="t"),
        chat(user, user | {"name": "ann"}, reply, id=7),
        b"{",
        [1],
        {"text": "x"},
        chat(),
        {"messages": {}},
        chat(user, {"role": "assistant", "content": "", "tool_calls": [{"name": 1}]}),
        chat({"role": "user", "content": "a\ud800"}, reply),
        chat(reply),
    )
    found = [(p.line, p.message, p.field) for p in problems(path)]
    assert found == [
        (2, 0, "role"),
        (2, 0, "content"),
        (2, 1, "role"),
        (2, 2, None),
        (2, None, "tags"),
        (2, None, "id"),
        (3, 1, "name"),
        (3, 1, "role"),
        (4, None, None),
        (5, 0, None),
        (6, None, "messages"),
        (7, None, "messages"),
        (8, None, "messages"),
        (9, 1, "tool_calls[0]"),
        (10, 0, "content"),
        (11, 0, "role"),
    ]
    texts = [str(p) for p in problems(path)]
    assert texts[0].startswith(f"{path}:2: messages[0].role: unknown role 'gpt': the roles are sys")
    assert texts[5].startswith(f"{path}:2: id: the id 'a' already stands in line 1")
    (empty,) = problems(lines(tmp_path, b""))
    assert "no conversation" in str(empty)


def test_the_validator_finds_nothing_in_what_ships():
    assert not list(problems(ROOT / "data" / "conversations.jsonl"))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_says_what_it_did(tmp_path, capsys):
    path, out, report = lines(tmp_path, GOOD), tmp_path / "out.jsonl", tmp_path / "report.json"
    assert main(["sharegpt", str(path), str(out), "--report", str(report)]) == 0
    said = capsys.readouterr()
    assert "1 records, 1 converted" in said.out and "MB/s" in said.out
    assert "sharegpt" in said.err and "100%" in said.err
    assert json.loads(report.read_text())["sharegpt"]["conversations"] == 1
    assert main(["check", str(out)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_exit_codes(tmp_path, capsys):
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    elf = dialogue(("elf", "Hi"), ("gpt", "Hello"))
    path = lines(tmp_path, GOOD, elf)
    command = ["sharegpt", str(path), str(out), "--quiet"]
    assert main([*command, "--rejected", str(bad)]) == 1
    assert len(out.read_text().splitlines()) == len(bad.read_text().splitlines()) == 1
    assert main([*command, "--role", "elf=user"]) == 2
    assert "out.jsonl exists. Choose another file or add --overwrite." in capsys.readouterr().err
    assert main([*command, "--role", "elf=user", "--overwrite"]) == 0
    assert not capsys.readouterr().err
    assert main(["alpaca", str(path), str(tmp_path / "none.jsonl"), "--quiet"]) == 3
    assert not (tmp_path / "none.jsonl").exists()
    assert main(["check", str(path)]) == 1
    capsys.readouterr()
    for wrong, says in (
        (["sharegpt", str(tmp_path / "no.jsonl"), str(out)], "no such file"),
        (["sharegpt", str(path), str(path)], "is the same file as"),
        (["sharegpt", str(path), str(tmp_path / "no" / "out.jsonl")], "no such folder"),
        ([*command, "--overwrite", "--role", "elf=dwarf"], "cannot mean 'dwarf'"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err
    for wrong in (["vicuna", "a", "b"], ["sharegpt", str(path)], ["check", str(path), "b"]):
        with pytest.raises(SystemExit) as raised:
            main(wrong)
        assert raised.value.code == 2
    with pytest.raises(SystemExit):
        main([*command, "--role", "elf"])


def test_the_help_names_sources_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    said = capsys.readouterr().out
    assert raised.value.code == 0 and "exit codes:" in said
    assert all(f"  {source} " in said for source in SOURCES)


def test_the_module_runs_and_needs_no_torch(tmp_path):
    path = lines(tmp_path, GOOD)
    code = (
        "import sys; from course_utils.sources.__main__ import main\n"
        f"assert main(['sharegpt', {str(path)!r}, {str(tmp_path / 'o.jsonl')!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_benchmark_measures_a_file(tmp_path, capsys):
    out = tmp_path / "found.json"
    arguments = ["--megabytes", "30", "--folder", str(tmp_path), "--quiet", "--output", str(out)]
    assert benchmark.main(arguments) == 0
    small, large = json.loads(out.read_text())["runs"]
    assert large["megabytes"] == pytest.approx(30, rel=0.01) and large["rejected"] > 0
    assert large["peak_memory_mib"] - small["peak_memory_mib"] < 10, "a part of the file is held"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.json"]
