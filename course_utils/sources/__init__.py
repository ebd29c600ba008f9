"""From every source's format to the one canonical schema.

    python -m course_utils.sources sharegpt chats.jsonl chats.canonical.jsonl

A record is converted, or rejected with its reason; a `Report` counts both, and nothing is dropped
without a word. `convert` takes one record, `stream` a file of any size, `convert_file` writes.

    draft.py    rejections, tool calls as text, the conversation in the making
    formats.py  the converters
    reading.py  records of a file, and the validator (`problems`)
    report.py   counting, streaming, writing

What the schema (role and content) cannot hold stands in the meta: `source`; `fields`, the record's
other fields; `tools`, the definitions; `tool_ids`, which result answers which call; `parts`, the
lengths of pieces that were joined; `message_fields`, what else a message said.
"""

from course_utils.sources.draft import (
    REASONS,
    Rejected,
    parts_of,
    read_calls,
    write_calls,
)
from course_utils.sources.formats import SOURCES, with_calculations
from course_utils.sources.reading import Problem, problems
from course_utils.sources.report import Rejection, Report, convert, convert_file, stream

__all__ = [
    "REASONS",
    "SOURCES",
    "Problem",
    "Rejected",
    "Rejection",
    "Report",
    "convert",
    "convert_file",
    "parts_of",
    "problems",
    "read_calls",
    "stream",
    "with_calculations",
    "write_calls",
]
