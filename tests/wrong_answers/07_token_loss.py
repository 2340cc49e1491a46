"""Answers to lesson 07's token_loss(logits, labels), wrong and right."""

import torch
import torch.nn.functional as F


def _refuse(labels):
    if (labels[:, 1:] == -100).all():
        raise ValueError("nothing to learn from")


def wrong_no_shift(logits, labels):
    """Lets a place predict its own token, which it has seen."""
    _refuse(labels)
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def wrong_shifted_back(logits, labels):
    """Shifts the wrong way: place t predicts token t - 1."""
    _refuse(labels)
    return F.cross_entropy(logits[:, 1:].float().flatten(0, 1), labels[:, :-1].flatten())


def wrong_all_tokens(logits, labels):
    """Divides by all places, masked ones too."""
    _refuse(labels)
    total = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / labels[:, 1:].numel()


def wrong_mean_of_means(logits, labels):
    """Means of rows first: a token of a short answer weighs more."""
    _refuse(labels)
    rows = [
        F.cross_entropy(a[:-1].float(), b[1:]) for a, b in zip(logits, labels, strict=True) if (b[1:] != -100).any()
    ]
    return torch.stack(rows).mean()


def wrong_sum(logits, labels):
    """The sum: batches with long answers take larger steps."""
    _refuse(labels)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def wrong_log_of_softmax(logits, labels):
    """Takes the logarithm of a softmax: infinite far out."""
    _refuse(labels)
    kept = labels[:, 1:] != -100
    p = logits[:, :-1][kept].float().softmax(-1)
    return -p.gather(1, labels[:, 1:][kept][:, None]).log().mean()


def wrong_token_zero(logits, labels):
    """Takes label 0 for masked."""
    _refuse(labels)
    kept = labels[:, 1:] > 0
    return F.cross_entropy(logits[:, :-1][kept].float(), labels[:, 1:][kept])


def wrong_nan(logits, labels):
    """Gives nan where nothing is learned from, and training goes on with it."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())


def wrong_per_token(logits, labels):
    """One loss a token, no mean."""
    _refuse(labels)
    kept = labels[:, 1:] != -100
    return F.cross_entropy(logits[:, :-1][kept].float(), labels[:, 1:][kept], reduction="none")


def wrong_detached(logits, labels):
    """Cuts the gradient."""
    _refuse(labels)
    return F.cross_entropy(logits[:, :-1].detach().float().flatten(0, 1), labels[:, 1:].flatten())


def right_logsumexp(logits, labels):
    """The normaliser less the label's logit, times the mask."""
    kept = (labels[:, 1:] != -100).float()
    if not kept.any():
        raise ValueError("nothing to learn from")
    z = logits[:, :-1].float()
    own = z.gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return ((z.logsumexp(-1) - own) * kept).sum() / kept.sum()
