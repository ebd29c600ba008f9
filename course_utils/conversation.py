"""The one canonical schema: a conversation is a list of turns, each with a role and a text.

Everything later in the course (templates, masks, batches, replies) starts from these two classes.
On disk a conversation is one line of JSON:

    {"id": "greeting", "messages": [{"role": "user", "content": "Hi"}, ...], "tags": ["everyday"]}

An assistant's message may also hold `reasoning_content` (what it thought before it answered),
`tool_calls`, `train` (false: never graded) and `weight` (how much its tokens count); a tool's
message `name` and `tool_call_id`. The conversation may hold `tools`, the descriptions of what may
be called, and `chat_template_kwargs`, options of the template for this conversation. These are the
names that chat templates read. How records are read is told in `records`.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from course_utils.faults import DEEP, ConversationError, Faults
from course_utils.strict_json import shown
from course_utils.tool_schema import tool_calls, tool_definitions

ROLES = ("system", "user", "assistant", "tool")

# Which roles may follow which; None is the start of the conversation.
NEXT_ROLES = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

WEIGHTS = (1e-6, 1e6)  # what a loss in 16 or 32 bits can still tell from zero and from infinity

# The fields of a record, and fields of other schemas that change what a model reads. They may not
# be in the meta, where nothing would read them.
FIELDS = ("id", "messages", "tags", "tools", "system", "functions", "chat_template_kwargs")
PROMPT_FIELDS = (
    *("image", "images", "video", "videos", "audio", "audios", "document", "documents", "media"),
    *("attachments", "history", "system_prompt", "chat_template", "enable_thinking"),
    *("reasoning_effort", "add_generation_prompt", "continue_final_message"),
)
# What the caller of a template, or the tokenizer, passes to it for every conversation.
TAKEN_OPTIONS = (
    *("messages", "tools", "documents", "conversation", "conversations", "chat_template"),
    *("tokenize", "sanitize_control_tokens"),
    *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    *("raise_exception", "strftime_now", "self", "processor_kwargs", "load_audio_from_video"),
)


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
    weight:       how much each of the reply's tokens counts in the loss, above 0; a weight of 0
                  means `train=False`
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
        faults = Faults()
        if not _is_role(self.role):
            faults.add(
                f"unknown role {shown(self.role)}: the roles are {', '.join(ROLES)}. "
                "Map the role names of your source to these first.",
                "role",
            )
        else:
            self._check_owners(faults)
        self._check_texts(faults)
        if not isinstance(self.train, bool):
            faults.add(f"'train' is {shown(self.train)}: write true or false.", "train")
        if not _is_weight(self.weight):
            faults.add(
                f"the weight is {shown(self.weight)}: give a number above 0 ({WEIGHTS[0]:g} to "
                f"{WEIGHTS[1]:,.0f}), or 0 for a reply that is not to count.",
                "weight",
            )
        elif self.weight == 0:
            object.__setattr__(self, "train", False)
            object.__setattr__(self, "weight", 1.0)
        object.__setattr__(self, "tool_calls", tool_calls(self.tool_calls, faults))
        faults.check()

    def _check_owners(self, faults: Faults) -> None:
        calls = self.tool_calls if isinstance(self.tool_calls, list | tuple | None) else [...]
        for owner, field_name, present in (
            ("assistant", "reasoning_content", self.reasoning is not None),
            ("assistant", "tool_calls", calls is not None and calls not in ((), [])),
            ("assistant", "train", self.train is not True),
            ("assistant", "weight", not _is_weight(self.weight) or self.weight != 1),
            ("tool", "tool_call_id", self.tool_call_id is not None),
            ("tool", "name", self.name is not None),
        ):
            if present and self.role != owner:
                article = "an" if owner == "assistant" else "a"
                faults.add(
                    f"the {self.role} turn has the field {field_name!r}, which only {article} "
                    f"{owner} turn may have. Remove it, or mend the role.",
                    field_name,
                )

    def _check_texts(self, faults: Faults) -> None:
        turn = f"the {self.role} turn" if _is_role(self.role) else "the turn"
        if not isinstance(self.content, str):
            faults.add(
                f"the content of {turn} is {type(self.content).__name__}, not text. "
                "Join content parts into one string; a turn without text has the content ''.",
                "content",
            )
        for text, field_name in (
            (self.content, "content"),
            (self.reasoning, "reasoning_content"),
            (self.name, "name"),
            (self.tool_call_id, "tool_call_id"),
        ):
            if isinstance(text, str):
                faults.plain(text, field_name)
            elif text is not None and field_name != "content":
                faults.add(
                    f"the {field_name} {shown(text)} is not text. Write it in quotes.", field_name
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

    messages:         turns, or the dicts that they are read from
    id, tags, meta:   describe the record; equality looks at them too. The meta holds every other
                      field of a record; a `source` in it is text
    tools:            one definition a tool, {"type": "function", "function": {"name": ...,
                      "description": ..., "parameters": a JSON schema}}. The inner object alone, a
                      single definition and JSON text will do; null in a schema is left out
    template_options: what the chat template is given besides, such as {"enable_thinking": False};
                      on disk `chat_template_kwargs`
    """

    messages: tuple[Message, ...]
    id: str | None = None
    tags: tuple[str, ...] = ()
    meta: dict = field(default_factory=dict)
    tools: tuple[dict, ...] = ()
    template_options: dict = field(default_factory=dict)

    def __post_init__(self):
        from course_utils.records import read_messages

        faults = Faults()
        messages = read_messages(self.messages, faults)
        if not isinstance(self.id, str | None):
            faults.add(f"the id {shown(self.id)} is not text. Write it in quotes.", "id")
        tags = self.tags
        if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
            faults.add(
                f"the tags {shown(tags)} are not a list of texts. "
                'Write them as ["one", "two"], or leave the field out.',
                "tags",
            )
            tags = ()
        faults.plain(self.id, "id")
        faults.plain(tags, "tags")
        meta = _meta(self.meta, faults)
        tools = tool_definitions(self.tools, faults)
        options = _options(self.template_options, faults)
        faults.check()
        for name, value in (
            ("messages", tuple(messages)),
            ("tags", tuple(tags)),
            ("meta", meta),
            ("tools", tools),
            ("template_options", options),
        ):
            object.__setattr__(self, name, value)

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
        """The conversation's first `turns` messages, at least one."""
        if not self.messages[:turns]:
            raise ConversationError("the conversation is empty. Give it at least one message.")
        prefix = copy.copy(self)
        object.__setattr__(prefix, "messages", self.messages[:turns])
        return prefix

    def as_messages(self) -> list[dict]:
        """The list of dicts that `apply_chat_template` takes."""
        return [message.as_message() for message in self.messages]

    def as_record(self) -> dict:
        """The dict that becomes one line of JSON."""
        record = {"id": self.id} if self.id is not None else {}
        record["messages"] = [message.as_record() for message in self.messages]
        if self.tools:
            record["tools"] = list(self.tools)
        if self.template_options:
            record["chat_template_kwargs"] = self.template_options
        if self.tags:
            record["tags"] = list(self.tags)
        return record | self.meta


