"""Answers to lesson 01's unfreeze_top(model, k), wrong and right."""

import torch
from torch import nn


def stages(model):
    """Modules of each stage from stem to head, as the lesson's `stages` gives them, without the names."""
    if hasattr(model, "layer1"):
        return [[model.conv1, model.bn1], *([getattr(model, f"layer{i}")] for i in range(1, 5)), [model.fc]]
    blocks = [[block] for block in model.blocks]
    return [[model.conv_stem, model.bn1], *blocks, [model.conv_head, model.bn2], [model.classifier]]


def top(model, k):
    """The modules of the top k stages."""
    return [module for modules in reversed(stages(model)[::-1][:k]) for module in modules]


def wrong_forgets_the_norm_of_the_stem(model, k):
    """Opens the stem's convolution, but its norm stays frozen."""
    model.requires_grad_(False)
    for module in top(model, k):
        if module is not model.bn1:
            module.requires_grad_(True)


def wrong_never_freezes_the_norm_of_the_stem(model, k):
    """Freezes by a list of stages in which the stem is only its convolution, so the norm keeps training."""
    for modules in stages(model):
        for module in modules:
            if module is not model.bn1:
                module.requires_grad_(False)
    for module in top(model, k):
        module.requires_grad_(True)


def wrong_never_freezes(model, k):
    """Opens the top, but leaves open what was open before."""
    for module in top(model, k):
        module.requires_grad_(True)


def wrong_never_opens_again(model, k):
    """Freezes what lies below, but what an earlier call froze stays frozen."""
    keep = {id(p) for module in top(model, k) for p in module.parameters()}
    for p in model.parameters():
        if id(p) not in keep:
            p.requires_grad = False


def wrong_counts_from_the_stem(model, k):
    """Opens the first k stages instead of the last."""
    model.requires_grad_(False)
    for modules in stages(model)[:k]:
        for module in modules:
            module.requires_grad_(True)


def wrong_does_not_count_the_head(model, k):
    """Opens the head and k more stages."""
    model.requires_grad_(False)
    for module in top(model, k + 1):
        module.requires_grad_(True)


def wrong_slice_of_minus_zero(model, k):
    """`[-k:]` with k = 0 is the whole list, so nothing is frozen."""
    model.requires_grad_(False)
    for modules in stages(model)[-k:]:
        for module in modules:
            module.requires_grad_(True)


def wrong_counts_parameters(model, k):
    """Opens the last k tensors instead of the last k stages."""
    for depth, p in enumerate(reversed(list(model.parameters()))):
        p.requires_grad = depth < k


def wrong_counts_children(model, k):
    """Takes a model's direct children for its stages: pooling counts as one, and all blocks together as one."""
    model.requires_grad_(False)
    children = list(model.children())
    for child in children[len(children) - min(k, len(children)) :]:
        child.requires_grad_(True)


def wrong_norms_stay_frozen(model, k):
    """Keeps every norm layer frozen, as one does with small batches; here they belong to their stage."""
    model.requires_grad_(False)
    for module in top(model, k):
        module.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def wrong_weights_only(model, k):
    """Opens weights and forgets biases."""
    model.requires_grad_(False)
    for module in top(model, k):
        for name, p in module.named_parameters():
            p.requires_grad = name.endswith("weight")


def wrong_attribute_of_the_module(model, k):
    """Sets `requires_grad` on modules, where it is an attribute like any other and does nothing."""
    open_ = top(model, k)
    for modules in stages(model):
        for module in modules:
            module.requires_grad = module in open_


def wrong_one_level_deep(model, k):
    """Sets the parameters a module holds itself; those of the blocks are further down."""
    open_ = top(model, k)
    for module in model.modules():
        for p in module.parameters(recurse=False):
            p.requires_grad = module in open_


def wrong_new_head(model, k):
    """Puts a new head in on each call, and what the old one had learned is lost."""
    name = "fc" if hasattr(model, "fc") else "classifier"
    old = getattr(model, name)
    setattr(model, name, nn.Linear(old.in_features, old.out_features))
    model.requires_grad_(False)
    for module in top(model, k):
        module.requires_grad_(True)


def wrong_starts_the_head_anew(model, k):
    """Draws the head's weights anew on each call."""
    model.requires_grad_(False)
    for module in top(model, k):
        module.requires_grad_(True)
    stages(model)[-1][0].reset_parameters()


def wrong_detaches(model, k):
    """Works on `.data`, a new tensor each time it is asked for, so the parameters stay as they were."""
    open_ = {id(p) for module in top(model, k) for p in module.parameters()}
    for p in model.parameters():
        p.data.requires_grad_(id(p) in open_)


def wrong_one_network_only(model, k):
    """Knows EfficientNet's names; in a ResNet nothing is opened."""
    model.requires_grad_(False)
    order = ["classifier", "conv_head bn2", *(f"blocks.{i}." for i in reversed(range(7))), "conv_stem bn1"]
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(tuple(" ".join(order[:k]).split()))


def right_by_counting_down(model, k):
    for depth, modules in enumerate(reversed(stages(model)), start=1):
        for p in (p for module in modules for p in module.parameters()):
            p.requires_grad_(depth <= k)


def right_freezes_all_first(model, k):
    with torch.no_grad():
        model.requires_grad_(False)
        for module in top(model, k):
            module.requires_grad_(True)
    return model
