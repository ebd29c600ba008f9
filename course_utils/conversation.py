"""The one canonical schema: a conversation is a list of turns, each with a role and a text.

Everything later in the course (templates, masks, batches, replies) starts from these two classes.
On disk a conversation is one line of JSON:

    {"id": "greeting", "messages": [{"role": "user", "content": "Hi"}, ...], "tags": ["everyday"]}

An assistant's message may also hold `reasoning_content` (what it thought before it answered),
`tool_calls`, `train` (false: never graded) and `weight` (how much its tokens count); a tool's
message `name` and `tool_call_id`. The conversation may hold `tools`, the descriptions of what may
be called. These are the names that chat templates read.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROLES = ("system", "user", "assistant", "tool")

# Which roles may stand after which; None is the start of the conversation.
NEXT_ROLES = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class ConversationError(ValueError):
    """A record is no conversation; the message names the record, the place and what to do."""


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (one of `ROLES`), the text, and what else the turn holds.

    reasoning:    what the assistant thought before it answered; None: it did not
    tool_calls:   the assistant's calls, each {"type": "function", "function": {"name": ...,
                  "arguments": {...}}}, perhaps with an "id". The two inner fields alone will do,
                  and arguments may come as JSON text.
    name:         of the tool whose output this is
    tool_call_id: of the call that a tool answers
    train:        False: this reply is never graded
    weight:       how much each of the reply's tokens counts in the loss, above 0
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    train: bool = True
    weight: float = 1.0

    def __post_init__(self):
        if self.role not in ROLES:
            raise ConversationError(
                f"unknown role {self.role!r}: the roles are {', '.join(ROLES)}. "
                "Map the role names of your source to these first."
            )
        if not isinstance(self.content, str):
            raise ConversationError(
                f"the content of the {self.role} turn is {type(self.content).__name__}, not text. "
                "Join content parts into one string; a turn without text has the content ''."
            )
        self._check_text(self.content, "content")
        self._check_owner("assistant", "reasoning_content", self.reasoning is not None)
        self._check_owner("assistant", "tool_calls", self.tool_calls not in ((), [], None))
        self._check_owner("assistant", "train", self.train is not True)
        self._check_owner("assistant", "weight", self.weight != 1)
        self._check_owner("tool", "tool_call_id", self.tool_call_id is not None)
        self._check_owner("tool", "name", self.name is not None)
        for text, field_name in (
            (self.reasoning, "reasoning_content"),
            (self.name, "name"),
            (self.tool_call_id, "tool_call_id"),
        ):
            if text is not None and not isinstance(text, str):
                raise ConversationError(
                    f"the {field_name} {text!r} is not text. Write it in quotes."
                )
            self._check_text(text or "", field_name)
        if not isinstance(self.train, bool):
            raise ConversationError(f"'train' is {self.train!r}: write true or false.")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < math.inf:
            raise ConversationError(
                f"the weight is {self.weight!r}: give a number above 0. A reply that is not to "
                'count has "train": false.'
            )
        calls = tuple(_tool_call(call, place) for place, call in enumerate(self.tool_calls or ()))
        object.__setattr__(self, "tool_calls", calls)
        for call in calls:
            self._check_text(json.dumps(call, ensure_ascii=False), "tool call")

    def _check_text(self, text: str, field_name: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConversationError(
                f"the {field_name} of the {self.role} turn holds a lone surrogate at character "
                f"{error.start}, which no tokenizer can encode. Repair the text at its source."
            ) from None

    def _check_owner(self, role: str, field_name: str, present: bool) -> None:
        if present and self.role != role:
            article = "an" if role == "assistant" else "a"
            raise ConversationError(
                f"the {self.role} turn has the field {field_name!r}, which only {article} {role} "
                "turn may have. Remove it, or mend the role."
            )

    @property
    def is_plain(self) -> bool:
        """Nothing but a role and a text, graded as any other."""
        return (
            self.train
            and self.reasoning is None
            and not self.tool_calls
            and self.name is None
            and self.tool_call_id is None
        )

    def as_message(self) -> dict:
        """The dict that a chat template reads: without `train` and `weight`, and without gaps."""
        fields = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            fields["reasoning_content"] = self.reasoning
        if self.tool_calls:
            fields["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.name is not None:
            fields["name"] = self.name
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        return fields

    def as_record(self) -> dict:
        """The dict that is written to disk."""
        fields = self.as_message()
        if not self.train:
            fields["train"] = False
        if self.weight != 1:
            fields["weight"] = self.weight
        return fields


@dataclass(frozen=True)
class Conversation:
    """A list of turns, and the tools that may be called in it.

    `id`, `tags` and `meta` describe the record; equality looks at them too. `tools` holds one
    description a tool, as JSON schema: {"type": "function", "function": {"name": ..., ...}}.
    """

    messages: tuple[Message, ...]
    id: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict = field(default_factory=dict)
    tools: tuple[dict, ...] = ()

    def __post_init__(self):
        messages = tuple(
            message if isinstance(message, Message) else _message(message, position)
            for position, message in enumerate(self.messages)
        )
        if not messages:
            raise ConversationError(
                "the conversation is empty. Give it at least one message, or drop the record."
            )
        if not isinstance(self.id, str | None):
            raise ConversationError(f"the id {self.id!r} is not text. Write it in quotes.")
        if not isinstance(self.tags, list | tuple) or not all(
            isinstance(tag, str) for tag in self.tags
        ):
            raise ConversationError(
                f"the tags {self.tags!r} are not a list of texts. "
                'Write them as ["one", "two"], or leave the field out.'
            )
        if not isinstance(self.tools, list | tuple) or not all(
            isinstance(tool, Mapping) for tool in self.tools
        ):
            raise ConversationError(
                "'tools' is not a list of objects. Write one JSON schema a tool, or leave it out."
            )
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "tags", tuple(self.tags))
        object.__setattr__(self, "tools", tuple(self.tools))

    def __len__(self):
        return len(self.messages)

    def __iter__(self):
        return iter(self.messages)

    def __getitem__(self, position):
        return self.messages[position]

    @property
    def roles(self) -> list[str]:
        return [message.role for message in self.messages]

    def prefix(self, turns: int) -> "Conversation":
        """The conversation's first `turns` messages."""
        return Conversation(self.messages[:turns], self.id, self.tags, self.meta, self.tools)

    def as_messages(self) -> list[dict]:
        """The list of dicts that `apply_chat_template` takes."""
        return [message.as_message() for message in self.messages]

    def as_record(self) -> dict:
        """The dict that becomes one line of JSON."""
        record = {"id": self.id} if self.id is not None else {}
        record["messages"] = [message.as_record() for message in self.messages]
        if self.tools:
            record["tools"] = list(self.tools)
        if self.tags:
            record["tags"] = list(self.tags)
        return record | self.meta


