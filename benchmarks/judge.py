"""Masks on chat templates from anywhere, each judged from outside (`tests/judging.py`).

    python -m benchmarks.judge                          # the templates of trl, if it is installed
    python -m benchmarks.judge WHEEL_OR_FOLDER ...      # those of wheels, or of folders, as well
    python -m benchmarks.judge a.whl --processes 2 --output judge.json

Every `*.jinja` file counts. Templates that differ from trl's come without a tokenizer: they get
Qwen3's real one with the special tokens that their source names. Where there are templates called
X and X_tool_use, both are judged alone and as the named templates of one tokenizer.

For trl's templates every shape of conversation in `tests/shapes.py` is exact, refused for a reason,
or wrong; for the others, which are many, those in `FEW` are, unless `--all-shapes` is given. The
exit status is 1 if any is wrong.
"""

import argparse
import gc
import json
import multiprocessing
import os
import re
import shlex
import sys
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.append(str(TESTS))  # the judge, the conversations, the templates of trl

# Enough to meet each way in which a template has been known to break a mask.
FEW = (
    "plain",
    "system",
    "two replies",
    "reasoning",
    "reasoning in each turn",
    "inline think",
    "tool call",
    "parallel tool calls",
    "tool call with text",
    "tool call last",
    "tool call in the past",
    "tools never called",
    "fake turn",
    "reply ends with markers",
    "trailing space",
    "two assistant turns in a row",
    "empty reply",
    "user last",
    "system later",
)
TOGETHER = 12  # templates that a process takes at a time; they share a tokenizer
LONGEST_REASON = 110


@dataclass
class Item:
    """One template to judge, or the named templates of one tokenizer.

    sources: name -> source
    """

    origin: str
    name: str
    sources: dict[str, str]
    from_trl: bool = False


@dataclass
class Result:
    """What came of all shapes with one item; `wrong` says why, by shape."""

    origin: str
    name: str
    exact: int = 0
    refused: Counter = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)
    stops: Counter = field(default_factory=Counter)


# --- templates -----------------------------------------------------------------------------------


def items_of(argument: str) -> list[Item]:
    """The templates of a wheel or of a folder; exits with a sentence if there are none."""
    path = Path(argument)
    try:
        if path.is_dir():
            files = {file.stem: file.read_text("utf-8") for file in sorted(path.rglob("*.jinja"))}
            origin = path.name
        else:
            with zipfile.ZipFile(path) as wheel:
                names = sorted(name for name in wheel.namelist() if name.endswith(".jinja"))
                files = {Path(name).stem: wheel.read(name).decode("utf-8") for name in names}
            origin = " ".join(path.name.split("-")[:2])
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise SystemExit(
            f"{argument}: neither a wheel nor a folder of templates: {error}"
        ) from None
    if not files:
        raise SystemExit(f"{argument}: no *.jinja file in it.")
    items = [Item(origin, name, {"default": source}) for name, source in files.items()]
    for name, source in files.items():
        default = re.sub(r"[-_]tool_use$", "", name)
        if default != name and default in files:
            named = {"default": files[default], "tool_use": source}
            items.append(Item(origin, f"{default} + {name}", named))
    return items


def trl_items() -> list[Item]:
    from real_templates import names, templates

    if not names():
        return []
    origin = f"trl {version('trl')}"
    return [Item(origin, name, {"default": templates()[name].source}, True) for name in names()]


def tokenizer_for(item: Item):
    import real_templates

    if item.from_trl:
        return real_templates.tokenizer_for(item.name)
    guessed = real_templates.guess(*item.sources.values())
    if _last.get("guess") != guessed:  # made at some expense, so kept for the next template
        _last.clear()
        gc.collect()  # what the tokenizer before has left: some hundred megabytes
        _last.update(guess=guessed, tokenizer=real_templates.borrowed(guessed))
    tokenizer = _last["tokenizer"]
    tokenizer.chat_template = item.sources if len(item.sources) > 1 else item.sources["default"]
    return tokenizer


_last: dict = {}


# --- judging -------------------------------------------------------------------------------------


def judge(item: Item, all_shapes: bool) -> Result:
    from judging import Writer, judged
    from shapes import SHAPES

    tokenizer = tokenizer_for(item)
    writer, result = Writer(tokenizer), Result(item.origin, item.name)
    for shape in SHAPES if all_shapes or item.from_trl else FEW:
        one = judged(SHAPES[shape], tokenizer, writer)
        if one.kind == "exact":
            result.exact += 1
            result.stops.update(token or kind for kind, token in one.ends)
        elif one.kind == "refused":
            result.refused[reason(one.why)] += 1
        else:
            result.wrong[shape] = one.why
    return result


