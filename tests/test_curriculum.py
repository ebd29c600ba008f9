"""The curriculum: its tasks and their held-out prompts, the identity contract, the mixture."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from course_utils.comparison import check_prompts, mentions, obeys
from course_utils.conversation import check_turns, conversation, load_conversations
from course_utils.curriculum import identity as contract
from course_utils.curriculum import tasks
from course_utils.curriculum.__main__ import main
from course_utils.curriculum.identity import IdentityError, identity, smoke, smoke_prompts
from course_utils.curriculum.mixture import (
    BASES,
    PARTS,
    REAL_PARTS,
    MixtureError,
    Part,
    mixture,
)
from course_utils.curriculum.tasks import TASKS, steps_hold, value
from course_utils.miniweb.facts import facts

ROOT = Path(__file__).parent.parent
SEEDS = st.integers(0, 2**32)
FEW = settings(max_examples=10)


def texts(chats):
    return [[(m.role, m.content) for m in chat] for chat in chats]


# --- every task ----------------------------------------------------------------------------------

# What a reply looks like, for every form that is asked for.
FORMS = {
    "letter": r"[A-D]",
    "sentence": r"The answer is [A-D]\.",
    "both": r"[A-D]: \S.*",
    "sum, one step": r"\d+ [-+x] \d+ = \d+\. (The answer is|Result:) \d+\.",
    "sum, two steps": r"(\d+ [-+x] \d+ = \d+\. ){2}(The answer is|Result:) \d+\.",
    "story, one step": r"\d+ [-+x] \d+ = \d+\. The answer is \d+ \w+\.",
    "story, two steps": r"(\d+ [-+x] \d+ = \d+\. ){2}The answer is \d+ \w+\.",
    "spell": r"[a-z](-[a-z])+",
    "length": r"[a-z]+ has \d+ letters: [a-z](-[a-z])+\.",
    "count": r"[a-z](-[a-z])+\. The letter [a-z] stands there (1 time|\d+ times)\.",
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_is_the_same_for_the_same_seed(task):
    one, again, other = (task.conversations(80, seed) for seed in (3, 3, 4))
    assert one == again and texts(one) != texts(other)
    assert task.prompts(20, 3) == task.prompts(20, 3) != task.prompts(20, 4)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@given(seed=SEEDS)
@FEW
def test_conversations_and_prompts_share_no_question(task, seed):
    chats, prompts = task.conversations(200, seed), task.prompts(60, seed)
    asked = [chat[0].content for chat in chats]
    held_out = [chat[0].content for chat in prompts]
    assert len(set(asked)) == 200 and len(set(held_out)) == 60
    assert not set(asked) & set(held_out)
    assert len({chat.id for chat in [*chats, *prompts]}) == 260
    assert all(check_turns(chat).roles == ["user", "assistant"] for chat in chats)
    assert all(chat.roles == ["user"] for chat in check_prompts(prompts))
    for chat in chats:
        assert re.fullmatch(FORMS[chat.tags[1]], chat[1].content), chat


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_right_reply_passes_and_another_items_reply_fails(task):
    """What a prompt expects and verifies tells a right reply from wrong ones of the same form."""
    items = task._items(100, 0, held_out=True)
    assert [item.question for item in items] == [p[0].content for p in task.prompts(100, 0)]
    refused = compared = 0
    for item in items:
        assert mentions(item.reply, item.expect) and obeys(item.reply, item.verify), item
        for other in items:
            if other.form == item.form and other.reply != item.reply:
                compared += 1
                passes = mentions(other.reply, item.expect) and obeys(other.reply, item.verify)
                refused += not passes
    # A right reply to "how many e" may be one to another question as well: same count.
    assert refused / compared > 0.95


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_wordings_vary(task):
    openings = Counter(" ".join(c[0].content.split()[:2]) for c in task.conversations())
    assert len(openings) >= 15 and openings.most_common(1)[0][1] <= 120


def test_a_form_has_no_wording_of_another():
    bank = tasks._wordings()
    for groups in (bank[name]["groups"] for name in ("multiple_choice", "arithmetic", "spelling")):
        wordings = [wording for group in groups for wording in group["wordings"]]
        assert len(set(wordings)) == len(wordings) and all(len(g["wordings"]) > 2 for g in groups)
        assert len({group["reply"] for group in groups}) == len(groups)


def test_more_questions_than_there_are_is_an_error():
    one = tasks.Task("riddles", lambda draw, held_out, serial: tasks.Item("q", "r", "f", ["r"]))
    assert len(one.conversations(1)) == 1
    with pytest.raises(ValueError, match="riddles: only 1 different questions .* not 2. Ask for"):
        one.prompts(2)


# --- multiple choice -----------------------------------------------------------------------------


def options_of(chat):
    found = re.findall(r"^\(?([A-D])[.)] (.*)$", chat[0].content, re.M)
    assert [letter for letter, _ in found] == list("ABCD")[: len(found)]
    return [value for _, value in found]


def fact_of(chat, asked):
    """The fact whose question stands in the prompt: the longest, as some questions hold others."""
    fitting = [q for q in asked if q in chat[0].content]
    return asked[max(fitting, key=len)]


@pytest.fixture(scope="module")
def questions():
    """{question: fact}; a question that fits several facts is left out."""
    found = defaultdict(list)
    for fact in facts():
        for wording in fact.relation.questions:
            found[fact.fill(wording)].append(fact)
    return {question: them[0] for question, them in found.items() if len(them) == 1}


@pytest.mark.parametrize("held_out", [False, True])
def test_multiple_choice_asks_about_the_facts_it_may_ask_about(questions, held_out):
    items = TASKS["multiple-choice"]._items(200, 5, held_out=held_out)
    values = defaultdict(set)
    for fact in facts():
        if fact.telling == "paraphrased" and fact.asked != held_out:
            values[fact.relation.name].add(fact.value)
    for item in items:
        chat = conversation(("user", item.question))
        fact, options = fact_of(chat, questions), options_of(chat)
        assert fact.telling == "paraphrased" and fact.asked != held_out, item
        assert options.count(fact.value) == 1 and len(set(options)) == len(options)
        assert set(options) <= values[fact.relation.name]
        letter = re.search(r"\b[A-D]\b", item.reply.removeprefix("The answer is "))[0]
        assert options["ABCD".index(letter)] == fact.value, item


@given(seed=SEEDS)
@FEW
def test_the_right_option_stands_in_every_place_equally_often(seed):
    places = Counter()
    for chat in TASKS["multiple-choice"].conversations(240, seed):
        letter = re.search(r"\b[A-D]\b", chat[1].content.removeprefix("The answer is "))[0]
        places[len(options_of(chat)), letter] += 1
    three, four = ([places[n, letter] for letter in "ABCD"[:n]] for n in (3, 4))
    assert three == [40] * 3 and four == [30] * 4


def test_no_option_is_right_beside_the_right_one():
    assert tasks._same("dollar", "Australian dollar") and tasks._same("Oslo", "oslo")
    assert not tasks._same("a key", "a jack")
    for fact, wrong in tasks._choosable(False):
        assert fact.value not in wrong


# --- arithmetic ----------------------------------------------------------------------------------


def pairs_in(reply):
    return {
        (*sorted((int(a), int(b))),) for a, b in re.findall(r"(\d+) [-+x] (\d+) = \d+\.", reply)
    }


@given(seed=SEEDS)
@FEW
def test_every_step_holds_and_held_out_pairs_are_never_shown(seed):
    task = TASKS["arithmetic"]
    shown, held_out = (task._items(150, seed, held_out=held_out) for held_out in (False, True))
    for item in [*shown, *held_out]:
        assert steps_hold(item.reply), item
        asked = [int(number) for number in re.findall(r"\d+", item.question)]
        assert all(2 <= number <= 20 for number in asked) and len(asked) in (2, 3)
        assert f" {item.expect[0]}" in item.reply.rsplit("=", 1)[1]
        if item.form.startswith("sum"):
            # Python's own result of the sum in the question, by the usual rules.
            asked_sum = re.search(r"\d+( [-+x] \d+)+", item.question)[0]
            assert eval(asked_sum.replace("x", "*")) == int(item.expect[0])
    seen, unseen = (
        set().union(*(pairs_in(item.reply) for item in items)) for items in (shown, held_out)
    )
    assert seen and unseen and not seen & unseen


def test_a_fifth_of_the_pairs_is_held_out():
    pairs = [(a, b) for a in tasks.NUMBERS for b in tasks.NUMBERS if a <= b]
    held_out = sum(tasks._held_out(*pair) for pair in pairs)
    assert 0.15 < held_out / len(pairs) < 0.25
    assert all(tasks._held_out(a, b) == tasks._held_out(b, a) for a, b in pairs)


def test_a_story_tells_all_numbers_of_its_sum():
    stories = tasks._wordings()["arithmetic"]["stories"]
    for story in [*stories["units"], *stories["counted"]]:
        slots = re.findall(r"\{(\w+)\}", story["story"])
        assert [s for s in slots if s in "abc"] == re.findall("[abc]", story["sum"]), story
        signs = " ".join(re.findall(r"[-+x]", story["sum"]))
        assert signs in tasks.SIGNS
        assert ("things" in slots) != ("unit" in story)
        assert story["story"].endswith("?")
    signs = [tuple(re.findall(r"[-+x]", s["sum"])) for s in stories["counted"]]
    assert {len(s) for s in signs} == {1, 2} and {x for s in signs for x in s} == set("+-x")


@given(
    st.integers(0, 999), st.sampled_from("+-x*×−"), st.integers(0, 999), st.integers(-9, 9), SEEDS
)
def test_a_step_holds_only_with_its_result(a, sign, b, off, seed):
    result = {"+": a + b, "-": a - b, "−": a - b}.get(sign, a * b)
    space = random.Random(seed).choice(["", " "])
    step = f"{a}{space}{sign}{space}{b}{space}={space}{result + off}"
    assert steps_hold(f"First {step}. The answer is 7.") == (off == 0)
    assert steps_hold(f"1 + 1 = 2. {step}") == (off == 0)


@pytest.mark.parametrize(
    "text, holds",
    [
        ("7 + 5 = 12. The answer is 12.", True),
        ("7 + 5 = 12. 12 - 3 = 9. The answer is 9.", True),
        ("7 + 5 = 12, and 12 / 8 = 1.5", True),
        ("2 + 3 x 4 = 14", True),
        ("1,000 + 1 = 1,001", True),
        ("$12 / 60 = $0.2", True),
        ("In the box 7 + 5 = 12", True),
        ("3 - 5 = -2.", True),
        ("0.1 + 0.2 = 0.3", True),
        ("7 + 5 = 13. The answer is 12.", False),
        ("7 + 5 = 12. 12 - 3 = 8.", False),
        ("The answer is 12.", False),  # no step
        ("", False),
        ("12 = 12", False),  # no sum
        ("7 + 5 = twelve", False),
        ("seven + 5 = 12", False),
        ("7 + 5 = 12 = 13", False),
        ("7 + 5 = 12 - 1", False),
        ("7 + 5 = 12 x 2", False),
        ("1 + (2 + 3 = 5)", False),
        ("9 - 7 + 5 = 12", False),
        ("2 + 3 x 4 = 20", False),
        ("10 / 3 = 3.33", False),
        ("1 / 0 = 0", False),
        ("7 + 5 = 12.5", False),
        ("7 + 5 = 12 and x = 3", False),
    ],
)
def test_steps_hold(text, holds):
    assert steps_hold(text) == holds


@pytest.mark.parametrize("text", ["", "a", "2 **9", "(2", "2 // 3", "f(2)", "True", "9" * 9999])
def test_what_is_no_arithmetic_has_no_value(text):
    assert value(text) is None
    assert value("(2+3)*4") == 20


# --- spelling ------------------------------------------------------------------------------------


@given(seed=SEEDS)
@FEW
def test_letters_are_those_of_the_word_and_counts_are_right(seed):
    used = {}
    for held_out in (False, True):
        used[held_out] = set()
        for item in TASKS["spelling"]._items(100, seed, held_out=held_out):
            letters = re.search(r"[a-z](-[a-z])+", item.reply)[0]
            word = letters.replace("-", "")
            assert word in item.question and word in tasks._pages()["spelling"]["words"]
            used[held_out].add(word)
            if item.form == "length":
                assert f"{word} has {len(word)} letters:" in item.reply
            if item.form == "count":
                rest = item.question.replace(word, "")
                (asked,) = re.findall(r"(?<!\w)[a-z](?!\w)", rest)
                count = int(re.search(r"there (\d+) time", item.reply)[1])
                letter = re.search(r"letter ([a-z]) stands", item.reply)[1]
                assert word.count(letter) == count and letter == asked
    assert not used[True] & used[False]


def test_a_quarter_of_the_words_is_held_out_and_counts_differ():
    shown, held_out = tasks._words(False), tasks._words(True)
    assert sorted([*shown, *held_out]) == sorted(tasks._pages()["spelling"]["words"])
    assert 0.2 < len(held_out) / (len(shown) + len(held_out)) < 0.3
    counts = Counter(
        re.search(r"there (\d+)", chat[1].content)[1]
        for chat in TASKS["spelling"].conversations()
        if chat.tags[1] == "count"
    )
    assert set(counts) >= {"0", "1", "2"} and counts["1"] < 0.7 * counts.total()


# --- identity ------------------------------------------------------------------------------------

FILES = ("identity_conversations.jsonl", "smoke_prompts.jsonl")


@pytest.fixture
def released(tmp_path):
    """A copy of the shipped set."""
    return shutil.copytree(ROOT / "data" / "identity", tmp_path / "identity")


def test_the_shipped_identity_is_the_released_one():
    chats, prompts = identity(), smoke_prompts()
    assert len(chats) >= 50 and len(prompts) >= 12
    assert len({chat.id for chat in [*chats, *prompts]}) == len(chats) + len(prompts)
    replies = {m.content for chat in chats for m in chat if m.role == "assistant"}
    assert len(replies) <= 16, "a small model learns few sentences"
    assert any("system" in chat.roles for chat in chats) and any(len(chat) > 3 for chat in chats)
    asked = {m.content for chat in chats for m in chat}
    assert not {p[-1].content for p in prompts if "system" not in p.roles} & asked


def test_nothing_reads_the_identity_set_but_its_own_module():
    # A lecture may show a changed copy; what trains or measures goes through `identity`.
    folders = ("course_utils", "tools", "benchmarks")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    naming = [
        p.name for p in paths if re.search("identity_conv|smoke_prompts.jsonl", p.read_text())
    ]
    assert naming == ["identity.py"]


@given(name=st.sampled_from(FILES), where=st.integers(0, 10**6), byte=st.integers(0, 255))
@example(name=FILES[0], where=0, byte=ord("{"))
@settings(max_examples=40)
def test_a_changed_byte_is_refused_on_every_path(tmp_path_factory, name, where, byte):
    folder = tmp_path_factory.mktemp("identity")
    shutil.copytree(ROOT / "data" / "identity", folder, dirs_exist_ok=True)
    content = bytearray((folder / name).read_bytes())
    same = content[where % len(content)] == byte
    content[where % len(content)] = byte
    (folder / name).write_bytes(content)
    for read in (identity, smoke_prompts, contract.verify, lambda folder: smoke([""] * 12, folder)):
        if same:
            read(folder)
            continue
        with pytest.raises(IdentityError, match="changed without a new manifest") as error:
            read(folder)
        said = str(error.value)
        assert name in said and "rows with SHA-256" in said and contract.COMMAND in said


def test_a_row_more_or_less_is_refused_with_both_counts(released):
    path = released / FILES[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(IdentityError, match=rf"{len(lines) - 1} rows .* says {len(lines)} rows"):
        identity(released)
    path.write_bytes(b"".join([*lines, lines[0].replace(b"identity-who-1", b"identity-who-0")]))
    with pytest.raises(IdentityError, match=rf"{len(lines) + 1} rows .* says {len(lines)} rows"):
        identity(released)


def test_a_missing_or_broken_file_is_refused(released):
    for damage, match in (
        (lambda path: path.write_text("{}"), "manifest.json is broken"),
        (lambda path: path.write_text("["), "manifest.json is broken"),
        (lambda path: path.write_text('{"version": 1, "files": {}}'), "manifest.json is broken"),
        (lambda path: path.unlink(), "manifest.json is missing"),
    ):
        damage(released / "manifest.json")
        with pytest.raises(IdentityError, match=match):
            identity(released)
    contract.build(released)
    (released / FILES[1]).unlink()
    with pytest.raises(IdentityError, match="smoke_prompts.jsonl is missing.*run: python -m"):
        identity(released)


def test_a_meant_change_gets_a_new_manifest_and_version(released):
    before = {path.name: path.read_bytes() for path in released.iterdir()}
    contract.build(released)
    assert before == {path.name: path.read_bytes() for path in released.iterdir()}
    path = released / FILES[0]
    path.write_text(path.read_text().replace("Pico", "Nano"))
    manifest = contract.build(released)
    assert manifest["version"] == json.loads(before["manifest.json"])["version"] + 1
    assert "Nano" in identity(released)[0][1].content
    assert any("Pico" in failure for failure in smoke(["I am Nano."] * 12, released))


def edited(folder, name, change):
    path = folder / name
    lines = path.read_text().splitlines()
    record = json.loads(lines[0])
    change(record)
    path.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")


@pytest.mark.parametrize(
    "name, change, message",
    [
        (FILES[0], lambda r: r["messages"].pop(), "no reply at the end"),
        (FILES[0], lambda r: r["messages"][1].update(content="I am Max."), "reply differently"),
        (FILES[0], lambda r: r.update(id="identity-who-2"), "already stands in line"),
        (FILES[1], lambda r: r["messages"][0].update(content="Who are you?"), "is trained on"),
        (FILES[1], lambda r: r.update(required=[]), "nothing is required"),
        (FILES[1], lambda r: r.update(forbidden="Luna"), '"forbidden" must be a list'),
        (
            FILES[1],
            lambda r: r["messages"].append({"role": "assistant", "content": "x"}),
            "ends with the user",
        ),
    ],
)
def test_build_refuses_a_set_that_should_not_be_released(released, name, change, message, capsys):
    edited(released, name, change)
    assert contract.main(["build", "--folder", str(released)]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1
    with pytest.raises(IdentityError):
        identity(released)


def test_smoke_tells_required_and_forbidden(released):
    prompts = smoke_prompts()
    good = [", ".join(prompt.meta["required"]) + "." for prompt in prompts]
    assert smoke(good) == []
    trained = {m.content for chat in identity() for m in chat if m.role == "assistant"}
    for prompt in prompts:
        right = [t for t in trained if all(contract._in(r, t) for r in prompt.meta["required"])]
        assert right, f"no trained reply would pass {prompt.id}"
    for number, prompt in enumerate(prompts):
        for text in prompt.meta["forbidden"]:
            bad = [*good]
            bad[number] += f" {text.upper()}!"
            (failure,) = smoke(bad)
            assert prompt.id in failure and f"holds {text!r}" in failure
        (failure,) = smoke([*good[:number], "Picosecond, mini-webs.", *good[number + 1 :]])
        assert "lacks" in failure
    with pytest.raises(ValueError, match="12 smoke prompts need as many replies, not 1"):
        smoke(["Pico"])


def test_the_commands_of_the_identity_set(released, capsys):
    folder = ["--folder", str(released)]
    assert contract.main(["verify", *folder]) == 0
    assert f"{len(identity())} rows" in capsys.readouterr().out
    (released / FILES[0]).write_bytes(b"")
    assert contract.main(["verify", *folder]) == 1
    assert "run: python -m course_utils.curriculum.identity build" in capsys.readouterr().err


# --- the mixture ---------------------------------------------------------------------------------


def part(name, rows, epochs=1.0):
    chats = [conversation(("user", f"{name} {n}"), id=f"x{n}") for n in range(rows)]
    return Part(name, "because", lambda: chats, epochs=epochs)


PARTS_OF_ANY_SIZE = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 3)), min_size=1, max_size=4
).map(lambda them: [part("abcd"[n], *about) for n, about in enumerate(them)])


def mixed_or_none(parts, seed, **how):
    try:
        return mixture(parts, seed, **how)
    except MixtureError as error:
        assert "no rows are left" in str(error)
        return None


@given(parts=PARTS_OF_ANY_SIZE, seed=SEEDS)
def test_a_row_is_shown_as_often_as_its_epochs_say(parts, seed):
    mixed = mixed_or_none(parts, seed)
    if mixed is None:
        assert all(int(p.epochs) * len(p.local()) == 0 for p in parts)
        return
    sources = [mixed.source(i) for i in range(len(mixed))]
    for p, line in zip(parts, mixed.table(), strict=True):
        rows = len(p.local())
        times = Counter(s.row for s in sources if s.part == p.name)
        assert line.used == times.total() == int(p.epochs) * rows + round(p.epochs % 1 * rows)
        assert all(times[row] - int(p.epochs) in (0, 1) for row in range(rows))
        assert (line.rows, line.epochs) == (rows, p.epochs)
    assert sum(line.share for line in mixed.table()) == pytest.approx(1)
    assert sum(line.used for line in mixed.table()) == len(mixed)


@given(parts=PARTS_OF_ANY_SIZE, seed=SEEDS)
def test_the_index_leads_back_and_ids_are_unique(parts, seed):
    mixed = mixed_or_none(parts, seed)
    if mixed is None:
        return
    by_name = {p.name: p.local() for p in parts}
    for i, chat in enumerate(mixed):
        source = mixed.source(i)
        assert chat.messages == by_name[source.part][source.row].messages
        assert chat.id == f"{source.part}.{source.row}.{source.epoch}"
        assert chat.meta == {"part": source.part, "part_id": source.id}
    assert len({chat.id for chat in mixed}) == len(set(map(mixed.source, range(len(mixed)))))
    assert len({chat.id for chat in mixed}) == len(mixed)
    again = mixture(parts, seed)
    assert list(again) == list(mixed)


@given(parts=PARTS_OF_ANY_SIZE, seed=SEEDS, left_out=st.sampled_from("abcd"))
def test_without_a_part_the_others_keep_their_rows_and_order(parts, seed, left_out):
    names = [p.name for p in parts]
    if left_out not in names:
        with pytest.raises(MixtureError, match=f"no part '{left_out}': the parts are {names[0]}"):
            mixture(parts, seed, without=[left_out])
        return
    whole = mixed_or_none(parts, seed)
    rest = mixed_or_none(parts, seed, without=[left_out])
    kept = [chat.id for chat in whole or () if chat.meta["part"] != left_out]
    assert [chat.id for chat in rest or ()] == kept


def test_the_order_is_mixed_and_depends_on_the_seed():
    parts = [part("a", 100), part("b", 100)]
    orders = [[chat.id for chat in mixture(parts, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    first_half = sum(id.startswith("a") for id in orders[0][:100])
    assert 30 < first_half < 70
    halves = [{c.id for c in mixture(parts, seed, epochs={"a": 0.5})} for seed in (0, 1)]
    assert halves[0] != halves[1]


def test_a_mixture_is_a_sequence():
    mixed = mixture([part("a", 5, 2)])
    assert mixed[-1] == mixed[len(mixed) - 1] and len(mixed[2:5]) == 3
    with pytest.raises(IndexError):
        mixed[len(mixed)]
    given_epochs = mixture([part("a", 5, 2), part("b", 2)], epochs={"a": 1})
    assert [line.epochs for line in given_epochs.table()] == [1, 1] and len(given_epochs) == 7


@pytest.mark.parametrize("epochs", [-1, -0.1, float("nan"), float("inf")])
def test_impossible_epochs_are_refused(epochs):
    with pytest.raises(MixtureError, match="a: .* epochs. Give a number of 0 or more"):
        mixture([part("a", 3)], epochs={"a": epochs})


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(MixtureError, match="no part 'b': the parts are a"):
        mixture([part("a", 3)], epochs={"b": 1})
    with pytest.raises(MixtureError, match="two parts are named 'a'"):
        mixture([part("a", 3), part("a", 3)])
    with pytest.raises(MixtureError, match="no rows are left"):
        mixture([part("a", 3)], epochs={"a": 0})


# --- the shipped parts ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BASES)
def shipped(request):
    return mixture(BASES[request.param])


def test_every_shipped_part_has_rows_and_a_reason(shipped):
    for line in shipped.table():
        assert line.rows >= 50 and line.used >= line.rows and len(line.why) > 20
    assert len(shipped) > 2000
    for chat in shipped:
        assert check_turns(chat).roles[-1] == "assistant"


def test_names_of_the_parts():
    common = ["identity", "multiple-choice", "arithmetic", "spelling"]
    assert [p.name for p in PARTS] == ["facts", "follow-ups", "form", "talk", *common]
    assert [p.name for p in REAL_PARTS] == ["everyday-chat", *common]
    assert not any(p.hub for p in PARTS)
    assert [p.hub.name for p in REAL_PARTS if p.hub] == ["smoltalk", "mmlu", "gsm8k"]


def test_a_question_about_the_model_has_one_answer(shipped):
    """Two parts that answered "Who are you?" differently would teach neither."""
    own = {chat[0].content: chat[1].content for chat in identity() if chat.roles[0] == "user"}
    for chat in shipped:
        if chat.roles[0] == "user" and chat[0].content in own:
            assert chat[1].content == own[chat[0].content], chat.id


def test_no_part_shows_what_its_prompts_ask(shipped):
    shown = {m.content for chat in shipped for m in chat if m.role == "user"}
    for task in TASKS.values():
        assert not {prompt[-1].content for prompt in task.prompts(200)} & shown


def test_the_command_writes_the_mixture_and_its_table(tmp_path, capsys):
    path = tmp_path / "mixture.jsonl"
    options = ["--without", "facts", "--epochs", "identity=0.5", "--seed", "7"]
    assert main([str(path), *options]) == 0
    said = capsys.readouterr().out
    rows = len(identity())
    assert re.search(rf"identity +{rows} +0.5 +{rows // 2} ", said) and "facts" not in said
    assert "says who it is" in said
    found = load_conversations(path)
    assert list(found) == list(mixture(PARTS, 7, without=["facts"], epochs={"identity": 0.5}))
    assert f"Wrote {len(found):,} conversations" in said


@pytest.mark.parametrize(
    "options, message",
    [
        (["--without", "chess"], "no part 'chess': the parts are facts, follow-ups"),
        (["--epochs", "identity=-1"], "identity: -1.0 epochs. Give a number of 0 or more"),
        (["--base", "real", "--epochs", "facts=1"], "no part 'facts': the parts are everyday-chat"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, options, message):
    path = tmp_path / "mixture.jsonl"
    assert main([str(path), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not path.exists()
    with pytest.raises(SystemExit):
        main([str(path), "--epochs", "identity"])
    assert "'identity' is not PART=NUMBER" in capsys.readouterr().err


def test_online_course_base_says_that_it_has_nothing_to_fetch(tmp_path, capsys):
    assert main([str(tmp_path / "x.jsonl"), "--online"]) == 0
    assert "No part of this mixture has rows on the Hub." in capsys.readouterr().out


def test_the_curriculum_is_imported_without_heavy_packages():
    code = (
        "import sys\n"
        "import course_utils.curriculum.__main__\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'huggingface_hub', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
