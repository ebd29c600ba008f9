"""Families without special tokens: the contents alone, and role names as ordinary text."""

import re
from collections.abc import Iterator

from course_utils.conversation import ROLES, Conversation
from course_utils.families.spans import Family, Span, Turns, is_assistant

# --- raw: the contents, and nothing else ---------------------------------------------------------


def raw_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    for turn, message in enumerate(chat):
        if turn:
            yield Span(" ", "space", turn, message.role)
        yield Span(message.content, "content", turn, message.role, generated=is_assistant(message))
    if add_generation_prompt:
        yield Span(" ", "space", len(chat), "assistant")


# --- plain: role names as ordinary text ----------------------------------------------------------

PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
PLAIN_TURN = re.compile(r"^(System|User|Assistant): ", re.M)


def plain_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    for turn, message in enumerate(chat):
        yield from _plain_header(turn, message.role)
        # The space goes to the reply: a model writes " Water" as one token, space included.
        reply = is_assistant(message)
        yield Span(" ", "space", turn, message.role, generated=reply)
        yield Span(message.content.strip(), "content", turn, message.role, generated=reply)
        yield Span("\n", "eot", turn, message.role, generated=reply)
    if add_generation_prompt:
        yield from _plain_header(len(chat), "assistant")


def _plain_header(turn: int, role: str) -> Iterator[Span]:
    yield Span(PLAIN_NAMES[role], "role", turn, role)
    yield Span(":", "close", turn, role)


def plain_parse(text: str) -> Turns:
    roles = {name: role for role, name in PLAIN_NAMES.items()}
    pieces = PLAIN_TURN.split(text)[1:]
    return [
        (roles[name], content.removesuffix("\n"))
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


RAW = Family(
    "raw",
    spans=raw_spans,
    parse=None,
    roles=ROLES,
    alternates=False,
    trims=False,
    special_tokens=(),
    markers=re.compile(r"(?!)"),
    stop=None,
)
PLAIN = Family(
    "plain",
    spans=plain_spans,
    parse=plain_parse,
    roles=("system", "user", "assistant"),
    alternates=False,
    trims=True,
    special_tokens=(),
    markers=PLAIN_TURN,
    stop="\n",
)
