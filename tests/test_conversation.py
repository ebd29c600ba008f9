"""The canonical schema: what is read, and the one clear error for each kind of bad input."""

import ast
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from chats import ALL_MARKERS, FRAGMENTS, any_order
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.conversation import (
    ROLES,
    Conversation,
    ConversationError,
    Message,
    check_turns,
    conversation,
    from_record,
    load_conversations,
    save_conversations,
)

ROOT = Path(__file__).parent.parent
USER, REPLY = ("user", "Hi"), ("assistant", "Hello")


def record(*turns, **fields):
    turns = turns or (USER, REPLY)
    return fields | {"messages": [{"role": role, "content": text} for role, text in turns]}


def file_of(tmp_path, *lines):
    path = tmp_path / "chats.jsonl"
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(lines).encode("utf-8"))
    return path


# --- reading and writing -------------------------------------------------------------------------


def test_what_is_read(tmp_path):
    path = file_of(tmp_path, record(id="a", tags=["x", "y"], license="CC0"), "", record())
    first, second = load_conversations(path)
    assert first.id == "a" and first.tags == ("x", "y") and first.meta == {"license": "CC0"}
    assert second.id is None and second.tags == () and second.meta == {}
    assert first.roles == ["user", "assistant"] and len(first) == 2
    assert first[1] == Message("assistant", "Hello") and list(first) == list(first.messages)
    assert first.prefix(1) == Conversation((Message("user", "Hi"),), "a", ("x", "y"), first.meta)
    assert second.as_messages() == record()["messages"]


def test_bom_line_ends_and_line_separators(tmp_path):
    path = tmp_path / "windows.jsonl"
    odd = "a\u2028b\u0085c\rd\x0be\x1cf"
    lines = [json.dumps(record(("user", odd)), ensure_ascii=False), json.dumps(record())]
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode() + b"\r\n")
    first, second = load_conversations(path)
    assert first[0].content == odd
    assert second.as_messages() == record()["messages"]


METADATA = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(
        lambda key: key not in ("id", "messages", "tags", "tools")
    ),
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3)),
    max_size=2,
)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(any_order(ROLES), st.lists(st.text(max_size=4), max_size=2), METADATA),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_saving_and_loading_gives_the_same(tmp_path_factory, rows, named):
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    chats = [
        Conversation(conversation(*turns).messages, f"id {n}\n" if named else None, tags, meta)
        for n, (turns, tags, meta) in enumerate(rows)
    ]
    save_conversations(chats, path)
    assert load_conversations(path, alternate=False) == chats


def test_reasoning_tools_and_grades_survive(tmp_path):
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    line = {
        "id": "tools",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Look.",
                "tool_calls": [call],
            },
            {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "Rain"},
            {"role": "assistant", "content": "It rains.", "train": False},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes.", "weight": 0.5},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    }
    (chat,) = load_conversations(file_of(tmp_path, line))
    assert chat[1].content == "" and chat[1].reasoning == "Look."
    function = {"name": "weather", "arguments": {"city": "Bern"}}
    assert chat[1].tool_calls == ({"type": "function", "function": function},)
    assert [m.train for m in chat] == [True, True, True, False, True, True]
    assert chat[5].weight == 0.5 and chat.tools[0]["type"] == "function"
    save_conversations([chat], tmp_path / "again.jsonl")
    assert load_conversations(tmp_path / "again.jsonl") == [chat]
    # A template reads neither of the two.
    assert not {"train", "weight"} & {key for m in chat.as_messages() for key in m}


# --- bad input -----------------------------------------------------------------------------------

