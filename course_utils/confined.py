"""The process in which chat templates run. `confinement` starts it; nobody calls it by hand.

It reads requests (pickles, from the process that started it) and writes answers (JSON, since a
template may have had its hands on them). Before the first template runs it gives up all that a
template could misuse (`sealing`): from then on it can open no file and no connection, start no
program, write nothing to a disk, and take only so much memory.
"""

import contextlib
import json
import pickle
import sys
import time
from collections import OrderedDict
from dataclasses import astuple
from hashlib import blake2b
from itertools import count

from course_utils.confinement import RUNS
from course_utils.conversation import Conversation, Message
from course_utils.layouts import Planner
from course_utils.plans import Plan, fill, is_mark
from course_utils.rendering import ChatTemplate, MaskError, said_by
from course_utils.rerendering import (
    PROBE_TOOL,
    STEERED,
    check_control_tokens,
    guarded,
    rendered_spans,
)
from course_utils.sealing import seal
from course_utils.tokenizers import special_pattern
from course_utils.watching import FIRST_MARK, Unwatchable

MEMORY = 2**31  # bytes that templates may take
LONGEST = 2**26  # characters of one text
KEPT_PLANNERS = 64

# Mistral wants ids of nine letters and digits.
PROBE_CALL = {"id": "c00000000", "function": {"name": "probe", "arguments": {"of": "x"}}}


def main() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes where answers go
    warm_up()
    _send(answers, {"ready": True, "filtered": seal(MEMORY)})
    work = Work()
    while size := requests.read(8):
        data = requests.read(int.from_bytes(size, "big"))
        seconds, *request = pickle.loads(data)
        Limited.begin(seconds, answers)
        # Named after the request, so that it is never taken for the answer to a different one.
        answer = work.answer(*request)
        cost = [time.process_time() - Limited.started, Limited.runs]
        _send(answers, answer | {"of": name_of_request(data), "cost": cost})


