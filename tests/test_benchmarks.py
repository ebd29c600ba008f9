"""What the benchmarks recorded: of the base and the recipe that ship, and as promised."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_base import tiny_model, tiny_tokenizer

from benchmarks import ablation, course_base, special_rows
from course_utils.checkpoints import BASES, DATA
from course_utils.comparison import wilson
from course_utils.curriculum.mixture import PARTS, mixture
from course_utils.miniweb import facts
from course_utils.sft import config_for

RECORDED = DATA / "recorded"


@pytest.fixture(scope="module")
def record():
    return json.loads((RECORDED / "course_base_sft.json").read_text())


@pytest.fixture(scope="module")
def chatml(record):
    runs = [run for run in record["runs"] if run["family"] == BASES["course-base"].family]
    assert [run["seed"] for run in runs] == list(course_base.SEEDS)
    return runs


def test_the_record_is_of_the_base_and_the_recipe_that_ship(record):
    manifest = json.loads((DATA / "course-base" / "manifest.json").read_text())
    assert record["base"] == manifest["sha256"]["model.safetensors"]
    assert record["config"] == asdict(config_for("course-base"))
    assert record["command"] == "python -m benchmarks.course_base"
    assert {"device", "cores", "torch", "transformers"} <= record["hardware"].keys()


def test_the_recorded_run_of_the_lecture_has_this_recipe():
    run = json.loads((RECORDED / "sft_course-base_two-cores.json").read_text())
    assert run["base"] == "course-base"
    assert run["config"] == asdict(config_for("course-base"))
    assert run["parameters"]["all"] < 10_000_000


@pytest.mark.parametrize(
    ("promised", "path"),
    [
        (0.99, ["stops"]),
        (0.90, ["answers", "never asked about"]),
        (0.70, ["follow-up right"]),
        (0.80, ["unseen constraints obeyed"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_tuned_course_base_does_what_the_course_says(chatml, promised, path):
    yes, n = course_base.total(chatml, *path)
    assert n >= 600 and yes / n >= promised


def test_what_stands_on_no_page_is_not_known(chatml):
    yes, n = course_base.total(chatml, "answers", "absent from the web")
    assert wilson(yes, n)[1] < 0.1


def test_every_family_can_be_trained_onto_it(record):
    stops = {run["family"]: run["stops"] for run in record["runs"]}
    assert set(stops) == {"plain", "chatml", "llama3", "gemma", "mistral"}
    for family, (yes, n) in stops.items():
        assert n >= 200 and yes / n >= 0.95, family
    assert not any(run["refused"] for run in record["runs"])


@pytest.fixture(scope="module")
def ablated():
    return json.loads((RECORDED / "ablation_course-base.json").read_text())


def test_the_ablation_is_of_the_base_and_the_recipe_that_ship(ablated):
    manifest = json.loads((DATA / "course-base" / "manifest.json").read_text())
    assert ablated["base"] == manifest["sha256"]["model.safetensors"]
    rate = {"learning_rate": ablation.LEARNING_RATE}
    assert ablated["config"] == asdict(config_for("course-base", **rate))
    mixed = mixture(PARTS, 0)
    assert {part["name"]: part["rows"] for part in ablated["parts"]} == {
        line.part: line.used for line in mixed.table()
    }
    left_out = {run["without"] for run in ablated["runs"]}
    assert left_out == {None} | {part.name for part in PARTS} - {"talk"}
    for part in left_out:
        seeds = [run["seed"] for run in ablated["runs"] if run["without"] == part]
        assert seeds == list(ablation.SEEDS)


def test_trained_on_the_whole_mixture_it_knows_who_it_is_and_stops(ablated):
    for run in ablated["runs"]:
        if run["without"] is None:
            assert run["smoke"] == []
            yes, n = run["stops"]
            assert yes / n >= 0.95


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
