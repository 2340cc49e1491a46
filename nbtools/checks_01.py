"""The checks of lesson 01: unfreeze_top, param_groups and mixup.

Ground truth: a stage is known by how its parameters' names begin, rates and mixtures were worked out by hand. The
references find stages another way. In the checks `yield wrong and sentence` is falsy where nothing is wrong.
"""

import functools
import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from nbtools.checks import exercise

STAGES = {  # from the stem to the head; a stage with two beginnings is a convolution and its norm
    "EfficientNet-Lite0": ["conv_stem bn1", *(f"blocks.{i}" for i in range(7)), "conv_head bn2", "classifier"],
    "ResNet-18": ["conv1 bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
}


def _some(names):
    """A few names in words: `a, b and 7 more`."""
    names = sorted(names)
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _on_networks(look):
    """The check that looks at two untrained networks, at the second only if nothing is wrong with the first."""

    @functools.wraps(look)
    def check(fn):
        import timm
        from torchvision.models import resnet18

        models = timm.create_model("tf_efficientnet_lite0", num_classes=10), resnet18(num_classes=10)
        for (title, stages), model in zip(STAGES.items(), models, strict=True):
            parts = {s: [n for n, _ in model.named_parameters() if n.startswith(tuple(s.split()))] for s in stages}
            problems = list(look(fn, title, model, parts))
            yield from problems
            if any(problems):
                return

    return check


def _parts(model):
    """The parameters of each stage, from stem to head: what has parameters begins a stage, a norm joins the last."""
    found = []
    for name, child in model.named_children():
        for part in child if name == "blocks" else [child]:
            if isinstance(part, nn.BatchNorm2d):
                found[-1] += part.parameters()
            elif params := list(part.parameters()):
                found.append(params)
    return found


def _unfreeze_top(model, k):
    for below, params in enumerate(_parts(model)[::-1]):
        for p in params:
            p.requires_grad = below < k


def _param_groups(model, lr, decay):
    groups = []
    for params in _parts(model)[::-1]:
        groups.append({"params": params, "lr": groups[-1]["lr"] * decay if groups else lr})
    return groups


def _mixup(x, y, lam, order, classes=10):
    hard = torch.eye(classes, device=y.device)[y]  # (B, classes)
    return torch.lerp(x[order], x, lam), torch.lerp(hard[order], hard, lam)


@exercise("unfreeze_top", reference=_unfreeze_top, minutes=5)
@_on_networks
def check_unfreeze_top(unfreeze_top, title, model, parts):
    """From all open to few, more, all, all but one, none: each call must both freeze and open."""
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    for k in (1, 3, len(parts), len(parts) - 1, 0):
        unfreeze_top(model, k)
        top = {name for stage in list(parts)[len(parts) - k :] for name in parts[stage]}
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        where = f"{title}, k = {k} of {len(parts)} stages"
        yield trains - top and f"{where}: {_some(trains - top)} should be frozen"
        yield top - trains and f"{where}: {_some(top - trains)} should train"
    other = [n for n, p in model.named_parameters() if p is not before[n][0] or not torch.equal(p, before[n][1])]
    yield other and f"{title}: only requires_grad may change, but {_some(other)} is new or has new values"


@exercise("param_groups", reference=_param_groups, minutes=8)
@_on_networks
def check_param_groups(param_groups, title, model, parts):
    """Each parameter once, one group a stage, and each stage's rate; lr and decay differ between the networks."""
    lr, decay = {"ResNet-18": (0.3, 0.8)}.get(title, (0.01, 0.5))
    where, groups = f"{title}, lr {lr}, decay {decay}", list(param_groups(model, lr, decay))
    keys = [sorted(group) for group in groups if not {"params", "lr"} <= {*group}]
    yield keys and f'{where}: a group needs "params" and "lr", and one has {keys[0]}'
    if keys:
        return
    names = {id(p): name for name, p in model.named_parameters()}
    lists = [[names.get(id(p)) for p in group["params"]] for group in groups]  # None: not the model's
    seen = Counter(name for each in lists for name in each)
    missing, twice = [n for n in names.values() if not seen[n]], [n for n in names.values() if seen[n] > 1]
    yield missing and f"{where}: {len(missing)} of {len(names)} parameters are in no group: {_some(missing)}"
    yield twice and f"{where}: more than once in the groups: {_some(twice)}"
    yield seen[None] and f"{where}: {seen[None]} tensors in the groups are not the model's parameters"
    yield len(groups) != len(parts) and f"{where}: {len(groups)} groups for {len(parts)} stages"
    rates, wrong = {name: group["lr"] for group, each in zip(groups, lists, strict=True) for name in each}, []
    for depth, stage in enumerate(reversed(parts)):
        want, got = lr * decay**depth, sorted({rates[name] for name in parts[stage] if name in rates})
        if not all(math.isclose(rate, want, rel_tol=1e-6) for rate in got):
            wrong.append(f"{' and '.join(f'{rate:.4g}' for rate in got)} instead of {want:.4g} for {stage}")
    yield wrong and f"{where}: rates are wrong in {len(wrong)} stages: {', '.join(wrong[:2])}"
    if not (missing or twice or wrong):
        torch.optim.AdamW(param_groups(model, lr, decay))  # what it refuses, its exception says


@exercise("mixup", reference=_mixup, minutes=8)
def check_mixup(mixup):
    """Images of 1, 10, 100, 1,000, one paired with its own class, one with itself; then random ones and their loss."""
    y, order = torch.tensor([3, 7, 7, 0]), torch.tensor([2, 0, 1, 3])
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(4, 1, 1, 1).repeat(1, 3, 2, 2)
    given = {"x": x.clone(), "y": y.clone(), "order": order.clone()}
    mixed, soft = mixup(x, y, 0.25, order)
    changed = [name for name, now in zip(given, (x, y, order), strict=True) if not torch.equal(now, given[name])]
    yield changed and f"{' and '.join(changed)} changed in place: return new tensors"
    got, wanted = (tuple(mixed.shape), tuple(soft.shape), soft.dtype), ((4, 3, 2, 2), (4, 10), torch.float32)
    yield got != wanted and f"images, labels and the labels' type should be {wanted}, but are {got}"
    if got != wanted:
        return
    case, hand = "lam 0.25, order 2, 0, 1, 3", [75.25, 3.25, 32.5, 1e3]
    found = [round(v, 4) for v in mixed[:, 2, 1, 0].tolist()]
    yield found != hand and f"{case}: images of 1, 10, 100, 1000 should become {hand}, but are {found}"
    hand = [{3: 0.25, 7: 0.75}, {3: 0.75, 7: 0.25}, {7: 1.0}, {0: 1.0}]
    found = [{c: round(v, 2) for c, v in enumerate(row) if abs(v) > 1e-5} for row in soft.tolist()]
    yield found != hand and f"{case}: labels 3, 7, 7, 0 should become {hand}, but are {found}"
    x, y, order, logits = torch.randn(6, 3, 4, 5), torch.randint(4, (6,)), torch.randperm(6), torch.randn(6, 4)
    for lam, index, what in ((1.0, torch.arange(6), "x and y"), (0.0, order, "x[order] and y[order]")):
        mixed, soft = mixup(x.clone(), y, lam, order, 4)
        same = torch.allclose(mixed, x[index]) and torch.allclose(soft, (y[index, None] == torch.arange(4)).float())
        yield not same and f"lam = {lam}, 4 classes: images and labels should be those of {what}, and are not"
    mixed, soft = mixup(x.clone(), y, 0.7, order, classes=4)
    yield not torch.allclose(mixed - x[order], 0.7 * (x - x[order]), atol=1e-5) and "lam = 0.7: some pixels are wrong"
    sums = soft.sum(1)
    yield max(abs(sums - 1)) > 1e-4 and f"lam = 0.7: each label should sum to 1, but they sum to {sums.tolist()}"
    loss, (a, b) = F.cross_entropy(logits, soft), [F.cross_entropy(logits, labels) for labels in (y, y[order])]
    far = abs(loss - 0.7 * a - 0.3 * b) > 1e-4
    yield far and f"lam = 0.7: cross-entropy is {loss:.4f}, but should be 0.7 x {a:.4f} + 0.3 x {b:.4f}"
