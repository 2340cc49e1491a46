"""The checks of lesson 14: Checkpoint, accumulate and chunked_loss.

Ground truth: the same computation without the trick, in one graph; bytes that autograd saves, and the storages that
operations make and nobody drops, counted while the learner's function runs.
"""

import math
import weakref
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbtools import meters
from nbtools.checks import exercise


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.cuda = run, torch.cuda.is_initialized()
        ctx.state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if ctx.cuda else []
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.set_rng_state(ctx.state[0])
            torch.cuda.set_rng_state_all(ctx.state[1])
            result = ctx.run(*inputs)
        torch.autograd.backward(result, grad)
        return (None, *(x.grad for x in inputs))


def _accumulate(model, batches, loss_sum=None, count=None):
    from nbtools import tasks

    loss_sum, count = loss_sum or tasks.chat_loss_sum, count or tasks.count_labels
    counts = [count(batch) for batch in batches]
    if not sum(counts):
        raise ValueError(f"{len(counts)} micro-batches hold no token that is learned from: look at their labels")
    mean = 0.0
    for batch, terms in zip(batches, counts, strict=True):
        if terms:
            loss = loss_sum(model, batch) / sum(counts)
            loss.backward()
            mean += loss.item()
    return mean


def _chunked_loss(hidden, weight, labels, chunk):
    from torch.utils.checkpoint import checkpoint

    terms = int((labels != -100).sum())
    if chunk < 1 or not terms:
        raise ValueError(f"chunk must be 1 or more and a label must be there, got chunk {chunk} and {terms} labels")

    def loss_sum(h, y):
        return F.cross_entropy(F.linear(h, weight).float(), y, reduction="sum")

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return sum(checkpoint(loss_sum, h, y, use_reentrant=False) for h, y in parts) / terms


class _Counted(nn.Module):
    """A layer with dropout over its first input, times the others; counts its runs."""

    def __init__(self):
        super().__init__()
        self.layer, self.runs = nn.Linear(6, 6), 0

    def forward(self, x, *scales):
        self.runs += 1
        return math.prod(scales, start=F.dropout(torch.tanh(self.layer(x)), 0.5))


class _Alive(TorchDispatchMode):
    """Storages that operations make and nobody has dropped: their `amount` now, and the most at one time.

    known: tensors that are there before; their storages do not count.
    """

    def __init__(self, known=()):
        super().__init__()
        self.now, self.most = 0, 0
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def amount(self, tensor):
        """Bytes of a tensor's storage; None for one that is not to be counted."""
        return tensor.untyped_storage().nbytes()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if torch.is_tensor(leaf) and leaf.untyped_storage() not in self.seen:
                amount = self.amount(leaf)
                if amount is not None:
                    self._born(leaf.untyped_storage(), amount)
        return out

    def _born(self, storage, amount):
        self.seen.add(storage)
        weakref.finalize(storage, self._died, amount)
        self.now += amount
        self.most = max(self.most, self.now)

    def _died(self, amount):
        self.now -= amount


