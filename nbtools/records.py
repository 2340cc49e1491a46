"""Measured numbers as JSON, and the tables made from them.

Design choices
- A study's file is `results/<machine>/<lesson>-<study>.json`: one row per run, every row with its seed; the machine,
  versions, commit and date stand once beside them. Files are written by a command, never by hand.
- A row of phase "tune" chose a learning rate; only rows of phase "report" are ever quoted.
- `lookup("01/transfer?arm=full&labels=30#accuracy")` is the mean over the report rows that match; `#accuracy:half` is
  the half-width of its 95 % t interval, `:min`, `:max` and `:n` what they say; a space is written `+`. The number in a
  lesson's text names such a key.
- `report` writes tables between `<!-- report:begin NAME -->` and `<!-- report:end NAME -->` in README.md, out of
  results/ and the notebooks' front matter alone, so that a fresh clone makes the same. What the tests measured
  (build/notebooks.json) goes to `results/<machine>/history.jsonl` first, one line a test run.
"""

import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import parse_qsl

from .errors import NbtoolsError
from .profiles import current

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "ipywidgets",
    "jupyterlab",
    "nbtools",
)
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (scipy.stats.t.ppf(0.975, df)).
T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
    2.086,
    2.080,
    2.074,
    2.069,
    2.064,
    2.060,
    2.056,
    2.052,
    2.048,
    2.045,
    2.042,
)


def machine():
    """Where a number comes from: profile, processor, cores, memory in GiB, system, Python. No host or user name."""
    profile = current()
    return {
        "profile": profile.name,
        "processor": profile.processor,
        "cores": profile.cores,
        "memory_gb": round(profile.memory_gb),
        "compute": profile.dtype,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def slug(facts):
    """The folder name of a machine under results/: cpu-linux-x86_64-2-cores, gpu-nvidia-h200."""
    if facts["profile"] == "gpu":
        return "gpu-" + re.sub(r"[^a-z0-9]+", "-", facts["processor"].lower()).strip("-")
    return f"cpu-{facts['system'].lower()}-{platform.machine()}-{facts['cores']}-cores"


def versions():
    """Versions of the packages that can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit():
    """The checkout's commit, with "+" where files differ from it; None outside git."""

    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "nbtools", "notebooks")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def facts():
    """What stands beside rows: machine, versions, commit, date."""
    return {"machine": machine(), "versions": versions(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def record(lesson, name, **numbers):
    """Note numbers that a lesson measured; a headless run collects them in NBTOOLS_RUN_DIR, a live one returns them."""
    row = {"lesson": lesson, "name": name, "numbers": numbers}
    folder = os.environ.get("NBTOOLS_RUN_DIR")
    if folder:
        file = Path(folder) / "records.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        _write(file, [*kept, row | facts()])
    return row


def save(lesson, study, rows, **more):
    """Write a study's rows to results/ and return the path."""
    about = facts()
    file = RESULTS / slug(about["machine"]) / f"{lesson}-{study}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, {"lesson": lesson, "study": study, **about, **more, "rows": rows})
    return file


def load(study):
    """The file of a study such as "01/transfer" as a dict, of the machine that sorts first. Raises NbtoolsError."""
    files = sorted(RESULTS.glob(f"*/{study.replace('/', '-')}.json"))
    if not files:
        command = f"nbtools study {study.partition('/')[2]}"
        raise NbtoolsError(f"There are no results of {study!r}; run `{command}`, or restore results/ from git.")
    return json.loads(files[0].read_text(encoding="utf-8"))


def select(rows, **where):
    """The rows whose fields equal `where`, compared as text so that 30 and "30" agree."""
    return [row for row in rows if all(str(row.get(k)) == str(v) for k, v in where.items())]


def interval(values):
    """(mean, half-width of the 95 % t interval) of a list of numbers; the half-width of one number is nan."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    t = T95[min(len(values) - 1, 30) - 1]
    return statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def paired(rows, value, left, right, **where):
    """Mean and half-width of left - right over the seeds both have; `left` and `right` are dicts of fields."""
    rows = select(rows, phase="report", **where)
    a, b = ({row["seed"]: row[value] for row in select(rows, **side)} for side in (left, right))
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        raise NbtoolsError(f"{left} and {right} share {len(seeds)} seeds; a paired comparison needs 2 or more.")
    return interval(a[s] - b[s] for s in seeds)


def lookup(key):
    """One number by key, as the first lines here say. Raises KeyError where none is, or a mean would mix conditions."""
    parts = re.fullmatch(r"([^?#]+)(?:\?([^#]*))?#([^:]+)(?::(mean|half|min|max|n))?", key)
    if parts is None:
        raise KeyError(f"{key} is not of the form study?field=value#number:half")
    study, query, value, how = parts.groups()
    rows = select(select(load(study)["rows"], phase="report"), **dict(parse_qsl(query or "")))
    values = {i: row[value] for i, row in enumerate(rows) if row.get(value) is not None}
    if not values:
        raise KeyError(key)
    if how in (None, "mean", "half") and len({rows[i].get("seed", i) for i in values}) < len(values):
        raise KeyError(f"{key} matches {len(values)} rows, several of one seed: name more fields")
    values = [*values.values()]
    mean, half = interval(values)
    return {None: mean, "mean": mean, "half": half, "min": min(values), "max": max(values), "n": len(values)}[how]


def markdown(rows):
    """A list of dicts as a Markdown table; floats to three digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def show(value):
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(show(row.get(c)) for c in columns) + " |" for row in rows])


