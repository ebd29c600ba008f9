"""Tasks of the curriculum: multiple choice, arithmetic with checked steps, spelling.

Each is a generator of conversations to fine-tune on, and beside it one of held-out prompts about
items that the conversations never hold. Held out means from fine-tuning: course-base has met all
sums and words on the pages of its pretraining.
"""

import ast
import hashlib
import random
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

from course_utils.conversation import Conversation, Message
from course_utils.miniweb.facts import FOLDER as MINIWEB
from course_utils.miniweb.facts import Fact, facts, select

WORDINGS = Path(__file__).resolve().parents[2] / "data" / "curriculum" / "tasks.toml"
LETTERS = "ABCD"
NUMBERS = range(2, 21)  # as on the mini-web's worksheets
# Two steps give the same from left to right and by the usual rules only if x comes first.
SIGNS = ("+", "-", "x", "+ -", "- +", "x +", "x -")
SIGN = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


@dataclass(frozen=True)
class Item:
    """A question with its reply, and what a right reply must hold and obey.

    `expect` and `verify` are those of `course_utils.comparison`.
    """

    question: str
    reply: str
    form: str
    expect: Sequence[str]
    verify: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task by its generator of items: (random numbers, held out?, serial number) -> `Item`."""

    name: str
    item: Callable[[random.Random, bool, int], Item]

    def conversations(self, number: int = 600, seed: int = 0) -> list[Conversation]:
        """Conversations to fine-tune on, no question twice, the same for the same seed."""
        return [
            Conversation(
                (Message("user", item.question), Message("assistant", item.reply)),
                id=f"{self.name}-{seed}-{serial}",
                tags=(self.name, item.form),
            )
            for serial, item in enumerate(self._items(number, seed, held_out=False))
        ]

    def prompts(self, number: int = 100, seed: int = 1000) -> list[Conversation]:
        """Held-out prompts with `kind`, `expect` and `verify` in their meta."""
        return [
            Conversation(
                (Message("user", item.question),),
                id=f"{self.name}-held-out-{seed}-{serial}",
                tags=(item.form,),
                meta={"kind": self.name, "expect": list(item.expect), "verify": item.verify},
            )
            for serial, item in enumerate(self._items(number, seed, held_out=True))
        ]

    def _items(self, number: int, seed: int, *, held_out: bool) -> list[Item]:
        draw = random.Random(f"{self.name} {seed} {held_out}")
        items: dict[str, Item] = {}
        for serial in range(number):
            for _ in range(1000):
                item = self.item(draw, held_out, serial)
                if item.question not in items:
                    break
            else:
                raise ValueError(
                    f"{self.name}: only {len(items)} different questions were found, "
                    f"not {number}. Ask for fewer."
                )
            items[item.question] = item
        return list(items.values())


# --- multiple choice -----------------------------------------------------------------------------


def _multiple_choice(draw: random.Random, held_out: bool, serial: int) -> Item:
    """A fact of the mini-web among values of the same relation.

    Three or four options in turn, and the right one in every place equally often: a model that
    always says B is right a third or a quarter of the time.
    """
    fact, others = draw.choice(_choosable(held_out))
    options = 3 + serial % 2
    place = serial // 2 % options
    values = draw.sample(others, options - 1)
    values.insert(place, fact.value)
    group, wording = _wording(draw, _wordings()["multiple_choice"]["groups"])
    mark = draw.choice(_wordings()["multiple_choice"]["marks"])
    question = fact.fill(draw.choice(fact.relation.questions))
    slots = {"letter": LETTERS[place], "value": fact.value}
    reply = _fill(group["reply"], **slots)
    verify = {
        "letter": {"words": 1},
        "sentence": {"starts_with": "The answer is ", "words": 4},
        "both": {"max_words": 1 + max(len(value.split()) for value in values)},
    }[group["form"]]
    asked = _fill(wording, question=question, options=_options(values, mark))
    return Item(asked, reply, group["form"], [reply.rstrip(".")], verify)


def _options(values: Iterable[str], mark: str) -> str:
    return "\n".join(
        _fill(mark, letter=letter, value=value)
        for letter, value in zip(LETTERS, values, strict=False)
    )


@cache
def _choosable(held_out: bool) -> list[tuple[Fact, list[str]]]:
    """Each fact that may be asked about, with values that stand for wrong options.

    Asked about in fine-tuning, or (held out) told by the web in many wordings and never asked
    about; the wrong options come from facts of the same sort, so that nothing else leaks.
    """
    pool = select(facts(), telling="paraphrased", asked=not held_out)
    found = []
    for fact in pool:
        alike = {other.value for other in pool if other.relation is fact.relation}
        wrong = sorted(value for value in alike if not _same(value, fact.value))
        if len(wrong) >= len(LETTERS) - 1:
            found.append((fact, wrong))
    return found


def _same(one: str, other: str) -> bool:
    """Might two values both count as right, as "dollar" and "Australian dollar"?"""
    one, other = one.lower().split(), other.lower().split()
    return set(one) <= set(other) or set(other) <= set(one)


def multiple_choice_question(question: str, choices: Sequence[str]) -> str:
    """A question of another source in this task's first form; the reply is one of `LETTERS`."""
    wording = _wordings()["multiple_choice"]["groups"][0]["wordings"][0]
    mark = _wordings()["multiple_choice"]["marks"][0]
    return _fill(wording, question=question, options=_options(choices, mark))


