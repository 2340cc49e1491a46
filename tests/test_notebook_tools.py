"""nbtools.notebooks, nbtools.contract and the hooks of conftest.py, on notebooks made here, right and wrong ones."""

import copy
import hashlib
import html
import inspect
import json
import os
import re
import socket
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

import nbtools
from nbtools import assets, contract, notebooks
from nbtools.errors import NbtoolsError

ROOT = Path(__file__).resolve().parents[1]
BADGE = "https://colab.research.google.com/github/nbtools/course/blob/main/notebooks/01_toy.ipynb"
FRONT = {
    "title": "A toy",
    "level": "first steps",
    "claims": ["one and one are two"],
    "minutes": {"cpu": 0.1, "gpu": None},
    "peak_gb": {"cpu": 0.5, "gpu": None},
    "assets": ["toy"],
    "exercises": ["double"],
    "needs": [],
}
SOLUTION = """def double(x):
    \"\"\"Twice x.\"\"\"
    ### BEGIN SOLUTION
    y = FACTOR * x
    return y
    ### END SOLUTION"""
CHECKED = "# NBVAL_CHECK_OUTPUT\nprint(f'{mean([1, 2]):.2f}')"


def code(source, text=None, count=1, **metadata):
    """A code cell; with `text`, as if it had been run and had printed that."""
    cell = v4.new_code_cell(source, metadata=metadata)
    if text is not None:
        cell.outputs, cell.execution_count = [v4.new_output("stream", text=text)], count
    return cell


def lesson():
    """A notebook that keeps the whole contract."""
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({BADGE})"
    nb = v4.new_notebook(metadata=notebooks.METADATA | {"nbtools": copy.deepcopy(FRONT)})
    nb.cells = [
        v4.new_markdown_cell("# A toy"),
        v4.new_markdown_cell(f"**Claim.** One and one are two. It takes 1 minute.\n\n{badge}"),
        code("FACTOR = 2", tags=["setup"]),
        code("from statistics import mean\n\nfrom nbtools import assets, plots\nfrom nbtools.checks import check"),
        v4.new_markdown_cell("The mean is 1.50, of which $x = 0.25$ and `0.125` are no results."),
        code(CHECKED, "1.50\n", 3),
        code('data = assets.path("toy")\nplots.show(data, alt="two bars")'),
        code(SOLUTION),
        code("double = check(double)"),
        code("panel(double, x=2)\nquiz('?', ['a'], 0, 'why')"),
    ]
    for index, cell in enumerate(nb.cells):
        cell.id = f"c{index:02d}"
    return nb


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project root of its own with one good lesson."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(assets, "cards", lambda: {"toy": None})
    monkeypatch.setenv("NBTOOLS_PROFILE", "cpu")
    address = "https://github.com/nbtools/course"
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "toy"\n[project.urls]\nRepository = "{address}"\n')
    save(tmp_path, lesson())
    return tmp_path


def save(root, nb, name="01_toy.ipynb"):
    path = root / "notebooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(v4.writes(nb) + "\n", encoding="utf-8")
    return path


# --- find, read


def test_find_takes_number_stem_and_path(root):
    path = root / "notebooks" / "01_toy.ipynb"
    for name in ("1", "01", "01_toy", "01_toy.ipynb", str(path), path):
        assert notebooks.find(name) == path
    for name in ("2", "toy", "missing.ipynb"):
        with pytest.raises(NbtoolsError, match="01_toy"):
            notebooks.find(name)


def test_reading_adds_nothing(root):
    path = root / "notebooks" / "01_toy.ipynb"
    nb = json.loads(path.read_text())
    del nb["cells"][0]["id"]
    path.write_text(json.dumps(nb))
    assert "id" not in notebooks.read(path).cells[0]
    path.write_text("{")
    with pytest.raises(NbtoolsError, match="cannot be read"):
        notebooks.read(path)


# --- clean


def test_clean_leaves_a_clean_notebook(root):
    assert not notebooks.clean("01")


