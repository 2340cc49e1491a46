"""The checks of lesson 09: rloo_advantages, gae and clipped_loss.

Ground truth: sums over the others in fractions; each advantage as a double loop over later rewards; the clipped
objective token by token in double precision, and where its slope must vanish.
"""

import math
from fractions import Fraction

import torch

from nbtools.checks import exercise


def _rloo_advantages(rewards):
    k = rewards.shape[1]
    if k < 2:
        raise ValueError(f"k must be 2 or more, got k = {k}")
    return (rewards - rewards.mean(1, keepdim=True)) * k / (k - 1)


def _gae(rewards, values, mask, gamma=1.0, lam=0.95):
    values, steps = values * mask, rewards.shape[1]
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    surprise = (rewards + gamma * after - values) * mask
    places = torch.arange(steps, device=rewards.device)
    ahead = places[None, :] - places[:, None]
    weights = torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp(min=0).to(rewards), 0.0)
    return surprise @ weights.T * mask


def _clipped_loss(logp, old, advantages, mask, clip=0.2):
    if not mask.any():
        raise ValueError("the mask is empty: there is no token to learn from")
    ratio, advantages = (logp - old.detach()).exp(), advantages.detach()
    losses = torch.max(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages)
    return losses[mask.bool()].mean()


def _shape(out, wanted):
    if not torch.is_tensor(out) or tuple(out.shape) != wanted:
        return f"the answer should be a tensor of shape {wanted}, but is {getattr(out, 'shape', type(out).__name__)}"


@exercise("rloo_advantages", reference=_rloo_advantages, minutes=5)
def check_rloo_advantages(rloo_advantages):
    """Against a loop over the others in fractions; rows apart; shift and scale; k = 2 and k = 1."""
    g = torch.Generator().manual_seed(1)
    for rows, k in ((1, 2), (3, 4), (5, 9)):
        rewards = torch.randint(-9, 10, (rows, k), generator=g).float()
        given = rewards.clone()
        out = rloo_advantages(rewards)
        if bad := _shape(out, (rows, k)):
            yield f"{rows} prompts with {k} answers: {bad}"
            return
        yield not torch.equal(rewards, given) and "the given rewards were changed: work on a copy"
        wanted = [
            [float(Fraction(int(r)) - Fraction(sum(map(int, row)) - int(r), k - 1)) for r in row]
            for row in given.tolist()
        ]
        off = (out - torch.tensor(wanted)).abs().max().item()
        first = [round(v, 3) for v in wanted[0]]
        got = [round(v, 3) for v in out[0].tolist()]
        yield not off < 1e-4 and f"rewards {given[0].tolist()}: the advantages should be {first}, but are {got}"
    rewards = torch.randn(4, 6, generator=g)
    out = rloo_advantages(rewards)
    yield not torch.allclose(rloo_advantages(rewards + 5), out, atol=1e-4) and "5 more for all should change nothing"
    yield not torch.allclose(rloo_advantages(3 * rewards), 3 * out, atol=1e-4) and (
        "three times the rewards should give three times the advantages: do not divide by their spread"
    )
    try:
        rloo_advantages(torch.ones(3, 1))
    except ValueError as error:
        yield "1" not in str(error) and f"k = 1: the ValueError should name it, but says {error}"
    except Exception as error:
        yield f"k = 1: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "k = 1: a ValueError was asked for, and nothing was raised"


def _slow_gae(rewards, values, mask, gamma, lam):
    """Each advantage as a sum over all later surprises, with plain numbers."""
    out = []
    for r, v, m in zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True):
        length = sum(m)
        v = [*v[:length], 0.0]
        surprise = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        row = [sum((gamma * lam) ** (u - t) * surprise[u] for u in range(t, length)) for t in range(length)]
        out.append(row + [0.0] * (len(m) - length))
    return torch.tensor(out)


