"""Answers to lesson 04's lora_forward(x, weight, bias, A, B, alpha), wrong and right."""

import torch
import torch.nn.functional as F


def wrong_scale_forgotten(x, weight, bias, A, B, alpha):
    """Leaves alpha / r out."""
    return F.linear(x, weight, bias) + x @ A.T @ B.T


def wrong_alpha_without_rank(x, weight, bias, A, B, alpha):
    """Scales by alpha instead of alpha / r."""
    return F.linear(x, weight, bias) + alpha * (x @ A.T @ B.T)


def wrong_root_of_rank(x, weight, bias, A, B, alpha):
    """Scales by alpha over the root of r, which is rsLoRA."""
    return F.linear(x, weight, bias) + alpha / A.shape[0] ** 0.5 * (x @ A.T @ B.T)


def wrong_divides_by_width(x, weight, bias, A, B, alpha):
    """Takes the wrong side of A for the rank."""
    return F.linear(x, weight, bias) + alpha / A.shape[1] * (x @ A.T @ B.T)


def wrong_no_bias(x, weight, bias, A, B, alpha):
    """Forgets the bias."""
    return x @ weight.T + alpha / A.shape[0] * (x @ A.T @ B.T)


def wrong_scales_all(x, weight, bias, A, B, alpha):
    """Scales the frozen layer too."""
    return alpha / A.shape[0] * (F.linear(x, weight, bias) + x @ A.T @ B.T)


def wrong_in_place(x, weight, bias, A, B, alpha):
    """Adds the update to the weight itself, again at every call."""
    weight += alpha / A.shape[0] * B @ A
    return F.linear(x, weight, bias)


def wrong_detached(x, weight, bias, A, B, alpha):
    """Right numbers, but the update is computed without gradients: it never learns."""
    with torch.no_grad():
        update = alpha / A.shape[0] * (x @ A.T @ B.T)
    return F.linear(x, weight, bias) + update


def wrong_input_detached(x, weight, bias, A, B, alpha):
    """Right numbers, but the update passes no gradient on to the layers below."""
    return F.linear(x, weight, bias) + alpha / A.shape[0] * (x.detach() @ A.T @ B.T)


def right_merged_weight(x, weight, bias, A, B, alpha):
    """Forms the whole update first: slower, and right."""
    return F.linear(x, weight + alpha / len(A) * B @ A, bias)


def right_scaled_input(x, weight, bias, A, B, alpha):
    y = F.linear(F.linear(x * alpha / B.size(1), A), B) + F.linear(x, weight)
    return y if bias is None else y + bias