def test_clean_makes_a_used_notebook_clean(root):
    nb = lesson()
    nb.metadata["widgets"] = {"state": {}}
    nb.metadata["colab"] = {}
    nb.metadata.language_info["version"] = "3.11.2"
    for index in (2, 3):
        nb.cells[index] = code(nb.cells[index].source, "noise", 40, ExecuteTime={}, tags=["setup"])
        nb.cells[index].id = f"c{index:02d}"
    nb.cells[2].metadata.pop("ExecuteTime")
    nb.cells[3].metadata.pop("tags")
    nb.cells[5].execution_count = 17
    nb.cells[5].outputs.append(v4.new_output("stream", name="stderr", text="warning"))
    nb.cells[1].source = nb.cells[1].source.replace("nbtools/course", "somebody/fork")
    path = save(root, nb)
    before = path.read_text()
    assert notebooks.clean("01", check=True) and path.read_text() == before
    assert notebooks.clean("01") and not notebooks.clean("01")
    assert path.read_text() == v4.writes(lesson()) + "\n"
    nbformat.validate(notebooks.read(path))


def test_clean_keeps_unique_ids_and_derives_the_others(root):
    path = save(root, lesson())
    nb = json.loads(path.read_text())
    nb["cells"][1]["id"] = nb["cells"][0]["id"]
    nb["cells"][2]["id"] = "not valid"
    del nb["cells"][3]["id"]
    nb["cells"][4]["source"] = nb["cells"][1]["source"]
    nb["cells"][4]["id"] = nb["cells"][0]["id"]
    nb["cells"][9]["id"] = hashlib.sha256(lesson().cells[2].source.encode()).hexdigest()[:8]  # what would be derived
    path.write_text(json.dumps(nb))
    notebooks.clean(path)
    ids = [cell.id for cell in notebooks.read(path).cells]
    assert [ids[0], *ids[5:]] == ["c00", "c05", "c06", "c07", "c08", nb["cells"][9]["id"]] and len(set(ids)) == 10
    path.write_text(json.dumps(nb))
    notebooks.clean(path)
    assert [cell.id for cell in notebooks.read(path).cells] == ids


def test_clean_refuses_a_kept_cell_without_output(root):
    nb = lesson()
    nb.cells[5].outputs = []
    path = save(root, nb)
    with pytest.raises(NbtoolsError, match=r"cell 6 of 10 \(.print.*has none"):
        notebooks.clean(path)
    nb.cells[5].outputs = [v4.new_output("error", ename="E", evalue="e", traceback=[])]
    with pytest.raises(NbtoolsError, match=r"cell 6 of 10 .*an error"):
        notebooks.clean(save(root, nb))


def test_clean_takes_outputs_from_an_executed_copy(root):
    nb = lesson()
    for cell in (nb.cells[5], nb.cells[6]):
        cell.outputs = [v4.new_output("stream", text="fresh\n")]
    executed = save(root, nb, "executed.ipynb")
    assert notebooks.clean("01", outputs_from=executed)
    cells = notebooks.read(notebooks.find("01")).cells
    assert cells[5].outputs[0].text == "fresh\n" and cells[5].execution_count == 3 and not cells[6].outputs


def test_clean_drops_widgets_of_a_kept_figure(root):
    nb = lesson()
    nb.cells[6].metadata["tags"] = ["keep-output"]
    nb.cells[6].outputs = [
        v4.new_output("display_data", data={"image/png": "iVBO"}),
        v4.new_output("display_data", data={notebooks.WIDGET: {"model_id": "1"}, "text/plain": "Button()"}),
    ]
    path = save(root, nb)
    notebooks.clean(path)
    cell = notebooks.read(path).cells[6]
    assert [list(o.data) for o in cell.outputs] == [["image/png"]] and cell.execution_count == 4


def test_without_a_repository_the_badge_stays(root):
    (root / "pyproject.toml").write_text('[project]\nname = "toy"\n')
    assert notebooks.badge_url("x.ipynb") is None and not notebooks.clean("01")


# --- the contract


def test_a_good_lesson_keeps_the_contract(root):
    assert notebooks.contract("01") == []


def edit(index, old, new):
    def change(nb):
        assert old in nb.cells[index].source
        nb.cells[index].source = nb.cells[index].source.replace(old, new)

    return change


def front(**values):
    return lambda nb: nb.metadata["nbtools"].update(values)


