"""Records: what is honored, what is refused, and that the loader and `check` agree on each file."""

import copy
import gzip
import json
import math
import pickle
import random
import time
import tracemalloc
import warnings

import numpy as np
import pytest

from course_utils import json_files
from course_utils.conversation import (
    PROMPT_FIELDS,
    TAKEN_OPTIONS,
    Conversation,
    ConversationError,
    Message,
    conversation,
    from_record,
    load_conversations,
    save_conversations,
)
from course_utils.faults import MOST
from course_utils.records import ConversationWarning
from course_utils.sources import problems
from course_utils.sources.__main__ import main
from course_utils.strict_json import DEEPEST, JSONError, decode, plain

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BARE = {"name": "weather", "description": "Tells the sky.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": BARE}


def chat(**fields):
    return {"messages": [USER, REPLY]} | fields


def reply(**fields):
    """A record whose reply has these fields."""
    return {"messages": [USER, REPLY | fields]}


def calling(**function):
    return reply(content=None, tool_calls=[{"function": {"name": "weather"} | function}])


def written(tmp_path, *lines, name="chats.jsonl"):
    """A file of these lines: records, or JSON as it is."""
    path = tmp_path / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8") + b"\n")
    return path


def refusal(path):
    """What the loader says, after it was made sure that `check` refuses the file as well."""
    with pytest.raises(ConversationError) as raised:
        load_conversations(path)
    text = str(raised.value)
    assert text.startswith(str(path)) and text.isprintable() and len(text) < 1000
    found = [str(problem) for problem in problems(path)]
    assert found and all(one.isprintable() for one in found)
    return text


def accepted(path):
    """What is loaded, after it was made sure that `check` accepts it, and that it can be saved."""
    found = load_conversations(path)
    assert not list(problems(path))
    again = path.with_name("again.jsonl")
    save_conversations(found, again)
    assert load_conversations(again) == found
    assert [from_record(one.as_record()) for one in found] == found
    return found


# --- the decoder ---------------------------------------------------------------------------------

POISON = {
    "NaN": ("NaN", "number that JSON lacks"),
    "infinity": ("-Infinity", "number that JSON lacks"),
    "float too large": ("1e999", "number that JSON lacks"),
    "float too small": ("[1e-999]", "number that JSON lacks"),
    "integer of 400 digits": ("9" * 400, "number that JSON lacks"),
    "integer of 5,000 digits": ("-" + "9" * 5000, "number that JSON lacks"),
    "repeated key": ('{"a": 1, "b": 2, "a": 1}', "repeated key"),
    "repeated key deep inside": ('[{"x": {"a": 1, "\\u0061": 2}}]', "repeated key"),
    "deep": ("[" * 101 + "]" * 101, "nested too deeply"),
    "very deep": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "lone surrogate": ('"a\\ud83d"', "lone surrogate"),
    "the wrong half": ('["\\uDE00\\uD83D"]', "lone surrogate"),
    "lone surrogate in a key": ('{"\\udc00": 1}', "lone surrogate"),
}
BROKEN = [
    "",
    " ",
    "{",
    '{"a" 1}',
    "[1,]",
    "nul",
    "{} {}",
    '"a',
    '"\\x"',
    '"a\nb"',
    "\ufeff{}",
    "01",
]


@pytest.mark.parametrize("kind", POISON)
def test_the_decoder_refuses(kind):
    text, reason = POISON[kind]
    with pytest.raises(JSONError) as raised:
        decode(text)
    assert raised.value.reason == reason and str(raised.value).isprintable()
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("text", BROKEN)
def test_the_decoder_says_where_json_breaks(text):
    with pytest.raises(JSONError, match=r"^broken JSON: .* at (line \d+, )?column \d+$") as raised:
        decode(text)
    assert "at at" not in str(raised.value)


def test_the_decoder_reads_what_json_can_say():
    text = ' {"a": [1, -0.5e-3, 1E5, true, null, "\\ud83d\\ude00", "é"], "": {}}\r\n'
    assert decode(text) == json.loads(text)
    assert decode("[" * DEEPEST + "]" * DEEPEST) == json.loads("[" * DEEPEST + "]" * DEEPEST)
    assert decode("[0e99999999999999999999, 0.000]", exact=True) == [0, 0]
    assert decode("0.1000000000000000055") == 0.1
    with pytest.raises(JSONError, match="'0.1000000000000000055' has more digits than a float"):
        decode("0.1000000000000000055", exact=True)