def conversation(*turns: tuple[str, str], id: str | None = None) -> Conversation:
    """Build a conversation from (role, content) pairs: `conversation(("user", "Hi"))`."""
    return Conversation(tuple(Message(role, content) for role, content in turns), id=id)


def from_record(record: Mapping, where: str = "the record") -> Conversation:
    """Read one decoded line of JSON; `where` names it in errors."""
    if not isinstance(record, Mapping):
        raise ConversationError(
            f"{where}: expected a JSON object with 'messages', got {type(record).__name__}. "
            "Write one conversation per line."
        )
    name = f"{where} (id {record['id']!r})" if record.get("id") is not None else where
    if "messages" not in record:
        hint = (
            "'conversations' is the ShareGPT layout: rename it to 'messages', 'from' to 'role' "
            "and 'value' to 'content', and map the role names."
            if "conversations" in record
            else "A conversation's turns stand in 'messages'."
        )
        raise ConversationError(f"{name}: no field 'messages', only {sorted(record)}. {hint}")
    if not isinstance(record["messages"], list):
        raise ConversationError(f"{name}: 'messages' must be a list of role-and-content objects.")
    known = {"id", "messages", "tags", "tools"}
    try:
        return Conversation(
            messages=tuple(record["messages"]),
            id=record.get("id"),
            tags=record.get("tags", ()),
            tools=record.get("tools") or (),
            meta={key: value for key, value in record.items() if key not in known},
        )
    except ConversationError as error:
        raise ConversationError(f"{name}: {error}") from None


