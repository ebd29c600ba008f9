"""Lecture 07's checks accept the right answer and refuse plausible wrong ones in one line."""

import hashlib
import io
import json
import re
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import pytest
from exercise_cells import solved, stubs

from course_utils.check import e07
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.sources import Rejected

# In the order of the exercises.
NAMES = [
    "to_messages",
    "convert_all",
    "find_poison",
    "epochs_for",
    "near_duplicates",
    "verify",
]


SOLVED, STUBS = solved("07_data_is_the_curriculum"), stubs("07_data_is_the_curriculum")


def test_every_check_is_listed():
    assert sorted(NAMES) == e07.__all__


@pytest.mark.parametrize("name", NAMES)
def test_solution_passes_and_stub_is_not_attempted(name, capsys):
    getattr(e07, name)(SOLVED[name])
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(NotAttempted):
        getattr(e07, name)(STUBS[name])


@pytest.mark.parametrize("name", ["to_messages", "convert_all", "epochs_for", "near_duplicates"])
def test_the_examples_in_the_docstrings_are_right(name):
    import doctest

    found = doctest.DocTestFinder(recurse=False).find(SOLVED[name], name, globs=dict(SOLVED))
    results = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(r.attempted for r in results) and not sum(r.failed for r in results)


# --- 7.1 -----------------------------------------------------------------------------------------

ROLES = {"customer": "user", "agent": "assistant", "lookup": "tool"}


def messages_with(
    record, *, role=None, text=lambda t: t, system="truthy", skip=(), raising=True, first=True
):
    """A right converter; every argument breaks one part of it."""
    made = []
    for place, event in enumerate(record["events"]):
        if event["actor"] in skip:
            continue
        known = ROLES.get(event["actor"])
        if known is None and raising is True:
            raise ValueError(f"unknown actor {event['actor']!r}")
        if known is None and raising == "nameless":
            raise ValueError("unknown actor")
        found = role(event["actor"], place) if role else (known or "user")
        made.append({"role": found, "content": text(event["body"])})
    briefing = record.get("briefing")
    if briefing if system == "truthy" else system == "always" or briefing is not None:
        made.insert(0 if first else len(made), {"role": "system", "content": briefing or ""})
    return made


def wrong(function, **changes):
    return lambda *arguments: function(*arguments, **changes)


def merged(record):
    made = []
    for message in messages_with(record):
        if made and made[-1]["role"] == message["role"]:
            made[-1] = {**message, "content": f"{made[-1]['content']}\n{message['content']}"}
        else:
            made.append(message)
    return made


def in_place(record):
    for event in record["events"]:
        if event["actor"] not in ROLES:
            raise ValueError(event["actor"])
        event["role"], event["content"] = ROLES[event.pop("actor")], event.pop("body")
    return record["events"]


MESSAGES = {
    "keys renamed, roles not": wrong(messages_with, role=lambda actor, place: actor),
    "roles by position": wrong(
        messages_with, role=lambda actor, place: ("user", "assistant")[place % 2]
    ),
    "lookup as user": wrong(messages_with, role=lambda a, p: {**ROLES, "lookup": "user"}[a]),
    "lookup left out": wrong(messages_with, skip=("lookup",)),
    "briefing left out": lambda record: [m for m in messages_with(record) if m["role"] != "system"],
    "briefing at the end": wrong(messages_with, first=False),
    "empty briefing kept": wrong(messages_with, system="present"),
    "briefing of blanks left out": lambda record: messages_with(
        record | {"briefing": record.get("briefing") if str(record.get("briefing")).strip() else ""}
    ),
    "always a system turn": wrong(messages_with, system="always"),
    "texts stripped": wrong(messages_with, text=str.strip),
    "unknown actors are users": wrong(messages_with, raising=False),
    "unknown actors left out": lambda record: messages_with(
        record | {"events": [e for e in record["events"] if e["actor"] in ROLES]}
    ),
    "case ignored": lambda record: messages_with(
        record | {"events": [e | {"actor": e["actor"].lower()} for e in record["events"]]}
    ),
    "error without the name": wrong(messages_with, raising="nameless"),
    "KeyError": lambda record: messages_with(record, role=lambda a, p: ROLES[a], raising=False),
    "neighbours merged": merged,
    "record changed": in_place,
    "pairs": lambda record: [(m["role"], m["content"]) for m in messages_with(record)],
    "nothing returned": lambda record: None,
}

# --- 7.2 -----------------------------------------------------------------------------------------


