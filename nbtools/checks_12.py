"""The checks of lesson 12: pacing, easy_first and self_paced_weights.

Ground truth: shares worked out by hand; all orders of equals counted over many draws; the smallest of Kumar's
objective over all choices, enumerated; the sums of the classes.
"""

import itertools
import math
from collections import Counter

import torch

from nbtools.checks import exercise


def _pacing(step, steps, start=0.2, end=0.8, power=1.0):
    if steps <= 0 or step < 0 or step > steps:
        raise ValueError(f"steps must be above 0 and step between 0 and steps, got {steps} and {step}")
    if not 0 < start <= 1 or not 0 < end <= 1:
        raise ValueError(f"start and end must be above 0 and at most 1, got {start} and {end}")
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}")
    way = 1.0 if step >= end * steps else step / (end * steps)
    return 1.0 - (1.0 - start) * (1.0 - way**power)


def _easy_first(difficulty, generator):
    if bool(difficulty.isnan().any()):
        raise ValueError("some difficulties are nan: they have no place in an order")
    place = torch.randperm(len(difficulty), generator=generator).tolist()  # who comes first among equals
    values = difficulty.tolist()
    return torch.tensor(sorted(range(len(values)), key=lambda i: (values[i], place[i])), dtype=torch.long)


def _self_paced_weights(losses, labels, threshold):
    if bool(losses.isnan().any()):
        raise ValueError("some losses are nan: the model has diverged")
    limit = torch.full_like(losses, float(threshold))
    for c in labels.unique():
        limit[labels == c] = limit[labels == c].clamp(min=losses[labels == c].min())
    keep = (losses <= limit).float()
    for c in labels.unique():
        own = labels == c
        keep[own] = keep[own] * (own.sum() / keep[own].sum())
    return keep


def _raises(fn, *args, **options):
    """Whether fn raises ValueError with a sentence; any other answer is not what was asked for."""
    try:
        fn(*args, **options)
    except ValueError as error:
        return bool(str(error))
    return False


# step, steps, start, end, power -> share, by hand
SHARES = [
    (0, 100, 0.2, 0.8, 1.0, 0.2),
    (40, 100, 0.2, 0.8, 1.0, 0.6),
    (80, 100, 0.2, 0.8, 1.0, 1.0),
    (90, 100, 0.2, 0.8, 1.0, 1.0),
    (100, 100, 0.2, 0.8, 1.0, 1.0),
    (25, 100, 0.1, 1.0, 0.5, 0.55),
    (50, 100, 0.2, 1.0, 2.0, 0.4),
    (10, 200, 0.5, 0.2, 1.0, 0.625),
    (3, 7, 1.0, 0.5, 1.0, 1.0),
]


@exercise("pacing", reference=_pacing, minutes=5)
def check_pacing(pacing):
    """Shares by hand, both ends, never falling; power 0, 0.5, 2 and infinity; what is left out; bad input."""
    for step, steps, start, end, power, share in SHARES:
        found = pacing(step, steps, start, end, power)
        if not isinstance(found, int | float):
            yield f"the answer should be a number, a share, and is {found!r}"
            return
        yield abs(found - share) > 1e-9 and (
            f"step {step} of {steps}, start {start}, end {end}, power {power:g}: {share} should be open, not {found:g}"
        )
    yield abs(pacing(40, 100) - 0.6) > 1e-9 and "start, end and power left out are 0.2, 0.8 and 1"
    for power in (0.5, 1.0, 3.0):
        path = [pacing(step, 60, 0.3, 0.7, power) for step in range(61)]
        yield any(b < a for a, b in itertools.pairwise(path)) and f"power {power:g}: the open share should never fall"
        yield not all(0.3 - 1e-9 <= share <= 1 + 1e-9 for share in path) and f"power {power:g}: it lies in [start, 1]"
    iid = [pacing(step, 50, power=0) for step in (0, 1, 49)]
    yield max(abs(share - 1) for share in iid) > 1e-9 and "power 0 is iid: all is open from step 0 on"
    jump = [pacing(step, 50, 0.2, 0.8, math.inf) for step in (0, 39, 40, 50)]
    apart = max(abs(share - wanted) for share, wanted in zip(jump, (0.2, 0.2, 1.0, 1.0), strict=True))
    yield not apart < 1e-9 and f"an infinite power waits at start and then opens all at once, not {jump}"
    bad = {
        "step": (-1, 10),
        "step 0 of 0 steps": (0, 0),
        "a step beyond steps": (11, 10),
        "start 0": (1, 10, 0.0),
        "start 1.5": (1, 10, 1.5),
    }
    bad |= {"end 0": (1, 10, 0.2, 0.0), "end 2": (1, 10, 0.2, 2.0), "power -1": (1, 10, 0.2, 0.8, -1.0)}
    for name, values in bad.items():
        yield not _raises(pacing, *values) and f"{name if name != 'step' else 'step -1'}: raise a ValueError"


