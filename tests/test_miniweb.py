"""The mini-web: what its tables hold, what its pages tell, what its chats ask about."""

import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from course_utils import load_conversations
from course_utils.comparison import check_prompts, mentions, obeys
from course_utils.conversation import check_turns
from course_utils.miniweb import chats, conversations, facts, pages, prompts, relations, rules
from course_utils.miniweb.facts import TELLINGS, FactsError, select
from course_utils.miniweb.pages import KINDS, PAGE_BREAK
from course_utils.miniweb.probes import CONTINUATIONS, completes, continuation, states
from course_utils.replies import Reply
from course_utils.templates import FAMILIES

# --- facts ---------------------------------------------------------------------------------------


def test_there_are_a_thousand_facts_in_fifteen_relations_told_as_promised():
    found = facts()
    assert len(found) >= 1000 and len(relations()) >= 15
    told = Counter(fact.telling for fact in found)
    for telling, share in TELLINGS.items():
        assert told[telling] / len(found) == pytest.approx(share, abs=0.01)
    assert all(fact.telling == "paraphrased" for fact in select(found, asked=True))
    held_out = select(found, telling="paraphrased", asked=False)
    assert len(select(found, asked=True)) == pytest.approx(len(held_out), abs=len(relations()))


def test_no_question_gives_its_answer_away():
    for fact in facts():
        for question in (*fact.relation.questions, *fact.relation.follow_ups):
            assert not mentions(fact.fill(question), [fact.value]), (fact.subject, question)


def test_a_fixed_fact_has_one_sentence_and_an_absent_one_none():
    for fact in facts():
        expected = {"paraphrased": len(fact.relation.statements), "fixed": 1, "absent": 0}
        assert len(fact.wordings) == expected[fact.telling]
    directions = {fact.value_first for fact in select(facts(), telling="fixed")}
    assert directions == {True, False}


TABLE = """relation = "{name}"
what = "x"
topic = "arts"
statements = ["A {{subject}} is {{value}}."]
questions = ["What is {{subject}}?"]
answer = "A {{subject}} is {{value}}."
follow_ups = ["And {{subject}}?"]
prefix = "A {{subject}} is"
facts = [["a", "b"]]
"""


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.replace("topic", "subject_area"), "no topic. Every table needs"),
        (lambda t: t + "facts = 1", "broken TOML"),
        (lambda t: t.replace('relation = "r"', 'relation = "s"'), "Name it like its file"),
        (lambda t: t.replace("is {value}", "is"), "must hold {value} exactly once"),
        (lambda t: t.replace("And {subject}", "And"), "must hold {subject} exactly once"),
        (lambda t: t.replace('[["a", "b"]]', '[["a", "b"], ["a", "c"]]'), "several facts about"),
        (lambda t: t.replace('prefix = "A', 'prefix = "The'), "after the prefix"),
    ],
)
def test_a_broken_table_is_refused_by_name(tmp_path, change, message):
    (tmp_path / "facts").mkdir()
    path = tmp_path / "facts" / "r.toml"
    table = TABLE.format(name="r")
    path.write_text(table)
    assert [fact.value for fact in facts(tmp_path)] == ["b"]
    other = tmp_path / "broken"
    (other / "facts").mkdir(parents=True)
    (other / "facts" / "r.toml").write_text(change(table))
    with pytest.raises(FactsError, match="r.toml") as caught:
        facts(other)
    assert message in str(caught.value)


def test_missing_tables_are_one_clear_error(tmp_path):
    with pytest.raises(FactsError, match="no tables of facts"):
        facts(tmp_path)


# --- pages ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web():
    return list(islice(pages(seed=7), 3000))


def test_the_same_seed_writes_the_same_web(web):
    assert list(islice(pages(seed=7), 500)) == web[:500]
    assert list(islice(pages(seed=8), 500)) != web[:500]