# What stands in line 2 of the file, what the message must say is wrong, and the remedy it names.
BAD = {
    "broken JSON": ('{"id": "b", "messages": [', "broken JSON .*column 26", "one complete JSON"),
    "unfinished text": ('{"id": "b', "broken JSON .Unterminated string at column 8", "one compl"),
    "a number": (12, "expected a JSON object with 'messages', got int", "per line"),
    "two objects": ("{} {}", "broken JSON .Extra data", "one complete JSON object"),
    "a list of numbers": ([1, 2], "message 0: it is int", "Write it as an object"),
    "a text": ('"hi"', "expected a JSON object with 'messages', got str", "per line"),
    "no messages": ({"id": "b", "text": "x"}, "no field 'messages', only .'id', 'text'", "turns"),
    "ShareGPT": (
        {"id": "b", "conversations": [{"from": "human", "value": "Hi"}]},
        "'b'.*no field 'messages'.*ShareGPT layout",
        "convert the file with `python -m course_utils.sources sharegpt`",
    ),
    "messages a dict": ({"id": "b", "messages": {"role": "user"}}, "'messages' must be", "a list"),
    "messages a text": ({"id": "b", "messages": "Hi"}, "'messages' must be", "a list of role"),
    "messages null": ({"id": "b", "messages": None}, "'messages' must be", "a list of role"),
    "empty": (
        {"id": "b", "messages": []},
        "'b'.*the conversation is empty",
        "at least one message",
    ),
    "message a text": (
        {"id": "b", "messages": ["Hi"]},
        "message 0: it is str",
        "Write it as an object",
    ),
    "no content": (
        {"id": "b", "messages": [{"role": "user"}]},
        "message 0: it has no field content",
        "Every message needs 'role' and 'content'",
    ),
    "neither": ({"id": "b", "messages": [{}]}, "has no field content and role", "Every message"),
    "unknown role": (
        record(USER, ("gpt", "Hello"), id="b"),
        "'b'.*message 1: unknown role 'gpt'.*system, user, assistant, tool",
        "Map the role names",
    ),
    "role in capitals": (record(("User", "Hi")), "message 0: unknown role 'User'", "Map the role"),
    "role null": (record((None, "Hi")), "message 0: unknown role None", "Map the role names"),
    "role a list": (record((["user"], "Hi")), "message 0: unknown role .'user'", "Map the role"),
    "content null": (
        record(USER, ("assistant", None), id="b"),
        "'b'.*message 1: the content of the assistant turn is NoneType",
        "a turn without text has the content ''",
    ),
    "content an object": (
        record(("user", {"type": "text", "text": "Hi"})),
        "message 0: the content of the user turn is dict",
        "Join content parts into one string",
    ),
    "lone surrogate": (
        record(("user", "ab\ud83d"), id="b"),
        r"'b'.*lone surrogate \('\\ud83d' at character 2 in messages\[0\].content\)",
        "repair the text",
    ),
    "unknown fields": (
        {"id": "b", "messages": [{"role": "user", "content": "x", "audio": [1], "mood": "y"}]},
        "message 0: it has fields this schema does not know: .'audio', 'mood'",
        "Write them into the content or remove them",
    ),
    "reasoning of a user": (
        {"id": "b", "messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]},
        "message 0: the user turn has the field 'reasoning_content', which only an assistant turn",
        "Remove it, or mend the role",
    ),
    "arguments no object": (
        {
            "id": "b",
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "f", "arguments": [1]}],
                }
            ],
        },
        "message 0: tool call 0: the name must be text and the arguments an object",
        '"city": "Bern"',
    ),
    "arguments broken": (
        {
            "id": "b",
            "messages": [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "f", "arguments": "{"}],
                }
            ],
        },
        "message 0: tool call 0: the arguments are text that is no JSON: broken JSON",
        "Mend them",
    ),
    "call without a name": (
        {
            "id": "b",
            "messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
        },
        "message 0: tool call 0 is no object with 'name' and 'arguments'",
        "Write ",
    ),
    "weight below zero": (
        {"id": "b", "messages": [{"role": "assistant", "content": "x", "weight": -1}]},
        "message 0: the weight is -1: give a number above 0",
        "or 0 for a reply that is not to count",
    ),
    "train no truth value": (
        {"id": "b", "messages": [{"role": "assistant", "content": "x", "train": "no"}]},
        "message 0: 'train' is 'no'",
        "write true or false",
    ),
    "tools no list": (
        record(id="b") | {"tools": 5},
        "'tools' is not a list of objects but int",
        "Write a list",
    ),
    "id a fraction": (record(id=7.5), "the id 7.5 is not text", "Write it in quotes"),
    "id a truth value": (record(id=True), "the id True is not text", "Write it in quotes"),
    "id a list": (record(id=["b"]), "the id .'b'. is not text", "Write it in quotes"),
    "tags a text": (record(id="b", tags="math"), "'b'.*tags 'math' are not a list", '"one", "two"'),
    "tags numbers": (
        record(tags=[1]),
        "the tags .1. are not a list of texts",
        "leave the field out",
    ),
    "tags an object": (record(tags={"a": 1}), "the tags {'a': 1} are not", "leave the field out"),
    "user twice": (
        record(USER, USER, id="b"),
        "'b'.*do not alternate: message 1 is user after user, where only assistant may stand",
        "Merge the turns, or drop the record",
    ),
    "assistant first": (
        record(REPLY),
        "message 0 is assistant at the start",
        "Merge the turns, or",
    ),
    "assistant twice": (
        record(USER, REPLY, REPLY),
        "message 2 is assistant after assi",
        "drop the",
    ),
    "system later": (record(USER, ("system", "S")), "message 1 is system after user", "drop the"),
    "tool after user": (
        record(USER, ("tool", "4")),
        "message 1 is tool after user",
        "drop the rec",
    ),
    "same id": (record(id="a"), "the id 'a' already stands in line 1", "an id of its own"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_record(tmp_path, kind):
    line, wrong, remedy = BAD[kind]
    path = file_of(tmp_path, record(id="a"), line, record(id="c"))
    with pytest.raises(
        ConversationError, match=f"(?s)^{path}, line 2.*{wrong}.*{remedy}"
    ) as raised:
        load_conversations(path)
    assert "\n" not in str(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_bad_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl: no such file. Expected JSONL"):
        load_conversations(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_conversations(tmp_path)
    with pytest.raises(
        ConversationError, match="chats.jsonl: no conversation in it. Expected JSON"
    ):
        load_conversations(file_of(tmp_path, "", "  "))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(record()).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(ConversationError, match="latin.jsonl, line 2: not UTF-8.*Save the file as"):
        load_conversations(path)


def test_a_record_outside_a_file():
    with pytest.raises(ConversationError, match=r"^the record \(id 'b'\): message 0: unknown role"):
        from_record(record(("bot", "x"), id="b"))
    with pytest.raises(ConversationError, match="^row 5: the conversation is empty"):
        from_record({"messages": []}, "row 5")


def test_turns_may_be_left_unchecked(tmp_path):
    path = file_of(tmp_path, record(USER, USER))
    assert load_conversations(path, alternate=False)[0].roles == ["user", "user"]


def test_turns_that_alternate():
    for roles in (
        "user",
        "system user",
        "user assistant user",
        "system user assistant tool tool assistant user assistant",
    ):
        chat = conversation(*((role, "x") for role in roles.split()))
        assert check_turns(chat) is chat
    for roles in ("system system", "tool", "user system", "user assistant tool user"):
        with pytest.raises(ConversationError, match="do not alternate"):
            check_turns(conversation(*((role, "x") for role in roles.split())))


def test_any_text_is_a_content():
    for text in FRAGMENTS:
        assert conversation(("user", text))[0].content == text


CALL = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
BAD_FIELDS = [
    ("user", {"tool_calls": [CALL]}, "user turn has the field 'tool_calls', which only an assist"),
    ("system", {"train": False}, "system turn has the field 'train', which only an assistant turn"),
    ("tool", {"weight": 2}, "tool turn has the field 'weight', which only an assistant turn may"),
    ("user", {"name": "Ann"}, "user turn has the field 'name', which only a tool turn may have"),
    ("assistant", {"tool_call_id": "c0"}, "has the field 'tool_call_id', which only a tool turn"),
    ("assistant", {"reasoning_content": ["Hm"]}, "reasoning_content .*Hm.* is not text. Write it"),
    ("tool", {"name": 7}, "the name 7 is not text. Write it in quotes"),
    ("tool", {"tool_call_id": 7}, "the tool_call_id 7 is not text. Write it in quotes"),
    ("assistant", {"train": 0}, "'train' is 0: write true or false"),
    *(
        ("assistant", {"weight": weight}, f"the weight is {weight!r}: give a number above 0")
        for weight in (-1, 1e-9, 1e9, "2", True)
    ),
    *(
        ("assistant", {"weight": weight}, "number that JSON lacks")
        for weight in (math.inf, math.nan, 10**400)
    ),
    ("assistant", {"tool_calls": [CALL, {"name": "f"}]}, "tool call 1 is no object with 'name'"),
    ("assistant", {"tool_calls": ["f()"]}, "tool call 0 is no object with 'name'"),
    ("assistant", {"tool_calls": [{"name": 1, "arguments": {}}]}, "tool call 0: the name must be"),
    ("assistant", {"content": None, "tool_calls": []}, "content of the assistant turn is NoneType"),
]


@pytest.mark.parametrize(("role", "fields", "message"), BAD_FIELDS)
def test_a_bad_field_is_refused_and_its_message_named(role, fields, message):
    turns = [{"role": "user", "content": "Hi"}, {"role": role, "content": "x"} | fields]
    with pytest.raises(ConversationError, match=f"^the record .id 'b'.: .*{message}"):
        from_record({"id": "b", "messages": turns})


def test_a_call_may_come_in_several_forms():
    inner = CALL["function"]
    full = {"type": "function", "function": inner}
    for call in (full, inner, {"function": inner}, inner | {"arguments": '{"a": 1}'}):
        assert Message("assistant", "", tool_calls=(call,)).tool_calls == (full,)
    assert Message("assistant", "", tool_calls=[CALL]).tool_calls == (CALL,)


def test_null_means_that_a_field_is_not_there():
    names = ("reasoning_content", "tool_calls", "name", "tool_call_id", "train", "weight")
    turn = {"role": "user", "content": "x"} | dict.fromkeys(names)
    others = dict.fromkeys(("id", "tags", "tools", "system", "functions", "chat_template_kwargs"))
    for unknown in ({}, {"function_call": None, "audio": None, "annotations": []}):
        found = from_record({"messages": [turn | unknown], **others})
        assert found == conversation(("user", "x"))


SHORT = st.text(max_size=4)
CALLS = st.builds(
    lambda name, arguments, own: {"function": {"name": name, "arguments": arguments}} | own,
    SHORT,
    st.dictionaries(SHORT, st.none() | st.booleans() | SHORT),
    st.just({}) | st.builds(lambda id: {"id": id}, SHORT),
)
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), SHORT),
    st.builds(
        Message,
        st.just("assistant"),
        SHORT,
        reasoning=st.none() | SHORT,
        tool_calls=st.lists(CALLS, max_size=2),
        train=st.booleans(),
        weight=st.floats(0.001, 1000) | st.just(1),
    ),
    st.builds(
        Message, st.just("tool"), SHORT, name=st.none() | SHORT, tool_call_id=st.none() | SHORT
    ),
)


