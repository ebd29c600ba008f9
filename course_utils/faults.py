"""What is wrong with a record: all of it, and the first is raised."""

from collections.abc import Iterable

from course_utils.strict_json import DEEPEST, JSONError, plain, printable

DEEP = DEEPEST - 10  # levels of a call or a definition, which sits in a message of a record

MOST = 100  # errors told of one record

# What to do about what the strict decoder refuses, by its reason.
REMEDIES = {
    "broken JSON": "Every line must be one complete JSON object.",
    "nested too deeply": "Make it flatter, or write it as text.",
    "repeated key": "Some programs read the first, others the last: leave one.",
    "number that JSON lacks": "Write a number that a 64-bit float can hold, or text.",
    "lone surrogate": "Half a character cannot be encoded: repair the text at its source.",
    "wrong type": "Write it as text, number, true, false, null, list or object.",
    "not UTF-8": "Save the file as UTF-8.",
    "line too long": "Split the record, or drop it.",
}


class ConversationError(ValueError):
    """A record is no conversation; the message names the record, the place and what to do.

    message: the position of the faulty message, if it is one
    field:   the name of the faulty field, of that message or of the record
    detail:  the error's text without the places that were put before it
    others:  what else is wrong with the same record
    """

    def __init__(
        self,
        text: str,
        *,
        message: int | None = None,
        field: str | None = None,
        detail: str | None = None,
    ):
        super().__init__(printable(text))
        self.message, self.field = message, field
        self.detail = printable(text if detail is None else detail)
        self.others: tuple[ConversationError, ...] = ()

    def inside(self, place: str, message: int | None = None) -> "ConversationError":
        """The same error and all others, in a larger whole that has the name `place`."""
        position = self.message if message is None else message
        error = ConversationError(
            f"{place}: {self}", message=position, field=self.field, detail=self.detail
        )
        error.others = tuple(other.inside(place, message) for other in self.others)
        return error


class Faults:
    """Errors are collected, so that all of them can be told; `check` raises the first."""

    def __init__(self):
        self.errors: list[ConversationError] = []

    @property
    def full(self) -> bool:
        return len(self.errors) >= MOST

    def add(self, text: str, field: str | None = None, message: int | None = None) -> None:
        self.add_errors([ConversationError(text, field=field, message=message)])

    def add_errors(self, errors: Iterable[ConversationError]) -> None:
        """Each error, and what else it tells."""
        for error in errors:
            self.errors += [error, *error.others][: MOST - len(self.errors)]
            if self.full:
                return

    def first(self) -> ConversationError | None:
        """The first error, with the others in it."""
        if not self.errors:
            return None
        self.errors[0].others = tuple(self.errors[1:])
        return self.errors[0]

    def check(self) -> None:
        if error := self.first():
            raise error

    def plain(self, value, name: str, deepest: int = DEEPEST):
        """A copy of the value in JSON's own types; what is not JSON is a fault of that `name`."""
        try:
            return plain(value, deepest=deepest)
        except JSONError as error:
            place = ".".join(part for part in (name, error.place) if part)
            self.add(
                f"{error.reason} ({error.detail}) in {place}. {REMEDIES[error.reason]}",
                name or error.place.partition(".")[0].partition("[")[0],
            )
