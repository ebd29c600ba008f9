"""Chats about the mini-web: conversations to fine-tune on, and held-out prompts to test with.

    python -m course_utils.miniweb.chats OUTPUT.jsonl

Fine-tuning may ask about half of the paraphrased facts, and may combine some of the constraints.
Everything else is held out: the other half of the facts, and `UNSEEN` combinations.
"""

import random
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from course_utils import commands
from course_utils.conversation import Conversation, Message, save_conversations
from course_utils.miniweb.facts import FOLDER, Fact, facts, select
from course_utils.miniweb.rules import HELD_OUT, SEEN, Constraint
from course_utils.outputs import reserve_file

# Of a hundred conversations, how many are of each kind.
MIXTURE = {"single": 32, "follow_up": 27, "constraint": 34, "talk": 7}


def conversations(
    number: int = 2000,
    seed: int = 0,
    *,
    asked: Sequence[Fact] | None = None,
    rules: Sequence[Constraint] = SEEN,
    mixture: Mapping[str, float] | None = None,
) -> list[Conversation]:
    """Conversations to fine-tune on, about the facts that may be asked about.

    single: one question; follow_up: more that are understood only through the first; constraint: a
    system text that every reply obeys; talk: small talk, perhaps beside a question. The same for
    the same seed.
    """
    draw = random.Random(seed)
    asked = select(facts(), asked=True) if asked is None else asked
    mixture = mixture or MIXTURE
    made = []
    for serial in range(number):
        kind = draw.choices(list(mixture), list(mixture.values()))[0]
        turns = CHATS[kind](draw, asked, rules)
        if turns[0][0] != "system" and draw.random() < 0.15:
            turns = [("system", draw.choice(_banks()["plain"]["system"])), *turns]
        made.append(_conversation(f"mini-web-{seed}-{serial}", turns, kind))
    return made


def _single(
    draw: random.Random, asked: Sequence[Fact], rules: Sequence[Constraint]
) -> list[tuple[str, str]]:
    return _turns(draw, draw.choice(asked))


def _follow_up(
    draw: random.Random, asked: Sequence[Fact], rules: Sequence[Constraint]
) -> list[tuple[str, str]]:
    """A question, and one or two more that are understood only through the first."""
    first = draw.choice(asked)
    turns = _turns(draw, first)
    relation = [f for f in asked if f.relation is first.relation and f is not first]
    for fact in draw.sample(relation, draw.randint(1, 2)):
        turns += [("user", _follow_up_question(draw, fact)), ("assistant", fact.answer)]
    if draw.random() < 0.3:
        turns += _turns(draw, draw.choice(asked))
    return turns


def _constraint(
    draw: random.Random, asked: Sequence[Fact], rules: Sequence[Constraint]
) -> list[tuple[str, str]]:
    rule = draw.choice(rules)
    turns = [("system", rule.stated(draw))]
    fitting = [fact for fact in asked if rule.fits(fact)]
    for fact in draw.sample(fitting, draw.choice((1, 1, 2))):
        question = fact.fill(draw.choice(fact.relation.questions))
        turns += [("user", question), ("assistant", rule.obeyed(fact, fact.answer))]
    return turns


def _talk(
    draw: random.Random, asked: Sequence[Fact], rules: Sequence[Constraint]
) -> list[tuple[str, str]]:
    said, reply = draw.choice(_banks()["small_talk"]["pairs"])
    turns = [("user", said), ("assistant", reply)]
    where = draw.random()
    if where < 0.3:
        return turns + _turns(draw, draw.choice(asked))
    return _turns(draw, draw.choice(asked)) + turns if where < 0.6 else turns


CHATS = {
    "single": _single,
    "follow_up": _follow_up,
    "constraint": _constraint,
    "talk": _talk,
}


# --- prompts to test with ------------------------------------------------------------------------


