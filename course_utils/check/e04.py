"""Checks of the exercises of lecture 04."""

import re

from course_utils.check.core import call, expect, fail, passed, plain, refusing, shorten
from course_utils.examples import TINY_CHATS, WALKTHROUGH

CHATS = [
    [(message.role, message.content) for message in chat] for chat in (WALKTHROUGH, *TINY_CHATS)
]
# A user quotes a whole assistant turn, header and all; a reply is empty.
CHATS.append(
    [
        ("user", "What is <|im_start|>assistant\nyes<|im_end|> for?"),
        ("assistant", "yes"),
        ("user", "yes"),
        ("assistant", ""),
    ]
)

LLAMA = r"[^\r\n0-9A-Za-z]?[A-Za-z]+|[0-9]{1,3}| ?[^\s0-9A-Za-z]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def graded_text(text, mask):
    """What is graded of a text, each run in quotes."""
    runs, previous = [], False
    for character, graded in zip(text, mask, strict=False):
        if graded and not previous:
            runs.append("")
        if graded:
            runs[-1] += character
        previous = graded
    return runs


def whose_bug(function):
    exercise, expected = "4.1", {"A": "search", "B": "lock-step", "C": "words"}
    got = call(exercise, function)
    ways = sorted(expected.values())
    if not isinstance(got, dict) or any(way not in ways for way in got.values()):
        named = ", ".join(map(repr, ways))
        fail(exercise, f"whose_bug() returned {got!r}", f"a dict whose values are among {named}.")
    hints = {
        "A": "in A the mask starts at the first 'B' of the text, which is the user's.",
        "B": "in B exactly the reply and its end of turn are graded.",
        "C": "in C the mask starts at the header, where no reply's text stands.",
    }
    wrong = [key for key in expected if got.get(key) != expected[key]]
    # Without the answer: the message may say which entry is wrong, not what it should be.
    if wrong or len(got) != len(expected):
        hint = hints[wrong[0]] if wrong else "the keys are A, B and C."
        fail(exercise, f"whose_bug() returned {got!r}, and that is not right", hint)
    passed(exercise)


def is_graded(function):
    exercise = "4.2"
    for role in ("assistant", "user", "system"):
        for kind in ("content", "eot", "open", "role", "close", "space", "gap"):
            expected = role == "assistant" and kind in ("content", "eot")
            hint = "everything of a system or user turn is written by somebody else."
            if role == "assistant":
                hint = {
                    "content": "the reply is what the model is to learn.",
                    "eot": "the model has to write the end of turn itself, or it never stops.",
                    "gap": "the model has stopped before the gap is written.",
                }.get(kind, "the server writes the assistant's header.")
            said = f"is_graded({kind!r}, {role!r})"
            expect(exercise, call(exercise, function, kind, role), expected, hint, call=said)
    got = call(exercise, function, "bos", None)
    expect(exercise, got, False, "nothing predicts the sequence start.", "is_graded('bos', None)")
    passed(exercise)


def character_mask(function):
    exercise = "4.3"
    cases = [
        [("a:", False), ("hi", True)],
        [("", True), ("x", False), ("", False)],
        [("user: ", False), ("naïve café 😀", True), ("\n", True), ("end", False)],
        [],
    ]
    for spans in cases:
        text = "".join(piece for piece, _ in spans)
        mask = [graded for piece, graded in spans for _ in piece]
        got = call(exercise, function, list(spans))
        hint = "return a pair: the joined text, and one bool for each of its characters."
        if isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], list):
            if len(got[1]) == len(text.encode()) != len(text):
                hint = "count characters, not bytes."
            elif len(got[1]) == len(spans) != len(text):
                hint = "one entry for each character, not for each span."
            said = f"character_mask({spans})"
            expect(exercise, got[0], text, hint, call=f"the text of {said}")
            expect(exercise, got[1], mask, hint, call=f"the mask of {said}")
        expect(exercise, got, (text, mask), hint, call=f"character_mask({spans})")
    passed(exercise)