def reason(message: str) -> str:
    """A refusal without what it quotes and counts, to be counted by."""
    text = re.sub(r"^turn \d+: ", "", message)
    text = re.sub(r"the chat template refuses the roles .*", "the chat template refuses it", text)
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+", "..", text)
    text = re.split(r"[:.;(]\s|, .. is|, at character|, so ", text)[0].rstrip(".,: ")
    return text[:LONGEST_REASON]


def judge_batch(work: tuple[list[Item], bool]) -> list[Result]:
    batch, all_shapes = work
    return [judge(item, all_shapes) for item in batch]


def batches(items: list[Item]) -> list[list[Item]]:
    """Batches of items that share a tokenizer."""
    import real_templates

    groups: dict[object, list[Item]] = {}
    for item in items:
        if item.from_trl:
            key = real_templates.FAMILIES[real_templates.family_of(item.name)]
        else:
            key = real_templates.guess(*item.sources.values())
        groups.setdefault(key, []).append(item)
    return [
        group[start : start + TOGETHER]
        for group in groups.values()
        for start in range(0, len(group), TOGETHER)
    ]


def run(items: list[Item], all_shapes: bool, processes: int, show) -> list[Result]:
    """All results; `show` gets each as it comes."""
    found, work = [], [(batch, all_shapes) for batch in batches(items)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for results in pool.imap_unordered(judge_batch, work):
            for result in results:
                found.append(result)
                show(result)
    order = {(item.origin, item.name): place for place, item in enumerate(items)}
    return sorted(found, key=lambda result: order[result.origin, result.name])


# --- the record ----------------------------------------------------------------------------------


def summary(results: list[Result]) -> dict:
    """Counts of some results: templates, conversations, refusals by reason, stops."""
    refused, stops = Counter(), Counter()
    for result in results:
        refused += result.refused
        stops += result.stops
    exact = sum(result.exact for result in results)
    wrong = sum(len(result.wrong) for result in results)
    return {
        "templates": len(results),
        "templates_with_a_mask": sum(result.exact > 0 for result in results),
        "shapes": max(r.exact + r.refused.total() + len(r.wrong) for r in results),
        "conversations": exact + wrong + refused.total(),
        "exact": exact,
        "refused": refused.total(),
        "wrong": wrong,
        "refused_by_reason": dict(refused.most_common()),
        "replies_by_stop": dict(stops.most_common()),
    }


def line(result: Result) -> str:
    kinds = f"{result.exact} exact, {result.refused.total()} refused, {len(result.wrong)} wrong"
    said = f"{result.origin}: {result.name}: {kinds}"
    return "\n".join([said, *(f"    {shape}: {why}" for shape, why in result.wrong.items())])


def main(arguments: list[str] | None = None) -> int:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(
        "python -m benchmarks.judge", description="Masks on chat templates, judged from outside."
    )
    parser.add_argument("sources", nargs="*", metavar="WHEEL_OR_FOLDER")
    parser.add_argument("--all-shapes", action="store_true", help="for every template")
    parser.add_argument("--no-trl", action="store_true", help="leave out trl's templates")
    parser.add_argument("--only", metavar="WORD", help="only templates with this in their name")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where the counts go, as JSON")
    options = parser.parse_args(arguments)

    items = [] if options.no_trl else trl_items()
    items += [item for argument in options.sources for item in items_of(argument)]
    items = [item for item in items if not options.only or options.only in item.name]
    if not items:
        raise SystemExit("no templates: install trl, or name a wheel or a folder.")
    started = time.monotonic()
    results = run(
        items,
        options.all_shapes,
        options.processes,
        lambda result: print(line(result), flush=True),
    )
    by_origin: dict[str, list[Result]] = {}
    for result in results:
        by_origin.setdefault(result.origin, []).append(result)
    record = {origin: summary(of) for origin, of in by_origin.items()}
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if options.output:
        write(options, record, time.monotonic() - started, arguments)
    return int(any(counts["wrong"] for counts in record.values()))


def write(options, record: dict, seconds: float, arguments) -> None:
    from course_utils.checkpoints import hardware

    given = sys.argv[1:] if arguments is None else arguments
    # A path says where things lie on one machine; the name of the file is enough.
    given = [Path(word).name if Path(word).is_absolute() else word for word in given]
    found = {
        "command": shlex.join(["python", "-m", "benchmarks.judge", *given]),
        "hardware": hardware(),
        "seconds": round(seconds),
        "few_shapes": FEW,
        "sources": record,
    }
    options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