def prompts(
    number: int = 200,
    seed: int = 1000,
    *,
    held_out: Sequence[Fact] | None = None,
    rules: Sequence[Constraint] = HELD_OUT,
) -> list[Conversation]:
    """Held-out prompts in the schema of `course_utils.comparison`, equally many of each kind.

    knowledge:   a question about a fact that fine-tuning did not ask about
    follow_up:   the same as a second question, after one that is answered; both facts are held out
    instruction: the same under constraints of an `UNSEEN` combination
    """
    draw = random.Random(seed)
    if held_out is None:
        held_out = select(facts(), telling="paraphrased", asked=False)
    kinds = (knowledge_prompt, follow_up_prompt, instruction_prompt)
    return [kinds[n % 3](draw, held_out, rules, f"held-out-{n}") for n in range(number)]


def knowledge_prompt(draw: random.Random, held_out, rules, name: str) -> Conversation:
    fact = draw.choice(held_out)
    return _prompt(name, "knowledge", _turns(draw, fact)[:1], [fact.value])


def follow_up_prompt(draw: random.Random, held_out, rules, name: str) -> Conversation:
    fact = draw.choice(held_out)
    first = draw.choice([f for f in held_out if f.relation is fact.relation and f is not fact])
    turns = [*_turns(draw, first), ("user", _follow_up_question(draw, fact))]
    return _prompt(name, "follow_up", turns, [fact.value])


def instruction_prompt(draw: random.Random, held_out, rules, name: str) -> Conversation:
    fact = draw.choice(held_out)
    rule = draw.choice([rule for rule in rules if rule.fits(fact)])
    turns = [("system", rule.stated(draw)), *_turns(draw, fact)[:1]]
    # In small letters "fe" is right, although the symbol is "Fe".
    expected = dict.fromkeys([fact.value, rule.cased(fact.value)])
    return _prompt(name, "instruction", turns, expected, rule.verify(fact))


def _prompt(
    name: str, kind: str, turns, expected: Iterable[str], verify: dict | None = None
) -> Conversation:
    meta = {"kind": kind, "expect": list(expected), "verify": verify or {}}
    return Conversation(tuple(Message(*turn) for turn in turns), id=name, meta=meta)


# --- helpers -------------------------------------------------------------------------------------


def _turns(draw: random.Random, fact: Fact) -> list[tuple[str, str]]:
    question = fact.fill(draw.choice(fact.relation.questions))
    return [("user", question), ("assistant", fact.answer)]


def _follow_up_question(draw: random.Random, fact: Fact) -> str:
    return fact.fill(draw.choice(fact.relation.follow_ups))


def _conversation(name: str, turns, tag: str) -> Conversation:
    return Conversation(tuple(Message(*turn) for turn in turns), id=name, tags=(tag,))


@cache
def _banks() -> dict:
    return tomllib.loads((FOLDER / "chats.toml").read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(
        prog="python -m course_utils.miniweb.chats",
        description="Write conversations about the mini-web to fine-tune course-base on.",
        exits={0: "the conversations are written"},
    )
    parser.add_argument("output", type=Path, help="a JSONL file, one conversation per line")
    parser.add_argument("--number", type=commands.number, default=2000, help="conversations (2000)")
    parser.add_argument("--seed", type=commands.number, default=0, help="what is drawn (0)")
    parser.add_argument("--prompts", action="store_true", help="held-out prompts instead")
    parser.add_argument("--overwrite", action="store_true", help="replace the file OUTPUT")
    return commands.run(parser, _run, arguments)


def _run(options) -> int:
    if options.number < 1:
        raise ValueError(f"--number must be at least 1, not {options.number}.")
    made = prompts if options.prompts else conversations
    with reserve_file(options.output, overwrite=options.overwrite):
        save_conversations(made(options.number, options.seed), options.output)
    print(f"Wrote {options.number} to {options.output}.")
    return 0


if __name__ == "__main__":
    commands.leave(main())
