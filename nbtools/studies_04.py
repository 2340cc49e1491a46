"""The studies of lesson 04: ranks, where the adapter sits, wrong labels."""

from functools import cache, partial
from types import SimpleNamespace

from . import meters, notebooks
from .studies import Study

LESSON04 = ("prepare", "retrieval", "PAIRS", "PLACES", "saved")


@cache
def _lesson04():
    return SimpleNamespace(**notebooks.definitions("04", *LESSON04))


def trained(cell, model):
    """Train `model` as a cell of film labels says: {"score"} in tuning, else test accuracy and what it took.

    Some labels are wrong if `wrong` says so; an arm _shuffled learns permuted labels.
    """
    import torch

    from . import tasks

    data, labels, seed = tasks.films(), cell["labels"], cell["seed"]
    x, y = tasks.draw(labels, seed)
    g = torch.Generator().manual_seed(seed)
    if cell["arm"].endswith("_shuffled"):
        y = y[torch.randperm(len(y), generator=g)]
    if cell.get("wrong"):
        flipped = torch.randperm(len(y), generator=g)[: round(cell["wrong"] * len(y))]
        y = y.clone()
        y[flipped] = 1 - y[flipped]
    steps = tasks.STEPS[max(labels, 100)]  # 50 labels get as many steps as 100 do
    optimizer = tasks.finetune(model, x, y, cell["lr"], steps, seed, tick=lambda *a, **k: None)
    accuracy = tasks.correct(model, data.val if cell["phase"] == "tune" else data.test).float().mean().item()
    if cell["phase"] == "tune":
        return {"score": accuracy}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"accuracy": accuracy, "trainable": trainable, "optimizer_bytes": meters.optimizer_bytes(optimizer)}


def lora_run(cell):
    """One rank at one place on one draw of labels."""
    from . import tasks

    lesson, arm = _lesson04(), cell["arm"].removesuffix("_shuffled")
    options = {"targets": lesson.PLACES[cell["place"]]} if "place" in cell else {}
    model = lesson.prepare(arm.rpartition(" ")[2], cell["seed"], **options)
    row = trained(cell, model)
    if cell["phase"] == "tune":
        return row
    kept = round(lesson.retrieval(model, lesson.PAIRS), 4)
    return row | {"retrieval": kept, "saved_bytes": lesson.saved(model, tasks.films().texts[:32])}


RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of an adapter


def rank_arms(full):
    """Rates of the encoder's part, or of the head where it trains alone."""
    lora = [{"lr": lr} for lr in RATES]
    return {
        "head": [{"lr": lr} for lr in (3e-3, 1e-2, 3e-2, 1e-1)],
        **{f"r{r}": lora for r in (1, 2, 4, 8, 16, 32, 64)},
        "full": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)],
        "r8_shuffled": [{"lr": 1e-3}],
    }


def place_arms(full):
    """LoRA on the attention and on the feed-forward layers, at ranks that give both 184,320 parameters."""
    places = {"attention": "r10", "feed-forward": "r8"}
    return {f"{place} {r}": [{"place": place, "lr": lr} for lr in RATES] for place, r in places.items()}


def noise_arms(full):
    """A low, a middle and a high rank, and all: does a high rank overfit more?"""
    return {arm: settings for arm, settings in rank_arms(full).items() if arm in ("r1", "r8", "r64", "full")}


def noise_conditions(full):
    """Few labels, all right; more labels, a share of them wrong (in tuning too)."""
    return [{"labels": 50, "wrong": 0}, {"labels": 1000 if full else 100, "wrong": 0.3}]


def _labels(counts, full):
    return [{"labels": n} for n in counts]


STUDIES = {
    "lora-rank": Study(
        "04",
        rank_arms,
        partial(_labels, (100, 1000)),
        lora_run,
        "accuracy on 1,000 film sentences, and retrieval on Wikipedia after training, by rank and number of labels",
        LESSON04,
    ),
    "lora-place": Study(
        "04",
        place_arms,
        partial(_labels, (100, 1000)),
        lora_run,
        "LoRA on attention against LoRA on feed-forward layers at equal trainable parameters",
        LESSON04,
    ),
    "lora-noise": Study(
        "04",
        noise_arms,
        noise_conditions,
        lora_run,
        "ranks with 50 labels, and with 30 % of the labels wrong",
        LESSON04,
    ),
}
