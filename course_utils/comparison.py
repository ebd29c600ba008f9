"""Base against SFT: the same prompts to both models, and what changed, with intervals.

    python -m course_utils.comparison --base gemma-3-270m --tuned runs/first

Every measure is a small function of one reply and its prompt, so that anyone can read what a row of
the table means. None of them judges whether a reply is good: they look at form, at facts that a
string can check, and at stopping.
"""

import argparse
import contextlib
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from course_utils import commands
from course_utils.conversation import Conversation, ConversationError, load_conversations
from course_utils.outputs import OutputError, rescue, reserve_file, write_text
from course_utils.replies import Reply, generate, prompt_ids
from course_utils.strict_json import JSONError, decode

PROMPTS = Path(__file__).resolve().parents[1] / "data" / "comparison_prompts.jsonl"

# --- measuring one reply -------------------------------------------------------------------------

ROLE_HEADER = re.compile(
    r"<start_of_turn>|<\|im_start\|>|<\|start_header_id\|>|\[INST\]"
    # A role and a colon at the start of a line, perhaps as a heading or in bold.
    r"|^[\s#>*_]*(system|user|human|assistant|model|bot|question|answer|q|a)[\s*_]*:"
    # A role as the whole line, or one of the headings of instruction data.
    r"|^(system|user|human|assistant|model)\s*$|^#+ *(instruction|response)\b",
    re.I | re.M,
)

LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+", re.M)
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_`]*(?=\s|$)")
# What ends no sentence: initials, abbreviations, and the number in front of a list item ...
NO_END = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|e\.g|i\.e|vs|cf|approx|Mr|Mrs|Ms|Dr|Prof|St|Fig)\.$|^\W*\d+\.$"
)
# ... and what ends one only where no small letter follows.
MAYBE_END = re.compile(r"(?:\betc\.|\b[ap]\.m\.|\bU\.S\.|\.\.\.|…|[.!?][\"'”’)\]]+)$")


def sentences(text: str) -> list[str]:
    """The sentences of a text: each ends with . ! or ? before white space, or with its line."""
    found = []
    for line in text.splitlines():
        start = 0
        for end in (match.end() for match in SENTENCE_END.finditer(line)):
            sentence, rest = line[start:end], line[end:].lstrip()
            if rest and (
                NO_END.search(sentence) or (MAYBE_END.search(sentence) and rest[0].islower())
            ):
                continue
            found.append(sentence)
            start = end
        found.append(line[start:])
    return [sentence.strip() for sentence in found if re.search(r"\w", sentence)]


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"[^\W_]+(?:['’.,][^\W_]+)*", text.lower())


def holds_role_header(text: str) -> bool:
    """Does the reply open a turn of its own: a template's marker, or a line such as `User:`?"""
    return bool(ROLE_HEADER.search(text))


def mentions(text: str, expected: Sequence[str]) -> bool:
    """Does one of the expected strings stand in the text, not inside a word or another number?

    Case does not matter, except for names of one or two letters: "Au" is gold, "au" is not.
    """
    return any(
        re.search(
            rf"(?<!\w)(?<!\d[.,]){re.escape(e)}(?!\w)(?![.,]\d)", text, 0 if len(e) < 3 else re.I
        )
        for e in expected
    )


def is_direct(text: str, question: str) -> bool:
    """Does the reply begin with a statement: no question, no role header, not the prompt again?

    The prompt again is a first sentence whose words stand side by side in the prompt (all of it,
    or at least four words), or one that begins as an instruction does: "Name the capital of ..."
    """
    first = next(iter(sentences(text)), "")
    if not first or _asks(first) or ROLE_HEADER.match(first):
        return False
    own, asked = words(first), words(question)
    if own == asked or (len(own) >= 4 and _side_by_side(own, asked)):
        return False
    return question.rstrip().endswith("?") or len(asked) < 3 or own[:3] != asked[:3]


def _asks(sentence: str) -> bool:
    return sentence.rstrip("\"'”’)]*_` ").endswith("?")


def _side_by_side(part: list[str], whole: list[str]) -> bool:
    places = range(len(whole) - len(part) + 1)
    return any(whole[start : start + len(part)] == part for start in places)


def repetition(text: str, n: int = 4) -> float:
    """The share of word n-grams that already occurred earlier in the reply, from 0 to 1."""
    found = words(text)
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_cleanly(text: str) -> bool:
    """Does the text end like finished writing: with . ! ? or a closing mark?"""
    return bool(re.search(r"[.!?…)\"'`”’*\]]$", text.strip()))


def _length(text: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in text.split())


