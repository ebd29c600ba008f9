"""The converters, one for each source. Every docstring shows a record and cites its documentation.

A converter takes a decoded record and yields `Draft`s, or `Rejected` for a part of a record; it
raises `Rejected` where the whole record cannot be converted.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from course_utils.conversation import Conversation
from course_utils.sources.calls import calls_in, one_call
from course_utils.sources.draft import Draft
from course_utils.sources.fields import (
    Options,
    Rejected,
    decode_at,
    is_empty,
    messages_in,
    optional,
    require,
    role_of,
    shown,
)

# Role names are the source's own. "SYSTEM" means the assistant in some dialogue corpora, and
# "function" means a call in one project and its result in another: so no table is shared, no case
# is folded, and a name that is not here is rejected until --role says what it means.
OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "function": None,
}
MESSAGES_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "ipython": "tool",
}
BLOCKS_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TREE_ROLES = {"prompter": "user", "assistant": "assistant"}
CODE_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "computer": "tool"}
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "redacted_thinking", "reasoning")
THOUGHT_FIELDS = ("thinking", "reasoning", "text")


def _opening(draft: Draft, record: Mapping) -> None:
    """The record's tools, and its system text as the first turn."""
    draft.define(record)
    if not is_empty(system := record.get("system")):
        parts = _parts(draft, system, "system")
        draft.turn("system", "".join(parts), "system", parts=parts)


def _parts(draft: Draft, content: object, place: str, about: dict | None = None) -> list[str]:
    """The texts of a content that is a string or a list of parts.

    Reasoning before them goes to `about`, which only an assistant's message has.
    """
    if isinstance(content, str):
        return [content]
    if content is None:
        raise Rejected("null content", place, "null is no text")
    if not isinstance(content, list):
        raise Rejected("wrong type", place, f"{type(content).__name__} is neither text nor parts")
    texts, thoughts = [], []
    for position, part in enumerate(content):
        here = f"{place}[{position}]"
        if _is_thought(part):
            thoughts.append(_thought(draft, part, here, opens=about is not None and not texts))
        else:
            texts.append(_text_part(draft, part, here))
    _think(about, thoughts, place)
    return texts


def _text_part(draft: Draft, part: object, place: str) -> str:
    if not isinstance(part, Mapping):
        raise Rejected("wrong type", place, f"{type(part).__name__} instead of a part with a type")
    kind = require(part, "type", str, place)
    if kind not in TEXT_PARTS:
        raise Rejected("part that is no text", place, f"a part of type {shown(kind)}")
    draft.rest_of_message(part, ("type", "text"), place)
    return require(part, "text", str, place)


