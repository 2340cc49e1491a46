"""The student copy of a lesson: it runs to its end and says "to do"; strict, it stops at the first exercise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbtools import notebooks
from nbtools.errors import NbtoolsError

LESSONS = [
    path.stem[:2]
    for path in sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))
    if notebooks.read(path).metadata["nbtools"]["exercises"]
]
# The stage `notebooks` runs all trainings, so one lesson is whole here, in a kernel; of the others what the exercises
# need runs, in one process. How a strict copy stops is the same code for all: one lesson shows it, in a kernel too.
WHOLE, STRICT = "12", "14"


def exercises_alone(copy):
    """Take all cells out of a copy that its exercises do not need."""
    nb = notebooks.read(copy)
    needed = {statement.text for statement in notebooks._needed(copy, nb.metadata["nbtools"]["exercises"])}
    nb.cells = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source in needed]
    nbformat.write(nb, copy)


def says_what_is_to_do(copy, printed):
    for name in notebooks.read(copy).metadata["nbtools"]["exercises"]:
        assert f"{name}: to do" in printed
        assert f"The notebook goes on with our {name}." in printed


@pytest.mark.alone
def test_an_undone_copy_runs_to_its_end_and_says_what_is_to_do(tmp_path):
    copy = notebooks.student(WHOLE, out=tmp_path / "student")
    executed = nbformat.read(notebooks.run(copy, out=tmp_path / "runs"), as_version=4)
    printed = "".join(o.get("text", "") for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs)
    says_what_is_to_do(copy, printed)


@pytest.fixture(scope="module")
def undone(tmp_path_factory):
    """{lesson: (copy, {"printed", "error"})} of all lessons' exercises, undone."""
    folder = tmp_path_factory.mktemp("student")
    copies = {lesson: notebooks.student(lesson, out=folder) for lesson in LESSONS}
    for copy in copies.values():
        exercises_alone(copy)
    command = [sys.executable, str(Path(__file__).with_name("undone.py")), *map(str, copies.values())]
    free = {key: value for key, value in os.environ.items() if key != "NBTOOLS_STRICT"}
    told = subprocess.run(command, cwd=notebooks.ROOT, env=free, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    rows = [json.loads(line) for line in told.stdout.splitlines() if line.startswith('{"copy"')]
    return {lesson: (copy, row) for (lesson, copy), row in zip(copies.items(), rows, strict=True)}


@pytest.mark.parametrize("lesson", LESSONS)
def test_what_an_undone_exercise_needs_runs_on_our_answer(lesson, undone):
    copy, row = undone[lesson]
    assert not row["error"], row["error"]
    says_what_is_to_do(copy, row["printed"])


@pytest.mark.alone
def test_strict_stops_at_the_first_undone_exercise(tmp_path, monkeypatch):
    monkeypatch.setenv("NBTOOLS_STRICT", "1")
    copy = notebooks.student(STRICT, out=tmp_path / "student")
    exercises_alone(copy)
    first = notebooks.read(copy).metadata["nbtools"]["exercises"][0]
    with pytest.raises(NbtoolsError, match=f"{first}: to do"):
        notebooks.run(copy, out=tmp_path / "runs")
