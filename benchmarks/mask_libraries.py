"""The shipped paths that turn a chat into tokens and labels, one function a path, each run live.

Every function takes a `Chat` and returns its samples as (input_ids, labels) pairs, or raises what
the library raises. A library is imported when its column is first asked for: most of them want a
GPU and a hundred packages for other things, so `spare` names the modules that have nothing to do
with masks. Where one is absent, an empty stand-in is imported in its place, so that
`pip install --no-deps` is enough. Nothing of the masks is replaced.
"""

import copy
import importlib.abc
import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

IGNORE = -100
Samples = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Chat:
    """A chat, and what it is rendered with.

    template:   a name in `TEMPLATES`
    max_length: the longest sample, in tokens, for paths that cut samples themselves
    pad_is_eos: the pad token is set to the end of turn, as many recipes do
    """

    template: str
    messages: list[dict]
    tools: list[dict] | None = None
    max_length: int | None = None
    pad_is_eos: bool = False

    @property
    def tokenizer(self):
        tokenizer = tokenizer_for(self.template)
        if self.pad_is_eos:
            tokenizer = copy.copy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def replies(self) -> list[int]:
        return [k for k, message in enumerate(self.messages) if message["role"] == "assistant"]

    def copied(self) -> list[dict]:
        """The messages for a library that may write into them."""
        return copy.deepcopy(self.messages)


class NotForThis(Exception):
    """The path has nothing for this template or option, which says nothing about its masks."""


# Template: tokenizer of the course, the template as published (a file in TRL's wheel; None: the
# tokenizer's own), its name in LLaMA-Factory, and in torchtune. TRL knows a template by its exact
# text, and Qwen 3's has changed since the course's file. Qwen 2.5 and Qwen 3 share their vocabulary
# but for a few special tokens. LLaMA-Factory's gemma3 wants an image processor; its
# gemma writes the same text.
TEMPLATES = {
    "Qwen 3": ("qwen3", "qwen3", "qwen3", None),
    "Qwen 2.5": ("qwen3", "qwen2_5", "qwen", "qwen2_5"),
    "Llama 3": ("llama3_1", None, "llama3", "llama3"),
    "Llama 3, first": ("llama3", None, "llama3", "llama3"),
    "Llama 3.1": ("llama3_1", "llama3_1", None, None),
    "Gemma 3": ("gemma3", None, "gemma", None),
}


@lru_cache
def tokenizer_for(template: str):
    from course_utils.tokenizers import load_tokenizer

    name, published, *_ = TEMPLATES[template]
    tokenizer = load_tokenizer(name)
    if published:
        tokenizer.chat_template = _trl_template(published)
    return tokenizer


def _trl_template(name: str) -> str:
    spec = importlib.util.find_spec("trl")
    if spec is None:
        raise NotForThis("the template as published stands in TRL's wheel, which is not installed")
    file = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        raise NotForThis(f"TRL ships no {name}.jinja")
    return file.read_text(encoding="utf-8")


# --- importing only what masks --------------------------------------------------------------------


