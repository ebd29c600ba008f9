"""Convert a source's file into the canonical schema, or check a canonical file.

python -m course_utils.sources sharegpt chats.jsonl out.jsonl --rejected bad.jsonl
python -m course_utils.sources check out.jsonl
"""

import argparse
import json
import sys
from pathlib import Path

from course_utils.sources.formats import SOURCES
from course_utils.sources.reading import problems
from course_utils.sources.report import convert_file, timed

ALL, SOME, USAGE, NONE = 0, 1, 2, 3
EXITS = """exit codes:
  0  every record was converted; `check`: nothing is wrong
  1  the output is written, but some records were rejected; `check`: something is wrong
  2  the command or a file is not usable; nothing is written
  3  no record could be converted; no output is written
"""


def parser() -> argparse.ArgumentParser:
    sources = "\n".join(f"  {name:<18} {source.about}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.sources",
        description=__doc__,
        epilog=f"sources:\n{sources}\n  {'check':<18} The canonical schema: every fault with its "
        f"line, message and field.\n\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: list[str] | None = None) -> int:
    commands = parser()
    options = commands.parse_args(arguments)
    if not options.input.is_file():
        return _unusable(f"{options.input}: no such file.")
    if options.source == "check":
        if options.output:
            commands.error("check takes one file")
        return _check(options.input)
    if options.output is None:
        commands.error("the output is missing")
    if not all("=" in role for role in options.role):
        commands.error("--role takes NAME=ROLE, such as SYSTEM=assistant")
    for path in (options.output, options.report, options.rejected):
        if path is not None and not path.parent.is_dir():
            return _unusable(f"{path.parent}: no such folder.")
    try:
        report, seconds = timed(
            convert_file,
            options.input,
            options.source,
            options.output,
            rejected=options.rejected,
            roles=dict(role.rsplit("=", 1) for role in options.role),
            keep=options.keep,
            progress=not options.quiet,
        )
        if options.report:
            text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n"
            options.report.write_bytes(text.encode("utf-8", "backslashreplace"))
    except (ValueError, OSError) as error:
        return _unusable(str(error))
    size = options.input.stat().st_size / 1e6
    print(_printable(str(report)))
    print(f"{size:,.1f} MB in {seconds:.1f} s: {size / seconds:,.1f} MB/s.")
    if not report.conversations:
        print("Nothing was converted; no output is written.", file=sys.stderr)
        return NONE
    print(f"Wrote {options.output}.")
    return SOME if report.rejections else ALL


def _unusable(text: str) -> int:
    print(text, file=sys.stderr)
    return USAGE


def _check(path: Path) -> int:
    count = 0
    for problem in problems(path):
        count += 1
        print(_printable(str(problem)))
    print(f"{path}: {count:,} faults." if count else f"{path}: nothing is wrong.")
    return SOME if count else ALL


def _printable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
