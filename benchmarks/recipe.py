"""Choose course-base's recipe: python -m benchmarks.recipe steps=140 learning_rate=2e-4,5e-4

Every combination of the given settings is trained and measured on a split of its own, so that the
facts and rules on which the course reports stay unseen while a recipe is chosen: training asks
about half of the facts that fine-tuning may ask about and uses two thirds of the rules; the other
facts and rules measure. `constraint=40` sets how many of a hundred conversations state a rule.
"""

import argparse
import json
import sys
from itertools import product

import torch

from benchmarks.course_base import count, obeyed, right
from course_utils.batching import prepare
from course_utils.checkpoints import load_base, use_family
from course_utils.miniweb import chats, facts
from course_utils.miniweb.facts import select
from course_utils.miniweb.probes import answers
from course_utils.miniweb.rules import SEEN
from course_utils.replies import generate, prompt_ids
from course_utils.sft import config_for, fine_tune
from course_utils.tokenizers import special_tokens


def measure(base: str, settings: dict, number: int) -> dict:
    """Train with these settings on one half of what may be asked, and measure on the other."""
    settings = dict(settings)
    mixture = dict(chats.MIXTURE)
    if constraint := settings.pop("constraint", None):
        rest = 100 - mixture["constraint"]
        mixture = {kind: n * (100 - constraint) / rest for kind, n in mixture.items()}
        mixture["constraint"] = constraint
    rows = settings.pop("rows", 2000)
    asked = select(facts(), asked=True)
    train, held_out = asked[::2], asked[1::2]
    rules, unseen = [r for n, r in enumerate(SEEN) if n % 3], SEEN[::3]
    model, tokenizer = load_base(base, dtype=torch.float32)
    use_family(tokenizer, "chatml")
    made = chats.conversations(rows, asked=train, rules=rules, mixture=mixture)
    samples = prepare(made, tokenizer, max_length=512).samples
    config = config_for("course-base", **settings)
    steps = fine_tune(
        model,
        samples,
        config,
        pad_token_id=tokenizer.pad_token_id,
        special_ids=tokenizer.convert_tokens_to_ids(special_tokens(tokenizer)),
    )
    prompts = chats.prompts(number, held_out=held_out, rules=unseen)
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    replies = generate(model, tokenizer, ids, max_new_tokens=48, batch_size=100)
    pairs = list(zip(prompts, replies, strict=True))
    kinds = ("knowledge", "follow_up", "instruction")
    found = {
        f"{kind} right": count(right(p, r) for p, r in pairs if p.meta["kind"] == kind)
        for kind in kinds
    }
    return {
        "seconds": round(sum(step.seconds for step in steps), 1),
        "loss": round(sum(step.loss for step in steps[-20:]) / len(steps[-20:]), 4),
        "stops": count(reply.stopped for reply in replies),
        **found,
        "obeys": count(obeyed(p, r) for p, r in pairs if p.meta["kind"] == "instruction"),
        "held-out facts": count(answers(model, tokenizer, held_out[:150], batch_size=150)),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE[,VALUE]")
    parser.add_argument("--base", default="course-base", help="its name, or a folder like it")
    parser.add_argument("--number", type=int, default=300, help="prompts (300)")
    options = parser.parse_args(arguments)
    grid = {}
    for setting in options.settings:
        name, _, values = setting.partition("=")
        grid[name] = [json.loads(value) for value in values.split(",")]
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        print(chosen, measure(options.base, chosen, options.number), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
