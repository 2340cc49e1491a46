"""Notebooks as files: run them, clean them for git, build the student and the reading copy, import what they define.

Design:
- Files are read as plain JSON and never upgraded or completed on the way, so that cleaning twice changes nothing.
- A run has a fresh kernel with nobody there to answer; it prints its progress and writes a copy even when it fails.
- The reading copy needs no network: no script from elsewhere, equations drawn as SVG by matplotlib's mathtext.
- Cells are named by their place among all cells and their first line, because front ends show neither ids nor numbers.
"""

import ast
import base64
import contextlib
import hashlib
import html as markup
import io
import itertools
import json
import linecache
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import types
from pathlib import Path
from typing import NamedTuple

from nbtools.errors import NbtoolsError

ROOT = Path(__file__).resolve().parents[1]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MARK = re.compile(r"^\s*#+\s*NBVAL_CHECK_OUTPUT\s*$", re.M)
BADGE = re.compile(r"https://colab\.research\.google\.com/github/[^)\s\"']+")
SOLUTION = re.compile(r"^([ \t]*)### (BEGIN|END) SOLUTION[ \t]*$")
WIDGET = "application/vnd.jupyter.widget-view+json"
# TeX that mathtext lacks, and what it has instead.
MATHTEXT = {"[bB]igg?[lrm]?": "", "[td]frac": r"\\frac", "le": r"\\leq", "ge": r"\\geq", "[lr]Vert": r"\\Vert"}
ASSIGNMENT = ast.Assign | ast.AnnAssign
TODO = 'raise NotImplementedError("to do")'


# --- files and cells


def find(nb):
    """The path of a notebook named by number ("1", "01"), stem or path; the error for another lists what there is."""
    path, folder = Path(nb), ROOT / "notebooks"
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    pattern = f"{int(str(nb)):02d}_*.ipynb" if str(nb).isdecimal() else f"{path.stem}.ipynb"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        known = ", ".join(p.stem for p in sorted(folder.glob("*.ipynb"))) or "no notebook"
        raise NbtoolsError(f"{len(found) or 'no'} notebooks are called {str(nb)!r}: {folder} holds {known}.")
    return found[0]


def read(path):
    """A notebook (format 4) exactly as its file has it: nothing is added, upgraded or renumbered."""
    from nbformat import v4

    try:
        nb = v4.reads(Path(path).read_text(encoding="utf-8"))
        if nb.nbformat != 4:
            raise ValueError(f"format {nb.nbformat} instead of 4")
    except (ValueError, AttributeError, KeyError) as error:
        raise NbtoolsError(f"{path} cannot be read as a notebook ({error}): open and save it in JupyterLab.") from None
    return nb


def _text(nb):
    from nbformat import v4

    return v4.writes(nb) + "\n"


def _write(nb, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(nb), encoding="utf-8")
    return path


def tags(cell):
    """The set of a cell's tags."""
    return set(cell.metadata.get("tags", []))


def is_checked(cell):
    """Whether nbval compares this cell's saved output with a new one."""
    return cell.cell_type == "code" and bool(MARK.search(cell.source) or "nbval-check-output" in tags(cell))


def keeps_output(cell):
    """Whether this cell's output is committed: it is checked, or it is a reviewed figure tagged `keep-output`."""
    return cell.cell_type == "code" and (is_checked(cell) or "keep-output" in tags(cell))


def label(nb, index):
    """How a person finds a cell: `cell 7 of 40 ("model = ...")`, counted from 1 over all cells."""
    lines = MARK.sub("", nb.cells[index].source).split("\n")
    first = next((line.strip() for line in lines if line.strip()), "empty")
    return f'cell {index + 1} of {len(nb.cells)} ("{first[:50]}")'


