"""Is every picture that a notebook makes also displayed?

A notebook displays the last expression of a cell and whatever is given to `display`. A picture made
anywhere else is lost without a word, while the prose goes on to speak of it. matplotlib's figures
are displayed by `plt.show()`.
"""

import ast
import io
import tokenize

from IPython.core.inputtransformer2 import TransformerManager

# What `course_utils.show` draws with matplotlib, and what is nothing to look at by itself. All
# else there returns a picture.
FIGURES = {"bars", "figure", "heat", "loss_curve"}
NO_PICTURES = {"live_loss"}
SAME_VALUE = ast.NamedExpr | ast.IfExp | ast.BoolOp | ast.Await
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


class Notebook:
    """Goes through the code cells of a notebook in their order.

    It learns which functions of the notebook return a picture, or leave a figure to be shown, so
    that calls of them are judged like those of `show` itself.
    """

    def __init__(self):
        self._modules = {"show", "course_utils.show"}
        self._makers: dict[str, str | None] = {}  # a function's name -> "picture" or "figure"

    def problems(self, source: str) -> list[str]:
        """A sentence for each picture of this cell that a reader would not see."""
        try:
            tree = ast.parse(TransformerManager().transform_cell(source))
        except SyntaxError as error:
            return [f"is not Python: {error}"]
        self._parents = {c: node for node in ast.walk(tree) for c in ast.iter_child_nodes(node)}
        self._last = tree.body[-1] if tree.body and not _quiet(source) else None
        self._learn(tree)
        return [
            problem
            for call in sorted(_all(tree, ast.Call), key=_position)
            if (problem := self._problem(call, tree))
        ]

    def _learn(self, tree: ast.Module) -> None:
        for node in _all(tree, ast.ImportFrom | ast.Import):
            for alias in node.names:
                name, module = alias.asname or alias.name, getattr(node, "module", None)
                if f"{module}.{alias.name}" == "course_utils.show" or (
                    module is None and alias.name == "course_utils.show"
                ):
                    self._modules.add(name)
                elif module == "course_utils.show" and (kind := _kind_of_show(alias.name)):
                    self._makers[name] = kind
        for node in sorted(_all(tree, FUNCTION | ast.Lambda | ast.Assign), key=_position):
            if isinstance(node, ast.Assign):  # another name for a function
                kind = self._kind(node.value)
                names = {target.id for target in node.targets if isinstance(target, ast.Name)}
                self._makers |= dict.fromkeys(names, kind)
                continue
            name = self._name_of(node)
            if name is None:
                continue
            self._makers.pop(name, None)
            calls = [c for c in _all(node, ast.Call) if self._function_of(c) is node]
            if any(self._kind(call.func) == "picture" and self._returned(call) for call in calls):
                self._makers[name] = "picture"
            elif any(self._kind(call.func) == "figure" for call in calls) and not _shows(node):
                self._makers[name] = "figure"

    def _problem(self, call: ast.Call, tree: ast.Module) -> str | None:
        kind, said = self._kind(call.func), f"{ast.unparse(call.func)}(...) in line {call.lineno}"
        if kind == "picture" and not self._displayed(call):
            return (
                f"what {said} returns is not displayed: make it the cell's last expression "
                "or give it to display(...)"
            )
        inside = self._function_of(call)
        if kind == "figure" and inside is None and not _shows(tree, after=call):
            return f"no plt.show() comes after {said}"
        return None

    def _kind(self, function: ast.expr) -> str | None:
        """What a call of this function makes."""
        if not isinstance(function, ast.Name | ast.Attribute):
            return None
        module, _, name = ast.unparse(function).rpartition(".")
        if module in self._modules:
            return _kind_of_show(name)
        return None if module else self._makers.get(name)

    def _displayed(self, call: ast.Call) -> bool:
        """Does the value reach `display`, a `return`, or the end of the cell as it is?"""
        node, whole = call, True
        while True:
            child, node = node, self._parents[node]
            if isinstance(node, ast.Call) and child is not node.func:
                if ast.unparse(node.func).split(".")[-1] == "display":
                    return True
                if self._kind(node.func):
                    return True  # a part of that picture
            if isinstance(node, ast.Return | ast.Yield) or self._name_of(node):
                return True  # a function's value: the calls of the function are judged
            if isinstance(node, ast.Expr):
                return whole and node is self._last
            if isinstance(node, ast.stmt):
                return False
            whole = whole and isinstance(node, SAME_VALUE)

    def _returned(self, call: ast.Call) -> bool:
        node = call
        while not isinstance(node, ast.stmt | ast.Lambda):
            node = self._parents[node]
            if isinstance(node, ast.Yield):
                return True
        return isinstance(node, ast.Return | ast.Lambda)

    def _function_of(self, node: ast.AST) -> ast.AST | None:
        """The innermost function that has a name and holds the node."""
        while (node := self._parents.get(node)) and not self._name_of(node):
            pass
        return node

    def _name_of(self, node: ast.AST) -> str | None:
        """The name of a function, or of a lambda that is assigned to one."""
        if isinstance(node, ast.Lambda):
            parent = self._parents[node]
            targets = parent.targets if isinstance(parent, ast.Assign) else []
            return next((target.id for target in targets if isinstance(target, ast.Name)), None)
        return node.name if isinstance(node, FUNCTION) else None


def _kind_of_show(name: str) -> str | None:
    if name in NO_PICTURES:
        return None
    return "figure" if name in FIGURES else "picture"


def _all(tree: ast.AST, kinds) -> list:
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def _position(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _shows(tree: ast.AST, after: ast.AST | None = None) -> bool:
    """Is there a `plt.show()` (after a node)?"""
    return any(
        ast.unparse(call.func) in ("plt.show", "matplotlib.pyplot.show")
        and (after is None or _position(call) > _position(after))
        for call in _all(tree, ast.Call)
    )


def _quiet(source: str) -> bool:
    """Does the cell end with a semicolon? Then IPython does not display its last expression."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # a magic
        return False
    kept = [token.string for token in tokens if token.type not in skipped]
    return bool(kept) and kept[-1] == ";"
