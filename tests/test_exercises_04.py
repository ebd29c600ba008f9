"""The checks of lecture 04, and the script that it shows whole."""

import ast
import importlib.util
import random
import subprocess
import sys

import numpy
import pytest
from exercise_cells import solved, stubs

from course_utils import training_samples
from course_utils.check import e04
from course_utils.check.core import CheckFailed, NotAttempted
from course_utils.conversation import conversation
from course_utils.examples import TINY_CHATS, WALKTHROUGH
from course_utils.tokenizers import WordTokenizer
from tools.build import ROOT

SCRIPT = ROOT / "notebooks" / "mask_from_scratch.py"


SOLVED, STUBS = solved("04_mask_in_plain_python"), stubs("04_mask_in_plain_python")
ANSWER = {
    "whose_bug": "whose_bug",
    "is_graded": "is_graded",
    "character_mask": "character_mask",
    "labels_of": "labels_of",
    "move_edge": "move_edge",
    "render_chatml": "render_chatml",
    "renderer": "Renderer",
}


@pytest.mark.parametrize("check", ANSWER)
def test_solution_passes_and_stub_is_not_attempted(check, capsys):
    getattr(e04, check)(SOLVED[ANSWER[check]])
    assert capsys.readouterr().out.endswith("passed\n")
    with pytest.raises(NotAttempted):
        getattr(e04, check)(STUBS[ANSWER[check]])


# --- plausible wrong answers ---------------------------------------------------------------------


def labels_by(graded, masked=-100):
    return lambda ids, offsets, mask: [
        number if graded(mask[a:b]) else masked for number, (a, b) in zip(ids, offsets, strict=True)
    ]


def shifted_by_hand(ids, offsets, mask):
    return [*SOLVED["labels_of"](ids, offsets, mask)[1:], -100][: len(ids)]


def edge_by(move, rule=all):
    """Moves the edge to `move(prompt, sample)` and grades a token by its characters."""

    def answer(prompt, reply, cut):
        sample = cut(prompt + reply)
        edge = move(prompt, sample)
        if edge is None:
            raise ValueError
        mask = [False] * edge + [True] * (len(prompt + reply) - edge)
        return prompt[:edge], [rule(mask[start:end]) for start, end in sample]

    return answer


def stays(prompt, sample):
    return len(prompt)


def straddling(prompt, sample):
    """The start of the token that straddles the edge, or the edge."""
    return next((a for a, b in sample if a < len(prompt) < b), len(prompt))


def refuse_straddling(prompt, sample):
    return stays(prompt, sample) if straddling(prompt, sample) == len(prompt) else None


def straddling_white_space(prompt, sample):
    edge = straddling(prompt, sample)
    return None if prompt[edge:].strip() else edge


def one_character(prompt, sample):
    moved = straddling(prompt, sample) < len(prompt)
    return len(prompt) - moved if not moved or prompt[-1].isspace() else None


def unmoved_prompt(prompt, reply, cut):
    return prompt, SOLVED["move_edge"](prompt, reply, cut)[1]


def without_white_space(prompt, reply, cut):
    edge, mask = SOLVED["move_edge"](prompt, reply, cut)
    return (edge.strip() + "." if edge != prompt else edge), mask


def chatml(pieces):
    """A renderer that writes the (text, graded) pairs that `pieces(role, content, last)` gives."""

    def render(turns):
        last = max((n for n, (role, _) in enumerate(turns) if role == "assistant"), default=None)
        text, mask = "", []
        for number, (role, content) in enumerate(turns):
            for piece, graded in pieces(role, content, number == last):
                text += piece
                mask += [graded] * len(piece)
        return text, mask

    return render


def chatml_turn(header=False, content=True, end=True, gap=False):
    def pieces(role, text, last):
        reply = role == "assistant"
        yield f"<|im_start|>{role}\n", reply and header
        yield text, reply and content
        yield "<|im_end|>", reply and end
        yield "\n", reply and gap

    return pieces


def only_last(role, text, last):
    for piece, graded in chatml_turn()(role, text, last):
        yield piece, graded and last


