"""Masks against every real template that is installed, judged from outside.

The judge knows nothing of how a mask is made. It renders with `apply_chat_template` what a server
would send before each reply and what the template writes behind it, and wants exactly that back:
these ids before, this text graded, nothing else graded, every trained reply graded once. A
conversation may be refused, with a reason, but never be wrong.

    python tests/test_masking_real.py [template ...]     prints the table of outcomes
"""

import json
import random
import re
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
from chats import ALL_MARKERS, FRAGMENTS, WHOLE_TURNS
from real_templates import names, templates, tokenizer_for
from shapes import INJECTED, SHAPES

from course_utils.conversation import Conversation, Message
from course_utils.masking import IGNORE_INDEX, MaskError, training_samples

# Conversations, of all shapes with all templates, for which there must be a mask.
EXACT_FLOOR = 2100

# --- what a template writes ----------------------------------------------------------------------


class Writer:
    """One tokenizer with one template: what it writes, and which special tokens are the template's.

    `dialect` maps the messages to another form of the same, for templates that read content as
    parts, or reasoning from a field of another name; `options` go to the template. The template is
    held here, since the tokenizer may be given another one.
    """

    def __init__(self, tokenizer, dialect=None, name: str = "plain", **options):
        self.tokenizer, self.name, self.options = tokenizer, name, options
        self.options.setdefault("chat_template", tokenizer.chat_template)
        self.dialect = dialect or (lambda message: message)
        tokens = {t.content: n for n, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.ids = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        normalizer = tokenizer.backend_tokenizer.normalizer
        self.composes, self.has_marks = "NFC" in repr(normalizer), "▁" in repr(normalizer)
        self.control = frozenset(tokens.values())

    def render(self, messages: list[dict], tools=None, prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            [self.dialect(message) for message in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=prompt,
            **self.options,
        )

    def plain_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def spoken(self, text: str) -> str:
        """The text as decoding gives it back: some compose characters, some write "▁" for " "."""
        text = text.replace("▁", " ") if self.has_marks else text
        return unicodedata.normalize("NFC", text) if self.composes else text

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def calm(self, value):
        """A message, or a part of one, with x for all that looks like a special token."""
        if isinstance(value, str):
            return self.pattern.sub(lambda match: re.sub(r"[^\"\\]", "x", match[0]), value)
        if isinstance(value, dict):
            return {key: self.calm(item) for key, item in value.items()}
        return [self.calm(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass
class View:
    """A rendered text, and where in it the template itself wrote special tokens."""

    text: str
    written: list[tuple[int, int, str]]

    def controls(self, start: int = 0, end: int | None = None) -> list[str]:
        end = len(self.text) if end is None else end
        return [token for a, b, token in self.written if start <= a and b <= end]


class Views:
    """Views of one conversation's beginnings, each rendered once."""

    def __init__(self, writer: Writer, conversation: Conversation):
        self.writer, self.made = writer, {}
        self.messages = conversation.as_messages()
        self.calm = writer.calm(self.messages)
        self.injected = self.calm != self.messages
        self.tools = list(conversation.tools) or None

    def __call__(self, turns: int, prompt: bool = False) -> View:
        if (turns, prompt) not in self.made:
            render, tools = self.writer.render, self.tools
            text = render(self.messages[:turns], tools, prompt)
            calm = render(self.calm[:turns], tools, prompt) if self.injected else text
            if len(calm) != len(text):
                raise Unclear("typed markers change what the template writes around them")
            found = self.writer.pattern.finditer(calm)
            self.made[turns, prompt] = View(text, [(*m.span(), m[0]) for m in found])
        return self.made[turns, prompt]


class Unclear(Exception):
    """There is nothing that could be right, so whatever is not refused is wrong."""


def farewell(writer: Writer) -> str:
    """What the template writes behind every conversation, finished or not; mostly nothing."""
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    try:
        question = writer.render([asked])
        exchange = writer.render([asked, answered])
        longer = writer.render([asked, answered, asked])
    except Exception:
        return ""
    same = next(
        (i for i, (a, b) in enumerate(zip(exchange, longer, strict=False)) if a != b),
        min(len(exchange), len(longer)),
    )
    rest = exchange[same:]
    return rest if question.endswith(rest) else ""


# --- dialects ------------------------------------------------------------------------------------


def dialects(tokenizer) -> list[Writer]:
    """The ways of serving to judge by: the plain one, and what else the template offers.

    A template may read content as a list of parts, reasoning from `thinking` or `reasoning`, the
    arguments of a call as JSON text, or a call only where the content is None. With several, a
    server may ask for a reply without thinking.
    """
    plain = Writer(tokenizer)

    def shown(needle: str, *messages, **changes) -> bool:
        writer = Writer(tokenizer, lambda message: _adapted(message, **changes))
        try:
            return needle in writer.render(list(messages))
        except Exception:
            return False

    asked = {"role": "user", "content": "question"}
    thought = {"role": "assistant", "content": "answer", "reasoning_content": "because"}
    function = {"name": "lookup", "arguments": {"key": "value"}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    called["tool_calls"][0]["type"] = "function"
    changes = {}
    if not shown("question", asked) and shown("question", asked, parts=True):
        changes["parts"] = True
    for name in ("thinking", "reasoning"):
        if not shown("because", asked, thought, **changes) and shown(
            "because", asked, thought, **changes, reasoning=name
        ):
            changes["reasoning"] = name
    for change in ({"json_arguments": True}, {"json_arguments": True, "no_content": True}):
        if not shown("value", asked, called, **changes) and shown(
            "value", asked, called, **changes, **change
        ):
            changes |= change
    writers = [plain]
    if changes:
        said = f"adapted ({', '.join(changes)})"
        writers.append(Writer(tokenizer, lambda message: _adapted(message, **changes), said))
    for writer in tuple(writers):
        quick = Writer(
            tokenizer, writer.dialect, f"{writer.name}, without thinking", enable_thinking=False
        )
        try:
            if quick.render([asked], prompt=True) != writer.render([asked], prompt=True):
                writers.append(quick)
        except Exception:
            continue
    return writers


def _adapted(message, *, parts=False, reasoning=None, json_arguments=False, no_content=False):
    message = dict(message)
    if reasoning and "reasoning_content" in message:
        message[reasoning] = message.pop("reasoning_content")
    if parts:
        message["content"] = [{"type": "text", "text": message["content"]}]
    if message.get("tool_calls"):
        if no_content and not message["content"]:
            message["content"] = None
        if json_arguments:
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.dumps(a)}}
                for call in message["tool_calls"]
                for a in [call["function"]["arguments"]]
            ]
    return message


# --- the judge -----------------------------------------------------------------------------------


def complaints(conversation: Conversation, samples, writer: Writer, ending: str) -> list[str]:
    """What is wrong with the samples of a conversation; empty if they are exactly right."""
    views = Views(writer, conversation)
    found, graded = [], []
    for sample in samples:
        places = [n for n, label in enumerate(sample.labels) if label != IGNORE_INDEX]
        runs = [n for run in sample.graded for n in range(run.start, run.end)]
        if places != runs or any(sample.labels[n] != sample.input_ids[n] for n in places):
            found.append("the labels are not those of the graded spans")
        graded += [run.message for run in sample.graded]
        try:
            for run in sample.graded:
                found += _run_complaints(conversation, sample, run, views, ending)
            found += _text_complaints(conversation, sample, views, ending)
        except Unclear as unclear:
            found.append(str(unclear))
        except Exception as error:  # The template's own refusal, of whatever kind.
            found.append(f"what a server would send cannot be rendered: {error!r}"[:120])
    trained = [n for n, m in enumerate(conversation) if m.role == "assistant" and m.train]
    if sorted(graded) != trained:
        found.append(f"graded are the turns {graded}, trained are {trained}")
    return found


def _run_complaints(conversation, sample, run, views: Views, ending: str) -> list[str]:
    writer, found = views.writer, []
    prompt, until = views(run.message, prompt=True), views(run.message + 1)
    if not until.text.startswith(prompt.text):
        return [f"turn {run.message}: the served prompt is no beginning of the trained text"]
    before = sample.input_ids[: run.start]
    found += _same(
        f"turn {run.message}: before the reply", before, prompt, 0, len(prompt.text), views
    )
    if not views.injected and before != writer.plain_ids(prompt.text):
        found.append(f"turn {run.message}: other ids before the reply than a server would send")
    ids = sample.input_ids[run.start : run.end]
    start, problems = len(prompt.text), []
    for view, end in _ends(until, start, ending, views, len(conversation)):
        problems.append(_same(f"turn {run.message}: graded", ids, view, start, end, views))
    found += min(problems, key=len)
    return found + _lost(conversation[run.message], writer.decode(ids), writer, run.message)


def _ends(until: View, start: int, ending: str, views: Views, turns: int):
    """Where the graded text may end: behind the last special token that the template writes.

    Where the template says farewell behind every conversation, the last one before that will do.
    Where it writes none, the reply's text is all there is, perhaps with the next turn's opening.
    """
    limits = {len(until.text), len(until.text) - len(ending)}
    for limit in sorted(limits):
        behind = [b for a, b, _ in until.written if a >= start and b <= limit]
        yield until, behind[-1] if behind else len(until.text)
    if not any(a >= start for a, _, _ in until.written):
        whole = views(turns)
        if whole.text.startswith(until.text):
            yield from ((whole, b) for a, b, _ in whole.written if a == len(until.text))


def _same(what: str, ids, view: View, start: int, end: int, views: Views) -> list[str]:
    writer = views.writer
    expected, found = writer.spoken(view.text[start:end]), writer.decode(ids)
    problems = []
    if found != expected:
        at = next(
            (n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
            min(len(found), len(expected)),
        )
        at = max(0, at - 5)
        problems.append(f"{what} stands {found[at : at + 40]!r}, not {expected[at : at + 40]!r}")
    controls = [number for number in ids if number in writer.control]
    if controls != [writer.ids[token] for token in view.controls(start, end)]:
        problems.append(f"{what} stand other special tokens than the template writes")
    return problems


def _words(value) -> set[str]:
    if isinstance(value, dict):
        return {word for pair in value.items() for item in pair for word in _words(item)}
    if isinstance(value, list | tuple):
        return {word for item in value for word in _words(item)}
    return set(re.findall(r"[^\W_]{2,}", value)) if isinstance(value, str) else set()


def _lost(message: Message, text: str, writer: Writer, turn: int) -> list[str]:
    """What of a message is missing in the text; its reasoning may be, the judge's notes tell."""
    found, content = [], writer.spoken(message.content.split("</think>")[-1].strip())
    forms = {content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]}
    if not any(form in text for form in forms):
        found.append(f"turn {turn}: the content of the {message.role} turn is lost")
    for call in message.tool_calls:
        wanted = _words(call["function"]) - {"name", "arguments"}
        if not all(word in text for word in wanted):
            found.append(f"turn {turn}: a tool call is lost, wholly or in part")
    return found


def _text_complaints(conversation, sample, views: Views, ending: str) -> list[str]:
    """The sample as a whole is what the template writes, and what it writes holds every text."""
    writer, text = views.writer, views.writer.decode(sample.input_ids)
    last = sample.graded[-1].message
    found = []
    for turns in dict.fromkeys((len(conversation), *range(last + 1, len(conversation)))):
        whole = views(turns)
        spoken = writer.spoken(whole.text)
        if spoken.startswith(text) and spoken[len(text) :].strip() in ("", ending.strip()):
            controls = [n for n in sample.input_ids if n in writer.control]
            written = [writer.ids[token] for token in whole.controls()]
            if controls != written[: len(controls)]:
                found.append("the sample holds special tokens that the template did not write")
            break
    else:
        found.append("the sample is not what the template writes")
    for turn, message in enumerate(conversation.messages[:last]):
        found += _lost(message, text, writer, turn)
    return found


def told(problems: list[str]) -> str:
    return "; ".join(dict.fromkeys(problems))


# --- all shapes with all templates ---------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one conversation with one template."""

    kind: str  # exact, refused or wrong
    why: str = ""
    samples: list = field(default_factory=list)
    writer: Writer | None = None
    notes: tuple[str, ...] = ()


@cache
def outcomes(name: str) -> dict[str, Outcome]:
    """Shape -> outcome, for one template."""
    tokenizer = tokenizer_for(name)
    writers = [(writer, farewell(writer)) for writer in dialects(tokenizer)]
    return {shape: _outcome(chat, tokenizer, writers) for shape, chat in SHAPES.items()}


def _outcome(conversation: Conversation, tokenizer, writers) -> Outcome:
    try:
        samples = training_samples(conversation, tokenizer)
    except MaskError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("wrong", f"crashed: {error!r}")
    fewest = None
    for writer, ending in writers:
        problems = complaints(conversation, samples, writer, ending)
        if fewest is None or len(problems) < len(fewest):
            fewest, judge = problems, writer
        if not problems:
            return Outcome("exact", "", samples, writer, _notes(conversation, samples, writer))
    return Outcome("wrong", told(fewest), samples, judge)


def _notes(conversation: Conversation, samples, writer: Writer) -> tuple[str, ...]:
    """What is exact by the template, but which one should know of."""
    notes = [] if writer.name == "plain" else [f"served {writer.name}"]
    runs = [(sample, run) for sample in samples for run in sample.graded]
    texts = [writer.decode(sample.input_ids[run.start : run.end]) for sample, run in runs]
    for (_, run), text in zip(runs, texts, strict=True):
        thought = (conversation[run.message].reasoning or "").strip()
        if writer.spoken(thought) not in text:
            notes.append("reasoning not written by the template")
    if any(sample.input_ids[run.end - 1] not in writer.control for sample, run in runs):
        notes.append("no special token at the end of a reply")
    return tuple(dict.fromkeys(notes))


@pytest.mark.parametrize("name", names())
def test_a_mask_is_exact_or_refused(name):
    found = outcomes(name)
    wrong = {shape: one.why for shape, one in found.items() if one.kind == "wrong"}
    assert not wrong
    assert all(one.why for one in found.values() if one.kind == "refused")


def test_enough_conversations_get_a_mask():
    kinds = Counter(one.kind for name in templates() for one in outcomes(name).values())
    assert kinds["wrong"] == 0
    assert kinds["exact"] >= EXACT_FLOOR, kinds


# --- the judge is judged -------------------------------------------------------------------------


def _regraded(sample, start: int, end: int, message: int | None = None):
    labels = [n if start <= at < end else IGNORE_INDEX for at, n in enumerate(sample.input_ids)]
    span = replace(sample.graded[-1], start=start, end=end)
    span = span if message is None else replace(span, message=message)
    return replace(sample, labels=labels, graded=(span,))


def _typed_as_control(sample, writer: Writer):
    ids = writer.plain_ids(writer.decode(sample.input_ids))
    longer = len(sample) - len(ids)
    span = replace(sample.graded[-1], start=sample.graded[-1].start - longer, end=len(ids) - 1)
    labels = [n if span.start <= at < span.end else IGNORE_INDEX for at, n in enumerate(ids)]
    return replace(sample, input_ids=ids, labels=labels, graded=(span,))


PLANTED = {
    "end of turn left out": ("plain", lambda s, w, a, b: [_regraded(s, a, b - 1)]),
    "line break behind graded": ("plain", lambda s, w, a, b: [_regraded(s, a, b + 1)]),
    "header graded": ("plain", lambda s, w, a, b: [_regraded(s, a - 1, b)]),
    "first token left out": ("plain", lambda s, w, a, b: [_regraded(s, a + 1, b)]),
    "of another turn": ("two replies", lambda s, w, a, b: [_regraded(s, a, b, 1)]),
    "graded twice": ("plain", lambda s, w, a, b: [s, s]),
    "earlier reply left out": ("two replies", lambda s, w, a, b: [_regraded(s, a, b)]),
    "nothing at all": ("plain", lambda s, w, a, b: []),
    "graded though not to be": (
        "last turn not trained",
        lambda s, w, a, b: [_regraded(s, len(s) - 1 - (b - a), len(s) - 1, message=3)],
    ),
    "typed marker as special token": (
        "user with markers",
        lambda s, w, a, b: [_typed_as_control(s, w)],
    ),
    "labels shifted": (
        "plain",
        lambda s, w, a, b: [replace(s, labels=[*s.labels[1:], IGNORE_INDEX])],
    ),
    "text lost from the prompt": (
        "plain",
        lambda s, w, a, b: [
            replace(_regraded(s, a - 1, b - 1), input_ids=s.input_ids[1:], labels=s.labels[1:])
        ],
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_judge_notices(bug, toy):
    """A mask with one bug in it is called wrong, and the mask without is not."""
    shape, plant = PLANTED[bug]
    chat, tokenizer = SHAPES[shape], toy("chatml")
    writer = Writer(tokenizer)
    samples = training_samples(chat, tokenizer)
    assert complaints(chat, samples, writer, "") == []
    (sample,) = samples
    run = sample.graded[-1]
    planted = plant(sample, writer, run.start, run.end)
    assert complaints(chat, planted, writer, "") != []


# --- training twins ------------------------------------------------------------------------------

BREAK = "the model has stopped at its end of turn; the line break behind it is the template's"
THINK = "a server sends this opening of the think block, so the model never writes it"
HISTORY = (
    "the original drops think blocks from the history, as a server's prompt does; the twin never"
)
HEADER = "a server sends this much of the header, so the model never writes it"

# (template, kind of difference) -> why ours is right. `_training` stands for both of a pair.
EXPLAINED: dict[tuple[str, str], str] = {
    ("glm4moe", "grades behind: '<|user|>'"): "the twin's stop is the next turn's opening; this "
    "template writes no end of turn, and behind the last reply there is none",
    ("diffusion_gemma", "leaves out: '<|tool_response>'"): "the original writes it behind a call "
    "that has no answer yet; it is what stops the model there",
    ("diffusion_gemma", "leaves out: '<|turn>model\\n'"): "behind a tool's answer a server sends "
    "no header, so the model does write it",
    ("diffusion_gemma", "leaves out: '\ufffd'"): "transformers loses a token that holds part of a "
    "character at the edge of a span",
    ("qwen2_5", r"grades before: '\n'"): HEADER,
    ("phi3", r"grades behind: '\n<|endoftext|>'"): "the template writes <|endoftext|> behind every "
    "conversation; the model has stopped at <|end|>",
}
EXPLAINED |= {
    ("glm4moe", f"grades behind: '<|{role}|>'"): EXPLAINED["glm4moe", "grades behind: '<|user|>'"]
    for role in ("observation", "system")
}
EXPLAINED |= {
    ("phi3_5", kind): why for (name, kind), why in tuple(EXPLAINED.items()) if name == "phi3"
}
ENDS_IN_BREAK = (
    "diffusion_gemma gemma gemma3 idefics3 lfm2 lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl lfm2_v2 "
    "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra phi3 phi3_5 qwen2_5 "
    "qwen2_5_vl qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 qwen3_instruct_2507 qwen3_vl "
    "smolvlm"
)
EXPLAINED |= {(name, r"grades behind: '\n'"): BREAK for name in ENDS_IN_BREAK.split()}
EXPLAINED |= {
    (name, kind): THINK
    for names_of, kinds in (
        (
            "qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8",
            (r"grades before: '<think>\n'", r"grades before: '<think>\n\n</think>\n\n'"),
        ),
        (
            "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra",
            (r"grades before: '<think>\n'", "grades before: '<think></think>'"),
        ),
        ("glm4moe", (r"grades before: '\n<think></think>'",)),
        ("deepseek_r1_distill", (r"grades before: '<｜Assistant｜><think>\n'",)),
    )
    for name in names_of.split()
    for kind in kinds
}
EXPLAINED |= {
    (name, "other text"): HISTORY
    for name in ["glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"]
}
EXPLAINED |= {
    (name, "grades before: '<|start|>assistant'"): HEADER for name in ("gptoss", "muse_glimmer")
}


def explanation(name: str, kind: str) -> str | None:
    return EXPLAINED.get((name.removesuffix("_training"), kind))


def twin_differences(name: str) -> Counter:
    """Kind of difference -> in how many replies the twin's mask differs from ours."""
    found = Counter()
    for shape, one in outcomes(name).items():
        if one.kind == "exact" and shape not in INJECTED:
            options = one.writer.options | {"chat_template": templates()[name].twin}
            twin = Writer(one.writer.tokenizer, one.writer.dialect, **options)
            # The first and the last sample will do where a long conversation makes thirty.
            for sample in one.samples[:1] + one.samples[1:][-1:]:
                found.update(_twin_kinds(SHAPES[shape], sample, twin))
    return found


def _twin_kinds(conversation: Conversation, sample, twin: Writer):
    turns = sample.graded[-1].message + 1 if len(sample.graded) == 1 else len(conversation)
    try:
        made = twin.tokenizer.apply_chat_template(
            [twin.dialect(message) for message in conversation.as_messages()[:turns]],
            tools=list(conversation.tools) or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **twin.options,
        )
    except Exception:  # Of whatever kind: it is the template's own refusal.
        yield "refuses"
        return
    ids, mask = list(made["input_ids"]), list(made["assistant_masks"])
    for run in sample.graded:
        if ids[: run.end] != sample.input_ids[: run.end]:
            yield "other text"
            continue
        before, after = run.start, run.end
        while before and mask[before - 1]:
            before -= 1
        while after < len(ids) and mask[after]:
            after += 1
        # Where two replies follow each other, the twin's spans of both may touch.
        roles = conversation.roles
        if before < run.start and roles[run.message - 1] != "assistant":
            yield f"grades before: {twin.decode(ids[before : run.start])!r}"
        if after > run.end and "assistant" not in roles[run.message + 1 : run.message + 2]:
            yield f"grades behind: {twin.decode(ids[run.end : after])!r}"
        left_out = [ids[place] for place in range(run.start, run.end) if not mask[place]]
        if left_out:
            yield f"leaves out: {twin.decode(left_out)!r}"


@pytest.mark.parametrize("name", names())
def test_the_mask_is_the_training_twins(name):
    if templates()[name].twin is None:
        pytest.skip("no training twin")
    differences = twin_differences(name)
    assert not [kind for kind in differences if not explanation(name, kind)]


# --- special tokens typed anywhere ---------------------------------------------------------------

# How many conversations each, 10,000 in all; Gemma's 6,000 added tokens make its ones slower.
FUZZED = {"toy": 3000, "llama3_1": 3000, "qwen3": 3000, "gemma3": 1000}


def fuzzed(seed: int, specials: list[str], tools: bool) -> Conversation:
    """A random conversation: two or three fragments a turn, with special tokens among them."""
    chance = random.Random(seed)

    def text() -> str:
        pieces = chance.choices(FRAGMENTS, k=chance.randrange(3))
        pieces += chance.choices(specials, k=chance.randrange(1, 3))
        chance.shuffle(pieces)
        return "".join(pieces)

    turns = [("system", text())] if chance.random() < 0.3 else []
    for _ in range(chance.randrange(1, 3)):
        turns += [("user", text())]
        if tools and chance.random() < 0.3:
            turns += [("assistant", text()), ("tool", text())]
        turns += [("assistant", text())]
    return Conversation(tuple(Message(role, content) for role, content in turns))


@pytest.mark.parametrize("name", FUZZED)
def test_typed_special_tokens_never_count(name, toy):
    tokenizer = toy("chatml") if name == "toy" else tokenizer_for(name)
    kinds = fuzz(name, tokenizer, FUZZED[name])
    assert kinds["leak"] == kinds["other text"] == 0, kinds
    assert kinds["fine"] >= FUZZED[name] / 2, kinds


def fuzz(name: str, tokenizer, count: int) -> Counter:
    writer, kinds = Writer(tokenizer), Counter()
    specials = sorted(writer.ids)
    # A marker of one letter more or less is as good as any other; a few of each kind will do.
    specials = [t for t in specials if len(t) > 1][:: max(1, len(specials) // 40)] + ALL_MARKERS
    specials += WHOLE_TURNS
    for seed in range(count):
        chat = fuzzed(seed, specials, tools=name in ("toy", "qwen3"))
        try:
            samples = training_samples(chat, tokenizer)
        except MaskError:
            kinds["refused"] += 1
            continue
        views = Views(writer, chat)
        for sample in samples:
            kinds[_fuzz_kind(sample, views, len(chat))] += 1
    return kinds


def _fuzz_kind(sample, views: Views, turns: int) -> str:
    writer, text = views.writer, views.writer.decode(sample.input_ids)
    for end in dict.fromkeys((turns, sample.graded[-1].message + 1)):
        whole = views(end)
        if writer.spoken(whole.text) == text:
            controls = [number for number in sample.input_ids if number in writer.control]
            written = [writer.ids[token] for token in whole.controls()]
            return "fine" if controls == written else "leak"
    return "other text"


# --- the table -----------------------------------------------------------------------------------


def main(chosen: list[str]) -> None:
    """Print the outcomes of each template, why it refuses, and how its twin's mask differs."""
    total = Counter()
    for name in chosen or names():
        found = outcomes(name)
        kinds = Counter(one.kind for one in found.values())
        total += kinds
        print(f"{name}: {dict(kinds)}")
        for note, count in Counter(note for one in found.values() for note in one.notes).items():
            print(f"    note: {note}: {count}")
        reasons = {}
        for shape, one in found.items():
            if one.kind != "exact":
                reason = re.sub(r"'.*|\d+", "..", one.why) if one.kind == "refused" else one.why
                reasons.setdefault((one.kind, reason[:300]), []).append(shape)
        for (kind, reason), shapes in reasons.items():
            print(f"    {kind}: {reason}: {', '.join(shapes)}")
        if templates()[name].twin:
            for kind, count in twin_differences(name).items():
                known = "" if explanation(name, kind) else "UNEXPLAINED "
                print(f"    twin {known}{kind}: {count}")
    print(dict(total))


if __name__ == "__main__":
    main(sys.argv[1:])
