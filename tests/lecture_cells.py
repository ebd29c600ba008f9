"""A lecture's code cells, run in any order, with what each of them shows."""

import ast
import contextlib
import io

from tools.build import ROOT, read_cells


def code_cells(name):
    """The sources of the code cells of lecture `name`, without the bootstrap cell."""
    cells = read_cells(ROOT / "source" / f"{name}.py")
    return [cell.source for cell in cells[2:] if cell.cell_type == "code"]


def run_cell(source, names):
    """Run a cell among `names` as a notebook does; returns what it prints and displays, as text."""
    tree, printed = ast.parse(source), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names.setdefault("display", print)
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        if value is not None:
            print(repr(value))
    return printed.getvalue()
