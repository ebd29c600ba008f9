"""Checks of the exercises of lecture 07."""

import copy
import hashlib
import json
import random
import re
import tempfile
from collections import Counter
from functools import wraps
from pathlib import Path

from course_utils.check.core import call, expect, fail, number, passed, plain, shorten
from course_utils.sources import Rejected


class Raised:
    """An exception that came back as an answer."""

    def __init__(self, error):
        self.error, self.message = error, str(error)


def raised_by(function, *kinds):
    """The function with exceptions of these kinds as its answer instead."""

    @wraps(function)
    def attempt(*arguments):
        try:
            return function(*arguments)
        except NotImplementedError:
            raise
        except kinds as error:
            return Raised(error)

    return attempt


def refusal(exercise, function, arguments, said, hint):
    """The message of the ValueError that must come; fails with the hint where none does."""
    got = call(exercise, raised_by(function, Exception), *arguments)
    if not isinstance(got, Raised):
        fail(exercise, f"{said} returned {shorten(got, 60)}, expected a ValueError", hint)
    if not isinstance(got.error, ValueError):
        kind = type(got.error).__name__
        fail(exercise, f"{said} raised {kind}, expected a ValueError", hint)
    return got.message


# --- 7.1 -----------------------------------------------------------------------------------------


def _ticket(*events, **fields):
    return {"ticket": 7, **fields, "events": [{"actor": a, "body": b} for a, b in events]}


TICKETS = [
    _ticket(("customer", "Hi"), ("agent", "Hello")),
    _ticket(("agent", "Still there?"), ("customer", "Yes"), ("agent", "Good"), briefing=""),
    _ticket(
        ("customer", "Where is my parcel?"),
        ("agent", "Let me look."),
        ("lookup", "depot 4"),
        ("agent", "In depot 4."),
        briefing="Be brief.",
    ),
    _ticket(("customer", " two\n spaces "), ("agent", "ok\n"), briefing=None),
    _ticket(("customer", "a"), ("customer", "b"), ("agent", "c"), briefing=" Formal "),
    _ticket(("customer", "Hi"), ("agent", "Hello"), briefing=" \n"),
]
ACTORS = {"customer": "user", "agent": "assistant", "lookup": "tool"}


def to_messages(function):
    exercise = "7.1"
    for record in TICKETS:
        expected = [{"role": ACTORS[e["actor"]], "content": e["body"]} for e in record["events"]]
        if record.get("briefing"):
            expected.insert(0, {"role": "system", "content": record["briefing"]})
        given = copy.deepcopy(record)
        got = call(exercise, function, given)
        said = f"to_messages({shorten(record, 90)})"
        if given != record:
            fail(exercise, f"{said} changed the record", "build a new list from it.")
        expect(exercise, got, expected, _message_hint(got, record, expected), call=said)
    for actor in ("bot", "Agent", "agent ", "system", "user"):
        record = _ticket(("customer", "Hi"), (actor, "Hello"))
        said = f"to_messages of a record with the actor {actor!r}"
        hint = "a name that is not known is no reason to guess: raise ValueError."
        message = refusal(exercise, function, [record], said, hint)
        if actor not in message:
            hint = "name the actor, so that somebody can decide what it means."
            fail(exercise, f"{said} raised ValueError({message!r})", hint)
    passed(exercise)


def _message_hint(got, record, expected):
    if not isinstance(got, list) or not all(
        isinstance(m, dict) and m.keys() == {"role", "content"} for m in got
    ):
        return 'a list of dicts with the keys "role" and "content".'
    roles, wanted = [m["role"] for m in got], [m["role"] for m in expected]
    texts = [m["content"] for m in got]
    if set(roles) & set(ACTORS):
        return "the keys are renamed, the roles are not: customer is the schema's user."
    if len(got) == len(expected) + 1 and roles[0] == "system":
        return "without a briefing, or with an empty one, there is no system turn."
    if wanted[0] == "system" and "system" not in roles and not record["briefing"].strip():
        return "a briefing of blanks is a text: it is copied as it is."
    if wanted[0] == "system" and "system" not in roles:
        return "the briefing is a system text, and stands first."
    if len(got) < len(expected):
        return "every event becomes a message of its own; none is merged or left out."
    wanted_texts = [m["content"] for m in expected]
    if texts != wanted_texts and texts == [text.strip() for text in wanted_texts]:
        return "copy the texts as they are, white space included."
    if texts == wanted_texts and ("user", "tool") in zip(roles, wanted, strict=True):
        return "what a lookup gave is a tool's output, not the user's."
    if texts == wanted_texts:
        return "the actor tells the role, not the place: an agent may come first."
    return "system first, then one message for each event, in their order."


