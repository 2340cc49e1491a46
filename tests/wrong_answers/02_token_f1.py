"""Answers to lesson 02's token_f1(prediction, answers), wrong and right."""

import re
import string
from collections import Counter


def _normalise(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _f1(guess, truth):
    shared = sum((Counter(guess) & Counter(truth)).values())
    return 2 * shared / (len(guess) + len(truth)) if shared else 0.0


def wrong_sets(prediction, answers):
    """Counts each word once."""
    pairs = [(set(_normalise(prediction).split()), set(_normalise(text).split())) for text in answers]
    return max(2 * len(a & b) / (len(a) + len(b)) if a & b else 0.0 for a, b in pairs)


def wrong_not_normalised(prediction, answers):
    """Compares the words as they are."""
    return max(_f1(prediction.split(), text.split()) for text in answers)


def wrong_mean_of_answers(prediction, answers):
    """Takes the mean over the answers."""
    return sum(_f1(_normalise(prediction).split(), _normalise(text).split()) for text in answers) / len(answers)


def wrong_first_answer(prediction, answers):
    """Looks at the first answer only."""
    return _f1(_normalise(prediction).split(), _normalise(answers[0]).split())


def wrong_recall(prediction, answers):
    """Gives the share of the answer's words that were found."""
    guess, best = Counter(_normalise(prediction).split()), 0.0
    for text in answers:
        truth = Counter(_normalise(text).split())
        best = max(best, sum((guess & truth).values()) / max(sum(truth.values()), 1))
    return best


def wrong_characters(prediction, answers):
    """Compares characters instead of words."""
    return max(_f1(_normalise(prediction), _normalise(text)) for text in answers)


def wrong_all_answers_together(prediction, answers):
    """Compares with the words of all answers at once."""
    return _f1(_normalise(prediction).split(), [word for text in answers for word in _normalise(text).split()])


def wrong_articles_inside_words(prediction, answers):
    """Takes the letters of articles out of words too."""
    strip = lambda text: re.sub("the|an|a", "", _normalise(text)).split()  # noqa: E731
    return max(_f1(strip(prediction), strip(text)) for text in answers)


def right_by_precision_and_recall(prediction, answers):
    """The harmonic mean of precision and recall, over sorted lists."""
    best = 0.0
    for text in answers:
        guess, truth = sorted(_normalise(prediction).split()), sorted(_normalise(text).split())
        shared = sum(min(guess.count(word), truth.count(word)) for word in set(guess))
        if shared:
            p, r = shared / len(guess), shared / len(truth)
            best = max(best, 2 / (1 / p + 1 / r))
    return best
