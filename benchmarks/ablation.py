"""Leave one part out of course-base's mixture, and measure what its own task loses.

    python -m benchmarks.ablation                   # about fifteen minutes on two cores
    python -m benchmarks.ablation --quick --output runs/quick.json

Every run has the same number of steps, so without a part the others are seen a little more often.
Each is measured on held-out prompts of all tasks, over three seeds of data order and drawing.
Counts are written as [yes, n].
"""

import argparse
import json
import os
import re
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.course_base import count, obeyed, right
from course_utils.batching import prepare
from course_utils.checkpoints import DATA, hardware, load_base, local_folder, use_family
from course_utils.curriculum.identity import smoke, smoke_prompts
from course_utils.curriculum.mixture import PARTS, mixture
from course_utils.curriculum.tasks import TASKS
from course_utils.miniweb import prompts as chat_prompts
from course_utils.replies import generate, prompt_ids
from course_utils.sft import config_for, fine_tune
from course_utils.tokenizers import special_tokens

OUTPUT = DATA / "recorded" / "ablation_course-base.json"
SEEDS = (0, 1, 2)
# Eight parts in as many steps as the recipe takes for three: each needs a larger step.
LEARNING_RATE = 3e-4
# The kinds of the mini-web's prompts, by the part that teaches them.
KINDS = {"facts": "knowledge", "follow-ups": "follow_up", "form": "instruction"}


# What a reply to these parts' prompts looks like, right or wrong: the form that the part teaches.
FORMS = {
    "multiple-choice": re.compile(r"(The answer is )?[A-D]\b"),
    "arithmetic": re.compile(r"\d+ [-+x] \d+ = \d+\. .*\d"),
    "spelling": re.compile(r"\w(-\w)+|\w+ has \d|.*\d (letters|times?)"),
}


def measure(model, tokenizer, number: int) -> dict:
    """What the model does with held-out prompts of all parts, greedily; counts are [yes, n].

    tasks: facts and follow-ups right, rules obeyed, identity's smoke prompts passed, and for the
           other parts replies in the form that the part teaches
    right: of these others, the replies that are also right
    """
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
    pairs = {part: [(prompt, next(replies)) for prompt in asked[part]] for part in asked}
    failed = smoke([reply.text for _, reply in pairs["identity"]])
    tasks = {part: count(right(*pair) for pair in pairs[part]) for part in ("facts", "follow-ups")}
    tasks["form"] = count(obeyed(*pair) for pair in pairs["form"])
    tasks["identity"] = [len(asked["identity"]) - len(failed), len(asked["identity"])]
    for part, form in FORMS.items():
        tasks[part] = count(form.match(reply.text) is not None for _, reply in pairs[part])
    return {
        "tasks": tasks,
        "right": {
            part: count(right(p, r) and obeyed(p, r) for p, r in pairs[part]) for part in FORMS
        },
        "stops": count(reply.stopped for found in pairs.values() for _, reply in found),
        "smoke": failed,
    }


def run(base: str, without: str | None, seed: int, steps: int | None, number: int) -> dict:
    """Fine-tune on the mixture without this part, and measure all tasks."""
    model, tokenizer = load_base(base, dtype=torch.float32)
    use_family(tokenizer, "chatml")
    mixed = mixture(PARTS, seed, without=[without] if without else [])
    samples = prepare(mixed, tokenizer, max_length=512).samples
    done = fine_tune(
        model,
        samples,
        config_for("course-base", steps=steps, seed=seed, learning_rate=LEARNING_RATE),
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
    steps, number, seeds = (4, 6, (0,)) if options.quick else (None, 60, SEEDS)
    folder = local_folder(options.base) or Path(options.base)
    manifest = json.loads((folder / "manifest.json").read_text())
    record = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.ablation", *(arguments or sys.argv[1:])]
        ),
        "hardware": hardware(),
        "base": manifest["sha256"]["model.safetensors"],
        "config": asdict(config_for("course-base", steps=steps, learning_rate=LEARNING_RATE)),
        "parts": described(options.base),
        "runs": [],
    }
    # Small talk has no prompts that a program could judge, so leaving it out measures nothing.
    left_out = (None, *reversed([part.name for part in PARTS if part.name != "talk"]))
    plan = [(options.base, part, seed, steps, number) for part in left_out for seed in seeds]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # Small batches use one core well and two badly, so runs go side by side, a thread each.
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for found in pool.map(run, *zip(*plan, strict=True)):
            record["runs"].append(found)
            print(found, flush=True)
            options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
