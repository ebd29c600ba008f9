"""Saving a fine-tuned model so that it answers and stops wherever it is loaded."""

import copy
import json
import tempfile
from pathlib import Path

from course_utils.manifests import write_manifest
from course_utils.replies import stop_ids


def save_checkpoint(
    model, tokenizer, folder: str | Path, record: dict | None = None, *, overwrite: bool = False
) -> Path:
    """Save a fine-tuned model that stops by itself wherever it is loaded.

    Writes bfloat16 safetensors, the tokenizer with its chat template, the end-of-turn token among
    the ids that end generation, and `record` (how the run was made) as sft.json. The folder appears
    only when it is complete; until then one that was there before stays as it was.
    """
    import torch

    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        model.generation_config.eos_token_id = stop_ids(tokenizer) or None
        state = model.state_dict()
        # Tied weights are one tensor under two names. They stay one, or the file holds both.
        converted = {
            tensor.data_ptr(): tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for tensor in state.values()
        }
        weights = {name: converted[tensor.data_ptr()] for name, tensor in state.items()}
        model.save_pretrained(made, state_dict=weights)
        config = copy.deepcopy(model.config)
        config.dtype = torch.bfloat16
        config.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "sft.json").write_text(json.dumps(record or {}, indent=1) + "\n", encoding="utf-8")
        write_manifest(made)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        try:
            made.rename(folder)
        except OSError:
            if (Path(scratch) / "old").exists():
                (Path(scratch) / "old").rename(folder)
            raise
    return folder
