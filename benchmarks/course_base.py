"""Measure course-base: as it is, after fine-tuning with its recipe, and with every template family.

    python -m benchmarks.course_base                   # about ten minutes on two cores
    python -m benchmarks.course_base --quick --output runs/quick.json

Counts are written as [yes, n], so that a reader can put an interval around each. Everything is
measured by the functions that the lectures use.
"""

import argparse
import json
import random
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from course_utils.batching import prepare
from course_utils.checkpoints import DATA, hardware, load_base, local_folder, use_family
from course_utils.comparison import mentions, obeys
from course_utils.conversation import conversation
from course_utils.miniweb import Fact, conversations, facts, prompts
from course_utils.miniweb.facts import select
from course_utils.miniweb.probes import CONTINUATIONS, answers, completes, continuation
from course_utils.replies import Reply, generate, prompt_ids
from course_utils.sft import SFTConfig, config_for, fine_tune, peak_memory
from course_utils.templates import FAMILIES
from course_utils.tokenizers import special_tokens

OUTPUT = DATA / "recorded" / "course_base_sft.json"
SEEDS = (0, 1, 2)
OTHER_FAMILIES = [family for family in FAMILIES if family not in ("raw", "chatml")]

# The facts by what the web and the fine-tuning data do with them.
GROUPS = {
    "asked about in SFT": lambda f: f.asked,
    "never asked about": lambda f: f.telling == "paraphrased" and not f.asked,
    "one sentence, subject first": lambda f: f.telling == "fixed" and not f.value_first,
    "one sentence, value first": lambda f: f.telling == "fixed" and f.value_first,
    "absent from the web": lambda f: f.telling == "absent",
}


def count(judged: Iterable[bool]) -> list[int]:
    """[yes, n]"""
    judged = list(judged)
    return [sum(judged), len(judged)]


def bare_questions(number: int, seed: int = 0) -> list[str]:
    """Questions that the web could hold, each in one of its wordings."""
    draw = random.Random(seed)
    asked = draw.sample(select(facts(), telling="paraphrased"), number)
    return [fact.fill(draw.choice(fact.relation.questions)) for fact in asked]


def base_behaviour(model, tokenizer, number: int) -> dict:
    """What the base does with a bare question, and which facts it can complete."""
    questions = bare_questions(number)
    ids = [prompt_ids(conversation(("user", q)), tokenizer, template=False) for q in questions]
    found = {}
    for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        replies = generate(
            model, tokenizer, ids, max_new_tokens=64, batch_size=64, temperature=temperature
        )
        kinds = Counter(continuation(q, r.text) for q, r in zip(questions, replies, strict=True))
        found[decoding] = {
            "ends": count(reply.stopped for reply in replies),
            "kinds": {kind: kinds[kind] for kind in CONTINUATIONS},
        }
    found["completes"] = {
        group: count(completes(model, tokenizer, [f for f in facts() if belongs(f)]))
        for group, belongs in GROUPS.items()
    }
    return found


def train(base: str, family: str, config: SFTConfig):
    """(model, tokenizer, what the run was): the conversations are drawn with the config's seed."""
    model, tokenizer = load_base(base, dtype=torch.float32)
    use_family(tokenizer, family)
    data = prepare(conversations(seed=config.seed), tokenizer, max_length=512)
    steps = fine_tune(
        model,
        data.samples,
        config,
        pad_token_id=tokenizer.pad_token_id,
        special_ids=tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)),
    )
    seconds = sum(step.seconds for step in steps)
    run = {
        "family": family,
        "seed": config.seed,
        "samples": len(data.samples),
        "refused": len(data.refused),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(sum(step.tokens for step in steps) / seconds),
        "loss": [round(step.loss, 4) for step in steps],
    }
    return model, tokenizer, run


def after_sft(model, tokenizer, number: int) -> dict:
    """Held-out prompts of every kind."""
    asked = prompts(number)
    ids = [prompt_ids(prompt, tokenizer) for prompt in asked]
    replies = generate(model, tokenizer, ids, max_new_tokens=64, batch_size=64)
    pairs = list(zip(asked, replies, strict=True))

    def of(kind: str, judge) -> list[int]:
        return count(judge(p, r) for p, r in pairs if p.meta["kind"] == kind)

    return {
        "stops": count(reply.stopped for reply in replies),
        "knowledge right": of("knowledge", right),
        "follow-up right": of("follow_up", right),
        "unseen constraints obeyed": of("instruction", obeyed),
        "unseen constraints obeyed and right": of(
            "instruction", lambda p, r: obeyed(p, r) and right(p, r)
        ),
    }


def answers_of(model, tokenizer, chosen: Sequence[Fact]) -> dict:
    """The facts of every group, asked in the template."""
    return {
        group: count(answers(model, tokenizer, [f for f in chosen if belongs(f)]))
        for group, belongs in GROUPS.items()
    }


def right(prompt, reply: Reply) -> bool:
    return mentions(reply.text, prompt.meta["expect"])


def obeyed(prompt, reply: Reply) -> bool:
    return obeys(reply.text, prompt.meta["verify"], finished=reply.stopped)


def total(runs: Sequence[dict], *path: str) -> tuple[int, int]:
    """(yes, n) of one measure, summed over runs."""
    yes = n = 0
    for found in runs:
        for key in path:
            found = found[key]
        yes, n = yes + found[0], n + found[1]
    return yes, n


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.course_base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="course-base", help="its name, or a folder like it")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON (data/recorded/)")
    parser.add_argument("--quick", action="store_true", help="a few steps and prompts, to try it")
    options = parser.parse_args(arguments)
    number, chosen, steps = (30, facts()[::20], 10) if options.quick else (600, facts(), None)
    folder = local_folder(options.base) or Path(options.base)
    manifest = folder / "manifest.json"
    model, tokenizer = load_base(options.base)
    record = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.course_base", *(arguments or sys.argv[1:])]
        ),
        "hardware": hardware(),
        "base": json.loads(manifest.read_text())["sha256"]["model.safetensors"],
        "config": asdict(config_for("course-base", steps=steps)),
        "as it is": base_behaviour(model, tokenizer, min(number, 200)),
        "runs": [],
    }
    for decoding in ("greedy", "sampled"):
        print(decoding, record["as it is"][decoding], flush=True)
    print("completes", record["as it is"]["completes"], flush=True)
    plan = [("chatml", seed) for seed in SEEDS] + [(family, 0) for family in OTHER_FAMILIES]
    for family, seed in plan:
        config = config_for("course-base", steps=steps, seed=seed)
        model, tokenizer, run = train(options.base, family, config)
        run |= after_sft(model, tokenizer, number)
        if family == "chatml":
            run["answers"] = answers_of(model, tokenizer, chosen)
        record["runs"].append(run)
        print({name: value for name, value in run.items() if name != "loss"}, flush=True)
    record["peak_memory_gib"] = round(peak_memory() / 2**30, 2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
