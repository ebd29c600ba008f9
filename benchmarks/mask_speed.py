"""How fast masks are made: python -m benchmarks.mask_speed [--output FILE]

Every path turns the same conversations into ids and labels. The unit is what any path has to pay:
`encode_batch` of the rendered texts, ids as lists. In each round every path runs once, in turn, and
its time is divided by the time that the same round's `encode_batch` took for as many conversations.
Making conversations, loading tokenizers and a first run on other conversations are not timed. Each
template has a process of its own, so that nothing slows down what comes after it.

Paths that need the `{% generation %}` tag run on TRL's training templates, and so does the course,
so that ids and labels can be compared. The template as published is measured for the course alone:
where it rewrites history, there is a sample for each reply, and more tokens than in the unit.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.mask_libraries import IGNORE, Samples, _trl_template
from course_utils.conversation import Conversation, from_record
from course_utils.encoding import encoder_of
from course_utils.masking import (
    MaskError,
    Options,
    character_mask,
    samples_of,
    spans_by_rerendering,
    token_labels,
)
from course_utils.tokenizers import TokenizerError, encode, load_tokenizer

DATA = Path(__file__).parents[1] / "data"
SOURCES = (DATA / "conversations.jsonl", DATA / "curriculum" / "chat.jsonl")
LENGTHS = (25, 50, 100, 200, 400)  # messages, for the scaling


@dataclass(frozen=True)
class Setting:
    """A tokenizer of the course, a file of TRL's templates, and what else can run on them."""

    tokenizer: str
    template: str
    renderer: str | None = None
    only_course: bool = False


SETTINGS = (
    Setting("qwen3", "qwen3_training", "Qwen3RendererConfig"),
    Setting("qwen3", "qwen3", only_course=True),
    Setting("llama3_1", "llama3_training", "Llama3RendererConfig"),
    Setting("llama3_1", "llama3_1", only_course=True),
    Setting("gemma3", "gemma3_training"),
)


# --- conversations --------------------------------------------------------------------------------


class Writer:
    """Writes conversations out of the turns of real ones.

    turns: role -> texts, for system, user and assistant
    """

    def __init__(self, records: list[dict], seed: int):
        self.random = random.Random(seed)
        self.turns = {"system": [], "user": [], "assistant": []}
        for record in records:
            for message in record["messages"]:
                if message["role"] in self.turns and message["content"].strip():
                    self.turns[message["role"]].append(message["content"].strip())

    def write(self, messages: int, characters: int) -> dict:
        """A conversation; an odd number of messages begins with a system text."""
        turns = [("system", self._one("system"))] if messages % 2 else []
        each = characters * 2 // messages
        while len(turns) < messages:
            question = self._one("user")
            answer = self._one("assistant")
            while len(question) + len(answer) < each:
                answer += "\n\n" + self._one("assistant")
            turns += [("user", question), ("assistant", answer)]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def ordinary(self) -> dict:
        """2 to 20 messages, with or without a system text; 1,000 tokens on the average."""
        messages = 2 * self.random.randint(1, 10) + self.random.randint(0, 1)
        return self.write(messages, self.random.randint(1000, 4500))

    def _one(self, role: str) -> str:
        return self.random.choice(self.turns[role])