@exercise("Checkpoint", reference=_Checkpoint, minutes=15)
def check_checkpoint(function):
    """Result, gradients and random numbers of the plain run; what is kept; two uses; integers; a changed input."""
    run = _Counted()
    start = torch.randn(5, 6, requires_grad=True)
    scale = torch.randn(5, 6, requires_grad=True)
    unlike = torch.randn(5, 6)

    def step(call):
        run.zero_grad()
        start.grad = scale.grad = None
        run.runs = 0
        torch.manual_seed(3)
        out = call(start * 2, scale)
        torch.rand(3)  # what comes between forward and backward draws too
        (out * unlike).sum().backward()
        found = {"the first input": start.grad, "the second input": scale.grad}
        found |= {"a parameter inside run": run.layer.weight.grad}
        return out.detach(), found, torch.rand(4)

    out, truth, after = step(run)
    mine, found, mine_after = step(partial(function.apply, run))
    yield not torch.equal(mine, out) and "the result should be that of run(*inputs), bit for bit"
    yield run.runs != 2 and f"run should run twice, in forward and in backward, but ran {run.runs} times"
    for name, gradient in truth.items():
        if found[name] is None:
            yield f"{name} gets no gradient"
        else:
            yield not torch.equal(found[name], gradient) and (
                f"the gradient of {name} should be that of the plain run bit for bit, with dropout; "
                f"it is off by {(found[name] - gradient).norm() / gradient.norm():.2f} of its length"
            )
    yield not torch.equal(mine_after, after) and (
        "the random numbers after the step should be those after a plain step: leave the stream as it was"
    )
    x = torch.randn(50, 6, requires_grad=True)
    kept = meters.saved_bytes(run, x, lambda _, x: function.apply(run, x * 2, x.detach() + 1))
    yield kept > 2 * x.nbytes and (
        f"two inputs of {x.nbytes} bytes should be kept and nothing else, but {kept} are: make no graph in forward"
    )
    yield kept < 2 * x.nbytes and "give the inputs to ctx.save_for_backward: only so hooks and version checks see them"
    yield from _nothing_else(function)
    yield from _special_inputs(function)
    for inputs in (1, 3):
        yield from _two_uses(function, inputs)


def _nothing_else(function):
    """After forward the result is there, and nothing else that forward made, whoever holds it."""
    run, x = _Counted(), torch.randn(500, 6, requires_grad=True)
    with _Alive([x, *run.parameters()]) as alive:
        out = function.apply(run, x)
    yield alive.now > out.nbytes + x.nbytes // 2 and (
        f"forward should leave its result of {out.nbytes} bytes and keep nothing else that it made, but {alive.now} "
        "bytes are alive: hang no copy and no other result on ctx"
    )


def _two_uses(function, inputs):
    """Two checkpoints in one graph, as a chain of segments has them: each its own run, inputs and random numbers."""
    runs, x = [_Counted(), _Counted()], torch.randn(5, 6, requires_grad=True)
    more = [torch.randn(5, 6, requires_grad=True) for _ in range(inputs - 1)]
    opened = [x, *more, *(run.layer.weight for run in runs)]

    def gradients(calls):
        for tensor in opened:
            tensor.grad = None
        torch.manual_seed(4)
        calls[1](calls[0](x * 2, *more), *more).square().sum().backward()
        return [tensor.grad for tensor in opened]

    truth = gradients(runs)
    found = gradients([partial(function.apply, run) for run in runs])
    yield not all(a is not None and torch.equal(a, b) for a, b in zip(found, truth, strict=True)) and (
        f"two checkpoints of {inputs} input{'s' * (inputs > 1)} in one graph: all gradients should be those of the "
        "plain run, bit for bit; each use has its own ctx for what it notes"
    )


def _special_inputs(function):
    """An input of integers, one that needs no gradient (in the second run neither), one changed before backward."""
    table = nn.Embedding(4, 3)
    ids, x = torch.tensor([0, 3, 3]), torch.randn(3, 3, requires_grad=True)
    function.apply(lambda ids, x: table(ids) * x, ids, x).sum().backward()
    yield not (x.grad is not None and torch.equal(x.grad, table.weight[ids])) and (
        "an input of integers has no gradient, and the others keep theirs"
    )
    fixed, asked = torch.randn(3, 3), []
    function.apply(lambda a, b: asked.append((a.requires_grad, b.requires_grad)) or a * b, x, fixed).sum().backward()
    yield (fixed.requires_grad or fixed.grad is not None or asked[-1] != (True, False)) and (
        "an input that needs no gradient should be left so, in the second run too: keep each input's requires_grad"
    )
    x = torch.randn(3, 3, requires_grad=True)
    y = x * 2
    out = function.apply(lambda y: y * y, y).sum()
    y.add_(1)
    try:
        out.backward()
    except RuntimeError:
        yield None
    else:
        yield "an input that was changed in place before backward should raise, as ctx.save_for_backward sees to"


