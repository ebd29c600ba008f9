"""Saving: what a checkpoint holds, that it answers and stops anywhere, and what is never saved."""

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_base import tiny_model, tiny_samples, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.utils import logging

from course_utils import sft
from course_utils.checkpoints import load_checkpoint
from course_utils.conversation import save_conversations
from course_utils.examples import TINY_CHATS
from course_utils.manifests import is_ours, verify_manifest
from course_utils.outputs import OutputError
from course_utils.replies import stop_ids
from course_utils.saving import generation_settings, save_checkpoint
from course_utils.sft import SFTConfig, fine_tune

# The third chat quotes a special token, which plain transformers takes for the token itself.
QUESTIONS = [chat.prefix(len(chat) - 1).as_messages() for chat in TINY_CHATS[:2]]
ANSWERS = [chat[-1].content for chat in TINY_CHATS[:2]]


@cache
def overfitted(tied=True):
    """A model that knows the three tiny chats by heart."""
    model = tiny_model(tied=tied)
    config = SFTConfig(steps=100, batch_size=3, learning_rate=5e-3, train_embeddings=True)
    fine_tune(model, tiny_samples(), config)
    return model


def settings_of(folder):
    return json.loads((folder / "generation_config.json").read_text())


def without(settings):
    return {name: v for name, v in settings.to_dict().items() if name != "transformers_version"}