def append(cell):
    return lambda nb: nb.cells.append(cell)


def put(index, **values):
    return lambda nb: nb.cells[index].update(values)


BREACHES = {
    "no front matter": (lambda nb: nb.metadata.pop("nbtools"), "needs 'title', a str"),
    "no claims": (front(claims=[]), "names no claim"),
    "minutes without gpu": (front(minutes={"cpu": 1}), "'minutes' needs a number for cpu"),
    "memory in words": (front(peak_gb={"cpu": "2 GB", "gpu": None}), "'peak_gb' needs a number for cpu"),
    "asset not stated": (front(assets=[]), "asset 'toy' is used but is not"),
    "asset without card": (front(assets=["toy", "dragon"]), "asset 'dragon' has no card"),
    "no heading": (edit(0, "# A toy", "A toy"), "must be a heading"),
    "other title": (front(title="Another"), "front matter's title 'Another'"),
    "no claim": (edit(1, "**Claim.**", ""), "lacks the claim"),
    "no minutes": (edit(1, "1 minute", "a while"), "lacks the minutes"),
    "no badge": (edit(1, "/github/", "/drive/"), "lacks a Colab badge"),
    "foreign badge": (edit(1, "nbtools/course", "some/fork"), "the Colab badge opens"),
    "no imports": (put(3, source="x = 1"), "must hold the imports"),
    "late import": (edit(6, "data =", "import os\ndata ="), "all imports belong"),
    "import after the imports": (edit(5, "print", "import os\nprint"), "all imports belong"),
    "import in a function": (append(code("def f():\n    import os\n    return os")), "all imports belong"),
    "star import": (edit(3, "import mean", "import *"), "star import"),
    "long cell": (append(code("x = 1\n" * 41)), "41 lines of code"),
    "long median": (lambda nb: nb.cells.extend(code("x = 1\n" * 9) for _ in range(9)), "median code cell has 9 lines"),
    "long text": (append(v4.new_markdown_cell("word " * 100)), "has 100 words"),
    "no alt text": (edit(6, ', alt="two bars"', ""), "shows a figure without alt text"),
    "empty alt text": (edit(6, "two bars", ""), "shows a figure without alt text"),
    "bare show": (append(code("plt.show()")), "use plots.show"),
    "picture without alt": (append(v4.new_markdown_cell("![](a.png)")), "picture without alt text"),
    "img without alt": (append(v4.new_markdown_cell('<img src="a.png">')), "picture without alt text"),
    "no panel": (edit(9, "panel(double, x=2)\n", ""), "it has no panel"),
    "no quiz": (edit(9, "\nquiz('?', ['a'], 0, 'why')", ""), "it has no quiz"),
    "no markers": (put(7, source="def double(x):\n    return 2 * x"), "'double' is defined in no cell"),
    "one marker": (edit(7, "    ### END SOLUTION", ""), "BEGIN SOLUTION has no partner"),
    "no check": (put(8, source="double(2)"), "'double' is never checked"),
    "unknown exercise": (front(exercises=[]), "'double' is checked but is not"),
    "not Python": (append(code("1 +")), "is not Python"),
    "an output": (append(code("print(1)", "1\n")), "has an output but is not marked"),
    "stderr": (lambda nb: nb.cells[5].outputs.append(v4.new_output("stream", name="stderr", text="!")), "holds stderr"),
    "widget state": (lambda nb: nb.metadata.update(widgets={}), "holds widget state"),
    "checked, no output": (put(5, outputs=[]), "keeps its output but has none"),
    "checked, no count": (put(5, execution_count=None), "no execution count"),
    "not clean": (put(5, execution_count=99), "as `nbtools clean 01_toy` leaves it"),
    "unmarked number": (edit(4, "1.50", "1.60"), "1.60 stands in no checked output"),
}


SEVERAL = ("no front matter", "no imports", "no markers", "one marker", "checked, no output")  # break two rules at once


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_of_the_contract_is_found(root, name):
    change, sentence = BREACHES[name]
    nb = lesson()
    change(nb)
    try:
        found = notebooks.contract(save(root, nb))
    except NbtoolsError as error:
        found = [str(error)]
    assert any(sentence in problem for problem in found), found
    assert len(found) == 1 or name in SEVERAL, found


