"""The checks of lesson 05: prepend, dead_parameters and add_updates.

Ground truth: an attention worked out token by token, models whose dead parts are known because they were built so, and
matrices multiplied out.
"""

import torch
from torch import nn

from nbtools.checks import exercise


def _prepend(key, value, mask, prefix_key, prefix_value):
    B, H, T, d = key.shape
    P = prefix_key.shape[0]

    def join(prefix, rest):
        rows = torch.stack([prefix[:, h * d : (h + 1) * d] for h in range(H)]).to(rest.dtype)  # (H, P, d)
        return torch.cat([rows.repeat(B, 1, 1, 1), rest], dim=2)

    if mask is not None:
        mask = torch.cat([torch.ones(*mask.shape[:-1], P, dtype=torch.bool, device=mask.device), mask], dim=-1)
    return join(prefix_key, key), join(prefix_value, value), mask


def _dead_parameters(model, loss):
    for p in model.parameters():
        p.grad = None
    loss.backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def _add_updates(updates, weights):
    A = torch.vstack([A for A, _, _ in updates])
    return A, torch.hstack([weight * scale * B for (_, B, scale), weight in zip(updates, weights, strict=True)])


def _case(B, H, T, d, P, dtype=torch.float32):
    key, value = torch.randn(2, B, H, T, d).to(dtype)
    return key, value, *torch.randn(2, P, H * d)


@exercise("prepend", reference=_prepend, minutes=8)
def check_prepend(prepend):
    """Shapes and places, number by number; masks; types; gradients of the prefix."""
    for B, H, T, d, P in ((1, 1, 2, 3, 1), (2, 3, 4, 2, 5), (3, 2, 4, 2, 2)):
        where = f"B, H, T, d, P = {B}, {H}, {T}, {d}, {P}"
        key, value, pk, pv = _case(B, H, T, d, P)
        mask = torch.rand(B, 1, T, T) < 0.6
        given = [t.clone() for t in (key, value, mask, pk, pv)]
        k, v, m = prepend(key, value, mask, pk, pv)
        for name, found, rest, prefix in (("key", k, key, pk), ("value", v, value, pv)):
            if tuple(found.shape) != (B, H, P + T, d):
                yield f"{where}: {name} should have shape {(B, H, P + T, d)}, but has {tuple(found.shape)}"
                return
            yield not torch.equal(found[:, :, P:], rest) and f"{where}: the sentence's {name}s should follow the prefix"
            want = [[prefix[p, h * d : (h + 1) * d].tolist() for p in range(P)] for h in range(H)]
            good = all(found[b, :, :P].tolist() == want for b in range(B))
            yield (
                not good
                and f"{where}: row p, columns h d to (h + 1) d of the prefix are virtual token p of head h ({name})"
            )
        shape = None if m is None else tuple(m.shape)
        if shape != (B, 1, T, P + T):
            yield f"{where}: the mask should have shape {(B, 1, T, P + T)}, but has {shape}"
            return
        yield m.dtype != torch.bool and f"the mask should stay boolean, but is {m.dtype}"
        yield (
            not m[..., :P].all()
            and f"{where}: every query may look at the prefix, so the mask's first {P} keys are True"
        )
        yield not torch.equal(m[..., P:], mask) and f"{where}: the mask of the sentence's own keys should be as it was"
        now = zip("key value mask prefix_key prefix_value".split(), (key, value, mask, pk, pv), given, strict=True)
        changed = [name for name, t, old in now if not torch.equal(t, old)]
        yield changed and f"{changed[0]} was changed; return new tensors"
    key, value, pk, pv = _case(2, 2, 3, 4, 2, torch.bfloat16)
    k, v, m = prepend(key, value, None, pk.requires_grad_(), pv.requires_grad_())
    yield m is not None and "without a mask (None) every query sees everything: return None"
    kinds = {k.dtype, v.dtype} - {torch.bfloat16}
    yield kinds and f"keys in bfloat16 should stay so, but became {kinds.pop()}"
    (k.float().sum() + 2 * v.float().sum()).backward()
    found = [None if p.grad is None else p.grad.unique().tolist() for p in (pk, pv)]
    yield (
        found != [[2.0], [4.0]]
        and f"the prefix should get its gradient from both sentences of the batch; it is {found}"
    )