def convert_with(records, convert, *, catch=Rejected, none=True, stop=False, reason=None, start=0):
    """A right run over a source; every argument breaks one part of it."""
    made, rejected, count = [], {}, 0
    reason = reason or (lambda error: getattr(error, "reason", str(error)))
    for count, record in enumerate(records, start=1):
        try:
            found = convert(record)
            if found is None and none:
                if none == "dropped":
                    continue
                raise Rejected("empty text", "", "")
            made.append(found)
        except catch as error:
            why = "nothing returned" if record is None else reason(error)
            rejected.setdefault(why, []).append(count - 1 + start)
            if stop:
                break
    return made, {"records": count, "converted": len(made), "rejected": rejected}


def falsy_dropped(records, convert):
    made, report = convert_with(records, convert)
    for number, found in enumerate(made):
        if not found:
            report["rejected"].setdefault("nothing returned", []).append(number)
    return [found for found in made if found], report | {"converted": sum(map(bool, made))}


def twice_through(records, convert):
    report = {"records": len(list(records))}
    made, found = convert_with(records, convert)
    return made, found | report if report["records"] else found | {"records": 0}


CONVERT = {
    "every exception is a rejection": wrong(convert_with, catch=Exception),
    "every ValueError is a rejection": wrong(convert_with, catch=ValueError),
    "None kept": wrong(convert_with, none=False),
    "None dropped": wrong(convert_with, none="dropped"),
    "falsy conversations dropped": falsy_dropped,
    "stops at the first": wrong(convert_with, stop=True),
    "the message as reason": wrong(convert_with, reason=str),
    "one reason for all": wrong(convert_with, reason=lambda error: "rejected"),
    "counted from one": wrong(convert_with, start=1),
    "records gone through twice": twice_through,
    "converted twice": lambda records, convert: convert_with(
        records, lambda record: (convert(record), convert(record))[0]
    ),
    "length of the records": lambda records, convert: (
        len(records),
        convert_with(records, convert),
    )[1],
    "counts, not positions": lambda records, convert: (
        lambda made, report: (
            made,
            report | {"rejected": {k: len(v) for k, v in report["rejected"].items()}},
        )
    )(*convert_with(records, convert)),
    "only the conversations": lambda *arguments: convert_with(*arguments)[0],
    "records counted as converted": lambda *arguments: (
        lambda made, report: (made, report | {"records": len(made)})
    )(*convert_with(*arguments)),
    "nothing returned": lambda *arguments: None,
}

# --- 7.3 -----------------------------------------------------------------------------------------


def poison_with(
    convert, records, roles, *, names=None, text=lambda t: t, multiset=True, moved=True, merge=True,
    whole=True, refuse=ValueError, once=False, ordered=True, used=False,
):  # fmt: skip
    """A right property check; every argument breaks one part of it."""
    refused = refuse or ValueError
    found = {"moved": [], "merged": [], "lost": []}
    for record in records:
        try:
            made = convert(record)
        except refused:
            if not refuse:
                found["lost"] += [turn["value"] for turn in record["conversations"]]
            continue
        source = [
            ((names or roles)[turn["from"]], text(turn["value"]))
            for turn in record["conversations"]
        ]
        out = Counter((m["role"], text(m["content"])) for m in made)
        into = Counter(source)
        if not multiset:
            into, out = Counter(set(into)), Counter(set(out))
        missing, surplus = into - out, Counter(t for _, t in (out - into).elements())
        for turn in source if ordered else sorted(source):
            if missing[turn] <= 0:
                continue
            missing[turn] -= 1
            if moved and surplus[turn[1]] > 0:
                surplus[turn[1]] -= not once
                surplus = +surplus if used else surplus
                found["moved"].append(turn[1])
            elif merge and any(turn[1] in t and (turn[1] != t or not whole) for t in surplus):
                found["merged"].append(turn[1])
            else:
                found["lost"].append(turn[1])
    return found


def all_texts_alone(convert, records, roles):
    """Looks whether each text is anywhere, whatever its role."""
    found = {"moved": [], "merged": [], "lost": []}
    for record in records:
        try:
            out = [m["content"] for m in convert(record)]
        except ValueError:
            continue
        for turn in record["conversations"]:
            if turn["value"] not in out:
                inside = any(turn["value"] in text for text in out)
                found["merged" if inside else "lost"].append(turn["value"])
    return found


def cleaned(convert, records, roles):
    for record in records:
        for turn in record["conversations"]:
            turn["value"] = turn["value"].strip()
    return poison_with(convert, records, roles)


def together(parts):
    parts = list(parts)
    return {kind: sum((p[kind] for p in parts), []) for kind in ("moved", "merged", "lost")}


