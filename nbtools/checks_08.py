"""The checks of lesson 08: preference_loss, last_token_reward and leave_one_out.

Ground truth: the loss in double precision by log1p, its derivative; a walk over each row of a mask; every draw of two
scores enumerated in fractions.
"""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F

from nbtools.checks import exercise


def _preference_loss(chosen, rejected):
    return F.softplus(rejected - chosen)


def _last_token_reward(rewards, attention_mask):
    empty = ~attention_mask.bool().any(1)
    if empty.any():
        raise ValueError(f"row {int(empty.nonzero()[0])} has no real token: leave empty texts out")
    last = attention_mask.long().cumsum(1).argmax(1)
    return rewards[torch.arange(len(rewards), device=rewards.device), last]


def _leave_one_out(a, b):
    right = strict = 0.0
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            order = (sum(a) - a[i]) / (len(a) - 1) - (sum(b) - b[j]) / (len(b) - 1)
            strict += x != y
            right += (x != y) * (0.5 if order == 0 else (x > y) == (order > 0))
    return right / (len(a) * len(b)), strict / (len(a) * len(b))


@exercise("preference_loss", reference=_preference_loss, minutes=5)
def check_preference_loss(preference_loss):
    """Values against log1p in double precision; finite and with the right gradient far out; a constant does nothing."""
    apart = torch.tensor([0.0, 1.0, -1.0, 3.5, -3.5, 12.0])
    other = torch.tensor([0.3, -2.0, 5.0, 0.0, 1.0, -7.0])
    loss = preference_loss(other + apart, other)
    if not torch.is_tensor(loss) or loss.shape != (6,):
        shape = tuple(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
        yield f"6 pairs have 6 losses, one each, but the answer is {shape}: no mean, no sum"
        return
    wanted = [math.log1p(math.exp(-d)) for d in apart.double().tolist()]
    off = [i for i in range(6) if abs(loss[i].item() - wanted[i]) > 1e-4]
    for i in off[:1]:
        yield (
            f"chosen {other[i] + apart[i]:.1f}, rejected {other[i]:.1f}: the loss should be {wanted[i]:.4f}, "
            f"but is {loss[i]:.4f}"
        )
    yield (
        None
        if off
        else bool((preference_loss(other + apart + 3, other + 3) - loss).abs().max() > 1e-4)
        and ("adding a constant to all rewards should not change the loss")
    )
    far = preference_loss(torch.tensor([-200.0, 200.0]), torch.zeros(2))
    yield not far.isfinite().all() and f"at a difference of -200 the loss should be 200, but is {far[0].item()}"
    yield bool((far - torch.tensor([200.0, 0.0])).abs().max() > 1e-3) and (
        f"at differences of -200 and 200 the losses should be 200 and 0, but are {far.tolist()}"
    )
    chosen = torch.tensor([-200.0, -40.0, -1.0, 0.0, 2.0], requires_grad=True)
    rejected = torch.zeros(5, requires_grad=True)
    preference_loss(chosen, rejected).sum().backward()
    slope = [-1 / (1 + math.exp(d)) for d in chosen.tolist()]
    for name, grad, sign in (("chosen", chosen.grad, 1), ("rejected", rejected.grad, -1)):
        if grad is None:
            yield f"no gradient reaches the {name} rewards"
            continue
        bad = [i for i in range(5) if not abs(grad[i].item() - sign * slope[i]) < 1e-4]
        yield bad and (
            f"at a difference of {chosen[bad[0]].item():.0f} the gradient of the {name} reward should be "
            f"{sign * slope[bad[0]]:.3f}, but is {grad[bad[0]].item():.3f}"
        )


def _walk(mask):
    """The last position of each row that is real, by walking over it."""
    found = []
    for row in mask.tolist():
        last = None
        for place, real in enumerate(row):
            last = place if real else last
        found.append(last)
    return found


@exercise("last_token_reward", reference=_last_token_reward, minutes=8)
def check_last_token_reward(last_token_reward):
    """Both paddings, none, one token; zero and negative rewards; one gradient a row; what is padded does not matter."""
    sides = {
        "no padding": [[1, 1, 1, 1], [1, 1, 1, 1]],
        "padding on the right": [[1, 1, 0, 0], [1, 1, 1, 0]],
        "padding on the left": [[0, 0, 1, 1], [0, 0, 0, 1]],
        "padding on both sides": [[0, 1, 1, 0], [1, 0, 0, 0]],
    }
    for name, rows in sides.items():
        mask = torch.tensor(rows)
        rewards = torch.tensor([[-1.0, 0.0, 7.0, -3.0], [4.0, -5.0, 0.0, 2.0]])
        out = last_token_reward(rewards, mask)
        if not torch.is_tensor(out) or out.shape != (2,):
            yield f"{name}: two rows have two rewards, but the answer is {getattr(out, 'shape', type(out).__name__)}"
            return
        wanted = [rewards[i, place].item() for i, place in enumerate(_walk(mask))]
        yield out.tolist() != wanted and f"{name}: the rewards should be {wanted}, but are {out.tolist()}"
    lengths = torch.randint(1, 12, (50,))
    mask = (torch.arange(12) < lengths[:, None]).long()
    mask[25:] = mask[25:].flip(1)
    rewards = torch.randn(50, 12, requires_grad=True)
    out = last_token_reward(rewards, mask)
    wanted = torch.stack([rewards[i, place] for i, place in enumerate(_walk(mask))]).detach()
    yield not torch.equal(out.detach(), wanted) and "50 random rows, padded left and right: not every reward is right"
    yield not torch.equal(last_token_reward(rewards.detach(), mask.bool()), wanted) and "a mask of type bool fails"
    if not out.requires_grad:
        yield "the gradient is cut: do not use detach, item or no_grad"
        return
    out.sum().backward()
    one = torch.zeros(50, 12)
    one[torch.arange(50), _walk(mask)] = 1
    yield not torch.equal(rewards.grad, one) and "the gradient should be 1 at each row's last real token, else 0"
    padded = rewards.detach().masked_fill(mask == 0, 99.0)
    yield not torch.equal(last_token_reward(padded, mask), wanted) and "what stands at padded places changes the answer"
    try:
        last_token_reward(torch.zeros(3, 4), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]))
    except ValueError as error:
        yield "1" not in str(error) and f"row 1 has no real token: the ValueError should name it, but says {error}"
    except Exception as error:
        yield f"a row without a real token: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "a row without a real token: a ValueError was asked for, and nothing was raised"


