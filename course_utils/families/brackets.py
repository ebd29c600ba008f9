"""ChatML, Llama 3 and Gemma: a header and an end of turn around every content."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from course_utils.conversation import ROLES, Conversation
from course_utils.families import hermes, llama
from course_utils.families.spans import (
    Family,
    Span,
    TemplateError,
    Turns,
    any_of,
    folded_system,
    is_assistant,
    shorten,
)


@dataclass(frozen=True)
class Brackets:
    """The texts around a turn; what is empty is left out. `names` renames roles."""

    bos: str
    open: str
    close: str
    after_header: str
    eot: str
    after_turn: str
    names: dict

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in (self.bos, self.open, self.close, self.eot) if token)

    @property
    def markers(self) -> re.Pattern:
        return any_of(*self.special_tokens)


CHATML_BRACKETS = Brackets("", "<|im_start|>", "", "\n", "<|im_end|>", "\n", {})
LLAMA3_BRACKETS = Brackets(
    bos="<|begin_of_text|>",
    open="<|start_header_id|>",
    close="<|end_header_id|>",
    after_header="\n\n",
    eot="<|eot_id|>",
    after_turn="",
    names={"tool": "ipython"},
)
GEMMA_BRACKETS = Brackets(
    bos="<bos>",
    open="<start_of_turn>",
    close="",
    after_header="\n",
    eot="<end_of_turn>",
    after_turn="\n",
    names={"assistant": "model"},
)


# --- writing -------------------------------------------------------------------------------------


def bracket_spans(
    brackets: Brackets, inside, chat: Conversation, add_generation_prompt: bool
) -> Iterator[Span]:
    """`inside` gives (turn, role, spans) for every turn that is written."""
    if brackets.bos:
        yield Span(brackets.bos, "bos", special=True)
    for turn, role, spans in inside(chat):
        yield from _header(brackets, turn, role)
        yield from spans
        yield Span(brackets.eot, "eot", turn, role, special=True, generated=role == "assistant")
        if brackets.after_turn:
            yield Span(brackets.after_turn, "gap", turn, role)
    if add_generation_prompt:
        yield from _header(brackets, len(chat), "assistant")


def _header(brackets: Brackets, turn: int | None, role: str) -> Iterator[Span]:
    yield Span(brackets.open, "open", turn, role, special=True)
    yield Span(brackets.names.get(role, role), "role", turn, role)
    if brackets.close:
        yield Span(brackets.close, "close", turn, role, special=True)
    yield Span(brackets.after_header, "space", turn, role)


def gemma_turns(chat: Conversation) -> Iterator[tuple[int, str, Iterable[Span]]]:
    for turn, message in enumerate(chat):
        if message.role != "system":
            content = Span(
                message.content.strip(), "content", turn, message.role, False, is_assistant(message)
            )
            yield turn, message.role, [*folded_system(chat, turn), content]


# --- reading -------------------------------------------------------------------------------------


def bracket_parse(brackets: Brackets, text: str) -> Turns:
    roles = {name: role for role, name in brackets.names.items()}
    turn = re.compile(
        re.escape(brackets.open)
        + r"(\w+)"
        + re.escape(brackets.close + brackets.after_header)
        + "(.*?)"
        + re.escape(brackets.eot + brackets.after_turn),
        re.S,
    )
    turns, position = [], len(brackets.bos)
    while position < len(text):
        if not (match := turn.match(text, position)):
            raise TemplateError(
                f"character {position}: expected {brackets.open}, a role, a content and "
                f"{brackets.eot}, found {shorten(text[position:])}."
            )
        turns.append((roles.get(match[1], match[1]), match[2]))
        position = match.end()
    return turns


# --- the families --------------------------------------------------------------------------------


def _family(name: str, brackets: Brackets, turns, **rules) -> Family:
    return Family(
        name,
        spans=partial(bracket_spans, brackets, turns),
        parse=partial(bracket_parse, brackets),
        special_tokens=brackets.special_tokens,
        markers=brackets.markers,
        stop=brackets.eot,
        **rules,
    )


CHATML = _family(
    "chatml",
    CHATML_BRACKETS,
    hermes.turns,
    read=hermes.read,
    roles=ROLES,
    alternates=False,
    trims=False,
    writes=("tools", "a tool call", "reasoning"),
    tags=hermes.TAGS,
)
LLAMA3 = _family(
    "llama3",
    LLAMA3_BRACKETS,
    llama.turns,
    read=llama.read,
    roles=ROLES,
    alternates=False,
    trims=True,
    writes=("tools", "a tool call"),
)
GEMMA = _family(
    "gemma",
    GEMMA_BRACKETS,
    gemma_turns,
    roles=("user", "assistant"),
    alternates=True,
    trims=True,
)
