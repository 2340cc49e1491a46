"""Measured numbers as JSON, and the tables made from them.

Design choices
- A study's file is `results/<machine>/<lesson>-<study>.json`: one row per run, every row with its seed; the machine, versions,
  commit and date stand once beside them. Files are written by a command, never by hand.
- A row of phase "tune" chose a learning rate; only rows of phase "report" are ever quoted.
- `lookup("01/transfer?arm=full&labels=30#accuracy")` is the mean over the report rows that match; `#accuracy:half` is the half-width of
  its 95 % t interval, `:min`, `:max` and `:n` what they say. The number in a lesson's text names such a key.
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

from .errors import NbtoolsError
from .profiles import current

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "peft", "trl", "bitsandbytes", "ipywidgets", "jupyterlab", "nbtools")
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (scipy.stats.t.ppf(0.975, df)).
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
       2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


def machine():
    """Where a number comes from: profile, processor, cores, memory in GiB, system, Python. No host or user name."""
    profile = current()
    return {"profile": profile.name, "processor": profile.processor, "cores": profile.cores, "memory_gb": round(profile.memory_gb),
            "compute": profile.dtype, "system": platform.system(), "python": platform.python_version()}


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
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "nbtools", "notebooks") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def facts():
    """What stands beside rows: machine, versions, commit, date."""
    return {"machine": machine(), "versions": versions(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def record(lesson, name, **numbers):
    """Note numbers that a lesson measured; a headless run collects them in NBTOOLS_RUN_DIR, a live one only returns them."""
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
    """The file of a study such as "01/transfer" as a dict; the machine whose folder sorts first. Raises NbtoolsError."""
    files = sorted(RESULTS.glob(f"*/{study.replace('/', '-')}.json"))
    if not files:
        raise NbtoolsError(f"There are no results of {study!r}; run `nbtools study {study.partition('/')[2]}`, or restore results/ from git.")
    return json.loads(files[0].read_text(encoding="utf-8"))


def select(rows, **where):
    """The rows whose fields equal `where`, compared as text so that 30 and "30" agree."""
    return [row for row in rows if all(str(row.get(k)) == str(v) for k, v in where.items())]


def interval(values):
    """(mean, half-width of the 95 % t interval) of a list of numbers; the half-width of one number is nan."""
    values = list(values)
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), T95[min(len(values) - 1, 30) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def paired(rows, value, left, right, **where):
    """Mean and half-width of left - right over the seeds both have; `left` and `right` are dicts of fields."""
    a, b = ({row["seed"]: row[value] for row in select(rows, phase="report", **where, **side)} for side in (left, right))
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        raise NbtoolsError(f"{left} and {right} share {len(seeds)} seeds; a paired comparison needs 2 or more.")
    return interval(a[s] - b[s] for s in seeds)


def lookup(key):
    """One number by key, as the module's first lines say. Raises KeyError where no row matches."""
    study, query, value, how = re.fullmatch(r"([^?#]+)(?:\?([^#]*))?#([^:]+)(?::(\w+))?", key).groups()
    where = dict(pair.split("=", 1) for pair in (query or "").split("&") if pair)
    values = [row[value] for row in select(load(study)["rows"], phase="report", **where) if row.get(value) is not None]
    if not values:
        raise KeyError(key)
    mean, half = interval(values)
    return {None: mean, "mean": mean, "half": half, "min": min(values), "max": max(values), "n": len(values)}[how]


def markdown(rows):
    """A list of dicts as a Markdown table; floats to three digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    show = lambda v: "" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)  # noqa: E731
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(show(row.get(c)) for c in columns) + " |" for row in rows])


def _write(file, content):
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