def chatml_search(turns):
    text, mask = SOLVED["render_chatml"](turns)
    mask = [False] * len(mask)
    for role, content in turns:
        if role == "assistant":
            start = text.find(f"assistant\n{content}<|im_end|>") + len("assistant\n")
            end = start + len(content) + len("<|im_end|>")
            mask[start:end] = [True] * (end - start)
    return text, mask


def double_start(turns):
    text, mask = SOLVED["render_chatml"](turns)
    return "<s>" + text, [False] * 3 + mask


Right = SOLVED["Renderer"]


class EndMasked(Right):
    def add(self, role, content):
        super().add(role, content)
        self.graded[-8:] = [False] * 8


class SpaceMasked(Right):
    def add(self, role, content):
        start = len(self.text)
        super().add(role, content)
        self.graded[self.text.index(" ", start)] = False


class HeaderGraded(Right):
    def add(self, role, content):
        start = len(self.text)
        super().add(role, content)
        self.graded[start : start + 7] = [role == "assistant"] * 7


class PromptWithSpace(Right):
    def prompt(self):
        return super().prompt() + " "


class PromptChangesChat(Right):
    def prompt(self):
        self.text = super().prompt()
        return self.text


class MarkersBySearch(Right):
    def add(self, role, content):
        super().add(role, content)
        at = self.text.find("[[end]]")
        while at >= 0:
            self.by_template[at : at + 7] = [True] * 7
            at = self.text.find("[[end]]", at + 1)


class BeginEveryTurn(Right):
    def add(self, role, content):
        if len(self.text) > len("[[begin]]"):
            self.text += "[[begin]]"
        super().add(role, content)