def conversation(*turns: tuple[str, str], id: str | None = None) -> Conversation:
    """Build a conversation from (role, content) pairs: `conversation(("user", "Hi"))`."""
    return Conversation(tuple(Message(role, content) for role, content in turns), id=id)


def check_turns(conversation: Conversation) -> Conversation:
    """Return the conversation if its turns alternate; raise `ConversationError` if not.

    A system text may open it; then user and assistant take turns, and an assistant turn may be
    followed by tool outputs that lead to another assistant turn.
    """
    faults = Faults()
    faults.add_errors(turn_faults(conversation.roles))
    faults.check()
    return conversation


def turn_faults(roles: Iterable[str | None], first: int = 0) -> Iterator[ConversationError]:
    """What is wrong with the order of roles; None is an unknown one, `first` numbers the first."""
    previous, known = None, True
    for position, role in enumerate(roles, start=first):
        if role is not None and known and role not in NEXT_ROLES[previous]:
            place = f"after {previous}" if previous else "at the start"
            yield ConversationError(
                f"the turns do not alternate: message {position} is {role} {place}, where only "
                f"{' or '.join(NEXT_ROLES[previous])} may stand. Merge the turns, or drop the "
                "record.",
                message=position,
                field="role",
            )
        previous, known = role, role is not None


def __getattr__(name: str):
    """Reading and writing, which come after the schema, can be imported from here as well."""
    if name in ("from_record", "load_conversations", "save_conversations"):
        from course_utils import records

        return getattr(records, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- what the two classes check ------------------------------------------------------------------


def _is_role(role) -> bool:
    return isinstance(role, str) and role in ROLES


def _is_weight(weight) -> bool:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return number and (weight == 0 or WEIGHTS[0] <= weight <= WEIGHTS[1])


def _meta(meta, faults: Faults) -> dict:
    if not isinstance(meta, dict):
        faults.add(f"the meta is {type(meta).__name__}. Give a dict.", "meta")
        return {}
    meta = faults.plain(meta, "") or {}
    for name, value in meta.items():
        lower = name.lower()
        if lower in PROMPT_FIELDS and value not in (None, "", [], {}):
            faults.add(
                f"the field {shown(name)} changes what a model reads, and this schema has no place "
                "for it. Remove it, or write what it says into the messages (an option of the "
                "template into 'chat_template_kwargs').",
                name,
            )
        elif lower in FIELDS:
            faults.add(f"the field {shown(name)} is none of the meta: write it as {lower!r}.", name)
    if not isinstance(meta.get("source"), str | None):
        faults.add(
            f"the source {shown(meta['source'])} is not text. Write a name in quotes.", "source"
        )
    return meta


def _options(options, faults: Faults) -> dict:
    if not isinstance(options, dict):
        faults.add(
            f"'chat_template_kwargs' is {type(options).__name__}, not an object. Write "
            '{"enable_thinking": false}, or leave the field out.',
            "chat_template_kwargs",
        )
        return {}
    options = faults.plain(options, "chat_template_kwargs", DEEP) or {}
    for name in options:
        taken = name in TAKEN_OPTIONS or name.endswith(("_token", "_tokens"))
        if taken or not name.isidentifier() or name.startswith("_"):
            faults.add(
                f"the template option {shown(name)} cannot be set by a record: "
                f"{'every template is given one' if taken else 'it is no name'}. Remove it.",
                "chat_template_kwargs",
            )
    return options
