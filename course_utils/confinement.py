"""Chat templates run in a process of their own, within bounds; `confined` is what runs there.

A template comes with a checkpoint from anywhere, and it is a program. Jinja's sandbox keeps it from
Python's internals; it does not keep it from running forever, from filling the memory, or from using
a hole in the sandbox that nobody has found yet. An operating system does. So every template runs in
one process, started on first use, that has given up its rights; where it needs longer than
`SECONDS` for one run, or more memory than it may have, it is ended and the conversation is refused.
"""

import atexit
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary, finalize

from course_utils.backends import LockOfThisProcess
from course_utils.conversation import Conversation
from course_utils.plans import Layout, Turn
from course_utils.rendering import ChatTemplate, MaskError, one_line, template_of

SECONDS = 20  # of the processor's time, for one run of a template
WALL = 10  # times as long by the clock, on a busy machine
RUNS = 15  # times the limit of one run that all runs for one conversation may take
STARTING = 300  # for the process itself
LONGEST_ANSWER = 2**28  # bytes
FORGIVEN = 2  # conversations at which a template may exceed its bounds, if it is a third of them
PATIENCE = 60  # seconds of the processor's time for one request, after which a run must take
SLOWEST = 1.0  # less than this on average
AHEAD = 64  # requests that wait in the process

# What the process sees of the environment: no token and no password is among it.
VARIABLES = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
PREFIXES = ("PYTHON", "LC_", "LD_", "DYLD_", "CONDA_")

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
_START += "from course_utils.confined import main; main()"