def _orders(easy_first, difficulty, draws=1200):
    return Counter(tuple(easy_first(difficulty, torch.Generator().manual_seed(s)).tolist()) for s in range(draws))


@exercise("easy_first", reference=_easy_first, minutes=5)
def check_easy_first(easy_first):
    """A permutation that rises; every order of equals as often as any other; the generator alone decides; nan."""
    seeded = torch.Generator().manual_seed
    values = torch.tensor([3.0, -1.0, 2.5, 10.0, 0.0, 7.5])
    order = easy_first(values.clone(), seeded(0))
    if not torch.is_tensor(order) or order.dtype != torch.int64 or order.shape != (6,):
        yield "6 difficulties should give an int64 tensor of 6 places"
        return
    yield sorted(order.tolist()) != list(range(6)) and "each sentence should stand in the order exactly once"
    wanted = [1, 4, 2, 0, 5, 3]
    yield order.tolist() != wanted and f"{values.tolist()}: from easy to hard these are {wanted}, not {order.tolist()}"
    large = torch.randint(0, 12, (500,)).float() * 1e-3
    found = easy_first(large, seeded(1))
    yield not large[found].equal(large.sort().values) and "500 sentences with many equals: difficulty should never fall"
    yield not found.equal(easy_first(large, seeded(1))) and "the same seed should give the same order"
    state = torch.random.get_rng_state()
    easy_first(large, seeded(1))
    yield not torch.random.get_rng_state().equal(state) and "draw from `generator`, not from torch's global one"
    given = large.clone()
    easy_first(given, seeded(2))
    yield not given.equal(large) and "the difficulties were changed in place"
    ties = torch.tensor([2.0, 1.0, 2.0, 5.0, 2.0, 1.0])
    seen = _orders(easy_first, ties)  # 3! times 2! orders, 100 each expected
    yield len(seen) < 12 and f"two pairs of equals, of 3 and 2: there are 12 orders, but 1,200 draws gave {len(seen)}"
    yield max(seen.values()) > 160 and (
        f"all 12 orders of equals should be as likely, 100 of 1,200 draws each; one came {max(seen.values())} times"
    )
    seen = _orders(easy_first, torch.tensor([4, 4, 4]))
    yield (len(seen) < 6 or max(seen.values()) > 260) and "whole numbers too: 3 equals have 6 orders, equally likely"
    yield easy_first(torch.zeros(0), seeded(0)).tolist() != [] and "no sentences have an empty order"
    order = easy_first(torch.tensor([1.0, -math.inf, math.inf]), seeded(0)).tolist()
    yield order != [1, 0, 2] and "infinite difficulties have a place: first or last"
    yield not _raises(easy_first, torch.tensor([1.0, math.nan]), seeded(0)) and "nan has no place: raise a ValueError"


def _best_choice(losses, threshold):
    """Which v in {0, 1}^N makes sum(v * loss) - threshold * sum(v) smallest, by trying all."""
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(losses))))
    return choices[(choices @ losses - threshold * choices.sum(1)).argmin()]


