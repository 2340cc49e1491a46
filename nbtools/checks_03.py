"""The checks of lesson 03: fisher, ewc_penalty and interpolate.

Ground truth: the Fisher information of softmax regression in closed form and torch.func's per-row gradients; the
penalty's value, gradient and curvature by hand; plain arithmetic on numbers that are exact in binary.
"""

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from nbtools.checks import exercise


def _fisher(forward, params, rows):
    found = dict.fromkeys(params, 0.0)
    for row in rows:
        logp = torch.log_softmax(forward(row), -1).reshape(-1)
        for value in logp.unbind():
            grads = torch.autograd.grad(value, [*params.values()], retain_graph=True)
            weight = value.detach().exp() / len(rows)
            found = {name: found[name] + weight * g**2 for name, g in zip(params, grads, strict=True)}
    return found


def _ewc_penalty(params, start, fisher):
    total = 0.0
    for name, weight in fisher.items():
        way = params[name] - start[name]
        total = total + 0.5 * (weight * way * way).sum()
    return total


def _interpolate(start, end, share):
    found = {}
    for name, b in end.items():
        a = start.get(name)
        averaged = a is not None and torch.is_floating_point(b)
        found[name] = a * (1 - share) + b * share if averaged else b.clone()
    return found


def _alike(found, wanted, rtol=1e-4):
    """None, or the first name whose tensor differs."""
    for name, tensor in wanted.items():
        if not torch.allclose(found[name].detach().double(), tensor.double(), rtol=rtol, atol=1e-7):
            return name
    return None


def _shaped(found, params):
    return (
        isinstance(found, dict)
        and found.keys() == params.keys()
        and all(torch.is_tensor(t) and t.shape == params[name].shape for name, t in found.items())
    )


@exercise("fisher", reference=_fisher, minutes=12)
def check_fisher(fisher):
    """Softmax regression in closed form; a small net against torch.func; the mean over rows; nothing left behind."""
    layer, x = nn.Linear(5, 3), torch.randn(7, 1, 5)
    params, rows = dict(layer.named_parameters()), list(x)
    before = {name: p.detach().clone() for name, p in params.items()}
    state = torch.get_rng_state()
    found = fisher(layer, params, rows)
    if not _shaped(found, params):
        yield "the answer should be a dict with a tensor of the parameter's shape for each name in params"
        return
    yield any(t.requires_grad for t in found.values()) and "the answer still hangs on a graph: detach it"
    p = layer(x[:, 0]).softmax(-1).detach()  # (7, 3)
    spread = p * (1 - p)  # the variance of [y = c] - p, which is the gradient of log p(y) by logit c
    wanted = {"weight": spread.T @ x[:, 0].square() / 7, "bias": spread.mean(0)}
    for name in wanted:
        ratio = (found[name].sum() / wanted[name].sum()).item()
        yield _alike(found, {name: wanted[name]}) and (
            f"softmax regression, {name}: the mean over x of p (1 - p) x^2 is not what you have; your sum is "
            f"{ratio:.3g} times as large"
        )
    once, twice = fisher(layer, params, rows[:2]), fisher(layer, params, rows[:2] * 2)
    yield _alike(twice, once) and "each row given twice should change nothing: take the mean over the rows"
    again = fisher(layer, params, rows)
    yield _alike(again, found) and "a second call gives something else: the exact Fisher draws no labels"
    yield not state.equal(torch.get_rng_state()) and "random numbers were drawn: the exact Fisher needs none"
    yield any(p.grad is not None for p in layer.parameters()) and "gradients were left in .grad"
    yield _alike(params, before, 0) and "the parameters were changed"
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    some, x = {"0.weight": net[0].weight, "2.bias": net[2].bias}, torch.randn(5, 4)
    detached = {name: p.detach() for name, p in net.named_parameters()}

    def log_prob(weights, row, c):
        return functional_call(net, weights, (row[None],)).log_softmax(-1)[0, c]

    wanted, p = dict.fromkeys(some, 0.0), net(x).softmax(-1).detach()
    for c in range(4):
        grads = vmap(grad(log_prob), in_dims=(None, 0, None))(detached, x, c)
        wanted = {n: wanted[n] + torch.einsum("n,n...->...", p[:, c], grads[n] ** 2) / 5 for n in some}
    found = fisher(net, some, list(x[:, None]))
    if not _shaped(found, some):
        yield "only the parameters in params should be in the answer"
        return
    yield (name := _alike(found, wanted)) and f"a net with a hidden layer, {name}: torch.func's gradients give another"


