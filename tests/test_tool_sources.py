"""Converters and what templates write in a grammar of their own: calls, results, tools, thoughts.

What goes in must come out as the schema's own fields, exactly, or the record is rejected.
"""

import copy
import json
import random
import time

import pytest
import real_templates
from chats import FRAGMENTS
from conftest import how_many

from course_utils.conversation import Conversation, load_conversations
from course_utils.sources import (
    REASONS,
    SOURCES,
    Rejection,
    Report,
    convert,
    convert_file,
    stream,
)

WEATHER = {
    "name": "weather",
    "description": "Tells the sky.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOL = {"type": "function", "function": WEATHER}
BERN = {"name": "weather", "arguments": {"city": "Bern"}}


def only(record, source, **options):
    (found,) = convert(record, source, **options)
    assert isinstance(found, Conversation), str(found)
    return found


def reason(record, source="sharegpt"):
    (found,) = convert(record, source)
    assert isinstance(found, Rejection), found
    return found.reason


def calls_of(message):
    return [
        ({"id": call["id"]} if "id" in call else {}) | call["function"]
        for call in message.tool_calls
    ]


def dialogue(*pairs, **fields):
    return {"conversations": [{"from": name, "value": text} for name, text in pairs]} | fields


def messages(*turns, **fields):
    return {"messages": [{"role": role, **about} for role, about in turns]} | fields


def said(text, **about):
    return {"content": text} | about


# --- tags in the texts ---------------------------------------------------------------------------

PROMPT = (
    "You are a function calling AI model. You are provided with function signatures within "
    "<tools></tools> XML tags. Don't make assumptions about values.\n"
    f"<tools>\n{json.dumps(TOOL)}\n</tools>\n"
    "For each call return a json object within <tool_call></tool_call> XML tags as follows:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>'
)
CALL_TAG = f"<tool_call>\n{json.dumps(BERN)}\n</tool_call>"
RESULT_TAG = '<tool_response>\n{"name": "weather", "content": "clear"}\n</tool_response>'


def hermes(*, system=None, call=CALL_TAG, result=RESULT_TAG, role="tool", **fields):
    opening = [("system", system)] if system is not None else []
    turns = [("human", "Sky in Bern?"), ("gpt", call), (role, result), ("gpt", "Clear.")]
    return dialogue(*opening, *turns, **fields)


def in_other_sources(record):
    """The same texts as `messages` and as content blocks."""
    names = {"human": "user", "gpt": "assistant"}
    turns = [(names.get(t["from"], t["from"]), t["value"]) for t in record["conversations"]]
    rest = {key: record[key] for key in record if key != "conversations"}
    yield "messages", messages(*((role, said(text)) for role, text in turns), **rest)
    blocks = [(role, said([{"type": "text", "text": text}])) for role, text in turns]
    yield "content-blocks", messages(*blocks, **rest)


@pytest.mark.parametrize("role", ["tool", "human"])
def test_calls_results_and_tools_leave_the_texts(role):
    record = hermes(system=PROMPT, role=role)
    for source, shaped in [("sharegpt", record), *in_other_sources(record)]:
        chat = only(shaped, source)
        assert chat.roles == ["system", "user", "assistant", "tool", "assistant"]
        assert chat.tools == (TOOL,)
        assert (chat[2].content, calls_of(chat[2])) == ("", [BERN])
        assert (chat[3].content, chat[3].name) == ("clear", "weather")
        assert chat[0].content == (
            "You are a function calling AI model. Don't make assumptions about values."
        )
        assert not any("tool_call>" in m.content or "<tools>" in m.content for m in chat)


def test_what_leaves_the_system_text_is_in_the_meta_and_counted():
    report = Report()
    report.add("sharegpt", convert(hermes(system=PROMPT), "sharegpt", id="row"))
    (chat,) = convert(hermes(system=PROMPT), "sharegpt")
    (note,) = chat.meta["call_grammar"]
    assert [text.split()[0] for text in note["cut"]] == ["You", "For", "<tool_call>"]
    assert report.as_dict()["sharegpt"]["warnings"] == {"grammar of calls in the system text": 1}
    assert "1  warning: grammar of calls in the system text, first at row, " in str(report)


def test_a_list_in_the_system_text_and_beside_it():
    other = {"name": "clock", "parameters": {"type": "object"}}
    listed = f"Be brief. <tools>{json.dumps([TOOL])}</tools>"
    for tools in ([TOOL], [WEATHER], json.dumps(WEATHER), None):
        chat = only(hermes(system=listed, tools=tools), "sharegpt")
        assert (chat[0].content, chat.tools) == ("Be brief.", (TOOL,))
        assert "warnings" not in chat.meta
    lines = f"<tools>\n{json.dumps(TOOL)}\n{json.dumps(other)}\n</tools>"
    chat = only(hermes(system=lines, tools=[other, WEATHER]), "sharegpt")
    assert chat.roles[0] == "user" and [t["function"]["name"] for t in chat.tools] == [
        "clock",
        "weather",
    ]
    assert reason(hermes(system=listed, tools=[other])) == "broken tool definitions"
    assert reason(hermes(system="<tools>{{tools}}</tools>")) == "broken tool definitions"
    assert reason(hermes(system="<tools>[]")) == "tool tags in the text"


def test_texts_before_calls_several_calls_and_pythons_literals():
    second = "{'arguments': {'city': \"Biel's\", 'days': [-1, 2.5], 'x': None}, 'name': 'weather'}"
    text = f"I look.\n{CALL_TAG}\n<tool_call>{second}</tool_call>"
    two = f"{RESULT_TAG}\n<tool_response>rain</tool_response>"
    chat = only(hermes(call=text, result=two), "sharegpt")
    literal = {"city": "Biel's", "days": [-1, 2.5], "x": None}
    assert chat[1].content == "I look."
    assert calls_of(chat[1]) == [BERN, {"name": "weather", "arguments": literal}]
    assert [(m.content, m.name) for m in chat[2:4]] == [("clear", "weather"), ("rain", "weather")]
    rich = '<tool_response>{"name": "weather", "content": {"sky": ["é", 1.5]}}</tool_response>'
    assert only(hermes(result=rich), "sharegpt")[2].content == '{"sky": ["é", 1.5]}'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"call": "<tool_call>{"}, "tool tags in the text"),
        ({"call": '{"name": 1}</tool_call>'}, "tool tags in the text"),
        ({"call": "<tool_call>weather(Bern)</tool_call>"}, "broken tool call"),
        ({"call": "<tool_call>weather('Bern')</tool_call>"}, "broken tool call"),
        ({"call": "<tool_call>{**{}}</tool_call>"}, "broken tool call"),
        ({"call": "<tool_call>{'name': 'f', 'name': 'g'}</tool_call>"}, "broken tool call"),
        ({"call": '<tool_call>{"a": 1, "a": 2}</tool_call>'}, "repeated key"),
        ({"call": f"{CALL_TAG} Wait."}, "text after a tool call"),
        ({"call": f"{RESULT_TAG}{CALL_TAG}"}, "tool tags in the text"),
        ({"call": "Just text."}, "result without its call"),
        ({"result": f"So: {RESULT_TAG}"}, "tool tags in the text"),
        ({"result": "<tool_response>"}, "tool tags in the text"),
        ({"result": RESULT_TAG.replace("weather", "clock")}, "result without its call"),
        ({"result": RESULT_TAG * 2}, "result without its call"),
        ({"result": f"See {RESULT_TAG}", "role": "human"}, "tool tags in the text"),
    ],
)
def test_tags_that_cannot_be_unpacked(changes, expected):
    record = hermes(**changes)
    assert reason(record) == expected
    for source, shaped in in_other_sources(record):
        assert reason(shaped, source) == expected


