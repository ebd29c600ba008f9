"""How alike are the embedding rows of a base's special tokens? python -m benchmarks.special_rows

A token that no page of pretraining held has a row that says nothing but that. This records the
cosines between some rows of the real base, which is too large to be loaded in every lecture.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from course_utils.checkpoints import DATA, hardware, load_base

TOKENS = ("<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>", "<pad>")
TOKENS += ("<unused0>", "<unused1>", "<unused2>", "<unused3>", "▁the")


def cosines(rows: torch.Tensor) -> list[list[float]]:
    """The cosine of each row with each, from rows of shape (n, hidden)."""
    unit = F.normalize(rows.detach().float(), dim=-1)
    return [[round(value, 3) for value in row] for row in (unit @ unit.T).tolist()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.special_rows", description=__doc__)
    parser.add_argument("--base", default="gemma-3-270m")
    parser.add_argument("--output", type=Path, help="JSON (data/recorded/special_rows_BASE.json)")
    options = parser.parse_args(arguments)
    model, tokenizer = load_base(options.base)
    known = tokenizer.get_vocab()
    tokens = [token for token in TOKENS if token in known]
    ids = [known[token] for token in tokens]
    record = {
        "base": options.base,
        "command": "python -m benchmarks.special_rows",
        "hardware": hardware(),
        "tokens": tokens,
        "cosines": cosines(model.get_input_embeddings().weight[ids].cpu()),
    }
    output = options.output or DATA / "recorded" / f"special_rows_{options.base}.json"
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
