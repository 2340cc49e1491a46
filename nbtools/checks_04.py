"""The checks of lesson 04: lora_forward, inject and rank_for_energy.

Ground truth: a forward pass worked out by hand and autograd's derivative, trees of modules whose names are known, and
matrices that are built from known singular values.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nbtools.checks import exercise


def _lora_forward(x, weight, bias, A, B, alpha):
    low = torch.einsum("...i,ri->...r", x, A)
    return F.linear(x, weight, bias) + F.linear(low, B) * (alpha / B.shape[1])


def _inject(model, targets, wrap):
    places = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if {".".join([*path.split("."), name][-i:]) for i in range(1, 20)} & {*targets}
    ]
    if not places:
        raise ValueError(f"no layer is called {' or '.join(targets)}; look at model.named_modules()")
    if odd := [name for _, name, child in places if not isinstance(child, nn.Linear)]:
        raise TypeError(f"{odd[0]} is not an nn.Linear: it may be wrapped already")
    model.requires_grad_(False)
    for parent, name, child in places:
        setattr(parent, name, wrap(child))


def _rank_for_energy(update, share=0.9):
    energy = torch.linalg.svdvals(update.double()) ** 2
    total, held = energy.sum(), 0.0
    for k, part in enumerate(energy):
        if held >= share * total * (1 - 1e-9):
            return k
        held += part
    return len(energy)


@exercise("lora_forward", reference=_lora_forward, minutes=5)
def check_lora_forward(lora_forward):
    """By hand at two alphas, with and without bias, over two leading dimensions; then what gets a gradient."""
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.ones(3)
    A, B = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    given = [t.clone() for t in (x, weight, bias, A, B)]
    for alpha, wanted in ((2, [5.0, 2.0, 5.0]), (4, [8.0, 1.0, 6.0]), (1, [3.5, 2.5, 4.5])):
        y = lora_forward(x, weight, bias, A, B, alpha)
        if tuple(y.shape) != (1, 3):
            yield f"x (1, 2), weight (3, 2), rank 2: the answer should have shape (1, 3), but has {tuple(y.shape)}"
            return
        found = [round(v, 4) for v in y[0].tolist()]
        yield found != wanted and f"alpha {alpha}, rank 2: [1, 2] should become {wanted}, but becomes {found}"
    now = zip("x weight bias A B".split(), (x, weight, bias, A, B), given, strict=True)
    changed = [name for name, tensor, was in now if not tensor.equal(was)]
    yield changed and f"{' and '.join(changed)} changed in place: return a new tensor"
    y = lora_forward(x, weight, None, A, B, 2)
    yield (
        y[0].tolist() != [4.0, 1.0, 4.0] and f"without bias [1, 2] should become [4, 1, 4], but becomes {y[0].tolist()}"
    )
    x, weight, A, B = torch.randn(4, 5, 7), torch.randn(6, 7), torch.randn(3, 7), torch.randn(6, 3)
    y, merged = lora_forward(x, weight, None, A, B, 16), x @ (weight + 16 / 3 * B @ A).T
    fits = y.shape == merged.shape and torch.allclose(y, merged, atol=1e-3)
    yield not fits and "x (4, 5, 7), rank 3: the answer should be x times the transpose of weight + alpha / r B A"
    zero = torch.zeros(6, 3)
    yield not torch.equal(lora_forward(x, weight, None, A, zero, 16), x @ weight.T) and "with B = 0 W x should come out"
    leaves, grads = [t.requires_grad_() for t in (x, A, B)], []
    for y in (lora_forward(x, weight, None, A, B, 16), x @ (weight + 16 / 3 * B @ A).T):
        grads.append(torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, materialize_grads=True))
    for name, ours, truth in zip(("x", "A", "B"), *grads, strict=True):
        right = torch.allclose(ours, truth, rtol=1e-3, atol=1e-2 * truth.abs().max().item())
        yield not right and f"the gradient of {name} is wrong or missing: is something detached?"


class _Marked(nn.Module):
    """What the checks wrap with: it keeps the layer under a name of its own, and has a parameter that trains."""

    def __init__(self, base):
        super().__init__()
        self.base, self.extra = base, nn.Parameter(torch.zeros(1))


def _module(**children):
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def _tree():
    """A small network of look-alike names: `values` begins like a target, `subquery` ends like one."""
    blocks = [
        _module(**{name: nn.Linear(4, 4) for name in ("query", "value", "values", "subquery")}, norm=nn.LayerNorm(4))
        for _ in range(2)
    ]
    return _module(blocks=nn.ModuleList(blocks), value=nn.Linear(4, 4), out=nn.Linear(4, 2))


def _wrapped(model):
    return {name for name, m in model.named_modules() if isinstance(m, _Marked)}


@exercise("inject", reference=_inject, minutes=8)
def check_inject(inject):
    """Which layers are wrapped and which train, on a tree of look-alike names; then three calls that must fail."""
    model = _tree()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    inject(model, ("query", "value"), _Marked)
    want, got = {f"blocks.{i}.{n}" for i in (0, 1) for n in ("query", "value")} | {"value"}, _wrapped(model)
    yield want - got and f"{min(want - got)} should be wrapped and is not"
    yield got - want and f"{min(got - want)} should not be wrapped: no target names it"
    kept = [n for n in want & got if model.get_submodule(n).base is not layers[n]]
    yield kept and f"{kept[0]} holds another layer than the one that was there: wrap(layer) must get the layer itself"
    train = {n for n, p in model.named_parameters() if p.requires_grad}
    extra = {f"{n}.extra" for n in got}
    yield train - extra and f"{min(train - extra)} should be frozen"
    yield extra - train and f"{min(extra - train)} belongs to a wrapper and should train: freeze before you wrap"
    model = _tree()
    inject(model, ("1.value", "subquery"), _Marked)
    want, got = {"blocks.1.value", "blocks.0.subquery", "blocks.1.subquery"}, _wrapped(model)
    yield want != got and f"targets 1.value and subquery name {sorted(want)}, but wrapped are {sorted(got)}"
    for targets, kind, what in (
        (("quary",), ValueError, "nothing matches"),
        (("query", "norm"), TypeError, "norm is a LayerNorm"),
        ((), ValueError, "targets is empty"),
    ):
        model = _tree()
        yield _refuses(inject, model, targets, kind, what)
        if not all(p.requires_grad for p in model.parameters()) or _wrapped(model):
            yield f"{what}: the model should be left as it was, but has changed"
    model = _tree()
    inject(model, ("query",), _Marked)
    yield _refuses(inject, model, ("query",), TypeError, "query is wrapped already")
    deep = [n for n in _wrapped(model) if _wrapped(model.get_submodule(n)) - {""}]
    yield deep and f"{deep[0]} is wrapped twice"


def _refuses(inject, model, targets, kind, what):
    try:
        inject(model, targets, _Marked)
    except kind:
        return None
    except Exception as error:
        return f"{what}: a {kind.__name__} was asked for, not {type(error).__name__}: {error}"
    return f"{what}: a {kind.__name__} was asked for, and nothing was raised"


@exercise("rank_for_energy", reference=_rank_for_energy, minutes=5)
def check_rank_for_energy(rank_for_energy):
    """Matrices with known singular values, wide and tall, at several shares; a matrix of zeros."""
    u, v = torch.linalg.qr(torch.randn(6, 6))[0], torch.linalg.qr(torch.randn(9, 9))[0]
    sigma = torch.tensor([4.0, 2.0, 2.0, 1.0, 0.0, 0.0])  # squares 16, 4, 4, 1 of 25
    wide = u * sigma @ v[:, :6].T  # (6, 9)
    for share, k in ((0.5, 1), (0.7, 2), (0.9, 3), (0.97, 4), (0.99, 4), (1.0, 4)):
        for name, matrix in (("6 x 9", wide), ("9 x 6", wide.T)):
            found = rank_for_energy(matrix, share if share < 1 else 0.99999)
            yield found != k and f"singular values 4, 2, 2, 1 ({name}), share {share}: should be {k}, but is {found}"
    found = rank_for_energy(-3 * wide)
    yield found != 3 and f"share left out: it is 0.9, so singular values 12, 6, 6, 3 need 3, but it is {found}"
    found = rank_for_energy(torch.eye(10), 0.9)
    yield found != 9 and f"ten equal singular values, share 0.9: should be 9, but is {found}"
    found = rank_for_energy(torch.zeros(3, 5))
    yield found != 0 and f"a matrix of zeros: should be 0, but is {found}"
    kind = type(rank_for_energy(wide))
    yield kind is not int and f"the answer should be an int, not a {kind.__name__}"
