"""Private copies of a tokenizer's backend, so that encoding never changes the caller's.

transformers sets a tokenizer's backend anew for every call: do special tokens count as such, where
to truncate, how to pad. Two threads that share a tokenizer then encode with each other's settings.
Here are two copies for each tokenizer, made once, whose settings never change.
"""

import json
import os
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class Backends:
    """Two `tokenizers.Tokenizer`s that neither truncate nor pad.

    marked:   special tokens in a text count as such
    ordinary: they are text like any other
    """

    marked: object
    ordinary: object
    described: dict = field(repr=False)  # the tokenizer as JSON, but for its long lists


class LockOfThisProcess:
    """A lock that a forked child finds open, whoever held it when it was forked."""

    def __init__(self):
        self._open()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._open)

    def _open(self) -> None:
        self._lock = Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error) -> None:
        self._lock.release()


_made: WeakKeyDictionary = WeakKeyDictionary()
_lock = LockOfThisProcess()


def backends(tokenizer) -> Backends:
    """The tokenizer's private backends; made anew when its added tokens or its steps change."""
    original = tokenizer.backend_tokenizer
    state = (
        original.get_vocab_size(),
        tuple(map(repr, original.get_added_tokens_decoder().items())),
        repr(original.normalizer),
        repr(original.pre_tokenizer),
    )
    with _lock:
        found = _made.get(tokenizer)
        if found is None or found[0] != state:
            found = _made[tokenizer] = state, _copies(original)
        return found[1]


def _copies(original) -> Backends:
    from tokenizers import Tokenizer

    text = original.to_str()
    copies = [Tokenizer.from_str(text) for _ in range(2)]
    for copy, as_text in zip(copies, (False, True), strict=True):
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = as_text
    described = json.loads(text)
    for long in ("vocab", "merges"):
        described["model"].pop(long, None)
    return Backends(*copies, described)
