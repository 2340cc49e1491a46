"""The studies of lesson 06: an adapter over a float and over a four-bit base; and two engines on a GPU."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from . import meters, notebooks, records
from .errors import NbtoolsError
from .studies import Study

LESSON06 = ("DATA", "ARMS", "STEPS", "BATCH", "run_arm", "answer_loss", "perplexity", "stored")
ENGINES06 = ("LENGTHS", "ENGINES", "UNSLOTH", "random_llama", "engine_run")


@cache
def _lesson06(*names):
    return SimpleNamespace(**notebooks.definitions("06", *(names or LESSON06)))


def qlora_run(cell):
    """One arm with one seed: scored on the validation answers while tuning, else on the test answers and Wikipedia."""
    lesson = _lesson06()
    model, optimizer = lesson.run_arm(cell["arm"], cell["lr"], cell["steps"], cell["seed"], tick=lambda *a, **k: None)
    if cell["phase"] == "tune":
        return {"score": -lesson.answer_loss(model, lesson.DATA.val)}
    return {
        "loss": round(lesson.answer_loss(model, lesson.DATA.test), 5),
        "perplexity": round(lesson.perplexity(model), 4),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad) if optimizer else 0,
        "optimizer_bytes": meters.optimizer_bytes(optimizer) if optimizer else 0,
        "model_bytes": sum(lesson.stored(model).values()),
    }


def qlora_arms(full):
    """The same three rates for both adapters; the bases are not trained; the control takes the middle rate."""
    rates = [{"lr": lr} for lr in ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2) if full else (3e-4, 1e-3, 3e-3))]
    fixed = {"base": [{"lr": 0}], "base nf4": [{"lr": 0}], "qlora_shuffled": [{"lr": 1e-3}]}
    return {"lora": rates, "qlora": rates, **fixed}


def qlora_steps(full):
    """As few steps as the lesson's live run, and twice as many: does the gap close?"""
    return [{"steps": 16}, {"steps": 32}] + [{"steps": 128}] * full


def engine_row(cell):
    """One engine at one length on this GPU, in a process of its own: unsloth rewrites transformers for what follows.

    Nothing is tuned, so that phase runs nothing.
    """
    import torch

    if not torch.cuda.is_available():
        raise NbtoolsError("qlora-engines compares engines on a GPU, but torch finds no CUDA device.")
    if cell["phase"] == "tune":
        return {"score": 0.0}
    code = "import json, sys; from nbtools.studies_06 import engine; "
    code += "print(json.dumps(engine(sys.argv[1], int(sys.argv[2]))))"
    command = [sys.executable, "-c", code, cell["arm"], str(cell["length"])]
    environment = os.environ | {"NBTOOLS_ENGINE": cell["arm"]}
    done = subprocess.run(command, cwd=records.ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NbtoolsError(f"{cell['arm']} at {cell['length']} tokens failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def engine(arm, length):
    """Numbers of one engine over a random model of Llama-3.2-1B's shape, written to a folder for the while."""
    lesson = _lesson06(*ENGINES06)
    with tempfile.TemporaryDirectory() as folder:
        return lesson.engine_run(arm, length, lesson.random_llama(Path(folder) / "llama"))


def _engines(full):
    return {engine: [{}] for engine in ("stock", "unsloth")}


def _lengths(full):
    return [{"length": length} for length in (512, 1024, 2048)]


STUDIES = {
    "qlora": Study(
        "06",
        qlora_arms,
        qlora_steps,
        qlora_run,
        "LoRA over SmolLM2 as packaged and over SmolLM2 in NF4: loss on 64 brief answers, perplexity on Wikipedia",
        LESSON06,
    ),
    "qlora-engines": Study(
        "06",
        _engines,
        _lengths,
        engine_row,
        "Unsloth against transformers with peft, bitsandbytes and SDPA on Llama-3.2-1B's shape; five repeats",
        ENGINES06,
    ),
}