class _Empty(types.ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        # A class to inherit from or to name in a type, and a decorator that changes nothing.
        parts = {"__init__": lambda *_, **__: None, "__call__": lambda _, function: function}
        return type(name, (), parts)


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands last among the finders, so an installed module is never replaced."""

    def __init__(self):
        self.names: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        module.__path__ = []


_STAND_INS = _StandIns()


def _without_init(package: str) -> None:
    """Make a package importable without running its __init__, which looks for a GPU and the like.

    Only where that file is not needed for masks; the modules below it are the library's own.
    """
    if package not in sys.modules and (spec := importlib.util.find_spec(package)):
        module = types.ModuleType(package)
        module.__path__, module.__spec__ = list(spec.submodule_search_locations), spec
        sys.modules[package] = module


# --- the paths ------------------------------------------------------------------------------------


def _masked(ids, mask) -> tuple[list[int], list[int]]:
    pairs = zip(ids, mask, strict=True)
    return list(ids), [number if graded else IGNORE for number, graded in pairs]


def _apply(chat: Chat, template: str | None = None, **options) -> Samples:
    if chat.max_length is not None:
        options |= {"truncation": True, "max_length": chat.max_length}
    found = chat.tokenizer.apply_chat_template(
        chat.copied(),
        tools=chat.tools,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **options,
    )
    return [_masked(found["input_ids"], found["assistant_masks"])]


def _twin(chat: Chat) -> str:
    from trl.chat_template_utils import get_training_chat_template

    return get_training_chat_template(chat.tokenizer)


def published_template(chat: Chat) -> Samples:
    return _apply(chat)


def training_template(chat: Chat) -> Samples:
    return _apply(chat, _twin(chat))


def sanitized(chat: Chat) -> Samples:
    return _apply(chat, sanitize_control_tokens=True)


def prefix_counts(chat: Chat, **options) -> Samples:
    """The recipe of many posts: count the tokens of the prompt and of the prompt with the reply."""

    def ids(turns: int, prompt: bool = False) -> list[int]:
        return chat.tokenizer.apply_chat_template(
            chat.messages[:turns],
            tools=chat.tools,
            add_generation_prompt=prompt,
            return_dict=False,
            **options,
        )

    whole = ids(len(chat.messages))
    labels = [IGNORE] * len(whole)
    for k in chat.replies:
        graded = slice(len(ids(k, prompt=True)), len(ids(k + 1)))
        labels[graded] = whole[graded]
    return [(whole[: chat.max_length], labels[: chat.max_length])]


@lru_cache(maxsize=1)
def _trl_model(vocabulary: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2, "intermediate_size": 2, "head_dim": 2}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, **heads))


def _trl_rows(chat: Chat, rows: list[dict], **options) -> Samples:
    """The samples of an SFTTrainer that is set up and never trained: its own code, start to end."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=1,
            max_length=chat.max_length,
            **options,
        )
        tokenizer = copy.copy(chat.tokenizer)  # the trainer sets its pad token
        trainer = SFTTrainer(
            _trl_model(len(tokenizer)),
            config,
            # Streamed, or the data set's cache would pickle the tokenizer for a key.
            train_dataset=Dataset.from_list(rows).to_iterable_dataset(),
            processing_class=tokenizer,
        )
        samples = []
        for row in trainer.train_dataset:
            batch = trainer.data_collator([row])
            samples.append((batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    return samples


def _tools(chat: Chat) -> dict:
    return {"tools": json.dumps(chat.tools)} if chat.tools else {}


def trl_assistant_only(chat: Chat) -> Samples:
    rows = [{"messages": chat.copied(), **_tools(chat)}]
    return _trl_rows(chat, rows, assistant_only_loss=True)


def trl_completion_only(chat: Chat) -> Samples:
    """A row a reply, since a completion is the end of its row."""
    rows = [
        {
            "prompt": chat.copied()[:k],
            "completion": [chat.copied()[k]],
            **_tools(chat),
        }
        for k in chat.replies
    ]
    return _trl_rows(chat, rows, completion_only_loss=True)


def renderers_sample(chat: Chat) -> Samples:
    import renderers

    if chat.max_length is not None:
        raise NotForThis("does not cut")
    if chat.template == "Llama 3.1" and "<|eom_id|>" not in chat.tokenizer.get_vocab():
        raise NotForThis("the course's tokenizer file lacks <|eom_id|>")
    # By the template, since the library goes by a model's name on the Hub, which files lack.
    typed = {"Qwen 3": renderers.Qwen3RendererConfig, "Llama 3.1": renderers.Llama3RendererConfig}
    config = typed.get(chat.template, renderers.DefaultRendererConfig)()
    asks = {} if chat.template in typed else {"role_to_mask": lambda m: m["role"] == "assistant"}
    found = renderers.build_training_sample(
        renderers.create_renderer(chat.tokenizer, config), chat.copied(), tools=chat.tools, **asks
    )
    return [_masked(found.token_ids, found.loss_mask)]


def unsloth_responses_only(chat: Chat) -> Samples:
    """Both markers are found by the library itself, which is its default."""
    _without_init("unsloth_zoo")  # asks for a GPU
    from unsloth_zoo.dataset_utils import train_on_responses_only

    if chat.max_length is not None:
        raise NotForThis("leaves cutting to the trainer")
    tokenizer = chat.tokenizer
    text = tokenizer.apply_chat_template(chat.messages, tools=chat.tools, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    function = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    return [(ids, list(function({"input_ids": [ids]})["labels"][0]))]


def axolotl_chat_template(chat: Chat) -> Samples:
    _without_init("axolotl.prompt_strategies")  # imports the other strategies
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault

    if chat.max_length is not None:
        raise NotForThis("drops what is too long")
    config = DictDefault({"sequence_len": 4096, "train_on_inputs": False})
    strategy = load(chat.tokenizer, config, DictDefault({"type": "chat_template"}))
    row = {"messages": chat.copied()} | ({"tools": copy.deepcopy(chat.tools)} if chat.tools else {})
    found = strategy.tokenize_prompt(row)
    return [(list(found["input_ids"]), list(found["labels"]))]


@lru_cache
def _torchtune_tokenizer(template: str, max_length: int | None):
    kind = TEMPLATES[template][3]
    if kind == "llama3":
        from torchtune.models.llama3._tokenizer import Llama3Tokenizer

        spec = importlib.util.find_spec("llama_models")
        if spec is None:
            raise NotForThis("Llama 3's file comes from llama-models, which is not installed")
        file = Path(spec.origin).parent / "llama3" / "tokenizer.model"
        return Llama3Tokenizer(str(file), max_seq_len=max_length)
    if kind == "qwen2_5":
        from torchtune.models.qwen2_5._tokenizer import Qwen2_5Tokenizer

        model = json.loads(tokenizer_for(template).backend_tokenizer.to_str())["model"]
        with tempfile.TemporaryDirectory() as folder:
            vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            vocabulary.write_text(json.dumps(model["vocab"]), encoding="utf-8")
            merges.write_text("\n".join(" ".join(pair) for pair in model["merges"]), "utf-8")
            return Qwen2_5Tokenizer(str(vocabulary), str(merges), max_seq_len=max_length)
    raise NotForThis("has no tokenizer for this template")


def torchtune_messages(chat: Chat) -> Samples:
    for package in (
        "",
        ".models",
        ".models.llama3",
        ".models.qwen2",
        ".models.qwen2_5",
        ".datasets",
    ):
        _without_init("torchtune" + package)  # they import every model
    from torchtune.data import OpenAIToMessages
    from torchtune.datasets._sft import SFTTransform

    if chat.tools:
        raise NotForThis("its messages have no calls")
    tokenizer = _torchtune_tokenizer(chat.template, chat.max_length)
    found = SFTTransform(OpenAIToMessages(), tokenizer)({"messages": chat.copied()})
    return [(list(found["tokens"]), [int(label) for label in found["labels"]])]


def llama_factory(chat: Chat) -> Samples:
    for package in ("", ".data", ".data.processor"):
        _without_init("llamafactory" + package)  # they import training and the web page
    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import DatasetAttr
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer

    if (template := TEMPLATES[chat.template][2]) is None:
        raise NotForThis("has no such template")
    # The defaults of its DataArguments, whose module imports all of training.
    arguments = types.SimpleNamespace(
        template=template,
        cutoff_len=chat.max_length or 2048,
        train_on_prompt=False,
        mask_history=False,
        tool_format=None,
        default_system=None,
        enable_thinking=True,
        preserve_thinking=False,
    )
    names = {"messages": "messages", "role_tag": "role", "content_tag": "content"}
    roles = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool"}
    layout = DatasetAttr("file", "chat", "sharegpt", **names, **roles, tools="tools")
    rows = []
    for message in chat.messages:  # its layout has calls as JSON in a turn of their own role
        if calls := message.get("tool_calls"):
            inner = json.dumps([call["function"] for call in calls])
            message = {"role": "function_call", "content": inner}
        rows.append(message)
    row = {"messages": rows, "tools": json.dumps(chat.tools) if chat.tools else ""}
    prepared = SharegptDatasetConverter(layout, arguments)(row)
    tokenizer = copy.deepcopy(chat.tokenizer)  # the template writes into it
    processor = SupervisedDatasetProcessor(
        get_template_and_fix_tokenizer(tokenizer, arguments), tokenizer, None, arguments
    )
    found = processor.preprocess_dataset({key: [value] for key, value in prepared.items()})
    if not found["input_ids"]:
        raise ValueError("Dropped invalid example")
    return list(zip(found["input_ids"], found["labels"], strict=True))


def course(chat: Chat) -> Samples:
    from course_utils.conversation import from_record
    from course_utils.masking import training_samples

    record = {"messages": chat.copied(), "tools": chat.tools or []}
    samples = training_samples(from_record(record), chat.tokenizer, max_length=chat.max_length)
    return [(sample.input_ids, sample.labels) for sample in samples]


# --- the columns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """A column: the path, what it is called, the package it needs and what it can do without."""

    head: str
    path: str
    run: Callable[[Chat], Samples]
    package: str | None = None
    spare: tuple[str, ...] = field(default=())

    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return version(self.package) if self.package else ""
        except PackageNotFoundError:
            return None

    def samples(self, chat: Chat) -> Samples:
        if _STAND_INS not in sys.meta_path:
            sys.meta_path.append(_STAND_INS)
        # Only meanwhile: other code asks whether such a package is there.
        _STAND_INS.names = set(self.spare)
        try:
            return self.run(chat)
        finally:
            _STAND_INS.names = set()


LIBRARIES = (
    Library(
        "hf",
        "transformers: return_assistant_tokens_mask, template as published",
        published_template,
        "transformers",
    ),
    Library("hf twin", "the same with TRL's training template", training_template, "trl"),
    Library(
        "hf clean", "transformers: the mask with sanitize_control_tokens", sanitized, "transformers"
    ),
    Library("prefix", "tokens of re-rendered prefixes, counted without a check", prefix_counts),
    Library(
        "p. clean",
        "the same with transformers' sanitize_control_tokens",
        partial(prefix_counts, sanitize_control_tokens=True),
    ),
    Library("trl", "TRL: SFTTrainer(assistant_only_loss=True)", trl_assistant_only, "trl"),
    Library(
        "trl p/c", "TRL: prompt and completion, a row for each reply", trl_completion_only, "trl"
    ),
    Library("renderers", "renderers: build_training_sample", renderers_sample, "renderers"),
    Library("unsloth", "unsloth: train_on_responses_only", unsloth_responses_only, "unsloth_zoo"),
    Library("axolotl", "axolotl: type chat_template", axolotl_chat_template, "axolotl"),
    Library(
        "torchtune",
        "torchtune: OpenAIToMessages and the model's tokenizer",
        torchtune_messages,
        "torchtune",
        ("torchao", "omegaconf", "sentencepiece"),
    ),
    Library(
        "llamafact",
        "LLaMA-Factory: SupervisedDatasetProcessor, its own template",
        llama_factory,
        "llamafactory",
        ("peft", "torchaudio"),
    ),
    Library("course", "course_utils: training_samples", course),
)
