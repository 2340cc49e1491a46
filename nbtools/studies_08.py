"""The studies of lesson 08: reward models by number of preferences, and by how noisy the preferences are."""

from functools import cache, partial
from types import SimpleNamespace

from . import notebooks
from .studies import Study

LESSON08 = ("VAL", "WRONG", "STEPS", "run_arm", "measure", "preference_loss")


@cache
def _lesson08():
    return SimpleNamespace(**notebooks.definitions("08", *LESSON08))


def reward_run(cell):
    """One reward model: scored by its loss on validation preferences while tuning, else measured on the test ones.

    Of the largest models the single differences chosen - rejected are kept too, as text: five make the ensemble.
    """
    import torch

    from . import raters

    lesson = _lesson08()
    model = lesson.run_arm(cell["arm"], cell["labels"], cell["lr"], cell["seed"], tick=lambda *a, **k: None)
    if cell["phase"] == "tune":
        apart = raters.margins(lambda texts: raters.rewards(model, texts), lesson.VAL)
        return {"score": -lesson.preference_loss(apart, torch.zeros_like(apart)).mean().item()}
    row, apart = lesson.measure(model)
    row = {name: round(value, 4) for name, value in row.items()}
    if cell["arm"] == "rater" and cell["labels"] == max(lesson.STEPS):
        row |= {f"apart {name}": " ".join(f"{v:.2f}" for v in kept.tolist()) for name, kept in apart.items()}
    return row


RATES = [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3)]  # of the adapter


def size_arms(full):
    """One rater's choices, at each number of them."""
    return {"rater": RATES}


def noise_arms(full):
    """Means of half one, a fifth turned round, and the control, whose rate is not tuned."""
    return {"mean": RATES, "flipped": RATES, "shuffled": [{"lr": 1e-3}]}


def _labels(counts, full):
    return [{"labels": n} for n in counts]


STUDIES = {
    "reward": Study(
        "08",
        size_arms,
        partial(_labels, (100, 300, 1000, 3000)),
        reward_run,
        "accuracy on 2,000 choices between unseen film snippets, and on 300 by means in each domain, by preferences",
        LESSON08,
    ),
    "reward-noise": Study(
        "08",
        noise_arms,
        partial(_labels, (1000,)),
        reward_run,
        "reward models from 1,000 preferences by the mean of the raters, or with a part turned round",
        LESSON08,
    ),
}
