"""The pieces of rendered text, and what all families share."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from course_utils.conversation import Conversation, Message, conversation

SPAN_KINDS = ("bos", "open", "role", "close", "space", "content", "eot", "gap")
SPAN_KINDS += ("tools", "reasoning", "call")


class TemplateError(ValueError):
    """This conversation or text lies outside what the family can express; says why."""


@dataclass(frozen=True)
class Span:
    """One piece of rendered text.

    kind:      one of `SPAN_KINDS`: sequence start, header opener, role name, header closer, white
               space before or after a content, content, end of turn, gap after the end of turn,
               descriptions of the tools, reasoning, tool call.
    turn:      index of the message that owns it; None for what no message holds: the sequence
               start, and a system turn that only describes the tools.
    role:      role of that message.
    special:   the text is one token of its own that tokenizing ordinary text never yields.
    generated: at serving time the model writes this itself: all of an assistant turn that comes
               after the generation prompt, up to and with its end of turn.
    """

    text: str
    kind: str
    turn: int | None = None
    role: str | None = None
    special: bool = False
    generated: bool = False


# Roles and texts, as the turns of rendered text are cut out of it.
Turns = list[tuple[str, str]]


def from_turns(turns: Turns) -> Conversation:
    """The conversation of families that write nothing but roles and texts."""
    return conversation(*turns)


@dataclass(frozen=True)
class Family:
    """A template family.

    spans:          (conversation, add_generation_prompt) -> iterator of spans
    parse:          text -> its turns; None if the text cannot be parsed back
    read:           turns -> conversation; raises `ConversationError` if they are none
    roles:          the roles it can express without folding one into another
    alternates:     turns must alternate
    trims:          white space around a content is dropped
    special_tokens: what it needs as dedicated tokens, the sequence start first
    markers:        text that content must not hold if the text is to be parsed back
    stop:           the text that ends an assistant turn
    writes:         which of "tools", "a tool call" and "reasoning" it has a grammar for
    tags:           for a role, what else its content must not hold: the tags of that grammar
    """

    name: str
    spans: Callable[[Conversation, bool], Iterator[Span]]
    parse: Callable[[str], Turns] | None
    roles: tuple[str, ...]
    alternates: bool
    trims: bool
    special_tokens: tuple[str, ...]
    markers: re.Pattern
    stop: str | None
    read: Callable[[Turns], Conversation] = from_turns
    writes: tuple[str, ...] = ()
    tags: tuple[tuple[str, re.Pattern], ...] = ()


def is_assistant(message: Message) -> bool:
    return message.role == "assistant"


def folded_system(chat: Conversation, turn: int) -> Iterator[Span]:
    """The system text at the head of the first user turn, for families without a system role."""
    if turn == 1 and chat[0].role == "system":
        yield Span(chat[0].content, "content", 0, "system")
        yield Span("\n\n", "space", 0, "system")


def any_of(*markers: str) -> re.Pattern:
    return re.compile("|".join(re.escape(marker) for marker in markers))


def shorten(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
