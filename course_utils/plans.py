"""What is known of a shape of conversations: the marked text, where its replies stand, the steps.

A `Plan` holds for every conversation of its shape whose texts give the template the same answers.
To use it, take the steps again with that conversation's texts, and fill the marks.
"""

from dataclasses import dataclass

from course_utils.watching import FIRST_MARK, LAST_MARK, Record, Ref, thaw


@dataclass(frozen=True)
class Turn:
    """Positions of a reply in a layout's marked text.

    message: index of the message
    head:    where the header begins, if it was asked for
    start:   where the prompt ends and the model begins to write
    answer:  where what it writes is no longer reasoning
    stop:    where the end of turn begins
    end:     where the end of turn ends, and the model stops
    after:   where the turn ends for the template
    """

    message: int
    head: int | None
    start: int
    answer: int
    stop: int
    end: int
    after: int


@dataclass(frozen=True)
class Layout:
    """The first `messages` of a conversation with marks, and where its graded replies are.

    added: the token that ends the last reply, where the template itself would write it only as the
           opening of a next turn
    unstopped: replies after which nothing is written that would end them
    """

    marked: str
    turns: tuple[Turn, ...]
    messages: int
    added: str = ""
    unstopped: int = 0


class Plan:
    """The layouts of one shape, and the steps that turn a conversation's texts into values."""

    def __init__(
        self,
        record: Record,
        layouts: list[Layout],
        cut_texts: list,
        absent: list,
        number: int = 0,
    ):
        self.layouts, self.number = layouts, number
        # What has to be looked at in every conversation, as (message, number of the text, ...):
        # texts that the template takes apart, with the pieces; texts that it does not write.
        self.cut_texts, self.absent = cut_texts, absent
        self.texts = len(record.texts)
        self.compared, self.sent = 0, False
        marked = "".join(layout.marked for layout in layouts)
        self.marks = {ord(c) - FIRST_MARK for c in marked if is_mark(c)}
        needed = set(self.marks)
        needed |= set(record.answers)
        needed |= {number for _, text, pieces in cut_texts for number in (text, *pieces)}
        for number in reversed(range(self.texts, len(record.values))):
            if number in needed:
                needed |= set(refs(record.steps[number - self.texts][1]))
        # Steps whose result nobody needs are left out; their places stay, so that numbers hold.
        self.steps = [
            (number, *compiled_step(*record.steps[number - self.texts]), record.answers.get(number))
            for number in range(self.texts, len(record.values))
            if number in needed
        ]
        self.answered = set(record.answers)
        self.size = len(record.values)

    def values(self, texts: list[str]) -> list | None:
        """The plan's values for these texts; None if the template would take another way."""
        values = [*texts, *[None] * (self.size - len(texts))]
        for number, function, first, rest, answer in self.steps:
            try:
                value = function(values) if first is None else function(values[first], *rest)
            except Exception:  # whatever it is, the template would have met it, too
                return None
            if number in self.answered and value != answer:
                return None
            values[number] = value
        return values


def is_mark(character: str) -> bool:
    return FIRST_MARK <= ord(character) <= LAST_MARK


def refs(frozen) -> list[int]:
    """The numbers of the values that a step's arguments refer to."""
    if isinstance(frozen, Ref):
        return [frozen.number]
    if isinstance(frozen, dict):
        frozen = [*frozen, *frozen.values()]
    return [n for item in frozen for n in refs(item)] if isinstance(frozen, tuple | list) else []


def compiled_step(function, frozen: tuple):
    """(function, number of the first argument, other arguments), or a function of all values."""
    if isinstance(frozen[0], Ref) and not refs(frozen[1:]):
        return function, frozen[0].number, tuple(frozen[1:])
    return (lambda values: function(*thaw(frozen, values))), None, ()


def fill(marked: str, values: list) -> str:
    """The marked text with a value in the place of each mark."""
    return "".join(values[ord(c) - FIRST_MARK] if is_mark(c) else c for c in marked)
