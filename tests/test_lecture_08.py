"""Lecture 08's cells, with a short run: in any order, any number of times, they show the same."""

import random

import matplotlib
import pytest
import torch
from lecture_cells import code_cells, run_cell

from course_utils import replies, sft
from tools.build import ROOT

CELLS = code_cells("08_the_sft_run")
(TRAINING,) = [n for n, source in enumerate(CELLS) if "tuned, steps = train()" in source]
(SAVING,) = [n for n, source in enumerate(CELLS) if "save_checkpoint(" in source]
TIMED = [n for n, source in enumerate(CELLS) if "run_record(" in source]


@pytest.fixture(scope="module")
def lecture(tmp_path_factory):
    """(a function that runs a cell by number, what each cell showed first, the saved folder)."""
    root = tmp_path_factory.mktemp("course")
    (root / "notebooks").mkdir()
    (root / "data").symlink_to(ROOT / "data")
    config_for, conversations, generate = (
        sft.config_for,
        sft.default_conversations,
        replies.generate,
    )

    def short_run(base, **settings):
        return config_for(base, **settings | {"steps": 3})

    def short_replies(*arguments, **options):
        return generate(*arguments, **options | {"max_new_tokens": 4})

    names, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other where the machine is busy
    with pytest.MonkeyPatch.context() as patch:
        matplotlib.use("agg")
        patch.setattr("matplotlib.pyplot.show", lambda: matplotlib.pyplot.close("all"))
        patch.chdir(root / "notebooks")
        patch.setenv("COURSE_BASE", "course-base")
        patch.setattr(sft, "config_for", short_run)
        patch.setattr(sft, "default_conversations", lambda base: conversations(base)[:40])
        patch.setattr(replies, "generate", short_replies)
        first = [run_cell(source, names) for source in CELLS]
        yield lambda number: run_cell(CELLS[number], names), first, root / "runs" / "lecture-08"
    torch.set_num_threads(threads)


def test_every_run_of_the_training_cell_starts_from_the_base(lecture):
    run, first, folder = lecture
    saved = (folder / "model.safetensors").read_bytes()
    for _ in range(2):
        assert run(TRAINING) == first[TRAINING]
        run(SAVING)
        assert (folder / "model.safetensors").read_bytes() == saved


def test_cells_run_again_in_any_order_show_the_same(lecture):
    run, first, _ = lecture
    numbers = [number for number in range(len(CELLS)) if number not in TIMED]
    random.Random(0).shuffle(numbers)
    for number in numbers:
        assert run(number) == first[number], CELLS[number]


def test_an_interrupted_run_leaves_the_last_whole_one(lecture, monkeypatch):
    run, _, folder = lecture
    saved = (folder / "model.safetensors").read_bytes()

    def interrupt(step):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "course_utils.show.training.LiveLoss.__call__", lambda self, step: interrupt(step)
    )
    with pytest.raises(KeyboardInterrupt):
        run(TRAINING)
    run(SAVING)
    assert (folder / "model.safetensors").read_bytes() == saved