def test_tags_beside_the_same_calls_are_one():
    call = {"type": "function", "function": BERN, "id": "c1"}
    turns = [("user", said("Sky?")), ("assistant", said(CALL_TAG, tool_calls=[call]))]
    assert calls_of(only(messages(*turns), "openai")[1]) == [{"id": "c1", **BERN}]
    call["function"] = {"name": "weather", "arguments": {"city": "Biel"}}
    assert reason(messages(*turns), "openai") == "tool tags in the text"


@pytest.mark.parametrize(
    "mark",
    [
        "<functioncall> ",
        "<function_call>",
        "<tool_calls>",
        "<|tool_call|>",
        "<｜tool▁calls▁begin｜>",
        "<|python_tag|>",
        "[TOOL_CALLS] ",
        "<function=weather>",
    ],
)
def test_calls_in_other_grammars_are_no_text(mark):
    record = dialogue(("human", "Sky in Bern?"), ("gpt", f"I look. {mark}{json.dumps(BERN)}"))
    for source, shaped in [("sharegpt", record), *in_other_sources(record)]:
        assert reason(shaped, source) == "tool tags in the text"


def test_a_user_may_speak_of_tags():
    for text in ("What is <tool_response>x</tool_response>?", "And <tools><a>1</a></tools>?"):
        record = dialogue(("human", text), ("gpt", "A tag."))
        assert only(record, "sharegpt")[0].content == text


def test_a_user_may_list_the_tools():
    text = f"<tools>{json.dumps([TOOL])}</tools>\nSky in Bern?"
    record = dialogue(("human", text), ("gpt", CALL_TAG))
    chat = only(record, "sharegpt")
    assert (chat[0].content, chat.tools) == ("Sky in Bern?", (TOOL,))
    assert reason(record | {"tools": [{"name": "clock"}]}) == "broken tool definitions"
    empty = dialogue(("human", f"<tools>{json.dumps([TOOL])}</tools>"), ("gpt", "Hello"))
    assert reason(empty) == "empty text"


