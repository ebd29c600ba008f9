"""The builder, on a tiny course of its own."""

import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from course_utils import show
from tools import build, shown

LECTURE = """\
# %% [markdown]
# # 3 Tiny
#
# After this you can add. 5 minutes, CPU.

# %%
1 + 1

# %% tags=["measured"]
import random
print(random.random())

# %% [markdown]
# ## Take-aways
# - one
# - two
# - three
#
# [Exercises](../exercises/03_tiny.ipynb)
#
# <details><summary>Q1</summary>A</details> <details><summary>Q2</summary>A</details>
"""

EXERCISES = """\
# %% [markdown]
# # Exercises 3

# %% [markdown]
# ## Exercise 3.1
# Difficulty 1 of 5, importance 2 of 5, 3 minutes.

# %%
def add(a: int, b: int) -> int:
    \"\"\"The sum.\"\"\"
    # BEGIN SOLUTION
    total = a + b
    return total
    # END SOLUTION

# %% tags=["exercise-3.1"]
add(1, 2)
print("Exercise 3.1 passed")
"""


def tiny_course(root):
    (root / "source").mkdir()
    (root / "source/03_tiny.py").write_text(LECTURE)
    (root / "source/03_tiny.exercises.py").write_text(EXERCISES)
    (root / "course_utils").mkdir()
    return root


