"""Mix the parts of the curriculum, print the table and write the conversations.

python -m course_utils.curriculum mixture.jsonl --without spelling --epochs identity=8
"""

import argparse
import contextlib
import math
from pathlib import Path

from course_utils import commands
from course_utils.conversation import save_conversations
from course_utils.curriculum.mixture import BASES, mixture
from course_utils.outputs import reserve_file

DATA = Path(__file__).resolve().parents[2] / "data"


def _epochs(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    with contextlib.suppress(ValueError):
        if math.isfinite(times := float(number)) and times <= 1000:
            return name, times
    raise argparse.ArgumentTypeError(f"{text!r} is not PART=NUMBER, such as facts=2")


def _arguments() -> argparse.ArgumentParser:
    parts = "\n".join(
        f"  for {base}: {', '.join(part.name for part in parts)}" for base, parts in BASES.items()
    )
    parser = commands.Parser(
        prog="python -m course_utils.curriculum",
        description=__doc__,
        epilog=f"parts:\n{parts}",
        exits={0: "the conversations are written"},
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="JSONL to write")
    parser.add_argument("--base", choices=list(BASES), default="course-base", help="for whom")
    parser.add_argument("--without", metavar="PART", action="append", default=[], help="leave out")
    parser.add_argument(
        "--epochs",
        metavar="PART=N",
        action="append",
        default=[],
        type=_epochs,
        help="how often a part is shown, such as identity=8 or facts=0.5",
    )
    parser.add_argument("--online", action="store_true", help="add rows from the Hub")
    parser.add_argument(
        "--seed", type=commands.number, default=0, help="the order, and which rows of a half"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file OUTPUT")
    return parser


def main(arguments: list[str] | None = None) -> int:
    return commands.run(_arguments(), _run, arguments)


def _run(options) -> int:
    inputs = [path for path in DATA.rglob("*") if path.is_file()]
    with reserve_file(options.output, overwrite=options.overwrite, inputs=inputs):
        mixed = mixture(
            BASES[options.base],
            options.seed,
            epochs=dict(options.epochs),
            without=options.without,
            online=options.online,
        )
        save_conversations(mixed, options.output)
    for notice in mixed.notices:
        print(notice)
    print(mixed)
    print(f"Wrote {len(mixed):,} conversations to {options.output}.")
    return 0


if __name__ == "__main__":
    commands.leave(main())
