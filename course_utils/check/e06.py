"""Checks of the exercises of lecture 06."""

import re
from functools import lru_cache

from course_utils.check.core import NotAttempted, call, expect, fail, passed, shorten
from course_utils.masking import IGNORE_INDEX, MaskError
from course_utils.templates import chat_template

BEGIN, PAD, EOT = 1, 0, 9
QUESTION = [{"role": "user", "content": "1+1?"}]
TWO_REPLIES = [
    *QUESTION,
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 4-2?"},
    {"role": "assistant", "content": "It is 2."},
]


def double_bos(function):
    number = "6.1"
    cases = [
        ([BEGIN, BEGIN, 5, 6], BEGIN, True, "two sequence starts at the beginning are the bug."),
        ([BEGIN, 5, 6], BEGIN, False, "one sequence start is as it should be."),
        ([5, 5, 6], BEGIN, False, "two equal ids are no bug if they are not the sequence start."),
        ([BEGIN, 5, 6, BEGIN, 7], BEGIN, False, "look at the beginning only: rows may be packed."),
        ([BEGIN, 5, BEGIN, BEGIN, 7], BEGIN, False, "look at the beginning only."),
        ([5, 6, 7], None, False, "a tokenizer without a sequence start has bos_id None."),
        ([BEGIN], BEGIN, False, "a single id cannot be two sequence starts."),
        ([], BEGIN, False, "an empty list is allowed."),
    ]
    for numbers, bos, expected, hint in cases:
        got = call(number, function, list(numbers), bos)
        expect(number, got, expected, hint, call=f"double_bos({numbers}, {bos})")
    passed(number)


def prompt_text(function):
    number = "6.2"
    begun = [*QUESTION, {"role": "assistant", "content": "It is"}]
    for family in ("chatml", "llama3"):
        for messages, flag, hint in (
            (QUESTION, "add_generation_prompt", "after a question the server opens the reply."),
            (TWO_REPLIES[:3], "add_generation_prompt", "only the last message decides."),
            (begun, "continue_final_message", "the begun reply must stay open, without EOT."),
        ):
            tokenizer = toy(family)
            got = call(number, function, tokenizer, [dict(message) for message in messages])
            expected = tokenizer.apply_chat_template(messages, tokenize=False, **{flag: True})
            shown = f"prompt_text({family} tokenizer, {shorten(messages, 60)})"
            expect(number, got, expected, hint, call=shown)
    passed(number)


def pad_batch(function):
    number = "6.3"
    short = {"input_ids": [BEGIN, 5, EOT], "labels": [IGNORE_INDEX, 5, EOT]}
    long = {"input_ids": [BEGIN, 5, 6, 7, EOT], "labels": [IGNORE_INDEX] * 3 + [7, EOT]}
    for rows, pad, hint in (
        (
            [short, long],
            PAD,
            "fill up on the right: ids with pad_id, labels with -100, mask with 0.",
        ),
        ([short, long], EOT, "with pad_id equal to the end of turn, the real one stays graded."),
        ([long], PAD, "a batch of one row needs no padding."),
    ):
        longest = max(len(row["input_ids"]) for row in rows)
        missing = [longest - len(row["input_ids"]) for row in rows]
        expected = {
            "input_ids": [r["input_ids"] + [pad] * m for r, m in zip(rows, missing, strict=True)],
            "attention_mask": [[1] * (longest - m) + [0] * m for m in missing],
            "labels": [
                r["labels"] + [IGNORE_INDEX] * m for r, m in zip(rows, missing, strict=True)
            ],
        }
        given = [{name: list(values) for name, values in row.items()} for row in rows]
        got = call(number, function, given, pad)
        lengths = [len(row["input_ids"]) for row in rows]
        shown = f"pad_batch(rows of length {lengths}, {pad})"
        expect(number, got, expected, hint, call=shown)
        if given != rows:
            fail(number, f"{shown} changed its rows", "build new lists, with + and not with +=.")
    passed(number)


def tagged_template(function):
    number = "6.4"
    from jinja2.exceptions import TemplateError as JinjaError

    source = call(number, function)
    if not isinstance(source, str):
        said = f"tagged_template() returned {shorten(source)}"
        fail(number, said, "return the template's text (is a return missing?).")
    shown = "the template that tagged_template() returned"
    if not re.search(r"{%-?\s*generation\s*-?%}", source):
        said = f"{shown} has no {{% generation %}} ... {{% endgeneration %}}"
        fail(number, said, "put the pair around what the model writes.")
    tokenizer = toy("chatml")
    for messages, prompt in ((TWO_REPLIES, False), (QUESTION, True)):
        options = {"add_generation_prompt": prompt}
        expected = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        try:
            got = tokenizer.apply_chat_template(
                messages, chat_template=source, tokenize=False, **options
            )
            found = tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **options,
            )
        except JinjaError as error:
            fail(number, f"{shown} raised {type(error).__name__}: {error}", "is every tag closed?")
        hint = "the tags must not change the text; a dash inside a tag eats white space."
        expect(number, got, expected, hint, call="rendering with tagged_template()")
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        expect(
            number,
            _graded_texts(tokenizer, found["input_ids"], found["assistant_masks"]),
            [f"{reply}<|im_end|>" for reply in replies],
            "graded are the replies, each with its end of turn: no header, no line break after.",
            call="grading with tagged_template()",
        )
    passed(number)


