"""Answers to lesson 11's gradnorm_step(weights, norms, losses, first, alpha, rate), wrong and right."""

import math


def _step(weights, scaled, targets, rate, unit=None):
    unit = unit or sum(scaled) / len(scaled)
    moved = [
        w * math.exp(-rate * ((norm > t) - (norm < t)) * norm / unit)
        for w, norm, t in zip(weights, scaled, targets, strict=True)
    ]
    return [w * len(moved) / sum(moved) for w in moved]


def _scaled(weights, norms):
    return [w * n for w, n in zip(weights, norms, strict=True)]


def _targets(scaled, losses, first, alpha):
    ratios = [now / then for now, then in zip(losses, first, strict=True)]
    mean = sum(scaled) / len(scaled)
    return [mean * (ratio * len(ratios) / sum(ratios)) ** alpha for ratio in ratios]


def wrong_sign(weights, norms, losses, first, alpha, rate):
    """Goes up the slope."""
    scaled = _scaled(weights, norms)
    return _step(weights, scaled, _targets(scaled, losses, first, alpha), -rate)


def wrong_unweighted_norms(weights, norms, losses, first, alpha, rate):
    """Compares the tasks' own norms, without the weights."""
    return _step(weights, norms, _targets(norms, losses, first, alpha), rate)


def wrong_fast_learners_gain(weights, norms, losses, first, alpha, rate):
    """Takes the first loss over the present one."""
    scaled = _scaled(weights, norms)
    return _step(weights, scaled, _targets(scaled, first, losses, alpha), rate)


def wrong_plain_losses(weights, norms, losses, first, alpha, rate):
    """Compares losses instead of the share that is left of them."""
    scaled = _scaled(weights, norms)
    return _step(weights, scaled, _targets(scaled, losses, [1.0] * len(losses), alpha), rate)


def wrong_not_renormalised(weights, norms, losses, first, alpha, rate):
    """Lets the weights' sum drift."""
    scaled = _scaled(weights, norms)
    targets, mean = _targets(scaled, losses, first, alpha), sum(scaled) / len(scaled)
    return [
        w * math.exp(-rate * ((norm > t) - (norm < t)) * norm / mean)
        for w, norm, t in zip(weights, scaled, targets, strict=True)
    ]


def wrong_sums_to_one(weights, norms, losses, first, alpha, rate):
    """Makes the weights sum to one."""
    scaled = _scaled(weights, norms)
    moved = _step(weights, scaled, _targets(scaled, losses, first, alpha), rate)
    return [w / len(moved) for w in moved]


def wrong_in_units(weights, norms, losses, first, alpha, rate):
    """Leaves the step in the units of the norms."""
    scaled = _scaled(weights, norms)
    return _step(weights, scaled, _targets(scaled, losses, first, alpha), rate, unit=1.0)


def wrong_moves_at_balance(weights, norms, losses, first, alpha, rate):
    """Counts a norm at its target as above it."""
    scaled = _scaled(weights, norms)
    targets, mean = _targets(scaled, losses, first, alpha), sum(scaled) / len(scaled)
    signs = [1 if norm >= t else -1 for norm, t in zip(scaled, targets, strict=True)]
    moved = [w * math.exp(-rate * sign * norm / mean) for w, sign, norm in zip(weights, signs, scaled, strict=True)]
    return [w * len(moved) / sum(moved) for w in moved]


def wrong_no_alpha(weights, norms, losses, first, alpha, rate):
    """Forgets the exponent."""
    scaled = _scaled(weights, norms)
    return _step(weights, scaled, _targets(scaled, losses, first, 1.0), rate)


def right_by_loops(weights, norms, losses, first, alpha, rate):
    """Counts through the tasks, with logarithms."""
    n = len(weights)
    mean = sum(weights[i] * norms[i] for i in range(n)) / n
    left = sum(losses[i] / first[i] for i in range(n)) / n
    logs = []
    for i in range(n):
        norm = weights[i] * norms[i]
        gap = norm - mean * (losses[i] / first[i] / left) ** alpha
        sign = 0.0 if abs(gap) < 1e-12 else math.copysign(1.0, gap)
        logs.append(math.log(weights[i]) - rate * sign * norm / mean)
    total = sum(map(math.exp, logs))
    return [n * math.exp(x) / total for x in logs]