class _Token:
    """Put in place of a tensor that is kept for backward; alive as long as it is."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


class _Watched:
    """loss_sum and count of a small model with a frozen layer; `most` micro-batches had a graph alive at one time.

    A token counts `worth`. The sum is a mean times the count, as the lesson's: nan for a batch without tokens.
    """

    def __init__(self, worth=1):
        self.model, self.graphs, self.most, self.worth = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4)), [], 0, worth
        self.model[0].requires_grad_(False)
        self.opened = [*self.model[1].parameters()]

    def count(self, batch):
        return self.worth * self.labels(batch)

    def labels(self, batch):
        return int((batch["labels"] != -100).sum())

    def loss_sum(self, model, batch):
        kept = []

        def pack(tensor):
            token = _Token(tensor)
            kept.append(weakref.ref(token))
            return token

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda token: token.tensor):
            loss = F.cross_entropy(model(batch["x"]).tanh(), batch["labels"]) * self.labels(batch)
        self.graphs.append(kept)
        self.most = max(self.most, sum(any(ref() is not None for ref in kept) for kept in self.graphs))
        return loss


def _micro_batches(*sizes, padding=2):
    """Batches {x (n, 3), labels (n,)} with `sizes` labels each, and places that carry none."""
    for size in sizes:
        labels = torch.cat([torch.randint(4, (size,)), torch.full((padding,), -100)])
        yield {"x": torch.randn(size + padding, 3), "labels": labels}


@exercise("accumulate", reference=_accumulate, minutes=8)
def check_accumulate(accumulate):
    """The gradient of one large batch, added to what is there; frozen layers; one graph at a time; no labels."""
    cases = {  # tokens of the micro-batches, what a token counts, whether gradients are there before
        "tokens 1, 7 and 30": ((1, 7, 30), 1, True),
        "no gradient before": ((3, 8), 1, False),
        "equal tokens, 5 and 5": ((5, 5), 1, True),
        "one micro-batch": ((6,), 1, True),
        "the second without tokens": ((4, 0, 9), 1, True),
        "a count of 3 for each label": ((2, 6), 3, True),
    }
    for name, (sizes, worth, some) in cases.items():
        world, batches = _Watched(worth), list(_micro_batches(*sizes))
        joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        loss = F.cross_entropy(world.model(joined["x"]).tanh(), joined["labels"]) / worth
        truth = torch.autograd.grad(loss, world.opened)
        before = [torch.randn_like(p) if some else torch.zeros_like(p) for p in world.opened]
        for p, grad in zip(world.opened, before, strict=True):
            p.grad = grad.clone() if some else None
        mean = accumulate(world.model, batches, world.loss_sum, world.count)
        yield not isinstance(mean, float) and f"{name}: return a float, not {type(mean).__name__}"
        yield not math.isclose(float(mean), loss.item(), rel_tol=1e-4) and (
            f"{name}: the summed loss over the summed count should be {loss.item():.4f}, but is {float(mean):.4f}"
        )
        after = [torch.zeros_like(p) if p.grad is None else p.grad for p in world.opened]
        added = [new - old for new, old in zip(after, before, strict=True)]
        yield not all(torch.allclose(a, t, atol=1e-5) for a, t in zip(added, truth, strict=True)) and (
            f"{name}: what is added to p.grad should be the gradient of the mean over all tokens as one batch"
        )
        yield any(p.grad is not None for p in world.model[0].parameters()) and (
            f"{name}: a frozen layer should get no gradient"
        )
        yield world.most > 1 and (
            f"{name}: {world.most} graphs were alive at once: go backward in each micro-batch, before the next"
        )
    world = _Watched()
    try:
        accumulate(world.model, list(_micro_batches(0, 0)), world.loss_sum, world.count)
    except ValueError:
        yield None
    except Exception as error:
        yield f"no token at all: a ValueError was asked for, not {type(error).__name__}: {error}"
    else:
        yield "no token at all: a ValueError was asked for, and nothing was raised"


class _Widest(_Alive):
    """The most rows, alive at once, of tensors that are `width` wide."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def amount(self, tensor):
        return tensor.numel() // self.width if tensor.shape[-1:] == (self.width,) else None


