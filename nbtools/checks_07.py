"""The checks of lesson 07: answer_labels, token_loss and block_mask.

Ground truth: a walk over each row's real tokens; the loss token by token in double precision and its gradient, softmax
minus one-hot; every pair of places, and attention over each document alone.
"""

import math

import torch
import torch.nn.functional as F

from nbtools.checks import exercise


def _answer_labels(input_ids, attention_mask, prompt_lengths):
    real = attention_mask.long()
    asked = real.cumsum(1) <= prompt_lengths[:, None]
    return torch.where((real == 1) & ~asked, input_ids, -100)


def _token_loss(logits, labels):
    if bool((labels[:, 1:] == -100).all()):
        raise ValueError("every label is -100, so there is nothing to learn from: look at the mask")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def _block_mask(documents):
    places = torch.arange(documents.shape[1], device=documents.device)
    same = documents[:, :, None] == documents[:, None, :]
    return (same & (places[:, None] >= places))[:, None]


def _walked(ids, mask, lengths):
    """Labels by walking over each row: the first `length` real tokens are the prompt."""
    rows = []
    for row, real, length in zip(ids.tolist(), mask.tolist(), lengths.tolist(), strict=True):
        seen, labels = 0, []
        for token, here in zip(row, real, strict=True):
            labels.append(token if here and seen >= length else -100)
            seen += bool(here)
        rows.append(labels)
    return rows


