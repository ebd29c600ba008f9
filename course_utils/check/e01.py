"""Checks of the exercises of lecture 01."""

import math
import random
import re
from functools import cache
from types import SimpleNamespace

from course_utils.check.core import call, expect, fail, passed, refusing, shorten
from course_utils.comparison import mentions, wilson
from course_utils.miniweb import facts
from course_utils.miniweb.facts import select
from course_utils.miniweb.probes import completes, states


def kind_of(function):
    exercise = "1.1"
    first = "the first line that is not empty decides."
    post = "a first word that ends in a colon makes a post, unless it is A: or Answer:."
    cases = [
        ("Oslo is the capital of Norway.", "statement", "no other rule fits."),
        ("Oslo.\nWhat is the capital of Peru?\n________", "statement", first),
        ("\n  \nWhat is the capital of Peru?\nLima.", "question", first),
        ("Really? I thought it was Bergen.", "statement", "the mark must end the line."),
        ("What is it?  \n", "question", "white space around the line does not count."),
        ("________\nWhat is the capital of Peru?", "blank", "a line of underscores is a blank."),
        (" _____ ", "blank", "white space around the line does not count."),
        ("________ is the capital.", "statement", "a blank holds underscores only."),
        ("Posted by mapfan12\nBump.", "post", "this begins with 'Posted by '."),
        ("mapfan12: Is it Friday yet?", "post", "the first rule that fits wins, post comes first."),
        ("grumpy_otter: Oslo, easy.", "post", post),
        ("Answer: Oslo", "statement", post),
        ("A: Is it Oslo?", "question", post),
        ("One rule here: be kind.", "statement", "only the first word's colon makes a post."),
        ("", "nothing", "there is no line at all."),
        ("\n \n\t", "nothing", "all lines are empty."),
    ]
    for text, expected, hint in cases:
        expect(exercise, call(exercise, function, text), expected, hint, f"kind_of({text!r})")
    passed(exercise)


def shares(function):
    exercise = "1.2"
    kinds = ["answers", "asks", "posts", "blank"]
    cases = [
        ["asks", "asks", "posts", "answers", "blank", "posts", "asks"],
        ["posts"] * 26 + ["asks"],
        ["asks"],
    ]
    for verdicts in cases:
        n, said = len(verdicts), f"shares({shorten(verdicts, 60)}, {kinds})"
        got = call(exercise, function, list(verdicts), list(kinds))
        if not isinstance(got, dict):
            expect(exercise, got, {}, "return a dict with an entry for each kind.", call=said)
        if list(got) != kinds:
            hint = "go through the kinds: one that never came has the share 0 and an interval."
            expect(exercise, list(got), kinds, hint, call=f"the keys of {said}")
        for kind in kinds:
            count = verdicts.count(kind)
            expected = (count / n, *wilson(count, n))
            entry = got[kind]
            entry = tuple(entry) if isinstance(entry, list | tuple) else entry
            hint = _share_hint(entry, count, n)
            expect(exercise, entry, expected, hint, call=f"{said}[{kind!r}]", tolerance=1e-9)
    for verdicts in (["asks", "psots"], ["asks", "Posts"], ["post"]):
        got = call(exercise, refusing(function), list(verdicts), list(kinds))
        if got is not ValueError:
            said = f"shares({verdicts}, {kinds}) returned {shorten(got)}, expected a ValueError"
            fail(exercise, said, "one of the verdicts is not among the kinds.")
    passed(exercise)


def _share_hint(entry, count, n):
    if not isinstance(entry, tuple) or len(entry) != 3:
        return "three numbers: the share, and the two ends that wilson(count, n) returns."
    if count and entry[0] == 100 * count / n:
        return "shares lie between 0 and 1."
    if not count and entry[2] == 0:
        return "0 of n is no proof of never: wilson(0, n) has an upper end."
    return "the share is count / n, the interval wilson(count, n), n all verdicts."


