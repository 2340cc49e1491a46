"""`nbtools bench train · meter · import · ppo`: what our own code costs. Each prints a table and returns 0 or 1.

Design choices
- What is compared runs interleaved in one process, step by step, in rotating order; a verdict is on the median of the
  ratios within a round, and the quartiles beside it show the noise.
- Verdicts are on processor time of all threads, which other programs hardly change; on a shared machine bare seconds
  vary tenfold. They fail too where wall time contradicts beyond its noise: waiting costs no processor time.
- `train` proves that its loops did the same work: from the same weights they must come to the same loss.
- `meter` does one thing more: what the meter's thread and its start and end take is too little to be seen in the pairs
  of steps, so it is also measured by itself; that sum is its verdict.
- `ppo` runs lesson 09's loop against the pinned trl's PPOTrainer: same models, reward, openings, batch and settings.
  Both draw their own answers, so it also compares what the trained policies earn, over seeds.
"""

import contextlib
import copy
import ctypes
import io
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from types import SimpleNamespace

from . import notebooks
from .errors import NbtoolsError
from .meters import Meter
from .profiles import current
from .train import fit

BARE, TRAINER, METER, IMPORT = 0.97, 1.0, 0.01, 0.3  # speed against each; share of a step; seconds
PPO = 1.0  # speed against trl's trainer
HEAVY = ("torch", "transformers", "matplotlib", "ipywidgets", "nbformat", "IPython")
LIGHT = (
    "allocator, assets, checks, cli, formulas, ledger, meters, notebooks, planner, plots, profiles, records, studies, "
    "train, zoo"
)


def verdict(rows, sentence, good):
    """Print a table and a sentence that ends in pass or FAIL; returns the exit status."""
    print(f"{notebooks.aligned(rows)}\n{sentence}: {'pass' if good else 'FAIL'}.", flush=True)
    return int(not good)


def clock():
    """Seconds of (all threads' processor time, wall time, this thread's processor time), once the device is done."""
    if current().device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter(), time.thread_time()


def timed(function, *args):
    """A call's seconds by each of the three clocks."""
    start = clock()
    function(*args)
    return [end - begin for end, begin in zip(clock(), start, strict=True)]


def spread(values):
    """[lower quartile, median, upper quartile]."""
    return statistics.quantiles([*values] * 2, n=4, method="inclusive")  # twice: so a single value has them


def steady_memory():
    """Let glibc keep what is freed: else it gives memory back and faults it in again, some 2,000 pages a step.

    Which loop that hits, by 5 %, depends on where its small objects happen to lie.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in (-3, 2**25), (-1, 2**30), (-8, 1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(option, value)


def pocket(batches):
    """A Llama of 1.3 M parameters in float32, and `batches` batches of 8 x 64 random tokens, on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = LlamaForCausalLM(config), torch.randint(0, 2048, (batches, 8, 64))
    labels = tokens.clone()
    labels[:, :, 0] = -100  # nothing predicts a first token; so all loops count the same ones
    rows = zip(tokens.to(current().device), labels.to(current().device), strict=True)
    return model.to(current().device), [{"input_ids": x, "labels": y} for x, y in rows]


def terms(batch):
    """How many tokens of a batch carry a label."""
    return (batch["labels"] != -100).sum()


def with_fit(model, loader, optimizer, steps, tick):
    """The course's loop."""
    fit(
        model,
        loader,
        optimizer,
        steps,
        lambda m, b: m(**b).loss * terms(b),
        terms,
        mixed=False,
        tick=lambda step, *_, **__: tick(step + 1),
    )


def bare(model, loader, optimizer, steps, tick):
    """The same written bare."""
    model.train()
    losses = []
    for step, batch in enumerate(loader, 1):
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        tick(step)


