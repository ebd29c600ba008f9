"""The chat-template families in plain Python: a conversation becomes text, and text a conversation.

`render` writes a conversation as a list of `Span`s: each piece of text with its kind, the turn that
owns it, and whether the model itself generates it when the template is served. That list is all a
loss mask needs. `parse` is the inverse, on the conversations for which there is one (the family's
*canonical class*).

| family    | an assistant turn                                     | source of the format     |
|-----------|-------------------------------------------------------|--------------------------|
| `raw`     | the text alone, joined with spaces                    | no template at all       |
| `plain`   | `Assistant: ...` and a line break                     | ordinary text            |
| `chatml`  | `<|im_start|>assistant\\n...<|im_end|>\\n`            | OpenAI's ChatML, Qwen    |
| `llama3`  | `<|start_header_id|>assistant<|end_header_id|>\\n\\n` | Llama 3 model card       |
|           | `...<|eot_id|>`                                       |                          |
| `gemma`   | `<start_of_turn>model\\n...<end_of_turn>\\n`          | Gemma model card         |
| `mistral` | ` ...</s>` after `[INST] ... [/INST]`                 | mistral-common version 1 |

Two of them have a grammar for more than a role and a text: `chatml` writes tools, calls and
reasoning (see `families.hermes`), `llama3` tools and calls (see `families.llama`). The others
refuse them. In no family's text are the ids of calls, the names of tool turns, and what only
training needs: `parse` gives none of these. Outputs are told apart by their order alone, so outputs
whose ids say another order are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course_utils.conversation import Conversation, ConversationError, Message, check_turns
from course_utils.families.brackets import CHATML, GEMMA, LLAMA3
from course_utils.families.json_text import to_json
from course_utils.families.mistral import MISTRAL
from course_utils.families.plain import PLAIN, RAW
from course_utils.families.spans import SPAN_KINDS, Family, Span, TemplateError, shorten

__all__ = [
    "FAMILIES",
    "SPAN_KINDS",
    "Family",
    "Rendered",
    "Span",
    "TemplateError",
    "chat_template",
    "parse",
    "render",
]

FAMILIES: dict[str, Family] = {
    family.name: family for family in (RAW, PLAIN, CHATML, LLAMA3, GEMMA, MISTRAL)
}


@dataclass(frozen=True)
class Rendered:
    """What `render` returns: the spans, and `text`, their texts joined. `str()` gives `text`."""

    spans: tuple[Span, ...]
    family: str

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)

    def __str__(self):
        return self.text


def render(
    conversation: Conversation,
    family: str,
    *,
    add_generation_prompt: bool = False,
    lossy: bool = False,
) -> Rendered:
    """Render a conversation in a template family.

    By default whatever could not be parsed back is refused with a `TemplateError`. With `lossy` the
    renderer does what the family's published template does: trim contents, fold the system text
    into the first user turn, write markers typed by a user as they stand. What a family cannot
    express at all (turns in an order that its template refuses, tools, calls or reasoning where it
    has no grammar for them) is refused either way.

    `add_generation_prompt` appends what a server sends so that the assistant's reply comes next.
    """
    rules = _family(family)
    if rules.alternates:
        try:
            check_turns(conversation)
        except ConversationError as error:
            raise TemplateError(f"{family} needs alternating turns: {error}") from None
    if add_generation_prompt and conversation.roles[-1] == "assistant":
        raise TemplateError(
            "the conversation already ends with an assistant turn; a generation prompt after it "
            "would open a second one. Drop the last turn first."
        )
    if lossy and "system" not in rules.roles and set(conversation.roles) == {"system"}:
        raise TemplateError(
            f"{family} has no system role, and there is no user turn to fold the system text into. "
            "Add the user's turn."
        )
    _check_roles(conversation, rules, lossy)
    _check_grammar(conversation, rules)
    if not lossy:
        _check_texts(conversation, rules)
    spans = tuple(rules.spans(conversation, add_generation_prompt))
    if not lossy and rules.parse is not None:
        _check_read_back(conversation, rules, spans)
    return Rendered(spans, family)


def parse(text: str | Rendered, family: str) -> Conversation:
    """The conversation that `render` wrote as `text`; raises `TemplateError` if there is none."""
    rules = _family(family)
    if rules.parse is None:
        raise TemplateError(
            f"{family} text cannot be parsed: nothing in it says where a turn ends or who speaks."
        )
    text = str(text)
    turns = rules.parse(text)
    if not turns:
        raise TemplateError(f"no turn found: this is no {family} text.")
    try:
        found = rules.read(turns)
        if str(render(found, family)) == text:
            return found
        reason = "it would be written in another way"
    except (ConversationError, TemplateError) as error:
        reason = str(error)
    raise TemplateError(f"the text is not what {family} writes for any conversation: {reason}")


def chat_template(family: str, *, generation_tag: bool = False) -> str:
    """The family's Jinja template, for `tokenizer.chat_template`; renders as `lossy=True` does.

    With `generation_tag` it keeps `{% generation %}` around what the model writes, from which
    transformers computes `return_assistant_tokens_mask`. Other engines do not know the tag.

    Tools and calls go through the filter `tojson` as transformers and vLLM have it. Jinja's own
    sorts the keys and escapes `<`, so a bare Jinja environment writes other text.
    """
    if _family(family).stop is None:
        raise TemplateError(f"{family} has no template.")
    source = (Path(__file__).parent / "jinja" / f"{family}.jinja").read_text("utf-8").rstrip("\n")
    return source if generation_tag else re.sub(r"{%-? (end)?generation -?%}", "", source)


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise TemplateError(f"unknown family {name!r}: choose from {', '.join(FAMILIES)}.")
    return FAMILIES[name]


# --- what is refused -----------------------------------------------------------------------------


def _check_roles(conversation: Conversation, rules: Family, lossy: bool) -> None:
    expressible = set(rules.roles) | ({"system"} if lossy else set())
    for position, message in enumerate(conversation):
        if message.role not in expressible:
            raise TemplateError(
                f"{rules.name} has no {message.role} role (message {position}). "
                + (
                    "With lossy=True its text is folded into the first user turn, from which "
                    "it cannot be told apart again."
                    if message.role == "system"
                    else "Use a family that has it, such as chatml."
                )
            )


def _check_grammar(conversation: Conversation, rules: Family) -> None:
    """What goes beyond a role and a text can be written, and the order says whose outputs are."""
    if conversation.template_options:
        names = ", ".join(conversation.template_options)
        raise TemplateError(
            f"the conversation has options of a template ({names}), and {rules.name} has none: "
            "leave 'chat_template_kwargs' out."
        )
    if conversation.tools:
        _check_writes(rules, "tools", "")
    waiting = iter(())
    for position, message in enumerate(conversation):
        if message.reasoning is not None:
            _check_writes(rules, "reasoning", f" (message {position})")
        if message.tool_calls:
            _check_writes(rules, "a tool call", f" (message {position})")
        if message.role != "tool":
            waiting = iter(message.tool_calls)
            continue
        called, answered = next(waiting, {}).get("id"), message.tool_call_id
        if called and answered and called != answered:
            raise TemplateError(
                f"message {position} answers the call {answered!r} in the place of {called!r}: "
                f"{rules.name} writes no ids, so put the outputs in the order of their calls."
            )


def _check_writes(rules: Family, what: str, where: str) -> None:
    if what not in rules.writes:
        able = ", ".join(name for name, family in FAMILIES.items() if what in family.writes)
        raise TemplateError(
            f"{rules.name} cannot write {what}{where}: take a family that can ({able})."
        )


def _check_texts(conversation: Conversation, rules: Family) -> None:
    """No text holds what the family would take for its own, or would not write whole."""
    tags = dict(rules.tags)
    for place, text in _texts(conversation):
        message = conversation[place] if place is not None else None
        if message and rules.trims and message.content != message.content.strip():
            raise TemplateError(
                f"{rules.name} drops the white space around message {place} "
                f"({shorten(message.content)}), so it could not be parsed back. "
                "Strip the content, or render with lossy=True."
            )
        own = tags.get(message.role if message else "system")
        marker = rules.markers.search(text) or (own and own.search(text))
        if marker:
            owner = f"message {place} holds" if message else "the description of a tool holds"
            raise TemplateError(
                f"{owner} {marker.group().strip()!r}, a marker of {rules.name}: the text could not "
                "be parsed back. lossy=True renders it; `training_samples` tokenizes such text so "
                "that it never becomes a special token."
            )


def _texts(conversation: Conversation) -> Iterator[tuple[int | None, str]]:
    """Every text that somebody wrote, with the index of its message (None: a tool)."""
    for place, message in enumerate(conversation):
        yield place, message.content
        yield place, message.reasoning or ""
        for call in message.tool_calls:
            yield place, to_json(call["function"])
    for tool in conversation.tools:
        yield None, to_json(tool)


def _check_read_back(conversation: Conversation, rules: Family, spans: tuple[Span, ...]) -> None:
    """The turns that were written are read as the same messages again."""
    text = "".join(span.text for span in spans if span.turn != len(conversation))
    try:
        found = rules.read(rules.parse(text))
    except ConversationError as error:
        raise TemplateError(
            f"the text would be read back as something else ({error}): some text in it looks like "
            f"what {rules.name} writes for tools or calls. lossy=True renders it."
        ) from None
    for position, (ours, theirs) in enumerate(zip(conversation, found, strict=False)):
        if _written(ours) != _written(theirs):
            raise TemplateError(
                f"message {position} would be read back as something else "
                f"({shorten(theirs.content or str(theirs.tool_calls))}): its text looks like what "
                f"{rules.name} writes for tools or calls. lossy=True renders it."
            )
    if len(found) != len(conversation) or found.tools != conversation.tools:
        raise TemplateError(
            f"the tools would be read back as something else from what {rules.name} writes. "
            "lossy=True renders them."
        )


def _written(message: Message) -> tuple:
    """All of a message that a family with a grammar for everything writes."""
    calls = [call["function"] for call in message.tool_calls]
    return message.role, message.content, message.reasoning, calls
