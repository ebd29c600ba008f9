"""What a base expects after a turn, how the record of a base is made, and what lecture 01 says."""

import json
import math
from statistics import mean, median

import pytest
import torch
from tiny_base import tiny_base, tiny_model, tiny_tokenizer

from course_utils.replies import next_token_probabilities
from course_utils.tokenizers import encode
from course_utils.turns import (
    breaks,
    end_tokens,
    expected_after,
    follows,
    kind,
    script,
    sentence_ends,
    speakers_next,
    user_next,
)
from tools import record_base

fixtures = (tiny_base,)
RECORD = record_base.ROOT / "data" / "recorded" / "base_gemma-3-270m.json"
LINES = ["Why?", "Because.", "Who says so?"]


@pytest.mark.parametrize(
    "question, text, expected",
    [
        ("Where do penguins live?", "Where do penguins live?\nWhere", "repeats the question"),
        ("Where do penguins live?", "Where do seals live?", "asks another question"),
        ("Where do penguins live?", "[User 0001]\nIn the zoo.", "changes voice"),
        ("Where do penguins live?", "A. In the north", "changes voice"),
        ("Where do penguins live?", "I have always liked them.", "changes voice"),
        ("Who are you?", "I am a student.", "answers"),
        ("Where do penguins live?", "Penguins are birds.", "answers"),
        ("Where do penguins live?", "It rains.", "other"),
        ("Where do penguins live?", "", "other"),
    ],
)
def test_kind_looks_at_the_first_sentence(question, text, expected):
    assert kind(question, text) == expected


@pytest.mark.parametrize("form", ["wall", "lines", "names"])
def test_a_script_says_where_its_turns_end(form):
    text, ends = script(LINES, form, ("Q", "A"))
    behind = "" if form == "wall" else "\n"
    assert all(text[:end].endswith(line + behind) for line, end in zip(LINES, ends, strict=False))
    assert len(ends) == 2 and text.endswith(LINES[-1])
    assert ("Q: Why?\nA: " in text) == (form == "names")


def test_follows_is_the_expectation_at_each_position():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    text = "Say yes. What does it do?"
    p = follows(model, tokenizer, text)
    ids = encode(tokenizer, text).ids
    assert p.shape == (len(ids), 400)
    assert torch.allclose(p.sum(-1), torch.ones(len(ids)), atol=1e-5)
    assert torch.allclose(p[-1], next_token_probabilities(model, ids), atol=1e-5)
    assert torch.allclose(p[2], next_token_probabilities(model, ids[:3]), atol=1e-5)
    (last,) = follows(model, tokenizer, text, [len(text)])
    assert torch.allclose(last, p[-1], atol=1e-5)
    with pytest.raises(ValueError, match="no token of the text ends at character 99"):
        follows(model, tokenizer, text, [99])


def test_a_sequence_start_moves_no_position():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.bos_token = "<bos>"
    ids = encode(tokenizer, "Say yes.").ids
    p = follows(model, tokenizer, "Say yes.")
    whole = next_token_probabilities(model, [tokenizer.bos_token_id, *ids])
    assert len(p) == len(ids) and torch.allclose(p[-1], whole, atol=1e-5)


@pytest.mark.parametrize("form", ["wall", "lines", "names"])
def test_each_turn_gets_a_pair_of_probabilities(form):
    pairs = speakers_next(tiny_model(), tiny_tokenizer(), LINES, form, ("User", "Assistant"))
    assert len(pairs) == 2
    assert all(0 <= p <= 1 for pair in pairs for p in pair)
    assert user_next([(0.3, 0.1), (0.0, 0.5)]) == [pytest.approx(0.75), 0.0]


def test_places_where_something_ends():
    tokenizer = tiny_tokenizer()
    text, ends = sentence_ends(tokenizer, "1. Why? ", "It is so. Or not! And")
    assert [text[:end][-3:] for end in ends] == ["so.", "ot!"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in end_tokens(tokenizer, "chatml").values()]
    assert end_tokens(tokenizer, "chatml")["end of turn"] == encode(tokenizer, "<|im_end|>").ids[0]
    assert breaks(tokenizer) == [encode(tokenizer, "\n").ids[0]]
    places = [(text, ends), ("Hi", []), ("Hi", [2])]
    assert len(expected_after(tiny_model(), tokenizer, places)) == 3


def test_the_tool_records_any_base(tiny_base, tmp_path, capsys, monkeypatch):
    short = {
        name: (prompt, {"max_new_tokens": 2}) for name, (prompt, _) in record_base.RUNS.items()
    }
    monkeypatch.setattr(record_base, "RUNS", short)
    output = tmp_path / "new" / "base.json"
    assert record_base.main([str(tiny_base), "--output", str(output)]) == 0
    assert "Wrote" in capsys.readouterr().out
    record = json.loads(output.read_text("utf-8"))
    assert record["command"].startswith("python -m tools.record_base ")
    assert record["hardware"]["torch"] == torch.__version__
    assert [len(run["replies"]) for run in record["runs"].values()] == [27] * 4
    assert record["ends"]["tokens"] == {"end of text": "<|endoftext|>", "end of turn": "<|im_end|>"}
    assert set(record) == set(json.loads(RECORD.read_text("utf-8")))


def test_the_tool_names_a_base_that_it_cannot_load(capsys, tmp_path, monkeypatch):
    # Not the variable: it counts only before the library is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert record_base.main(["no-such-base", "--output", str(tmp_path / "x.json")]) == 2
    assert "no-such-base: cannot load this model" in capsys.readouterr().err


def test_the_record_bears_out_what_lecture_01_says():
    assert RECORD.stat().st_size < 300_000
    real = json.loads(RECORD.read_text("utf-8"))
    assert real["command"] == "python -m tools.record_base gemma-3-270m"
    assert not any(reply["stopped"] for run in real["runs"].values() for reply in run["replies"])
    for name in ("greedy", "sampled"):
        replies = zip(real["questions"], real["runs"][name]["replies"], strict=True)
        kinds = [kind(question, reply["text"]) for question, reply in replies]
        assert sum(kinds.count(k) >= 0.05 * 27 for k in set(kinds)) >= 4
    bits = {}
    for form, transcripts in real["speakers_next"].items():
        found = [user_next(pairs)[1:] for pairs in transcripts]
        bits[form] = mean(
            -math.log2(p[n] if n % 2 == 0 else 1 - p[n]) for p in found for n in range(4)
        )
    assert bits["names"] < 0.1 and bits["lines"] > 0.8 and bits["wall"] > 1
    ends = real["ends"]["p"]
    assert max(ends["finished documents"]["end of text"]) > 0.9
    assert max(ends["finished answers"]["end of text"]) < 0.01
    assert all(median(p["end of turn"]) < 1e-12 for p in ends.values())