@exercise("answer_labels", reference=_answer_labels, minutes=8)
def check_answer_labels(answer_labels):
    """Padding right, left and none; the end token kept though padding has its id; inputs and types untouched."""
    end = 2
    cases = {
        "no padding": ([[5, 6, 7, end]], [[1, 1, 1, 1]], [2]),
        "padding on the right, its id that of the end": ([[5, 6, 7, end, end, end]], [[1, 1, 1, 1, 0, 0]], [2]),
        "padding on the left": ([[end, end, 5, 6, 7, end]], [[0, 0, 1, 1, 1, 1]], [2]),
        "an end token inside the prompt": ([[5, end, 6, 7, end, end]], [[1, 1, 1, 1, 1, 0]], [3]),
        "a prompt of no tokens": ([[5, 6, end, end]], [[1, 1, 1, 0]], [0]),
        "a token 0 and an answer of one token": ([[0, 0, 0, end]], [[1, 1, 1, 0]], [2]),
        "two rows with prompts of unequal length": (
            [[5, 6, 7, 8, end], [5, 6, end, end, end]],
            [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
            [3, 1],
        ),
    }
    for name, (ids, mask, lengths) in cases.items():
        ids, mask, lengths = torch.tensor(ids), torch.tensor(mask), torch.tensor(lengths)
        before = ids.clone()
        out = answer_labels(ids, mask, lengths)
        if not torch.is_tensor(out) or out.shape != ids.shape:
            yield f"{name}: labels have the shape of the ids, {tuple(ids.shape)}, but the answer is " + (
                str(tuple(out.shape)) if torch.is_tensor(out) else type(out).__name__
            )
            return
        wanted = _walked(before, mask, lengths)
        yield out.tolist() != wanted and f"{name}: the labels should be {wanted}, but are {out.tolist()}"
        yield not torch.equal(ids, before) and f"{name}: the ids were changed: work on a copy"
    lengths = torch.randint(2, 12, (40,))
    mask = (torch.arange(12) < lengths[:, None]).long()
    mask[20:] = mask[20:].flip(1)
    ids, prompts = torch.randint(0, 9, (40, 12)), (lengths * torch.rand(40)).long()
    wanted = _walked(ids, mask, prompts)
    yield answer_labels(ids, mask, prompts).tolist() != wanted and (
        "40 random rows, padded left and right: not every label is right"
    )
    yield answer_labels(ids, mask.bool(), prompts).tolist() != wanted and "a mask of type bool fails"
    yield answer_labels(ids, mask, prompts).dtype != torch.long and "labels are whole numbers (torch.long)"


def _slow_loss(logits, labels):
    """Mean of -log p, token by token, and its gradient, in double precision."""
    logits, grad, losses = logits.double(), torch.zeros_like(logits, dtype=torch.double), []
    for b, row in enumerate(labels.tolist()):
        for t, label in enumerate(row[1:]):
            if label != -100:
                z = logits[b, t]
                top = z.max()
                p = torch.exp(z - top) / torch.exp(z - top).sum()
                losses.append((top + torch.log(torch.exp(z - top).sum()) - z[label]).item())
                grad[b, t] += p
                grad[b, t, label] -= 1
    return sum(losses) / len(losses), grad / len(losses)


@exercise("token_loss", reference=_token_loss, minutes=10)
def check_token_loss(token_loss):
    """Values and gradient token by token; rows of unequal length; far logits; what is masked; nothing to learn from."""
    labels = torch.tensor([[-100, -100, 3, 1, -100], [-100, 4, 0, 2, 2], [-100, -100, -100, -100, 1]])
    for name, scale in {"small logits": 1.0, "large logits": 30.0, "far logits": 300.0}.items():
        logits = scale * torch.randn(3, 5, 6)
        logits.requires_grad_()
        loss = token_loss(logits, labels)
        if not torch.is_tensor(loss) or loss.dim():
            what = tuple(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
            yield f"the loss of a batch is one number, a tensor of no dimension, but the answer is {what}"
            return
        wanted, slope = _slow_loss(logits.detach(), labels)
        yield not math.isclose(loss.item(), wanted, rel_tol=1e-4) and (
            f"{name}: the mean over the 7 tokens that are learned from should be {wanted:.4f}, but is {loss.item():.4f}"
        )
        if not loss.requires_grad:
            yield "the gradient is cut: do not use detach, item or no_grad"
            return
        loss.backward()
        yield not torch.allclose(logits.grad.double(), slope, atol=1e-4) and (
            f"{name}: the gradient should be (softmax - one-hot) / 7 where a token is learned from, else 0"
        )
    logits = torch.randn(2, 4, 5)
    first = torch.tensor([[2, -100, 1, -100], [4, -100, -100, 3]])
    none = first.clone()
    none[:, 0] = -100
    yield abs(token_loss(logits, first).item() - token_loss(logits, none).item()) > 1e-6 and (
        "nothing stands before a row's first token, so its label has no loss"
    )
    changed = logits.clone()
    changed[:, -1] = 50.0
    yield abs(token_loss(changed, none).item() - token_loss(logits, none).item()) > 1e-6 and (
        "the last place predicts a token that is not there: its logits should not matter"
    )
    one = torch.tensor([[-100, 0, -100, -100], [-100, -100, 0, 0]])
    wanted = _slow_loss(logits, one)[0]
    yield not math.isclose(token_loss(logits, one).item(), wanted, rel_tol=1e-4) and (
        "token 0 is a token like others: its label 0 must count"
    )
    half = token_loss(logits.bfloat16(), one)
    wanted = _slow_loss(logits.bfloat16(), one)[0]
    yield not math.isclose(half.item(), wanted, rel_tol=1e-4) and "logits in bfloat16: go to float32 before the softmax"
    try:
        token_loss(logits, torch.full((2, 4), -100))
    except ValueError:
        yield None
    except Exception as error:
        yield f"every label -100: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "every label -100: a ValueError was asked for, and nothing was raised"


@exercise("block_mask", reference=_block_mask, minutes=8)
def check_block_mask(block_mask):
    """Every pair of places; rows that are packed otherwise; attention over each document alone."""
    cases = {
        "two documents, 1 1 1 2 2": [[1, 1, 1, 2, 2]],
        "one document": [[4, 4, 4]],
        "padding, a document 0 of its own": [[1, 1, 2, 0, 0]],
        "numbers that fall": [[7, 7, 3, 3, 3]],
        "documents of one token": [[1, 2, 3, 4]],
        "two rows that are packed otherwise": [[1, 1, 2, 2, 2], [1, 2, 2, 2, 2]],
    }
    for name, rows in cases.items():
        documents = torch.tensor(rows)
        B, T = documents.shape
        out = block_mask(documents)
        if not torch.is_tensor(out) or out.shape != (B, 1, T, T):
            what = tuple(out.shape) if torch.is_tensor(out) else type(out).__name__
            yield f"{name}: the mask's shape is (B, 1, T, T), here {(B, 1, T, T)}, but the answer is {what}"
            return
        if out.dtype != torch.bool:
            yield f"{name}: the mask is of type bool, True where a place may look, but the answer is {out.dtype}"
            return
        off = [
            (b, q, k)
            for b in range(B)
            for q in range(T)
            for k in range(T)
            if bool(out[b, 0, q, k]) != (k <= q and rows[b][k] == rows[b][q])
        ]
        yield off and "{}: row {}, place {} {} look at place {}".format(
            name, *off[0][:2], "may not" if out[off[0][0], 0, off[0][1], off[0][2]] else "should", off[0][2]
        )
    sizes = [3, 1, 4]
    documents = torch.tensor([[i for i, size in enumerate(sizes) for _ in range(size)]])
    q, k, v = torch.randn(3, 1, 2, sum(sizes), 5)
    packed = F.scaled_dot_product_attention(q, k, v, attn_mask=block_mask(documents))
    alone = [
        F.scaled_dot_product_attention(*part, is_causal=True)
        for part in zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True)
    ]
    yield not torch.allclose(packed, torch.cat(alone, 2), atol=1e-5) and (
        "attention over a packed row should give each document what it gets alone"
    )
