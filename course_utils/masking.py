"""Which tokens are graded: from rendered spans to labels, and the same for any real tokenizer.

A label is the token's own id where the model is graded, and `IGNORE_INDEX` where it is not. Labels
stand *at* the token that they name; the shift by one happens inside the loss, where position i's
logits are compared with label i + 1.

The rule of this module: a mask is right or it is refused. Whatever cannot be located exactly raises
`MaskError`, with the turn and the text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from course_utils.conversation import Conversation, Message
from course_utils.templates import Rendered, Span, TemplateError, render
from course_utils.tokenizers import (
    Encoded,
    TokenizerError,
    WordTokenizer,
    encode,
    guard,
    special_pattern,
    special_tokens,
    unguard,
)

# What torch's cross_entropy ignores by default.
IGNORE_INDEX = -100


class MaskError(ValueError):
    """No mask that is certainly right can be made; names the turn and says what to do."""


# --- what is graded ------------------------------------------------------------------------------

# Each mode: span, index of the last assistant turn -> is this span graded?
MASK_MODES: dict[str, Callable[[Span, int | None], bool]] = {
    "everything": lambda span, last: True,
    "assistant_content": lambda span, last: span.generated and span.kind != "eot",
    "assistant": lambda span, last: span.generated,
    "assistant_and_header": lambda span, last: span.role == "assistant" and span.kind != "gap",
    "last_turn": lambda span, last: span.generated and span.turn == last,
    "inverted": lambda span, last: not span.generated,
}


def graded_spans(rendered: Rendered, mode: str = "assistant") -> list[bool]:
    """For each span of `rendered`: is it graded in this mode?"""
    if mode not in MASK_MODES:
        raise MaskError(f"unknown mask mode {mode!r}: choose from {', '.join(MASK_MODES)}.")
    replies = [span.turn for span in rendered.spans if span.generated]
    last = replies[-1] if replies else None
    return [MASK_MODES[mode](span, last) for span in rendered.spans]


def character_mask(rendered: Rendered, mode: str = "assistant") -> list[bool]:
    """For each character of `rendered.text`: is it graded? Same length as the text."""
    mask = []
    for span, graded in zip(rendered.spans, graded_spans(rendered, mode), strict=True):
        mask += [graded] * len(span.text)
    return mask


def token_labels(encoded: Encoded, mask: list[bool]) -> list[int]:
    """Labels of the tokens: the id where every character that the token covers is graded.

    Raises `MaskError` for a token that lies half inside a graded span: the tokenizer merged text
    across the boundary, and either answer would be wrong.
    """
    labels = []
    for token, (number, (start, end)) in enumerate(zip(encoded.ids, encoded.offsets, strict=True)):
        # A token that covers no character stands with its neighbours.
        inside = mask[start:end] or mask[max(start - 1, 0) : start + 1]
        if any(inside) and not all(inside):
            raise MaskError(
                f"token {token} covers characters {start} to {end}, of which only some are graded: "
                "the tokenizer merged text across the edge of the graded span. Write a special "
                "token or a line break at that edge in the template."
            )
        labels.append(number if inside and all(inside) else IGNORE_INDEX)
    return labels


# --- samples -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradedSpan:
    """Tokens start to end (half-open) are graded; `message` is the index of the turn they are from.

    `message` is None for text outside the assistant's turns, which only the modes "everything" and
    "inverted" grade.
    """

    start: int
    end: int
    message: int | None


@dataclass(frozen=True)
class Sample:
    """What the model is trained on.

    input_ids: the rendered conversation, shape (T,)
    labels:    shape (T,), `IGNORE_INDEX` where nothing is graded; not shifted
    graded:    where the graded tokens come from
    cuts:      token counts at which the sample may be cut: the ends of the assistant's turns
    id:        the conversation's id
    """

    input_ids: list[int]
    labels: list[int]
    graded: tuple[GradedSpan, ...]
    cuts: tuple[int, ...]
    id: str | None = None

    def __len__(self):
        return len(self.input_ids)

    @property
    def graded_tokens(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


def training_samples(
    conversation: Conversation,
    tokenizer,
    *,
    mode: str = "assistant",
    max_length: int | None = None,
) -> list[Sample]:
    """The samples to train on for one conversation: `input_ids`, `labels`, and where each is from.

    `tokenizer` is a transformers tokenizer with a chat template, or the walkthrough's
    `WordTokenizer`. With `max_length` (tokens) a sample that is too long is cut after the last
    assistant turn that still fits, never inside a turn. In the mode "last_turn" only the last reply
    has to be located, which works with templates that render earlier replies in another way.

    Raises `MaskError` if the template rewrites what came before (so that a mask would be wrong), if
    the tokenizer has no template, or if nothing is left to grade.
    """
    name = f"conversation {conversation.id!r}: " if conversation.id is not None else ""
    try:
        if isinstance(tokenizer, WordTokenizer):
            spans = render(conversation, tokenizer.family, lossy=True).spans
            specials = tuple({span.text for span in spans if span.special})
            rendered = render(_guarded(conversation, specials), tokenizer.family, lossy=True)
            encoded = tokenizer.encode(rendered.text, specials)
        else:
            rendered = spans_by_rerendering(conversation, tokenizer, only_last=mode == "last_turn")
            encoded = encode(tokenizer, rendered.text)
            _check_prompts(rendered, encoded, tokenizer)
        labels = token_labels(encoded, character_mask(rendered, mode))
        sample = Sample(
            encoded.ids,
            labels,
            _graded_runs(rendered, encoded, labels),
            _cuts(rendered, encoded),
            conversation.id,
        )
        if max_length is not None:
            sample = truncate(sample, max_length)
        if not sample.graded_tokens:
            raise MaskError(
                f"nothing is left to grade (mode {mode!r}, roles {conversation.roles}). Such a row "
                "would give a loss of 0/0; leave it out."
            )
    except (MaskError, TemplateError, TokenizerError) as error:
        raise MaskError(f"{name}{error}") from None
    return [sample]


def truncate(sample: Sample, max_length: int) -> Sample:
    """Cut a sample after the last assistant turn that ends within `max_length` tokens.

    A cut inside a turn would teach that some replies stop in the middle of a word, so the partial
    turn is dropped whole. Raises `MaskError` if not even the first assistant turn fits.
    """
    if max_length < 1:
        raise MaskError(f"max_length is {max_length}: give a number of tokens, 1 or more.")
    if len(sample) <= max_length:
        return sample
    fitting = [cut for cut in sample.cuts if cut <= max_length]
    if not fitting:
        raise MaskError(
            f"no assistant turn ends within {max_length} tokens (the sample has {len(sample)}). "
            "Allow more tokens or leave the conversation out."
        )
    cut = fitting[-1]
    return Sample(
        sample.input_ids[:cut],
        sample.labels[:cut],
        tuple(span for span in sample.graded if span.end <= cut),
        tuple(fitting),
        sample.id,
    )


def _owners(rendered: Rendered) -> list[Span]:
    """For each character of the text, the span it belongs to."""
    return [span for span in rendered.spans for _ in span.text]


def _graded_runs(rendered: Rendered, encoded: Encoded, labels: list[int]) -> tuple[GradedSpan, ...]:
    owners = [span.turn if span.role == "assistant" else None for span in _owners(rendered)]
    graded = [
        (position, owners[min(start, len(owners) - 1)])
        for position, ((start, _), label) in enumerate(zip(encoded.offsets, labels, strict=True))
        if label != IGNORE_INDEX
    ]
    runs = []
    # Neighbours of the same turn share position - rank, so they form one run.
    for _, run in groupby(enumerate(graded), key=lambda item: (item[1][1], item[1][0] - item[0])):
        members = [token for _, token in run]
        runs.append(GradedSpan(members[0][0], members[-1][0] + 1, members[0][1]))
    return tuple(runs)


def _cuts(rendered: Rendered, encoded: Encoded) -> tuple[int, ...]:
    """Token counts at the end of each assistant turn, its gap included."""
    ends, position = {}, 0
    for span in rendered.spans:
        position += len(span.text)
        if span.role == "assistant":
            ends[span.turn] = position
    return tuple(sum(start < end for start, _ in encoded.offsets) for end in ends.values())


# --- the assistant's spans in any chat template ---------------------------------------------------


def render_template(tokenizer, messages: list[dict], *, add_generation_prompt: bool = False) -> str:
    """`tokenizer.apply_chat_template` as text; raises `MaskError` where there is no template."""
    if not getattr(tokenizer, "chat_template", None):
        raise MaskError(
            "the tokenizer has no chat template. A base model's usually has none: set one with "
            "tokenizer.chat_template = course_utils.templates.chat_template('chatml') or another "
            "family whose special tokens this tokenizer has."
        )
    from jinja2.exceptions import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except JinjaError as error:
        raise MaskError(
            f"the chat template refuses the roles {[m['role'] for m in messages]}: {error}"
        ) from None


def spans_by_rerendering(
    conversation: Conversation, tokenizer, *, only_last: bool = False
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
    messages = _guarded(conversation, specials).as_messages()
    uninvited = _uninvited_prompt(tokenizer, specials)
    whole = render_template(tokenizer, messages).removesuffix(uninvited)
    replies = [turn for turn, role in enumerate(conversation.roles) if role == "assistant"]
    spans, position = [], 0
    for turn in replies[-1:] if only_last else replies:
        before = render_template(tokenizer, messages[:turn]).removesuffix(uninvited)
        prompt = render_template(tokenizer, messages[:turn], add_generation_prompt=True)
        until = render_template(tokenizer, messages[: turn + 1]).removesuffix(uninvited)
        for shorter, longer, what in (
            (before, prompt, "adding the generation prompt"),
            (prompt, until, "adding the reply"),
            (until, whole, "adding later turns"),
        ):
            if not longer.startswith(shorter):
                raise MaskError(_rewritten(turn, shorter, longer, what))
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
    _check_steering(conversation, tokenizer, messages, specials)
    return Rendered(tuple(span for span in spans if span.text), "chat template")


def _guarded(conversation: Conversation, specials: tuple[str, ...]) -> Conversation:
    return Conversation(tuple(Message(m.role, guard(m.content, specials)) for m in conversation))


def _end_of_turn(
    until: str, start: int, content: str, specials: tuple[str, ...], turn: int
) -> tuple[int, int]:
    """Where the end of turn of the reply that begins at `start` begins and ends.

    It is the first special token behind the content. Behind it only white space may come: anything
    else would be text that the model is to write after it stopped. In a template without such a
    token it is all that the template writes behind the content.
    """
    found = until.find(content.strip(), start)
    if found < 0:
        raise MaskError(
            f"turn {turn}: the template does not write the content as it is, so it cannot be "
            f"located: {_shown(content)} is not in {_shown(until[start:])}. "
            "Write the content as the template renders it, or change the template."
        )
    behind = found + len(content.strip())
    if not (token := special_pattern(specials).search(until, behind)):
        return behind, len(until)
    if until[token.end() :].strip():
        raise MaskError(
            f"turn {turn}: after the end of turn the template writes "
            f"{_shown(until[token.end() :])}; it is unclear whether the model is to write that. "
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
                f"{message['role']} turn, {_shown(content)}. Put the text where the template "
                "renders it (a system text into the first user turn, say), or change the template."
            )
        position = found + len(content)


def _check_steering(
    conversation: Conversation, tokenizer, guarded: list[dict], specials: tuple[str, ...]
) -> None:
    """What a content says must change neither the rest of the text nor its special tokens."""
    rendered = render_template(tokenizer, guarded)
    harmless = [
        {"role": m["role"], "content": "x" if m["content"].strip() else m["content"]}
        for m in guarded
    ]
    pattern = special_pattern(specials)
    if unguard(rendered) != render_template(tokenizer, conversation.as_messages()) or (
        pattern.findall(rendered) != pattern.findall(render_template(tokenizer, harmless))
    ):
        raise MaskError(
            "the template writes other special tokens, or other text, when a content looks like "
            "one, so text typed by a user could steer it. Remove such text from the contents, or "
            "change the template."
        )


def _uninvited_prompt(tokenizer, specials: tuple[str, ...]) -> str:
    """The generation prompt, if the template writes it even when nobody asked for it, else "".

    The first template of Llama 3 does: it opens an assistant turn behind every conversation, a
    finished one too. In a training sample that would be a header with nothing after it.
    """
    question, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        asked = render_template(tokenizer, [question], add_generation_prompt=True)
        if asked != render_template(tokenizer, [question]):
            return ""
        answered = render_template(tokenizer, [question, reply])
        followed = render_template(tokenizer, [question, reply, question])
    except MaskError:
        return ""
    if not answered.startswith(asked) or followed.startswith(answered):
        return ""  # What stands at the end stays there, so it belongs to the turn.
    behind = answered.index("a", len(asked)) + 1
    stop = special_pattern(specials).search(answered, behind)
    rest = answered[stop.end() if stop else behind :].lstrip()
    return rest if asked.endswith(rest) else ""


def _rewritten(turn: int, shorter: str, longer: str, what: str) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b),
        min(len(shorter), len(longer)),
    )
    return (
        f"turn {turn}: {what} changes what stood before it, at character {same}: "
        f"{unguard(shorter[same : same + 30])!r} became {unguard(longer[same : same + 30])!r}. "
        "A mask made from prefixes would be wrong, so there is none. Make each reply a sample of "
        f"its own, as in training_samples(conversation.prefix({turn + 1}), tokenizer, "
        "mode='last_turn'), or change the template."
    )


def _shown(text: str, width: int = 60) -> str:
    return repr(unguard(text.strip())[:width])


def _check_prompts(rendered: Rendered, encoded: Encoded, tokenizer) -> None:
    """The ids before each reply must be the ids of the prompt alone: what a server would send."""
    position = 0
    for span in rendered.spans:
        if span.kind == "content" and span.generated:
            prompt = encode(tokenizer, rendered.text[:position]).ids
            if encoded.ids[: len(prompt)] != prompt:
                raise MaskError(
                    f"turn {span.turn}: the reply's first characters {span.text[:15]!r} merge with "
                    "the prompt into one token, so the model would be trained on ids that no "
                    "server sends. End the template's generation prompt with a special token."
                )
        position += len(span.text)
