"""Converting one record, a stream of them, or a file; and the count of what became of each."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from itertools import count as counting
from pathlib import Path
from typing import BinaryIO

from course_utils.conversation import ROLES, Conversation
from course_utils.outputs import Nothing, new_file
from course_utils.sources.fields import Options, Rejected
from course_utils.sources.formats import SOURCES
from course_utils.sources.reading import Entry, entries
from course_utils.strict_json import JSONError, shown


@dataclass(frozen=True)
class Rejection:
    """A record, or a part of one, that was not converted: `where` names it, `place` the part."""

    where: str
    reason: str
    place: str
    detail: str
    record: object = None  # None if it could not be read: then `text` is its beginning
    text: str = ""

    def __str__(self):
        place = f": {self.place}" if self.place else ""
        return f"{self.where}{place}: {self.reason}: {self.detail}"


@dataclass
class Tally:
    """What became of one source's records. A tree gives several conversations."""

    records: int = 0
    converted: int = 0  # records that gave at least one conversation
    conversations: int = 0
    rejected: int = 0  # records that gave none
    partly: int = 0  # records that gave conversations and rejections
    reasons: Counter = field(default_factory=Counter)
    warnings: Counter = field(default_factory=Counter)  # of what was converted
    examples: dict[str, str] = field(default_factory=dict)


class Report:
    """Counts per source, reason and warning. Every record counts as converted or as rejected."""

    def __init__(self):
        self.sources: dict[str, Tally] = {}

    def add(self, source: str, results: Sequence[Conversation | Rejection]) -> None:
        """Count what one record gave."""
        tally = self.sources.setdefault(source, Tally())
        rejections = [found for found in results if isinstance(found, Rejection)]
        conversations = len(results) - len(rejections)
        tally.records += 1
        tally.conversations += conversations
        tally.converted += conversations > 0
        tally.rejected += conversations == 0
        tally.partly += bool(conversations and rejections)
        for found in rejections:
            tally.reasons[found.reason] += 1
            place = f"{found.where}, {found.place}" if found.place else found.where
            tally.examples.setdefault(found.reason, f"{place}: {found.detail}")
        for chat in results:
            for found in chat.meta.get("warnings", ()) if isinstance(chat, Conversation) else ():
                tally.warnings[found["warning"]] += 1
                example = f"{chat.id}, {found['place']}: {found['detail']}"
                tally.examples.setdefault(found["warning"], example)

    @property
    def conversations(self) -> int:
        return sum(tally.conversations for tally in self.sources.values())

    @property
    def rejections(self) -> int:
        return sum(tally.reasons.total() for tally in self.sources.values())

    def as_dict(self) -> dict:
        return {
            name: {
                "records": tally.records,
                "converted": tally.converted,
                "conversations": tally.conversations,
                "rejected": tally.rejected,
                "partly": tally.partly,
                "reasons": dict(tally.reasons.most_common()),
                "warnings": dict(tally.warnings.most_common()),
                "examples": tally.examples,
            }
            for name, tally in self.sources.items()
        }

    def __str__(self):
        lines = []
        for name, tally in self.sources.items():
            lines.append(
                f"{name}: {tally.records:,} records, {tally.converted:,} converted into "
                f"{tally.conversations:,} conversations, {tally.rejected:,} rejected"
                + (f", {tally.partly:,} in part" if tally.partly else "")
            )
            for reason, count in tally.reasons.most_common():
                lines.append(f"  {count:>9,}  {reason}, first at {tally.examples[reason]}")
            for kind, count in tally.warnings.most_common():
                lines.append(f"  {count:>9,}  warning: {kind}, first at {tally.examples[kind]}")
        return "\n".join(lines) or "no records"


def convert(
    record: object,
    source: str,
    *,
    id: str | None = None,
    roles: Mapping[str, str] | None = None,
    keep: Iterable[str] = (),
) -> list[Conversation | Rejection]:
    """What one record gives: at least one conversation or rejection.

    `source` is one of `SOURCES`. `id` becomes the conversation's (with .1, .2 ... after it if a
    record gives several) and names it in rejections; without one the record's own is kept. `roles`
    maps further role names, `keep` names fields of messages (or fields of the record that would
    change its meaning) to put into the meta.
    """
    options = _options(source, roles, keep)
    return _convert(record, source, options, _own_id(record) if id is None else id, id)


def _own_id(record: object) -> str | None:
    """The id that the source gave, as text."""
    own = record.get("id") if isinstance(record, Mapping) else None
    if isinstance(own, int) and not isinstance(own, bool):
        return str(own)
    return own if isinstance(own, str) and own else None


def _options(source: str, roles: Mapping[str, str] | None, keep: Iterable[str]) -> Options:
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}: there are {', '.join(SOURCES)}")
    may_be = (*ROLES, "call") if source == "sharegpt" else ROLES
    for name, role in (roles or {}).items():
        if role not in may_be:
            raise ValueError(f"{name!r} cannot mean {role!r}: the roles are {', '.join(may_be)}")
    return Options(dict(roles or {}), frozenset(keep))


