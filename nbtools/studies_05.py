"""The study of lesson 05: the PEFT family, each method at its own learning rate."""

from functools import cache

from . import notebooks
from .studies import Study
from .studies_04 import trained

LESSON05 = ("prepare",)


@cache
def _prepare():
    return notebooks.definitions("05", *LESSON05)["prepare"]


def peft_run(cell):
    """One method on one draw of labels."""
    return trained(cell, _prepare()(cell["arm"].removesuffix("_shuffled"), cell["seed"]))


def peft_arms(full):
    """Rates of what a method adds, or of the head where it trains alone; a factor of about thirty for each."""
    rates = {
        (1e-4, 3e-4, 1e-3, 3e-3): ("PiSSA",),
        (3e-4, 1e-3, 3e-3, 1e-2): ("BitFit", "LoRA", "rsLoRA", "DoRA", "adapter 16", "adapter 64"),
        (3e-3, 1e-2, 3e-2, 1e-1): ("head", "IA3", "prompt", "prefix"),
        (3e-5, 1e-4, 3e-4, 1e-3): ("full",),
        (3e-3,): ("LoRA_shuffled",),
    }
    return {arm: [{"lr": lr} for lr in grid] for grid, arms in rates.items() for arm in arms}


def peft_conditions(full):
    """1,000 labels; the full grid has 100 too."""
    return [{"labels": 1000}, {"labels": 100}] if full else [{"labels": 1000}]


STUDIES = {
    "peft": Study(
        "05", peft_arms, peft_conditions, peft_run, "accuracy on 1,000 film sentences, by PEFT method", LESSON05
    )
}
