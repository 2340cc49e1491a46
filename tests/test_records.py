"""Records, studies and the README's tables, all on a made-up tree: numbers by hand, stops at any moment, no peeking."""

import inspect
import json
import math
import os
import re
import statistics
import subprocess
import sys

import nbformat.v4 as v4
import pytest

from nbtools import emulation, notebooks, profiles, records, studies, studies_01
from nbtools.errors import NbtoolsError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project in place of this one."""
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    toy = profiles.Profile("cpu", "cpu", "float32", 2, 8.0, None, "toy", ())
    monkeypatch.setattr(records, "current", lambda: toy)
    monkeypatch.delenv("NBTOOLS_RUN_DIR", raising=False)
    return tmp_path


def row(arm, labels, seed, accuracy, phase="report", **more):
    return {"phase": phase, "arm": arm, "labels": labels, "seed": seed, "accuracy": accuracy, **more}


# --- recording


def test_a_live_lesson_only_gets_its_row_back(root):
    assert records.record("01", "full", accuracy=0.7, seconds=3) == {
        "lesson": "01",
        "name": "full",
        "numbers": {"accuracy": 0.7, "seconds": 3},
    }
    assert list(root.iterdir()) == []


def test_a_headless_run_collects_rows_with_what_they_depend_on(root, monkeypatch):
    monkeypatch.setenv("NBTOOLS_RUN_DIR", str(root))
    records.record("01", "frozen", accuracy=0.7)
    records.record("01", "full", accuracy=0.8)
    rows = json.loads((root / "records.json").read_text())
    assert [r["name"] for r in rows] == ["frozen", "full"]
    for r in rows:
        assert {"machine", "versions", "commit", "date", "numbers"} <= {*r}
        assert r["versions"]["torch"] and re.fullmatch(r"\d{4}-\d\d-\d\d", r["date"])
    assert notebooks.result_table(rows).splitlines()[0].split() == ["name", "accuracy"]


def test_nothing_tells_who_measured(root, monkeypatch):
    import getpass
    import platform
    import socket

    for module, name in (platform, "node"), (socket, "gethostname"), (getpass, "getuser"):
        monkeypatch.setattr(module, name, lambda: "very-private")
    for name in "USER", "LOGNAME", "HOSTNAME":
        monkeypatch.setenv(name, "very-private")
    text = json.dumps(records.facts()) + records.slug(records.machine())
    assert "very-private" not in text and str(root.home()) not in text


@pytest.mark.parametrize(
    ("facts", "folder"),
    [
        ({"profile": "gpu", "processor": "NVIDIA H200", "cores": 16, "system": "Linux"}, "gpu-nvidia-h200"),
        ({"profile": "gpu", "processor": "Tesla T4 (1g.5gb)", "cores": 2, "system": "Linux"}, "gpu-tesla-t4-1g-5gb"),
        ({"profile": "cpu", "processor": "whatever", "cores": 2, "system": "Linux"}, "cpu-linux-x86_64-2-cores"),
        ({"profile": "cpu", "processor": "", "cores": 8, "system": "Darwin"}, "cpu-darwin-x86_64-8-cores"),
    ],
)
def test_a_machine_s_folder(monkeypatch, facts, folder):
    monkeypatch.setattr(records.platform, "machine", lambda: "x86_64")
    assert records.slug(facts) == folder


def test_outside_git_there_is_no_commit(root):
    assert records.commit() is None


def test_a_checkout_that_differs_says_so(root):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True)

    git("init")
    (root / "nbtools").mkdir()
    (root / "nbtools" / "a.py").write_text("1")
    git("add", "nbtools")
    git("commit", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{12}", records.commit())
    (root / "README.md").write_text("no code")
    assert "+" not in records.commit()
    (root / "nbtools" / "a.py").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{12}\+", records.commit())


def test_results_are_written_whole_or_not_at_all(root, monkeypatch):
    file = records.save("01", "toy", [row("full", 10, 0, 0.5)], about="first")
    before = file.read_bytes()
    with pytest.raises(TypeError):
        records.save("01", "toy", [row("full", 10, 0, object())])
    assert file.read_bytes() == before

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.save("01", "toy", [row("full", 10, 0, 0.6)])
    assert file.read_bytes() == before and records.load("01/toy")["about"] == "first"


# --- reading


@pytest.fixture
def study(root):
    accuracies = {"full": (0.60, 0.62, 0.67), "frozen": (0.70, 0.71, 0.69)}
    rows = [row(arm, 10, s, a, noise=a / 2) for arm, values in accuracies.items() for s, a in enumerate(values)]
    rows += [row("full", 30, s, 0.9) for s in range(3)] + [row("no warm-up", 10, 0, 0.4)]
    rows += [row("full", 10, 1000, 0.99, phase="tune", score=0.99)]
    records.save("01", "toy", rows)
    return rows


def test_lookup_by_hand(study):
    key = "01/toy?arm=full&labels=10#accuracy"
    mean, half = 0.63, 4.303 * statistics.stdev([0.60, 0.62, 0.67]) / math.sqrt(3)
    assert records.lookup(key) == records.lookup(key + ":mean") == pytest.approx(mean)
    assert records.lookup(key + ":half") == pytest.approx(half)
    assert [records.lookup(f"{key}:{how}") for how in ("min", "max", "n")] == [0.60, 0.67, 3]
    assert records.lookup("01/toy?arm=no+warm-up#accuracy") == 0.4
    assert math.isnan(records.lookup("01/toy?arm=no+warm-up#accuracy:half"))


@pytest.mark.parametrize(
    "key",
    [
        "01/toy?arm=nobody#accuracy",
        "01/toy?arm=full#score",
        "01/toy?arm=full&labels=10#seconds",
        "01/toy",
        "",
        "01/toy#accuracy:median",
        "01/toy?arm=full&labels=10&phase=tune#accuracy",
    ],
)
def test_lookup_of_what_is_not_there(study, key):
    """The last one: what chose a setting is never quoted, even when asked for by name."""
    with pytest.raises(KeyError):
        records.lookup(key)


def test_lookup_refuses_a_mean_over_different_conditions(study):
    with pytest.raises(KeyError, match="6 rows, several of one seed"):
        records.lookup("01/toy?arm=full#accuracy")
    assert records.lookup("01/toy?arm=full#accuracy:max") == 0.9


def test_the_contract_reads_such_keys(study, root, monkeypatch):
    from nbtools import contract

    assert contract._drifted("63.0", " %", "01/toy?arm=full&labels=10#accuracy") is None
    assert "is 63.0" in contract._drifted("64.0", " %", "01/toy?arm=full&labels=10#accuracy")
    assert "no result" in contract._drifted("0.6", "", "01/other#accuracy")
    assert "no result" in contract._drifted("0.6", "", "nonsense")


def test_a_study_without_results_names_the_command(root):
    with pytest.raises(NbtoolsError, match="`nbtools study frontier`, or restore results/ from git"):
        records.load("01/frontier")


def test_paired_differences_by_hand(study):
    mean, half = records.paired(study, "accuracy", {"arm": "frozen"}, {"arm": "full"}, labels=10)
    differences = [0.10, 0.09, 0.02]
    assert mean == pytest.approx(statistics.mean(differences))
    assert half == pytest.approx(4.303 * statistics.stdev(differences) / math.sqrt(3))
    apart = [records.lookup(f"01/toy?arm={arm}&labels=10#accuracy:half") for arm in ("full", "frozen")]
    assert half < sum(apart), "pairing takes the seeds' common part out"
    with pytest.raises(NbtoolsError, match="share 1 seeds"):
        records.paired(study, "accuracy", {"arm": "no warm-up"}, {"arm": "full"}, labels=10)


def test_select_compares_as_text(study):
    assert len(records.select(study, labels="10", arm="full", phase="report")) == 3
    assert records.select(study, nothing=1) == []


def within_t(limit, df, n=20000):
    """P(|T| < limit) by Simpson's rule on the density of Student's t."""
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    h, f = limit / n, [(1 + (limit * i / n) ** 2 / df) ** (-(df + 1) / 2) for i in range(n + 1)]
    return 2 * density * h / 3 * (f[0] + f[-1] + 4 * sum(f[1:-1:2]) + 2 * sum(f[2:-1:2]))


def test_the_table_of_t_is_the_95_percent_point_of_each_degree():
    assert len(records.T95) == 30
    for df, limit in enumerate(records.T95, 1):
        low, high = within_t(limit - 0.0006, df), within_t(limit + 0.0006, df)
        assert low < 0.95 < high, (df, limit, low, high)


def test_intervals_cover_the_truth_95_times_in_100():
    import numpy as np

    draws, hits = np.random.default_rng(0).normal(3.0, 2.0, (2000, 5)), 0
    for values in draws:
        mean, half = records.interval(values.tolist())
        hits += abs(mean - 3.0) <= half
    assert 0.935 < hits / 2000 < 0.965
    assert records.interval([1.0] * 40) == (1.0, 0.0)


def test_markdown_has_all_columns_three_digits_and_no_broken_cell():
    text = records.markdown([{"arm": "a|b", "accuracy": 0.12345}, {"arm": "c", "n": 5, "accuracy": None}])
    assert text.splitlines() == [
        "| arm | accuracy | n |",
        "| --- | --- | --- |",
        "| a\\|b | 0.123 |  |",
        "| c |  | 5 |",
    ]


# --- studies


class Toy:
    """A study of two arms by two conditions that notes what it ran, and can be interrupted at a cell."""

    def __init__(self):
        self.cells, self.stop_at, self.rates = [], None, {"a": (0.1, 0.3), "b": (0.1, 0.2)}

    def run(self, cell):
        if len(self.cells) == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        self.cells.append(dict(cell))
        best = {("a", 10): 0.3, ("a", 30): 0.1, ("b", 10): 0.2, ("b", 30): 0.1}[cell["arm"], cell["labels"]]
        if cell["phase"] == "tune":
            return {"score": 1 - abs(cell["lr"] - best)}
        return {"accuracy": cell["lr"] + cell["seed"] / 100, "score": 99.0 if cell["seed"] else -99.0}

    def study(self):
        def arms(full):
            return {arm: [{"lr": lr} for lr in rates] for arm, rates in self.rates.items()}

        def conditions(full):
            return [{"labels": n} for n in ((10,) if full else (10, 30))]

        return studies.Study("01", arms, conditions, self.run, "a toy")


@pytest.fixture
def toy(root, monkeypatch):
    toy = Toy()
    monkeypatch.setattr(studies, "known", lambda: {"toy": toy.study()})
    return toy


def saved(root, name="toy"):
    (file,) = root.glob(f"results/*/01-{name}.json")
    return json.loads(file.read_text())


def test_a_study_tunes_on_its_own_draw_then_reports_the_best_setting_on_each_seed(toy, root, capsys):
    studies.run("toy")
    tuned, reported = ([c for c in toy.cells if c["phase"] == phase] for phase in ("tune", "report"))
    assert toy.cells == tuned + reported and len(tuned) == 8 and len(reported) == 20
    assert {c["seed"] for c in tuned} == {1000} and {c["seed"] for c in reported} == {0, 1, 2, 3, 4}
    assert {(c["arm"], c["labels"]): c["lr"] for c in reported} == {
        ("a", 10): 0.3,
        ("a", 30): 0.1,
        ("b", 10): 0.2,
        ("b", 30): 0.1,
    }
    content = saved(root)
    assert len(content["rows"]) == 28 and content["about"] == "a toy" and content["versions"]["torch"]
    assert all(r["seconds"] >= 0 for r in content["rows"])
    assert records.lookup("01/toy?arm=a&labels=10#accuracy") == pytest.approx(0.32)
    out = capsys.readouterr().out
    assert "toy, tuning: 1/8  a {'score'" in out and "min left" in out
    assert "toy: 28 runs, written to results/" in out and str(root) not in out


def test_a_study_of_16_bits_runs_on_any_processor(toy, monkeypatch, capsys):
    monkeypatch.setattr(emulation, "start", lambda: "products run in float32")
    studies.run("toy")
    assert "products run in float32.\n" in capsys.readouterr().out


def test_reported_rows_choose_nothing(toy, root):
    """Reported rows bear a tempting score; with them in the log a second start must choose as the first did."""
    studies.run("toy")
    first = saved(root)["rows"]
    studies.run("toy")
    assert len(toy.cells) == 28, "all was there"
    assert saved(root)["rows"] == first
    settings = [{"lr": 0.1}, {"lr": 0.3}]
    tempting = [
        row("a", 10, 1000, 0.0, phase="tune", lr=0.1, score=0.1),
        row("a", 10, 1000, 0.0, phase="tune", lr=0.3, score=0.2),
        row("a", 10, 0, 0.0, lr=0.1, score=99.0),
    ]
    assert studies.best(tempting, settings, "a", {"labels": 10}) == {"lr": 0.3}


@pytest.mark.parametrize("stop_at", [2, 8, 27])
def test_after_an_interruption_it_goes_on_where_it_was(toy, root, stop_at):
    toy.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        studies.run("toy")
    assert len(toy.cells) == stop_at and not list(root.glob("results/*/*"))
    studies.run("toy")
    assert len(toy.cells) == 28 and len({json.dumps(c, sort_keys=True) for c in toy.cells}) == 28
    assert len(saved(root)["rows"]) == 28


@pytest.mark.parametrize("torn", [1, 30, -1])
def test_a_last_line_that_a_kill_tore_is_dropped_and_its_cell_runs_again(toy, root, torn):
    """Also where only its line end is missing (-1): the next row must not be written behind it."""
    toy.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        studies.run("toy")
    log = root / "build" / "studies" / "toy.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:torn])
    studies.run("toy")
    assert len(toy.cells) == 29 and toy.cells[4] == toy.cells[5], "the fifth cell ran twice"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == len(saved(root)["rows"]) == 28


def test_a_real_kill_loses_one_cell_at_most(root):
    code = f"""