@pytest.mark.parametrize(
    "text",
    [
        "<tools>" * 100_000,
        "</tools>" * 50_000 + "<tools>" * 50_000,
        "<tool_call></tool_call>\n" * 50_000,
        "<tool_call></tool_call>" * 50_000,
        "<tools>" + "-" * 90_000 + "1</tools>",
        "<tools>" + "[" * 90_000 + "</tools>",
        "<tools>" + "{'a':" * 20_000 + "</tools>",
        "<tool_call>" + "1+" * 40_000 + "1</tool_call>",
        "<tool_response>" + "\\" * 90_001 + "</tool_response>",
    ],
    ids=lambda text: text[:24],
)
def test_long_texts_of_tags_take_no_time(text):
    start = time.process_time()
    for record in (hermes(system=text), hermes(call=text), hermes(result=text)):
        assert len(convert(record, "sharegpt")) == 1
    assert time.process_time() - start < 5


# --- results and their calls ---------------------------------------------------------------------


def exchange(calls, results, **about):
    """An OpenAI chat: (id, name) of the calls, (tool_call_id, name) of their results."""
    made = [
        {"type": "function", "function": {"name": name, "arguments": {}}}
        | ({"id": id} if id else {})
        for id, name in calls
    ]
    told = [
        ("tool", {"content": "x", "tool_call_id": id, "name": name} | about) for id, name in results
    ]
    turns = [("user", said("?")), ("assistant", {"content": None, "tool_calls": made}), *told]
    return messages(*turns, ("assistant", said("!")))


# calls, results as they are given, results as they come out
MATCHED = [
    ([("a", "f")], [("a", None)], [("a", "f")]),
    ([("a", "f")], [(None, "f")], [("a", "f")]),
    ([("a", "f")], [(None, None)], [("a", "f")]),
    ([(None, "f")], [(None, None)], [(None, "f")]),
    ([("a", "f"), ("b", "g")], [("b", None), ("a", None)], [("b", "g"), ("a", "f")]),
    ([("a", "f"), ("b", "g")], [(None, "g"), (None, "f")], [("b", "g"), ("a", "f")]),
    ([("a", "f"), ("b", "g")], [(None, None)] * 2, [("a", "f"), ("b", "g")]),
    # One result for two calls: it may be for both.
    ([("a", "f"), ("b", "g")], [(None, None)], [(None, None)]),
    ([("a", "f"), ("b", "f")], [(None, None)], [(None, "f")]),
]


@pytest.mark.parametrize(("calls", "results", "expected"), MATCHED)
def test_results_find_their_calls(calls, results, expected):
    chat = only(exchange(calls, results), "openai")
    assert [(m.tool_call_id, m.name) for m in chat if m.role == "tool"] == expected


@pytest.mark.parametrize(
    ("calls", "results"),
    [
        ([("a", "f")], [("b", None)]),
        ([("a", "f")], [("a", "g")]),
        ([("a", "f")], [(None, "g")]),
        ([("a", "f")], [("a", None), ("a", None)]),
        ([("a", "f")], [(None, None), (None, None)]),
        ([(None, "f")], [("a", None)]),
        ([("a", "f"), ("b", "g")], [("a", "g")]),
    ],
)
def test_a_result_without_its_call(calls, results):
    assert reason(exchange(calls, results), "openai") == "result without its call"


def test_ids_are_kept_as_they_are():
    ids = ["call_01", "0", "", " a ", "é", "01", "1e5", "x" * 80]
    for id in ids:
        chat = only(exchange([(id, "f")], [(id, None)]), "openai")
        kept = id or None
        assert (chat[1].tool_calls[0].get("id"), chat[2].tool_call_id) == (kept, kept)
    assert reason(exchange([(7, "f")], [(7, None)]), "openai") == "wrong type"


# --- tools ---------------------------------------------------------------------------------------


def with_tools(tools, key="tools"):
    return messages(("user", said("Hi")), ("assistant", said("Hello"))) | {key: tools}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        TOOL,
        WEATHER,
        json.dumps([WEATHER]),
        [json.dumps(TOOL)],
        [{"type": "function", **WEATHER}],
        [{"function": WEATHER}],
        [{**WEATHER, "parameters": json.dumps(WEATHER["parameters"])}],
        [{**TOOL, "function": {**WEATHER, "strict": None}, "extra": None}],
        [
            {
                "type": "custom",
                "name": "weather",
                "description": "Tells the sky.",
                "input_schema": WEATHER["parameters"],
            }
        ],
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize("source", ["openai", "messages", "content-blocks"])
def test_definitions_of_every_shape(tools, key, source):
    assert only(with_tools(tools, key), source).tools == (TOOL,)


