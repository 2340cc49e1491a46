"""Answers to lesson 03's fisher(forward, params, rows), wrong and right."""

import torch


def _grads(value, params):
    return torch.autograd.grad(value, list(params.values()), retain_graph=True)


def _sum(forward, params, rows, weight):
    """Sum over rows and classes of weight(p of the class) times the squared gradient."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logp = forward(row).log_softmax(-1)[0]
        for value in logp:
            for name, g in zip(params, _grads(value, params), strict=True):
                total[name] += weight(value.exp().detach(), len(logp)) * g.square()
    return total


def wrong_batch_square(forward, params, rows):
    """Squares the batch's mean gradient, with the likeliest class for a label."""
    logits = forward(torch.cat(rows))
    loss = torch.nn.functional.cross_entropy(logits, logits.argmax(1))
    return {name: g.square() for name, g in zip(params, _grads(loss, params), strict=True)}


def wrong_likeliest(forward, params, rows):
    """Takes only the likeliest class of each row."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logp = forward(row).log_softmax(-1)[0]
        for name, g in zip(params, _grads(logp.max(), params), strict=True):
            total[name] += g.square() / len(rows)
    return total


def wrong_sampled(forward, params, rows):
    """Draws one label a row: right on average only."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logp = forward(row).log_softmax(-1)[0]
        drawn = torch.multinomial(logp.exp().detach(), 1)
        for name, g in zip(params, _grads(logp[drawn].sum(), params), strict=True):
            total[name] += g.square() / len(rows)
    return total


def wrong_all_classes_alike(forward, params, rows):
    """Gives each class the same weight instead of its probability."""
    return _sum(forward, params, rows, lambda p, classes: 1 / classes / len(rows))


def wrong_sums_over_rows(forward, params, rows):
    """Forgets to divide by the number of rows."""
    return _sum(forward, params, rows, lambda p, classes: p)


def wrong_divides_by_classes(forward, params, rows):
    """Divides by the number of classes too, though the probabilities sum to one."""
    return _sum(forward, params, rows, lambda p, classes: p / classes / len(rows))


def wrong_squares_the_probability(forward, params, rows):
    """Weighs the gradient by p before squaring."""
    return _sum(forward, params, rows, lambda p, classes: p * p / len(rows))


def wrong_square_of_the_mean(forward, params, rows):
    """Averages over the classes first, which gives zero, then squares."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logp = forward(row).log_softmax(-1)[0]
        for name, g in zip(params, _grads((logp.exp().detach() * logp).sum(), params), strict=True):
            total[name] += g.square() / len(rows)
    return total


def wrong_logits(forward, params, rows):
    """Differentiates the logits instead of log p."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logits = forward(row)[0]
        for value, p in zip(logits, logits.softmax(-1).detach(), strict=True):
            for name, g in zip(params, _grads(value, params), strict=True):
                total[name] += p * g.square() / len(rows)
    return total


def wrong_leaves_gradients(forward, params, rows):
    """Is right, but leaves the last gradient in .grad, where the next step would add to it."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        for c in range(forward(row).shape[1]):
            logp = forward(row).log_softmax(-1)[0, c]
            for p in params.values():
                p.grad = None
            logp.backward()
            for name, p in params.items():
                total[name] += logp.exp().detach() * p.grad.square() / len(rows)
    return total


def right_by_jacobian(forward, params, rows):
    """All classes of a row at once, by batched gradients."""
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for row in rows:
        logp = forward(row).log_softmax(-1)[0]
        unit = torch.eye(len(logp))
        grads = torch.autograd.grad(logp, list(params.values()), grad_outputs=unit, is_grads_batched=True)
        for name, g in zip(params, grads, strict=True):
            total[name] += torch.einsum("c,c...->...", logp.exp().detach(), g * g)
    return {name: t / len(rows) for name, t in total.items()}