def _write(file, content):
    _replace(file, (json.dumps(content, indent=1) + "\n").encode())


def _replace(file, data):
    part = file.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, file)


# --- what stands in README.md


def report():
    """Keep the history, make README.md's tables and results/figures/ anew, say what was written; or NbtoolsError."""
    readme = ROOT / "README.md"
    for make in keep_history, lambda: (readme, fill(readme.read_text(encoding="utf-8")).encode()), transfer_figure:
        file, data = make()
        if data is None or (file.exists() and file.read_bytes() == data):
            print(f"Nothing new for {file.relative_to(ROOT)}")
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, data)
        print(f"Wrote {file.relative_to(ROOT)}")


def fill(text):
    """`text` with the tables between its markers made anew; one without results stays. Raises NbtoolsError."""
    for name in re.findall(r"<!-- report:begin (\S+) -->", text):
        here = re.escape(name)
        block = re.compile(rf"(<!-- report:begin {here} -->\n).*?(<!-- report:end {here} -->)", re.S)
        if not re.fullmatch(r"lessons|\d\d/[a-z0-9-]+(:[a-z0-9_+,]+)?", name) or not block.search(text):
            names = "`lessons` or of a study, such as `01/transfer` or, with columns, `07/sft:words,stops`"
            raise NbtoolsError(f"README.md's block {name!r} needs a report:end marker and the name {names}.")
        if table := lessons_table() if name == "lessons" else study_table(*name.split(":")):
            text = block.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    return text


def keep_history():
    """(file, bytes): results/<machine>/history.jsonl with one line more; None if it has the last test run already."""
    source, file = ROOT / "build" / "notebooks.json", RESULTS / slug(machine()) / "history.jsonl"
    kept = file.read_text(encoding="utf-8") if file.exists() else ""
    if not source.exists():
        return file, None
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(source.stat().st_mtime))
    ran = {
        Path(row["notebook"]).stem: {
            "seconds": round(row["seconds"], 1),
            "peak_gb": round(row["peak_gb"], 2),
            "units": round(row["seconds"] / row["calibration_s"], 1),
        }
        for row in json.loads(source.read_text(encoding="utf-8"))
        if row["profile"] == current().name and not row["failed"]  # a failed one stopped early
    }
    if not ran or (kept and json.loads(kept.splitlines()[-1])["when"] >= when):
        return file, None
    short = {name: versions()[name] for name in ("torch", "transformers", "ipywidgets")}
    line = {"when": when, "profile": current().name, "commit": commit(), "versions": short, "notebooks": ran}
    return file, f"{kept}{json.dumps(line)}\n".encode()


