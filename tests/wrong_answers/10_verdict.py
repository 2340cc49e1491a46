"""Answers to lesson 10's verdict(one, two), wrong and right."""

import torch


def wrong_one_order(one, two):
    """Asks in one order only: position bias stays."""
    return one.softmax(-1)[:, 0]


def wrong_not_turned(one, two):
    """Forgets that in the second order the first text is B: the texts cancel, the bias stays."""
    return torch.sigmoid((one[:, 0] - one[:, 1] + two[:, 0] - two[:, 1]) / 2)


def wrong_sum(one, two):
    """Adds the log-odds instead of taking their mean: too sure."""
    return torch.sigmoid(one[:, 0] - one[:, 1] + two[:, 1] - two[:, 0])


def wrong_mean_of_probabilities(one, two):
    """The mean of two probabilities: a larger pull to a letter draws it to one half."""
    return (one.softmax(-1)[:, 0] + two.softmax(-1)[:, 1]) / 2


def wrong_only_a(one, two):
    """Compares the logits of A alone, which a level of both letters shifts."""
    return torch.sigmoid((one[:, 0] - two[:, 0]) / 2)


def wrong_second_text(one, two):
    """The probability that the second text is better."""
    return torch.sigmoid((one[:, 1] - one[:, 0] + two[:, 0] - two[:, 1]) / 2)


def wrong_votes(one, two):
    """Counts votes: how sure the model is gets lost."""
    return ((one[:, 0] > one[:, 1]).float() + (two[:, 1] > two[:, 0]).float()) / 2


def wrong_product(one, two):
    """The product of the probabilities: the two orders do not sum to one."""
    return one.softmax(-1)[:, 0] * two.softmax(-1)[:, 1]


def wrong_exponentials(one, two):
    """Exponentials as they stand: nan far out."""
    first, second = (one[:, 0] + two[:, 1]).div(2).exp(), (one[:, 1] + two[:, 0]).div(2).exp()
    return first / (first + second)


def right_as_softmax(one, two):
    """The mean logit of each text, wherever it stood, and a softmax over the two."""
    texts = (one + two.flip(1)) / 2
    return texts.softmax(-1)[:, 0]
