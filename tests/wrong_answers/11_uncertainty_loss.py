"""Answers to lesson 11's uncertainty_loss(losses, log_vars, kinds), wrong and right."""

import torch


def wrong_no_half(losses, log_vars, kinds):
    """Treats ratings as classes."""
    return sum(torch.exp(-s) * loss + s / 2 for loss, s in zip(losses, log_vars, strict=True))


def wrong_half_for_all(losses, log_vars, kinds):
    """Gives every kind the half of the Gaussian."""
    return sum(torch.exp(-s) * loss / 2 + s / 2 for loss, s in zip(losses, log_vars, strict=True))


def wrong_whole_s(losses, log_vars, kinds):
    """Adds s for log sigma."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    return sum(h * torch.exp(-s) * loss + s for h, s, loss in zip(halves, log_vars, losses, strict=True))


def wrong_s_is_log_sigma(losses, log_vars, kinds):
    """Reads s as log sigma."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    return sum(h * torch.exp(-2 * s) * loss + s for h, s, loss in zip(halves, log_vars, losses, strict=True))


def wrong_sign(losses, log_vars, kinds):
    """Multiplies by the variance."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    return sum(h * torch.exp(s) * loss + s / 2 for h, s, loss in zip(halves, log_vars, losses, strict=True))


def wrong_no_penalty(losses, log_vars, kinds):
    """Leaves the logarithm out, so that sigma would grow for ever."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    return sum(h * torch.exp(-s) * loss for h, s, loss in zip(halves, log_vars, losses, strict=True))


def wrong_mean(losses, log_vars, kinds):
    """Takes the mean over tasks."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    total = sum(h * torch.exp(-s) * loss + s / 2 for h, s, loss in zip(halves, log_vars, losses, strict=True))
    return total / len(losses)


def wrong_detached(losses, log_vars, kinds):
    """Cuts the weights out of the graph, so that s learns from the logarithm alone."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    return sum(h * torch.exp(-s).detach() * loss + s / 2 for h, s, loss in zip(halves, log_vars, losses, strict=True))


def wrong_positive_only(losses, log_vars, kinds):
    """Uses log(1 + sigma^2), as Liebel and Koerner 2018 do."""
    halves = [0.5 if kind == "rating" else 1.0 for kind in kinds]
    terms = zip(halves, log_vars, losses, strict=True)
    return sum(h * torch.exp(-s) * loss + torch.log1p(torch.exp(s)) / 2 for h, s, loss in terms)


def right_by_sigma(losses, log_vars, kinds):
    """Writes sigma out."""
    total = torch.zeros(())
    for i, kind in enumerate(kinds):
        sigma = (log_vars[i] / 2).exp()
        total = total + losses[i] / (sigma**2 * (2 if kind == "rating" else 1)) + torch.log(sigma)
    return total