@exercise("ewc_penalty", reference=_ewc_penalty, minutes=5)
def check_ewc_penalty(ewc_penalty):
    """Zero at the start; the value, gradient and symmetry by hand; what the Fisher does not name is free."""
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    weights = {"a": torch.tensor([4.0, 0.5]), "b": torch.tensor([[2.0]])}
    params = {"a": torch.tensor([2.0, 2.0]), "b": torch.tensor([[-0.5]])}
    params = {name: p.requires_grad_() for name, p in params.items()}
    found = ewc_penalty(params, start, weights)
    if not torch.is_tensor(found) or found.numel() != 1:
        yield "the answer should be one number, as a tensor"
        return
    yield abs(found.item() - 7) > 1e-5 and (
        f"moves of 1, 4 and -1 under weights 4, 0.5 and 2 cost (4 + 8 + 2) / 2 = 7, not {found.item():.4g}"
    )
    if not found.requires_grad:
        yield "no gradient reaches params: the penalty could not hold anything"
        return
    found.sum().backward()
    for name, wanted in (("a", torch.tensor([4.0, 2.0])), ("b", torch.tensor([[-2.0]]))):
        grad_of = params[name].grad
        yield (grad_of is None or not torch.allclose(grad_of, wanted)) and (
            f"the gradient by {name} should be F (theta - theta*) = {wanted.flatten().tolist()}"
        )
    there = {name: value.clone().requires_grad_() for name, value in start.items()}
    yield ewc_penalty(there, start, weights).item() != 0 and "at the start itself the penalty should be 0"
    more = params | {"head": torch.ones(3, requires_grad=True)}
    try:
        free = ewc_penalty(more, start, weights).item() == ewc_penalty(params, start, weights).item()
    except KeyError:
        free = False
    yield not free and "a parameter that fisher does not name (a new head) should be left free"
    kept = {"a": torch.zeros(2)}
    yield ewc_penalty(params, start, kept).item() != 0 and "weights with Fisher 0 should be free"
    values = {"a": torch.randn(50), "b": torch.randn(3, 4)}
    anchor, f = ({n: torch.randn_like(v).abs() for n, v in values.items()} for _ in range(2))
    wanted = sum(float((f[n] * (values[n] - anchor[n]) ** 2).sum()) for n in values) / 2
    found = ewc_penalty(values, anchor, f).item()
    yield abs(found - wanted) > 1e-4 * wanted and f"random numbers: {found:.5g} instead of {wanted:.5g}"


@exercise("interpolate", reference=_interpolate, minutes=6)
def check_interpolate(interpolate):
    """Exact arithmetic; both ends to the bit; a new head and whole numbers from the end; types; nothing shared."""
    start = {"w": torch.tensor([1.0, -2.0, 4.0]), "steps": torch.tensor(3), "half": torch.tensor([8.0]).bfloat16()}
    end = {"w": torch.tensor([3.0, 2.0, 0.0]), "steps": torch.tensor(8), "half": torch.tensor([4.0]).bfloat16()}
    end |= {"head": torch.tensor([5.0, 7.0])}
    copies = [{name: t.clone() for name, t in state.items()} for state in (start, end)]
    found = interpolate(start, end, 0.25)
    if not isinstance(found, dict) or found.keys() != end.keys():
        yield "the answer should be a dict with just the names of the end"
        return
    yield found["w"].tolist() != [1.5, -1.0, 3.0] and (
        f"a quarter of the way from [1, -2, 4] to [3, 2, 0] lies [1.5, -1, 3], not {found['w'].tolist()}"
    )
    yield (
        found["head"].tolist() != [5.0, 7.0] and "a head that the start does not have should come from the end as it is"
    )
    yield (found["steps"].dtype != torch.int64 or found["steps"].item() != 8) and (
        "a whole number (a counter) is not averaged: it comes from the end, in its type"
    )
    yield (found["half"].dtype != torch.bfloat16 or found["half"].item() != 7) and "each tensor should keep its type"
    states = zip((start, end), copies, strict=True)
    yield any(not torch.equal(s[n], c[n]) for s, c in states for n in c) and "start or end was changed in place"
    for tensor in found.values():
        tensor.add_(1)
    states = zip((start, end), copies, strict=True)
    yield any(not torch.equal(s[n], c[n]) for s, c in states for n in c) and (
        "the answer shares memory with start or end: training on would change them"
    )
    a, b = {"w": torch.randn(1000)}, {"w": torch.randn(1000)}
    yield not interpolate(a, b, 0.0)["w"].equal(a["w"]) and "share 0 should give the start, to the bit"
    yield not interpolate(a, b, 1.0)["w"].equal(b["w"]) and "share 1 should give the end, to the bit"
    wanted = a["w"].double() * 0.7 + b["w"].double() * 0.3
    yield not torch.allclose(interpolate(a, b, 0.3)["w"].double(), wanted, atol=1e-6) and "share 0.3: wrong numbers"
    beyond = interpolate(a, b, 1.5)["w"]
    yield not torch.allclose(beyond, 1.5 * b["w"] - 0.5 * a["w"], atol=1e-5) and "a share above 1 goes beyond the end"
