"""The one frame around every command line: exit codes, one sentence for an error, safe printing.

    def main(arguments=None) -> int:
        return commands.run(_parser(), _work, arguments)

Whatever a command is given, it ends with a code that its `--help` lists and, if it failed, with one
sentence on standard error. `COURSE_DEBUG=1` shows the traceback as well.
"""

import argparse
import contextlib
import os
import re
import signal
import stat
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

DONE, FAILED, UNUSABLE, FAULT = 0, 1, 2, 70
EXITS = {
    UNUSABLE: "wrong arguments, or a file or folder that cannot be used",
    FAULT: "a fault of this course's code; please report it",
    130: "interrupted by Ctrl-C (129, 143: by a hang-up, by a request to end)",
}
LONGEST = 2000  # characters of an error message


class Failed(Exception):
    """The work was begun and failed: exit code 1. The message says what was kept, and where."""


class Ended(BaseException):
    """A signal asked this process to end. No `Exception`: nothing on the way may swallow it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


# --- printing ------------------------------------------------------------------------------------

# What a terminal obeys instead of showing it: control characters, line and paragraph separators,
# marks that turn the direction of writing, and halves of characters that cannot be encoded.
OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    """A text that a terminal shows and does not obey: `\\x1b` for an escape character.

    keep: control characters that stay, such as "\\n\\t" for a text of our own
    """
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


class _Stream:
    """Standard output or error while a command runs.

    Only printable text gets through, in letters that the terminal has. Where nobody reads any more,
    or the disk is full, the rest is dropped: a run of hours must not end because of that.
    """

    def __init__(self, stream, keep: str):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.keep, self.error = keep, None

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        shown = printable(text, self.keep).encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self.stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable[[], object]) -> None:
        if self.error is None:
            try:
                call()
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self.error = error

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def _streams() -> Iterator[_Stream]:
    # Without it a file opened next would become descriptor 1 after `>&-`, and take all prints.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    # A progress bar returns to the beginning of its line.
    out, error = _Stream(sys.stdout, "\n\t"), _Stream(sys.stderr, "\n\t\r")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            yield out
    finally:
        for stream in (out, error):
            stream.flush()
            if stream.error:
                # Else Python's own last flush would complain.
                with contextlib.suppress(OSError, ValueError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, stream.fileno())
                    os.close(null)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """The course's own warnings are for a reader: one line, without a place in the code."""
    former = warnings.formatwarning

    def shown(message, category, *place):
        ours = category.__module__.partition(".")[0] == __package__
        return f"warning: {message}\n" if ours else former(message, category, *place)

    # Not `showwarning`: that would take them from whoever records warnings.
    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = former


def unread() -> bool:
    """Has the reader of standard output gone, so that printing more is of no use?"""
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)


