"""The judge of masks: right, refused or wrong, told from outside.

The judge knows nothing of how a mask is made. It renders with `apply_chat_template` what a server
would send before each reply and what the template writes behind it, and wants exactly that back:
these ids before, this text graded and the token at which the model stops, nothing else graded,
every trained reply graded once. A conversation may be refused, with a reason, but never be wrong.
"""

import copy
import json
import re
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from course_utils.conversation import Conversation, Message
from course_utils.masking import IGNORE_INDEX, MaskError, training_samples

# --- what a template writes ----------------------------------------------------------------------


class Writer:
    """One tokenizer with the templates that it has now: what they write, and their special tokens.

    `options` go to the template.
    """

    def __init__(self, tokenizer, **options):
        self.tokenizer, self.options = copy.copy(tokenizer), options
        tokens = {t.content: n for n, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.ids = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        normalizer = tokenizer.backend_tokenizer.normalizer
        self.composes, self.has_marks = "NFC" in repr(normalizer), "▁" in repr(normalizer)
        self.control = frozenset(tokens.values())
        self.farewells: dict[str, str] = {}

    def render(self, messages: list[dict], tools=None, prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **self.options
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

    def farewell(self, tools=None) -> str:
        """What the template writes behind a last reply and takes back when the user goes on.

        Mostly that is nothing, or the generation prompt, though nobody asked for it. It may begin
        with the token that begins a user turn, too, so the tokenizer's stop says where to cut.
        """
        key = json.dumps(tools)
        if key not in self.farewells:
            self.farewells[key] = self._farewell(tools)
        return self.farewells[key]

    def _farewell(self, tools) -> str:
        asked = {"role": "user", "content": "question"}
        answered = {"role": "assistant", "content": "answer"}
        try:
            exchange = self.render([asked, answered], tools)
            longer = self.render([asked, answered, asked], tools)
        except Exception:  # Of whatever kind: it is the template's own refusal.
            return ""
        behind = exchange.rfind("answer") + len("answer")
        if longer.startswith(exchange) or behind < len("answer"):
            return ""
        edges = {edge for match in self.pattern.finditer(exchange, behind) for edge in match.span()}
        edges |= {n for n in range(behind, len(exchange)) if exchange[n - 1] == "\n"} | {behind}
        edges |= {len(exchange) - len(exchange[edge:].lstrip()) for edge in edges}
        fitting = [edge for edge in sorted(edges) if longer.startswith(exchange[:edge])]
        eos = self.tokenizer.eos_token or ""
        at_stop = [n for n in fitting if eos and exchange[:n].endswith(eos)]
        cut = max(at_stop or fitting, default=len(exchange))
        # A stop that only the last reply has is one all the same.
        last_words = eos and exchange[cut:].strip().startswith(eos)
        stays = last_words and not self.pattern.search(exchange, behind, cut)
        return "" if stays else exchange[cut:]


@dataclass
class View:
    """A rendered text, and where in it the template itself wrote special tokens."""

    text: str
    written: list[tuple[int, int, str]]

    def controls(self, start: int = 0, end: int | None = None) -> list[str]:
        end = len(self.text) if end is None else end
        return [token for a, b, token in self.written if start <= a and b <= end]

    def until(self, end: int, token: str = "") -> "View":
        """The beginning of the view, with a special token behind it."""
        written = [item for item in self.written if item[1] <= end]
        written += [(end, end + len(token), token)] if token else []
        return View(self.text[:end] + token, written)


class Views:
    """Views of one conversation's beginnings, each rendered once."""

    def __init__(self, writer: Writer, conversation: Conversation):
        self.writer, self.made, self.ended = writer, {}, {}
        self.conversation = conversation
        self.messages = conversation.as_messages()
        self.calm = writer.calm(self.messages)
        self.injected = self.calm != self.messages
        self.tools = list(conversation.tools) or None
        self.farewell = writer.farewell(self.tools)

    def __call__(self, turns: int, prompt: bool = False, more: tuple[dict, ...] = ()) -> View:
        key = turns, prompt, repr(more)
        if key not in self.made:
            render, tools = self.writer.render, self.tools
            text = render([*self.messages[:turns], *more], tools, prompt)
            calm = text
            if self.injected:
                calm = render([*self.calm[:turns], *more], tools, prompt)
            if len(calm) != len(text):
                raise Unclear("typed markers change what the template writes around them")
            found = self.writer.pattern.finditer(calm)
            self.made[key] = View(text, [(*m.span(), m[0]) for m in found])
        return self.made[key]

    def end(self, reply: int) -> "End":
        """Where the model stops after a reply, which may be added to the text."""
        if reply not in self.ended:
            self.ended[reply] = self._end(reply)
        return self.ended[reply]

    def _end(self, reply: int) -> "End":
        until, prompt = self(reply + 1), self(reply, prompt=True)
        start, limit = len(prompt.text), len(until.text)
        if self.farewell and until.text.endswith(self.farewell):
            limit = max(start, limit - len(self.farewell))
        behind = [b for a, b, _ in until.written if a >= start and b <= limit]
        if behind and not until.text[behind[-1] : limit].strip():
            return End(until, behind[-1], "special")
        # No end of turn is written: the model stops where another turn would open.
        if opening := self._opening(reply, until.text[:limit]):
            return End(until.until(limit, opening), limit + len(opening), "opening", added=True)
        _, last = self._last_text(reply, until.text[:limit], start)
        tail = until.text[last:limit]
        kind = "text" if tail.strip() else "space" if tail else "none"
        if self.messages[reply].get("tool_calls"):
            kind = "none"  # What follows its texts may be no more than the end of the call.
        return End(until, limit, kind)

    def is_empty(self, reply: int) -> bool:
        """Does the template write nothing at all for this reply, not even how it stops?"""
        return self.end(reply).end == len(self(reply, prompt=True).text)

    def _opening(self, reply: int, before: str) -> str:
        """The special token with which the turn after this reply begins; "" if there is none."""
        if reply + 1 < len(self.messages):
            if self.messages[reply + 1]["role"] == "assistant":
                return ""  # The model itself goes on.
            longer = self(reply + 2)
        else:
            try:
                longer = self(reply + 1, more=(self._following(reply),))
            except Exception:  # The template's own refusal: nothing tells how a turn would open.
                return ""
        place = len(before)
        if not longer.text.startswith(before):
            # The template writes this reply in another way once it is history.
            last, end = self._last_text(reply, before)
            if not last:
                return self._with_a_text(reply)._opening_behind(reply)
            place = -1
            for _ in range(before.count(last, 0, end) if last else 0):
                place = longer.text.find(last, place + 1)
            if place >= 0 and longer.text.startswith(before[end:], place + len(last)):
                place += len(last) + len(before) - end
            else:
                return ""
        return next((token for a, _, token in longer.written if a == place), "")

    def _with_a_text(self, reply: int) -> "Views":
        """The same conversation, but with a text in a reply that has none."""
        messages = list(self.conversation.messages)
        messages[reply] = replace(messages[reply], content="answer")
        return Views(self.writer, replace(self.conversation, messages=tuple(messages)))

    def _opening_behind(self, reply: int) -> str:
        end = self.end(reply)
        return end.view.written[-1][2] if end.kind == "opening" else ""

    def _following(self, reply: int) -> dict:
        """A message that may follow a reply that comes last."""
        if not (called := self.messages[reply].get("tool_calls")):
            return {"role": "user", "content": "x"}
        call = called[-1]
        answer = {"role": "tool", "content": "x", "name": call["function"]["name"]}
        return answer | ({"tool_call_id": call["id"]} if "id" in call else {})

    def _last_text(self, reply: int, text: str, start: int = 0) -> tuple[str, int]:
        """The reply's text that comes last from `start` on, and where it ends; ("", start)."""
        found = [("", start)]
        for leaf in _leaves(self.messages[reply]):
            leaf = leaf.split("</think>")[-1].strip()
            if leaf and (place := text.rfind(leaf, start)) >= 0:
                found.append((leaf, place + len(leaf)))
        return max(found, key=lambda item: item[1])


def _leaves(value) -> list[str]:
    """The texts of a message, without its role."""
    if isinstance(value, dict):
        return [t for key, item in value.items() if key != "role" for t in _leaves(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _leaves(item)]
    return [value] if isinstance(value, str) else []


def _is_blank(message: Message) -> bool:
    return not (message.content.strip() or message.tool_calls or message.role != "assistant")


@dataclass(frozen=True)
class End:
    """Where the model stops after a reply: position `end` of a view.

    kind:  "special", an end of turn; "opening", the token that opens the next role's turn;
           "text", other text of the template; "space", white space; "none", nothing at all
    added: whether the view holds a token that the template writes only when a turn follows
    """

    view: View
    end: int
    kind: str
    added: bool = False


class Unclear(Exception):
    """There is nothing that could be right, so whatever is not refused is wrong."""


# --- the judge -----------------------------------------------------------------------------------


def complaints(conversation: Conversation, samples, writer: Writer) -> list[str]:
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
                found += _run_complaints(conversation, sample, run, views)
            found += _stop_complaints(sample, views)
            found += _text_complaints(conversation, sample, views)
        except Unclear as unclear:
            found.append(str(unclear))
        except Exception as error:  # The template's own refusal, of whatever kind.
            found.append(f"what a server would send cannot be rendered: {error!r}"[:120])
    trained = [n for n, m in enumerate(conversation) if m.role == "assistant" and m.train]
    with suppress(Exception):  # said above
        empty = {reply for reply in trained if reply not in graded and views.is_empty(reply)}
        trained = [reply for reply in trained if reply not in empty]
        kinds = Counter(views.end(reply).kind for reply in trained)
        least = len(empty) + kinds["none"]
        # White space, or text behind a reply without a text of its own, may be taken for a stop.
        most = least + kinds["space"] + kinds["text"] * any(map(_is_blank, conversation))
        counted = sum(sample.unstopped for sample in samples)
        if not least <= counted <= most:
            found.append(f"{least} replies have no stop, and {counted} are counted")
    if sorted(graded) != trained:
        found.append(f"graded are the turns {graded}, trained are {trained}")
    return found


def _run_complaints(conversation, sample, run, views: Views) -> list[str]:
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
    end = views.end(run.message)
    found += _same(f"turn {run.message}: graded", ids, end.view, len(prompt.text), end.end, views)
    text, message = writer.decode(ids), conversation[run.message]
    if writer.spoken((message.reasoning or "").strip()) not in text:
        found.append(f"turn {run.message}: the reasoning is lost")
    return found + _lost(message, text, writer, run.message)


def _stop_complaints(sample, views: Views) -> list[str]:
    """Where there is a token at which the model stops, the graded reply ends with it."""
    found = []
    for run in sample.graded:
        special = sample.input_ids[run.end - 1] in views.writer.control
        if special != (views.end(run.message).kind in ("special", "opening")):
            found.append(f"turn {run.message}: the graded reply does not end where it stops")
    return found


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
    """What of a message is missing in the text; of reasoning, the history may be without."""
    found, content = [], writer.spoken(message.content.split("</think>")[-1].strip())
    forms = {content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]}
    if not any(form in text for form in forms):
        found.append(f"turn {turn}: the content of the {message.role} turn is lost")
    for call in message.tool_calls:
        wanted = _words(call["function"]) - {"name", "arguments"}
        if not all(word in text for word in wanted):
            found.append(f"turn {turn}: a tool call is lost, wholly or in part")
    return found


def _text_complaints(conversation, sample, views: Views) -> list[str]:
    """The sample as a whole is what the template writes, and what it writes holds every text."""
    writer, text = views.writer, views.writer.decode(sample.input_ids)
    last = sample.graded[-1].message
    found = []
    for turns in dict.fromkeys((len(conversation), *range(last + 1, len(conversation)))):
        whole = views(turns)
        if turns == last + 1 and views.end(last).added:
            whole = views.end(last).view
        spoken = writer.spoken(whole.text)
        if spoken.startswith(text) and spoken[len(text) :].strip() in ("", views.farewell.strip()):
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


# --- outcomes ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one conversation with one template."""

    kind: str  # exact, refused or wrong
    why: str = ""
    samples: list = field(default_factory=list)
    writer: Writer | None = None
    views: Views | None = None

    @cached_property
    def ends(self) -> list[tuple[str, str]]:
        """Of each graded reply: the kind of its end, and the token or text that it ends with."""
        found = []
        for sample in self.samples:
            for run in sample.graded:
                kind = self.views.end(run.message).kind
                last = self.writer.decode(sample.input_ids[run.end - 1 : run.end])
                found.append((kind, last if kind in ("special", "opening") else ""))
        return found


def judged(conversation: Conversation, tokenizer, writer: Writer) -> Outcome:
    """The outcome of one conversation with the tokenizer's template."""
    try:
        samples = training_samples(conversation, tokenizer, **writer.options)
    except MaskError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        return Outcome("wrong", f"crashed: {error!r}")
    problems = complaints(conversation, samples, writer)
    if problems:
        return Outcome("wrong", "; ".join(dict.fromkeys(problems)), samples, writer)
    return Outcome("exact", "", samples, writer, Views(writer, conversation))
