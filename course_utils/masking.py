"""Which tokens are graded: from rendered spans to labels, and the same for any real tokenizer.

A label is the token's own id where the model is graded, and `IGNORE_INDEX` where it is not. Labels
stand *at* the token that they name; the shift by one happens inside the loss, where position i's
logits are compared with label i + 1.

The rule of this module: a mask is right or it is refused. Whatever cannot be located exactly raises
`MaskError`, with the turn and the text.

How the places are found in a template that nobody has read: `watching` runs it on watched texts,
`reading` finds the replies in what it wrote, `layouts` makes that a plan for all conversations of
one shape (`shapes`, `plans`) and compares the text of every conversation with what the template
writes for it. All this happens in a process that templates cannot leave (`confinement`). `assembly`
and `encoding` turn a filled plan into ids. `rerendering` is the plain way, for templates that
cannot be followed, and the reference in tests.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice

from course_utils.assembly import Assembly, Run
from course_utils.confinement import as_plain_data, confined, render_template  # noqa: F401
from course_utils.conversation import Conversation
from course_utils.encoding import encoder_of
from course_utils.plans import Layout, fill
from course_utils.rendering import RESERVED, MaskError, said_by
from course_utils.rerendering import guarded, rendered_spans
from course_utils.shapes import shape
from course_utils.templates import Rendered, Span, TemplateError, render
from course_utils.tokenizers import Encoded, TokenizerError, WordTokenizer, encode

# What torch's cross_entropy ignores by default.
IGNORE_INDEX = -100


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
    weights:   shape (T,), how much each label counts in the loss; None: all the same
    dropped_replies, dropped_tokens: what was cut off to keep to a length
    unstopped: graded replies after which the template writes nothing that would end them
    """

    input_ids: list[int]
    labels: list[int]
    graded: tuple[GradedSpan, ...]
    cuts: tuple[int, ...]
    id: str | None = None
    weights: list[float] | None = None
    dropped_replies: int = 0
    dropped_tokens: int = 0
    unstopped: int = 0

    def __len__(self):
        return len(self.input_ids)

    @property
    def graded_tokens(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class Options:
    """How masks are made; see `training_samples`."""

    mode: str = "assistant"
    max_length: int | None = None
    reasoning: str = "grade"
    fast: bool = True
    template_options: tuple = ()

    def __post_init__(self):
        if self.mode not in MASK_MODES:
            raise MaskError(
                f"unknown mask mode {self.mode!r}: choose from {', '.join(MASK_MODES)}."
            )
        if self.reasoning not in ("grade", "mask"):
            raise MaskError(f"reasoning is {self.reasoning!r}: choose from grade, mask.")
        if self.max_length is not None and self.max_length < 1:
            raise MaskError(f"max_length is {self.max_length}: give a number of tokens, 1 or more.")
        if taken := {name for name, _ in self.template_options} & RESERVED:
            raise MaskError(
                f"{', '.join(sorted(taken))}: not an option of a template but what it is called "
                "with. Leave it out; tokenizer.chat_template sets the template."
            )


def training_samples(
    conversation: Conversation,
    tokenizer,
    *,
    mode: str = "assistant",
    max_length: int | None = None,
    reasoning: str = "grade",
    **template_options,
) -> list[Sample]:
    """The samples to train on for one conversation: `input_ids`, `labels`, and where each is from.

    `tokenizer` is a transformers tokenizer with a chat template, or the walkthrough's
    `WordTokenizer`. `template_options` go to the template: `enable_thinking=False`, say.

    Usually that is one sample. Where the template rewrites earlier turns (it drops old reasoning,
    or treats the last turn in another way), no single text holds the prompts that a server would
    send, so there is one sample for each reply: its prompt as it is served, then the reply.

    With `max_length` (tokens) a sample that is too long is cut after the last assistant turn that
    still fits, never inside a turn. `reasoning="mask"` grades what comes after the reasoning only.
    Replies with `train=False` and tool outputs are never graded in the modes that grade replies.

    A conversation's own `template_options` come before these.

    Raises `MaskError`, naming the conversation, if no mask would certainly be right, if the
    tokenizer has no template, or if nothing is left to grade.
    """
    options = Options(mode, max_length, reasoning, True, tuple(template_options.items()))
    ((_, outcome),) = samples_of([conversation], tokenizer, options)
    if isinstance(outcome, MaskError):
        raise outcome from None
    return outcome


def samples_of(
    conversations: Iterable[Conversation], tokenizer, options: Options, *, together: int = 512
) -> Iterator[tuple[Conversation, list[Sample] | MaskError]]:
    """Each conversation with its samples, or with the error that says why there are none.

    `together` conversations at a time are encoded in one call.
    """
    if isinstance(tokenizer, WordTokenizer):
        make = _WordMaker(tokenizer, options)
    else:
        make = _Maker(tokenizer, options)
    chats = iter(conversations)
    chunks = iter(lambda: list(islice(chats, together)), [])
    for chunk, drafts in _working_ahead(make.drafts, chunks):
        with _collector_paused():
            outcomes = _outcomes(chunk, drafts, make, options)
        yield from zip(chunk, outcomes, strict=True)


def _working_ahead(function: Callable, items: Iterable) -> Iterator[tuple]:
    """(item, function(item)) for each item; the next one is worked on while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 1:
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()


def _outcomes(
    chunk: list[Conversation], drafts: list, make, options: Options
) -> list[list[Sample] | MaskError]:
    ready = [draft for draft in drafts if isinstance(draft, Draft)]
    encoded = _refusing(None, make.encode, ready) if ready else []
    if isinstance(encoded, MaskError):  # one of them is to blame
        encoded = [_refusing(None, make.encode, [draft]) for draft in ready]
        encoded = [found if isinstance(found, MaskError) else found[0] for found in encoded]
    encoded, outcomes = iter(encoded), []
    for chat, draft in zip(chunk, drafts, strict=True):
        if isinstance(draft, Draft):
            draft = _refusing(chat, draft.samples, chat, next(encoded))
        if isinstance(draft, list):
            draft = _refusing(chat, _finished, chat, draft, options)
        outcomes.append(draft)
    return outcomes


@contextmanager
def _collector_paused():
    """All that is made here lives on, so looking for garbage in between only takes time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _refusing(chat: Conversation | None, make, *arguments):
    """What `make(*arguments)` gives, or a `MaskError` that names the conversation."""
    try:
        return make(*arguments)
    except (MaskError, TemplateError, TokenizerError) as error:
        said = str(error)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # one bad conversation must not end a data set
        said = f"this conversation cannot be masked ({type(error).__name__}: {said_by(error)})."
    named = chat is not None and chat.id is not None
    refusal = MaskError(f"conversation {chat.id!r}: {said}" if named else said)
    refusal.__suppress_context__ = True
    return refusal


@dataclass(frozen=True)
class Draft:
    """A conversation laid out, of which the texts have yet to be encoded."""

    assemblies: list[Assembly]
    values: dict[int, str]
    unstopped: list[int]  # for each assembly

    def texts(self) -> list[str]:
        return [text for assembly in self.assemblies for text in assembly.texts(self.values)]

    def samples(self, chat: Conversation, encoded: list[list[int]]) -> list[Sample]:
        """The samples, from the ids of `texts`, or from the error that says why there are none."""
        if isinstance(encoded, MaskError):
            raise encoded
        encoded, samples = iter(encoded), []
        for assembly, unstopped in zip(self.assemblies, self.unstopped, strict=True):
            ids, edges = assembly.finish(self.values, encoded)
            labels = [IGNORE_INDEX] * len(ids)
            graded = []
            for number, run in enumerate(assembly.runs):
                start, end = edges[2 * number], edges[2 * number + 1]
                if start < end:
                    labels[start:end] = ids[start:end]
                    graded.append(GradedSpan(start, end, run.message))
            cuts = tuple([edges[cut] for cut in assembly.cuts])
            samples.append(Sample(ids, labels, tuple(graded), cuts, chat.id, unstopped=unstopped))
        return samples


class _Maker:
    """Drafts and ids for one tokenizer."""

    def __init__(self, tokenizer, options: Options):
        self.tokenizer, self.options = tokenizer, options
        self.template = self.encoder = None

    def prepare(self) -> None:
        self.template = confined(self.tokenizer)
        self.encoder = encoder_of(self.tokenizer, fast=self.options.fast)

    def drafts(self, chunk: list[Conversation]) -> list[Draft | list[Sample] | MaskError]:
        """Each conversation laid out, or its samples if the template cannot be followed."""
        options = self.options
        if self.encoder is None and isinstance(_refusing(None, self.prepare), MaskError):
            return [_refusing(chat, self.prepare) for chat in chunk]
        own = options.mode, options.reasoning == "mask", self.encoder.piecewise
        requests = []
        for chat in chunk:
            merged = dict(options.template_options) | chat.template_options
            requests.append(("plan", as_plain_data(chat), merged, *own))
        answers = self.template.ask(requests)
        return [
            _refusing(chat, self._draft, chat, answer)
            for chat, answer in zip(chunk, answers, strict=True)
        ]

    def _draft(self, chat: Conversation, answer: dict) -> Draft | list[Sample]:
        options = self.options
        if "refused" in answer:
            raise MaskError(answer["refused"])
        if "samples" in answer:
            return [self._rerendered(chat, spans) for spans in answer["samples"]]
        plan = answer["plan"]
        _, texts, _ = shape(chat)
        values = dict(enumerate(map(str.__str__, texts))) | answer["values"]
        if options.max_length is not None:
            _check_room(plan.layouts, values, options.max_length, self.encoder.longest)
        key = (options.mode, options.reasoning, id(self.encoder))
        if key not in plan.compiled:
            plan.compiled[key] = [
                Assembly(layout, graded_runs(layout, *key[:2]), self.encoder)
                for layout in plan.layouts
            ]
        unstopped = [layout.unstopped for layout in plan.layouts]
        return Draft(plan.compiled[key], values, unstopped)

    def _rerendered(self, chat: Conversation, spans: list) -> Sample:
        """A sample from the spans of a text that was found by rendering prefixes."""
        rendered = Rendered(tuple(Span(*span) for span in spans), "chat template")
        encoded = encode(self.tokenizer, rendered.text)
        _check_prompts(rendered, encoded, self.tokenizer)
        return _from_spans(rendered, encoded, self.options.mode, chat)

    def encode(self, drafts: list[Draft]) -> list[list[list[int]]]:
        """The ids of each draft's pieces."""
        if self.encoder.fast is not None:
            return [self.encoder.encode_many(draft.texts()) for draft in drafts]
        wholes = [a.whole(draft.values) for draft in drafts for a in draft.assemblies]
        found = iter(self.encoder.encode_whole(wholes))
        encoded = []
        for draft in drafts:
            pieces = [assembly.pieces_of(next(found)) for assembly in draft.assemblies]
            if None in pieces:  # a text that looks like a special token
                encoded.append(self.encoder.encode_many(draft.texts()))
            else:
                encoded.append([ids for its in pieces for ids in its])
        return encoded


class _WordMaker:
    """Samples of the walkthrough's words."""

    def __init__(self, tokenizer: WordTokenizer, options: Options):
        self.tokenizer, self.options = tokenizer, options

    def drafts(self, chunk: list[Conversation]) -> list[list[Sample] | MaskError]:
        return [_refusing(chat, self._samples, chat) for chat in chunk]

    def _samples(self, chat: Conversation) -> list[Sample]:
        return [_words(chat, self.tokenizer, self.options.mode)]

    def encode(self, drafts: list[Draft]) -> list:
        return []


def graded_runs(layout: Layout, mode: str, reasoning: str) -> list[Run]:
    """What is graded of a layout: `MASK_MODES` for texts whose replies are known, not all spans."""
    replies = []
    for turn in layout.turns[-1:] if mode == "last_turn" else layout.turns:
        start = turn.head if mode == "assistant_and_header" else turn.start
        start = turn.answer if reasoning == "mask" else start
        end = turn.stop if mode == "assistant_content" else turn.end
        replies.append(Run(start, end, turn.message))
    if mode not in ("everything", "inverted"):
        return replies
    if mode == "everything":
        replies = [Run(turn.start, turn.after, turn.message) for turn in layout.turns]
    edges = [0, *(place for run in replies for place in (run.start, run.end)), len(layout.marked)]
    others = [Run(a, b, None) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    return sorted(others + (replies if mode == "everything" else []), key=lambda run: run.start)


def _finished(chat: Conversation, samples: list[Sample], options: Options) -> list[Sample]:
    """Weighted and cut to length; a reply that does not fit at all is left out and counted."""
    finished, dropped, error = [], [0, 0], None
    for sample in samples:
        sample = _weighted(sample, chat)
        try:
            if options.max_length is not None:
                sample = truncate(sample, options.max_length)
            if not sample.graded:
                raise MaskError(
                    f"nothing is left to grade (mode {options.mode!r}, roles {chat.roles}). Such a "
                    "row would give a loss of 0/0; leave it out."
                )
            finished.append(sample)
        except MaskError as refusal:
            error = error or refusal
            dropped = [dropped[0] + len(sample.graded), dropped[1] + len(sample)]
    if not finished:
        raise error
    if dropped[0]:
        first = finished[0]
        finished[0] = replace(
            first,
            dropped_replies=first.dropped_replies + dropped[0],
            dropped_tokens=first.dropped_tokens + dropped[1],
        )
    return finished


def _weighted(sample: Sample, chat: Conversation) -> Sample:
    if all(message.weight == 1 for message in chat):
        return sample
    weights = [1.0] * len(sample)
    for run in sample.graded:
        if run.message is not None:
            weights[run.start : run.end] = [chat[run.message].weight] * (run.end - run.start)
    return replace(sample, weights=weights)


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
    kept = tuple(span for span in sample.graded if span.end <= cut)
    return replace(
        sample,
        input_ids=sample.input_ids[:cut],
        labels=sample.labels[:cut],
        graded=kept,
        cuts=tuple(fitting),
        weights=sample.weights and sample.weights[:cut],
        dropped_replies=sample.dropped_replies + len(sample.graded) - len(kept),
        dropped_tokens=sample.dropped_tokens + len(sample) - cut,
    )


def _check_room(
    layouts: list[Layout], values: dict[int, str], max_length: int, longest: float
) -> None:
    """Refuse a text of which no reply can end within `max_length` tokens, before encoding it.

    longest: the most characters of one token
    """
    ends = [len(fill(layout.marked[: layout.turns[0].end], values)) for layout in layouts]
    if min(ends) > max_length * longest:
        raise MaskError(
            f"no assistant turn ends within {max_length} tokens (the first ends after "
            f"{min(ends):,} characters). Allow more tokens or leave the conversation out."
        )


# --- the walkthrough's words, and templates that cannot be followed -------------------------------


def _words(chat: Conversation, tokenizer: WordTokenizer, mode: str) -> Sample:
    spans = render(chat, tokenizer.family, lossy=True).spans
    specials = tuple({span.text for span in spans if span.special})
    rendered = render(guarded(chat, specials), tokenizer.family, lossy=True)
    return _from_spans(rendered, tokenizer.encode(rendered.text, specials), mode, chat)


def spans_by_rerendering(
    conversation: Conversation, tokenizer, *, only_last: bool = False, options: dict | None = None
) -> Rendered:
    """`rerendering.rendered_spans` of a tokenizer's chat template."""
    return rendered_spans(conversation, confined(tokenizer), only_last=only_last, options=options)


def _from_spans(rendered: Rendered, encoded: Encoded, mode: str, chat: Conversation) -> Sample:
    labels = token_labels(encoded, character_mask(rendered, mode))
    graded = _graded_runs(rendered, encoded, labels)
    kept = tuple(run for run in graded if run.message is None or chat[run.message].train)
    for run in set(graded) - set(kept):
        labels[run.start : run.end] = [IGNORE_INDEX] * (run.end - run.start)
    replies = {span.turn for span in rendered.spans if span.generated}
    ended = {span.turn for span in rendered.spans if span.kind == "eot" and span.text}
    cuts = _cuts(rendered, encoded)
    return Sample(encoded.ids, labels, kept, cuts, chat.id, unstopped=len(replies - ended))


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
                    "server sends. Strip the reply, or end the template's generation prompt with "
                    "a special token."
                )
        position += len(span.text)
