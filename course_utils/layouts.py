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
from collections import OrderedDict
from dataclasses import replace
from itertools import count

from course_utils.conversation import Conversation
from course_utils.plans import Layout, Plan, Turn, fill, is_mark
from course_utils.reading import Reader, check_kept, lost
from course_utils.rendering import ChatTemplate, MaskError, said_by
from course_utils.rerendering import (
    STEERED,
    TOOLS_IGNORED,
    check_names,
    neutral_own_options,
    next_turn,
    uninvited_prompt,
)
from course_utils.shapes import map_texts, neutral_keys, neutral_tools, shape
from course_utils.tokenizers import special_pattern
from course_utils.watching import Record, Unwatchable, drawn_by, read_by, watched_template

# For so many conversations of each plan all prompts are compared with the template's.
ALL_PROMPTS = 3
# Plans kept for one shape (the template's answers tell them apart), and shapes kept.
KEPT_PLANS, KEPT_SHAPES = 8, 1024


class Planner:
    """Plans for one chat template. `options` go to the template.

    tools:   whether the chats have tools, for which some tokenizers hold a template of their own
    numbers: iterator of numbers for plans
    """

    def __init__(self, template: ChatTemplate, options: dict, *, tools: bool = False, numbers=None):
        self.template, self.options = template, options
        self.specials = special_pattern(template.specials)
        self.plans: OrderedDict[tuple, list[Plan]] = OrderedDict()
        self.numbers = numbers or count()
        self.dropped: list[int] = []  # numbers of plans that are no longer kept
        source = template.sources[template.name(tools)]
        self.uninvited = uninvited_prompt(template, options, tools=tools)
        self.watched, self.reason = None, ""
        try:
            if unread := set(options) - read_by(source):
                raise MaskError(
                    f"the chat template reads no option {', '.join(sorted(unread))}, so it would "
                    "change nothing. Leave it out, or correct its name."
                )
            if drawn := drawn_by(source):
                raise MaskError(
                    f"the chat template draws at random ({', '.join(sorted(drawn))}), so it writes "
                    "another prompt each time. Change the template."
                )
            self.watched = watched_template(source)
        except Unwatchable as error:
            self.reason = str(error)
        except RecursionError:
            raise MaskError("the chat template is nested too deeply to be read.") from None
        except MaskError:
            raise
        except Exception as error:  # Jinja's parser may raise anything on a broken template
            raise MaskError(f"the chat template cannot be read: {said_by(error)}") from None

    def plan(
        self, conversation: Conversation, *, only_last: bool = False, headers: bool = False
    ) -> tuple[Plan, list]:
        """The plan for a conversation, and its values, compared with what the template writes.

        Raises `Unwatchable` where the template cannot be followed, and `MaskError` where it can
        and no mask would be right.
        """
        if self.watched is None:
            raise Unwatchable(self.reason)
        key, texts, owners = shape(conversation)
        key = (key, json.dumps(conversation.tools), only_last, headers)
        plans = self.plans.setdefault(key, [])
        self.plans.move_to_end(key)
        for place, plan in enumerate(plans):
            if (values := plan.values(texts)) is not None:
                if place:
                    plans.insert(0, plans.pop(place))
                break
        else:
            plan = self.make(conversation, texts, owners, only_last, headers)
            plans.insert(0, plan)
            self.dropped += [old.number for old in plans[KEPT_PLANS:]]
            del plans[KEPT_PLANS:]
            if len(self.plans) > KEPT_SHAPES:
                _, old = self.plans.popitem(last=False)
                self.dropped += [plan.number for plan in old]
            values = plan.values(texts)
            if values is None:
                raise Unwatchable("the template answers its own questions in two ways")
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
        whole = run.text(len(conversation))
        check_tools(run, whole)
        together = all(
            whole.startswith(longer) and longer.startswith(run.text(reply, prompt=True))
            for reply in replies
            for longer in [run.text(reply + 1)]
        )
        reader = Reader(record, owners, conversation, self.specials)
        if together:
            turns = [reader.turn(run, reply, headers) for reply in replies]
            layouts = [self.stopped(run, whole, turns, len(conversation))]
            reader.check_context(whole, len(conversation))
        else:
            layouts = []
            for reply in replies:
                turn = reader.turn(run, reply, headers)
                layouts.append(self.stopped(run, run.text(reply + 1), [turn], reply + 1))
                reader.check_context(layouts[-1].marked, reply)
        if words_besides_texts(conversation):
            self.check_control_tokens(conversation, layouts)
        return Plan(record, layouts, reader.cut_texts, reader.absent, next(self.numbers))

    def check_control_tokens(self, conversation: Conversation, layouts: list[Layout]) -> None:
        """No special token of a layout may come from a tool's description or an argument's name.

        A template may make one out of harmless words. So it must write the same ones around
        neutral words.
        """
        calls = [
            [
                call | {"function": call["function"] | {"arguments": neutral_keys(arguments)}}
                for call in message.tool_calls
                for arguments in [call["function"]["arguments"]]
            ]
            for message in conversation
        ]
        neutral = replace(
            conversation,
            tools=tuple(neutral_tools(list(conversation.tools))),
            messages=tuple(
                replace(message, tool_calls=tuple(own))
                for message, own in zip(conversation, calls, strict=True)
            ),
        )
        own = neutral_own_options(conversation, self.template.specials)
        run = Run(self, Record(shape(neutral)[1]), neutral, self.options | own)
        for layout in layouts:
            try:
                text = run.text(layout.messages) + layout.added
            except (Unwatchable, MaskError):
                raise MaskError(STEERED) from None
            if self.specials.findall(text) != self.specials.findall(layout.marked):
                raise MaskError(STEERED)

    def stopped(self, run: "Run", marked: str, turns: list[Turn], messages: int) -> Layout:
        """The layout in which every reply ends with the token that the model must write to stop.

        In some formats (GLM's) that is no end of turn but the opening of whatever turn comes next.
        Where one comes, its opening is graded; behind the last reply it is added.
        """
        added, unstopped = "", 0
        for place, turn in enumerate(turns):
            if self.specials.search(marked, turn.stop, turn.end):
                continue
            following = run.conversation.messages[turn.message + 1 : turn.message + 2]
            opening = None
            if not following or following[0].role != "assistant":
                opening = self.specials.match(marked, turn.after)
                if opening is None and turn.after == len(marked):
                    added = run.opening(turn.message, marked[turn.stop :])
                    marked += added
                    opening = self.specials.match(marked, turn.after)
            if opening is not None:
                stop, end = opening.span()
                turns[place] = replace(turn, stop=stop, end=end, after=end)
            elif (
                turn.stop == turn.end
                or not any(map(is_mark, marked[turn.start : turn.stop]))
                or run.conversation[turn.message].tool_calls
            ):
                # Nothing follows its text, or it has none by which to tell, or what follows is the
                # end of a call.
                unstopped += 1
        return Layout(marked, tuple(turns), messages, added, unstopped)

    def compare(self, conversation, plan: Plan, values: list) -> None:
        """The plan against the template itself: what it writes for this very conversation.

        The text of every sample is compared, always, and the prompts of the last reply and of one
        more, a different one each time. For the first conversations of a plan all prompts are; for
        later ones the others follow from the same answers.
        """
        messages = conversation.as_messages()
        given = {"tools": list(conversation.tools), "options": self.options}
        same, turns = True, []
        for layout in plan.layouts:
            text = fill(layout.marked, values)
            expected = self.template.write(messages[: layout.messages], **given)
            same = same and text == expected.removesuffix(self.uninvited) + layout.added
            turns += [(layout, turn) for turn in layout.turns]
        if plan.compared >= ALL_PROMPTS and turns:
            turns = [turns[-1], turns[plan.compared % len(turns)]][: len(turns)]
        for layout, turn in turns:
            prompt = self.template.write(messages[: turn.message], prompt=True, **given)
            same = same and fill(layout.marked[: turn.start], values) == prompt
        if not same:
            raise Unwatchable("the template does not write what it was seen to write")
        plan.compared += 1

    def opening_after_any_reply(self, role: str) -> str:
        """The special token with which a turn of this role opens right after a short reply."""
        turns = [("user", "question"), ("assistant", "answer"), (role, "x")]
        try:
            text = self.template.write(
                [{"role": role, "content": content} for role, content in turns],
                options=self.options,
            )
        except MaskError:
            return ""
        behind = text.rfind("answer") + len("answer")
        opening = self.specials.match(text, behind)
        return opening[0] if opening else ""

    def prompt(self, conversation: Conversation) -> tuple[str, Record]:
        """What a server sends so that a reply comes next, with marks, and the record that fills it.

        It is compared with what the template writes. Raises `Unwatchable` and `MaskError`.
        """
        if self.watched is None:
            raise Unwatchable(self.reason)
        check_names(conversation, self.specials)
        _, texts, _ = shape(conversation)
        record = Record(texts)
        marked = Run(self, record, conversation).text(len(conversation), prompt=True)
        if words_besides_texts(conversation):
            whole = Run(self, Record(texts), conversation).text(len(conversation))
            self.check_control_tokens(conversation, [Layout(whole, (), len(conversation))])
        given = {"tools": list(conversation.tools), "options": self.options}
        expected = self.template.write(conversation.as_messages(), prompt=True, **given)
        if fill(marked, record.values) != expected:
            raise Unwatchable("the template does not write what it was seen to write")
        return marked, record


