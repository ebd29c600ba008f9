"""The fine-tuning loop against plain PyTorch, the saved checkpoint, and the command line."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_base import tiny_base, tiny_model, tiny_samples, tiny_tokenizer
from transformers import AutoTokenizer

from course_utils import sft
from course_utils.batching import collate
from course_utils.conversation import conversation, save_conversations
from course_utils.examples import TINY_CHATS
from course_utils.masking import IGNORE_INDEX, Sample
from course_utils.replies import generate, next_token_probabilities, prompt_ids, stop_ids
from course_utils.sft import (
    SFTConfig,
    counted,
    fine_tune,
    graded_loss,
    learning_rate_at,
    trainable_parameters,
)
from course_utils.templates import chat_template

ROOT = Path(__file__).resolve().parents[1]
fixtures = (tiny_base,)


@pytest.fixture
def float32(monkeypatch):
    """Compute in float32 on every machine, for comparisons to many digits."""
    monkeypatch.setattr(sft, "autocast_dtype", lambda device: None)


def full_loss(model, batch):
    """The definition: every position's logits, labels shifted by one, the masked ones ignored."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if softcap := getattr(model.config, "final_logit_softcapping", None):
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(left, right, tolerance=1e-5):
    assert left.keys() == right.keys() and left
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance)
    return True


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_graded_loss_and_its_gradient_are_those_of_the_full_computation(tied, softcap):
    model = tiny_model(tied=tied)
    model.config.final_logit_softcapping = softcap
    batch = collate(tiny_samples(), 0)
    loss, count = graded_loss(model, batch)
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    expected = full_loss(model, batch)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert count == int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) == 12
    assert same(ours, gradients(model))


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_logits_made_a_slice_at_a_time_change_nothing(rows, monkeypatch):
    batch, results = collate(tiny_samples(), 0), []
    for slice_rows in (1000, rows):
        monkeypatch.setattr(sft, "LOGIT_ROWS", slice_rows)
        model = tiny_model(tied=False)
        loss, _ = graded_loss(model, batch)
        loss.backward()
        results.append({"loss": loss.detach()} | gradients(model))
    assert same(*results)


def test_the_softcap_changes_the_loss():
    model, batch = tiny_model(), collate(tiny_samples(), 0)
    plain = graded_loss(model, batch)[0]
    model.config.final_logit_softcapping = 1.0
    assert abs(graded_loss(model, batch)[0] - plain) > 0.1


def test_padding_changes_nothing():
    model, samples = tiny_model(), tiny_samples()
    alone = sum(graded_loss(model, collate([one], 0))[0] for one in samples)
    together = graded_loss(model, collate(samples, 0))[0]
    wide = graded_loss(model, collate(samples, 5, pad_to_multiple_of=64))[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide, alone, rtol=1e-5, atol=1e-5)


def test_position_i_predicts_label_i_plus_1():
    model = tiny_model()
    ids = [5, 6, 7, 8]
    batch = collate([Sample(ids, [IGNORE_INDEX, IGNORE_INDEX, 7, IGNORE_INDEX], (), ())], 0)
    loss, count = graded_loss(model, batch)
    expected = -next_token_probabilities(model, ids[:2]).log()[7]
    assert count == 1
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_label_at_position_0_has_nothing_that_predicts_it():
    loss, count = graded_loss(tiny_model(), collate([Sample([5, 6], [5, IGNORE_INDEX], (), ())], 0))
    assert count == 0 and loss == 0
    loss.backward()  # zero, not "not a number"


def weighted(samples, *weights):
    """The samples with one weight each at every position."""
    pairs = zip(samples, weights, strict=True)
    return [replace(one, weights=[weight] * len(one)) for one, weight in pairs]