@pytest.mark.parametrize(
    "tools",
    [
        [7],
        "weather",
        [{"name": ""}],
        [{"name": 7}],
        [{"type": "web_search", "name": "weather"}],
        [{"type": "custom", "custom": {"name": "weather"}}],
        [{**WEATHER, "parameters": []}],
        [{**WEATHER, "input_schema": {}}],
    ],
    ids=str,
)
def test_broken_definitions(tools):
    for source in ("openai", "sharegpt", "content-blocks"):
        record = with_tools(tools)
        if source == "sharegpt":
            record = dialogue(("human", "Hi"), ("gpt", "Hello"), tools=tools)
        assert reason(record, source) == "broken tool definitions"


def test_xlams_parameters_become_a_schema():
    parameters = {
        "city": {"type": "str", "description": "A city"},
        "days": {"type": "int, optional", "description": "How many", "default": 3},
        "type": {"type": "List[int]", "description": "Kinds"},
    }
    record = {
        "query": "Sky in Bern?",
        "tools": json.dumps([{**WEATHER, "parameters": parameters}]),
        "answers": json.dumps([BERN]),
    }
    (tool,) = only(record, "tool-trace").tools
    assert tool["function"] | {"parameters": None} == WEATHER | {"parameters": None}
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "A city"},
            "days": {"type": "integer", "description": "How many", "default": 3},
            "type": {"type": "List[int]", "description": "Kinds"},
        },
        "required": ["city", "type"],
    }
    # A schema is left alone, whatever its properties are called.
    schema = {"type": "object", "properties": {"type": {"type": "str"}}}
    (tool,) = only(record | {"tools": [{**WEATHER, "parameters": schema}]}, "tool-trace").tools
    assert tool["function"]["parameters"] == schema


def test_padded_nulls_go_from_schemas_and_are_counted_in_arguments(tmp_path):
    padded = {**WEATHER["parameters"], "properties": {"city": {"type": "string"}, "zone": None}}
    call = {
        "id": "c1",
        "function": {"name": "weather", "arguments": {"city": "Bern", "zone": None}},
    }
    turns = [("user", said("Sky?")), ("assistant", {"content": None, "tool_calls": [call]})]
    record = messages(*turns, tools=[{**WEATHER, "parameters": padded, "strict": None}])
    report = Report()
    report.add("openai", convert(record, "openai", id="row-1"))
    chat = only(record, "openai")
    assert chat.tools == (TOOL,)
    assert calls_of(chat[1])[0]["arguments"] == {"city": "Bern", "zone": None}
    assert report.as_dict()["openai"]["warnings"] == {
        "null left out of tools": 1,
        "null in arguments": 1,
    }
    assert "row-1, messages[1]: call 0, weather: arguments.zone" in str(report)
    assert "tools[0].parameters.properties.zone and 1 more" in str(report)


# --- thoughts, weights, options ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_of_every_shape(name):
    in_field = messages(("user", said("2+2?")), ("assistant", said("4", **{name: "two twos"})))
    for source in ("openai", "messages", "content-blocks"):
        assert only(in_field, source)[1].reasoning == "two twos"
    part = {"type": "thinking", "thinking": "two twos", "signature": "x"}
    parts = [part, {"type": "text", "text": "4"}]
    in_parts = messages(("user", said("2+2?")), ("assistant", said(parts)))
    for source in ("openai", "messages", "content-blocks"):
        chat = only(in_parts, source)
        assert (chat[1].reasoning, chat[1].content) == ("two twos", "4")
        assert chat.meta["message_fields"] == [{"message": 1, "fields": {"signature": "x"}}]
    both = messages(("user", said("2+2?")), ("assistant", said(parts, **{name: "no"})))
    late = messages(("user", said("2+2?")), ("assistant", said(parts[::-1])))
    for source in ("openai", "messages", "content-blocks"):
        assert reason(both, source) == reason(late, source) == "reasoning apart from the text"


def test_weights():
    turns = [
        ("user", said("2+2?", weight=1)),
        ("assistant", said("5", weight=0)),
        ("user", said("Sure?", train=False)),
        ("assistant", said("4?", weight=0.25)),
        ("user", said("So?", weight=0)),
        ("assistant", said("4.", train=False)),
        ("user", said("And?")),
        ("assistant", said("Yes.", weight=1, train=True)),
    ]
    as_sharegpt = {
        "conversations": [
            {"from": {"user": "human"}.get(role, "gpt"), "value": about.pop("content"), **about}
            for role, about in [(role, dict(about)) for role, about in turns]
        ]
    }
    for source, record in [
        ("openai", messages(*turns)),
        ("messages", messages(*turns)),
        ("content-blocks", messages(*turns)),
        ("sharegpt", as_sharegpt),
    ]:
        replies = [m for m in only(record, source) if m.role == "assistant"]
        assert [(m.train, m.weight) for m in replies] == [
            (False, 1),
            (True, 0.25),
            (False, 1),
            (True, 1),
        ]


