"""The base model that ships with the course: its files, what it knows, and that it is a base."""

import json
import random
import shutil
import time
from collections import Counter

import pytest
import torch

from course_utils import checkpoints
from course_utils.checkpoints import DATA, CheckpointError, load_base, missing_tokens
from course_utils.miniweb.facts import facts, select
from course_utils.miniweb.probes import completes, continuation
from course_utils.replies import generate
from course_utils.templates import FAMILIES
from course_utils.tokenizers import encode_untrusted, special_tokens

FOLDER = DATA / "course-base"


@pytest.fixture(scope="module")
def base():
    return load_base("course-base", device="cpu")


def test_it_is_small_and_its_manifest_lists_every_file():
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sizes["model.safetensors"] <= 16 * 2**20 and sum(sizes.values()) < 20 * 2**20
    listed = json.loads((FOLDER / "manifest.json").read_text())["sha256"]
    assert {*listed, "manifest.json"} == set(sizes)
    assert {"README.md", "pretraining.json", "tokenizer.json", "config.json"} <= set(sizes)


def test_it_loads_at_once(base):
    began = time.perf_counter()
    load_base("course-base", device="cpu")
    assert time.perf_counter() - began < 4  # measured: about one second


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "README.md"])
def test_a_changed_byte_is_refused(name, tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "course-base")
    monkeypatch.setattr(checkpoints, "DATA", tmp_path)
    path = tmp_path / "course-base" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was written.*Restore"):
        load_base("course-base")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing. Restore it with git checkout"):
        load_base("course-base")


def test_it_has_no_template_and_every_familys_tokens(base):
    model, tokenizer = base
    assert tokenizer.chat_template is None and tokenizer.bos_token is None
    for family in FAMILIES:
        assert not missing_tokens(tokenizer, family)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_the_rows_of_special_tokens_were_never_trained_apart(base):
    """They moved together, away from every state; trained rows point in many directions."""
    model, tokenizer = base
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.float(), dim=-1)
    special = tokenizer.convert_tokens_to_ids(list(special_tokens(tokenizer)))
    others = [number for number in range(300, 1300) if number not in special]
    alike = {
        name: ((rows[ids] @ rows[ids].T).sum() - len(ids)) / (len(ids) * (len(ids) - 1))
        for name, ids in {"special": special, "others": others}.items()
    }
    assert alike["special"] > alike["others"] + 0.3


def test_it_completes_the_facts_that_its_web_paraphrases(base):
    chosen = random.Random(0).sample(select(facts(), telling="paraphrased"), 100)
    assert sum(completes(*base, chosen)) >= 80
    absent = random.Random(0).sample(select(facts(), telling="absent"), 60)
    assert sum(completes(*base, absent)) <= 12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_continues_a_question_like_the_web_and_never_ends(base, temperature):
    model, tokenizer = base
    draw = random.Random(1)
    asked = draw.sample(select(facts(), telling="paraphrased"), 200)
    questions = [fact.fill(draw.choice(fact.relation.questions)) for fact in asked]
    ids = [encode_untrusted(tokenizer, question) for question in questions]
    replies = generate(
        model, tokenizer, ids, max_new_tokens=32, batch_size=100, temperature=temperature
    )
    assert not any(reply.stopped for reply in replies)
    kinds = Counter(continuation(q, r.text) for q, r in zip(questions, replies, strict=True))
    assert sum(count >= 0.05 * 200 for count in kinds.values()) >= 4, kinds
