"""Masks against every real template that is installed, judged from outside (see `judging`).

`python -m benchmarks.judge` prints the table of outcomes, for templates of other packages, too.
"""

import copy
import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from chats import ALL_MARKERS, FRAGMENTS, WHOLE_TURNS
from judging import Outcome, Views, Writer, complaints, judged
from real_templates import borrowed, guess, names, templates, tokenizer_for
from shapes import INJECTED, SHAPES

from course_utils.conversation import Conversation, Message
from course_utils.masking import IGNORE_INDEX, MaskError, training_samples

# Conversations, of all shapes with all templates, for which there must be a mask.
EXACT_FLOOR = 2150

# --- all shapes with all templates ---------------------------------------------------------------


@cache
def outcomes(name: str) -> dict[str, Outcome]:
    """Shape -> outcome, for one template."""
    tokenizer = tokenizer_for(name)
    writer = Writer(tokenizer)
    return {shape: judged(chat, tokenizer, writer) for shape, chat in SHAPES.items()}


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
    assert complaints(chat, samples, writer) == []
    (sample,) = samples
    run = sample.graded[-1]
    planted = plant(sample, writer, run.start, run.end)
    assert complaints(chat, planted, writer) != []


STOP_BUGS = {
    "stop left out": lambda s, a, b: [_regraded(s, a, b - 1)],
    "stop not in the text": lambda s, a, b: [
        replace(_regraded(s, a, b - 1), input_ids=s.input_ids[:-1], labels=s.labels[:-1])
    ],
    "stop of another role": lambda s, a, b: [
        replace(
            s,
            input_ids=[*s.input_ids[:-1], s.input_ids[0]],
            labels=[*s.labels[:-1], s.input_ids[0]],
        )
    ],
    "counted though stopped": lambda s, a, b: [replace(s, unstopped=1)],
}


@pytest.mark.parametrize("bug", STOP_BUGS)
def test_the_judge_notices_a_missing_stop(bug):
    """GLM writes no end of turn: the model stops with the opening of the next role's turn."""
    chat, tokenizer = SHAPES["tool call last"], tokenizer_for("glm4moe")
    writer = Writer(tokenizer)
    (sample,) = training_samples(chat, tokenizer)
    assert complaints(chat, [sample], writer) == []
    run = sample.graded[-1]
    assert writer.decode(sample.input_ids[run.end - 1 : run.end]) == "<|observation|>"
    assert complaints(chat, STOP_BUGS[bug](sample, run.start, run.end), writer) != []


# Between turns there is nothing but text, so nothing tells the model to stop.
ENDLESS = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% endfor %}"
ENDLESS += "{% if add_generation_prompt %}a:{% endif %}"


def test_a_reply_without_a_stop_is_counted(toy):
    chat, tokenizer = SHAPES["plain"], toy(ENDLESS)
    (sample,) = training_samples(chat, tokenizer)
    assert sample.unstopped == 1
    writer = Writer(tokenizer)
    assert complaints(chat, [sample], writer) == []
    assert complaints(chat, [replace(sample, unstopped=0)], writer) != []


# --- stops and templates of other kinds ----------------------------------------------------------

# Two tokens close a turn, and the next one is opened though nobody asked for it; tools have a
# place. As Cohere's templates for tools do.
TWO_CLOSERS = """
{%- macro turn(role) %}<|START_OF_TURN_TOKEN|><|{{ role }}_TOKEN|>{% endmacro -%}
{{ bos_token }}{% if tools %}
    {{- turn('SYSTEM') }}{{ tools | tojson }}<|END_OF_TURN_TOKEN|>{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- turn('CHATBOT') }}
        {%- if m.tool_calls %}<|START_ACTION|>{{ m.tool_calls | tojson }}<|END_ACTION|>
        {%- else %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% endif %}
    {%- else %}{{ turn('USER' if m.role == 'user' else 'SYSTEM') }}{{ m.content }}{% endif %}
    {{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}{{ turn('CHATBOT') }}"""
CLOSERS = ["START_ACTION", "END_ACTION", "START_RESPONSE", "END_RESPONSE"]


def outcomes_of(tokenizer) -> dict[str, Outcome]:
    writer = Writer(tokenizer)
    found = {shape: judged(chat, tokenizer, writer) for shape, chat in SHAPES.items()}
    assert not {shape: one.why for shape, one in found.items() if one.kind == "wrong"}
    return found


def stops(found: dict[str, Outcome]) -> set[tuple[str, str]]:
    return {end for one in found.values() if one.kind == "exact" for end in one.ends}