def test_replies_in_a_prompt_are_context():
    prompt = messages(
        ("user", said("a")),
        ("assistant", said("b")),
        ("user", said("c")),
        ("assistant", said("d", train=True)),
        ("user", said("e")),
        ("assistant", said("f", weight=2)),
        ("user", said("g")),
    )["messages"]
    record = {"prompt": prompt, "completion": [{"role": "assistant", "content": "h"}]}
    chat = only(record | {"tools": [WEATHER]}, "prompt-completion")
    replies = [m for m in chat if m.role == "assistant"]
    assert [(m.train, m.weight) for m in replies] == [(False, 1), (True, 1), (True, 2), (True, 1)]
    assert chat.tools == (TOOL,)


def test_options_of_the_template_are_the_conversations():
    record = with_tools([]) | {"chat_template_kwargs": {"enable_thinking": False}}
    chat = only(record, "openai")
    assert chat.template_options == {"enable_thinking": False} and "fields" not in chat.meta


# --- ids of records ------------------------------------------------------------------------------


def test_the_ids_of_records_are_kept(tmp_path):
    ids = ["keel-01", "keel-02", "keel-01", None, 7, "", "keel-6", "keel-8", ["x"], "keel-3"]
    good = dialogue(("human", "Hi"), ("gpt", "Hello"))
    path = tmp_path / "keel.jsonl"
    path.write_text("".join(json.dumps({"id": id, **good}) + "\n" for id in ids))
    report = Report()
    convert_file(path, "sharegpt", tmp_path / "out.jsonl", report=report)
    chats = load_conversations(tmp_path / "out.jsonl")
    names = ["keel-01", "keel-02", "keel-3", "keel-4", "7"]
    names += ["keel-6", "keel-7", "keel-8", "keel-9", "keel-10"]
    assert [chat.id for chat in chats] == names
    assert [chat.meta.get("fields", {}).get("id") for chat in chats] == [
        *(None, None, "keel-01", None, 7, "", "keel-6", None, ["x"], "keel-3")
    ]
    assert report.as_dict()["sharegpt"]["warnings"] == {"repeated id": 3}
    assert only({"id": "keel-01", **good}, "sharegpt").id == "keel-01"
    assert only({"id": "keel-01", **good}, "sharegpt", id="mine").meta["fields"] == {
        "id": "keel-01"
    }


def test_a_rejection_is_named_by_its_line(tmp_path):
    path = tmp_path / "keel.jsonl"
    path.write_text(json.dumps({"id": "keel-01", **dialogue(("human", "Hi"))}) + "\n")
    (found,) = stream(path, "sharegpt")
    assert found.where == "keel-1"


# --- random records ------------------------------------------------------------------------------

TEXTS = [text for text in FRAGMENTS if text.strip()] + ["ok", "yes.\n", " no", '{"a": 1}']