POISON = {
    "roles not looked at": all_texts_alone,
    "texts stripped": wrong(poison_with, text=str.strip),
    "a set, not a count": wrong(poison_with, multiset=False),
    "moved is lost": wrong(poison_with, moved=False),
    "merged is lost": wrong(poison_with, merge=False),
    "moved is merged": wrong(poison_with, moved=False, whole=False),
    "a refusal is a loss": wrong(poison_with, refuse=None),
    "every exception is a refusal": wrong(poison_with, refuse=Exception),
    "a surplus turn is never used up": wrong(poison_with, once=True),
    "each text once": lambda *a: {k: list(dict.fromkeys(t)) for k, t in poison_with(*a).items()},
    "each text once in a record": lambda convert, records, roles: together(
        {k: list(dict.fromkeys(t)) for k, t in poison_with(convert, [record], roles).items()}
        for record in records
    ),
    "kinds without texts left out": lambda *a: {k: t for k, t in poison_with(*a).items() if t},
    "roles written down": wrong(poison_with, names=e07.NAMES),
    "another order": wrong(poison_with, ordered=False),
    "records cleaned": cleaned,
    "sets": lambda *a: {kind: set(texts) for kind, texts in poison_with(*a).items()},
    "only the lost": lambda *arguments: poison_with(*arguments)["lost"],
    "nothing returned": lambda *arguments: None,
}

# --- 7.4 -----------------------------------------------------------------------------------------


def epochs_with(graded, wanted, most, *, check="nsg", size=None, of=None, tolerance=1e-9):
    """A right calculation; every argument breaks one part of it."""
    if "n" in check and set(graded) != set(wanted):
        raise ValueError("other parts")
    if "s" in check and abs(sum(wanted.values()) - 1) > tolerance:
        raise ValueError("the shares do not add up to 1")
    if "g" in check and any(share and not graded[name] for name, share in wanted.items()):
        raise ValueError("nothing to grade")
    parts = {n: s for n, s in wanted.items() if s and graded.get(n)}
    whole = (size or min)(most * graded[n] / s for n, s in parts.items())
    of = of or (lambda name, share: share * whole / graded[name])
    return {name: of(name, share) if name in parts else 0.0 for name, share in wanted.items()}


EPOCHS = {
    "as large as the largest part allows": wrong(epochs_with, size=max),
    "size of all tokens once": lambda graded, wanted, most: epochs_with(
        graded, wanted, most, size=lambda sizes: sum(graded.values())
    ),
    "cut at most": lambda graded, wanted, most: {
        name: min(epochs, most)
        for name, epochs in epochs_with(
            graded, wanted, most, size=lambda sizes: sum(graded.values())
        ).items()
    },
    "shares times most": lambda graded, wanted, most: epochs_with(
        graded, wanted, most, of=lambda name, share: share * most
    ),
    "whole epochs": lambda *a: {name: float(round(e)) for name, e in epochs_with(*a).items()},
    "upside down": lambda graded, wanted, most: epochs_with(
        graded, wanted, most, of=lambda name, share: graded[name] / (share * sum(graded.values()))
    ),
    "parts of share 0 left out": lambda *a: {n: e for n, e in epochs_with(*a).items() if e},
    "names not compared": wrong(epochs_with, check="sg"),
    "sum not checked": wrong(epochs_with, check="ng"),
    "empty parts not refused": wrong(epochs_with, check="ns"),
    "exact sum": wrong(epochs_with, tolerance=0),
    "sum within 1e-6": wrong(epochs_with, tolerance=1e-6),
    "division by zero": lambda graded, wanted, most: {
        n: s * min(most * graded[m] / t for m, t in wanted.items()) / graded[n]
        for n, s in wanted.items()
    },
    "nothing returned": lambda *arguments: None,
}

# --- 7.5 -----------------------------------------------------------------------------------------


def duplicates_with(
    texts, threshold, *, n=5, of=None, words=None, short=True, above=False, bag=set, both=False,
    silent=False, own=False,
):  # fmt: skip
    """A right search; every argument breaks one part of it."""
    words = words or (lambda text: re.findall(r"\w+", text.lower()))
    of = of or (lambda a, b: len(a & b) / len(a | b))
    sets = []
    for found in map(words, texts):
        count = len(found) - n + 1
        starts = range(max(1, count) if short and (found or silent) else max(0, count))
        sets.append(bag(tuple(found[at : at + n]) for at in starts))
    pairs = []
    for i, first in enumerate(sets):
        for j, second in enumerate(sets):
            if (i < j or (both and i != j) or (own and i == j)) and (first or second):
                score = of(first, second)
                if score > threshold or (score == threshold and not above):
                    pairs.append((i, j, score))
    return pairs