class _HalfSoftmax(TorchDispatchMode):
    """Names of exponentials and softmaxes that were given numbers of 16 bits."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__.strip("_")
        exponential = name in ("softmax", "log_softmax", "logsumexp", "exp", "exp2", "expm1")
        if exponential and args[0].dtype in (torch.bfloat16, torch.float16):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@exercise("chunked_loss", reference=_chunked_loss, minutes=12)
def check_chunked_loss(chunked_loss):
    """Value and both gradients of the loss in one piece; how many places have logits at once; half types; bad input."""
    labels = torch.randint(11, (23,))
    labels[[0, 5, 6, 22]] = -100
    for name, scale, chunk in (
        ("chunk 4", 1.0, 4),
        ("chunk 1", 1.0, 1),
        ("chunk 64", 1.0, 64),
        ("far logits", 60.0, 7),
    ):
        hidden, weight = (scale * torch.randn(23, 5)).requires_grad_(), torch.randn(11, 5, requires_grad=True)
        wanted = F.cross_entropy(hidden @ weight.T, labels)
        truth = torch.autograd.grad(wanted, [hidden, weight])
        loss = chunked_loss(hidden, weight, labels, chunk)
        if not torch.is_tensor(loss) or loss.dim():
            what = tuple(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
            yield f"the loss is one number, a tensor of no dimension, but the answer is {what}"
            return
        yield not math.isclose(loss.item(), wanted.item(), rel_tol=1e-4) and (
            f"{name}: the mean over the 19 labels should be {wanted.item():.4f}, but is {loss.item():.4f}"
        )
        if not loss.requires_grad:
            yield "the gradient is cut: do not use detach, item or no_grad around the loss"
            return
        loss.backward()
        for what, tensor, slope in (("hidden", hidden, truth[0]), ("weight", weight, truth[1])):
            right = tensor.grad is not None and torch.allclose(tensor.grad, slope, rtol=1e-3, atol=1e-5 * scale)
            yield not right and f"{name}: the gradient of {what} should be that of the loss in one piece"
    loss, weight.grad = chunked_loss(hidden.detach(), weight, labels, 7), None
    if loss.requires_grad:
        loss.backward()
    yield not (weight.grad is not None and torch.allclose(weight.grad, truth[1], rtol=1e-3, atol=1e-5 * scale)) and (
        "weight alone learns: its gradient should be that of the loss in one piece; a checkpoint that is given only "
        "inputs without gradients may be cut off"
    )
    hidden, weight = torch.randn(400, 5, requires_grad=True), torch.randn(301, 5)
    labels = torch.randint(301, (400,))
    with _Widest(301) as forward:
        loss = chunked_loss(hidden, weight, labels, 10)
    yield forward.most > 50 and (
        f"400 places in chunks of 10: in forward {forward.most} rows as wide as logits are alive at one time, "
        "where a few times 10 would do: let each chunk's logits die before the next"
    )
    with _Widest(301) as backward:
        loss.backward()
    yield backward.most > 60 and (
        f"400 places in chunks of 10: in backward {backward.most} rows as wide as logits are alive at one time, "
        "where a few times 10 would do"
    )
    hidden, weight = torch.randn(8, 5).bfloat16(), torch.randn(11, 5).bfloat16()
    wanted = F.cross_entropy((hidden @ weight.T).float(), labels[:8] % 11).item()
    with _HalfSoftmax() as half:
        value = chunked_loss(hidden, weight, labels[:8] % 11, 3).item()
    yield (half.found or not math.isclose(value, wanted, rel_tol=1e-3)) and (
        "hidden states in bfloat16: go to float32 before the softmax; "
        f"{', '.join(sorted(half.found)) or 'the loss'} saw 16 bits"
    )
    for name, bad in {"every label -100": (torch.full((8,), -100), 3), "chunk 0": (labels[:8] % 11, 0)}.items():
        try:
            chunked_loss(hidden.float(), weight.float(), *bad)
        except ValueError as error:
            yield (
                "chunk" not in str(error) and "label" not in str(error) and f"{name}: say in the message what is wrong"
            )
        except Exception as error:
            yield f"{name}: a ValueError was asked for, not {type(error).__name__}: {error}"
        else:
            yield f"{name}: a ValueError was asked for, and nothing was raised"