def surprise(function):
    exercise = "1.3"
    following = "after[0] stands after the first turn: it predicts the second speaker."
    names = "divide by the sum of the names' probabilities: the rest is no name."
    cases = [
        ([{"N": 0.5, "T": 0.5}], "NT", 1.0, "-log2 of a half is 1 bit: logarithms to base 2."),
        ([{"N": 0.75, "T": 0.25}], "NT", 2.0, following),
        ([{"N": 0.3, "T": 0.1}], "NT", 2.0, names),
        ([{"N": 0.2, "T": 0.2}, {"N": 0.1, "T": 0.7}], "NTN", 2.0, "the mean of the turns' bits."),
        ([{"N": 0.5, "T": 0.25}, {"N": 0.5, "T": 0.5}], "NNT", 0.7924812503605781, following),
        ([{"N": 0.1, "T": 0.1, "A": 0.1, "B": 0.1}], "NT", 2.0, "names may be more than two."),
        ([{"N": 0.9, "T": 0.0}], "NN", 0.0, "who is sure and right is not surprised."),
        ([{"N": 0.9, "T": 0.0}], "NT", math.inf, "probability 0: math.inf, not an error."),
        ([{"N": 0.5}, {"N": 0.4, "T": 0.4}], "NTN", math.inf, "a name that is missing has 0."),
    ]
    for after, speakers, expected, hint in cases:
        got = call(exercise, function, [dict(row) for row in after], list(speakers))
        said = f"surprise({after}, {list(speakers)})"
        expect(exercise, got, expected, hint, call=said, tolerance=1e-6)
    passed(exercise)


def p_special(function):
    from course_utils.replies import next_token_probabilities
    from course_utils.tokenizers import encode_untrusted, toy_tokenizer

    exercise = "1.4"
    tokenizer = toy_tokenizer(["Water boils at 100 degrees Celsius at sea level. Hi! Yes."] * 8)
    special = _special_ids(tokenizer)
    size, end, eot = len(tokenizer), "<|endoftext|>", "<|im_end|>"
    text = "Water boils at 100 degrees."
    length = len(encode_untrusted(tokenizer, text))
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in (end, eot, "W")}
    every = "sum over all special tokens, not only the end of text."
    last = "what comes next is told by the last row of the logits."
    cases = [
        ("knows nothing at all", {}, every),
        ("is sure of <|endoftext|>", {length - 1: {end: 20}}, last),
        ("is sure of <|im_end|>", {length - 1: {eot: 20}}, every),
        ("was sure of <|im_end|> one token ago", {length - 2: {eot: 20}}, last),
        ("is sure of the letter W", {length - 1: {"W": 20}}, "softmax the logits, add nothing."),
        ("wavers between two ends", {length - 1: {end: 9, eot: 9}}, "a sum: no mean, no maximum."),
    ]
    for what, raised, hint in cases:
        rows = [[0.0] * size for _ in range(length)]
        for row, logits in raised.items():
            for token, logit in logits.items():
                rows[row][number[token]] = float(logit)
        weights = [math.exp(logit) for logit in rows[-1]]
        expected = sum(weights[i] for i in special) / sum(weights)
        got = call(exercise, function, _known_model(rows), tokenizer, text)
        said = f"for a model that {what}, p_special"
        expect(exercise, got, expected, hint, call=said, tolerance=1e-5)

    model, tokenizer = _course_base()
    special = _special_ids(tokenizer)
    for fact in _held_out(12, seed=4):
        text = f"{fact.question}\n{fact.answer}"
        p = next_token_probabilities(model, encode_untrusted(tokenizer, text))
        expected, got = p[special].sum().item(), call(exercise, function, model, tokenizer, text)
        said = f"on course-base after {fact.answer!r}, p_special returned {shorten(got)}"
        if not isinstance(got, int | float) and not hasattr(got, "item"):
            fail(exercise, said, "return a number.")
        # Not closer: whoever computes all rows of the logits at once may round otherwise.
        if not math.isclose(got, expected, rel_tol=0.1, abs_tol=1e-12):
            said += f", expected about {expected:.1e}"
            fail(exercise, said, "encode question and answer as they stand, add nothing.")
    passed(exercise)


def _special_ids(tokenizer):
    from course_utils.tokenizers import special_tokens

    return [tokenizer.convert_tokens_to_ids(token) for token in special_tokens(tokenizer)]


def _known_model(rows):
    """A model that gives these logits, one row per position, whatever the tokens are."""
    import torch

    class Known(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, logits_to_keep=0, **settings):
            if input_ids.shape != (1, len(rows)):
                shape = tuple(input_ids.shape)
                raise ValueError(f"input_ids has shape {shape}, the text alone is (1, {len(rows)})")
            return SimpleNamespace(logits=torch.tensor([rows])[:, -logits_to_keep:])

    return Known().eval()


@cache
def _course_base():
    from course_utils.checkpoints import load_base

    return load_base("course-base")


def _held_out(number, seed):
    """Facts that fine-tuning never asks about, of many relations."""
    return random.Random(seed).sample(select(facts(), telling="paraphrased", asked=False), number)


PAGE = re.compile(r"Did you know\?\n\n((?:- .+\n)+)\nQuestion of the week: (.+)")


