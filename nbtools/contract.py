"""The contract of a notebook, rule by rule: what `nbtools check` prints. The order of ideas is for people to judge.

A rule is a function of the notebook and its path that yields a sentence for each breach. What the rules ask for:
- front matter in metadata.nbtools: title, level, claims, assets, exercises, needs, and minutes and peak_gb, which are
  {"cpu": number, "gpu": number or null};
- the text before the first code cell: heading, `**Claim...**`, the minutes it takes, the Colab badge;
- the first code cell sets up, the second imports, and no other cell imports anything;
- a result in text: `0.73<!-- results:01/transfer?arm=full&labels=30#accuracy -->`. Other decimals, percentages and
  `2x` must stand in a checked output, in code quotes or a formula, or in a cell tagged `no-results` (others' numbers).
"""

import ast
import re
import statistics

from nbtools import assets
from nbtools.errors import NbtoolsError
from nbtools.notebooks import (
    BADGE,
    WIDGET,
    badge_url,
    clean,
    code_cells,
    find,
    is_checked,
    keeps_output,
    label,
    read,
    tags,
    without_solutions,
)

FRONT = {
    "title": str,
    "level": str,
    "claims": list,
    "minutes": dict,
    "peak_gb": dict,
    "assets": list,
    "exercises": list,
    "needs": list,
}
# What nobody reads as words: code blocks, display formulas, comments, tags, link targets.
HIDDEN = re.compile(r"```.*?```|\$\$.*?\$\$|<!--.*?-->|<[^>]+>|\]\([^)]*\)|https?://\S+", re.S)
QUOTED = re.compile(r"`[^`]*`|\$[^$\n]+\$")
MARKED = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)(\s?[%x×])?<!--\s*results:(\S+?)\s*-->")
NUMBER = re.compile(  # 0.73, 73 %, 2x; but not 1.2.3 nor 3 x 3
    r"(?<![\w.])(?:\d+\.\d+(?!\.?\d)|\d+(?=\s?(?:%|(?:×|x\b)(?!\s?\d))))"
)


def problems(path):
    """All breaches of the contract by one notebook: a list of sentences, empty when it holds."""
    source = find(path)
    nb = read(source)
    rules = (front, opening, imports, sizes, figures, exercises, outputs)
    found = [problem for rule in rules for problem in rule(nb, source)]
    try:
        if clean(source, check=True) and not found:
            found.append(f"it is not as `nbtools clean {source.stem}` leaves it: run that")
    except NbtoolsError as error:
        found.append(str(error))
    return list(dict.fromkeys(found + drift(source)))


