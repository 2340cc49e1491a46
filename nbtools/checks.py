"""The exercise checks: `mixup = check(mixup)` under an exercise says in words what fails, and lets the notebook go on.

Design:
- A lesson's checks are in nbtools/checks_NN.py: `@exercise("mixup", reference=..., minutes=5)` over a generator that
  gets the learner's function. Each `yield` is one property: falsy if it holds, else a sentence that says what is wrong.
- A check tests properties and independent ground truth; the reference only lets an unfinished notebook run to its end.
- An exercise not begun raises `NotImplementedError("to do")`; any other exception becomes a sentence with its line.
- NBTOOLS_STRICT=1 (for tests and graders) raises ExerciseError instead of going on.
- Checks draw the same random numbers each time and leave the notebook's own untouched.
"""

import contextlib
import importlib
import linecache
import os
import pkgutil
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from nbtools.errors import NbtoolsError

REGISTRY = {}


class ExerciseError(AssertionError, NbtoolsError):
    """An exercise is undone or fails, and NBTOOLS_STRICT is set."""


@dataclass(frozen=True)
class Exercise:
    """An exercise: name, generator that checks it, reference to go on with, minutes it takes, lesson."""

    name: str
    check: Callable
    reference: Callable
    minutes: int
    lesson: str


@dataclass
class Outcome:
    """What a check found: undone, or the number of properties looked at and a sentence for each one that fails."""

    undone: bool = False
    properties: int = 0
    problems: list = field(default_factory=list)

    @property
    def passed(self):
        return not self.undone and not self.problems


def exercise(name, *, reference, minutes):
    """Register the decorated generator as the check of exercise `name`; its lesson is the end of its module's name."""

    def register(check_function):
        lesson = check_function.__module__.rpartition("_")[2]
        REGISTRY[name] = Exercise(name, check_function, reference, minutes, lesson)
        return check_function

    return register


def exercises():
    """{name: Exercise} of all lessons; imports every nbtools/checks_NN.py."""
    import nbtools

    for module in pkgutil.iter_modules(nbtools.__path__):
        if module.name.startswith("checks_"):
            importlib.import_module(f"nbtools.{module.name}")
    return REGISTRY


def check(fn):
    """Check a learner's function, print what was found; return `fn` if it passes, else the reference to go on with."""
    name = getattr(fn, "__name__", repr(fn))
    known = REGISTRY if name in REGISTRY else exercises()
    if name not in known:
        raise NbtoolsError(f"no exercise is called {name!r}; there are {', '.join(sorted(known)) or 'none'}.")
    outcome = examine(known[name], fn)
    words = report(known[name], outcome)
    if not outcome.passed and os.environ.get("NBTOOLS_STRICT", "0") not in ("", "0"):
        raise ExerciseError(words)
    print(words)
    if outcome.passed:
        return fn
    print(f"The notebook goes on with our {name}.")
    return known[name].reference


def report(task, outcome):
    """The outcome in words: one line, and one more for each problem."""
    if outcome.undone:
        return f"{task.name}: to do (about {task.minutes} minutes)"
    if outcome.passed:
        return f"{task.name}: passed ({outcome.properties} properties)"
    count = f"{len(outcome.problems)} of {outcome.properties}"
    return "\n".join([f"{task.name}: not yet, {count} properties fail", *(f"  - {p}" for p in outcome.problems)])


def examine(task, fn):
    """Run the check of an exercise over `fn` and return the Outcome; no exception of the learner's code escapes."""
    outcome = Outcome()
    try:
        with _own_random_numbers():
            for problem in task.check(fn):
                outcome.properties += 1
                outcome.problems += [problem] if problem else []
    except Exception as error:
        if isinstance(error, NotImplementedError) and str(error) == "to do":
            return Outcome(undone=True)
        outcome.properties += 1
        outcome.problems.append(_in_words(task.name, fn, error))
    return outcome


def _in_words(name, fn, error):
    """An exception as a sentence: its type and message, and the last line of the learner's own code on its way."""
    what = f"{type(error).__name__}: {error}"
    own = getattr(getattr(fn, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__)[2:]  # the first two are `examine` and the check
    lines = [frame.lineno for frame in frames if frame.filename == own]
    if not lines:
        return f"{name} could not be called, or what it returned could not be used: {what}"
    return f"{name} raised {what} in line {lines[-1]}: {linecache.getline(own, lines[-1]).strip()}"


@contextlib.contextmanager
def _own_random_numbers():
    """Seed Python, numpy and torch (those that are loaded) for the block and put their states back after it."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng() if torch else contextlib.nullcontext():
        try:
            random.seed(0)
            if numpy:
                numpy.random.seed(0)
            if torch:
                torch.manual_seed(0)
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
