"""What every exercise check is made of.

A check calls the learner's function (``call``), compares what came back (``expect``) and says so
(``passed``). It judges by exceptions alone: stored notebook outputs are the learner's own, so a
wrong answer would match itself.
"""

import math
import traceback
from functools import wraps

MAX_LENGTH = 120  # characters of a shown value


class CheckFailed(AssertionError):
    """The answer is wrong. Shown in a notebook as one line, without a traceback."""

    def _render_traceback_(self, *args, **kwargs):
        return [f"{type(self).__name__}: {self}"]


class NotAttempted(CheckFailed):
    """The stub is still there."""


def call(exercise, function, *args, **kwargs):
    """What ``function(*args, **kwargs)`` returns.

    Raises NotAttempted where it raises NotImplementedError, and CheckFailed, naming the call, the
    error and the line, where it raises anything else.
    """
    shown = describe_call(function, *args, **kwargs)  # before the function can change its arguments
    try:
        return function(*args, **kwargs)
    except NotImplementedError:
        raise NotAttempted(f"Exercise {exercise}: not attempted yet.") from None
    except Exception as error:
        message = f"{type(error).__name__}: {error}".rstrip(": ")
        where = learner_line(function, error)
        raise CheckFailed(f"Exercise {exercise}: {shown} raised {message}{where}") from None


def refusing(function):
    """The function with ValueError as its answer instead of that exception."""

    @wraps(function)
    def attempt(*arguments):
        try:
            return function(*arguments)
        except ValueError:
            return ValueError

    return attempt


def describe_call(function, *args, **kwargs):
    """``name(first, key=second)``, each value shortened."""
    name = getattr(function, "__name__", type(function).__name__)
    shown = [shorten(arg, 50) for arg in args]
    shown += [f"{key}={shorten(value, 50)}" for key, value in kwargs.items()]
    return f"{name}({', '.join(shown)})"


def learner_line(function, error):
    """Where in the learner's own cell the error came from, as `` (line 3: code)``."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    return f" (in the line: {own[-1].line})" if own and own[-1].line else ""


def expect(exercise, got, expected, hint, call="your function", tolerance=None):
    """Raise CheckFailed, saying what came back, what was expected and ``hint``, unless equal.

    ``call`` is the call as the learner would write it, for instance ``"mask(tokens)"``. Tensors
    and arrays are compared as lists; with ``tolerance``, numbers are compared to within it.
    """
    got, expected = plain(got), plain(expected)
    if equal(got, expected, tolerance):
        return
    said = f"{call} returned {shorten(got)}, expected {shorten(expected)}"
    if got is None:
        said += " (is a return missing?)"
    elif type(got) is not type(expected) and not (number(got) and number(expected)):
        said += f" (a {type(got).__name__}, not a {type(expected).__name__})"
    else:
        said += first_difference(got, expected, tolerance)
    fail(exercise, said, hint)


def fail(exercise, said, hint):
    """Raise CheckFailed with what is wrong and a hint, in one line."""
    raise CheckFailed(f"Exercise {exercise}: {said.rstrip('.')}. Hint: {hint}")


def passed(exercise):
    """Say that the exercise is solved."""
    print(f"Exercise {exercise} passed")


def plain(value):
    """Tensors and arrays as lists and numbers, a defaultdict and its like as a dict."""
    if isinstance(value, dict):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else value


def number(value):
    return isinstance(value, int | float)


def equal(got, expected, tolerance=None):
    if tolerance is not None and number(got) and number(expected):
        return math.isclose(got, expected, rel_tol=0, abs_tol=tolerance)
    if isinstance(got, dict) and isinstance(expected, dict):  # a defaultdict is a dict
        return got.keys() == expected.keys() and all(
            equal(got[key], expected[key], tolerance) for key in expected
        )
    if type(got) is not type(expected) and not (number(got) and number(expected)):
        return False
    if isinstance(expected, list | tuple):
        pairs = zip(got, expected, strict=False)
        return len(got) == len(expected) and all(equal(a, b, tolerance) for a, b in pairs)
    return bool(got == expected)


def first_difference(got, expected, tolerance=None):
    """``"; first difference at position 26: got -100, expected 5123"``, empty for short values."""
    if isinstance(expected, dict):
        for key in [*expected, *got]:
            a, b = got.get(key, "nothing"), expected.get(key, "nothing")
            if not equal(a, b, tolerance):
                return f"; they differ at key {key!r}: got {shorten(a)}, expected {shorten(b)}"
    if not isinstance(expected, list | tuple | str) or max(len(got), len(expected)) < 4:
        return ""
    word = "character" if isinstance(expected, str) else "position"
    for position, (a, b) in enumerate(zip(got, expected, strict=False)):
        if not equal(a, b, tolerance):
            if isinstance(expected, str):
                a, b = got[position : position + 20], expected[position : position + 20]
            return (
                f"; first difference at {word} {position}: got {shorten(a)}, expected {shorten(b)}"
            )
    return f"; {len(got)} {word}s instead of {len(expected)}, equal as far as both go"


def shorten(value, length=MAX_LENGTH):
    """``repr`` of a value in at most ``length`` characters, the middle left out."""
    text = repr(plain(value)).replace("\n", " ")
    if len(text) <= length:
        return text
    if isinstance(value, list | tuple):
        return f"{text[: length - 25].rsplit(', ', 1)[0]}, ...] ({len(value)} items)"
    return f"{text[: length * 2 // 3]} ... {text[-(length // 4) :]}"