def test_a_key_is_found_twice_among_very_many():
    pairs = ",".join(f'"{n}":0' for n in range(200_000))
    start = time.perf_counter()
    with pytest.raises(JSONError, match="'199999' occurs twice"):
        decode(f'{{{pairs},"199999":0}}')
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("value", "reason", "place"),
    [
        ({"a": [0, {"b": float("nan")}]}, "number that JSON lacks", "a[1].b"),
        ([10**400], "number that JSON lacks", "[0]"),
        ({"a": "\ud800"}, "lone surrogate", "a"),
        ({"a": {1: 2}}, "wrong type", "a"),
        ({"a": {1, 2}}, "wrong type", "a"),
    ],
)
def test_a_python_value_that_json_cannot_say(value, reason, place):
    with pytest.raises(JSONError) as raised:
        plain(value)
    assert (raised.value.reason, raised.value.place) == (reason, place)


def test_a_python_value_is_copied():
    circle = []
    circle.append(circle)
    with pytest.raises(JSONError, match="nested too deeply"):
        plain(circle)
    value = {"a": (1, [2.5, None, True])}
    copied = plain(value)
    assert copied == {"a": [1, [2.5, None, True]]} and copied["a"][1] is not value["a"][1]


# --- poison, anywhere in a record ----------------------------------------------------------------

PLACES = {
    "content": '{"messages": [{"role": "user", "content": %s}]}',
    "field of a message": '{"messages": [{"role": "user", "content": "Hi", "x": %s}]}',
    "meta": '{"messages": [{"role": "user", "content": "Hi"}], "score": [%s]}',
    "id": '{"id": %s, "messages": [{"role": "user", "content": "Hi"}]}',
    "tags": '{"tags": [%s], "messages": [{"role": "user", "content": "Hi"}]}',
    "tools": '{"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "f", "x": %s}]}',
    "options": '{"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": '
    '{"x": %s}}',
    "arguments": '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", '
    '"tool_calls": [{"name": "f", "arguments": {"a": %s}}]}]}',
}


@pytest.mark.parametrize("kind", POISON)
@pytest.mark.parametrize("place", PLACES)
def test_poison_is_refused_wherever_it_is(tmp_path, place, kind):
    poison, reason = POISON[kind]
    path = written(tmp_path, chat(id="a"), PLACES[place] % poison)
    assert f"{path}, line 2" in (said := refusal(path)) and reason in said


@pytest.mark.parametrize("kind", POISON)
def test_poison_is_refused_in_json_that_is_text(tmp_path, kind):
    poison, reason = POISON[kind]
    for record in (
        calling(arguments=f'{{"a": {poison}}}'),
        chat(tools=f'[{{"name": "f", "x": {poison}}}]'),
        chat(tools=[f'{{"name": "f", "x": {poison}}}']),
    ):
        assert reason in refusal(written(tmp_path, record))


def test_what_is_repeated_or_no_number_names_the_record(tmp_path):
    line = '{"id": "b\\u001b[2J", "messages": [], "messages": []}'
    assert "line 1 (id 'b\\x1b[2J'): repeated key ('messages'" in refusal(written(tmp_path, line))
    array = written(tmp_path, f"[{line}]", name="chats.json")
    assert "record 1 (id 'b\\x1b[2J'): repeated key" in refusal(array)


def test_poison_is_refused_in_a_record_made_in_python():
    for record in (
        calling(arguments={"a": float("nan")}),
        chat(score=float("inf")),
        chat(note="\ud800"),
        chat(note={1: 2}),
        chat(tools=[BARE | {"x": 10**400}]),
    ):
        with pytest.raises(ConversationError, match="^the record: "):
            from_record(record)
    deep = {"a": None}
    for _ in range(DEEPEST - 5):
        deep = {"a": deep}
    for wrong in (
        {"meta": {"note": "\ud800"}},
        {"meta": {"note": {1, 2}}},
        {"id": "\ud800"},
        {"tags": ["\ud800"]},
        {"tools": [BARE | {"x": float("nan")}]},
        {"tools": [BARE | {"x": deep}]},
        {"template_options": {"x": float("nan")}},
        {"template_options": {"x": deep}},
    ):
        with pytest.raises(ConversationError):
            Conversation((Message("user", "Hi"),), **wrong)
    with pytest.raises(ConversationError, match="nested too deeply"):
        Message("assistant", "", tool_calls=[{"name": "f", "arguments": deep}])
    with pytest.raises(ConversationError, match="lone surrogate .* in reasoning_content"):
        Message("assistant", "", reasoning="\ud800")