def test_magics_are_not_syntax_errors(root):
    nb = lesson()
    nb.cells[2].source = "%pip install nbtools\nif True:\n    !ls\nFACTOR = 2"
    assert notebooks.contract(save(root, nb)) == []


# --- numbers in text


@pytest.fixture
def results(root, monkeypatch):
    values = {"01/a": 0.7342, "01/b": 1234.5, "01/c": -0.5}
    monkeypatch.setattr(nbtools, "records", types.SimpleNamespace(lookup=values.__getitem__), raising=False)

    def drift(text, **metadata):
        nb = lesson()
        nb.cells[4] = v4.new_markdown_cell(text, metadata=metadata)
        return contract.drift(save(root, nb))

    return drift


@pytest.mark.parametrize(
    "text",
    [
        "0.73<!-- results:01/a --> and 0.734<!-- results:01/a -->",
        "73.4 %<!-- results:01/a --> or 73%<!-- results:01/a -->",
        "1,234.5<!-- results:01/b --> and -0.5<!-- results:01/c -->",
        "printed above: 1.50; in code `lr=0.01`; in a formula $a = 0.1$ or $$b = 2.5$$",
        "3 x 3 inches, 96 x 96 pixels, torch 2.13.0, [a link](https://a.org/1.5), 10 minutes, 12 labels",
    ],
)
def test_numbers_that_hold(results, text):
    assert results(text) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.74<!-- results:01/a -->", "01/a is 0.73"),
        ("0.735<!-- results:01/a -->", "01/a is 0.734"),
        ("74 %<!-- results:01/a -->", "01/a is 73"),
        ("0.5<!-- results:01/c -->", "01/c is -0.5"),
        ("0.73<!-- results:01/gone -->", "no result '01/gone'"),
        ("it reached 0.83 at once", "0.83 stands in"),
        ("it reached 73.4 % at once", "73.4 stands in"),
        ("it reached 80 % at once", "80 stands in"),
        ("it is 2x faster", "2 stands in"),
        ("it is 1.9× faster", "1.9 stands in"),
        ("printed is 1.50, not 1.5", "1.5 stands in"),
        ("0.73<!-- results:01/a --> but also 0.99", "0.99 stands in"),
    ],
)
def test_numbers_that_drifted(results, text, sentence):
    found = results(text)
    assert len(found) == 1 and sentence in found[0] and found[0].startswith("cell 5 of 10"), found


def test_a_cell_without_results_may_hold_numbers_but_no_wrong_marker(results):
    assert results("the paper says 0.83", tags=["no-results"]) == []
    assert len(results("0.99<!-- results:01/a -->", tags=["no-results"])) == 1


# --- student copies


def test_student_copy_has_no_solution_and_no_output(root):
    nb = notebooks.read(notebooks.student("01"))
    stub = SOLUTION[: SOLUTION.index("    ###")] + '    raise NotImplementedError("to do")'
    assert nb.cells[7].source == stub and not any(cell.get("outputs") for cell in nb.cells)
    assert [c.source for c in nb.cells[:7]] == [c.source for c in lesson().cells[:7]]