def as_plain_data(chat: Conversation) -> tuple:
    """What a template can see of a conversation, in Python's own types: nothing else is sent."""

    def exact(value):
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, dict):
            return {exact(key): exact(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [exact(item) for item in value]
        return value

    messages = [
        (
            str.__str__(message.role),
            str.__str__(message.content),
            exact(message.reasoning),
            tuple(map(exact, message.tool_calls)),
            exact(message.name),
            exact(message.tool_call_id),
            bool(message.train),
        )
        for message in chat.messages
    ]
    return messages, tuple(map(exact, chat.tools)), exact(dict(chat.template_options))


def _module_folders() -> list[str]:
    """Where modules are looked for: never in the working directory, always where this one is."""
    here = str(Path(__file__).resolve().parents[1])
    return [*(folder for folder in sys.path if os.path.isabs(folder) and folder != here), here]


class KnownPlan:
    """The layouts of a plan that the process made, and what is made of them here."""

    def __init__(self, layouts: list, template: int = 0):
        self.template = template
        self.layouts = [
            Layout(marked, tuple(Turn(*turn) for turn in turns), messages, unstopped=unstopped)
            for marked, turns, messages, unstopped in layouts
        ]
        _demand(len(layouts) > 0)
        for layout in self.layouts:
            _demand(isinstance(layout.marked, str) and _whole(layout.messages, 10**9))
            _demand(_whole(layout.unstopped, len(layout.turns)))
            for turn in layout.turns:
                places = [turn.start, turn.answer, turn.stop, turn.end, turn.after]
                places += [] if turn.head is None else [turn.head]
                _demand(_whole(turn.message, layout.messages - 1))
                _demand(all(_whole(place, len(layout.marked)) for place in places))
        self.compiled: dict = {}


class Process:
    """The process, and the answers that come from it."""

    def __init__(self):
        self.owner, self.ended = os.getpid(), False
        self.templates: set[int] = set()  # those that it has been sent
        self.plans: dict[int, KnownPlan] = {}
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in VARIABLES or name.startswith(PREFIXES)
        }
        self.child = subprocess.Popen(
            # -P: without it Python would look for modules in the working directory first.
            [sys.executable, "-P", "-c", _START, json.dumps(_module_folders())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            # Ctrl-C is for the one who asked; this process ends when its input does.
            start_new_session=True,
        )
        self.requests: queue.SimpleQueue = queue.SimpleQueue()
        # A process that goes wild must not fill this one's memory with answers.
        self.answers: queue.Queue = queue.Queue(maxsize=4 * AHEAD)
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()
        try:
            self.filtered = self.receive(STARTING)["filtered"]
        except (TimeoutError, EOFError, ValueError, KeyError):
            self.end()
            raise MaskError("the process in which chat templates run cannot be started.") from None

    def send(self, *request) -> str:
        """Send a request; returns its name, which the answer must bear."""
        data = pickle.dumps((SECONDS, *request))
        self.requests.put(len(data).to_bytes(8, "big") + data)
        return blake2b(data, digest_size=16).hexdigest()

    def receive(self, seconds: float) -> dict:
        """The next answer; `TimeoutError` if there is none in this time, `EOFError` at the end."""
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no object")
        return answer

    def answer(self, request: str) -> dict:
        """The answer to the request of this name; `TimeoutError`, `EOFError`, or `ValueError`."""
        deadline = time.monotonic() + RUNS * WALL * SECONDS
        while time.monotonic() < deadline:
            answer = self.receive(WALL * SECONDS)
            if answer.get("of") == request:
                return answer
            if answer != {"busy": True}:
                raise ValueError("an answer to something else")
        raise TimeoutError

    def wait(self) -> int:
        """How the process ended, which it has or is about to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(timeout=10)
        return self.child.returncode or 0

    def end(self) -> None:
        self.ended = True
        self.requests.put(None)
        self.child.kill()
        self.child.wait()

    def _write(self) -> None:
        with contextlib.suppress(OSError), self.child.stdin as file:
            while (data := self.requests.get()) is not None:
                file.write(data)
                file.flush()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self.child.stdout as file:
            while line := file.readline(LONGEST_ANSWER):
                self._hand_over(line)
        self._hand_over(b"")

    def _hand_over(self, line: bytes) -> None:
        while len(line) > 2**20 and not (self.answers.empty() or self.ended):
            time.sleep(0.01)  # long lines one at a time
        while not self.ended:
            with contextlib.suppress(queue.Full):
                self.answers.put(line, timeout=1)
                return


_lock = LockOfThisProcess()
_process: Process | None = None


def _running() -> Process:
    global _process
    if _process is None or _process.owner != os.getpid():
        _process = Process()
    return _process


def _end() -> None:
    global _process
    if _process is not None and _process.owner == os.getpid():
        _process.end()
    _process = None


atexit.register(_end)


class Confined:
    """A chat template whose every run is in the process."""

    numbers = count()

    def __init__(self, template: ChatTemplate):
        self.template, self.specials = template, template.specials
        self.number = next(self.numbers)

    def write(
        self,
        messages: list[dict],
        *,
        tools=None,
        prompt: bool = False,
        options: dict | None = None,
    ) -> str:
        """As `ChatTemplate.write`."""
        (answer,) = self.ask([("write", messages, tools, prompt, options or {})])
        return _accepted(answer)["text"]

    def prompt(self, chat: Conversation, piecewise: bool) -> dict:
        """What a server sends so that a reply comes next; see `Work.prompt`."""
        (answer,) = self.ask([("prompt", as_plain_data(chat), piecewise)])
        return _accepted(answer)

    def stops(self) -> list[str]:
        """What a model must write to end an answer, then a call: a special token, or other text."""
        (answer,) = self.ask([("stops",)])
        return _accepted(answer)["stops"]

    def ask(self, requests: Sequence[tuple]) -> list[dict]:
        """The answers to requests (kind, arguments ...), in order; a plan's with its `KnownPlan`.

        A request at which the template exceeds its bounds is answered with a refusal.
        """
        with _lock:
            finished = False
            try:
                answers = self._exchange(requests)
                finished = True
                return answers
            finally:
                if not finished:
                    _end()  # answers would come that nobody waits for

    def _exchange(self, requests: Sequence[tuple]) -> list[dict]:
        answers: list[dict] = []
        failures, blamed, process, names = 0, -1, None, []
        seconds, runs = 0.0, 0
        while len(answers) < len(requests):
            if failures >= FORGIVEN and 3 * failures > len(answers):
                return self._give_up(answers, requests, answers[-1]["refused"])
            if seconds > PATIENCE and seconds > SLOWEST * runs:
                return self._give_up(answers, requests, SLOW.format(seconds / max(runs, 1)))
            answer, ended = None, 0
            try:
                if process is None:
                    process, names, start = _running(), [], len(answers)
                    self._introduce(process)
                while len(names) < min(len(requests) - start, len(answers) - start + AHEAD):
                    kind, *arguments = requests[start + len(names)]
                    names.append(process.send(kind, self.number, *arguments))
                answer = process.answer(names[len(answers) - start])
                spent, ran = answer["cost"]
                _demand(isinstance(spent, int | float) and 0 <= spent < 10**6)
                _demand(_whole(ran, 10**9))
                seconds, runs = seconds + spent, runs + ran
                if not answer.get("spent"):
                    answers.append(_checked(process, answer, self.number))
                    continue
            except TimeoutError:
                answer = {"refused": ENDLESS.format(SECONDS)}
            except EOFError:
                ended = process.wait()
            except MaskError:
                raise
            except Exception:  # an answer that cannot be one
                answer = None
            _end()
            process = None
            if answer is None and ended != -XCPU and blamed < len(answers):
                blamed = len(answers)  # somebody else may have ended it: once more
                continue
            failures += 1
            spent = ENDLESS.format(SECONDS) if ended == -XCPU else BROKEN
            answers.append({"refused": one_line(answer.get("refused", spent)) if answer else spent})
        return answers

    def _give_up(self, answers: list[dict], requests: Sequence[tuple], reason: str) -> list[dict]:
        """The answers, and a refusal for each request that has not been tried."""
        _end()
        untried = {"refused": f"not tried: {reason}"}
        return answers + [untried] * (len(requests) - len(answers))

    def _introduce(self, process: Process) -> None:
        """Make the template known to the process."""
        if self.number not in process.templates:
            own = self.template
            name = process.send("template", self.number, own.sources, own.variables, own.specials)
            process.answer(name)
            process.templates.add(self.number)


SLOW = "the chat template needs {:.0f} seconds of the processor's time for each of its runs."
ENDLESS = "the chat template did not come to an end within {} seconds."
BROKEN = "the chat template broke the process that it ran in (it may need too much memory)."
XCPU = getattr(signal, "SIGXCPU", 0)  # what ends a process at its limit of the processor's time


def _checked(process: Process, answer: dict, template: int) -> dict:
    """The answer, if it can be one; what comes from the process is not trusted."""
    if "refused" in answer:
        return {"refused": one_line(answer["refused"], 1000)}
    for number in answer.get("dropped", ()):
        process.plans.pop(number, None)
    if "values" in answer:
        answer["values"] = {int(number): text for number, text in answer["values"].items()}
        _demand(all(isinstance(text, str) for text in answer["values"].values()))
    if "plan" in answer:
        if "layouts" in answer:
            process.plans[answer["plan"]] = KnownPlan(answer["layouts"], template)
        answer["plan"] = process.plans[answer["plan"]]
    return answer


def _demand(fitting: bool) -> None:
    if not fitting:
        raise ValueError("an answer that cannot be one")


def _whole(number, most: int) -> bool:
    return type(number) is int and 0 <= number <= most


def _accepted(answer: dict) -> dict:
    if "refused" in answer:
        raise MaskError(answer["refused"])
    return answer


_confined: WeakKeyDictionary = WeakKeyDictionary()


def confined(tokenizer) -> Confined:
    """The tokenizer's chat template, to be run in the process; kept for as long as it is the same.

    Raises `MaskError` if there is none.
    """
    template = template_of(tokenizer)
    found = _confined.get(tokenizer)
    if found is None or found.template != template:
        found = _confined[tokenizer] = Confined(template)
        finalize(tokenizer, _forget, found.number)
    return found


def _forget(template: int) -> None:
    """Drop what was made for a tokenizer that is gone: its encoder is large."""
    if (process := _process) is not None:
        for number, plan in list(process.plans.items()):
            if plan.template == template:
                process.plans.pop(number, None)


def render_template(
    tokenizer, messages: list[dict], *, add_generation_prompt: bool = False, tools=None, **options
) -> str:
    """What `tokenizer.apply_chat_template` writes as text, run within bounds.

    `options` go to the template: `enable_thinking=False`, `date_string=...`. Raises `MaskError`
    where there is no template, or where it refuses these messages.
    """
    prompt = add_generation_prompt
    return confined(tokenizer).write(messages, tools=tools, prompt=prompt, options=options)