import os, signal, sys, types
from pathlib import Path
from nbtools import records, studies
records.ROOT = Path({str(root)!r})
ran = []
def run(cell):
    if len(ran) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    ran.append(cell)
    return {{"score": 1.0}}
arms = lambda full: {{"a": [{{"lr": i}} for i in range(9)]}}
studies.known = lambda: {{"toy": studies.Study("01", arms, lambda full: [{{}}], run, "")}}
studies.run("toy")
"""
    script = root / "killed.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=notebooks.ROOT, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert [r["lr"] for r in studies.resume(root / "build" / "studies" / "toy.jsonl")] == [0, 1, 2]


def test_rows_of_an_older_grid_neither_choose_nor_count(toy, root):
    """The log is kept when a grid changes: a rate that is gone must not win, nor stand beside its successor."""
    studies.run("toy")
    toy.rates["a"] = (0.1, 0.29)
    toy.cells.clear()
    studies.run("toy")
    assert [c["lr"] for c in toy.cells if c["phase"] == "tune"] == [0.29, 0.29]
    rows = saved(root)["rows"]
    assert {r["lr"] for r in rows if r["arm"] == "a"} == {0.1, 0.29}
    assert records.lookup("01/toy?arm=a&labels=10#accuracy:n") == 5


def test_rows_of_other_code_run_again(toy, root, monkeypatch, capsys):
    """Resuming with a changed lesson must not set its results beside those of the old one."""
    monkeypatch.setattr(studies.Study, "code", lambda self: "before")
    toy.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        studies.run("toy")
    monkeypatch.setattr(studies.Study, "code", lambda self: "after")
    toy.cells.clear()
    studies.run("toy")
    assert len(toy.cells) == 28 and "5 rows in toy.jsonl are of other code and are run again" in capsys.readouterr().out
    assert saved(root)["code"] == "after" and len(saved(root)["rows"]) == 28


def test_a_study_s_fingerprint_follows_the_lesson_the_loop_and_its_own_functions(monkeypatch):
    lesson, loop = "def full(x):\n    return x", inspect.getsource(studies.train)
    monkeypatch.setattr(studies.notebooks, "source_of", lambda path, *names: lesson)
    study = studies.known()["transfer"]
    first = study.code()
    lesson = 'def full(x):\n    """Words."""\n    return x  # words'
    assert study.code() == first, "words change nothing"
    lesson = "def full(x):\n    return x + 1"
    assert study.code() != first
    lesson = "def full(x):\n    return x"
    assert study.code() == first
    monkeypatch.setattr(studies_01, "_score", lambda cell, model: {"score": 1.0})
    assert study.code() != first, "a helper of run"
    monkeypatch.undo()
    monkeypatch.setattr(studies.notebooks, "source_of", lambda path, *names: lesson)
    real = inspect.getsource
    monkeypatch.setattr(studies.inspect, "getsource", lambda f: loop + "x = 1" if f is studies.train else real(f))
    assert study.code() != first, "the training loop"


def test_a_fingerprint_covers_the_shared_tasks_of_a_lesson_that_uses_them(monkeypatch):
    shared = {"rank": "import tasks\nmodel = tasks.build()", "other": "model = build()"}
    seen = []
    monkeypatch.setattr(studies.notebooks, "source_of", lambda path, *names: shared[names[0]])
    monkeypatch.setattr(
        studies.notebooks, "fingerprint", lambda *sources: seen.append("def finetune(" in "".join(sources))
    )
    for name in shared:
        studies.Study("04", None, None, row, "", (name,)).code()
    assert seen == [True, False]


def test_results_of_other_code_than_the_lesson_now_holds_are_named(toy, root, monkeypatch):
    book = notebooks.find("01")
    assert [*studies.stale(book)] == [], "no results at all"
    monkeypatch.setattr(studies.Study, "code", lambda self: "before")
    studies.run("toy")
    studies.run("toy", full=True)
    assert [*studies.stale(book)] == []
    monkeypatch.setattr(studies.Study, "code", lambda self: "after")
    small, large = studies.stale(book)
    assert small == "01-toy.json was made by other code than this: run `nbtools study toy`"
    assert large == "01-toy-full.json was made by other code than this: run `nbtools study toy --full`"
    assert [*studies.stale(notebooks.find("00"))] == []


def test_other_seeds_the_full_grid_and_a_wrong_name(toy, root):
    studies.run("toy", full=True, seeds=[7, 8])
    assert {c["seed"] for c in toy.cells if c["phase"] == "report"} == {7, 8}
    assert {c["labels"] for c in toy.cells} == {10}
    assert saved(root, "toy-full")["study"] == "toy-full"
    with pytest.raises(NbtoolsError, match="There is no study 'tyo'; there are toy"):
        studies.run("tyo")


def test_the_studies_of_the_course_reach_their_cells():
    """Grids only: settings of an arm share their keys, tuning is never reported, arms name strategies."""
    for name, study in studies.known().items():
        for full in (False, True):
            conditions = study.conditions(full)
            for arm, settings in study.arms(full).items():
                assert settings and len({tuple(s) for s in settings}) == 1, (name, arm)
                assert len({json.dumps(s) for s in settings}) == len(settings), (name, arm)
                assert not {"phase", "arm", "seed"} & {*settings[0], *conditions[0]}
    assert studies.TUNING_SEED not in studies.SEEDS and len(studies.SEEDS) >= 5


# --- the README


MARKERS = "# Course\n\n<!-- report:begin {0} -->\nold\n<!-- report:end {0} -->\n\nbetween\n"


def book(title, minutes, peak, needs=(), level="first steps"):
    front = {"title": title, "level": level, "minutes": minutes, "peak_gb": peak, "needs": list(needs)}
    return v4.writes(v4.new_notebook(metadata={"nbtools": front}))


@pytest.fixture
def house(root, monkeypatch):
    """Two lessons, a study of three arms, the report of a test run, a README with both blocks."""
    for folder in ("notebooks", "build", "results"):
        (root / folder).mkdir()
    (root / "notebooks" / "00_start.ipynb").write_text(
        book("Start", {"cpu": 1.5, "gpu": None}, {"cpu": 2, "gpu": None})
    )
    (root / "notebooks" / "01_tune.ipynb").write_text(
        book("Tune | test", {"cpu": 3, "gpu": 1}, {"cpu": 3, "gpu": 2}, ["lesson 00", "a photo"])
    )
    (root / "README.md").write_text(MARKERS.format("lessons") + MARKERS.format("01/transfer"))
    means = {"scratch": 0.2, "frozen_shuffled": 0.1, "probe_then_tune": 0.7}
    rows = [row(arm, n, s, mean + s / 100) for arm, mean in means.items() for n in (100, 10) for s in range(3)]
    records.save("01", "transfer", [*rows, row("scratch", 10, 1000, 0.9, phase="tune", score=0.9)])
    measure(root, [run("00_start.ipynb", 66, 1.234), run("01_tune.ipynb", 150, 2.5)], when=1_790_000_000)
    return root


def run(name, seconds, peak, failed=(), profile=None):
    return {
        "notebook": name,
        "profile": profile or records.current().name,
        "calibration_s": 0.5,
        "cells": 3,
        "seconds": float(seconds),
        "stated_s": 60,
        "peak_gb": peak,
        "stated_gb": 2,
        "slowest": [1.0, 2],
        "failed": list(failed),
    }


def measure(root, rows, when):
    file = root / "build" / "notebooks.json"
    file.write_text(json.dumps(rows))
    os.utime(file, (when, when))


def history(root):
    return [json.loads(line) for file in root.glob("results/*/history.jsonl") for line in file.read_text().splitlines()]


def lines(root, start):
    return [line for line in (root / "README.md").read_text().splitlines() if line.startswith(start)]


def test_the_map_of_lessons_states_and_measures(house, capsys):
    assert records.report() is None
    assert lines(house, "| Lesson") == [
        "| Lesson | Level | Minutes, CPU | Peak GB, CPU | Minutes, GPU | Peak GB, GPU | Needs |"
    ]
    first, second = lines(house, "| [")
    assert first == "| [00 Start](notebooks/00_start.ipynb) | first steps | 1.5 (1.1) | 2 (1.2) |  |  | nothing |"
    assert second.startswith(r"| [01 Tune \| test](notebooks/01_tune.ipynb) | first steps |")
    assert second.endswith("| 3 (2.5) | 3 (2.5) | 1 | 2 | lesson 00, a photo |")
    assert lines(house, "In brackets: measured on cpu-")[0].endswith(" on 2026-09-21.")
    out = capsys.readouterr().out
    assert "Wrote README.md" in out and "history.jsonl" in out and "Wrote results/figures/transfer.png" in out


def test_the_table_of_the_study_is_percent_with_intervals_and_ends_with_the_control(house):
    records.report()
    half = 100 * 4.303 * 0.01 / math.sqrt(3)
    assert lines(house, "| Arm") == ["| Arm | 10 labels | 100 labels |"]
    assert [line for line in lines(house, "| ") if "±" in line] == [
        f"| scratch | 21.0 ± {half:.1f} | 21.0 ± {half:.1f} |",
        f"| probe then tune | 71.0 ± {half:.1f} | 71.0 ± {half:.1f} |",
        f"| frozen, shuffled | 11.0 ± {half:.1f} | 11.0 ± {half:.1f} |",
    ]
    (source,) = lines(house, "In percent, mean")
    assert "3 seeds" in source and records.slug(records.machine()) in source, "tuning rows do not count"
    assert (house / "results" / "figures" / "transfer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("key", ["wrong", "noise"])
def test_a_column_says_how_many_labels_are_wrong(house, key):
    cases = ((50, 0), (100, 0.3))
    rows = [row("r1", n, s, 0.5 + s / 100, **{key: share}) for n, share in cases for s in range(3)]
    rows += [row("r1", n, 1000, 0.9, "tune", **{key: share}) for n, share in cases]
    records.save("04", "noise", rows)
    head, _, line, *_ = records.study_table("04/noise").splitlines()
    assert head == "| Arm | 50 labels | 100 labels, 30% wrong |" and line.startswith("| r1 | 51.0 ± 2.5 | 51.0 ± 2.5")


def test_noise_that_was_measured_is_no_condition(house):
    """Lesson 01's reports hold accuracy under noise; its tuning rows do not."""
    rows = [row("r1", 10, s, 0.5 + s / 100, noise=0.2 + s / 100) for s in range(3)]
    records.save("01", "noise", [*rows, row("r1", 10, 1000, 0.9, "tune")])
    assert records.study_table("01/noise").splitlines()[2] == "| r1 | 51.0 ± 2.5 |"