def counted(a, b):
    return (a & b).total() / (a | b).total()


DUPLICATES = {
    "single words": wrong(duplicates_with, n=1),
    "runs of four": wrong(duplicates_with, n=4),
    "runs of six": wrong(duplicates_with, n=6),
    "of the smaller set": wrong(
        duplicates_with, of=lambda a, b: len(a & b) / (min(len(a), len(b)) or 1)
    ),
    "of the larger set": wrong(
        duplicates_with, of=lambda a, b: len(a & b) / (max(len(a), len(b)) or 1)
    ),
    "Dice": wrong(duplicates_with, of=lambda a, b: 2 * len(a & b) / (len(a) + len(b))),
    "runs counted twice": wrong(duplicates_with, bag=Counter, of=counted),
    "case matters": wrong(duplicates_with, words=lambda text: re.findall(r"\w+", text)),
    "letters from a to z": wrong(
        duplicates_with, words=lambda text: re.findall("[a-z0-9]+", text.lower())
    ),
    "split at white space": wrong(duplicates_with, words=lambda text: text.lower().split()),
    "short texts have no run": wrong(duplicates_with, short=False),
    "empty texts are alike": wrong(duplicates_with, silent=True),
    "above the threshold": wrong(duplicates_with, above=True),
    "both orders": wrong(duplicates_with, both=True),
    "itself": wrong(duplicates_with, own=True),
    "most similar first": lambda *a: sorted(duplicates_with(*a), key=lambda pair: -pair[2]),
    "pairs without a score": lambda *a: [pair[:2] for pair in duplicates_with(*a)],
    "lists": lambda *a: [list(pair) for pair in duplicates_with(*a)],
    "letters": wrong(duplicates_with, words=lambda text: list(text.lower())),
    "nothing returned": lambda *arguments: None,
}

# --- 7.6 -----------------------------------------------------------------------------------------


