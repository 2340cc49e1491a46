"""The checks of lesson 11: mixing, uncertainty_loss and gradnorm_step.

Ground truth: ratios of probabilities, the Gaussian's likelihood from torch.distributions, minima found by search, and
the gradient of GradNorm's loss by autograd.
"""

import math

import torch

from nbtools.checks import exercise


def _mixing(sizes, temperature=1.0, limit=None):
    if temperature <= 0 or any(size <= 0 for size in sizes) or (limit is not None and limit <= 0):
        raise ValueError(f"sizes, temperature and limit must be above 0, got {sizes}, {temperature} and {limit}")
    logs = torch.tensor([math.log(size if limit is None else min(size, limit)) for size in sizes], dtype=torch.float64)
    return torch.softmax(logs / temperature, 0).tolist()


def _uncertainty_loss(losses, log_vars, kinds):
    total = 0.0
    for loss, s, kind in zip(losses, log_vars, kinds, strict=True):
        precision = torch.exp(-s)
        total = total + (precision * loss / 2 if kind == "rating" else precision * loss) + 0.5 * s
    return total


def _gradnorm_step(weights, norms, losses, first, alpha, rate):
    logs = torch.tensor(weights, dtype=torch.float64).log().requires_grad_()
    scaled = logs.exp() * torch.tensor(norms, dtype=torch.float64)
    ratio = torch.tensor(losses, dtype=torch.float64) / torch.tensor(first, dtype=torch.float64)
    target = (scaled.mean() * (ratio / ratio.mean()) ** alpha).detach()
    slope = torch.autograd.grad((scaled - target).abs().sum(), logs)[0] / scaled.mean().detach()
    return (torch.softmax(logs.detach() - rate * slope, 0) * len(weights)).tolist()


def _near(found, wanted, off=1e-6):
    return len(found) == len(wanted) and all(abs(a - b) <= off for a, b in zip(found, wanted, strict=True))


def _shown(numbers):
    return ", ".join(f"{number:.4g}" for number in numbers)


@exercise("mixing", reference=_mixing, minutes=6)
def check_mixing(mixing):
    """Sums, ratios by temperature, the limit before the root, tiny temperatures, order, refusals."""
    sizes = [100, 1600, 400]
    given, found = list(sizes), mixing(sizes)
    if not isinstance(found, list) or len(found) != 3 or not all(isinstance(p, float) for p in found):
        yield f"three sizes should give a list of three floats, not {found!r}"
        return
    yield sizes != given and "the list of sizes was changed: work on a copy"
    for temperature in (1.0, 2.0, 4.0, 0.5):
        found = mixing(sizes, temperature)
        yield abs(sum(found) - 1) > 1e-9 and f"temperature {temperature}: probabilities sum to 1, not {sum(found):.4g}"
        ratio, wanted = found[1] / found[0], 16 ** (1 / temperature)
        yield abs(ratio / wanted - 1) > 1e-6 and (
            f"temperature {temperature}: a task 16 times as large should come {wanted:.4g} times as often, "
            f"not {ratio:.4g} times"
        )
    yield not _near(mixing(sizes), [100 / 2100, 1600 / 2100, 400 / 2100]) and "temperature 1 is sampling by size"
    yield not _near(mixing(sizes, math.inf), [1 / 3] * 3) and "an infinite temperature treats all tasks alike"
    found = mixing(sizes, 2.0, limit=400)
    yield not _near(found, [0.2, 0.4, 0.4]) and (
        f"with limit 400 and temperature 2 the sizes count as 100, 400, 400 and their roots are 10, 20, 20: "
        f"0.2, 0.4, 0.4, not {_shown(found)}"
    )
    yield not _near(mixing(sizes, 2.0, limit=5000), mixing(sizes, 2.0)) and "a limit above all sizes changes nothing"
    found = mixing([1_000_000, 1_000_000, 10], 0.01)
    yield not _near(found, [0.5, 0.5, 0.0]) and (
        f"a million to the power of 100 is too large for a float: divide first; found {_shown(found)}"
    )
    for wrong in (([10, 20], 0.0), ([10, 20], -1.0), ([10, 0], 1.0), ([10, 20], 1.0, 0), ([10, 20], 1.0, -5)):
        try:
            mixing(*wrong)
        except ValueError:
            continue
        except Exception as error:
            yield f"mixing{wrong} should raise a ValueError, not a {type(error).__name__}"
            continue
        yield f"mixing{wrong} should raise a ValueError: sizes, temperature and limit must be above 0"


def _lowest(uncertainty_loss, loss, kind):
    """Where the loss of one task is lowest over s between -6 and 6, by halving on the slope."""
    low, high = -6.0, 6.0
    for _ in range(30):
        s = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(uncertainty_loss([torch.tensor(loss)], [s], [kind]), s)
        low, high = (low, s.item()) if slope > 0 else (s.item(), high)
    return (low + high) / 2