class Run:
    """What the template writes for the first messages of a conversation, with marks; remembered."""

    def __init__(
        self,
        planner: Planner,
        record: Record,
        conversation: Conversation,
        options: dict | None = None,
    ):
        self.planner, self.record, self.conversation = planner, record, conversation
        self.options = planner.options if options is None else options
        self.written: dict[tuple[int, bool], str] = {}
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
            self.written[count, prompt] = self.render(self.messages[:count], prompt)
        return self.written[count, prompt]

    def render(self, messages: list[dict], prompt: bool = False, tools: bool = True) -> str:
        self.planner.template.begin_run()
        try:
            text = self.record.write(
                self.planner.watched,
                messages=messages,
                tools=self.tools if tools else None,
                documents=None,
                add_generation_prompt=prompt,
                **self.planner.template.variables | self.options,
            )
        except (MemoryError, Unwatchable):
            raise
        except Exception as error:
            # If the template refuses these messages as they are, too, this raises MaskError.
            self.planner.template.write(
                self.conversation.as_messages()[: len(messages)],
                prompt=prompt,
                tools=self.tools,
                options=self.planner.options,
            )
            raise Unwatchable(str(error)) from None
        return text if prompt else text.removesuffix(self.planner.uninvited)

    def opening(self, message: int, tail: str) -> str:
        """The special token with which the turn after this reply opens; "" if there is none.

        tail: what the template writes between the reply's last text and its end
        """
        following = self.messages[message + 1 : message + 2]
        if not following:
            following = [next_turn(self.conversation[message].tool_calls)]
        try:
            longer = self.render(self.messages[: message + 1] + following)
        except (Unwatchable, MaskError):
            return ""
        text = self.text(message + 1)
        if longer.startswith(text):
            opening = self.planner.specials.match(longer, len(text))
            return opening[0] if opening else ""
        # The template writes this reply in another way once it is history; its texts are known by
        # their marks all the same.
        mark = text.removesuffix(tail)[-1:]
        last = longer.rfind(mark) if mark and is_mark(mark) else -1
        if last >= 0 and longer.startswith(tail, last + 1):
            opening = self.planner.specials.match(longer, last + 1 + len(tail))
            return opening[0] if opening else ""
        return self.planner.opening_after_any_reply(following[0]["role"])


def words_besides_texts(conversation: Conversation) -> bool:
    """Does it hold words that no mark protects: of tools, of arguments' names, of options?"""
    calls = any(message.tool_calls for message in conversation)
    return bool(conversation.tools or calls or conversation.template_options)


def check_tools(run: Run, whole: str) -> None:
    """Tools that the template does not write would never reach the model."""
    if not run.tools:
        return
    try:
        without = run.render(run.messages, tools=False)
    except (Unwatchable, MaskError):
        return  # it needs them
    if without == whole:
        raise MaskError(TOOLS_IGNORED)