def _is_thought(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in THOUGHT_PARTS


def _thought(draft: Draft, part: Mapping, place: str, *, opens: bool) -> str:
    """The text of a part of reasoning, which must open an assistant's turn."""
    texts = [name for name in THOUGHT_FIELDS if part.get(name) is not None]
    if not opens or len(texts) != 1:
        detail = "not one text in it" if opens else "it does not open an assistant's turn"
        raise Rejected("reasoning apart from the text", place, detail)
    draft.rest_of_message(part, ("type", "signature", *texts), place)
    if signature := optional(part, "signature", str, place):
        draft.note("message_fields", {"fields": {"signature": signature}})
    return require(part, texts[0], str, place)


def _think(about: dict | None, thoughts: list[str], place: str) -> None:
    """Put parts of reasoning, joined with nothing between, into a turn's `about`."""
    if thoughts:
        joined = "".join(thoughts)
        if about.get("reasoning") not in (None, joined):
            detail = "other parts than the message's own field"
            raise Rejected("reasoning apart from the text", place, detail)
        about["reasoning"] = joined


def _chat(
    draft: Draft,
    record: Mapping,
    key: str,
    roles: Mapping,
    *,
    role_key: str = "role",
    text_key: str = "content",
    graded: bool = True,
) -> None:
    """Every message of `record[key]`. What is not `graded` is so only if its message says so."""
    for place, message in messages_in(record, key):
        role = role_of(message, role_key, roles, draft.options, place)
        here = f"{place}.{text_key}"
        as_call, role = role == "call", "assistant" if role == "call" else role
        about, used = draft.beside(message, role, place)
        content = message.get(text_key)
        if as_call and "<tool_call>" not in (text := require(message, text_key, str, place)):
            about["calls"], content = [*about["calls"], *calls_in(text, here)], None
            if not about["calls"]:
                raise Rejected("empty text", here, "no call")
        texts = []
        if content is not None or not about.get("calls"):
            if text_key not in message:
                raise Rejected("missing field", here, f"only {shown(list(message))} are there")
            texts = _parts(draft, content, here, about if role == "assistant" else None)
        if role in ("system", "user") and "name" not in draft.options.keep:
            used.add("name")
            if name := optional(message, "name", str, place):
                draft.note("message_fields", {"fields": {"name": name}})
        draft.rest_of_message(message, {role_key, text_key, *used}, place)
        if role == "assistant" and not graded:
            about.setdefault("train", "weight" in about)
        draft.turn(role, "".join(texts), place, parts=texts, **about)


def openai(record: Mapping, options: Options) -> Iterator[Draft]:
    """OpenAI chat, with tool calls and tool messages.

        {"messages": [{"role": "user", "content": "Weather in Oslo?"},
                      {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1",
                       "type": "function", "function": {"name": "weather",
                                                        "arguments": "{\\"city\\": \\"Oslo\\"}"}}]},
                      {"role": "tool", "tool_call_id": "call_1", "content": "4 degrees"},
                      {"role": "assistant", "content": "It is 4 degrees."}],
         "tools": [...]}

    Arguments, a string of JSON, become an object. Content may be a list of text parts: they are
    joined with nothing between, as transformers' templates do, and their lengths go to the meta
    (`parts_of`); parts of reasoning become `reasoning_content`. `weight: 0` becomes `train: false`.
    Old data has `function_call`, `functions` and the role `function`.

    https://platform.openai.com/docs/api-reference/chat/create,
    https://platform.openai.com/docs/guides/supervised-fine-tuning and, for the same shape with
    arguments as an object, https://huggingface.co/docs/transformers/chat_templating
    """
    draft = Draft(options)
    _opening(draft, record)
    _chat(draft, record, "messages", OPENAI_ROLES)
    yield draft


def sharegpt(record: Mapping, options: Options) -> Iterator[Draft]:
    """ShareGPT: `from` and `value`.

        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
         "system": "Answer in one sentence.", "tools": "[...]"}

    A `function_call` turn holds a call, or a list of them, as JSON in its value; `observation`
    holds the result. The role name `function` is rejected: LLaMA-Factory's documentation uses it
    for the call, OpenAI's for the result. In Hermes' rows tools, calls and results are in tags in
    the texts; they leave them (`calls.py`).

    https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md ("Sharegpt Format"),
    https://docs.axolotl.ai/docs/dataset-formats/conversation.html and
    https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1
    """
    draft = Draft(options)
    _opening(draft, record)
    _chat(draft, record, "conversations", SHAREGPT_ROLES, role_key="from", text_key="value")
    yield draft


def alpaca(record: Mapping, options: Options) -> Iterator[Draft]:
    """Alpaca: an instruction, perhaps an input to it, and the output.

        {"instruction": "Translate into French.", "input": "Good morning.", "output": "Bonjour.",
         "system": "...", "history": [["first question", "first reply"]]}

    Instruction and input become one user turn with a blank line between; their lengths go to the
    meta. The sentences that Stanford's training code put around them ("Below is an instruction
    ...") were a template, not data, and are not added. `kto_tag: false` marks a bad reply.

    https://github.com/tatsu-lab/stanford_alpaca#data-release and, for `system` and `history`,
    https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md ("Alpaca Format")
    """
    draft = Draft(options)
    _opening(draft, {"system": record.get("system")})
    for position, pair in enumerate(optional(record, "history", list) or ()):
        place = f"history[{position}]"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Rejected("wrong type", place, "not a pair of question and reply")
        for side, role in enumerate(("user", "assistant")):
            if not isinstance(pair[side], str):
                kind = type(pair[side]).__name__
                reason = "null content" if pair[side] is None else "wrong type"
                raise Rejected(reason, f"{place}[{side}]", f"{kind} instead of str")
            draft.turn(role, pair[side], f"{place}[{side}]")
    _reply_is_good(record, "kto_tag")
    parts = [require(record, "instruction", str)]
    if text := optional(record, "input", str):
        parts.append(text)
    if not parts[0].strip():
        raise Rejected("empty text", "instruction", "no instruction")
    draft.turn("user", "\n\n".join(parts), "instruction", parts=parts, joint="\n\n")
    draft.turn("assistant", require(record, "output", str), "output")
    yield draft


def _reply_is_good(record: Mapping, key: str) -> None:
    if optional(record, key, bool) is None and record.get(key) is False:
        raise Rejected("reply marked as bad", key, "false: not a reply to learn from")


def prompt_completion(record: Mapping, options: Options) -> Iterator[Draft]:
    """Prompt and completion, each a text or a list of messages.

        {"prompt": "The sky is", "completion": " blue."}
        {"prompt": [{"role": "user", "content": "..."}],
         "completion": [{"role": "assistant", "content": "..."}], "tools": [...]}

    A prompt that is a text becomes the user's turn as it stands, white space included. Replies in
    a prompt are context: they get `train: false`. With `label: false` the completion is one that
    people refused.

    https://huggingface.co/docs/trl/dataset_formats ("Prompt-completion")
    """
    draft = Draft(options)
    _opening(draft, record)
    _reply_is_good(record, "label")
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(key), list):
            _chat(draft, record, key, MESSAGES_ROLES, graded=key == "completion")
        else:
            draft.turn(role, require(record, key, str), key)
    if isinstance(record["prompt"], list) != isinstance(record["completion"], list):
        raise Rejected("wrong type", "completion", "one is a text, the other a list of messages")
    yield draft


