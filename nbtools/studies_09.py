"""The studies of lesson 09: the known world, and PPO by the price of KL on the pocket model and on SmolLM2."""

from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import Study

WORLD09 = ("run_world", "ARMS", "STEPS")
LESSON09 = ("run_arm", "measure", "scorers", "VAL")
BIG09 = ("run_big", "VAL")
SHORT = 6  # draws of SmolLM2 on a CPU


@cache
def _lesson09(*names):
    return SimpleNamespace(**notebooks.definitions("09", *names))


def world_run(cell):
    """One algorithm in the known world: scored by its distance to the best policy; the distances on the way as text."""
    found = _lesson09(*WORLD09).run_world(cell["arm"], cell["lr"], cell["seed"])
    last = {name: round(value, 5) for name, value in found[-1][1].items()}
    return last | {"score": -last["tv"], "curve": " ".join(f"{at['tv']:.4f}" for _, at in found)}


def ppo_run(cell):
    """PPO on the pocket model: scored by reward - beta KL on validation openings, else measured on the test ones.

    Of the way there: KL, reward and judge of every third draw, and some answers of the last one, as text.
    """
    lesson = _lesson09(*LESSON09)
    models, history = lesson.run_arm(cell["arm"], cell["beta"], cell["lr"], cell["seed"], tick=lambda *a, **k: None)
    if cell["phase"] == "tune":
        found = lesson.measure(models, lesson.VAL)
        return {"score": found["reward"] - cell["beta"] * found["kl"]}
    judge = lesson.scorers()["judge"]
    way = [(row["kl"], row["reward"], judge(row["texts"]).mean().item()) for row in history[::3]]
    row = {name: round(value, 4) for name, value in lesson.measure(models).items()}
    row |= {"curve": " ".join(f"{kl:.2f},{a:.2f},{b:.2f}" for kl, a, b in way)}
    return row | {"sample": " | ".join(history[-1]["texts"][:6])}


def big_run(cell):
    """PPO on SmolLM2 under adapters, before and after; where rates are tried, scored by reward - beta KL on others."""
    lesson = _lesson09(*BIG09)
    given = {"lr": cell["lr"], "iterations": cell["iterations"], "tick": lambda *a, **k: None}
    if cell["phase"] == "tune":
        if cell["iterations"] == SHORT:  # one rate
            return {"score": 0.0}
        found = lesson.run_big(cell["seed"], part=lesson.VAL, **given)
        return {"score": found["reward"] - 0.05 * found["kl"]}
    return {name: round(value, 4) for name, value in lesson.run_big(cell["seed"], **given).items()}


def world_arms(full):
    """The same five rates for every algorithm."""
    rates = [{"lr": lr} for lr in (0.003, 0.01, 0.03, 0.1, 0.3)]
    return dict.fromkeys(_lesson09(*WORLD09).ARMS, rates)


STUDIES = {
    "known-world": Study(
        "09",
        world_arms,
        lambda full: [{}],
        world_run,
        "distance to the best policy of the known world after 96,000 answers, by algorithm",
        WORLD09,
    ),
    "ppo": Study(
        "09",
        lambda full: {"ppo": [{"lr": lr} for lr in ((3e-5, 1e-4, 3e-4, 1e-3) if full else (1e-4, 3e-4))]},
        lambda full: [{"beta": beta} for beta in (0.0, 0.05, 0.2)],
        ppo_run,
        "PPO on the pocket model: reward, judge and KL of answers to 256 held-out openings, by the price of KL",
        LESSON09,
    ),
    "ppo-control": Study(
        "09",
        lambda full: {"shuffled": [{"lr": 3e-4}]},
        lambda full: [{"beta": 0.05}],
        ppo_run,
        "PPO on the pocket model with the rewards of a draw shuffled",
        LESSON09,
    ),
    "ppo-smollm2": Study(
        "09",
        lambda full: {"ppo": [{"lr": lr} for lr in ((1e-4, 3e-4, 1e-3, 3e-3) if full else (1e-3,))]},
        lambda full: [{"iterations": 60 if full else SHORT}],
        big_run,
        "PPO on SmolLM2 under adapters: what reward and judge of 64 held-out openings gain",
        BIG09,
    ),
}
