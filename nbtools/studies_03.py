"""The studies of lesson 03: learning tweets after films, by measure and strength; five tasks; pictures."""

import copy
from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import Study

MEASURES03 = ("run_arm", "accuracy", "retrieval", "old_model", "astray", "interpolate")
ROW03 = ("in_a_row", "backward_transfer", "ORDER")
PICTURES03 = ("run_pictures", "seen", "old_pictures")
SHARES = (0.25, 0.5, 0.75)
AVERAGES = (0.125, 0.25, 0.5, 0.75)
STRENGTHS = {"L2": (1000, 3000, 1e4), "EWC": (1e8, 1e9, 1e10)}


@cache
def _lesson03(*names):
    return SimpleNamespace(**notebooks.definitions("03", *names))


def _tested(lesson, model):
    return {"old": lesson.accuracy(model, "films"), "new": lesson.accuracy(model, "tweets")}


def measures_run(cell):
    """One measure: tuned by mean validation accuracy of both tasks (`nothing` by the new task's alone).

    The row of `nothing` also tells what was before, what a random move of the same length does, and what averages do.
    """
    lesson, arm = _lesson03(*MEASURES03), cell["arm"]
    model = lesson.run_arm(arm, cell["lr"], cell["seed"], cell.get("strength", 0))
    if cell["phase"] == "tune":
        old, new = (lesson.accuracy(model, task, "val") for task in ("films", "tweets"))
        return {"score": new if arm == "nothing" else (old + new) / 2, "old": old, "new": new}
    row = _tested(lesson, model) | {"retrieval": lesson.retrieval(model)}
    if arm == "nothing":
        before, moved = lesson.old_model(cell["seed"]), copy.deepcopy(model)
        row |= {"before old": lesson.accuracy(before, "films"), "before retrieval": lesson.retrieval(before)}
        start, end = before.state_dict(), model.state_dict()
        moved.load_state_dict(lesson.astray(start, end, cell["seed"]))
        row |= {"random old": lesson.accuracy(moved, "films"), "random retrieval": lesson.retrieval(moved)}
        for share in SHARES:
            moved.load_state_dict(lesson.interpolate(start, end, share))
            row |= {f"{name} {share}": value for name, value in _tested(lesson, moved).items()}
    return {name: round(value, 4) for name, value in row.items()}


def row_run(cell):
    """Five tasks in a row: tuned by their mean validation accuracy at the end."""
    lesson = _lesson03(*ROW03)
    part = "val" if cell["phase"] == "tune" else "test"
    _, found = lesson.in_a_row(cell["arm"], cell["lr"], cell["seed"], part)
    last = len(lesson.ORDER) - 1
    mean = sum(found[last, i] for i in range(last + 1)) / (last + 1)
    if cell["phase"] == "tune":
        return {"score": mean}
    row = {"mean": mean, "transfer": lesson.backward_transfer(found)}
    row |= {f"first {i}": found[i, 0] for i in range(last + 1)} | {f"new {i}": found[i, i] for i in range(last + 1)}
    row |= {f"end {i}": found[last, i] for i in range(last + 1)}
    return {name: round(value, 4) for name, value in row.items()}


def _accuracies(lesson, model, more=""):
    tasks = (("old", "films"), ("new", "tweets"))
    return {
        f"{part} {name}{more}": lesson.accuracy(model, task, part) for part in ("val", "test") for name, task in tasks
    }


def strength_run(cell):
    """One measure at one setting, on validation and test sentences.

    The rows of `nothing` at the two highest rates also tell what was before (start) and what averages of start and end
    do, by share of the end.
    """
    if cell["phase"] == "tune":
        return {"score": 0.0}  # an arm is one setting: there is nothing to choose
    lesson = _lesson03(*MEASURES03)
    model = lesson.run_arm(cell["way"], cell["lr"], cell["seed"], cell["strength"])
    row = _accuracies(lesson, model)
    if cell["way"] == "nothing" and cell["lr"] >= 3e-4:
        before, moved = lesson.old_model(cell["seed"]), copy.deepcopy(model)
        row |= {f"{part} start": lesson.accuracy(before, "films", part) for part in ("val", "test")}
        for share in AVERAGES:
            moved.load_state_dict(lesson.interpolate(before.state_dict(), model.state_dict(), share))
            row |= _accuracies(lesson, moved, f" {share}")
    return {name: round(value, 4) for name, value in row.items()}


def pictures_run(cell):
    """Pictures: one measure, tuned by mean validation accuracy of both tasks (`nothing` by the new task's alone)."""
    lesson, arm = _lesson03(*PICTURES03), cell["arm"]
    model = lesson.run_pictures(arm, cell["lr"], cell["seed"], cell.get("strength", 0))
    part = "val" if cell["phase"] == "tune" else "test"
    row = {"old": lesson.seen(model, "first", part), "new": lesson.seen(model, "second", part)}
    if cell["phase"] == "tune":
        row["score"] = row["new"] if arm == "nothing" else (row["old"] + row["new"]) / 2
    elif arm == "nothing":
        row["before old"] = lesson.seen(lesson.old_pictures(cell["seed"]), "first")
    return {name: round(value, 4) for name, value in row.items()}