# --- 7.2 -----------------------------------------------------------------------------------------


def _picky(record):
    """A converter that refuses in two ways, and has a bug for one kind of record."""
    if record is None:
        return None
    if record == "":
        raise Rejected("empty text", "record", "nothing is said")
    if record == "human":
        raise Rejected("no reply at the end", "record", "the last turn is the user's")
    return record["text"] if isinstance(record, dict) else [record]


def _noting(seen):
    """The same converter, which notes the records that it is called with."""

    def convert(record):
        seen.append(record)
        return _picky(record)

    return convert


def convert_all(function):
    exercise = "7.2"
    cases = [
        ["a", "b"],
        ["a", "", "b", "", "human", "c"],
        ["", "human"],
        ["a", None, "b", None, ""],
        [{"text": ""}, "a", {"text": []}],
        [],
    ]
    for records in cases:
        kept = [(i, r) for i, r in enumerate(records) if r not in ("", "human", None)]
        conversations = [_picky(record) for _, record in kept]
        reasons = {"": "empty text", "human": "no reply at the end", None: "nothing returned"}
        rejected = {}
        for position, record in enumerate(records):
            if position not in [i for i, _ in kept]:
                rejected.setdefault(reasons[record], []).append(position)
        expected = (
            conversations,
            {"records": len(records), "converted": len(kept), "rejected": rejected},
        )
        for given in (list(records), (record for record in records)):
            seen = []
            got = call(exercise, function, given, _noting(seen))
            kind = "" if isinstance(given, list) else "a generator of "
            said = f"convert_all({kind}{shorten(records, 60)}, convert)"
            expect(exercise, got, expected, _report_hint(got, expected), call=said)
            if seen != records:
                hint = "call it once for each record, and keep what it returns."
                said = f"{said} called convert {len(seen)} times for {len(records)} records"
                fail(exercise, said, hint)
    for error in (KeyError("value"), ValueError("a bug, and no rejection")):
        _bug_goes_up(exercise, function, error)
    passed(exercise)


def _bug_goes_up(exercise, function, error):
    def buggy(record):
        raise error

    kind = type(error).__name__
    got = call(exercise, raised_by(function, Exception), ["a"], buggy)
    if isinstance(got, Raised):
        if got.error is error:
            return
        got = got.error
    hint = "catch `Rejected` alone: any other exception is a bug of the converter."
    said = f"with a converter that raises {kind}, convert_all gave {shorten(got)}"
    fail(exercise, f"{said}, expected that {kind}", hint)


def _report_hint(got, expected):
    if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict)):
        return "return a pair: the list of conversations and the report."
    report, wanted = got[1], expected[1]
    if report.keys() != wanted.keys():
        return f"the report's keys are {', '.join(wanted)}."
    if isinstance(got[0], list) and any(chat is None for chat in got[0]):
        return 'a returned None is a rejection, with the reason "nothing returned".'
    if not got[0] and not report["rejected"] and wanted["records"]:
        return "a generator can be gone through once: count on the way."
    found = report["rejected"]
    if not isinstance(found, dict) or not all(isinstance(p, list) for p in found.values()):
        return '"rejected" maps each reason to the list of positions.'
    positions = [position for places in found.values() for position in places]
    if report["records"] < wanted["records"]:
        return "go on after a rejection: the records behind it count, too."
    if len(got[0]) + len(positions) != wanted["records"]:
        return "every record is converted or rejected: the two must add up to all records."
    if set(found) != set(wanted["rejected"]):
        return "the reason stands in `error.reason`."
    return "positions count records from 0, rejected ones included."


