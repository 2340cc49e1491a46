"""Answers to lesson 09's rloo_advantages(rewards), wrong and right."""

import torch


def _refuse(rewards):
    if rewards.shape[1] < 2:
        raise ValueError(f"k = {rewards.shape[1]} leaves no others")


def wrong_mean_of_all(rewards):
    """The mean of all, its own reward among them: the advantages come out (k - 1) / k too small."""
    _refuse(rewards)
    return rewards - rewards.mean(1, keepdim=True)


def wrong_batch_mean(rewards):
    """One baseline for all prompts."""
    _refuse(rewards)
    return rewards - (rewards.sum() - rewards) / (rewards.numel() - 1)


def wrong_divided(rewards):
    """GRPO's: divides by the spread."""
    _refuse(rewards)
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, keepdim=True)


def wrong_axis(rewards):
    """The others of the column."""
    _refuse(rewards)
    return rewards - (rewards.sum(0) - rewards) / max(rewards.shape[0] - 1, 1)


def wrong_divisor(rewards):
    """Leaves one out and divides by k."""
    _refuse(rewards)
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / rewards.shape[1]


def wrong_sign(rewards):
    """The others minus it."""
    _refuse(rewards)
    return (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1) - rewards


def wrong_one_number(rewards):
    """One advantage for each prompt."""
    _refuse(rewards)
    return (rewards - rewards.mean(1, keepdim=True)).mean(1)


def wrong_silent_at_one(rewards):
    """Divides by zero where there are no others."""
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def right_by_mask(rewards):
    """A matrix that takes everybody but oneself."""
    k = rewards.shape[1]
    if k < 2:
        raise ValueError(f"RLOO needs more than k = {k} answers")
    others = (1 - torch.eye(k)) / (k - 1)
    return rewards - rewards @ others