def newsletter(function):
    exercise = "1.5"
    # Nearly all told facts of few have to go in; of many there is a choice.
    few = [(_known(paraphrased=3, fixed=2), 1 + seed % 4, seed) for seed in range(40)]
    many = [(_known(paraphrased=6, fixed=4), 2, seed) for seed in range(60)]
    before, pages, questions, seen = random.getstate(), [], set(), {}
    for known, number, seed in few + many:
        got = call(exercise, function, random.Random(seed), list(known), number)
        said = f"newsletter(random.Random({seed}), known, {number})"
        told, question = _check_page(exercise, said, got, known, number)
        pages.append(got)
        if known is many[0][0]:
            questions.add(question)
            for fact, wording in told:
                seen.setdefault(fact, set()).add(wording)
    again = [
        call(exercise, function, random.Random(seed), list(known), n)
        for known, n, seed in few + many
    ]
    hint = "draw from `draw` alone: draw.choice, draw.sample."
    if again != pages:
        fail(exercise, "newsletter made two pages from the same seed", hint)
    if random.getstate() != before:
        fail(exercise, "newsletter drew from the module random", hint)
    if len(questions) < 10:
        said = f"60 newsletters asked {len(questions)} different questions"
        fail(exercise, said, "draw the fact that is asked about, and one of its questions.")
    for fact in select(many[0][0], telling="paraphrased"):
        if len(seen.get(fact, ())) < 3:
            said = f"60 newsletters told {fact.subject!r} in {len(seen.get(fact, ()))} wordings"
            fail(exercise, said, "draw fact and wording anew each time.")
    for fact in select(many[0][0], telling="fixed"):
        if fact not in seen:
            said = f"60 newsletters never told {fact.subject!r}, a fixed fact"
            fail(exercise, said, "draw from all told facts, fixed ones as well.")
    passed(exercise)


@cache
def _known(**numbers):
    """Capitals of these tellings, three absent ones among them."""
    found = []
    for telling, number in [("absent", 3), *numbers.items()]:
        capitals = [f for f in select(facts(), telling=telling) if f.relation.name == "capital"]
        found += capitals[:number]
    random.Random(0).shuffle(found)
    return found


def _check_page(exercise, said, got, known, number):
    """The (fact, wording) pairs that a page tells and the question that it asks, if it is right."""
    if not isinstance(got, str):
        expect(exercise, got, "", "return the page as one string.", call=said)
    found = PAGE.fullmatch(got)
    if not found:
        hint = "heading, empty line, '- ' lines, empty line, question; no line break at the end."
        fail(exercise, f"{said} returned {shorten(got)}, which is not of that form", hint)
    lines, question = [line[2:] for line in found[1].splitlines()], found[2]
    expect(exercise, len(lines), number, "state `number` facts.", call=f"{said}: the '- ' lines")
    told = [_stated(exercise, said, line, known) for line in lines]
    stated = [fact for fact, _ in told]
    if len(set(stated)) < len(stated):
        fail(exercise, f"{said} told a fact twice", "draw.sample draws different ones.")
    asked = [f for f in known if question in map(f.fill, f.relation.questions)]
    if not asked:
        hint = "one of fact.relation.questions, filled with fact.fill."
        fail(exercise, f"{said} asks {question!r}, no question about a known fact", hint)
    if asked[0].telling != "paraphrased":
        hint = "the web asks about paraphrased facts only."
        fail(exercise, f"{said} asks about the {asked[0].telling} fact: {question!r}", hint)
    if asked[0] in stated:
        hint = "draw the question first, then state facts other than that one."
        fail(exercise, f"{said} asks {question!r} and tells the answer above", hint)
    return told, question


def _stated(exercise, said, line, known):
    """The fact that a line tells as the web tells it, and the wording."""
    for fact in known:
        for wording in fact.relation.statements:
            if fact.fill(wording) != line:
                continue
            if fact.telling == "absent":
                fail(exercise, f"{said} tells {line!r}", "this fact is absent from the web.")
            if wording not in fact.wordings:
                hint = "a fixed fact has one sentence: draw from fact.wordings."
                fail(exercise, f"{said} tells {line!r}", hint)
            return fact, wording
    hint = "fill one of fact.wordings with fact.fill and change nothing."
    fail(exercise, f"{said} tells {line!r}, no wording of a known fact", hint)


# Questions asked, and the share that must be right. The base knows each of these facts, so that
# the prompt is judged and not the base.
QUESTIONS, NEEDED = 60, 0.7