def read_records(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


# --- the paths ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a path is given. The texts are the rendered conversations."""

    tokenizer: object
    records: list[dict]
    chats: list[Conversation]
    texts: list[str]

    def first(self, count: int) -> "Work":
        return Work(self.tokenizer, self.records[:count], self.chats[:count], self.texts[:count])


def work_of(tokenizer, records: list[dict]) -> Work:
    chats = [from_record(record) for record in records]
    texts = [
        tokenizer.apply_chat_template(r["messages"], tools=r.get("tools"), tokenize=False)
        for r in records
    ]
    return Work(tokenizer, records, chats, texts)


def encode_batch(work: Work) -> list[list[int]]:
    found = work.tokenizer.backend_tokenizer.encode_batch(work.texts, add_special_tokens=False)
    return [encoding.ids for encoding in found]


def course(work: Work, fast: bool) -> list[Samples]:
    made = []
    for _, samples in samples_of(work.chats, work.tokenizer, Options(fast=fast)):
        if isinstance(samples, MaskError):
            raise samples
        made.append([(sample.input_ids, sample.labels) for sample in samples])
    return made


def rerendering(work: Work) -> list[Samples]:
    """Every prefix rendered anew; a sample for each reply where the template rewrites history."""

    def sample(chat: Conversation, only_last: bool) -> tuple[list[int], list[int]]:
        rendered = spans_by_rerendering(chat, work.tokenizer, only_last=only_last)
        encoded = encode(work.tokenizer, rendered.text)
        return list(encoded.ids), token_labels(encoded, character_mask(rendered))

    made = []
    for chat in work.chats:
        try:
            made.append([sample(chat, False)])
        except MaskError:
            replies = [turn for turn, role in enumerate(chat.roles) if role == "assistant"]
            made.append([sample(chat.prefix(turn + 1), True) for turn in replies])
    return made


def _labelled(ids: list[int], mask: list) -> list[int]:
    return [number if graded else IGNORE for number, graded in zip(ids, mask, strict=True)]


MASK = {"return_dict": True, "return_assistant_tokens_mask": True}


def transformers_single(work: Work) -> list[Samples]:
    made = []
    for record in work.records:
        found = work.tokenizer.apply_chat_template(
            record["messages"], tools=record.get("tools"), **MASK
        )
        made.append([(found["input_ids"], _labelled(found["input_ids"], found["assistant_masks"]))])
    return made


def transformers_batch(work: Work) -> list[Samples]:
    """One call for all. It takes one list of tools, so a file with tools is refused."""
    if any(record.get("tools") for record in work.records):
        raise ValueError("one call takes one list of tools for all conversations")
    found = work.tokenizer.apply_chat_template([r["messages"] for r in work.records], **MASK)
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return [[(ids, _labelled(ids, mask))] for ids, mask in pairs]


def trl(work: Work):
    """SFTTrainer's own preparation, `datasets.map` and all; no model, for it needs none."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    rows = [{"messages": record["messages"]} for record in work.records]
    if any(record.get("tools") for record in work.records):
        for row, record in zip(rows, work.records, strict=True):
            row["tools"] = json.dumps(record.get("tools") or [])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_length=None,
            shuffle_dataset=False,
            assistant_only_loss=True,
        )
        trainer = types.SimpleNamespace(chat_template=None, completion_only_loss=False)
        dataset = datasets.Dataset.from_list(rows)
        start = time.perf_counter()
        prepared = SFTTrainer._prepare_dataset(
            trainer, dataset, work.tokenizer, config, False, None, "train"
        )
        seconds = time.perf_counter() - start
    # Reading the rows back is not part of the preparation.
    return Timed([[(row["input_ids"], row["labels"])] for row in prepared], seconds)


def renderers_samples(work: Work, config: str) -> list[Samples]:
    import renderers

    renderer = renderers.create_renderer(work.tokenizer, getattr(renderers, config)())
    made = []
    for record in work.records:
        found = renderers.build_training_sample(
            renderer, record["messages"], tools=record.get("tools")
        )
        ids = list(found.token_ids)
        made.append([(ids, _labelled(ids, found.loss_mask))])
    return made


@dataclass(frozen=True)
class Timed:
    """What a path made, where only a part of its time counts."""

    made: list[Samples]
    seconds: float


def paths(setting: Setting) -> dict[str, tuple[Callable[[Work], object], float]]:
    """Name -> the path, and the share of the conversations that it is given."""
    found = {
        "encode_batch": (encode_batch, 1.0),
        "course": (partial(course, fast=True), 1.0),
        "course, exact": (partial(course, fast=False), 1.0),
    }
    if setting.only_course:
        return found
    found |= {
        "transformers, one by one": (transformers_single, 1.0),
        "transformers, one call": (transformers_batch, 1.0),
        "TRL": (trl, 1.0),
    }
    if setting.renderer:
        found["renderers"] = (partial(renderers_samples, config=setting.renderer), 1.0)
    return found | {"prefixes rendered anew": (rerendering, 0.1)}


# --- measuring ------------------------------------------------------------------------------------


def timed(run: Callable[[Work], object], work: Work) -> tuple[float, list]:
    start = time.perf_counter()
    made = run(work)
    seconds = time.perf_counter() - start
    return (made.seconds, made.made) if isinstance(made, Timed) else (seconds, made)


def measure(setting: Setting, work: Work, other: Work, rounds: int) -> dict:
    """Each path's seconds in each round, its ratios, tokens/s, and how its samples differ."""
    running, left_out = {}, {}
    for name, (run, share) in paths(setting).items():
        try:
            run(other)
            running[name] = (run, work.first(max(1, round(share * len(work.chats)))))
        except Exception as error:  # whatever a library raises says why it does not run
            left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:150]
    if "encode_batch" not in running or "course" not in running:
        raise RuntimeError(f"{setting.tokenizer}, {setting.template}: {left_out}")
    seconds, made = {name: [] for name in running}, {}
    units = []
    for _ in range(rounds):
        for name, (run, part) in running.items():
            taken, made[name] = timed(run, part)
            seconds[name].append(taken)
        units.append(seconds["encode_batch"][-1])
    unit_ids = made.pop("encode_batch")
    unit_tokens = [len(ids) for ids in unit_ids]
    results = {}
    for name, (_, part) in running.items():
        count = len(part.chats)
        # A part is measured by its tokens: the conversations are not of one length.
        scale = sum(unit_tokens) / sum(unit_tokens[:count])
        ratios = [s * scale / unit for s, unit in zip(seconds[name], units, strict=True)]
        samples = made.get(name)
        tokens = sum(len(ids) for its in samples for ids, _ in its) if samples else sum(unit_tokens)
        results[name] = {
            "conversations": count,
            "seconds": [round(s, 4) for s in seconds[name]],
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "tokens_per_second": round(tokens / statistics.median(seconds[name])),
            "samples": sum(map(len, samples)) if samples else count,
            "tokens": tokens,
        }
        if samples and name != "course":
            results[name]["against_course"] = differences(
                made["course"][:count], samples, work.tokenizer
            )
    return {"paths": results, "left_out": left_out}


