"""The exercise checks: what they say and return, and that every one catches its wrong answers and lets right ones pass.

tests/wrong_answers/<lesson>_<exercise>.py holds plain functions: `wrong_*`, whose docstring says what the mistake is,
and `right_*`, a right answer written differently from the notebook's.
"""

import functools
import importlib.util
import inspect
import random
from pathlib import Path

import numpy as np
import pytest

from nbtools import checks, notebooks
from nbtools.errors import NbtoolsError

ANSWERS = Path(__file__).parent / "wrong_answers"
TASKS = dict(checks.exercises())


# --- every exercise of the course


@functools.cache
def answers(path):
    """{name: function} of a file of answers."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: fn for name, fn in vars(module).items() if name.startswith(("wrong_", "right_"))}


def judge(task, path):
    """({wrong answer: caught}, {right answer: its problems}) for the answers in a file."""
    found = {name: checks.examine(task, fn) for name, fn in answers(path).items()}
    wrong = {name: not o.passed and not o.undone for name, o in found.items() if name.startswith("wrong_")}
    right = {name: o.problems for name, o in found.items() if name.startswith("right_")}
    return wrong, right


def assert_answers(task, path):
    """At least 5 wrong answers, each with its docstring and caught, and at least one right answer that passes."""
    assert path.is_file(), f"{task.name} has no wrong answers: write {path}"
    wrong, right = judge(task, path)
    assert len(wrong) >= 5, f"{path.name} has {len(wrong)} wrong answers, fewer than 5"
    assert all(wrong.values()), f"not caught: {[name for name, caught in wrong.items() if not caught]}"
    assert right and not any(right.values()), f"right answers that do not pass: {right}"
    assert all(fn.__doc__ for name, fn in answers(path).items() if name in wrong), "each wrong_* needs a docstring"


@pytest.mark.parametrize("name", TASKS)
def test_wrong_answers_are_caught_and_right_ones_pass(name):
    assert_answers(TASKS[name], ANSWERS / f"{TASKS[name].lesson}_{name}.py")


@pytest.mark.parametrize("name", TASKS)
def test_the_notebooks_own_solution_and_the_reference_pass(name):
    task = TASKS[name]
    solution = notebooks.definitions(notebooks.find(task.lesson), name)[name]
    assert checks.examine(task, solution).problems == [] == checks.examine(task, task.reference).problems


def test_every_file_of_answers_belongs_to_an_exercise(capsys):
    """Also prints the table of exercises, wrong answers and how many are caught."""
    known = {f"{task.lesson}_{name}": task for name, task in TASKS.items()}
    files = sorted(ANSWERS.glob("*.py"))
    assert {path.stem for path in files} <= set(known)
    caught = {path.stem: judge(known[path.stem], path)[0].values() for path in files}
    rows = [[name, len(answers), sum(answers)] for name, answers in caught.items()]
    with capsys.disabled():
        print("\n" + notebooks.aligned([["exercise", "wrong answers", "caught"], *rows]))


# --- the framework, on an exercise made here


@pytest.fixture
def task(monkeypatch):
    """A registry of its own with the exercise `double`."""
    monkeypatch.setattr(checks, "REGISTRY", {})
    monkeypatch.delenv("NBTOOLS_STRICT", raising=False)

    @checks.exercise("double", reference=lambda x: 2 * x, minutes=3)
    def check_double(fn):
        yield "twice two must be four" if fn(2) != 4 else ""
        yield "twice minus one must be minus two" if fn(-1) != -2 else None
        x = random.random()
        yield f"twice {x} is wrong" if fn(x) != x + x else None

    return checks.REGISTRY["double"]


def test_a_right_answer_passes_and_is_returned(task, capsys):
    def double(x):
        return x + x

    assert checks.check(double) is double
    assert capsys.readouterr().out == "double: passed (3 properties)\n"


def test_a_wrong_answer_is_told_in_words_and_replaced(task, capsys):
    def double(x):
        return 4

    assert checks.check(double) is task.reference
    first = capsys.readouterr().out
    problems = "  - twice minus one must be minus two\n  - twice 0.8"
    assert first.startswith(f"double: not yet, 2 of 3 properties fail\n{problems}")
    assert first.endswith("\nThe notebook goes on with our double.\n")
    checks.check(double)
    assert capsys.readouterr().out == first  # the same random numbers


def test_an_undone_exercise_says_so(task, capsys):
    def double(x):
        raise NotImplementedError("to do")

    assert checks.check(double) is task.reference
    assert capsys.readouterr().out == "double: to do (about 3 minutes)\nThe notebook goes on with our double.\n"


def test_an_exception_is_told_with_the_learners_line(task, capsys):
    def double(x):
        return [x][x]

    line = inspect.getsourcelines(double)[1] + 1
    checks.check(double)
    out = capsys.readouterr().out
    assert f"double raised IndexError: list index out of range in line {line}: return [x][x]\n" in out

    def double(x):
        raise NotImplementedError("no such operator")

    checks.check(double)
    assert "raised NotImplementedError: no such operator" in capsys.readouterr().out

    def double():
        return None

    checks.check(double)
    assert "double could not be called, or what it returned could not be used: TypeError" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["1", "true"])
def test_strict_raises_for_what_fails_and_what_is_undone(task, monkeypatch, value):
    monkeypatch.setenv("NBTOOLS_STRICT", value)

    def double(x):
        raise NotImplementedError("to do")

    with pytest.raises(checks.ExerciseError, match="^double: to do") as caught:
        checks.check(double)
    assert isinstance(caught.value, AssertionError) and isinstance(caught.value, NbtoolsError)

    def double(x):
        return 4

    with pytest.raises(checks.ExerciseError, match="twice minus one"):
        checks.check(double)
    assert checks.check(task_double := rename(lambda x: 2 * x, "double")) is task_double


def rename(fn, name):
    fn.__name__ = name
    return fn


@pytest.mark.parametrize("value", ["", "0"])
def test_not_strict(task, monkeypatch, value):
    monkeypatch.setenv("NBTOOLS_STRICT", value)
    assert checks.check(rename(lambda x: 4, "double")) is task.reference


def test_an_unknown_exercise_lists_those_there_are(task, monkeypatch):
    monkeypatch.setattr(checks.pkgutil, "iter_modules", lambda path: [])
    for fn in (lambda x: x, 3):
        with pytest.raises(NbtoolsError, match="no exercise is called .*; there are double"):
            checks.check(fn)


def test_lessons_register_by_their_modules_name(task, monkeypatch, tmp_path):
    import nbtools

    text = "@exercise('triple', reference=None, minutes=1)\ndef check_triple(fn):\n    yield ''\n"
    (tmp_path / "checks_77.py").write_text(f"from nbtools.checks import exercise\n{text}")
    (tmp_path / "other_77.py").write_text("raise SystemExit")
    monkeypatch.setattr(nbtools, "__path__", [str(tmp_path)])
    assert checks.exercises()["triple"].lesson == "77"


def test_a_check_leaves_random_numbers_alone(task):
    import torch

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 - the global state is the point

    def seed():
        random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002

    seen = []
    double = rename(lambda x: (seen.append(draw()), 2 * x)[1], "double")
    seed()
    expected = draw()
    seed()
    checks.check(double)
    assert draw() == expected
    first, seen[:] = list(seen), []
    checks.check(double)
    assert seen == first and first[0] != expected


def write_answers(path, wrong, right="return 2 * x", doc='"A mistake."'):
    text = "".join(f"def wrong_{i}(x):\n    {doc}\n    {body}\n\n\n" for i, body in enumerate(wrong))
    path.write_text(text + f"def right_1(x):\n    {right}\n")
    return path


WRONG = ["return 4", "return x", "return -2 * x", "return None", "return x[0]"]


def test_the_judge_accepts_good_answers(task, tmp_path):
    assert_answers(task, write_answers(tmp_path / "a.py", WRONG))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wrong": WRONG[1:]}, "fewer than 5"),
        ({"wrong": [*WRONG, "return x * 2"]}, r"not caught: \['wrong_5'\]"),
        ({"wrong": [*WRONG, "raise NotImplementedError('to do')"]}, r"not caught: \['wrong_5'\]"),
        ({"right": "return 4"}, "right answers that do not pass"),
        ({"doc": "pass"}, "needs a docstring"),
    ],
)
def test_the_judge_refuses_bad_answers(task, tmp_path, change, sentence):
    path = write_answers(tmp_path / "a.py", **({"wrong": WRONG} | change))
    with pytest.raises(AssertionError, match=sentence):
        assert_answers(task, path)


def test_the_judge_wants_a_file(task, tmp_path):
    with pytest.raises(AssertionError, match="has no wrong answers"):
        assert_answers(task, tmp_path / "none.py")