def _enumerated(a, b):
    """Every draw of a score from `a` and one from `b`, in fractions: (share right, share strict)."""
    right, strict, draws = Fraction(0), 0, len(a) * len(b)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rest = a[:i] + a[i + 1 :], b[:j] + b[j + 1 :]
            one, two = (Fraction(sum(scores), len(scores)) for scores in rest)
            if x != y:
                strict += 1
                right += Fraction(1, 2) if one == two else int((x > y) == (one > two))
    return float(right / draws), strict / draws


@exercise("leave_one_out", reference=_leave_one_out, minutes=12)
def check_leave_one_out(leave_one_out):
    """By hand; then every draw enumerated in fractions, for equal and unequal numbers of raters; symmetry; ties."""
    cases = {
        "a = [2, 1], b = [0, 1]": ([2, 1], [0, 1], "2.5 of 4 right, 3 of 4 strict"),
        "a = [3, 3], b = [3, 3]": ([3, 3], [3, 3], "no draw is strict"),
        "a = [4, 4, 4], b = [-4, -4]": ([4, 4, 4], [-4, -4], "all right, all strict"),
        "a = [3, 3], b = [2, 2, 2, 2, 2]": ([3, 3], [2] * 5, "all right, all strict"),
        "a = [3, -3], b = [1, -1]": ([3, -3], [1, -1], "all strict, and the others' means disagree"),
    }
    draw = torch.Generator().manual_seed(1)
    for n, m in ((5, 5), (2, 9), (8, 3), (20, 15)):
        a, b = (torch.randint(-2, 3, (k,), generator=draw).tolist() for k in (n, m))
        cases[f"{n} and {m} random scores"] = (a, b, "by enumeration")
    for name, (a, b, why) in cases.items():
        given = list(a), list(b)
        out = leave_one_out(a, b)
        if not isinstance(out, tuple | list) or len(out) != 2:
            yield f"the answer should be two numbers (share right, share strict), got {out!r}"
            return
        yield (a, b) != given and f"{name}: the given scores were changed: work on a copy"
        right, strict = (float(value) for value in out)
        wanted = _enumerated(*given)
        yield not abs(strict - wanted[1]) < 1e-6 and (
            f"{name} ({why}): the share strict should be {wanted[1]:.4f}, but is {strict:.4f}"
        )
        yield not abs(right - wanted[0]) < 1e-6 and (
            f"{name} ({why}): the share right should be {wanted[0]:.4f}, but is {right:.4f}"
        )
    a, b = torch.randint(-4, 5, (7,)).tolist(), torch.randint(-4, 5, (6,)).tolist()
    one, two = leave_one_out(a, b), leave_one_out(b, a)
    yield abs(one[0] - two[0]) > 1e-6 and "a against b and b against a should give the same"