def _convert(record, source: str, options: Options, id: str | None, where: str | None):
    where = where or id or "the record"
    results: list = []

    def reject(error: Rejected):
        results.append(Rejection(where, error.reason, error.place, error.detail, record))

    try:
        if not isinstance(record, Mapping):
            raise Rejected("not an object", "", f"{type(record).__name__}")
        found = list(SOURCES[source].convert(record, options))
        several = len(found) > 1
        for number, draft in enumerate(found, start=1):
            if isinstance(draft, Rejected):
                reject(draft)
                continue
            name = f"{id}.{number}" if several and id is not None else id
            try:
                results.append(draft.finish(record, source, SOURCES[source].uses, name))
            except Rejected as error:
                reject(error)
    except Rejected as error:
        results.clear()
        reject(error)
    except RecursionError:
        results.clear()
        reject(Rejected("nested too deeply", "", "more levels than can be read"))
    return results


def stream(
    path: str | Path,
    source: str,
    *,
    report: Report | None = None,
    roles: Mapping[str, str] | None = None,
    keep: Iterable[str] = (),
    progress: bool = False,
    prefix: str | None = None,
) -> Iterator[Conversation | Rejection]:
    """Convert a JSONL file, or a .json file with one array, record by record.

    Memory is bounded by the longest record (64 MiB, a longer one is rejected), not by the file,
    but for a number for each id. A record keeps its own `id`. One without, and one whose id has
    occurred before (a warning), is named `prefix`-LINE, the prefix being the file's name without
    its ending; so are all rejections.
    """
    path, options = Path(path), _options(source, roles, keep)
    prefix, seen = path.stem if prefix is None else prefix, set()
    for entry in _with_progress(path, source, progress):
        where = f"{prefix}-{entry.number}"
        if isinstance(error := entry.record, JSONError | Rejected):
            results = [Rejection(where, error.reason, error.place, error.detail, None, entry.text)]
        else:
            results = _named(entry.record, source, options, where, seen)
        if report is not None:
            report.add(source, results)
        yield from results


def _named(record, source: str, options: Options, where: str, seen: set[int]) -> list:
    """`_convert` under the first id that nothing before has."""
    own = _own_id(record)
    names = chain([own] if own else [], [where], (f"{where}-{n}" for n in counting(2)))
    for name in names:
        results = _convert(record, source, options, name, where)
        chats = [found for found in results if isinstance(found, Conversation)]
        # A hash for each id instead of the id: a file of any size fits.
        hashes = {hash(chat.id) for chat in chats}
        if not hashes & seen:
            break
    seen |= hashes
    if own and name != own:
        detail = f"{shown(own)} is in the file before; this one is {name}"
        for chat in chats:
            warning = {"warning": "repeated id", "place": "id", "detail": detail}
            chat.meta.setdefault("warnings", []).append(warning)
    return results


def _with_progress(path: Path, source: str, progress: bool) -> Iterator[Entry]:
    if not progress:
        yield from entries(path)
        return
    from tqdm import tqdm

    total = path.stat().st_size
    with tqdm(total=total, unit="B", unit_scale=True, desc=source, mininterval=0.2) as bar:
        read = 0
        for entry in entries(path):
            bar.update(entry.read - read)
            read = entry.read
            yield entry
        bar.update(total - read)


def convert_file(
    path: str | Path,
    source: str,
    output: str | Path,
    *,
    rejected: str | Path | None = None,
    report: Report | None = None,
    overwrite: bool = True,
    **options,
) -> Report:
    """Convert a file into canonical JSONL, as `stream` does, and return the report.

    Give the same `report` to several calls, and it counts every source.

    The output appears only when all is done, and only if something was converted. Without
    `overwrite` it must not exist. The same goes for `rejected`, which takes a line for each
    rejection: where, reason, place, detail and the record. `load_conversations` reads the output.
    Raises `outputs.OutputError` where one of the two cannot be written or is also the input.
    """
    report, written = Report() if report is None else report, 0
    with contextlib.ExitStack() as files:
        side = None
        if rejected is not None:
            side = files.enter_context(
                new_file(rejected, overwrite=overwrite, inputs=(path, output))
            )
        out = files.enter_context(new_file(output, overwrite=overwrite, inputs=(path,)))
        for found in stream(path, source, report=report, **options):
            if isinstance(found, Conversation):
                _write_line(out, found.as_record())
                written += 1
            elif side is not None:
                _write_line(side, _side_record(found, source))
        if side is not None:
            side.flush()  # a full disk shows now, before the output is in its place
        if not written:
            raise Nothing  # which ends here, with the output: the rejections are written
    return report


def _write_line(file: BinaryIO, record: dict) -> None:
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate, which UTF-8 cannot hold, is written as JSON's own escape for it.
    file.write(line.encode("utf-8", "backslashreplace"))


def _side_record(found: Rejection, source: str) -> dict:
    about = {"where": found.where, "source": source, "reason": found.reason}
    about |= {"place": found.place, "detail": found.detail}
    if found.reason == "nested too deeply":
        return about | {"text": found.text}  # what cannot be read cannot be written either
    return about | ({"text": found.text} if found.record is None else {"record": found.record})


def timed(function, *arguments, **options):
    """(what the function returns, seconds)"""
    start = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - start