def with_trainer(model, loader, optimizer, steps, tick):
    """transformers' Trainer with the same optimizer and batches; logging, saving and clipping are off."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Ticks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            tick(state.global_step)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            max_grad_norm=0,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=current().device == "cpu",
        )
        trainer = Trainer(
            model, arguments, train_dataset=loader.dataset, optimizers=(optimizer, None), callbacks=[Ticks()]
        )
        trainer.get_train_dataloader = lambda: loader
        trainer.remove_callback(PrinterCallback)
        trainer.train()


LOOPS = {"fit": with_fit, "bare": bare, "Trainer": with_trainer}


def in_turns(loops, steps):
    """Run loops, functions of a tick, in turns of one step; a list of {name: seconds by each clock}, one a step.

    Each has a thread of its own, which only runs when it is its turn. An error in one is raised here.
    """
    turns, back = {name: threading.Semaphore(0) for name in loops}, threading.Semaphore(0)
    begun, laps, errors = {}, [{} for _ in range(steps)], []

    def wait(name):
        turns[name].acquire()
        begun[name] = clock()

    def run(name, loop):
        def tick(step):
            laps[step - 1][name] = [end - begin for end, begin in zip(clock(), begun[name], strict=True)]
            back.release()
            wait(name)

        wait(name)
        try:
            loop(tick)
        except BaseException as error:
            errors.append(error)
        back.release()

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in loops.items()]
    for thread in threads:
        thread.start()
    orders = [*itertools.permutations(loops)]
    for turn in range(steps + 1):  # the last one lets them end
        for name in orders[turn % len(orders)]:
            turns[name].release()
            back.acquire()
            if errors:
                raise errors[0]
    return laps


def train(steps=120, warmup=3):
    """Speed of `train.fit` against the same loop written bare and against Trainer, on the same model and batches."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    steady_memory()
    model, batches = pocket(steps)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    models = {name: copy.deepcopy(model) for name in LOOPS}
    optimizers = {name: torch.optim.AdamW(own.parameters(), lr=1e-3) for name, own in models.items()}
    loops = {name: partial(loop, models[name], loader, optimizers[name], steps) for name, loop in LOOPS.items()}
    laps = in_turns(loops, steps)[warmup:]
    with torch.no_grad():
        losses = {name: round(trained.eval()(**batches[0]).loss.item(), 6) for name, trained in models.items()}
    if not max(losses.values()) - min(losses.values()) <= 1e-4:
        raise NbtoolsError(f"The loops come to different losses, {losses}: not the same work, so no comparison.")
    rows, good = [["loop", "clock", "ms a step", "fit's speed against it", "quartiles", "", "loss"]], True
    for name, limit in ("fit", 1), ("bare", BARE), ("Trainer", TRAINER):
        for kind, label in enumerate(("processor", "wall")):
            low, median, high = spread(lap[name][kind] / lap["fit"][kind] for lap in laps)
            each = 1e3 * spread(lap[name][kind] for lap in laps)[1]
            rows.append([name, label, each, median, low, high, losses[name]])
            good &= (high if kind else median) >= limit
    sentence = (
        f"fit has {rows[3][3]:.3f} of the bare loop's speed (limit {BARE}) and {rows[5][3]:.3f} of Trainer's "
        f"(limit {TRAINER:g}), medians of {len(laps)} steps"
    )
    return verdict(rows, sentence, good)


