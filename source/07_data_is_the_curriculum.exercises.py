# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 Data is the curriculum: exercises
#
# For lecture [07](../notebooks/07_data_is_the_curriculum.ipynb). Each exercise stands alone; do them in
# any order. Plain Python is enough. Replace `raise NotImplementedError`, run the cell and the check under
# it. For a report on all of them:
#
# ```bash
# pytest --nbval exercises/07_data_is_the_curriculum.ipynb
# ```

# %%
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from course_utils.check import e07
from course_utils.sources import Rejected

# %% [markdown]
# ## 7.1 Map the roles
#
# Difficulty 1 of 5, importance 5 of 5, 10 minutes.
#
# A help desk exports its chats in a format of its own. One record:
#
# ```python
# {"ticket": 7, "briefing": "Be brief.",
#  "events": [{"actor": "customer", "body": "Where is my parcel?"},
#             {"actor": "agent", "body": "Let me look."},
#             {"actor": "lookup", "body": "depot 4"},
#             {"actor": "agent", "body": "In depot 4."}]}
# ```
#
# Convert it to a list of messages of the course's schema. `customer` is the user, `agent` the assistant,
# `lookup` a tool's output; the briefing is a system text. Some records have no briefing, or an empty one.
#
# <details><summary>Hint 1</summary>
#
# A dict from the source's names to the schema's. What happens with a name that is not in it?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `record.get("briefing")` is None, "" or a text. Copy texts as they are, white space included.
#
# </details>


# %%
def to_messages(record: dict) -> list[dict]:
    """The record as messages: [{"role": ..., "content": ...}, ...], in its order.

    record: "events" is a list of {"actor", "body"}; "briefing" may be there. It is not changed.

    A missing, None or empty briefing gives no turn. One of blanks is a text: it is copied as it is.

    Raises `ValueError` naming the actor if an actor is none of "customer", "agent", "lookup". Names
    are matched exactly: nobody knows whether "Agent" is the same.

    >>> to_messages({"events": [{"actor": "customer", "body": "Hi"}]})
    [{'role': 'user', 'content': 'Hi'}]
    """
    # BEGIN SOLUTION
    roles = {"customer": "user", "agent": "assistant", "lookup": "tool"}
    messages = []
    if record.get("briefing"):
        messages.append({"role": "system", "content": record["briefing"]})
    for event in record["events"]:
        if event["actor"] not in roles:
            raise ValueError(f"unknown actor {event['actor']!r}: known are {', '.join(roles)}")
        messages.append({"role": roles[event["actor"]], "content": event["body"]})
    return messages
    # END SOLUTION


# %% tags=["exercise-7.1"]
e07.to_messages(to_messages)

# %% [markdown]
# ## 7.2 Reject with a reason
#
# Difficulty 2 of 5, importance 5 of 5, 10 minutes.
#
# A converter takes one record. It returns the conversation, or raises `Rejected` with a `reason`. Run it
# over a source and report what became of every record, so that nothing is dropped silently. Old converters
# sometimes return `None` for what they do not like: that is a rejection, too, with the reason
# `"nothing returned"`.
#
# <details><summary>Hint 1</summary>
#
# `except Rejected as error:` and then `error.reason`. Which other exceptions should you catch? A `KeyError`
# is a bug in the converter, and no property of the record.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The records may come from a generator: go through them once, and count as you go.
#
# </details>


# %%
def convert_all(records: Iterable, convert: Callable) -> tuple[list, dict]:
    """(conversations, report) of a source, in its order.

    report: {"records": how many, "converted": how many, "rejected": {reason: [positions]}}, where a
            position counts records from 0. Every record is in "converted" or in "rejected".

    Only `Rejected` and a returned None are rejections. Any other exception is a bug and goes on up.
    `convert` is called once for each record: it may be slow.

    >>> convert_all(["ok", "ok"], str.upper)
    (['OK', 'OK'], {'records': 2, 'converted': 2, 'rejected': {}})
    """
    # BEGIN SOLUTION
    conversations, rejected, position = [], {}, -1
    for position, record in enumerate(records):
        try:
            found = convert(record)
            reason = "nothing returned" if found is None else None
        except Rejected as error:
            reason = error.reason
        if reason is None:
            conversations.append(found)
        else:
            rejected.setdefault(reason, []).append(position)
    report = {"records": position + 1, "converted": len(conversations), "rejected": rejected}
    return conversations, report
    # END SOLUTION


