"""The exercise harness: what a learner reads after `pytest --nbval exercises/NN_name.ipynb`."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from course_utils.check.core import CheckFailed, NotAttempted, call, expect, fail
from tools.build import ROOT

CHECK = """\
from course_utils.check.core import call, expect, passed
got = call("4.{n}", {name}, [5, 6, 7, 8], 2)
expect("4.{n}", got, {expected}, "count the prompt.", call="{name}([5, 6, 7, 8], 2)")
passed("4.{n}")
"""
STUB = "def {name}(ids: list, n: int):\n    {body}"
UNTOUCHED = "raise NotImplementedError"
MASK, COUNT = "return [-100] * n + ids[n:]", "return n"


def sample(folder, mask, count):
    """An exercise notebook with two exercises, 4.1 and 4.2, beside the course's own harness."""
    folder.mkdir()
    for name in ("conftest.py", "pytest.ini"):
        shutil.copy(ROOT / "exercises" / name, folder)
    cells = [nbformat.v4.new_markdown_cell("# Exercises 4")]
    for n, name, body, expected in (
        (1, "mask", mask, "[-100, -100, 7, 8]"),
        (2, "count", count, "2"),
    ):
        cells.append(nbformat.v4.new_code_cell(STUB.format(name=name, body=body)))
        check = nbformat.v4.new_code_cell(CHECK.format(n=n, name=name, expected=expected))
        check.metadata["tags"] = [f"exercise-4.{n}"]
        cells.append(check)
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, folder / "04_sample.ipynb")
    return folder / "04_sample.ipynb"


def run(notebook, inside=False):
    """Exit code and output of the learner's command, from the repo root or inside exercises/."""
    where = notebook.parent if inside else notebook.parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", str(notebook.relative_to(where))],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("inside", [False, True])
def test_untouched(tmp_path, inside):
    code, text = run(sample(tmp_path / "exercises", UNTOUCHED, UNTOUCHED), inside)
    assert code == 0, text
    assert "Exercise 4.1   not attempted yet\nExercise 4.2   not attempted yet\n" in text
    assert "passed\n" not in text.split("04_sample")[1].split("Exercise 4.2")[0]
    assert "try again" not in text


def test_right(tmp_path):
    code, text = run(sample(tmp_path / "exercises", MASK, COUNT))
    assert code == 0, text
    assert "Exercise 4.1   passed\nExercise 4.2   passed\n" in text


def test_wrong_says_what_came_back_and_a_hint(tmp_path):
    code, text = run(sample(tmp_path / "exercises", "return ids", UNTOUCHED))
    assert code == 1, text
    assert (
        "Exercise 4.1   try again: mask([5, 6, 7, 8], 2) returned [5, 6, 7, 8], expected "
        "[-100, -100, 7, 8]; first difference at position 0: got 5, expected -100. "
        "Hint: count the prompt.\n"
    ) in text
    assert "Exercise 4.2   not attempted yet" in text
    assert "Traceback" not in text


def test_an_error_in_the_answer_is_named_with_its_line(tmp_path):
    code, text = run(sample(tmp_path / "exercises", "return ids + n", COUNT))
    assert code == 1
    assert "Exercise 4.1   try again: mask([5, 6, 7, 8], 2) raised TypeError" in text
    assert "(in the line: return ids + n)" in text
    assert "Exercise 4.2   passed" in text


def test_a_cell_that_does_not_run_is_reported_too(tmp_path):
    code, text = run(sample(tmp_path / "exercises", "return ids +", COUNT))
    assert code == 1
    assert "code cell 0    fails: SyntaxError: invalid syntax" in text
    assert "Exercise 4.1   try again: NameError: name 'mask' is not defined" in text


def test_a_saved_wrong_answer_does_not_match_itself(tmp_path):
    notebook = sample(tmp_path / "exercises", "return ids", COUNT)
    saved = nbformat.read(notebook, as_version=4)
    for number, cell in enumerate(saved.cells[1:]):
        cell.execution_count = number + 1
    saved.cells[2].outputs = [
        nbformat.v4.new_output("error", ename="CheckFailed", evalue="wrong", traceback=["wrong"])
    ]
    nbformat.write(saved, notebook)
    code, text = run(notebook)
    assert code == 1 and "Exercise 4.1   try again" in text and "Exercise 4.2   passed" in text


def test_call_tells_not_attempted_from_wrong():
    def stub(x):
        raise NotImplementedError

    def broken(x):
        x.append(1)
        return {}["key"]

    with pytest.raises(NotAttempted, match="Exercise 4.1: not attempted yet"):
        call("4.1", stub, 1)
    with pytest.raises(CheckFailed, match=r"broken\(\[\]\) raised KeyError: 'key'") as caught:
        call("4.1", broken, [])
    assert not isinstance(caught.value, NotAttempted)
    assert caught.value._render_traceback_() == [f"CheckFailed: {caught.value}"]


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (None, [1], "is a return missing"),
        ((1, 2), [1, 2], "a tuple, not a list"),
        ([0] * 26 + [-100], [0] * 26 + [5123], "position 26: got -100, expected 5123"),
        ([0] * 5, [0] * 6, "5 positions instead of 6"),
        ("user: hi", "user:hi", "character 5: got ' hi', expected 'hi'"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "key 'b': got 2, expected 3"),
        (0.5, 0.51, "returned 0.5, expected 0.51"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 5]], "expected [[1, 2], [3, 5]]"),
    ],
)
def test_expect_says_where_the_difference_is(got, expected, words):
    with pytest.raises(CheckFailed) as caught:
        expect("4.2", got, expected, "look.", call="f(x)")
    assert words in str(caught.value) and str(caught.value).endswith("Hint: look.")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450


@pytest.mark.parametrize(("got", "expected"), [([1, 2], [1, 2]), (2, 2.0), ("a", "a"), ({}, {})])
def test_expect_accepts_what_is_equal(got, expected):
    expect("4.2", got, expected, "look.")


def test_expect_compares_tensors_as_lists_and_numbers_within_a_tolerance():
    torch = pytest.importorskip("torch")
    expect("4.2", torch.tensor([1, 2]), [1, 2], "look.")
    expect("4.2", torch.tensor([0.5]), [0.5001], "look.", tolerance=0.01)
    with pytest.raises(CheckFailed, match="first difference at position 3"):
        expect("4.2", torch.zeros(4), [0.0, 0.0, 0.0, 1.0], "look.")


def test_fail_is_one_line():
    with pytest.raises(CheckFailed, match=r"^Exercise 4.3: no\. Hint: yes\.$"):
        fail("4.3", "no.", "yes.")