@pytest.mark.parametrize(
    "source",
    [
        "### BEGIN SOLUTION\nx = 1",
        "x = 1\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_markers_without_partner_name_the_cell(root, source):
    nb = lesson()
    nb.cells.append(code(source))
    with pytest.raises(NbtoolsError, match="cell 11 of 11 .*no partner"):
        notebooks.student(save(root, nb))


EXERCISE = """from nbtools.checks import check, exercise


@exercise("double", reference=lambda x: 2 * x, minutes=1)
def check_double(fn):
    yield "" if fn(2) == 4 else "twice two is four\""""


@pytest.mark.parametrize("strict", ["", "1"])
def test_a_student_copy_runs_to_its_end_unless_strict(root, monkeypatch, capsys, strict):
    nb = lesson()
    nb.cells = [code(s) for s in ("FACTOR = 2", EXERCISE, SOLUTION, "double = check(double)", "print(double(21))")]
    copy_ = notebooks.student(save(root, nb))
    monkeypatch.setenv("NBTOOLS_STRICT", strict)
    if strict:
        with pytest.raises(NbtoolsError, match=r"cell 4 of 5 .*ExerciseError: double: to do"):
            notebooks.run(copy_)
    else:
        printed = [o.text for c in notebooks.read(notebooks.run(copy_)).cells for o in c.outputs]
        assert "double: to do" in printed[0] and printed[1] == "42\n"


# --- run and the reading copy

RECORDS = """import json, os, pathlib
rows = [{"name": "linear probe", "numbers": {"accuracy": 0.73456, "n": 30}}]
rows += [{"name": "full", "numbers": {"accuracy": 0.5}}]
pathlib.Path(os.environ["NBTOOLS_RUN_DIR"], "records.json").write_text(json.dumps(rows))
block = bytearray(300_000_000)
print(os.getcwd(), os.environ["NBTOOLS_PROFILE"])"""
MATHS = r"""# A toy

Inline $\frac{a}{b}$ and

$$\mathcal{L} = \sum_i x_i$$

and $\begin{aligned}a\end{aligned}$."""


def test_run_writes_copies_and_prints_the_result_table(root, capsys):
    nb = v4.new_notebook(metadata=notebooks.METADATA | {"nbtools": FRONT})
    nb.cells = [v4.new_markdown_cell(MATHS), lesson().cells[1], code(RECORDS)]
    path = save(root, nb, "02_run.ipynb")
    before = path.read_text()
    target = notebooks.run("2", profile="gpu")
    out = capsys.readouterr().out
    assert target == root / "build/runs/02_run.ipynb" and path.read_text() == before
    assert notebooks.read(target).cells[2].outputs[0].text == f"{root / 'notebooks'} gpu\n"
    assert re.search(r"cell 3 of 3 .*\nname +accuracy +n\nlinear probe +0\.7346 +30\nfull +0\.5 +-\n", out)
    assert re.search(r"under the gpu profile\.\n[\d.]+ s \(stated: - min\)", out) and "02_run.html" in out
    offline(target.with_suffix(".html").read_text(), pictures=2)


def offline(page, pictures):
    """The page loads nothing from anywhere, and its equations are pictures with alt text."""
    loading = r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?!data:)[^"']*|@import|url\((?!["']?data:)\S+"""
    assert re.findall(loading, page) == [] and "cdnjs" not in page and "unpkg" not in page
    assert page.count("data:image/svg+xml;base64") >= pictures and 'alt="\\frac{a}{b}"' in page
    assert "<code>\\begin{aligned}a\\end{aligned}</code>" in page and "Open in Colab" in page


@pytest.mark.parametrize(
    "tex",
    [
        r"\tfrac{a}{b} \le \lVert w \rVert \ge \left(x\right)",
        r"-\log \sigma\bigl(\beta\Big)",
        r"\mathbb{E}_{x \sim p}\,[a < b]",
    ],
)
def test_equations_are_drawn_without_a_network(tex):
    picture = notebooks._equation(tex)
    assert picture.startswith("<img alt=") and html.unescape(re.search('alt="([^"]*)"', picture)[1]) == tex


def test_run_measures_the_kernels_memory(root, capsys, monkeypatch):
    monkeypatch.setattr(notebooks.Watch, "_process", lambda self: None)  # a cell too short for the thread is seen too
    save(root, v4.new_notebook(cells=[code("block = bytearray(300_000_000)")]), "02_run.ipynb")
    notebooks.run("2")
    assert 0.3 < float(re.search(r"peak ([\d.]+) GB", capsys.readouterr().out)[1]) < 1


@pytest.mark.parametrize(
    ("source", "timeout", "sentence"),
    [
        ("1 / 0", 60, r'cell 2 of 3 \("1 / 0"\): ZeroDivisionError: division by zero'),
        ("import os\nos._exit(1)", 60, r"cell 2 of 3 .*its kernel died"),
        ("import time\ntime.sleep(60)", 3, r"cell 2 of 3 .*more than its 3 seconds"),
    ],
)
def test_a_run_that_fails_names_the_cell_and_leaves_a_copy(root, source, timeout, sentence):
    save(root, v4.new_notebook(cells=[code("print('first')"), code(source), code("print('never')")]), "02_run.ipynb")
    with pytest.raises(NbtoolsError, match=sentence):
        notebooks.run("2", timeout=timeout)
    cells = notebooks.read(root / "build/runs/02_run.ipynb").cells
    assert cells[0].outputs[0].text == "first\n" and not cells[2].outputs
    assert "first" in (root / "build/runs/02_run.html").read_text()


def test_watch_without_proc_samples(monkeypatch):
    monkeypatch.setattr(notebooks, "Path", lambda path: Path("/nowhere"))
    watch = notebooks.Watch(os.getpid())
    assert 10e6 < watch.stop() < 10e9
    watch = notebooks.Watch(2**22 + 1)  # no such process
    assert watch.stop() == 0


def test_watch_of_a_gpu_counts_from_what_was_used_before(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor used in 500 700 1524 600; do echo $used; done\nexec sleep 30\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    watch = notebooks.Watch(os.getpid(), gpu=True)
    for _ in range(100):
        if watch.peak == 1024 << 20:
            break
        watch._end.wait(0.05)
    assert watch.stop() == 1024 << 20 and not watch._thread.is_alive()


# --- definitions


def test_definitions_come_with_what_they_need_and_nothing_else(root):
    nb = lesson()
    nb.cells += [
        code("import no_such_module\nraise SystemExit('a notebook is not run')"),
        code("SIZE = int(sqrt(16))\nother = 1 / 0\n@dataclass\nclass Box:\n    n: 'int' = SIZE"),
        code("def boxes(k):\n    return [Box() for _ in range(k)]"),
    ]
    nb.cells[3].source += "\nfrom math import sqrt\nfrom dataclasses import dataclass"
    path = save(root, nb)
    found = notebooks.definitions(path, "boxes", "double", "SIZE")
    assert [box.n for box in found["boxes"](2)] == [4, 4] and found["double"](4) == 8 and found["SIZE"] == 4
    assert inspect.getsource(found["double"]) == SOLUTION
    with pytest.raises(NbtoolsError, match=r"defines no 'tripple'; it defines .*double"):
        notebooks.definitions(path, "tripple")


# --- no network

SEND = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"


def test_this_process_has_no_network_but_loopback():
    for call in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53)),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.gethostbyname("example.org"),
        lambda: socket.gethostbyaddr("192.0.2.1"),
        lambda: socket.socket(socket.AF_INET6).connect(("::ffff:192.0.2.1", 80)),
    ):
        with pytest.raises(RuntimeError, match="is blocked"):
            call()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    for name in (socket.gethostname(), "::1", "::ffff:127.0.0.1", "0.0.0.0"):
        socket.getaddrinfo(name, None)
    for end in socket.socketpair():
        end.close()


