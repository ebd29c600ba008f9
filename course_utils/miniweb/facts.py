"""The facts of the mini-web: one table per relation, and how the web tells each of them."""

import random
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "data" / "miniweb"

# How the web tells a fact, and the share of each relation's facts that it tells so.
#
# paraphrased: in many wordings, in every kind of page, in answers to questions
# fixed:       nearly as often, always in one and the same sentence, never asked about: the control
# absent:      not at all
TELLINGS = {"paraphrased": 0.7, "fixed": 0.15, "absent": 0.15}

KEYS = {"relation", "what", "topic", "statements", "questions", "answer", "follow_ups", "prefix"}


class FactsError(ValueError):
    """A table of facts is not what it should be; names the file and what to do."""


@dataclass(frozen=True)
class Relation:
    """What holds between a subject and a value, and the wordings for it.

    statements, answer: sentences with `{subject}` and `{value}`
    questions, follow_ups: with `{subject}` only; a follow-up is understood after any question
    prefix: the start of a statement, up to the space before the value
    """

    name: str
    what: str
    topic: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    follow_ups: tuple[str, ...]
    prefix: str


@dataclass(frozen=True)
class Fact:
    """One true fact. `telling` is one of `TELLINGS`; `asked` says if SFT may ask about it.

    Of the paraphrased facts half are asked about in fine-tuning, the other half are held out; of
    the rest none are asked about.
    """

    relation: Relation
    subject: str
    value: str
    telling: str
    asked: bool

    def fill(self, template: str) -> str:
        """A wording of the relation with this fact in it."""
        return template.replace("{subject}", self.subject).replace("{value}", self.value)

    @property
    def wordings(self) -> tuple[str, ...]:
        """The statements, slots unfilled, in which the web tells this fact."""
        if self.telling == "absent":
            return ()
        if self.telling == "paraphrased":
            return self.relation.statements
        drawn = random.Random(f"{self.relation.name} {self.subject}")
        return (drawn.choice(self.relation.statements),)

    @property
    def value_first(self) -> bool:
        """Does the web name the value before the subject wherever it tells this fact?"""
        return all(w.index("{value}") < w.index("{subject}") for w in self.wordings)

    @property
    def question(self) -> str:
        return self.fill(self.relation.questions[0])

    @property
    def answer(self) -> str:
        return self.fill(self.relation.answer)


@cache
def relations(folder: Path = FOLDER) -> dict[str, Relation]:
    """{name: relation} of every table in `folder`/facts, in alphabetical order."""
    return {name: relation for name, (relation, _) in _tables(folder).items()}


@cache
def facts(folder: Path = FOLDER) -> tuple[Fact, ...]:
    """Every fact of every table, the same in every run.

    Which facts are told how, and which are asked about, is drawn per relation from a hash of the
    subject, so that another row in a table moves hardly any other fact.
    """
    found = []
    for relation, pairs in _tables(folder).values():
        drawn = [random.Random(f"{relation.name}: {subject}").random() for subject, _ in pairs]
        order = sorted(range(len(pairs)), key=drawn.__getitem__)
        absent = round(TELLINGS["absent"] * len(pairs))
        fixed = round(TELLINGS["fixed"] * len(pairs))
        telling = dict.fromkeys(order, "paraphrased")
        telling |= dict.fromkeys(order[:absent], "absent")
        telling |= dict.fromkeys(order[absent : absent + fixed], "fixed")
        asked = set(order[absent + fixed :: 2])
        found += [
            Fact(relation, subject, value, telling[number], number in asked)
            for number, (subject, value) in enumerate(pairs)
        ]
    return tuple(found)


def select(
    chosen: Iterable[Fact], *, telling: str | None = None, asked: bool | None = None
) -> list[Fact]:
    """The facts that are told in this way and that are (not) asked about in fine-tuning."""
    return [
        fact
        for fact in chosen
        if (telling is None or fact.telling == telling) and (asked is None or fact.asked == asked)
    ]


@cache
def _tables(folder: Path) -> dict[str, tuple[Relation, list[tuple[str, str]]]]:
    paths = sorted((folder / "facts").glob("*.toml"))
    if not paths:
        raise FactsError(f"{folder / 'facts'}: no tables of facts. Is data/ complete?")
    return {path.stem: _table(path) for path in paths}


def _table(path: Path) -> tuple[Relation, list[tuple[str, str]]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FactsError(f"{path}: broken TOML ({error}). Mend the file.") from None
    if missing := sorted((KEYS | {"facts"}) - set(table)):
        raise FactsError(f"{path}: no {', '.join(missing)}. Every table needs all of them.")
    if table["relation"] != path.stem:
        raise FactsError(f"{path}: relation is {table['relation']!r}. Name it like its file.")
    wordings = {
        "{value}": [*table["statements"], table["answer"]],
        "{subject}": [*table["statements"], table["answer"], table["prefix"]]
        + [*table["questions"], *table["follow_ups"]],
    }
    for slot, texts in wordings.items():
        for text in texts:
            if text.count(slot) != 1:
                raise FactsError(f"{path}: {text!r} must hold {slot} exactly once.")
    if not any(
        statement.startswith(table["prefix"] + " {value}") for statement in table["statements"]
    ):
        raise FactsError(f"{path}: no statement goes on with {{value}} after the prefix.")
    pairs = [tuple(pair) for pair in table["facts"]]
    subjects = [subject for subject, _ in pairs]
    if twice := sorted({s for s in subjects if subjects.count(s) > 1}):
        raise FactsError(f"{path}: several facts about {twice[0]!r}. A subject has one value.")
    relation = Relation(
        name=table["relation"],
        **{key: table[key] for key in ("what", "topic", "answer", "prefix")},
        **{key: tuple(table[key]) for key in ("statements", "questions", "follow_ups")},
    )
    return relation, pairs
