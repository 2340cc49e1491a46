"""Answers to lesson 05's prepend(key, value, mask, prefix_key, prefix_value), wrong and right."""

import torch
import torch.nn.functional as F


def heads(prefix, like):
    B, H, _, d = like.shape
    return prefix.view(-1, H, d).transpose(0, 1).expand(B, -1, -1, -1).to(like.dtype)


def front(key, value, prefix_key, prefix_value):
    return torch.cat([heads(prefix_key, key), key], 2), torch.cat([heads(prefix_value, value), value], 2)


def seen(mask, P):
    return None if mask is None else F.pad(mask, (P, 0), value=True)


def wrong_no_transpose(key, value, mask, prefix_key, prefix_value):
    """Cuts the rows into heads without turning the axes: tokens and heads are mixed up."""
    B, H, _, d = key.shape
    k, v = (p.reshape(H, -1, d).expand(B, -1, -1, -1).to(key.dtype) for p in (prefix_key, prefix_value))
    return torch.cat([k, key], 2), torch.cat([v, value], 2), seen(mask, len(prefix_key))


def wrong_at_the_end(key, value, mask, prefix_key, prefix_value):
    """Behind the sentence, while the mask has the prefix in front."""
    k, v = torch.cat([key, heads(prefix_key, key)], 2), torch.cat([value, heads(prefix_value, value)], 2)
    return k, v, seen(mask, len(prefix_key))


def wrong_mask_at_the_end(key, value, mask, prefix_key, prefix_value):
    """The mask grows at the wrong end."""
    mask = None if mask is None else F.pad(mask, (0, len(prefix_key)), value=True)
    return *front(key, value, prefix_key, prefix_value), mask


def wrong_prefix_unseen(key, value, mask, prefix_key, prefix_value):
    """The prefix is padded with False: nobody looks at it, and it never learns."""
    mask = None if mask is None else F.pad(mask, (len(prefix_key), 0))
    return *front(key, value, prefix_key, prefix_value), mask


def wrong_mask_as_it_was(key, value, mask, prefix_key, prefix_value):
    """The mask does not grow at all."""
    return *front(key, value, prefix_key, prefix_value), mask


def wrong_queries_added_too(key, value, mask, prefix_key, prefix_value):
    """The mask grows on both sides, as if the prefix asked questions."""
    P = len(prefix_key)
    mask = None if mask is None else F.pad(mask, (P, 0, P, 0), value=True)
    return *front(key, value, prefix_key, prefix_value), mask


def wrong_key_for_value(key, value, mask, prefix_key, prefix_value):
    """The keys' prefix goes before the values too."""
    return *front(key, value, prefix_key, prefix_key), seen(mask, len(prefix_key))


def wrong_mask_demanded(key, value, mask, prefix_key, prefix_value):
    """Makes a mask where there was none."""
    mask = torch.ones(len(key), 1, key.shape[2], key.shape[2]).bool() if mask is None else mask
    return *front(key, value, prefix_key, prefix_value), seen(mask, len(prefix_key))


def wrong_type(key, value, mask, prefix_key, prefix_value):
    """Keys in bfloat16 become float32: autocast's attention would refuse them, or slow down."""
    k, v = front(key.float(), value.float(), prefix_key, prefix_value)
    return k, v, seen(mask, len(prefix_key))


def wrong_detached(key, value, mask, prefix_key, prefix_value):
    """Copies numbers only: the prefix gets no gradient."""
    return *front(key, value, prefix_key.detach(), prefix_value.detach()), seen(mask, len(prefix_key))


def wrong_flat_repeat(key, value, mask, prefix_key, prefix_value):
    """Repeats the prefix for the batch before it is cut up, in the wrong order."""
    B, H, _, d = key.shape
    k, v = (p.repeat(B, 1).view(B, H, -1, d).to(key.dtype) for p in (prefix_key, prefix_value))
    return torch.cat([k, key], 2), torch.cat([v, value], 2), seen(mask, len(prefix_key))


def right_by_reshaping_the_batch(key, value, mask, prefix_key, prefix_value):
    B, H, T, d = key.shape

    def whole(prefix, rest):
        rows = rest.transpose(1, 2).reshape(B, T, H * d)
        return torch.cat([prefix.to(rest.dtype)[None].repeat(B, 1, 1), rows], 1).view(B, -1, H, d).transpose(1, 2)

    return whole(prefix_key, key), whole(prefix_value, value), seen(mask, len(prefix_key))