def verify_with(
    folder, *, read=Path.read_bytes, rows=lambda c: c.count(b"\n"), check="rhmx", first=False,
    error=ValueError, said="full", answer=None, pattern="*.jsonl",
):  # fmt: skip
    """A right check of a folder; every argument breaks one part of it."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = manifest["files"]
    if "x" in check:
        for path in folder.glob(pattern):
            if path.name not in files:
                raise error(f"{path.name} was never released")
    for name, described in list(files.items())[: 1 if first else None]:
        if not (folder / name).exists() and "m" in check:
            raise error(f"{name} is missing")
        content = read(folder / name)
        digest, count = hashlib.sha256(content).hexdigest(), rows(content)
        texts = {
            "full": f"{name}: {count} rows, hash {digest[:8]}, not {described['rows']} rows, "
            f"{described['sha256'][:8]}",
            "nameless": f"{count} rows, {digest[:8]}, not {described['rows']}, "
            f"{described['sha256'][:8]}",
            "found": f"{name}: {count} rows, hash {digest[:8]}",
            "vague": f"{name} was changed",
        }
        wrong_rows = "r" in check and count != described["rows"]
        wrong_hash = "h" in check and digest != described["sha256"]
        if wrong_rows or wrong_hash:
            if answer is not None:
                return answer
            raise error(texts[said])
    return manifest


VERIFY = {
    "rows alone": wrong(verify_with, check="rmx"),
    "hash alone": wrong(verify_with, check="hmx"),
    "read as text": wrong(
        verify_with, read=lambda path: path.read_text(encoding="utf-8").encode("utf-8")
    ),
    "splitlines": wrong(verify_with, rows=lambda c: len(c.decode("utf-8").splitlines())),
    "lines of bytes": wrong(verify_with, rows=lambda c: len(c.splitlines())),
    "lines of a binary file": wrong(verify_with, rows=lambda c: len(list(io.BytesIO(c)))),
    "lines of a text file": wrong(
        verify_with, rows=lambda c: len(list(io.TextIOWrapper(io.BytesIO(c), encoding="utf-8")))
    ),
    "every file must be in the manifest": lambda folder: verify_with(folder, pattern="*"),
    "one row too many": wrong(verify_with, rows=lambda c: len(c.split(b"\n"))),
    "the first file alone": wrong(verify_with, first=True),
    "missing file not looked for": wrong(verify_with, check="rhx"),
    "new file not looked for": wrong(verify_with, check="rhm"),
    "every file must be released": lambda folder: (
        [
            (_ for _ in ()).throw(ValueError(path.name))
            for path in folder.iterdir()
            if path.suffix == ".md"
        ],
        verify_with(folder),
    )[1],
    "False instead of an error": wrong(verify_with, answer=False),
    "another error": wrong(verify_with, error=AssertionError),
    "message without the file": wrong(verify_with, said="nameless"),
    "message without what was released": wrong(verify_with, said="found"),
    "vague message": wrong(verify_with, said="vague"),
    "True": lambda folder: bool(verify_with(folder)),
    "nothing returned": lambda folder: None,
}

WRONG = dict(zip(NAMES, (MESSAGES, CONVERT, POISON, EPOCHS, DUPLICATES, VERIFY), strict=True))


def test_the_helpers_are_right_where_nothing_is_changed():
    """So that each wrong answer is wrong in the one way that its name says."""
    e07.to_messages(messages_with)
    e07.convert_all(convert_with)
    e07.find_poison(poison_with)
    e07.epochs_for(epochs_with)
    e07.near_duplicates(duplicates_with)
    e07.verify(verify_with)


def test_right_answers_of_another_kind_are_accepted():
    def as_defaultdict(records, convert):
        made, report = convert_with(records, convert)
        return made, report | {"rejected": defaultdict(list, report["rejected"])}

    e07.convert_all(as_defaultdict)
    e07.find_poison(lambda *arguments: defaultdict(list, poison_with(*arguments)))
    e07.find_poison(wrong(poison_with, used=True))  # a used-up turn holds no other text
    e07.epochs_for(lambda *arguments: OrderedDict(epochs_with(*arguments)))


@pytest.mark.parametrize(
    "name",
    ["to_messages", "epochs_for", "verify"],
)
def test_another_exception_than_a_valueerror_gets_the_hint_of_its_case(name):
    def other(*arguments):
        try:
            return SOLVED[name](*arguments)
        except ValueError as error:
            raise KeyError(str(error)) from None

    with pytest.raises(CheckFailed, match=r"raised KeyError, expected a ValueError\. Hint: "):
        getattr(e07, name)(other)


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, wrongs in WRONG.items() for mistake in wrongs]
)
def test_a_wrong_answer_is_refused_in_one_line(name, mistake):
    with pytest.raises(CheckFailed) as caught:
        getattr(e07, name)(WRONG[name][mistake])
    assert not isinstance(caught.value, NotAttempted)
    message = str(caught.value)
    assert message.startswith(f"Exercise 7.{NAMES.index(name) + 1}: ") and "\n" not in message
    assert ("Hint: " in message or " raised " in message) and len(message) < 600, len(message)


@pytest.mark.parametrize(
    ("name", "mistake", "hint"),
    [
        ("to_messages", "keys renamed, roles not", "the roles are not"),
        ("to_messages", "roles by position", "not the place"),
        ("to_messages", "briefing left out", "stands first"),
        ("convert_all", "every exception is a rejection", "`Rejected` alone"),
        ("convert_all", "None kept", "a returned None"),
        ("convert_all", "records gone through twice", "once"),
        ("find_poison", "a set, not a count", "count"),
        ("find_poison", "roles written down", "each source has its own"),
        ("epochs_for", "size of all tokens once", "the size is not"),
        ("epochs_for", "cut at most", "the size is not|make the whole"),
        ("near_duplicates", "of the smaller set", "divide by the union"),
        ("near_duplicates", "above the threshold", "equals"),
        ("near_duplicates", "single words", "order must count"),
        ("verify", "read as text", "bytes"),
        ("verify", "new file not looked for", "nobody released"),
        ("verify", "rows alone", "hash the bytes"),
        ("verify", "every file must be in the manifest", "only .jsonl files are released"),
        ("verify", "lines of a binary file", "the byte 10 alone"),
        ("verify", "lines of bytes", "the byte 10 and with nothing else"),
        ("to_messages", "briefing of blanks left out", "of blanks"),
        ("to_messages", "KeyError", "no reason to guess"),
        ("convert_all", "converted twice", "once for each record"),
        ("find_poison", "a surplus turn is never used up", "used up"),
        ("find_poison", "each text once", "as often as"),
        ("find_poison", "each text once in a record", "as often as"),
        ("find_poison", "every exception is a refusal", "ValueError alone"),
        ("find_poison", "kinds without texts left out", "all three"),
        ("epochs_for", "sum within 1e-6", "1e-9"),
        ("near_duplicates", "letters from a to z", "letters"),
    ],
)
def test_the_hint_fits_the_mistake(name, mistake, hint):
    with pytest.raises(CheckFailed, match=hint):
        getattr(e07, name)(WRONG[name][mistake])