# --- fields of a record --------------------------------------------------------------------------

HONORED = {
    "system": (
        chat(system="Be brief."),
        {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY]},
    ),
    "no system": (chat(system=""), chat()),
    "functions": (chat(functions=[BARE]), chat(tools=[TOOL])),
    "no functions": (chat(functions=[], tools=[TOOL]), chat(tools=[TOOL])),
    "bare tool": (chat(tools=[BARE, TOOL]), chat(tools=[TOOL, TOOL])),
    "tool without a type": (chat(tools=[{"function": BARE}]), chat(tools=[TOOL])),
    "tool in one level": (chat(tools=[{"type": "function"} | BARE]), chat(tools=[TOOL])),
    "one tool": (chat(tools=TOOL), chat(tools=[TOOL])),
    "one bare tool": (chat(tools=BARE), chat(tools=[TOOL])),
    "tools as text": (chat(tools=json.dumps([BARE])), chat(tools=[TOOL])),
    "one tool as text": (chat(tools=json.dumps(BARE)), chat(tools=[TOOL])),
    "each tool as text": (chat(tools=[json.dumps(BARE)]), chat(tools=[TOOL])),
    "more in a definition": (
        chat(tools=[TOOL | {"strict": True, "function": BARE | {"return": {"type": "string"}}}]),
        chat(tools=[TOOL | {"strict": True, "function": BARE | {"return": {"type": "string"}}}]),
    ),
    "no tools": (chat(tools=""), chat()),
    "text of no tools": (chat(tools="[]"), chat()),
    "options": (
        chat(chat_template_kwargs={"enable_thinking": False, "filled_in": None}),
        chat(chat_template_kwargs={"enable_thinking": False}),
    ),
    "no options": (chat(chat_template_kwargs={}), chat()),
    "whole number as id": (chat(id=7), chat(id="7")),
    "bare list": ([USER, REPLY], chat()),
    "no images": (chat(images=[], license="CC0"), chat(images=[], license="CC0")),
    "weight 0": (reply(weight=0), reply(train=False)),
    "weight 0.0": (reply(weight=0.0, train=False), reply(train=False)),
    "weight 1": (reply(weight=1, train=True), chat()),
    "reasoning": (reply(reasoning="Hm."), reply(reasoning_content="Hm.")),
    "thinking": (reply(thinking="Hm.", reasoning=None), reply(reasoning_content="Hm.")),
    "the same reasoning twice": (
        reply(reasoning="Hm.", reasoning_content="Hm."),
        reply(reasoning_content="Hm."),
    ),
    "parts": (
        reply(content=[{"type": "text", "text": "Hel"}, {"type": "output_text", "text": "lo."}]),
        chat(),
    ),
    "thinking part": (
        reply(
            content=[
                {"type": "thinking", "thinking": "Hm.", "signature": "x", "text": None},
                {"type": "text", "text": "Hello.", "image": None},
            ]
        ),
        reply(reasoning_content="Hm."),
    ),
    "null in every place": (
        chat(id=None, tags=None, tools=None, functions=None, system=None) | {"source": None},
        chat(source=None),
    ),
    "null padded message": (reply(name=None, audio=None, tool_calls=None, weight=None), chat()),
    "null padded call": (
        calling(arguments={}, parameters=None),
        reply(
            content="",
            tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {}}}],
        ),
    ),
}


@pytest.mark.parametrize("kind", HONORED)
def test_what_a_record_says_is_honored(tmp_path, kind):
    record, canonical = HONORED[kind]
    (found,) = accepted(written(tmp_path, record))
    assert found.as_record() == canonical
    assert from_record(copy.deepcopy(record)) == found


