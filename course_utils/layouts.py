"""Where each reply stands in what a chat template writes, for any template, without knowing it.

A `Plan` is made once for conversations of the same shape (roles, fields present) that give the
template the same answers: the template runs on watched texts, and its output, with a mark in the
place of every text, is cut into what the model reads and what it writes. Every other conversation
of that shape fills the plan with its own texts; no template runs for it.

The prompt of a reply is what a server sends: the messages before it with the generation prompt. A
plan is made only if each reply's prompt is what the text begins with. Where the template rewrites
earlier turns no single text holds all prompts, so each reply gets a `Layout` of its own.
"""

import json
from dataclasses import dataclass

from course_utils.conversation import Conversation
from course_utils.rerendering import (
    MaskError,
    render_template,
    rewritten,
    shown,
    uninvited_prompt,
)
from course_utils.tokenizers import special_pattern, special_tokens
from course_utils.watching import FIRST_MARK, LAST_MARK, Record, Ref, Unwatchable, watched_template

# Up to this many replies every prompt is rendered to prove the plan. In longer conversations the
# middle ones are proven by standing between the same pieces of the template as proven ones.
PROVEN_FIRST, PROVEN_LAST = 16, 4
# So many conversations of each plan are also rendered by transformers and compared.
CHECKED = 3
# Plans kept for one shape; the template's answers tell them apart.
KEPT_PLANS = 8


@dataclass(frozen=True)
class Turn:
    """Positions of a reply in a layout's marked text.

    message: index of the message
    head:    where the header begins, if it was asked for
    start:   where the prompt ends and the model begins to write
    answer:  where what it writes is no longer reasoning
    stop:    where the end of turn begins
    end:     where the end of turn ends, and the model stops
    after:   where the turn ends for the template
    """

    message: int
    head: int | None
    start: int
    answer: int
    stop: int
    end: int
    after: int


@dataclass(frozen=True)
class Layout:
    """The first `messages` of a conversation with marks, and where its graded replies stand."""

    marked: str
    turns: tuple[Turn, ...]
    messages: int


class Plan:
    """The layouts of one shape, and the steps that turn a conversation's texts into values."""

    def __init__(self, record: Record, layouts: list[Layout], cut_texts: list, absent: list):
        self.layouts = layouts
        # What has to be looked at in every conversation, as (message, number of the text, ...):
        # texts that the template takes apart, with the pieces; texts that it does not write.
        self.cut_texts, self.absent = cut_texts, absent
        self.texts = len(record.texts)
        self.checked = 0
        self.compiled = {}  # filled by masking, one entry for each mode
        needed = {ord(c) - FIRST_MARK for layout in layouts for c in layout.marked if is_mark(c)}
        needed |= set(record.answers)
        needed |= {number for _, text, pieces in cut_texts for number in (text, *pieces)}
        for number in reversed(range(self.texts, len(record.values))):
            if number in needed:
                needed |= set(refs(record.steps[number - self.texts][1]))
        # Steps whose result nobody needs are left out; their places stay, so that numbers hold.
        self.steps = [
            (number, *compiled_step(*record.steps[number - self.texts]), record.answers.get(number))
            for number in range(self.texts, len(record.values))
            if number in needed
        ]
        self.answered = set(record.answers)
        self.size = len(record.values)

    def values(self, texts: list[str]) -> list | None:
        """The plan's values for these texts; None if the template would take another way."""
        values = [*texts, *[None] * (self.size - len(texts))]
        for number, function, first, rest, answer in self.steps:
            try:
                value = function(values) if first is None else function(values[first], *rest)
            except Exception:  # whatever it is, the template would have met it, too
                return None
            if number in self.answered and value != answer:
                return None
            values[number] = value
        return values


def is_mark(character: str) -> bool:
    return FIRST_MARK <= ord(character) <= LAST_MARK


def refs(frozen) -> list[int]:
    """The numbers of the values that a step's arguments refer to."""
    if isinstance(frozen, Ref):
        return [frozen.number]
    if isinstance(frozen, dict):
        frozen = [*frozen, *frozen.values()]
    return [n for item in frozen for n in refs(item)] if isinstance(frozen, tuple | list) else []


