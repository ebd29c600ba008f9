"""Saving a fine-tuned model so that it answers and stops wherever it is loaded.

After a training loop of your own, either `save_checkpoint(model, tokenizer, folder)` does it all,
or `model.generation_config = generation_settings(model, tokenizer)` comes before the
`save_pretrained` of both.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

from course_utils.checkpoints import extremes
from course_utils.manifests import write_manifest
from course_utils.outputs import new_folder
from course_utils.replies import stop_ids

# What only sampling reads; transformers warns of it, or refuses to save it, beside do_sample=False.
SAMPLING = (
    *("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "num_return_sequences"),
)


def generation_settings(model, tokenizer):
    """A `GenerationConfig` with which the model answers greedily and stops; changes neither.

    The ids that end generation are the template's end of turn, then all that the tokenizer and the
    model had before: a base may end a call to a tool with another token than an answer. What only
    sampling reads is taken out, everything else is kept.
    """
    from transformers import GenerationConfig

    before = getattr(model, "generation_config", None)
    settings = copy.deepcopy(before) if before is not None else GenerationConfig()
    configs = (settings, model.config, model.config.get_text_config(decoder=True))
    ends = [*stop_ids(tokenizer), *(end for config in configs for end in _ends(config))]
    settings.eos_token_id = list(dict.fromkeys(ends)) or None
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    settings.do_sample = False
    for name in SAMPLING:
        if hasattr(settings, name):
            setattr(settings, name, None)
    settings._from_model_config = False  # or some loaders make their own from config.json
    return settings


def save_checkpoint(
    model, tokenizer, folder: str | Path, record: dict | None = None, *, overwrite: bool = False
) -> Path:
    """Save a fine-tuned model that answers and stops by itself wherever it is loaded.

    Writes bfloat16 safetensors, the tokenizer with its chat template, `generation_settings`,
    `record` (how the run was made) as sft.json, and last a manifest with the SHA-256 of each file,
    which `load_checkpoint` verifies. The folder appears only when it is complete. The model and the
    tokenizer stay as they are.

    overwrite: an existing folder may be replaced, if this course wrote every file in it
    Raises `FloatingPointError` if a weight is not finite, and `OutputError` if the folder cannot be
    written.
    """
    import torch

    written = json.dumps(record or {}, indent=1, allow_nan=False) + "\n"
    weights = _in_bfloat16(model)
    # A copy that shares the weights: the settings of the caller's model stay what they were.
    saved = copy.copy(model)
    saved.config = copy.deepcopy(model.config)
    saved.generation_config = generation_settings(model, tokenizer)
    with new_folder(folder, overwrite=overwrite) as made:
        saved.save_pretrained(made, state_dict=weights)
        saved.config.dtype = torch.bfloat16
        saved.config.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "sft.json").write_text(written, encoding="utf-8")
        write_manifest(made)
    return Path(folder).absolute()


def _in_bfloat16(model) -> dict:
    """The model's weights by name, converted; `FloatingPointError` if one is not finite then."""
    import torch

    converted, weights = {}, {}
    for name, tensor in model.state_dict().items():
        # Tied weights are one tensor under two names. They stay one, or the file holds both.
        tensor_id = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if tensor_id not in converted:
            floats = tensor.is_floating_point()
            converted[tensor_id] = tensor.to(torch.bfloat16) if floats else tensor
        weights[name] = converted[tensor_id]
        if not all(map(math.isfinite, extremes(weights[name]))):
            raise FloatingPointError(
                f"the weights {name} hold numbers that are not finite, or too large for bfloat16: "
                "the model is not saved. Train again with a lower learning rate."
            )
    return weights


def _ends(config) -> Iterator[int]:
    """The ids with which a configuration ends generation: it may have none, one, or a list."""
    ends = getattr(config, "eos_token_id", None)
    for end in ends if isinstance(ends, list | tuple) else [ends]:
        if isinstance(end, int) and end >= 0:
            yield end