def test_child_processes_have_no_network_and_keep_their_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs')\n")
    program = f"try:\n  {SEND}\nexcept RuntimeError as error:\n  print(error)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])}
    out = subprocess.run([sys.executable, "-c", program], env=env, text=True, capture_output=True)
    assert re.match(r"theirs\nsocket\.\w+ to '192.0.2.1' is blocked", out.stdout), out
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NBTOOLS_OFFLINE"} <= set(os.environ)


# --- the hooks, in one pytest of its own over notebooks made here

HOOKS = {
    "good": [code("x = 1"), code("# NBVAL_CHECK_OUTPUT\nprint(x)", "1\n", 2)],
    "dies": [code("import os\nos._exit(1)"), code("x = 1")],
    "raises": [code("x = 1"), code("1 / 0"), code("x = 2")],
    "differs": [code("# NBVAL_CHECK_OUTPUT\nprint(1)", "2\n", 1), code("x = 1")],
    "greedy": [code("x = 1"), code("y = bytearray(400_000_000)"), code("x = 2")],
    "sends": [code(SEND)],
    "uncounted": [code("# NBVAL_CHECK_OUTPUT\nprint(1)", "2\n", None), code("x = 1")],
    "unsaved": [code("# NBVAL_CHECK_OUTPUT\nprint(1)"), code("x = 1")],
    "slow": [code("import time\ntime.sleep(60)"), code("x = 1")],
}


