"""The one canonical schema: a conversation is a list of turns, each with a role and a text.

Everything later in the course (templates, masks, batches, replies) starts from these two classes.
On disk a conversation is one line of JSON:

    {"id": "greeting", "messages": [{"role": "user", "content": "Hi"}, ...], "tags": ["everyday"]}
"""

import json
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
    """One turn: who speaks (one of `ROLES`) and the text."""

    role: str
    content: str

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
        try:
            self.content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConversationError(
                f"the content of the {self.role} turn holds a lone surrogate at character "
                f"{error.start}, which no tokenizer can encode. Repair the text at its source."
            ) from None


@dataclass(frozen=True)
class Conversation:
    """A list of turns. `id`, `tags` and `meta` describe the record; equality looks at them too."""

    messages: tuple[Message, ...]
    id: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict = field(default_factory=dict)

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
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "tags", tuple(self.tags))

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
        return Conversation(self.messages[:turns], self.id, self.tags, self.meta)

    def as_messages(self) -> list[dict]:
        """The list of dicts that `apply_chat_template` takes."""
        return [{"role": m.role, "content": m.content} for m in self.messages]

    def as_record(self) -> dict:
        """The dict that becomes one line of JSON."""
        record = {"id": self.id} if self.id is not None else {}
        record["messages"] = self.as_messages()
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
    known = {"id", "messages", "tags"}
    try:
        return Conversation(
            messages=tuple(record["messages"]),
            id=record.get("id"),
            tags=record.get("tags", ()),
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


def _message(fields: Mapping, position: int) -> Message:
    if not isinstance(fields, Mapping):
        raise ConversationError(
            f"message {position} is {type(fields).__name__}. "
            "Write it as an object with 'role' and 'content'."
        )
    missing = {"role", "content"} - set(fields)
    if missing:
        raise ConversationError(
            f"message {position} has no field {' and '.join(sorted(missing))}, "
            f"only {sorted(fields)}. Every message needs 'role' and 'content'."
        )
    extra = set(fields) - {"role", "content"}
    if extra:
        # Dropping a field such as tool_calls would change what is trained without a word.
        raise ConversationError(
            f"message {position} has fields this schema does not know: {sorted(extra)}. "
            "Write them into the content or remove them first."
        )
    try:
        return Message(fields["role"], fields["content"])
    except ConversationError as error:
        raise ConversationError(f"message {position}: {error}") from None
