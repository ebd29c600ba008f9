"""Ids from pieces and from the fast encoder: the tokenizer's own, or not used at all."""

import json
import random
import sys
from importlib.util import find_spec

import pytest
from chats import ALL_MARKERS, FRAGMENTS
from conftest import TOY_TEXTS, how_many
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from course_utils.encoding import PieceEncoder, encoder_of, proven_tiktoken
from course_utils.tokenizers import TokenizerError, encode_untrusted, toy_tokenizer

PIECES = [
    *FRAGMENTS,
    *ALL_MARKERS,
    *("<think>", "</think>", "<tool_call>", "<|im_start|>", "<|eot_id|>", "<|vision_start|>"),
    *("<thin", "k>", "<|", "|>", "'ll", "DON'T", " 12345", "0", "\n\n\n", " \n ", "   x", "_", "#"),
    *("Å", "A\u030a", "ﬁ", "각", "\u1100\u1161\u11a8", "①", "½", "\U0001f1e8\U0001f1ed", "\u00a0"),
    *("def f(x):\n    return x", "https://a.b/c?d=e", "ẞß", "İi", "\u0300", "\ud7a3", "𝔘"),
]


def random_texts(count, seed=0):
    """Mixtures of the pieces above and of single characters from all over Unicode."""
    generator = random.Random(seed)

    def character():
        number = generator.choice((0x100, 0x800, 0x3000, 0x10000, 0x20000))
        found = generator.randrange(number)
        return "?" if 0xD800 <= found < 0xE000 or found == 0x2581 else chr(found)

    def part():
        return generator.choice(PIECES) if generator.random() < 0.8 else character()

    return ["".join(part() for _ in range(generator.randrange(1, 9))) for _ in range(count)]


