"""The checks of lesson 06: nf4_levels, quantise and pack.

Ground truth: bitsandbytes' table of levels and the normal's distribution function, nearest levels found by trying all,
and bytes written out in hexadecimal.
"""

import math

import torch

from nbtools.checks import exercise


def _nf4_levels(offset=0.9677083):
    root = math.sqrt(2)
    half = {n: torch.linspace(offset, 0.5, n + 1)[:-1].double() for n in (7, 8)}
    half = {n: (root * torch.erfinv(2 * p - 1)).float() for n, p in half.items()}
    levels = torch.cat([-half[7], torch.zeros(1), half[8].flip(0)])
    return levels / levels[-1]


def _quantise(weight, levels, block=64):
    count, rest = divmod(weight.numel(), block)
    if rest:
        raise ValueError(f"blocks of {block} do not divide {weight.numel()} weights: choose another block size")
    blocks = weight.reshape(count, block).float()
    absmax = torch.maximum(blocks.amax(1), -blocks.amin(1))
    scaled = blocks * (1 / absmax.clamp(min=1e-38))[:, None]
    midpoints = (levels[1:] + levels[:-1]) / 2
    return torch.searchsorted(midpoints, scaled).to(torch.uint8).flatten(), absmax


def _pack(codes):
    if len(codes) % 2:
        raise ValueError(f"codes are packed in pairs, but there are {len(codes)}: add one")
    pairs = codes.reshape(-1, 2)
    return 16 * pairs[:, 0] + pairs[:, 1]


@exercise("nf4_levels", reference=_nf4_levels, minutes=8)
def check_nf4_levels(nf4_levels):
    """Shape, order and zero; bitsandbytes' own table; for other offsets the normal's probability between levels."""
    from bitsandbytes.functional import get_4bit_type

    levels = nf4_levels()
    if not torch.is_tensor(levels) or tuple(levels.shape) != (16,) or levels.dtype != torch.float32:
        yield "the answer should be 16 levels in one float32 tensor"
        return
    yield not bool((levels.diff() > 0).all()) and "the levels should rise: sort them, and let none come twice"
    yield 0.0 not in levels.tolist() and "zero should be one of the levels"
    yield levels.abs().max() != 1 and f"the largest absolute value should be 1, but is {levels.abs().max():.4f}"
    below = int((levels < 0).sum())
    yield below != 7 and f"7 levels should lie below zero and 8 above, but {below} lie below"
    truth = get_4bit_type("nf4", device="cpu")
    apart = (levels - truth).abs().max().item()
    yield apart > 2e-6 and f"bitsandbytes' levels are others: the largest difference is {apart:.4f}"
    yield 0 < apart <= 2e-6 and (
        "right up to rounding, but not bit for bit: take torch.linspace's float32 probabilities through `quantile`, "
        "then divide in float32"
    )
    for offset in (0.9, 0.99):
        levels = nf4_levels(offset)
        top = torch.special.ndtri(torch.tensor(offset, dtype=torch.float64))
        steps = torch.special.ndtr(levels.double() * top).diff()  # probability between neighbours
        wanted = torch.tensor([(offset - 0.5) / 7] * 7 + [(offset - 0.5) / 8] * 8, dtype=torch.float64)
        fits = steps.shape == wanted.shape and torch.allclose(steps, wanted, atol=1e-5)
        yield not fits and (
            f"offset {offset}: between neighbours should lie (offset - 1/2) / 7 of the normal below zero and "
            "(offset - 1/2) / 8 above"
        )


