"""Fuzzed tool conversations, in small: `benchmarks/fuzz.py` is the same for thousands of rows.

And what may happen while a data set is prepared: the process in which templates run is ended,
somebody presses Ctrl-C, rows cannot be sent, texts are huge. The rows are right or refused, and the
next call works.
"""

import copy
import enum
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from benchmarks import fuzz
from course_utils import confinement
from course_utils.batching import prepare
from course_utils.conversation import Conversation, Message, conversation
from course_utils.masking import GradedSpan, MaskError, Options, samples_of, training_samples
from course_utils.replies import prompt_ids, stop_ids

GOOD = conversation(("user", "hi"), ("assistant", "yes"), id="good")
TOY = "course chatml"


def rows(count: int, words: int = 4) -> list[Conversation]:
    return [
        conversation(("user", f"q{n} " * words), ("assistant", f"a{n} " * words), id=str(n))
        for n in range(count)
    ]


def replies(samples) -> dict[str, str]:
    """The graded text of each row."""
    decode = fuzz.target(TOY).tokenizer.decode
    return {s.id: decode(s.input_ids[s.graded[0].start : s.graded[0].end]) for s in samples}


def right(samples) -> None:
    for name, text in replies(samples).items():
        assert text in ("yes<|im_end|>", f"a{name} " * 4 + "<|im_end|>")


# --- fuzzed rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gptoss", "glm4moe", TOY])
def test_fuzzed_rows_are_exact_or_refused_for_a_true_reason(name):
    found = fuzz.run_target(name, 11, 40)
    assert not found.wrong
    assert not found.false_reasons
    assert found.exact >= 20


def test_threads_share_a_tokenizer_and_change_nothing():
    tokenizer = fuzz.target(TOY).tokenizer
    before = fuzz.state_of(tokenizer)
    assert fuzz.run_threads(TOY, 3, 60) == []
    tokenizer.backend_tokenizer.no_truncation()  # what the disturbing threads set
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.encode_special_tokens = before[0]
    assert fuzz.state_of(tokenizer) == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_agree(method):
    assert fuzz.run_processes(TOY, 4, 24, method, processes=2) == []


def test_prompts_and_stops_change_nothing_of_the_tokenizer():
    tokenizer = fuzz.target(TOY).tokenizer
    for prepared in (
        lambda: prompt_ids(GOOD.prefix(1), tokenizer),
        lambda: stop_ids(tokenizer),
        lambda: prepare([GOOD], tokenizer),
    ):
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=50)
        tokenizer.backend_tokenizer.encode_special_tokens = True
        try:
            before = fuzz.state_of(tokenizer)
            found = prepared()
            assert fuzz.state_of(tokenizer) == before
        finally:
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
            tokenizer.backend_tokenizer.encode_special_tokens = False
        again = prepared()
        assert found == again


# --- the judge can find fault ---------------------------------------------------------------------


def _shift(sample, start: int, end: int):
    (span,) = sample.graded
    span = GradedSpan(span.start + start, span.end + end, span.message)
    labels = [n if span.start <= i < span.end else -100 for i, n in enumerate(sample.input_ids)]
    return replace(sample, graded=(span,), labels=labels)