def code_cells(nb):
    """(index, cell, syntax tree) of each code cell; lines of magic count as `pass`."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            try:
                tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M))
            except SyntaxError as error:
                raise NbtoolsError(f"{label(nb, index)} is not Python: {error.msg}, line {error.lineno}.") from None
        yield index, cell, tree


def aligned(rows):
    """Rows as text in columns, the first to the left, the others to the right; floats with four digits, None as -."""
    shown = [["-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in shown)
    return "\n".join("  ".join(line).rstrip() for line in lines)


# --- running


class Watch:
    """Peak memory of a process in bytes, until `stop()`; with `gpu`, of the GPU beyond what that held before.

    Linux keeps the peak itself (VmHWM), so none is missed there; elsewhere it is the largest of ten samples a second.
    """

    def __init__(self, pid, gpu=False):
        self.pid, self.peak, self._end, self._smi = pid, 0, threading.Event(), None
        if gpu and shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
            self._smi = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._gpu if self._smi else self._process, daemon=True)
        self._thread.start()

    def sample(self):
        """Look now: called at the end of each cell, so that a short notebook is seen too."""
        if self._smi:
            return
        with contextlib.suppress(Exception):  # the process may be gone; what was seen before stays
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
                now = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
            except (OSError, TypeError):
                import psutil

                now = psutil.Process(self.pid).memory_info().rss
            self.peak = max(self.peak, now)

    def _process(self):
        while not self._end.wait(0.1):
            self.sample()

    def _gpu(self):
        before = int(self._smi.stdout.readline()) << 20
        for line in self._smi.stdout:
            self.peak = max(self.peak, (int(line) << 20) - before)

    def stop(self):
        """The peak in bytes; the thread has ended."""
        self.sample()
        self._end.set()
        if self._smi:
            self._smi.terminate()
            self._smi.wait()
        self._thread.join()
        return self.peak


def stated(nb, profile=None):
    """(profile, minutes, peak in GB) as the front matter states for `profile` (default: this machine's), else None."""
    if not (profile := profile or os.environ.get("NBTOOLS_PROFILE")):
        from nbtools import profiles

        profile = profiles.current().name
    front = nb.metadata.get("nbtools", {})
    return profile, front.get("minutes", {}).get(profile), front.get("peak_gb", {}).get(profile)


def run(nb, out="build/runs", timeout=600, profile=None):
    """Execute a notebook headless, write the executed .ipynb and .html into `out` and return the first.

    timeout: seconds for the whole notebook. A failing cell, a dead kernel, the time limit: NbtoolsError after writing.
    """
    source = find(nb)
    book, target = read(source), (ROOT / out).resolve() / source.name
    rows = target.with_suffix("") / "records.json"
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.unlink(missing_ok=True)
    environment = os.environ | {"NBTOOLS_RUN_DIR": str(rows.parent)}
    environment |= {"NBTOOLS_PROFILE": profile} if profile else {}
    profile, minutes, memory = stated(book, profile)
    start = time.monotonic()
    peak, problem = _execute(book, source, environment, timeout, profile == "gpu")
    seconds = time.monotonic() - start
    page = _page(book, _write(book, target).with_suffix(".html"))
    if problem:
        raise NbtoolsError(f"{source.stem} stopped at {problem} The copy up to there is {target}.")
    if rows.exists():
        print(result_table(json.loads(rows.read_text(encoding="utf-8"))))
    print(f"{source.stem} ran to its end under the {profile} profile.")
    print(f"{seconds:.1f} s (stated: {minutes or '-'} min), peak {peak / 1e9:.2f} GB (stated: {memory or '-'} GB).")
    print(f"Wrote {target} and {page}.")
    return target


def _execute(book, source, environment, timeout, gpu):
    """Run all cells of `book` in place; returns peak bytes, and None or a sentence that begins with the failed cell."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    start, at, watch, problem = time.monotonic(), 0, None, None

    def begin(cell, cell_index):
        nonlocal at, watch
        at, watch = cell_index, watch or Watch(client.km.provisioner.pid, gpu)
        print(f"{time.monotonic() - start:7.1f} s  {label(book, at)}", flush=True)

    client = NotebookClient(
        book,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_execute=begin,
        on_cell_executed=lambda **_: watch.sample(),
        timeout_func=lambda cell: max(1, int(start + timeout - time.monotonic())),
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        problem = f"{label(book, at)}: {error.ename}: {error.evalue}."
    except CellTimeoutError:
        problem = f"{label(book, at)}: the notebook took more than its {timeout:g} seconds."
    except DeadKernelError:
        problem = f"{label(book, at)}: its kernel died; too little memory is the usual reason."
    return watch.stop() if watch else 0, problem


def result_table(rows):
    """The `numbers` of recorded rows as text: one line a row, one column a number, in the order of first use."""
    keys = list(dict.fromkeys(key for row in rows for key in row["numbers"]))
    return aligned([["name", *keys], *([row["name"], *map(row["numbers"].get, keys)] for row in rows)])


# --- the reading copy


def html(path, out="build/html"):
    """Write the reading copy of a notebook, with the outputs it has, into `out` and return it; it needs no network."""
    source = find(path)
    return _page(read(source), (ROOT / out).resolve() / f"{source.stem}.html")


def _page(nb, target):
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        block_math = staticmethod(lambda body: f'<p style="text-align:center">{_equation(body)}</p>')
        inline_math = staticmethod(lambda body: _equation(body))

    # These blocks of the template load scripts from a CDN.
    scripts = ("html_head_js_requirejs", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets")
    empty = "".join(f"{{% block {name} %}}{{% endblock {name} %}}" for name in scripts)
    exporter = HTMLExporter(raw_template="{% extends 'lab/index.html.j2' %}" + empty)
    render = MarkdownWithMath(renderer=Renderer(escape=False)).render
    exporter.register_filter("markdown2html", render)
    title = nb.metadata.get("nbtools", {}).get("title", target.stem)
    page, _ = exporter.from_notebook_node(nb, {"metadata": {"name": title}})
    page = re.sub(r'<img(?=[^>]*src="https?:)[^>]*?alt="([^"]*)"[^>]*>', r"\1", page)  # a badge becomes its words
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _equation(tex):
    """TeX as an inline SVG picture whose alt text is the TeX; what mathtext does not know stays as it was written."""
    from matplotlib.mathtext import math_to_image

    tex, picture = " ".join(tex.split()), io.BytesIO()
    drawable = tex
    for pattern, known in MATHTEXT.items():
        drawable = re.sub(rf"\\{pattern}(?![a-zA-Z])", known, drawable)
    try:
        depth = math_to_image(f"${drawable}$", picture, format="svg", dpi=72)
    except ValueError:
        return f"<code>{markup.escape(tex)}</code>"
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"
    return f'<img alt="{markup.escape(tex)}" style="vertical-align:-{depth:.1f}pt;display:inline" src="{source}"/>'


# --- cleaning for git


def clean(path, check=False, outputs_from=None):
    """Normalise a notebook for git; True if that changed (with `check`: would change) the file.

    outputs_from: an executed copy whose outputs the cells that keep theirs take over, matched by cell id.
    """
    source = find(path)
    before, nb = source.read_text(encoding="utf-8"), read(source)
    _stable_ids(nb)
    if outputs_from:
        fresh = {cell.id: cell.outputs for cell in read(outputs_from).cells if cell.cell_type == "code"}
        for cell in filter(keeps_output, nb.cells):
            cell.outputs = fresh.get(cell.id, cell.outputs)
    url, count = badge_url(source), itertools.count(1)
    for index, cell in enumerate(nb.cells):
        cell.metadata = {key: cell.metadata[key] for key in ("jupyter", "slideshow", "tags") if cell.metadata.get(key)}
        if cell.cell_type == "code":
            _clean_code(nb, index, next(count))
        elif url:
            cell.source = BADGE.sub(url, cell.source)
    front = {"nbtools": nb.metadata["nbtools"]} if "nbtools" in nb.metadata else {}
    nb.metadata, nb.nbformat_minor = METADATA | front, 5
    after = _text(nb)
    if after != before and not check:
        source.write_text(after, encoding="utf-8")
    return after != before


def _clean_code(nb, index, count):
    """Drop what is not committed; a cell that keeps its output gets `count`, or nbval would compare nothing."""
    cell = nb.cells[index]
    if not keeps_output(cell):
        cell.outputs, cell.execution_count = [], None
        return
    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]
    if not cell.outputs:
        raise NbtoolsError(f"{label(nb, index)} keeps its output but has none: run it, clean with the executed copy.")
    if any(output.output_type == "error" for output in cell.outputs):
        raise NbtoolsError(f"{label(nb, index)} keeps its output, and that is an error: mend it and run it again.")
    cell.execution_count = count
    for output in cell.outputs:
        if output.output_type == "execute_result":
            output.execution_count = count


def _stable_ids(nb):
    """Keep ids that are valid and the first of their kind; derive the others from the cell's text."""
    given, seen = {cell.get("id") for cell in nb.cells}, set()
    for cell in nb.cells:
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell.get("id") or "") or cell.id in seen:
            stem = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
            names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
            cell.id = next(name for name in names if name not in given | seen)
        seen.add(cell.id)