def check_turns(conversation: Conversation) -> Conversation:
    """Return the conversation if its turns alternate; raise `ConversationError` if not.

    A system text may open it; then user and assistant take turns, and an assistant turn may be
    followed by tool outputs that lead to another assistant turn.
    """
    previous = None
    for position, role in enumerate(conversation.roles):
        if role not in NEXT_ROLES[previous]:
            place = f"after {previous}" if previous else "at the start"
            raise ConversationError(
                f"the turns do not alternate: message {position} is {role} {place}, where only "
                f"{' or '.join(NEXT_ROLES[previous])} may stand. "
                "Merge the turns, or drop the record: a template would render it wrongly or refuse."
            )
        previous = role
    return conversation


def load_conversations(path: str | Path, *, alternate: bool = True) -> list[Conversation]:
    """Read a JSONL file of conversations, each checked.

    With `alternate` (the default) turns must alternate as `check_turns` says. Every error is a
    `ConversationError` (a missing file a `FileNotFoundError`) that names file, line and remedy.
    Blank lines are skipped; nothing else is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected JSONL, one conversation per line.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ConversationError(
            f"{path}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    conversations, first_line_of = [], {}
    # Only "\n" ends a line of JSONL: splitlines() would also cut at U+2028 inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConversationError(
                f"{where}: broken JSON ({error.msg} at column {error.colno}). "
                "Every line must be one complete JSON object."
            ) from None
        found = from_record(record, where)
        if alternate:
            try:
                check_turns(found)
            except ConversationError as error:
                raise ConversationError(f"{where} (id {found.id!r}): {error}") from None
        if found.id is not None and found.id in first_line_of:
            raise ConversationError(
                f"{where}: the id {found.id!r} already stands in line {first_line_of[found.id]}. "
                "Give every conversation an id of its own."
            )
        first_line_of[found.id] = number
        conversations.append(found)
    if not conversations:
        raise ConversationError(f"{path}: no conversation in it. Expected JSONL, one per line.")
    return conversations


def save_conversations(conversations: Iterable[Conversation], path: str | Path) -> None:
    """Write JSONL that `load_conversations` reads back as it was."""
    lines = [json.dumps(c.as_record(), ensure_ascii=False) + "\n" for c in conversations]
    # A lone surrogate, which UTF-8 cannot hold, is written as JSON's own escape for it.
    Path(path).write_bytes("".join(lines).encode("utf-8", "backslashreplace"))


# The names on disk of what a message may hold besides role and content.
FIELDS = {
    "reasoning_content": "reasoning",
    "tool_calls": "tool_calls",
    "name": "name",
    "tool_call_id": "tool_call_id",
    "train": "train",
    "weight": "weight",
}


def _message(fields: Mapping, position: int) -> Message:
    if not isinstance(fields, Mapping):
        raise ConversationError(
            f"message {position} is {type(fields).__name__}. "
            "Write it as an object with 'role' and 'content'."
        )
    if fields.get("tool_calls") and fields.get("content") is None:
        fields = {**fields, "content": ""}  # Several services write null beside a call.
    missing = {"role", "content"} - set(fields)
    if missing:
        raise ConversationError(
            f"message {position} has no field {' and '.join(sorted(missing))}, "
            f"only {sorted(fields)}. Every message needs 'role' and 'content'."
        )
    extra = set(fields) - {"role", "content", *FIELDS}
    if extra:
        # Dropping a field would change what is trained without a word.
        raise ConversationError(
            f"message {position} has fields this schema does not know: {sorted(extra)}. "
            "Write them into the content or remove them first."
        )
    present = {FIELDS[key]: value for key, value in fields.items() if key in FIELDS}
    try:
        return Message(
            fields["role"],
            fields["content"],
            **{key: value for key, value in present.items() if value is not None},
        )
    except ConversationError as error:
        raise ConversationError(f"message {position}: {error}") from None


def _tool_call(call, place: int) -> dict:
    """The call in the one form that templates expect, with arguments as an object."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not {"name", "arguments"} <= set(inner):
        raise ConversationError(
            f"tool call {place} is no object with 'name' and 'arguments'. "
            'Write {"type": "function", "function": {"name": ..., "arguments": {...}}}.'
        )
    arguments = inner["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            raise ConversationError(
                f"tool call {place}: the arguments are broken JSON ({error.msg}). Mend them."
            ) from None
    if not isinstance(arguments, Mapping) or not isinstance(inner["name"], str):
        raise ConversationError(
            f"tool call {place}: the name must be text and the arguments an object, such as "
            '{"city": "Bern"}.'
        )
    function = {"name": inner["name"], "arguments": dict(arguments)}
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": function}
