"""Convert a source's file into the canonical schema, or check a canonical file.

python -m course_utils.sources sharegpt chats.jsonl out.jsonl --rejected bad.jsonl
python -m course_utils.sources check out.jsonl
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from course_utils import commands
from course_utils.outputs import OutputError, check_file, reserve_file, write_text
from course_utils.sources.formats import SOURCES
from course_utils.sources.reading import problems
from course_utils.sources.report import convert_file, timed

ALL, SOME, NONE = 0, 1, 3
EXITS = {
    ALL: "every record was converted; `check`: nothing is wrong",
    SOME: "the output is written, but some records were rejected; `check`: something is wrong",
    NONE: "no record could be converted; no output is written",
}


def parser() -> argparse.ArgumentParser:
    sources = "\n".join(f"  {name:<18} {source.about}" for name, source in SOURCES.items())
    parser = commands.Parser(
        prog="python -m course_utils.sources",
        description=__doc__,
        epilog=f"sources:\n{sources}\n  {'check':<18} The canonical schema: every fault with its "
        "line, message and field.",
        exits=EXITS,
    )
    parser.add_argument("source", metavar="SOURCE", choices=[*SOURCES, "check"], help="see below")
    parser.add_argument("input", metavar="INPUT", type=Path, help="JSONL, or a .json array")
    parser.add_argument("output", metavar="OUTPUT", type=Path, nargs="?", help="canonical JSONL")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write the counts as JSON")
    parser.add_argument("--rejected", metavar="FILE", type=Path, help="write rejected records")
    parser.add_argument(
        "--role",
        metavar="NAME=ROLE",
        action="append",
        default=[],
        help="what a further role name of the source means, such as SYSTEM=assistant",
    )
    parser.add_argument(
        "--keep",
        metavar="FIELD",
        action="append",
        default=[],
        help="a field to put into the meta although the converter does not know it",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that OUTPUT, --report ... name"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return commands.run(parser(), _run, arguments)


def _run(options) -> int:
    if options.source == "check":
        if options.output or options.report or options.rejected:
            parser().error("check takes one file and writes none")
        return _check(commands.check_input(options.input))
    if options.output is None:
        parser().error("the output is missing")
    if not all("=" in role for role in options.role):
        parser().error("--role takes NAME=ROLE, such as SYSTEM=assistant")
    commands.check_input(options.input)
    outputs = [p for p in (options.output, options.rejected, options.report) if p is not None]
    for path in outputs:  # each by itself, then beside the others
        check_file(path, overwrite=options.overwrite, inputs=[options.input])
    with contextlib.ExitStack() as reserved:
        for path in outputs:
            others = [options.input, *(other for other in outputs if other is not path)]
            reserved.enter_context(reserve_file(path, overwrite=options.overwrite, inputs=others))
        report, seconds = timed(
            convert_file,
            options.input,
            options.source,
            options.output,
            rejected=options.rejected,
            overwrite=options.overwrite,
            roles=dict(role.rsplit("=", 1) for role in options.role),
            keep=options.keep,
            progress=not options.quiet,
        )
        print(report)
        if options.report:
            _write_report(report, options)
    size = options.input.stat().st_size / 1e6
    print(f"{size:,.1f} MB in {seconds:.1f} s: {size / seconds:,.1f} MB/s.")
    if not report.conversations:
        print("Nothing was converted; no output is written.", file=sys.stderr)
        return NONE
    print(f"Wrote {options.output}.")
    return SOME if report.rejections else ALL


def _write_report(report, options) -> None:
    text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
    try:
        write_text(options.report, text, overwrite=options.overwrite)
    except OSError as error:
        written = f"{options.output} is written" if report.conversations else "No output is written"
        raise OutputError(f"{written}, but the report is not: {commands.sentence(error)}") from None


def _check(path: Path) -> int:
    count = 0
    for problem in problems(path):
        count += 1
        print(commands.printable(str(problem)))
        if commands.unread():
            return SOME
    print(f"{path}: {count:,} faults." if count else f"{path}: nothing is wrong.")
    return SOME if count else ALL


if __name__ == "__main__":
    commands.leave(main())