@exercise("self_paced_weights", reference=_self_paced_weights, minutes=10)
def check_self_paced_weights(self_paced_weights):
    """Kumar's choice by enumeration; the classes' sums; a class too hard, all too hard; empty; inf and nan."""
    losses, labels = torch.tensor([0.1, 2.0, 0.7, 0.3, 1.5, 0.9]), torch.tensor([0, 0, 0, 1, 1, 1])
    given = losses.clone()
    weights = self_paced_weights(losses, labels, 1.0)
    if not torch.is_tensor(weights) or weights.shape != (6,) or not weights.is_floating_point():
        yield "6 losses should give a float tensor of 6 weights"
        return
    yield not given.equal(losses) and "the losses were changed in place"
    for threshold in (0.35, 0.8, 1.0, 5.0):
        found = self_paced_weights(losses, labels, threshold) > 0
        best = _best_choice(losses, threshold) > 0
        yield not found.equal(best) and (
            f"threshold {threshold}: {best.nonzero().flatten().tolist()} of {losses.tolist()} make the objective "
            f"smallest, but {found.nonzero().flatten().tolist()} have weight"
        )
    tie = self_paced_weights(torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0, 0, 0]), 0.5)
    yield tie.tolist() != [1.5, 1.5, 0.0] and "a loss equal to the threshold takes part"
    many, sides = torch.rand(90) * 3, (torch.rand(90) < 0.2).long()
    for threshold in (0.3, 1.0, 2.0, 9.0):
        weights = self_paced_weights(many, sides, threshold)
        for c in (0, 1):
            own, part = int((sides == c).sum()), weights[sides == c].sum().item()
            yield abs(part - own) > 1e-3 and (
                f"threshold {threshold}: class {c} has {own} of 90 sentences, so its weights should sum to {own}, "
                f"not {part:.2f}"
            )
        kept = weights[(sides == 1) & (weights > 0)]
        yield len(kept) and (kept.max() - kept.min()) > 1e-4 and "within a class all that take part weigh the same"
    yield not torch.allclose(self_paced_weights(many, sides, 9.0), torch.ones(90)) and "where all take part: all 1"
    weights = self_paced_weights(torch.tensor([0.1, 0.2, 4.0, 3.0]), torch.tensor([0, 0, 1, 1]), 1.0)
    yield weights.tolist() != [1.0, 1.0, 0.0, 2.0] and (
        f"losses 0.1, 0.2 | 4, 3 at threshold 1: the second class has nothing easy, so its easiest takes its part: "
        f"[1, 1, 0, 2], not {weights.tolist()}"
    )
    weights = self_paced_weights(torch.tensor([5.0, 3.0, 4.0, 4.0, 9.0]), torch.tensor([0, 0, 1, 1, 1]), 0.1)
    yield not torch.allclose(weights, torch.tensor([0.0, 2.0, 1.5, 1.5, 0.0])) and (
        f"all too hard, 5, 3 | 4, 4, 9: the easiest of each class, equals sharing: [0, 2, 1.5, 1.5, 0], "
        f"not {weights.tolist()}"
    )
    empty = self_paced_weights(torch.zeros(0), torch.zeros(0, dtype=torch.long), 1.0)
    yield empty.shape != (0,) and "an empty batch should give an empty tensor"
    weights = self_paced_weights(torch.tensor([math.inf, 1.0, math.inf]), torch.tensor([0, 0, 1]), 2.0)
    yield weights.tolist() != [0.0, 2.0, 1.0] and "an infinite loss is hard; alone in its class it stays"
    weights = self_paced_weights(torch.tensor([0.1, 3.0, 0.2]), torch.tensor([7, 7, 3]), 1.0)
    yield weights.tolist() != [2.0, 0.0, 1.0] and "classes may have any numbers, not only 0 and 1"
    nan = torch.tensor([0.1, math.nan]), torch.tensor([0, 1]), 1.0
    yield not _raises(self_paced_weights, *nan) and "nan among the losses: raise a ValueError"
