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
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from course_utils.conversation import Conversation, ConversationError, check_turns, conversation

SPAN_KINDS = ("bos", "open", "role", "close", "space", "content", "eot", "gap")


class TemplateError(ValueError):
    """This conversation or text lies outside what the family can express; says why."""


@dataclass(frozen=True)
class Span:
    """One piece of rendered text.

    kind:      one of `SPAN_KINDS`: sequence start, header opener, role name, header closer, white
               space before or after a content, content, end of turn, gap after the end of turn.
    turn:      index of the message that owns it; None for the sequence start.
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


@dataclass(frozen=True)
class Family:
    """A template family.

    spans:          (conversation, add_generation_prompt) -> iterator of spans
    parse:          text -> list of (role, content); None if the text cannot be parsed back
    roles:          the roles it can express without folding one into another
    alternates:     turns must alternate
    trims:          white space around a content is dropped
    special_tokens: what it needs as dedicated tokens, the sequence start first
    markers:        text that content must not hold if the text is to be parsed back
    stop:           the text that ends an assistant turn
    """

    name: str
    spans: Callable[[Conversation, bool], Iterator[Span]]
    parse: Callable[[str], list[tuple[str, str]]] | None
    roles: tuple[str, ...]
    alternates: bool
    trims: bool
    special_tokens: tuple[str, ...]
    markers: re.Pattern
    stop: str | None


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
    express at all (turns in an order that its template refuses, reasoning, tool calls) is refused
    either way.

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
    expressible = set(rules.roles) | ({"system"} if lossy else set())
    for position, message in enumerate(conversation):
        if message.role not in expressible:
            raise TemplateError(
                f"{family} has no {message.role} role (message {position}). "
                + (
                    "With lossy=True its text is folded into the first user turn, from which "
                    "it cannot be told apart again."
                    if message.role == "system"
                    else "Use a family that has it, such as chatml."
                )
            )
        if message.reasoning is not None or message.tool_calls:
            what = "reasoning" if message.reasoning is not None else "a tool call"
            raise TemplateError(
                f"{family} cannot write {what} (message {position}): its turns are a role and a "
                "text. Write it into the content, or take a tokenizer whose template has it."
            )
        if lossy:
            continue
        if rules.trims and message.content != message.content.strip():
            raise TemplateError(
                f"{family} drops the white space around message {position} "
                f"({_shorten(message.content)}), so it could not be parsed back. "
                "Strip the content, or render with lossy=True."
            )
        if marker := rules.markers.search(message.content):
            raise TemplateError(
                f"message {position} holds {marker.group().strip()!r}, a marker of {family}: the "
                "text could not be parsed back. lossy=True renders it; `training_samples` "
                "tokenizes such text so that it never becomes a special token."
            )
    return Rendered(tuple(rules.spans(conversation, add_generation_prompt)), family)


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
        found = conversation(*turns)
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
    """
    if _family(family).stop is None:
        raise TemplateError(f"{family} has no template.")
    source = (Path(__file__).parent / "jinja" / f"{family}.jinja").read_text("utf-8").rstrip("\n")
    return source if generation_tag else re.sub(r"{%-? (end)?generation -?%}", "", source)


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise TemplateError(f"unknown family {name!r}: choose from {', '.join(FAMILIES)}.")
    return FAMILIES[name]


# --- raw: the contents, and nothing else ---------------------------------------------------------


def raw_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    for turn, message in enumerate(chat):
        if turn:
            yield Span(" ", "space", turn, message.role)
        yield Span(message.content, "content", turn, message.role, generated=_is_assistant(message))
    if add_generation_prompt:
        yield Span(" ", "space", len(chat), "assistant")


# --- plain: role names as ordinary text ----------------------------------------------------------

PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
PLAIN_TURN = re.compile(r"^(System|User|Assistant): ", re.M)


def plain_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    for turn, message in enumerate(chat):
        yield from _plain_header(turn, message.role)
        # The space goes to the reply: a model writes " Water" as one token, space included.
        reply = _is_assistant(message)
        yield Span(" ", "space", turn, message.role, generated=reply)
        yield Span(message.content.strip(), "content", turn, message.role, generated=reply)
        yield Span("\n", "eot", turn, message.role, generated=reply)
    if add_generation_prompt:
        yield from _plain_header(len(chat), "assistant")


def _plain_header(turn: int, role: str) -> Iterator[Span]:
    yield Span(PLAIN_NAMES[role], "role", turn, role)
    yield Span(":", "close", turn, role)


def plain_parse(text: str) -> list[tuple[str, str]]:
    roles = {name: role for role, name in PLAIN_NAMES.items()}
    pieces = PLAIN_TURN.split(text)[1:]
    return [
        (roles[name], content.removesuffix("\n"))
        for name, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


# --- chatml, llama3, gemma: a header and an end of turn around every content ----------------------


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
    trims: bool
    folds_system: bool = False

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in (self.bos, self.open, self.close, self.eot) if token)


CHATML = Brackets("", "<|im_start|>", "", "\n", "<|im_end|>", "\n", {}, trims=False)
LLAMA3 = Brackets(
    bos="<|begin_of_text|>",
    open="<|start_header_id|>",
    close="<|end_header_id|>",
    after_header="\n\n",
    eot="<|eot_id|>",
    after_turn="",
    names={"tool": "ipython"},
    trims=True,
)
GEMMA = Brackets(
    bos="<bos>",
    open="<start_of_turn>",
    close="",
    after_header="\n",
    eot="<end_of_turn>",
    after_turn="\n",
    names={"assistant": "model"},
    trims=True,
    folds_system=True,
)


