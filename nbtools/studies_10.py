"""The studies of lesson 10: DPO in the known world, on the pocket model, and with an AI's labels."""

from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import Study

WORLD10 = ("world_arm",)
POCKET10 = ("run_arm", "measure", "labelled", "sampled", "on_pairs", "unseen", "VAL")
JUDGE10 = ("agreement",)
CHAT10 = ("chat_arm",)
PRICE = 0.05  # of a nat of KL, for all arms alike: lesson 09's middle one


@cache
def _lesson10(*names):
    return SimpleNamespace(**notebooks.definitions("10", *names))


def world_run(cell):
    """DPO in the known world by number of pairs, or with coins for labels; tuned by the distance to the best policy."""
    noise = {"dpo": 0.0, "coins": 0.5}[cell["arm"]]
    found = _lesson10(*WORLD10).world_arm("dpo", cell["pairs"], noise, 0.5, cell["lr"], cell["steps"], cell["seed"])
    return {name: round(value, 5) for name, value in found.items()} | {"score": -found["tv"]}


def loss_run(cell):
    """One of the losses in the known world, with a share of labels turned round; tuned by the distance."""
    given = (cell[name] for name in ("arm", "pairs", "noise", "beta", "lr", "steps", "seed"))
    found = _lesson10(*WORLD10).world_arm(*given)
    return {name: round(value, 5) for name, value in found.items()} | {"score": -found["tv"]}


def pocket_run(cell):
    """DPO on the pocket model: scored by reward - PRICE KL on validation openings, else measured on the test ones.

    accuracy, chosen, rejected: on pairs that were never learned from.
    """
    lesson = _lesson10(*POCKET10)
    if cell["phase"] == "tune" and "pairs" in cell:  # these studies have one rate
        return {"score": 0.0}
    policy, history = lesson.run_arm(cell["arm"], cell.get("pairs", 768), cell["beta"], cell["lr"], cell["seed"])
    if cell["phase"] == "tune":
        found = lesson.measure(policy, lesson.VAL)
        return {"score": found["reward"] - PRICE * found["kl"]}
    row = lesson.measure(policy, seed=cell["seed"]) | lesson.on_pairs(policy, *lesson.unseen())
    if cell["arm"] in ("online", "untouched"):
        return _rounded(row)
    return _rounded(row | _passes(history)) | {"way": _way(history)}


def labels_run(cell):
    """`pocket_run`, and the mean tokens of the pairs' chosen and rejected answers."""
    row = pocket_run(cell)
    if cell["phase"] == "tune":
        return row
    lesson = _lesson10(*POCKET10)
    tokens = lesson.sampled(cell["pairs"], cell["seed"]).answer.sum(1).float()
    arm = "reward" if cell["arm"] == "untouched" else cell["arm"]
    win, lose = lesson.labelled(arm, cell["pairs"], cell["seed"])
    return row | _rounded({"chosen tokens": tokens[win].mean().item(), "rejected tokens": tokens[lose].mean().item()})


def chat_run(cell):
    """DPO on chats, with or without supervised fine-tuning before it; tuned by the loss of 14 pairs of their own."""
    lesson = _lesson10(*CHAT10)
    if cell["phase"] == "tune":
        return {"score": -lesson.chat_arm(cell["arm"], cell["lr"], cell["seed"], "val")["loss"]}
    return _rounded(lesson.chat_arm(cell["arm"], cell["lr"], cell["seed"]))


def _rounded(row):
    return {name: round(value, 4) for name, value in row.items()}


def _passes(history):
    """Accuracy of the first pass over the pairs, each new to the policy, and of the second."""
    half = len(history) // 2
    parts = {"first": history[:half], "again": history[half:]}
    return {name: sum(at["accuracy"] for at in part) / len(part) for name, part in parts.items()}


