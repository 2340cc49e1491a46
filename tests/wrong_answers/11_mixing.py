"""Answers to lesson 11's mixing(sizes, temperature, limit), wrong and right."""

import math


def _refuse(sizes, temperature, limit=None):
    if temperature <= 0 or min(sizes) <= 0 or (limit is not None and limit <= 0):
        raise ValueError("sizes, temperature and limit must be above 0")


def _shares(powers):
    return [power / sum(powers) for power in powers]


def _held(sizes, limit):
    return [size if limit is None else min(size, limit) for size in sizes]


def wrong_multiplies(sizes, temperature=1.0, limit=None):
    """Takes the power of the temperature instead of its inverse."""
    _refuse(sizes, temperature, limit)
    held = _held(sizes, limit)
    return _shares([(size / max(held)) ** temperature for size in held])


def wrong_limit_after(sizes, temperature=1.0, limit=None):
    """Cuts the roots instead of the sizes."""
    _refuse(sizes, temperature, limit)
    powers = [(size / max(sizes)) ** (1 / temperature) for size in sizes]
    top = math.inf if limit is None else (limit / max(sizes))
    return _shares([min(power, top) for power in powers])


def wrong_no_limit(sizes, temperature=1.0, limit=None):
    """Ignores the limit."""
    _refuse(sizes, temperature, limit)
    return _shares([(size / max(sizes)) ** (1 / temperature) for size in sizes])


def wrong_softmax_of_shares(sizes, temperature=1.0, limit=None):
    """Takes a softmax of the shares at a temperature, as for logits."""
    _refuse(sizes, temperature, limit)
    held = _held(sizes, limit)
    return _shares([math.exp(size / sum(held) / temperature) for size in held])


def wrong_overflows(sizes, temperature=1.0, limit=None):
    """Takes powers of whole sizes."""
    _refuse(sizes, temperature, limit)
    return _shares([float(size) ** (1 / temperature) for size in _held(sizes, limit)])


def wrong_not_normalised(sizes, temperature=1.0, limit=None):
    """Divides by the largest, not by the sum."""
    _refuse(sizes, temperature, limit)
    held = _held(sizes, limit)
    return [(size / max(held)) ** (1 / temperature) for size in held]


def wrong_accepts_all(sizes, temperature=1.0, limit=None):
    """Makes of a temperature of zero or less what it can."""
    held = _held(sizes, limit)
    power = 1 / temperature if temperature else 1.0
    return _shares([(size / max(held)) ** power if size else 0.0 for size in held])


def wrong_any_limit(sizes, temperature=1.0, limit=None):
    """Takes a limit of zero for none."""
    _refuse(sizes, temperature)
    held = [min(size, limit) if limit else size for size in sizes]
    return _shares([(size / max(held)) ** (1 / temperature) for size in held])


def wrong_sorts(sizes, temperature=1.0, limit=None):
    """Returns the probabilities by size."""
    _refuse(sizes, temperature, limit)
    held = sorted(_held(sizes, limit))
    return _shares([(size / max(held)) ** (1 / temperature) for size in held])


def right_by_logarithms(sizes, temperature=1.0, limit=None):
    """Adds logarithms, the largest taken off."""
    if not temperature > 0 or not all(size > 0 for size in sizes) or not (limit is None or limit > 0):
        raise ValueError(f"temperature {temperature}, sizes {sizes}, limit {limit}")
    logs = [math.log(min(size, limit or math.inf)) / temperature for size in sizes]
    total = sum(math.exp(x - max(logs)) for x in logs)
    return [math.exp(x - max(logs)) / total for x in logs]
