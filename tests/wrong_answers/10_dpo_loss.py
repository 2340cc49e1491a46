"""Answers to lesson 10's dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta), wrong and right."""

import torch
import torch.nn.functional as F


def refuse(beta):
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")


def wrong_no_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The reference left out: a reward of its own for what was likely anyway."""
    refuse(beta)
    return -F.logsigmoid(beta * (chosen - rejected))


def wrong_side(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Prefers what was rejected."""
    refuse(beta)
    return -F.logsigmoid(-beta * (chosen - ref_chosen.detach() - rejected + ref_rejected.detach()))


def wrong_reference_side(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The reference's difference added instead of taken away."""
    refuse(beta)
    return -F.logsigmoid(beta * (chosen - rejected + (ref_chosen - ref_rejected).detach()))


def wrong_beta_outside(chosen, rejected, ref_chosen, ref_rejected, beta):
    """beta in front of the loss instead of inside."""
    refuse(beta)
    return -beta * F.logsigmoid(chosen - ref_chosen.detach() - rejected + ref_rejected.detach())


def wrong_divides_by_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Divides by beta, as the best policy's exponent does."""
    refuse(beta)
    return -F.logsigmoid((chosen - ref_chosen.detach() - rejected + ref_rejected.detach()) / beta)


def wrong_log_of_sigmoid(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The formula as printed: infinite far out."""
    refuse(beta)
    return -torch.log(torch.sigmoid(beta * (chosen - ref_chosen.detach() - rejected + ref_rejected.detach())))


def wrong_mean(chosen, rejected, ref_chosen, ref_rejected, beta):
    """One number for the batch."""
    refuse(beta)
    return -F.logsigmoid(beta * (chosen - ref_chosen.detach() - rejected + ref_rejected.detach())).mean()


def wrong_reference_learns(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The reference is part of the graph."""
    refuse(beta)
    return -F.logsigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected))


def wrong_any_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Takes a beta of zero or below: nothing is learned, or the wrong thing."""
    return -F.logsigmoid(beta * (chosen - ref_chosen.detach() - rejected + ref_rejected.detach()))


def wrong_ratio_of_probabilities(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Ratios instead of log-ratios."""
    refuse(beta)
    up, down = (chosen - ref_chosen.detach()).exp(), (rejected - ref_rejected.detach()).exp()
    return -F.logsigmoid(beta * (up - down))


def wrong_two_losses(chosen, rejected, ref_chosen, ref_rejected, beta):
    """Each implied reward against zero, as for answers that are not paired."""
    refuse(beta)
    return -F.logsigmoid(beta * (chosen - ref_chosen.detach())) - F.logsigmoid(
        -beta * (rejected - ref_rejected.detach())
    )


def right_by_cross_entropy(chosen, rejected, ref_chosen, ref_rejected, beta):
    """A logistic regression whose answer is always yes."""
    refuse(beta)
    with torch.no_grad():
        base = ref_chosen - ref_rejected
    logits = beta * (chosen - rejected - base)
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
