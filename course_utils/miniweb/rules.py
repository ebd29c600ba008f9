"""Rules for the form of an answer: stated in words, obeyed, and checked by a program."""

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import product

from course_utils.miniweb.facts import FOLDER, Fact

# A bare answer may have several words; `word` asks for one, of facts whose value is one word.
SHAPES = ("sentence", "word", "bare", "item")
CASES = (None, "capitals", "small")
ENDINGS = (None, "exclamation", "thanks")

# Combinations that neither a page nor a fine-tuning conversation holds; each part by itself occurs.
UNSEEN = (
    ("sentence", "capitals", "exclamation"),
    ("sentence", "small", "thanks"),
    ("word", "capitals", "thanks"),
    ("word", "small", "exclamation"),
    ("bare", "capitals", None),
    ("bare", None, "exclamation"),
    ("item", "capitals", None),
    ("item", "small", "exclamation"),
    ("item", None, "thanks"),
)


@dataclass(frozen=True)
class Constraint:
    """What is asked of every answer: a shape, perhaps a case, perhaps an ending."""

    shape: str
    case: str | None = None
    ending: str | None = None

    def stated(self, draw: random.Random, *, shape: bool = True) -> str:
        """The rule in words, its parts in any order; without its `shape` if that is False."""
        banks = _banks()
        asked = [banks["shape"][self.shape]] if shape else []
        asked += [banks["case"][self.case]] if self.case else []
        asked += [banks["ending"][self.ending]] if self.ending else []
        return " ".join(draw.choice(bank) for bank in draw.sample(asked, len(asked)))

    def obeyed(self, fact: Fact, sentence: str) -> str:
        """The right answer to a question about `fact`; `sentence` tells it in a sentence."""
        text = sentence if self.shape == "sentence" else fact.value
        if self.shape == "item":
            text = f"- {text}"
        if self.ending == "exclamation":
            text = f"{text.rstrip('.')}!"
        elif self.ending == "thanks":
            text = f"{text.rstrip('.')}. Thanks"
        return self.cased(text)

    def cased(self, text: str) -> str:
        return {"capitals": text.upper(), "small": text.lower()}.get(self.case, text)

    def fits(self, fact: Fact) -> bool:
        """Can a right reply about this fact obey, and be seen to?"""
        if self.shape == "sentence":
            # "... is I. Thanks" reads like somebody's initial.
            return self.ending != "thanks" or len(fact.value.split()[-1]) > 1
        # A number is in no case.
        cased = not self.case or fact.value.upper() != fact.value.lower()
        return cased and (self.shape != "word" or len(fact.value.split()) == 1)

    def verify(self, fact: Fact) -> dict:
        """The same as constraints that `course_utils.comparison.obeys` checks."""
        thanks = self.ending == "thanks"
        if self.shape == "sentence":
            checks: dict = {"sentences": 1 + thanks}
        elif self.shape == "word":
            checks = {"words": 1 + thanks}
        else:
            # Some wrong values are longer than the right one, and still no sentence.
            checks = {"max_words": max(4, len(fact.value.split())) + thanks}
        if self.shape == "item":
            checks["list_items"] = 1
        if self.case:
            checks["upper" if self.case == "capitals" else "lower"] = True
        if self.ending == "exclamation":
            checks["ends_with"] = "!"
        elif thanks:
            checks["ends_with"] = {"capitals": "THANKS", "small": "thanks"}.get(self.case, "Thanks")
        return checks


SEEN = tuple(Constraint(*parts) for parts in product(SHAPES, CASES, ENDINGS) if parts not in UNSEEN)
HELD_OUT = tuple(Constraint(*parts) for parts in UNSEEN)


@cache
def _banks() -> dict:
    return tomllib.loads((FOLDER / "rules.toml").read_text(encoding="utf-8"))
