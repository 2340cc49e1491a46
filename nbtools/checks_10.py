"""The checks of lesson 10: dpo_loss, ipo_loss and verdict.

Ground truth: the losses in double precision by log1p and by hand, their derivatives, shifts that must do nothing; the
odds of two answers, each with a pull to one letter, multiplied out.
"""

import math

import torch
import torch.nn.functional as F

from nbtools.checks import exercise


def _above_zero(beta):
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}: it is the price of leaving the reference")


def _dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    _above_zero(beta)
    return F.softplus(-beta * (chosen - rejected - (ref_chosen - ref_rejected).detach()))


def _ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    _above_zero(beta)
    return (chosen - rejected - (ref_chosen - ref_rejected).detach() - 0.5 / beta).square()


def _verdict(one, two):
    one, two = one.double(), two.double()
    return torch.sigmoid((one[:, 0] - one[:, 1] + two[:, 1] - two[:, 0]) / 2)


# chosen, rejected and the reference's two: as real sums of log p, some tens of nats
LOGPS = torch.tensor(
    [
        [-20.0, -31.5, -20.0, -31.5],
        [-18.0, -33.0, -20.0, -31.5],
        [-24.0, -30.0, -20.0, -31.5],
        [-40.0, -60.0, -45.0, -55.0],
        [-12.5, -9.0, -11.0, -14.0],
        [-70.0, -10.0, -30.0, -25.0],
    ]
)


def _apart(row):
    """The difference of the log-ratios of a row, in double precision."""
    chosen, rejected, ref_chosen, ref_rejected = row
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def _losses(fn, name, wanted, slope):
    """What both losses must do: values, shapes, gradients to the policy alone, and an error for a bad beta."""
    for beta in (0.1, 0.5, 2.0):
        out = fn(*LOGPS.T, beta)
        if not torch.is_tensor(out) or out.shape != (6,):
            shape = tuple(out.shape) if torch.is_tensor(out) else type(out).__name__
            yield f"6 pairs have 6 losses, one each, but the answer is {shape}: no mean, no sum"
            return
        right = [wanted(_apart(row), beta) for row in LOGPS.double().tolist()]
        off = [i for i in range(6) if not abs(out[i].item() - right[i]) < 1e-4 * max(1, abs(right[i]))]
        yield off and (
            f"beta {beta}; chosen, rejected, ref_chosen, ref_rejected {LOGPS[off[0]].tolist()}: the loss should be "
            f"{right[off[0]]:.4f}, but is {out[off[0]].item():.4f}"
        )
    shifted = LOGPS + torch.tensor([2.0, -3.0, 2.0, -3.0])
    yield not torch.allclose(fn(*shifted.T, 0.5), fn(*LOGPS.T, 0.5), atol=1e-4) and (
        "policy and reference raised alike, for one answer: no log-ratio changes, so the loss should not"
    )
    sides = [column.clone().requires_grad_() for column in LOGPS.T]
    fn(*sides, 0.5).sum().backward()
    for name_, side, sign in zip(("chosen", "rejected"), sides[:2], (1, -1), strict=True):
        if side.grad is None:
            yield f"no gradient reaches the {name_} log-probabilities"
            continue
        right = torch.tensor([sign * slope(_apart(row), 0.5) for row in LOGPS.double().tolist()])
        bad = (side.grad - right).abs() > 1e-4 * right.abs().clamp(min=1)
        yield bool(bad.any()) and (
            f"beta 0.5: the gradient of the {name_} log-probabilities should be "
            f"{[round(v, 4) for v in right.tolist()]}, but is {[round(v, 4) for v in side.grad.tolist()]}"
        )
    yield any(side.grad is not None and bool(side.grad.any()) for side in sides[2:]) and (
        "a gradient flows into the reference: it is a number, detach it"
    )
    for beta in (0, -0.1, float("nan")):
        try:
            fn(*LOGPS.T, beta)
        except ValueError as error:
            yield str(beta) not in str(error) and f"beta {beta}: the ValueError should name it, but says: {error}"
        except Exception as error:
            yield f"beta {beta}: a ValueError was asked for, not {type(error).__name__}: {error}"
        else:
            yield f"{name} takes beta {beta}: a ValueError was asked for"