def test_a_weighted_loss_by_hand():
    model, ids = tiny_model(), [5, 6, 7, 8]
    one = Sample(ids, [IGNORE_INDEX, 6, IGNORE_INDEX, 8], (), (), weights=[9.0, 0.5, 7.0, 3.0])
    loss, count = graded_loss(model, collate([one], 0))
    logs = [-next_token_probabilities(model, ids[:n]).log()[ids[n]] for n in (1, 3)]
    expected = 0.5 * logs[0] + 3 * logs[1]
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-4)
    assert count == 3.5 and counted(one) == [0.5, 3.0]


@pytest.mark.parametrize("rows", [1, 5, 256])
def test_a_weighted_loss_and_its_gradient_are_those_of_the_parts(rows, monkeypatch):
    monkeypatch.setattr(sft, "LOGIT_ROWS", rows)
    weights, samples = (0.25, 1.0, 3.0), tiny_samples()
    model = tiny_model()
    loss, count = graded_loss(model, collate(weighted(samples, *weights), 0))
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    parts = [graded_loss(model, collate([one], 0)) for one in samples]
    expected = sum(w * part for w, (part, _) in zip(weights, parts, strict=True))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert count == sum(w * n for w, (_, n) in zip(weights, parts, strict=True))
    assert same(ours, gradients(model))


def test_weights_of_one_give_the_floats_of_no_weights():
    samples = tiny_samples(), weighted(tiny_samples(), 1.0, 1.0, 1.0)
    results = []
    for batch in (collate(chosen, 0) for chosen in samples):
        model = tiny_model()
        loss, count = graded_loss(model, batch)
        loss.backward()
        results.append((loss.item(), count, gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1] and same(results[0][2], results[1][2])
    config = SFTConfig(steps=3, batch_size=2)
    losses = [[step.loss for step in fine_tune(tiny_model(), s, config)] for s in samples]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_accumulating_weighted_batches_is_one_batch(float32):
    samples = weighted(four_samples(), 0.2, 1.0, 4.0, 0.5)
    whole = graded_loss(tiny_model(), collate(samples, 0))
    results = []
    for batch_size, accumulate, tokens in ((4, 1, 999), (2, 2, 999), (1, 4, 999), (4, 1, 1)):
        model = tiny_model()
        config = SFTConfig(
            steps=1, batch_size=batch_size, accumulate=accumulate, forward_tokens=tokens
        )
        (step,) = fine_tune(model, samples, config)
        assert step.loss == pytest.approx(whole[0].item() / whole[1], rel=1e-5)
        assert step.graded_tokens == sum(len(counted(one)) for one in samples)
        results.append(dict(model.named_parameters()))
    assert all(same(parameters, results[0], 1e-4) for parameters in results[1:])


# --- the schedule and what is trained ------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 120])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_the_learning_rate_rises_to_the_peak_then_falls_and_is_never_zero(steps, warmup):
    config = SFTConfig(steps=steps, warmup=warmup, learning_rate=2.0)
    rates = [learning_rate_at(step, config) for step in range(steps)]
    peak = max(1, round(warmup * steps)) - 1
    assert rates[peak] == max(rates) == 2.0 and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if peak < steps - 1:
        assert learning_rate_at(steps, config) == 0


def test_the_learning_rate_by_hand():
    config = SFTConfig(steps=8, warmup=0.5, learning_rate=1.0)
    assert [learning_rate_at(step, config) for step in range(8)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2]
    )


@pytest.mark.parametrize(
    "knob",
    [
        {"steps": 0},
        {"batch_size": -1},
        {"accumulate": 0},
        {"clip": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"train_embeddings": "some"},
    ],
)
def test_a_knob_that_makes_no_run_is_refused(knob):
    with pytest.raises(ValueError, match=f"^{next(iter(knob))} "):
        SFTConfig(**knob)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_embeddings", [False, True])
