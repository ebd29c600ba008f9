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

from course_utils.conversation import Conversation
from course_utils.plans import Layout, Plan, fill
from course_utils.reading import Reader, check_kept, lost
from course_utils.rerendering import MaskError, render_template, uninvited_prompt
from course_utils.shapes import keys_in, map_texts, shape
from course_utils.tokenizers import special_pattern, special_tokens
from course_utils.watching import Record, Unwatchable, watched_template

# Up to this many replies every prompt is rendered to prove the plan. In longer conversations the
# middle ones are proven by standing between the same pieces of the template as proven ones.
PROVEN_FIRST, PROVEN_LAST = 16, 4
# So many conversations of each plan are also rendered by transformers and compared.
CHECKED = 3
# Plans kept for one shape; the template's answers tell them apart.
KEPT_PLANS = 8


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


def check_names(conversation: Conversation, specials) -> None:
    """Descriptions of tools and names of arguments are no texts that can be kept apart."""
    tools = json.dumps(conversation.tools, ensure_ascii=False)
    names = keys_in([call for message in conversation for call in message.tool_calls])
    if found := specials.search("\n".join([tools, *names])):
        raise MaskError(
            f"{found[0]!r}, which is a special token of this tokenizer, stands in the description "
            "of a tool or in the name of an argument. Remove it."
        )
