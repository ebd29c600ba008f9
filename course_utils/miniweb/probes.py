"""What a model knows of the mini-web, and what it does with a question."""

import re
from collections.abc import Sequence
from functools import cache

from course_utils.comparison import mentions, sentences
from course_utils.conversation import conversation
from course_utils.miniweb.facts import Fact, relations

# What a base may do with a bare question, told from the first line that it writes.
CONTINUATIONS = ("answers", "asks more questions", "posts", "leaves a blank", "other")


def completes(model, tokenizer, facts: Sequence[Fact], *, batch_size: int = 64) -> list[bool]:
    """For each fact: given the start of a sentence, is the value the greedy continuation?

    Asks for no chat and no template: the sentence is one in which the web tells facts of this kind.
    """
    from course_utils.replies import generate
    from course_utils.tokenizers import encode_untrusted

    ids = [encode_untrusted(tokenizer, fact.fill(fact.relation.prefix)) for fact in facts]
    replies = generate(model, tokenizer, ids, max_new_tokens=16, batch_size=batch_size)
    return [
        re.match(rf"{re.escape(fact.value)}(?!\w)", reply.text) is not None
        for fact, reply in zip(facts, replies, strict=True)
    ]


def answers(model, tokenizer, facts: Sequence[Fact], *, batch_size: int = 64) -> list[bool]:
    """For each fact: asked in the chat template, does the first sentence of the reply state it?"""
    from course_utils.replies import generate, prompt_ids

    chats = [conversation(("user", fact.question)) for fact in facts]
    ids = [prompt_ids(chat, tokenizer) for chat in chats]
    replies = generate(model, tokenizer, ids, max_new_tokens=48, batch_size=batch_size)
    return [states(reply.text, fact) for fact, reply in zip(facts, replies, strict=True)]


def states(text: str, fact: Fact) -> bool:
    """Does the first sentence of a reply hold the fact's value?"""
    return mentions(next(iter(sentences(text)), ""), [fact.value])


def continuation(question: str, text: str) -> str:
    """One of `CONTINUATIONS`: what a model did after a bare question of the mini-web.

    answers:             the first line is a statement that shares a word with the question
    asks more questions: it is a question, or a task such as "Name the capital of Norway."
    posts:               it is somebody's post or comment, or the line above those
    leaves a blank:      it is a line to write on
    """
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if not first:
        return "other"
    if set(first) <= set("_ "):
        return "leaves a blank"
    if re.match(r"Posted by |\d+ comments|\w+: ", first) and not re.match(r"(Answer|A): ", first):
        return "posts"
    bare = re.sub(r"^([-*]|\d+\.|Q:|Question:) ?", "", first)
    if bare.endswith("?") or any(task.fullmatch(bare) for task in _tasks()):
        return "asks more questions"
    if re.match(r"(Answer|A): ", first) or _content(first) & _content(question):
        return "answers"
    return "other"


def _content(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


@cache
def _tasks() -> tuple[re.Pattern, ...]:
    """The questions of all relations as patterns: some end in a full stop."""
    return tuple(
        re.compile(re.escape(question).replace(r"\{subject\}", ".+"), re.I)
        for relation in relations().values()
        for question in relation.questions
    )
