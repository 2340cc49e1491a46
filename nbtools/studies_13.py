"""The studies of lesson 13: MiniLM, and for a few steps SmolLM2, trained in five precisions."""

import itertools
from functools import cache
from types import SimpleNamespace

from . import meters, notebooks, profiles, train, zoo
from .studies import Study

SMOLLM2 = ("AdamW16", "ARMS", "DATA", "precision")
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


@cache
def _smollm2():
    return SimpleNamespace(**notebooks.definitions("13", *SMOLLM2))


@cache
def _untrained(count):
    """The loss of SmolLM2 as it comes on the first test sentences."""
    model, tokenizer = zoo.smollm2()
    data = _smollm2().DATA
    return _nats(model.to(profiles.current().device), tokenizer, data.texts[data.test][:count])


def smollm2_run(cell, steps=8, size=8, held_out=64):
    """All weights of SmolLM2, some steps on film sentences as plain text: nats a token on held-out ones.

    AdamW without decay, clipping or schedule. before: the loss of the untrained model in float32. moved: share of the
    weights that end elsewhere than they began.
    """
    import torch

    lesson, arm = _smollm2(), cell["arm"]
    data, how = lesson.DATA, lesson.ARMS[arm]
    texts = data.texts[data.val if cell["phase"] == "tune" else data.test][:held_out]
    model, tokenizer = zoo.smollm2()
    model = model.to(profiles.current().device)
    row = {} if cell["phase"] == "tune" else {"before": _untrained(held_out)}
    model = model.bfloat16() if arm.startswith("bfloat16") else model
    start = [p.detach().clone() for p in model.parameters()]
    group = [{"params": [*model.parameters()], "lr": cell["lr"]}]
    optimizer = lesson.AdamW16(group, how, cell["seed"]) if how else torch.optim.AdamW(group, weight_decay=0)
    pool = data.texts[data.pool]
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(cell["seed"])).tolist()
    model.train()
    for step in range(steps):
        with lesson.precision(arm):
            loss = model(**_text_batch(tokenizer, [pool[i] for i in order[size * step : size * (step + 1)]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = sum((p != q).sum().item() for p, q in zip(model.parameters(), start, strict=True))
    row["moved"] = round(moved / sum(p.numel() for p in start), 4)
    with lesson.precision(arm):
        loss = _nats(model, tokenizer, texts)
    return row | ({"score": -loss} if cell["phase"] == "tune" else {"loss": loss})


def _text_batch(tokenizer, texts):
    """Sentences to go on with: ids, mask and labels, on the profile's device."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return train.to_device({**batch, "labels": labels}, profiles.current().device)


def _nats(model, tokenizer, texts, size=25):
    """Mean loss of a token over all texts."""
    import torch

    total = count = 0
    model.eval()
    for i in range(0, len(texts), size):
        batch = _text_batch(tokenizer, texts[i : i + size])
        tokens = (batch["labels"][:, 1:] != -100).sum().item()
        with torch.no_grad():
            total += model(**batch).loss.item() * tokens
        count += tokens
    return round(total / count, 5)


def smollm2_arms(full):
    """The same rates for every arm; no control."""
    rates = [{"lr": lr} for lr in ((3e-5, 1e-4, 3e-4) if full else (1e-4, 3e-4))]
    return {arm: rates for arm in _smollm2().ARMS if not arm.endswith("shuffled")}


STUDIES = {
    "mixed-precision": Study(
        "13",
        precision_arms,
        lambda full: [{}],
        precision_run,
        "loss and accuracy of MiniLM on 600 short film sentences after 48 steps, by the precision it was trained in",
        LESSON13,
    ),
    "mixed-smollm2": Study(
        "13",
        smollm2_arms,
        lambda full: [{}],
        smollm2_run,
        "nats a token of SmolLM2 on 64 short film sentences after 8 steps, by the precision it was trained in",
        SMOLLM2,
    ),
}