@pytest.mark.filterwarnings("ignore::course_utils.records.ConversationWarning")
@settings(max_examples=100)
@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_any_message_survives_saving_and_loading(tmp_path_factory, messages):
    path = tmp_path_factory.getbasetemp() / "any_message.jsonl"
    chat = Conversation(tuple(messages), tools=({"name": "f"},))
    save_conversations([chat], path)
    assert load_conversations(path, alternate=False) == [chat]


# --- the shipped conversations -------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    files = ("conversations.jsonl", "curriculum/chat.jsonl")
    return [chat for name in files for chat in load_conversations(ROOT / "data" / name)]


@pytest.fixture(scope="module")
def prompts():
    files = ("comparison_prompts.jsonl", "held_out_prompts.jsonl")
    return [chat for name in files for chat in load_conversations(ROOT / "data" / name)]


def user_texts(chats):
    return [m.content for chat in chats for m in chat if m.role == "user"]


def runs_of_words(text, size=8):
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def test_shipped_conversations(shipped):
    assert len(shipped) >= 1000
    assert len({chat.id for chat in shipped} - {None}) == len(shipped)
    opening = [tuple(m.content for m in chat if m.role != "assistant") for chat in shipped]
    assert len(set(opening)) == len(opening)
    # Only what says nothing by itself ("And why?") may be said twice.
    twice = [text for text, n in Counter(user_texts(shipped)).items() if n > 1]
    assert all(len(text.split()) <= 3 for text in twice), twice
    for chat in shipped:
        assert chat.roles[-1] == "assistant", chat.id
        assert chat.meta["license"] == "CC-BY-4.0", chat.id
        for message in chat:
            assert message.content and message.content == message.content.strip(), chat.id
            assert not any(marker.strip() in message.content for marker in SPECIAL_TEXTS), chat.id
    kinds = {("system" in chat.roles, len(chat) > 3) for chat in shipped}
    assert len(kinds) == 4, "single- and multi-turn, with and without system text"


