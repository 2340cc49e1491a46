"""Answers to lesson 06's nf4_levels(offset), wrong and right."""

from statistics import NormalDist

import torch


def quantile(probabilities):
    return torch.tensor([NormalDist().inv_cdf(p) for p in probabilities.tolist()])


def wrong_halves_swapped(offset=0.9677083):
    """Eight levels below zero and seven above."""
    positive = quantile(torch.linspace(offset, 0.5, 8)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 9)[:-1])
    levels = torch.cat([negative, torch.zeros(1), positive]).sort().values
    return levels / levels.max()


def wrong_no_zero(offset=0.9677083):
    """Eight levels on each side, without zero."""
    positive = quantile(torch.linspace(offset, 0.5, 9)[:-1])
    levels = torch.cat([-positive, positive]).sort().values
    return levels / levels.max()


def wrong_not_scaled(offset=0.9677083):
    """Forgets to divide by the largest."""
    positive = quantile(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 8)[:-1])
    return torch.cat([negative, torch.zeros(1), positive]).sort().values


def wrong_not_sorted(offset=0.9677083):
    """Leaves each half in falling order of size."""
    positive = quantile(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 8)[:-1])
    levels = torch.cat([negative, torch.zeros(1), positive])
    return levels / levels.max()


def wrong_equal_steps(offset=0.9677083):
    """Equally spaced levels: an integer type."""
    return torch.cat([torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]])


def wrong_probabilities_not_quantiles(offset=0.9677083):
    """Takes the probabilities themselves for levels."""
    positive = torch.linspace(offset, 0.5, 9)[:-1] - 0.5
    negative = 0.5 - torch.linspace(offset, 0.5, 8)[:-1]
    levels = torch.cat([negative, torch.zeros(1), positive]).sort().values
    return levels / levels.max()


def wrong_offset_ignored(offset=0.9677083):
    """The right table, whatever offset is asked for."""
    return right_mirrored()


def wrong_offset_of_one_step(offset=1 - 1 / 30):
    """The offset of the half with 15 steps alone."""
    return right_mirrored(offset)


def wrong_drops_the_outer(offset=0.9677083):
    """Drops the first probability instead of the last: zero comes three times."""
    positive = quantile(torch.linspace(offset, 0.5, 9)[1:])
    negative = -quantile(torch.linspace(offset, 0.5, 8)[1:])
    levels = torch.cat([negative, torch.zeros(1), positive]).sort().values
    return levels / levels.max()


def right_mirrored(offset=0.9677083):
    """Builds the halves from the middle outwards."""
    up = quantile(torch.linspace(offset, 0.5, 9))[:-1].flip(0)
    down = quantile(torch.linspace(offset, 0.5, 8))[:-1]
    return torch.cat([-down / up[-1], torch.zeros(1), up / up[-1]])
