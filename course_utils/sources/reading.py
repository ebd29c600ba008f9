"""Records of a source's file, and what is wrong with a file of the canonical schema."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from course_utils import json_files
from course_utils.faults import ConversationError
from course_utils.json_files import LONGEST, Entry
from course_utils.records import Nulls, read_file
from course_utils.sources.draft import Rejected
from course_utils.strict_json import JSONError, printable


def entries(path: str | Path, longest: int = LONGEST) -> Iterator[Entry]:
    """The records of a file, as `json_files` reads them: each decoded, or `Rejected`."""
    for entry in json_files.entries(path, longest):
        if isinstance(error := entry.record, JSONError):
            entry = replace(entry, record=Rejected(error.reason, error.place, error.detail))
        yield entry


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and exactly where: line, message (from 0) and field.

    In a `.json` file that holds an array, `line` is the record's place in it.
    """

    file: str
    line: int
    message: int | None
    field: str | None
    text: str

    def __str__(self):
        place = f"messages[{self.message}]" if self.message is not None else ""
        place = ".".join(part for part in (place, self.field) if part)
        parts = (f"{self.file}:{self.line}", place, self.text)
        return printable(": ".join(part for part in parts if part))


def problems(path: str | Path) -> Iterator[Problem]:
    """What is wrong with a file of the canonical schema, record after record.

    Both this and `load_conversations` go through `read_file`: what one accepts, the other does.
    The loader stops at the first fault; this goes on, up to a hundred for each record. At the end
    it warns of nulls as the loader does (`ConversationWarning`).
    """
    nulls = Nulls()
    for reading in read_file(path, nulls=nulls):
        if isinstance(error := reading.found, ConversationError):
            for fault in (error, *error.others):
                place = (fault.message, fault.field, fault.detail)
                yield Problem(str(path), reading.number, *place)
    nulls.warn(path)
