"""Answers to lesson 07's block_mask(documents), wrong and right."""

import torch


def _causal(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


def _same(documents):
    return documents[:, :, None] == documents[:, None, :]


def wrong_no_boundary(documents):
    """Causal alone: document 2 reads document 1."""
    B, T = documents.shape
    return _causal(T).expand(B, 1, T, T)


def wrong_not_causal(documents):
    """Same document alone: a place sees what it is to predict."""
    return _same(documents)[:, None]


def wrong_strictly_before(documents):
    """Leaves out the place itself: a first token may look at nothing."""
    T = documents.shape[1]
    return (_same(documents) & _causal(T).tril(-1))[:, None]


def wrong_transposed(documents):
    """Queries and keys exchanged: looks ahead."""
    T = documents.shape[1]
    return (_same(documents) & _causal(T).T)[:, None]


def wrong_earlier_documents(documents):
    """Lets a document read those with smaller numbers."""
    T = documents.shape[1]
    return ((documents[:, :, None] >= documents[:, None, :]) & _causal(T))[:, None]


def wrong_first_row(documents):
    """The first row's packing for all rows."""
    B, T = documents.shape
    return (_same(documents[:1]) & _causal(T))[:, None].expand(B, 1, T, T)


def wrong_no_heads(documents):
    """(B, T, T): no place for the heads."""
    return _same(documents) & _causal(documents.shape[1])


def wrong_inverted(documents):
    """True where a place may not look."""
    return ~(_same(documents) & _causal(documents.shape[1]))[:, None]


def wrong_numbers(documents):
    """Ones and zeros: added to the scores, a mask of no effect."""
    return (_same(documents) & _causal(documents.shape[1]))[:, None].float()


def right_loops(documents):
    """Block by block along the diagonal."""
    B, T = documents.shape
    mask = torch.zeros(B, 1, T, T, dtype=torch.bool)
    for b in range(B):
        start = 0
        for t in range(1, T + 1):
            if t == T or documents[b, t] != documents[b, start]:
                mask[b, 0, start:t, start:t] = _causal(t - start)
                start = t
    return mask
