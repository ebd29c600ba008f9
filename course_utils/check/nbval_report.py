"""pytest hooks for exercises/ and solutions/: report each tagged check cell as an exercise.

A cell tagged ``exercise-N.M`` becomes "Exercise N.M: passed", "try again: why" or "not attempted
yet". Stored outputs are never compared here: saving a notebook makes them the learner's own.
"""

import re

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

WORDS = {"passed": "passed", "failed": "try again", "skipped": "not attempted yet"}
REPORTED = pytest.StashKey[bool]()
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Exercise(IPyNbCell):
    """A check cell, named in its notebook metadata: {"tags": ["exercise-1.2"]}."""

    def runtest(self):
        try:
            super().runtest()
        except NbCellError as error:
            if re.search(r"^NotAttempted:", error.inner_traceback or "", re.M):
                pytest.skip("not attempted yet")
            raise

    def repr_failure(self, excinfo):
        """The check's own line; for an error that is not the check's, its last line."""
        error = excinfo.value
        if str(error).startswith("Timeout"):
            return str(error)
        return last_line(getattr(error, "inner_traceback", None) or str(error))

    def reportinfo(self):
        return self.path, None, f"{self.name} in {self.path.name}"


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.compare_outputs = False


def pytest_collection_modifyitems(items):
    for position, item in enumerate(items):
        tags = item.cell.metadata.get("tags", []) if type(item) is IPyNbCell else []
        for tag in tags:
            if tag.startswith("exercise-"):
                items[position] = Exercise.from_parent(
                    item.parent,
                    name=f"Exercise {tag.removeprefix('exercise-')}",
                    cell_num=item.cell_num,
                    cell=item.cell,
                    options=item.options,
                )


def pytest_terminal_summary(terminalreporter):
    # Both conftests may be loaded in one run; report once.
    if terminalreporter.config.stash.get(REPORTED, False):
        return
    terminalreporter.config.stash[REPORTED] = True
    lines = {}
    for outcome, word in WORDS.items():
        for report in terminalreporter.getreports(outcome):
            notebook, _, cell = report.nodeid.partition("::")
            why = f": {last_line(report.longreprtext)}" if outcome == "failed" else ""
            if cell.startswith("Exercise "):
                lines.setdefault(notebook, {})[cell] = f"{cell:<15}{word}{why}"
            elif outcome == "failed" and cell.startswith("Cell "):
                lines.setdefault(notebook, {})[cell] = f"code {cell.lower():<10}fails{why}"
    for notebook in sorted(lines):
        terminalreporter.section(notebook.rsplit("/")[-1])
        for cell in sorted(lines[notebook], key=position):
            terminalreporter.line(lines[notebook][cell])


def last_line(text):
    """The last line of a traceback or message, without colours and the check's own prefix."""
    lines = ANSI.sub("", text).strip().splitlines() or ["no message"]
    return re.sub(r"^CheckFailed: (Exercise [\d.]+: )?", "", lines[-1])


def position(cell):
    """Sorts "Cell 4" and "Exercise 4.2" by their numbers, cells first."""
    return [cell.startswith("Exercise"), *map(int, re.findall(r"\d+", cell))]