# --- arithmetic ----------------------------------------------------------------------------------


def _arithmetic(draw: random.Random, held_out: bool, serial: int) -> Item:
    """A sum or a story of one or two steps. Every step's pair of numbers is held out, or none."""
    bank = _wordings()["arithmetic"]
    if draw.random() < 0.5:
        stories = bank["stories"]
        story = draw.choice([*stories["units"], *stories["counted"]])
        signs = re.findall(r"[-+x]", story["sum"])
        unit = story.get("unit") or draw.choice(stories["things"])
        numbers, steps = _sum(draw, signs, held_out)
        slots = dict(zip("abc", numbers, strict=False)) | {"things": unit, "name": _name(draw)}
        question, reply = _fill(story["story"], **slots), stories["reply"]
        form = f"story, {_steps_in_words(steps)}"
    else:
        signs = draw.choice(SIGNS).split()
        numbers, steps = _sum(draw, signs, held_out)
        group, wording = _wording(draw, bank["groups"])
        written = " ".join(
            [str(numbers[0]), *(f"{s} {n}" for s, n in zip(signs, numbers[1:], strict=True))]
        )
        question, reply, unit = _fill(wording, sum=written), group["reply"], ""
        form = f"sum, {_steps_in_words(steps)}"
    result = steps[-1][3]
    shown = " ".join(f"{a} {sign} {b} = {found}." for a, sign, b, found in steps)
    reply = _fill(reply, steps=shown, result=result, unit=unit)
    if not steps_hold(reply):
        raise AssertionError(f"a step does not hold: {reply!r}")
    last = f"{result} {unit}." if unit else f"{result}."
    return Item(question, reply, form, [str(result)], {"ends_with": last})


def _sum(draw: random.Random, signs: Sequence[str], held_out: bool):
    """(numbers, steps): a step is (a, sign, b, result), and each begins with the last result.

    Results below 2 are left out (a story would speak of "1 apples"), and results that stand among
    the numbers, which a reply could copy from the question.
    """
    while True:
        low_and_high = (2, 10) if len(signs) == 2 and signs[0] == "x" else (2, 20)
        numbers = [draw.randint(*low_and_high) for _ in signs] + [draw.randint(2, 20)]
        steps, left = [], numbers[0]
        for sign, right in zip(signs, numbers[1:], strict=True):
            steps.append((left, sign, right, SIGN[sign](left, right)))
            left = steps[-1][3]
        fits = all(result >= 2 and _held_out(a, b) == held_out for a, _, b, result in steps)
        if fits and left not in numbers:
            return numbers, steps


def _held_out(a: int, b: int) -> bool:
    """Is this pair of numbers, in either order, one that training never shows? One in five is."""
    return _hash(f"{min(a, b)} {max(a, b)}") % 5 == 0


def _steps_in_words(steps: Sequence) -> str:
    return "one step" if len(steps) == 1 else "two steps"


def _name(draw: random.Random) -> str:
    return draw.choice(_pages()["people"]["first_names"])


NUMBER = r"\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
EQUATION = re.compile(rf"({NUMBER}(?:\s*[-+*/x×÷−]\s*{NUMBER})+)\s*=\s*(-?{NUMBER})")