CALL = {"name": "weather", "arguments": {}}
REFUSED = {
    "system twice": (
        {"messages": [{"role": "system", "content": "A"}, USER, REPLY], "system": "B"},
        "'system' and a system message",
    ),
    "system no text": (chat(system=["Be brief."]), "the system text is list"),
    "tools twice": (chat(tools=[TOOL], functions=[BARE]), "'tools' and 'functions'"),
    "tools a number": (chat(tools=5), "'tools' is not a list of objects but int"),
    "tools nought": (chat(tools=0), "'tools' is not a list of objects but int"),
    "functions false": (chat(functions=False), "'tools' is not a list of objects but bool"),
    "calls nought": (reply(tool_calls=0), "'tool_calls' is not a list of objects but int"),
    "a list of records": ([chat(), chat()], "a list of records. Write one record per line"),
    "tools true": (chat(tools=True), "'tools' is not a list of objects but bool"),
    "tools a broken text": (chat(tools="[{"), "the text of 'tools' is no JSON: broken JSON"),
    "text of a number": (chat(tools="5"), "'tools' is not a list of objects but int"),
    "tool a number": (chat(tools=[TOOL, 5]), "tool 1 is not an object but int"),
    "tool without a name": (chat(tools=[{"description": "x"}]), "tool 0 has the name None"),
    "tool with a numeric name": (chat(tools=[BARE | {"name": 7}]), "tool 0 has the name 7"),
    "tool of another type": (chat(tools=[{"type": "web_search"}]), "tool 0 is no definition of"),
    "tool with an input schema": (
        chat(tools=[{"name": "f", "input_schema": SCHEMA}]),
        "tool 0 has an input schema. Rename it",
    ),
    "parameters a text": (chat(tools=[BARE | {"parameters": "{}"}]), "the parameters are no obj"),
    "options no object": (chat(chat_template_kwargs=[1]), "'chat_template_kwargs' is list"),
    "option no name": (chat(chat_template_kwargs={"a b": 1}), "'a b' cannot be set by a record"),
    "option hidden": (chat(chat_template_kwargs={"__x": 1}), "'__x' cannot be set by a record"),
    "option a special token": (chat(chat_template_kwargs={"eos_token": "x"}), "'eos_token' cannot"),
    "options in capitals": (chat(Chat_Template_Kwargs={"x": 1}), "none of the meta: write it as"),
    "system in capitals": (chat(SYSTEM="Be brief."), "none of the meta: write it as 'system'"),
    "images in capitals": (chat(Images=["cat.png"]), "changes what a model reads"),
    "source no text": (chat(source=["a"]), "the source .*a.* is not text"),
    "source a number": (chat(source=5), "the source 5 is not text"),
    "id a list": (chat(id=["a"]), "the id .*a.* is not text"),
    "calls a number": (reply(tool_calls=5), "'tool_calls' is not a list of objects but int"),
    "calls an object": (reply(tool_calls=CALL), "'tool_calls' is not a list of objects but dict"),
    "call null": (reply(tool_calls=[None]), "tool call 0 is no object with 'name'"),
    "call with a numeric id": (
        reply(tool_calls=[CALL | {"id": 7}]),
        "tool call 0: the id 7 is not text",
    ),
    "call with a numeric name": (calling(name=7, arguments={}), "the name must be text"),
    "call with a list of arguments": (calling(arguments=[1]), "the arguments an object"),
    "call with the text of a list": (calling(arguments="[1]"), "the arguments an object"),
    "call with more": (reply(tool_calls=[CALL | {"index": 0}]), "does not know: ..index"),
    "call with more inside": (calling(arguments={}, strict=True), "does not know: ..strict"),
    "call of another type": (reply(tool_calls=[CALL | {"type": "custom"}]), "of type 'custom'"),
    "result with a numeric id": (
        {"messages": [USER, REPLY, {"role": "tool", "content": "x", "tool_call_id": 7}]},
        "the tool_call_id 7 is not text",
    ),
    "no content": (reply(content=None), "the content of the assistant turn is NoneType"),
    "no content, no calls": (reply(content=None, tool_calls=[]), "assistant turn is NoneType"),
    "thinking text is null": (
        reply(content=[{"type": "thinking", "thinking": None}]),
        r"content\[0\] has no text in 'thinking'",
    ),
    "image part": (reply(content=[{"type": "image_url", "image_url": "x"}]), "of type 'image_url'"),
    "part a text": (reply(content=["Hello."]), r"content\[0\] is a part 'Hello.'"),
    "part with more": (
        reply(content=[{"type": "text", "text": "x", "image": "y"}]),
        "has unknown fields ..image",
    ),
    "no part": (reply(content=[]), "the content is an empty list"),
    "thinking after text": (
        reply(
            content=[{"type": "text", "text": "x"}, {"type": "thinking", "thinking": "y"}],
        ),
        "thinking after text",
    ),
    "thinking of the user": (
        {"messages": [USER | {"content": [{"type": "thinking", "thinking": "y"}]}, REPLY]},
        "a part of type 'thinking'",
    ),
    "reasoning twice": (reply(reasoning="a", thinking="b"), "its reasoning is given twice"),
    "reasoning no text": (reply(reasoning={"a": 1}), "the reasoning_content {'a': 1} is not text"),
    "weight below 0": (reply(weight=-1), "the weight is -1: give a number above 0"),
    "weight too large": (reply(weight=1e300), "the weight is 1e.300: give a number above 0"),
    "weight too small": (reply(weight=1e-300), "the weight is 1e-300: give a number above 0"),
    "weight a text": (reply(weight="1"), "the weight is '1': give a number above 0"),
    "weight true": (reply(weight=True), "the weight is True: give a number above 0"),
    "graded and of no weight": (reply(train=True, weight=0), "'train': true and 'weight': 0"),
    "graded user": ({"messages": [USER | {"train": True}, REPLY]}, "only an assistant turn can be"),
    "weighted user": ({"messages": [USER | {"weight": 1}, REPLY]}, "only an assistant turn can be"),
    "unknown field": (reply(function_call={"name": "f"}), "does not know: ..function_call"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_honored_is_refused(tmp_path, kind):
    record, message = REFUSED[kind]
    path = written(tmp_path, chat(), record)
    with pytest.raises(ConversationError, match=f"^{path}, line 2.*{message}"):
        load_conversations(path)
    refusal(path)
    with pytest.raises(ConversationError, match=f"^the record.*{message}"):
        from_record(copy.deepcopy(record))


@pytest.mark.parametrize("name", PROMPT_FIELDS)
def test_a_field_that_changes_the_prompt_is_refused(tmp_path, name):
    assert f"the field {name!r} changes" in refusal(written(tmp_path, chat(**{name: ["x"]})))
    assert accepted(written(tmp_path, chat(**{name: None})))


@pytest.mark.parametrize("name", TAKEN_OPTIONS)
def test_a_template_option_of_the_caller_is_refused(tmp_path, name):
    path = written(tmp_path, chat(chat_template_kwargs={name: True}))
    assert f"the template option {name!r} cannot be set" in refusal(path)


def test_the_meta_cannot_take_the_place_of_a_field():
    for name in ("messages", "id", "tags", "chat_template_kwargs", "system"):
        with pytest.raises(ConversationError, match=f"the field '{name}' is none of the meta"):
            Conversation((Message("user", "Hi"),), meta={name: "x"})


def test_a_prefix_keeps_all_but_the_turns():
    whole = from_record(
        chat(id="a", tags=["t"], tools=[TOOL], license="CC0")
        | {"chat_template_kwargs": {"enable_thinking": False}}
    )
    prefix = whole.prefix(1)
    assert prefix.as_record() == whole.as_record() | {"messages": [USER]}
    assert whole.roles == ["user", "assistant"]
    with pytest.raises(ConversationError, match="empty"):
        whole.prefix(0)


def test_messages_keep_their_numbers_beside_a_system_field(tmp_path):
    record = {"system": "Be brief.", "messages": [USER, {"role": "elf", "content": "x"}]}
    path = written(tmp_path, record)
    assert "message 1: unknown role 'elf'" in refusal(path)
    path = written(tmp_path, {"system": "Be brief.", "messages": [USER, REPLY, REPLY]})
    assert "message 2 is assistant after assistant" in refusal(path)
    assert [p.message for p in problems(path)] == [2]


# --- nulls that `datasets` fills in --------------------------------------------------------------

PADDED = {
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Bern", "zone": None}}},
                {"name": "clock", "arguments": {"city": None, "at": [{"zone": None}, None]}},
            ],
        },
    ],
    "tools": [
        BARE | {"parameters": SCHEMA | {"properties": {"city": {"type": "string"}, "zone": None}}},
        BARE | {"description": None, "parameters": SCHEMA | {"additionalProperties": None}},
    ],
}


