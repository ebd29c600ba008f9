"""A base model small enough to train in a test: two layers, random weights, a toy tokenizer.

`from tiny_base import tiny_base` gives a test file the fixture; the model is written once a run.
"""

from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from course_utils.examples import TINY_CHATS
from course_utils.masking import training_samples
from course_utils.templates import chat_template
from course_utils.tokenizers import toy_tokenizer

TEXTS = [message.content for chat in TINY_CHATS for message in chat] * 4

# One thread: a matrix of this size is multiplied before a second thread has woken up.
torch.set_num_threads(1)
logging.disable_progress_bar()


def tiny_tokenizer(family: str | None = None):
    """A toy tokenizer, with a family's template if one is named."""
    tokenizer = toy_tokenizer(TEXTS, vocab_size=400)
    if family:
        tokenizer.chat_template = chat_template(family)
    return tokenizer


def tiny_model(*, tied: bool = True, seed: int = 0, hidden: int = 32, vocabulary: int = 400):
    """A Llama of two layers with random weights, in float32 and in evaluation mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@cache
def tiny_samples(family: str = "chatml", mode: str = "assistant"):
    """The three tiny chats as training samples."""
    tokenizer = tiny_tokenizer(family)
    return [training_samples(chat, tokenizer, mode=mode)[0] for chat in TINY_CHATS]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a base checkpoint: weights and a tokenizer without a chat template."""
    folder = tmp_path_factory.mktemp("tiny_base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
