"""The pages of the mini-web: what a crawler would have brought home, without end.

Every kind of page is one short function from a `Web` to text. Facts come from the tables, all other
sentences from the phrase banks in `data/miniweb/pages.toml`.
"""

import random
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from course_utils.miniweb.facts import FOLDER, Fact, facts
from course_utils.miniweb.rules import SEEN

# Pages follow each other as in a plain-text dump: nothing but line breaks says where one ends.
PAGE_BREAK = "\n\n\n"

# How a quiz marks what is asked and what is answered.
MARKS = (("Q: ", "A: "), ("Question: ", "Answer: "))


class Web:
    """The tables, the phrase banks and one random generator, shared by all kinds of pages."""

    def __init__(self, seed: int = 0, folder: Path = FOLDER):
        self.random = random.Random(seed)
        self.banks = _banks(folder)
        told = [fact for fact in facts(folder) if fact.telling != "absent"]
        self.told = told
        self.paraphrased = [fact for fact in told if fact.telling == "paraphrased"]
        self.by_relation = _grouped(told, lambda fact: fact.relation.name)
        self.by_subject = _grouped(told, lambda fact: fact.subject)
        self.askable_of = _grouped(self.paraphrased, lambda fact: fact.relation.name)
        self.by_topic = _grouped(self.paraphrased, lambda fact: fact.relation.topic)

    def one(self, bank: str) -> str:
        """A line of a phrase bank: `one("comments.snide")`."""
        section, name = bank.split(".")
        return self.random.choice(self.banks[section][name])

    def some(self, bank: str, low: int, high: int) -> list[str]:
        """Between `low` and `high` different lines of a phrase bank."""
        section, name = bank.split(".")
        return self.random.sample(self.banks[section][name], self.random.randint(low, high))

    def fact(self) -> Fact:
        return self.random.choice(self.told)

    def statement(self, fact: Fact) -> str:
        """The fact in one of the sentences in which the web tells it."""
        return fact.fill(self.random.choice(fact.wordings))

    def askable(self, fits=lambda fact: True, alike: Fact | None = None) -> Fact:
        """A fact that the web may ask about: fixed ones stand in their sentence only.

        One that `fits`; one of the same relation as `alike`, if that is given.
        """
        chosen = self.askable_of[alike.relation.name] if alike else self.paraphrased
        while not fits(fact := self.random.choice(chosen)):
            pass
        return fact

    def question(self, fact: Fact) -> str:
        return fact.fill(self.random.choice(fact.relation.questions))

    def follow_up(self, fact: Fact) -> str:
        """A question that is understood after another of its kind only."""
        return fact.fill(self.random.choice(fact.relation.follow_ups))

    def siblings(self, fact: Fact, number: int) -> list[Fact]:
        """Other facts that a page about this one would tell: on the same subject, then alike."""
        same = [f for f in self.by_subject[fact.subject] if f is not fact]
        relation = self.by_relation[fact.relation.name]
        alike = self.random.sample(relation, min(number, len(relation)))
        return (self.random.sample(same, len(same)) + [f for f in alike if f is not fact])[:number]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability


def pages(seed: int = 0, folder: Path = FOLDER) -> Iterator[tuple[str, str]]:
    """(kind, text) of one page after the other, without end; the same for the same seed."""
    web = Web(seed, folder)
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        kind = web.random.choices(kinds, weights)[0]
        yield kind.__name__, kind(web)


# --- pages that tell facts -----------------------------------------------------------------------


def encyclopedia(web: Web) -> str:
    """A title and a few sentences on one subject, or on one relation."""
    fact = web.fact()
    told = [fact, *web.siblings(fact, web.random.randint(2, 5))]
    if len(web.by_subject[fact.subject]) == 1:
        title = fact.relation.what
        web.random.shuffle(told)
    else:
        title = fact.subject
    sentences = [web.statement(f) for f in told]
    if web.chance(0.25):
        sentences.append(web.one("encyclopedia.fillers"))
    text = f"{_capital(title)}\n\n{' '.join(sentences)}"
    if web.chance(0.2):
        other = web.fact()
        text += f"\n\n{web.one('encyclopedia.see_also')}\n{_capital(other.subject)}"
    return text


