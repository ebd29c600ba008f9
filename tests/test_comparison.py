"""Every measure on replies written by hand, the intervals, the table, and the command line."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_base import tiny_base, tiny_model, tiny_tokenizer

from course_utils import comparison
from course_utils.checkpoints import load_checkpoint
from course_utils.comparison import (
    MEASURES,
    PROMPTS,
    Condition,
    Estimate,
    as_record,
    base_of,
    bootstrap,
    check_prompts,
    compare,
    ends_cleanly,
    estimate,
    format_table,
    holds_role_header,
    is_direct,
    measure_all,
    mentions,
    obeys,
    repetition,
    sentences,
    show_estimate,
    table_rows,
    wilson,
)
from course_utils.conversation import (
    Conversation,
    ConversationError,
    conversation,
    load_conversations,
)
from course_utils.replies import Reply, prompt_ids
from course_utils.sft import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
fixtures = (tiny_base,)


# --- one reply -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        (" \n ... \n", []),
        ("Tokyo", ["Tokyo"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It is 3.5 km away. Walk.", ["It is 3.5 km away.", "Walk."]),
        ("Fruit, e.g. apples, i.e. food. Yes.", ["Fruit, e.g. apples, i.e. food.", "Yes."]),
        ("Dr. Smith met Mr. Li. They spoke.", ["Dr. Smith met Mr. Li.", "They spoke."]),
        ("J. R. R. Tolkien wrote it.", ["J. R. R. Tolkien wrote it."]),
        ("No. It is not.", ["No.", "It is not."]),
        ("Seas, etc. are wet. Sand is dry.", ["Seas, etc. are wet.", "Sand is dry."]),
        ("It holds seas, etc. Sand is dry.", ["It holds seas, etc.", "Sand is dry."]),
        ('He said "Stop!" and left. Good.', ['He said "Stop!" and left.', "Good."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("(It rains.) Stay.", ["(It rains.)", "Stay."]),
        ("Well... maybe. Wait... What?", ["Well... maybe.", "Wait...", "What?"]),
        ("What?! Really.", ["What?!", "Really."]),
        ("**Bold.** Plain.", ["**Bold.**", "Plain."]),
        ("At 5 p.m. we eat. Good.", ["At 5 p.m. we eat.", "Good."]),
        ("We eat at 5 p.m. Be there.", ["We eat at 5 p.m.", "Be there."]),
        ("1. Dig a hole. 2. Fill it.", ["1. Dig a hole.", "2. Fill it."]),
        ("102. That is all.", ["102. That is all."]),
        ("It was in 1945. Then peace.", ["It was in 1945.", "Then peace."]),
        ("- brush\n- paint\n\n- tape", ["- brush", "- paint", "- tape"]),
        ("Tokyo\nWhat is the capital of China?", ["Tokyo", "What is the capital of China?"]),
        ("winter is cold. snow falls.", ["winter is cold.", "snow falls."]),
        ("Visit example.com or v2.0 today.", ["Visit example.com or v2.0 today."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<start_of_turn>user\nMore?",
        "Fine.<|im_start|>user",
        "Yes.\nUser: And now?",
        "Yes.\n\n  assistant:  no",
        "Q: What?",
        "Water.\n**Human:** thanks",
        "Water.\n### Assistant: ok",
        "Water.\n### Instruction\nSay more",
        "It is hot.\nuser\nHow hot?",
        "[INST] Again [/INST]",
    ],
)
def test_a_role_header_is_found(text):
    assert holds_role_header(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The user: a person who uses something.",
        "An assistant helps.\nThe model answers.",
        "The answer\nis 42.",
        "It works as follows: first, ask a question.",
        "Users: many. Assistants: few.",
        "User error is common.",
        "a\nb\nc",
        "Model trains are fun.",
    ],
)
def test_no_role_header_is_seen_in_prose(text):
    assert not holds_role_header(text)


@pytest.mark.parametrize(
    "text, expected, found",
    [
        ("It is Tokyo.", ["Tokyo"], True),
        ("it is tokyo!", ["Tokyo"], True),
        ("Kyoto.", ["Tokyo"], False),
        ("Tokyoites live there.", ["Tokyo"], False),
        ("a pup", ["puppy", "pup"], True),
        ("The symbol is Au.", ["Au"], True),
        ("He went au pair.", ["Au"], False),
        ("It is 51.", ["51"], True),
        ("It is 51,000.", ["51"], False),
        ("It is 0.51.", ["51"], False),
        ("51.5 percent", ["51"], False),
        ("51, I think", ["51"], True),
        ("1939-1945", ["1945"], True),
        ("19456", ["1945"], False),
        ("300,000 km/s", ["300,000"], True),
        ("H₂O it is", ["H2O", "H₂O"], True),
        ("C++ and (C)", ["C++"], True),
        ("", ["Tokyo"], False),
        ("Tokyo", [], False),
    ],
)
def test_mentions_finds_whole_words_and_whole_numbers(text, expected, found):
    assert mentions(text, expected) is found


ASK = "What is the capital of Japan?"


@pytest.mark.parametrize(
    "text, question, direct",
    [
        ("Tokyo", ASK, True),
        ("The capital of Japan is Tokyo.", ASK, True),
        ("The capital of Japan is a city in the east.", ASK, True),
        ("It is Tokyo. Do you want to know more?", ASK, True),
        ("Tokyo\nWhat is the capital of China?", ASK, True),
        ("Green.", "Is it red or green?", True),
        ("Take the bus.", "Should I take the train or the bus?", True),
        ("A leap year has 366 days.", "A leap year has how many days?", True),
        ("Paris is the capital of France.", "Paris is the capital of which country?", True),
        ("The library lends books.", "Tell me what a library is.", True),
        ("", ASK, False),
        ("...", ASK, False),
        ("What is the capital of China?", ASK, False),
        ('"Is it Tokyo?"', ASK, False),
        ("What is the capital of Japan", ASK, False),
        ("the capital of Japan", ASK, False),
        ("capital of Peru", "capital of peru?", False),
        ("User: I would like to know, too.", ASK, False),
        ("assistant\nTokyo", ASK, False),
        ("Name the capital of Australia.", "Name the capital of Canada.", False),
        ("Write a short letter to your mother.", "Write a short letter to a friend.", False),
    ],
)
def test_direct(text, question, direct):
    assert is_direct(text, question) is direct


def test_repetition_is_the_share_of_runs_said_before():
    assert repetition("") == repetition("only three words") == 0
    assert repetition("a b c d e f g h") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("no " * 100) == pytest.approx(1 - 1 / 97)
    assert repetition("Yes, it is so. yes it is so") == pytest.approx(1 / 5)


@pytest.mark.parametrize("text", ["Yes.", "Yes!", '"Yes."', "(yes)", "**yes**", "`x`", "Well…"])
def test_a_clean_end(text):
    assert ends_cleanly(text + " \n")


@pytest.mark.parametrize("text", ["", "and then the", "Here are the steps:", "one,", "-"])
def test_no_clean_end(text):
    assert not ends_cleanly(text)


RAMBLE = "and then we went on and on " * 30

OBEYED = [
    ({"sentences": 2}, ["One. Two.", "One!\nTwo"], ["", "One.", "1. One. 2. Two. 3. Three."]),
    ({"max_sentences": 2}, ["One.", "One. Two."], ["", "...", "One. Two. Three."]),
    ({"words": 1}, ["Cold.", "12", '"Cold"'], ["", ".", "It is cold."]),
    ({"max_words": 3}, ["Yes.", "It is - cold"], ["", "...", "It is very cold."]),
    ({"list_items": 2}, ["- a\n- b", "1. a\n2) b", "Two:\n* a\n* b"], ["", "- a", "a\nb"]),
    ({"upper": True}, ["GOOD MORNING!", "GO 2."], ["", "12", "GOOD Morning"]),
    ({"lower": True}, ["bees.", "i am"], ["", "12", "Bees."]),
    ({"no_digits": True}, ["Twelve."], ["", "...", "12", "Twelve (12)."]),
    ({"starts_with": "Sure"}, ["Sure, go."], ["", "sure, go.", '"Sure, go."', " Sure"]),
    ({"ends_with": "The end."}, ["Moo. The end."], ["", "The end", "The end. Not!"]),
    ({"contains": ["sea", "fish"]}, ["Sea fish."], ["", "Fish.", "sea"]),
    ({"lower": True, "sentences": 1}, ["snow falls."], ["Snow falls.", "snow falls. ice stays."]),
]


@pytest.mark.parametrize("verify, good, bad", OBEYED, ids=lambda value: "-".join(value))
def test_obeys(verify, good, bad):
    for text in good:
        assert obeys(text, verify), text
    for text in bad:
        assert not obeys(text, verify), text


@pytest.mark.parametrize("verify", [verify for verify, *_ in OBEYED], ids=lambda v: "-".join(v))
def test_a_reply_that_was_cut_off_obeys_nothing_that_speaks_of_the_whole(verify):
    assert not obeys(RAMBLE, verify, finished=False)


def test_what_is_there_already_counts_in_a_reply_that_was_cut_off_too():
    assert obeys(f"Sure, {RAMBLE}", {"starts_with": "Sure"}, finished=False)
    assert obeys(f"{RAMBLE} sea", {"contains": ["sea"]}, finished=False)


def test_an_unknown_constraint_is_named():
    with pytest.raises(ConversationError, match="unknown constraint .*'rhymes'.*choose from sent"):
        obeys("x", {"rhymes": True})


# --- the measures together -----------------------------------------------------------------------


def asked(question, **meta):
    return Conversation(({"role": "user", "content": question},), id="q", meta=meta)


def reply(text, stopped=True):
    return Reply(text, list(range(len(text.split()) + stopped)), stopped, 0.1)


def measured(prompt, answer):
    return {measure.name: measure.of(prompt, answer) for measure in MEASURES}


def test_a_good_reply_has_every_mark():
    prompt = asked(ASK, expect=["Tokyo"], verify={"sentences": 1})
    assert measured(prompt, reply("The capital is Tokyo.")) == {
        "stops": True,
        "no role header": True,
        "direct": True,
        "obeys": True,
        "knows": True,
        "knows at once": True,
        "ends cleanly": True,
        "repetition": 0.0,
        "words": 4.0,
    }


@pytest.mark.parametrize(
    "text, earned",
    [
        ("What is the capital of Korea? Is Tokyo in Japan?", {"no role header", "knows"}),
        ("Is Tokyo the capital?\nUser: What is Tokyo?", {"knows"}),
        ("A: Tokyo\nQ: And China?\nA: Beijing", {"knows", "knows at once"}),
        (RAMBLE, {"no role header", "direct"}),
        (RAMBLE + "to Tokyo.", {"no role header", "direct", "knows"}),
        ("", {"no role header"}),
    ],
)
def test_a_ramble_that_is_cut_off_earns_nothing_it_has_not_done(text, earned):
    prompt = asked(ASK, expect=["Tokyo"], verify={"sentences": 1})
    found = measured(prompt, reply(text, stopped=False))
    assert {name for name, value in found.items() if value is True} == earned


def test_a_measure_that_does_not_apply_gives_none():
    found = measured(asked("Why?", expect=[], verify={}), reply("So."))
    assert {name for name, value in found.items() if value is None} == {
        "obeys",
        "knows",
        "knows at once",
    }


# --- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "successes, n, low, high",
    # Wilson's intervals at z = 1.96, as statsmodels and R's prop.test(correct=FALSE) give them.
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 10, 0.0179, 0.4042),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 1, 0.0, 0.7935),
    ],
)
def test_wilson(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_holds_the_share_and_narrows():
    for n in (1, 7, 80, 801):
        for successes in range(n + 1):
            low, high = wilson(successes, n)
            assert 0 <= low <= successes / n <= high <= 1
    assert wilson(40, 80)[1] - wilson(40, 80)[0] < wilson(4, 8)[1] - wilson(4, 8)[0]
    with pytest.raises(ValueError, match="no trials"):
        wilson(0, 0)


def test_bootstrap_repeats_holds_the_mean_and_is_about_as_wide_as_the_normal_interval():
    generator = random.Random(7)
    values = [generator.gauss(50, 10) for _ in range(100)]
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values) != bootstrap(values, seed=1)
    assert low < sum(values) / 100 < high
    assert high - low == pytest.approx(2 * 1.96 * 10 / 10, rel=0.2)
    assert bootstrap([3.0]) == bootstrap([3.0, 3.0]) == (3.0, 3.0)


def measure(name):
    return next(one for one in MEASURES if one.name == name)


def test_an_estimate_is_over_the_prompts_that_the_measure_applies_to():
    prompts = [asked("A?", expect=["x"]), asked("B?"), asked("C?", expect=["y"])]
    replies = [reply("x."), reply("x."), reply("no.")]
    assert estimate(measure("knows"), prompts, replies) == Estimate(0.5, *wilson(1, 2), 2)
    assert estimate(measure("words"), prompts, replies) == Estimate(1.0, 1.0, 1.0, 3)
    assert estimate(measure("obeys"), prompts, replies) is None
    with pytest.raises(ValueError):
        estimate(measure("knows"), prompts, replies[:2])


# --- the table -----------------------------------------------------------------------------------

PAIR = [asked(ASK, expect=["Tokyo"]), asked("Why?")]
REPLIES = {
    Condition("base", False): [reply(RAMBLE, False), reply("Why not?", False)],
    Condition("SFT", True): [reply("Tokyo."), reply("So it is.")],
}


def test_the_tables_cells():
    stops, count, none = measure("stops"), measure("words"), None
    assert show_estimate(stops, Estimate(0.925, 0.86, 0.968, 80)) == "92% (86–97%)"
    assert show_estimate(stops, Estimate(0.0, 0.0, 0.046, 80)) == "0% (0–5%)"
    assert show_estimate(stops, Estimate(1.0, 0.954, 1.0, 80)) == "100% (95–100%)"
    assert show_estimate(count, Estimate(41.2, 35.0, 48.1, 80)) == "41 (35–48)"
    assert show_estimate(count, Estimate(0.123, 0.1, 0.2, 80)) == "0.12 (0.10–0.20)"
    assert show_estimate(count, none) == "–"


def test_the_table_is_aligned_and_has_every_measure_and_condition():
    rows = table_rows(measure_all(PAIR, REPLIES))
    names = ["measure", "base, no template", "SFT, template", "what it is"]
    assert [list(row) for row in rows] == [names] * len(MEASURES)
    assert rows[0]["base, no template"] == "0% (0–66%)"
    assert rows[0]["SFT, template"] == "100% (34–100%)"
    assert rows[3] == {
        "measure": "obeys",
        "base, no template": "–",
        "SFT, template": "–",
        "what it is": "meets every constraint it was given",
    }
    lines = format_table(rows).splitlines()
    assert len(lines) == len(MEASURES) + 2 and all(line == line.rstrip() for line in lines)
    starts = [lines[0].index(name) for name in names]
    for line, row in zip(lines[2:], rows, strict=True):
        assert all(
            line[start:].startswith(value)
            for start, value in zip(starts, row.values(), strict=True)
        )
        assert all(line[start - 2 : start] == "  " for start in starts[1:])


def test_the_record_holds_all_of_it_and_survives_json():
    record = as_record(PAIR, REPLIES)
    assert json.loads(json.dumps(record)) == record
    assert set(record["table"]) == {one.name for one in MEASURES}
    conditions = {"base, no template", "SFT, template"}
    assert all(set(row) == conditions for row in record["table"].values())
    assert record["table"]["knows"]["SFT, template"] == {
        "mean": 1.0,
        "low": pytest.approx(0.2065, abs=1e-4),
        "high": 1.0,
        "n": 1,
    }
    assert record["table"]["obeys"]["SFT, template"] is None
    assert record["replies"][0] == {
        "id": "q",
        "messages": [{"role": "user", "content": ASK}],
        "base, no template": {
            "text": RAMBLE,
            "tokens": len(RAMBLE.split()),
            "stopped": False,
        },
        "SFT, template": {"text": "Tokyo.", "tokens": 2, "stopped": True},
    }
    assert len(record["replies"]) == 2


# --- comparing -----------------------------------------------------------------------------------


def test_both_models_get_the_same_ids_with_and_without_the_template(monkeypatch):
    tokenizer, sent = tiny_tokenizer("chatml"), []

    def generate(model, tokenizer, ids, **options):
        sent.append((model, ids, options["max_new_tokens"]))
        return [reply("ok") for _ in ids]

    monkeypatch.setattr(comparison, "generate", generate)
    models = tiny_model(seed=1), tiny_model(seed=2)
    found = compare(lambda: models[0], models[1], tokenizer, PAIR, max_new_tokens=7)
    assert [str(condition) for condition in found] == [
        "base, no template",
        "base, template",
        "SFT, no template",
        "SFT, template",
    ]
    plain, rendered = (
        [prompt_ids(prompt, tokenizer, template=template) for prompt in PAIR]
        for template in (False, True)
    )
    assert [ids for _, ids, _ in sent] == [plain, rendered] * 2
    assert [model for model, _, _ in sent] == [models[0], models[0], models[1], models[1]]
    assert {length for *_, length in sent} == {7}
    found = compare(*models, tokenizer, PAIR, without_template=False)
    assert [str(condition) for condition in found] == ["base, template", "SFT, template"]


def test_models_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="the base model's embedding has 20 rows"):
        compare(tiny_model(vocabulary=20), tiny_model(), tiny_tokenizer("chatml"), PAIR)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "no prompts to compare on"),
        ([conversation(("user", "a"), ("assistant", "b"), id="z")], "'z' ends with an assistant"),
        ([asked("?", expect="Tokyo")], "prompt 'q': \"expect\" is 'Tokyo'. Write a list"),
        ([asked("?", expect=[1])], '"expect" is .1.'),
        ([asked("?", verify=["upper"])], '"verify" is .*Write an object'),
        ([asked("?", verify={"rhymes": 1})], "unknown constraint 'rhymes'.*Choose from sentences"),
        ([asked("?", verify={"contains": "sea"})], "'contains' cannot be 'sea'"),
        ([asked("?", verify={"sentences": "1"})], "'sentences' cannot be '1'"),
        ([asked("?", verify={"upper": False})], "'upper' cannot be False"),
        ([asked("?", verify={"starts_with": 1})], "'starts_with' cannot be 1"),
    ],
)
def test_prompts_that_cannot_be_measured_are_refused(prompts, message):
    with pytest.raises(ConversationError, match=message):
        check_prompts(prompts)


def test_the_courses_prompts_can_be_measured_and_do_not_give_their_answers_away():
    prompts = check_prompts(load_conversations(PROMPTS))
    assert len(prompts) >= 60
    for prompt in prompts:
        assert not mentions(prompt[-1].content, prompt.meta.get("expect") or []), prompt.id


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "first"
    model, tokenizer = tiny_model(seed=1), tiny_tokenizer("chatml")
    return save_checkpoint(model, tokenizer, folder, {"base": str(tiny_base)})


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": text}], "expect": ["yes"]}
        for i, text in enumerate(("Say yes.", "1+1?", "What does it do?"))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(capsys, *arguments):
    try:
        code = comparison.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_a_comparison_from_the_command_line(tiny_base, tuned, prompts, tmp_path, capsys):
    output = tmp_path / "out" / "comparison.json"
    options = ("--tuned", tuned, "--prompts", prompts, "--max-new-tokens", 4, "--batch-size", 2)
    code, out, err = run(capsys, "--base", tiny_base, *options, "--output", output)
    assert code == 0 and "Traceback" not in err
    assert f"Base: {tiny_base}, because you asked for it." in out
    assert "12/12" in err and "reply" in err  # the progress bar
    assert "3 prompts, greedy, at most 4 new tokens:" in out and "no role header" in out
    record = json.loads(output.read_text("utf-8"))
    assert record["base"] == str(tiny_base) and record["tuned"] == str(tuned)
    assert record["max_new_tokens"] == 4 and record["hardware"]["torch"]
    assert [row["id"] for row in record["replies"]] == ["p0", "p1", "p2"]
    assert len(record["table"]["stops"]) == 4

    code, out, err = run(capsys, *options, "--limit", 2, "--template-only")
    assert code == 0 and "4/4" in err and "2 prompts, greedy" in out
    assert f"Base: {tiny_base}, because {tuned} was made from it." in out
    assert "no template" not in out


def test_the_base_that_was_tuned_is_read_from_the_checkpoint(tuned, tiny_base, tmp_path):
    assert base_of(tuned) == str(tiny_base)
    assert base_of(tmp_path) is None
    for content in ("{}", '{"base": null}'):
        (tmp_path / "sft.json").write_text(content)
        assert base_of(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '["base"]', "7", '{"base": ["a"]}', '{"base": ""}', '{"base": 1}', "\ufeff{}", ""]
    + ["[" * 100_000, '{"base": NaN}', '{"base": "a", "base": "b"}'],
)
def test_a_record_that_names_no_base_is_refused(content, tuned, prompts, tmp_path, capsys):
    folder = tmp_path / "tuned"
    shutil.copytree(tuned, folder)
    (folder / "sft.json").write_text(content)
    code, _, err = run(capsys, "--tuned", folder, "--prompts", prompts)
    assert code == 2 and f"{folder / 'sft.json'} is not the record of a run" in err
    assert err.count("\n") == 1


def test_help_and_wrong_arguments(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and re.search(r"exit codes:\s+0 +compared", out)
    for option in comparison._arguments()._option_string_actions:
        assert option in out
    assert run(capsys)[0] == 2
    assert run(capsys, "--tuned", "x", "--limit", "few")[0] == 2


def rewrite(prompts, **changes):
    record = json.loads(prompts.read_text().splitlines()[0]) | changes
    prompts.write_text(json.dumps(record) + "\n")


REPLIED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PROBLEMS = {
    "no tuned folder": (None, {"--tuned": "nowhere"}, "nowhere: no such folder. Make one with"),
    "tuned without a template": (
        None,
        {"--tuned": "BASE"},
        "the tokenizer has no chat template.",
    ),
    "no prompts file": (lambda prompts: prompts.unlink(), {}, "no such file"),
    "broken JSON": (lambda prompts: prompts.write_text("{"), {}, "line 1: broken JSON"),
    "ends with a reply": (
        lambda prompts: rewrite(prompts, messages=REPLIED),
        {},
        "prompt 'p0' ends with an assistant turn: there is nothing to reply to. Drop that turn.",
    ),
    "unknown constraint": (
        lambda prompts: rewrite(prompts, verify={"rhymes": 1}),
        {},
        "prompt 'p0': unknown constraint 'rhymes'.",
    ),
    "limit 0": (None, {"--limit": 0}, "--limit must be at least 1, not 0."),
    "no new tokens": (None, {"--max-new-tokens": 0}, "--max-new-tokens must be at least 1, not 0."),
    "batch size 0": (None, {"--batch-size": 0}, "--batch-size must be at least 1, not 0."),
    "output is a folder": (None, {"--output": "BASE"}, "is a folder. Name a file"),
    "broken base": (None, {"--base": "OTHER"}, "The folder must hold config.json"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_gets_one_clear_line_and_exit_code_2(
    problem, tiny_base, tuned, prompts, tmp_path, capsys
):
    prepare, changes, message = PROBLEMS[problem]
    if prepare:
        prepare(prompts)
    options = {"--base": tiny_base, "--tuned": tuned, "--prompts": prompts} | changes
    places = {"BASE": tiny_base, "OTHER": tmp_path}
    arguments = [part for name, v in options.items() for part in (name, places.get(v, v))]
    code, out, err = run(capsys, *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("python -m course_utils.comparison: "), err
    assert message in last and "Traceback" not in out + err


@pytest.mark.parametrize("failure", [RuntimeError("CUDA out of memory."), OSError("disk full")])
def test_a_comparison_that_breaks_off_ends_with_exit_code_1(
    failure, tiny_base, tuned, prompts, capsys, monkeypatch
):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(comparison, "generate", fail)
    code, _, err = run(capsys, "--base", tiny_base, "--tuned", tuned, "--prompts", prompts)
    assert code == 1 and f"the comparison failed: {failure}" in err and "Traceback" not in err


def test_the_module_runs_as_a_command_and_names_an_unknown_base_offline(tuned, prompts):
    arguments = ["--base", "nobody/nothing", "--tuned", tuned, "--prompts", prompts]
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.comparison", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nobody/nothing: cannot load this model. It is neither a folder here nor" in last


def test_a_tuned_checkpoint_loads_with_its_template(tuned):
    _, tokenizer = load_checkpoint(tuned)
    assert tokenizer.chat_template == tiny_tokenizer("chatml").chat_template
