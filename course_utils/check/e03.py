"""Checks of the exercises of lecture 03."""

from functools import wraps

from course_utils.check.core import call, expect, fail, passed
from course_utils.conversation import Conversation, conversation
from course_utils.examples import WALKTHROUGH
from course_utils.templates import FAMILIES, render
from course_utils.tokenizers import WordTokenizer

COLOUR = conversation(("user", "Name a colour."), ("assistant", "Blue."))
GREETING = conversation(("user", "Hi"), ("assistant", "Hello there"))
# The user says "assistant", a reply repeats a question, and a reply is one word long.
LONG = conversation(
    ("user", "Are you an assistant ?"),
    ("assistant", "Yes"),
    ("user", "assistant or user ?"),
    ("assistant", "An assistant I said"),
    ("user", "Yes"),
    ("assistant", "Yes"),
)
OPEN_END = conversation(("system", "Be brief"), ("user", "One"), ("assistant", "1"), ("user", "?"))
CHATS = (GREETING, WALKTHROUGH, LONG, OPEN_END)


def llama3(chat: Conversation) -> tuple[list[str], list[bool], list[str | None]]:
    """The chat's word tokens in the Llama-3 format, whether each is graded, and its span's role."""
    rendered = render(chat, "llama3")
    owners = [span for span in rendered.spans for _ in span.text]
    ranges = WordTokenizer().pieces(rendered.text, FAMILIES["llama3"].special_tokens)
    spans = [owners[start] for start, _ in ranges]
    tokens = [rendered.text[start:end] for start, end in ranges]
    return tokens, [span.generated for span in spans], [span.role for span in spans]


def tokens_by_hand(function):
    exercise, expected = "3.1", llama3(COLOUR)[0]
    got = call(exercise, function)
    hint = "go through the recipe: one sequence start, then header, words and end of turn per turn."
    if isinstance(got, list):
        if got.count("<|begin_of_text|>") > 1:
            hint = "the sequence start stands once, before the first turn."
        elif got[: len(expected)] == expected:
            hint = "the chat is complete: nothing comes after the assistant's end of turn."
        elif "\n" in got:
            hint = "the double line break is one token, '\\n\\n'."
        elif got.count("<|eot_id|>") < 2:
            hint = "each of the two turns ends with <|eot_id|>."
    expect(exercise, got, expected, hint, call="tokens_by_hand()")
    passed(exercise)


def chatml_counts(function):
    exercise = "3.2"
    for chat in (COLOUR, WALKTHROUGH, LONG):
        words = [(message.role, len(message.content.split())) for message in chat]
        replies = [count for role, count in words if role == "assistant"]
        expected = {
            "tokens": sum(5 + count for _, count in words),
            "special": 2 * len(words),
            "graded": sum(replies) + len(replies),
        }
        got = call(exercise, function, chat)
        hint = "add up 1 for each span, but the number of words for a content."
        if isinstance(got, dict) and got.get("tokens") == expected["tokens"]:
            hint = "special is span.special; opener and end of turn, one each per turn."
            if got.get("special") == expected["special"]:
                hint = (
                    "graded are the assistant's words and its <|im_end|>; neither its header nor "
                    "the line break after <|im_end|>."
                )
        expect(exercise, got, expected, hint, call=f"chatml_counts({roles(chat)})")
    passed(exercise)


def graded_positions(function):
    exercise = "3.3"
    for chat in CHATS:
        tokens, graded, owners = llama3(chat)
        expected = [position for position, is_graded in enumerate(graded) if is_graded]
        got = call(exercise, function, list(tokens))
        expect(
            exercise,
            got,
            expected,
            _what_is_wrong(got, tokens, graded, owners),
            call=f"graded_positions(tokens of {roles(chat)})",
        )
    passed(exercise)


def _what_is_wrong(got, tokens, graded, owners):
    """A hint from the first position that is graded wrongly."""
    hint = "return a list of positions: the assistant's words and its end of turn, in every turn."
    if not isinstance(got, list):
        return hint
    for position, (token, is_graded, owner) in enumerate(zip(tokens, graded, owners, strict=True)):
        if (position in got) == is_graded:
            continue
        if is_graded and token == "<|eot_id|>":
            return "the assistant's end of turn is graded: the model has to write it to stop."
        if is_graded and any(p in got for p in range(position, len(tokens))):
            return "every assistant turn is graded, not only the last one, from its first word on."
        if not is_graded and owner == "assistant":
            return "the assistant's header is masked: the server writes it, not the model."
        if not is_graded and token == "<|eot_id|>":
            return "only the assistant's end of turn is graded, not that of the others."
        if not is_graded:
            return f"position {position} ({token!r}) belongs to the {owner}, so it is masked."
    return hint


