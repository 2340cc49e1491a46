"""Answers to lesson 12's self_paced_weights(losses, labels, threshold), wrong and right."""

import torch


def _refuse(losses):
    if losses.isnan().any():
        raise ValueError("nan")


def _balanced(weights, labels):
    for c in labels.unique():
        own = labels == c
        weights[own] *= own.sum() / weights[own].sum()
    return weights


def _with_easiest(losses, labels, threshold):
    weights = (losses <= threshold).float()
    for c in labels.unique():
        own = labels == c
        if not weights[own].any():
            weights[own] = (losses[own] == losses[own].min()).float()
    return weights


def wrong_no_balance(losses, labels, threshold):
    """Leaves out the balance of classes."""
    _refuse(losses)
    return _with_easiest(losses, labels, threshold)


def wrong_zero_over_zero(losses, labels, threshold):
    """Divides by zero where a class has nothing easy."""
    _refuse(losses)
    return _balanced((losses <= threshold).float(), labels)


def wrong_drops_the_class(losses, labels, threshold):
    """A class with nothing easy gets no weight at all."""
    _refuse(losses)
    return _balanced((losses <= threshold).float(), labels).nan_to_num(0.0)


def wrong_opens_the_class(losses, labels, threshold):
    """A class with nothing easy takes part as a whole."""
    _refuse(losses)
    weights = (losses <= threshold).float()
    for c in labels.unique():
        if not weights[labels == c].any():
            weights[labels == c] = 1.0
    return _balanced(weights, labels)


def wrong_strictly_below(losses, labels, threshold):
    """Leaves out a loss equal to the threshold."""
    _refuse(losses)
    weights = (losses < threshold).float()
    for c in labels.unique():
        own = labels == c
        if not weights[own].any():
            weights[own] = (losses[own] == losses[own].min()).float()
    return _balanced(weights, labels)


def wrong_hard_ones(losses, labels, threshold):
    """Keeps the hard ones."""
    _refuse(losses)
    weights = (losses > threshold).float()
    for c in labels.unique():
        if not weights[labels == c].any():
            weights[labels == c] = 1.0
    return _balanced(weights, labels)


def wrong_equal_classes(losses, labels, threshold):
    """Gives all classes the same part, however many sentences they have."""
    _refuse(losses)
    weights, classes = _with_easiest(losses, labels, threshold), labels.unique()
    for c in classes:
        weights[labels == c] *= len(labels) / len(classes) / weights[labels == c].sum()
    return weights


def wrong_sums_to_one(losses, labels, threshold):
    """Scales each class to sum to one."""
    _refuse(losses)
    weights = _with_easiest(losses, labels, threshold)
    for c in labels.unique():
        weights[labels == c] /= weights[labels == c].sum()
    return weights


def wrong_first_of_equals(losses, labels, threshold):
    """Lets only the first of equally easy sentences take a class's part."""
    _refuse(losses)
    weights = (losses <= threshold).float()
    for c in labels.unique():
        own = (labels == c).nonzero().flatten()
        if not weights[own].any():
            weights[own[losses[own].argmin()]] = 1.0
    return _balanced(weights, labels)


def wrong_two_classes_only(losses, labels, threshold):
    """Knows the classes 0 and 1 alone."""
    _refuse(losses)
    weights = (losses <= threshold).float()
    for c in (0, 1):
        own = labels == c
        if own.any():
            if not weights[own].any():
                weights[own] = (losses[own] == losses[own].min()).float()
            weights[own] *= own.sum() / weights[own].sum()
    return weights


def wrong_nan_is_hard(losses, labels, threshold):
    """Takes nan for a hard sentence and goes on."""
    return _balanced(_with_easiest(losses.nan_to_num(torch.inf, posinf=torch.inf), labels, threshold), labels)


def right_row_by_row(losses, labels, threshold):
    """Plain Python: collects who takes part in each class, then shares the class's size among them."""
    values, sides = losses.tolist(), labels.tolist()
    if any(value != value for value in values):
        raise ValueError("a loss is nan")
    weights = torch.zeros(len(values))
    for c in set(sides):
        own = [i for i, side in enumerate(sides) if side == c]
        least = min(values[i] for i in own)
        kept = [i for i in own if values[i] <= max(threshold, least)]
        for i in kept:
            weights[i] = len(own) / len(kept)
    return weights
