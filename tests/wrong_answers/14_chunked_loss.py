"""Answers to lesson 14's chunked_loss(hidden, weight, labels, chunk), wrong and right."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def _terms(labels, chunk):
    terms = int((labels != -100).sum())
    if chunk < 1 or not terms:
        raise ValueError(f"chunk {chunk}, {terms} labels")
    return terms


def _sum(hidden, weight, labels):
    return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")


def _parts(hidden, labels, chunk):
    return zip(hidden.split(chunk), labels.split(chunk), strict=True)


def wrong_no_chunks(hidden, weight, labels, chunk):
    """All logits at once."""
    return _sum(hidden, weight, labels) / _terms(labels, chunk)


def wrong_no_checkpoint(hidden, weight, labels, chunk):
    """Chunks, but autograd keeps every chunk's log-softmax for backward."""
    terms = _terms(labels, chunk)
    return sum(_sum(h, weight, y) for h, y in _parts(hidden, labels, chunk)) / terms


def wrong_one_checkpoint(hidden, weight, labels, chunk):
    """One checkpoint over all chunks: in backward all of them are computed again at once."""

    def total(hidden, weight):
        return sum(_sum(h, weight, y) for h, y in _parts(hidden, labels, chunk))

    terms = _terms(labels, chunk)
    return checkpoint(total, hidden, weight, use_reentrant=False) / terms


def wrong_mean_of_means(hidden, weight, labels, chunk):
    """Averages the chunks' means: their numbers of labels differ."""
    _terms(labels, chunk)

    def mean(h, y):
        return F.cross_entropy((h @ weight.T).float(), y)

    found = [checkpoint(mean, h, y, use_reentrant=False) for h, y in _parts(hidden, labels, chunk) if (y != -100).any()]
    return torch.stack(found).mean()


def wrong_all_places(hidden, weight, labels, chunk):
    """Divides by all places, masked ones too."""
    _terms(labels, chunk)
    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(_sum, h, weight, y, use_reentrant=False) for h, y in parts) / len(labels)


def wrong_drops_the_rest(hidden, weight, labels, chunk):
    """Drops the last chunk if it is not full."""
    terms = _terms(labels, chunk)
    full = [(h, y) for h, y in _parts(hidden, labels, chunk) if len(h) == chunk]
    return sum((checkpoint(_sum, h, weight, y, use_reentrant=False) for h, y in full), hidden.sum() * 0) / terms


def wrong_weight_detached(hidden, weight, labels, chunk):
    """Treats the output layer as frozen, always."""
    terms, weight = _terms(labels, chunk), weight.detach()
    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(_sum, h, weight, y, use_reentrant=False) for h, y in parts) / terms


def wrong_half_softmax(hidden, weight, labels, chunk):
    """Stays in 16 bits through the softmax."""
    terms = _terms(labels, chunk)

    def loss_sum(h, y):
        return F.cross_entropy(h @ weight.T, y, reduction="sum")

    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(loss_sum, h, y, use_reentrant=False) for h, y in parts) / terms


def wrong_half_terms(hidden, weight, labels, chunk):
    """Each place's loss in 16 bits; only the sum is in 32."""
    terms = _terms(labels, chunk)

    def loss_sum(h, w, y):
        return F.cross_entropy(h @ w.T, y, reduction="none").float().sum()

    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(loss_sum, h, weight, y, use_reentrant=False) for h, y in parts) / terms


def wrong_half_logsumexp(hidden, weight, labels, chunk):
    """The logarithm of the sum of exponentials in 16 bits, the difference in 32."""
    terms = _terms(labels, chunk)

    def loss_sum(h, w, y):
        logits = h @ w.T
        found = logits.gather(-1, y.clamp(min=0)[:, None])[:, 0]
        return ((logits.logsumexp(-1).float() - found.float()) * (y != -100)).sum()

    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(loss_sum, h, weight, y, use_reentrant=False) for h, y in parts) / terms


def wrong_reentrant(hidden, weight, labels, chunk):
    """A reentrant checkpoint that does not see the weight: where it alone learns, nothing does."""
    terms = _terms(labels, chunk)

    def loss_sum(h, y):
        return _sum(h, weight, y)

    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(loss_sum, h, y, use_reentrant=True) for h, y in parts) / terms


def wrong_nan(hidden, weight, labels, chunk):
    """Gives nan where nothing is learned from."""
    terms = int((labels != -100).sum())
    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(_sum, h, weight, y, use_reentrant=False) for h, y in parts) / terms


def wrong_log_of_softmax(hidden, weight, labels, chunk):
    """Takes the logarithm of a softmax: infinite far out."""
    terms = _terms(labels, chunk)

    def loss_sum(h, y):
        p = (h @ weight.T).float().softmax(-1)[y != -100]
        return -p.gather(1, y[y != -100][:, None]).log().sum()

    parts = _parts(hidden, labels, chunk)
    return sum(checkpoint(loss_sum, h, y, use_reentrant=False) for h, y in parts) / terms


class _InForward(torch.autograd.Function):
    """Gradients made while going forward, as fused kernels do it: nothing is computed twice."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk):
        slopes, to_weight, total = [], torch.zeros_like(weight), 0.0
        for h, y in _parts(hidden, labels, chunk):
            p = (h @ weight.T).float().log_softmax(-1)
            total = total + F.nll_loss(p, y, reduction="sum")
            p = p.exp_()
            p[torch.arange(len(y)), y.clamp(min=0)] -= 1
            p = (p * (y != -100)[:, None]).to(h.dtype)
            slopes.append(p @ weight)
            to_weight += p.T @ h
        ctx.save_for_backward(torch.cat(slopes), to_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        to_hidden, to_weight = ctx.saved_tensors
        return grad * to_hidden, grad * to_weight, None, None


def right_in_forward(hidden, weight, labels, chunk):
    """Softmax less one-hot, chunk by chunk in the forward pass."""
    terms = _terms(labels, chunk)
    return _InForward.apply(hidden, weight, labels, chunk) / terms


def right_logsumexp(hidden, weight, labels, chunk):
    """By the logarithm of the sum of exponentials, in 32 bits."""
    terms = _terms(labels, chunk)

    def loss_sum(h, w, y):
        logits = (h @ w.T).float()
        return ((logits.logsumexp(-1) - logits.gather(-1, y.clamp(min=0)[:, None])[:, 0]) * (y != -100)).sum()

    parts = _parts(hidden, labels, chunk)
    return torch.stack([checkpoint(loss_sum, h, weight, y, use_reentrant=False) for h, y in parts]).sum() / terms
