"""Tools and calls as Llama 3.1 writes them, and Llama 3.2 after it.

Tools are listed in the first user turn, before its text, with the instruction that Llama 3.1's
template puts there. A call is the assistant's whole turn, one JSON object with `name` and
`parameters`; its output is a turn of the role `ipython`. So a turn holds one call and no text
beside it, and the first turn after the system text must be the user's: Llama's own template refuses
several calls, drops the text without a word, and takes any turn for the user's.

Left out is what Llama 3.1 adds to the system turn: "Environment: ipython", which asks for its
built-in tools, and the dates. There is no reasoning in this format.
"""

from collections.abc import Iterable, Iterator

from course_utils.conversation import Conversation, Message
from course_utils.families.json_text import a_call, from_json, to_json
from course_utils.families.spans import Span, TemplateError, Turns, is_assistant

BEFORE_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    'arguments that best answers the given prompt.\n\nRespond in the format {"name": function '
    'name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
)


def turns(chat: Conversation) -> Iterator[tuple[int, str, Iterable[Span]]]:
    """(index of the message, role, spans) for every turn."""
    first = next((turn for turn, role in enumerate(chat.roles) if role != "system"), len(chat))
    if chat.tools and chat.roles[first : first + 1] != ["user"]:
        raise TemplateError(
            f"llama3 writes tools into the first user turn, which must come first or after a "
            f"system text, and message {first} is none: put the user's turn there."
        )
    for turn, message in enumerate(chat):
        spans = _spans(turn, message)
        if chat.tools and turn == first:
            spans = [Span(tools_text(chat), "tools", turn, message.role), *spans]
        yield turn, message.role, spans


def tools_text(chat: Conversation) -> str:
    return BEFORE_TOOLS + "".join(to_json(tool, indent=4) + "\n\n" for tool in chat.tools)


def call_text(call: dict) -> str:
    function = call["function"]
    name, parameters = to_json(function["name"]), to_json(function["arguments"])
    return f'{{"name": {name}, "parameters": {parameters}}}'


def _spans(turn: int, message: Message) -> list[Span]:
    content, calls = message.content.strip(), message.tool_calls
    if not calls:
        reply = is_assistant(message)
        return [Span(content, "content", turn, message.role, generated=reply)]
    if content or len(calls) > 1:
        what = "a text beside its call" if content else f"{len(calls)} calls"
        raise TemplateError(
            f"llama3 writes one call and nothing else in a turn, and message {turn} has {what}: "
            "make two turns of it, or take a family that can (chatml)."
        )
    return [Span(call_text(calls[0]), "call", turn, message.role, generated=True)]


# --- reading -------------------------------------------------------------------------------------


def read(found: Turns) -> Conversation:
    """The conversation whose turns these are."""
    tools, messages = (), []
    for turn, (role, text) in enumerate(found):
        call = a_call(text, "parameters") if role == "assistant" else None
        if role == "user" and all(earlier == "system" for earlier, _ in found[:turn]):
            tools, text = _read_tools(text)
        messages.append(Message(role, "", None, (call,)) if call else Message(role, text))
    return Conversation(tuple(messages), tools=tools)


def _read_tools(text: str) -> tuple[tuple[dict, ...], str]:
    """The tools at the head of a user turn, and its text. No JSON holds an empty line."""
    if not text.startswith(BEFORE_TOOLS):
        return (), text
    *pieces, last = text.removeprefix(BEFORE_TOOLS).split("\n\n")
    tools = []
    while pieces and (tool := from_json(pieces[0])) is not None:
        tools.append(tool)
        pieces.pop(0)
    if not tools:
        return (), text
    return tuple(tools), "\n\n".join([*pieces, last])