def differences(ours: list[Samples], theirs: list[Samples], tokenizer) -> dict:
    """In how many conversations samples, ids or labels differ, and which texts only one grades."""
    counts, only = Counter(), {"course": Counter(), "other": Counter()}
    for mine, other in zip(ours, theirs, strict=True):
        if mine == other:
            counts["identical"] += 1
        elif len(mine) != len(other):
            counts["other_samples"] += 1
        elif [ids for ids, _ in mine] != [ids for ids, _ in other]:
            counts["other_ids"] += 1
        else:
            counts["other_labels"] += 1
            for (ids, labels), (_, others) in zip(mine, other, strict=True):
                for who, left, right in (("course", labels, others), ("other", others, labels)):
                    for run in _runs(ids, left, right):
                        only[who][tokenizer.decode(run)[:40]] += 1
    return dict(counts) | {
        f"graded_by_{who}_only": dict(texts.most_common(3)) for who, texts in only.items() if texts
    }


def _runs(ids: list[int], graded: list[int], ungraded: list[int]) -> list[list[int]]:
    runs, inside = [], False
    for number, yes, no in zip(ids, graded, ungraded, strict=True):
        differs = yes != IGNORE and no == IGNORE
        if differs and not inside:
            runs.append([])
        if differs:
            runs[-1].append(number)
        inside = differs
    return runs


def first_samples(setting: Setting, records: list[dict]) -> dict:
    """Seconds before the first sample: the encoder's self-check, and a plan for each new shape."""
    tokenizer = tokenizer_for(setting)  # a new one, for which nothing has been made yet
    chats = [from_record(record) for record in records]
    start = time.perf_counter()
    encoder = encoder_of(tokenizer)
    checked = time.perf_counter()
    course(Work(tokenizer, [], chats[:1], []), True)
    first = time.perf_counter()
    seen, plans = {tuple(chats[0].roles)}, []
    for chat in chats[1:]:
        if tuple(chat.roles) not in seen:
            seen.add(tuple(chat.roles))
            begun = time.perf_counter()
            course(Work(tokenizer, [], [chat], []), True)
            plans.append(time.perf_counter() - begun)
    return {
        "self_check": round(checked - start, 3),
        "proven_fast_path": encoder.fast is not None,
        "first_conversation": round(first - checked, 4),
        "new_shapes": len(plans),
        "median_new_shape": round(statistics.median(plans), 4) if plans else None,
    }