@exercise("uncertainty_loss", reference=_uncertainty_loss, minutes=8)
def check_uncertainty_loss(uncertainty_loss):
    """The Gaussian's likelihood, the minima over s, slopes in the losses, sums over tasks, gradients for both."""
    losses = [torch.tensor(x, requires_grad=True) for x in (2.0, 1.5, 3.0)]
    log_vars = [torch.tensor(x, requires_grad=True) for x in (0.5, -1.0, 2.0)]
    kinds = ["rating", "class", "span"]
    total = uncertainty_loss(losses, log_vars, kinds)
    if not torch.is_tensor(total) or total.dim() or not total.requires_grad:
        yield "the sum should be a scalar tensor that carries gradients"
        return
    slopes = torch.autograd.grad(total, [*losses, *log_vars], allow_unused=True)
    yield None in slopes and "losses and log-variances both need gradients: neither may be detached"
    if None in slopes:
        return
    # a rating: minus the mean log-likelihood of a normal distribution, without its constant
    rated, output = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, -1.0, 1.0, 1.0])
    mse = ((rated - output) ** 2).mean()
    for s in (-1.0, 0.0, 1.5):
        normal = torch.distributions.Normal(output, math.exp(s / 2))
        wanted = -normal.log_prob(rated).mean().item() - 0.5 * math.log(2 * math.pi)
        found = float(uncertainty_loss([mse], [torch.tensor(s)], ["rating"]))
        yield abs(found - wanted) > 1e-5 and (
            f"a rating with s = {s}: minus the Gaussian's mean log-likelihood is {wanted:.4f} (without its constant), "
            f"not {found:.4f}; s is log sigma^2"
        )
    for loss in (0.2, 3.0):
        found = _lowest(uncertainty_loss, loss, "rating")
        yield abs(found - math.log(loss)) > 0.01 and (
            f"a rating's optimum is sigma^2 = L: for L = {loss} at s = {math.log(loss):.3f}, not {found:.3f}"
        )
        for kind in ("class", "span"):
            found = _lowest(uncertainty_loss, loss, kind)
            yield abs(found - math.log(2 * loss)) > 0.01 and (
                f"the optimum of a {kind} is sigma^2 = 2 L: for L = {loss} at s = {math.log(2 * loss):.3f}, "
                f"not {found:.3f}"
            )
    wanted = [0.5 * math.exp(-0.5), math.exp(1.0), math.exp(-2.0)]
    yield not _near([g.item() for g in slopes[:3]], wanted, 1e-5) and (
        f"the three losses should weigh {_shown(wanted)}, not {_shown(g.item() for g in slopes[:3])}"
    )
    alone = sum(uncertainty_loss([a], [b], [c]).item() for a, b, c in zip(losses, log_vars, kinds, strict=True))
    yield abs(total.item() - alone) > 1e-5 and "the loss of several tasks should be the sum of theirs, not a mean"


def _gradnorm_cases():
    yield {
        "weights": [1.0, 1.0],
        "norms": [3.0, 1.0],
        "losses": [1.0, 1.0],
        "first": [2.0, 2.0],
        "alpha": 1.5,
        "rate": 0.1,
    }
    yield {
        "weights": [0.5, 2.0, 0.5],
        "norms": [4.0, 1.0, 0.2],
        "losses": [1.0, 0.5, 2.0],
        "first": [2.0, 3.0, 2.2],
        "alpha": 0.5,
        "rate": 0.05,
    }
    yield {
        "weights": [1.2, 0.3, 1.5],
        "norms": [100.0, 1.0, 2.0],
        "losses": [90.0, 1.0, 0.1],
        "first": [100.0, 1.2, 1.0],
        "alpha": 1.0,
        "rate": 0.2,
    }


@exercise("gradnorm_step", reference=_gradnorm_step, minutes=12)
def check_gradnorm_step(gradnorm_step):
    """The sum of the weights, a case by hand, autograd over GradNorm's loss, units, balance, alpha."""
    case = next(_gradnorm_cases())
    copies = {name: list(value) if isinstance(value, list) else value for name, value in case.items()}
    found = gradnorm_step(**case)
    if not isinstance(found, list) or len(found) != 2:
        yield f"two weights should give a list of two, not {found!r}"
        return
    yield case != copies and "the lists were changed: work on copies"
    # norms 3 and 1, both targets 2: slopes +3 and -1, over the mean 2
    low, high = math.exp(-0.1 * 1.5), math.exp(0.1 * 0.5)
    wanted = [2 * low / (low + high), 2 * high / (low + high)]
    yield not _near(found, wanted) and (
        f"weights 1 and 1, norms 3 and 1, losses alike, rate 0.1: the targets are 2 and 2, the slopes 3/2 and -1/2, "
        f"the new weights {_shown(wanted)}, not {_shown(found)}"
    )
    for case in _gradnorm_cases():
        found, wanted = gradnorm_step(**case), _gradnorm_step(**case)
        yield abs(sum(found) - len(found)) > 1e-6 and f"the weights should sum to {len(found)}, not {sum(found):.4g}"
        yield not _near(found, wanted) and (
            f"autograd steps the logarithms of {_shown(case['weights'])} with alpha {case['alpha']} to "
            f"{_shown(wanted)}, not {_shown(found)}; the targets are constants"
        )
        louder = case | {"norms": [100 * norm for norm in case["norms"]]}
        yield (
            not _near(gradnorm_step(**louder), found) and "norms a hundred times as large, all of them, change nothing"
        )
        units = case | {name: [10 * x for x in case[name]] for name in ("losses", "first")}
        yield (
            not _near(gradnorm_step(**units), found)
            and "a loss counts by its share of the first one: units are no matter"
        )
    even = {
        "weights": [1.0, 1.0],
        "norms": [3.0, 1.0],
        "losses": [0.75, 0.25],
        "first": [1.0, 1.0],
        "alpha": 1.0,
        "rate": 0.1,
    }
    yield (
        not _near(gradnorm_step(**even), [1.0, 1.0]) and "where each weighted norm is at its target nothing should move"
    )
    slow = {
        "weights": [1.0, 1.0],
        "norms": [1.0, 1.0],
        "losses": [2.0, 0.5],
        "first": [2.0, 2.0],
        "alpha": 1.5,
        "rate": 0.1,
    }
    found = gradnorm_step(**slow)
    yield found[0] <= found[1] and "the task that has learned less of its loss away should gain weight"
    yield not _near(gradnorm_step(**slow | {"alpha": 0.0}), [1.0, 1.0]) and "with alpha 0 only the norms count"