def measured():
    """{(notebook, profile): seconds, peak_gb and `where` of its latest test run}, out of results/*/history.jsonl."""
    lines = [
        (json.loads(line), file.parent.name)
        for file in sorted(RESULTS.glob("*/history.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return {
        (name, line["profile"]): {**ran, "where": f"{folder} on {line['when'][:10]}"}
        for line, folder in sorted(lines, key=lambda pair: pair[0]["when"])
        for name, ran in line["notebooks"].items()
    }


def lessons_table():
    """The map of lessons: what their front matter states, and in brackets what the latest test run measured."""
    from . import notebooks

    rows, seen, used = [], measured(), set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        front = notebooks.read(path).metadata.get("nbtools", {})
        title = f"[{path.stem[:2]} {front.get('title', path.stem)}](notebooks/{path.name})"
        row = {"Lesson": title, "Level": front.get("level")}
        for profile in ("cpu", "gpu"):
            minutes, peak = (front.get(key, {}).get(profile) for key in ("minutes", "peak_gb"))
            ran = seen.get((path.stem, profile), {})
            took, held = (f" ({ran['seconds'] / 60:.1f})", f" ({ran['peak_gb']:.1f})") if ran else ("", "")
            used |= {ran["where"]} if ran else set()
            row[f"Minutes, {profile.upper()}"] = f"{minutes:g}{took}" if minutes else None
            row[f"Peak GB, {profile.upper()}"] = f"{peak:g}{held}" if peak else None
        rows.append(row | {"Needs": ", ".join(front.get("needs", [])) or "nothing"})
    return markdown(rows) + (f"\n\nIn brackets: measured on {'; '.join(sorted(used))}." if used else "")


def there(study):
    """Whether results/ has a study ("01/transfer") of any machine."""
    return any(RESULTS.glob(f"*/{study.replace('/', '-')}.json"))


def outcomes(study):
    """{arm: {condition: (mean, half-width)}} of a study, shuffled controls last; {} without results.

    The numbers are accuracies in percent, or losses in nats where rows have no accuracy; a condition is (labels or,
    where rows have none, steps; share of wrong labels: a row's `wrong`, or its `noise` where that was set, not found:
    then tuning rows have it too).
    """
    kept = load(study)["rows"] if there(study) else []
    rows, share = select(kept, phase="report"), "wrong"
    if any("noise" in row for row in select(kept, phase="tune")):
        share = "noise"
    found = {}
    count = "labels" if rows and "labels" in rows[0] else "steps"
    for row in sorted(rows, key=lambda row: (row["arm"].endswith("_shuffled"), row[count])):
        arm = row["arm"].replace("_shuffled", ", shuffled").replace("_", " ")
        value = 100 * row["accuracy"] if "accuracy" in row else row["loss"]
        found.setdefault(arm, {}).setdefault((row[count], row.get(share, 0)), []).append(value)
    return {arm: {case: interval(values) for case, values in cells.items()} for arm, cells in found.items()}


def study_table(study, columns=None):
    """Test accuracy or loss by arm and condition as Markdown, with where it comes from; "" without results.

    columns: names of a row's numbers, joined by commas, a space as +, to stand side by side instead.
    Raises NbtoolsError.
    """
    if not there(study):
        return ""
    about = load(study)
    rows = select(about["rows"], phase="report")
    seeds = len({row["seed"] for row in rows})
    where = f"{slug(about['machine'])}, {about['date']}, commit {about['commit']}"
    if columns:
        lines = markdown(side_by_side(rows, columns.replace("+", " ").split(",")))
        shown = f"Mean and 95 % interval of {seeds} seeds" if seeds > 1 else "One run each"
        return f"{lines}\n\n{shown}. Measured on {where}."
    found = outcomes(study)
    unit, digits = ("In percent", 1) if "accuracy" in rows[0] else ("Loss in nats", 3)
    show = {False: f"{{:.{digits}f}} ± {{:.{digits}f}}", True: f"{{:.{digits}f}}"}  # one seed has no interval
    count = "labels" if "labels" in rows[0] else "steps"
    head = {
        case: f"{case[0]} {count}" + f", {case[1]:.0%} wrong" * bool(case[1])
        for cells in found.values()
        for case in cells
    }
    lines = [
        {"Arm": arm} | {head[case]: show[math.isnan(c[1])].format(*c) for case, c in cells.items()}
        for arm, cells in found.items()
    ]
    return f"{markdown(lines)}\n\n{unit}, mean and 95 % interval of {seeds} seeds. Measured on {where}."


def side_by_side(rows, columns):
    """[{"Arm", column: "mean ± half-width"}] by arm and by what varies within it, in the rows' order.

    Raises NbtoolsError.
    """
    varied = [name for name in ("pairs", "beta", "noise") if len({row.get(name) for row in rows}) > 1]
    lines = []
    for case in dict.fromkeys(tuple(row.get(name) for name in ("arm", *varied)) for row in rows):
        own = [row for row in rows if tuple(row.get(name) for name in ("arm", *varied)) == case]
        if missing := [column for column in columns if column not in own[0]]:
            raise NbtoolsError(f"The rows of {case[0]!r} have no column {missing[0]!r}; they have {', '.join(own[0])}.")
        cells = {column: _cell([row[column] for row in own]) for column in columns}
        arm = ", ".join([case[0].replace("_", " "), *(f"{n} {v}" for n, v in zip(varied, case[1:], strict=True))])
        lines.append({"Arm": arm} | cells)
    return lines


def _cell(values):
    """Values as "mean ± half-width", as one number where there is one, as nothing where one is missing.

    Words, and whole numbers that are all the same, stand as they are.
    """
    if None in values:
        return ""
    if isinstance(values[0], str) or isinstance(values[0], int) and len({*values}) == 1:
        return str(values[0])
    mean, half = interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def transfer_figure():
    """(file, bytes): accuracy against labels per class as PNG, a line with its band per strategy; None without any."""
    from io import BytesIO

    import matplotlib as mpl
    from matplotlib.figure import Figure

    from . import plots

    file, found, picture = RESULTS / "figures" / "transfer.png", outcomes("01/transfer"), BytesIO()
    if not found:
        return file, None
    with mpl.rc_context():
        plots.style()
        figure = Figure()
        ax = figure.subplots()
        for i, (arm, cells) in enumerate(found.items()):
            plots.band(ax, [labels for labels, _ in cells], list(cells.values()), arm, i)
        counts = sorted({labels for cells in found.values() for labels, _ in cells})
        ax.set(xlabel="labels per class", ylabel="test accuracy in percent", xscale="log", ylim=(0, 100))
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.set_xticks([], minor=True)
        figure.legend(loc="outside right upper", fontsize=7)
        figure.savefig(picture, format="png", dpi=200, metadata={"Software": None})
    return file, picture.getvalue()
