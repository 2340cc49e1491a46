"""The training loop of the course: plain enough to read in two minutes, and used by every lesson that trains.

Design choices
- `loss_fn(model, batch)` returns a SUM over the loss terms (images, or tokens that carry a label) and `count(batch)`
  says how many there are. The loop divides by the count of the whole step, so accumulating micro-batches of unequal
  length gives exactly the gradient of the large batch. The mean of means does not.
- The caller owns the optimizer and its groups: which parameters train is the subject of several lessons.
- `tick(step, steps, loss=..., ...)` reports each step; a panel's tick stops a run by raising.
- Left out on purpose: a loss scaler (lesson on mixed precision), checkpoints, several devices.
"""

import contextlib
import copy
import random
import time

from .profiles import current


def seed_everything(seed):
    """Seed Python, numpy and torch; returns a torch.Generator on the CPU with the same seed."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what libraries draw from
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def autocast(enabled=True):
    """Mixed precision where the profile has bfloat16, else nothing: float16 would need a loss scaler."""
    import torch

    profile = current()
    if not (enabled and profile.dtype == "bfloat16"):
        return contextlib.nullcontext()
    return torch.autocast(profile.device, dtype=torch.bfloat16)


def to_device(batch, device):
    """Move a tensor, or a tuple, list or dict of tensors, to the device."""
    if isinstance(batch, dict):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(v, device) for v in batch)
    return batch.to(device)


def cross_entropy_sum(model, batch):
    """Summed cross-entropy of one batch (x, y); y holds class ids (B,) or class probabilities (B, C)."""
    import torch.nn.functional as F

    x, y = batch
    return F.cross_entropy(model(x).float(), y, reduction="sum")


def rows(batch):
    """How many loss terms a batch (x, y) has: one a row."""
    return len(batch[-1])


def forever(batches):
    """Go through `batches` again and again; a callable is called anew for each pass."""
    while True:
        empty = True
        for batch in batches() if callable(batches) else batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches is empty or a spent iterator; pass a list, a DataLoader, or a function that "
                "returns a fresh iterator"
            )


def fit(
    model,
    batches,
    optimizer,
    steps,
    loss_fn=cross_entropy_sum,
    count=rows,
    accumulate=1,
    clip=None,
    schedule=None,
    train_mode=None,
    mixed=True,
    evaluate=None,
    eval_every=0,
    patience=0,
    tick=None,
):
    """Train for `steps` optimizer steps and return the history, a list of one dict per step: step, loss, lr, seconds.

    batches     re-iterable (or function that returns an iterator) of micro-batches; `accumulate` of them make one step
    loss_fn     (model, batch) -> summed loss, a scalar tensor;  count  (batch) -> number of terms in that sum
    clip        largest gradient norm, or None
    schedule    a torch or transformers scheduler, stepped once per optimizer step
    train_mode  (model) -> None, puts layers in train or eval mode; default `model.train()`
    mixed       compute in bfloat16 under autocast where the profile has it
    evaluate    () -> score, higher is better, asked every `eval_every` steps; after `patience` scores without a new
                best the run stops early; where `patience` is given, the best weights come back
    """
    import torch

    device = next(model.parameters()).device
    params = [p for group in optimizer.param_groups for p in group["params"]]
    train_mode = train_mode or torch.nn.Module.train
    tick = tick or print_progress()
    stream, history, best, start = forever(batches), [], Best(model, patience), time.perf_counter()
    train_mode(model)
    for step in range(steps):
        micro = [to_device(next(stream), device) for _ in range(accumulate)]
        terms = sum(count(b) for b in micro)
        if not terms:
            raise ValueError(f"step {step} has nothing to learn from: 0 loss terms; look at its labels and mask")
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in micro:
            with autocast(mixed):
                loss = loss_fn(model, batch) / terms
            loss.backward()
            total = total + loss.detach()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params, clip)
        lr = optimizer.param_groups[-1]["lr"]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        row = {"step": step, "loss": total.item(), "lr": lr, "seconds": time.perf_counter() - start}
        history.append(row)
        if evaluate and eval_every and (step + 1) % eval_every == 0:
            model.eval()
            row["score"] = evaluate()
            train_mode(model)
        tick(step, steps, **{k: row[k] for k in ("loss", "score") if k in row})
        if "score" in row and best.is_over(row["score"]):
            break
    best.restore()
    return history


class Best:
    """Early stopping: remembers the best weights, and says when `patience` scores in a row brought nothing new."""

    def __init__(self, model, patience):
        self.model, self.patience = model, patience
        self.score, self.state, self.bad = float("-inf"), None, 0

    def is_over(self, score):
        if not self.patience:
            return False
        if score > self.score:
            self.score, self.state, self.bad = score, copy.deepcopy(self.model.state_dict()), 0
        else:
            self.bad += 1
        return self.bad >= self.patience

    def restore(self):
        if self.state is not None:
            self.model.load_state_dict(self.state)


def print_progress(every=5.0):
    """A tick that prints loss and time left at most once in `every` seconds, and at the end."""
    start = last = time.perf_counter()

    def tick(step, steps, **metrics):
        nonlocal last
        now = time.perf_counter()
        if now - last < every and step + 1 < steps:
            return
        last, left = now, (now - start) / (step + 1) * (steps - step - 1)
        shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items())
        print(f"step {step + 1}/{steps}  {shown}  {left:.0f} s left", flush=True)

    return tick
