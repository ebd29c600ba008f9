"""The run of everything: what fails in any way is counted, and it says how far it is."""

from collections import Counter

from tools import test_all

CASES = """
import os
import pytest

def test_passes():
    pass

def test_fails():
    raise ValueError("the reason")

def test_skips():
    pytest.skip("not here")

@pytest.fixture
def broken():
    raise OSError

def test_error(broken):
    pass

def test_ends_its_process():
    os._exit(0)
"""


def test_every_outcome_is_counted_even_of_a_process_that_died(tmp_path):
    (tmp_path / "test_cases.py").write_text(CASES)
    outcomes, output = test_all.pytest(str(tmp_path))
    assert Counter(outcomes.values()) == {"passed": 1, "failed": 3, "skipped": 1}
    assert "the reason" in output and "crashed" in output


def test_a_run_of_nothing_has_failed(tmp_path):
    outcomes, _ = test_all.pytest(str(tmp_path))
    assert outcomes == {"pytest itself": "failed"}


def test_a_long_run_shows_signs_of_life(monkeypatch, capsys):
    monkeypatch.setattr(test_all, "SIGN", 0.05)
    ok, output = test_all.run("timeit", "-n1", "-r1", "import time; print('42%', flush=True)")
    assert ok and "42%" in output
    ok, output = test_all.run("timeit", "-n1", "-r1", "import time; time.sleep(1)")
    assert ok and "1 loop" in output
    assert "running after 0 s" in capsys.readouterr().out
    assert test_all.run("timeit", "-n1", "1/0")[0] is False