@exercise("quantise", reference=_quantise, minutes=8)
def check_quantise(quantise):
    """By hand; nearest level of all on random weights and two tables; blocks apart; zeros; a size that does not fit."""
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0])
    weight = torch.tensor([[4.0, -1.0, 0.2, 1.2], [0.0, -0.5, 0.5, 0.1]])
    given = weight.clone()
    codes, absmax = quantise(weight, levels, block=4)
    if codes.dtype != torch.uint8 or tuple(codes.shape) != (8,) or tuple(absmax.shape) != (2,):
        found = f"{codes.dtype} {tuple(codes.shape)} and {tuple(absmax.shape)}"
        yield f"8 weights in blocks of 4: codes should be uint8 (8,), absmax (2,), but they are {found}"
        return
    yield not weight.equal(given) and "the weights were changed in place: work on a copy"
    yield absmax.tolist() != [4.0, 0.5] and f"absmax should be 4 and 0.5, but is {absmax.tolist()}"
    yield (absmax.dtype != torch.float32) and f"absmax should be float32, not {absmax.dtype}"
    wanted = [4, 1, 2, 3, 2, 0, 4, 3]
    found = codes.tolist()
    yield found != wanted and f"levels {levels.tolist()}: codes should be {wanted}, but are {found}"
    weight = torch.randn(6, 128) * torch.logspace(-2, 2, 6)[:, None]
    for levels in (torch.linspace(-1, 1, 15), torch.tensor([-1.0, -0.7, -0.1, 0.0, 0.05, 0.3, 1.0])):
        codes, absmax = quantise(weight, levels, 64)
        scaled = weight.reshape(-1, 64) / weight.reshape(-1, 64).abs().amax(1)[:, None]
        errors = (scaled.flatten()[:, None] - levels).abs()  # (n, levels)
        chosen = errors.gather(1, codes.long().clamp(max=len(levels) - 1)[:, None])[:, 0]
        worse = int((chosen > errors.amin(1) + 1e-6).sum())
        yield worse and f"{len(levels)} levels: {worse} of {len(chosen)} weights could have a nearer level"
    default = quantise(weight, levels)[1]
    yield len(default) != 12 and f"block left out: it is 64, so 768 weights have 12 absmax values, not {len(default)}"
    codes, absmax = quantise(torch.tensor([0.0, 0.0, 2.0, -2.0]), torch.tensor([-1.0, 0.0, 1.0]), 2)
    found = codes.tolist()
    yield found != [1, 1, 2, 0] and f"a block of zeros: its codes should be 1, level zero's, not {found[:2]}"
    yield not absmax.isfinite().all() and "a block of zeros: its absmax should be finite"
    half = quantise(weight.to(torch.bfloat16), torch.linspace(-1, 1, 15))[1].dtype
    yield half != torch.float32 and f"bfloat16 weights: absmax should still be float32, not {half}"
    try:
        quantise(torch.ones(10), torch.tensor([-1.0, 0.0, 1.0]), 4)
    except ValueError as error:
        named = "10" in str(error) and "4" in str(error)
        yield not named and f"10 weights in blocks of 4: the ValueError should name both numbers, but says {error}"
    except Exception as error:
        yield f"10 weights in blocks of 4: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "10 weights in blocks of 4: a ValueError was asked for, and nothing was raised"


@exercise("pack", reference=_pack, minutes=4)
def check_pack(pack):
    """The bytes in hexadecimal are the codes one after the other; type, length, and an odd number refused."""
    codes = torch.tensor([10, 3, 0, 15, 15, 0, 1, 2], dtype=torch.uint8)
    given, packed = codes.clone(), pack(codes)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (4,):
        yield f"8 codes should give uint8 (4,), but give {packed.dtype} {tuple(packed.shape)}"
        return
    yield not codes.equal(given) and "the codes were changed in place: work on a copy"
    found = [f"0x{byte:02x}" for byte in packed.tolist()]
    wanted = ["0xa3", "0x0f", "0xf0", "0x12"]
    yield found != wanted and f"codes 10 3 0 15 15 0 1 2 should give {wanted}, not {found}"
    codes = torch.randint(0, 16, (1000,), dtype=torch.uint8)
    text = "".join(f"{code:x}" for code in codes.tolist())
    yield bytes(pack(codes).tolist()).hex() != text and "1000 random codes: a pair does not come back from its byte"
    yield len(pack(codes[:0])) != 0 and "no codes should give no bytes"
    try:
        pack(codes[:7])
    except ValueError:
        yield None
    except Exception as error:
        yield f"7 codes: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "7 codes: a ValueError was asked for, and nothing was raised"
