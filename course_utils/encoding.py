"""Token ids of what a template writes: exact, safe, and fast where fast has proven to be exact.

A template's special tokens cut its text into pieces. Each piece is encoded by itself and as
ordinary text, so that nothing in it can become a special token, whoever wrote it. That this gives
the same ids as encoding the whole at once is checked once for every tokenizer.

For byte-level BPE there is a faster encoder than Hugging Face's: tiktoken, fed with the same
vocabulary and the same pattern. It is used for a tokenizer only after it has given the same ids on
every entry of the vocabulary and on thousands of mixtures of them; otherwise, and where tiktoken is
not installed, nothing changes but the time.
"""

import random
import re
from functools import lru_cache
from weakref import WeakKeyDictionary

from course_utils.backends import LockOfThisProcess, backends
from course_utils.tokenizers import TokenizerError, special_pattern, special_tokens


class PieceEncoder:
    """Ids of ordinary text, as `tokenizer` gives them; see `encoder_of`.

    specials: pattern of the tokenizer's special tokens
    fast:     the proven tiktoken encoding, or None
    """

    def __init__(self, tokenizer, fast: bool = True):
        if not tokenizer.is_fast:
            raise TokenizerError(
                "this tokenizer has no fast version (tokenizer.json), and only those say exactly "
                "which text a token stands for. Load it with AutoTokenizer where there is one."
            )
        self.backends = backends(tokenizer)
        self.marked, self.ordinary = self.backends.marked, self.backends.ordinary
        self.special_tokens = special_tokens(tokenizer)
        self.specials = special_pattern(self.special_tokens)
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        # Added tokens that are not special, such as <think>, count as such in any text.
        self.others = {
            text: self.marked.token_to_id(text) for text in added if text not in self.special_tokens
        }
        self.other_pattern = re.compile(f"({special_pattern(tuple(self.others)).pattern})")
        self.first_characters = {text[0] for text in self.others if text}
        self.first_of_specials = {text[0] for text in self.special_tokens if text}
        self.special_ids = {self.special_id(token) for token in self.special_tokens}
        self.piecewise = self._same_in_pieces()
        self.longest = self._longest()
        self.fast = proven_tiktoken(tokenizer, self) if fast and self.piecewise else None
        self.constant = lru_cache(maxsize=4096)(lambda text: self.encode_many([text])[0])

    def special_id(self, token: str) -> int:
        return self.marked.token_to_id(token)

    def looks_special(self, text: str) -> bool:
        """Does anything in the text look like a special token?"""
        return (
            any(character in text for character in self.first_of_specials)
            and self.specials.search(text) is not None
        )

    def encode_whole(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, in which special tokens are special, whoever wrote them."""
        return _batch(self.marked, texts)

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, none of them a special token's."""
        if self.fast is None:
            return _batch(self.ordinary, texts)
        try:
            return [self._encode_fast(text) for text in texts]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # tiktoken's panics are no Exceptions; a million spaces cause one
            return _batch(self.ordinary, texts)

    def ends(self, text: str) -> set[int]:
        """The characters of the text at which a token ends, and 0."""
        found = self.ordinary.encode(text, add_special_tokens=False)
        return {0, *(end for _, end in found.offsets)}

    def _encode_fast(self, text: str) -> list[int]:
        if any(character in text for character in self.first_characters):
            ids = []
            for part in self.other_pattern.split(text):
                if part in self.others:
                    ids.append(self.others[part])
                elif part:
                    ids += self.fast(part)
            return ids
        return self.fast(text)

    def _same_in_pieces(self) -> bool:
        """Does a piece between two special tokens have the same ids alone and in the whole?

        A token that is told to take the white space beside it is tried always, of the others a few.
        """
        odd = {
            token["content"]
            for token in self.backends.described["added_tokens"]
            if token["lstrip"] or token["rstrip"] or token["single_word"] or token["normalized"]
        }
        tokens = [token for token in self.special_tokens if token.strip() == token]
        tokens = tokens[:4] + [token for token in tokens[4:] if token in odd]
        for piece in ("a", " a", "\na", "a ", "a\n", " ", "\n\n", "A 1"):
            for token in tokens:
                (whole,) = _batch(self.marked, [token + piece + token + piece])
                (alone,) = _batch(self.marked, [piece])
                if whole != [self.special_id(token), *alone] * 2:
                    return False
        return True

    def _longest(self) -> float:
        """The most characters that one token can cover, as far as that is known."""
        described = self.backends.described
        steps, normalizer = str(described["pre_tokenizer"]), described["normalizer"]
        if "ByteLevel" not in steps or normalizer not in (None, {"type": "NFC"}):
            return float("inf")  # an unknown text of any length may be one token
        # Composing makes at most three characters one (Unicode Standard Annex 15, "Maximum
        # expansion" read backward), and no byte is more than one character.
        return max(map(len, self.marked.get_vocab())) * (3 if normalizer else 1)


def _batch(backend, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


_encoders: WeakKeyDictionary = WeakKeyDictionary()
_lock = LockOfThisProcess()


def encoder_of(tokenizer, *, fast: bool = True) -> PieceEncoder:
    """The tokenizer's encoder, made (and proven) the first time it is asked for."""
    if not tokenizer.is_fast:
        return PieceEncoder(tokenizer, fast)  # says what to do
    current = backends(tokenizer)
    with _lock:
        made = _encoders.setdefault(tokenizer, {})
        if fast not in made or made[fast].backends is not current:
            made[fast] = PieceEncoder(tokenizer, fast)
        return made[fast]


# --- the fast path -------------------------------------------------------------------------------

# GPT-2's pattern, which a ByteLevel pre-tokenizer uses when it is given none.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PROBES = (
    "Water boils at 100 degrees Celsius.\n\n\tdef f(x):\r\n    return x**2  # ünïcödé  \n",
    "水は100度で沸騰します。 السلام عليكم 🙂👩‍👩‍👧 e\u0301 \u00a0\u2028 'S 'll don't 1234567",
    " \n \n\n  x", "\t\t", "   ", "a  b   c", "\r\n\r\n ", "ﬁ Å Å ①", "\x00\x7f\u200b\ufeff",
)  # fmt: skip


def proven_tiktoken(tokenizer, exact: PieceEncoder, mixtures: int = 4000):
    """A function from text to ids that has proven itself equal to the tokenizer, or None."""
    try:
        import tiktoken
    except ImportError:
        return None
    described = exact.backends.described
    pattern, normalizer = _pattern(described["pre_tokenizer"]), described["normalizer"]
    if (
        described["model"]["type"] != "BPE"
        or described["model"].get("byte_fallback")
        or described["model"].get("dropout")
        or pattern is None
        or normalizer not in (None, {"type": "NFC"})
        or any(
            token.get("lstrip") or token.get("rstrip") or token.get("single_word")
            for token in described["added_tokens"]
        )
    ):
        return None
    byte_of = {character: number for number, character in _byte_characters().items()}
    added = {token["content"] for token in described["added_tokens"]}
    try:
        ranks = {
            bytes(byte_of[character] for character in text): number
            for text, number in exact.marked.get_vocab(with_added_tokens=False).items()
            if text not in added
        }
        encoding = tiktoken.Encoding(
            "proven", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
    except (KeyError, ValueError):
        return None  # no byte-level vocabulary after all

    # The tokenizer's own: Python's knows marks of newer versions of Unicode, and orders them.
    compose = exact.marked.normalizer.normalize_str if normalizer else None

    def encode(text: str) -> list[int]:
        if compose is not None and not text.isascii():
            text = compose(text)
        return encoding.encode_ordinary(text)

    texts = _evidence([*PROBES], ranks, exact, mixtures)
    expected = _batch(exact.marked, texts)
    same = all(encode(text) == ids for text, ids in zip(texts, expected, strict=True))
    return encode if same else None


def _evidence(texts: list[str], ranks: dict[bytes, int], exact, mixtures: int) -> list[str]:
    """Every entry of the vocabulary that is text, and random mixtures of up to six of them."""
    generator = random.Random(0)
    entries = []
    for piece in ranks:
        try:
            entries.append(piece.decode("utf-8"))
        except UnicodeDecodeError:
            continue  # a part of a character stands in no text
    mixed = ["".join(generator.choices(entries, k=6)) for _ in range(mixtures)]
    texts = texts + entries + mixed
    # What looks like an added token is cut out before either encoder is asked.
    return [t for t in texts if not (exact.looks_special(t) or exact.other_pattern.search(t))]


def _pattern(pre_tokenizer: dict | None) -> str | None:
    """The pattern that cuts text into words, if that and bytes is all the pre-tokenizer does."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    if steps[-1] is None or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return GPT2_PATTERN if steps[0].get("use_regex", True) else None
    split = steps[0]
    plain = len(steps) == 2 and split["type"] == "Split" and not steps[1].get("use_regex", True)
    if not plain or split["behavior"] != "Isolated" or split.get("invert"):
        return None
    return split["pattern"].get("Regex")


@lru_cache(maxsize=1)
def _byte_characters() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (GPT-2, `bytes_to_unicode`)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible}
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}
