"""The studies of lesson 12: orders of the training data, difficulty, and a mixture of two sources.

All are for 20 seeds: `nbtools study curriculum --seeds $(seq 0 19)`; curriculum-top for 10.
"""

from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import TUNING_SEED, Study

ORDERS12 = ("ARMS", "DATA", "FULL", "SHORT", "accuracy", "draw", "losses", "measured", "right", "run_arm")
MEASURES12 = ("DATA", "MEASURES", "again", "draw", "hardest_wrong", "logistic", "measured", "spearman", "states")
MIXTURE12 = ("DATA", "FULL", "SHORT", "accuracy", "fit", "mixture", "right")
NOISES = (0.0, 0.2, 0.4)
DRAWS = 5  # training draws that a rate is chosen on; never reported


@cache
def _lesson12(*names):
    return SimpleNamespace(**notebooks.definitions("12", *names))


def _rounded(row):
    return {name: round(value, 5) for name, value in row.items()}


def _tested(lesson, model, opened="head"):
    """Test accuracy, and the same on each tenth of the test sentences."""
    hits = lesson.right(model, lesson.DATA.test, opened).double()
    tenths = [round(part.mean().item(), 5) for part in hits.tensor_split(10)]
    return {"accuracy": round(hits.mean().item(), 5), "tenths": tenths}


def _memorised(lesson, model, task, opened="head"):
    """The share of the wrong labels that the model has learned, which is an error each; without any, nothing."""
    if not task.wrong.any():
        return {}
    found = lesson.losses(model, task.index[task.wrong], task.labels[task.wrong], opened)
    return {"memorised": (found < 0.6931).double().mean().item()}


@cache
def _hard(measure, noise, seed):
    lesson = _lesson12(*ORDERS12)
    return lesson.measured(measure, lesson.draw(noise, seed), seed)


def _rate(cell, slow, fast):
    """The rate of a cell: so many times that of long or of short runs."""
    return cell["times"] * (slow if cell["steps"] >= 100 else fast)


def _order(cell, arm, opened="head", draws=DRAWS, measure="loss", rates=(3e-4, 3e-3), **options):
    """One arm: mean accuracy of some draws on the validation sentences while tuning, else that on the test ones."""
    lesson, lr = _lesson12(*ORDERS12), _rate(cell, *rates)

    def run(seed):
        task = lesson.draw(cell["noise"], seed)
        hard = (
            _hard(measure, cell["noise"], seed) if arm not in ("iid", "passes", "random paced", "self-paced") else None
        )
        return task, *lesson.run_arm(arm, task, cell["steps"], lr, seed, opened, hard=hard, **options)

    if cell["phase"] == "tune":
        models = [run(seed)[1] for seed in range(TUNING_SEED, TUNING_SEED + draws)]
        score = sum(lesson.accuracy(model, lesson.DATA.val, opened) for model in models) / draws
        return _rounded({"rate": lr, "score": score})
    task, model, out = run(cell["seed"])
    row = {"rate": lr} | _memorised(lesson, model, task, opened) | (out if task.wrong.any() else {})
    return _rounded(row) | _tested(lesson, model, opened)


def order_run(cell):
    """One arm of ARMS; precision and recall: of whom it left out after 0.4 of the steps."""
    return _order(cell, cell["arm"])


VARIANTS = {
    "spread": {"arm": "easy first", "measure": "spread"},
    "length": {"arm": "easy first", "measure": "length"},
    "steps": {"arm": "easy first", "measure": "steps"},
    "root": {"arm": "easy first", "power": 0.5},
    "square": {"arm": "easy first", "power": 2.0},
    "jump": {"arm": "easy first", "power": float("inf")},
    "easiest part": {"arm": "easiest part"},
    "self-paced, cold": {"arm": "self-paced", "warm": 0.0},
}


def variant_run(cell):
    """Easy first by other measures and pacings, the easiest 60 % alone, self-paced from the first step on."""
    return _order(cell, **VARIANTS[cell["arm"]])


def control_run(cell):
    """Orders where one half of the labels is wrong, so that nothing can be learned."""
    return _order(cell, cell["arm"])


def top_run(cell):
    """As `order_run`, with MiniLM's last layer trained too."""
    return _order(cell, cell["arm"], opened="top", draws=1, rates=(1e-4, 1e-4))