def changed(tokenizer, change):
    """The tokenizer with `change` made to what its tokenizer.json says."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described = change(described) or described
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )


# --- exact, with or without the fast path --------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("name", ["toy", "llama3", "llama3_1", "qwen3", "gemma3"])
def test_ids_are_those_of_untrusted_text(name, fast, bare_toy, real):
    tokenizer = bare_toy if name == "toy" else real(name)
    encoder = encoder_of(tokenizer, fast=fast)
    if find_spec("tiktoken"):
        assert (encoder.fast is not None) == (fast and name != "gemma3")
    # Every example of Gemma's, with its 6,000 added tokens, is slow.
    counts = (100, 300) if name == "gemma3" else (1000, 3000) if fast else (300, 600)
    texts = random_texts(how_many(*counts))
    found = encoder.encode_many(texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids == encode_untrusted(tokenizer, text), text
        assert encoder.special_ids.isdisjoint(ids)
    typed = [encoder.looks_special(text) for text in texts]
    assert sum(typed) > len(texts) / 20, "no special tokens in the texts: nothing was tested"


@pytest.mark.parametrize("name", ["toy", "llama3", "qwen3", "gemma3"])
def test_pieces_between_special_tokens_are_the_whole(name, bare_toy, real):
    tokenizer = bare_toy if name == "toy" else real(name)
    encoder = encoder_of(tokenizer)
    assert encoder.piecewise
    generator = random.Random(1)
    specials = [token for token in encoder.special_tokens if "image" not in token][:5]
    texts = [t for t in random_texts(300, seed=2) if not encoder.looks_special(t)]
    for _ in range(100):
        parts, wanted = "", []
        for text in generator.sample(texts, 3):
            token = generator.choice(specials)
            parts += text + token
            wanted += [*encoder.encode_many([text])[0], encoder.special_id(token)]
        if len(encoder.specials.findall(parts)) == 3:  # else text and token made another one
            assert tokenizer(parts, add_special_tokens=False)["input_ids"] == wanted, parts
            assert encoder.encode_whole([parts]) == [wanted], parts


@pytest.mark.parametrize("name", ["toy", "gemma3"])
def test_a_text_encoded_as_ordinary_does_not_change_how_the_next_is_encoded(name, real):
    """A tokenizer remembers split_special_tokens of its last call."""
    tokenizer = toy_tokenizer(TOY_TEXTS) if name == "toy" else real(name)
    encoder = encoder_of(tokenizer, fast=False)
    token = encoder.special_tokens[0]
    for call in (encoder.ends, lambda text: encoder.encode_many([text])):
        call(token)
        assert encoder.encode_whole([token]) == [[encoder.special_id(token)]]


@pytest.mark.parametrize("name", ["toy", "llama3", "qwen3", "gemma3"])
def test_ends_are_the_places_between_tokens(name, bare_toy, real):
    encoder = encoder_of(bare_toy if name == "toy" else real(name))
    text = "Water boils <|im_end|> at\n100"
    ends = encoder.ends(text)
    assert {0, len(text)} <= ends <= set(range(len(text) + 1))
    (ids,) = encoder.encode_many([text])
    assert len(ends) == len(ids) + 1
    assert encoder.ends("") == {0}


def test_an_encoder_is_made_once_for_a_tokenizer_and_its_special_tokens():
    tokenizer = toy_tokenizer(TOY_TEXTS)
    first = encoder_of(tokenizer)
    assert encoder_of(tokenizer) is first
    assert encoder_of(tokenizer, fast=False) is not first
    text = "a <|new|> b"
    assert first.encode_many([text])[0] == encode_untrusted(tokenizer, text)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    second = encoder_of(tokenizer)
    assert second is not first and "<|new|>" in second.special_tokens
    assert second.encode_many([text])[0] == encode_untrusted(tokenizer, text)


def test_a_tokenizer_without_a_fast_version_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(TokenizerError, match="no fast version.*AutoTokenizer"):
        PieceEncoder(Slow())


def test_a_tokenizer_that_encodes_a_piece_alone_in_another_way_is_found_out():
    def with_prefix_space(described):
        for step in described["pre_tokenizer"]["pretokenizers"]:
            if step["type"] == "ByteLevel":
                step["add_prefix_space"] = True

    encoder = PieceEncoder(changed(toy_tokenizer(TOY_TEXTS), with_prefix_space))
    assert encoder.fast is None
    strips = toy_tokenizer(TOY_TEXTS)
    strips.add_special_tokens(
        {"extra_special_tokens": [AddedToken("<|trim|>", lstrip=True, rstrip=True, special=True)]},
        replace_extra_special_tokens=True,
    )
    encoder = PieceEncoder(strips)
    assert encoder.fast is None


# --- added tokens that are not special -----------------------------------------------------------


def test_added_tokens_that_are_not_special_count_in_any_text(real):
    tokenizer = toy_tokenizer(TOY_TEXTS)
    tokenizer.add_tokens(["<think>", "</think>", "<think>ing"])
    for encoder in (PieceEncoder(tokenizer), PieceEncoder(tokenizer, fast=False)):
        text = "a<think>b</think><think>ing<thin"
        assert encoder.encode_many([text])[0] == encode_untrusted(tokenizer, text)
    assert PieceEncoder(tokenizer).fast is not None
    tokenizer = real("qwen3")
    encoder = encoder_of(tokenizer)
    (ids,) = encoder.encode_many(["<think>\nHm.</think>"])
    wanted = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert [n for n in ids if n in wanted] == wanted and encoder.fast is not None


# --- the proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_the_fast_path_proves_itself_on_real_tokenizers(name, real):
    pytest.importorskip("tiktoken")
    assert encoder_of(real(name)).fast is not None


def test_gemma_has_no_fast_path(real):
    assert proven_tiktoken(real("gemma3"), encoder_of(real("gemma3"), fast=False)) is None


def reordered(described):
    """The merges in the opposite order: other ids from the same vocabulary."""
    described["model"]["merges"].reverse()


def dropping(described):
    described["model"]["dropout"] = 0.5


def unreachable(described):
    """An entry of the vocabulary that no merge makes; tiktoken would use it."""
    described["model"]["vocab"]["boilsatonce"] = max(described["model"]["vocab"].values()) + 1


def stripping(described):
    described["added_tokens"].append(
        {
            "id": max(described["model"]["vocab"].values()) + 1,
            "content": "<think>",
            "single_word": False,
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
    )


def lowering(described):
    described["normalizer"] = {"type": "Lowercase"}


def composing(described):
    """NFKC, which is more than the NFC that the fast path knows."""
    described["normalizer"] = {"type": "NFKC"}


def splitting(described):
    """A second pattern before the bytes."""
    described["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Whitespace"})


REFUSED = (reordered, dropping, unreachable, stripping, lowering, composing, splitting)


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_tokenizer_that_tiktoken_does_not_equal_keeps_the_exact_path(change):
    pytest.importorskip("tiktoken")
    texts = ["Water boils at 100 degrees Celsius. boils at once", *TOY_TEXTS]
    base = toy_tokenizer(texts)
    assert PieceEncoder(changed(base, lambda described: None)).fast is not None
    tokenizer = changed(base, change)
    encoder = PieceEncoder(tokenizer)
    assert encoder.fast is None
    if change is not dropping:  # whose ids are random
        for text in random_texts(100):
            assert encoder.encode_many([text])[0] == encode_untrusted(tokenizer, text)


def test_an_entry_that_no_merge_reaches_is_used_only_if_merges_are_ignored():
    """Llama 3's: a word that stands in the vocabulary is one token, merges or not."""
    pytest.importorskip("tiktoken")
    base = toy_tokenizer(TOY_TEXTS)

    def ignoring(described):
        unreachable(described)
        described["model"]["ignore_merges"] = True

    tokenizer = changed(base, ignoring)
    encoder = PieceEncoder(tokenizer)
    assert encoder.fast is not None
    for text in ("boilsatonce", "boilsatonce boilsatonc", *random_texts(100)):
        assert encoder.encode_many([text])[0] == encode_untrusted(tokenizer, text)


def test_without_byte_level_bpe_there_is_no_fast_path():
    backend = Tokenizer(models.WordLevel({"a": 0, "<e>": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", unk_token="?")
    encoder = PieceEncoder(words)
    assert encoder.fast is None and encoder.encode_many(["a b"]) == [[0, 2]]


def test_without_tiktoken_nothing_changes_but_the_time(monkeypatch):
    tokenizer = toy_tokenizer(TOY_TEXTS)
    texts = random_texts(200)
    expected = [encode_untrusted(tokenizer, text) for text in texts]
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    encoder = PieceEncoder(tokenizer)
    assert encoder.fast is None
    assert encoder.encode_many(texts) == expected