class Drawn:
    """A conversation with tools, drawn at random, and how each source writes it down.

    rounds: (user's text, [(said before, calls, results)], reply). A call is (id, name, arguments),
            a result (the place of its call, text). Where there are ids, results may come in any
            order and be missing. `expected` is what must come out.
    """

    def __init__(self, seed, may_have_ids=True):
        self.draw = draw = random.Random(seed)
        names = [f"tool_{n}" for n in range(draw.randint(1, 3))]
        self.tools = [self.definition(name) for name in names[: draw.randint(0, 3)]]
        self.with_ids = draw.random() < 0.6 and may_have_ids
        self.system = self.text() if draw.random() < 0.4 else None
        self.rounds, number = [], 0
        for _ in range(draw.randint(1, 3)):
            steps = []
            for _ in range(draw.choice((0, 1, 1, 2))):
                calls = []
                for _ in range(draw.choice((1, 1, 2, 3))):
                    number += 1
                    id = draw.choice((f"call_{number:02}", f"{number:03}", f"ü-{number}"))
                    calls.append((id, draw.choice(names), self.arguments()))
                places = list(range(len(calls)))
                if self.with_ids:
                    draw.shuffle(places)
                    places = places[: draw.randint(1, len(places))]
                results = [(place, draw.choice(("", self.text()))) for place in places]
                steps.append((draw.choice(("", "", self.text())), calls, results))
            self.rounds.append((self.text(), steps, self.text()))
        self.thoughts = [self.text() if draw.random() < 0.3 else None for _ in range(20)]
        self.weights = [draw.choice((None, None, 0, 1, 0.5)) for _ in range(20)]

    def text(self):
        return "".join(self.draw.choices(TEXTS, k=self.draw.randint(1, 3)))

    def value(self, depth=0):
        kind = self.draw.randint(0, 8 if depth < 2 else 5)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.draw.randint(0, 2))]
        if kind > 6:
            return self.arguments(depth + 1)
        numbers = (0, -7, 10**17 + 1, 2**63, 0.1, 1e-7, 1.5e300, -0.0, 4.0)
        return self.draw.choice(
            (None, True, False, self.draw.choice(numbers), self.text(), "</tool", "1")
        )

    def arguments(self, depth=0):
        keys = ("city", "a", "type", "ü", "", "name", "x y")
        return {key: self.value(depth) for key in self.draw.sample(keys, self.draw.randint(0, 3))}

    def definition(self, name):
        about = {"name": name, "description": self.text()}
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        if self.draw.random() < 0.3:
            first = self.draw.choice((1, "a", None))
            schema["properties"]["kind"] = {"type": ["string", "null"], "default": first}
        return about | self.draw.choice(({}, {"parameters": {}}, {"parameters": schema}))

    # What must come out.

    def turns(self):
        """(role, text, calls or the call that is answered) in their order."""
        if self.system is not None:
            yield "system", self.system, None
        for asked, steps, reply in self.rounds:
            yield "user", asked, None
            for text, calls, results in steps:
                yield "assistant", text, calls
                for place, told in results:
                    yield "tool", told, calls[place]
            yield "assistant", reply, []

    def expected(self, *, ids=True, thoughts=True, weights=True):
        found, replies = [], 0
        for role, text, about in self.turns():
            turn = {"role": role, "content": text}
            if role == "tool":
                turn |= {"name": about[1]} | ({"tool_call_id": about[0]} if ids else {})
            if role == "assistant":
                thought, weight = self.thoughts[replies], self.weights[replies]
                replies += 1
                if about:
                    turn["tool_calls"] = [
                        ({"id": id} if ids else {})
                        | {"type": "function", "function": {"name": name, "arguments": given}}
                        for id, name, given in about
                    ]
                if thoughts and thought:
                    turn["reasoning_content"] = thought
                if weights and weight == 0:
                    turn["train"] = False
                if weights and weight == 0.5:
                    turn["weight"] = 0.5
            found.append(turn)
        return found

    # How sources write it.

    def beside(self, reply, *, thoughts=True):
        """What a message of an assistant may have besides its text and its calls."""
        weight, thought = self.weights[reply], self.thoughts[reply]
        about = {} if weight is None else {"weight": weight}
        name = ("reasoning_content", "reasoning", "thinking")[reply % 3]
        return about | ({name: thought} if thoughts and thought else {})

    def openai(self):
        replies, found = 0, []
        for role, text, about in self.turns():
            turn = {"role": role, "content": text}
            if role == "assistant":
                turn |= self.beside(replies)
                replies += 1
                if about:
                    turn["tool_calls"] = [self.openai_call(*call) for call in about]
                    turn["content"] = text or None
            if role == "tool" and self.with_ids:
                turn["tool_call_id"] = about[0]
            elif role == "tool" and self.draw.random() < 0.5:
                turn["name"] = about[1]
            found.append(turn)
        record = {
            "messages": found,
            "tools": self.draw.choice((self.tools, json.dumps(self.tools))),
        }
        return record, self.expected(ids=self.with_ids)

    def openai_call(self, id, name, arguments):
        given = self.draw.choice((arguments, json.dumps(arguments)))
        call = {"type": "function", "function": {"name": name, "arguments": given}}
        return {"id": id, **call} if self.with_ids else call

    def prompt_completion(self):
        record, expected = self.openai()
        turns = record.pop("messages")
        replies = [turn for turn in turns if turn["role"] == "assistant"]
        made = [turn for turn in expected if turn["role"] == "assistant"]
        for turn, reply in zip(made, replies, strict=True):
            if reply is not replies[-1] and "weight" not in reply:
                turn["train"] = False
        return record | {"prompt": turns[:-1], "completion": turns[-1:]}, expected

    def sharegpt(self):
        replies, found = 0, []
        names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
        for role, text, about in self.turns():
            turn = {"from": names[role], "value": text}
            if role == "assistant":
                if about:
                    calls = [{"name": name, "arguments": given} for _, name, given in about]
                    value = calls[0] if len(calls) == 1 else calls
                    turn = {"from": "function_call", "value": json.dumps(value)}
                turn |= self.beside(replies)
                replies += 1
            found.append(turn)
        expected = self.expected(ids=False)
        for turn in expected:
            if "tool_calls" in turn:
                turn["content"] = ""
        return {"conversations": found, "tools": json.dumps(self.tools)}, expected

    def hermes(self):
        replies, found, told = 0, [], []
        names = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
        for role, text, about in self.turns():
            if role == "tool":
                result = {"name": about[1], "content": text}
                told.append(f"<tool_response>\n{json.dumps(result)}\n</tool_response>")
                continue
            if told:
                found.append({"from": "tool", "value": "\n".join(told)})
                told = []
            turn = {"from": names[role], "value": text}
            if role == "assistant":
                calls = [{"name": name, "arguments": given} for _, name, given in about]
                tags = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls]
                turn["value"] = "\n".join([text] * bool(text) + tags)
                turn |= self.beside(replies)
                replies += 1
            found.append(turn)
        expected = self.expected(ids=False)
        for turn in expected:
            if "tool_calls" in turn:
                turn["content"] = turn["content"].rstrip("\n")
        return {"conversations": found, "tools": self.tools}, expected

    def content_blocks(self):
        replies, found = 0, []
        for role, text, about in self.turns():
            blocks = [{"type": "text", "text": text}] if text else []
            if role == "tool":
                result = {"type": "tool_result", "tool_use_id": about[0], "content": text}
                if found[-1]["role"] == "user":
                    found[-1]["content"].append(result)
                else:
                    found.append({"role": "user", "content": [result]})
                continue
            turn = {"role": role}
            if role == "assistant":
                if thought := self.thoughts[replies]:
                    blocks.insert(0, {"type": "thinking", "thinking": thought})
                blocks += [
                    {"type": "tool_use", "id": id, "name": name, "input": given}
                    for id, name, given in about
                ]
                turn |= self.beside(replies, thoughts=False)
                replies += 1
            found.append(turn | {"content": blocks})
        tools = [
            {"input_schema" if key == "parameters" else key: tool[key] for key in tool}
            for tool in self.tools
        ]
        return {"messages": found, "tools": tools}, self.expected()

    def code_trace(self):
        found, expected = [], []
        for role, text, about in self.turns():
            if role == "tool" or (role == "assistant" and about):
                continue
            found.append({"role": role, "type": "message", "content": text})
            expected.append({"role": role, "content": text})
            if role != "user" or self.draw.random() < 0.5:
                continue
            code = [self.text() for _ in range(self.draw.randint(1, 2))]
            calls = [
                {"name": "execute", "arguments": {"language": "python", "code": c}} for c in code
            ]
            found += [
                {"role": "assistant", "type": "code", "format": "python", "content": c}
                for c in code
            ]
            made = [{"type": "function", "function": call} for call in calls]
            expected.append({"role": "assistant", "content": "", "tool_calls": made})
            for printed in code:
                output = {"role": "computer", "type": "console", "format": "output"}
                found.append(output | {"content": printed})
                expected.append({"role": "tool", "content": printed, "name": "execute"})
        self.tools = []
        return {"messages": found}, expected

    def tool_trace(self):
        calls = [call for _, steps, _ in self.rounds for _, made, _ in steps for call in made]
        answers = [{"name": name, "arguments": given} for _, name, given in calls]
        answers = answers or [{"name": "f", "arguments": {}}]
        asked = self.rounds[0][0]
        made = [{"type": "function", "function": answer} for answer in answers]
        record = {"query": asked, "tools": json.dumps(self.tools), "answers": json.dumps(answers)}
        return record, [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": "", "tool_calls": made},
        ]

    def plain(self):
        """The texts alone, for sources that have nothing else."""
        expected = [
            {"role": role, "content": text}
            for role, text, about in self.turns()
            if role == "user" or (role == "assistant" and not about)
        ]
        self.tools = []
        return [turn["content"] for turn in expected], expected

    def alpaca(self):
        texts, expected = self.plain()
        history = [texts[n : n + 2] for n in range(0, len(texts) - 2, 2)]
        return {"history": history, "instruction": texts[-2], "output": texts[-1]}, expected

    def oasst(self):
        texts, expected = self.plain()
        roles = ("prompter", "assistant") * (len(texts) // 2)
        thread = [{"role": r, "text": t} for r, t in zip(roles, texts, strict=True)]
        return {"thread": thread}, expected

    def worked_math(self):
        texts, _ = self.plain()
        answer = texts[1].replace("#", "").replace("<", "").replace(">", "") + "\n#### 4"
        expected = [
            {"role": "user", "content": texts[0]},
            {"role": "assistant", "content": answer},
        ]
        return {"question": texts[0], "answer": answer}, expected


RECORDS = how_many(400, 2000)
WRITERS = {source: source.replace("-", "_") for source in SOURCES} | {"messages": "openai"}
SHAPES = [*WRITERS.items(), ("sharegpt", "hermes")]


@pytest.mark.filterwarnings("ignore::course_utils.records.ConversationWarning")
@pytest.mark.parametrize(("source", "shape"), SHAPES, ids=[shape for _, shape in SHAPES])
def test_random_records(source, shape, tmp_path):
    """What goes in comes out exactly, is written, and is what the loader reads."""
    lines, wanted = [], []
    for seed in range(RECORDS):
        drawn = Drawn(f"{shape} {seed}", may_have_ids=shape != "sharegpt")
        record, expected = getattr(drawn, shape)()
        lines.append(json.dumps(record, ensure_ascii=seed % 2 == 0) + "\n")
        wanted.append((expected, [{"type": "function", "function": t} for t in drawn.tools]))
    (tmp_path / "in.jsonl").write_text("".join(lines), "utf-8")
    report = convert_file(tmp_path / "in.jsonl", source, tmp_path / "out.jsonl")
    assert not report.rejections, str(report)
    chats = load_conversations(tmp_path / "out.jsonl")
    assert len(chats) == report.sources[source].records == RECORDS
    for chat, (expected, tools) in zip(chats, wanted, strict=True):
        record = chat.as_record()
        assert exactly(record["messages"]) == exactly(expected)
        assert exactly(record.get("tools", [])) == exactly(tools)


def exactly(value):
    """JSON in which 1, 1.0 and true differ, and the order of keys does not count."""
    return json.dumps(value, sort_keys=True)


@pytest.mark.filterwarnings("ignore::course_utils.records.ConversationWarning")
@pytest.mark.parametrize("source", SOURCES)
def test_whatever_is_converted_can_be_loaded(source, tmp_path):
    """Damaged records: each is converted or rejected, and what is written can be loaded."""
    lines, draw = [], random.Random(source)
    for seed in range(RECORDS):
        record, _ = getattr(Drawn(f"{source} {seed}"), WRITERS[source])()
        for _ in range(draw.randint(1, 2)):
            _damage(record, draw)
        lines.append(json.dumps(record) + "\n")
    (tmp_path / "in.jsonl").write_text("".join(lines))
    report = convert_file(tmp_path / "in.jsonl", source, tmp_path / "out.jsonl")
    tally = report.sources[source]
    assert tally.records == RECORDS == tally.converted + tally.rejected
    assert tally.converted > RECORDS / 40 and tally.rejected > RECORDS / 4
    assert set(tally.reasons) <= set(REASONS)
    assert len(load_conversations(tmp_path / "out.jsonl")) == tally.conversations


ODD = [None, "", [], {}, 0, 1, -1, 0.5, True, "x", [{}], {"a": None}, "a\ud83d", 10**400, "[" * 200]
ODD += [{"type": "text", "text": "x"}, [None], "<tool_call>", "user", "assistant", "tool", "{}"]
NAMES = [
    "train",
    "weight",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning",
    "id",
    "tools",
    "type",
]
NAMES += ["images", "system", "functions", "chat_template_kwargs", "content", "tags", "source"]


def _damage(record, draw):
    place = record
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not inner or draw.random() < 0.25:
            break
        place = place[draw.choice(inner)]
    how = draw.random()
    if isinstance(place, dict) and how < 0.3:
        place[draw.choice(NAMES)] = copy.deepcopy(draw.choice(ODD))
    elif keys and how < 0.5:
        del place[draw.choice(keys)]
    elif keys:
        place[draw.choice(keys)] = copy.deepcopy(draw.choice(ODD))


# --- real templates ------------------------------------------------------------------------------

IN_ITS_GRAMMAR = {
    "qwen3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
    "llama3_1": '{"name": "weather", "parameters": {"city": "Bern"}}',
    "glm4moe": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>",
    "gptoss": 'to=functions.weather<|channel|>commentary json<|message|>{"city": "Bern"}<|call|>',
}
CASES = {
    "openai": messages(
        ("user", said("Sky in Bern?")),
        (
            "assistant",
            {
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
                    }
                ],
            },
        ),
        ("tool", said("clear", tool_call_id="c1")),
        ("assistant", said("Clear.")),
        tools=[TOOL],
    ),
    "sharegpt": dialogue(
        ("human", "Sky in Bern?"),
        ("function_call", json.dumps(BERN)),
        ("observation", "clear"),
        ("gpt", "Clear."),
        tools=json.dumps([TOOL]),
    ),
    "hermes": hermes(system=PROMPT, tools=json.dumps([TOOL])),
    "tool-trace": {
        "query": "Sky in Bern?",
        "tools": json.dumps([WEATHER]),
        "answers": json.dumps([BERN]),
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IN_ITS_GRAMMAR)
def test_a_template_writes_call_result_and_tool_once(name, case):
    if name not in real_templates.names():
        pytest.skip(f"this trl has no template {name}")
    chat = only(CASES[case], {"hermes": "sharegpt"}.get(case, case))
    text = real_templates.tokenizer_for(name).apply_chat_template(
        chat.as_messages(), tools=list(chat.tools), tokenize=False
    )
    assert text.count(IN_ITS_GRAMMAR[name]) == 1
    assert text.count("Bern") == 2 and text.count("Tells the sky.") == 1  # asked, called; defined
    assert text.count("clear") == (case != "tool-trace")