def test_a_study_of_losses_has_its_own_table(house):
    rows = [
        {"phase": "report", "arm": arm, "steps": steps, "seed": s, "loss": 1.5 + steps + s / 100}
        for arm in ("lora", "base")
        for steps in (16, 8)
        for s in range(3)
    ]
    records.save("06", "qlora", rows)
    table = records.study_table("06/qlora").splitlines()
    assert table[0] == "| Arm | 8 steps | 16 steps |"
    assert table[2] == "| lora | 9.510 ± 0.025 | 17.510 ± 0.025 |"
    assert table[-1].startswith("Loss in nats, mean and 95 % interval of 3 seeds.")


def test_columns_of_a_study_stand_side_by_side(house):
    rows = [
        {"phase": phase, "arm": arm, "seed": s, "tv": 0.5 + s / 100, "kl": 2.0}
        for phase in ("tune", "report")
        for arm in ("grpo_plain", "ppo")
        for s in range(3)
    ]
    records.save("09", "world", rows)
    readme = house / "README.md"
    readme.write_text("<!-- report:begin 09/world:kl,tv -->\n<!-- report:end 09/world:kl,tv -->\n")
    records.report()
    assert lines(house, "| ")[::2] == ["| Arm | kl | tv |", "| grpo plain | 2.000 ± 0.000 | 0.510 ± 0.025 |"]
    assert "Mean and 95 % interval of 3 seeds. Measured on" in readme.read_text()
    records.save("09", "world", [row for row in rows if row["seed"] == 0])
    assert "\n\nOne run each. Measured on" in records.study_table("09/world", "kl,tv")
    with pytest.raises(NbtoolsError, match="'grpo_plain' have no column 'reward'; they have phase, arm, seed, tv, kl"):
        records.study_table("09/world", "tv,reward")


