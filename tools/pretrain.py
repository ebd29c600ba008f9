"""Pretrain course-base on the mini-web: python -m tools.pretrain

Writes the pages, trains a tokenizer on them, pretrains a Llama of about 6 million parameters from
random weights, measures what it knows, and saves everything with a manifest of hashes to
data/course-base. A run that was interrupted goes on where it was (state in runs/pretrain).

    python -m tools.pretrain --quick    # the whole pipeline in under a minute, to runs/quick-base
    python -m tools.pretrain --output runs/again --seed 1
"""

import argparse
import json
import math
import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.checkpoints import (
    autocast_dtype,
    hardware,
    keep_freed_memory,
    pick_device,
    write_manifest,
)
from course_utils.miniweb.facts import facts, select
from course_utils.miniweb.pages import PAGE_BREAK, pages
from course_utils.miniweb.probes import completes
from course_utils.sft import peak_memory
from course_utils.tokenizers import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "runs" / "pretrain"
SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class Config:
    """steps of `rows` rows of `length` tokens; every page is read once.

    vocabulary: tokens, of which `reserved` beside the template families' are never trained
    split_lines: is every line break a token?
    """

    steps: int = 2000
    rows: int = 32
    length: int = 256
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1
    vocabulary: int = 4096
    reserved: int = 8
    split_lines: bool = True
    hidden: int = 256
    layers: int = 6
    tokenizer_pages: int = 20_000
    seed: int = 0


QUICK = Config(
    steps=12,
    rows=8,
    length=128,
    vocabulary=1024,
    hidden=64,
    layers=2,
    tokenizer_pages=500,
)


def make_tokenizer(config: Config):
    texts = (text for _, text in islice(pages(config.seed), config.tokenizer_pages))
    return train_tokenizer(
        texts,
        config.vocabulary,
        split_digits=True,
        split_lines=config.split_lines,
        reserved=config.reserved,
    )


def make_rows(tokenizer, number: int, length: int, seed: int) -> torch.Tensor:
    """Token ids of shape (number, length). A row begins where a page begins.

    It is filled with the pages that follow; the part of the last page for which there is no room is
    left out.
    """
    rows, row = [], []
    web = pages(seed)
    with tqdm(total=number, unit="row", desc="pages", disable=number < 1000) as bar:
        while len(rows) < number:
            texts = [text + PAGE_BREAK for _, text in islice(web, 1000)]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                row += ids
                if len(row) >= length:
                    rows.append(row[:length])
                    row = []
                    bar.update()
    return torch.tensor(rows[:number], dtype=torch.int32)


def make_model(config: Config, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=3 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.hidden // 64,
            num_key_value_heads=config.hidden // 64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learning_rate_at(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return config.learning_rate * warm * (0.05 + 0.95 * cosine)


def pretrain(model, rows: torch.Tensor, config: Config, state: Path | None = None) -> list[float]:
    """Train on all rows, once, in order; the loss of every step, in nats per token.

    Labels are the input ids: in pretraining every token is graded. With `state`, a run that was
    interrupted is taken up from that file.
    """
    device = model.device
    compute = autocast_dtype(device)
    autocast = torch.autocast(device.type, compute) if compute else nullcontext()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    losses: list[float] = []
    if state and state.is_file():
        saved = torch.load(state, map_location=device, weights_only=True)
        if saved["config"] == asdict(config):
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            losses = saved["losses"]
            print(f"Going on from step {len(losses)} ({state}).")
    model.train()
    with tqdm(total=config.steps, initial=len(losses), unit="step", desc="pretraining") as bar:
        for step in range(len(losses), config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
            ids = rows[step * config.rows : (step + 1) * config.rows].long().to(device)
            with autocast:
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if state and (step + 1) % SAVE_EVERY == 0:
                state.parent.mkdir(parents=True, exist_ok=True)
                parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                partial = state.with_suffix(".part")
                torch.save(parts | {"losses": losses, "config": asdict(config)}, partial)
                partial.replace(state)
    model.eval()
    return losses


@torch.inference_mode()
def held_out_loss(model, rows: torch.Tensor) -> float:
    """Mean loss in nats per token on pages that were not trained on."""
    losses = [
        model(input_ids=ids, labels=ids).loss for ids in rows.long().to(model.device).split(8)
    ]
    return torch.stack(losses).mean().item()


def knowledge(model, tokenizer) -> dict[str, float]:
    """Share of the facts that the model completes as text, by how the web tells them."""
    found = {}
    for telling in ("paraphrased", "fixed", "absent"):
        judged = completes(model, tokenizer, select(facts(), telling=telling))
        found[telling] = round(sum(judged) / len(judged), 4)
    return found


def save(model, tokenizer, folder: Path, record: dict, card: Path | None) -> None:
    """bfloat16 safetensors, tokenizer, record, model card and manifest, all or nothing."""
    made = folder.with_name(f".{folder.name}.made")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    (made / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if card and card.is_file():
        shutil.copy(card, made / "README.md")
    write_manifest(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="folder (default: data/course-base)")
    parser.add_argument("--seed", type=int, default=0, help="pages and first weights (0)")
    parser.add_argument("--steps", type=int, help=f"optimizer steps ({Config.steps})")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to try the pipeline")
    options = parser.parse_args(arguments)
    config = replace(QUICK if options.quick else Config(), seed=options.seed)
    if options.steps is not None:
        if options.steps < 1:
            parser.error(f"--steps must be at least 1, not {options.steps}")
        config = replace(config, steps=options.steps)
    output = options.output or ROOT / ("runs/quick-base" if options.quick else "data/course-base")
    began = time.perf_counter()
    device = pick_device()
    if device.type == "cpu":
        keep_freed_memory()
    tokenizer = make_tokenizer(config)
    model = make_model(config, tokenizer).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.1f} million parameters")
    rows = make_rows(tokenizer, config.steps * config.rows, config.length, config.seed)
    state = None if options.quick else STATE / f"seed-{config.seed}.pt"
    losses = pretrain(model, rows, config, state)
    unseen = make_rows(tokenizer, 64, config.length, seed=config.seed + 1_000_000)
    record = {
        "command": shlex.join(["python", "-m", "tools.pretrain", *(arguments or sys.argv[1:])]),
        "config": asdict(config),
        "hardware": hardware(),
        "parameters": parameters,
        "tokens": len(losses) * config.rows * config.length,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "held_out_loss": round(held_out_loss(model, unseen), 4),
        "completes": knowledge(model, tokenizer),
        "loss": [round(loss, 4) for loss in losses],
    }
    save(model, tokenizer, output, record, ROOT / "tools" / "course_base_card.md")
    if state:
        state.unlink(missing_ok=True)
    print(
        f"Saved {output}: {record['seconds'] / 60:.1f} minutes, loss on unseen pages "
        f"{record['held_out_loss']:.3f}, completes {record['completes']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