def scaling(setting: Setting, writer: Writer, count: int) -> list[dict]:
    """Microseconds per token for long conversations: with the plan yet to be made, and after."""
    tokenizer = tokenizer_for(setting)
    course(Work(tokenizer, [], [from_record(writer.write(4, 400))], []), True)
    rows = []
    for messages in LENGTHS:
        chats = [from_record(writer.write(messages, messages * 200)) for _ in range(count)]
        work = Work(tokenizer, [], chats, [])
        first, _ = timed(partial(course, fast=True), work.first(1))
        runs = [timed(partial(course, fast=True), work) for _ in range(3)]
        tokens = sum(len(ids) for samples in runs[0][1] for ids, _ in samples)
        rows.append(
            {
                "messages": messages,
                "conversations": count,
                "tokens": tokens,
                "samples": sum(map(len, runs[0][1])),
                "first_seconds": round(first, 4),
                "microseconds_per_token": round(min(s for s, _ in runs) / tokens * 1e6, 4),
            }
        )
    return rows


def tokenizer_for(setting: Setting):
    tokenizer = copy.deepcopy(load_tokenizer(setting.tokenizer))
    tokenizer.chat_template = _trl_template(setting.template)
    return tokenizer


# --- the report -----------------------------------------------------------------------------------


def environment(arguments: list[str]) -> dict:
    versions = {}
    for package in ("transformers", "tokenizers", "tiktoken", "trl", "datasets", "renderers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": " ".join(["python -m benchmarks.mask_speed", *arguments]),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": {
            name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
        },
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(name: str, result: dict) -> str:
    lines = [f"\n{name}", f"{'':26}{'ratio':>8}{'min..max':>16}{'tokens/s':>12}{'samples':>9}"]
    for path, row in result["paths"].items():
        low, high = row["ratio_range"]
        spread = f"{low:.2f}..{high:.2f}"
        lines.append(
            f"{path:26}{row['ratio']:8.2f}{spread:>16}{row['tokens_per_second']:12,}"
            f"{row['samples']:9,}"
        )
    for path, row in result["paths"].items():
        if "against_course" in row:
            lines.append(f"  {path} against course: {row['against_course']}")
        if row["conversations"] < result["conversations"]:
            lines.append(f"  {path}: {row['conversations']} conversations, scaled by tokens")
    lines += [f"  left out: {path}: {why}" for path, why in result["left_out"].items()]
    lines.append(f"  before the first sample, seconds: {result['first']}")
    lines += [
        f"  {row['messages']} messages: {row['microseconds_per_token']:.3f} microseconds a token; "
        f"first conversation {row['first_seconds']:.3f} s ({row['samples']} samples)"
        for row in result.get("scaling", [])
    ]
    return "\n".join(lines)


def results_of(setting: Setting, chosen: argparse.Namespace) -> dict:
    writer = Writer([row for path in SOURCES for row in read_records(path)], chosen.seed)
    if chosen.data:
        records = read_records(chosen.data)[: chosen.conversations]
    else:
        records = [writer.ordinary() for _ in range(chosen.conversations)]
    others = [writer.ordinary() for _ in range(max(20, chosen.conversations // 10))]
    first = first_samples(setting, others)
    tokenizer = tokenizer_for(setting)
    result = measure(
        setting, work_of(tokenizer, records), work_of(tokenizer, others), chosen.rounds
    )
    result |= {"conversations": len(records), "first": first}
    if not setting.only_course:
        result["scaling"] = scaling(setting, writer, chosen.long)
    return result


def main(arguments: list[str]) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=20, help="conversations of each length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="JSONL of conversations, instead of made ones")
    parser.add_argument("--templates", nargs="*", help="only these of TRL's template files")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    chosen = parser.parse_args(arguments)
    report = environment(arguments) | {"results": {}}
    for setting in SETTINGS:
        if chosen.templates and setting.template not in chosen.templates:
            continue
        name = f"{setting.tokenizer}, {setting.template}.jinja"
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                result = process.submit(results_of, setting, chosen).result()
        except (TokenizerError, NotImplementedError) as error:
            print(f"\n{name}: left out: {error}", flush=True)
            continue
        report["results"][name] = result
        print(table(name, result), flush=True)
    if chosen.output:
        chosen.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