# %% tags=["exercise-7.2"]
e07.convert_all(convert_all)

# %% [markdown]
# ## 7.3 Catch the poison
#
# Difficulty 3 of 5, importance 5 of 5, 20 minutes.
#
# You get somebody's converter and some of the records that it was written for. Find out by a property check
# what it does to the texts: each must come out once, in its own role. There are three ways to fail:
#
# | what happened | to a text that went in |
# |---|---|
# | `"moved"` | it came out as a whole turn, but in another role |
# | `"merged"` | it came out only as a part of a longer turn |
# | `"lost"` | it did not come out at all |
#
# The same text may stand in a record twice ("Yes."), and then it must come out twice.
#
# <details><summary>Hint 1</summary>
#
# Two `Counter`s of (role, text), one for what goes in, one for what comes out. `into - out` is what is
# missing from its place; `out - into` is what stands where it did not go in.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For each missing text ask in this order: is it one of the surplus turns (then that one is used up)? Is it
# inside a longer surplus turn? Otherwise it is lost. To list the missing texts in the record's order, go
# through the record from its start and take each missing one when you meet it.
#
# </details>


# %%
def find_poison(convert: Callable, records: list[dict], roles: dict) -> dict[str, list[str]]:
    """The texts that a converter moved, merged or lost, in the order of the records and turns.

    convert: record -> [{"role": ..., "content": ...}, ...]; raises ValueError for a record that it
             refuses, which is honest and no poison. Any other exception is a bug and goes on up.
    records: each {"conversations": [{"from": ..., "value": ...}, ...]}
    roles:   what each name in "from" means: "system", "user", "assistant" or "tool"

    Texts are compared as they are: one that was stripped or put into lower case is lost. Name a
    text as often as it is missing: once if it occurs twice and one of the two is missing, twice
    if both are, and again for another record. All three kinds stand in the result.

    >>> record = {"conversations": [{"from": "human", "value": "Hi"}]}
    >>> find_poison(lambda r: [{"role": "assistant", "content": "Hi"}], [record], {"human": "user"})
    {'moved': ['Hi'], 'merged': [], 'lost': []}
    """
    # BEGIN SOLUTION
    found = {"moved": [], "merged": [], "lost": []}
    for record in records:
        try:
            made = convert(record)
        except ValueError:
            continue
        source = [(roles[turn["from"]], turn["value"]) for turn in record["conversations"]]
        into, out = Counter(source), Counter((m["role"], m["content"]) for m in made)
        missing, surplus = into - out, Counter(text for _, text in (out - into).elements())
        for turn in source:
            if not missing[turn]:
                continue
            missing[turn] -= 1
            text = turn[1]
            if surplus[text]:
                surplus[text] -= 1
                found["moved"].append(text)
            elif any(text in other and text != other for other in surplus):
                found["merged"].append(text)
            else:
                found["lost"].append(text)
    return found
    # END SOLUTION


# %% tags=["exercise-7.3"]
e07.find_poison(find_poison)

# %% [markdown]
# ## 7.4 From shares to epochs
#
# Difficulty 3 of 5, importance 3 of 5, 15 minutes.
#
# You want 50 % chat, 30 % arithmetic and 20 % identity, counted in *graded tokens*. The parts have different
# sizes, so each must be shown a different number of times. Make the mixture as large as it can be without
# showing any part more than `most` times: a model learns too often repeated rows by heart.
#
# <details><summary>Hint 1</summary>
#
# A mixture of N graded tokens needs share · N of a part; that is share · N / graded epochs.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Which N is the largest with which no part needs more than `most` epochs? One part limits it.
#
# </details>


# %%
def epochs_for(graded: dict[str, int], wanted: dict[str, float], most: float) -> dict[str, float]:
    """{part: epochs} of the largest mixture with these shares in which no part exceeds `most`.

    graded: graded tokens of each part, shown once
    wanted: the share of each part in the graded tokens of the mixture; 0 leaves a part out
    most:   how often a part may be shown

    A share of 0 gives 0 epochs; every part stands in the result.

    Raises `ValueError` if the two do not name the same parts, if the shares do not add up to 1
    (within 1e-9), or if a part without graded tokens is wanted.

    >>> epochs_for({"chat": 3000, "identity": 500}, {"chat": 0.5, "identity": 0.5}, most=6)
    {'chat': 1.0, 'identity': 6.0}
    """
    # BEGIN SOLUTION
    if set(graded) != set(wanted):
        raise ValueError(f"different parts: {sorted(graded)} and {sorted(wanted)}")
    if abs(sum(wanted.values()) - 1) > 1e-9:
        raise ValueError(f"the shares add up to {sum(wanted.values())}, not to 1")
    if empty := [name for name, share in wanted.items() if share and not graded[name]]:
        raise ValueError(f"{empty[0]} is wanted and has no graded tokens")
    size = min(most * graded[name] / share for name, share in wanted.items() if share)
    return {name: share * size / graded[name] if share else 0.0 for name, share in wanted.items()}
    # END SOLUTION


