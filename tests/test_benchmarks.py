"""The benchmarks measure what they say, and the recorded run has the recipe that ships."""

import json
from dataclasses import asdict

import torch
from tiny_base import tiny_model, tiny_tokenizer

from benchmarks import course_base, special_rows
from course_utils.checkpoints import DATA
from course_utils.miniweb import facts
from course_utils.sft import config_for

RECORDED = DATA / "recorded"


def test_the_recorded_run_of_the_lecture_has_this_recipe():
    run = json.loads((RECORDED / "sft_course-base_two-cores.json").read_text())
    assert run["base"] == "course-base"
    assert run["config"] == asdict(config_for("course-base"))
    assert run["parameters"]["all"] < 10_000_000


def test_the_groups_hold_every_fact_once():
    for fact in facts():
        assert sum(belongs(fact) for belongs in course_base.GROUPS.values()) == 1


def test_the_base_is_measured_before_its_tuning_and_after():
    tokenizer = tiny_tokenizer()
    found = course_base.base_behaviour(tiny_model(), tokenizer, 4)
    assert sum(found["greedy"]["kinds"].values()) == found["sampled"]["ends"][1] == 4
    model, tokenizer = tiny_model(), tiny_tokenizer("chatml")
    tuned = course_base.after_sft(model, tokenizer, 6)
    assert tuned["stops"][1] == 6 and tuned["follow-up right"][1] == 2
    answered = course_base.answers_of(model, tokenizer, facts()[::100])
    assert sum(n for _, n in answered.values()) == len(facts()[::100])


def test_cosines():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert special_rows.cosines(rows) == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