def test_every_kind_of_page_occurs_and_none_has_a_gap_or_a_marker(web):
    assert {kind for kind, _ in web} == {kind.__name__ for kind in KINDS}
    markers = [token for family in FAMILIES.values() for token in family.special_tokens]
    for kind, text in web:
        assert text.strip() == text and text, kind
        assert "{" not in text and "}" not in text, (kind, text)
        assert PAGE_BREAK not in text and not any(marker in text for marker in markers)


@pytest.fixture(scope="module")
def told(web):
    """told(fact, wording): does this sentence stand on a page, in whatever case?"""
    text = "\n".join(page for _, page in web).lower()

    def stands(fact, wording):
        sentence = fact.fill(wording).rstrip(".").lower()
        at = text.find(sentence)
        # "Silicon is number 1" also stands in "Silicon is number 14".
        return at >= 0 and not text[at + len(sentence)].isalnum()

    return stands


def some(telling):
    return random.Random(telling).sample(select(facts(), telling=telling), 80)


def test_the_web_never_tells_an_absent_fact(told):
    for fact in some("absent"):
        wordings = (*fact.relation.statements, *fact.relation.questions)
        assert not any(told(fact, wording) for wording in wordings), fact.subject


def test_the_web_tells_a_fixed_fact_in_its_sentence_and_never_asks_about_it(told):
    found = 0
    for fact in some("fixed"):
        its_own = fact.fill(fact.wordings[0]).lower()
        others = [
            wording
            for wording in (*fact.relation.statements, *fact.relation.questions)
            # "We learned that the opposite of old is new." holds another of the wordings.
            if fact.fill(wording).rstrip(".").lower() not in its_own
        ]
        assert not any(told(fact, wording) for wording in others), fact.subject
        found += told(fact, fact.wordings[0])
    assert found > 60


def test_the_web_tells_a_paraphrased_fact_in_several_ways_and_asks_about_it(told):
    ways = [sum(told(f, w) for w in f.relation.statements) for f in some("paraphrased")]
    asked = [any(told(f, q) for q in f.relation.questions) for f in some("paraphrased")]
    assert sum(ways) / len(ways) > 2 and sum(asked) > 40


# --- chats ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return conversations()


def test_chats_are_sound_and_the_same_for_the_same_seed(made):
    assert len({chat.id for chat in made}) == len(made) == 2000
    for chat in made:
        check_turns(chat)
        assert chat.roles[-1] == "assistant"
    assert conversations(50) == made[:50] and conversations(50, seed=1) != made[:50]
    assert {tag for chat in made for tag in chat.tags} == set(chats.CHATS)


def test_fine_tuning_never_sees_a_held_out_fact_nor_an_unseen_combination(made):
    said = {message.content for chat in made for message in chat if message.role == "assistant"}
    asked = {message.content for chat in made for message in chat if message.role == "user"}
    for fact in select(facts(), asked=False):
        assert fact.answer not in said and fact.answer.upper() not in said, fact.subject
        assert not asked & {fact.fill(question) for question in fact.relation.questions}
    seen = {(rule.shape, rule.case, rule.ending) for rule in rules.SEEN}
    assert not seen & set(rules.UNSEEN)
    for parts in zip(*rules.UNSEEN, strict=True):
        assert set(parts) <= {part for rule in seen for part in rule}


RULES = (*rules.SEEN, *rules.HELD_OUT)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_right_reply_obeys_what_its_prompt_verifies(rule):
    for fact in facts():
        if rule.fits(fact):
            assert obeys(rule.obeyed(fact, fact.answer), rule.verify(fact)), rule.obeyed(
                fact, fact.answer
            )


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_reply_that_leaves_out_one_demand_does_not_obey(rule):
    fact = next(f for f in facts() if f.relation.name == "capital" and f.value == "Oslo")
    assert obeys(fact.answer, rule.verify(fact)) == (rule == rules.Constraint("sentence"))
    lacking = [replace(rule, **{part: None}) for part in ("case", "ending") if getattr(rule, part)]
    lacking += [replace(rule, shape="sentence" if rule.shape != "sentence" else "word")]
    for other in lacking:
        # A bare word is one sentence, too: shapes are told apart in one direction only.
        if (other.shape, rule.shape) != ("word", "sentence"):
            assert not obeys(other.obeyed(fact, fact.answer), rule.verify(fact)), other.obeyed(
                fact, fact.answer
            )


