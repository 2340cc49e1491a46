"""Answers to lesson 05's add_updates(updates, weights), wrong and right."""

import torch


def wrong_means(updates, weights):
    """Weighted As and weighted Bs: their product mixes each B with the other's A."""
    A = sum(w * A for w, (A, _, _) in zip(weights, updates, strict=True))
    return A, sum(w * scale * B for w, (_, B, scale) in zip(weights, updates, strict=True))


def wrong_weight_twice(updates, weights):
    """The weight goes into A and into B."""
    pairs = list(zip(weights, updates, strict=True))
    return torch.cat([w * A for w, (A, _, _) in pairs]), torch.cat([w * s * B for w, (_, B, s) in pairs], 1)


def wrong_scale_forgotten(updates, weights):
    """Leaves out alpha / r."""
    A = torch.cat([A for A, _, _ in updates])
    return A, torch.cat([w * B for w, (_, B, _) in zip(weights, updates, strict=True)], 1)


def wrong_weight_forgotten(updates, weights):
    """All updates count alike."""
    return torch.cat([A for A, _, _ in updates]), torch.cat([scale * B for _, B, scale in updates], 1)


def wrong_roots(updates, weights):
    """The weight shared between A and B by its root: a negative one has none."""
    pairs = [
        ((w * s) ** 0.5 if w * s >= 0 else float("nan"), A, B) for w, (A, B, s) in zip(weights, updates, strict=True)
    ]
    return torch.cat([c * A for c, A, _ in pairs]), torch.cat([c * B for c, _, B in pairs], 1)


def wrong_full_matrix(updates, weights):
    """Right as a product, but the full matrix times the identity."""
    whole = sum(w * scale * B @ A for w, (A, B, scale) in zip(weights, updates, strict=True))
    return torch.eye(whole.shape[1]), whole


def wrong_order(updates, weights):
    """The As in one order, the Bs in the other."""
    A = torch.cat([A for A, _, _ in updates])
    pairs = list(zip(weights, updates, strict=True))[::-1]
    return A, torch.cat([w * scale * B for w, (_, B, scale) in pairs], 1)


def wrong_first_two(updates, weights):
    """Takes two updates, however many there are."""
    pairs = list(zip(weights, updates, strict=True))[:2]
    return torch.cat([A for _, (A, _, _) in pairs]), torch.cat([w * s * B for w, (_, B, s) in pairs], 1)


def wrong_normalised(updates, weights):
    """Makes the weights sum to one, which nobody asked for."""
    total = sum(weights) or 1
    A = torch.cat([A for A, _, _ in updates])
    return A, torch.cat([w / total * s * B for w, (_, B, s) in zip(weights, updates, strict=True)], 1)


def right_weights_on_a(updates, weights):
    A = torch.cat([w * scale * A for w, (A, _, scale) in zip(weights, updates, strict=True)])
    return A, torch.cat([B for _, B, _ in updates], dim=1)
