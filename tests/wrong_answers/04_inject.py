"""Answers to lesson 04's inject(model, targets, wrap), wrong and right."""

from torch import nn


def matching(model, targets):
    return [
        (name, layer) for name, layer in model.named_modules() if any(("." + name).endswith("." + t) for t in targets)
    ]


def replace(model, name, new):
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def freeze_and_wrap(model, found, wrap):
    model.requires_grad_(False)
    for name, layer in found:
        replace(model, name, wrap(layer))


def refuse(found, targets):
    if not found:
        raise ValueError(f"nothing is called {targets}")
    for name, layer in found:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is a {type(layer).__name__}")


def wrong_never_freezes(model, targets, wrap):
    """The rest of the model goes on training."""
    found = matching(model, targets)
    refuse(found, targets)
    for name, layer in found:
        replace(model, name, wrap(layer))


def wrong_freezes_last(model, targets, wrap):
    """Freezes after wrapping, so the wrappers are frozen too: it trains and learns nothing."""
    found = matching(model, targets)
    refuse(found, targets)
    for name, layer in found:
        replace(model, name, wrap(layer))
    model.requires_grad_(False)


def wrong_endswith(model, targets, wrap):
    """Compares the end of the whole name, so `query` takes `subquery` too, and passes over what is not linear."""
    found = [(name, layer) for name, layer in model.named_modules() if name.endswith(tuple(targets))]
    refuse(found, targets)
    model.requires_grad_(False)
    for name, layer in found:
        if isinstance(layer, nn.Linear):
            replace(model, name, wrap(layer))


def wrong_last_name_only(model, targets, wrap):
    """Compares the last name alone: `1.value` names nothing."""
    found = [(name, layer) for name, layer in model.named_modules() if name.split(".")[-1] in targets]
    refuse(found, targets)
    freeze_and_wrap(model, found, wrap)


def wrong_contains(model, targets, wrap):
    """A name that only contains a target is taken too: `values` for `value`."""
    found = [(n, m) for n, m in model.named_modules() if any(t in n for t in targets) and isinstance(m, nn.Linear)]
    refuse(found, targets)
    freeze_and_wrap(model, found, wrap)


def wrong_top_level_missed(model, targets, wrap):
    """Looks for a dot before the name, so a layer directly under the model is passed over."""
    found = [(n, m) for n, m in model.named_modules() if any(n.endswith("." + t) for t in targets)]
    refuse(found, targets)
    freeze_and_wrap(model, found, wrap)


def wrong_silent_when_nothing_matches(model, targets, wrap):
    """A misspelt target freezes everything and says nothing."""
    found = matching(model, targets)
    if found:
        refuse(found, targets)
    freeze_and_wrap(model, found, wrap)


def wrong_skips_what_is_not_linear(model, targets, wrap):
    """Passes over what is no linear layer, so a second call does nothing and a wrong target goes unseen."""
    found = [(name, layer) for name, layer in matching(model, targets) if isinstance(layer, nn.Linear)]
    if not found and not matching(model, targets):
        raise ValueError("nothing matches")
    freeze_and_wrap(model, found, wrap)


def wrong_wraps_twice(model, targets, wrap):
    """Wraps what has the name, whatever it is: a second call wraps the wrapper."""
    found = matching(model, targets)
    if not found:
        raise ValueError("nothing matches")
    freeze_and_wrap(model, found, wrap)


def wrong_freezes_before_it_refuses(model, targets, wrap):
    """The error comes when the model has been changed already."""
    model.requires_grad_(False)
    found = matching(model, targets)
    refuse(found, targets)
    for name, layer in found:
        replace(model, name, wrap(layer))


def wrong_new_layers(model, targets, wrap):
    """Wraps a new layer of the same shape, so what the old one knew is lost."""
    found = matching(model, targets)
    refuse(found, targets)
    model.requires_grad_(False)
    for name, layer in found:
        replace(model, name, wrap(nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)))


def right_by_parents(model, targets, wrap):
    ends = tuple(f".{t}" for t in targets)
    places = [
        (m, n) for path, m in model.named_modules() for n, _ in m.named_children() if f".{path}.{n}".endswith(ends)
    ]
    refuse([(n, getattr(m, n)) for m, n in places], targets)
    for p in model.parameters():
        p.requires_grad = False
    for module, name in places:
        module.add_module(name, wrap(module._modules[name]))
