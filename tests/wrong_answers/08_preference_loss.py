"""Answers to lesson 08's preference_loss(chosen, rejected), wrong and right."""

import torch
import torch.nn.functional as F


def wrong_log_of_sigmoid(chosen, rejected):
    """The formula as printed: infinite far out."""
    return -torch.log(torch.sigmoid(chosen - rejected))


def wrong_clamped(chosen, rejected):
    """Keeps the logarithm finite by a clamp, which cuts the gradient where it matters."""
    return -torch.log(torch.sigmoid(chosen - rejected).clamp(min=1e-12))


def wrong_epsilon(chosen, rejected):
    """Adds a small number under the logarithm: at -200 the loss is 18."""
    return -torch.log(torch.sigmoid(chosen - rejected) + 1e-8)


def wrong_side(chosen, rejected):
    """Rewards what was rejected."""
    return -F.logsigmoid(rejected - chosen)


def wrong_sign(chosen, rejected):
    """Forgets the minus: the loss is maximised."""
    return F.logsigmoid(chosen - rejected)


def wrong_mean(chosen, rejected):
    """One number for the batch."""
    return -F.logsigmoid(chosen - rejected).mean()


def wrong_absolute(chosen, rejected):
    """Each reward against zero, as if there were a right height: a constant then matters."""
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def wrong_hinge(chosen, rejected):
    """A hinge at margin 1."""
    return F.relu(1 - (chosen - rejected))


def wrong_bits(chosen, rejected):
    """In bits instead of nats."""
    return -F.logsigmoid(chosen - rejected) / torch.log(torch.tensor(2.0))


def wrong_detached(chosen, rejected):
    """Lets no gradient through the rejected reward."""
    return -F.logsigmoid(chosen - rejected.detach())


def right_two_way_softmax(chosen, rejected):
    """Cross-entropy of a choice between two."""
    logits = torch.stack([chosen, rejected], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")
