"""Mix the parts of the curriculum, print the table and write the conversations.

python -m course_utils.curriculum mixture.jsonl --without spelling --epochs identity=8
"""

import argparse
import sys
from pathlib import Path

from course_utils.conversation import ConversationError, save_conversations
from course_utils.curriculum.identity import IdentityError
from course_utils.curriculum.mixture import BASES, MixtureError, mixture


def _epochs(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=NUMBER, such as facts=2") from None


def main(arguments: list[str] | None = None) -> int:
    parts = "\n".join(
        f"  for {base}: {', '.join(part.name for part in parts)}" for base, parts in BASES.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.curriculum",
        description=__doc__,
        epilog=f"parts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument("--seed", type=int, default=0, help="the order, and which rows of a half")
    options = parser.parse_args(arguments)
    try:
        mixed = mixture(
            BASES[options.base],
            options.seed,
            epochs=dict(options.epochs),
            without=options.without,
            online=options.online,
        )
        save_conversations(mixed, options.output)
    except (MixtureError, IdentityError, ConversationError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    for notice in mixed.notices:
        print(notice)
    print(mixed)
    print(f"Wrote {len(mixed):,} conversations to {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