# --- 7.3 -----------------------------------------------------------------------------------------

NAMES = {"system": "system", "human": "user", "gpt": "assistant", "observation": "tool"}


def _record(*turns):
    return {"conversations": [{"from": name, "value": text} for name, text in turns]}


CHATS = [
    _record(("human", "Capital of Peru?"), ("gpt", "Lima.")),
    _record(("gpt", "Welcome."), ("human", "Name a river."), ("gpt", "The Po.")),
    _record(
        ("system", "Be brief."),
        ("human", "Are you sure?"),
        ("gpt", "Yes."),
        ("human", "Really?"),
        ("gpt", "Yes."),
    ),
    _record(("human", "One moment"), ("human", "  What is 2+2? "), ("gpt", "4")),
    _record(("human", "Time in Rome?"), ("observation", "12:05"), ("gpt", "Five past twelve.")),
    _record(("gpt", "Tea or coffee?"), ("human", "Tea, please.")),
    _record(("human", "Sure?"), ("gpt", "Yes."), ("human", "Quite?"), ("gpt", "Yes.")),
]


def _turns(record):
    return [(NAMES[turn["from"]], turn["value"]) for turn in record["conversations"]]


def _messages(turns):
    return [{"role": role, "content": text} for role, text in turns]


def honest(record):
    return _messages(_turns(record))


def by_position(record):
    texts = [text for role, text in _turns(record) if role != "system"]
    return _messages(("user" if i % 2 == 0 else "assistant", t) for i, t in enumerate(texts))


def merging(record):
    made = []
    for role, text in _turns(record):
        if made and made[-1][0] == role:
            made[-1] = (role, f"{made[-1][1]}\n{text}")
        else:
            made.append((role, text))
    return _messages(made)


def reply_carries_the_next_question(record):
    made, turns = [], _turns(record)
    for i, (role, text) in enumerate(turns):
        if role == "user" and i and turns[i - 1][0] == "assistant":
            made[-1] = ("assistant", f"{made[-1][1]} {text}")
        else:
            made.append((role, text))
    return _messages(made)


def stripping(record):
    return _messages((role, text.strip()) for role, text in _turns(record))


def without_repeats(record):
    return _messages(dict.fromkeys(_turns(record)))


def strict(record):
    turns = _turns(record)
    if turns[0][0] == "assistant" or turns[-1][0] != "assistant":
        raise ValueError("turn order")
    return _messages(turns)


def tools_as_users(record):
    return _messages(("user" if role == "tool" else role, text) for role, text in _turns(record))


def dropping_the_last_question(record):
    turns = _turns(record)
    return _messages(turns[:-1] if turns[-1][0] == "user" else turns)


def without_short_turns(record):
    return _messages((role, text) for role, text in _turns(record) if len(text) > 4)


def first_reply_as_user_others_left_out(record):
    turns = _turns(record)
    replies = [("user", text) for role, text in turns if role == "assistant"]
    return _messages([turn for turn in turns if turn[0] != "assistant"] + replies[:1])


CONVERTERS = [
    honest,
    by_position,
    merging,
    stripping,
    reply_carries_the_next_question,
    without_repeats,
    strict,
    tools_as_users,
    dropping_the_last_question,
    without_short_turns,
    first_reply_as_user_others_left_out,
]


def poison(convert, records, roles):
    """What 7.3 asks for."""
    found = {"moved": [], "merged": [], "lost": []}
    for record in records:
        try:
            made = convert(record)
        except ValueError:
            continue
        source = [(roles[turn["from"]], turn["value"]) for turn in record["conversations"]]
        into, out = Counter(source), Counter((m["role"], m["content"]) for m in made)
        missing = into - out
        surplus = Counter(text for _, text in (out - into).elements())
        for turn in source:
            text = turn[1]
            if missing[turn] <= 0:
                continue
            missing[turn] -= 1
            if surplus[text] > 0:
                surplus[text] -= 1
                found["moved"].append(text)
            elif any(text in other and text != other for other in surplus):
                found["merged"].append(text)
            else:
                found["lost"].append(text)
    return found