def test_null_is_dropped_in_schemas_and_warned_of_in_arguments(tmp_path, capsys):
    path = written(tmp_path, chat(), PADDED, PADDED)
    with pytest.warns(ConversationWarning) as warned:
        _, found, _ = load_conversations(path)
    (said,) = [str(one.message) for one in warned]
    assert said.startswith(f"{path}: 6 nulls in the arguments of tool calls kept")
    assert "the first: line 2, message 1, arguments.zone" in said
    assert "6 nulls in tool definitions left out (the first: line 2, tools[0]." in said
    first, second = found[1].tool_calls
    assert first["function"]["arguments"] == {"city": "Bern", "zone": None}
    assert second["function"]["arguments"] == {"city": None, "at": [{"zone": None}, None]}
    assert "null" not in json.dumps(found.tools)
    assert found.tools[0] == TOOL
    with pytest.warns(ConversationWarning, match="6 nulls in the arguments") as warned:
        assert main(["check", str(path)]) == 0
    assert len(warned) == 1 and "nothing is wrong" in capsys.readouterr().out


def test_null_that_means_something_is_kept_without_a_word(tmp_path):
    optional = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "b": {"type": ["string", "null"], "default": None, "enum": ["x", None]},
            "default": {"type": "string"},
        },
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": optional}}
    record = calling(arguments='{"zone": null}') | {"tools": [tool]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = load_conversations(written(tmp_path, record))
    assert list(found.tools) == [tool]
    assert found[1].tool_calls[0]["function"]["arguments"] == {"zone": None}


# --- files ---------------------------------------------------------------------------------------

GOOD = "".join(json.dumps(chat(id=f"é{n}"), ensure_ascii=False) + "\n" for n in range(3))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz", "chats"])
def test_gzip_is_read_by_its_first_bytes(tmp_path, name, bom):
    path = tmp_path / name
    path.write_bytes(gzip.compress(bom + GOOD.encode()))
    assert [one.id for one in accepted(path)] == ["é0", "é1", "é2"]


@pytest.mark.parametrize("name", ["chats.json", "chats.json.gz"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read(tmp_path, name, indent):
    path = tmp_path / name
    data = json.dumps([chat(id="a"), chat(id="b")], indent=indent).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [one.id for one in accepted(path)] == ["a", "b"]
    data = json.dumps([chat(id="a"), chat(id="a")], indent=indent).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "record 2 (id 'a'): the id 'a' already stands in record 1" in refusal(path)


PACKED = gzip.compress(GOOD.encode())
FILES = {
    "gzip cut off": (PACKED[:60], "the gzip data is broken or cut off"),
    "gzip without an end": (PACKED[:-8], "the gzip data is broken or cut off"),
    "gzip changed": (
        PACKED[:40] + b"\0\0\0\0" + PACKED[44:],
        "gzip data is broken|no.* UTF-8|JSON",
    ),
    "gzip of nothing": (gzip.compress(b""), "no conversation in it"),
    "gzip head": (b"\x1f\x8b", "gzip data is broken"),
    "gzip twice": (gzip.compress(PACKED), "compressed twice with gzip: unpack it first"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive: unpack it first"),
    "bzip2": (b"BZh9" + bytes(40), "compressed with bzip2: unpack it first"),
    "xz": (b"\xfd7zXZ\x00" + bytes(40), "compressed with xz: unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "compressed with zstd: unpack it first"),
    "parquet": (b"PAR1" + bytes(40), "a Parquet file: write it as JSON lines"),
    "arrow": (b"\xff\xff\xff\xff\x10" + bytes(40), "an Arrow file: write it as JSON lines"),
    "UTF-16": (GOOD.encode("utf-16"), "the file is UTF-16. Convert it: `iconv -f UTF-16 -t UTF-8"),
    "UTF-16 LE": (GOOD.encode("utf-16-le"), "the file is UTF-16LE. Convert it: `iconv -f UTF-16LE"),
    "UTF-16 BE": (GOOD.encode("utf-16-be"), "the file is UTF-16BE"),
    "UTF-32": (GOOD.encode("utf-32"), "the file is UTF-32. Convert it"),
    "UTF-32 LE": (GOOD.encode("utf-32-le"), "the file is UTF-32LE"),
    "UTF-32 BE": (GOOD.encode("utf-32-be"), "the file is UTF-32BE"),
    "UTF-16 in gzip": (gzip.compress(GOOD.encode("utf-16")), "the file is UTF-16"),
    "Latin-1": (GOOD.encode("latin-1"), "line 1: not UTF-8 .*Save the file as UTF-8"),
    "array in lines": (b"[\n" + GOOD.encode() + b"]", "an array needs a file named .json"),
    "indented object": (json.dumps(chat(), indent=1).encode(), "line 1: .*goes over several lines"),
    "noughts": (bytes(100), "UTF-|JSON"),
    "nothing": (b"", "no conversation in it"),
    "blank": (b"\n \n\t\r\n", "no conversation in it"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_something_else_is_named(tmp_path, kind):
    data, message = FILES[kind]
    path = tmp_path / "chats.jsonl"
    path.write_bytes(data)
    with pytest.raises(ConversationError, match=message):
        load_conversations(path)
    refusal(path)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        for read in (load_conversations, lambda path: list(problems(path))):
            with pytest.raises(FileNotFoundError, match="no such file"):
                read(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json"])
def test_a_long_record_is_refused_in_little_memory(tmp_path, monkeypatch, name, packed):
    # Read once before: `longest` is a default argument, bound when the function was made.
    monkeypatch.setattr(json_files.entries, "__defaults__", (100_000,))
    path = tmp_path / name
    parts = [b"[", json.dumps(chat(note="x" * 20_000_000)).encode(), b"]"]
    data = b"".join(parts if name.endswith("json") else parts[1:2])
    path.write_bytes(gzip.compress(data) if packed else data)
    del parts, data
    tracemalloc.start()
    assert "line too long (" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 15_000_000
    tracemalloc.stop()


def test_many_faults_of_one_record_are_told_in_bounds(tmp_path):
    record = {"messages": [1] * 200_000, "tools": [2] * 200_000, "tags": 5, "id": ["x"]}
    path = written(tmp_path, record)
    start = time.perf_counter()
    assert "message 0: it is int" in refusal(path)
    assert len(list(problems(path))) == MOST
    assert time.perf_counter() - start < 5


# --- what errors say -----------------------------------------------------------------------------

EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\u202e\u2028"


@pytest.mark.parametrize(
    "record",
    [
        chat(id=EVIL, tools=5),
        {"messages": [{"role": EVIL, "content": "x"}]},
        {"messages": [USER | {EVIL: 1}]},
        {EVIL: 1},
        chat(source=[EVIL]),
        chat(tags=EVIL),
        chat(chat_template_kwargs={EVIL: 1}),
        chat(tools=[{"name": "f", "x": {EVIL: "\ud800"}}]),
        calling(name=EVIL, arguments=5),
        reply(tool_calls=[CALL | {EVIL: 1}]),
        reply(content=[{"type": EVIL}]),
        reply(name=EVIL),
        calling(arguments=f'{{"{EVIL}"'),
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(tmp_path, capsys, record):
    path = written(tmp_path, record, name="chats\x1b[2J.jsonl")
    with pytest.raises(ConversationError) as raised:
        load_conversations(path)
    assert str(raised.value).isprintable()
    assert all(str(problem).isprintable() for problem in problems(path))


def test_an_error_says_which_message_and_field_and_what_else():
    record = {"id": "a", "messages": [USER, {"role": "elf", "content": 5, "x": 1}], "tags": 5}
    with pytest.raises(ConversationError) as raised:
        from_record(record, "row 5")
    error = raised.value
    assert str(error).startswith("row 5 (id 'a'): message 1: it has fields this schema does not")
    found = [(one.message, one.field) for one in (error, *error.others)]
    assert found == [(1, "x"), (1, "role"), (1, "content"), (None, "tags")]
    assert error.others[0].detail.startswith("unknown role 'elf'")
    assert all(str(one).startswith("row 5 (id 'a'): ") for one in error.others)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- the loader and `check` agree ----------------------------------------------------------------

SEEDS = [record for record, _ in HONORED.values()] + [PADDED]
VALUES = [text for text, _ in POISON.values() if len(text) < 1000]
VALUES += [
    "null",
    "[]",
    "{}",
    '""',
    "true",
    "0",
    "1",
    "7",
    "-1.5",
    '"user"',
    '"text"',
    '"{}"',
    "[null]",
]
VALUES += [json.dumps(value) for value in (TOOL, BARE, CALL, USER, REPLY, EVIL, [USER, REPLY])]


def changed(record, chance):
    """The record as JSON text, with one or two places changed, moved, renamed or gone."""
    mark = "\ue000%d\ue000"
    put = []
    record = copy.deepcopy(record)
    for _ in range(chance.choice([0, 1, 1, 2])):
        places = []
        todo = [record]
        while todo:
            inner = todo.pop()
            if isinstance(inner, dict | list):
                keys = list(inner) if isinstance(inner, dict) else range(len(inner))
                places += [(inner, key) for key in keys]
                todo += [inner[key] for key in keys]
        if not places:
            break
        inner, key = chance.choice(places)
        how = chance.randrange(5)
        if how < 2:
            put.append(chance.choice(VALUES))
            inner[key] = mark % (len(put) - 1)
        elif how == 2:
            del inner[key]
        elif how == 3 and isinstance(inner, dict):
            inner[chance.choice(["role", "content", "tools", "system", "id", "x"])] = inner.pop(key)
        else:
            inner[key] = [inner[key]]
    text = json.dumps(record, ensure_ascii=False)
    for place, value in enumerate(put):
        text = text.replace(json.dumps(mark % place, ensure_ascii=False), value)
    if chance.random() < 0.05:
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(["", '"', "}", "\\", ","]) + text[at + 1 :]
    return text


@pytest.mark.filterwarnings("ignore::course_utils.records.ConversationWarning")
@pytest.mark.parametrize("seed", range(4))
def test_the_loader_and_check_agree_on_any_record(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("os.fsync", lambda file: None)
    chance, counts = random.Random(seed), [0, 0]
    for _ in range(250):
        lines = [changed(chance.choice(SEEDS), chance) for _ in range(chance.choice([1, 1, 2]))]
        path = written(tmp_path, *lines)
        try:
            load_conversations(path)
        except ConversationError:
            refusal(path)
            counts[0] += 1
        else:
            accepted(path)
            counts[1] += 1
    assert min(counts) > 40


def test_no_python_value_is_more_than_refused():
    array, circle = np.array([1, 2]), []
    circle.append(circle)
    values = [
        None,
        0,
        True,
        2.5,
        math.nan,
        10**5000,
        b"x",
        {1},
        object(),
        array,
        np.float64(2),
        "x",
    ]
    values += [
        "\ud800",
        {1: 2},
        (1,),
        [],
        {},
        "",
        circle,
        Message("user", "x"),
        [array],
        {"a": array},
    ]
    chance, counts = random.Random(1), [0, 0]
    fields = ["role", "content", "tool_calls", "train", "weight", "name", "reasoning", "other"]
    others = [
        "id",
        "messages",
        "tags",
        "tools",
        "system",
        "chat_template_kwargs",
        "source",
        "other",
    ]
    for _ in range(3000):
        record = copy.deepcopy(chat())
        for _ in range(chance.choice([0, 1, 2])):
            chance.choice(record["messages"])[chance.choice(fields)] = chance.choice(values)
        messages = record["messages"]
        if chance.random() < 0.5:
            record[chance.choice(others)] = chance.choice(values)
        about = {
            chance.choice(["reasoning", "tool_calls", "weight", "train"]): chance.choice(values)
        }
        for build in (
            lambda: from_record(record),  # noqa: B023, called at once
            lambda: Conversation(messages, tools=chance.choice(values)),  # noqa: B023
            lambda: Conversation([Message(chance.choice(values), "x", **about)]),  # noqa: B023
            lambda: Conversation([Message("assistant", "x", **about)]),  # noqa: B023
        ):
            try:
                found = build()
            except ConversationError as error:
                assert str(error).isprintable()
                counts[0] += 1
            else:
                assert from_record(found.as_record()) == found
                counts[1] += 1
    assert min(counts) > 1000


def test_what_is_built_in_python_can_be_saved_and_loaded(tmp_path):
    chats = [
        Conversation(
            [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
            tools=BARE,
            meta={"places": (1, 2)},
            template_options={"levels": (1, 2)},
        ),
        conversation(("user", "Hi")),
    ]
    save_conversations(chats, tmp_path / "chats.jsonl")
    assert load_conversations(tmp_path / "chats.jsonl") == chats