def _grid(rates, strengths=()):
    return [{"lr": lr, "strength": s} for lr in rates for s in strengths] or [{"lr": lr} for lr in rates]


def _held(full, *strengths):
    """Settings of an arm with a strength: all pairs, or on a CPU both strengths at the higher rate and one below."""
    pairs = _grid((1e-4, 3e-4, 1e-3) if full else (1e-4, 3e-4), strengths)
    return pairs if full else [pairs[0], *pairs[2:]]


def measures_arms(full):
    """The main measures and the controls: rates of the encoder, and strengths where a measure has one."""
    some = _grid((3e-5, 1e-4, 3e-4, 1e-3) if full else (1e-4, 3e-4))
    return {
        "nothing": _grid((1e-4, 3e-4, 1e-3)),
        "lower rate": _grid((1e-5, 3e-5, 1e-4) if full else (3e-5, 1e-4)),
        "L2": _held(full, 300, 3000),
        "EWC": _held(full, 1e7, 1e8),
        "replay 10 %": some,
        "averaging": _held(full, 0.3, 0.6),
        "head alone": _grid((0.0,)),
        "joint": some,
        "replay 10 % shuffled": _grid((3e-4,)),
    }


def more_arms(full):
    """The other measures."""
    some = _grid((3e-5, 1e-4, 3e-4, 1e-3) if full else (1e-4, 3e-4))
    return {
        "warm-up": some,
        "early stopping": some,
        "EWC batch": _held(full, 1e8, 1e9),
        "EWC in the loss": _held(full, 3e2, 3e3),
        "replay 1 %": some,
        "replay 5 %": some,
        "frozen layers": _held(full, 3, 5),
        "LoRA": _grid((3e-4, 1e-3, 3e-3, 1e-2) if full else (1e-3, 3e-3)),
    }


def strength_arms(full):
    """An arm for each setting: rates of plain training, and strengths at the rate of "nothing"; on a GPU more."""
    settings = [("nothing", lr, 0) for lr in (3e-5, 1e-4, 3e-4)]
    settings += [(way, 3e-4, strength) for way, strengths in STRENGTHS.items() for strength in strengths]
    if full:
        settings += [("nothing", 1e-5, 0), ("nothing", 1e-3, 0), ("L2", 1e-3, 3000)]
        settings += [("L2", 3e-4, strength) for strength in (30, 300, 1e5)]
        settings += [("EWC", 3e-4, strength) for strength in (1e6, 1e7, 1e11)]
        settings += [("EWC in the loss", 3e-4, strength) for strength in (1e4, 1e5, 1e7)]
        settings += [(f"replay {share} %", 3e-4, 0) for share in (10, 25, 50)]
    return {f"{way}, {lr:g}, {s:g}": [{"way": way, "lr": lr, "strength": s}] for way, lr, s in settings}


def row_arms(full):
    """Three ways through the five tasks."""
    return dict.fromkeys(("nothing", "replay 10 %", "averaging"), _grid((1e-4, 3e-4) if full else (3e-4,)))


def pictures_arms(full):
    """The measures that carry over to pictures, and a control: nothing but the norms' running statistics moves."""
    some = _grid((3e-5, 1e-4, 3e-4, 1e-3) if full else (1e-4, 3e-4))
    return {
        "nothing": _grid((1e-4, 3e-4, 1e-3)),
        "lower rate": _grid((1e-5, 3e-5, 1e-4) if full else (3e-5, 1e-4)),
        "L2": _grid((3e-4,), (300, 3000, 30000)),
        "replay 10 %": some,
        "averaging": _grid((3e-4,), (0.25, 0.5)),
        "head alone": _grid((0.0,)),
        "joint": some,
        "statistics alone": _grid((0.0,)),
    }


STUDIES = {
    "forgetting": Study(
        "03",
        measures_arms,
        lambda full: [{}],
        measures_run,
        "accuracy on films and tweets, and retrieval, after a films model learned tweets, by measure",
        MEASURES03,
    ),
    "forgetting-more": Study(
        "03",
        more_arms,
        lambda full: [{}],
        measures_run,
        "the study forgetting for the other measures",
        MEASURES03,
    ),
    "forgetting-strength": Study(
        "03",
        strength_arms,
        lambda full: [{}],
        strength_run,
        "accuracy on films and tweets after a films model learned tweets, by rate, strength and share",
        MEASURES03,
    ),
    "forgetting-row": Study(
        "03",
        row_arms,
        lambda full: [{}],
        row_run,
        "five tasks in a row: accuracy of each when new and at the end, and backward transfer",
        ROW03,
    ),
    "forgetting-pictures": Study(
        "03",
        pictures_arms,
        lambda full: [{}],
        pictures_run,
        "accuracy on CIFAR-10's first and last five classes after a network learned them in turn, by measure",
        PICTURES03,
    ),
}
