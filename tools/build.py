"""Build the notebooks from source/.

    python -m tools.build                      write all notebooks, keep outputs that still fit
    python -m tools.build 03 --execute         rebuild lecture 03 and its exercises, execute both
    python -m tools.build --check              fail if a committed notebook is not its rebuild
    python -m tools.build --check --execute    ... comparing outputs as well

source/NN_name.py            ->  notebooks/NN_name.ipynb   (executed)
source/NN_name.exercises.py  ->  exercises/NN_name.ipynb   (stubs, never executed)
                             ->  solutions/NN_name.ipynb   (executed)
"""

import argparse
import copy
import hashlib
import re
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager

from tools import shown

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 15
CELL_TIMEOUT = 1800  # seconds
IGNORE_OUTPUT = "nbval-ignore-output"
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
BOOTSTRAP = """\
# The same first cell in every notebook. Running it again changes nothing.
import os
import sys
from importlib import metadata, util
from pathlib import Path

if "google.colab" in sys.modules and not Path("../course_utils").is_dir():
    if not Path("course").is_dir():
        os.system("git clone -q {url} course")
        os.system(f"{{sys.executable}} -m pip install -q -e course")
    os.chdir("course/notebooks")
if not util.find_spec("course_utils"):
    sys.path += [str(p) for p in Path.cwd().parents if (p / "course_utils").is_dir()]
found = {{package.name: package.version for package in metadata.distributions()}}
print("python", sys.version.split()[0], *(f"{{x}} {{found[x]}}" for x in ("torch", "transformers")))
"""
SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION$", re.M | re.S)
MARKER = re.compile(r"^ *# (?:BEGIN|END) SOLUTION\n?", re.M)


class BuildError(Exception):
    """A source breaks a rule of the course, or a committed notebook is not its rebuild."""


@dataclass
class Product:
    """One notebook to write, and whether it is shipped executed."""

    path: Path
    notebook: nbformat.NotebookNode
    executed: bool


# ------------------------------------------------------------------ source to cells


