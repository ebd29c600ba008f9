"""The reference: each reply between two renderings of the chat, one before it and one after it.

Slow, because every prefix is rendered anew, and plain: what the template writes up to a reply's
prompt, and up to the reply's end. `layouts` finds the same places in one go; it is tested against
this, and where a template cannot be followed, this is what remains.
"""

import json
from dataclasses import replace

from course_utils.conversation import Conversation
from course_utils.plans import is_mark
from course_utils.rendering import ChatTemplate, MaskError
from course_utils.shapes import (
    keys_in,
    map_leaves,
    neutral_keys,
    neutral_options,
    neutral_text,
    neutral_tools,
)
from course_utils.templates import Rendered, Span
from course_utils.tokenizers import guard, special_pattern, unguard


def rendered_spans(
    conversation: Conversation,
    template: ChatTemplate,
    *,
    only_last: bool = False,
    options: dict | None = None,
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
    specials = template.specials
    check_names(conversation, special_pattern(specials))
    messages = guarded(conversation, specials).as_messages()
    uninvited = uninvited_prompt(template, options, tools=bool(conversation.tools))
    options = {"options": options or {}, "tools": list(conversation.tools)}
    whole = template.write(messages, **options)
    check_control_tokens(template, conversation, whole, options)
    whole = whole.removesuffix(uninvited)
    if conversation.tools:
        _check_tools(template, messages, options, whole + uninvited)
    replies = [turn for turn, m in enumerate(conversation) if m.role == "assistant" and m.train]
    spans, position = [], 0
    for turn in replies[-1:] if only_last else replies:
        before = template.write(messages[:turn], **options).removesuffix(uninvited)
        prompt = template.write(messages[:turn], prompt=True, **options)
        until = template.write(messages[: turn + 1], **options).removesuffix(uninvited)
        for shorter, longer, what in (
            (before, prompt, "adding the generation prompt"),
            (prompt, until, "adding the reply"),
            (until, whole, "adding later turns"),
        ):
            if not longer.startswith(shorter):
                raise MaskError(rewritten(turn, shorter, longer, what))
        stop, end = _end_of_turn(until, len(prompt), messages[turn]["content"], specials, turn)
        _check_reply(until[len(prompt) :], messages[turn], turn)
        if not special_pattern(specials).search(until, stop, end):
            opening = _opening(template, conversation, messages, options, turn, until, whole)
            if len(until) == len(whole):
                whole += opening
            if opening:
                stop, end, until = len(until), len(until + opening), until + opening
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
    _check_steering(conversation, template, messages, options)
    return Rendered(tuple(span for span in spans if span.text), "chat template")


def guarded(conversation: Conversation, specials: tuple[str, ...]) -> Conversation:
    """The conversation with a guard in all that looks like a special token."""
    return with_texts(conversation, lambda text: guard(text, specials))


def with_texts(conversation: Conversation, change) -> Conversation:
    """The conversation with `change(text)` in the place of every text that somebody wrote."""

    def leaves(value):
        return map_leaves(value, change)

    return replace(
        conversation,
        messages=tuple(
            replace(
                message,
                content=change(message.content),
                reasoning=leaves(message.reasoning),
                tool_calls=tuple(
                    {**leaves(call), "type": call.get("type", "function")}
                    for call in message.tool_calls
                ),
                name=leaves(message.name),
                tool_call_id=leaves(message.tool_call_id),
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


def check_names(conversation: Conversation, specials) -> None:
    """Descriptions of tools, names of arguments and options are no texts that can be kept apart."""

    def written(value) -> str:
        return json.dumps(value, ensure_ascii=False)

    names = keys_in([call for message in conversation for call in message.tool_calls])
    for where, parts in (
        ("the description of a tool", map(written, conversation.tools)),
        ("the name of an argument", names),
        ("an option of the template", [written(conversation.template_options)]),
    ):
        for part in parts:
            if found := specials.search(part):
                raise MaskError(
                    f"{found[0]!r}, which is a special token of this tokenizer, is in {where}. "
                    "Remove it."
                )
            if found := next(filter(is_mark, part), None):
                raise MaskError(
                    f"the private-use character U+{ord(found):05X} is in {where}. Remove it."
                )


def next_turn(calls: tuple[dict, ...]) -> dict:
    """A message that may come after a reply: a tool's output after its last call, else a user's."""
    if not calls:
        return {"role": "user", "content": "x"}
    identity = {"tool_call_id": calls[-1]["id"]} if "id" in calls[-1] else {}
    return {"role": "tool", "content": "x", "name": calls[-1]["function"]["name"], **identity}


def _opening(template, conversation, messages, options, turn, until, whole) -> str:
    """The special token with which the turn after this reply opens: where a template writes no end
    of turn, the model must write that token to stop. "" if there is none."""
    pattern = special_pattern(template.specials)
    if turn + 1 < len(messages):
        found = messages[turn + 1]["role"] != "assistant" and pattern.match(whole, len(until))
        return found[0] if found else ""
    following = next_turn(conversation[turn].tool_calls)
    try:
        longer = template.write([*messages[: turn + 1], following], **options)
    except MaskError:
        return ""
    found = longer.startswith(until) and pattern.match(longer, len(until))
    return found[0] if found else ""


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
    conversation: Conversation, template: ChatTemplate, guarded: list[dict], options: dict
) -> None:
    """What looks like a special token in a content must not change the rest of the text."""
    if unguard(template.write(guarded, **options)) != template.write(
        conversation.as_messages(), **options
    ):
        raise MaskError(STEERED)


def check_control_tokens(
    template: ChatTemplate, conversation: Conversation, text: str, options: dict, **prompt
) -> None:
    """The special tokens of a guarded `text` must be those that are written around any text.

    A template may make one out of harmless text, by lower case or by taking something out of it.
    """
    specials = special_pattern(template.specials)
    neutral = with_texts(conversation, neutral_text).as_messages()
    for message in neutral:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = neutral_keys(call["function"]["arguments"])
    own = neutral_own_options(conversation, template.specials)
    options = options | {
        "tools": neutral_tools(list(conversation.tools)),
        "options": options["options"] | own,
    }
    try:
        expected = specials.findall(template.write(neutral, **options, **prompt))
    except MaskError:
        raise MaskError(STEERED) from None
    if specials.findall(text) != expected:
        raise MaskError(STEERED)


def neutral_own_options(conversation: Conversation, specials: tuple[str, ...]) -> dict:
    """The conversation's own options with neutral words; their names are the template's."""
    return {
        name: neutral_options(value, specials)
        for name, value in conversation.template_options.items()
    }


def _check_reply(written: str, message: dict, turn: int) -> None:
    """Reasoning and calls of a reply must be in what the model writes; `_end_of_turn` has looked
    for the content."""
    texts = [message.get("reasoning_content") or ""]
    for call in message.get("tool_calls", ()):
        map_leaves(call["function"], texts.append)
    for text in texts:
        as_json = json.dumps(text, ensure_ascii=False)[1:-1]
        if not any(form.strip() in written for form in (text, as_json, json.dumps(text)[1:-1])):
            raise MaskError(
                f"turn {turn}: the template drops or rewrites {shown(text)} of the reply. Write it "
                "as the template does, or change the template."
            )


TOOLS_IGNORED = (
    "the template leaves out the conversation's tools, so the model would never read what it may "
    "call. Choose a template that writes tools, or remove 'tools'."
)


def _check_tools(template: ChatTemplate, messages: list[dict], options: dict, whole: str) -> None:
    try:
        without = template.write(messages, **options | {"tools": None})
    except MaskError:
        return  # it needs them
    if without == whole:
        raise MaskError(TOOLS_IGNORED)


STEERED = (
    "the template writes other special tokens, or other text, when a content (or a tool's "
    "description, or the name of an argument) looks like one, so text typed by a user could steer "
    "it. Remove such text, or change the template."
)


PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
    },
}


def uninvited_prompt(
    template: ChatTemplate, options: dict | None = None, *, tools: bool = False
) -> str:
    """What the template writes behind every conversation, and takes back when it goes on, or "".

    Most often that is the generation prompt, or its beginning, though nobody asked for it, as in
    the first template of Llama 3; Phi 3 writes one more token. In a training sample it would be a
    header with nothing after it, or text behind the stop.
    """
    question = {"role": "user", "content": "question"}
    reply = {"role": "assistant", "content": "answer"}
    known = {"options": options or {}, "tools": [PROBE_TOOL] if tools else []}
    try:
        asked = template.write([question], **known)
        answered = template.write([question, reply], **known)
        followed = template.write([question, reply, question], **known)
    except MaskError:
        return ""
    behind = answered.rfind("answer") + len("answer")
    if behind < len("answer") or followed.startswith(answered):
        return ""  # What is at the end stays there, so it belongs to the turn.
    specials = special_pattern(template.specials)
    edges = {edge for match in specials.finditer(answered, behind) for edge in match.span()}
    edges |= {behind}
    edges |= {n for n in range(behind + 1, len(answered)) if answered[n - 1] == "\n"}
    edges |= {len(answered) - len(answered[edge:].lstrip()) for edge in edges}
    fitting = [
        edge
        for edge in edges
        if followed.startswith(answered[:edge]) and asked.endswith(answered[edge:])
    ]
    # A question is followed by something else than a reply is. But the two turns may open with the
    # same token, so the tokenizer's own stop decides, or else the token that opens the first turn.
    eos = template.variables.get("eos_token") or ""
    at_stop = [edge for edge in fitting if eos and answered[:edge].endswith(eos)]
    cut = max(at_stop or fitting, default=len(answered))
    opener = specials.search(asked.removeprefix(template.variables.get("bos_token") or ""))
    if opener and not at_stop and answered[behind:cut].endswith(opener[0]):
        cut = cut - len(opener[0]) if cut - len(opener[0]) in fitting else cut
    if eos and answered[cut:].startswith(eos) and not specials.search(answered, behind, cut):
        return ""  # it is how the last reply ends, and nothing else ends it
    return answered[cut:]


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