def test_embeddings_move_only_if_asked_and_everything_else_moves(tied, train_embeddings):
    model = tiny_model(tied=tied)
    before = {name: p.clone() for name, p in model.named_parameters()}
    config = SFTConfig(steps=2, batch_size=3, train_embeddings=train_embeddings)
    fine_tune(model, tiny_samples(), config)
    for name, parameter in model.named_parameters():
        frozen = not train_embeddings and ("embed_tokens" in name or "lm_head" in name)
        assert torch.equal(parameter, before[name]) == frozen, name
    assert ("lm_head.weight" in before) == (not tied)
    trained = sum(p.numel() for p in trainable_parameters(model, config))
    share = 400 * 32 * (1 if tied else 2)
    assert sum(p.numel() for p in before.values()) - trained == (0 if train_embeddings else share)


@pytest.mark.parametrize("tied", [True, False])
def test_of_the_embeddings_only_the_special_rows_move(tied):
    model, special = tiny_model(tied=tied), sorted(set(tiny_samples()[0].input_ids))[:2]
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [matrix.clone() for matrix in matrices]
    config = SFTConfig(steps=2, batch_size=3, weight_decay=0.5, train_embeddings="special")
    with pytest.raises(ValueError, match="needs special_ids"):
        fine_tune(model, tiny_samples(), config)
    fine_tune(model, tiny_samples(), config, special_ids=special)
    for matrix, old in zip(matrices, before, strict=True):
        moved = (matrix != old).any(dim=1).nonzero().flatten().tolist()
        assert moved and set(moved) <= set(special)
    # Nothing of it stays behind: a later run may move all rows.
    fine_tune(model, tiny_samples(), replace(config, train_embeddings=True))
    assert (matrices[1] != before[1]).any(dim=1).all()


def test_weight_decay_does_not_move_frozen_embeddings():
    model = tiny_model()
    before = model.get_input_embeddings().weight.clone()
    fine_tune(model, tiny_samples(), SFTConfig(steps=2, weight_decay=0.5))
    assert torch.equal(model.get_input_embeddings().weight, before)


OVERFIT = SFTConfig(steps=100, batch_size=3, learning_rate=5e-3, train_embeddings=True)

# --- the loop ------------------------------------------------------------------------------------


def four_samples():
    extra = conversation(("user", "Say yes."), ("assistant", "yes " * 12), id="long")
    from course_utils.masking import training_samples

    return [*tiny_samples(), *training_samples(extra, tiny_tokenizer("chatml"))]


def test_accumulating_two_batches_of_2_is_one_batch_of_4(float32, monkeypatch):
    samples = four_samples()
    assert len({one.graded_tokens for one in samples}) > 2  # else a mean of means would pass too
    clip, norms = torch.nn.utils.clip_grad_norm_, []

    def keep(parameters, largest):
        norms.append({str(i): p.grad.clone() for i, p in enumerate(parameters)})
        return clip(parameters, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    results = []
    # The last one is a batch of 4 whose forward passes hold one sample each.
    for batch_size, accumulate, tokens in ((4, 1, 999), (2, 2, 999), (1, 4, 999), (4, 1, 1)):
        model = tiny_model()
        config = SFTConfig(
            steps=1, batch_size=batch_size, accumulate=accumulate, forward_tokens=tokens
        )
        results.append((fine_tune(model, samples, config)[0], dict(model.named_parameters())))
    whole, expected = results[0]
    for step, parameters in results[1:]:
        assert step.loss == pytest.approx(whole.loss, rel=1e-5)
        assert step.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert (step.tokens, step.graded_tokens) == (whole.tokens, whole.graded_tokens)
        assert same(parameters, expected, 1e-4)
    assert all(same(norms[0], norm) for norm in norms[1:])


def test_a_steps_loss_is_the_mean_over_its_graded_tokens(float32):
    model, samples = tiny_model(), tiny_samples()
    total, count = graded_loss(model, collate(samples, 0))
    step = fine_tune(model, samples, SFTConfig(steps=1, batch_size=3))[0]
    assert step.loss == pytest.approx(total.item() / count, rel=1e-5)
    assert (step.step, step.graded_tokens, step.tokens) == (0, 12, sum(map(len, samples)))


def test_every_step_is_reported_and_the_loss_falls():
    model, seen = tiny_model(), []
    config = replace(OVERFIT, steps=30)
    steps = fine_tune(model, tiny_samples(), config, on_step=seen.append)
    assert seen == steps and [step.step for step in steps] == list(range(30))
    assert [step.lr for step in steps] == [learning_rate_at(i, config) for i in range(30)]
    assert steps[-1].loss < 0.5 * steps[0].loss


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_loss_falls_whatever_the_device_computes_in(dtype, monkeypatch):
    monkeypatch.setattr(sft, "autocast_dtype", lambda device: dtype)
    model = tiny_model()
    steps = fine_tune(model, tiny_samples(), replace(OVERFIT, steps=20))
    assert steps[-1].loss < 0.7 * steps[0].loss and model.dtype == torch.float32


def test_a_step_that_float16_skips_is_recorded_as_json():
    step = sft.Step(0, 2.5, 10, 5, 1e-4, math.inf, 0.1)
    record = sft.run_record(SFTConfig(steps=1), [step], base="tiny")
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text)["steps"][0]["grad_norm"] is None
    assert json.loads(text)["steps"][0]["loss"] == 2.5
    assert record["base"] == "tiny" and record["tokens_per_second"] == 100