def test_two_closers_and_a_turn_that_is_always_open():
    tokenizer = copy.deepcopy(tokenizer_for("cohere"))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<|{name}|>" for name in CLOSERS]},
        replace_extra_special_tokens=False,
    )
    tokenizer.chat_template = TWO_CLOSERS
    found = outcomes_of(tokenizer)
    assert stops(found) == {("special", "<|END_OF_TURN_TOKEN|>")}
    assert sum(one.kind == "exact" for one in found.values()) >= 40
    for shape in ("plain", "tool call", "tool call last", "tools never called"):
        assert found[shape].kind == "exact", found[shape].why


# As Qwen writes them, in a tokenizer whose tags around a call are special tokens.
CALLS_ON_LINES = """
{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_the_tokens_around_a_call_are_not_its_stop():
    guessed = replace(guess(CALLS_ON_LINES), words=("<tool_call>", "</tool_call>"))
    tokenizer = borrowed(guessed)
    tokenizer.chat_template = CALLS_ON_LINES
    found = outcomes_of(tokenizer)
    assert stops(found) == {("special", "<|im_end|>")}
    assert found["tool call last"].kind == found["parallel tool calls"].kind == "exact"


def test_of_named_templates_each_chat_gets_its_own():
    tokenizer = tokenizer_for("qwen3")
    sources = {name: templates()[name].source for name in ("qwen2_5", "qwen3")}
    tokenizer.chat_template = {"default": sources["qwen2_5"], "tool_use": sources["qwen3"]}
    found = outcomes_of(tokenizer)
    for shape, chat in SHAPES.items():
        alone = outcomes("qwen3" if chat.tools else "qwen2_5")[shape]
        assert (found[shape].kind, found[shape].samples) == (alone.kind, alone.samples), shape


# --- training twins ------------------------------------------------------------------------------

BREAK = "the model has stopped at its end of turn; the line break behind it is the template's"
THINK = "a server sends this opening of the think block, so the model never writes it"
HISTORY = (
    "the original drops think blocks from the history, as a server's prompt does; the twin never"
)
HEADER = "a server sends this much of the header, so the model never writes it"

# (template, kind of difference) -> why ours is right. `_training` stands for both of a pair.
EXPLAINED: dict[tuple[str, str], str] = {
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
    ("phi3_5", kind): why for (name, kind), why in tuple(EXPLAINED.items()) if name == "phi3"
}
ENDS_IN_BREAK = (
    "diffusion_gemma gemma gemma3 lfm2 lfm2_2_5 lfm2_2_5_v2 lfm2_2_5_vl lfm2_v2 phi3 phi3_5 "
    "qwen2_5 qwen2_5_vl qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 qwen3_instruct_2507 "
    "qwen3_vl"
)
EXPLAINED |= {(name, r"grades behind: '\n'"): BREAK for name in ENDS_IN_BREAK.split()}
EXPLAINED |= {
    (name, r"grades before: '<think>\n'"): THINK for name in ("qwen3_5_think", "qwen3_6", "qwen3_8")
}
# Masked since a text that joins the prompt's words on marks alone is rendered anew.
NEMOTRON = ["nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"]
EXPLAINED |= {(name, r"grades before: '<think>\n'"): THINK for name in NEMOTRON}
EXPLAINED |= {(name, r"grades behind: '\n'"): BREAK for name in NEMOTRON}
EXPLAINED["qwen3_5_nothink", r"grades before: '<think>\n\n</think>\n\n'"] = THINK
EXPLAINED |= {
    (name, "other text"): HISTORY
    for name in ("glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
}
EXPLAINED |= {
    (name, "grades before: '<|start|>assistant'"): HEADER for name in ("gptoss", "muse_glimmer")
}


def explanation(name: str, kind: str) -> str | None:
    return EXPLAINED.get((name.removesuffix("_training"), kind))


@cache
def twin_differences(name: str) -> Counter:
    """Kind of difference -> in how many replies the twin's mask differs from ours."""
    found = Counter()
    twin = copy.copy(tokenizer_for(name))
    twin.chat_template = templates()[name].twin
    twin = Writer(twin)
    for shape, one in outcomes(name).items():
        if one.kind == "exact" and shape not in INJECTED:
            # The first and the last sample will do where a long conversation makes thirty.
            for sample in one.samples[:1] + one.samples[1:][-1:]:
                found.update(_twin_kinds(SHAPES[shape], sample, twin))
    return found


def _twin_kinds(conversation: Conversation, sample, twin: Writer):
    turns = sample.graded[-1].message + 1 if len(sample.graded) == 1 else len(conversation)
    try:
        made = twin.tokenizer.apply_chat_template(
            conversation.as_messages()[:turns],
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


def test_no_explanation_is_left_over():
    met = {
        (name.removesuffix("_training"), kind)
        for name in names()
        if templates()[name].twin
        for kind in twin_differences(name)
    }
    assert set(EXPLAINED) <= met


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