class _Maze(nn.Module):
    """Parts that are used, unused, frozen, used but with a gradient of zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.zero = (nn.Parameter(torch.ones(2)) for _ in range(4))
        self.inner = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.frozen_unused = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        return self.inner["used"](x * self.a * self.frozen + 0 * self.zero).sum() + self.c.sum()


@exercise("dead_parameters", reference=_dead_parameters, minutes=6)
def check_dead_parameters(dead_parameters):
    """A model whose dead parts are known; gradients of zero; leftovers of an earlier step; a model without any."""
    x, want = torch.ones(3, 2), ["b", "inner.unused.weight", "inner.unused.bias"]
    model = _Maze()
    found = dead_parameters(model, model(x))
    if not isinstance(found, list) or any(not isinstance(name, str) for name in found):
        yield f"the answer should be a list of names, but is {found!r}"
        return
    yield "zero" in found and "`zero` has a gradient, though it is all zeros: it is not dead"
    yield {"frozen", "frozen_unused"} & {*found} and "a frozen parameter is not open, so it is not dead either"
    yield set(want) - {*found} and f"{min(set(want) - {*found})} does not enter the loss and should be named"
    extra = {*found} - {*want, "zero", "frozen", "frozen_unused"}
    yield extra and f"{min(extra)} enters the loss and should not be named"
    yield found != want and sorted(found) == sorted(want) and f"the names should be in the model's order: {want}"
    model = _Maze()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    found = dead_parameters(model, model(x))
    yield found != want and f"with gradients left over from an earlier step: should be {want}, but is {found}"
    model.requires_grad_(False)
    model.c.requires_grad_(True)
    found = dead_parameters(model, model(x))
    yield found != [] and f"only c is open, and it is used: should be [], but is {found}"
    model.b.requires_grad_(True)
    found = dead_parameters(model, model(x))
    yield found != ["b"] and f"b and c are open, b is unused: should be ['b'], but is {found}"


def _updates(*shapes):
    return [(torch.randn(r, d_in), torch.randn(d_out, r), scale) for r, d_in, d_out, scale in shapes]


@exercise("add_updates", reference=_add_updates, minutes=6)
def check_add_updates(add_updates):
    """The product against the sum, multiplied out, for equal and unequal ranks and weights of any sign."""
    for shapes, weights in (
        ([(2, 7, 5, 1.0), (2, 7, 5, 1.0)], [1.0, 1.0]),
        ([(2, 7, 5, 2.0), (2, 7, 5, 0.5)], [0.5, 0.5]),
        ([(1, 6, 6, 4.0), (3, 6, 6, 2.0), (2, 6, 6, 1.0)], [0.2, 0.5, 3.0]),
        ([(2, 7, 5, 2.0), (2, 7, 5, 2.0)], [1.0, -1.0]),
        ([(2, 7, 5, 2.0)], [0.3]),
        ([(2, 5, 8, 2.0), (1, 5, 8, 1.0)], [0.0, 1.0]),
    ):
        updates = _updates(*shapes)
        given = [(A.clone(), B.clone()) for A, B, _ in updates]
        A, B = add_updates(updates, weights)
        what = f"ranks {[s[0] for s in shapes]}, scales {[s[3] for s in shapes]}, weights {weights}"
        rank, (_, d_in, d_out, _) = sum(s[0] for s in shapes), shapes[0]
        if tuple(A.shape) != (rank, d_in) or tuple(B.shape) != (d_out, rank):
            found = f"{tuple(A.shape)}, {tuple(B.shape)}"
            yield f"{what}: A and B should be {(rank, d_in)} and {(d_out, rank)}, but are {found}"
            continue
        want = sum(w * scale * b @ a for w, (a, b, scale) in zip(weights, updates, strict=True))
        error = (B @ A - want).abs().max().item()
        yield not error < 1e-4 and f"{what}: B @ A should be the weighted sum of the updates; it is off by {error:.3g}"
        same = all(torch.equal(a, c) and torch.equal(b, d) for (a, b, _), (c, d) in zip(updates, given, strict=True))
        yield not same and "the updates were changed; return new tensors"
