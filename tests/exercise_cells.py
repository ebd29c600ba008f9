"""What an exercise notebook defines: as a learner who solved it has it, and as it ships."""

from tools.build import MARKER, ROOT, SOLUTION, read_cells


def defined(name, change):
    """What the cells of lecture `name`'s exercises define after `change` to each of them."""
    found = {}
    for cell in read_cells(ROOT / "source" / f"{name}.exercises.py")[2:]:
        if cell.cell_type == "code" and not cell.metadata.get("tags"):
            exec(change(cell.source), found)
    return found


def solved(name):
    """{name: function} with the solutions in place."""
    return defined(name, lambda source: MARKER.sub("", source))


def stubs(name):
    """{name: function} as they ship."""
    return defined(name, lambda source: SOLUTION.sub(r"\1raise NotImplementedError", source))
