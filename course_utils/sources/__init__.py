"""From every source's format to the one canonical schema.

    python -m course_utils.sources sharegpt chats.jsonl chats.canonical.jsonl

A record is converted, or rejected with its reason; a `Report` counts both, and nothing is dropped
without a word. `convert` takes one record, `stream` a file of any size, `convert_file` writes.

    fields.py   the fields of a record, rejections and their reasons
    calls.py    tool calls, results and definitions in every shape
    draft.py    the conversation in the making
    formats.py  the converters
    reading.py  records of a file, and the validator (`problems`)
    report.py   counting, streaming, writing

Calls, their ids and results, tools, reasoning and weights become what the schema has for them. What
it cannot hold is in the meta: `source`; `fields`, the record's other fields; `parts`, the lengths
of pieces that were joined; `message_fields`, what else a message said; `call_grammar`, sentences
that told how to write calls; `warnings`, what is worth a look.
"""

from course_utils.sources.draft import parts_of
from course_utils.sources.fields import REASONS, WARNINGS, Rejected
from course_utils.sources.formats import SOURCES, with_calculations
from course_utils.sources.reading import Problem, problems
from course_utils.sources.report import Rejection, Report, convert, convert_file, stream

__all__ = [
    "REASONS",
    "SOURCES",
    "WARNINGS",
    "Problem",
    "Rejected",
    "Rejection",
    "Report",
    "convert",
    "convert_file",
    "parts_of",
    "problems",
    "stream",
    "with_calculations",
]