# What a prompt's "verify" may ask for: name -> (reply, value) -> is it so?
VERIFIERS: dict[str, Callable[[str, object], bool]] = {
    "sentences": lambda text, n: len(sentences(text)) == n,
    "max_sentences": lambda text, n: 0 < len(sentences(text)) <= n,
    "words": lambda text, n: _length(text) == n,
    "max_words": lambda text, n: 0 < _length(text) <= n,
    "list_items": lambda text, n: len(LIST_ITEM.findall(text)) == n,
    "upper": lambda text, _: text.isupper(),
    "lower": lambda text, _: text.islower(),
    "no_digits": lambda text, _: _length(text) > 0 and not re.search(r"\d", text),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "contains": lambda text, parts: all(part.lower() in text.lower() for part in parts),
}
# Decided by what is there already; all others speak of the whole reply.
DECIDED_EARLY = ("starts_with", "contains")


def obeys(text: str, verify: dict, *, finished: bool = True) -> bool:
    """Does the reply meet every constraint of the prompt?

    A reply that was cut off (not `finished`) meets none that speaks of the whole of it: without a
    full stop two hundred tokens would count as the one sentence that was asked for.
    """
    unknown = set(verify) - set(VERIFIERS)
    if unknown:
        raise ConversationError(
            f"unknown constraint {sorted(unknown)}: choose from {', '.join(VERIFIERS)}."
        )
    return all(
        (finished or name in DECIDED_EARLY) and VERIFIERS[name](text, value)
        for name, value in verify.items()
    )


@dataclass(frozen=True)
class Measure:
    """One row of the table. `of` gives a number per reply, or None where it does not apply."""

    name: str
    what: str
    of: Callable[[Conversation, Reply], float | None]
    share: bool = True


def _expected(prompt: Conversation, reply: Reply) -> float | None:
    expected = prompt.meta.get("expect")
    return mentions(reply.text, expected) if expected else None


def _expected_at_once(prompt: Conversation, reply: Reply) -> float | None:
    expected = prompt.meta.get("expect")
    if not expected:
        return None
    first = next(iter(sentences(reply.text)), "")
    # A question that happens to hold the fact is no answer, and an endless sentence none at once.
    return not _asks(first) and mentions(" ".join(first.split()[:30]), expected)


def _obeyed(prompt: Conversation, reply: Reply) -> float | None:
    verify = prompt.meta.get("verify")
    return obeys(reply.text, verify, finished=reply.stopped) if verify else None


MEASURES = (
    Measure("stops", "ends its reply by itself", lambda p, r: r.stopped),
    Measure(
        "no role header", "opens no turn of its own", lambda p, r: not holds_role_header(r.text)
    ),
    Measure(
        "direct",
        "begins with a statement, not a question, a role or the prompt again",
        lambda p, r: is_direct(r.text, p[-1].content),
    ),
    Measure("obeys", "meets every constraint it was given", _obeyed),
    Measure("knows", "the expected fact stands anywhere in the reply", _expected),
    Measure(
        "knows at once",
        "the expected fact stands in the first sentence, within 30 words",
        _expected_at_once,
    ),
    Measure(
        "ends cleanly",
        "stops by itself, where a sentence ends",
        lambda p, r: r.stopped and ends_cleanly(r.text),
    ),
    Measure(
        "repetition", "share of 4-word runs said before", lambda p, r: repetition(r.text), False
    ),
    Measure("words", "length of the reply", lambda p, r: float(len(r.text.split())), False),
)


