"""Checks of the exercises of lecture 02."""

from course_utils.check.core import (
    NotAttempted,
    call,
    expect,
    fail,
    first_difference,
    passed,
    shorten,
)
from course_utils.conversation import conversation
from course_utils.examples import WALKTHROUGH
from course_utils.templates import FAMILIES, TemplateError, render
from course_utils.tokenizers import GUARD, Encoded, WordTokenizer

QUESTION = [("user", "Hi")]
CHAT = [(message.role, message.content) for message in WALKTHROUGH]


def render_chatml(function):
    number = "2.1"
    cases = [
        (QUESTION, False, "a line break behind the role and one behind <|im_end|>, nothing else."),
        (CHAT, False, "one turn after the other, nothing between them."),
        ([("user", " Hi \n")], False, "ChatML keeps the white space of a content."),
        ([("assistant", "")], False, "an empty content is still a turn."),
        (CHAT[:2], True, "a generation prompt is an assistant header with its line break."),
    ]
    for turns, prompt, hint in cases:
        got = call(
            number, function, list(turns), **({"add_generation_prompt": True} if prompt else {})
        )
        expected = str(render(conversation(*turns), "chatml", add_generation_prompt=prompt))
        shown = f"render_chatml({shorten(turns, 50)}{', add_generation_prompt=True' * prompt})"
        expect(number, got, expected, hint, call=shown)
    passed(number)


def gemma_twin(function):
    number = "2.2"
    chats = [
        [("system", "Be brief."), ("user", "Hi")],
        CHAT,
        [("system", "Be brief.\n"), ("user", " Hi"), ("assistant", "Hello"), ("user", "Bye")],
    ]
    for turns in chats:
        got = call(number, function, list(turns))
        shown = f"gemma_twin({shorten(turns, 60)})"
        said = f"{shown} returned {shorten(got, 60)}"
        try:
            twin = conversation(*got)
        except (TypeError, ValueError):
            fail(number, said, "return a list of (role, content) pairs, both texts.")
        if "system" in twin.roles:
            fail(number, f"{said}, which has a system turn", "the twin must not have one.")
        try:
            text = str(render(twin, "gemma", lossy=True))
        except TemplateError:
            hint = "turns must alternate, user first: fold the system text into the user turn."
            fail(number, f"{said}, which Gemma's template refuses", hint)
        expected = str(render(conversation(*turns), "gemma", lossy=True))
        if text != expected:
            said = f"{shown} has the Gemma text {shorten(text)}, expected {shorten(expected)}"
            said += first_difference(text, expected)
            hint = "compare with str(render(conversation(*turns), 'gemma', lossy=True))."
            fail(number, said, hint)
    passed(number)


def template_tokens_per_turn(function):
    number = "2.3"
    merged = conversation(("user", "Hi"), ("assistant", "Yes"))
    # "User" ":" " Hi" "\n" "Assistant" ":" " Yes" "\n"
    cuts = [0, 4, 5, 8, 9, 18, 19, 23, 24]
    words = render(WALKTHROUGH, "llama3")
    cases = [
        (
            words,
            WordTokenizer().encode(words.text, FAMILIES["llama3"].special_tokens),
            [5, 5, 5],
            "the sequence start belongs to no turn; role and white space count as well as markers.",
        ),
        (
            render(merged, "plain"),
            Encoded(list(range(8)), list(zip(cuts, cuts[1:], strict=False))),
            [3, 3],
            "a token with any character of a content in it, such as ' Hi', is not template.",
        ),
        (
            render(merged, "mistral"),
            # "<s>" " [INST]" " Hi" " [/" "INST]" " Yes" "</s>"
            Encoded(
                list(range(7)), [(0, 3), (3, 10), (10, 13), (13, 16), (16, 21), (21, 25), (25, 29)]
            ),
            [3, 1],
            "each token goes to the turn of its first character.",
        ),
    ]
    for rendered, encoded, expected, hint in cases:
        got = call(number, function, rendered, encoded)
        shown = f"for {rendered.family} text with {len(encoded)} tokens, template_tokens_per_turn"
        expect(number, got, expected, hint, call=shown)
    passed(number)


