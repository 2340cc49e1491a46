"""Answers to lesson 13's round_to(x, exponent, mantissa), wrong and right."""

import bisect
import math

import torch


def _step(x, exponent, mantissa, shift=0, least=True):
    e = torch.frexp(x).exponent - 1 + shift
    e = e.clamp(min=2 - 2 ** (exponent - 1)) if least else e
    return torch.ldexp(torch.ones_like(x), e - mantissa)


def _overflow(rounded, x, exponent, mantissa):
    largest = 2.0 ** (2 ** (exponent - 1) - 1) * (2 - 2.0**-mantissa)
    return torch.where(rounded.abs() > largest, torch.copysign(torch.full_like(x, torch.inf), x), rounded)


def wrong_cuts(x, exponent, mantissa):
    """Cuts the digits off instead of rounding."""
    x = x.double()
    step = _step(x, exponent, mantissa)
    return _overflow(torch.trunc(x / step) * step, x, exponent, mantissa)


def wrong_half_up(x, exponent, mantissa):
    """Rounds halves away from zero."""
    x = x.double()
    step = _step(x, exponent, mantissa)
    rounded = torch.copysign(torch.floor(x.abs() / step + 0.5) * step, x)
    return _overflow(rounded, x, exponent, mantissa)


def wrong_no_subnormals(x, exponent, mantissa):
    """Sends what is below the smallest normal number to zero."""
    x = x.double()
    step = _step(x, exponent, mantissa)
    small = x.abs() < 2.0 ** (2 - 2 ** (exponent - 1))
    rounded = torch.where(small, torch.copysign(torch.zeros_like(x), x), torch.round(x / step) * step)
    return _overflow(rounded, x, exponent, mantissa)


def wrong_endless_exponent(x, exponent, mantissa):
    """Forgets that the exponent has a smallest value."""
    x = x.double()
    step = _step(x, exponent, mantissa, least=False)
    return _overflow(torch.round(x / step) * step, x, exponent, mantissa)


def wrong_saturates(x, exponent, mantissa):
    """Stays at the largest number instead of overflowing."""
    x = x.double()
    step, largest = _step(x, exponent, mantissa), 2.0 ** (2 ** (exponent - 1) - 1) * (2 - 2.0**-mantissa)
    rounded = torch.round(x / step) * step
    return torch.where(x.isinf(), x, rounded.clamp(-largest, largest))


def wrong_overflow_before_rounding(x, exponent, mantissa):
    """Calls infinite all that is above the largest number, also what would round down to it."""
    x = x.double()
    step, largest = _step(x, exponent, mantissa), 2.0 ** (2 ** (exponent - 1) - 1) * (2 - 2.0**-mantissa)
    infinite = torch.copysign(torch.full_like(x, torch.inf), x)
    return torch.where(x.abs() > largest, infinite, torch.round(x / step) * step)


def wrong_one_bit_less(x, exponent, mantissa):
    """Takes frexp's exponent, whose mantissa begins at one half, as it is."""
    x = x.double()
    step = _step(x, exponent, mantissa, shift=1)
    return _overflow(torch.round(x / step) * step, x, exponent, mantissa)


def wrong_loses_the_sign_of_zero(x, exponent, mantissa):
    """Rounds the sizes and multiplies by the sign, which is zero for zero."""
    x = x.double()
    step = _step(x, exponent, mantissa)
    rounded = torch.round(x.abs() / step) * step * x.sign()
    return _overflow(torch.where(x.isnan(), x, rounded), x, exponent, mantissa)


def wrong_keeps_float32(x, exponent, mantissa):
    """Computes and returns in the type it was given."""
    step = _step(x, exponent, mantissa)
    return _overflow(torch.round(x / step) * step, x, exponent, mantissa)


def wrong_through_float32(x, exponent, mantissa):
    """Rounds to float32 first, so float64 numbers are rounded twice."""
    x = x.float().double()
    step = _step(x, exponent, mantissa)
    return _overflow(torch.round(x / step) * step, x, exponent, mantissa)


def right_by_lists(x, exponent, mantissa):
    """Writes down all numbers of the format and searches; sizes between two go to the nearer, ties to even index."""
    bias = 2 ** (exponent - 1) - 1
    numbers = [m * 2.0 ** (1 - bias - mantissa) for m in range(2**mantissa)]
    for e in range(1, 2 * bias + 2):  # one exponent more than there is, for what lies beyond the largest
        numbers += [2.0 ** (e - bias) * (1 + m / 2**mantissa) for m in range(2**mantissa)]
    largest = 2.0**bias * (2 - 2.0**-mantissa)

    def one(value):
        if math.isnan(value) or math.isinf(value):
            return value
        i = bisect.bisect_right(numbers, abs(value)) - 1
        if i + 1 < len(numbers):
            below, above = abs(value) - numbers[i], numbers[i + 1] - abs(value)
            i += above < below or above == below and i % 2
        return math.copysign(math.inf if numbers[i] > largest else numbers[i], value)

    return torch.tensor([one(value) for value in x.double().flatten().tolist()], dtype=torch.float64).reshape(x.shape)
