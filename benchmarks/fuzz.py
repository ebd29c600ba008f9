"""Fuzzed tool conversations on real templates, every mask judged from outside.

    python -m benchmarks.fuzz --conversations 10000 --output data/recorded/fuzz.json
    python -m benchmarks.fuzz --conversations 400 --targets qwen3,gptoss --seed 7 --show 5

A data set holds rows of a few skeletons (the same turns, tools and arguments), in which optional
fields come and go: a unit is null in one row, text, a number or absent in the next. Rows are mixed,
so that what was learned from one is tried on the next. Nearly every text has a mark of its own.

The judge knows nothing of how masks are made. It renders with `tokenizer.apply_chat_template` and
encodes with the tokenizer, and a sample is right only if

- its ids are those of what the template writes for that conversation, or for the messages up to the
  reply where each reply has a sample (without a generation prompt that nobody asked for, and with
  the token that ends a reply where the template would write it only when a turn follows),
- what stands before each graded span is what a server sends for that reply, as text and as ids,
- the graded text is what the template writes for that reply, with its end, with every text of that
  reply in it and none of anybody else's,
- no control token comes from a text, and every reply that is to be trained is graded once, and no
  other.

A refusal is right only if its reason is true. Then the same rows go through 8 threads that share
one tokenizer, while others use it with other settings, and through 4 processes, forked and spawned;
they must give the same samples. The exit status is 1 if anything is wrong.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import random
import re
import shlex
import sys
import threading
import time
import unicodedata
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from course_utils.conversation import Conversation, ConversationError, from_record
from course_utils.masking import IGNORE_INDEX, MaskError, Options, samples_of
from course_utils.templates import chat_template
from course_utils.tokenizers import load_tokenizer, toy_tokenizer

TESTS = Path(__file__).parent.parent / "tests"
TARGETS = (
    *("qwen3", "llama3_1", "glm4moe", "gptoss", "gemma4_v5", "lfm2_2_5", "course chatml"),
    *("qwen3_5_think", "qwen3_6", "qwen2_5", "qwen3_instruct_2507", "llama3_2", "gemma4"),
    *("muse_glimmer", "nemotron_3_nano", "cohere2", "course llama3"),
)
# Options that templates have, and one that none has.
OPTIONS = (
    *({"enable_thinking": False}, {"enable_thinking": True}, {"preserve_thinking": True}),
    *({"reasoning_effort": "high"}, {"date_string": "1 May 2030"}, {"no_such_option": [1, "x"]}),
    *({"truncate_history_thinking": False}, {"tools_in_user_message": False}),
)
TOGETHER = 256  # rows of a data set, as `samples_of` takes them


# --- targets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A tokenizer with a template, and what somebody may type to confuse them."""

    name: str
    tokenizer: object
    specials: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def pattern(self) -> re.Pattern:
        longest = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)))


@cache
def target(name: str) -> Target:
    if name.startswith("course "):
        tokenizer = toy_tokenizer(["Water boils at 100 degrees. Hi!\n\nYes, no, 1 and true.\n"] * 8)
        tokenizer.chat_template = chat_template(name.removeprefix("course "))
    elif name == "course-base":
        tokenizer = load_tokenizer(str(TESTS.parent / "data" / "course-base"))
        tokenizer.chat_template = chat_template("chatml")
    else:
        if str(TESTS) not in sys.path:
            sys.path.append(str(TESTS))
        from real_templates import tokenizer_for

        tokenizer = copy.copy(tokenizer_for(name))  # a family's templates share one tokenizer
    added = tokenizer.added_tokens_decoder.values()
    specials = tuple(token.content for token in added if token.special)
    source = re.sub(r"\{#.*?#\}", "", tokenizer.chat_template, flags=re.S)
    tags = re.findall(r"</?[a-z_]+>|\[/?[A-Z_]{3,}\]|<\|?\"\|?>|/no_?think\b", source)
    tags += ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "/no_think"]
    written = [token for token in specials if token in source] or list(specials)
    return Target(name, tokenizer, specials, tuple(sorted({*tags, *written[:12]})))


# --- conversations -------------------------------------------------------------------------------

