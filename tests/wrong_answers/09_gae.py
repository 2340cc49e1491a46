"""Answers to lesson 09's gae(rewards, values, mask, gamma, lam), wrong and right."""

import torch


def _walk(rewards, values, mask, gamma, lam, stop=True):
    out, following, after = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + gamma * after - values[:, t]
        following = surprise + gamma * lam * following
        following = following * mask[:, t] if stop else following
        out[:, t], after = following, values[:, t]
    return out


def wrong_value_behind_the_end(rewards, values, mask, gamma=1.0, lam=0.95):
    """Takes the critic's value of the padding for what comes after the last token."""
    return _walk(rewards, values, mask, gamma, lam)


def wrong_no_mask(rewards, values, mask, gamma=1.0, lam=0.95):
    """Lets what stands behind the end flow back."""
    return _walk(rewards, values, mask, gamma, lam, stop=False)


def wrong_lambda_left_out(rewards, values, mask, gamma=1.0, lam=0.95):
    """Discounts by gamma alone."""
    return _walk(rewards, values * mask, mask, gamma, 1.0)


def wrong_gamma_left_out(rewards, values, mask, gamma=1.0, lam=0.95):
    """Discounts later surprises by lambda alone."""
    return _walk(rewards, values * mask, mask, 1.0, lam)


def wrong_own_value_next(rewards, values, mask, gamma=1.0, lam=0.95):
    """Adds the value of the same state instead of the next."""
    values, out, following = values * mask, torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        following = (rewards[:, t] + gamma * values[:, t] - values[:, t] + gamma * lam * following) * mask[:, t]
        out[:, t] = following
    return out


def wrong_returns(rewards, values, mask, gamma=1.0, lam=0.95):
    """Returns instead of advantages: the values added back."""
    return (_walk(rewards, values * mask, mask, gamma, lam) + values) * mask


def wrong_forward(rewards, values, mask, gamma=1.0, lam=0.95):
    """Sums earlier surprises instead of later ones."""
    values, out, following = values * mask, torch.zeros_like(rewards), 0.0
    for t in range(rewards.shape[1]):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        following = (rewards[:, t] + gamma * after - values[:, t] + gamma * lam * following) * mask[:, t]
        out[:, t] = following
    return out


def wrong_one_step(rewards, values, mask, gamma=1.0, lam=0.95):
    """The next surprise only."""
    values = values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return (rewards + gamma * after - values) * mask


def wrong_no_critic(rewards, values, mask, gamma=1.0, lam=0.95):
    """The rewards to come, without a value taken off."""
    return _walk(rewards * mask, torch.zeros_like(values), mask, gamma, 1.0)


def right_by_recursion(rewards, values, mask, gamma=1.0, lam=0.95):
    """Row by row, from the end."""
    out = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length, carry = int(mask[row].sum()), 0.0
        for t in range(length - 1, -1, -1):
            after = values[row, t + 1] if t + 1 < length else 0.0
            carry = rewards[row, t] + gamma * after - values[row, t] + gamma * lam * carry
            out[row, t] = carry
    return out