def find_poison(function):
    exercise = "7.3"
    for convert in CONVERTERS:
        for records in (CHATS, CHATS[3:], CHATS[:2]):
            before = copy.deepcopy(records)
            expected = poison(convert, copy.deepcopy(records), NAMES)
            got = call(exercise, function, convert, records, dict(NAMES))
            said = f"find_poison({convert.__name__}, {len(records)} records, roles)"
            if records != before:
                records[:] = before
                fail(exercise, f"{said} changed the records", "leave them as they are.")
            if not isinstance(got, dict) or got.keys() != expected.keys():
                hint = 'return {"moved": [...], "merged": [...], "lost": [...]}, all three always.'
                fail(exercise, f"{said} returned {shorten(got)}", hint)
            for kind in expected:  # one kind after the other, so that the message stays short
                hint = _poison_hint(got, expected, convert)
                expect(exercise, got[kind], expected[kind], hint, call=f"{said}[{kind!r}]")
    # Another source: here "human" is the name of the assistant.
    roles = {"system": "user", "human": "assistant"}
    records = [_record(("system", "Why?"), ("human", "So."))]
    got = call(exercise, function, lambda r: _messages([("user", "So.")]), records, roles)
    expected = {"moved": ["So."], "merged": [], "lost": ["Why?"]}
    hint = "the source's names are in `roles`; each source has its own."
    expect(exercise, got, expected, hint, call=f"find_poison(..., roles={roles})")
    _only_refusals_are_honest(exercise, function)
    passed(exercise)


def _only_refusals_are_honest(exercise, function):
    error = KeyError("role")

    def buggy(record):
        raise error

    got = call(exercise, raised_by(function, Exception), buggy, CHATS[:1], dict(NAMES))
    if not (isinstance(got, Raised) and got.error is error):
        got = got.error if isinstance(got, Raised) else got
        said = f"with a converter that raises KeyError, find_poison gave {shorten(got)}"
        hint = "catch ValueError alone: any other exception is a bug of the converter."
        fail(exercise, f"{said}, expected that KeyError", hint)


def _poison_hint(got, expected, convert):
    if not all(isinstance(texts, list) for texts in got.values()):
        return "three lists of texts."
    if convert is honest:
        return "this converter is right: compare mapped roles, and every text is in its place."
    repeated = any(
        texts.count("Yes.") > got[kind].count("Yes.") for kind, texts in expected.items()
    )
    if repeated and sorted(set(sum(got.values(), []))) != sorted(set(sum(expected.values(), []))):
        return "a text that goes in twice must come out twice: count, do not only look it up."
    if got["moved"].count("Yes.") > expected["moved"].count("Yes."):
        return "a surplus turn explains one missing text; then it is used up."
    if repeated:
        return "name a text as often as it is missing, in one record and in several."
    if convert is stripping:
        return "texts are compared as they are: a stripped one has not come out."
    if any(set(got["lost"]) & set(expected[kind]) for kind in ("moved", "merged")):
        return "lost is only what came out nowhere: look for it in other roles and longer turns."
    if set(got["merged"]) & set(expected["moved"]):
        return "a text that is a whole turn of another role was moved."
    if any(sorted(got[kind]) != sorted(expected[kind]) for kind in expected):
        return (
            "each missing text is moved, else merged, else lost; a turn that came out is used up."
        )
    return "list the texts in the order of the records and their turns."


# --- 7.4 -----------------------------------------------------------------------------------------


def _epochs(graded, wanted, most):
    size = min(most * graded[name] / share for name, share in wanted.items() if share)
    return {name: share * size / graded[name] if share else 0.0 for name, share in wanted.items()}