def measures_run(cell):
    """Rank correlations of the four measures, each with itself, and how many of the hardest have wrong labels.

    Also the test accuracy of the reference model, logistic regression on all given labels.
    """
    if cell["phase"] == "tune":
        return {"score": 0.0}
    lesson = _lesson12(*MEASURES12)
    task = lesson.draw(cell["noise"], cell["seed"])
    twice = {measure: lesson.again(measure, task, cell["seed"]) for measure in lesson.MEASURES if measure != "length"}
    found = {m: twice[m][0] if m in ("loss", "steps") else lesson.measured(m, task) for m in lesson.MEASURES}
    row = {f"{m} itself": lesson.spearman(*pair) for m, pair in twice.items()}
    names = list(found)
    for i, one in enumerate(names):
        row |= {f"{one} {two}": lesson.spearman(found[one], found[two]) for two in names[i + 1 :]}
    if cell["noise"]:
        row |= {f"{m} wrong": lesson.hardest_wrong(found[m], task.wrong) for m in names}
    test, vectors = lesson.DATA.test, lesson.states().mean
    guess = lesson.logistic(vectors[task.index], task.labels)(vectors[test]).argmax(1)
    row["reference accuracy"] = (guess == lesson.DATA.labels[test]).double().mean().item()
    return _rounded(row)


def mixture_run(cell):
    """One mixture of a clean and a noisy source: tuned on validation sentences, read on test ones."""
    lesson, lr = _lesson12(*MIXTURE12), _rate(cell, 3e-4, 3e-3)

    def run(seed):
        task, weights_at = lesson.mixture(cell["arm"], cell["steps"], seed=seed)
        return lesson.fit(weights_at, task, cell["steps"], lr, seed)

    if cell["phase"] == "tune":
        models = [run(seed) for seed in range(TUNING_SEED, TUNING_SEED + DRAWS)]
        return _rounded({"rate": lr, "score": sum(lesson.accuracy(model, lesson.DATA.val) for model in models) / DRAWS})
    return {"rate": lr} | _tested(lesson, run(cell["seed"]))


def _times(*values):
    return [{"times": times} for times in values]


RATES = _times(0.3, 1.0, 3.0, 10.0, 30.0)  # of 3e-4 in long runs, of 3e-3 in short ones


def _conditions(*noises):
    lesson = _lesson12(*ORDERS12)
    return [{"noise": noise, "steps": steps} for steps in (lesson.FULL, lesson.SHORT) for noise in noises]


TOP = ("iid", "same visits", "easy first")

STUDIES = {
    "curriculum": Study(
        "12",
        lambda full: dict.fromkeys(_lesson12(*ORDERS12).ARMS, RATES),
        lambda full: _conditions(*NOISES),
        order_run,
        "test accuracy of a head over MiniLM from 600 film sentences by their order, share of wrong labels and steps",
        ORDERS12,
    ),
    "curriculum-more": Study(
        "12",
        lambda full: dict.fromkeys(VARIANTS, RATES),
        lambda full: _conditions(0.0, 0.4),
        variant_run,
        "easy first by other measures and pacings, the easiest 60 % alone, and self-paced without a warm start",
        ORDERS12,
    ),
    "curriculum-control": Study(
        "12",
        lambda full: dict.fromkeys(("iid", "easy first", "self-paced"), _times(3.0)),
        lambda full: [{"noise": 0.5, "steps": _lesson12(*ORDERS12).FULL}],
        control_run,
        "the orders where one half of the labels is wrong, so that there is nothing to learn",
        ORDERS12,
    ),
    "curriculum-measures": Study(
        "12",
        lambda full: {"measures": [{}]},
        lambda full: [{"noise": noise} for noise in NOISES],
        measures_run,
        "rank correlations of four measures of difficulty, each with itself, and wrong labels among the hardest",
        MEASURES12,
    ),
    "curriculum-mixture": Study(
        "12",
        lambda full: dict.fromkeys(("mixed", "quality first", "quality last", "clean alone", "as it comes"), RATES),
        lambda full: [{"steps": steps} for steps in (_lesson12(*MIXTURE12).FULL, _lesson12(*MIXTURE12).SHORT)],
        mixture_run,
        "150 clean and 450 sentences with 40 % wrong labels, drawn in different orders over the training",
        MIXTURE12,
    ),
    "curriculum-top": Study(
        "12",
        lambda full: dict.fromkeys(TOP, RATES if full else _times(1.0, 3.0)),
        lambda full: [{"noise": 0.4, "steps": 100}, {"noise": 0.0, "steps": 10}],
        top_run,
        "as curriculum with MiniLM's last layer trained too: 100 steps on labels 40 % wrong, 10 on clean ones",
        ORDERS12,
    ),
}