def compiled_step(function, frozen: tuple):
    """(function, number of the first argument, other arguments), or a function of all values."""
    from course_utils.watching import thaw

    if isinstance(frozen[0], Ref) and not refs(frozen[1:]):
        return function, frozen[0].number, tuple(frozen[1:])
    return (lambda values: function(*thaw(frozen, values))), None, ()


def fill(marked: str, values: list) -> str:
    """The marked text with a value in the place of each mark."""
    return "".join(values[ord(c) - FIRST_MARK] if is_mark(c) else c for c in marked)


# --- shapes --------------------------------------------------------------------------------------


def shape(conversation: Conversation) -> tuple[tuple, list[str], list[int]]:
    """What a template can see of a conversation besides its texts; the texts; whose they are."""
    key, texts, owners = [], [], []
    for place, message in enumerate(conversation.messages):
        structure = message.role
        if message.is_plain:
            texts.append(message.content)
        else:
            structure = repr(map_texts(message.as_message(), texts.append)), message.train
        owners += [place] * (len(texts) - len(owners))
        key.append(structure)
    return tuple(key), texts, owners


def map_texts(message: dict, change) -> dict:
    """The message with `change(text)` in the place of every text that somebody wrote."""
    mapped = {"role": message["role"]}
    for name, value in message.items():
        if name == "tool_calls":
            mapped[name] = [
                {
                    key: change(inner) if key == "id" else inner
                    for key, inner in call.items()
                    if key != "function"
                }
                | {"function": map_leaves(call["function"], change)}
                for call in value
            ]
        elif name != "role":
            mapped[name] = change(value)
    return mapped


def map_leaves(value, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [map_leaves(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_leaves(item, change) for key, item in value.items()}
    return value


def keys_in(value) -> list[str]:
    """The names of fields in nested objects, which a template may write, too."""
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in keys_in(item))]
    return [key for item in value for key in keys_in(item)] if isinstance(value, list) else []


# --- planning ------------------------------------------------------------------------------------