def badge_url(path):
    """Where Colab opens this notebook, from `Repository` in pyproject's [project.urls]; None while that is not set."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "").removeprefix("https://github.com/").strip("/")
    place = f"{address.removesuffix('.git')}/blob/main/notebooks/{Path(path).name}"
    return f"https://colab.research.google.com/github/{place}" if address else None


def contract(path):
    """What breaks the contract of a notebook: a list of sentences, empty when it holds (see nbtools.contract)."""
    from nbtools import contract as rules

    return rules.problems(path)


# --- the student copy


def student(path, out="build/student"):
    """Write the copy with `raise NotImplementedError("to do")` for each solution and no outputs; return its path."""
    source = find(path)
    nb = read(source)
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = without_solutions(cell.source, label(nb, index))
    return _write(nb, (ROOT / out).resolve() / source.name)


def without_solutions(source, where):
    """A cell's text with each marked block replaced, indented alike; an unpaired marker is an error naming `where`."""
    kept, inside = [], False
    for line in source.splitlines():
        mark = SOLUTION.match(line)
        if mark and (mark[2] == "END") != inside:
            raise NbtoolsError(f"{where}: ### {mark[2]} SOLUTION has no partner; every BEGIN needs one END after it.")
        if mark and not inside:
            kept.append(mark[1] + TODO)
        elif not inside:
            kept.append(line)
        inside = inside != bool(mark)
    if inside:
        raise NbtoolsError(f"{where}: ### BEGIN SOLUTION has no partner; every BEGIN needs one END after it.")
    return "\n".join(kept)


