"""Answers to lesson 13's stochastic_round(x, generator), wrong and right."""

import torch


def _noise(x, generator, low=0, high=1 << 16, shape=None):
    return torch.randint(low, high, shape or x.shape, dtype=torch.int32, device=x.device, generator=generator)


def _cut(bits):
    return (bits & -65536).view(torch.float32).bfloat16()


def wrong_nearest(x, generator=None):
    """Rounds to nearest."""
    return x.bfloat16()


def wrong_cuts(x, generator=None):
    """Cuts the lower bits off."""
    return _cut(x.view(torch.int32))


def wrong_coin(x, generator=None):
    """Takes either neighbour with probability one half."""
    return _cut(x.view(torch.int32) + 65535 * _noise(x, generator, 0, 2))


def wrong_one_draw(x, generator=None):
    """Draws once for the whole tensor."""
    return _cut(x.view(torch.int32) + _noise(x, generator, shape=(1,)))


def wrong_one_draw_a_row(x, generator=None):
    """Draws once for each row."""
    return _cut(x.view(torch.int32) + _noise(x, generator, shape=(len(x), *[1] * (x.dim() - 1))))


def wrong_moves_exact_numbers(x, generator=None):
    """Draws from 1 to 65536, so that a number that needs no rounding may move."""
    return _cut(x.view(torch.int32) + _noise(x, generator, 1, (1 << 16) + 1))


def wrong_fifteen_bits(x, generator=None):
    """Adds a random number of 15 bits: biased towards zero."""
    return _cut(x.view(torch.int32) + _noise(x, generator, 0, 1 << 15))


def wrong_then_nearest(x, generator=None):
    """Adds sixteen random bits, then rounds to nearest instead of cutting: half a step too far out."""
    return (x.view(torch.int32) + _noise(x, generator)).view(torch.float32).bfloat16()


def wrong_turned_round(x, generator=None):
    """Goes up with the probability of going down."""
    bits = x.view(torch.int32)
    rest = bits & 65535
    return _cut(bits - rest + torch.where((_noise(x, generator) < rest) | (rest == 0), 0, 65536).int())


def wrong_always_up(x, generator=None):
    """Rounds towards larger numbers, which for negative ones is the wrong way round: floor plus chance by value."""
    bits = x.view(torch.int32)
    rest = (bits & 65535).float() / 65536
    draw = torch.rand(x.shape, generator=generator)
    up = (draw < rest) & (x > 0)
    return _cut(bits + 65535 * up.int())


def wrong_ignores_the_generator(x, generator=None):
    """Draws from the global generator."""
    return _cut(x.view(torch.int32) + _noise(x, None))


def wrong_in_place(x, generator=None):
    """Adds the noise to the given numbers."""
    x.view(torch.int32).add_(_noise(x, generator))
    return _cut(x.view(torch.int32))


def wrong_stays_float32(x, generator=None):
    """Returns the rounded numbers as float32."""
    return _cut(x.view(torch.int32) + _noise(x, generator)).float()


def wrong_even_noise(x, generator=None):
    """Adds noise in proportion to the number, not to the distance between neighbours."""
    noise = torch.rand(x.shape, generator=generator) - 0.5
    return (x * (1 + noise * 2.0**-7)).bfloat16()


def wrong_three_bits(x, generator=None):
    """Draws three random bits: what is less than an eighth of the way never goes up."""
    return _cut(x.view(torch.int32) + (_noise(x, generator, 0, 8) << 13))


def wrong_eight_bits(x, generator=None):
    """Draws eight random bits of the sixteen."""
    return _cut(x.view(torch.int32) + (_noise(x, generator, 0, 256) << 8))


def wrong_seeds_anew(x, generator=None):
    """Begins each call from the generator's first seed."""
    fresh = torch.Generator().manual_seed(generator.initial_seed()) if generator else None
    return _cut(x.view(torch.int32) + _noise(x, fresh))


def wrong_always_seed_zero(x, generator=None):
    """Without a generator draws the same numbers at each call."""
    return _cut(x.view(torch.int32) + _noise(x, generator or torch.Generator().manual_seed(0)))


def wrong_needs_a_generator(x, generator):
    """Cannot be called without a generator."""
    return _cut(x.view(torch.int32) + _noise(x, generator))


def _halves(x, generator, second):
    noise = _noise(x, generator).flatten()
    half = len(noise) // 2
    noise[half : 2 * half] = second(noise[:half])
    return _cut(x.view(torch.int32) + noise.reshape(x.shape))


def wrong_draws_used_twice(x, generator=None):
    """The second half of the numbers gets the draws of the first."""
    return _halves(x, generator, lambda noise: noise)


def wrong_draws_mirrored(x, generator=None):
    """The second half of the numbers gets the mirrored draws of the first."""
    return _halves(x, generator, lambda noise: 65535 - noise)


def right_by_dither(x, generator=None):
    """Counts in steps between neighbours, adds a draw from 0 to 1 and takes the floor."""
    wide = x.double()
    step = torch.ldexp(torch.ones_like(wide), (torch.frexp(wide.abs()).exponent - 8).clamp(min=-133))
    found = torch.floor(wide / step + torch.rand(x.shape, dtype=torch.float64, generator=generator)) * step
    return torch.where(x.isfinite(), found, wide).bfloat16()


def right_by_probability(x, generator=None):
    """Finds both neighbours and draws between them."""
    bits = x.view(torch.int32)
    below, above = (bits & -65536).view(torch.float32), ((bits & -65536) + 65536).view(torch.float32)
    share = torch.where(x == below, 0.0, (x - below) / (above - below))
    draw = torch.rand(x.shape, generator=generator, device=x.device)
    return torch.where(draw < share, above, below).to(torch.bfloat16)