def messages(record: Mapping, options: Options) -> Iterator[Draft]:
    """Messages as in the Tülu mixtures and in UltraChat 200k.

        {"id": "...", "source": "...", "messages": [{"role": "user", "content": "Hi"},
                                                    {"role": "assistant", "content": "Hello"}]}

    UltraChat's `prompt` repeats the first turn; like every other field it goes to the meta. Calls,
    results and tools are read as in `openai`; the role names are those of more data sets.

    https://huggingface.co/datasets/allenai/tulu-3-sft-mixture and
    https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k
    """
    draft = Draft(options)
    _opening(draft, record)
    _chat(draft, record, "messages", MESSAGES_ROLES)
    yield draft


def content_blocks(record: Mapping, options: Options) -> Iterator[Draft]:
    """Content-block messages: each content is a text or a list of typed parts.

        {"system": "...", "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "4 degrees"}]},
            {"role": "assistant", "content": "It is 4 degrees."}]}

    A user message that holds tool results becomes tool turns: here a role is not the role's name
    alone. Texts of one message are joined with nothing between (lengths in the meta, `parts_of`).
    Thinking that opens a message becomes `reasoning_content`; elsewhere it is rejected, and so are
    images, documents and audio.

    https://docs.anthropic.com/en/api/messages and
    https://huggingface.co/docs/transformers/chat_content_patterns
    """
    draft = Draft(options)
    _opening(draft, record)
    for place, message in messages_in(record, "messages"):
        role = role_of(message, "role", BLOCKS_ROLES, options, place)
        if "content" not in message:
            raise Rejected("missing field", f"{place}.content", f"only {shown(list(message))}")
        about, used = draft.beside(message, role, place)
        draft.rest_of_message(message, ("role", "content", *used), place)
        content = message["content"]
        if not isinstance(content, list):
            here = f"{place}.content"
            content = [{"type": "text", "text": part} for part in _parts(draft, content, here)]
        _blocks(draft, role, content, place, about)
    yield draft