# --- definitions by name


class Statement(NamedTuple):
    """A top-level statement of a notebook: syntax, names bound, whether it only assigns, its cell's label and text."""

    node: ast.stmt
    names: set
    assigns: bool
    where: str
    text: str


def definitions(path, *names):
    """{name: object} of functions, classes and constants of a notebook, without running the notebook.

    Executed are these and, of what their code mentions, imports, functions, classes and UPPER_CASE constants.
    """
    name = find(path).stem
    module = sys.modules[name] = types.ModuleType(name)  # where dataclasses and pickle look a class up
    for s in _needed(path, names):
        linecache.cache[s.where] = (len(s.text), None, s.text.splitlines(True), s.where)  # for inspect.getsource
        exec(compile(ast.Module([s.node], []), s.where, "exec"), module.__dict__)
    return {name: module.__dict__[name] for name in names}


def fingerprint(*sources):
    """Twelve hex digits that change when what the code does may have changed, not when comments or docstrings do.

    The same in every Python: `ast.unparse` and `ast.dump` write the same tree otherwise from version to version.
    """
    trees = [ast.parse(source) for source in sources]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(repr([_plain(tree) for tree in trees]).encode()).hexdigest()[:12]


def _plain(node):
    """A syntax tree as nested lists, without its empty fields and positions."""
    if isinstance(node, list):
        return [_plain(child) for child in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, child) for name, child in ast.iter_fields(node) if child is not None and child != [])
    return [type(node).__name__, *([name, _plain(child)] for name, child in fields)]


def source_of(path, *names):
    """The source text that `definitions` would execute for these names."""
    return "\n".join(ast.unparse(s.node) for s in _needed(path, names))


def _needed(path, names):
    """The statements that define `names` and what their code mentions, in order."""
    source = find(path)
    nb = read(source)
    statements = [
        Statement(node, _bound(node), isinstance(node, ASSIGNMENT), f"{source.name}, {label(nb, index)}", cell.source)
        for index, cell, tree in code_cells(nb)
        for node in tree.body
    ]
    every = set().union(*(s.names for s in statements))
    proper = set().union(*(s.names for s in statements if not s.assigns))  # `f = check(f)` does not define f
    if missing := [name for name in names if name not in every]:
        known = ", ".join(sorted(every)) or "nothing"
        raise NbtoolsError(f"{source.name} defines no {missing[0]!r}; it defines {known}.")
    needed, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name in every and name not in needed and (name in proper or name in names or name.isupper()):
            needed.add(name)
            queue += [n.id for s in statements if name in s.names for n in ast.walk(s.node) if isinstance(n, ast.Name)]
    return [s for s in statements if s.names & (needed - proper if s.assigns else needed)]


def _bound(node):
    """The names that a statement defines, imports or assigns."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ASSIGNMENT):
        return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return set()