MARK = re.compile(r"[bdfghk]{2}\d{4}w")
SPACE = (" ", "\n", "\n\n", "  ", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\x0b", "\u200b")
UNICODE = (
    "é",
    "e\u0301",
    "水",
    "🙂",
    "👩\u200d👧",
    "שלום",
    "ÅÅ",
    "\u0338",
    "ﬁ",
    "\x00",
    "\u202e",
    "ſ",
)
PRIVATE = ("\uf8ff", "\U000f0000", "\U000f0001", "\U000f0007", "\U000ffffd", "\U00100000")
ODD = ("\\", '"', "'", "\\n", "{{ messages }}", "{% if %}", "<", ">", "&lt;", "<|", "|>", "%s")
NUMBERS = ("1", "1.0", "true", "null", "None", "0", "[]", "{}", '""', "-0")
TEXT_KINDS = {
    **{"plain": 30, "spaced": 6, "unicode": 6, "odd": 6, "tag": 5, "special": 2, "private": 2},
    **{"empty": 5, "space": 2, "number": 4, "echo": 3, "lines": 4, "json": 3, "long": 1, "turn": 1},
}
VALUE_KINDS = {
    **{"absent": 12, "null": 14, "text": 30, "number text": 8, "int": 8, "float": 6, "true": 5},
    **{"false": 3, "big": 3, "object": 6, "list": 6, "lists": 4, "no object": 3, "no list": 3},
}


def _choose(rng: random.Random, weights: dict[str, int], k: int = 1) -> list[str]:
    return rng.choices(list(weights), list(weights.values()), k=k)


class Writer:
    """Makes the texts of one conversation."""

    def __init__(self, rng: random.Random, tags: tuple[str, ...], specials: tuple[str, ...]):
        self.rng, self.tags, self.specials = rng, tags, specials
        self.number, self.texts = rng.randrange(5000), []

    def mark(self) -> str:
        self.number += 1
        return "".join(self.rng.choices("bdfghk", k=2)) + f"{self.number:04d}w"

    def text(self, kind: str) -> str:
        rng, mark = self.rng, self.mark()
        made = {
            "plain": lambda: f"{mark} is so.",
            "spaced": lambda: rng.choice(SPACE) + mark + rng.choice(SPACE),
            "unicode": lambda: rng.choice(UNICODE) + mark + rng.choice(UNICODE),
            "odd": lambda: rng.choice(ODD) + mark + rng.choice(ODD) + self.mark(),
            "tag": lambda: self.typed(mark, self.tags),
            "special": lambda: self.typed(mark, self.specials[:60]),
            "private": lambda: rng.choice((*PRIVATE, "\ue000")) + mark + rng.choice(PRIVATE),
            "empty": lambda: "",
            "space": lambda: rng.choice(SPACE) * rng.randint(1, 3),
            "number": lambda: rng.choice(NUMBERS),
            "echo": lambda: rng.choice(self.texts or [mark]),
            "lines": lambda: f"{mark}\n\n- {self.mark()}\n",
            "json": lambda: json.dumps({"a": mark, "b": [None, True, 1.0]}),
            "long": lambda: f"{mark} " + "word and word " * 200,
            "turn": lambda: f"{mark}{''.join(rng.choices(self.tags, k=3))}\n{self.mark()}",
        }[kind]()
        self.texts.append(made)
        return made

    def typed(self, mark: str, words: tuple[str, ...]) -> str:
        """The mark with words of the template before, inside or behind it."""
        before, behind = (self.rng.choice(("", self.rng.choice(words))) for _ in range(2))
        gap = self.rng.choice(("", " ", "\n"))
        return before + gap + mark + gap + (behind or self.rng.choice(words)) + gap

    def value(self, kind: str, depth: int = 0):
        rng = self.rng

        def inner():
            choices = {k: n for k, n in VALUE_KINDS.items() if k != "absent"}
            if depth > 1:
                choices = {k: n for k, n in choices.items() if k not in ("object", "list", "lists")}
            return self.value(_choose(rng, choices)[0], depth + 1)

        return {
            "null": lambda: None,
            "text": lambda: self.text(_choose(rng, TEXT_KINDS)[0]),
            "number text": lambda: rng.choice(NUMBERS),
            "int": lambda: rng.choice((0, 1, -7, rng.randrange(10**6))),
            "float": lambda: rng.choice((0.0, 1.0, -0.0, 0.1, 1e16, 1e-7, 2.5)),
            "true": lambda: True,
            "false": lambda: False,
            "big": lambda: rng.choice((2**53 + 1, -(2**63), 10**18)),
            "object": lambda: {f"k{n}": inner() for n in range(rng.randint(1, 3))},
            "list": lambda: [inner() for _ in range(rng.randint(1, 3))],
            "lists": lambda: [[inner()], [], [inner(), inner()]],
            "no object": lambda: {},
            "no list": lambda: [],
        }[kind]()


@dataclass
class Skeleton:
    """What the rows of a data set have in common."""

    turns: list[tuple]  # (role, possible kinds of the text, more)
    functions: list[tuple[str, dict[str, list[str]]]]  # (name, argument -> possible kinds)
    described: tuple[dict, ...]
    style: dict[str, bool]
    options: list[dict]  # one of them is given to the template


def skeleton(rng: random.Random, words: Target, long: float) -> Skeleton:
    """`long` is the chance of a chat with many replies."""
    writer = Writer(rng, words.tags, words.specials)
    chances = {
        **{"system": 0.45, "tools": 0.85, "calls": 0.85, "parallel": 0.6, "told": 0.5, "ids": 0.7},
        **{"names": 0.6, "reasoning": 0.5, "always reasoning": 0.4, "options": 0.4},
        **{"training": 0.35, "disorder": 0.06, "numbers": 0.8},
    }
    style = {name: rng.random() < chance for name, chance in chances.items()}

    def kinds(most: int = 3) -> list[str]:
        return _choose(rng, TEXT_KINDS, rng.randint(1, most)) if rng.random() < 0.6 else ["plain"]

    functions = []
    for _ in range(rng.randint(1, 3)):
        names = [f"a_{writer.mark()}" for _ in range(rng.randint(0, 4))]
        names += rng.choices(
            ("unit", "name", "content", "</think>", "a b", "é", rng.choice(words.tags))
        )
        possible = VALUE_KINDS if style["numbers"] else {"text": 1, "number text": 1, "absent": 1}
        arguments = {n: _choose(rng, possible, rng.randint(1, 4)) for n in names}
        functions.append((f"f_{writer.mark()}", arguments))
    turns: list[tuple] = [("system", kinds())] if style["system"] else []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4)) if rng.random() > long else 24):
        turns.append(("user", kinds()))
        for _ in range(rng.choice((0, 1, 1, 1, 2)) if style["calls"] else 0):
            number = rng.choice((1, 1, 2, 3)) if style["parallel"] else 1
            called = [rng.randrange(len(functions)) for _ in range(number)]
            told = rng.choice((kinds(), ["empty", "plain"])) if style["told"] else ["empty"]
            turns.append(("assistant", told, called))
            turns += [("tool", kinds(), place) for place in range(number)]
            if rng.random() < 0.06:
                del turns[-1]
            elif number > 1 and rng.random() < 0.15:
                turns[-2:] = turns[:-3:-1]
        if rng.random() < 0.95:
            turns.append(("assistant", kinds(), []))
    if style["disorder"]:  # an order that some templates refuse
        extra = rng.choice((("user", kinds()), ("system", kinds()), ("assistant", kinds(), [])))
        turns.insert(rng.randint(1, len(turns)), extra)
    described = tuple(_described(rng, writer, *function) for function in functions)
    return Skeleton(turns, functions, described, style, _options(rng, words) * style["options"])