@exercise("gae", reference=_gae, minutes=10)
def check_gae(gae):
    """Against a slow double loop for several gamma and lambda; lambda 0 and 1; what stands behind the end."""
    g = torch.Generator().manual_seed(2)
    mask = (torch.arange(6) < torch.tensor([6, 1, 4, 3])[:, None]).long()
    rewards, values = torch.randn(2, 4, 6, generator=g)
    given = [x.clone() for x in (rewards, values, mask)]
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)):
        out = gae(rewards * mask, values * mask, mask, gamma, lam)
        if bad := _shape(out, (4, 6)):
            yield bad
            return
        wanted = _slow_gae(rewards, values, mask, gamma, lam)
        off = (out - wanted).abs()
        b, t = divmod(int(off.argmax()), 6)
        yield not off.max() < 1e-4 and (
            f"gamma {gamma}, lambda {lam}: the advantage of token {t} of answer {b} should be {wanted[b, t]:.4f}, "
            f"but is {out[b, t]:.4f}"
        )
    out = gae(rewards, values, mask)
    wanted = _slow_gae(rewards, values, mask, 1.0, 0.95)
    yield not torch.allclose(out * mask, wanted, atol=1e-4) and (
        "what stands behind an answer's end changes the advantages before it: its value there is 0"
    )
    yield bool((out * (1 - mask)).abs().max() > 0) and "behind the end the advantage should be 0"
    unchanged = all(torch.equal(a, b) for a, b in zip((rewards, values, mask), given, strict=True))
    yield not unchanged and "the given tensors were changed: work on copies"
    one = gae(torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]]), torch.ones(1, 3).long(), 1.0, 1.0)
    yield not torch.allclose(one, torch.full((1, 3), 2.0), atol=1e-5) and (
        f"lambda 1, value 1 everywhere, a reward of 3 at the end: all advantages are 2, but they are {one[0].tolist()}"
    )


def _slow_loss(logp, old, advantages, mask, clip):
    losses = []
    for p, q, a, m in zip(*(x.flatten().tolist() for x in (logp, old, advantages, mask)), strict=True):
        ratio = math.exp(p - q)
        if m:
            losses.append(-min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a))
    return sum(losses) / len(losses)


@exercise("clipped_loss", reference=_clipped_loss, minutes=8)
def check_clipped_loss(clipped_loss):
    """Token by token in plain numbers; where the slope must vanish and where not; the mask; who gets a gradient."""
    g = torch.Generator().manual_seed(3)
    logp, old, advantages = torch.randn(3, 5, 7, generator=g) * torch.tensor([0.4, 0.4, 1.0])[:, None, None]
    mask = (torch.arange(7) < torch.tensor([7, 1, 3, 5, 6])[:, None]).long()
    for clip in (0.2, 0.05):
        out = clipped_loss(logp, old, advantages, mask, clip)
        if bad := _shape(out, ()):
            yield bad
            return
        wanted = _slow_loss(logp, old, advantages, mask, clip)
        yield not abs(out.item() - wanted) < 1e-4 and (
            f"clip {clip}, 22 tokens of 5 answers: the loss should be {wanted:.4f}, but is {out.item():.4f}"
        )
    ratios, signs = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0, 1.0]]), torch.tensor([[1.0, -1, 1, -1, 1, -1]])
    new = ratios.log().requires_grad_()
    before, worth = torch.zeros(1, 6, requires_grad=True), signs.clone().requires_grad_()
    loss = clipped_loss(new, before, worth, torch.ones(1, 6).long(), 0.2)
    if not loss.requires_grad:
        yield "no gradient flows to logp: do not detach it"
        return
    loss.backward()
    wanted = torch.tensor([[0.0, 1.5, -0.5, 0.0, -1.0, 1.0]]) / 6
    for i in range(6):
        got = 0.0 if new.grad is None else new.grad[0, i].item()
        yield not abs(got - wanted[0, i].item()) < 1e-4 and (
            f"ratio {ratios[0, i]:.1f}, advantage {signs[0, i]:+.0f}: the slope should be {wanted[0, i]:.3f}, "
            f"but is {got:.3f}"
        )
    leaks = [name for name, x in (("old", before), ("advantages", worth)) if x.grad is not None and x.grad.any()]
    yield leaks and f"a gradient flows into {' and '.join(leaks)}: these are numbers from before the step"
    changed = torch.where(mask == 0, 9.0, logp)
    yield (
        not torch.allclose(
            clipped_loss(changed, old, advantages, mask), clipped_loss(logp, old, advantages, mask), atol=1e-5
        )
        and "what stands behind an answer's end changes the loss"
    )
    try:
        clipped_loss(logp, old, advantages, torch.zeros_like(mask))
    except ValueError:
        yield None
    except Exception as error:
        yield f"an empty mask: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "an empty mask: a ValueError was asked for, and nothing was raised"
