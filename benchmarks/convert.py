"""Convert a large ShareGPT file: python -m benchmarks.convert --megabytes 1000

Writes a synthetic file into a temporary folder, converts it in a fresh process, and states that
process's peak memory and the throughput. The same is done with a file of a hundredth of the size:
if memory is bounded, both peaks are about the same.
"""

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ["water", "boils", "at", "one", "hundred", "degrees", "the", "cat", "sleeps", "on"]
WORDS += ["水", "naïve", "🙂", "\n\n", "-", "list", "a", "plan"]
# Runs in a process of its own, so that its peak memory is the conversion's alone.
CHILD = """
import json, resource, sys
from course_utils.sources.report import convert_file, timed
source, output, quiet = sys.argv[1:]
report, seconds = timed(convert_file, source, "sharegpt", output, progress=quiet == "0")
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"seconds": seconds, "peak": peak, "report": report.as_dict()["sharegpt"]}))
"""


def write_sharegpt(path: Path, size: int, seed: int = 0) -> int:
    """Write about `size` bytes of chats, one in fifty of them broken; return how many are broken.

    The texts are drawn once and put together anew for each record, so that writing is fast.
    """
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 200))) for _ in range(2000)]
    broken = written = number = 0
    with path.open("wb") as file:
        while written < size:
            number += 1
            turns = []
            for _ in range(draw.randint(1, 4)):
                turns.append({"from": "human", "value": draw.choice(texts)})
                turns.append({"from": "gpt", "value": draw.choice(texts)})
            if number % 50 == 0:
                broken += 1
                turns[-1]["from"] = "narrator"
            record = {"id": f"chat_{number}", "conversations": turns}
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            written += file.write(line)
    return broken


def measure(folder: Path, size: int, *, quiet: bool = False) -> dict:
    """Convert a file of `size` bytes; the file and its conversion are removed again."""
    path, output = folder / f"{size}.jsonl", folder / f"{size}.canonical.jsonl"
    broken = write_sharegpt(path, size)
    command = [sys.executable, "-c", CHILD, str(path), str(output), str(int(quiet))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    report = found["report"]
    assert report["reasons"] == ({"unknown role": broken} if broken else {}), report
    assert report["conversations"] + broken == report["records"], report
    size = path.stat().st_size
    path.unlink()
    output.unlink()
    return {
        "megabytes": round(size / 1e6, 1),
        "records": report["records"],
        "rejected": report["rejected"],
        "seconds": round(found["seconds"], 1),
        "megabytes_per_second": round(size / 1e6 / found["seconds"], 1),
        "peak_memory_mib": round(found["peak"] / 2**20, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the file (1000)")
    parser.add_argument("--folder", type=Path, help="where there is room for twice the size")
    parser.add_argument("--output", type=Path, help="write what was found as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    size = int(options.megabytes * 1e6)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = [measure(Path(folder), n, quiet=options.quiet) for n in (max(1, size // 100), size)]
    for run in runs:
        print(
            f"{run['megabytes']:,.1f} MB, {run['records']:,} records: {run['seconds']:.1f} s, "
            f"{run['megabytes_per_second']:.1f} MB/s, peak {run['peak_memory_mib']:.1f} MiB"
        )
    if options.output:
        record = {
            "command": shlex.join(
                ["python", "-m", "benchmarks.convert", *(arguments or sys.argv[1:])]
            ),
            "hardware": {
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "python": platform.python_version(),
            },
            "runs": runs,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