def epochs_for(function):
    exercise = "7.4"
    cases = [
        ({"chat": 3000, "identity": 500}, {"chat": 0.5, "identity": 0.5}, 6),
        (
            {"chat": 9000, "sums": 2000, "identity": 400},
            {"chat": 0.5, "sums": 0.3, "identity": 0.2},
            4,
        ),
        (
            {"chat": 2000, "sums": 8000, "identity": 8000},
            {"identity": 0.1, "chat": 0.8, "sums": 0.1},
            2.5,
        ),
        ({"a": 100, "b": 100, "c": 0}, {"a": 1.0, "b": 0.0, "c": 0}, 3),
    ]
    for graded, wanted, most in cases:
        expected = _epochs(graded, wanted, most)
        got = call(exercise, function, dict(graded), dict(wanted), most)
        said = f"epochs_for({graded}, {wanted}, most={most})"
        hint = _epochs_hint(plain(got), graded, wanted, most, expected)
        expect(exercise, got, expected, hint, call=said, tolerance=1e-6)
    refused = [
        ({"a": 10, "b": 10}, {"a": 0.5, "b": 0.4}, "the shares do not add up to 1"),
        ({"a": 10, "b": 10}, {"a": 0.7, "b": 0.7}, "the shares do not add up to 1"),
        ({"a": 10, "b": 10}, {"a": 0.5, "b": 0.5000001}, "the sum is not 1 within 1e-9"),
        ({"a": 10, "b": 10}, {"a": 1.0}, "the two do not name the same parts"),
        ({"a": 10}, {"a": 0.5, "b": 0.5}, "the two do not name the same parts"),
        ({"a": 10, "b": 0}, {"a": 0.5, "b": 0.5}, "b has no graded tokens, and is wanted"),
    ]
    for graded, wanted, why in refused:
        said = f"epochs_for({graded}, {wanted}, most=4)"
        arguments = [dict(graded), dict(wanted), 4]
        refusal(exercise, function, arguments, said, f"{why}: raise ValueError.")
    shares = {name: 0.1 for name in "abcdefghij"}  # their sum is not exactly 1
    got = call(exercise, raised_by(function, ValueError), dict.fromkeys(shares, 50), shares, 4)
    if isinstance(got, Raised):
        said = f"ten shares of 0.1 were refused ({got.message!r})"
        fail(exercise, said, "floats do not add up exactly: allow for 1e-9.")
    passed(exercise)


def _epochs_hint(got, graded, wanted, most, expected):
    if not isinstance(got, dict) or got.keys() != expected.keys():
        return "a dict with a number of epochs for every part, 0 included."

    def close(values):
        return all(
            number(got[name]) and abs(got[name] - value) < 1e-6 for name, value in values.items()
        )

    total = sum(graded.values())
    parts = {name: share for name, share in wanted.items() if share}
    uncut = {n: s * total / graded[n] for n, s in parts.items()}
    if max(uncut.values()) > most and close({n: min(e, most) for n, e in uncut.items()}):
        return "to cut one part at `most` changes all shares: make the whole mixture smaller."
    if close(uncut):
        return "these shares are right, the size is not: make it as large as `most` allows."
    if close({n: most * s for n, s in parts.items()}):
        return "the parts have different sizes: divide by their graded tokens."
    if close({n: float(round(e)) for n, e in expected.items()}):
        return "epochs need not be whole: 0.5 shows half of the rows."
    if any(number(e) and e > most + 1e-6 for e in got.values()):
        return "no part may be shown more than `most` times: which one limits the mixture?"
    if all(number(e) and e < most - 1e-6 for e in got.values()):
        return "it can be larger: one part should be shown exactly `most` times."
    return "epochs = share * size / graded, with the largest size that no part forbids."


# --- 7.5 -----------------------------------------------------------------------------------------

SENTENCE = "The old ferry leaves the small harbour at nine and returns before it is dark."
TEXTS = [
    SENTENCE,
    SENTENCE.upper().replace(" ", "  "),
    SENTENCE.replace("nine", "ten"),
    "Yes.",
    "yes",
    "",
    "...",
    SENTENCE + " Bring a coat, a hat and something warm to drink, and do not be late.",
    "one two three four",
    "one two three four five",
    "four three two one five",
    "tick tock tick tock tick tock tick tock tick tock",
    "tick tock tick tock tick tock",
    "dark it is before returns and nine at harbour small the leaves ferry old the",
    "The Müller family from Köln came late, as always.",
    "The Möller family from Köln came late, as always.",
]


