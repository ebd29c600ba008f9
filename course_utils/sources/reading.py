"""Records from a file that may be larger than memory, and what is wrong with a canonical file."""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from course_utils.conversation import NEXT_ROLES, ROLES
from course_utils.sources.draft import (
    CALL_OPENING,
    STRICT,
    Rejected,
    _call_in,
    decode,
    shown,
)

LONGEST = 64 * 2**20  # bytes of one record; more is rejected, so that memory stays bounded
CHUNK = 2**20
NUMBER = re.compile(r"[-+.eE0-9]*")
HEAD = 2000  # characters that are kept of a record that cannot be read


@dataclass(frozen=True)
class Entry:
    """One record of a file: its line (or its place in the array), and the bytes read so far."""

    number: int
    record: object  # the decoded record, or `Rejected`
    text: str  # the beginning of what could not be decoded, else empty
    read: int


def entries(path: str | Path, longest: int = LONGEST) -> Iterator[Entry]:
    """The records of a JSONL file, or of a `.json` file that holds one array.

    A record that cannot be read is an entry as well. Only "\\n" ends a line; a byte-order mark and
    blank lines are skipped.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        array = path.suffix.lower() not in (".jsonl", ".ndjson") and start.startswith(b"[")
        yield from (_elements if array else _lines)(file, longest)


def _lines(file, longest: int) -> Iterator[Entry]:
    number = read = 0
    while line := file.readline(longest + 1):
        number += 1
        read += len(line)
        if len(line) > longest and not line.endswith(b"\n"):
            while (more := file.readline(CHUNK)) and not more.endswith(b"\n"):
                read += len(more)
            read += len(more)
            error = Rejected("line too long", "", f"more than {longest:,} bytes")
            yield Entry(number, error, line[:HEAD].decode("utf-8", "replace"), read)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            yield Entry(number, decode(line.decode("utf-8")), "", read)
        except UnicodeDecodeError as error:
            found = Rejected("not UTF-8", "", f"{error.reason} at byte {error.start}")
            yield Entry(number, found, line[:HEAD].decode("utf-8", "replace"), read)
        except Rejected as error:
            yield Entry(number, error, line[:HEAD].decode("utf-8", "replace").rstrip(), read)


def _elements(file, longest: int) -> Iterator[Entry]:
    """The elements of one JSON array. After a broken one nothing can be read: it is the last."""
    buffer, number = _Buffer(file), 0
    try:
        buffer.skip()
        buffer.at += 1  # the opening bracket
        if buffer.skip() == "]":
            buffer.at += 1
        else:
            while True:
                number += 1
                yield Entry(number, *buffer.element(longest), buffer.read)
                found = buffer.skip()
                buffer.at += 1
                if found == "]":
                    break
                if found != ",":
                    number += 1
                    raise Rejected("broken JSON", "", f"{found or 'the end'!r} after an element")
                buffer.skip()
        if found := buffer.skip():
            number += 1
            raise Rejected("broken JSON", "", f"{found!r} after the end of the array")
    except Rejected as error:
        found = Rejected(error.reason, "", f"{error.detail}; the rest of the file is unread")
        yield Entry(number, found, buffer.head(), buffer.read)


class _Buffer:
    """The part of a file that is being read, as text."""

    def __init__(self, file):
        self.file, self.text, self.at, self.read, self.ended = file, "", 0, 0, False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.undecodable = ""

    def fill(self, size: int = 0) -> None:
        chunk = self.file.read(max(size, CHUNK))
        self.read += len(chunk)
        self.ended = not chunk
        try:
            more = self.decoder.decode(chunk, final=self.ended)
        except UnicodeDecodeError as error:
            more = error.object[: error.start].decode("utf-8")
            self.ended, self.undecodable = True, error.reason
        self.text, self.at = self.text[self.at :] + more, 0

    def skip(self) -> str:
        """The next character that is no white space, or '' at the end; it is not consumed."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.undecodable:
                raise Rejected("not UTF-8", "", self.undecodable)
            if self.ended:
                return ""
            self.fill()

    def head(self) -> str:
        return self.text[self.at : self.at + HEAD]

    def element(self, longest: int) -> tuple[object, str]:
        """(record or `Rejected`, its text if rejected): the value that begins here."""
        while True:
            try:
                record, end = STRICT.raw_decode(self.text, self.at)
                rejected = None
            except json.JSONDecodeError as error:
                end, rejected = None, Rejected("broken JSON", "", error.msg)
            except RecursionError:
                raise Rejected("nested too deeply", "", "more levels than can be read") from None
            except Rejected as error:
                end, rejected = self._end(), error
            except ValueError as error:
                raise Rejected("number that JSON lacks", "", str(error)) from None
            # A number may go on behind the buffer: "-1" may be the beginning of "-1.5e3".
            if end is not None and (
                self.ended or NUMBER.match(self.text, end).end() < len(self.text)
            ):
                head, self.at = self.head(), end
                return (rejected, head) if rejected else (record, "")
            if self.undecodable:
                raise Rejected("not UTF-8", "", self.undecodable)
            if self.ended:
                raise rejected or Rejected("broken JSON", "", "the end within an element")
            if len(self.text) - self.at > longest:
                raise Rejected("line too long", "", f"an element of over {longest:,} characters")
            self.fill(len(self.text) - self.at)

    def _end(self) -> int | None:
        """Where an element ends that is JSON but not the strict one; None if it is cut off."""
        try:
            return json.JSONDecoder().raw_decode(self.text, self.at)[1]
        except (ValueError, RecursionError):
            return None


