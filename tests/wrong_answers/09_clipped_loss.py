"""Answers to lesson 09's clipped_loss(logp, old, advantages, mask, clip), wrong and right."""

import torch


def _mean(losses, mask):
    if not mask.any():
        raise ValueError("no token")
    return (losses * mask).sum() / mask.sum()


def wrong_not_clipped(logp, old, advantages, mask, clip=0.2):
    """The ratio as it is."""
    return _mean(-(logp - old.detach()).exp() * advantages.detach(), mask)


def wrong_only_clipped(logp, old, advantages, mask, clip=0.2):
    """The clipped ratio alone, without the minimum: a step that went wrong cannot be taken back."""
    return _mean(-(logp - old.detach()).exp().clamp(1 - clip, 1 + clip) * advantages.detach(), mask)


def wrong_maximum(logp, old, advantages, mask, clip=0.2):
    """The larger of the two gains."""
    ratio, a = (logp - old.detach()).exp(), advantages.detach()
    return _mean(-torch.max(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a), mask)


def wrong_sign(logp, old, advantages, mask, clip=0.2):
    """The gain itself: an optimizer makes it smaller."""
    ratio, a = (logp - old.detach()).exp(), advantages.detach()
    return _mean(torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a), mask)


def wrong_ratio_to_itself(logp, old, advantages, mask, clip=0.2):
    """Old log-probabilities taken anew: the ratio is always 1."""
    ratio, a = (logp - logp).exp(), advantages.detach()
    return _mean(-torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a), mask)


def wrong_difference(logp, old, advantages, mask, clip=0.2):
    """The difference of logarithms instead of the ratio."""
    ratio, a = 1 + logp - old.detach(), advantages.detach()
    return _mean(-torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a), mask)


def wrong_upside_down(logp, old, advantages, mask, clip=0.2):
    """Old over new."""
    ratio, a = (old.detach() - logp).exp(), advantages.detach()
    return _mean(-torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a), mask)


def wrong_all_tokens(logp, old, advantages, mask, clip=0.2):
    """The mean over all places, padding among them."""
    if not mask.any():
        raise ValueError("no token")
    ratio, a = (logp - old.detach()).exp(), advantages.detach()
    return (-torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a) * mask).mean()


def wrong_mean_of_means(logp, old, advantages, mask, clip=0.2):
    """The mean of each answer's mean: a short answer's tokens weigh more."""
    if not mask.any():
        raise ValueError("no token")
    ratio, a = (logp - old.detach()).exp(), advantages.detach()
    losses = -torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a) * mask
    return (losses.sum(1) / mask.sum(1)).mean()


def wrong_leaks(logp, old, advantages, mask, clip=0.2):
    """Lets a gradient into the old log-probabilities and the advantages."""
    ratio = (logp - old).exp()
    return _mean(-torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def wrong_silent_when_empty(logp, old, advantages, mask, clip=0.2):
    """An empty mask gives nan."""
    ratio, a = (logp - old.detach()).exp(), advantages.detach()
    return (-torch.min(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a) * mask).sum() / mask.sum()


def right_by_cases(logp, old, advantages, mask, clip=0.2):
    """The bound is an upper one for good answers and a lower one for bad ones."""
    kept = mask.bool()
    if not kept.any():
        raise ValueError("there is no token to learn from")
    ratio, a = (logp - old.detach()).exp()[kept], advantages.detach()[kept]
    bounded = torch.where(a > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(bounded * a).mean()