# %% tags=["exercise-7.4"]
e07.epochs_for(epochs_for)

# %% [markdown]
# ## 7.5 Near-duplicates
#
# Difficulty 3 of 5, importance 4 of 5, 15 minutes.
#
# Two texts are compared by the sets of their runs of five words (word 5-grams): the size of the intersection
# divided by the size of the union. Words are `re.findall(r"\w+", text.lower())`. A text with one to four words
# has a single run: all of it. A text without words is like no other.
#
# <details><summary>Hint 1</summary>
#
# A text of n words has n - 4 runs of five. `tuple(words[i : i + 5])` can stand in a set.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# For at least one word, `range(max(1, len(words) - 4))` gives every start, short texts included.
#
# </details>


# %%
def near_duplicates(texts: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """(i, j, score) of every pair with a score of at least `threshold`; i < j, in ascending order.

    threshold: above 0, up to 1

    >>> near_duplicates(["To be or not to be.", "to be, or not to be!", "Well, hello"], 0.5)
    [(0, 1, 1.0)]
    """
    # BEGIN SOLUTION
    sets = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        starts = range(max(1, len(words) - 4)) if words else ()
        sets.append({tuple(words[start : start + 5]) for start in starts})
    pairs = []
    for j, second in enumerate(sets):
        for i, first in enumerate(sets[:j]):
            if both := len(first | second):
                score = len(first & second) / both
                if score >= threshold:
                    pairs.append((i, j, score))
    return sorted(pairs)
    # END SOLUTION


# %% tags=["exercise-7.5"]
e07.near_duplicates(near_duplicates)

# %% [markdown]
# ## 7.6 Verify a manifest
#
# Difficulty 3 of 5, importance 4 of 5, 20 minutes.
#
# A folder holds `.jsonl` files and a `manifest.json`:
#
# ```python
# {"files": {"chats.jsonl": {"sha256": "9f2c...", "rows": 64}}}
# ```
#
# Nobody may use the files if they are not what was released. Say exactly what is wrong: a colleague reads the
# message at night, before a release.
#
# <details><summary>Hint 1</summary>
#
# `hashlib.sha256(path.read_bytes()).hexdigest()`. Bytes, not text: reading as text turns one kind of line end
# into another, and then the hash is that of another file.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A row ends with the byte `b"\n"`, and with nothing else. Compare the names first, in both directions.
#
# </details>


# %%
def verify(folder: Path) -> dict:
    """The manifest of a folder, if its .jsonl files are exactly what it says.

    folder: holds manifest.json; "sha256" is the hex digest of a file's bytes, "rows" the number of
            its line ends (the byte 10). Files that are not .jsonl may lie there, too.

    Raises `ValueError` that names the file if
    - a file of the manifest is missing, or a .jsonl file in the folder is not in the manifest,
    - the rows differ: the message holds both numbers, found and released,
    - the rows agree and the hash differs: the message holds the first 8 digits of both hashes.
    """
    # BEGIN SOLUTION
    folder = Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    released = manifest["files"]
    there = {path.name for path in folder.glob("*.jsonl")}
    for name in sorted(released.keys() - there):
        raise ValueError(f"{name} is in the manifest and not in the folder")
    for name in sorted(there - released.keys()):
        raise ValueError(f"{name} is in the folder and not in the manifest")
    for name, described in released.items():
        content = (folder / name).read_bytes()
        digest, rows = hashlib.sha256(content).hexdigest(), content.count(b"\n")
        if rows != described["rows"]:
            raise ValueError(f"{name} has {rows} rows, {described['rows']} were released")
        if digest != described["sha256"]:
            raise ValueError(
                f"{name} has the hash {digest[:8]}..., {described['sha256'][:8]}... was released"
            )
    return manifest
    # END SOLUTION


# %% tags=["exercise-7.6"]
e07.verify(verify)