def repository():
    """The public address of the course, which pyproject.toml holds."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def bootstrap_cell():
    source = BOOTSTRAP.format(url=repository())
    cell = nbformat.v4.new_code_cell(source.rstrip(), id="bootstrap")
    cell.metadata["tags"] = [IGNORE_OUTPUT]
    return cell


def read_cells(path):
    """The cells of a percent source, the bootstrap cell after the first one."""
    cells = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent").cells
    if not cells or cells[0].cell_type != "markdown":
        raise BuildError(f"{path.name}: the first cell must be Markdown (the title)")
    seen = {}
    for cell in cells:
        metadata = dict(cell.metadata)
        explicit = metadata.pop("id", None)
        tags = [IGNORE_OUTPUT if tag == "measured" else tag for tag in metadata.pop("tags", [])]
        cell.metadata = nbformat.from_dict({"tags": tags, **metadata} if tags else metadata)
        # From the content, so that inserting a cell leaves the ids of all others alone.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = explicit or digest + (f"-{seen[digest]}" if seen[digest] > 1 else "")
    return [cells[0], bootstrap_cell(), *cells[1:]]


def notebook_of(cells):
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=copy.deepcopy(NOTEBOOK_METADATA))
    nbformat.validate(notebook)
    return notebook


def with_sources(cells, change):
    """Copies of the cells, the code of each passed through ``change``."""
    copies = copy.deepcopy(cells)
    for cell in copies:
        if cell.cell_type == "code":
            cell.source = change(cell.source).rstrip()
    return copies


def products(source, root):
    """What ``source`` builds into, unexecuted."""
    cells = read_cells(source)
    if source.name.endswith(".exercises.py"):
        name = source.name.removesuffix(".exercises.py") + ".ipynb"
        complain(source, check_exercises(source, cells))
        stubs = with_sources(cells, lambda s: SOLUTION.sub(r"\1raise NotImplementedError", s))
        solved = with_sources(cells, lambda s: MARKER.sub("", s))
        yield Product(root / "exercises" / name, notebook_of(stubs), executed=False)
        yield Product(root / "solutions" / name, notebook_of(solved), executed=True)
    else:
        complain(source, check_lecture(source, cells))
        target = root / "notebooks" / f"{source.stem}.ipynb"
        yield Product(target, notebook_of(cells), executed=True)


# ------------------------------------------------------------------ rules of the course


def complain(source, problems):
    if problems:
        raise BuildError("\n".join(f"{source.name}: {problem}" for problem in problems))


def first_line(cell):
    return next((line for line in cell.source.splitlines() if line.strip()), "(empty)")[:60]


def check_lecture(source, cells):
    """What a lecture must have; one sentence for each thing that is missing."""
    problems = check_cells(cells)
    prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    wanted = {
        "a title (# ...) in the first cell": cells[0].source.startswith("# "),
        'the line "After this you can ..."': re.search(r"after this,? you can", prose, re.I),
        'how long it takes ("... minutes")': re.search(r"\d+ +minutes", cells[0].source),
        "CPU or GPU in the first cell": re.search(r"\b[CG]PU\b", cells[0].source),
        "two quiz questions in <details>": prose.count("<details") >= 2,
        'three list items under a heading "Take-aways"': len(take_aways(prose)) == 3,
    }
    problems += [f"lacks {what}" for what, there in wanted.items() if not there]
    name = source.stem
    if source.with_name(f"{name}.exercises.py").exists() and f"exercises/{name}.ipynb" not in prose:
        problems.append(f"does not link to its exercises (../exercises/{name}.ipynb)")
    for number, cell in enumerate(cells):
        lines = cell.source.count("\n") + 1
        if cell.cell_type == "code" and lines > MAX_LINES:
            if "long" not in cell.metadata.get("tags", []):
                problems.append(
                    f"cell {number} ({first_line(cell)!r}) has {lines} lines, more than {MAX_LINES}"
                    '; split it, or tag it "long" and give a reason="..."'
                )
            elif not cell.metadata.get("reason"):
                problems.append(f'cell {number} ({first_line(cell)!r}): "long" needs reason="..."')
    return problems


def take_aways(prose):
    section = re.search(r"^#+ [^\n]*take-?aways?[^\n]*\n(.*?)(?=^#|\Z)", prose, re.I | re.M | re.S)
    return re.findall(r"^(?:[-*]|\d+\.) ", section.group(1), re.M) if section else []


def check_cells(cells):
    """What holds for lectures and exercises alike."""
    problems, pictures = [], shown.Notebook()
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            lost = pictures.problems(cell.source)
            problems += [f"cell {number} ({first_line(cell)!r}): {what}" for what in lost]
        if cell.cell_type == "markdown":
            bare = re.search(r"!\[\s*\]\(", cell.source) or any(
                'alt="' not in tag for tag in re.findall(r"<img[^>]*>", cell.source)
            )
            if bare:
                problems.append(f"cell {number} ({first_line(cell)!r}): figure without alt text")
    return problems


def check_exercises(source, cells):
    """What exercises must have; one sentence for each thing that is missing."""
    problems, seen = check_cells(cells), set()
    lecture = int(source.name.split("_")[0])
    for number, cell in enumerate(cells):
        where = f"cell {number} ({first_line(cell)!r})"
        tags = [t for t in cell.metadata.get("tags", []) if t.startswith("exercise-")]
        if cell.cell_type == "code":
            begins, ends = (cell.source.count(f"# {word} SOLUTION") for word in ("BEGIN", "END"))
            if begins != ends or len(SOLUTION.findall(cell.source)) != begins:
                problems.append(f"{where}: BEGIN SOLUTION and END SOLUTION do not pair up")
            elif begins and not all(SOLUTION.findall(cell.source)):
                problems.append(
                    f"{where}: a solution must stand inside a function, so that its stub runs"
                )
            following = cells[number + 1] if number + 1 < len(cells) else nbformat.NotebookNode()
            if begins and "exercise-" not in str(following.get("metadata", {}).get("tags")):
                problems.append(f"{where}: the check cell must stand right under the stub")
        for tag in tags:
            if not re.fullmatch(rf"exercise-{lecture}\.\d+", tag) or tag in seen:
                problems.append(f"{where}: tag {tag!r} must be exercise-{lecture}.M, used once")
            seen.add(tag)
            task = "\n".join(c.source for c in cells[:number] if c.cell_type == "markdown")
            task = task[task.rfind("\n#") :]
            if not re.search(r"difficulty.{0,8}[1-5] of 5.*importance.{0,8}[1-5] of 5", task, re.I):
                problems.append(f'{where}: say "difficulty n of 5, importance n of 5" in the task')
            if not re.search(r"\d+ +minutes", task):
                problems.append(f'{where}: say how long it takes ("n minutes") in the task')
    if not seen:
        problems.append("has no check cell (tag exercise-N.M)")
    return problems


# ------------------------------------------------------------------ executing


def execute(product):
    """Run the notebook in its own folder, as nbval does, and keep what does not vary by itself."""
    kernel = AsyncKernelManager(
        kernel_name=CURRENT_ENV_KERNEL_NAME, kernel_spec_manager=NbvalKernelspecManager()
    )
    client = NotebookClient(
        product.notebook,
        km=kernel,
        timeout=CELL_TIMEOUT,
        coalesce_streams=True,
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(product.path.parent)}},
    )
    try:
        client.execute(stderr=subprocess.DEVNULL)  # the kernel's own log, not the cells'
    except CellExecutionError as error:
        raise BuildError(f"{product.path.name}: {error}") from None
    problems = []
    for number, cell in enumerate(product.notebook.cells):
        if cell.cell_type != "code":
            continue
        stderr = [o for o in cell.outputs if o.get("name") == "stderr"]
        if stderr and IGNORE_OUTPUT not in cell.metadata.get("tags", []):
            text = stderr[0].text.strip()[:300]
            problems.append(
                f"cell {number} ({first_line(cell)!r}) writes to stderr, mend it or mark it: {text}"
            )
        cell.outputs = [clean(output) for output in cell.outputs if output not in stderr]
    product.notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    complain(product.path, problems)


def clean(output):
    """The output without a widget's random id: a web page shows its text or picture instead."""
    output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return output