def trained_positions(function):
    exercise = "3.4"
    cases = [
        ([-100, -100, 7, 9], [1, 2]),
        ([-100, 5, 6, -100, -100, 8, 9], [0, 1, 4, 5]),
        ([-100, 3, -100], [0]),
        ([4, -100, -100], []),  # a label at position 0 is nobody's target
        ([4, 5, 6], [0, 1]),
        ([-100, 0, -100, 0], [0, 2]),  # 0 is an ordinary id
        ([-100, -100], []),
        ([7], []),
        ([], []),
    ]
    for labels, expected in cases:
        got = call(exercise, function, list(labels))
        hint = "position i is trained if there is a label at i + 1 and it is not -100."
        own = [i for i, label in enumerate(labels) if label != -100]
        if got == own:
            hint = "these are the positions of the labels; their targets' logits stand one earlier."
        elif isinstance(got, list) and any(isinstance(i, int) and i < 0 for i in got):
            hint = "a label at position 0 has no position before it, so it trains nothing."
        elif got == [i + 1 for i in own if i + 1 < len(labels)]:
            hint = "the wrong way: the logits stand one place before the label, not behind it."
        expect(exercise, got, expected, hint, call=f"trained_positions({labels})")
    passed(exercise)


def diagnose(function):
    exercise = "3.5"
    hints = {
        "right": "the mask grades each reply and its end of turn and nothing else.",
        "early": "compare with the right mask moved to the left: the number of graded tokens "
        "does not tell.",
        "late": "compare with the right mask moved to the right: the first word of each reply is "
        "masked.",
        "no end": "look at <|eot_id|> of every assistant turn.",
        "header": "look at the four tokens before every reply.",
    }
    for chat in (WALKTHROUGH, LONG, OPEN_END):
        tokens, graded, owners = llama3(chat)
        for fault, mask in planted(tokens, graded, owners).items():
            got = call(exercise, function, list(tokens), list(mask))
            said = f"diagnose(tokens of {roles(chat)}, the mask for {fault!r})"
            expect(exercise, got, fault, hints[fault], call=said)
    passed(exercise)


def planted(tokens, graded, owners):
    """Each fault with its mask."""
    end = [token == "<|eot_id|>" for token in tokens]
    return {
        "right": graded,
        "early": graded[1:] + [False],
        "late": [False] + graded[:-1],
        "no end": [a and not b for a, b in zip(graded, end, strict=True)],
        "header": [owner == "assistant" for owner in owners],
    }


def predict_counts(function):
    exercise = "3.6"
    cases = [
        [("system", 4), ("user", 7), ("assistant", 9)],
        [("user", 1)],
        [("user", 2), ("assistant", 1), ("user", 3), ("assistant", 30)],
        [("system", 0), ("user", 5), ("assistant", 0)],
    ]
    for turns in cases:
        replies = [words for role, words in turns if role == "assistant"]
        expected = (
            1 + sum(5 + words for _, words in turns),
            1 + 3 * len(turns),
            sum(replies) + len(replies),
        )
        got = call(exercise, function, list(turns))
        hint = "a turn costs its words and five more, the sequence start one."
        if isinstance(got, tuple) and got[:1] == expected[:1]:
            hint = "special: opener, closer and end of turn of each turn, and the sequence start."
            if got[:2] == expected[:2]:
                hint = "graded: the words of every assistant turn and its end of turn."
        expect(exercise, got, expected, hint, call=f"predict_counts({turns})")
    passed(exercise)


def shortest_reply(function):
    exercise = "3.7"
    prompt = [("system", 4), ("user", 7)]
    second = [("user", 3), ("assistant", 40), ("user", 2)]
    for turns in (prompt, second, [("user", 1)]):
        for percent in (0, 1, 10, 30, 50, 60, 70, 90, 99):
            got = call(exercise, function, list(turns), percent)
            hint = (
                "count the new turn's five tokens, its graded end of turn, and graded tokens of "
                "earlier turns."
            )
            if isinstance(got, int) and got < 0:
                hint = "a reply cannot have fewer than 0 words."
            elif isinstance(got, int) and abs(got - _shortest(turns, percent)) == 1:
                hint = "one word off: round up, and compare with >=, in integers."
            said = f"shortest_reply({turns}, {percent})"
            expect(exercise, got, _shortest(turns, percent), hint, call=said)

    @wraps(function)
    def attempt(*arguments):
        try:
            return function(*arguments)
        except ValueError:
            return ValueError

    got = call(exercise, attempt, prompt, 100)
    if got is not ValueError:
        said = f"shortest_reply({prompt}, 100) returned {got!r}, expected a ValueError"
        fail(exercise, said, "the prompt is never graded, so no reply is long enough.")
    passed(exercise)


def _shortest(turns, percent):
    """By search, so that it shares no formula with the solution."""
    before = sum(5 + words for _, words in turns) + 1
    graded = sum(words + 1 for role, words in turns if role == "assistant")
    words = 0
    while 100 * (graded + words + 1) < percent * (before + 5 + words):
        words += 1
    return words


def roles(chat: Conversation) -> str:
    """How a chat is named in a message."""
    return "a chat of " + ", ".join(chat.roles) if len(chat) < 5 else f"a chat of {len(chat)} turns"
