"""Answers to lesson 01's mixup(x, y, lam, order, classes=10), wrong and right."""

import torch
import torch.nn.functional as F


def wrong_labels_not_mixed(x, y, lam, order, classes=10):
    """Mixes the images and keeps the first image's label."""
    return lam * x + (1 - lam) * x[order], F.one_hot(y, classes).float()


def wrong_side(x, y, lam, order, classes=10):
    """lam weighs the partner instead of the image itself."""
    hard = F.one_hot(y, classes).float()
    return (1 - lam) * x + lam * x[order], (1 - lam) * hard + lam * hard[order]


def wrong_side_of_labels_only(x, y, lam, order, classes=10):
    """Images and labels are mixed the other way round to each other."""
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], (1 - lam) * hard + lam * hard[order]


def wrong_in_place(x, y, lam, order, classes=10):
    """Scales the images in place, which changes the data set they are a view of."""
    partner = x[order]
    hard = F.one_hot(y, classes).float()
    return x.mul_(lam).add_(partner, alpha=1 - lam), lam * hard + (1 - lam) * hard[order]


def wrong_partner_already_mixed(x, y, lam, order, classes=10):
    """Goes image by image over one tensor: later images are mixed with partners that are mixed already."""
    mixed, hard = x.clone(), F.one_hot(y, classes).float()
    for i, j in enumerate(order):
        mixed[i] = lam * mixed[i] + (1 - lam) * mixed[j]
    return mixed, lam * hard + (1 - lam) * hard[order]


def wrong_hard_label(x, y, lam, order, classes=10):
    """The label of the image with the larger share, all of it."""
    winner = y if lam >= 0.5 else y[order]
    return lam * x + (1 - lam) * x[order], F.one_hot(winner, classes).float()


def wrong_class_ids(x, y, lam, order, classes=10):
    """Mixes the numbers of the classes: half cat, half truck becomes a frog."""
    return lam * x + (1 - lam) * x[order], lam * y + (1 - lam) * y[order]


def wrong_order_ignored(x, y, lam, order, classes=10):
    """Pairs with the batch turned round, whatever the order."""
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x.flip(0), lam * hard + (1 - lam) * hard.flip(0)


def wrong_order_backwards(x, y, lam, order, classes=10):
    """Sends image i to place order[i] instead of fetching image order[i]: the inverse permutation."""
    hard, back = F.one_hot(y, classes).float(), order.argsort()
    return lam * x + (1 - lam) * x[back], lam * hard + (1 - lam) * hard[back]


def wrong_labels_keep_their_order(x, y, lam, order, classes=10):
    """The partner's label is that of the image itself."""
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], lam * hard + (1 - lam) * hard


def wrong_assigned(x, y, lam, order, classes=10):
    """Writes the two shares where they belong; of two images of one class only the second share is left."""
    soft, rows = torch.zeros(len(y), classes), torch.arange(len(y))
    soft[rows, y] = lam
    soft[rows, y[order]] = 1 - lam
    return lam * x + (1 - lam) * x[order], soft


def wrong_integers(x, y, lam, order, classes=10):
    """Mixes labels in a tensor of integers, which keeps no fractions."""
    soft = F.one_hot(y, classes)
    return lam * x + (1 - lam) * x[order], (lam * soft + (1 - lam) * soft[order]).long()


def wrong_sum(x, y, lam, order, classes=10):
    """Adds the labels up without weights: they sum to 2."""
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], hard + hard[order]


def wrong_softmax(x, y, lam, order, classes=10):
    """A softmax over labels that are probabilities already: every class gets a share."""
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], (lam * hard + (1 - lam) * hard[order]).softmax(1)


def wrong_rounded_lam(x, y, lam, order, classes=10):
    """lam becomes an integer tensor of the labels' type, that is 0 or 1."""
    lam = torch.tensor(lam).to(y.dtype)
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], lam * hard + (1 - lam) * hard[order]


def wrong_own_lam(x, y, lam, order, classes=10):
    """Draws its own lam and takes no notice of the given one."""
    lam = torch.distributions.Beta(0.2, 0.2).sample(()).item()
    hard = F.one_hot(y, classes).float()
    return lam * x + (1 - lam) * x[order], lam * hard + (1 - lam) * hard[order]


def wrong_always_ten(x, y, lam, order, classes=10):
    """The number of classes is written in."""
    hard = F.one_hot(y, 10).float()
    return lam * x + (1 - lam) * x[order], lam * hard + (1 - lam) * hard[order]


def wrong_cut(x, y, lam, order, classes=10):
    """CutMix instead: a part of the image is replaced, and nothing is blended."""
    mixed, rows = x.clone(), round((1 - lam) * x.shape[2])
    mixed[:, :, :rows] = x[order][:, :, :rows]
    hard = F.one_hot(y, classes).float()
    return mixed, lam * hard + (1 - lam) * hard[order]


def wrong_last_row_left_out(x, y, lam, order, classes=10):
    """Leaves out the last row of pixels."""
    mixed, hard = x.clone(), F.one_hot(y, classes).float()
    mixed[:, :, :-1] = lam * x[:, :, :-1] + (1 - lam) * x[order][:, :, :-1]
    return mixed, lam * hard + (1 - lam) * hard[order]


def right_in_one_scatter(x, y, lam, order, classes=10):
    soft = x.new_zeros(len(y), classes)
    for share, labels in ((lam, y), (1 - lam, y[order])):
        soft.scatter_add_(1, labels[:, None], torch.full((len(y), 1), share))
    return x + (1 - lam) * (x[order] - x), soft


def right_as_a_matrix(x, y, lam, order, classes=10):
    mix = lam * torch.eye(len(x)) + (1 - lam) * torch.eye(len(x))[order]  # (B, B), rows sum to 1
    return torch.einsum("ij,jchw->ichw", mix, x), mix @ F.one_hot(y, classes).float()