@pytest.fixture
def root(tmp_path):
    return tiny_course(tmp_path)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The tiny course, built and executed once; copy before changing it."""
    root = tiny_course(tmp_path_factory.mktemp("course"))
    assert build.main(["--execute"], root=root) == 0
    return root


def read(path):
    return nbformat.read(path, as_version=4)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_stub_and_solution(root):
    assert build.main([], root=root) == 0
    stub = read(root / "exercises/03_tiny.ipynb")
    solution = read(root / "solutions/03_tiny.ipynb")
    sources = [cell.source for cell in stub.cells]
    assert any(s.endswith('"""The sum."""\n    raise NotImplementedError') for s in sources)
    solved = [cell.source for cell in solution.cells]
    assert any(s.endswith("total = a + b\n    return total") for s in solved)
    assert not any("SOLUTION" in s for s in [*sources, *solved])
    assert [c.id for c in stub.cells] == [c.id for c in solution.cells]
    assert all(not c.outputs for c in stub.cells if c.cell_type == "code")


def test_bootstrap_is_second_and_named_once(root):
    build.main([], root=root)
    for folder in ("notebooks", "exercises", "solutions"):
        cell = read(root / folder / "03_tiny.ipynb").cells[1]
        assert cell.id == "bootstrap" and "git clone" in cell.source
        assert cell.source.count("\n") < build.MAX_LINES


def test_executed_outputs_and_tags(executed):
    cells = read(executed / "notebooks/03_tiny.ipynb").cells
    assert cells[2].outputs[0].data["text/plain"] == "2"
    assert cells[3].metadata.tags == ["nbval-ignore-output"]
    assert cells[3].outputs and "execution" not in cells[3].metadata
    assert "Exercise 3.1 passed" in str(
        read(executed / "solutions/03_tiny.ipynb").cells[-1].outputs
    )


def test_check_accepts_a_fresh_build_and_a_second_one_is_identical(executed, tmp_path):
    root = shutil.copytree(executed, tmp_path / "course")
    assert build.main(["--check"], root=root) == 0
    before = {path: path.read_bytes() for path in root.rglob("*.ipynb")}
    assert build.main([], root=root) == 0
    assert {path: path.read_bytes() for path in root.rglob("*.ipynb")} == before


def test_check_with_outputs_lets_measured_cells_vary(executed):
    assert build.main(["03", "--check", "--execute"], root=executed) == 0


def test_check_with_outputs_names_the_cell_that_differs(executed, tmp_path, capsys):
    root = shutil.copytree(executed, tmp_path / "course")
    notebook = read(root / "notebooks/03_tiny.ipynb")
    notebook.cells[2].outputs[0].data["text/plain"] = "3"
    nbformat.write(notebook, root / "notebooks/03_tiny.ipynb")
    assert build.main(["--check"], root=root) == 0
    assert build.main(["--check", "--execute"], root=root) == 1
    assert "notebooks/03_tiny.ipynb: cell 2 ('1 + 1'): output differs" in capsys.readouterr().err


def test_check_fails_on_a_changed_cell(executed, tmp_path, capsys):
    root = shutil.copytree(executed, tmp_path / "course")
    edit(root / "source/03_tiny.py", "1 + 1", "1 + 2")
    assert build.main(["--check"], root=root) == 1
    assert "notebooks/03_tiny.ipynb: cell 2 ('1 + 2'): source and id" in capsys.readouterr().err


def test_check_fails_on_a_notebook_without_source(executed, tmp_path, capsys):
    root = shutil.copytree(executed, tmp_path / "course")
    shutil.copy(root / "notebooks/03_tiny.ipynb", root / "notebooks/04_other.ipynb")
    assert build.main(["--check"], root=root) == 1
    assert "notebooks/04_other.ipynb: no source builds it" in capsys.readouterr().err


def test_changed_code_drops_outputs_and_check_asks_for_them(executed, tmp_path, capsys):
    root = shutil.copytree(executed, tmp_path / "course")
    edit(root / "source/03_tiny.py", "1 + 1", "1 + 2")
    assert build.main([], root=root) == 0
    assert build.main(["--check"], root=root) == 1
    assert "not executed" in capsys.readouterr().err


def test_new_cell_leaves_other_ids_alone(root):
    build.main([], root=root)
    before = {cell.id for cell in read(root / "notebooks/03_tiny.ipynb").cells}
    edit(root / "source/03_tiny.py", "# %%\n1 + 1", "# %%\n0\n\n# %%\n1 + 1")
    build.main([], root=root)
    assert before < {cell.id for cell in read(root / "notebooks/03_tiny.ipynb").cells}


LINES = "\n".join(f"x{n} = {n}" for n in range(16))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1 + 1", LINES, "cell 2 ('x0 = 0') has 16 lines"),
        ("# %%\n1 + 1", f'# %% tags=["long"]\n{LINES}', 'needs reason="..."'),
        ("# - three\n", "", "three list items"),
        ("After this you can", "You will", "After this you can"),
        ("5 minutes", "soon", "minutes"),
        ("# # 3 Tiny", "# Tiny", "a title"),
        ("<details><summary>Q2</summary>A</details>", "", "quiz"),
        ("(../exercises/03_tiny.ipynb)", "(x)", "does not link to its exercises"),
        ("# - one", "# - one ![](a.png)", "without alt text"),
    ],
)
def test_lecture_rules(root, capsys, old, new, message):
    edit(root / "source/03_tiny.py", old, new)
    assert build.main([], root=root) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    # END SOLUTION\n", "", "do not pair up"),
        ("exercise-3.1", "exercise-4.1", "must be exercise-3.M"),
        ("importance 2 of 5", "", "importance n of 5"),
        ('# %% tags=["exercise-3.1"]', "# %%", "right under the stub"),
    ],
)
def test_exercise_rules(root, capsys, old, new, message):
    edit(root / "source/03_tiny.exercises.py", old, new)
    assert build.main([], root=root) == 1
    assert message in capsys.readouterr().err


LOST = {
    "before a loop": "show.table(rows)\nfor row in rows:\n    print(row)",
    "before another": "show.strip(a)\nshow.strip(b)",
    "in a loop": "for one in rows:\n    show.sample(one, tokenizer)",
    "in a condition": "if rows:\n    show.table(rows)",
    "in a with": "with open(f) as g:\n    show.table(rows)",
    "made silent": "show.table(rows);",
    "made silent, with a comment": "show.table(rows);  # done",
    "assigned": "found = show.table(rows)\nprint(1)",
    "assigned to nothing": "_ = show.masks(pieces, rules)",
    "in a list": "[show.strip(one) for one in rows]",
    "printed": "print(show.table(rows))",
    "one attribute of it": "show.table(rows).text",
    "before plt.show": "show.table(rows)\nplt.show()",
    "in a function": "def f():\n    show.table(rows)\nf()",
    "a function's value": "def f():\n    return show.table(rows)\nf()\nprint(1)",
    "a lambda's value": "f = lambda rows: show.table(rows)\nf(1)\nf(2)",
    "a function that calls a function": (
        "def f():\n    return show.plan(x)\ndef g():\n    return f()\ng()\n1"
    ),
    "under another name": "from course_utils.show import table\ntable(rows)\n1",
    "of the module by another name": "from course_utils import show as s\ns.table(rows)\n1",
    "by a new name": "f = show.table\nf(rows)\n1",
    "of the whole module": "import course_utils.show\ncourse_utils.show.table(rows)\n1",
    "an explorer": "show.mask_explorer(chat)\n1",
    "something that show may get": "show.new_picture(chat)\n1",
    "a figure": "fig, ax = show.figure(alt=alt)\nax.plot(x)",
    "bars": "show.bars(a, b)\nprint(1)",
    "bars after the show": "plt.show()\nshow.bars(a, b)",
    "a function's figure": "def f():\n    fig, ax = show.figure(alt=alt)\nf()\nprint(1)",
}
SHOWN = {
    "last": "rows = []\nshow.table(rows)",
    "last, with a comment": "show.table(rows)  # ; here",
    "last, one of two": "show.table(a) if a else show.table(b)",
    "displayed": "display(show.table(rows))\nprint(1)",
    "displayed in a loop": "for one in rows:\n    display(show.sample(one, tokenizer))",
    "displayed together": "display(show.strip(a), *[show.strip(b) for b in c])\n1",
    "displayed by IPython": "IPython.display.display(show.strip(a))\n1",
    "displayed from a lambda": "display(*map(lambda one: show.strip(one), rows))\n1",
    "returned, then displayed": "def f():\n    return show.table(rows)\ndisplay(f())\nf()",
    "made anew": "def f():\n    return show.table(1)\nf()\n\ndef f():\n    return 1\n",
    "a magic beside it": "%matplotlib inline\nshow.table(rows)",
    "bars": "show.bars(a, b)\nplt.show()\nprint(1)",
    "a figure": "fig, ax = show.figure(alt=alt)\nax.plot(x)\nplt.show()",
    "a function's figure": "def f():\n    fig, ax = show.figure(alt=alt)\nf()\nplt.show()",
    "a function that shows": "def f():\n    show.bars(a, b)\n    plt.show()\nf()\nprint(1)",
    "no picture": "live = show.live_loss(9)\nshow.PALETTE.get(x)\nprint(1)",
    "of another": "other.table(rows)\nprint(1)",
}


@pytest.mark.parametrize("cell", LOST.values(), ids=LOST)
def test_a_picture_that_nobody_would_see_is_refused(cell):
    assert shown.Notebook().problems(cell)


@pytest.mark.parametrize("cell", SHOWN.values(), ids=SHOWN)
def test_a_picture_that_is_displayed_passes(cell):
    assert shown.Notebook().problems(cell) == []


def test_a_function_of_an_earlier_cell_is_known():
    notebook = shown.Notebook()
    assert notebook.problems("def strip(x):\n    return show.strip(x)") == []
    (problem,) = notebook.problems("strip(1)\nstrip(2)")
    assert problem.startswith("what strip(...) in line 1 returns is not displayed")
    assert notebook.problems("strip = len") == [] and notebook.problems("strip(1)\nstrip(2)") == []


def test_what_show_draws_with_matplotlib_is_known():
    rooms = {name for name, room in show._LATER.items() if room in ("plots", "training")}
    assert rooms == shown.FIGURES | shown.NO_PICTURES


@pytest.mark.parametrize("name", ["03_tiny.py", "03_tiny.exercises.py"])
def test_lost_picture_stops_the_build(root, capsys, name):
    with (root / "source" / name).open("a") as file:
        file.write("\n# %%\nshow.table([{}])\nprint(1)\n")
    assert build.main([], root=root) == 1
    error = capsys.readouterr().err
    assert (
        f"{name}: cell" in error and "show.table(...) in line 1 returns is not displayed" in error
    )


def test_long_cell_with_a_reason_passes(root):
    edit(root / "source/03_tiny.py", "# %%\n1 + 1", f'# %% tags=["long"] reason="whole"\n{LINES}')
    assert build.main([], root=root) == 0


def test_stderr_in_an_unmarked_cell_fails(root, capsys):
    edit(root / "source/03_tiny.py", "1 + 1", "import sys\nprint('noise', file=sys.stderr)")
    assert build.main(["03", "--execute"], root=root) == 1
    assert "writes to stderr" in capsys.readouterr().err


def test_bootstrap_on_colab_finds_the_course_again_after_a_restart(tmp_path):
    """A restarted kernel is back in the first folder: nothing is installed again, data is found."""
    script = f"""
