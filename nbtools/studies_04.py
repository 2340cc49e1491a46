"""The studies of lesson 04: ranks, where the adapter sits, wrong labels."""

from functools import cache, partial
from types import SimpleNamespace

from . import notebooks
from .studies import Study

LESSON04 = ("load_data", "draw", "build", "prepare", "finetune", "correct", "retrieval", "PAIRS", "STEPS", "PLACES",
            "optimizer_bytes", "saved")  # fmt: skip


@cache
def _lesson04():
    lesson = SimpleNamespace(**notebooks.definitions("04", *LESSON04))
    lesson.data = lesson.load_data()
    return lesson


def lora_run(cell):
    """One arm on one draw of labels, some of them wrong if `wrong` says so; an arm _shuffled learns permuted labels."""
    import torch

    lesson = _lesson04()
    data, seed = lesson.data, cell["seed"]
    x, y = lesson.draw(data, cell["labels"], seed)
    g = torch.Generator().manual_seed(seed)
    if cell["arm"].endswith("_shuffled"):
        y = y[torch.randperm(len(y), generator=g)]
    if cell.get("wrong"):
        flipped = torch.randperm(len(y), generator=g)[: round(cell["wrong"] * len(y))]
        y = y.clone()
        y[flipped] = 1 - y[flipped]
    arm = cell["arm"].removesuffix("_shuffled")
    options = {"targets": lesson.PLACES[cell["place"]]} if "place" in cell else {}
    model = lesson.prepare(arm.rpartition(" ")[2], seed, **options)
    steps = lesson.STEPS[cell["labels"]]
    optimizer = lesson.finetune(model, x, y, cell["lr"], steps, seed, tick=lambda *a, **k: None)
    part = data.val if cell["phase"] == "tune" else data.test
    accuracy = lesson.correct(model, data.texts[part], data.labels[part]).float().mean().item()
    if cell["phase"] == "tune":
        return {"score": accuracy}
    return {
        "accuracy": accuracy,
        "retrieval": round(lesson.retrieval(model, lesson.PAIRS), 4),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "optimizer_bytes": lesson.optimizer_bytes(optimizer),
        "saved_bytes": lesson.saved(model, data.texts[:32]),
    }


def rank_arms(full):
    """Rates of the encoder's part, or of the head where it trains alone."""
    lora = [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 1e-2)]
    return {
        "head": [{"lr": lr} for lr in (3e-3, 1e-2, 3e-2, 1e-1)],
        **{f"r{r}": lora for r in (1, 2, 4, 8, 16, 32, 64)},
        "full": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)],
        "r8_shuffled": [{"lr": 1e-3}],
    }


def place_arms(full):
    """LoRA on the attention and on the feed-forward layers, at ranks that give both 184,320 parameters."""
    rates = (3e-4, 1e-3, 3e-3, 1e-2)
    places = {"attention": "r10", "feed-forward": "r8"}
    return {f"{place} {r}": [{"place": place, "lr": lr} for lr in rates] for place, r in places.items()}


def noise_run(cell):
    """As `lora_run`; 50 labels get as many steps as 100 do."""
    _lesson04().STEPS.setdefault(50, _lesson04().STEPS[100])
    return lora_run(cell)


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
        noise_run,
        "ranks with 50 labels, and with 30 % of the labels wrong",
        LESSON04,
    ),
}