def steps_hold(text: str) -> bool:
    """Is there an equation in the text, and does every one of them hold?

    An equation is numbers with + - x * / between them, "=", and one number. Whatever else stands
    around an "=" cannot be checked, and counts as not holding.
    """
    found = list(EQUATION.finditer(text))
    if not found or len(found) != text.count("="):
        return False
    for equation in found:
        before, after = text[: equation.start()].rstrip(), text[equation.end() :].lstrip()
        # Part of a longer one, such as "1 + (2 + 3 = 5)" or "7 + 5 = 12 - 1".
        if before[-1:] in tuple("+-*/x×÷−(") and not re.search(r"[^\W\d]x$", before):
            return False
        if after[:1] in tuple("+*/×÷−)") or re.match(r"-\s*\d|x\s*\d|\d", after):
            return False
        if not equation_holds(equation[1], equation[2]):
            return False
    return True


def equation_holds(left: str, right: str) -> bool:
    """Are both sides arithmetic, and equal? Without rounding: 1 / 3 is not 0.33."""
    values = value(left), value(right)
    return None not in values and values[0] == values[1]


OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.UAdd: lambda a: a,
    ast.USub: lambda a: -a,
}


def value(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, + - x * / and brackets; None if it has none."""
    signs = str.maketrans({"x": "*", "×": "*", "÷": "/", "−": "-", ",": "", "$": ""})
    try:
        return _value(ast.parse(expression.translate(signs).strip(), mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))  # 0.1 is a tenth, not the float nearest to it
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](_value(node.operand))
    raise ValueError("no arithmetic")


# --- spelling ------------------------------------------------------------------------------------


def _spelling(draw: random.Random, held_out: bool, serial: int) -> Item:
    """A word in letters, how many they are, or how often one of them stands in it.

    Letters are shown before they are counted, so that a model can count what it has written.
    """
    word = draw.choice(_words(held_out))
    group, wording = _wording(draw, _wordings()["spelling"]["groups"])
    letters = "-".join(word)
    letter, count = _counted(draw, word)
    times = f"{count} time" if count == 1 else f"{count} times"
    slots = {"word": word, "letters": letters, "letter": letter, "times": times}
    reply = _fill(group["reply"], number=len(word), **slots)
    expect, verify = {
        "spell": (letters, {"words": 1}),
        "length": (f"{len(word)} letters", {"contains": [letters]}),
        "count": (times, {"starts_with": letters}),
    }[group["form"]]
    return Item(_fill(wording, **slots), reply, group["form"], [expect], verify)


def _counted(draw: random.Random, word: str) -> tuple[str, int]:
    """(letter, how often it stands in the word). Each number there is as likely as any other.

    Most letters stand in a word once: drawn by the letter, "once" would nearly always be right.
    """
    absent = sorted(set("abcdefghijklmnopqrstuvwxyz") - set(word))
    if draw.random() < 0.15:
        return draw.choice(absent), 0
    count = draw.choice(sorted({word.count(letter) for letter in word}))
    return draw.choice(sorted({x for x in word if word.count(x) == count})), count


def _words(held_out: bool) -> list[str]:
    """The mini-web's words for spelling; a quarter of them, by their hash, is held out."""
    return [w for w in _pages()["spelling"]["words"] if (_hash(w) % 4 == 0) == held_out]


# --- the tasks -----------------------------------------------------------------------------------

TASKS = {
    task.name: task
    for task in (
        Task("multiple-choice", _multiple_choice),
        Task("arithmetic", _arithmetic),
        Task("spelling", _spelling),
    )
}


# --- helpers -------------------------------------------------------------------------------------


def _wording(draw: random.Random, groups: Sequence[dict]) -> tuple[dict, str]:
    """(group, wording), every wording as likely as any other."""
    return draw.choice([(group, wording) for group in groups for wording in group["wordings"]])


def _fill(template: str, **slots) -> str:
    """Fill all slots at once, so that a value with braces stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda slot: str(slots[slot[1]]), template)


def _hash(text: str) -> int:
    """The same on every machine, unlike Python's own hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@cache
def _wordings() -> dict:
    return tomllib.loads(WORDINGS.read_text(encoding="utf-8"))


@cache
def _pages() -> dict:
    return tomllib.loads((MINIWEB / "pages.toml").read_text(encoding="utf-8"))
