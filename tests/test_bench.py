"""The benches measure what they say, and can fail: a slow loop, other work, a busy meter, a heavy import."""

import subprocess
import sys
import threading
import time

import pytest

from nbtools import bench, meters, notebooks
from nbtools.errors import NbtoolsError

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    """Limits that every machine keeps, and an allocator left alone: this process has other tests to run."""
    monkeypatch.setattr(bench, "steady_memory", lambda: None)
    for name, limit in ("BARE", 0.01), ("TRAINER", 0.01), ("METER", 50.0):
        monkeypatch.setattr(bench, name, limit)


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


# --- train


def test_three_loops_do_the_same_work_and_a_verdict_follows(capsys):
    assert bench.train(steps=5, warmup=2) == 0
    lines = capsys.readouterr().out.splitlines()
    rows, kinds = [line.split() for line in lines[1:7]], ("processor", "wall")
    assert [row[:2] for row in rows] == [[name, kind] for name in ("fit", "bare", "Trainer") for kind in kinds]
    assert len({row[-1] for row in rows}) == 1, "the same loss after the same steps"
    assert float(rows[0][2]) > 1 and lines[-1].endswith("medians of 3 steps: pass.")


@pytest.mark.parametrize("waste", [busy, time.sleep], ids=["computes", "sleeps"])
def test_a_loop_that_wastes_time_fails(monkeypatch, capsys, waste):
    """Sleeping takes no processor time: there the wall clock must object."""
    fit = bench.fit

    def slow(model, loader, optimizer, steps, loss_fn, *args, **options):
        def loss(*batch):
            waste(0.5)
            return loss_fn(*batch)

        return fit(model, loader, optimizer, steps, loss, *args, **options)

    monkeypatch.setattr(bench, "fit", slow)
    monkeypatch.setattr(bench, "BARE", 0.5)
    assert bench.train(steps=4, warmup=1) == 1
    assert capsys.readouterr().out.strip().endswith("FAIL.")


def test_loops_that_do_different_work_are_not_compared(monkeypatch):
    def less(model, loader, optimizer, steps, tick):
        optimizer.param_groups[0]["lr"] *= 0.9
        bench.bare(model, loader, optimizer, steps, tick)

    monkeypatch.setitem(bench.LOOPS, "bare", less)
    with pytest.raises(NbtoolsError, match="different losses.*not the same work"):
        bench.train(steps=2, warmup=1)


def test_turns_are_one_step_each_in_rotating_order_and_never_two_at_once():
    order, running = [], []

    def loop(name, tick):
        for step in range(1, 8):
            running.append(name)
            time.sleep(0.002)
            order.append((step, name))
            assert running == [name]
            running.remove(name)
            tick(step)

    laps = bench.in_turns({name: lambda tick, name=name: loop(name, tick) for name in "abc"}, 7)
    rounds = ["".join(name for step, name in order if step == i) for i in range(1, 8)]
    assert rounds == ["abc", "acb", "bac", "bca", "cab", "cba", "abc"]
    assert [step for step, _ in order] == sorted(step for step, _ in order)
    assert all({*lap} == {*"abc"} and all(wall >= 0.002 for _, wall, _ in lap.values()) for lap in laps)


def test_an_error_in_a_loop_is_raised_and_nothing_hangs():
    def broken(tick):
        tick(1)
        raise ZeroDivisionError("in step 2")

    def fine(tick):
        for step in (1, 2, 3):
            tick(step)

    caught = []

    def turns():
        with pytest.raises(ZeroDivisionError, match="in step 2"):
            bench.in_turns({"fine": fine, "broken": broken}, 3)
        caught.append(True)

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    thread.join(20)
    assert caught


# --- meter


def test_a_meter_s_share_is_measured_in_pairs_and_by_itself(capsys):
    assert bench.meter(rounds=2, size=0.02) == 0
    out = capsys.readouterr().out
    shares = (
        "its thread",
        "its start and end",
        "with against without, wall time",
        "noise: two without, processor time",
    )
    assert all(f"\n{share} " in out for share in (*shares, "one refresh of a live view"))
    assert out.strip().endswith("medians of 2 rounds: pass.")
    assert not [t for t in threading.enumerate() if t.name.startswith("nbt-meter")]


def test_a_meter_that_samples_too_much_fails(monkeypatch, capsys):
    """Ten milliseconds of work in every twenty: many percent, seen in its thread alone."""
    monkeypatch.setattr(bench, "METER", 0.05)
    monkeypatch.setattr(meters.Meter, "_sample", lambda self: busy(0.01) or self.peak_process)
    assert bench.meter(rounds=2, size=0.1) == 1
    assert "FAIL" in capsys.readouterr().out


FINE, NONE = (0.1, 0.1, 0.1), (1e-5, 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("metered", "last", "alone", "status"),
    [
        ((0.1005, 0.1002, 0.1), FINE, NONE, 0),
        ((0.102, 0.1, 0.1), (0.13, 0.13, 0.13), NONE, 1),  # its thread takes 2 %, which noisy pairs hide
        (FINE, FINE, (2e-3, 1e-5, 2e-3), 1),  # its start takes 2 %
        (FINE, FINE, (1e-5, 2e-2, 1e-5), 1),  # its end waits for 20 ms
        ((0.105, 0.1, 0.105), FINE, NONE, 1),  # it slows the step down in another way
        ((0.1, 0.105, 0.1), FINE, NONE, 1),
    ],
)
def test_the_verdict_on_a_meter(monkeypatch, metered, last, alone, status):
    """Rounds of seconds by (processor, wall, main thread's) clock: without, with, with, without."""
    monkeypatch.setattr(bench, "METER", 0.01)
    assert bench.meter_verdict([[FINE, metered, metered, last]] * 4, [alone] * 4, [(0, 0, 0)] * 4) == status


# --- import


def test_importing_nbtools_is_quick_and_brings_nothing_heavy(capsys):
    assert bench.import_(rounds=2) == 0
    out = capsys.readouterr().out
    assert "import nbtools " in out and "all but widgets" in out and out.count(" none") == 2


def test_no_heavy_module_is_there_after_the_import():
    code = "import sys, nbtools; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=notebooks.ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "matplotlib", "ipywidgets", "numpy"} & {*found.stdout.split()}


def test_a_slow_or_a_heavy_import_fails(monkeypatch, capsys):
    monkeypatch.setattr(bench, "IMPORT", 0.0)
    assert bench.import_(rounds=1) == 1
    monkeypatch.undo()
    monkeypatch.setattr(bench, "HEAVY", ("torch", "argparse"))  # the command line brings argparse
    assert bench.import_(rounds=1) == 1
    assert "argparse" in capsys.readouterr().out


def test_every_module_but_widgets_and_the_benches_is_looked_at():
    modules = {path.stem for path in (notebooks.ROOT / "nbtools").glob("*.py")} - {"__init__", "widgets"}
    by_lesson = {name for name in modules if name.startswith(("checks_", "studies_"))}
    by_lesson |= {
        "emulation",
        "measuring",
        "pocket",
        "raters",
        "rollouts",
        "sft",
        "tasks",
        "tracing",
        "world",
    }  # these import torch
    missing = modules - {*bench.LIGHT.split(", ")} - by_lesson
    assert missing <= {"bench", "contract", "doctor", "errors"}
