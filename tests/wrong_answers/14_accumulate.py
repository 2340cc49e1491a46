"""Answers to lesson 14's accumulate(model, batches, loss_sum, count), wrong and right."""

import torch


def _total(batches, count):
    total = sum(count(batch) for batch in batches)
    if not total:
        raise ValueError("no tokens")
    return total


def _kept(batches, count):
    return [batch for batch in batches if count(batch)]


def wrong_mean_of_means(model, batches, loss_sum, count):
    """Averages the micro-batches' means: a token of a short one counts more."""
    _total(batches, count)
    kept, mean = _kept(batches, count), 0.0
    for batch in kept:
        loss = loss_sum(model, batch) / count(batch) / len(kept)
        loss.backward()
        mean += loss.item()
    return mean


def wrong_number_of_batches(model, batches, loss_sum, count):
    """Divides the summed loss by the number of micro-batches."""
    _total(batches, count)
    mean = 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / len(batches)
        loss.backward()
        mean += loss.item()
    return mean


def wrong_one_backward(model, batches, loss_sum, count):
    """One backward at the end: right, and every graph was alive."""
    loss = sum(loss_sum(model, batch) for batch in _kept(batches, count)) / _total(batches, count)
    loss.backward()
    return loss.item()


def wrong_zero_grad(model, batches, loss_sum, count):
    """Clears gradients before each micro-batch: the last one alone is left."""
    total, mean = _total(batches, count), 0.0
    for batch in _kept(batches, count):
        model.zero_grad()
        loss = loss_sum(model, batch) / total
        loss.backward()
        mean += loss.item()
    return mean


def wrong_clears_first(model, batches, loss_sum, count):
    """Clears what was there before: a second call for one step loses the first."""
    model.zero_grad()
    return right_scaled_once(model, batches, loss_sum, count)


def wrong_all_places(model, batches, loss_sum, count):
    """Divides by all places, padding too."""
    _total(batches, count)
    total, mean = sum(batch["labels"].numel() for batch in batches), 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        loss.backward()
        mean += loss.item()
    return mean


def wrong_sum(model, batches, loss_sum, count):
    """Does not divide: steps with many tokens are larger."""
    _total(batches, count)
    mean = 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch)
        loss.backward()
        mean += loss.item()
    return mean


def wrong_no_refusal(model, batches, loss_sum, count):
    """Goes on without a word when there is nothing to learn from."""
    total, mean = max(sum(count(batch) for batch in batches), 1), 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        loss.backward()
        mean += loss.item()
    return mean


def wrong_last_mean(model, batches, loss_sum, count):
    """The gradient is right; what comes back is the last micro-batch's mean."""
    total, loss = _total(batches, count), None
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch)
        (loss / total).backward()
    return loss.item() / count(batch)


def wrong_returns_a_tensor(model, batches, loss_sum, count):
    """Returns a tensor where a float was asked for."""
    total, mean = _total(batches, count), 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        loss.backward()
        mean = mean + loss.detach()
    return mean


def wrong_keeps_graphs(model, batches, loss_sum, count):
    """Sums the losses as tensors with their graphs, and goes through each with retain_graph."""
    total, mean = _total(batches, count), 0.0
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        loss.backward(retain_graph=True)
        mean = mean + loss
    return mean.item()


def wrong_no_skip(model, batches, loss_sum, count):
    """Does not skip a micro-batch without tokens: a mean over none is nan, and nan times nothing too."""
    total, mean = _total(batches, count), 0.0
    for batch in batches:
        loss = loss_sum(model, batch) / total
        loss.backward()
        mean += loss.item()
    return mean


def wrong_counts_by_itself(model, batches, loss_sum, count):
    """Counts labels itself, whatever count says."""
    return right_scaled_once(model, batches, loss_sum, lambda batch: int((batch["labels"] != -100).sum()))


def wrong_all_parameters(model, batches, loss_sum, count):
    """Asks for the gradients of all parameters: a frozen one has none, and that is an error."""
    total, mean, every = _total(batches, count), 0.0, [*model.parameters()]
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        for p, grad in zip(every, torch.autograd.grad(loss, every), strict=True):
            p.grad = grad if p.grad is None else p.grad + grad
        mean += loss.item()
    return mean


def wrong_gradients_must_be_there(model, batches, loss_sum, count):
    """Adds to p.grad by hand: in a first step there is none to add to."""
    total, mean, opened = _total(batches, count), 0.0, [p for p in model.parameters() if p.requires_grad]
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch) / total
        for p, grad in zip(opened, torch.autograd.grad(loss, opened), strict=True):
            p.grad += grad
        mean += loss.item()
    return mean


def right_scaled_once(model, batches, loss_sum, count):
    """Sums first, then scales what was added."""
    total, mean = _total(batches, count), 0.0
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch)
        loss.backward()
        mean += loss.item() / total
    for p, old in zip(model.parameters(), before, strict=True):
        if p.requires_grad:
            p.grad = p.grad / total if old is None else old + p.grad / total
    return mean


def right_by_autograd_grad(model, batches, loss_sum, count):
    """Asks for the open parameters' gradients and adds them by hand."""
    total, mean = _total(batches, count), 0.0
    opened = [p for p in model.parameters() if p.requires_grad]
    for batch in _kept(batches, count):
        loss = loss_sum(model, batch)
        for p, grad in zip(opened, torch.autograd.grad(loss, opened), strict=True):
            p.grad = grad / total if p.grad is None else p.grad + grad / total
        mean += loss.item() / total
    return mean