def few_shot(few_shot_prompt, cut):
    exercise = "1.6"
    _check_form(exercise, few_shot_prompt)
    _check_cut(exercise, cut)
    asked = _completed()
    replies = _continue([_prompt_for(exercise, few_shot_prompt, fact) for fact in asked])
    right = []
    for fact, reply in zip(asked, replies, strict=True):
        right.append(states(call(exercise, cut, reply), fact))
        if not right[-1]:
            miss = f"after 'Q: {fact.question}' the answer was {shorten(cut(reply), 60)}"
    needed = math.ceil(NEEDED * len(asked))
    if sum(right) < needed:
        said = f"{sum(right)} of {len(asked)} right, expected at least {needed}; {miss}"
        hint = "imitate the web's quizzes to the last space; the shortest answers are the safest."
        if few_shot_prompt([], "Why?")[-1:].isspace():
            hint = "the prompt must not end in white space: ' Oslo' is another token than 'Oslo'."
        fail(exercise, said, hint)
    passed(exercise)


@cache
def _completed():
    """Facts that course-base completes as text and that no example is about."""
    candidates = _held_out(2 * QUESTIONS, seed=6)
    completed = completes(*_course_base(), candidates)
    return [fact for fact, known in zip(candidates, completed, strict=True) if known][:QUESTIONS]


def _prompt_for(exercise, function, fact):
    """The prompt for a question, with four examples drawn for it: facts that SFT may ask about."""
    draw = random.Random(fact.question)
    return call(exercise, function, draw.sample(select(facts(), asked=True), 4), fact.question)


def _continue(prompts):
    from course_utils.replies import generate
    from course_utils.tokenizers import encode_untrusted

    model, tokenizer = _course_base()
    ids = [encode_untrusted(tokenizer, prompt) for prompt in prompts]
    replies = generate(model, tokenizer, ids, max_new_tokens=24, batch_size=QUESTIONS)
    return [reply.text for reply in replies]


def _check_form(exercise, function):
    examples = random.Random(1).sample(select(facts(), asked=True), 3)
    question = "What is the capital of Atlantis?"
    for shown in (examples, examples[:1], []):
        got = call(exercise, function, list(shown), question)
        said = f"few_shot_prompt({[fact.subject for fact in shown]}, {question!r})"
        if not isinstance(got, str):
            expect(exercise, got, "", "return the prompt as one string.", call=said)
        lines = got.splitlines()
        asks = [line for line in lines if line.startswith("Q:")]
        expected = [f"Q: {text}" for text in [*(fact.question for fact in shown), question]]
        hint = "each example's fact.question, then the question, in lines that begin with 'Q: '."
        expect(exercise, asks, expected, hint, call=f"the 'Q:' lines of {said}")
        blocks = ["\n".join(lines).split(line + "\n")[-1].split("\nQ: ")[0] for line in asks]
        if len(asks) != len([block for block in blocks if block.startswith("A:")]):
            hint = "an answer's line begins with 'A:' and comes right after its question."
            fail(exercise, f"{said} returned {shorten(got)}, without an 'A:' for each 'Q:'", hint)
        for fact, block in zip(shown, blocks, strict=False):
            if not mentions(block, [fact.value]):
                hint = "behind 'A:' stands fact.value or fact.answer."
                fail(exercise, f"{said} answers {fact.question!r} with {block[2:]!r}", hint)
        if blocks[-1].rstrip() != "A:":
            hint = "end with 'A:' and let the model write the answer."
            fail(exercise, f"{said} ends with {shorten(blocks[-1], 60)}", hint)


def _check_cut(exercise, function):
    page = "three line breaks end the page, and with it the answer."
    line = "only a line that begins with 'Q:' ends an answer."
    cases = [
        ("Oslo\nQ: What is the capital of Peru?\nA: Lima", "Oslo", "cut before the next 'Q:'."),
        (" Oslo \n\nQ: And Peru?\nA: Lima", "Oslo", "strip the answer."),
        ("Oslo", "Oslo", "without a next 'Q:' all of it is the answer."),
        ("The key Q: it quits.\nQ: Why?", "The key Q: it quits.", line),
        ("See the FAQ: page 3.", "See the FAQ: page 3.", line),
        ("Two steps:\n1. Stir.\n2. Wait.\nQ: How long?", "Two steps:\n1. Stir.\n2. Wait.", line),
        ("Quite so.\nQuick, too.\nQ: Who?", "Quite so.\nQuick, too.", line),
        ("First stir.\n\nThen wait.\nQ: Why?", "First stir.\n\nThen wait.", line),
        ("Q: Who?\nA: Nobody.", "", "the model has answered nothing: '' is the answer."),
        ("Oslo\n\n\nMillbrook library to open on Monday\n\nQ: Who?", "Oslo", page),
        ("Oslo\nQ: Peru?\n\n\nFair in Millbrook", "Oslo", "whichever end comes first."),
        ("", "", "nothing comes of nothing."),
    ]
    for text, expected, hint in cases:
        expect(exercise, call(exercise, function, text), expected, hint, f"cut({text!r})")
