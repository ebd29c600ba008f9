"""Pretraining course-base: the whole pipeline in small, and a run that is taken up again."""

import json
from dataclasses import replace

import pytest
import torch

from course_utils.checkpoints import load_checkpoint, missing_tokens, verify_manifest
from course_utils.templates import FAMILIES
from course_utils.tokenizers import train_tokenizer
from tools import pretrain
from tools.pretrain import QUICK, learning_rate_at, make_model, make_rows, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small():
    """(config, tokenizer, rows) of a run of eight steps."""
    config = replace(QUICK, steps=8)
    tokenizer = make_tokenizer(config)
    return config, tokenizer, make_rows(tokenizer, 64, config.length, config.seed)


def test_quick_runs_the_whole_pipeline(tmp_path, capsys):
    output = tmp_path / "base"
    assert pretrain.main(["--quick", "--output", str(output), "--steps", "3"]) == 0
    assert "Saved" in capsys.readouterr().out
    verify_manifest(output, "")
    listed = json.loads((output / "manifest.json").read_text())["sha256"]
    assert set(listed) | {"manifest.json"} == {path.name for path in output.iterdir()}
    record = json.loads((output / "pretraining.json").read_text())
    steps = 3
    assert len(record["loss"]) == steps
    assert record["tokens"] == steps * QUICK.rows * QUICK.length
    assert record["completes"].keys() == {"paraphrased", "fixed", "absent"}
    model, tokenizer = load_checkpoint(output)
    assert tokenizer.chat_template is None
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == QUICK.vocabulary
    for family in FAMILIES:
        assert not missing_tokens(tokenizer, family)


def test_rows_begin_with_a_page_and_hold_no_special_token(small):
    config, tokenizer, rows = small
    assert rows.shape == (64, config.length)
    assert not set(rows.flatten().tolist()) & set(tokenizer.all_special_ids)
    firsts = {text for _, text in pretrain.islice(pretrain.pages(config.seed), 2000)}
    for row in rows[:8].tolist():
        start = tokenizer.decode(row).split(pretrain.PAGE_BREAK)[0]
        assert any(page.startswith(start) for page in firsts)


def test_every_digit_is_a_token_of_its_own(small):
    _, tokenizer, _ = small
    assert tokenizer.tokenize("1984")[-4:] == ["1", "9", "8", "4"]


def test_a_prompt_has_the_same_ids_with_a_reply_and_without():
    # A page may hold "\n\n1.", which would teach a tokenizer to merge the two line breaks: then
    # Llama 3's generation prompt would end in one token when sent, in two when trained on.
    pages = [f"Lesson {n}\n\n{n}. The sea\n\nIt is wide.\n\n\n" for n in range(50)]
    for split, same in ((True, True), (False, False)):
        tokenizer = train_tokenizer(pages, 400, split_digits=True, split_lines=split)
        sent, trained_on = (tokenizer.tokenize(f"<|eot_id|>\n\n{end}") for end in ("", "It is."))
        assert (trained_on[: len(sent)] == sent) is same


def test_a_run_that_was_interrupted_goes_on_where_it_was(small, tmp_path, monkeypatch):
    config, tokenizer, rows = small
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 4)
    whole = pretrain.pretrain(make_model(config, tokenizer), rows, config)
    assert whole[-1] < whole[0]

    class Stop(Exception):
        pass

    def interrupt(step, _):
        if step == 6:
            raise Stop
        return learning_rate_at(step, config)

    state = tmp_path / "state.pt"
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(pretrain, "learning_rate_at", interrupt)
        pretrain.pretrain(make_model(config, tokenizer), rows, config, state)
    resumed = pretrain.pretrain(make_model(config, tokenizer), rows, config, state)
    assert resumed == pytest.approx(whole, rel=1e-4)
    # Another configuration does not take up this state.
    other = replace(config, seed=1)
    assert len(pretrain.pretrain(make_model(other, tokenizer), rows, other, state)) == 8


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate_at(step, pretrain.Config()) for step in range(pretrain.Config.steps)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < max(rates) <= pretrain.Config.learning_rate
    assert peak < 60 and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.05 * pretrain.Config.learning_rate, rel=0.01)


def test_wrong_arguments(capsys):
    with pytest.raises(SystemExit):
        pretrain.main(["--steps", "0"])
    assert "--steps must be at least 1" in capsys.readouterr().err