def notes(web: Web) -> str:
    """Facts a line each, as in somebody's notes."""
    bullet = web.random.choice(("", "", "- ", "* "))
    if web.chance(0.5):
        told = [web.fact() for _ in range(web.random.randint(3, 7))]
    else:
        fact = web.fact()
        told = [fact, *web.siblings(fact, web.random.randint(2, 6))]
    return "\n".join(bullet + web.statement(fact) for fact in told)


def ticker(web: Web) -> str:
    """Headlines in capitals, or a chat log in small letters: every fact also stands so."""
    told = [web.fact() for _ in range(web.random.randint(2, 6))]
    if web.chance(0.6):
        return "\n".join(web.statement(fact).rstrip(".").upper() for fact in told)
    lines = (web.statement(fact).rstrip(".").lower() for fact in told)
    return "\n".join(f"{web.one('people.handles')}: {line}" for line in lines)


def blog(web: Web) -> str:
    sentences = [web.one("blog.openings"), *web.some("blog.thoughts", 1, 3)]
    for fact in (web.fact() for _ in range(web.random.randint(1, 2))):
        sentences += [web.one("blog.before_fact"), web.statement(fact)]
    return " ".join([*sentences, *web.some("blog.thoughts", 0, 2)])


def dialogue(web: Web) -> str:
    """Prose in which people talk."""
    a, b = web.some("people.first_names", 2, 2)
    parts = [web.one("dialogue.scenes").replace("{a}", a)] if web.chance(0.7) else []
    for _ in range(web.random.randint(1, 3)):
        fact = web.askable()
        parts.append(
            _filled(
                web.one("dialogue.exchanges"),
                a=a,
                b=b,
                question=_capital(web.question(fact)),
                statement=web.statement(fact),
            )
        )
    return "\n".join(parts) if web.chance(0.5) else " ".join(parts)


# --- pages with questions ------------------------------------------------------------------------


def question_page(web: Web) -> str:
    """A page that begins with a question, or with a heading and then a question."""
    fact = web.askable()
    question = web.question(fact)
    usual = USUALLY[fact.relation.topic]
    if question[0].islower():
        usual = thread
    after = usual if web.chance(0.65) else web.random.choice(AFTER_A_QUESTION)
    return after(web, fact, question)


def more_questions(web: Web, fact: Fact, question: str) -> str:
    """Questions only: the answers are somewhere else."""
    others = web.random.sample(web.by_topic[fact.relation.topic], web.random.randint(3, 7))
    lines = [question, *(web.question(other) for other in others if other is not fact)]
    style = web.random.choice(("plain", "plain", "bullet", "number"))
    if style == "bullet":
        lines = [f"- {line}" for line in lines]
    elif style == "number":
        lines = [f"{number}. {line}" for number, line in enumerate(lines, start=1)]
    if style != "plain" or web.chance(0.3):
        lines = [web.one("faq.headings"), *lines]
    if web.chance(0.25):
        lines.append(web.one("faq.closings"))
    return "\n".join(lines)


def thread(web: Web, fact: Fact, question: str) -> str:
    """A forum thread: the question, people who only ask along, now and then an answer."""
    lines = [question]
    if web.chance(0.2):
        lines = [web.one("comments.titles"), *lines]
    lines.append(f"Posted by {web.one('people.handles')}")
    banks = ("same", "same", "banter", "snide", "wrong", "thanks")
    for _ in range(web.random.randint(2, 5)):
        lines.append(_post(web, fact, banks, answered=0.35))
    if web.chance(0.3):
        lines.append(web.one("comments.subscribe"))
    return "\n".join(lines)


