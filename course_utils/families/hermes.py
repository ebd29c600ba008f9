"""Tools, calls and reasoning in ChatML, as Hermes 2 Pro introduced and Qwen 2.5 and 3 write them.

Tools are listed in the first system turn, after its text, one JSON object a line between <tools>
and </tools>. A call is JSON between <tool_call> and </tool_call> at the end of the assistant's
turn; several may follow each other. Reasoning comes before the reply, between <think> and </think>.

Three things differ from Qwen's own templates, so that rendering more turns never changes what was
written for the earlier ones, and plain turns stay as they are:

- a tool's output is a turn of the role `tool`, as in Hermes, and holds the output alone. Qwen puts
  all outputs in a row into one user turn, each between <tool_response> and </tool_response>;
- reasoning is kept in every turn. Qwen 3 itself drops it from the turns before the last question;
- a reply without reasoning gets no empty think block, and no system text is put in.

The tags are ordinary text unless the tokenizer has them as tokens.
"""

import re
from collections.abc import Iterable, Iterator

from course_utils.conversation import Conversation, Message
from course_utils.families.json_text import a_call, from_json, to_json
from course_utils.families.spans import Span, Turns, any_of, is_assistant

BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call>'
)
# What a text of these roles must not hold if it is to be told apart from the grammar.
TAGS = (
    ("system", any_of("<tools>", "</tools>")),
    ("assistant", any_of("<think>", "</think>", "<tool_call>", "</tool_call>")),
)


def turns(chat: Conversation) -> Iterator[tuple[int | None, str, Iterable[Span]]]:
    """(index of the message, role, spans) for every turn."""
    if chat.tools and chat[0].role != "system":
        yield None, "system", [Span(tools_text(chat), "tools", None, "system")]
    for turn, message in enumerate(chat):
        yield turn, message.role, _spans(chat, turn)


def tools_text(chat: Conversation) -> str:
    return BEFORE_TOOLS + "\n".join(map(to_json, chat.tools)) + AFTER_TOOLS


def call_text(call: dict) -> str:
    function = call["function"]
    name, arguments = to_json(function["name"]), to_json(function["arguments"])
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _spans(chat: Conversation, turn: int) -> Iterator[Span]:
    message = chat[turn]
    owner, reply = (turn, message.role), is_assistant(message)
    if message.reasoning is not None:
        text = f"<think>\n{message.reasoning}\n</think>\n\n"
        yield Span(text, "reasoning", *owner, generated=True)
    if message.content or not message.tool_calls:
        yield Span(message.content, "content", *owner, generated=reply)
    for place, call in enumerate(message.tool_calls):
        if message.content or place:
            yield Span("\n", "space", *owner, generated=True)
        yield Span(call_text(call), "call", *owner, generated=True)
    if chat.tools and turn == 0 and message.role == "system":
        yield Span("\n\n", "space", *owner)
        yield Span(tools_text(chat), "tools", *owner)


# --- reading -------------------------------------------------------------------------------------

# JSON on one line holds no line break, so nothing in it ends a call or the list of tools.
SYSTEM_TURN = re.compile(
    rf"(?:(.*)\n\n)?{re.escape(BEFORE_TOOLS)}(.*){re.escape(AFTER_TOOLS)}", re.S
)
REASONING = re.compile(r"<think>\n(.*?)\n</think>\n\n", re.S)
CALL = re.compile(r"<tool_call>\n([^\n]*)\n</tool_call>")
REPLY = re.compile(rf"(.*?)((?:(?:^|\n){CALL.pattern})*)", re.S)


def read(found: Turns) -> Conversation:
    """The conversation whose turns these are."""
    tools, found = _read_tools(found)
    messages = tuple(
        _read_reply(text) if role == "assistant" else Message(role, text) for role, text in found
    )
    return Conversation(messages, tools=tools)


def _read_tools(found: Turns) -> tuple[tuple[dict, ...], Turns]:
    (role, text), *others = found
    match = SYSTEM_TURN.fullmatch(text) if role == "system" else None
    tools = [from_json(line) for line in match[2].split("\n")] if match else [None]
    if None in tools:
        return (), found
    return tuple(tools), others if match[1] is None else [("system", match[1]), *others]


def _read_reply(text: str) -> Message:
    reasoning = None
    if match := REASONING.match(text):
        reasoning, text = match[1], text[match.end() :]
    content, written, *_ = REPLY.fullmatch(text).groups()
    calls = [a_call(line, "arguments") for line in CALL.findall(written)]
    if None in calls:
        return Message("assistant", text, reasoning)
    return Message("assistant", content, reasoning, tuple(calls))