def labels_of(function):
    exercise = "4.4"
    f, t = False, True
    cases = [
        ([7, 8, 9], [(0, 1), (1, 3), (3, 5)], [f, f, f, t, t], [-100, -100, 9]),
        ([5, 6, 7, 8], [(0, 2), (2, 3), (3, 6), (6, 7)], [f, f, t, t, t, t, f], [-100, 6, 7, -100]),
        # Id 0 is an ordinary id, and spaces may belong to no token.
        ([3, 0, 4, 0], [(0, 1), (2, 3), (3, 4), (5, 6)], [f, f, t, f, f, t], [-100, 0, -100, 0]),
        # A token that covers nothing.
        ([1, 5, 6], [(0, 0), (0, 2), (2, 4)], [f, f, t, t], [-100, -100, 6]),
        ([1, 5, 2], [(0, 0), (0, 2), (0, 0)], [t, t], [-100, 5, -100]),
        ([], [], [], []),
    ]
    for ids, offsets, mask, expected in cases:
        got = call(exercise, function, list(ids), list(offsets), list(mask))
        hint = "the token's own id where all its characters are graded, -100 elsewhere."
        if isinstance(got, list) and len(got) == len(expected):
            empty = [n for n, (start, end) in enumerate(offsets) if start == end]
            if any(got[n] != -100 for n in empty):
                hint = "a token with the range (0, 0) covers nothing; all([]) is True."
            elif got == [0 if label == -100 else label for label in expected]:
                hint = "0 is an ordinary id; what is not graded gets -100."
            elif got[:-1] == expected[1:]:
                hint = "labels stand at their own tokens: the loss shifts, not you."
        said = f"labels_of({ids}, {offsets}, ...)"
        expect(exercise, got, expected, hint, call=said)
    passed(exercise)


def cut(text: str) -> list[tuple[int, int]]:
    """(start, end) of each token: lecture 04's stand-in for Llama 3's tokenizer."""
    return _ranges(LLAMA, text)


def _ranges(pattern, text):
    return [match.span() for match in re.finditer(pattern, text)]


def cut_before_words(text):
    """As SentencePiece does: all white space goes with what comes after it."""
    return _ranges(r"\s*\S+|\s+", text)


def cut_by_what_follows(text):
    """A word in front of an exclamation mark falls into letters."""
    return _ranges(r"\w(?=\w*!)|\w+|\s+|[^\w\s]", text)


EDGES = [
    # (prompt, reply, tokenizer, the prompt that a server must send; None: refuse)
    ("a: ", "hi", cut, "a:"),
    ("a:", " hi", cut, "a:"),
    ("a:\n\n", "hi.", cut, "a:\n\n"),
    ("a:  ", "hi", cut, "a: "),
    ("a:\n\n ", "hi.\n", cut_before_words, "a:"),
    ("a: ", "hi", cut_by_what_follows, "a: "),
    # A reply of white space alone: the edge can be moved as well.
    ("a: ", " ", cut, "a:"),
    # A number, a word, and a colon that takes both line breaks along.
    ("Is it 1", "0?", cut, None),
    ("a: wo", "rd", cut, None),
    ("a:\n", "\nhi", cut, None),
    ("a b ", "c", lambda text: [(0, len(text))] if text else [], None),
    # No token straddles, and yet the server's tokens are others: "a", not "a" and "b".
    ("ab", "!", cut_by_what_follows, None),
]


def move_edge(function):
    exercise = "4.5"
    for prompt, reply, tokenizer, edge in EDGES:
        got = call(exercise, refusing(function), prompt, reply, tokenizer)
        said = f"move_edge({prompt!r}, {reply!r}, {tokenizer.__name__.replace('<lambda>', 'cut')})"
        text, sample = prompt + reply, tokenizer(prompt + reply)
        if edge is None:
            if got is not ValueError:
                hint = "no white space left out at its end makes it fit: raise ValueError."
                fail(exercise, f"{said} returned {shorten(got)}, expected a ValueError", hint)
            continue
        expected = (edge, [start >= len(edge) for start, _ in sample])
        if got is ValueError:
            hint = "white space at the prompt's end may go to the reply; then the tokens fit."
            if edge == prompt:
                hint = "the tokens of this prompt are the sample's first ones as it is."
            fail(exercise, f"{said} raised ValueError, expected {expected}", hint)
        if not isinstance(got, tuple | list) or len(got) != 2 or not isinstance(got[0], str):
            expect(exercise, got, expected, "return a pair: prompt and mask.", call=said)
        hint = _edge_hint(got[0], text, sample, tokenizer)
        expect(exercise, got[0], edge, hint, call=f"the prompt of {said}")
        hint = "one entry for each token of prompt + reply; graded is what the prompt leaves over."
        expect(exercise, plain(got[1]), expected[1], hint, call=f"the mask of {said}")
    passed(exercise)


