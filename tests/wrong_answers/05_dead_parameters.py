"""Answers to lesson 05's dead_parameters(model, loss), wrong and right."""


def wrong_never_goes_backward(model, loss):
    """No gradient was ever computed, so all look dead."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def wrong_leftovers(model, loss):
    """Old gradients are not cleared first: what has one from before looks alive."""
    loss.backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def wrong_zero_is_dead(model, loss):
    """Takes a gradient of zeros for none: LoRA's A would be dead at its first step."""
    model.zero_grad()
    loss.backward()
    return [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


def wrong_frozen_too(model, loss):
    """Names what is frozen as well."""
    model.zero_grad()
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is None]


def wrong_set_to_zero(model, loss):
    """Zeroes old gradients instead of removing them: they are no longer None."""
    model.zero_grad(set_to_none=False)
    loss.backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def wrong_count(model, loss):
    """Says how many, not which."""
    model.zero_grad()
    loss.backward()
    return sum(p.requires_grad and p.grad is None for p in model.parameters())


def wrong_modules(model, loss):
    """Names the module, not the parameter."""
    model.zero_grad()
    loss.backward()
    dead = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in dead))


def wrong_first_only(model, loss):
    """Stops at the first one."""
    model.zero_grad()
    loss.backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None][:1]


def wrong_alive_ones(model, loss):
    """Names those that do get a gradient."""
    model.zero_grad()
    loss.backward()
    return [name for name, p in model.named_parameters() if p.grad is not None]


def right_by_walking_the_graph(model, loss):
    reached, queue = set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in reached:
            continue
        reached.add(node)
        queue += [parent for parent, _ in node.next_functions]
    used = {id(node.variable) for node in reached if hasattr(node, "variable")}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in used]