# --- the validator -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and exactly where: line, message (from 0) and field."""

    file: str
    line: int
    message: int | None
    field: str | None
    text: str

    def __str__(self):
        place = f"messages[{self.message}]" if self.message is not None else ""
        place = ".".join(part for part in (place, self.field) if part)
        return ": ".join(part for part in (f"{self.file}:{self.line}", place, self.text) if part)


def problems(path: str | Path) -> Iterator[Problem]:
    """Everything that is wrong with a JSONL file of the canonical schema, record after record.

    `load_conversations` stops at the first error; this goes on. It holds one number for each id.
    """
    path, first_line_of, records = Path(path), {}, 0
    with path.open("rb") as file:
        for entry in _lines(file, LONGEST):
            records += 1
            if isinstance(entry.record, Rejected):
                yield Problem(str(path), entry.number, None, None, str(entry.record))
                continue
            for message, field, text in _wrong_with(entry.record):
                yield Problem(str(path), entry.number, message, field, text)
            name = entry.record.get("id") if isinstance(entry.record, dict) else None
            if isinstance(name, str):
                # A hash for each id instead of the id: a file of any size fits.
                first = first_line_of.setdefault(hash(name), entry.number)
                if first != entry.number:
                    text = f"the id {name!r} already stands in line {first}"
                    yield Problem(str(path), entry.number, None, "id", text)
    if not records:
        yield Problem(str(path), 1, None, None, "no conversation in the file")


def _wrong_with(record: object) -> Iterator[tuple[int | None, str | None, str]]:
    if not isinstance(record, dict):
        yield None, None, f"not an object: {type(record).__name__}"
        return
    if not isinstance(record.get("id"), str | None):
        yield None, "id", f"{shown(record['id'])} is not text"
    tags = record.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield None, "tags", f"{shown(tags)} is not a list of texts"
    turns = record.get("messages")
    if not isinstance(turns, list):
        yield None, "messages", "missing" if "messages" not in record else "not a list"
        return
    if not turns:
        yield None, "messages", "empty"
    previous = None
    for position, message in enumerate(turns):
        if not isinstance(message, dict):
            yield position, None, f"not an object: {type(message).__name__}"
            previous = "unknown"
            continue
        yield from ((position, *found) for found in _wrong_with_message(message))
        role = message.get("role")
        known = isinstance(role, str) and role in ROLES
        if known and previous != "unknown" and role not in NEXT_ROLES[previous]:
            after = f"after {previous}" if previous else "at the start"
            may = " or ".join(NEXT_ROLES[previous])
            yield position, "role", f"{role} {after}, where only {may} may stand"
        previous = role if known else "unknown"


def _wrong_with_message(message: dict) -> Iterator[tuple[str, str]]:
    for name in ("role", "content"):
        if name not in message:
            yield name, "missing"
    for name in message.keys() - {"role", "content"}:
        yield name, "a field that the schema does not know"
    role, content = message.get("role"), message.get("content", "")
    if "role" in message and (not isinstance(role, str) or role not in ROLES):
        yield "role", f"{shown(role)} is none of {', '.join(ROLES)}"
    if not isinstance(content, str):
        yield "content", f"{type(content).__name__} is not text"
        return
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        yield "content", f"a lone surrogate at character {error.start}"
    if role == "assistant":
        for number, line in enumerate(content.split("\n")):
            if line.startswith(CALL_OPENING) and _call_in(line) is None:
                yield "content", f"line {number} begins like a tool call and is none"
