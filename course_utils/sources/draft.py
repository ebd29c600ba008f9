"""The conversation in the making: turns, what the schema holds besides them, and the meta."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from course_utils.conversation import (
    NEXT_ROLES,
    Conversation,
    ConversationError,
    Message,
)
from course_utils.records import nulls_in
from course_utils.sources.calls import (
    calls_in,
    definitions_in,
    holds_tools,
    one_call,
    same_tools,
    tagged_calls,
    tagged_results,
    tagged_tools,
    without_grammar,
)
from course_utils.sources.fields import MEANING_FIELDS as MEANING_FIELDS
from course_utils.sources.fields import (
    NO_TEXT_FIELDS,
    Options,
    Rejected,
    check_plain,
    decode_at,
    is_empty,
    optional,
    shown,
)
from course_utils.sources.fields import REASONS as REASONS
from course_utils.sources.fields import decode as decode
from course_utils.tool_schema import without_nulls

OPTIONS = "chat_template_kwargs"
JSON_REASONS = ("lone surrogate", "nested too deeply", "number that JSON lacks")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


class Draft:
    """A conversation in the making. `finish` checks it as a whole."""

    def __init__(self, options: Options):
        self.options = options
        self.messages: list[Message] = []
        self.places: list[str] = []
        self.tools: list[dict] = []
        self.meta: dict = {}

    # --- turns -----------------------------------------------------------------------------------

    def turn(
        self,
        role: str,
        text: str,
        place: str,
        *,
        calls: Sequence[Mapping] = (),
        parts: Sequence[str] = (),
        joint: str = "",
        **about,
    ) -> None:
        """Add a turn; calls, results and definitions in tags leave the text.

        calls: as `calls.one_call` gives them
        parts: the source's pieces of `text`, which `joint` joined
        about: what else `Message` holds
        """
        said = text
        if role == "assistant":
            text, tagged = tagged_calls(text, place)
            if calls and tagged and [_bare(c) for c in calls] != [_bare(c) for c in tagged]:
                raise Rejected("tool tags in the text", place, "other calls than the turn has")
            calls = calls or tagged
        elif role == "tool" or (role == "user" and self._calls_are_open()):
            results = tagged_results(text, place)
            if results is not None:
                return self._results(results, place, **about)
        if role == "system" or (role == "user" and holds_tools(text)):
            text = self._without_tools(text, place)
            if role == "system" and text != said and not text:
                return None
        if not calls and role in ("user", "assistant") and not text.strip():
            raise Rejected("empty text", place, f"the {role} says nothing")
        if len(parts) > 1 and text == said:
            lengths = {"lengths": [len(part) for part in parts]}
            self.note("parts", lengths | ({"joint": joint} if joint else {}))
        return self._add(role, text, place, calls, **about)

    def _add(self, role: str, text: str, place: str, calls: Sequence[Mapping] = (), **about):
        ids = [call["id"] for call in calls if "id" in call]
        if len(set(ids)) < len(ids):
            raise Rejected("broken tool call", place, "two calls have the same id")
        for number, call in enumerate(calls):
            if nulls := list(nulls_in(call["arguments"], "arguments")):
                detail = f"call {number}, {call['name']}: {_first(nulls)}"
                self.warn("null in arguments", place, detail)
        written = tuple(
            {key: call[key] for key in ("id",) if key in call}
            | {"type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
            for call in calls
        )
        try:
            message = Message(role, text, tool_calls=written, **about)
        except ConversationError as error:
            raise _rejected(error, place) from None
        self.messages.append(message)
        self.places.append(place)

    def _calls_are_open(self) -> bool:
        return bool(self.messages) and (
            self.messages[-1].role == "tool" or bool(self.messages[-1].tool_calls)
        )

    def _results(self, results: Sequence, place: str, **about) -> None:
        if len(results) > 1 and about.get("tool_call_id") is not None:
            raise Rejected("result without its call", place, "several results answer one call")
        for id, name, content in results:
            found = {"tool_call_id": id, "name": name}
            for key, value in found.items():
                if None not in (value, about.get(key)) and value != about[key]:
                    raise Rejected("result without its call", place, f"two answers to {key}")
            found = {key: value for key, value in found.items() if value is not None}
            self._add("tool", content, place, **{**about, **found})

    def _without_tools(self, text: str, place: str) -> str:
        """The text without tools, which become the conversation's, and without their grammar."""
        rest, tools = tagged_tools(text, place)
        if tools and self.tools and not same_tools(tools, self.tools):
            detail = "the list in <tools> is not the one that the record has beside it"
            raise Rejected("broken tool definitions", place, detail)
        self.tools = self.tools or tools
        rest, cut = without_grammar(rest, place)
        if cut:
            self.note("call_grammar", {"cut": cut})
            detail = "sentences with tags went to the meta"
            self.warn("grammar of calls in the system text", place, detail)
        return rest.strip() if tools or cut else rest

    # --- what stands beside a text ---------------------------------------------------------------

    def beside(self, message: Mapping, role: str, place: str) -> tuple[dict, set[str]]:
        """(arguments for `turn`, the fields that they come from)"""
        about, used = {}, {"weight", "train"}
        if role == "assistant":
            used |= {"tool_calls", "function_call", *REASONING_FIELDS}
            about["calls"] = _calls(message, place)
            about |= self._grading(message, place)
            thoughts = [optional(message, name, str, place) for name in REASONING_FIELDS]
            if len(found := {thought for thought in thoughts if thought}) > 1:
                raise Rejected("reasoning apart from the text", place, "two different ones")
            if found:
                about["reasoning"] = found.pop()
        elif message.get("train") is True or message.get("weight") not in (None, 0, 1):
            raise Rejected("turn not to be graded", place, f"a turn of the {role}")
        if role == "tool":
            used |= {"tool_call_id", "name"}
            about["tool_call_id"] = optional(message, "tool_call_id", str, place)
            about["name"] = optional(message, "name", str, place)
        return about, used

    def _grading(self, message: Mapping, place: str) -> dict:
        """`train` and `weight` of a reply. A weight of 0 asks not to grade it."""
        train, weight = message.get("train"), message.get("weight")
        if not isinstance(train, bool | None):
            raise Rejected("wrong type", f"{place}.train", f"{shown(train)} is not true or false")
        if weight is None:
            return {} if train is None else {"train": train}
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise Rejected("wrong type", f"{place}.weight", f"{shown(weight)} is no weight")
        check_plain(weight, f"{place}.weight")
        if weight == 0 and train:
            raise Rejected("wrong type", f"{place}.weight", "a weight of 0 beside train: true")
        if weight == 0 or train is False:
            return {"train": False}
        return {"weight": weight}

    def rest_of_message(self, message: Mapping, used: Collection[str], place: str) -> None:
        """Every other field of a message: empty, kept on request, or a reason to reject."""
        kept = {name: message[name] for name in message if name in self.options.keep}
        for name in message:
            if name not in used and name not in kept and not is_empty(message[name]):
                detail = f"{shown(message[name])}: keep it in the meta by name, or remove it"
                raise Rejected("unknown field", f"{place}.{name}", detail)
        if kept:
            check_plain(kept, place)
            self.note("message_fields", {"fields": kept})

    def note(self, name: str, about: Mapping) -> None:
        """Put `about` into the meta under `name`, with the position of the coming message."""
        self.meta.setdefault(name, []).append({"message": len(self.messages), **about})

    def warn(self, warning: str, place: str, detail: str) -> None:
        """One of `fields.WARNINGS`: the record is converted, and the report counts it."""
        found = {"warning": warning, "place": place, "detail": detail}
        self.meta.setdefault("warnings", []).append(found)

    def define(self, record: Mapping) -> None:
        """The record's `tools`, or its old `functions`, are the conversation's tools."""
        tools, functions = (self._definitions(record, key) for key in ("tools", "functions"))
        if tools and functions and not same_tools(tools, functions):
            raise Rejected("broken tool definitions", "functions", "others than in tools")
        self.tools = tools or functions

    def _definitions(self, record: Mapping, key: str) -> list[dict]:
        value = record.get(key)
        if isinstance(value, str) and value:
            value = decode_at(value, key, "broken tool definitions")
        kept = set(nulls_in(without_nulls(value), key))
        if lost := [null for null in nulls_in(value, key) if null not in kept]:
            self.warn("null left out of tools", key, _first(lost))
        return definitions_in(value, key)

    # --- the whole -------------------------------------------------------------------------------

    def finish(self, record: Mapping, source: str, used: Collection[str], id: str | None):
        """The conversation: turns in an order that the schema allows, a reply at the end."""
        rest = {key: value for key, value in record.items() if key not in used}
        for name, value in rest.items():
            known = str(name).lower().replace("-", "_")
            if known in MEANING_FIELDS and not is_empty(value) and name not in self.options.keep:
                reason = "part that is no text" if known in NO_TEXT_FIELDS else "unknown field"
                detail = f"source {source!r} has no such field: keep it in the meta, or remove it"
                raise Rejected(reason, name, detail)
        check_plain(rest, "")
        if id is not None and rest.get("id") == id:
            del rest["id"]  # It is the conversation's own.
        if not self.messages:
            raise Rejected("no turns", "", "nothing was said")
        previous = None
        for message, place in zip(self.messages, self.places, strict=True):
            if message.role not in NEXT_ROLES[previous]:
                after = f"after {previous}" if previous else "at the start"
                detail = f"{message.role} {after}, where only {' or '.join(NEXT_ROLES[previous])}"
                raise Rejected("turn order", place, f"{detail} may stand")
            previous = message.role
        if previous != "assistant":
            raise Rejected("no reply at the end", self.places[-1], f"the last turn is {previous}")
        self._match_results()
        options = rest.pop(OPTIONS, None) or {}
        meta = {"source": source, **self.meta, **({"fields": rest} if rest else {})}
        try:
            return Conversation(tuple(self.messages), id, (), meta, tuple(self.tools), options)
        except ConversationError as error:
            raise _rejected(error, error.field or "") from None

    def _match_results(self) -> None:
        """Give every result its call: the one it names, or else the next in the calls' order."""
        calls, first = [], 0
        for position, message in enumerate(self.messages):
            if message.role == "tool":
                continue
            self._match(calls, range(first, position))
            calls, first = list(message.tool_calls), position + 1

    def _match(self, calls: list[dict], results: range) -> None:
        each_has_its_own = len(calls) == len(results)
        for position in results:
            result = self.messages[position]
            fitting = [
                call
                for call in calls
                if result.tool_call_id in (None, call.get("id"))
                and result.name in (None, call["function"]["name"])
            ]
            if not fitting:
                asked = shown(result.tool_call_id or result.name)
                detail = f"no call {asked} is open" if calls else "no call is open"
                raise Rejected("result without its call", self.places[position], detail)
            calls.remove(fitting[0])
            names = {call["function"]["name"] for call in fitting}
            certain = each_has_its_own or len(fitting) == 1
            self.messages[position] = replace(
                result,
                name=fitting[0]["function"]["name"] if certain or len(names) == 1 else None,
                tool_call_id=fitting[0].get("id") if certain else result.tool_call_id,
            )