def _similar(texts, threshold, n=5, measure=None, word=r"\w+"):
    measure = measure or (lambda a, b: len(a & b) / len(a | b) if a | b else 0.0)
    sets = []
    for text in texts:
        words = re.findall(word, text.lower())
        starts = range(max(1, len(words) - n + 1)) if words else ()
        sets.append({tuple(words[at : at + n]) for at in starts})
    return [
        (i, j, score)
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
        if (score := measure(sets[i], sets[j])) >= threshold
    ]


def near_duplicates(function):
    exercise = "7.5"
    draw = random.Random(7)
    mixed = TEXTS[:]
    draw.shuffle(mixed)
    # In the pair of the last case exactly half of the runs is shared.
    half = ["a b c d e f g", "a b c d e f x y"]
    cases = [(TEXTS[:3], 0.4), (TEXTS, 0.5), (TEXTS, 0.1), (mixed, 0.3), ([], 0.5)]
    cases += [(half, _similar(half, 0.01)[0][2]), (["a b c", "", "..."], 1)]
    for texts, threshold in cases:
        expected = _similar(texts, threshold)
        got = call(exercise, function, list(texts), threshold)
        hint = _duplicates_hint(got, texts, threshold, expected)
        said = f"near_duplicates({len(texts)} texts, {threshold:.2g})"
        expect(exercise, got, expected, hint, call=said, tolerance=1e-9)
    passed(exercise)


def _duplicates_hint(got, texts, threshold, expected):
    if not isinstance(got, list) or not all(isinstance(p, tuple) and len(p) == 3 for p in got):
        return "a list of tuples (i, j, score)."
    if any(i == j for i, j, _ in got):
        return "a text is no pair with itself."
    if any(i > j for i, j, _ in got):
        return "each pair once, with i < j."
    pairs, wanted = [p[:2] for p in got], [p[:2] for p in expected]
    if pairs != wanted and sorted(pairs) == wanted:
        return "in ascending order of i, then j."
    silent = {i for i, text in enumerate(texts) if not re.search(r"\w", text)}
    if any(silent & set(pair) for pair in pairs):
        return "a text without words is like no other, not even like another one."
    missing = set(wanted) - set(pairs)
    if missing and got == [pair for pair in expected if pair[2] > threshold]:
        return "at least the threshold: a score that equals it counts."
    for wrong, hint in (
        (_similar(texts, threshold, n=1), "single words: their order must count."),
        (_similar(texts, threshold, n=4), "runs of five words, not of four."),
        (_similar(texts, threshold, n=6), "runs of five words, not of six."),
        *(
            (_similar(texts, threshold, word=word), r"ü and ö are letters: words are \w+.")
            for word in ("[a-z0-9]+", "[a-z]+")
        ),
        (
            _similar(
                texts, threshold, measure=lambda a, b: len(a & b) / (min(len(a), len(b)) or 1)
            ),
            "divide by the union, not by the smaller set: a short text in a long one is no copy.",
        ),
        (
            _similar(
                texts, threshold, measure=lambda a, b: len(a & b) / (max(len(a), len(b)) or 1)
            ),
            "divide by the union, not by the larger set.",
        ),
    ):
        if got == wrong:
            return hint
    if any(len(re.findall(r"\w+", texts[i])) < 5 for pair in missing for i in pair):
        return "a text with one to four words has a single run, all of it."
    if missing and any(texts[i].isupper() for pair in missing for i in pair):
        return "words are in lower case, without what stands between them."
    return "shared runs of five words / all different runs of both texts."


# --- 7.6 -----------------------------------------------------------------------------------------

FILES = {
    "chats.jsonl": b'{"messages": ["Hi, I am Pico."]}\n{"messages": ["line\xe2\x80\xa8sep"]}\n',
    "smoke.jsonl": b'{"messages": ["Who?"]}\r\n{"messages":\r["You?"]}\n{"messages": []}\n',
}