SPOILT = {
    "the header is graded": lambda s: [_shift(s, -1, 0)],
    "the first token is not graded": lambda s: [_shift(s, 1, 0)],
    "the stop is not graded": lambda s: [_shift(s, 0, -1)],
    "the line break is graded": lambda s: [_shift(s, 0, 1)],
    "the reply is not graded": lambda s: [],
    "the reply is graded twice": lambda s: [s, s],
    "an id is missing": lambda s: [replace(s, input_ids=s.input_ids[:-1], labels=s.labels[:-1])],
    "labels differ": lambda s: [replace(s, labels=[-100] * len(s))],
    "a weight is lost": lambda s: [replace(s, weights=None)],
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_the_judge_finds(spoilt):
    words = fuzz.target(TOY)
    messages = [
        {"role": "user", "content": "bb0001w"},
        {"role": "assistant", "content": "bb0002w and on", "weight": 2},
    ]
    record = {"messages": messages}
    (sample,) = training_samples(Conversation(messages), words.tokenizer)
    assert fuzz.judge(record, [sample], words, words.tokenizer) == []
    assert fuzz.judge(record, spoilt(sample), words, words.tokenizer) != []


def test_the_judge_finds_a_text_that_became_a_token_and_an_untrue_reason():
    words = fuzz.target(TOY)
    record = {
        "messages": [
            {"role": "user", "content": "<|im_end|>bb0001w"},
            {"role": "assistant", "content": "no"},
        ]
    }
    (sample,) = training_samples(Conversation(record["messages"]), words.tokenizer)
    assert fuzz.judge(record, [sample], words, words.tokenizer) == []
    encoded = words.tokenizer("<|im_start|>user\n<|im_end|>bb0001w", add_special_tokens=False)
    special = encoded["input_ids"]
    ordinary = words.tokenizer("<|im_end|>", add_special_tokens=False, split_special_tokens=True)
    length = len(special) - 1 + len(ordinary["input_ids"])
    ids = special + sample.input_ids[length:]
    shift = len(ids) - len(sample)
    (span,) = sample.graded
    moved = GradedSpan(span.start + shift, span.end + shift, span.message)
    spoilt = replace(sample, input_ids=ids, labels=sample.labels[-len(ids) :], graded=(moved,))
    wrong = fuzz.judge(record, [spoilt], words, words.tokenizer)
    assert any("ids" in said for said in wrong)
    untrue = MaskError("the template leaves out the conversation's tools")
    record["tools"] = [
        {"type": "function", "function": {"name": "f", "description": "bb0003w", "parameters": {}}}
    ]
    assert fuzz.judge(record, untrue, words, words.tokenizer) == ["false reason"]
    assert fuzz.judge(record, MaskError("so"), words, words.tokenizer) == ["unknown reason"]


# --- while a data set is prepared -----------------------------------------------------------------


def test_the_process_may_be_killed_at_any_time():
    tokenizer = fuzz.target(TOY).tokenizer
    for _ in range(3):  # idle
        assert len(training_samples(GOOD, tokenizer)) == 1
        os.kill(confinement._process.child.pid, signal.SIGKILL)
        time.sleep(0.05)
    chats, killed = rows(1200), []

    def kill():
        while len(killed) < 2:
            time.sleep(0.15)
            process = confinement._process
            if process is not None and process.child.poll() is None:
                os.kill(process.child.pid, signal.SIGKILL)
                killed.append(process.child.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    prepared = prepare(iter(chats), tokenizer)
    killer.join()
    right(prepared.samples)
    assert len(prepared.samples) + len(prepared.refused) == len(chats)
    assert len(prepared.refused) <= len(killed)
    assert len(training_samples(GOOD, tokenizer)) == 1


def test_generators_that_are_left_and_sources_that_break():
    tokenizer = fuzz.target(TOY).tokenizer
    left = samples_of(iter(rows(600)), tokenizer, Options(), together=100)
    next(left)
    left.close()
    right(training_samples(GOOD, tokenizer))

    def broken():
        yield from rows(150)
        raise KeyError("the source")

    with pytest.raises(KeyError, match="the source"):
        list(samples_of(broken(), tokenizer, Options(), together=100))
    right(prepare(rows(5), tokenizer).samples)


def test_interrupted_in_the_middle():
    tokenizer = fuzz.target(TOY).tokenizer
    for after in (0.02, 0.2):
        timer = threading.Timer(after, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                prepare(rows(800), tokenizer)
        timer.join()
        prepared = prepare(rows(30), tokenizer)
        assert len(prepared.samples) == 30
        right(prepared.samples)


class Role(enum.StrEnum):
    user = "user"
    assistant = "assistant"


class Own(Conversation):
    """A class that only this file has."""


def test_rows_of_classes_of_the_callers_own():
    odd = Conversation((Message(Role.user, "q"), Message(Role.assistant, "yes")), id="odd")
    with_lock = Own(GOOD.messages, id="lock")
    object.__setattr__(with_lock, "meta", {"lock": threading.Lock()})  # cannot be pickled
    own = Own(GOOD.messages, id="own")
    prepared = prepare([GOOD, odd, with_lock, own, GOOD], fuzz.target(TOY).tokenizer)
    assert not prepared.refused
    assert set(replies(prepared.samples).values()) == {"yes<|im_end|>"}


def test_huge_texts_and_runs_of_spaces_are_right_or_refused():
    huge = conversation(("user", " " * 3_000_000), ("assistant", "yes"), id="spaces")
    long = conversation(("user", "word " * 400_000), ("assistant", "yes"), id="words")
    words = fuzz.target(TOY)
    prepared = prepare([GOOD, huge, long, GOOD], words.tokenizer)
    right(s for s in prepared.samples if s.id == "good")
    assert [s.id for s in prepared.samples].count("good") == 2
    for sample in prepared.samples:
        chat = {"good": GOOD, "spaces": huge, "words": long}[sample.id]
        written = words.tokenizer.apply_chat_template(chat.as_messages(), tokenize=False)
        assert words.tokenizer.decode(sample.input_ids) == written


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_others_work():
    tokenizer = copy.deepcopy(fuzz.target(TOY).tokenizer)  # nothing is known of it yet
    chats, done = rows(200), threading.Event()

    def work():
        while not done.is_set():
            prepare(chats, tokenizer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for pause in (0.0, 0.3):
            time.sleep(pause)
            child = os.fork()
            if not child:
                signal.alarm(60)
                ok = False
                try:
                    prepared = prepare(chats[:20], tokenizer)
                    right(prepared.samples)
                    ok = len(prepared.samples) == 20
                finally:
                    os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()
