"""The studies of lesson 02: a ladder of ways to fine-tune, three heads with their mistakes, and the cheap rivals."""

from functools import cache
from types import SimpleNamespace

from . import notebooks
from .studies import Study

LADDER02 = ("FILMS", "STEPS", "LADDER", "draw", "finetune", "logits_of", "scores")
TAGS02 = ("tag_arm",)
BACK02 = ("FILMS", "back_arm", "logits_of", "scores")
FEW02 = ("FILMS", "FEW", "few_arm", "logits_of", "scores")
RIVALS02 = ("rival",)
ANSWERS02 = ("qa_arm",)


@cache
def _lesson02(*names):
    return SimpleNamespace(**notebooks.definitions("02", *names))


def _quiet(step, steps, **metrics):
    """Report nothing: a study prints one line per run."""


def _rounded(row):
    return {name: round(value, 5) for name, value in row.items()}


def _films_row(lesson, cell, model):
    """Of a tuning run the validation loss, turned round; of a reported one the test numbers."""
    part = lesson.FILMS.val if cell["phase"] == "tune" else lesson.FILMS.test
    texts, labels = lesson.FILMS.texts[part], lesson.FILMS.labels[part]
    found = lesson.scores(lesson.logits_of(model, texts), labels)
    if cell["phase"] == "tune":
        return {"score": -found["loss"], "accuracy": found["accuracy"]}
    if cell["arm"] == "full":
        blind = lesson.scores(lesson.logits_of(model, texts, mask=False), labels)
        found["accuracy without mask"] = blind["accuracy"]
    return _rounded(found)


def ladder_run(cell):
    """One rung on one draw of labels; an arm that ends in _shuffled learns from permuted labels."""
    lesson, arm = _lesson02(*LADDER02), cell["arm"].removesuffix("_shuffled")
    texts, labels = lesson.draw(cell["labels"], cell["seed"], shuffled=cell["arm"].endswith("_shuffled"))
    model, _ = lesson.finetune(arm, texts, labels, cell["lr"], lesson.STEPS[cell["labels"]], cell["seed"], tick=_quiet)
    return _films_row(lesson, cell, model)


def ladder_arms(full):
    """Rates a factor of three apart, higher where lower layers get a part of them; the control takes one."""
    grids = {"head": (3e-3, 1e-2, 3e-2)} | dict.fromkeys(("full", "layer-wise decay"), (1e-5, 3e-5, 1e-4, 3e-4))
    grids |= dict.fromkeys(("discriminative", "ulmfit"), (3e-5, 1e-4, 3e-4, 1e-3))
    arms = {arm: [{"lr": lr} for lr in grids.get(arm, (3e-5, 1e-4, 3e-4))] for arm in _lesson02(*LADDER02).LADDER}
    return arms | {"full_shuffled": [{"lr": 3e-5}]}


def tags_run(cell):
    """The tagger with one way to label tokens; tuned by span F1 on unseen names, read on unseen names and patterns."""
    arm, part = cell["arm"], "val" if cell["phase"] == "tune" else "test"
    how, shuffled = arm.removesuffix("_shuffled"), arm.endswith("_shuffled")
    _, found = _lesson02(*TAGS02).tag_arm(how, cell["lr"], cell["seed"], shuffled, part, tick=_quiet)
    return _rounded(found | ({"score": found["f1"]} if part == "val" else {}))


def tags_arms(full):
    rates = [{"lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3)]
    return {"first": rates, "every": rates, "inside": rates, "first_shuffled": [{"lr": 3e-4}]}


def few_run(cell):
    """Full fine-tuning from few labels: plain, augmented, or after masked-language modelling (one run a corpus)."""
    lesson = _lesson02(*FEW02)
    model = lesson.few_arm(cell["arm"], cell["labels"], cell["lr"], cell["seed"], tick=_quiet)
    return _films_row(lesson, cell, model)


def back_run(cell):
    """As few_run, from back-translated copies."""
    lesson = _lesson02(*BACK02)
    return _films_row(lesson, cell, lesson.back_arm(cell["labels"], cell["lr"], cell["seed"], tick=_quiet))


def answers_arms(full):
    """Two rates for both ways to label; the controls have nothing to choose."""
    rates = [{"lr": lr} for lr in ((1e-4, 3e-4) if full else (3e-4, 1e-3))]
    return {"untrained": rates[:1], "offsets": rates, "match": rates}


def answers_run(cell):
    """A reader trained on labels by offsets or by matching, or untrained: exact match and F1 by SQuAD's rules."""
    part = "val" if cell["phase"] == "tune" else "test"
    _, found = _lesson02(*ANSWERS02).qa_arm(cell["arm"], cell["lr"], cell["seed"], part, tick=_quiet)
    return _rounded(found | ({"score": found["f1"]} if part == "val" else {}))


def rivals_run(cell):
    """A prompted SmolLM2 or MiniLM's nearest example on 200 test sentences; there is nothing to tune."""
    if cell["phase"] == "tune":
        return {"score": 0.0}
    return _rounded(_lesson02(*RIVALS02).rival(cell["arm"], cell["seed"]))


STUDIES = {
    "text-ladder": Study(
        "02",
        ladder_arms,
        lambda full: [{"labels": n} for n in ((20, 100) if full else (100,))],
        ladder_run,
        "MiniLM on short film sentences from 100 labels, by the way it is fine-tuned: accuracy, F1, calibration",
        LADDER02,
    ),
    "text-tags": Study(
        "02",
        tags_arms,
        lambda full: [{}],
        tags_run,
        "span F1 of MiniLM on synthetic sentences with unseen names, by which tokens of a word carry its label",
        TAGS02,
    ),
    "text-tags-rate": Study(
        "02",
        lambda full: {"first": [{"lr": 3e-4}]},
        lambda full: [{}],
        tags_run,
        "span F1 of labels on first tokens at the rate that the two other ways chose",
        TAGS02,
    ),
    "text-few": Study(
        "02",
        lambda full: {arm: [{"lr": lr} for lr in (3e-5, 1e-4)] for arm in _lesson02(*FEW02).FEW},
        lambda full: [{"labels": 20}, {"labels": 100}],
        few_run,
        "accuracy on film sentences by number of labels: augmentation, and masked-language modelling before",
        FEW02,
    ),
    "text-few-back": Study(
        "02",
        lambda full: {"back-translated": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4)]},
        lambda full: [{"labels": 20}, {"labels": 100}],
        back_run,
        "accuracy on film sentences by number of labels and round trips through Spanish, by Apertium",
        BACK02,
    ),
    "text-rivals": Study(
        "02",
        lambda full: {arm: [{}] for arm in ("prompt 0", "prompt 4", "prompt 8", "nearest 8", "nearest 100")},
        lambda full: [{}],
        rivals_run,
        "accuracy on 200 film sentences without training, by the number of examples shown",
        RIVALS02,
    ),
    "text-answers": Study(
        "02",
        answers_arms,
        lambda full: [{}],
        answers_run,
        "exact match and F1 on SQuAD questions by how training spans were found",
        ANSWERS02,
    ),
}