def test_the_same_seed_gives_the_same_run():
    config = SFTConfig(steps=3, batch_size=1, seed=4)
    runs = [fine_tune(tiny_model(), tiny_samples(), config) for _ in range(2)]
    assert [step.loss for step in runs[0]] == [step.loss for step in runs[1]]
    other = fine_tune(tiny_model(), tiny_samples(), replace(config, seed=5))
    assert [step.loss for step in other] != [step.loss for step in runs[0]]


@cache
def overfitted(mode="assistant", tied=True):
    """A model that knows the three tiny chats by heart."""
    model = tiny_model(tied=tied)
    fine_tune(model, tiny_samples(mode=mode), OVERFIT)
    return model


def first_prompts(tokenizer):
    return [prompt_ids(chat.prefix(len(chat) - 1), tokenizer) for chat in TINY_CHATS]


def test_three_tiny_chats_are_learnt_word_for_word_with_their_ends():
    tokenizer, model = tiny_tokenizer("chatml"), overfitted()
    assert not model.training
    replies = generate(model, tokenizer, first_prompts(tokenizer), max_new_tokens=30)
    assert [reply.text for reply in replies] == [chat[-1].content for chat in TINY_CHATS]
    assert all(reply.stopped for reply in replies)


def test_a_model_that_is_never_graded_on_the_end_of_turn_does_not_learn_to_stop():
    tokenizer = tiny_tokenizer("chatml")
    (end, _), chance = stop_ids(tokenizer), {}
    for mode in ("assistant", "assistant_content"):
        chance[mode] = [
            float(next_token_probabilities(overfitted(mode), ids + reply_ids(tokenizer, chat))[end])
            for ids, chat in zip(first_prompts(tokenizer), TINY_CHATS, strict=True)
        ]
    assert min(chance["assistant"]) > 0.9
    assert max(chance["assistant_content"]) < 0.05


def reply_ids(tokenizer, chat):
    return tokenizer(chat[-1].content, add_special_tokens=False)["input_ids"]


def test_a_loss_that_is_not_a_number_ends_the_run():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan.*learning rate"):
        fine_tune(model, tiny_samples(), SFTConfig(steps=2))


def test_a_gradient_that_is_not_a_number_ends_the_run_before_it_reaches_the_weights(float32):
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="the gradient of step 0 is nan"):
        fine_tune(model, tiny_samples(), SFTConfig(steps=1))
    assert same(before, {name: p.detach() for name, p in model.named_parameters()})


