"""Supervised fine-tuning: the loop, and its command line.

    python -m course_utils.sft --output runs/first

It is pretraining's loop: forward pass, cross-entropy on the next token, backward pass, optimizer
step. What makes it SFT is in the batch: conversations in a template, and labels that are
`IGNORE_INDEX` wherever somebody else than the assistant speaks.
"""

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from course_utils import commands
from course_utils.batching import collate, forward_passes, length_batches, prepare
from course_utils.checkpoints import (
    BASES,
    DATA,
    CheckpointError,
    autocast_dtype,
    extremes,
    family_for,
    hardware,
    load_base,
    pick_base,
    use_family,
)
from course_utils.conversation import Conversation, load_conversations
from course_utils.masking import IGNORE_INDEX, MASK_MODES, Sample
from course_utils.outputs import check_room, rescue, reserve_folder
from course_utils.replies import end_of_turn_id
from course_utils.saving import save_checkpoint as save_checkpoint
from course_utils.templates import FAMILIES
from course_utils.tokenizers import special_tokens

# Graded positions whose logits are in memory at a time. Slices of one size keep the heap whole:
# what one slice frees, the next one fits into.
LOGIT_ROWS = 256
# No model that works has a larger one (float16 could not hold it). With far larger ones the squares
# in a norm overflow, all states come out as zeros, and the loss is finite: that of a guess.
LARGEST_WEIGHT = 65504.0


@dataclass(frozen=True)
class SFTConfig:
    """The knobs of a run. Lecture 08 gives the reason for each default.

    steps:            optimizer steps
    batch_size:       conversations in one forward pass
    accumulate:       forward passes per optimizer step
    learning_rate:    peak, reached after `warmup` of the steps, then falling linearly to zero
    weight_decay:     AdamW's
    clip:             largest norm of the gradient
    forward_tokens:   most tokens, padding included, in one forward pass; a larger batch is passed
                      in parts, which changes the memory it takes and nothing else
    train_embeddings: True also moves the embedding matrix (and the output layer), "special" only
                      its rows of special tokens
    seed:             order of the data
    """

    steps: int = 90
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    forward_tokens: int = 1024
    train_embeddings: bool | str = False
    seed: int = 0

    def __post_init__(self):
        for name in (
            *("steps", "batch_size", "accumulate"),
            *("learning_rate", "clip", "forward_tokens"),
        ):
            # Written so that "not a number" is refused too.
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}.")
        if self.train_embeddings not in (True, False, "special"):
            raise ValueError(
                f"train_embeddings must be True, False or 'special', not {self.train_embeddings!r}."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup is a share of the steps, from 0 to below 1, not {self.warmup}."
            )


def config_for(base: str, **settings) -> SFTConfig:
    """The settings for a base: the defaults, then its recipe, then whatever is given and not None.

    base: a name in `checkpoints.BASES`; any other has no recipe.
    """
    recipe = BASES[base].recipe if base in BASES else {}
    given = {name: value for name, value in settings.items() if value is not None}
    return SFTConfig(**recipe | given)


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. `loss` is in nats per graded token, before the step."""

    step: int
    loss: float
    tokens: int
    graded_tokens: int
    lr: float
    grad_norm: float
    seconds: float


def graded_loss(model, batch: dict):
    """Cross-entropy summed over the graded positions of a batch, and their number.

    batch: `input_ids`, `attention_mask`, `labels` of shape (B, T), as `collate` makes them. With
    `loss_weights` each position's loss is multiplied by its weight, and the number is the weights'
    sum.

    Position i's logits are compared with label i + 1. Logits are computed only where that label is
    graded: with 262,144 words in the vocabulary they are the largest tensor of the whole step. They
    are computed a slice at a time, and again in the backward pass instead of being kept.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    hidden = model.base_model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    targets = batch["labels"][:, 1:]
    graded = targets != IGNORE_INDEX
    output = model.get_output_embeddings()
    weight = output.weight
    if torch.is_autocast_enabled(weight.device.type):
        # Once here: autocast would convert the whole matrix again for every slice.
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))
    softcap = getattr(model.config, "final_logit_softcapping", None)

    def loss_of(states, wanted, weights=None):
        logits = F.linear(states, weight, output.bias).float()
        if softcap:
            logits = softcap * (logits / softcap).tanh()
        if weights is None:
            return F.cross_entropy(logits, wanted, reduction="sum")
        return (F.cross_entropy(logits, wanted, reduction="none") * weights).sum()

    columns = [hidden[:, :-1][graded].split(LOGIT_ROWS), targets[graded].split(LOGIT_ROWS)]
    count = int(graded.sum())
    if "loss_weights" in batch:
        weights = batch["loss_weights"][:, 1:][graded]
        columns.append(weights.split(LOGIT_ROWS))
        count = weights.sum().item()
    pieces = zip(*columns, strict=True)
    total = sum(checkpoint(loss_of, *piece, use_reentrant=False) for piece in pieces)
    return total, count


