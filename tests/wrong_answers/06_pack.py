"""Answers to lesson 06's pack(codes), wrong and right."""

import torch


def refuse(codes):
    if len(codes) % 2:
        raise ValueError(f"{len(codes)} codes make no pairs")


def wrong_low_half_first(codes):
    """The first code in the low half."""
    refuse(codes)
    return (codes[1::2] << 4) | codes[::2]


def wrong_halves_of_the_list(codes):
    """Pairs the first half of the list with the second."""
    refuse(codes)
    return (codes[: len(codes) // 2] << 4) | codes[len(codes) // 2 :]


def wrong_decimal(codes):
    """Shifts by a decimal place."""
    refuse(codes)
    return codes[::2] * 10 + codes[1::2]


def wrong_three_bits(codes):
    """Shifts by three bits, so that the halves run into each other."""
    refuse(codes)
    return (codes[::2] << 3) | codes[1::2]


def wrong_and(codes):
    """Joins the halves with and instead of or."""
    refuse(codes)
    return (codes[::2] << 4) & codes[1::2]


def wrong_integers(codes):
    """Right numbers as 32-bit integers: four bytes for two codes."""
    refuse(codes)
    return (codes[::2].int() << 4) | codes[1::2].int()


def wrong_drops_the_last(codes):
    """Drops the last of an odd number of codes without a word."""
    even = codes[: len(codes) // 2 * 2]
    return (even[::2] << 4) | even[1::2]


def wrong_in_place(codes):
    """Shifts the given codes themselves."""
    refuse(codes)
    first = codes[::2]
    first <<= 4
    return first | codes[1::2]


def right_by_hand(codes):
    """One pair at a time."""
    refuse(codes)
    values = codes.tolist()
    pairs = zip(values[::2], values[1::2], strict=True)
    return torch.tensor([16 * high + low for high, low in pairs], dtype=torch.uint8)