def _blocks(draft: Draft, role: str, blocks: list, place: str, about: dict) -> None:
    texts, thoughts, calls, results = [], [], about.pop("calls", []), 0
    if not blocks:
        raise Rejected("empty text", f"{place}.content", "no part in it")
    for position, block in enumerate(blocks):
        here = f"{place}.content[{position}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use" and role == "assistant":
            draft.rest_of_message(block, ("type", "id", "name", "input"), here)
            names = {"id": "id", "name": "name", "arguments": "input"}
            calls.append(one_call({to: block.get(key) for to, key in names.items()}, here))
        elif kind == "tool_result" and role in ("user", "tool"):
            if texts:
                draft.turn(role, "".join(texts), place, parts=texts, **about)
                texts = []
            _tool_result(draft, block, here)
            results += 1
        elif kind in ("tool_use", "tool_result"):
            raise Rejected("broken tool call", here, f"a {kind} of the {role}")
        elif _is_thought(block):
            opens = role == "assistant" and not texts and not calls
            thoughts.append(_thought(draft, block, here, opens=opens))
        elif calls:
            raise Rejected("text after a tool call", here, "calls stand at the end of a turn")
        else:
            texts.append(_text_part(draft, block, here))
    _think(about, thoughts, place)
    if texts or calls or not results:
        draft.turn(role, "".join(texts), place, calls=calls, parts=texts, **about)


def _tool_result(draft: Draft, block: Mapping, place: str) -> None:
    used = ("type", "tool_use_id", "content", "is_error")
    draft.rest_of_message(block, used, place)
    parts = [""]
    if block.get("content") is not None:
        parts = _parts(draft, block["content"], f"{place}.content")
    if optional(block, "is_error", bool, place):
        draft.note("message_fields", {"fields": {"is_error": True}})
    call = require(block, "tool_use_id", str, place)
    draft.turn("tool", "".join(parts), place, parts=parts, tool_call_id=call)


def oasst(record: Mapping, options: Options) -> Iterator[Draft | Rejected]:
    """Open-Assistant message trees: one conversation for every path from the root to a last reply.

        {"message_tree_id": "...", "tree_state": "...", "prompt": {"message_id": "...",
         "text": "Why?", "role": "prompter", "rank": null, "replies": [
            {"text": "Because.", "role": "assistant", "rank": 0, "replies": []},
            {"text": "So.", "role": "assistant", "rank": 1, "replies": []}]}}

    All paths are converted and none is chosen here, so that no text of a tree is lost; a path whose
    every reply is the best ranked among its siblings has `"best_ranked": true` in its meta, and
    choosing is left to the mixture (early turns stand in several paths). A prompter's message that
    nobody answered is rejected by itself, and its path ends at the reply before. Deleted messages,
    and those that reviewers refused, are rejected with all that hangs on them. A thread
    ({"thread_id", "thread": [messages]}) is one path; a table of single messages is rejected.
    Each message's other fields (id, language, labels, rank) go to the meta.

    https://github.com/LAION-AI/Open-Assistant/tree/main/oasst-data and
    https://huggingface.co/datasets/OpenAssistant/oasst1
    """
    if "thread" in record:
        path = [
            _node(node, place, options) + (node,) for place, node in messages_in(record, "thread")
        ]
        yield _path(path, options, best=None)
    else:
        root = require(record, "prompt", Mapping)
        yield from _branch(root, "prompt", [], options, [root], True)


def _node(node: object, place: str, options: Options) -> tuple[str, str, str]:
    if not isinstance(node, Mapping):
        raise Rejected("wrong type", place, f"{type(node).__name__} instead of a message")
    if node.get("deleted") or node.get("review_result") is False:
        raise Rejected("deleted or refused message", place, f"id {shown(node.get('message_id'))}")
    role = role_of(node, "role", TREE_ROLES, options, place)
    text = require(node, "text", str, place)
    if not isinstance(node.get("replies"), list | None):
        raise Rejected("wrong type", f"{place}.replies", "no list")
    Draft(options).turn(role, text, place)  # a text that cannot stand rejects its branch only
    return role, text, place


