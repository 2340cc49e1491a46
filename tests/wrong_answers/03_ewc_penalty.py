"""Answers to lesson 03's ewc_penalty(params, start, fisher), wrong and right."""

import torch


def wrong_without_half(params, start, fisher):
    """Forgets the one half."""
    return sum((f * (params[n] - start[n]) ** 2).sum() for n, f in fisher.items())


def wrong_means(params, start, fisher):
    """Takes the mean of each tensor, so large tensors count as little as small ones."""
    return sum((f * (params[n] - start[n]) ** 2).mean() for n, f in fisher.items()) / 2


def wrong_without_the_start(params, start, fisher):
    """Pulls to zero instead of to the start, as weight decay does."""
    return sum((f * params[n] ** 2).sum() for n, f in fisher.items()) / 2


def wrong_square_outside(params, start, fisher):
    """Squares Fisher times distance."""
    return sum((f * (params[n] - start[n])).square().sum() for n, f in fisher.items()) / 2


def wrong_no_gradient(params, start, fisher):
    """Computes without a graph: right number, no pull."""
    with torch.no_grad():
        return sum((f * (params[n] - start[n]) ** 2).sum() for n, f in fisher.items()) / 2


def wrong_absolute(params, start, fisher):
    """Takes the distance instead of its square."""
    return sum((f * (params[n] - start[n]).abs()).sum() for n, f in fisher.items()) / 2


def wrong_ignores_fisher(params, start, fisher):
    """L2: every weight counts alike."""
    return sum(((params[n] - start[n]) ** 2).sum() for n in fisher) / 2


def wrong_every_parameter(params, start, fisher):
    """Goes through all parameters and fails at a new head."""
    return sum((fisher[n] * (params[n] - start[n]) ** 2).sum() for n in params) / 2


def wrong_a_plain_number(params, start, fisher):
    """Returns a Python number, from which nothing can be learned."""
    return sum((f * (params[n] - start[n]) ** 2).sum().item() for n, f in fisher.items()) / 2


def right_as_one_product(params, start, fisher):
    """All weights in one long vector."""
    way = torch.cat([(params[n] - start[n]).flatten() for n in fisher])
    weights = torch.cat([f.flatten() for f in fisher.values()])
    return 0.5 * (weights * way) @ way
