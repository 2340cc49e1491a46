"""Answers to lesson 06's quantise(weight, levels, block), wrong and right."""

import torch


def refuse(weight, block):
    if weight.numel() % block:
        raise ValueError(f"blocks of {block} do not divide {weight.numel()} weights")


def codes_of(scaled, levels):
    return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).flatten()


def wrong_max_not_absmax(weight, levels, block=64):
    """Scales by the largest value, not the largest absolute value."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.amax(1)
    return codes_of(blocks / absmax.clamp(min=1e-38)[:, None], levels), absmax


def wrong_one_absmax_for_all(weight, levels, block=64):
    """One absmax for the whole matrix."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax().expand(len(blocks))
    return codes_of(blocks / absmax[:, None], levels), absmax


def wrong_floor(weight, levels, block=64):
    """Takes the next level below instead of the nearest."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-38)[:, None]
    return (torch.bucketize(scaled, levels, right=True) - 1).clamp(min=0).to(torch.uint8).flatten(), absmax


def wrong_nan_for_zeros(weight, levels, block=64):
    """Divides zeros by zero."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    return codes_of(blocks / absmax[:, None], levels), absmax


def wrong_blocks_of_columns(weight, levels, block=64):
    """Cuts the blocks down the columns."""
    refuse(weight, block)
    blocks = weight.float().flatten().reshape(block, -1).T
    absmax = blocks.abs().amax(1)
    return codes_of(blocks / absmax.clamp(min=1e-38)[:, None], levels), absmax


def wrong_cuts_the_rest(weight, levels, block=64):
    """Drops the weights that fill no block."""
    whole = weight.flatten()[: weight.numel() // block * block]
    blocks = whole.float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    return codes_of(blocks / absmax.clamp(min=1e-38)[:, None], levels), absmax


def wrong_in_place(weight, levels, block=64):
    """Scales the given weights themselves."""
    refuse(weight, block)
    blocks = weight.reshape(-1, block)
    absmax = blocks.float().abs().amax(1)
    blocks /= absmax.clamp(min=1e-38)[:, None]
    return codes_of(blocks.float(), levels), absmax


def wrong_long_codes(weight, levels, block=64):
    """Keeps the codes as 64-bit integers."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-38)[:, None]
    return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).flatten(), absmax


def wrong_rounds_evenly(weight, levels, block=64):
    """Rounds as if the levels were equally spaced."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-38)[:, None]
    return ((scaled + 1) / 2 * (len(levels) - 1)).round().to(torch.uint8).flatten(), absmax


def wrong_half_absmax(weight, levels, block=64):
    """Keeps the absmax in the weights' type."""
    refuse(weight, block)
    absmax = weight.reshape(-1, block).abs().amax(1)
    return codes_of(weight.float().reshape(-1, block) / absmax.float().clamp(min=1e-38)[:, None], levels), absmax


def right_argmin(weight, levels, block=64):
    """Tries all levels."""
    refuse(weight, block)
    blocks = weight.float().reshape(-1, block)
    absmax = blocks.abs().max(dim=1).values
    scaled = torch.where(absmax[:, None] > 0, blocks / absmax[:, None], torch.zeros(()))
    return (scaled[..., None] - levels).abs().argmin(-1).to(torch.uint8).reshape(-1), absmax