SPECIAL_TEXTS = [m for m in ALL_MARKERS if m[0] in "<["] + ["<|end_of_text|>", "<think>", "<eos>"]


def test_shipped_prompts(shipped, prompts):
    assert len(prompts) >= 200
    assert all(chat.meta.get("expect") or chat.meta.get("verify") for chat in prompts[80:])
    assert len({chat.id for chat in prompts} - {None}) == len(prompts)
    assert all(chat.roles[-1] == "user" for chat in prompts)
    assert all(chat.meta["license"] == "CC-BY-4.0" for chat in prompts)
    questions = user_texts(prompts)
    assert "Explain self-attention to a beginner in 4 sentences." in questions
    assert len(set(questions)) == len(questions)
    assert not set(questions) & {m.content for chat in shipped for m in chat}
    trained_on = set().union(*(runs_of_words(m.content) for chat in shipped for m in chat))
    for question in questions:
        assert not runs_of_words(question) & trained_on, question
    assert not {chat.id for chat in prompts} & {chat.id for chat in shipped}


# --- the rooms -----------------------------------------------------------------------------------


def test_import_is_instant():
    code = (
        "import sys, time; start = time.perf_counter(); import course_utils\n"
        "took = time.perf_counter() - start\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'matplotlib'}\n"
        "print(took, sorted(heavy & set(sys.modules)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split(maxsplit=1)
        for _ in range(3)
    ]
    assert all(heavy.strip() == "[]" for _, heavy in runs)
    # The fastest of three: a busy machine is no slow import.
    assert min(float(took) for took, _ in runs) < 0.3