def _path(path: list[tuple], options: Options, best: bool | None) -> Draft:
    draft = Draft(options)
    for role, text, place, node in path:
        rest = {key: node[key] for key in node if key not in ("text", "role", "replies")}
        if rest:
            draft.note("message_fields", {"fields": rest})
        draft.turn(role, text, place)
    if best is not None:
        draft.meta["best_ranked"] = best
    return draft


def _branch(
    node: object, place: str, before: list[tuple], options: Options, siblings: list, best: bool
):
    """Yield what a message and all below it give; return whether a reply is among them."""
    try:
        path = [*before, (*_node(node, place, options), node)]
    except Rejected as error:
        under = _messages_under(node)
        detail = f"{error.detail}; {under} messages under it go with it" if under else error.detail
        yield Rejected(error.reason, error.place, detail)
        return False
    is_reply = path[-1][0] == "assistant"
    best = best and (not is_reply or _is_best(node, siblings))
    replies, answered = node.get("replies") or [], False
    for position, reply in enumerate(replies):
        here = f"{place}.replies[{position}]"
        answered |= yield from _branch(reply, here, path, options, replies, best)
    if is_reply:
        if not answered:
            yield _path(path, options, best)
        return True
    if not replies:
        yield Rejected("no reply at the end", place, "nobody answered this message")
    return answered


def _messages_under(node: object) -> int:
    replies = node.get("replies") if isinstance(node, Mapping) else None
    return sum(1 + _messages_under(r) for r in replies) if isinstance(replies, list) else 0


def _is_best(reply: object, siblings: list) -> bool:
    def rank(node):
        found = node.get("rank") if isinstance(node, Mapping) else None
        return found if isinstance(found, int) else float("inf")

    alone = len(siblings) == 1
    return alone or (rank(reply) < float("inf") and rank(reply) <= min(map(rank, siblings)))


CALCULATION = re.compile(r"<<([^<>\n]*)>>")
ANSWER_LINE = re.compile(r"^####[ \t]*(\S[^\n]*?)[ \t]*$", re.M)


def worked_math(record: Mapping, options: Options) -> Iterator[Draft]:
    """Worked mathematics as in GSM8K.

        {"question": "...", "answer": "He sold 48/2 = <<48/2=24>>24 clips.\\n#### 24"}

    The marks <<...>> were put in for a calculator that the authors ran while sampling, and are no
    prose: they leave the text and go to the meta, with the places where they stood
    (`with_calculations` puts them back). The last line, #### and the number, stays, and the number
    stands in the meta as `answer`. A solution without that line, or with half a mark, is rejected.
    Whether the sums are right is not this converter's question.

    https://github.com/openai/grade-school-math#calculation-annotations
    """
    draft = Draft(options)
    draft.turn("user", require(record, "question", str), "question")
    solution = require(record, "answer", str)
    finals = list(ANSWER_LINE.finditer(solution))
    if len(finals) != 1 or solution[finals[0].end() :].strip():
        detail = f"{len(finals)} lines '#### number' where one must be the last"
        raise Rejected("broken worked solution", "answer", detail)
    pieces, marks, length, start = [], [], 0, 0
    for mark in CALCULATION.finditer(solution):
        pieces.append(solution[start : mark.start()])
        length += len(pieces[-1])
        marks.append([length, mark[1]])
        start = mark.end()
    text = "".join(pieces) + solution[start:]
    if "<<" in text or ">>" in text:
        raise Rejected("broken worked solution", "answer", "half of a mark <<...>>")
    if marks:
        draft.meta["calculations"] = marks
    draft.meta["answer"] = finals[0][1]
    draft.turn("assistant", text, "answer")
    yield draft


def with_calculations(conversation: Conversation) -> str:
    """The worked solution with its marks where they stood."""
    text, pieces, start = conversation[-1].content, [], 0
    for position, calculation in conversation.meta.get("calculations", []):
        pieces += [text[start:position], f"<<{calculation}>>"]
        start = position
    return "".join(pieces) + text[start:]