# --- what it holds -------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_loaded_by_transformers_alone_and_stops(tied, tmp_path):
    from safetensors import safe_open

    tokenizer, model = tiny_tokenizer("chatml"), overfitted(tied=tied)
    folder = save_checkpoint(model, tokenizer, tmp_path / "runs" / "first", {"base": "tiny"})
    assert folder == tmp_path / "runs" / "first"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "chat_template.jinja", "config.json", "sft.json"} <= names
    assert all(path.suffix in (".json", ".jinja", ".safetensors") for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["first"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert ("lm_head.weight" in file.keys()) == (not tied)  # noqa: SIM118
    assert json.loads((folder / "sft.json").read_text()) == {"base": "tiny"}
    assert (folder / "chat_template.jinja").read_text() == tokenizer.chat_template
    ends = settings_of(folder)["eos_token_id"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in ends] == ["<|im_end|>", "<|endoftext|>"]
    assert model.dtype == torch.float32

    fresh = AutoModelForCausalLM.from_pretrained(folder)
    fresh_tokenizer = AutoTokenizer.from_pretrained(folder)
    assert fresh.dtype == torch.bfloat16
    assert fresh_tokenizer.chat_template == tokenizer.chat_template
    assert len(fresh_tokenizer) == len(tokenizer)
    prompt = fresh_tokenizer.apply_chat_template(
        QUESTIONS[0], add_generation_prompt=True, return_tensors="pt"
    )
    written = fresh.generate(**prompt, max_new_tokens=20)
    assert fresh_tokenizer.decode(written[0]).endswith("assistant\nyes<|im_end|>")


def test_the_manifest_lists_every_file_and_named_templates_too(tmp_path):
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    folder = save_checkpoint(tiny_model(), tokenizer, tmp_path / "run")
    verify_manifest(folder, "")
    listed = json.loads((folder / "manifest.json").read_text())["sha256"]
    assert "additional_chat_templates/tool_use.jinja" in listed and is_ours(folder)
    assert load_checkpoint(folder)[1].chat_template == tokenizer.chat_template


# --- answering and stopping ----------------------------------------------------------------------


def test_plain_pipeline_answers_and_stops(tmp_path, caplog):
    folder = save_checkpoint(overfitted(), tiny_tokenizer("chatml"), tmp_path / "run")
    logging.enable_propagation()
    try:
        generator = pipeline("text-generation", model=str(folder))
        replies = generator(QUESTIONS)
    finally:
        logging.disable_propagation()
    assert [reply[0]["generated_text"][-1] for reply in replies] == [
        {"role": "assistant", "content": answer} for answer in ANSWERS
    ]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    # Not for want of room: a model that runs on would fill its 256 tokens.
    ids = generator.tokenizer.apply_chat_template(QUESTIONS[0], add_generation_prompt=True)
    written = generator(QUESTIONS[0], return_tensors=True)[0]["generated_token_ids"]
    assert len(written) < len(ids["input_ids"]) + 10


def test_a_loop_of_ones_own_sets_the_settings_and_saves(tmp_path):
    model, tokenizer = copy.deepcopy(overfitted()), tiny_tokenizer("chatml")
    model.generation_config = generation_settings(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    replies = pipeline("text-generation", model=str(tmp_path))(QUESTIONS)
    assert [reply[0]["generated_text"][-1]["content"] for reply in replies] == ANSWERS


@pytest.mark.parametrize(
    "base, config, expected",
    [
        (None, None, [3, 1]),
        (1, None, [3, 1]),
        (7, 8, [3, 1, 7, 8]),
        ([7, 1, 8], 3, [3, 1, 7, 8]),
        ([7, 7], [8, 9], [3, 1, 7, 8, 9]),
        (-1, None, [3, 1]),
    ],
)
def test_nothing_that_ended_generation_before_is_lost(base, config, expected, tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer("chatml")
    assert stop_ids(tokenizer) == [3, 1]
    model.generation_config.eos_token_id = base
    model.config.eos_token_id = config
    assert generation_settings(model, tokenizer).eos_token_id == expected
    folder = save_checkpoint(model, tokenizer, tmp_path / "run")
    assert settings_of(folder)["eos_token_id"] == expected


def test_a_tokenizer_without_any_end_leaves_those_of_the_base():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.eos_token = None
    model.generation_config.eos_token_id, model.config.eos_token_id = [5, 6], None
    assert generation_settings(model, tokenizer).eos_token_id == [5, 6]
    model.generation_config.eos_token_id = None
    assert generation_settings(model, tokenizer).eos_token_id is None


def test_sampling_is_off_whatever_the_base_samples_with_and_the_rest_is_kept(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer("chatml")
    model.generation_config.update(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, typical_p=0.5
    )
    model.generation_config.update(repetition_penalty=1.1, max_length=99)
    settings = settings_of(save_checkpoint(model, tokenizer, tmp_path / "run"))
    assert settings["do_sample"] is False
    assert not {"temperature", "top_p", "top_k", "min_p", "typical_p"} & settings.keys()
    assert settings["repetition_penalty"] == 1.1 and settings["max_length"] == 99
    assert settings["pad_token_id"] == tokenizer.pad_token_id


def test_a_base_whose_settings_transformers_would_not_save_is_saved(tmp_path):
    model = tiny_model()
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    assert settings_of(save_checkpoint(model, tiny_tokenizer("chatml"), tmp_path / "run"))


def test_the_callers_model_and_tokenizer_stay_as_they_are(tmp_path):
    model, tokenizer = tiny_model(), tiny_tokenizer("chatml")
    model.generation_config.update(do_sample=True, temperature=0.6)
    before = without(model.generation_config), without(model.config), tokenizer.chat_template
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = model.generation_config
    save_checkpoint(model, tokenizer, tmp_path / "run")
    assert model.generation_config is kept
    assert before == (
        without(model.generation_config),
        without(model.config),
        tokenizer.chat_template,
    )
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.float32


# --- what is not saved ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_in_bfloat16_are_not_saved(value, name, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = value
    with pytest.raises(FloatingPointError, match=f"weights {name} hold.*lower learning rate"):
        save_checkpoint(model, tiny_tokenizer("chatml"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_record_that_is_no_json_is_not_saved(tmp_path):
    for record in ({"loss": math.nan}, {"path": Path("x")}):
        with pytest.raises((ValueError, TypeError)):
            save_checkpoint(tiny_model(), tiny_tokenizer("chatml"), tmp_path / "run", record)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rate", [1e38, 3e37, 1e30, 1e12])
def test_a_last_update_that_spoils_the_weights_ends_the_run(rate):
    config = SFTConfig(steps=1, learning_rate=rate, train_embeddings=True)
    with pytest.raises(FloatingPointError, match="the update of step 0.*Lower the learning rate"):
        fine_tune(tiny_model(), tiny_samples(), config)


def test_a_weight_that_no_loss_shows_is_found_after_the_last_step():
    """The row of a token that the data does not hold."""
    model = tiny_model(tied=False)

    def spoil(step):
        if step.step == 1:
            with torch.no_grad():
                model.get_input_embeddings().weight[-1, 0] = math.nan

    with pytest.raises(FloatingPointError, match="step 1 left.*model.embed_tokens.weight. Lower"):
        fine_tune(model, tiny_samples(), SFTConfig(steps=2), on_step=spoil)


def test_a_run_with_an_absurd_learning_rate_saves_nothing(tmp_path, capsys):
    base, output = tmp_path / "base", tmp_path / "run"
    tiny_model().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    data = tmp_path / "chats.jsonl"
    save_conversations(TINY_CHATS, data)
    arguments = ["--base", base, "--data", data, "--output", output]
    arguments += ["--learning-rate", "1e38", "--steps", "1"]
    assert sft.main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert "of step 0" in err and "Lower the learning rate." in err
    assert "Saved" not in out and "Traceback" not in err and not output.exists()


# --- the folder ----------------------------------------------------------------------------------


def broken(*_, **__):
    raise OSError("no space left on device")


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_half_of_the_new(tmp_path, monkeypatch):
    tokenizer, model = tiny_tokenizer("chatml"), tiny_model()
    folder = tmp_path / "first"
    save_checkpoint(model, tokenizer, folder, {"number": 1})
    files = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(tokenizer, "save_pretrained", broken)
    for other in (folder, tmp_path / "second"):
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(model, tokenizer, other, {"number": 2}, overwrite=True)
        assert json.loads((folder / "sft.json").read_text()) == {"number": 1}
        assert sorted(path.name for path in folder.iterdir()) == files
        assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_checkpoint_is_replaced_whole_when_asked(tmp_path):
    folder = tmp_path / "first"
    save_checkpoint(tiny_model(), tiny_tokenizer("chatml"), folder, {"number": 1})
    with pytest.raises(OutputError, match="exists"):
        save_checkpoint(tiny_model(), tiny_tokenizer("llama3"), folder)
    assert json.loads((folder / "sft.json").read_text()) == {"number": 1}
    save_checkpoint(tiny_model(), tiny_tokenizer("llama3"), folder, {"number": 2}, overwrite=True)
    assert "<|eot_id|>" in (folder / "chat_template.jinja").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    verify_manifest(folder, "")


def test_a_folder_with_a_file_of_somebody_elses_is_not_replaced(tmp_path):
    folder = save_checkpoint(tiny_model(), tiny_tokenizer("chatml"), tmp_path / "first")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        save_checkpoint(tiny_model(), tiny_tokenizer("llama3"), folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