import os, sys
sys.modules["google.colab"] = object()
calls = []
def system(command):
    calls.append(command.split()[0])
    if "clone" in command:
        os.makedirs("course/notebooks"), os.makedirs("course/course_utils")
os.system = system
first = os.getcwd()
for _ in range(2):  # the cell twice, a restart, the cell twice
    os.chdir(first)
    for _ in range(2):
        exec({build.bootstrap_cell().source!r})
        assert os.getcwd().endswith("course/notebooks"), os.getcwd()
assert len(calls) == 2, calls
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)


def test_a_new_bootstrap_cell_keeps_the_outputs(executed, tmp_path, monkeypatch):
    root = shutil.copytree(executed, tmp_path / "course")
    monkeypatch.setattr(build, "BOOTSTRAP", build.BOOTSTRAP.replace("Running it", "To run it"))
    assert build.main([], root=root) == 0
    cells = read(root / "notebooks/03_tiny.ipynb").cells
    assert any(c.get("outputs") for c in cells if c.cell_type == "code" and c.id != "bootstrap")
    assert build.main(["--check"], root=root) == 0


def test_readme_links_are_alive_and_name_the_repository_of_the_bootstrap_cell():
    readme = (build.ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", readme)
    dead = [x for x in links if "://" not in x and not (build.ROOT / x).exists()]
    assert not dead
    names = {path.name for path in (build.ROOT / "notebooks").glob("*.ipynb")}
    assert names == {x.removeprefix("notebooks/") for x in links if x.startswith("notebooks/")}
    colab = "https://colab.research.google.com/github/" + build.repository().split(".com/")[1]
    assert {f"{colab}/blob/main/notebooks/{name}" for name in names} == {
        x for x in links if "colab.research" in x
    }
