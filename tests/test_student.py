"""The student copy of a lesson: it runs to its end and says "to do"; strict, it stops at the first exercise."""

import nbformat
import pytest

from nbtools import notebooks
from nbtools.errors import NbtoolsError

LESSONS = [
    path.stem[:2]
    for path in sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))
    if notebooks.read(path).metadata["nbtools"]["exercises"]
]


WHOLE = 2  # minutes: a longer lesson is run here without its trainings, for the stage `notebooks` runs them all


def exercises_alone(copy):
    """Take all cells out of a copy that its exercises do not need."""
    nb = notebooks.read(copy)
    needed = {statement.text for statement in notebooks._needed(copy, nb.metadata["nbtools"]["exercises"])}
    nb.cells = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source in needed]
    nbformat.write(nb, copy)


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_undone_copy_runs_to_its_end_and_says_what_is_to_do(lesson, tmp_path):
    copy = notebooks.student(lesson, out=tmp_path / "student")
    if notebooks.read(copy).metadata["nbtools"]["minutes"]["cpu"] > WHOLE:
        exercises_alone(copy)
    executed = nbformat.read(notebooks.run(copy, out=tmp_path / "runs"), as_version=4)
    printed = "".join(o.get("text", "") for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs)
    for name in executed.metadata["nbtools"]["exercises"]:
        assert f"{name}: to do" in printed
        assert f"The notebook goes on with our {name}." in printed


@pytest.mark.parametrize("lesson", LESSONS)
def test_strict_stops_at_the_first_undone_exercise(lesson, tmp_path, monkeypatch):
    monkeypatch.setenv("NBTOOLS_STRICT", "1")
    copy = notebooks.student(lesson, out=tmp_path / "student")
    if notebooks.read(copy).metadata["nbtools"]["minutes"]["cpu"] > WHOLE:
        exercises_alone(copy)
    first = notebooks.read(copy).metadata["nbtools"]["exercises"][0]
    with pytest.raises(NbtoolsError, match=f"{first}: to do"):
        notebooks.run(copy, out=tmp_path / "runs")