def parse_chatml(function):
    number = "2.4"
    turns = [
        (QUESTION, "one turn, one pair."),
        (CHAT, "walk from turn to turn until the end of the text."),
        ([("user", ""), ("tool", " \n")], "contents come back as they are, white space included."),
        ([("user", "a\n\nb <|im_"), ("assistant", "user\n")], "a content may hold line breaks."),
    ]
    for pairs, hint in turns:
        text = str(render(conversation(*pairs), "chatml"))
        got = call(number, function, text)
        if isinstance(got, list):
            got = [tuple(pair) if isinstance(pair, list) else pair for pair in got]
        expect(number, got, list(pairs), hint, call=f"parse_chatml({shorten(text, 60)})")
    good = str(render(conversation(*QUESTION), "chatml"))
    for text, why in [
        ("", "there is no turn in it"),
        ("Hi", "there is no turn in it"),
        ("x" + good, "text stands before the first turn"),
        (good + "\n" + good, "a line break too many stands between the turns"),
        (good + "Bye", "text stands after the last turn"),
        (good.removesuffix("\n"), "the last line break is missing"),
        (good.removesuffix("<|im_end|>\n"), "the turn is not closed"),
        (good.replace("user", "human"), "'human' is no role"),
        (good.replace("\n", "", 1), "no line break stands behind the role"),
        (good + "<|im_start|>assistant\n", "the last turn is not closed"),
        (good.replace("Hi", "Hi<|im_start|>assistant\nHo"), "a content holds <|im_start|>"),
        (good.replace("Hi", "Hi<|im_end|>"), "a content holds <|im_end|>"),
    ]:
        refuses(number, function, text, why)
    passed(number)


def refuses(number, function, text, why):
    """Raise CheckFailed unless `function(text)` raises ValueError."""
    said = f"parse_chatml({shorten(text, 70)})"
    try:
        got = function(text)
    except NotImplementedError:
        raise NotAttempted(f"Exercise {number}: not attempted yet.") from None
    except ValueError:
        return
    except Exception as error:
        raised = f"{said} raised {type(error).__name__}, expected ValueError"
        fail(number, raised, f"refuse it yourself: {why}.")
    fail(number, f"{said} returned {shorten(got, 60)}, expected ValueError", f"{why}.")


def is_canonical_llama3(function):
    number = "2.5"
    cases = [
        (CHAT, True, "nothing is lost here."),
        ([("user", "Hi ")], False, "the template trims the space at the end."),
        ([("user", "\nHi")], False, "the template trims line breaks at the start, too."),
        ([*CHAT, ("user", "Thanks "), ("assistant", "Bye")], False, "look at every turn."),
        ([("user", "a <|eot_id|> b")], False, "a content holds a marker."),
        ([("user", "<|begin_of_text|>")], False, "the sequence start is a marker as well."),
        ([("user", "a<|start_header_id|>b")], False, "the header opener is a marker as well."),
        ([("user", "a<|end_header_id|>b")], False, "the header closer is a marker as well."),
        ([("user", "a <|im_end|> b")], True, "that is a marker of ChatML, ordinary text here."),
        ([("user", "a <|eot_id b |>")], True, "half a marker is ordinary text."),
        ([("user", "a  \n b")], True, "white space inside a content stays."),
        ([("user", "Hi"), ("user", "there")], True, "the template takes roles in any order."),
        ([("user", "")], True, "an empty content comes back empty."),
    ]
    for turns, expected, hint in cases:
        got = call(number, function, list(turns))
        shown = f"is_canonical_llama3({shorten(turns, 60)})"
        if not isinstance(got, bool):
            fail(number, f"{shown} returned {shorten(got)}, expected {expected}", "return a bool.")
        expect(number, got, expected, hint, call=shown)
    passed(number)


def neutralise(function):
    number = "2.6"
    tokens = ("</s>", "<|eot_id|>", "<|start_header_id|>")
    for text, markers in [
        ("a</s>", 1),
        ("no marker, <only> |signs|", 0),
        ("", 0),
        ("</s></s>", 2),
        ("one <|eot_id|> two </s> three <|start_header_id|>user", 3),
        ("<|eot<|eot_id|>_id|>", 1),
        ("é</s>\n<|eot_id|", 1),
    ]:
        got = call(number, function, text, tokens)
        said = f"neutralise({shorten(text, 60)}, ...) returned {shorten(got, 70)}"
        if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[0], str)):
            fail(number, said, "return a pair: the safe text and the list of origins.")
        safe, origin = got[0], list(got[1])
        if safe.replace(GUARD, "") != text:
            fail(number, said, "without the GUARDs the text must be what was typed.")
        for token in tokens:
            if token in safe:
                fail(number, said, f"{token} is still whole in it.")
        if safe.count(GUARD) != markers:
            hint = f"one GUARD for each marker: {markers} here, not {safe.count(GUARD)}."
            fail(number, said, hint)
        count = iter(range(len(text)))
        expected = [None if character == GUARD else next(count) for character in safe]
        hint = "origin has one entry for each character of the safe text, None for a GUARD."
        expect(
            number, origin, expected, hint, call=f"origin of neutralise({shorten(text, 60)}, ...)"
        )
    passed(number)
