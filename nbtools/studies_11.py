"""The studies of lesson 11: sampling and loss weights against tuned fixed ones, a loss that is too large, and pairs."""

from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import Study

FIT11 = ("TASKS", "STEPS", "fit", "read", "KINDS")
PAIRS11 = (*FIT11, "cosines")
RATES = tuple({"lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3))
RATINGS = ("movie", "tweets", "amazon", "nyt")
LOUD = {"movie": 100.0}
# weights of ratings, classes and spans
WEIGHTS = ({"rating": 3.0}, {"rating": 0.3}, {"span": 3.0}, {"span": 0.3})


@cache
def _lesson11(*names):
    return SimpleNamespace(**notebooks.definitions("11", *names))


def _quiet(step, steps, **metrics):
    """Report nothing: a study prints one line per run."""


def _skills(lesson, model, names, part):
    return {name: round(lesson.read(model, name, part), 5) for name in names}


def _row(lesson, cell, model, names):
    """Of a tuning run its mean skill on validation texts, of a reported one each task's on test texts, and the mean."""
    found = _skills(lesson, model, names, "val" if cell["phase"] == "tune" else "test")
    mean = round(sum(found.values()) / len(found), 5)
    return {"score": mean} if cell["phase"] == "tune" else {"skill": mean} | found


def methods_run(cell):
    """One model for all tasks by a way to sample and to weigh, or one for some of them with as many texts of each.

    Rows of a single task, and of the four ratings, bear the skill of these; "shuffled": all from permuted targets.
    """
    lesson, arm = _lesson11(*FIT11), cell["arm"]
    if cell["phase"] == "tune" and arm == "shuffled":  # there is one rate
        return {"score": None}
    if arm.startswith("alone ") or arm == "ratings":
        names = RATINGS if arm == "ratings" else (arm.removeprefix("alone "),)
        model, _, _ = lesson.fit("fixed", cell["lr"], cell["seed"], names, tick=_quiet)
        return _row(lesson, cell, model, names)
    method = arm if arm in ("uncertainty", "gradnorm", "pcgrad") else "fixed"
    sampling = arm if arm in ("proportional", "square-root", "annealed") else "equal"
    options = {"alpha": cell["alpha"]} if "alpha" in cell else {}
    if "kinds" in cell:
        options["weights"] = {name: cell["kinds"].get(lesson.KINDS[name], 1.0) for name in lesson.TASKS}
    shuffled = lesson.TASKS if arm == "shuffled" else ()
    model, weighting, _ = lesson.fit(
        method, cell["lr"], cell["seed"], sampling=sampling, shuffled=shuffled, tick=_quiet, **options
    )
    return _row(lesson, cell, model, lesson.TASKS) | _weights(weighting)


def _weights(weighting):
    return {f"weight {name}": round(weight, 4) for name, weight in weighting.weights.items()}


def loud_run(cell):
    """All tasks, with the loss of one a hundred times as large; "tuned": with a fixed weight for it."""
    lesson, arm = _lesson11(*FIT11), cell["arm"]
    method = arm.split()[0] if arm.split()[0] in ("uncertainty", "gradnorm", "pcgrad") else "fixed"
    options = {name: cell[name] for name in ("alpha", "rate", "start") if name in cell}
    if "loud" in cell:
        options["weights"] = dict.fromkeys(LOUD, cell["loud"])
    model, weighting, _ = lesson.fit(method, cell["lr"], cell["seed"], loud=LOUD, tick=_quiet, **options)
    return _row(lesson, cell, model, lesson.TASKS) | _weights(weighting)


def pairs_run(cell):
    """Two tasks, "a+b", or one; "a~b": a learns from permuted targets. "all": the cosines while all tasks are learned.

    Skills on test texts; a cosine's name is "step: a, b".
    """
    lesson, arm = _lesson11(*PAIRS11), cell["arm"]
    if cell["phase"] == "tune":  # there is one rate
        return {"score": None}
    if arm == "all":
        found, steps = {}, {lesson.STEPS // 6: "early", lesson.STEPS * 2 // 3: "late"}

        def look(step, model):
            if step in steps:
                for one, row in zip(lesson.TASKS, lesson.cosines(model).tolist(), strict=True):
                    pairs = zip(lesson.TASKS, row, strict=True)
                    found.update({f"{steps[step]}: {one}, {two}": round(value, 4) for two, value in pairs})

        lesson.fit("fixed", cell["lr"], cell["seed"], tick=_quiet, look=look)
        return found
    names = tuple(arm.replace("~", "+").split("+"))
    shuffled = names[:1] if "~" in arm else ()
    model, _, _ = lesson.fit("fixed", cell["lr"], cell["seed"], names, shuffled=shuffled, tick=_quiet)
    return _skills(lesson, model, names[len(shuffled) :], "test")


def methods_arms(full):
    """Four rates for every arm; more settings for tuned fixed weights, of which equal ones are one, and for GradNorm.

    Without `full` tuned weights take the two middle rates; GradNorm takes all but the lowest.
    """
    rates = RATES if full else RATES[1:3]
    arms = {arm: list(RATES) for arm in ("equal", "uncertainty")}
    arms["tuned"] = [rate | {"kinds": kinds} for kinds in ({}, *WEIGHTS) for rate in rates]
    arms["gradnorm"] = [rate | {"alpha": alpha} for alpha in (0.5, 1.5) for rate in RATES[1:]]
    return arms | {f"alone {name}": list(RATES) for name in _lesson11(*FIT11).TASKS}


def more_arms(full):
    """Four rates for PCGrad, each way to sample and the ratings without the rest; one for the control."""
    rates = dict.fromkeys(("pcgrad", "proportional", "square-root", "annealed", "ratings"), list(RATES))
    return rates | {"shuffled": [{"lr": 1e-3}]}


def loud_arms(full):
    """The middle rates for every arm, and each method's own setting."""
    arms = {"equal": [{}], "tuned": [{"loud": weight} for weight in (0.1, 0.01, 0.001, 0.0001)]}
    arms["uncertainty"] = [{"rate": 0.1}, {"rate": 0.3}]
    arms["uncertainty from loss"] = [{"rate": 0.1, "start": "loss"}]
    arms |= {"gradnorm": [{"alpha": alpha} for alpha in (0.5, 1.5)], "pcgrad": [{}]}
    rates = RATES if full else RATES[1:3]
    return {arm: [setting | rate for setting in settings for rate in rates] for arm, settings in arms.items()}


def pairs_arms(full):
    """All tasks alone, all pairs, a helper with permuted targets for each task, and the cosines."""
    names = _lesson11(*FIT11).TASKS
    pairs = [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    control = [f"movie~{name}" for name in names if name != "movie"] + ["tweets~movie"]
    return dict.fromkeys(("all", *names, *pairs, *control), [{"lr": 1e-3}])


STUDIES = {
    "multi-task": Study(
        "11",
        methods_arms,
        lambda full: [{}],
        methods_run,
        "skill of MiniLM on seven tasks by the way losses are weighted, and of seven models",
        FIT11,
    ),
    "multi-task-more": Study(
        "11",
        more_arms,
        lambda full: [{}],
        methods_run,
        "skill of MiniLM on seven tasks with PCGrad, by the way tasks are sampled, and with permuted targets",
        FIT11,
    ),
    "multi-task-loud": Study(
        "11",
        loud_arms,
        lambda full: [{}],
        loud_run,
        "skill on seven tasks where one loss is a hundred times as large, by the way losses are weighted",
        FIT11,
    ),
    "multi-task-pairs": Study(
        "11",
        pairs_arms,
        lambda full: [{}],
        pairs_run,
        "skill of tasks alone and in pairs, a helper with permuted targets, and the cosines of the tasks' gradients",
        PAIRS11,
    ),
}