def bracket_spans(
    brackets: Brackets, chat: Conversation, add_generation_prompt: bool
) -> Iterator[Span]:
    if brackets.bos:
        yield Span(brackets.bos, "bos", special=True)
    for turn, message in enumerate(chat):
        if brackets.folds_system and message.role == "system":
            continue
        yield from _bracket_header(brackets, turn, message.role)
        if brackets.folds_system:
            yield from _folded_system(chat, turn)
        reply = _is_assistant(message)
        content = message.content.strip() if brackets.trims else message.content
        yield Span(content, "content", turn, message.role, generated=reply)
        yield Span(brackets.eot, "eot", turn, message.role, special=True, generated=reply)
        if brackets.after_turn:
            yield Span(brackets.after_turn, "gap", turn, message.role)
    if add_generation_prompt:
        yield from _bracket_header(brackets, len(chat), "assistant")


def _bracket_header(brackets: Brackets, turn: int, role: str) -> Iterator[Span]:
    yield Span(brackets.open, "open", turn, role, special=True)
    yield Span(brackets.names.get(role, role), "role", turn, role)
    if brackets.close:
        yield Span(brackets.close, "close", turn, role, special=True)
    yield Span(brackets.after_header, "space", turn, role)


def bracket_parse(brackets: Brackets, text: str) -> list[tuple[str, str]]:
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
                f"{brackets.eot}, found {_shorten(text[position:])}."
            )
        turns.append((roles.get(match[1], match[1]), match[2]))
        position = match.end()
    return turns


# --- mistral: only the user's turn is wrapped ----------------------------------------------------


def mistral_spans(chat: Conversation, add_generation_prompt: bool) -> Iterator[Span]:
    # In version 1 "[INST]" and "[/INST]" are ordinary text; later versions made them special.
    # The prompt ends with "[/INST]", so there is no generation prompt to add.
    yield Span("<s>", "bos", special=True)
    for turn, message in enumerate(chat):
        if message.role == "user":
            yield Span(" ", "space", turn, "user")
            yield Span("[INST]", "open", turn, "user")
            yield Span(" ", "space", turn, "user")
            yield from _folded_system(chat, turn)
            yield Span(message.content, "content", turn, "user")
            yield Span(" ", "space", turn, "user")
            yield Span("[/INST]", "close", turn, "user")
        elif message.role == "assistant":
            yield Span(" ", "space", turn, "assistant", generated=True)
            yield Span(message.content, "content", turn, "assistant", generated=True)
            yield Span("</s>", "eot", turn, "assistant", special=True, generated=True)


MISTRAL_TURN = re.compile(r" \[INST\] (.*?) \[/INST\](?: (.*?)</s>)?", re.S)


def mistral_parse(text: str) -> list[tuple[str, str]]:
    turns, position = [], len("<s>")
    while position < len(text):
        if not (match := MISTRAL_TURN.match(text, position)):
            raise TemplateError(
                f"character {position}: expected ' [INST] ... [/INST] ...</s>', "
                f"found {_shorten(text[position:])}."
            )
        turns.append(("user", match[1]))
        if match[2] is not None:
            turns.append(("assistant", match[2]))
        position = match.end()
    return turns


def _folded_system(chat: Conversation, turn: int) -> Iterator[Span]:
    """The system text at the head of the first user turn, for families without a system role."""
    if turn == 1 and chat[0].role == "system":
        yield Span(chat[0].content, "content", 0, "system")
        yield Span("\n\n", "space", 0, "system")


def _is_assistant(message) -> bool:
    return message.role == "assistant"


def _shorten(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _any_of(*markers: str) -> re.Pattern:
    return re.compile("|".join(re.escape(marker) for marker in markers))


def _bracket_family(name: str, brackets: Brackets, **rules) -> Family:
    return Family(
        name,
        spans=partial(bracket_spans, brackets),
        parse=partial(bracket_parse, brackets),
        trims=brackets.trims,
        special_tokens=brackets.special_tokens,
        markers=_any_of(*brackets.special_tokens),
        stop=brackets.eot,
        **rules,
    )


EVERYONE = ("system", "user", "assistant", "tool")

FAMILIES: dict[str, Family] = {
    "raw": Family(
        "raw",
        spans=raw_spans,
        parse=None,
        roles=EVERYONE,
        alternates=False,
        trims=False,
        special_tokens=(),
        markers=re.compile(r"(?!)"),
        stop=None,
    ),
    "plain": Family(
        "plain",
        spans=plain_spans,
        parse=plain_parse,
        roles=("system", "user", "assistant"),
        alternates=False,
        trims=True,
        special_tokens=(),
        markers=PLAIN_TURN,
        stop="\n",
    ),
    "chatml": _bracket_family("chatml", CHATML, roles=EVERYONE, alternates=False),
    "llama3": _bracket_family("llama3", LLAMA3, roles=EVERYONE, alternates=False),
    "gemma": _bracket_family("gemma", GEMMA, roles=("user", "assistant"), alternates=True),
    "mistral": Family(
        "mistral",
        spans=mistral_spans,
        parse=mistral_parse,
        roles=("user", "assistant"),
        alternates=True,
        trims=False,
        special_tokens=("<s>", "</s>"),
        markers=_any_of("<s>", "</s>", "[INST]", "[/INST]"),
        stop="</s>",
    ),
}
