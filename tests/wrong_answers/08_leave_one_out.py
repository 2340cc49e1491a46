"""Answers to lesson 08's leave_one_out(a, b), wrong and right."""

import itertools


def counted(a, b, order, tie=0.5):
    """(share right, share strict) where order(i, j) is the difference of the means for draw i, j."""
    right = strict = 0
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        if x != y:
            strict += 1
            d = order(i, j)
            right += tie if abs(d) < 1e-12 else (x > y) == (d > 0)
    return right / (len(a) * len(b)), strict / (len(a) * len(b))


def mean(scores):
    return sum(scores) / len(scores)


def others(scores, i):
    return mean(scores[:i] + scores[i + 1 :])


def wrong_own_score_in_the_mean(a, b):
    """Compares with means that hold the drawn scores themselves: too high a ceiling."""
    return counted(a, b, lambda i, j: mean(a) - mean(b))


def wrong_ties_are_wrong(a, b):
    """Equal means count as wrong."""
    return counted(a, b, lambda i, j: others(a, i) - others(b, j), tie=0)


def wrong_ties_are_right(a, b):
    """Equal means count as right."""
    return counted(a, b, lambda i, j: others(a, i) - others(b, j), tie=1)


def wrong_share_of_strict(a, b):
    """Divides by the strict draws instead of all: pairs cannot be pooled then."""
    right, strict = counted(a, b, lambda i, j: others(a, i) - others(b, j))
    return (right / strict if strict else 0.0), strict


def wrong_divides_by_n(a, b):
    """Takes the drawn score out of the sum but not out of the count."""
    return counted(a, b, lambda i, j: (sum(a) - a[i]) / len(a) - (sum(b) - b[j]) / len(b))


def wrong_sums(a, b):
    """Compares sums of the others, which grow with their number."""
    return counted(a, b, lambda i, j: (sum(a) - a[i]) - (sum(b) - b[j]))


def wrong_only_one_side_left_out(a, b):
    """Leaves the drawn score out of a's mean only."""
    return counted(a, b, lambda i, j: others(a, i) - mean(b))


def wrong_column_by_column(a, b):
    """Pairs the raters by position instead of drawing all n * m."""
    draws = [(i, a[i], b[i]) for i in range(min(len(a), len(b)))]
    strict = [(i, x, y) for i, x, y in draws if x != y]
    right = [(x > y) == (others(a, i) > others(b, i)) for i, x, y in strict]
    return sum(right) / len(draws), len(strict) / len(draws)


def wrong_majority_of_the_draws(a, b):
    """The larger of the two sides of the draws themselves."""
    up = sum(x > y for x in a for y in b) / (len(a) * len(b))
    down = sum(x < y for x in a for y in b) / (len(a) * len(b))
    return max(up, down), up + down


def wrong_counts_ties_of_scores(a, b):
    """Counts draws of equal scores, too."""
    right, strict = counted(a, b, lambda i, j: others(a, i) - others(b, j))
    return right + (1 - strict) / 2, 1.0


def right_whole_numbers(a, b):
    """Compares the others' means without a division."""
    n, m = len(a) - 1, len(b) - 1
    return counted(a, b, lambda i, j: (sum(a) - a[i]) * m - (sum(b) - b[j]) * n)