# --- intervals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` replies with a 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927): honest near 0 and 1 and for small n."""
    if n == 0:
        raise ValueError("no trials: an interval needs at least one.")
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and at n of n an end is the share itself, which rounding would miss by a hair.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the mean over resamples of `values` (Efron 1979)."""
    generator = random.Random(seed)
    n = len(values)
    means = sorted(sum(generator.choices(values, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def estimate(measure: Measure, prompts: Sequence[Conversation], replies: Sequence[Reply]):
    """The `Estimate` of a measure, or None if it applies to none of the prompts."""
    values = [measure.of(p, r) for p, r in zip(prompts, replies, strict=True)]
    values = [float(value) for value in values if value is not None]
    if not values:
        return None
    mean = sum(values) / len(values)
    interval = wilson(round(sum(values)), len(values)) if measure.share else bootstrap(values)
    return Estimate(mean, *interval, len(values))


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """One column of the table: which model, and whether the prompt went through the template."""

    model: str
    template: bool

    def __str__(self):
        return f"{self.model}, {'template' if self.template else 'no template'}"


def measure_all(prompts: Sequence[Conversation], replies: dict[Condition, Sequence[Reply]]) -> dict:
    """{measure name: {condition as text: Estimate or None}} for every measure and condition."""
    return {
        measure.name: {str(c): estimate(measure, prompts, r) for c, r in replies.items()}
        for measure in MEASURES
    }


def show_estimate(measure: Measure, found: Estimate | None) -> str:
    """A cell of the table: `93% (86–97%)` for a share, `41 (35–48)` or `0.12 (…)` for a mean."""
    if found is None:
        return "–"
    if measure.share:
        return f"{found.mean:.0%} ({found.low:.0%}–{found.high:.0%})".replace("%–", "–")
    digits = 0 if found.high >= 10 else 2
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"


def table_rows(estimates: dict) -> list[dict[str, str]]:
    """The comparison as rows of text, a measure each, for printing or `show.table`."""
    return [
        {"measure": measure.name}
        | {name: show_estimate(measure, e) for name, e in estimates[measure.name].items()}
        | {"what it is": measure.what}
        for measure in MEASURES
    ]


def format_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of equal keys as aligned plain text."""
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = [[c.ljust(widths[c]) for c in columns], ["-" * widths[c] for c in columns]]
    lines += [[row[c].ljust(widths[c]) for c in columns] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def compare(
    base,
    tuned,
    tokenizer,
    prompts: Sequence[Conversation],
    *,
    without_template: bool = True,
    max_new_tokens: int = 200,
    batch_size: int = 20,
    on_reply: Callable[[Reply], None] = lambda reply: None,
) -> dict[Condition, list[Reply]]:
    """Greedy replies of both models to the same prompts, with and without the chat template.

    `tokenizer` is the tuned checkpoint's: it has the template. Both models get the same ids and the
    same stop tokens. The models may be loaded one after the other: pass functions without
    arguments that return them.
    """
    # All ids first: a prompt that cannot be sent is refused before minutes of generating.
    ids = {
        template: [prompt_ids(prompt, tokenizer, template=template) for prompt in prompts]
        for template in ((False, True) if without_template else (True,))
    }
    largest = max((number for rows in ids.values() for row in rows for number in row), default=0)
    replies = {}
    for name, source in (("base", base), ("SFT", tuned)):
        model = source() if callable(source) and not hasattr(source, "generate") else source
        if largest >= (rows := model.get_input_embeddings().num_embeddings):
            raise ValueError(
                f"the tokenizer gives the id {largest}, but the {name} model's embedding has "
                f"{rows} rows: base and tuned model do not belong together."
            )
        for template, sent in ids.items():
            replies[Condition(name, template)] = generate(
                model,
                tokenizer,
                sent,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_reply=on_reply,
            )
        del model
    return replies


def default_prompts(base: str) -> list[Conversation]:
    """The course's held-out prompts for a base: course-base knows nothing but its mini-web."""
    if base == "course-base":
        from course_utils.miniweb import prompts

        return prompts()
    return load_conversations(PROMPTS)


def check_prompts(prompts: Sequence[Conversation]) -> Sequence[Conversation]:
    """Return the prompts, or raise `ConversationError` for one that could not be measured."""
    if not prompts:
        raise ConversationError("no prompts to compare on.")
    for prompt in prompts:
        name = f"prompt {prompt.id!r}"
        if prompt.roles[-1] == "assistant":
            raise ConversationError(
                f"{name} ends with an assistant turn: there is nothing to reply to. Drop that turn."
            )
        expected, verify = prompt.meta.get("expect") or [], prompt.meta.get("verify") or {}
        if not isinstance(expected, list) or not all(isinstance(e, str) for e in expected):
            raise ConversationError(
                f'{name}: "expect" is {expected!r}. Write a list of texts, such as ["Tokyo"].'
            )
        if not isinstance(verify, dict):
            raise ConversationError(
                f'{name}: "verify" is {verify!r}. Write an object, such as {{"sentences": 1}}.'
            )
        for constraint, value in verify.items():
            if constraint not in VERIFIERS:
                raise ConversationError(
                    f"{name}: unknown constraint {constraint!r}. "
                    f"Choose from {', '.join(VERIFIERS)}."
                )
            if not _fits(constraint, value):
                raise ConversationError(f"{name}: {constraint!r} cannot be {value!r}.")
    return prompts


def _fits(constraint: str, value) -> bool:
    if constraint in ("upper", "lower", "no_digits"):
        return value is True
    if constraint in ("starts_with", "ends_with"):
        return isinstance(value, str)
    if constraint == "contains":
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    return type(value) is int


def as_record(prompts: Sequence[Conversation], replies: dict[Condition, Sequence[Reply]]) -> dict:
    """Table and replies as plain data, for JSON."""
    estimates = measure_all(prompts, replies)
    return {
        "table": {
            name: {c: asdict(e) if e else None for c, e in row.items()}
            for name, row in estimates.items()
        },
        "replies": [
            {
                "id": prompt.id,
                "messages": prompt.as_messages(),
                **{
                    str(c): {
                        "text": r[i].text,
                        "tokens": len(r[i].ids),
                        "stopped": r[i].stopped,
                    }
                    for c, r in replies.items()
                },
            }
            for i, prompt in enumerate(prompts)
        ],
    }


def base_of(tuned: Path) -> str | None:
    """The base that a checkpoint of `course_utils.sft` was made from, or None if it does not say.

    Raises `ConversationError` for an sft.json that is not what `course_utils.sft` writes.
    """
    path = tuned / "sft.json"
    if not path.exists():
        return None
    try:
        record = decode(commands.check_input(path).read_text("utf-8"))
    except (UnicodeDecodeError, JSONError) as error:
        record = error
    base = record.get("base") if isinstance(record, dict) else record
    if base is not None and not (isinstance(base, str) and base.strip()):
        raise ConversationError(
            f'{path} is not the record of a run: it should be an object whose "base" is a name. '
            "Name the base with --base."
        )
    return base


def _arguments() -> argparse.ArgumentParser:
    parser = commands.Parser(
        prog="python -m course_utils.comparison",
        description="Put the same prompts to a base model and its fine-tuned version.",
        exits={0: "compared", 1: "the run failed; if there are results, the message says where"},
    )
    parser.add_argument(
        "--base",
        type=commands.name,
        help="a named base, a folder or a Hub id (default: the one that was tuned)",
    )
    parser.add_argument("--tuned", required=True, type=Path, help="folder of the fine-tuned model")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="JSONL (default: the course's; for course-base, questions about its mini-web)",
    )
    parser.add_argument("--limit", type=commands.number, help="use only the first N prompts")
    parser.add_argument("--max-new-tokens", type=commands.number, default=200, help="(200)")
    parser.add_argument("--batch-size", type=commands.number, default=20, help="(20)")
    parser.add_argument(
        "--template-only", action="store_true", help="leave out the prompts without a template"
    )
    parser.add_argument("--output", type=Path, help="write table and replies here as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return commands.run(_arguments(), _run, arguments, failing="the comparison failed")


def _run(options) -> int:
    from course_utils.checkpoints import CheckpointError
    from course_utils.checkpoints import pick_base as pick
    from course_utils.sft import base_folder

    if not options.tuned.is_dir():
        raise CheckpointError(
            f"{options.tuned}: no such folder. Make one with python -m course_utils.sft."
        )
    for name in ("limit", "max_new_tokens", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    tuned_from = None if options.base else base_of(options.tuned)
    base, why = (
        (tuned_from, f"{tuned_from}, because {options.tuned} was made from it.")
        if tuned_from
        else pick(options.base)
    )
    if options.prompts:
        commands.check_input(options.prompts)
    inputs = [path for path in (options.tuned, options.prompts, base_folder(base)) if path]
    with contextlib.ExitStack() as held:
        if options.output:
            place = {"overwrite": options.overwrite, "inputs": inputs, "parents": True}
            held.enter_context(reserve_file(options.output, **place))
        return _compare(options, base, why)


def _compare(options, base: str, why: str) -> int:
    from tqdm import tqdm

    from course_utils.checkpoints import hardware, load_base, load_checkpoint

    prompts = load_conversations(options.prompts) if options.prompts else default_prompts(base)
    prompts = check_prompts(prompts[: options.limit])
    print(f"Base: {why}")
    tuned_model, tokenizer = load_checkpoint(options.tuned)
    conditions = 2 if options.template_only else 4
    with commands.working(), tqdm(total=conditions * len(prompts), unit="reply") as bar:
        replies = compare(
            lambda: load_base(base)[0],
            tuned_model,
            tokenizer,
            prompts,
            without_template=not options.template_only,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            on_reply=lambda reply: bar.update(),
        )
    record = {"base": base, "tuned": str(options.tuned), "hardware": hardware()}
    record |= {"max_new_tokens": options.max_new_tokens} | as_record(prompts, replies)
    print(f"{len(prompts)} prompts, greedy, at most {options.max_new_tokens} new tokens:\n")
    print(format_table(table_rows(measure_all(prompts, replies))))
    if options.output:
        _save(record, options)
        print(f"\nTable and replies: {options.output}")
    return 0


def _save(record: dict, options) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    try:
        write_text(options.output, text, overwrite=options.overwrite)
    except (OSError, OutputError) as error:
        kept = rescue("comparison.json", lambda path: write_text(path, text))
        where = (
            f"Table and replies are in {kept} instead."
            if kept
            else "There was no room for them elsewhere, either: the replies are lost."
        )
        raise commands.Failed(
            f"{options.output} could not be written ({commands.sentence(error).rstrip('.')}). "
            f"{where}"
        ) from error


if __name__ == "__main__":
    commands.leave(main())