def adopt_outputs(product):
    """Take over the committed outputs if no code cell has changed since; else leave none."""
    if not product.executed or not product.path.exists():
        return
    old = [c for c in nbformat.read(product.path, as_version=4).cells if c.cell_type == "code"]
    new = [c for c in product.notebook.cells if c.cell_type == "code"]
    # The bootstrap cell is the same in all notebooks and changes no other cell's output.
    sources = [["" if c.id == "bootstrap" else c.source for c in cells] for cells in (old, new)]
    if sources[0] == sources[1]:
        for before, after in zip(old, new, strict=True):
            after.outputs, after.execution_count = before.outputs, before.execution_count
    else:
        print(f"{product.path.name}: code has changed, outputs dropped; run again with --execute")


# ------------------------------------------------------------------ checking


def compare(product, outputs):
    """Sentences that say where the committed notebook differs from this rebuild."""
    name = f"{product.path.parent.name}/{product.path.name}"
    if not product.path.exists():
        return [f"{name}: not built"]
    committed = nbformat.read(product.path, as_version=4)
    if len(committed.cells) != len(product.notebook.cells):
        return [f"{name}: {len(committed.cells)} cells, {len(product.notebook.cells)} in a rebuild"]
    problems = []
    if committed.metadata != product.notebook.metadata:
        problems.append(f"{name}: notebook metadata differ from a rebuild")
    for number, (old, new) in enumerate(zip(committed.cells, product.notebook.cells, strict=True)):
        where = f"{name}: cell {number} ({first_line(new)!r})"
        different = [
            key for key in ("cell_type", "source", "id", "metadata") if old.get(key) != new.get(key)
        ]
        if different:
            problems.append(f"{where}: {' and '.join(different)} differ from a rebuild")
        if old.cell_type != "code" or different:
            continue
        if not product.executed and (old.outputs or old.execution_count is not None):
            problems.append(f"{where}: has outputs, exercises ship without")
        if product.executed and old.source.strip() and old.execution_count is None:
            problems.append(f"{where}: not executed")
        if IGNORE_OUTPUT in old.metadata.get("tags", []):
            continue
        if any(o.get("name") == "stderr" for o in old.outputs):
            problems.append(f"{where}: has output on stderr")
        if outputs and product.executed and outputs_of(old) != outputs_of(new):
            problems.append(f"{where}: output differs from a rebuild")
    return problems


def outputs_of(cell):
    """A cell's outputs, with every bitmap reduced to the fact that it is there."""
    outputs = copy.deepcopy(cell.outputs)
    for output in outputs:
        for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
            output.data[kind] = "there"
    return outputs


def orphans(root):
    """Notebooks that no source builds."""
    wanted = {p.path for s in (root / "source").glob("[0-9]*.py") for p in paths_of(s, root)}
    for folder in ("notebooks", "exercises", "solutions"):
        for path in sorted((root / folder).glob("*.ipynb")):
            if path not in wanted:
                yield f"{folder}/{path.name}: no source builds it"


def paths_of(source, root):
    name = source.name.removesuffix(".py").removesuffix(".exercises") + ".ipynb"
    folders = ("exercises", "solutions") if ".exercises" in source.name else ("notebooks",)
    return [Product(root / folder / name, None, False) for folder in folders]


# ------------------------------------------------------------------ command line


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(
        prog="python -m tools.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lectures (default: all)")
    parser.add_argument("--execute", action="store_true", help="execute lectures and solutions")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args(arguments)
    sources = sorted((root / "source").glob("[0-9]*.py"))
    if options.numbers:
        sources = [s for s in sources if s.name.split("_")[0] in options.numbers]
        if not sources:
            parser.error(f"no source for {' '.join(options.numbers)}")
    problems = list(orphans(root)) if options.check and not options.numbers else []
    built = 0
    for source in sources:
        try:
            for product in products(source, root):
                start = time.perf_counter()
                product.path.parent.mkdir(exist_ok=True)
                if options.execute and product.executed:
                    execute(product)
                if options.check:
                    problems += compare(product, outputs=options.execute)
                else:
                    if not options.execute:
                        adopt_outputs(product)
                    nbformat.write(product.notebook, product.path)
                    where = f"{product.path.parent.name}/{product.path.name}"
                    print(f"{where}  {time.perf_counter() - start:.1f} s")
                built += 1
        except BuildError as error:
            problems += str(error).splitlines()
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.check:
        print(f"{built} notebooks compared with their source, {len(problems)} differences")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