def test_prompts_are_held_out_and_can_be_measured():
    found = prompts()
    check_prompts(found)
    assert Counter(prompt.meta["kind"] for prompt in found) == {
        "knowledge": 67,
        "follow_up": 67,
        "instruction": 66,
    }
    values = {fact.value for fact in select(facts(), telling="paraphrased", asked=False)}
    values |= {change(value) for value in values for change in (str.upper, str.lower)}
    for prompt in found:
        assert set(prompt.meta["expect"]) <= values
        assert bool(prompt.meta["verify"]) == (prompt.meta["kind"] == "instruction")
        assert (
            len(prompt) == {"knowledge": 1, "follow_up": 3, "instruction": 2}[prompt.meta["kind"]]
        )


def test_the_command_writes_what_the_function_makes(tmp_path, capsys):
    output = tmp_path / "chats.jsonl"
    assert chats.main([str(output), "--number", "20", "--seed", "3"]) == 0
    assert load_conversations(output) == conversations(20, seed=3)
    assert chats.main([str(output), "--number", "9", "--prompts"]) == 2
    assert "exists. Choose another file or add --overwrite." in capsys.readouterr().err
    assert chats.main([str(output), "--number", "9", "--prompts", "--overwrite"]) == 0
    assert [p.meta["kind"] for p in load_conversations(output, alternate=False)][:3] == [
        "knowledge",
        "follow_up",
        "instruction",
    ]
    assert chats.main([str(tmp_path / "no" / "folder.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert chats.main([str(output), "--number", "0"]) == 2
    assert "--number must be at least 1, not 0." in capsys.readouterr().err


# --- probes --------------------------------------------------------------------------------------

QUESTION = "What is the capital of Norway?"


@pytest.mark.parametrize(
    "text, kind",
    [
        ("\nWhich city is the capital of Peru?\nName the capital of Chad.", "asks more questions"),
        ("\n- Name the capital of Peru.", "asks more questions"),
        ("\nPosted by mapfan12\nmapfan12: Following.", "posts"),
        ("12 comments\ngrumpy_otter: first", "posts"),
        ("grumpy_otter: Again?", "posts"),
        ("\n________\nWho painted it?", "leaves a blank"),
        ("\nThe capital of Norway is Oslo. Coins there are called krone.", "answers"),
        ("\nAnswer: Oslo", "answers"),
        ("\nPlum crumble\n\n- 2 eggs", "other"),
        ("  \n ", "other"),
    ],
)
def test_a_continuation_is_told_by_its_first_line(text, kind):
    assert kind in CONTINUATIONS and continuation(QUESTION, text) == kind


def test_a_fact_is_stated_in_the_first_sentence_or_not_at_all():
    fact = next(f for f in facts() if f.relation.name == "capital" and f.subject == "Norway")
    assert states("The capital of Norway is Oslo.", fact)
    assert not states("I do not know. The capital of Norway is Oslo.", fact)
    assert not states("The capital of Norway is Oslofjord.", fact)


def test_a_completion_must_be_the_value_and_not_begin_with_it(monkeypatch):
    chosen = random.Random(0).sample(list(facts()), 3)
    texts = [chosen[0].value + ".", chosen[1].value + "x", "not " + chosen[2].value]
    monkeypatch.setattr(
        "course_utils.replies.generate",
        lambda *_, **__: [Reply(text, [1], False, 0.0) for text in texts],
    )
    monkeypatch.setattr("course_utils.tokenizers.encode_untrusted", lambda *_: [1])
    assert completes(None, None, chosen) == [True, False, False]
