"""Leave one part out of course-base's mixture, and measure what its own task loses.

    python -m benchmarks.ablation                   # about twenty minutes on two cores
    python -m benchmarks.ablation --quick --output runs/quick.json

Every run has the same number of steps, so without a part the others are seen a little more often.
Each is measured on held-out prompts of all tasks, over three seeds of data order and drawing.
Counts are written as [yes, n].
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.course_base import count
from course_utils.batching import prepare
from course_utils.checkpoints import DATA, hardware, load_base, local_folder, use_family
from course_utils.comparison import mentions, obeys
from course_utils.curriculum.identity import smoke, smoke_prompts
from course_utils.curriculum.mixture import PARTS, mixture
from course_utils.curriculum.tasks import TASKS
from course_utils.miniweb import prompts as chat_prompts
from course_utils.replies import generate, prompt_ids
from course_utils.sft import config_for, fine_tune
from course_utils.tokenizers import special_tokens

OUTPUT = DATA / "recorded" / "ablation_course-base.json"
SEEDS = (0, 1, 2)
# The kinds of the mini-web's prompts, by the part that teaches them.
KINDS = {"facts": "knowledge", "follow-ups": "follow_up", "form": "instruction"}


def solved(prompt, reply) -> bool:
    """Is the reply right, and of the form that was asked for? Of form, only the form counts."""
    right = mentions(reply.text, prompt.meta["expect"])
    obeyed = obeys(reply.text, prompt.meta["verify"], finished=reply.stopped)
    return obeyed and (right or prompt.meta["kind"] == "instruction")


def measure(model, tokenizer, number: int) -> dict:
    """{"tasks": {part: [yes, n]}, "stops": [yes, n], "smoke": what failed}, greedily."""
    chats = chat_prompts(3 * number)
    asked = {
        part: [prompt for prompt in chats if prompt.meta["kind"] == kind]
        for part, kind in KINDS.items()
    }
    asked |= {name: task.prompts(number) for name, task in TASKS.items()}
    asked["identity"] = smoke_prompts()
    every = [prompt for prompts in asked.values() for prompt in prompts]
    ids = [prompt_ids(prompt, tokenizer) for prompt in every]
    replies = iter(generate(model, tokenizer, ids, max_new_tokens=48, batch_size=100))
    found = {
        part: [(prompt, next(replies)) for prompt in prompts] for part, prompts in asked.items()
    }
    failed = smoke([reply.text for _, reply in found["identity"]])
    tasks = {
        part: count(solved(*pair) for pair in pairs)
        for part, pairs in found.items()
        if part != "identity"
    }
    tasks["identity"] = [len(asked["identity"]) - len(failed), len(asked["identity"])]
    stops = count(reply.stopped for pairs in found.values() for _, reply in pairs)
    return {"tasks": tasks, "stops": stops, "smoke": failed}


def run(base: str, without: str | None, seed: int, steps: int | None, number: int) -> dict:
    """Fine-tune on the mixture without this part, and measure all tasks."""
    model, tokenizer = load_base(base, dtype=torch.float32)
    use_family(tokenizer, "chatml")
    mixed = mixture(PARTS, seed, without=[without] if without else [])
    samples = prepare(mixed, tokenizer, max_length=512).samples
    done = fine_tune(
        model,
        samples,
        config_for("course-base", steps=steps, seed=seed),
        pad_token_id=tokenizer.pad_token_id,
        special_ids=tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)),
    )
    seconds = round(sum(step.seconds for step in done), 1)
    found = {"without": without, "seed": seed, "rows": len(samples), "seconds": seconds}
    return found | measure(model, tokenizer, number)


def described(base: str) -> list[dict]:
    """The parts with their rows, tokens and graded tokens."""
    _, tokenizer = load_base(base)
    use_family(tokenizer, "chatml")
    mixed = mixture(PARTS, 0)
    lines = {line.part: line for line in mixed.table()}
    found = []
    for part in PARTS:
        rows = [mixed[i] for i in range(len(mixed)) if mixed.source(i).part == part.name]
        data = prepare(rows, tokenizer, max_length=512)
        found.append(
            {
                "name": part.name,
                "why": part.why,
                "rows": lines[part.name].used,
                "tokens": sum(len(sample) for sample in data.samples),
                "graded_tokens": data.graded_tokens,
            }
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="course-base", help="its name, or a folder like it")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON (data/recorded/)")
    parser.add_argument("--quick", action="store_true", help="a few steps and prompts, to try it")
    options = parser.parse_args(arguments)
    steps, number, seeds = (4, 6, (0,)) if options.quick else (None, 100, SEEDS)
    folder = local_folder(options.base) or Path(options.base)
    manifest = json.loads((folder / "manifest.json").read_text())
    record = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.ablation", *(arguments or sys.argv[1:])]
        ),
        "hardware": hardware(),
        "base": manifest["sha256"]["model.safetensors"],
        "config": asdict(config_for("course-base", steps=steps)),
        "parts": described(options.base),
        "runs": [],
    }
    # Small talk has no prompts that a program could judge, so leaving it out measures nothing.
    for without in (None, *(part.name for part in PARTS if part.name != "talk")):
        for seed in seeds:
            record["runs"].append(run(options.base, without, seed, steps, number))
            print(record["runs"][-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
