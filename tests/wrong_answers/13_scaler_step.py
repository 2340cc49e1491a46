"""Answers to lesson 13's scaler_step(optimizer, scale, good, interval, clip), wrong and right."""

import torch
from torch.nn.utils import clip_grad_norm_


def _params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _unscale(params, scale):
    for p in params:
        p.grad /= scale


def _finite(params):
    return all(p.grad.isfinite().all() for p in params)


def _grow(scale, good, interval):
    return (scale * 2, 0) if good + 1 == interval else (scale, good + 1)


def wrong_clips_first(optimizer, scale, good=0, interval=2000, clip=None):
    """Clips the scaled gradients, then unscales them."""
    params = _params(optimizer)
    if clip is not None and _finite(params):
        clip_grad_norm_(params, clip)
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_steps_anyway(optimizer, scale, good=0, interval=2000, clip=None):
    """Lowers the scale after an overflow, but takes the step too."""
    params = _params(optimizer)
    _unscale(params, scale)
    fine = _finite(params)
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval) if fine else (scale / 2, 0)


def wrong_sets_them_to_zero(optimizer, scale, good=0, interval=2000, clip=None):
    """Replaces what is not finite by zero and steps."""
    params = _params(optimizer)
    _unscale(params, scale)
    fine = _finite(params)
    for p in params:
        p.grad.nan_to_num_(0.0, 0.0, 0.0)
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval) if fine else (scale / 2, 0)


def wrong_looks_for_nan_only(optimizer, scale, good=0, interval=2000, clip=None):
    """Misses infinite gradients."""
    params = _params(optimizer)
    _unscale(params, scale)
    if any(p.grad.isnan().any() for p in params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_looks_at_the_first(optimizer, scale, good=0, interval=2000, clip=None):
    """Looks at the first parameter alone."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params[:1]):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_first_group(optimizer, scale, good=0, interval=2000, clip=None):
    """Unscales and looks at the first group of parameters only."""
    params = [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_never_unscales(optimizer, scale, good=0, interval=2000, clip=None):
    """Steps on the scaled gradients; Adam would hardly notice."""
    params = _params(optimizer)
    if not _finite(params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_keeps_counting(optimizer, scale, good=0, interval=2000, clip=None):
    """Does not start counting anew after an overflow."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, good
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_grows_late(optimizer, scale, good=0, interval=2000, clip=None):
    """Doubles the scale one good step too late."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return (scale * 2, 0) if good == interval else (scale, good + 1)


def wrong_never_grows(optimizer, scale, good=0, interval=2000, clip=None):
    """Only ever lowers the scale."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return scale, good + 1


def wrong_same_scale_after_overflow(optimizer, scale, good=0, interval=2000, clip=None):
    """Skips the step, but leaves the scale as it is."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params):
        return scale, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_missing_gradient_breaks_it(optimizer, scale, good=0, interval=2000, clip=None):
    """Expects every parameter to have a gradient."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    if clip is not None:
        clip_grad_norm_(params, clip)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_always_clips(optimizer, scale, good=0, interval=2000, clip=None):
    """Clips to 1 where no clipping was asked for."""
    params = _params(optimizer)
    _unscale(params, scale)
    if not _finite(params):
        return scale / 2, 0
    clip_grad_norm_(params, clip or 1.0)
    optimizer.step()
    return _grow(scale, good, interval)


def wrong_clips_by_default(optimizer, scale, good=0, interval=2000, clip=1.0):
    """Clips to 1 where `clip` is left out."""
    return right_by_the_norm(optimizer, scale, good, interval, clip)


def wrong_scale_stays_above_one(optimizer, scale, good=0, interval=2000, clip=None):
    """Never lets the scale fall below 1."""
    scale, good = right_by_the_norm(optimizer, scale, good, interval, clip)
    return max(scale, 1.0), good


def right_by_the_norm(optimizer, scale, good=0, interval=2000, clip=None):
    """One norm of all gradients tells whether any is not finite, and is what clipping needs."""
    params = _params(optimizer)
    for p in params:
        p.grad.div_(scale)
    norm = clip_grad_norm_(params, torch.inf if clip is None else clip)
    if not norm.isfinite():
        return scale / 2, 0
    optimizer.step()
    good = good + 1
    return (scale + scale, 0) if good >= interval else (scale, good)