def _rejected(error: ConversationError, place: str) -> Rejected:
    """What the schema refuses, under the reason that it names or that its field has."""
    named = [reason for reason in JSON_REASONS if reason in str(error)]
    field = (error.field or "").partition("[")[0]
    fields = {"tool_calls": "broken tool call", "tools": "broken tool definitions"}
    return Rejected([*named, fields.get(field, "wrong type")][0], place, str(error))


def _calls(message: Mapping, place: str) -> list[dict]:
    calls = []
    for key in ("tool_calls", "function_call"):
        if not is_empty(value := message.get(key)):
            here = f"{place}.{key}"
            if key == "function_call":
                calls.append(one_call(value, here))
            elif isinstance(value, list):
                calls += calls_in(value, here)
            else:
                raise Rejected("wrong type", here, f"{type(value).__name__} instead of list")
    return calls


def _first(places: list[str]) -> str:
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def _bare(call: Mapping) -> dict:
    return {key: call[key] for key in ("name", "arguments")}


def parts_of(conversation: Conversation, position: int) -> list[str]:
    """The pieces in which the source held the text of one message."""
    text = conversation[position].content
    for about in conversation.meta.get("parts", []):
        if about["message"] == position:
            pieces, start = [], 0
            for length in about["lengths"]:
                pieces.append(text[start : start + length])
                start += length + len(about.get("joint", ""))
            return pieces
    return [text]
