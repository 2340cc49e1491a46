"""Answers to lesson 08's last_token_reward(rewards, attention_mask), wrong and right."""

import torch


def refuse(mask):
    for i, row in enumerate(mask.tolist()):
        if not any(row):
            raise ValueError(f"row {i} has no real token")


def wrong_last_column(rewards, attention_mask):
    """No mask at all: right only with padding on the left."""
    refuse(attention_mask)
    return rewards[:, -1]


def wrong_count_minus_one(rewards, attention_mask):
    """The number of real tokens less one: right only with padding on the right."""
    refuse(attention_mask)
    return rewards.gather(1, attention_mask.long().sum(1, keepdim=True) - 1)[:, 0]


def wrong_off_by_one(rewards, attention_mask):
    """The number of real tokens as index: one behind the last."""
    refuse(attention_mask)
    last = attention_mask.long().sum(1, keepdim=True).clamp(max=rewards.shape[1] - 1)
    return rewards.gather(1, last)[:, 0]


def wrong_first_token(rewards, attention_mask):
    """The first real token, where a BERT has its [CLS]."""
    refuse(attention_mask)
    return rewards.gather(1, attention_mask.long().argmax(1, keepdim=True))[:, 0]


def wrong_mean(rewards, attention_mask):
    """The mean over the real tokens."""
    refuse(attention_mask)
    return (rewards * attention_mask).sum(1) / attention_mask.sum(1)


def wrong_last_nonzero(rewards, attention_mask):
    """The last place where the masked reward is not zero: a real reward of zero is passed over."""
    refuse(attention_mask)
    places = torch.arange(rewards.shape[1])
    last = (places * (rewards * attention_mask != 0)).argmax(1)
    return rewards.gather(1, last[:, None])[:, 0]


def wrong_largest(rewards, attention_mask):
    """The largest reward of the row."""
    refuse(attention_mask)
    return rewards.masked_fill(~attention_mask.bool(), -torch.inf).amax(1)


def wrong_detached(rewards, attention_mask):
    """Right numbers without a gradient."""
    refuse(attention_mask)
    places = [max(i for i, real in enumerate(row) if real) for row in attention_mask.tolist()]
    return torch.tensor([rewards[i, place].item() for i, place in enumerate(places)])


def wrong_empty_rows_pass(rewards, attention_mask):
    """Gives a row without a real token the reward of its first place."""
    last = (torch.arange(rewards.shape[1]) * attention_mask).argmax(1)
    return rewards.gather(1, last[:, None])[:, 0]


def right_flipped(rewards, attention_mask):
    """The first real token of the row read backwards."""
    refuse(attention_mask)
    back = attention_mask.long().flip(1).argmax(1)
    return rewards.flip(1)[torch.arange(len(rewards)), back]