class Planner:
    """Plans for one tokenizer and its template. `options` go to the template."""

    def __init__(self, tokenizer, options: dict):
        self.tokenizer, self.options = tokenizer, options
        self.specials = special_pattern(special_tokens(tokenizer))
        self.plans: dict[tuple, list[Plan]] = {}
        self.uninvited = uninvited_prompt(tokenizer, special_tokens(tokenizer), options)
        try:
            self.template = watched_template(tokenizer.get_chat_template())
        except Unwatchable:
            self.template = None
        self.variables = {**tokenizer.special_tokens_map, **options}

    def plan(
        self, conversation: Conversation, *, only_last: bool = False, headers: bool = False
    ) -> tuple[Plan, list]:
        """The plan for a conversation, and its values.

        Raises `Unwatchable` where the template cannot be followed, and `MaskError` where it can
        and no mask would be right.
        """
        if self.template is None:
            raise Unwatchable("the template uses the private characters of the marks")
        key, texts, owners = shape(conversation)
        if conversation.tools:
            key = (*key, json.dumps(conversation.tools))
        plans = self.plans.setdefault((key, only_last, headers), [])
        for place, plan in enumerate(plans):
            if (values := plan.values(texts)) is not None:
                if place:
                    plans.insert(0, plans.pop(place))
                break
        else:
            plan = self.make(conversation, texts, owners, only_last, headers)
            plans.insert(0, plan)
            del plans[KEPT_PLANS:]
            values = plan.values(texts)
        if plan.checked < CHECKED:
            self.compare(conversation, plan, values)
        for message, text in plan.absent:
            if values[text].strip():
                raise MaskError(lost(message, conversation[message].role, values[text]))
        for message, text, pieces in plan.cut_texts:
            pieces = [values[piece] for piece in pieces]
            check_kept(message, conversation[message].role, values[text], pieces)
        return plan, values

    def make(self, conversation, texts, owners, only_last, headers) -> Plan:
        replies = [
            place
            for place, message in enumerate(conversation)
            if message.role == "assistant" and message.train
        ]
        replies = replies[-1:] if only_last else replies
        if replies[:1] == [0]:
            raise MaskError(
                "turn 0 is an assistant turn: no server would send an empty prompt before it. "
                'Drop it, or put a user turn before it, or give it "train": false.'
            )
        check_names(conversation, self.specials)
        record = Record(texts)
        run = Run(self, record, conversation)
        proven = replies
        if len(replies) > PROVEN_FIRST + PROVEN_LAST:
            proven = replies[:PROVEN_FIRST] + replies[-PROVEN_LAST:]
        whole = run.text(len(conversation))
        together = all(
            whole.startswith(longer) and longer.startswith(run.text(reply, prompt=True))
            for reply in proven
            for longer in [run.text(reply + 1)]
        )
        reader = Reader(record, owners, conversation, self.specials)
        if together:
            turns = [reader.turn(run, reply, headers) for reply in proven]
            turns += reader.between(whole, turns, [r for r in replies if r not in set(proven)])
            turns = tuple(sorted(turns, key=lambda turn: turn.message))
            layouts = [Layout(whole, turns, len(conversation))]
            reader.check_context(whole, len(conversation))
        else:
            layouts = []
            for reply in replies:
                turn = reader.turn(run, reply, headers)
                layouts.append(Layout(run.text(reply + 1), (turn,), reply + 1))
                reader.check_context(layouts[-1].marked, reply)
        return Plan(record, layouts, reader.cut_texts, reader.absent)

    def compare(self, conversation, plan: Plan, values: list) -> None:
        """The plan against transformers: the same texts, and the prompts that it would serve."""
        messages = conversation.as_messages()
        options = dict(self.options, tools=list(conversation.tools) or None)
        for layout in plan.layouts:
            text = fill(layout.marked, values)
            expected = render_template(self.tokenizer, messages[: layout.messages], **options)
            same = text == expected.removesuffix(self.uninvited)
            for turn in layout.turns[: PROVEN_FIRST if plan.checked == 0 else 0]:
                prompt = render_template(
                    self.tokenizer, messages[: turn.message], add_generation_prompt=True, **options
                )
                same = same and text.startswith(prompt)
                same = same and fill(layout.marked[: turn.start], values) == prompt
            if not same:
                raise Unwatchable("the template does not write what it was seen to write")
        plan.checked += 1


class Run:
    """What the template writes for the first messages of a conversation, with marks; remembered."""

    def __init__(self, planner: Planner, record: Record, conversation: Conversation):
        self.planner, self.conversation, self.written = planner, conversation, {}
        numbers = iter(range(len(record.texts)))
        self.messages = []
        for message in conversation:
            fields = map_texts(message.as_message(), lambda _: record.text(next(numbers)))
            if "reasoning_content" in fields:
                # transformers gives it under both names, so that either kind of template sees it.
                fields = {"thinking": fields["reasoning_content"], **fields}
            self.messages.append(fields)
        self.tools = json.loads(json.dumps(conversation.tools)) or None

    def text(self, count: int, prompt: bool = False) -> str:
        if (count, prompt) not in self.written:
            self.written[count, prompt] = self.render(count, prompt)
        return self.written[count, prompt]

    def render(self, count: int, prompt: bool) -> str:
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            pieces = self.planner.template.generate(
                messages=self.messages[:count],
                tools=self.tools,
                documents=None,
                add_generation_prompt=prompt,
                **self.planner.variables,
            )
            text = "".join(str.__str__(piece) for piece in pieces)
        except (JinjaError, TypeError, ValueError, AttributeError, LookupError) as error:
            # If the template refuses these messages as they are, too, this raises MaskError.
            self.plainly(count, prompt)
            raise Unwatchable(str(error)) from None
        return text if prompt else text.removesuffix(self.planner.uninvited)

    def plainly(self, count: int, prompt: bool) -> str:
        return render_template(
            self.planner.tokenizer,
            self.conversation.as_messages()[:count],
            add_generation_prompt=prompt,
            tools=self.tools,
            **self.planner.options,
        )