def counted(sample: Sample) -> list[float]:
    """The weights of a sample's graded positions; the first position has none before it."""
    weights = sample.weights or [1] * len(sample)
    pairs = zip(sample.labels[1:], weights[1:], strict=True)
    return [weight for label, weight in pairs if label != IGNORE_INDEX]


def learning_rate_at(step: int, config: SFTConfig) -> float:
    """Linear warm-up to the peak, then linear decay that reaches zero right after the last step."""
    warmup_steps = max(1, round(config.warmup * config.steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    return config.learning_rate * (config.steps - step) / (config.steps - warmup_steps + 1)


def trainable_parameters(model, config: SFTConfig) -> list:
    """Freeze what `config` says and return the parameters that are trained."""
    model.requires_grad_(True)
    if not config.train_embeddings:
        model.get_input_embeddings().requires_grad_(False)
        model.get_output_embeddings().requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def only_rows(weight, rows: Collection[int]):
    """Let training move only these rows of a matrix; returns the hook, to be removed afterwards.

    The gradient of all others is zero, and with it Adam's step, as long as no weight decays.
    """
    kept = weight.new_zeros(len(weight), 1)
    kept[list(rows)] = 1
    return weight.register_hook(lambda gradient: gradient * kept)


def fine_tune(
    model,
    samples: Sequence[Sample],
    config: SFTConfig | None = None,
    *,
    pad_token_id: int = 0,
    special_ids: Collection[int] = (),
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Train `model` in place on `samples`; returns one `Step` per optimizer step.

    The weights must be float32; the forward pass runs in bfloat16 or float16 where the device is
    faster at it. `special_ids` are the rows of the embedding that `train_embeddings="special"`
    moves. `on_step` is called after each step (a progress bar, a live loss curve). Raises
    `ValueError` for samples that this model cannot be trained on, and `FloatingPointError` as soon
    as a loss or gradient is not a number, or if the last update leaves weights that are not finite.
    """
    import torch

    config = config or SFTConfig()
    check_samples(model, samples)
    torch.manual_seed(config.seed)
    device = next(model.parameters()).device
    compute_dtype = autocast_dtype(device)
    autocast = torch.autocast(device.type, compute_dtype) if compute_dtype else nullcontext()
    # float16 underflows for small gradients: the scaler multiplies the loss and divides again.
    scaler = torch.amp.GradScaler(device.type, enabled=compute_dtype == torch.float16)
    parameters = trainable_parameters(model, config)
    hooks, decays = [], {"weight_decay": config.weight_decay}
    if config.train_embeddings == "special":
        if not special_ids:
            raise ValueError("train_embeddings='special' needs special_ids: the rows to move.")
        matrices = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
        hooks = [only_rows(matrix, special_ids) for matrix in matrices]
        body = [parameter for parameter in parameters if parameter not in matrices]
        groups = [{"params": body, **decays}, {"params": [*matrices], "weight_decay": 0.0}]
    else:
        groups = [{"params": parameters, **decays}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    batches = length_batches(samples, config.batch_size, seed=config.seed)
    model.train()
    steps = []
    for number in range(config.steps):
        began = time.perf_counter()
        rate = learning_rate_at(number, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = [
            part
            for batch in islice(batches, config.accumulate)
            for part in forward_passes(batch, config.forward_tokens)
        ]
        # One denominator for all forward passes of the step: a mean per pass would weigh the
        # tokens of a short batch more than those of a long one (transformers #34191).
        graded = sum(weight for batch in chosen for sample in batch for weight in counted(sample))
        loss = 0.0
        for batch in chosen:
            # Few different lengths: the processor's kernels are prepared once per shape.
            padded = collate(batch, pad_token_id, pad_to_multiple_of=16)
            tensors = {name: values.to(device) for name, values in padded.items()}
            with autocast:
                total, _ = graded_loss(model, tensors)
            scaler.scale(total / graded).backward()
            loss += total.item() / graded
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {number} is {loss}. Lower the learning rate; check the batch."
            )
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        # The scaler of float16 expects overflows: it skips such a step and multiplies by less.
        if not (math.isfinite(norm) or scaler.is_enabled()):
            raise FloatingPointError(
                f"the gradient of step {number} is {float(norm)}. Lower the learning rate."
            )
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        steps.append(
            Step(
                number,
                loss,
                sum(len(sample) for batch in chosen for sample in batch),
                sum(len(counted(sample)) for batch in chosen for sample in batch),
                rate,
                float(norm),
                time.perf_counter() - began,
            )
        )
        on_step(steps[-1])
    for hook in hooks:
        hook.remove()
    model.eval()
    with torch.no_grad(), autocast:
        total, _ = graded_loss(model, tensors)
    check_update(model, float(total), config.steps - 1)
    return steps


def check_update(model, loss: float, step: int) -> None:
    """Raise `FloatingPointError` if a step's update spoilt the weights: no later loss shows that.

    loss: of the last batch, after the update
    """
    for name, parameter in model.named_parameters():
        largest = max(map(abs, extremes(parameter)))
        if not largest <= LARGEST_WEIGHT:
            raise FloatingPointError(
                f"the update of step {step} left {largest:.3g} in the weights {name}. Lower the "
                "learning rate."
            )
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss after the update of step {step} is {loss}. Lower the learning rate."
        )


def check_samples(model, samples: Sequence[Sample]) -> None:
    """Raise `ValueError` if `graded_loss` would be wrong, or break, on a sample.

    A label at position 0 has no position before it that could predict it, so it does not count.
    """
    import torch
    import torch.nn.functional as F

    if not samples:
        raise ValueError("no samples to train on.")
    if model.dtype != torch.float32:
        raise ValueError(
            f"the weights are {model.dtype}, in which an update of the size of the learning rate "
            "is rounded away. Load the model with dtype=torch.float32."
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    for number, sample in enumerate(samples):
        name = f"sample {number} (id {sample.id!r})"
        if all(label == IGNORE_INDEX for label in sample.labels[1:]):
            raise ValueError(
                f"{name} has nothing graded after its first token: its loss would be 0/0. "
                "Leave it out."
            )
        if max(sample.input_ids) >= vocabulary:
            raise ValueError(
                f"{name} holds the id {max(sample.input_ids)}, but the model's embedding has "
                f"{vocabulary} rows: this tokenizer belongs to another model."
            )
    # Some architectures scale their logits behind the output layer, which graded_loss leaves out.
    sample = samples[0]
    end = next(i for i, label in enumerate(sample.labels) if i and label != IGNORE_INDEX) + 1
    ids = torch.tensor([sample.input_ids[:end]], device=model.device)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, -1] = sample.labels[end - 1]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    training = model.training
    model.eval()
    with torch.no_grad():
        ours, _ = graded_loss(model, batch)
        own = F.cross_entropy(model(ids).logits[:, -2].float(), labels[:, -1])
    model.train(training)
    if not torch.allclose(ours, own, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ValueError(
            f"the model's own loss is {own:.3f} where graded_loss gives {ours:.3f}: a "
            f"{type(model).__name__} does more to its logits than graded_loss knows of. "
            "Choose another base."
        )


def default_conversations(base: str) -> list[Conversation]:
    """The course's conversations for a base: course-base knows nothing but its mini-web."""
    if base == "course-base":
        from course_utils.miniweb import conversations

        return conversations()
    return load_conversations(DATA / "conversations.jsonl")


def peak_memory() -> int:
    """The most memory this process has held, in bytes: on the GPU if it used one, else in RAM."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    # Linux counts kibibytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_record(config: SFTConfig, steps: Sequence[Step], **more) -> dict:
    """What a run did and on what, for sft.json and the lectures."""
    seconds = sum(step.seconds for step in steps)
    return {
        **more,
        "config": asdict(config),
        "hardware": hardware(),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(sum(step.tokens for step in steps) / seconds),
        "peak_memory_gib": round(peak_memory() / 2**30, 2),
        "steps": [
            {name: _as_json(value) for name, value in asdict(step).items()} for step in steps
        ],
    }


def _as_json(value):
    # JSON has no infinity, which the gradient's norm is in a step that float16 skipped.
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _defaults(setting: str) -> str:
    """The default of a setting, and of the bases that have their own: "(90; course-base: 300)"."""
    own = [f"{b.name}: {b.recipe[setting]}" for b in BASES.values() if setting in b.recipe]
    return f"({'; '.join([str(getattr(SFTConfig(), setting)), *own])})"


def _arguments() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m course_utils.sft",
        description="Fine-tune a base model on conversations and save the checkpoint.",
        exits={0: "saved", 1: "the run failed; if there is a checkpoint, the message says where"},
    )
    parser.add_argument(
        "--base",
        type=commands.name,
        help="a named base, a folder or a Hub id (default: the machine's)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="JSONL, one conversation per line (default: the course's for this base)",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the checkpoint")
    parser.add_argument(
        "--family", choices=[f for f in FAMILIES if f != "raw"], help="chat template"
    )
    parser.add_argument(
        "--mode", choices=list(MASK_MODES), default="assistant", help="what is graded"
    )
    parser.add_argument(
        "--max-length", type=commands.number, default=512, help="tokens; cut at turns (512)"
    )
    parser.add_argument("--steps", type=commands.number, help=_defaults("steps"))
    parser.add_argument("--batch-size", type=commands.number, help=_defaults("batch_size"))
    parser.add_argument(
        "--accumulate", type=commands.number, default=1, help="forward passes per step (1)"
    )
    parser.add_argument("--learning-rate", type=float, help=_defaults("learning_rate"))
    parser.add_argument(
        "--train-embeddings",
        nargs="?",
        const="all",
        choices=("no", "special", "all"),
        help=f"also move the embeddings, or their special rows {_defaults('train_embeddings')}",
    )
    parser.add_argument("--seed", type=commands.number, default=0, help="order of the data (0)")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output folder, if this course wrote every file in it",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    command = shlex.join(["python", "-m", "course_utils.sft", *(arguments or sys.argv[1:])])
    return commands.run(
        _arguments(), lambda options: _run(options, command), arguments, failing="the run failed"
    )


def base_folder(base: str) -> Path | None:
    """The folder on this machine that holds a base and that no output may touch, if any."""
    if base in BASES:
        return DATA / BASES[base].folder if BASES[base].folder else None
    if os.path.exists(base) and not os.path.isdir(base):
        raise CheckpointError(f"{base} is not a folder. Name the folder that holds the base.")
    return Path(base) if os.path.isdir(base) else None


def _run(options, command: str) -> int:
    base, why = pick_base(options.base)
    config = config_for(
        base,
        steps=options.steps,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        learning_rate=options.learning_rate,
        train_embeddings={"no": False, "all": True}.get(
            options.train_embeddings, options.train_embeddings
        ),
        seed=options.seed,
    )
    if options.data:
        commands.check_input(options.data)
    inputs = [path for path in (options.data, base_folder(base)) if path]
    with reserve_folder(options.output, overwrite=options.overwrite, inputs=inputs):
        return _train(options, config, base, why, command)


def _train(options, config: SFTConfig, base: str, why: str, command: str) -> int:
    import torch
    from tqdm import tqdm

    conversations = (
        load_conversations(options.data) if options.data else default_conversations(base)
    )
    print(f"Base: {why}")
    model, tokenizer = load_base(base, dtype=torch.float32)
    # Two bytes a weight, and a little for the rest.
    check_room(options.output, 2 * sum(p.numel() for p in model.parameters()) + 2**16)
    if options.family or not tokenizer.chat_template:
        use_family(tokenizer, options.family or family_for(base, tokenizer))
    end = end_of_turn_id(tokenizer)
    if end is None:
        print(
            "Note: this chat template ends a turn without a token of its own, so the tuned model "
            "can stop only by the end of text, which it is not trained to write."
        )
    elif tokenizer.convert_ids_to_tokens(end) not in special_tokens(tokenizer):
        print(
            "Note: this chat template ends a turn with a line break and no special token, so a "
            "reply ends with its first line."
        )
    data = prepare(conversations, tokenizer, mode=options.mode, max_length=options.max_length)
    print(f"Data: {data}")
    with commands.working(), tqdm(total=config.steps, unit="step") as bar:

        def on_step(step: Step) -> None:
            bar.update()
            bar.set_postfix(
                loss=f"{step.loss:.3f}", tokens_per_s=f"{step.tokens / step.seconds:.0f}"
            )

        steps = fine_tune(
            model,
            data.samples,
            config,
            pad_token_id=tokenizer.pad_token_id or 0,
            special_ids=tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)),
            on_step=on_step,
        )
    record = run_record(
        config,
        steps,
        base=base,
        command=command,
        data={"samples": len(data.samples), "graded_tokens": data.graded_tokens},
        parameters={
            "all": sum(parameter.numel() for parameter in model.parameters()),
            "embedding": model.get_input_embeddings().weight.numel(),
        },
    )
    _save(model, tokenizer, options, record)
    print(
        f"Saved {options.output}: {len(steps)} steps in {record['seconds']:.0f} s "
        f"({record['tokens_per_second']} tokens/s), loss {steps[0].loss:.2f} -> "
        f"{steps[-1].loss:.2f}, peak memory {record['peak_memory_gib']} GiB."
    )
    return 0


def _save(model, tokenizer, options, record: dict) -> None:
    try:
        save_checkpoint(model, tokenizer, options.output, record, overwrite=options.overwrite)
    except FloatingPointError:  # nothing worth keeping
        raise
    except Exception as error:  # a full disk raises what each library makes of it
        kept = rescue("checkpoint", lambda path: save_checkpoint(model, tokenizer, path, record))
        where = (
            f"The checkpoint is in {kept} instead."
            if kept
            else "There was no room for the checkpoint elsewhere, either: it is lost."
        )
        raise commands.Failed(
            f"{options.output} could not be written ({commands.sentence(error).rstrip('.')}). "
            f"{where}"
        ) from error


if __name__ == "__main__":
    commands.leave(main())
