"""Answers to lesson 01's param_groups(model, lr, decay), wrong and right."""

import itertools

from torch import nn


def stages(model):
    """Modules of each stage from stem to head, as the lesson's `stages` gives them, without the names."""
    if hasattr(model, "layer1"):
        return [[model.conv1, model.bn1], *([getattr(model, f"layer{i}")] for i in range(1, 5)), [model.fc]]
    blocks = [[block] for block in model.blocks]
    return [[model.conv_stem, model.bn1], *blocks, [model.conv_head, model.bn2], [model.classifier]]


def parameters(modules):
    """The parameters of a stage."""
    return [p for module in modules for p in module.parameters()]


def wrong_direction(model, lr, decay):
    """The stem gets the full rate and the head the smallest."""
    return [{"params": parameters(modules), "lr": lr * decay**i} for i, modules in enumerate(stages(model))]


def wrong_linear(model, lr, decay):
    """The rate falls by the same amount from stage to stage, not by the same factor."""
    parts = stages(model)[::-1]
    return [{"params": parameters(m), "lr": lr * (1 - (1 - decay) * i / len(parts))} for i, m in enumerate(parts)]


def wrong_one_rate(model, lr, decay):
    """Every stage below the head gets the same smaller rate."""
    return [{"params": parameters(m), "lr": lr * decay ** min(i, 1)} for i, m in enumerate(stages(model)[::-1])]


def wrong_off_by_one(model, lr, decay):
    """The head's own rate is decayed too."""
    return [{"params": parameters(m), "lr": lr * decay**i} for i, m in enumerate(stages(model)[::-1], start=1)]


def wrong_fixed_decay(model, lr, decay):
    """Has the decay of an example written in."""
    return [{"params": parameters(modules), "lr": lr * 0.5**i} for i, modules in enumerate(stages(model)[::-1])]


def wrong_divides(model, lr, decay):
    """Divides by the decay, so that the rate grows towards the stem."""
    return [{"params": parameters(modules), "lr": lr / decay**i} for i, modules in enumerate(stages(model)[::-1])]


def wrong_without_the_head(model, lr, decay):
    """Starts below the head, which then never learns."""
    body = stages(model)[:-1]
    return [{"params": parameters(modules), "lr": lr * decay**i} for i, modules in enumerate(reversed(body), start=1)]


def wrong_first_module_only(model, lr, decay):
    """Takes the first module of a stage and leaves its norm out."""
    parts = stages(model)[::-1]
    return [{"params": list(modules[0].parameters()), "lr": lr * decay**i} for i, modules in enumerate(parts)]


def wrong_no_norms(model, lr, decay):
    """Leaves all norm layers out."""
    norms = {id(p) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()}
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        groups.append({"params": [p for p in parameters(modules) if id(p) not in norms], "lr": lr * decay**i})
    return groups


def wrong_weights_only(model, lr, decay):
    """Leaves the biases out."""
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        weights = [p for module in modules for name, p in module.named_parameters() if name.endswith("weight")]
        groups.append({"params": weights, "lr": lr * decay**i})
    return groups


def wrong_spent_generator(model, lr, decay):
    """Counts the parameters first, and after that the generator is empty."""
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        params = itertools.chain(*(module.parameters() for module in modules))
        size = sum(p.numel() for p in params)
        groups.append({"params": params, "lr": lr * decay**i, "size": size})
    return groups


def wrong_late_generator(model, lr, decay):
    """A generator looks `own` up when it is read: by then the loop is over, and every group holds the stem."""
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        own = {id(p) for p in parameters(modules)}
        groups.append({"params": (p for p in model.parameters() if id(p) in own), "lr": lr * decay**i})
    return groups


def wrong_head_twice(model, lr, decay):
    """One group holds everything, and the head has one of its own besides."""
    rest = [{"params": parameters(modules), "lr": lr * decay**i} for i, modules in enumerate(stages(model)[::-1])]
    return [*rest, {"params": list(stages(model)[-1][0].parameters()), "lr": lr}]


def wrong_same_parameters_twice_in_a_group(model, lr, decay):
    """Walks modules and their parameters recursively at once, so that each is met several times."""
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        params = [p for module in modules for layer in module.modules() for p in layer.parameters()]
        groups.append({"params": params, "lr": lr * decay**i})
    return groups


def wrong_one_group_a_parameter(model, lr, decay):
    """The right rates, but a group for every tensor."""
    return [{"params": [p], "lr": lr * decay**i} for i, m in enumerate(stages(model)[::-1]) for p in parameters(m)]


def wrong_two_groups(model, lr, decay):
    """Head and backbone only."""
    *body, head = stages(model)
    backbone = [p for modules in body for p in parameters(modules)]
    return [{"params": parameters(head), "lr": lr}, {"params": backbone, "lr": lr * decay}]


def wrong_name_of_the_rate(model, lr, decay):
    """The optimizer takes no notice of "learning_rate" and uses its own."""
    parts = stages(model)[::-1]
    return [{"params": parameters(m), "learning_rate": lr * decay**i} for i, m in enumerate(parts)]


def wrong_names_instead_of_parameters(model, lr, decay):
    """The groups hold (name, parameter) pairs of each module."""
    groups = []
    for i, modules in enumerate(stages(model)[::-1]):
        groups.append({"params": [pair for m in modules for pair in m.named_parameters()], "lr": lr * decay**i})
    return groups


def wrong_copies(model, lr, decay):
    """Detached copies: the optimizer is content, and the model never changes."""
    parts = stages(model)[::-1]
    return [{"params": [p.detach().clone() for p in parameters(m)], "lr": lr * decay**i} for i, m in enumerate(parts)]


def wrong_set(model, lr, decay):
    """An optimizer refuses a set, whose order is not fixed."""
    return [{"params": set(parameters(m)), "lr": lr * decay**i} for i, m in enumerate(stages(model)[::-1])]


def right_from_the_stem_up(model, lr, decay):
    parts = stages(model)
    lowest = lr * decay ** (len(parts) - 1)
    return [{"lr": lowest / decay**i, "params": parameters(modules)} for i, modules in enumerate(parts)]


def right_with_fresh_generators(model, lr, decay):
    for depth, modules in enumerate(reversed(stages(model))):
        params = itertools.chain.from_iterable(module.parameters() for module in modules)
        yield {"params": params, "lr": lr, "name": depth}
        lr = lr * decay