class Reader:
    """Finds in a marked text what belongs to which message."""

    def __init__(self, record, owners, conversation, specials):
        self.record, self.owners, self.conversation = record, owners, conversation
        self.specials, self.cut_texts, self.absent = specials, [], []
        self.sources = [frozenset([number]) for number in range(len(record.texts))]
        self.whole = [True] * len(record.texts)

    def texts_of(self, mark: str) -> frozenset[int]:
        """Which of the conversation's texts a mark comes from."""
        number = ord(mark) - FIRST_MARK
        while len(self.sources) <= number:
            function, frozen = self.record.steps[len(self.sources) - len(self.owners)]
            earlier = refs(frozen)
            self.sources.append(frozenset().union(*(self.sources[n] for n in earlier)))
            keeps = getattr(function, "__name__", "") in KEEPING or (
                function.__name__ == "_call" and frozen[0].__name__ in KEEPING
            )
            self.whole.append(keeps and all(self.whole[n] for n in earlier))
        return self.sources[number]

    def marks(self, text: str, start: int, message: int, field: int | None = None) -> list[int]:
        """Positions from `start` on of marks that come from this message (and this text)."""
        return [
            place
            for place in range(start, len(text))
            if is_mark(text[place])
            and any(
                self.owners[n] == message and field in (None, n) for n in self.texts_of(text[place])
            )
        ]

    def fields(self, message: int) -> list[int]:
        return [number for number, owner in enumerate(self.owners) if owner == message]

    def turn(self, run: Run, message: int, headers: bool) -> Turn:
        before, prompt = run.text(message), run.text(message, prompt=True)
        text = run.text(message + 1)
        if not text.startswith(prompt):
            raise MaskError(self.not_served(message, prompt, text))
        if headers and not prompt.startswith(before):
            raise MaskError(rewritten(message, *self.real(before, prompt), "the generation prompt"))
        start = len(prompt)
        marks = self.marks(text, start, message)
        self.check_reply(text, start, message)
        behind = marks[-1] + 1 if marks else start
        stop, end = self.end_of_turn(text, behind, message)
        head = len(before) if headers else None
        return Turn(
            message, head, start, self.answer(text, start, stop, message), stop, end, len(text)
        )

    def end_of_turn(self, text: str, behind: int, message: int) -> tuple[int, int]:
        """Begin and end of the last special token behind the reply, or of all that follows it."""
        found = list(self.specials.finditer(text, behind))
        if not found:
            return behind, len(text)
        rest = text[found[-1].end() :]
        if rest.strip():
            raise MaskError(
                f"turn {message}: after the end of turn the template writes "
                f"{shown(fill(rest, self.record.values))}; it is unclear whether the model is to "
                "write that. Change the template so that the end of turn comes last."
            )
        return found[-1].span()

    def answer(self, text: str, start: int, stop: int, message: int) -> int:
        """Behind the reasoning: behind the last </think>, or the last mark of the reasoning."""
        position = start
        if self.conversation[message].reasoning is not None:
            reasoning = self.fields(message)[1]
            own = [place for place in self.marks(text, start, message, reasoning) if place < stop]
            later = [p for p in self.marks(text, start, message) if own and p > own[-1]]
            if own:
                position = later[0] if later else own[-1] + 1
        closing = text.rfind("</think>", start, stop)
        if closing >= 0:
            closing += len("</think>")
            while closing < stop and text[closing].isspace():
                closing += 1
        return max(position, closing)

    def content_field(self, message: int) -> int:
        """The number of a message's content, which comes first among its texts."""
        return self.fields(message)[0]

    def between(self, whole: str, proven: list[Turn], others: list[int]) -> list[Turn]:
        """Turns of replies in the middle, by the pieces of template around them."""
        if not others:
            return []
        spans = {}
        for place, character in enumerate(whole):
            if is_mark(character):
                for number in self.texts_of(character):
                    first, _ = spans.get(self.owners[number], (place, place))
                    spans[self.owners[number]] = first, place

        def around(message):
            if not {message - 1, message, message + 1} <= set(spans):
                raise Unwatchable(f"message {message} has no text between two others")
            (_, before), (first, last), (following, _) = (
                spans[message + step] for step in (-1, 0, 1)
            )
            inner = "".join("?" if is_mark(c) else c for c in whole[first : last + 1])
            return whole[before + 1 : first], inner, whole[last + 1 : following]

        seen = {
            around(turn.message): (turn, *spans[turn.message])
            for turn in proven
            if turn.message + 1 in spans
        }
        turns = []
        for message in others:
            if around(message) not in seen:
                raise Unwatchable(f"message {message} stands in pieces of template of its own")
            turn, first, last = seen[around(message)]
            left, right = spans[message][0] - first, spans[message][1] - last
            head = None if turn.head is None else turn.head + left
            after_reasoning = turn.answer + (left if turn.answer <= first else right)
            turns.append(
                Turn(
                    message,
                    head,
                    turn.start + left,
                    after_reasoning,
                    turn.stop + right,
                    turn.end + right,
                    turn.after + right,
                )
            )
        return turns

    # --- nothing may be lost ---------------------------------------------------------------------

    def check_reply(self, text: str, start: int, message: int) -> None:
        """All texts of a reply must stand in what the model writes."""
        for number in self.fields(message):
            if number not in self.identities(message):
                self.look_for(number, text, start, message)

    def check_context(self, text: str, count: int) -> None:
        """The text of every message that is not a reply must stand somewhere."""
        for message in range(count):
            if self.conversation[message].role != "assistant":
                self.look_for(self.content_field(message), text, 0, message)

    def look_for(self, number: int, text: str, start: int, message: int) -> None:
        """Does the text stand there, whole? If not, every conversation's will be looked at."""
        marks = self.marks(text, start, message, number)
        pieces = [ord(text[place]) - FIRST_MARK for place in marks]
        if not marks:
            self.absent.append((message, number))
        elif not any(self.whole[piece] for piece in pieces):
            self.cut_texts.append((message, number, pieces))

    def identities(self, message: int) -> set[int]:
        """The numbers of the ids of a message's calls, which many templates leave out."""
        found, number = set(), self.content_field(message) + 1
        number += self.conversation[message].reasoning is not None
        for call in self.conversation[message].tool_calls:
            if "id" in call:
                found.add(number)
                number += 1
            leaves = []
            map_leaves(call["function"], leaves.append)
            number += len(leaves)
        return found

    def real(self, *marked: str) -> list[str]:
        return [fill(text, self.record.values) for text in marked]

    def not_served(self, message: int, prompt: str, text: str) -> str:
        return rewritten(message, *self.real(prompt, text), "adding the reply")


