"""The audit: what is planted is found, shared boiler-plate is not, and nothing is missed."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.audit import (
    LEXICAL_WORDS,
    AuditError,
    _identifier,
    audit,
    diversity,
    duplicates,
    graded_share,
    languages,
    main,
    near_duplicate_prompts,
    near_duplicates,
    overlap,
    shape,
    shingles,
    similar,
    token_budget,
    words,
)
from course_utils.conversation import (
    Conversation,
    conversation,
    load_conversations,
    save_conversations,
)

DATA = Path(__file__).parent.parent / "data"
BEES = "Why do bees dance when they come home to the hive in summer?"
DANCE = (
    "A bee that has found good flowers shows the others the way. The angle of her dance gives the "
    "direction from the sun. Its length gives the distance. The others follow her in the dark."
)
TEA = "How long should I leave green tea in the pot so that it is not bitter?"
LEAVES = (
    "Two minutes are enough for most green teas. Let the water cool down to about eighty degrees "
    "first, since boiling water brings out the bitter taste whatever the time."
)


def chat(user, reply, system=None, **fields):
    turns = [("system", system)] if system else []
    return Conversation(
        conversation(*turns, ("user", user), ("assistant", reply)).messages, **fields
    )


def pairs(found):
    return [(pair.first, pair.second) for pair in found]


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Don't STOP, me.\n\tnow!", "don t stop me now"),
        ("**bold** `snake_case` - item", "bold snake case item"),
        ("3+4 is not 3 * 4", "3 + 4 is not 3 * 4"),
        ("１２ ﬁne Straße", "12 fine strasse"),
        ("e\u0301tude", "étude"),
        ("水は100度", "水 は 100 度"),
        ("мир שלום", "мир שלום"),
        ("🙂 🙂!", "🙂 🙂!"),
        ("  ", ""),
    ],
)
def test_words(text, expected):
    assert words(text) == expected.split()


def test_shingles():
    assert shingles(list("abcd"), 3) == {tuple("abc"), tuple("bcd")}
    assert shingles(list("ab"), 3) == {tuple("ab")}
    assert shingles([], 3) == set()


# --- copies --------------------------------------------------------------------------------------

PLANTED = {
    "the same": (BEES, DANCE),
    "case": (BEES.upper(), DANCE.lower()),
    "punctuation": (BEES.replace("?", ""), DANCE.replace(".", " -- ")),
    "white space": (BEES.replace(" ", "\n"), f"  {DANCE}\n\n"),
    "full-width": (BEES, DANCE.translate({i: i + 0xFEE0 for i in range(ord("a"), ord("z") + 1)})),
    "other system text": (BEES, DANCE, "Answer like a beekeeper."),
}
CHANGED = {
    "one word": (BEES, DANCE.replace("direction", "bearing")),
    "another question word": (BEES.replace("Why", "How"), DANCE),
    "first sentence moved": (BEES, " ".join(f"{DANCE} {DANCE}".split(". ")[1:5]) + "."),
    "last sentence cut": (BEES, DANCE.removesuffix(" The others follow her in the dark.")),
}
OTHERS = [
    chat(TEA, LEAVES),
    chat("Name a colour.", "Red."),
    chat("水は？", "H2O"),
    chat("🙂", "🙂🙂"),
]


@pytest.mark.parametrize("kind", PLANTED)
def test_an_exact_copy_is_found(kind):
    chats = [chat(BEES, DANCE), *OTHERS, chat(*PLANTED[kind])]
    assert duplicates(chats) == [(0, 5)]
    (found,) = near_duplicates(chats)
    assert (found.first, found.second, found.score) == (0, 5, 1)
    assert found.passage == " ".join(words(f"{BEES} {DANCE}"))
    assert pairs(near_duplicate_prompts(chats)) == [(0, 5)]


@pytest.mark.parametrize("kind", CHANGED)
def test_a_changed_copy_is_found(kind):
    chats = [chat(BEES, DANCE), *OTHERS, chat(*CHANGED[kind])]
    assert duplicates(chats) == []
    (found,) = near_duplicates(chats)
    assert (found.first, found.second) == (0, 5) and 0.5 <= found.score < 1
    assert len(words(found.passage)) >= 12 and found.passage in " ".join(words(f"{BEES} {DANCE}"))


def test_a_new_order_of_all_sentences_lies_below_one_half():
    turned = ". ".join(reversed(DANCE.removesuffix(".").split(". "))) + "."
    chats = [chat(BEES, DANCE), *OTHERS, chat(BEES, turned)]
    assert near_duplicates(chats) == []
    assert pairs(near_duplicates(chats, 0.4)) == pairs(near_duplicate_prompts(chats)) == [(0, 5)]


def test_system_text_and_a_common_instruction_do_not_count():
    system = "You are the voice of a small museum. Answer kindly, in at most three sentences. " * 5
    ask = "Summarise in one sentence: "
    chats = [chat(BEES, DANCE, system), chat(TEA, LEAVES, system)]
    chats += [chat(ask + DANCE, "Bees dance."), chat(ask + LEAVES, "Two minutes, no boiling.")]
    assert duplicates(chats) == near_duplicate_prompts(chats) == []
    assert near_duplicates(chats[:2]) == near_duplicates(chats[2:]) == []


def test_short_texts():
    chats = [chat("What is 3 + 4?", "7"), chat("What is 3 * 4?", "12"), chat("what is 3+4", "7.")]
    assert duplicates(chats) == [(0, 2)]
    assert pairs(near_duplicates(chats)) == [(0, 2)]
    purr = [chat("Why do cats purr?", "They are content."), chat("How do cats purr?", "A muscle.")]
    assert near_duplicates(purr) == []
    assert pairs(near_duplicate_prompts(purr)) == [(0, 1)]
    assert near_duplicate_prompts(purr)[0].passage == "do cats purr"


def test_the_same_words_in_other_turns_are_no_exact_copy():
    one = conversation(("user", "Red"), ("assistant", "or blue?"))
    other = conversation(("user", "Red or"), ("assistant", "blue?"))
    silent = [conversation(("system", "x")), conversation(("system", "y"))]
    assert duplicates([one, other, *silent]) == []


def test_many_copies_are_paired_with_the_first():
    chats = [chat(BEES, DANCE)] * 50
    assert duplicates(chats) == [tuple(range(50))]
    assert pairs(near_duplicates(chats)) == [(0, copy) for copy in range(1, 50)]


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        near_duplicates([chat("a", "b")], threshold)
    with pytest.raises(ValueError, match="1 or more"):
        near_duplicates([chat("a", "b")], n=0)


TEXTS = st.lists(st.text("abc", max_size=9).map(list), max_size=12)
THRESHOLDS = st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


def jaccard(a, b, n):
    a, b = shingles(a, n), shingles(b, n)
    return len(a & b) / len(a | b) if a and b else 0


def as_texts(texts, found):
    """What was found, whatever the order of the texts."""
    return Counter((*sorted(("".join(texts[i]), "".join(texts[j]))), s) for i, j, s in found)


@settings(max_examples=200)
@given(TEXTS, THRESHOLDS, st.integers(1, 3), st.randoms(use_true_random=False))
def test_similar_finds_every_pair_once_in_any_order(texts, threshold, n, shuffler):
    found = similar(texts, threshold, n)
    assert all(i < j for i, j, _ in found)
    assert len({(i, j) for i, j, _ in found}) == len(found)
    first = [i for i, text in enumerate(texts) if texts.index(text) == i]
    expected = [(i, j, jaccard(texts[i], texts[j], n)) for i in first for j in first if i < j]
    expected = [pair for pair in expected if pair[2] >= threshold]
    copies = [(texts.index(t), i, 1.0) for i, t in enumerate(texts) if i not in first and t]
    assert sorted(found) == sorted(expected + copies)
    shuffled = shuffler.sample(texts, len(texts))
    assert as_texts(shuffled, similar(shuffled, threshold, n)) == as_texts(texts, found)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=6))
def test_any_text_can_be_audited(rows):
    chats = [chat(user, reply) for user, reply in rows]
    for position, group in enumerate(near_duplicates(chats + chats)):
        assert group.first != group.second, position
    for group in duplicates(chats):
        assert len(set(group)) == len(group) > 1
    assert overlap(chats, []) == overlap([], chats) == []
    shape(chats), diversity(chats)


# --- overlap -------------------------------------------------------------------------------------


def prompt(text, id=None):
    return conversation(("user", text), id=id)


def test_planted_overlap_is_found():
    chats = [chat(TEA, LEAVES), chat(f"My teacher asked: {BEES.upper()} Help!", "They dance.")]
    found = overlap(chats, [prompt("Name a colour."), prompt("So, bees dance when they come HOME")])
    assert [(o.conversation, o.turn, o.prompt) for o in found] == [(1, 0, 1)]
    assert found[0].passage == "bees dance when they come home"
    assert overlap(chats, [prompt("Bees dance when they come, or sing?")]) == []
    assert overlap(chats, [prompt("Bees dance when they come, or sing?")], n=5) != []


def test_overlap_looks_where_it_should():
    system = chat("Hello", "Hi", system=BEES)
    reply = chat("Hello", BEES)
    later = conversation(("user", "Hello"), ("assistant", "Hi"), ("user", BEES), ("assistant", "x"))
    wanted = [prompt(BEES)]
    assert overlap([system, reply], wanted) == []
    assert [(o.conversation, o.turn) for o in overlap([system, reply, later], wanted)] == [(2, 2)]
    everywhere = overlap([reply], wanted, roles=("user", "assistant"))
    assert [(o.turn, o.passage) for o in everywhere] == [(1, " ".join(words(BEES)))]
    follow_up = conversation(("user", "Tell me"), ("assistant", BEES), ("user", "And in winter?"))
    assert overlap([later], [follow_up]) == [], "a prompt's reply is no question"


def test_short_prompts_overlap_when_a_turn_holds_the_whole():
    chats = [
        chat("Name the capital of Peru!", "Lima"),
        conversation(("user", "Hm"), ("assistant", "?"), ("user", "And in Italy?")),
        chat("Thank you", "With pleasure."),
        chat("The capital. Of what? Peru", "Lima"),
    ]
    assert [o.conversation for o in overlap(chats, [prompt("capital of Peru?")])] == [0]
    assert overlap(chats, [prompt("Thank you!")]) == []
    follow_up = conversation(("user", "x"), ("assistant", "y"), ("user", "And in Italy?"))
    assert overlap(chats, [follow_up]) == []
    assert [o.conversation for o in overlap(chats, [prompt("And in italy")])] == [1]


def test_thirteen_words():
    run = list("abcdefghijklm")
    chats = [chat("x", " ".join(["so", *run, "then"])), chat("x", " ".join(run[:12]))]
    found = overlap(chats, [prompt(" ".join(run))], n=13, roles=("user", "assistant"))
    assert [(o.conversation, o.turn) for o in found] == [(0, 1)]
    with pytest.raises(ValueError, match="1 or more"):
        overlap(chats, [], n=0)


WORDY = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@settings(max_examples=150)
@given(st.lists(WORDY, max_size=6), st.lists(WORDY, max_size=4), st.integers(1, 4))
def test_overlap_finds_what_comparing_everything_finds(trained, asked, n):
    def share(a, b):
        size = n if len(b) >= n else len(b)
        runs = [b[i : i + size] for i in range(len(b) - size + 1)]
        held = any(a[i : i + size] in runs for i in range(len(a) - size + 1))
        return held and (size == n or size >= 3)

    chats = [chat(" ".join(text), "x") for text in trained]
    found = overlap(chats, [prompt(" ".join(text)) for text in asked], n)
    expected = [(i, j) for i, a in enumerate(trained) for j, b in enumerate(asked) if share(a, b)]
    assert sorted((o.conversation, o.prompt) for o in found) == expected
    for o in found:
        assert o.passage in " ".join(trained[o.conversation])
        assert o.passage in " ".join(asked[o.prompt])


# --- variety -------------------------------------------------------------------------------------


def wordy(seed, size, vocabulary):
    draw = random.Random(seed)
    text = lambda length: " ".join(f"w{draw.randrange(vocabulary)}" for _ in range(length))  # noqa: E731
    return [chat(text(8), text(40)) for _ in range(size)]


def test_variety_of_the_same_source_does_not_depend_on_its_size():
    small, large = (diversity(wordy(n, n, 500), 100) for n in (150, 600))
    assert list(small) == list(large) and len(small) == 7
    for figure in small:
        tolerance = 4 * max(small[figure].spread, large[figure].spread) + 0.002
        assert abs(small[figure].mean - large[figure].mean) < tolerance, figure
    poor = diversity(wordy(1, 300, 50), 100)
    assert poor["replies: distinct-2"].mean < small["replies: distinct-2"].mean
    assert poor["replies: type-token ratio"].mean < small["replies: type-token ratio"].mean
    assert poor["replies: compression ratio"].mean > small["replies: compression ratio"].mean
    assert diversity(wordy(1, 300, 50), 100) == poor, "the same seed gives the same draws"
    assert diversity(wordy(1, 300, 50), 100, seed=1) != poor


def test_openings():
    chats = [chat("What is red?", "It is"), chat("what is blue", "It was"), chat("Why?", "It is")]
    found = diversity(chats)
    assert found["user: distinct openings"].mean == pytest.approx(2 / 3)
    assert found["user: top opening"].mean == pytest.approx(2 / 3)
    assert found["assistant: distinct openings"].mean == pytest.approx(2 / 3)
    assert str(found["user: top opening"]) == "0.667"
    assert not any(figure.startswith("replies") for figure in found), "too few words"
    with pytest.raises(ValueError, match="cannot draw 4 conversations from 3"):
        diversity(chats, 4)


def test_figures_about_words_by_hand():
    found = diversity([chat("x", "a b " * (LEXICAL_WORDS // 2))])
    assert found["replies: distinct-2"].mean == pytest.approx(2 / (LEXICAL_WORDS - 1))
    assert found["replies: type-token ratio"].mean == 2 / LEXICAL_WORDS
    assert found["replies: compression ratio"].mean > 50


def test_shape():
    two = conversation(("user", "a b c"), ("assistant", "x"), ("user", "a"), ("assistant", "x y"))
    tagged = chat("a b", "x y z", tags=("everyday", "everyday", "single-turn"))
    found = shape([two, tagged])
    assert found.user_words == (1.5, 2, 2.5) and found.reply_words == (1.5, 2, 2.5)
    assert found.replies == {1: 1, 2: 1}
    assert found.tags == {"everyday": 0.5, "single-turn": 0.5}


# --- languages -----------------------------------------------------------------------------------


def test_languages():
    german = "Weil die Erde für einen Umlauf um die Sonne etwas länger braucht als ein Jahr."
    chats = [chat("Why leap years?", german), chat("Pourquoi ?", DANCE), chat("7 * 6", "42")]
    assert languages(chats) == ["de", "en", "und"]
    assert languages([]) == []
    assert languages([prompt("Hello there")]) == ["und"]


def test_languages_without_the_library(monkeypatch):
    _identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(AuditError, match=r"need py3langid: pip install -e \"\.\[audit\]\""):
        languages([chat(BEES, DANCE)])
    found = audit([chat(BEES, DANCE)])
    assert found.languages is None and "languages of the replies: not looked at" in str(found)


# --- tokens --------------------------------------------------------------------------------------


def test_token_budget(toy):
    chats = [
        chat("Water?", "Water boils at 100 degrees Celsius.", tags=("physics",)),
        chat("Is it so that water boils at 100 degrees Celsius?", "yes", tags=("physics",)),
        chat("Hi", "hello", tags=("physics",), meta={"source": "sharegpt"}),
        conversation(("user", "No reply")),
    ]
    physics, other, unanswered = token_budget(chats, toy("chatml"))
    assert (physics.source, physics.conversations, physics.refused) == ("physics", 2, 0)
    assert (other.source, other.conversations) == ("sharegpt", 1)
    assert (unanswered.source, unanswered.refused, unanswered.tokens) == ("no tag", 1, 0)
    low, middle, high = physics.share
    assert 0 < low < physics.graded / physics.tokens < high < 1
    assert middle == pytest.approx((low + high) / 2)
    by_roles = token_budget(chats[:3], toy("chatml"), by=lambda c: str(len(c)))
    assert [(b.source, b.conversations) for b in by_roles] == [("2", 3)]
    assert by_roles[0].tokens == physics.tokens + other.tokens


def test_graded_share_of_the_walkthrough():
    from course_utils.examples import WALKTHROUGH
    from course_utils.masking import training_samples
    from course_utils.tokenizers import WordTokenizer

    samples = training_samples(WALKTHROUGH, WordTokenizer())
    assert graded_share({"walkthrough": samples, "none": []}) == {"walkthrough": (10 / 36,) * 3}


# --- everything at once, and the command line ----------------------------------------------------


@pytest.mark.parametrize("chats", [[], [chat("Hi", "Hello")], [prompt("Hi")], [chat("", "")]])
def test_small_sets(chats):
    found = audit(chats, chats[:0])
    assert found.clean and f"{len(chats)} conversations" in str(found)
    assert [row["found"] for row in found.table()] == [0, 0, 0, 0]


def test_report():
    first = chat(BEES, DANCE, id="bees")
    second = chat(BEES.lower(), DANCE, id="bees-again")
    found = audit([first, second, chat(TEA, LEAVES)], [prompt(TEA, "tea-time")])
    assert not found.clean
    assert [row["found"] for row in found.table()] == [1, 1, 1, 1]
    assert found.table()[0]["first case"] == "bees, bees-again"
    assert "  1.00  bees and bees-again: 'why do bees dance" in str(found)
    assert "conversation 2, turn 0, and prompt tea-time: 'how long should i" in str(found)
    many = audit([first] * 30)
    assert "exact copies: 1\n" in str(many) and "  and 9 more\n" in str(many)


def test_similar_first_turns_alone_are_no_fault():
    system = "Answer in one word."
    assert audit([chat(BEES, DANCE), chat(BEES, "Directions.", system)]).clean


@pytest.fixture
def files(tmp_path):
    def write(name, *chats):
        save_conversations(chats, tmp_path / f"{name}.jsonl")
        return str(tmp_path / f"{name}.jsonl")

    return write


def test_command_line(files, capsys):
    bees, tea = files("bees", chat(BEES, DANCE)), files("tea", chat(TEA, LEAVES))
    asked = files("asked", prompt(TEA))
    assert main([bees, tea]) == 0
    assert "2 conversations\nexact copies: none\n" in capsys.readouterr().out
    assert main([bees, tea, "--against", asked]) == 1
    assert "overlap with 1 prompts: 1\n  conversation 1, turn 0" in capsys.readouterr().out
    half = files("half", chat(" ".join(TEA.split()[:8]), LEAVES))
    assert main([half, "--against", asked]) == 1
    assert main([half, "--against", asked, "--run", "9"]) == 0
    assert main([bees, bees]) == 1
    changed = files("changed", chat(*CHANGED["one word"]))
    assert main([bees, changed]) == 1
    assert main([bees, changed, "--near", "0.9"]) == 0
    quoted = files("quoted", chat("Hello", TEA))
    assert main([quoted, "--against", asked]) == 0
    assert main([quoted, "--against", asked, "--in-replies"]) == 1
    capsys.readouterr()
    assert main([bees, tea, "--than", tea]) == 0
    assert "variety, draws of 1 " in capsys.readouterr().out


def test_command_line_with_tokens(files, capsys):
    path = files("two", chat(BEES, DANCE, tags=("explain",)), chat(TEA, LEAVES, tags=("kitchen",)))
    assert main([path, "--base", "course-base"]) == 0
    *_, header, first, second = capsys.readouterr().out.splitlines()
    assert header.endswith("min, median, max")
    assert {first.split()[0], second.split()[0]} == {"explain", "kitchen"}


def test_command_line_refuses(files, tmp_path, capsys):
    good, empty, broken = files("good", chat("Hi", "Ho")), files("empty"), tmp_path / "broken.jsonl"
    broken.write_text('{"messages": [}')
    for arguments, message in (
        ([str(tmp_path / "none.jsonl")], "none.jsonl: no such file"),
        ([empty], "no conversation in it"),
        ([str(broken)], "broken.jsonl, line 1: broken JSON"),
        ([good, "--against", str(broken)], "broken.jsonl, line 1: broken JSON"),
        ([good, "--near", "2"], "above 0 and up to 1"),
        ([good, "--run", "0"], "1 or more"),
        ([good, "--base", str(tmp_path)], "no tokenizer"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err
        assert captured.err.startswith("python -m course_utils.audit: ")
        assert captured.err.count("\n") == 1
    with pytest.raises(SystemExit) as refused:
        main([])
    assert refused.value.code == 2


def test_auditing_texts_loads_nothing_heavy():
    code = (
        "import sys; from course_utils.audit import near_duplicates; "
        "print(sorted({'torch', 'transformers', 'numpy', 'py3langid'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the shipped conversations -------------------------------------------------------------------


def existing(*names):
    return [DATA / name for name in names if (DATA / name).exists()]


@pytest.fixture(scope="module")
def shipped():
    files = existing("conversations.jsonl", "curriculum/chat.jsonl")
    return [chat for path in files for chat in load_conversations(path)]


def test_shipped_conversations(shipped):
    files = existing("comparison_prompts.jsonl", "held_out_prompts.jsonl")
    prompts = [chat for path in files for chat in load_conversations(path)]
    found = audit(shipped, prompts)
    assert found.clean, f"\n{found}"
    assert overlap(shipped, prompts, 13, roles=("user", "assistant")) == []
    assert found.languages["en"] > 0.8 * len(shipped)


def test_what_is_planted_among_the_shipped_conversations_is_found(shipped):
    long = [chat for chat in shipped if len(chat) == 2 and len(chat[1].content.split()) > 25][:5]
    copies = [chat(c[0].content.upper(), c[1].content + " Indeed so.") for c in long]
    found = near_duplicates([*shipped, *copies])
    assert sorted(pair.second for pair in found) == [len(shipped) + i for i in range(5)]
    assert sorted(pair.first for pair in found) == [shipped.index(c) for c in long]
    asked = [prompt(f"Please tell me. {c[0].content}") for c in long]
    lengths = [len(words(c[0].content)) for c in long]
    found = {case.prompt for case in overlap(shipped, asked)}
    assert found >= {i for i, length in enumerate(lengths) if length >= 6} != set()
