"""The mixture: which parts a model is fine-tuned on, why, and how often it sees each."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from course_utils.conversation import Conversation, load_conversations
from course_utils.curriculum import hub as the_hub
from course_utils.curriculum.hub import HubSource, Notice
from course_utils.curriculum.identity import identity
from course_utils.curriculum.tasks import TASKS
from course_utils.miniweb import chats

DATA = Path(__file__).resolve().parents[2] / "data"


class MixtureError(ValueError):
    """A mixture that cannot be made; says what to do."""


@dataclass(frozen=True)
class Part:
    """A part of the curriculum.

    why:    what the model would lack without it
    local:  makes its rows, the same in every call, without a network
    hub:    where more rows are when online
    epochs: how often each row is shown; 0.5 shows half of the rows once
    """

    name: str
    why: str
    local: Callable[[], Sequence[Conversation]]
    hub: HubSource | None = None
    epochs: float = 1.0


class Source(NamedTuple):
    """Where a row of the mixture comes from: row and epoch count from 0, id is the part's own."""

    part: str
    row: int
    epoch: int
    id: str | None


class Line(NamedTuple):
    """A line of the mixture's table. `used` rows are shown, `share` is their part of all."""

    part: str
    why: str
    rows: int
    epochs: float
    used: int
    share: float


class Mixture(Sequence):
    """Conversations of all parts in one order. `mixture[i]` is one, `source(i)` where it is from.

    notices: what to tell the learner about the parts from the Hub
    """

    def __init__(
        self,
        parts: Sequence[Part],
        rows: Mapping[str, Sequence[Conversation]],
        seed: int,
        notices: Sequence[Notice] = (),
    ):
        self.parts, self.notices = tuple(parts), tuple(notices)
        self._rows = rows
        shown = [
            (part.name, row, epoch)
            for part in parts
            for epoch, row in _shown(part, len(rows[part.name]), seed)
        ]
        # Sorted by a hash: the order is random, and without one part the others keep theirs.
        self._order = sorted(shown, key=lambda place: _digest(seed, *place))

    def __len__(self):
        return len(self._order)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        part, row, epoch = self._order[index]
        chat = self._rows[part][row]
        meta = {**chat.meta, "part": part} | ({"part_id": chat.id} if chat.id else {})
        return replace(chat, id=f"{part}.{row}.{epoch}", meta=meta)

    def source(self, index: int) -> Source:
        """The part, row and epoch behind `mixture[index]`."""
        part, row, epoch = self._order[index]
        return Source(part, row, epoch, self._rows[part][row].id)

    def table(self) -> list[Line]:
        """A line for every part, in their order."""
        used = {part.name: 0 for part in self.parts}
        for part, _, _ in self._order:
            used[part] += 1
        return [
            Line(
                part.name,
                part.why,
                len(self._rows[part.name]),
                part.epochs,
                used[part.name],
                used[part.name] / max(1, len(self)),
            )
            for part in self.parts
        ]

    def __str__(self):
        lines = [f"{'part':<16} {'rows':>6} {'epochs':>7} {'used':>6} {'share':>6}  why"]
        lines += [
            f"{line.part:<16} {line.rows:>6,} {line.epochs:>7g} {line.used:>6,} "
            f"{line.share:>6.1%}  {line.why}"
            for line in self.table()
        ]
        rows = sum(line.rows for line in self.table())
        return "\n".join([*lines, f"{'all':<16} {rows:>6,} {'':>7} {len(self):>6,} {1:>6.1%}"])