# Rooms in the order in which data flows; a room imports none that comes after it.
ORDER = ["strict_json", "faults", "tool_schema", "conversation", "json_files", "records"]
ORDER += ["templates", "backends", "tokenizers", "watching", "plans", "rendering", "shapes"]
ORDER += ["rerendering", "reading", "layouts", "sealing", "confinement", "confined", "encoding"]
ORDER += ["assembly", "masking", "examples", "batching", "audit"]
MAY_IMPORT = {
    "strict_json": set(),
    "faults": {"strict_json"},
    "tool_schema": {"faults", "strict_json"},
    "conversation": {"faults", "strict_json", "tool_schema"},
    "json_files": {"strict_json"},
    "records": {"conversation", "faults", "json_files", "strict_json", "tool_schema"},
    "templates": {"conversation", "families"},
    "backends": set(),
    "tokenizers": {"manifests", "model_files"},
    "watching": set(),
    "plans": {"watching"},
    "rendering": {"tokenizers"},
    "shapes": {"conversation"},
    "rerendering": {
        "conversation",
        "templates",
        "tokenizers",
        "watching",
        "plans",
        "rendering",
        "shapes",
    },
    "reading": {"conversation", "watching", "plans", "rendering", "shapes", "rerendering"},
    "layouts": {
        "conversation",
        "tokenizers",
        "watching",
        "plans",
        "rendering",
        "shapes",
        "rerendering",
        "reading",
    },
    "confinement": {"backends", "conversation", "plans", "rendering"},
    "sealing": set(),
    "confined": {
        "conversation",
        "confinement",
        "sealing",
        "tokenizers",
        "watching",
        "plans",
        "rendering",
        "rerendering",
        "layouts",
    },
    "encoding": {"backends", "tokenizers"},
    "assembly": {"watching", "rerendering", "plans", "encoding"},
    "masking": {
        "conversation",
        "templates",
        "tokenizers",
        "plans",
        "rendering",
        "shapes",
        "rerendering",
        "confinement",
        "encoding",
        "assembly",
    },
    "examples": {"conversation"},
    "batching": {"conversation", "masking", "strict_json"},
    "audit": {"commands", "conversation", "masking", "batching"},
}
READERS = {"conversation", "faults", "json_files", "records", "strict_json", "tool_schema"}
WRITERS = {"commands", "manifests", "outputs"}
# Rooms of several files, which may import each other.
PACKAGES_MAY_IMPORT = {
    "families": {"conversation", "strict_json"},
    "sources": READERS | WRITERS,
    "curriculum": {"conversation", "sources", "miniweb", "strict_json"} | WRITERS,
}
LAST = ("show", "check")


def course_imports(path, *, top_level_only):
    """The rooms that a file imports: at its top level only, or anywhere in it."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "course_utils" and len(part) > 1}


def standard(path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ORDER)
def test_a_plain_room_imports_what_stands_before_it(room):
    path = ROOT / "course_utils" / f"{room}.py"
    assert course_imports(path, top_level_only=True) <= MAY_IMPORT[room]
    assert set(standard(path)) <= sys.stdlib_module_names | {"course_utils"}
    # Records are conversations and conversations may be given as records, toy_tokenizer needs every
    # family's special tokens, examples make their record when asked, the audit's command line loads
    # the tokenizer of a base.
    late = {
        "conversation": {"records"},
        "records": {"outputs"},
        "tokenizers": {"backends", "commands", "templates"},
        "examples": set(ORDER),
        "audit": {"checkpoints", "tokenizers"},
    }.get(room, set())
    assert course_imports(path, top_level_only=False) <= MAY_IMPORT[room] | late


@pytest.mark.parametrize("room", PACKAGES_MAY_IMPORT)
def test_a_package_imports_what_stands_before_it(room):
    paths = list((ROOT / "course_utils" / room).glob("*.py"))
    assert len(paths) > 1
    for path in paths:
        assert course_imports(path, top_level_only=False) <= PACKAGES_MAY_IMPORT[room] | {room}
        assert set(standard(path)) <= sys.stdlib_module_names | {"course_utils"}, path


def test_no_room_imports_show_or_check():
    for path in (ROOT / "course_utils").glob("*.py"):
        if path.stem not in LAST:
            assert not course_imports(path, top_level_only=False) & set(LAST), path.name
