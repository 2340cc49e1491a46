"""Long experiments: `nbtools study NAME`, with progress and time left, resumable after any stop.

Design choices
- A study is a list of cells (dicts). Each runs alone, and its row is appended to build/studies/NAME.jsonl at once, so a
  stop loses one cell at most and the next start goes on where the last one ended.
- Two phases. "tune": every arm tries its settings on a training draw of its own and is scored on the validation split.
  "report": each arm's best setting runs once per seed and is scored on the test split, which no choice has seen.
- Rows of settings that the grid no longer holds stay in the log; they are neither chosen nor written to results/.
- What is run is what the lesson teaches: the functions come out of the notebook by name. Each row bears a fingerprint
  of that code; rows of other code are run again, so no result mixes two versions.
- `full=True` is the larger grid for a GPU.
- A lesson's studies are in nbtools/studies_NN.py, in a dict STUDIES.
"""

import importlib
import inspect
import json
import pkgutil
import re
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from . import notebooks, records, train
from .errors import NbtoolsError

SEEDS = (0, 1, 2, 3, 4)
# What lessons share: a study whose code calls one of these depends on all of it.
MODULES = ("tasks", "raters", "world", "rollouts", "sft")
TUNING_SEED = 1000  # the draw that settings are chosen on; never reported


@dataclass(frozen=True)
class Study:
    """`arms(full)` -> {arm: [settings]}; `conditions(full)` -> [dict]; `run(cell)` -> {"score" or test numbers}.

    names: what of the lesson's notebook the study runs.
    """

    lesson: str
    arms: object
    conditions: object
    run: object
    about: str
    names: tuple = ()

    def code(self):
        """Fingerprint of what a row depends on: the lesson's definitions, shared modules, `run` and its helpers."""
        lesson = notebooks.source_of(self.lesson, *self.names) if self.names else ""
        own = [self.run, *(f for name in self.run.__code__.co_names if callable(f := self.run.__globals__.get(name)))]
        own = [textwrap.dedent(inspect.getsource(f)) for f in own]
        shared = [inspect.getsource(train)]
        for name in MODULES:
            if any(re.search(rf"\b{name}\.\w", text) for text in (lesson, *own)):
                file = Path(__file__).with_name(f"{name}.py")  # read as text: an import would bring torch
                shared.append(file.read_text(encoding="utf-8"))
        return notebooks.fingerprint(lesson, *shared, *own)


def known():
    """{name: Study} of all lessons."""
    import nbtools

    found = {}
    for module in pkgutil.iter_modules(nbtools.__path__):
        if module.name.startswith("studies_"):
            found |= importlib.import_module(f"nbtools.{module.name}").STUDIES
    return found


def run(name, full=False, seeds=None):
    """Run or resume the study `name`; writes results/ and returns None. seeds: these instead of 0 to 4."""
    from . import emulation

    studies = known()
    if name not in studies:
        raise NbtoolsError(f"There is no study {name!r}; there are {', '.join(studies)}.")
    study, label = studies[name], name + ("-full" if full else "")
    log = records.ROOT / "build" / "studies" / f"{label}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    if told := emulation.start():
        print(f"{told}.")
    code, seeds = study.code(), tuple(seeds or SEEDS)
    done = records.select(kept := resume(log), code=code)
    if len(kept) > len(done):
        print(f"{label}: {len(kept) - len(done)} rows in {log.name} are of other code and are run again.")
    arms, conditions = study.arms(full), study.conditions(full)
    tune = [
        dict(phase="tune", arm=arm, seed=TUNING_SEED, **condition, **setting)
        for condition in conditions
        for arm, settings in arms.items()
        for setting in settings
    ]
    work(study, tune, done, log, f"{label}, tuning", code)
    chosen = [
        dict(phase="report", arm=arm, **condition, **best(done, settings, arm, condition))
        for condition in conditions
        for arm, settings in arms.items()
    ]
    work(study, [cell | {"seed": seed} for seed in seeds for cell in chosen], done, log, f"{label}, reporting", code)
    rows = [row for row in done if any(records.select([row], **cell) for cell in (*tune, *chosen))]
    rows = [{key: value for key, value in row.items() if key != "code"} for row in rows]
    file = records.save(study.lesson, label, rows, about=study.about, code=code).relative_to(records.ROOT)
    print(f"{label}: {len(rows)} runs, written to {file}. The log of single runs is {log.relative_to(records.ROOT)}.")


def stale(book):
    """A sentence for each result in results/ that was made by other code than the notebook `book` now holds."""
    for name, study in known().items():
        if not book.stem.startswith(study.lesson):
            continue
        for label in (name, f"{name}-full"):
            for file in sorted(records.RESULTS.glob(f"*/{study.lesson}-{label}.json")):
                if json.loads(file.read_text(encoding="utf-8")).get("code") != study.code():
                    again = f"nbtools study {name}" + (" --full" if label != name else "")
                    yield f"{file.name} was made by other code than this: run `{again}`"


def resume(log):
    """The rows of a log; a last line that a kill left half-written is cut off, and its cell runs again."""
    if not log.exists():
        return []
    text = log.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        with log.open("r+") as file:
            file.truncate(len(whole.encode()))
    return [json.loads(line) for line in whole.splitlines()]


def best(done, settings, arm, condition):
    """Which of `settings` has the highest validation score for an arm under a condition."""
    tuned = records.select(done, phase="tune", arm=arm, **condition)
    return max(settings, key=lambda setting: records.select(tuned, **setting)[0]["score"])


def work(study, cells, done, log, title, code):
    """Run the cells that `done` does not hold, append each row to `log` and to `done`, and print the time left."""
    todo = [cell for cell in cells if not records.select(done, **cell)]
    start = time.perf_counter()
    for i, cell in enumerate(todo):
        begin = time.perf_counter()
        row = cell | study.run(dict(cell)) | {"seconds": round(time.perf_counter() - begin, 2), "code": code}
        done.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.perf_counter() - start) / (i + 1) * (len(todo) - i - 1) / 60
        shown = {k: round(v, 3) for k, v in row.items() if k in ("score", "accuracy") and v is not None}
        print(f"{title}: {i + 1}/{len(todo)}  {cell['arm']} {shown}  about {left:.0f} min left", flush=True)