def test_samples_that_would_give_a_wrong_loss_are_refused():
    good, model = tiny_samples()[0], tiny_model()
    with pytest.raises(ValueError, match="no samples to train on"):
        fine_tune(model, [])
    for labels in ([IGNORE_INDEX, IGNORE_INDEX], [5, IGNORE_INDEX]):
        with pytest.raises(ValueError, match="sample 1 .*'dull'.* nothing graded after its first"):
            fine_tune(model, [good, Sample([5, 6], labels, (), (), "dull")])
    with pytest.raises(ValueError, match="the id 400, but the model's embedding has 400 rows"):
        fine_tune(model, [good, Sample([5, 400], [IGNORE_INDEX, 400], (), ())])
    with pytest.raises(ValueError, match="bfloat16.*rounded away.*dtype=torch.float32"):
        fine_tune(tiny_model().to(torch.bfloat16), [good])


def test_a_model_that_scales_its_logits_is_refused():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        logits_scaling=8.0,
    )
    with pytest.raises(ValueError, match="GraniteForCausalLM does more to its logits"):
        fine_tune(GraniteForCausalLM(config), tiny_samples())


# --- the command line ----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "chats.jsonl"
    save_conversations(TINY_CHATS, path)
    return path


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of the command line, run in this process."""
    try:
        code = sft.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_a_run_from_the_command_line(tiny_base, data, tmp_path, capsys):
    output = tmp_path / "runs" / "first"
    options = ("--base", tiny_base, "--data", data, "--output", output, "--steps", 3)
    options = (*options, "--batch-size", 2, "--learning-rate", "1e-3", "--train-embeddings")
    code, out, err = run(capsys, *options)
    assert code == 0
    assert f"Base: {tiny_base}, because you asked for it." in out
    assert "Data: 3 samples" in out and "0 conversations refused" in out
    assert f"Saved {output}: 3 steps in" in out
    assert "3/3" in err and "step" in err and "loss=" in err  # the progress bar
    record = json.loads((output / "sft.json").read_text())
    assert record["base"] == str(tiny_base) and len(record["steps"]) == 3
    assert record["config"]["learning_rate"] == 1e-3 and record["config"]["train_embeddings"]
    assert record["command"].startswith("python -m course_utils.sft --base")
    assert record["data"] == {"samples": 3, "graded_tokens": 12}
    assert 0 < record["parameters"]["embedding"] < record["parameters"]["all"]
    assert record["hardware"]["precision"] in ("float32", "bfloat16", "float16")
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(output).chat_template

    code, _, err = run(capsys, *options)
    assert code == 2 and f"{output} exists. Choose another folder or add --overwrite." in err
    code, out, _ = run(capsys, *options, "--overwrite", "--family", "llama3", "--mode", "last_turn")
    assert code == 0
    assert "<|eot_id|>" in AutoTokenizer.from_pretrained(output).chat_template


def test_plain_ends_a_turn_with_its_line_and_the_command_line_says_so(
    tiny_base, data, tmp_path, capsys
):
    options = ("--base", tiny_base, "--data", data, "--output", tmp_path / "run", "--steps", 1)
    code, out, _ = run(capsys, *options, "--family", "plain")
    assert code == 0 and "so a reply ends with its first line" in out


def test_help_and_wrong_arguments(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and re.search(r"exit codes:\s+0 +saved", out)
    for option in sft._arguments()._option_string_actions:
        assert option in out
    assert run(capsys)[0] == 2
    assert run(capsys, "--data", "x", "--output", "y", "--mode", "half")[0] == 2


def bad_line(data):
    data.write_text(data.read_text() + "{broken\n")


def without_special_tokens(base):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?").save_pretrained(base)


@pytest.fixture
def own_base(tmp_path):
    """A base folder that a test may break."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_with_a_template_keeps_it_unless_a_family_is_named(own_base, data, tmp_path, capsys):
    (own_base / "chat_template.jinja").write_text(chat_template("llama3"))
    options = ("--base", own_base, "--data", data, "--steps", 1, "--output")
    assert run(capsys, *options, tmp_path / "own")[0] == 0
    assert run(capsys, *options, tmp_path / "named", "--family", "gemma")[0] == 0
    for name, family in (("own", "llama3"), ("named", "gemma")):
        found = (tmp_path / name / "chat_template.jinja").read_text()
        assert found == chat_template(family)


