"""The records of a file of JSON, one after another: the file may be larger than memory."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from course_utils.strict_json import JSONError, decode, decode_from

LONGEST = 64 * 2**20  # bytes of one record; more is refused, so that memory stays bounded
CHUNK = 2**20
HEAD = 2000  # characters that are kept of a record that cannot be read
NUMBER = re.compile(r"[-+.eE0-9]*")

GZIP = b"\x1f\x8b"
# What else is taken for a file of JSON, by its first bytes, and what to do with it.
OTHERS = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    GZIP: "compressed twice with gzip: unpack it",
    b"PAR1": "a Parquet file: write it as JSON lines, as `to_json` of `datasets` and pandas do",
    b"ARROW1": "an Arrow file: write it as JSON lines, as `to_json` of `datasets` does",
    b"\xff\xff\xff\xff": "an Arrow file: write it as JSON lines, as `to_json` of `datasets` does",
}
# Reads what the strict decoder refuses: to find where it ends, and the id that it has.
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


@dataclass(frozen=True)
class Entry:
    """One record of a file: its line (or its place in the array), and the bytes read so far."""

    number: int
    record: object  # the decoded record, or `JSONError`
    text: str  # the beginning of what could not be decoded, else empty
    read: int
    unit: str = "line"  # or "record", in an array
    id: object = None  # of a record that is JSON, but not the strict one


def entries(path: str | Path, longest: int = LONGEST) -> Iterator[Entry]:
    """The records of a JSONL file, or of a `.json` file that holds one array; gzip is unpacked.

    A record that cannot be read is an entry as well. Only "\\n" ends a line; a byte-order mark and
    blank lines are skipped.
    """
    path = Path(path)
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
        raw.seek(0)
        # Of a packed file the packed bytes count, as in its size.
        file = _Counted(gzip.GzipFile(fileobj=raw), raw.tell) if packed else _Counted(raw)
        try:
            start = file.read(4096)
            file.rewind()
            if problem := _no_utf8(start):
                yield Entry(1, JSONError("not UTF-8", problem), "", file.count())
                return
            start = start.removeprefix(codecs.BOM_UTF8).lstrip()
            name = path.name.lower().removesuffix(".gz")
            array = not name.endswith((".jsonl", ".ndjson")) and start.startswith(b"[")
            yield from (_elements if array else _lines)(file, longest)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            detail = f"the gzip data is broken or cut off ({error}). Pack the file again"
            yield Entry(file.lines + 1, JSONError("broken JSON", detail), "", file.count())


class _Counted:
    """A file, and how much of it was read."""

    def __init__(self, file, tell=None):
        self.file, self.tell, self.bytes, self.lines = file, tell, 0, 0

    def read(self, size: int) -> bytes:
        found = self.file.read(size)
        self.bytes += len(found)
        return found

    def readline(self, size: int) -> bytes:
        found = self.file.readline(size)
        self.bytes += len(found)
        return found

    def rewind(self) -> None:
        self.file.seek(0)
        self.bytes = 0

    def count(self) -> int:
        return self.tell() if self.tell else self.bytes


def _no_utf8(start: bytes) -> str | None:
    for magic, what in OTHERS.items():
        if start.startswith(magic):
            return f"the file is {what} first"
    encoding = json.detect_encoding(start)
    if start and not encoding.startswith("utf-8"):
        name = re.sub("-([BL]E)$", r"\1", encoding.upper())  # as iconv writes it
        return f"the file is {name}. Convert it: `iconv -f {name} -t UTF-8 FILE > NEW`"
    return None


def _lines(file: _Counted, longest: int) -> Iterator[Entry]:
    while line := file.readline(longest + 1):
        file.lines = number = file.lines + 1
        if len(line) > longest and not line.endswith(b"\n"):
            while (more := file.readline(CHUNK)) and not more.endswith(b"\n"):
                pass
            error = JSONError("line too long", f"more than {longest:,} bytes")
            yield Entry(number, error, _head(line), file.count())
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8").strip(" \t\r\n")
            yield Entry(number, decode(text), "", file.count())
        except UnicodeDecodeError as error:
            detail = f"{error.reason} at byte {error.start}"
            yield Entry(number, JSONError("not UTF-8", detail), _head(line), file.count())
        except JSONError as error:
            found = _id(text)
            yield Entry(number, error, _head(line).rstrip(), file.count(), id=found)


def _head(line: bytes) -> str:
    return line[:HEAD].decode("utf-8", "replace")


def _id(text: str) -> object:
    with suppress(ValueError, RecursionError):
        record = LENIENT.decode(text)
        return record.get("id") if isinstance(record, dict) else None


def _elements(file: _Counted, longest: int) -> Iterator[Entry]:
    """The elements of one JSON array. After a broken one nothing can be read: it is the last."""
    buffer, number = _Buffer(file), 0
    try:
        buffer.skip()
        buffer.at += 1  # the opening bracket
        if buffer.skip() == "]":
            buffer.at += 1
        else:
            while True:
                file.lines = number = number + 1
                record, text = buffer.element(longest)
                found = _id(text) if isinstance(record, JSONError) else None
                yield Entry(number, record, text[:HEAD], file.count(), "record", found)
                found = buffer.skip()
                buffer.at += 1
                if found == "]":
                    break
                if found != ",":
                    number += 1
                    raise JSONError("broken JSON", f"{found or 'the end'!r} after an element")
                buffer.skip()
        if found := buffer.skip():
            number += 1
            raise JSONError("broken JSON", f"{found!r} after the end of the array")
    except JSONError as error:
        detail = f"{error.detail}; the rest of the file is unread"
        unread = JSONError(error.reason, detail)
        yield Entry(number, unread, buffer.head(), file.count(), "record")


class _Buffer:
    """The part of a file that is being read, as text."""

    def __init__(self, file: _Counted):
        self.file, self.text, self.at, self.ended = file, "", 0, False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.undecodable = ""

    def fill(self, size: int = 0) -> None:
        chunk = self.file.read(max(size, CHUNK))
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
                raise JSONError("not UTF-8", self.undecodable)
            if self.ended:
                return ""
            self.fill()

    def head(self) -> str:
        return self.text[self.at : self.at + HEAD]

    def element(self, longest: int) -> tuple[object, str]:
        """(record or `JSONError`, its text if refused): the value that begins here."""
        while True:
            end, refused = None, None
            try:
                record, end = decode_from(self.text, self.at)
            except JSONError as error:
                refused = error
                if error.reason != "broken JSON":
                    end = self._end()
            # A number may go on after the buffer: "-1" may be the beginning of "-1.5e3".
            if end is not None and (
                self.ended or NUMBER.match(self.text, end).end() < len(self.text)
            ):
                if end - self.at > longest:
                    refused = JSONError("line too long", f"more than {longest:,} characters")
                text, self.at = self.text[self.at : end], end
                return (refused, text) if refused else (record, "")
            if refused is not None and refused.reason == "nested too deeply":
                raise refused
            if self.undecodable:
                raise JSONError("not UTF-8", self.undecodable)
            if self.ended:
                raise refused or JSONError("broken JSON", "the end within an element")
            if len(self.text) - self.at > longest:
                raise JSONError("line too long", f"an element of over {longest:,} characters")
            self.fill(len(self.text) - self.at)

    def _end(self) -> int | None:
        """Where an element ends that is JSON but not the strict one; None if it is cut off."""
        with suppress(ValueError, RecursionError):
            return LENIENT.raw_decode(self.text, self.at)[1]
        return None
