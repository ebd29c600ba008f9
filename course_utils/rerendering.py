"""The reference: each reply between two renderings of the chat, one before it and one after it.

Slow, because every prefix is rendered anew, and plain: what the template writes up to a reply's
prompt, and up to the reply's end. `layouts` finds the same places in one go; it is tested against
this, and where a template cannot be followed, this is what remains.
"""

import json
from dataclasses import replace

from course_utils.conversation import Conversation
from course_utils.templates import Rendered, Span
from course_utils.tokenizers import guard, special_pattern, special_tokens, unguard


class MaskError(ValueError):
    """No mask that is certainly right can be made; names the turn and says what to do."""


def render_template(
    tokenizer, messages: list[dict], *, add_generation_prompt: bool = False, **options
) -> str:
    """`tokenizer.apply_chat_template` as text; raises `MaskError` where there is no template.

    `options` go to the template: `tools=...`, `enable_thinking=False`, `date_string=...`.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise MaskError(
            "the tokenizer has no chat template. A base model's usually has none: set one with "
            "tokenizer.chat_template = course_utils.templates.chat_template('chatml') or another "
            "family whose special tokens this tokenizer has."
        )
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
    except (JinjaError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise MaskError(
            f"the chat template refuses the roles {[m['role'] for m in messages]}: {error}"
        ) from None


def spans_by_rerendering(
    conversation: Conversation, tokenizer, *, only_last: bool = False, options: dict | None = None
) -> Rendered:
    """Find the assistant's turns in a chat template's output by rendering prefixes of the chat.

    For the assistant turn k, the text before its reply is what a server would send: messages 0 to
    k - 1 with the generation prompt. The text after it is messages 0 to k. Both must be prefixes of
    the whole, or the template rewrites history (it drops old reasoning, looks at the last user
    turn, writes the time) and `MaskError` is raised. `only_last` looks for the last reply alone.

    The spans are coarse: text of others, assistant header, assistant content, end of turn, gap.
    Contents are guarded: what looks like a special token in them carries `tokenizers.GUARD`.
    """
    if conversation.roles[0] == "assistant":
        raise MaskError(
            "turn 0 is an assistant turn: no server would send an empty prompt before it. "
            "Drop it, or put a user turn before it."
        )
    specials = special_tokens(tokenizer)
    options = dict(options or {}, tools=list(conversation.tools) or None)
    messages = guarded(conversation, specials).as_messages()
    uninvited = uninvited_prompt(tokenizer, specials, options)
    whole = render_template(tokenizer, messages, **options).removesuffix(uninvited)
    replies = [turn for turn, m in enumerate(conversation) if m.role == "assistant" and m.train]
    spans, position = [], 0
    for turn in replies[-1:] if only_last else replies:
        before = render_template(tokenizer, messages[:turn], **options).removesuffix(uninvited)
        prompt = render_template(tokenizer, messages[:turn], add_generation_prompt=True, **options)
        until = render_template(tokenizer, messages[: turn + 1], **options)
        until = until.removesuffix(uninvited)
        for shorter, longer, what in (
            (before, prompt, "adding the generation prompt"),
            (prompt, until, "adding the reply"),
            (until, whole, "adding later turns"),
        ):
            if not longer.startswith(shorter):
                raise MaskError(rewritten(turn, shorter, longer, what))
        stop, end = _end_of_turn(until, len(prompt), messages[turn]["content"], specials, turn)
        spans += [
            Span(whole[position : len(before)], "content"),
            Span(whole[len(before) : len(prompt)], "role", turn, "assistant"),
            Span(whole[len(prompt) : stop], "content", turn, "assistant", generated=True),
            Span(whole[stop:end], "eot", turn, "assistant", whole[stop:end] in specials, True),
            Span(whole[end : len(until)], "gap", turn, "assistant"),
        ]
        position = len(until)
    spans.append(Span(whole[position:], "content"))
    _check_contents(whole, messages)
    _check_steering(conversation, tokenizer, messages, specials, options)
    return Rendered(tuple(span for span in spans if span.text), "chat template")


def guarded(conversation: Conversation, specials: tuple[str, ...]) -> Conversation:
    def leaves(value):
        if isinstance(value, str):
            return guard(value, specials)
        if isinstance(value, list):
            return [leaves(item) for item in value]
        return {k: leaves(v) for k, v in value.items()} if isinstance(value, dict) else value

    return replace(
        conversation,
        messages=tuple(
            replace(
                message,
                content=guard(message.content, specials),
                reasoning=leaves(message.reasoning),
                tool_calls=tuple(leaves(call) for call in message.tool_calls),
            )
            for message in conversation
        ),
    )


def _end_of_turn(
    until: str, start: int, content: str, specials: tuple[str, ...], turn: int
) -> tuple[int, int]:
    """Where the end of turn of the reply that begins at `start` begins and ends.

    It is the last special token behind the content. Behind it only white space may come: anything
    else would be text that the model is to write after it stopped. In a template without such a
    token it is all that the template writes behind the content.
    """
    found = until.find(content.strip(), start)
    if found < 0:
        raise MaskError(
            f"turn {turn}: the template does not write the content as it is, so it cannot be "
            f"located: {shown(content)} is not in {shown(until[start:])}. "
            "Write the content as the template renders it, or change the template."
        )
    behind = found + len(content.strip())
    found = list(special_pattern(specials).finditer(until, behind))
    if not found:
        return behind, len(until)
    token = found[-1]
    if until[token.end() :].strip():
        raise MaskError(
            f"turn {turn}: after the end of turn the template writes "
            f"{shown(until[token.end() :])}; it is unclear whether the model is to write that. "
            "Change the template so that the end of turn comes last."
        )
    return token.span()


def _check_contents(whole: str, messages: list[dict]) -> None:
    """All but replies must stand in the text one after the other, tool outputs also as JSON."""
    position = 0
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        content = message["content"].strip()
        if message["role"] == "tool" and content not in whole[position:]:
            content = json.dumps(message["content"], ensure_ascii=False)
        found = whole.find(content, position)
        if found < 0:
            raise MaskError(
                f"turn {turn}: the template drops, moves or rewrites the text of the "
                f"{message['role']} turn, {shown(content)}. Put the text where the template "
                "renders it (a system text into the first user turn, say), or change the template."
            )
        position = found + len(content)


def _check_steering(
    conversation: Conversation, tokenizer, guarded: list[dict], specials, options: dict
) -> None:
    """What looks like a special token in a content must not change the rest of the text."""
    rendered = render_template(tokenizer, guarded, **options)
    if unguard(rendered) != render_template(tokenizer, conversation.as_messages(), **options):
        raise MaskError(STEERED)


STEERED = (
    "the template writes other special tokens, or other text, when a content looks like one, so "
    "text typed by a user could steer it. Remove such text from the contents, or change the "
    "template."
)


def uninvited_prompt(tokenizer, specials: tuple[str, ...], options: dict | None = None) -> str:
    """The generation prompt, if the template writes it even when nobody asked for it, else "".

    The first template of Llama 3 does: it opens an assistant turn behind every conversation, a
    finished one too. In a training sample that would be a header with nothing after it.
    """
    question, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}

    def render(*messages, **flags):
        known = {key: value for key, value in (options or {}).items() if key != "tools"}
        return render_template(tokenizer, list(messages), **known, **flags)

    try:
        asked = render(question, add_generation_prompt=True)
        if asked != render(question):
            return ""
        answered = render(question, reply)
        followed = render(question, reply, question)
    except MaskError:
        return ""
    if not answered.startswith(asked) or followed.startswith(answered):
        return ""  # What stands at the end stays there, so it belongs to the turn.
    behind = answered.index("a", len(asked)) + 1
    stop = special_pattern(specials).search(answered, behind)
    rest = answered[stop.end() if stop else behind :].lstrip()
    return rest if asked.endswith(rest) else ""


def rewritten(turn: int, shorter: str, longer: str, what: str) -> str:
    """The message for a text that does not begin with what it should begin with."""
    same = next(
        (i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b),
        min(len(shorter), len(longer)),
    )
    return (
        f"turn {turn}: {what} changes what stood before it, at character {same}: "
        f"{unguard(shorter[same : same + 30])!r} became {unguard(longer[same : same + 30])!r}. "
        "The model would be trained on a prompt that no server sends. Change the template, or the "
        "way it is called (some take enable_thinking or date_string as an option)."
    )


def shown(text: str, width: int = 60) -> str:
    return repr(unguard(text.strip())[:width])