# Steps that keep a text but for the white space around it, or write it as JSON.
KEEPING = {"strip", "lstrip", "rstrip", "_concatenate", "tojson", "join", "do_join", "do_format"}
KEEPING |= {"do_mark_safe"}


def lost(message: int, role: str, text: str) -> str:
    return (
        f"turn {message}: the template drops or rewrites the text of the {role} turn, "
        f"{shown(text)}. Put the text where the template renders it (a system text into the first "
        "user turn, say), write it as the template does, or change the template."
    )


def check_kept(message: int, role: str, text: str, pieces: list[str]) -> None:
    """A text that the template took apart: nothing but tags and white space may be missing."""
    rest = text
    for piece in sorted(
        {piece.strip() for piece in pieces if piece.strip()}, key=len, reverse=True
    ):
        rest = rest.replace(piece, "\n", 1)
    for tag in ("<think>", "</think>"):
        rest = rest.replace(tag, "")
    if rest.strip():
        raise MaskError(lost(message, role, rest))


def check_names(conversation: Conversation, specials) -> None:
    """Descriptions of tools and names of arguments are no texts that can be kept apart."""
    tools = json.dumps(conversation.tools, ensure_ascii=False)
    names = keys_in([call for message in conversation for call in message.tool_calls])
    if found := specials.search("\n".join([tools, *names])):
        raise MaskError(
            f"{found[0]!r}, which is a special token of this tokenizer, stands in the description "
            "of a tool or in the name of an argument. Remove it."
        )
