"""The study of lesson 07: what is learned from in a chat, and from how many chats."""

import ast
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from . import notebooks
from .studies import Study

LESSON07 = ("ARMS", "STEPS", "MANY", "FEW", "ASKED", "run_arm", "measure")
SHARED = "LIMIT SIZE LAYERS split load encode adapt order passes finetune held_out answers words rules scores".split()


@dataclass(frozen=True)
class SftStudy(Study):
    """A study that depends on parts of nbtools.sft: how the checkpoint there is kept can change without a new run."""

    def code(self):
        here = Path(__file__)
        parts = ast.parse(here.with_name("sft.py").read_text(encoding="utf-8")).body
        parts = [ast.unparse(node) for node in parts if set(_names(node)) & {*SHARED}]
        own = [inspect.getsource(f) for f in (sft_run, _lesson07.__wrapped__)]
        rest = [here.with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("tasks", "train")]
        return notebooks.fingerprint(notebooks.source_of(self.lesson, *self.names), *parts, *own, *rest)


def _names(node):
    """The names that a top-level statement defines."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


@cache
def _lesson07():
    return SimpleNamespace(**notebooks.definitions("07", *LESSON07))


def sft_run(cell):
    """One arm with one seed: scored by its loss on the validation answers while tuning, else measured on the test."""
    from . import sft

    lesson = _lesson07()
    if cell["phase"] == "tune" and cell["arm"] not in TUNED:
        return {"score": 0.0}
    model, tokenizer = lesson.run_arm(cell["arm"], cell["lr"], cell["seed"], tick=lambda *a, **k: None)
    if cell["phase"] == "tune":
        return {"score": -sft.held_out(model, tokenizer, sft.split()["val"])["loss"]}
    return {name: round(value, 5) for name, value in lesson.measure(model, tokenizer).items()}


RATES = {
    "answers": (1e-3, 3e-3, 1e-2),
    "whole chat": (1e-3, 3e-3, 1e-2, 3e-2),
    "few random": (3e-4, 1e-3, 3e-3),
    "few chosen": (1e-4, 3e-4, 1e-3, 3e-3),
}  # of the adapter: each arm's best is not at an end of its grid
TUNED = tuple(RATES)


def sft_arms(full):
    """Four arms are tuned; the others take the best rate of `answers`, from which they differ in one thing."""
    tuned = {arm: [{"lr": lr} for lr in rates] for arm, rates in RATES.items()}
    return tuned | {arm: [{"lr": 3e-3}] for arm in ("no end", "double start", "shuffled")} | {"base": [{"lr": 0}]}


STUDIES = {
    "sft": SftStudy(
        "07",
        sft_arms,
        lambda full: [{}],
        sft_run,
        "SmolLM2 on brief answers: loss on 64 unseen answers, rules on 24 of its own, by what is learned from",
        LESSON07,
    ),
}