def test_what_varies_within_an_arm_has_a_row_of_its_own(house):
    rows = [{"phase": "report", "arm": "dpo", "pairs": n, "seed": s, "tv": 1 / n} for n in (2, 4, 8) for s in (0, 1)]
    records.save("10", "world", rows)
    table = records.study_table("10/world", "tv").splitlines()
    assert table[2:5] == [f"| dpo, pairs {n} | {1 / n:.3f} ± 0.000 |" for n in (2, 4, 8)]


def test_what_a_row_lacks_leaves_its_place_empty_and_words_stand_as_they_are(house):
    rows = [{"phase": "report", "arm": "a", "seed": 0, "peer": None, "at": "loss", "error": 0.25, "layers": 6}]
    records.save("14", "plan", rows)
    assert records.study_table("14/plan", "peer,at,error,layers").splitlines()[2] == "| a |  | loss | 0.250 | 6 |"


def test_a_second_report_changes_nothing_and_text_around_the_tables_stays(house, capsys):
    records.report()
    files = [f for f in house.rglob("*") if f.is_file()]
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in files}
    capsys.readouterr()
    records.report()
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in house.rglob("*") if f.is_file()} == before
    assert "Wrote" not in capsys.readouterr().out
    text = (house / "README.md").read_text()
    assert text.count("# Course\n\n<!-- report:begin") == 2 and text.count("<!-- report:end") == 2
    assert text.count("\n\nbetween\n") == 2 and "old" not in text