def _options(rng: random.Random, words: Target) -> list[dict]:
    """Up to two options that the template reads; seldom one that it does not."""
    template = words.tokenizer.chat_template
    read = [option for option in OPTIONS if all(name in template for name in option)]
    return rng.choices(read if read and rng.random() < 0.97 else [{}], k=2) + [{}] * (
        rng.random() < 0.5
    )


def _described(rng, writer: Writer, name: str, arguments) -> dict:

    def describe() -> str:
        return writer.text("plain" if rng.random() < 0.99 else _choose(rng, TEXT_KINDS)[0])

    properties = {
        key: {"type": rng.choice(("string", "number")), "description": describe()}
        for key in arguments
    }
    parameters = {"type": "object", "properties": properties, "required": list(arguments)[:1]}
    said = {"name": name, "description": describe(), "parameters": parameters}
    return {"type": "function", "function": said}


def row(rng: random.Random, bones: Skeleton, words: Target, number: int) -> dict:
    """A record: the skeleton with other texts, and with optional fields that come and go."""
    writer, style = Writer(rng, words.tags, words.specials), bones.style
    messages, calls = [], []
    for role, kinds, *more in bones.turns:
        message = {"role": role, "content": writer.text(rng.choice(kinds))}
        if role == "tool":
            called = calls[more[0]] if more[0] < len(calls) else {"function": {"name": "f"}}
            if style["names"]:
                message["name"] = called["function"]["name"]
            if "id" in called:
                message["tool_call_id"] = called["id"]
        if role == "assistant":
            if style["reasoning"] and (style["always reasoning"] or rng.random() < 0.6):
                message["reasoning_content"] = writer.text(_choose(rng, TEXT_KINDS)[0])
            calls = [_call(rng, writer, *bones.functions[n], style["ids"]) for n in more[0]]
            if calls:
                message["tool_calls"] = calls
            if style["training"] and rng.random() < 0.3:
                message |= rng.choice(({"train": False}, {"weight": 0.5}, {"weight": 2}))
        messages.append(message)
    record = {"id": f"row {number}", "messages": messages}
    if style["tools"] and rng.random() < 0.95:
        record["tools"] = list(bones.described)
    if bones.options:
        record["chat_template_kwargs"] = dict(rng.choice(bones.options))
    return record