def cut(function):
    number = "6.5"
    ids = [BEGIN, 11, 12, EOT, 13, 14, EOT, 11, 12, EOT, 13, 14, 15, EOT]
    graded = {4, 5, 6, 10, 11, 12, 13}
    labels = [n if position in graded else IGNORE_INDEX for position, n in enumerate(ids)]
    for length, kept, hint in (
        (20, 14, "what fits stays as it is."),
        (14, 14, "what fits exactly stays as it is."),
        (12, 7, "a half reply is dropped whole, and the question before it too."),
        (10, 7, "the end of a user's turn is no place to end: nothing behind it is graded."),
        (7, 7, "a reply that ends exactly at max_length fits."),
    ):
        got = call(number, function, list(ids), list(labels), length, EOT)
        if not isinstance(got, tuple | list) or len(got) != 2:
            said = f"cut(ids, labels, {length}, {EOT}) returned {shorten(got)}"
            fail(number, said, "return two lists: the ids and the labels that are kept.")
        shown = (
            f"of a sample with replies in positions 4 to 6 and 10 to 13, cut(..., {length}, {EOT})"
        )
        expect(number, len(got[0]), kept, hint, call=f"the number of ids {shown}")
        expect(number, list(got[0]), ids[:kept], hint, call=f"the ids {shown}")
        expect(number, list(got[1]), labels[:kept], hint, call=f"the labels {shown}")
    said = "not even the first reply fits into max_length 6, and"
    _must_refuse(number, function, (list(ids), list(labels), 6, EOT), "cut", said)
    passed(number)


def reply_mask(function):
    number = "6.6"
    for render in (steady, gapped):
        for messages in (TWO_REPLIES[:2], TWO_REPLIES):
            got = call(number, function, render, [dict(m) for m in messages], "<end>")
            expected = _expected_mask(render(messages))
            shown = f"reply_mask({render.__name__}, {len(messages)} messages, '<end>')"
            hint = _mask_hint(got, expected, render(messages))
            expect(number, got, expected, hint, call=shown)
    for render, messages, what in (
        (forgetful, TWO_REPLIES, "rewrites its first reply when a question follows, and"),
        (thinking, TWO_REPLIES[:2], "sends another prompt than it trains with, and"),
    ):
        said = f"the template {render.__name__} {what}"
        arguments = (render, [dict(message) for message in messages], "<end>")
        _must_refuse(number, function, arguments, "reply_mask", said)
    got = call(number, function, forgetful, TWO_REPLIES[:2], "<end>")
    hint = "refuse only what is rewritten: with a single reply this template is fine."
    expected = _expected_mask(forgetful(TWO_REPLIES[:2]))
    expect(number, got, expected, hint, call="reply_mask(forgetful, 2 messages, '<end>')")
    passed(number)


# --- small templates that give words instead of ids -----------------------------------------------


def steady(messages, add_generation_prompt=False):
    """Every message is written in the same way, whatever comes after it."""
    words = ["<s>"]
    for message in messages:
        words += [f"<{message['role']}>", *message["content"].split(), "<end>"]
    return words + ["<assistant>"] * add_generation_prompt


def gapped(messages, add_generation_prompt=False):
    """As `steady`, with a line break behind every end of turn."""
    words = []
    for word in steady(messages, add_generation_prompt):
        words += [word, "\\n"] if word == "<end>" else [word]
    return words


def forgetful(messages, add_generation_prompt=False):
    """Writes <think> into the last reply and leaves it out once another message follows."""
    words = steady(messages, add_generation_prompt)
    if messages and messages[-1]["role"] == "assistant":
        start = len(steady(messages[:-1])) + 1
        words = [*words[:start], "<think>", *words[start:]]
    return words


def thinking(messages, add_generation_prompt=False):
    """Opens every reply with <think> in the generation prompt, but not in a finished reply."""
    return steady(messages, add_generation_prompt) + ["<think>"] * add_generation_prompt


def _expected_mask(words):
    mask, inside = [], False
    for word in words:
        mask.append(inside)
        if word == "<assistant>":
            inside = True
        elif word == "<end>":
            inside = False
    return mask


def _mask_hint(got, expected, words):
    """What the first wrong position is."""
    if not isinstance(got, list) or len(got) != len(expected):
        return "one boolean for each token of the whole conversation."
    for word, have, want in zip(words, got, expected, strict=True):
        if have and not want:
            return {
                "<assistant>": "the header is sent by the server: render the prompt with it.",
                "\\n": "the model stops at the end of turn and never writes what is behind it.",
            }.get(word, f"{word!r} is not written by the model.")
        if want and not have:
            end = "the end of turn is graded: it teaches the model to stop."
            return end if word == "<end>" else f"{word!r} is part of a reply: grade every reply."
    return "compare both lists position by position."


def _graded_texts(tokenizer, ids, mask):
    """The text of each run of graded tokens."""
    runs, before = [], 0
    for number, graded in zip(ids, mask, strict=True):
        if graded and not before:
            runs.append([])
        if graded:
            runs[-1].append(number)
        before = graded
    return [tokenizer.decode(run) for run in runs]


def _must_refuse(number, function, arguments, name, said):
    """The call must raise MaskError."""
    try:
        got = function(*arguments)
    except NotImplementedError:
        raise NotAttempted(f"Exercise {number}: not attempted yet.") from None
    except MaskError:
        return
    except Exception as error:
        what = f"{said} {name} raised {type(error).__name__}: {error}"
        fail(number, what, "raise MaskError, with a message that says which turn.")
    fail(number, f"{said} {name} returned {shorten(got, 60)}", "raise MaskError instead.")


@lru_cache
def toy(family):
    """A tokenizer with the family's template, made on the spot."""
    from course_utils.tokenizers import toy_tokenizer

    tokenizer = toy_tokenizer([message["content"] for message in TWO_REPLIES])
    tokenizer.chat_template = chat_template(family)
    return tokenizer