def test_a_fresh_clone_makes_the_same_tables(house):
    """build/ is not in git: without it the report must not lose what results/ has kept."""
    records.report()
    text = (house / "README.md").read_text()
    (house / "build" / "notebooks.json").unlink()
    records.report()
    assert (house / "README.md").read_text() == text and len(history(house)) == 1


def test_a_table_without_results_stays_as_it_is(house, capsys):
    (house / "results").rename(house / "gone")
    records.report()
    text = (house / "README.md").read_text()
    assert "<!-- report:begin 01/transfer -->\nold\n<!-- report:end 01/transfer -->" in text
    assert not (house / "results" / "figures").exists()
    assert "Nothing new for results/figures/transfer.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "<!-- report:begin lessons -->\n| a |\n",
        MARKERS.format("lesson"),
        "<!-- report:begin lessons -->\n<!-- report:end 01/transfer -->\n",
    ],
)
def test_a_broken_marker_is_an_error_and_the_readme_stays(house, text):
    (house / "README.md").write_text(text)
    with pytest.raises(NbtoolsError, match="report:end marker and the name `lessons` or of a study, such as"):
        records.report()
    assert (house / "README.md").read_text() == text


def test_history_has_a_line_for_each_test_run_and_the_map_shows_the_latest(house):
    records.report()
    measure(house, [run("01_tune.ipynb", 60, 2.9)], when=1_790_000_100)
    records.report()
    records.report()
    old, new = history(house)
    assert old["when"] == "2026-09-21T14:13:20Z" < new["when"]
    assert new["notebooks"] == {"01_tune": {"seconds": 60.0, "peak_gb": 2.9, "units": 120.0}}
    assert new["versions"]["torch"] and "commit" in new and new["profile"] == records.current().name
    first, second = lines(house, "| [")
    assert "1.5 (1.1)" in first and "3 (1.0) | 3 (2.9)" in second, "a run of one notebook keeps the other's number"


def test_history_leaves_out_what_failed_and_what_another_profile_measured(house):
    other = "gpu" if records.current().name == "cpu" else "cpu"
    measure(house, [run("00_start.ipynb", 5, 1, failed=[3]), run("01_tune.ipynb", 5, 1, profile=other)], 1_790_000_200)
    records.report()
    assert history(house) == []


def test_an_older_measurement_is_not_appended(house):
    records.report()
    measure(house, [run("00_start.ipynb", 5, 1)], when=1_780_000_000)
    records.report()
    assert len(history(house)) == 1


def test_one_seed_has_no_interval(house):
    records.save("01", "transfer", [row("scratch", 10, 0, 0.25)])
    records.report()
    assert "| scratch | 25.0 |" in (house / "README.md").read_text()


def test_the_tables_of_the_real_readme_are_what_results_give():
    """Red after a change of results/ or of a front matter: run `nbtools report`."""
    text = (records.ROOT / "README.md").read_text(encoding="utf-8")
    assert records.fill(text) == text