def calls(tree):
    """(dotted name, call) of each function or method call in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def front(nb, source):
    """Front matter is complete, and the assets it names are those that are used and have a card."""
    matter = nb.metadata.get("nbtools", {})
    wrong = [(key, kind) for key, kind in FRONT.items() if not isinstance(matter.get(key), kind)]
    yield from (f"the front matter (metadata.nbtools) needs {key!r}, a {kind.__name__}" for key, kind in wrong)
    if wrong:
        return
    if not matter["claims"]:
        yield "the front matter names no claim"
    for key in ("minutes", "peak_gb"):
        cpu, gpu = matter[key].get("cpu"), matter[key].get("gpu", "missing")
        if not (isinstance(cpu, int | float) and isinstance(gpu, int | float | None)):
            yield f"the front matter's {key!r} needs a number for cpu, a number or null for gpu: {dict(matter[key])}"
    used = {
        call.args[0].value
        for _, _, tree in code_cells(nb)
        for name, call in calls(tree)
        if name.startswith("assets.") and call.args and isinstance(call.args[0], ast.Constant)
    }
    yield from (f"asset {name!r} is used but is not in the front matter" for name in sorted(used - {*matter["assets"]}))
    yield from (f"asset {name!r} has no card in datasets/" for name in sorted({*matter["assets"]} - {*assets.cards()}))


def opening(nb, source):
    """Before any code stand the title, the claim, the minutes and a badge that opens this notebook."""
    first = next((i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"), len(nb.cells))
    text, title = [cell.source for cell in nb.cells[:first]], nb.metadata.get("nbtools", {}).get("title", "")
    if not text or not text[0].startswith("# ") or title not in text[0].splitlines()[0]:
        yield f"the first cell must be a heading (# ...) with the front matter's title {title!r}"
    wanted = {r"\*\*Claim": "the claim (**Claim...**)", r"\bminutes?\b": "the minutes it takes", BADGE: "a Colab badge"}
    missing = [what for pattern, what in wanted.items() if not re.search(pattern, "\n".join(text))]
    yield from (f"the text before the first code cell lacks {what}" for what in missing)
    url = badge_url(source)
    for badge in BADGE.findall("\n".join(text)):
        if url and badge != url:
            yield f"the Colab badge opens {badge} instead of {url}: run `nbtools clean {source.stem}`"


def imports(nb, source):
    """One cell imports; the setup cell before it may; nothing is imported with a star."""
    for place, (index, _, tree) in enumerate(code_cells(nb)):
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        if place == 1 and not found:
            yield f"{label(nb, index)} is the second code cell and must hold the imports; the first is the setup"
        if place > 1 and found:
            yield f"{label(nb, index)} imports; all imports belong in the second code cell"
        if any(alias.name == "*" for node in found for alias in node.names):
            yield f"{label(nb, index)} has a star import; name what it needs"


def sizes(nb, source):
    """Code cells: median at most 8 lines, none over 40, comments apart. Text cells: under 100 words, tables apart."""
    lines = {}
    for index, cell, _ in code_cells(nb):
        lines[index] = sum(bool(re.match(r"\s*[^\s#]", line)) for line in cell.source.splitlines())
        if lines[index] > 40:
            yield f"{label(nb, index)} has {lines[index]} lines of code, more than 40: split it"
    if lines and statistics.median(lines.values()) > 8:
        yield f"the median code cell has {statistics.median(lines.values()):g} lines, more than 8: split the long ones"
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            prose = re.sub(r"^\s*\|.*$", "", HIDDEN.sub(" ", cell.source), flags=re.M)
            words = len(re.findall(r"\S*\w\S*", prose))
            if words >= 100:
                yield f"{label(nb, index)} has {words} words, 100 or more: one idea a cell"


def figures(nb, source):
    """Every picture has alt text; there are a panel and a quiz."""
    called = set()
    for index, _, tree in code_cells(nb):
        for name, call in calls(tree):
            called.add(name.rpartition(".")[2])
            alt = next((keyword.value for keyword in call.keywords if keyword.arg == "alt"), None)
            if name in ("plt.show", "pyplot.show", "fig.show"):
                yield f"{label(nb, index)} calls {name}(); use plots.show(fig, alt=...)"
            if name == "plots.show" and (alt is None or isinstance(alt, ast.Constant) and not alt.value):
                yield f"{label(nb, index)} shows a figure without alt text"
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]|<img(?![^>]*alt=[\"'][^\"'])", cell.source):
            yield f"{label(nb, index)} holds a picture without alt text"
    yield from (f"it has no {widget}; every lesson has one" for widget in ("panel", "quiz") if widget not in called)


def exercises(nb, source):
    """Each exercise of the front matter is defined with solution markers and checked; no other is checked."""
    solved, checked = set(), set()
    for index, cell, tree in code_cells(nb):
        checks = [call for name, call in calls(tree) if name in ("check", "checks.check") and call.args]
        checked |= {ast.unparse(call.args[0]) for call in checks}
        try:
            if without_solutions(cell.source, label(nb, index)).splitlines() != cell.source.splitlines():
                solved |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        except NbtoolsError as error:
            yield str(error)
    named = set(nb.metadata.get("nbtools", {}).get("exercises", []))
    yield from (f"exercise {n!r} is defined in no cell with ### BEGIN and END SOLUTION" for n in sorted(named - solved))
    yield from (f"exercise {n!r} is never checked: add `{n} = check({n})` under it" for n in sorted(named - checked))
    yield from (f"{n!r} is checked but is not in the front matter's exercises" for n in sorted(checked - named))


def outputs(nb, source):
    """Only cells that keep their output have one, with a count, and never stderr or widgets."""
    if "widgets" in nb.metadata:
        yield "it holds widget state, which GitHub cannot show"
    for index, cell, _ in code_cells(nb):
        if cell.outputs and not keeps_output(cell):
            yield f"{label(nb, index)} has an output but is not marked to keep it"
        if any(o.get("name") == "stderr" or WIDGET in o.get("data", {}) for o in cell.outputs):
            yield f"{label(nb, index)} holds stderr or a widget"
        if keeps_output(cell) and cell.outputs and not cell.execution_count:
            yield f"{label(nb, index)} keeps its output but has no execution count: nothing would be compared"


def drift(path):
    """Numbers in text that are not what was measured: a list of sentences, empty when there are none."""
    nb, found = read(find(path)), []
    kept = [output for cell in nb.cells if is_checked(cell) for output in cell.outputs]
    printed = "\n".join(str(output.get("text") or output.get("data", {}).get("text/plain")) for output in kept)
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown":
            continue
        wrong = [problem for match in MARKED.finditer(cell.source) if (problem := _drifted(*match.groups()))]
        if "no-results" not in tags(cell):
            prose = QUOTED.sub(" ", HIDDEN.sub(" ", MARKED.sub(" ", cell.source)))
            wrong += [
                f"{number} stands in no checked output and has no results marker"
                for number in NUMBER.findall(prose)
                if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", printed)
            ]
        found += [f"{label(nb, index)}: {problem}" for problem in wrong]
    return found


def _drifted(number, unit, key):
    """None, or how a marked number differs from its result at the precision printed; % means 100 times the result."""
    from nbtools import records

    percent = (unit or "").strip() == "%"
    try:
        value = float(records.lookup(key)) * (100 if percent else 1)
    except (KeyError, NbtoolsError) as error:
        return f"there is no result {key!r} ({error})"
    digits = len(number.partition(".")[2])
    if abs(value - float(number.replace(",", ""))) > 0.5 * 10**-digits + 1e-9:
        return f"the text says {number}{unit or ''}, but {key} is {value:.{digits}f}"
    return None