def _call(rng, writer: Writer, name: str, arguments: dict[str, list[str]], ids: bool) -> dict:
    chosen = {key: rng.choice(kinds) for key, kinds in arguments.items()}
    given = [(key, writer.value(kind)) for key, kind in chosen.items() if kind != "absent"]
    if rng.random() < 0.15:
        rng.shuffle(given)
    identity = {"id": f"call_{writer.mark()}"} if ids else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": dict(given)}}


def data_set(name: str, seed: int, count: int) -> list[tuple[dict, Conversation]]:
    """Mixed rows of a few skeletons, as records and as conversations.

    Of many skeletons a template refuses all rows, which says little: most of these are left out.
    """
    rng, words, bones, rows = random.Random(f"{name} {seed}"), target(name), [], []
    while len(bones) < max(2, count // 16):
        candidates = [skeleton(rng, words, 0.03 if count > 100 else 0) for _ in range(12)]
        tried = [_conversation(row(rng, made, words, 0)) for made in candidates]
        outcomes = samples_of([chat for chat in tried if chat], words.tokenizer, Options())
        refused = {id(chat) for chat, outcome in outcomes if isinstance(outcome, MaskError)}
        for made, chat in zip(candidates, tried, strict=True):
            if id(chat) not in refused or rng.random() < 0.04:
                bones.append(made)
    del bones[max(2, count // 16) :]
    while len(rows) < count:
        record = row(rng, rng.choice(bones), words, len(rows))
        if chat := _conversation(record):
            rows.append((record, chat))
    rng.shuffle(rows)
    return rows


def _conversation(record: dict) -> Conversation | None:
    """The record as read, or None for one that the schema refuses."""
    try:
        return from_record(copy.deepcopy(record))
    except ConversationError:
        return None


# --- the judge -----------------------------------------------------------------------------------


def leaves(value) -> list[str]:
    """Every text in a value, names of fields too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in leaves(item)]
    return [text for item in value for text in leaves(item)] if isinstance(value, list) else []


def marks(*values) -> set[str]:
    return {mark for value in values for text in leaves(value) for mark in MARK.findall(text)}


def canonical(text: str) -> str:
    return unicodedata.normalize("NFD", text)


class Case:
    """One record on one template: what the template writes, and how that is encoded."""

    def __init__(self, record: dict, words: Target, tokenizer):
        self.words, self.tokenizer = words, tokenizer
        self.tools = record.get("tools")
        self.options = record.get("chat_template_kwargs", {})
        self.trained = [
            place
            for place, message in enumerate(record["messages"])
            if message["role"] == "assistant" and message.get("train", True)
        ]
        self.weights = [message.get("weight", 1) for message in record["messages"]]
        hidden = ("train", "weight")
        self.messages = [
            {name: value for name, value in message.items() if name not in hidden}
            for message in record["messages"]
        ]
        self.typed: dict[str, str] = {}  # word -> the look-alike of a special token in its place
        self.disguised = self._disguise(self.messages)
        self.disguised_tools = self._disguise(self.tools)
        self.written: dict = {}

    def _disguise(self, value):
        if isinstance(value, str):
            return self.words.pattern.sub(self._word, value)
        if isinstance(value, list):
            return [self._disguise(item) for item in value]
        if isinstance(value, dict):
            return {self._disguise(key): self._disguise(item) for key, item in value.items()}
        return value

    def _word(self, match: re.Match) -> str:
        word = f"Zz{len(self.typed):03d}Zz"
        self.typed[word] = match[0]
        return word

    def restored(self, text: str) -> str:
        return re.sub(r"Zz\d{3}Zz", lambda word: self.typed[word[0]], text) if self.typed else text

    def write(self, count: int, prompt: bool = False, *, tools: bool = True, hide=False, more=()):
        """What the template writes for the first messages (with look-alikes disguised)."""
        key = (count, prompt, tools, hide, repr(more))
        if key not in self.written:
            messages = (self.disguised if hide else self.messages)[:count] + list(more)
            described = (self.disguised_tools if hide else self.tools) if tools else None
            try:
                self.written[key] = self.tokenizer.apply_chat_template(
                    copy.deepcopy(messages),
                    tools=copy.deepcopy(described) or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **self.options,
                )
            except Exception as error:
                self.written[key] = error
        if isinstance(self.written[key], Exception):
            raise Refuses(str(self.written[key]))
        return self.written[key]

    def ids(self, count: int, prompt: bool = False, more=()) -> list[int]:
        """The ids of that text, in which what somebody typed is ordinary text."""
        if not self.typed:
            return self.encode(self.write(count, prompt, more=more))
        text, position, ids = self.write(count, prompt, hide=True, more=more), 0, []
        for match in [*self.words.pattern.finditer(text), None]:
            end = match.start() if match else len(text)
            ids += self.encode(self.restored(text[position:end]), split_special_tokens=True)
            if match:
                ids.append(self.tokenizer.convert_tokens_to_ids(match[0]))
                position = match.end()
        return ids

    def encode(self, text: str, **options) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return canonical(
            self.tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def uninvited(self) -> str:
        """A generation prompt that the template writes although nobody asked for one."""
        question = [{"role": "user", "content": "q"}]
        try:
            plain, asked = (self.write(0, prompt, more=question) for prompt in (False, True))
        except Refuses:
            return ""
        return asked.rpartition("q")[2] if plain == asked else ""

    def opening(self, message: int) -> str:
        """The special token with which a turn opens that comes after such a reply, or ""."""
        following = self.messages[message + 1 : message + 2]
        called = bool(self.messages[message].get("tool_calls"))
        role = following[0]["role"] if following else "tool" if called else "user"
        call = {"type": "function", "function": {"name": "f", "arguments": {}}}
        reply = {"role": "assistant", "content": "" if called else "a"}
        before = [
            {"role": "user", "content": "q"},
            reply | ({"tool_calls": [call]} if called else {}),
        ]
        try:
            ended = self.write(0, more=before)
            longer = self.write(0, more=[*before, {"role": role, "content": "x"}])
        except Refuses:
            return ""
        found = longer.startswith(ended) and self.words.pattern.match(longer, len(ended))
        return found[0] if found else ""


class Refuses(Exception):
    """The template refuses these messages."""


def judge(record: dict, outcome, words: Target, tokenizer) -> list[str]:
    """What is wrong with the samples, or with the reason of a refusal; nothing if all is right."""
    case = Case(record, words, tokenizer)
    if isinstance(outcome, MaskError):
        verdict = reason_is_true(case, str(outcome))
        return [] if verdict else ["false reason" if verdict is False else "unknown reason"]
    wrong, graded = [], []
    for sample in outcome:
        graded += [span.message for span in sample.graded]
        try:
            wrong += judge_sample(case, sample, alone=len(outcome) == 1)
        except Refuses as error:
            wrong.append(f"the template refuses what has a sample: {error}")
    if sorted(graded) != case.trained:
        wrong.append(f"graded are {sorted(graded)}, to be trained {case.trained}")
    return wrong


def judge_sample(case: Case, sample, *, alone: bool) -> list[str]:
    ids, wrong = sample.input_ids, []
    last = sample.graded[-1].message
    counts = (len(case.messages), last + 1) if alone else (last + 1,)
    if not any(_is_written(case, ids, count, last) for count in counts):
        wrong.append("the ids are not those of what the template writes")
    expected, unstopped = [IGNORE_INDEX] * len(ids), 0
    weights = [1.0] * len(ids)
    for span in sample.graded:
        expected[span.start : span.end] = ids[span.start : span.end]
        weights[span.start : span.end] = [case.weights[span.message]] * (span.end - span.start)
        wrong += judge_reply(case, ids, span)
        special = case.tokenizer.added_tokens_decoder.get(ids[span.end - 1])
        unstopped += not (special and special.special)
    if sample.labels != expected:
        wrong.append("labels are graded outside the graded spans")
    if (sample.weights or [1.0] * len(ids)) != weights:
        wrong.append("weights are not those of the replies")
    if unstopped > sample.unstopped:
        wrong.append(f"{unstopped} replies end without a stop, {sample.unstopped} are counted")
    return wrong


def _is_written(case: Case, ids: list[int], count: int, last: int) -> bool:
    whole = case.ids(count)
    text, written = case.decode(ids), canonical(case.write(count))
    if ids == whole and text == written:
        return True
    if ids[:-1] == whole and text == written + canonical(case.opening(last)):
        return last == count - 1
    rest = written.removeprefix(text)
    return bool(rest) and ids == whole[: len(ids)] and case.uninvited().endswith(rest)


def judge_reply(case: Case, ids: list[int], span) -> list[str]:
    k, wrong = span.message, []
    prompt, reply = case.write(k, prompt=True), case.write(k + 1)
    if ids[: span.start] != case.ids(k, prompt=True):
        wrong.append(f"reply {k}: the ids before it are not those of the prompt")
    if case.decode(ids[: span.start]) != canonical(prompt):
        wrong.append(f"reply {k}: the text before it is not the prompt")
    if not reply.startswith(prompt):
        return [*wrong, f"reply {k}: the template writes it behind another prompt"]
    reply = reply[len(prompt) :].removesuffix(case.uninvited())
    graded = case.decode(ids[span.start : span.end])
    rest = canonical(reply).removeprefix(graded)
    opened = canonical(reply + case.opening(k))
    if graded != opened and (rest == canonical(reply) != "" or rest.strip()):
        wrong.append(f"reply {k}: graded is {graded!r}, not {reply!r}")
    own = {name: value for name, value in case.messages[k].items() if name != "tool_calls"}
    calls = [call["function"] for call in case.messages[k].get("tool_calls", ())]
    others = [message for place, message in enumerate(case.messages) if place != k]
    if lost := marks(own, calls) - marks(graded):
        wrong.append(f"reply {k}: {sorted(lost)} of it is not graded")
    if foreign := marks(graded) & (marks(others, case.tools or []) - marks(case.messages[k])):
        wrong.append(f"reply {k}: {sorted(foreign)} is graded and somebody else's")
    context = [m["content"] for m in case.messages[:k] if m["role"] != "assistant"]
    if lost := marks(context) - marks(prompt):
        wrong.append(f"reply {k}: {sorted(lost)} is not in its prompt")
    return wrong


# --- is the reason true? -------------------------------------------------------------------------


def _texts(case: Case, place: int) -> list[str]:
    message = case.messages[place]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [message["content"], message.get("reasoning_content", ""), *leaves(calls)]


def _refuses(case: Case, turn) -> bool:
    for count in range(1, len(case.messages) + 1):
        for prompt in (False, True):
            try:
                case.write(count, prompt)
            except Refuses:
                return True
    return False


def _rewrites(case: Case, turn: int) -> bool:
    """Does the text with the reply not begin with its prompt, or later text with this one?"""
    whole, until = case.write(len(case.messages)), case.write(turn + 1)
    before, prompt = case.write(turn), case.write(turn, prompt=True)
    until, before = (text.removesuffix(case.uninvited()) for text in (until, before))
    return not (until.startswith(prompt) and prompt.startswith(before) and whole.startswith(until))


def _merges(case: Case, turn: int) -> bool:
    prompt = case.ids(turn, prompt=True)
    return case.ids(turn + 1)[: len(prompt)] != prompt


def _drops(case: Case, turn: int) -> bool:
    """Is a text of this message not written whole, neither as it is nor as JSON?"""
    written = case.write(turn + 1)
    if case.messages[turn]["role"] == "assistant":
        written = written.removeprefix(case.write(turn, prompt=True))
    texts = Counter(text.strip() for text in _texts(case, turn) if text.strip())
    message = case.messages[turn]
    without = case.write(turn, more=[message | {"content": ""}])
    if message["content"].strip() and without == case.write(turn + 1):
        return True
    return any(
        max(written.count(text), written.count(json.dumps(text, ensure_ascii=False)[1:-1])) < number
        for text, number in texts.items()
    )


def _steers(case: Case, turn) -> bool:
    for count in range(1, len(case.messages) + 1):
        for prompt in (False, True):
            try:
                plain = case.write(count, prompt)
            except Refuses:
                plain = None
            try:
                hidden = case.restored(case.write(count, prompt, hide=True))
            except Refuses:
                hidden = None
            if plain != hidden:
                return True
    return False


def _ignores_tools(case: Case, turn) -> bool:
    return case.write(len(case.messages)) == case.write(len(case.messages), tools=False)


def _holds_guard(case: Case, turn) -> bool:
    return any("\ue000" in text for text in leaves(case.messages))


def _names_special(case: Case, turn) -> bool:
    keys = [set(leaves(c["function"])) for m in case.messages for c in m.get("tool_calls", ())]
    texts = [*leaves(case.tools or []), *leaves(case.options), *(text for k in keys for text in k)]
    return any(case.words.pattern.search(text) or PRIVATE_MARK.search(text) for text in texts)


def _goes_on(case: Case, turn: int) -> bool:
    reply = case.write(turn + 1)
    ends = [match.end() for match in case.words.pattern.finditer(reply)]
    return bool(ends) and bool(reply[ends[-1] :].strip())


def _nothing_trained(case: Case, turn) -> bool:
    return not case.trained


def _assistant_first(case: Case, turn) -> bool:
    return case.trained[:1] == [0]


def _reads_no_option(case: Case, turn) -> bool:
    return any(name not in case.tokenizer.chat_template for name in case.options)


PRIVATE_MARK = re.compile("[\U000f0000-\U000ffffd]")
# What a reason says -> whether it is so.
REASONS = {
    r"U\+E000": _holds_guard,
    r"the chat template refuses the roles": _refuses,
    r"changes what stood before it": _rewrites,
    r"merge with the prompt": _merges,
    r"the template drops(, moves)? or rewrites": _drops,
    r"does not write the content as it is": _drops,
    r"so text typed by a user could steer it": _steers,
    r"leaves out the conversation's tools": _ignores_tools,
    r"in the (description of a tool|name of an argument)": _names_special,
    r"after the end of turn the template writes": _goes_on,
    r"nothing is left to grade": _nothing_trained,
    r"turn 0 is an assistant turn": _assistant_first,
    r"the chat template reads no option": _reads_no_option,
}


def reason_is_true(case: Case, reason: str) -> bool | None:
    """Whether what the reason says is so; None if this judge does not know such a reason."""
    found = re.search(r"turn (\d+):", reason)
    turn = int(found[1]) if found else None
    for pattern, check in REASONS.items():
        if re.search(pattern, reason):
            try:
                return check(case, turn)
            except Refuses:
                return False
    return None


def reason_class(reason: str) -> str:
    """The reason without what is particular to one row."""
    said = re.sub(r"^conversation '[^']*': ", "", reason)
    said = re.sub(r"(turn|message|character|position) \d+", r"\1 N", said)
    said = re.sub(r"(?<!\w)(\"|').*?\1(?!\w)|\[.*?\]", "…", said)
    return said[:110]


# --- runs ----------------------------------------------------------------------------------------


def outcome_key(outcome) -> str:
    """All of an outcome, to be compared."""
    return f"refused: {outcome}" if isinstance(outcome, MaskError) else repr(outcome)


def state_of(tokenizer) -> tuple:
    backend = tokenizer.backend_tokenizer
    settings = backend.encode_special_tokens, repr(backend.truncation), repr(backend.padding)
    return *settings, tokenizer.chat_template, hash(backend.to_str())


def outcomes_of(chats: list[Conversation], tokenizer) -> dict[str, str]:
    return {
        chat.id: outcome_key(outcome)
        for chat, outcome in samples_of(iter(chats), tokenizer, Options(), together=64)
    }


@dataclass
class Count:
    """What came of the rows of one target."""

    target: str
    exact: int = 0
    refused: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    wrong: list[tuple] = field(default_factory=list)
    false_reasons: list[tuple] = field(default_factory=list)
    seconds: float = 0.0


def run_target(name: str, seed: int, count: int) -> Count:
    """Judges the rows of a target; shuffled, they must come out as before."""
    words, found, began = target(name), Count(name), time.perf_counter()
    for part in range(0, count, TOGETHER):
        rows = data_set(name, seed * 1000 + part, min(TOGETHER, count - part))
        chats, before = [chat for _, chat in rows], state_of(words.tokenizer)
        keys = {}
        outcomes = list(samples_of(iter(chats), words.tokenizer, Options()))
        if state_of(words.tokenizer) != before:
            found.wrong.append((part, "the caller's tokenizer was changed", None))
        for (record, _), (chat, outcome) in zip(rows, outcomes, strict=True):
            keys[chat.id] = outcome_key(outcome)
            problems = judge(record, outcome, words, words.tokenizer)
            refused = isinstance(outcome, MaskError)
            if refused:
                reason = reason_class(str(outcome))
                found.refused[reason] += 1
                found.examples.setdefault(reason, str(outcome))
            if problems and refused:
                found.false_reasons.append((problems[0], str(outcome), record))
            elif problems:
                found.wrong.append((problems, "", record))
            elif not refused:
                found.exact += 1
        random.Random(seed).shuffle(chats)
        for name_of_row, key in outcomes_of(chats, words.tokenizer).items():
            if key != keys[name_of_row]:
                said = (keys[name_of_row][:300], key[:300])
                found.wrong.append(("another outcome in another order", said, name_of_row))
    found.seconds = time.perf_counter() - began
    return found


def run_threads(name: str, seed: int, count: int, threads: int = 8) -> list[str]:
    """The rows in 8 threads that share a tokenizer, while two more use it as they like."""
    words, rows = target(name), data_set(name, seed, count)
    chats = [chat for _, chat in rows]
    expected, wrong, done = outcomes_of(chats, words.tokenizer), [], threading.Event()
    private = copy.deepcopy(words.tokenizer)
    texts = [words.specials[0] + " one two three four five six", "word " * 40]

    def prepare(number: int) -> None:
        shuffled = chats[:]
        random.Random(number).shuffle(shuffled)
        try:
            found = outcomes_of(shuffled, words.tokenizer)
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            return
        for key, outcome in found.items():
            if outcome != expected[key]:
                wrong.append(f"{name}, {key}: {expected[key][:200]} became {outcome[:200]}")

    def disturb(split: bool) -> None:
        options = {"split_special_tokens": split, "add_special_tokens": False}
        options |= {"truncation": True, "max_length": 5} if split else {"padding": True}
        while not done.is_set():
            try:
                words.tokenizer(texts if not split else texts[:1], **options)
            except RuntimeError as error:  # "Already borrowed": two such threads meet
                if "borrowed" not in str(error):
                    wrong.append(f"{name}: the other user of the tokenizer met {error}")

    workers = [threading.Thread(target=prepare, args=[n]) for n in range(threads)]
    others = [threading.Thread(target=disturb, args=[split]) for split in (True, False)]
    for thread in (*others, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    if words.tokenizer.chat_template != private.chat_template:
        wrong.append(f"{name}: the chat template was changed")
    return wrong


def _in_process(name: str, seed: int, count: int, number: int) -> dict[str, str]:
    chats = [chat for _, chat in data_set(name, seed, count)]
    random.Random(number).shuffle(chats)
    return outcomes_of(chats, target(name).tokenizer)


def run_processes(name: str, seed: int, count: int, method: str, processes: int = 4) -> list[str]:
    """The rows in four processes at a time, which must agree with this one."""
    chats = [chat for _, chat in data_set(name, seed, count)]
    expected, wrong = outcomes_of(chats, target(name).tokenizer), []
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(processes, context) as pool:
        jobs = [pool.submit(_in_process, name, seed, count, n) for n in range(processes)]
        for job in jobs:
            found = job.result()
            wrong += [
                f"{name}, {method}, {key}: {expected[key][:200]} became {outcome[:200]}"
                for key, outcome in found.items()
                if outcome != expected[key]
            ]
    return wrong


# --- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--conversations", type=int, default=10000)
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="targets judged at a time")
    parser.add_argument("--show", type=int, default=3, help="wrong rows printed of each target")
    parser.add_argument("--only-judge", action="store_true", help="no threads, no processes")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    names, began = options.targets.split(","), time.perf_counter()
    share = -(-options.conversations // len(names))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, context, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(run_target, name, options.seed, share) for name in names]
        counts = []
        for job in jobs:
            counts.append(job.result())
            report(counts[-1], options.show)
    disturbed = []
    for name in [] if options.only_judge else names[:8:2]:
        disturbed += run_threads(name, options.seed, 200)
        for method in ("spawn", "fork"):
            disturbed += run_processes(name, options.seed, 100, method)
        print(f"{name}: 8 threads, 4 processes: {len(disturbed)} wrong so far", flush=True)
    for said in disturbed[:10]:
        print(f"  {said}")
    summary = summarized(counts, disturbed, options, time.perf_counter() - began)
    print(json.dumps(summary["total"], indent=1, ensure_ascii=False))
    if options.output:
        options.output.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
    total = summary["total"]
    return int(bool(total["wrong"] or total["false reasons"] or disturbed))


def report(count: Count, show: int, width: int = 600) -> None:
    refused, untrue = sum(count.refused.values()), len(count.false_reasons)
    print(
        f"{count.target}: {count.exact} exact, {refused} refused ({untrue} for a reason that is "
        f"not true or not known), {len(count.wrong)} wrong; {count.seconds:.0f} s",
        flush=True,
    )
    for problems, said, record in [*count.wrong[:show], *count.false_reasons[:show]]:
        print(f"  {problems}\n    {said}\n    {json.dumps(record)[:width]}", flush=True)


def summarized(counts: list[Count], disturbed: list[str], options, seconds: float) -> dict:
    reasons, examples = Counter(), {}
    for count in counts:
        reasons.update(count.refused)
        examples = {**count.examples, **examples}
    command = shlex.join(["python", "-m", "benchmarks.fuzz", *sys.argv[1:]])
    return {
        "command": command,
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("transformers", "tokenizers", "jinja2", "trl")},
        },
        "seconds": round(seconds),
        "total": {
            "conversations": sum(c.exact + len(c.wrong) + c.refused.total() for c in counts),
            "exact": sum(count.exact for count in counts),
            "refused": reasons.total(),
            "false reasons": sum(len(count.false_reasons) for count in counts),
            "wrong": sum(len(count.wrong) for count in counts),
            "threads and processes": None if options.only_judge else f"{len(disturbed)} wrong",
        },
        "targets": {
            count.target: {
                "exact": count.exact,
                "refused": count.refused.total(),
                "wrong": len(count.wrong),
            }
            for count in counts
        },
        "refused": {
            reason: {"count": number, "example": examples[reason]}
            for reason, number in reasons.most_common()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