def name_of_request(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _send(file, answer: dict) -> None:
    file.write(json.dumps(answer).encode() + b"\n")
    file.flush()


def warm_up() -> None:
    """Load all that rendering loads on first use; afterwards nothing can be opened."""
    import datetime
    import encodings
    import pkgutil
    from importlib import import_module

    import jinja2

    for name in ("_strptime", "html.entities", "locale", "pprint", "random", "textwrap"):
        import_module(name)
    for package in (jinja2, encodings):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # codecs of other systems
                import_module(module.name)
    datetime.datetime.now().strftime("%d %b %Y")
    for source in ("{{ messages[0].content | tojson }}\n{{ '\\n' }}", "{{ nothing.at_all }}"):
        template = ChatTemplate({"default": source}, {}, ("<s>",))
        with contextlib.suppress(MaskError):
            template.write([{"role": "user", "content": "q"}])
        Planner(template, {})


class Limited(ChatTemplate):
    """A template that has so many seconds of the processor's time for each of its runs."""

    seconds, started, said, answers, runs = 0.0, 0.0, 0.0, None, 0

    @classmethod
    def begin(cls, seconds: float, answers) -> None:
        """A new conversation, for which it has `RUNS` times as long."""
        cls.seconds, cls.answers = seconds, answers
        cls.started, cls.said, cls.runs = time.process_time(), time.monotonic(), 0

    def begin_run(self) -> None:
        now = time.monotonic()
        Limited.runs += 1
        if self.answers is not None and now > self.said + 1:
            Limited.said = now
            _send(self.answers, {"busy": True})
        limit_time(min(time.process_time() + self.seconds, self.started + RUNS * self.seconds))


def limit_time(end: float) -> None:
    """End this process when it has used so many seconds of the processor's time in all."""
    try:
        import resource
    except ImportError:  # Windows; the other side has an eye on the clock
        return
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(end) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def from_plain_data(messages: list[tuple], tools: tuple, options: dict) -> Conversation:
    """The conversation that `confinement.as_plain_data` took apart, which was checked there."""

    def unchecked(kind, **fields):
        made = object.__new__(kind)
        vars(made).update(fields)
        return made

    names = ("role", "content", "reasoning", "tool_calls", "name", "tool_call_id", "train")
    turns = [
        unchecked(Message, weight=1.0, **dict(zip(names, values, strict=True)))
        for values in messages
    ]
    return unchecked(
        Conversation,
        messages=tuple(turns),
        id=None,
        tags=(),
        meta={},
        tools=tools,
        template_options=options,
    )


class Work:
    """Answers requests: what a template writes, and plans for conversations."""

    def __init__(self):
        self.templates: dict[int, ChatTemplate] = {}
        self.planners: OrderedDict[tuple, Planner] = OrderedDict()
        self.numbers = count()  # of plans

    def answer(self, kind: str, template: int, *arguments) -> dict:
        try:
            if kind == "template":
                self.templates[template] = Limited(*arguments)
                return {}
            return getattr(self, kind)(template, *arguments)
        except MaskError as error:
            return {"refused": str(error)}
        except MemoryError:
            return {"refused": "the chat template needs too much memory.", "spent": True}
        except RecursionError:
            return {"refused": "the chat template, or the conversation, is nested too deeply."}
        except Exception as error:
            said = f"{type(error).__name__}: {said_by(error)}"
            return {"refused": f"this conversation cannot be rendered ({said})."}

    def write(self, template: int, messages: list[dict], tools, prompt: bool, options: dict):
        text = self.templates[template].write(messages, tools=tools, prompt=prompt, options=options)
        return {"text": _bounded(text)}

    def prompt(self, template: int, conversation: tuple, piecewise: bool) -> dict:
        """What is sent for a reply: with marks and values, or as text with guards in it."""
        conversation = from_plain_data(*conversation)
        own, options = self.templates[template], conversation.template_options
        planner = self._planner(template, bool(conversation.tools), options)
        try:
            if not piecewise:
                raise Unwatchable("this tokenizer encodes a piece alone in another way")
            marked, record = planner.prompt(conversation)
        except Unwatchable:
            given = {"tools": list(conversation.tools), "options": options}
            messages = guarded(conversation, own.specials).as_messages()
            text = own.write(messages, prompt=True, **given)
            check_control_tokens(own, conversation, text, given, prompt=True)
            return {"guarded": _bounded(text)}
        numbers = {ord(mark) - FIRST_MARK for mark in filter(is_mark, marked)}
        return {"marked": marked, "values": {n: record.values[n] for n in numbers}}

    def spans(self, template: int, conversation, only_last: bool, options: dict) -> dict:
        rendered = rendered_spans(
            conversation, self.templates[template], only_last=only_last, options=options
        )
        _bounded(rendered.text)
        return {"spans": [astuple(span) for span in rendered.spans]}

    def plan(
        self,
        template: int,
        conversation,
        options: dict,
        mode: str,
        mask_reasoning: bool,
        piecewise: bool,
    ) -> dict:
        """The plan for a conversation and the values that fill it; or the spans of its samples."""
        conversation = from_plain_data(*conversation)
        planner = self._planner(template, bool(conversation.tools), options)
        try:
            if not piecewise:
                raise Unwatchable("this tokenizer encodes a piece alone in another way")
            plan, values = planner.plan(
                conversation,
                only_last=mode == "last_turn",
                headers=mode == "assistant_and_header",
            )
        except Unwatchable:
            if mask_reasoning:
                raise MaskError(
                    "this template cannot be followed, so reasoning cannot be told apart in it."
                ) from None
            return {"samples": self._rerendered(template, conversation, options, mode)}
        _check_steering(plan, values, self.templates[template].specials)
        if mask_reasoning:
            _check_reasoning(plan, values)
        made = {"plan": plan.number}
        made["values"] = {n: values[n] for n in plan.marks if n >= plan.texts}
        if sum(len(layout.marked) for layout in plan.layouts) + sum(
            map(len, made["values"].values())
        ) > (LONGEST):
            raise MaskError(f"the chat template writes more than {LONGEST:,} characters.")
        if not plan.sent:
            plan.sent = True
            made["layouts"] = [
                (
                    layout.marked,
                    [astuple(turn) for turn in layout.turns],
                    layout.messages,
                    layout.unstopped,
                )
                for layout in plan.layouts
            ]
        if planner.dropped:
            made["dropped"], planner.dropped = planner.dropped, []
        return made

    def stops(self, template: int) -> dict:
        """How a reply ends, as masks have it: after an answer, and after a call."""
        asked = Message("user", "q")
        called = Message("assistant", "", tool_calls=(PROBE_CALL,))
        output = Message("tool", "x", name="probe", tool_call_id="c00000000")
        answer = Message("assistant", "a")
        found = []
        for messages, tools in (
            ((asked, answer), ()),
            ((asked, answer), (PROBE_TOOL,)),
            ((asked, called, output, answer), (PROBE_TOOL,)),
        ):
            chat = Conversation(messages, tools=tools)
            try:
                plan, _ = self._planner(template, bool(tools), {}).plan(chat)
            except (MaskError, Unwatchable):
                found += self._first_stop(template, chat)
                continue
            for layout in plan.layouts:
                for turn in layout.turns:
                    marks = [n for n, c in enumerate(layout.marked[: turn.stop]) if is_mark(c)]
                    # Some write two tokens, of which a server stops at the first.
                    tail = layout.marked[marks[-1] + 1 : turn.end]
                    stops = special_pattern(self.templates[template].specials).findall(tail)
                    found += stops[:1] + stops[-1:] or [layout.marked[turn.stop : turn.end]]
        return {"stops": list(dict.fromkeys(stop for stop in found if stop))}

    def _first_stop(self, template: int, chat: Conversation) -> list[str]:
        """The special token after a reply, where the template does not keep its prompt."""
        made = self.templates[template]
        ending = dict(chat[-1].as_message(), content="reply-of-the-assistant")
        try:
            text = made.write([*chat.as_messages()[:-1], ending], tools=list(chat.tools))
        except MaskError:
            return []
        _, reply, tail = text.rpartition(ending["content"])
        return special_pattern(made.specials).findall(tail)[:1] if reply else []

    def _planner(self, template: int, tools: bool, options: dict) -> Planner:
        made = self.templates[template]
        key = (template, made.name(tools), repr(sorted(options.items())))
        if key not in self.planners:
            self.planners[key] = Planner(made, options, tools=tools, numbers=self.numbers)
            if len(self.planners) > KEPT_PLANNERS:
                _, old = self.planners.popitem(last=False)
                planner_dropped = [plan.number for plans in old.plans.values() for plan in plans]
                self.planners[key].dropped += old.dropped + planner_dropped
        self.planners.move_to_end(key)
        return self.planners[key]

    def _rerendered(self, template: int, chat, options: dict, mode: str) -> list:
        """The last resort: every prefix rendered anew, one sample for each reply if need be."""
        replies = [turn for turn, m in enumerate(chat) if m.role == "assistant" and m.train]
        try:
            return [self.spans(template, chat, mode == "last_turn", options)["spans"]]
        except MaskError:
            if mode != "assistant" or len(replies) < 2:
                raise
        prefixes = [chat.prefix(turn + 1) for turn in replies]
        return [self.spans(template, prefix, True, options)["spans"] for prefix in prefixes]


def _bounded(text: str) -> str:
    if len(text) > LONGEST:
        raise MaskError(f"the chat template writes more than {LONGEST:,} characters.")
    return text


HARMLESS = "\ue000"  # looks like no part of any special token


def _check_steering(plan: Plan, values: list, specials: tuple[str, ...]) -> None:
    """What looks like a special token in a text must not change what the template writes.

    The same steps are taken with texts as long, in which nothing looks like one.
    """
    texts, pattern = values[: plan.texts], special_pattern(specials)
    if not pattern.search("\n".join(texts)):
        return
    found = plan.values([pattern.sub(lambda match: HARMLESS * len(match[0]), t) for t in texts])
    if found is None:
        raise MaskError(STEERED)
    for number in plan.marks:
        same = len(found[number]) == len(values[number]) and all(
            one in (other, HARMLESS)
            for one, other in zip(found[number], values[number], strict=True)
        )
        if not same:
            raise MaskError(STEERED)


def _check_reasoning(plan: Plan, values: list) -> None:
    """Reasoning that is to be masked must not be inside what is graded."""
    for layout in plan.layouts:
        for turn in layout.turns:
            if "</think>" in fill(layout.marked[turn.answer : turn.end], values):
                raise MaskError(
                    f"turn {turn.message}: the reasoning is inside the content, where this "
                    "template does not tell it apart, so it cannot be masked. Move it into "
                    "'reasoning_content'."
                )
