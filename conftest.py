"""pytest for the whole project: no network, and hooks that make nbval fail where it would keep silent.

It stands at the root, not in tests/, because a conftest.py rules what lies under it, and notebooks/ must be ruled too.
- A dead kernel is reported at once, and a notebook has 10 minutes altogether (`-o notebook_limit=600`).
- After an exception the later cells are skipped; after an output that differs they still run.
- A cell marked NBVAL_CHECK_OUTPUT without saved output or count fails: nbval would compare nothing.
- A notebook whose peak memory is over 1.5 times what it states fails at the cell where that happened.
- A table at the end tells seconds, also in units of a short calibration run, and peak memory, beside what is stated;
  build/notebooks.json holds the same. Cells are numbered as nbval does: code cells from 0.
"""

import importlib.util
import json
import os
import time
from pathlib import Path
from queue import Empty

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, NbCellError

from nbtools import notebooks

NOSOCKETS = Path(__file__).parent / "tests" / "nosockets"
STATS = pytest.StashKey()
MEMORY_SLACK = 1.5


def pytest_addoption(parser):
    parser.addini("notebook_limit", "seconds that one notebook may take", default="600")


def pytest_configure(config):
    """Before any test module is imported: block the network here and in child processes, and tell the libraries so."""
    config.stash[STATS] = {}
    spec = importlib.util.spec_from_file_location("nosockets", NOSOCKETS / "sitecustomize.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(NOSOCKETS), os.environ.get("PYTHONPATH")]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NBTOOLS_OFFLINE": "1"}
    os.environ.pop("NBTOOLS_PANEL", None)


def calibrate():
    """Seconds of a fixed piece of work (matrix products), about half a second on two quiet cores."""
    import numpy as np

    matrix = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    start = time.perf_counter()
    for _ in range(48):
        matrix = np.tanh(matrix @ matrix.T / 1024)
    return time.perf_counter() - start


def pytest_collection_finish(session):
    """One row of numbers for each notebook that will run; the calibration just before the first."""
    books = {item.parent for item in session.items if isinstance(item, IPyNbCell)}
    if books and not session.config.option.collectonly:
        unit = calibrate()
        for book in books:
            profile, minutes, memory = notebooks.stated(book.nb)
            session.config.stash[STATS][str(book.path)] = {
                "notebook": book.path.name,
                "profile": profile,
                "calibration_s": unit,
                "cells": 0,
                "seconds": 0.0,
                "stated_s": minutes and minutes * 60,
                "peak_gb": 0.0,
                "stated_gb": memory,
                "slowest": [0.0, None],
                "failed": [],
            }


# --- the kernel


class Stuck(Exception):
    """The kernel will not answer: it died, or the notebook's time is over."""


_await_reply = RunningKernel.await_reply


def await_reply(self, msg_id, timeout=None):
    """nbval waits out the whole cell limit for a kernel that is dead: look once a second whether it lives."""
    end = time.monotonic() + (timeout or 2000)
    while True:
        try:
            return _await_reply(self, msg_id, timeout=min(1.0, max(0.05, end - time.monotonic())))
        except Empty:
            if not self.is_alive():
                raise Stuck("the kernel died while it ran this cell; too little memory is the usual reason") from None
            if time.monotonic() > getattr(self, "deadline", end):
                raise Stuck("the notebook took more than its time altogether (notebook_limit)") from None
            if time.monotonic() >= end:
                raise


RunningKernel.await_reply = await_reply


# --- one cell


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item):
    """Skip what comes after a failure; at the first cell, once nbval has started the kernel, start watching that."""
    if isinstance(item, IPyNbCell):
        if stop := getattr(item.parent, "stopped_at", None):
            pytest.skip(f"{stop} of this notebook failed")
        if not hasattr(item.parent, "watch"):
            kernel, row = item.parent.kernel, item.config.stash[STATS][str(item.path)]
            kernel.deadline = time.monotonic() + float(item.config.getini("notebook_limit"))
            item.parent.watch = notebooks.Watch(kernel.km.provisioner.pid, gpu=row["profile"] == "gpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run a cell; note its time and memory; decide whether the cells after it make sense."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    start, row = time.perf_counter(), item.config.stash[STATS][str(item.path)]
    try:
        result = yield
        check_reference(item)
    except Exception as error:
        row["failed"].append(item.cell_num)
        if str(error) not in ("Cell outputs differ", "Unrun reference cell has outputs", UNCHECKED):
            item.parent.stopped_at = item.name
        if isinstance(error, Stuck):
            raise NbCellError(item.cell_num, str(error), item.cell.source) from None
        raise
    finally:
        seconds = time.perf_counter() - start
        row["cells"] += 1
        row["seconds"] += seconds
        row["slowest"] = max(row["slowest"], [seconds, item.cell_num], key=lambda pair: pair[0])
        item.parent.watch.sample()
        before, row["peak_gb"] = row["peak_gb"], item.parent.watch.peak / 1e9
    check_memory(item, row, before)
    return result


UNCHECKED = "marked NBVAL_CHECK_OUTPUT, but nothing is saved to compare with: run it, then `nbtools clean`"


def check_reference(item):
    if notebooks.is_checked(item.cell) and not (item.cell.outputs and item.cell.execution_count):
        raise NbCellError(item.cell_num, UNCHECKED, item.cell.source)


def check_memory(item, row, before):
    """Fail once, at the cell where the peak passed what the notebook states by more than the slack."""
    limit = MEMORY_SLACK * (row["stated_gb"] or float("inf"))
    if before <= limit < row["peak_gb"]:
        row["failed"].append(item.cell_num)
        sentence = (
            f"peak memory {row['peak_gb']:.2f} GB is over {MEMORY_SLACK} times the {row['stated_gb']:g} GB "
            "that the notebook states: lower it, or state what it takes"
        )
        raise NbCellError(item.cell_num, sentence, item.cell.source)


def pytest_runtest_teardown(item, nextitem):
    last = nextitem is None or nextitem.parent is not item.parent
    if isinstance(item, IPyNbCell) and last and hasattr(item.parent, "watch"):
        item.parent.watch.stop()


# --- the table


def pytest_terminal_summary(terminalreporter, config):
    rows = [row for row in config.stash[STATS].values() if row["cells"]]
    if not rows:
        return
    head = ["notebook", "profile", "cells", "seconds", "stated", "units", "peak GB", "stated", "slowest cell", "failed"]
    lines = [
        [
            row["notebook"],
            row["profile"],
            row["cells"],
            f"{row['seconds']:.1f}",
            row["stated_s"],
            f"{row['seconds'] / row['calibration_s']:.1f}",
            f"{row['peak_gb']:.2f}",
            row["stated_gb"],
            f"{row['slowest'][1]} ({row['slowest'][0]:.1f} s)",
            ", ".join(map(str, row["failed"])) or "none",
        ]
        for row in sorted(rows, key=lambda row: row["notebook"])
    ]
    terminalreporter.section("notebooks")
    terminalreporter.write_line(notebooks.aligned([head, *lines]))
    terminalreporter.write_line(f"One unit is a calibration run, {rows[0]['calibration_s']:.2f} s here and now.")
    target = config.rootpath / "build" / "notebooks.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