def _release(folder):
    """Write the files and their manifest; returns the manifest."""
    manifest = {"files": {}}
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        rows, digest = content.count(b"\n"), hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"sha256": digest, "rows": rows}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return manifest


def _digits(content):
    return hashlib.sha256(content).hexdigest()[:8]


def _changes():
    """(what was done, file, its new bytes or None, what the message must hold, hint)"""
    chats, smoke = FILES["chats.jsonl"], FILES["smoke.jsonl"]
    for what, name, content in (
        ("a letter of chats.jsonl is changed", "chats.jsonl", chats.replace(b"Pico", b"Pica")),
        ("a letter of smoke.jsonl is changed", "smoke.jsonl", smoke.replace(b"Who", b"How")),
        ("a line end of smoke.jsonl is changed", "smoke.jsonl", smoke.replace(b"\r\n", b"\n")),
    ):
        hint = "hash the bytes of every file, as they are on the disk."
        yield what, name, content, (_digits(content), _digits(FILES[name])), hint
    hint = "count the line ends of every file, and say both numbers."
    yield "a row is added to chats.jsonl", "chats.jsonl", chats + b"{}\n", (3, 2), hint
    last = smoke.rsplit(b"\n", 2)[0] + b"\n"
    yield "the last row of smoke.jsonl is missing", "smoke.jsonl", last, (2, 3), hint
    hint = "rows are counted by the byte 10 alone, so this file has one less: say both numbers."
    yield "the last line end of smoke.jsonl is missing", "smoke.jsonl", smoke[:-1], (2, 3), hint
    hint = "a file that the manifest names must be there: raise ValueError, not another error."
    yield "smoke.jsonl is missing", "smoke.jsonl", None, (), hint
    hint = "a file that nobody released must not be used: look at what is in the folder, too."
    yield "more.jsonl lies there, too", "more.jsonl", b"{}\n", (), hint


def verify(function):
    exercise = "7.6"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        folder.mkdir()
        manifest = _release(folder)
        (folder / "README.md").write_text("Notes.\n", encoding="utf-8")
        got = call(exercise, raised_by(function, ValueError), folder)
        if isinstance(got, Raised):
            hint = "hash bytes, not text; a row ends with the byte 10 and with nothing else."
            if "README.md" in got.message or "manifest.json" in got.message:
                hint = "only .jsonl files are released."
            said = f"verify() refused a folder in which nothing was changed: {got.message!r}"
            fail(exercise, said, hint)
        expect(exercise, got, manifest, "return the manifest.", call="verify(unchanged folder)")
        for what, name, content, wanted, hint in _changes():
            _release(folder)
            (folder / "more.jsonl").unlink(missing_ok=True)
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            _refuses(exercise, function, folder, what, (name, *wanted), hint)
            _release(folder)
        # The hash is right and the number of rows is not: somebody edited the manifest.
        (folder / "more.jsonl").unlink(missing_ok=True)
        manifest["files"]["chats.jsonl"]["rows"] = 99
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        what, hint = "the manifest says 99 rows", "compare the rows as well as the hash."
        _refuses(exercise, function, folder, what, ("chats.jsonl", 99, 2), hint)
    passed(exercise)


def _refuses(exercise, function, folder, what, wanted, hint):
    found = refusal(exercise, function, [folder], f"{what}: verify()", hint)
    message = found.replace(str(folder), "").replace(str(folder.parent), "")
    for text in wanted:
        # A number stands alone; of a hash the first digits are wanted.
        pattern = rf"(?<!\w){text}(?!\w)" if isinstance(text, int) else re.escape(text)
        if not re.search(pattern, message):
            said = f"{what}: the message {shorten(found, 100)} lacks {text!r}"
            if not isinstance(text, int):
                hint = "name the file, what was found and what was released."
            fail(exercise, said, hint)


__all__ = [
    "convert_all",
    "epochs_for",
    "find_poison",
    "near_duplicates",
    "to_messages",
    "verify",
]