WRONG = {
    "whose_bug": {
        "two swapped": (lambda: {"A": "words", "B": "lock-step", "C": "search"}, "the user's"),
        "all right": (lambda: dict.fromkeys("ABC", "lock-step"), "the user's"),
        "B taken for a search": (lambda: {"A": "search", "B": "search", "C": "words"}, "exactly"),
        "C taken for a search": (
            lambda: {"A": "search", "B": "lock-step", "C": "search"},
            "header",
        ),
        "one more": (
            lambda: {"A": "search", "B": "lock-step", "C": "words", "D": "words"},
            "A, B and C",
        ),
        "misspelt": (lambda: {"A": "search", "B": "lockstep", "C": "words"}, "'lock-step'"),
        "no dict": (lambda: ["search", "lock-step", "words"], "a dict"),
    },
    "is_graded": {
        "end of turn masked": (lambda k, r: (k, r) == ("content", "assistant"), "never stops"),
        "header graded": (lambda k, r: r == "assistant" and k != "gap", "header"),
        "gap graded": (lambda k, r: r == "assistant" and k in ("content", "eot", "gap"), "gap"),
        "every end of turn": (
            lambda k, r: k == "eot" or (k, r) == ("content", "assistant"),
            "somebody else",
        ),
        "inverted": (lambda k, r: r != "assistant", "learn"),
        "sequence start graded": (
            lambda k, r: k == "bos" or SOLVED["is_graded"](k, r),
            "sequence start",
        ),
    },
    "character_mask": {
        "bytes": (
            lambda spans: (
                "".join(t for t, _ in spans),
                [g for t, g in spans for _ in t.encode()],
            ),
            "not bytes",
        ),
        "one per span": (
            lambda spans: ("".join(t for t, _ in spans), [g for _, g in spans]),
            "not for each span",
        ),
        "mask alone": (lambda spans: [g for t, g in spans for _ in t], "a pair"),
        "joined with spaces": (
            lambda spans: (" ".join(t for t, _ in spans), [g for t, g in spans for _ in t]),
            "a pair",
        ),
    },
    "labels_of": {
        "all of nothing": (labels_by(all), "all([]) is True"),
        "zero for masked": (labels_by(lambda m: bool(m) and all(m), masked=0), "gets -100"),
        "shifted by hand": (shifted_by_hand, "the loss shifts"),
        "inverted": (labels_by(lambda m: bool(m) and not any(m)), "own id"),
        "one character early": (
            lambda ids, offsets, mask: SOLVED["labels_of"](ids, offsets, mask[1:] + [False]),
            "own id",
        ),
    },
    "move_edge": {
        "grades the token that straddles": (edge_by(stays, any), "a server sends"),
        "masks the token that straddles": (edge_by(stays), "a server sends"),
        "refuses every token that straddles": (edge_by(refuse_straddling), "may go to the reply"),
        "refuses everything": (edge_by(lambda *_: None), "may go to the reply"),
        "refuses nothing": (edge_by(straddling), "raise ValueError"),
        "strips always": (edge_by(lambda prompt, _: len(prompt.rstrip())), "a server sends"),
        "moves one character": (edge_by(one_character), "a server sends"),
        "looks at straddling tokens only": (edge_by(straddling_white_space), "raise ValueError"),
        "moves the mask alone": (unmoved_prompt, "a server sends"),
        "changes the text": (without_white_space, "the text stays"),
        "the mask alone": (lambda *a: SOLVED["move_edge"](*a)[1], "a pair"),
        "the prompt alone": (lambda *a: SOLVED["move_edge"](*a)[0], "a pair"),
        "labels the characters": (
            lambda prompt, reply, cut: (
                (edge := SOLVED["move_edge"](prompt, reply, cut)[0]),
                [i >= len(edge) for i in range(len(prompt + reply))],
            ),
            "one entry for each token",
        ),
        "inverted": (
            lambda *a: (SOLVED["move_edge"](*a)[0], [not g for g in SOLVED["move_edge"](*a)[1]]),
            "graded is what",
        ),
    },
    "render_chatml": {
        "end of turn masked": (chatml(chatml_turn(end=False)), "never stops"),
        "header graded": (chatml(chatml_turn(header=True)), "header is masked"),
        "gap graded": (chatml(chatml_turn(gap=True)), "the server's"),
        "last turn only": (chatml(only_last), "not only the last"),
        "search with header": (chatml_search, "do not look"),
        "a sequence start": (double_start, "opener"),
        "text alone": (lambda turns: SOLVED["render_chatml"](turns)[0], "a pair"),
        "bytes": (
            lambda turns: (SOLVED["render_chatml"](turns)[0], [False]),
            "one entry for each character",
        ),
    },
    "renderer": {
        "end of turn masked": (EndMasked, "[[end]]"),
        "space masked": (SpaceMasked, "the space"),
        "header graded": (HeaderGraded, "graded are"),
        "prompt with a space": (PromptWithSpace, "belongs to the reply"),
        "prompt changes the chat": (PromptChangesChat, "must not change"),
        "typed marker taken for the template's": (MarkersBySearch, "whatever these contain"),
        "double BOS": (BeginEveryTurn, "brackets"),
    },
}


@pytest.mark.parametrize(("check", "wrong"), [(c, w) for c in WRONG for w in WRONG[c]])
def test_wrong_answer_is_refused_with_a_reason(check, wrong):
    answer, reason = WRONG[check][wrong]
    with pytest.raises(CheckFailed) as refused:
        getattr(e04, check)(answer)
    message = str(refused.value)
    assert not isinstance(refused.value, NotAttempted)
    assert "\n" not in message and "Hint: " in message
    assert reason in message.split("Hint: ")[1], message


def test_messages_say_where_the_answer_differs():
    for check, wrong, said in [
        ("character_mask", "one per span", "the mask of character_mask([('a:', False), "),
        ("move_edge", "refuses nothing", "returned ('Is it ', [False, False, "),
        ("move_edge", "refuses everything", "raised ValueError, expected ('a:', [False, False, "),
    ]:
        with pytest.raises(CheckFailed) as refused:
            getattr(e04, check)(WRONG[check][wrong][0])
        assert said in str(refused.value)


def test_every_exercise_has_wrong_answers():
    assert set(WRONG) == set(ANSWER) and all(len(wrong) >= 3 for wrong in WRONG.values())


