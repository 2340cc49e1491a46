"""The studies of lesson 01: strategies by number of labels, and what augmentation, warm-up and early stopping do."""

from functools import cache, partial
from types import SimpleNamespace

from . import notebooks
from .studies import Study

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