def _way(history):
    """log p of chosen and rejected less the reference's, for each eighth of the training, as text."""
    size = len(history) / 8
    parts = [history[round(i * size) : round((i + 1) * size)] for i in range(8)]
    way = [[sum(at[name] for at in part) / len(part) for name in ("chosen", "rejected")] for part in parts]
    return " ".join(f"{up:.2f},{down:.2f}" for up, down in way)


def judge_run(cell):
    """How often SmolLM2 agrees with raters on 80 choices of a draw of its own; there is nothing to tune."""
    if cell["phase"] == "tune":
        return {"score": 0.0}
    found = _lesson10(*JUDGE10).agreement(80, 100 + cell["seed"])
    return {name: round(value, 4) for name, value in found.items()}


def world_arms(full):
    """Three rates times four numbers of steps."""
    grid = [{"lr": lr, "steps": steps} for lr in (0.01, 0.03, 0.1) for steps in (10, 100, 300, 1000)]
    return {"dpo": grid, "coins": grid}


def loss_arms(full):
    """Two rates, four numbers of steps, and three strengths of beta, whose meaning differs from loss to loss."""
    betas = {"ipo": (0.0625, 0.125, 0.25, 0.5), "simpo": (1.0, 2.0, 4.0, 8.0)}
    kinds = ("dpo", "ipo", "simpo", "cdpo", "robust")
    grid = [{"lr": lr, "steps": steps} for lr in (0.03, 0.1) for steps in (10, 30, 100, 300)]
    return {
        kind: [{"beta": beta, **setting} for beta in betas.get(kind, (0.25, 0.5, 1.0)) for setting in grid]
        for kind in kinds
    }


RATES = [{"lr": lr} for lr in (3e-4, 1e-3)]

STUDIES = {
    "dpo-world": Study(
        "10",
        world_arms,
        lambda full: [{"pairs": n} for n in (300, 1000, 3000, 10000, 30000, 100000, 300000, "all")],
        world_run,
        "distance to the best policy of the known world by number of pairs, and with coins for labels",
        WORLD10,
    ),
    "dpo-loss": Study(
        "10",
        loss_arms,
        lambda full: [{"noise": noise, "pairs": pairs} for noise in (0.0, 0.2) for pairs in (10000, "all")],
        loss_run,
        "five losses on 10,000 pairs and in the limit, clean and with a fifth of the labels turned round",
        WORLD10,
    ),
    "dpo": Study(
        "10",
        lambda full: {"reward": RATES, "online": RATES},
        lambda full: [{"beta": beta} for beta in ((0.02, 0.1, 0.5) if full else (0.1,))],
        pocket_run,
        "DPO on the pocket model from 768 pairs, of the untouched model or of the policy as it learns, by beta",
        POCKET10,
    ),
    "dpo-more": Study(
        "10",
        lambda full: {"reward": RATES[:1]},
        lambda full: [{"beta": 0.1, "pairs": 3072}],
        pocket_run,
        "DPO on the pocket model from 3,072 pairs of the untouched model, at the rate of 768",
        POCKET10,
    ),
    "dpo-labels": Study(
        "10",
        lambda full: dict.fromkeys(("ai", "mixed", "shuffled", "untouched"), RATES[:1]),
        lambda full: [{"beta": 0.1, "pairs": 768}],
        labels_run,
        "the pocket model after DPO from the 768 pairs of the study dpo, labelled by an AI, by both, or by coins",
        POCKET10,
    ),
    "dpo-chat": Study(
        "10",
        lambda full: dict.fromkeys(("dpo", "sft+dpo"), [{"lr": lr} for lr in (1e-3, 3e-3)]),
        lambda full: [{}],
        chat_run,
        "SmolLM2 after DPO on 40 conversations, with and without supervised fine-tuning before; HHH before and after",
        CHAT10,
    ),
    "dpo-judge": Study(
        "10",
        lambda full: {"smollm2": [{}]},
        lambda full: [{}],
        judge_run,
        "how often SmolLM2 agrees with raters on 80 choices between film sentences, by the way it is asked",
        JUDGE10,
    ),
}
