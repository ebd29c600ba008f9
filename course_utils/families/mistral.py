"""Mistral's version 1: only the user's turn is wrapped."""

import re
from collections.abc import Iterator

from course_utils.conversation import Conversation
from course_utils.families.spans import (
    Family,
    Span,
    TemplateError,
    Turns,
    any_of,
    folded_system,
    shorten,
)


def mistral_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    # In version 1 "[INST]" and "[/INST]" are ordinary text; later versions made them special.
    # The prompt ends with "[/INST]", so there is no generation prompt to add.
    yield Span("<s>", "bos", special=True)
    for turn, message in enumerate(chat):
        if message.role == "user":
            yield Span(" ", "space", turn, "user")
            yield Span("[INST]", "open", turn, "user")
            yield Span(" ", "space", turn, "user")
            yield from folded_system(chat, turn)
            yield Span(message.content, "content", turn, "user")
            yield Span(" ", "space", turn, "user")
            yield Span("[/INST]", "close", turn, "user")
        elif message.role == "assistant":
            yield Span(" ", "space", turn, "assistant", generated=True)
            yield Span(message.content, "content", turn, "assistant", generated=True)
            yield Span("</s>", "eot", turn, "assistant", special=True, generated=True)


MISTRAL_TURN = re.compile(r" \[INST\] (.*?) \[/INST\](?: (.*?)</s>)?", re.S)


def mistral_parse(text: str) -> Turns:
    turns, position = [], len("<s>")
    while position < len(text):
        if not (match := MISTRAL_TURN.match(text, position)):
            raise TemplateError(
                f"character {position}: expected ' [INST] ... [/INST] ...</s>', "
                f"found {shorten(text[position:])}."
            )
        turns.append(("user", match[1]))
        if match[2] is not None:
            turns.append(("assistant", match[2]))
        position = match.end()
    return turns


MISTRAL = Family(
    "mistral",
    spans=mistral_spans,
    parse=mistral_parse,
    roles=("user", "assistant"),
    alternates=True,
    trims=False,
    special_tokens=("<s>", "</s>"),
    markers=any_of("<s>", "</s>", "[INST]", "[/INST]"),
    stop="</s>",
)