def meter(rounds=40, size=0.12):
    """What `with Meter()` adds to a training step of some `size` seconds; a round: without, with, with, without."""
    import torch

    steady_memory()
    model, batches = pocket(1)
    optimizer, repeats, threads = torch.optim.AdamW(model.parameters(), lr=1e-4), 1, torch.get_num_threads()

    def step():
        optimizer.zero_grad()
        for _ in range(repeats):
            model(**batches[0]).loss.backward()
        optimizer.step()

    def metered(work=step):
        with Meter("step"):
            work()

    torch.set_num_threads(1)  # then all that other threads do is the meter's
    try:
        repeats = math.ceil(size / min(timed(step)[0] for _ in range(6)))
        laps = [[timed(call) for call in (step, metered, metered, step)] for _ in range(rounds)]
        alone = [timed(metered, int) for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
    with Meter("live", live=SimpleNamespace(value=""), period=0) as live:
        drawn = [timed(live.update) for _ in range(rounds)]
    return meter_verdict(laps, alone, drawn)


def meter_verdict(laps, alone, drawn):
    """Table and verdict of `meter`: of what the meter itself does, unless the pairs of steps contradict."""
    cpu, whole = spread(lap[0][0] for lap in laps)[1], spread(lap[0][1] for lap in laps)[1]
    shares = {
        "its thread": [(t[0] - t[2]) / t[1] for _, b, c, _ in laps for t in (b, c)],
        "its start and end": [t[2] / cpu for t in alone],
        "its start and end, wall time": [t[1] / whole for t in alone],
    }
    for i, label in enumerate(("processor", "wall")):
        shares[f"with against without, {label} time"] = [(b[i] + c[i]) / (a[i] + d[i]) - 1 for a, b, c, d in laps]
        shares[f"noise: two without, {label} time"] = [abs(d[i] / a[i] - 1) for a, _, _, d in laps]
    shares["one refresh of a live view"] = [t[0] / cpu for t in drawn]
    found = {name: spread(values) for name, values in shares.items()}
    rows = [[f"share of a step of {1e3 * whole:.0f} ms", "median", "quartiles", ""]]
    rows += [[name, *(f"{value:.2%}" for value in (median, low, high))] for name, (low, median, high) in found.items()]
    added = found["its thread"][1] + found["its start and end"][1]
    agree = all(
        found[f"with against without, {label}"][0] < METER + found[f"noise: two without, {label}"][1]
        for label in ("processor time", "wall time")
    )
    sentence = f"a meter adds {added:.2%} to a step (limit {METER:.0%}), medians of {len(laps)} rounds"
    return verdict(rows, sentence, added < METER and agree and found["its start and end, wall time"][0] < METER)


def import_(rounds=5):
    """Seconds of `import nbtools` in a fresh Python beyond its start; no module but widgets may bring heavy ones."""
    code = "import sys, time; t = time.perf_counter(); {}; print(time.perf_counter() - t, *sys.modules)"
    rows, heavy = [["statement", "seconds", "quartiles", "", "heavy modules"]], set()
    for name, line in ("import nbtools", "import nbtools"), ("all but widgets", f"from nbtools import {LIGHT}"):
        command = [sys.executable, "-c", code.format(line)]
        runs = [
            subprocess.run(command, cwd=notebooks.ROOT, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(rounds)
        ]
        low, median, high = spread(float(run[0]) for run in runs)
        found = {module for run in runs for module in run[1:]} & {*HEAVY}
        rows.append([name, median, low, high, ", ".join(sorted(found)) or "none"])
        heavy |= found
    sentence = f"import nbtools takes {rows[1][1]:.4f} s (limit {IMPORT} s) and brings {len(heavy)} heavy modules"
    return verdict(rows, sentence, rows[1][1] < IMPORT and not heavy)


def ppo_pair(lesson, settings, seed, folder):
    """Lesson 09's loop and trl's PPOTrainer on equal terms: {name: (models, loop)}; a loop is a function of a tick."""
    ours, score = lesson.Four(), lesson.scorers()["reward"]
    loop = partial(lesson.ppo, ours, settings, score, seed)
    theirs = lesson.Four()
    trainer = ppo_trainer(theirs, settings, score, seed, folder)
    return {
        "ours": (ours, lambda tick: loop(lambda step, *_, **__: tick(step + 1))),
        "trl": (theirs, lambda tick: with_ppo_trainer(trainer, tick)),
    }


def ppo_trainer(models, s, score, seed, folder):
    """trl's PPOTrainer over the lesson's `models` with its settings `s`; `score` (texts -> (B,)) as a reward model."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from datasets import Dataset

    from . import rollouts

    tokenizer, cpu = models.tokenizer, current().device == "cpu"

    class ByText(torch.nn.Module):
        """What trl takes for a reward model: a backbone whose last hidden state is the score, at every token."""

        base_model_prefix, score = "backbone", torch.nn.Identity()

        def __init__(self):
            super().__init__()
            self.backbone = self.read

        @staticmethod
        def read(input_ids, **rest):
            given = score(tokenizer.batch_decode(input_ids, skip_special_tokens=True)).to(input_ids.device)
            return SimpleNamespace(hidden_states=[given[:, None, None].expand(*input_ids.shape, 1)])

    sizes = models.policy.config.to_dict() | {"num_labels": 1}
    value = LlamaForSequenceClassification(LlamaConfig.from_dict(sizes)).to(models.policy.device)
    value.model.load_state_dict(models.policy.model.state_dict())
    torch.nn.init.zeros_(value.score.weight)
    config = PPOConfig(
        folder,
        per_device_train_batch_size=s.answers,
        num_mini_batches=s.parts,
        num_ppo_epochs=s.epochs,
        total_episodes=s.answers * s.iterations,
        response_length=s.tokens,
        local_rollout_forward_batch_size=s.answers,
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=s.unended,
        kl_coef=s.beta,
        cliprange=s.clip,
        learning_rate=s.lr,
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,
        weight_decay=0,
        vf_coef=1.0,
        seed=seed,
        bf16=current().dtype == "bfloat16",
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=cpu,
    )
    rows = Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in rollouts.openings()]})
    return PPOTrainer(
        config, tokenizer, models.policy, models.ref, ByText(), rows, value, eval_dataset=rows.select(range(s.answers))
    )


def with_ppo_trainer(trainer, tick):
    """Run trl's trainer; a tick after each of its iterations."""
    from transformers import PrinterCallback, TrainerCallback

    class Ticks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            tick(state.global_step)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Ticks())
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()


def ppo(iterations=10, seeds=(0, 1, 2), warmup=1):
    """Speed of lesson 09's PPO against trl's PPOTrainer, in turns of one iteration, and what both policies earn."""
    from transformers.utils import logging

    from datasets import disable_progress_bars

    from . import records

    logging.set_verbosity_error()
    disable_progress_bars()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the warning that PPO may vanish
    steady_memory()
    lesson = SimpleNamespace(**notebooks.definitions("09", "ppo", "Four", "Settings", "scorers", "measure"))
    laps, earned = [], {"ours": [], "trl": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            pair = ppo_pair(lesson, lesson.Settings(iterations=iterations), seed, folder)
            laps += in_turns({name: loop for name, (_, loop) in pair.items()}, iterations)[warmup:]
        for name, (models, _) in pair.items():
            earned[name].append(lesson.measure(models))
    return ppo_verdict(laps, earned, records.interval)


def ppo_verdict(laps, earned, interval):
    """Table and verdict of `ppo`: not slower by either clock, and the rewards' intervals over seeds overlap."""
    rows, good = [["loop", "clock", "s an iteration", "ours against it", "quartiles", "", "reward", "", "KL", ""]], True
    both = {name: [interval(row[key] for row in found) for key in ("reward", "kl")] for name, found in earned.items()}
    for kind, label in enumerate(("processor", "wall")):
        for name in ("ours", "trl"):
            low, median, high = spread(lap[name][kind] / lap["ours"][kind] for lap in laps)
            numbers = [x for pair in both[name] for x in pair]
            rows.append([name, label, spread(lap[name][kind] for lap in laps)[1], median, low, high, *numbers])
            good &= name == "ours" or (high if kind else median) >= PPO
    (a, wide), (b, other) = both["ours"][0], both["trl"][0]
    alike = abs(a - b) <= wide + other
    sentence = (
        f"ours has {rows[2][3]:.2f} of trl's speed (limit {PPO:g}), medians of {len(laps)} iterations; "
        f"rewards {a:.2f} ± {wide:.2f} and {b:.2f} ± {other:.2f} {'overlap' if alike else 'differ'}"
    )
    return verdict(rows, sentence, good and alike)