# --- arguments -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser whose help lists the exit codes: `exits` and those of all commands."""

    def __init__(self, *, exits: Mapping[int, str], epilog: str = "", **options):
        codes = "\n".join(f"  {code:<4} {text}" for code, text in sorted((EXITS | exits).items()))
        super().__init__(
            **options,
            epilog=f"{epilog}\n\nexit codes:\n{codes}".lstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        super().error(_short(printable(message)))


def number(text: str) -> int:
    """An argument's type: a whole number of a size that makes sense."""
    value = int(text)
    if abs(value) > 10**9:
        raise argparse.ArgumentTypeError(f"{text[:20]} is beyond a billion")
    return value


def name(text: str) -> str:
    """An argument's type: a name. An empty one is a variable that the shell did not know."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def check_input(path: str | Path) -> Path:
    """`path`, if it is a file that can be read; raises `OSError` with what it is otherwise."""
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file. Expected JSONL, one conversation per line."
        ) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path} is a folder. Name a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is a device, a pipe or a socket. Save what it gives as a file.")
    path.open("rb").close()
    return path


# --- running -------------------------------------------------------------------------------------


def run(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: list[str] | None = None,
    *,
    failing: str | None = None,
) -> int:
    """Parse the arguments, do the work, and return the exit code.

    `work` takes the options, returns its code, and raises: `ValueError`, `OSError` or an error of
    the course's own for what it cannot use (2), `Failed` for work that came to nothing (1).
    `failing` is what to say of a `RuntimeError`, too little memory or numbers out of range: "the
    run failed" (1). Without it they too mean that something was not usable, since 1 then is a
    finding. Wrong arguments raise `SystemExit`, as argparse has it.
    """
    with _streams() as out, _warnings(), _signals():
        code = _code(parser, work, arguments, failing)
        out.flush()
        if out.error and not isinstance(out.error, BrokenPipeError):
            _say(parser, f"standard output: {sentence(out.error)}")
            code = code or UNUSABLE
    return code


def _code(parser, work, arguments, failing) -> int:
    try:
        return work(parser.parse_args(arguments))
    except KeyboardInterrupt:
        _deaf()
        _say(parser, "interrupted before it was done.")
        return 128 + signal.SIGINT
    except Ended as end:
        _deaf()
        _say(parser, f"ended by {end} before it was done.")
        return 128 + end.number
    except Exception as error:
        if os.environ.get("COURSE_DEBUG"):
            traceback.print_exc()
        code, text = _judged(error, failing)
        _say(parser, text)
        return code


def _judged(error: Exception, failing: str | None) -> tuple[int, str]:
    ours = type(error).__module__.partition(".")[0] == __package__
    text = sentence(error)
    if isinstance(error, Failed):
        return FAILED, f"{failing}: {text}" if failing else text
    if ours or isinstance(error, ValueError | OSError):
        return UNUSABLE, text
    if isinstance(error, RecursionError):
        return UNUSABLE, "the input is nested too deeply."
    if isinstance(error, RuntimeError | MemoryError | ArithmeticError):
        return (FAILED, f"{failing}: {text}") if failing else (UNUSABLE, text)
    return FAULT, (
        f"a fault of the course's code, please report it: {type(error).__name__}: {text} "
        "(COURSE_DEBUG=1 shows where)"
    )


@contextlib.contextmanager
def working() -> Iterator[None]:
    """From here on an `OSError` is the work's, not the input's: it becomes `Failed`."""
    try:
        yield
    except OSError as error:
        raise Failed(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """What an exception says, on one line and without codes: "out.json: No space left on device."""
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory (MemoryError)."
    if isinstance(error, OSError) and error.strerror and error.errno:
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n not in (None, -1)]
        return _short(": ".join([*map(str, names), error.strerror]) + ".")
    text = " ".join(str(error).split()) or type(error).__name__
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _say(parser: argparse.ArgumentParser, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"{parser.prog}: {printable(text)}", file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """End the program. Ctrl-C while Python shuts down would print a traceback."""
    _deaf()
    sys.exit(code)


# --- signals -------------------------------------------------------------------------------------

ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Signals that ask the process to end become exceptions, so that what was begun is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, *ASKING)}
    hook = sys.unraisablehook

    def end(number, frame):
        raise Ended(number)

    def again(unraisable):
        # The exception came up in a place that cannot pass it on, such as a destructor.
        if isinstance(unraisable.exc_value, Ended):
            signal.raise_signal(unraisable.exc_value.number)
        elif isinstance(unraisable.exc_value, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        else:
            hook(unraisable)

    try:
        for number in ASKING:
            if former[number] == signal.SIG_DFL:  # not under nohup
                signal.signal(number, end)
        sys.unraisablehook = again
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in former.items():
            if handler is not None:
                signal.signal(number, handler)


def _deaf() -> None:
    """Let no second signal interrupt the last words."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *ASKING):
            signal.signal(number, signal.SIG_IGN)


def _before_the_work(kind, error, trace) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # `python -m course_utils.X` is importing this package
    sys.excepthook = _before_the_work
