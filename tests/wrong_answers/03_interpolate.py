"""Answers to lesson 03's interpolate(start, end, share), wrong and right."""

import torch


def _average(name, start, end):
    return name in start and end[name].is_floating_point()


def wrong_way_round(start, end, share):
    """Takes the share of the start."""
    return {n: start[n] * share + b * (1 - share) if _average(n, start, end) else b.clone() for n, b in end.items()}


def wrong_in_place(start, end, share):
    """Writes the average into the end."""
    for n, b in end.items():
        if _average(n, start, end):
            b.mul_(share).add_(start[n] * (1 - share))
    return {n: b.clone() for n, b in end.items()}


def wrong_shares_memory(start, end, share):
    """Hands out the end's own tensors where nothing is averaged."""
    return {n: start[n] * (1 - share) + b * share if _average(n, start, end) else b for n, b in end.items()}


def wrong_drops_the_head(start, end, share):
    """Keeps only what both have."""
    return {n: torch.lerp(a.double(), end[n].double(), share).to(end[n].dtype) for n, a in start.items()}


def wrong_head_from_zero(start, end, share):
    """Takes zeros for the start of a new head, and so shrinks it."""
    return {
        n: start.get(n, torch.zeros_like(b)) * (1 - share) + b * share if b.is_floating_point() else b.clone()
        for n, b in end.items()
    }


def wrong_averages_counters(start, end, share):
    """Averages whole numbers too, which become fractions."""
    return {n: start[n] * (1 - share) + b * share if n in start else b.clone() for n, b in end.items()}


def wrong_forgets_the_type(start, end, share):
    """Computes in float32 and stays there."""
    return {
        n: start[n].float() * (1 - share) + b.float() * share if _average(n, start, end) else b.clone()
        for n, b in end.items()
    }


def wrong_adds_up(start, end, share):
    """Adds the share of the end to the whole start."""
    return {n: start[n] + share * b if _average(n, start, end) else b.clone() for n, b in end.items()}


def wrong_stops_at_the_end(start, end, share):
    """Keeps the share between 0 and 1."""
    share = min(max(share, 0.0), 1.0)
    return {n: start[n] * (1 - share) + b * share if _average(n, start, end) else b.clone() for n, b in end.items()}


def right_by_products(start, end, share):
    """The sum of two products."""
    found = {n: b.clone() for n, b in end.items()}
    for n in start.keys() & end.keys():
        if end[n].is_floating_point():
            found[n] = (start[n] * (1.0 - share) + end[n] * share).to(end[n].dtype)
    return found