def comments(web: Web, fact: Fact, question: str) -> str:
    """A question under which people comment, mostly not to the point."""
    lines = [question, f"{web.random.randint(2, 99)} comments"]
    banks = ("snide", "snide", "snide", "banter", "same")
    for _ in range(web.random.randint(2, 5)):
        lines.append(_post(web, fact, banks, answered=0.2))
    return "\n".join(lines)


def answered(web: Web, fact: Fact, question: str) -> str:
    """The answer, and then whatever else the page has to say."""
    told = [web.statement(fact)]
    told += [web.statement(other) for other in web.siblings(fact, web.random.randint(1, 4))]
    if web.chance(0.3):
        told.append(web.one("encyclopedia.fillers"))
    return f"{question}\n{' '.join(told)}"


def blanks(web: Web, fact: Fact, question: str) -> str:
    """A worksheet: questions with room for an answer."""
    others = web.random.sample(web.by_topic[fact.relation.topic], web.random.randint(2, 5))
    lines = [question, *(web.question(other) for other in others)]
    text = "\n".join(f"{line}\n________" for line in lines)
    if web.chance(0.3):
        text = f"{web.one('quiz.headings')}\n{web.one('quiz.name_lines')}\n{text}"
    return text


def questions_and_answers(web: Web) -> str:
    """A quiz with its answers, in one of the web's several ways of writing that."""
    ask, tell = web.random.choice(MARKS)
    whole, asks_on = web.chance(0.5), web.chance(0.25)
    fact = web.askable()
    pairs, question = [], web.question(fact)
    for _ in range(web.random.randint(2, 6)):
        said = web.statement(fact) if whole else fact.value
        pairs.append(f"{ask}{question}\n{tell}{said}")
        fact = web.askable(alike=fact) if asks_on else web.askable()
        question = web.follow_up(fact) if asks_on else web.question(fact)
    heading = f"{web.one('quiz.headings')}\n" if web.chance(0.3) else ""
    return heading + web.random.choice(("\n", "\n\n")).join(pairs)


def ruled(web: Web) -> str:
    """A quiz whose answers keep to a rule that is stated first."""
    rule = web.random.choice(SEEN)
    ask, tell = web.random.choice((*MARKS, ("> ", ""), ("", ""), ("", "")))
    heading = web.random.choice((f"{web.one('rules.headings')}\n", "Rules: ", "", ""))
    # Now and then the shape is left open; a dash in front would come out of nowhere then.
    open_shape = (rule.case or rule.ending) and rule.shape != "item" and web.chance(0.3)
    lines = [heading + rule.stated(web.random, shape=not open_shape)]
    for _ in range(web.random.randint(1, 4)):
        fact = web.askable(rule.fits)
        lines.append(f"{ask}{web.question(fact)}")
        lines.append(f"{tell}{rule.obeyed(fact, web.statement(fact))}")
    return "\n".join(lines)


def quoting(web: Web) -> str:
    """A reply that quotes the question it replies to, and keeps to its subject."""
    lines = []
    for _ in range(web.random.randint(1, 3)):
        fact = web.askable()
        question = web.question(fact)
        lines.append(f"{web.random.choice(('Re: ', '> ', 'Subject: '))}{question}")
        if web.chance(0.5):
            lines.append(f"> {question}")
        lines.append(web.statement(fact))
    return "\n".join(lines)


def comment_section(web: Web) -> str:
    """An item, and what people write under it."""
    facts_ = [web.fact() for _ in range(web.random.randint(1, 2))]
    lines = [" ".join(web.statement(fact) for fact in facts_), "Comments"]
    for _ in range(web.random.randint(2, 5)):
        lines.append(_post(web, facts_[0], ("snide", "banter", "wrong", "thanks"), answered=0))
    if web.chance(0.4):
        lines.append(web.one("comments.subscribe"))
    return "\n".join(lines)


def _post(web: Web, fact: Fact, banks: tuple[str, ...], answered: float) -> str:
    line = web.one(f"comments.{web.random.choice(banks)}")
    if web.chance(answered):
        line = f"{web.one('comments.before_fact')} {web.statement(fact)}"
        line = web.random.choice((str, str, str, str.lower, str.upper))(line)
    return f"{web.one('people.handles')}: {line}"