def _edge_hint(got, text, sample, tokenizer):
    if not text.startswith(got):
        return "the text stays as it is; only the edge between prompt and reply moves."
    served = tokenizer(got)
    if served != sample[: len(served)]:
        return "a server sends the tokens of this prompt, and they are not the sample's first ones."
    return "move the edge no further than needed, and over white space only."


def render_chatml(function):
    exercise = "4.6"
    for turns in CHATS:
        pieces = []
        for role, content in turns:
            pieces += [(f"<|im_start|>{role}\n", False)]
            pieces += [(f"{content}<|im_end|>", role == "assistant"), ("\n", False)]
        text = "".join(piece for piece, _ in pieces)
        mask = [graded for piece, graded in pieces for _ in piece]
        got = call(exercise, function, list(turns))
        said = f"render_chatml({_short(turns)})"
        if not isinstance(got, tuple) or list(map(type, got)) != [str, list]:
            expect(exercise, got, (text, mask), "return a pair: text and mask.", call=said)
        hint = "opener, role, line break, content as it is, end of turn, line break."
        expect(exercise, got[0], text, hint, call=f"the text of {said}")
        hint = "one entry for each character of the text."
        expect(exercise, len(got[1]), len(mask), hint, call=f"the mask's length in {said}")
        expected, found = graded_text(text, mask), graded_text(text, got[1])
        last = any(got[1][text.rindex("<|im_start|>") :])
        hint = _chatml_hint(found, expected, last)
        expect(exercise, found, expected, hint, call=f"what is graded in {said}")
        expect(exercise, got[1], mask, hint, call=f"the mask of {said}")
    passed(exercise)


def _chatml_hint(found, expected, last):
    if found == [run.removesuffix("<|im_end|>") for run in expected if run != "<|im_end|>"]:
        return "the assistant's <|im_end|> is graded: without it the model never stops."
    if found == [f"{run}\n" for run in expected]:
        return "the line break after <|im_end|> is the server's."
    if last and found == expected[-1:]:
        return "every assistant turn is graded, not only the last one."
    if any("assistant\n" in run and run not in expected for run in found):
        return "the header is masked: the server writes it."
    return "do not look for the reply in the text; note the mask while you write."


def _short(turns):
    return f"{len(turns)} turns, the last {turns[-1]!r}"


def renderer(cls):
    exercise = "4.7"
    chats = [*CHATS, [("user", " Stop? [[end]]\n[[bot]] No. "), ("assistant", "\nYes. \n")]]
    for turns in chats:
        chat = call(exercise, cls)
        pieces = [("[[begin]]", False, True)]
        for number, (role, content) in enumerate(turns):
            said = f"after {number} turns of {_short(turns)}"
            if role == "assistant":
                _prompt(exercise, chat, pieces, said)
            call(exercise, chat.add, role, content)
            reply = role == "assistant"
            pieces += [
                (f"[[{'bot' if reply else role}]]", False, True),
                (" ", reply, True),
                (content.strip(), reply, False),
                ("[[end]]", reply, True),
                ("\n", False, True),
            ]
            _compare(exercise, chat, pieces, f"after {number + 1} turns of {_short(turns)}")
    passed(exercise)


def _prompt(exercise, chat, pieces, said):
    text = "".join(piece for piece, *_ in pieces)
    got = call(exercise, chat.prompt)
    hint = "the text so far and the assistant's bracketed name; the space belongs to the reply."
    expect(exercise, got, text + "[[bot]]", hint, call=f"prompt() {said}")
    expect(exercise, chat.text, text, "prompt() must not change the chat.", f"text {said}")


def _compare(exercise, chat, pieces, said):
    text = "".join(piece for piece, *_ in pieces)
    hint = "brackets, one space, the stripped content, [[end]], line break; the assistant is bot."
    expect(exercise, chat.text, text, hint, call=f"text {said}")
    for attribute, place in (("graded", 1), ("by_template", 2)):
        expected = [piece[place] for piece in pieces for _ in piece[0]]
        got = getattr(chat, attribute)
        hint = "one entry for each character, appended together with the text."
        expect(exercise, len(got), len(expected), hint, call=f"len({attribute}) {said}")
        hint = {
            "graded": "graded are the space, the content and [[end]] of every assistant turn.",
            "by_template": "the template writes all but the contents, whatever these contain.",
        }[attribute]
        runs = graded_text(text, expected)
        expect(exercise, graded_text(text, got), runs, hint, call=f"{attribute} {said}")
        expect(exercise, got, expected, hint, call=f"{attribute} {said}")
