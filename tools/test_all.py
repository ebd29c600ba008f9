"""Run everything that must pass: python -m tools.test_all [PART ...]

Parts: lint, build, tests, lectures, solutions, exercises (default: all, in this order). Each is
reported with its time; the output of a part that fails is printed in full. The last line is the
sum of all counts, "N passed, N failed, N skipped". Skipped are the exercises, which ship as "not
attempted yet", and what a test could not find on this machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("passed", "failed", "skipped")


def run(*command):
    """(succeeded, output) of a Python module run in the repo root."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode == 0, done.stdout


def commands(*them):
    """A part made of plain commands: {name: outcome}, and the output of those that fail."""
    results = {" ".join(command): run(*command) for command in them}
    outcomes = {name: "passed" if ok else "failed" for name, (ok, _) in results.items()}
    return outcomes, "".join(output for ok, output in results.values() if not ok)


def pytest(*arguments):
    """A part made of one pytest run: {test: outcome}, and its output."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        ok, output = run("pytest", "-q", f"--junitxml={report}", *arguments)
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        outcomes = {f"{c.get('classname')}::{c.get('name')}": outcome(c) for c in cases}
    if not outcomes or (not ok and "failed" not in outcomes.values()):
        outcomes["pytest itself"] = "failed"
    return outcomes, output


def outcome(case):
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def exercises_in(folder, wanted):
    """A part in which every exercise must come out as ``wanted``; any other outcome has failed."""
    outcomes, output = pytest("--nbval", folder)
    exercises = [name for name in outcomes if "::Exercise " in name]
    wrong = [name for name in exercises if outcomes[name] != wanted]
    if wrong or not exercises:
        output += f"\nEvery exercise in {folder}/ must be {wanted}; not so: {wrong or 'all'}\n"
        outcomes |= dict.fromkeys(wrong or [folder], "failed")
    return outcomes, output


PARTS = {
    "lint": lambda: commands(("ruff", "check", "."), ("ruff", "format", "--check", ".")),
    "build": lambda: commands(("tools.build", "--check")),
    "tests": lambda: pytest("-m", "not real", "tests"),
    "lectures": lambda: pytest("--nbval", "notebooks"),
    "solutions": lambda: exercises_in("solutions", "passed"),
    "exercises": lambda: exercises_in("exercises", "skipped"),
}


def counted(counts, words=OUTCOMES):
    return ", ".join(f"{counts[word]} {word}" for word in words)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tools.test_all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    total = Counter()
    for part in chosen:
        print(f"{part:<10}", end=" ", flush=True)
        start = time.perf_counter()
        outcomes, output = PARTS[part]()
        counts = Counter(outcomes.values())
        total += counts
        print(f"{counted(counts, sorted(counts))} in {time.perf_counter() - start:.0f} s")
        if counts["failed"]:
            print(output, flush=True)
    print(counted(total))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