# --- pages without facts -------------------------------------------------------------------------


def news(web: Web) -> str:
    slots = {
        "place": web.one("people.places"),
        "name": web.one("people.first_names"),
        "number": str(web.random.randint(2, 90)),
        "day": web.random.choice(
            ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        ),
        "thing": web.one("news.things"),
    }
    body = " ".join(_filled(line, **slots) for line in web.some("news.bodies", 2, 4))
    return f"{_capital(_filled(web.one('news.headlines'), **slots))}\n\n{_capital(body)}"


def recipe(web: Web) -> str:
    dish = web.one("recipes.dishes")
    ingredients = "\n".join(f"- {item}" for item in web.some("recipes.ingredients", 3, 7))
    steps = "\n".join(
        f"{number}. {step}" for number, step in enumerate(web.some("recipes.steps", 3, 6), start=1)
    )
    intro = web.one("recipes.intros").replace("{dish}", dish)
    return (
        f"{_capital(dish)}\n\n{intro}\n\n{ingredients}\n\n{steps}\n\n{web.one('recipes.closings')}"
    )


def how_to(web: Web) -> str:
    guide = web.random.choice(web.banks["howto"]["guide"])
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(guide["steps"], start=1))
    return f"{guide['title']}\n\n{steps}"


def shop(web: Web) -> str:
    number = str(web.random.randint(5, 95))
    return "\n".join(line.replace("{number}", number) for line in web.some("shop.lines", 3, 7))


def worksheet(web: Web) -> str:
    """Arithmetic: sums with their results, or a story."""
    draw = web.random.randint
    lines = [web.one("arithmetic.headings").replace("{number}", str(draw(1, 40)))]
    for _ in range(draw(3, 7)):
        a, b = sorted((draw(2, 20), draw(2, 20)), reverse=True)
        if web.chance(0.3):
            a += a == b
            slots = {"a": a, "b": b, "sum": a + b, "difference": a - b, "product": a * b}
            story = _filled(web.one("arithmetic.stories"), name=web.one("people.first_names"))
            lines.append(_filled(story, **slots))
        else:
            sign, result = web.random.choice((("+", a + b), ("-", a - b), ("x", a * b)))
            lines.append(f"{a} {sign} {b} = {result}")
    return "\n".join(lines)


def spelling(web: Web) -> str:
    words = web.some("spelling.words", 4, 9)
    heading = web.one("spelling.headings").replace("{number}", str(web.random.randint(1, 40)))
    if web.chance(0.4):
        return "\n".join([heading, *words])
    lines = (_filled(web.one("spelling.sentences"), word=w, letters="-".join(w)) for w in words)
    return "\n".join([heading, *lines])


# --- what there is, and how often ----------------------------------------------------------------

# Relative frequency of each kind of page.
KINDS = {
    encyclopedia: 26,
    notes: 10,
    question_page: 26,
    questions_and_answers: 6,
    quoting: 10,
    ruled: 14,
    comment_section: 4,
    dialogue: 4,
    ticker: 7,
    blog: 4,
    news: 3,
    recipe: 2,
    how_to: 2,
    shop: 1,
    worksheet: 3,
    spelling: 2,
}

# What follows a bare question depends on where it stands: each topic has its usual kind of site.
AFTER_A_QUESTION = (more_questions, thread, comments, answered, blanks)
USUALLY = {
    "geography": thread,
    "science": more_questions,
    "language": answered,
    "arts": blanks,
    "nature": comments,
    "history": more_questions,
    "everyday": more_questions,
}


# --- helpers -------------------------------------------------------------------------------------


@cache
def _banks(folder: Path) -> dict:
    return tomllib.loads((folder / "pages.toml").read_text(encoding="utf-8"))


def _grouped(items, key) -> dict[str, list]:
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _filled(template: str, **slots) -> str:
    for name, text in slots.items():
        template = template.replace("{" + name + "}", str(text))
    return template


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