def mixture(
    parts: Sequence[Part],
    seed: int = 0,
    *,
    epochs: Mapping[str, float] | None = None,
    without: Sequence[str] = (),
    online: bool = False,
) -> Mixture:
    """Mix the parts, the same for the same seed.

    epochs:  {part: epochs} instead of a part's own
    without: parts to leave out
    online:  add the rows of the Hub; what cannot be had stands in `notices`
    """
    names = [part.name for part in parts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MixtureError(f"two parts are named {twice[0]!r}. Give each a name of its own.")
    for name in (*(epochs or {}), *without):
        if name not in names:
            raise MixtureError(f"no part {name!r}: the parts are {', '.join(names)}.")
    chosen = [
        replace(part, epochs=(epochs or {}).get(part.name, part.epochs))
        for part in parts
        if part.name not in without
    ]
    for part in chosen:
        if not (math.isfinite(part.epochs) and part.epochs >= 0):
            raise MixtureError(f"{part.name}: {part.epochs} epochs. Give a number of 0 or more.")
    rows = {part.name: list(part.local()) for part in chosen}
    notices = []
    for part in chosen:
        if online and part.hub and part.epochs:
            more, notice = the_hub.load(part.hub)
            rows[part.name] += more
            notices.append(notice)
    if online and not any(part.hub for part in chosen):
        notices.append(Notice("No part of this mixture has rows on the Hub."))
    made = Mixture(chosen, rows, seed, notices)
    if not made:
        raise MixtureError("no rows are left in the mixture. Leave in a part, with more epochs.")
    return made


def _shown(part: Part, rows: int, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, row) for every time that a row is shown; the last epoch may show some rows only."""
    whole, rest = divmod(part.epochs, 1)
    for epoch in range(int(whole)):
        yield from ((epoch, row) for row in range(rows))
    order = sorted(range(rows), key=lambda row: _digest(seed, part.name, row, "some"))
    yield from ((int(whole), row) for row in order[: round(rest * rows)])


def _digest(*what) -> bytes:
    return hashlib.blake2b(repr(what).encode(), digest_size=8).digest()


# --- the parts -----------------------------------------------------------------------------------


def _chats(kind: str, number: int) -> Callable[[], list[Conversation]]:
    """The mini-web's conversations of one kind."""
    return lambda: chats.conversations(number, mixture={kind: 1})


def _talk() -> list[Conversation]:
    """Small talk, but for what the identity set answers: one question, one answer."""
    asked = {m.content for chat in identity() for m in chat if m.role == "user"} - {"Hello!"}
    found = _chats("talk", 200)()
    return [chat for chat in found if not asked & {m.content for m in chat if m.role == "user"}]


def _everyday_chat() -> list[Conversation]:
    paths = (DATA / "conversations.jsonl", DATA / "curriculum" / "chat.jsonl")
    return [chat for path in paths if path.is_file() for chat in load_conversations(path)]


def _tasks(hub: bool) -> tuple[Part, ...]:
    sources = the_hub.SOURCES if hub else {}
    return (
        Part("identity", "says who it is, whatever it is called", identity, epochs=12),
        Part(
            "multiple-choice",
            "binds an answer to its letter, and says only that",
            TASKS["multiple-choice"].conversations,
            sources.get("mmlu"),
        ),
        Part(
            "arithmetic",
            "writes the steps before the result",
            TASKS["arithmetic"].conversations,
            sources.get("gsm8k"),
        ),
        Part(
            "spelling",
            "sees letters, where its tokens are pieces of words",
            TASKS["spelling"].conversations,
        ),
    )


# For course-base, which knows nothing but its mini-web.
PARTS = (
    Part("facts", "answers a question, then stops", _chats("single", 700)),
    Part("follow-ups", "understands a question through the one before", _chats("follow_up", 600)),
    Part("form", "obeys what the system text says of the form", _chats("constraint", 560)),
    Part("talk", "greets and thanks, and does not look for a fact in it", _talk),
    *_tasks(hub=False),
)

# For a real base, which has read the web.
REAL_PARTS = (
    Part(
        "everyday-chat",
        "answers everyday requests in the form that was asked for",
        _everyday_chat,
        the_hub.SOURCES["smoltalk"],
    ),
    *_tasks(hub=True),
)

BASES = {"course-base": PARTS, "real": REAL_PARTS}