@pytest.fixture(scope="module")
def hooked(tmp_path_factory):
    """{notebook: ([outcome of each cell], their messages)}, the process and its folder."""
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "pytest.ini").write_text("[pytest]\nnotebook_limit = 6\n")
    for name, cells in HOOKS.items():
        small = {"peak_gb": {"cpu": 0.2, "gpu": None}, "minutes": {"cpu": 0.5, "gpu": None}}
        front = {"nbtools": small} if name in ("good", "greedy") else {}
        nb = v4.new_notebook(cells=copy.deepcopy(cells), metadata=front)
        (folder / f"{name}.ipynb").write_text(v4.writes(nb))
    options = ["-p", "conftest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=30", "--junitxml=out.xml"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]), "NBTOOLS_PROFILE": "cpu"}
    command = [sys.executable, "-m", "pytest", *options, "."]
    process = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=300)
    found = {name: ([], []) for name in HOOKS}
    for case in ET.parse(folder / "out.xml").iter("testcase"):
        kind = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        name = re.search("|".join(HOOKS), case.get("classname") + case.get("name"))[0]
        found[name][0].append("passed" if kind is None else kind.tag)
        found[name][1].append("" if kind is None else f"{kind.get('message')} {kind.text}")
    return found, process, folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "outcomes", "sentence"),
    [
        ("good", "passed passed", ""),
        ("dies", "failure skipped", "the kernel died while it ran this cell"),
        ("raises", "passed failure skipped", "ZeroDivisionError"),
        ("differs", "failure passed", "Cell outputs differ"),
        ("greedy", "passed failure passed", r"peak memory 0\.\d+ GB is over 1.5 times the 0.2 GB"),
        ("sends", "failure", r"socket\.\w+ to '192.0.2.1' is blocked"),
        ("uncounted", "failure passed", "Unrun reference cell has outputs"),
        ("unsaved", "failure passed", "nothing is saved to compare with"),
        ("slow", "failure skipped", "took more than its time altogether"),
    ],
)
def test_hooks(hooked, name, outcomes, sentence):
    found, process, _ = hooked
    assert " ".join(found[name][0]) == outcomes, process.stdout + process.stderr
    assert re.search(sentence, "".join(found[name][1]))


@pytest.mark.slow
def test_hooks_report_a_table_and_fail_the_run(hooked):
    _, process, folder = hooked
    assert process.returncode == 1 and "One unit is a calibration run" in process.stdout
    good = r"^good\.ipynb +cpu +2 +\d+\.\d +30 +\d+\.\d +0\.\d+ +0\.2 +\d \(\d+\.\d s\) +none$"
    assert re.search(good, process.stdout, re.M) and re.search(r"^greedy\.ipynb .* 1$", process.stdout, re.M)
    rows = {row["notebook"]: row for row in json.loads((folder / "build/notebooks.json").read_text())}
    assert set(rows) == {f"{name}.ipynb" for name in HOOKS} and rows["slow.ipynb"]["seconds"] < 20
    assert rows["greedy.ipynb"]["peak_gb"] > 0.4 > rows["good.ipynb"]["peak_gb"] > 0.01


def test_a_fingerprint_is_the_same_in_every_python_and_follows_the_code_alone():
    code = 'def f(x, *rest, y=1):\n    """Words."""\n    return f"{x!r:>{y}.2f}" "a" + str(rest)  # why\n'
    assert notebooks.fingerprint(code) == "8489ca1c3922"  # made with 3.11; so it is in 3.12 and 3.13
    for same in (
        code.replace("Words", "Other words"),
        code.replace("# why", ""),
        code.replace("\n    return", "\n\n    return"),
    ):
        assert notebooks.fingerprint(same) == notebooks.fingerprint(code)
    for other in (".2f", ".3f"), ("*rest", "*more"), ("y=1", "y=2"), ("!r", ""), ('"a"', '"b"'):
        assert notebooks.fingerprint(code.replace(*other)) != notebooks.fingerprint(code), other
    assert notebooks.fingerprint("x = 1", "y = 2") != notebooks.fingerprint("x = 1\ny = 2")