def _log1p(x):
    """log(1 + exp(x)) in double precision, without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x):
    return math.exp(-_log1p(-x))


@exercise("dpo_loss", reference=_dpo_loss, minutes=8)
def check_dpo_loss(dpo_loss):
    """Values by log1p in double precision; log 2 at the start; finite far out; derivatives; a reference at rest."""
    yield from _losses(
        dpo_loss, "dpo_loss", lambda h, beta: _log1p(-beta * h), lambda h, beta: -beta * _sigmoid(-beta * h)
    )
    start = dpo_loss(LOGPS[:, 0], LOGPS[:, 1], LOGPS[:, 0], LOGPS[:, 1], 0.3)
    yield bool((start - math.log(2)).abs().max() > 1e-5) and (
        f"where the policy is the reference every loss is log 2 = 0.6931, but here {start[0].item():.4f}"
    )
    zero = torch.zeros(2)
    far = torch.tensor([-400.0, 400.0], requires_grad=True)
    out = dpo_loss(far, zero, zero, zero, 1.0)
    yield not torch.allclose(out.detach(), torch.tensor([400.0, 0.0]), atol=1e-3) and (
        f"log-ratios -400 and 400 apart: the losses should be 400 and 0, but are {out.tolist()}"
    )
    slope = torch.autograd.grad(out.sum(), far)[0]
    yield not torch.allclose(slope, torch.tensor([-1.0, 0.0]), atol=1e-4) and (
        f"log-ratios -400 and 400 apart: the gradients should be -1 and 0, but are {slope.tolist()}"
    )


@exercise("ipo_loss", reference=_ipo_loss, minutes=5)
def check_ipo_loss(ipo_loss):
    """Values by hand; zero at 1 / (2 beta) and nowhere else; derivatives; a reference at rest."""
    yield from _losses(
        ipo_loss, "ipo_loss", lambda h, beta: (h - 1 / (2 * beta)) ** 2, lambda h, beta: 2 * (h - 1 / (2 * beta))
    )
    zero = torch.zeros(3)
    for beta in (0.1, 1.0):
        goal = 1 / (2 * beta)
        out = ipo_loss(torch.tensor([goal, goal + 1, goal - 1]), zero, zero, zero, beta)
        yield not torch.allclose(out, torch.tensor([0.0, 1.0, 1.0]), atol=1e-4) and (
            f"beta {beta}: at h = {goal:g}, one above and one below the losses should be 0, 1, 1, "
            f"but are {out.tolist()}"
        )


@exercise("verdict", reference=_verdict, minutes=10)
def check_verdict(verdict):
    """A pull to one letter does nothing; exchanged texts exchange the sides; a worth is found; far out."""
    worth = torch.tensor([0.0, 1.0, -2.0, 0.5, 4.0])  # of the first text over the second, in log-odds
    pull = torch.tensor([0.0, 3.0, 3.0, -1.0, 6.0])  # to the letter A
    level = torch.tensor([0.0, 10.0, -4.0, 20.0, 1.0])  # of both letters against all other tokens
    one = torch.stack([level + (worth + pull) / 2, level - (worth + pull) / 2], 1)  # (5, 2): A is the first text
    two = torch.stack([level + (pull - worth) / 2, level - (pull - worth) / 2], 1)  # (5, 2): A is the second text
    out = verdict(one, two)
    if not torch.is_tensor(out) or out.shape != (5,):
        yield f"5 pairs have 5 probabilities, but the answer is {getattr(out, 'shape', type(out).__name__)}"
        return
    wanted = [math.exp(w) / (1 + math.exp(w)) for w in worth.tolist()]
    off = [i for i in range(5) if not abs(out[i].item() - wanted[i]) < 1e-4]
    yield off and (
        f"logits {one[off[0]].tolist()} with the first text as A, {two[off[0]].tolist()} with the second as A: "
        f"P(first) should be {wanted[off[0]]:.4f}, but is {out[off[0]].item():.4f}"
    )
    yield not torch.allclose(verdict(two, one), 1 - out, atol=1e-5) and (
        "the two texts exchanged: the probability should be 1 minus what it was"
    )
    more = torch.tensor([5.0, 0.0])
    yield not torch.allclose(verdict(one + more, two + more), out, atol=1e-5) and (
        "a larger pull to the letter A, in both orders, changes the answer: that is position bias"
    )
    yield not torch.allclose(verdict(one + 7, two - 3), out, atol=1e-5) and (
        "the same number added to both letters' logits of one order changes the answer: only their difference counts"
    )
    far = verdict(torch.tensor([[300.0, -300.0], [-300.0, 300.0]]), torch.tensor([[-300.0, 300.0], [300.0, -300.0]]))
    yield not torch.allclose(far.float(), torch.tensor([1.0, 0.0]), atol=1e-4) and (
        f"a worth of 600 and of -600: the probabilities should be 1 and 0, but are {far.tolist()}"
    )
    split = verdict(torch.tensor([[9.0, 0.0]]), torch.tensor([[9.0, 0.0]])).item()
    yield abs(split - 0.5) > 1e-5 and f"A in both orders tells nothing: P(first) should be 0.5, but is {split:.4f}"