RIGHT = {
    "a list of both": lambda *a: list(SOLVED["move_edge"](*a)),
    "a mask of numbers": lambda *a: (
        SOLVED["move_edge"](*a)[0],
        [int(graded) for graded in SOLVED["move_edge"](*a)[1]],
    ),
    "an array for the mask": lambda *a: (
        SOLVED["move_edge"](*a)[0],
        numpy.array(SOLVED["move_edge"](*a)[1]),
    ),
}


@pytest.mark.parametrize("answer", RIGHT.values(), ids=RIGHT)
def test_other_right_answers_pass(answer):
    e04.move_edge(answer)


@pytest.mark.parametrize(("prompt", "reply", "cut", "edge"), e04.EDGES)
def test_expected_edges_are_what_a_server_sends(prompt, reply, cut, edge):
    """By trying every edge: the longest prompt of which only white space was moved."""
    sample, bare = cut(prompt + reply), prompt.rstrip()
    fits = [
        prompt[:end]
        for end in range(len(bare), len(prompt) + 1)
        if sample[: len(cut(prompt[:end]))] == cut(prompt[:end])
    ]
    assert edge == (fits[-1] if fits else None)


def test_the_cut_is_the_lectures():
    source = (ROOT / "source" / "04_mask_in_plain_python.py").read_text("utf-8")
    lecture = {}
    start = source.index("BOS, EOT =")
    exec(source[start : source.index("\n\n\n", start)], lecture)
    start = source.index("SPECIAL = ")
    exec("import re\n" + source[start : source.index("print(len(cut", start)], lecture)
    for chat in [WALKTHROUGH, *TINY_CHATS]:
        for message in chat:
            text = message.content.replace("<|eot_id|>", "")
            assert e04.cut(text) == lecture["cut"](text)
    for text in ("a: hi", "a:\n\nhi", "  \n 12345 ...\n", "Assistant:  yes\n"):
        assert e04.cut(text) == lecture["cut"](text)


# --- the script ----------------------------------------------------------------------------------


def load_script():
    spec = importlib.util.spec_from_file_location("mask_from_scratch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def random_chat(seed):
    """Turns of random words, lines and marks; without typed markers."""
    dice = random.Random(seed)
    words = ["yes", "2", "assistant", "user", "naïve", "a-b", "(ok)", "😀", "<b>", "|", "end."]

    def content():
        gaps = [" ", " ", " ", "\n", "\n\n", "\n\n\n", "\t"]
        return "".join(dice.choice(words) + dice.choice(gaps) for _ in range(dice.randint(1, 12)))

    turns = [("system", content())] if dice.random() < 0.5 else []
    for _ in range(dice.randint(1, 4)):
        turns += [("user", content()), ("assistant", content())]
    return conversation(*turns, id=f"random {seed}")


MARKERS = conversation(
    ("user", "x<|eot_id|>y <|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>"),
    ("assistant", "yes <|eot_id|> and<|begin_of_text|>"),
    id="typed markers",
)


@pytest.mark.parametrize(
    "chat",
    [WALKTHROUGH, *TINY_CHATS, MARKERS, *map(random_chat, range(50))],
    ids=lambda chat: chat.id,
)
def test_script_agrees_with_training_samples(chat):
    (expected,) = training_samples(chat, WordTokenizer())
    sample = script.make_sample([(message.role, message.content) for message in chat], {})
    assert sample["ids"] == expected.input_ids
    assert sample["labels"] == expected.labels
    assert sum(sample["special"]) == 1 + 3 * len(chat)


def test_script_stands_alone():
    source = SCRIPT.read_text("utf-8")
    tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert modules <= sys.stdlib_module_names
    assert len(source.splitlines()) < 150
    assert ast.get_docstring(tree)


def test_script_prints_the_walkthrough(tmp_path):
    command = [sys.executable, "-I", "-S", str(SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 38
    assert lines[-1] == "36 tokens, 10 special, 10 graded (28%)"
    graded = [int(line.split()[0]) for line in lines[1:-1] if line.endswith("yes")]
    assert graded == list(range(26, 36))


def test_script_refuses_a_straddling_token():
    with pytest.raises(ValueError, match="characters 0 to 2"):
        script.inherit([False, True], [(0, 2)])
