"""The study of lesson 13: MiniLM trained in five precisions."""

import itertools
from functools import cache
from types import SimpleNamespace

from . import meters, notebooks
from .studies import Study

LESSON13 = ("ARMS", "BATCH", "DATA", "held_out", "moved", "run_arm", "saved")


@cache
def _lesson13():
    return SimpleNamespace(**notebooks.definitions("13", *LESSON13))


def precision_run(cell):
    """One arm with one seed: scored by its loss on the validation sentences while tuning, else read on the test ones.

    moved: share of the trained weights below the head that differ from their start. curve: the training loss, means of
    eighths of the steps, as text.
    """
    lesson, arm = _lesson13(), cell["arm"]
    model, optimizer, history = lesson.run_arm(arm, cell["lr"], cell["seed"], tick=lambda *a, **k: None)
    row = {"moved": round(lesson.moved(model, arm), 5), "curve": _curve([at["loss"] for at in history])}
    if cell["phase"] == "tune":
        found = lesson.held_out(model, arm, lesson.DATA.val)
        return row | {"score": -found["loss"], "accuracy": found["accuracy"]}
    found = {name: round(value, 5) for name, value in lesson.held_out(model, arm, lesson.DATA.test).items()}
    kept = {"saved_bytes": lesson.saved(arm, lesson.BATCH), "optimizer_bytes": meters.optimizer_bytes(optimizer)}
    return row | found | kept


def _curve(losses):
    """Means of eighths of the losses, or the losses themselves if there are fewer than eight, as text."""
    parts = min(8, len(losses))
    edges = [round(i * len(losses) / parts) for i in range(parts + 1)]
    return " ".join(f"{sum(losses[a:b]) / (b - a):.4f}" for a, b in itertools.pairwise(edges))


def precision_arms(full):
    """The same rates for every arm; the control takes one."""
    rates = [{"lr": lr} for lr in ((1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3) if full else (3e-5, 1e-4, 3e-4, 1e-3))]
    arms = {arm: rates for arm in _lesson13().ARMS if not arm.endswith("shuffled")}
    return arms | {"autocast_shuffled": [{"lr": 1e-4}]}


STUDIES = {
    "mixed-precision": Study(
        "13",
        precision_arms,
        lambda full: [{}],
        precision_run,
        "loss and accuracy of MiniLM on 600 short film sentences after 48 steps, by the precision it was trained in",
        LESSON13,
    ),
}