PROBLEMS = {
    "missing data file": (
        lambda base, data: data.unlink(),
        (),
        "chats.jsonl: no such file. Expected JSONL",
    ),
    "data is a folder": (
        lambda base, data: (data.unlink(), data.mkdir()),
        (),
        "chats.jsonl is a folder. Name a file in it.",
    ),
    "broken JSON": (lambda base, data: bad_line(data), (), "chats.jsonl, line 4: broken JSON"),
    "family that does not fit": (
        lambda base, data: without_special_tokens(base),
        ("--family", "chatml"),
        "this tokenizer has no special token <|im_start|>, <|im_end|>, which chatml needs. "
        "Families that fit it: plain.",
    ),
    "too short for everything": (
        None,
        ("--max-length", 5),
        "none of 3 conversations can be trained on. The first: conversation 'tiny-echo': no "
        "assistant turn ends within 5 tokens",
    ),
    "max length 0": (None, ("--max-length", 0), "max_length is 0: give a number of tokens"),
    "steps 0": (None, ("--steps", 0), "steps must be greater than 0, not 0."),
    "no learning rate": (
        None,
        ("--learning-rate", "nan"),
        "learning_rate must be greater than 0, not nan.",
    ),
    "no weights": (
        lambda base, data: (base / "model.safetensors").unlink(),
        (),
        "The folder must hold config.json, model.safetensors and the tokenizer's files.",
    ),
    "cut weights": (
        lambda base, data: os.truncate(base / "model.safetensors", 2000),
        (),
        "base: cannot load this model.",
    ),
    "broken config": (
        lambda base, data: (base / "config.json").write_text("{"),
        (),
        "config.json is broken JSON",
    ),
    "broken tokenizer": (
        lambda base, data: (base / "tokenizer.json").write_text("{}"),
        (),
        "base: cannot load this model.",
    ),
    "other weights": (
        lambda base, data: rename_weights(base / "model.safetensors"),
        (),
        " weights are not in it, such as ",
    ),
    "base is a file": (
        None,
        ("--base", __file__),
        "test_sft.py is not a folder. Name the folder that holds the base.",
    ),
}


def rename_weights(path):
    from safetensors.torch import load_file, save_file

    weights = {f"encoder.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_gets_one_clear_line_and_exit_code_2(
    problem, own_base, data, tmp_path, capsys
):
    prepare, options, message = PROBLEMS[problem]
    if prepare:
        prepare(own_base, data)
    before = capsys.readouterr()
    assert before.err == ""
    output = tmp_path / "out" / "run"
    code, out, err = run(
        capsys, "--base", own_base, "--data", data, "--output", output, "--steps", 1, *options
    )
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("python -m course_utils.sft: ") and message in last
    assert "Traceback" not in out + err and not output.exists()


@pytest.mark.parametrize(
    "failure, ends_with, message",
    [
        (FloatingPointError("the loss of step 0 is nan."), 1, "the run failed: the loss of step 0"),
        (RuntimeError("CUDA out of memory."), 1, "the run failed: CUDA out of memory."),
        (MemoryError(), 1, "the run failed: not enough memory (MemoryError)."),
        (OSError(28, "No space left on device"), 1, "the run failed: No space left on device."),
        (KeyboardInterrupt(), 130, "interrupted before it was done."),
        (TypeError("a bug"), 70, "please report it: TypeError: a bug"),
    ],
)
def test_a_run_that_breaks_off_saves_nothing_and_says_so(
    failure, ends_with, message, tiny_base, data, tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(sft, "fine_tune", fail)
    output = tmp_path / "run"
    code, out, err = run(capsys, "--base", tiny_base, "--data", data, "--output", output)
    assert code == ends_with and message in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl"]


def test_the_module_runs_as_a_command(tiny_base, data, tmp_path):
    arguments = ["--base", tiny_base, "--data", data, "--output", tmp_path / "run", "--steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.sft", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "2/2" in done.stderr and "Saved" in done.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()
