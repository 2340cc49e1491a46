"""Answers to lesson 10's ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta), wrong and right."""

import torch


def refuse(beta):
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")


def ratio(chosen, rejected, ref_chosen, ref_rejected):
    return chosen - ref_chosen.detach() - rejected + ref_rejected.detach()


def wrong_goal_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The goal is beta / 2."""
    refuse(beta)
    return (ratio(chosen, rejected, ref_chosen, ref_rejected) - beta / 2) ** 2


def wrong_goal_twice(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The goal is 1 / beta: the factor 2 is forgotten."""
    refuse(beta)
    return (ratio(chosen, rejected, ref_chosen, ref_rejected) - 1 / beta) ** 2


def wrong_beta_inside(chosen, rejected, ref_chosen, ref_rejected, beta):
    """beta before h too: another scale and another goal."""
    refuse(beta)
    return (beta * ratio(chosen, rejected, ref_chosen, ref_rejected) - 0.5) ** 2


def wrong_hinge(chosen, rejected, ref_chosen, ref_rejected, beta):
    """No pull back from beyond the goal."""
    refuse(beta)
    return torch.relu(1 / (2 * beta) - ratio(chosen, rejected, ref_chosen, ref_rejected)) ** 2


def wrong_absolute(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The distance instead of its square."""
    refuse(beta)
    return (ratio(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)).abs()


def wrong_no_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The reference left out."""
    refuse(beta)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def wrong_side(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The rejected one first."""
    refuse(beta)
    return (-ratio(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2


def wrong_mean(chosen, rejected, ref_chosen, ref_rejected, beta):
    """One number for the batch."""
    refuse(beta)
    return ((ratio(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * beta)) ** 2).mean()


def wrong_reference_learns(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The reference is part of the graph."""
    refuse(beta)
    return (chosen - ref_chosen - rejected + ref_rejected - 1 / (2 * beta)) ** 2


def wrong_silent_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    """A beta of zero or below is made positive in silence."""
    return (ratio(chosen, rejected, ref_chosen, ref_rejected) - 1 / (2 * max(beta, 1e-6))) ** 2


def right_multiplied_out(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The square multiplied out."""
    refuse(beta)
    h = ratio(chosen, rejected, ref_chosen, ref_rejected).double()
    return (h * h - h / beta + 1 / (4 * beta * beta)).float()