def code_trace(record: Mapping, options: Options) -> Iterator[Draft]:
    """Code that is run: LMC messages, as Open Interpreter stores its sessions.

        {"messages": [
            {"role": "user", "type": "message", "content": "What is 2380*3875?"},
            {"role": "assistant", "type": "message", "content": "I calculate it."},
            {"role": "assistant", "type": "code", "format": "python", "content": "2380*3875"},
            {"role": "computer", "type": "console", "format": "output", "content": "9222500"},
            {"role": "assistant", "type": "message", "content": "It is 9222500."}]}

    Code becomes a call of `execute` with the arguments `language` and `code`, in the turn of the
    assistant's message before it if there is one. The console's output is a tool turn, one for each
    call. Images, files and line markers are rejected.

    https://docs.openinterpreter.com/protocols/lmc-messages
    """
    draft = Draft(options)
    text, calls, opened = None, [], ""

    def close():
        nonlocal text, calls
        if text is not None or calls:
            draft.turn("assistant", text or "", opened, calls=calls)
        text, calls = None, []

    for place, message in messages_in(record, "messages"):
        role = role_of(message, "role", CODE_ROLES, options, place)
        kind = require(message, "type", str, place)
        form = optional(message, "format", str, place)
        content = require(message, "content", str, place)
        draft.rest_of_message(message, ("role", "type", "format", "content"), place)
        if (role, kind) == ("assistant", "code"):
            if not content.strip():
                raise Rejected("empty text", f"{place}.content", "no code")
            language = require(message, "format", str, place)
            opened = opened if text is not None or calls else place
            calls.append({"name": "execute", "arguments": {"language": language, "code": content}})
            continue
        if (role, kind) == ("assistant", "message"):
            if calls:
                raise Rejected("text after a tool call", place, "the code before it has no output")
            close()
            text, opened = content, place
            continue
        if kind != ("console" if role == "tool" else "message") or form not in (None, "output"):
            raise Rejected("part that is no text", place, f"{role}: {kind}, format {form}")
        close()
        draft.turn(role, content, place)
    close()
    yield draft


def tool_trace(record: Mapping, options: Options) -> Iterator[Draft]:
    """Tool use as in xLAM's function-calling set: a query, the tools, and the calls that answer it.

        {"id": 0, "query": "Weather in Oslo?", "tools": "[{\\"name\\": \\"weather\\", ...}]",
         "answers": "[{\\"name\\": \\"weather\\", \\"arguments\\": {\\"city\\": \\"Oslo\\"}}]"}

    `tools` and `answers` are JSON in a string, or lists. The reply is calls only. xLAM gives a
    parameter's Python type, such as "str, optional": the definitions become JSON schema, and a type
    that has no name there stays as it is. Traces with results and more turns come as OpenAI chat,
    ShareGPT or content blocks.

    https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k
    """
    draft = Draft(options)
    _opening(draft, record)
    draft.turn("user", require(record, "query", str), "query")
    found = record.get("answers")
    if isinstance(found, str):
        record = {**record, "answers": decode_at(found, "answers", "broken tool call")}
    found = require(record, "answers", list)
    if not found:
        raise Rejected("empty text", "answers", "no call")
    draft.turn("assistant", "", "answers", calls=calls_in(found, "answers"))
    yield draft


@dataclass(frozen=True)
class Source:
    """A converter and the fields of a record that it uses; the others go to the meta."""

    convert: Callable[[Mapping, Options], Iterator[Draft | Rejected]]
    uses: frozenset[str]

    @property
    def about(self) -> str:
        return self.convert.__doc__.split("\n")[0]


SOURCES = {
    name: Source(convert, frozenset(uses.split()))
    for name, convert, uses in (
        ("openai", openai, "messages system tools functions"),
        ("sharegpt", sharegpt, "conversations system tools functions"),
        ("alpaca", alpaca, "instruction input output system history"),
        ("prompt-completion", prompt_completion, "prompt completion system tools functions"),
        ("messages", messages, "messages system tools functions"),
        ("content-blocks", content_blocks, "messages system tools functions"),
        ("oasst", oasst, "prompt thread"),
        ("worked-math", worked_math, "question answer"),
        ("code-trace", code_trace, "messages"),
        ("tool-trace", tool_trace, "query answers system tools functions"),
    )
}
