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
"""

import inspect
import json
import textwrap
import time
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace

from . import notebooks, records, train
from .errors import NbtoolsError

SEEDS = (0, 1, 2, 3, 4)
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
        """Fingerprint of what a row depends on: the lesson's definitions, the training loop, `run` and its helpers."""
        lesson = notebooks.source_of(self.lesson, *self.names) if self.names else ""
        own = [self.run, *(f for name in self.run.__code__.co_names if callable(f := globals().get(name)))]
        own = [textwrap.dedent(inspect.getsource(f)) for f in own]
        return notebooks.fingerprint(lesson, inspect.getsource(train), *own)


def run(name, full=False, seeds=None):
    """Run or resume the study `name`; writes results/ and returns None. seeds: these instead of 0 to 4."""
    if name not in STUDIES:
        raise NbtoolsError(f"There is no study {name!r}; there are {', '.join(STUDIES)}.")
    study, label = STUDIES[name], name + ("-full" if full else "")
    log = records.ROOT / "build" / "studies" / f"{label}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
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
        shown = {k: round(v, 3) for k, v in row.items() if k in ("score", "accuracy")}
        print(f"{title}: {i + 1}/{len(todo)}  {cell['arm']} {shown}  about {left:.0f} min left", flush=True)


# --- lesson 01


LESSON01 = ("load_data", "draw", "correct", "corrupt", "augmenter", "STRATEGIES", "STEPS", "probe_then_tune")


@cache
def _lesson01():
    lesson = SimpleNamespace(**notebooks.definitions("01", *LESSON01))
    lesson.data = lesson.load_data()
    return lesson


def _quiet(step, steps, **metrics):
    """Report nothing: a study prints one line per run."""


def _score(cell, model):
    """Validation accuracy of a tuning run; of a reported one test accuracy, and clean, noisy, blurred of 500 images."""
    lesson = _lesson01()
    data = lesson.data
    index = data.val if cell["phase"] == "tune" else data.test
    images, labels = data.images[index], data.labels[index]
    right = lesson.correct(model, images, labels).float()
    accuracy = right.mean().item()
    if cell["phase"] == "tune":
        return {"score": accuracy}
    worse = {"clean": right[:500].mean().item()} | {
        kind: lesson.correct(model, lesson.corrupt(images[:500], kind), labels[:500]).float().mean().item()
        for kind in ("noise", "blur")
    }
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"accuracy": accuracy, **worse, "trainable": trainable}


def transfer_run(cell):
    """One strategy on one draw of labels; an arm that ends in _shuffled learns from permuted labels."""
    import torch

    lesson = _lesson01()
    x, y = lesson.draw(lesson.data, cell["labels"], cell["seed"])
    if cell["arm"].endswith("_shuffled"):
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(cell["seed"]))]
    strategy = lesson.STRATEGIES[cell["arm"].removesuffix("_shuffled")]
    model = strategy(
        x,
        y,
        lr=cell["lr"],
        steps=lesson.STEPS[cell["labels"]],
        fixed_statistics=cell["fixed"],
        seed=cell["seed"],
        tick=_quiet,
    )
    return _score(cell, model)


def _settings(rates, fixed=(False,)):
    return [{"lr": lr, "fixed": f} for f in fixed for lr in rates]


def transfer_arms(full):
    """Learning rates, and for fine-tuning whether norms keep ImageNet's statistics: both chosen by validation."""
    modes, wide = (False, True), (1e-1,) if full else ()
    return {
        "scratch": _settings((1e-3, 3e-3, 1e-2, 3e-2, *wide)),
        "frozen": _settings((1e-3, 3e-3, 1e-2)),
        "frozen_shuffled": _settings((3e-3,)),
        "partial": _settings((1e-4, 3e-4, 1e-3, 3e-3), modes),
        "full": _settings((1e-4, 3e-4, 1e-3, 3e-3), modes),
        "discriminative": _settings((3e-4, 1e-3, 3e-3, 1e-2), modes),
        "progressive": _settings((1e-4, 3e-4, 1e-3, 3e-3), modes),
        "probe_then_tune": _settings((3e-5, 1e-4, 3e-4, 1e-3), modes),
    }


def augment_run(cell):
    """Probe-then-tune with one augmentation, or without warm-up, or with early stopping on 300 images of its own."""
    lesson = _lesson01()
    data, arm = lesson.data, cell["arm"]
    x, y = lesson.draw(data, cell["labels"], cell["seed"])
    options = {
        "tick": _quiet,
        "steps": lesson.STEPS[cell["labels"]],
        "fixed_statistics": True,
        "lr": cell["lr"],
        "seed": cell["seed"],
    }
    if arm == "no warm-up":
        options["warmup"] = 0
    elif arm == "early stopping":
        options["stop_on"] = (data.images[data.stop], data.labels[data.stop])
    else:
        options["augment"] = lesson.augmenter(arm)
    return _score(cell, lesson.probe_then_tune(x, y, **options))


def augment_arms(full):
    rates = (1e-4, 3e-4, 1e-3)
    names = ("none", "flip", "crop", "colour", "randaugment", "mixup", "cutmix", "no warm-up", "early stopping")
    return {name: [{"lr": lr} for lr in rates] for name in names}


def _labels(small, large, full):
    return [{"labels": n} for n in (large if full else small)]


STUDIES = {
    "transfer": Study(
        "01",
        transfer_arms,
        partial(_labels, (10, 30, 100), (10, 30, 100)),
        transfer_run,
        "accuracy on 1,000 CIFAR-10 images (clean, noise, blur: 500), by strategy and labels per class",
        LESSON01,
    ),
    "augment": Study(
        "01",
        augment_arms,
        partial(_labels, (30,), (10, 30, 100)),
        augment_run,
        "probe-then-tune at 30 labels per class: augmentations, warm-up and early stopping",
        LESSON01,
    ),
}
