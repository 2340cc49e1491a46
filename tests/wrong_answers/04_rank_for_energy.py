"""Answers to lesson 04's rank_for_energy(update, share=0.9), wrong and right."""

import numpy as np
import torch


def wrong_not_squared(update, share=0.9):
    """Adds the singular values, not their squares."""
    s = torch.linalg.svdvals(update)
    if s.sum() == 0:
        return 0
    return int((s.cumsum(0) < share * s.sum()).sum()) + 1


def wrong_one_too_few(update, share=0.9):
    """Counts the values that fall short and forgets the one that reaches the share."""
    e = torch.linalg.svdvals(update).square().cumsum(0)
    return int((e < share * e[-1]).sum())


def wrong_one_too_many(update, share=0.9):
    """Takes one more than is needed."""
    e = torch.linalg.svdvals(update).square().cumsum(0)
    return 0 if e[-1] == 0 else int((e < share * e[-1]).sum()) + 2


def wrong_share_of_the_largest(update, share=0.9):
    """Counts the singular values above a share of the largest one."""
    s = torch.linalg.svdvals(update)
    return int((s > (1 - share) * s[0]).sum())


def wrong_share_of_the_rank(update, share=0.9):
    """A share of the rank instead of the energy."""
    return round(share * int(torch.linalg.matrix_rank(update)))


def wrong_share_ignored(update, share=0.9):
    """Always 90 percent."""
    e = torch.linalg.svdvals(update).double().square().cumsum(0)
    return 0 if e[-1] == 0 else int((e < 0.9 * e[-1] * (1 - 1e-9)).sum()) + 1


def wrong_tensor(update, share=0.9):
    """Returns a tensor."""
    e = torch.linalg.svdvals(update).double().square().cumsum(0)
    return (e < share * e[-1] * (1 - 1e-9)).sum() + (e[-1] > 0)


def wrong_zero_matrix(update, share=0.9):
    """Says 1 for a matrix of zeros."""
    e = torch.linalg.svdvals(update).double().square().cumsum(0)
    return int((e < share * e[-1] * (1 - 1e-9)).sum()) + 1


def wrong_smallest_first(update, share=0.9):
    """Adds from the small end."""
    e = torch.linalg.svdvals(update).square().flip(0).cumsum(0)
    return 0 if e[-1] == 0 else int((e < share * e[-1]).sum()) + 1


def right_by_norms(update, share=0.9):
    """Numpy, and the energy that is left out."""
    s = np.linalg.svd(update.double().numpy(), compute_uv=False)
    total = float((update.double() ** 2).sum())
    for k in range(len(s) + 1):
        if (s[k:] ** 2).sum() <= (1 - share) * total + 1e-9 * total:
            return k
