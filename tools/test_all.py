"""Run everything that must pass: python -m tools.test_all [PART ...]

Parts: lint, build, tests, lectures, solutions, exercises (default: all, in this order). Each is
reported with its time, and at least every minute how far it is; the output of a part that fails is
printed in full. The last line is the sum of all counts, "N passed, N failed, N skipped". Skipped
are the exercises, which ship as "not attempted yet", and what a test could not find on this
machine.

Tests and notebooks run in as many processes as there are cores, at most 3, and each of them
computes on its share of the cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("passed", "failed", "skipped")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Each process loads tokenizers and models of its own, up to 5 GB: hence the limit.
PROCESSES = min(CORES, 3)
# Threads that wait for work in a loop would take the cores from the other processes.
SHARE = {"OMP_NUM_THREADS": str(max(1, CORES // PROCESSES)), "OMP_WAIT_POLICY": "PASSIVE"}
SIGN = 30  # seconds between two signs of life


def run(*command):
    """(succeeded, output) of a Python module run in the repo root."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=SHARE | os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    output = []
    reader = threading.Thread(target=read_into, args=(output, process.stdout), daemon=True)
    reader.start()
    while reader.join(SIGN) or reader.is_alive():
        far = re.findall(r"\d+%", "".join(output[-20:]))
        print(
            f"  {far[-1] if far else 'running'} after {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return process.wait() == 0, "".join(output)


def read_into(output, stream):
    for line in stream:
        output.append(line)


def commands(*them):
    """A part made of plain commands: {name: outcome}, and the output of those that fail."""
    results = {" ".join(command): run(*command) for command in them}
    outcomes = {name: "passed" if ok else "failed" for name, (ok, _) in results.items()}
    return outcomes, "".join(output for ok, output in results.values() if not ok)


def pytest(*arguments):
    """A part made of one pytest run: {test: outcome}, and its output."""
    # A file is one process's: the cells of a notebook belong together, and so do shared fixtures.
    spread = ("-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        ok, output = run("pytest", "-q", *spread, f"--junitxml={report}", *arguments)
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
        print(part, flush=True)
        start = time.perf_counter()
        outcomes, output = PARTS[part]()
        counts = Counter(outcomes.values())
        total += counts
        print(
            f"{part:<10} {counted(counts, sorted(counts))} in {time.perf_counter() - start:.0f} s"
        )
        if counts["failed"]:
            print(output, flush=True)
    print(counted(total))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
