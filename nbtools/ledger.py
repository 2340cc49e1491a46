"""A training step as arithmetic: tensors are numbers of bytes, operations are what they make, keep and give back.

Design choices
- No torch here. A `Ledger` counts storages from birth to death; who is alive follows from Python's own references,
  so each function below keeps the same local names as the module of transformers or peft that it stands for.
- An operation says what autograd keeps of it. What it keeps depends on what is trained: a linear layer keeps its input
  only for its own weight's gradient, LoRA's A does for A's. That is where methods differ.
- Backward runs the operations in reverse; `work` is what an operation needs beside its gradients while it makes them.
- Bytes kept for backward are exact. What is alive counts as the allocator's block: rounded up to 512 bytes a storage,
  and with CUDA's allocator all of a block that was not worth splitting.
"""

from contextlib import contextmanager

from .allocator import Rounding

PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace")


class Storage:
    """Bytes that are alive as long as something refers to them; `part` says what for."""

    __slots__ = ("block", "bytes", "ledger", "part")

    def __init__(self, ledger, size, part="workspace"):
        self.ledger, self.bytes, self.part = ledger, size, part
        self.block = ledger.allocator.take(size)
        ledger.count(part, self.block.size)

    def move(self, part):
        self.ledger.count(self.part, -self.block.size)
        self.part = part
        self.ledger.count(part, self.block.size)
        self.ledger.renew()

    def __del__(self):
        self.ledger.count(self.part, -self.block.size)
        self.ledger.allocator.give(self.block)


class Tensor:
    """`n` numbers of `size` bytes in a storage; `node` made it, None where no gradient flows."""

    __slots__ = ("n", "node", "size", "storage")

    def __init__(self, n, size, storage, node=None):
        self.n, self.size, self.storage, self.node = n, size, storage, node


class Parameter:
    """A weight of `n` numbers. Its gradients are added up until every use has given one, as autograd's engine does."""

    def __init__(self, n, size, trained, part="weights"):
        self.n, self.size, self.trained, self.part, self.count = n, size, trained, part, n
        self.uses, self.pending, self.gradient, self.cast = 0, None, None, None

    def receive(self, ledger, grad):
        self.uses -= 1
        self.pending = ledger.added(self.pending, grad)
        if self.uses == 0:
            self.pending.move("gradients")
            self.gradient, self.pending = self.gradient or self.pending, None


class Node:
    """One operation in the graph: where gradients go, what is kept for them, what making them takes."""

    __slots__ = ("again", "grad", "kept", "targets", "work")

    def __init__(self, targets, kept, work, again=None):
        self.targets, self.kept, self.work, self.again, self.grad = targets, kept, work, again, None

    def receive(self, ledger, grad):
        self.grad = ledger.added(self.grad, grad)


class Leaf(Node):
    """A tensor without history that wants a gradient: the graph holds it, and it holds its gradient."""

    __slots__ = ("storage",)

    def __init__(self, x):
        super().__init__([], [], 0)
        self.storage = x.storage


class Join(Node):
    """Gradients of parts, kept one by one until the whole is made."""

    __slots__ = ()

    def receive(self, ledger, grad):
        self.grad = [*(self.grad or []), grad]


class Ledger:
    """Counts what is alive by part; `peak()` is the highest moment since the last call.

    mixed: matrix products run on 16-bit copies of what is 32-bit, as under autocast. allocator: what gives blocks.
    """

    def __init__(self, mixed=False, allocator=None):
        self.mixed, self.now, self.top, self.total, self.high = mixed, dict.fromkeys(PARTS, 0), {}, 0, -1
        self.allocator = allocator or Rounding()
        self.nodes, self.casts, self.parameters, self.keeping, self.grad = [], [], [], True, True

    def count(self, part, room):
        self.now[part] += room
        self.total += room
        if self.total > self.high:
            self.high, self.top = self.total, dict(self.now)

    def renew(self):
        """At the highest moment, a storage has changed its part."""
        if self.total == self.high:
            self.top = dict(self.now)

    def peak(self):
        """{part: bytes} at the highest moment since the last call."""
        top, self.top, self.high = self.top, dict(self.now), self.total
        return top

    def parameter(self, n, size, trained, part="weights"):
        found = Parameter(n, size, trained, part)
        found.home = Storage(self, n * size, part)
        self.parameters.append(found)
        return found

    def needs(self, t):
        """Whether a gradient is wanted of a tensor or parameter."""
        return self.grad and (t.trained if isinstance(t, Parameter) else t.node is not None)

    @contextmanager
    def no_grad(self):
        self.grad = False
        yield
        self.grad = True

    def new(self, n, size, part="workspace"):
        return Tensor(n, size, Storage(self, n * size, part))

    def added(self, old, grad):
        """Two gradients of one tensor: their sum is a third storage while both are there."""
        return grad if old is None else Storage(self, old.bytes, old.part)

    def op(self, out, *inputs, keep=(), work=0):
        """Make `out` the result of inputs: tensors or parameters, or (tensor, True) to hand it out's own gradient."""
        targets = []
        for given in inputs:
            source, same = given if isinstance(given, tuple) else (given, False)
            if self.needs(source):
                weight = isinstance(source, Parameter)
                part = "workspace" if weight or source.storage.part != "logits" else "logits"
                targets.append((source if weight else source.node, None if same else source.n * source.size, part))
                if weight and self.keeping:
                    source.uses += 1
        if targets:
            kept = [t.storage for t in keep if isinstance(t, Tensor)] if self.keeping else []
            for storage in kept:
                if storage.part == "workspace":
                    storage.move("activations")
            out.node = Node(targets, kept, work)
            self.nodes.append(out.node)
        return out

    def kept(self):
        """Bytes kept for backward: each storage once, without parameters."""
        return sum({id(s): s.bytes for node in self.nodes for s in node.kept}.values())

    # --- operations

    def cast(self, x, size):
        return x if x.size == size else self.op(self.new(x.n, size), x)

    def linear(self, x, weight, d_out, bias=None):
        """x (..., d_in) times weight (d_out, d_in): keeps x for the weight's gradient, the weight for x's."""
        if self.mixed:
            x, weight, bias = self.cast(x, 2), self.half(weight), bias and self.half(bias)
        out = self.new(x.n * d_out // (weight.n // d_out), x.size)
        keep = [x] * self.needs(weight) + [weight] * self.needs(x)
        return self.op(out, *[bias] * bool(bias), weight, x, keep=keep)

    def half(self, weight):
        """A weight's 16-bit copy: made once and held until autocast ends, but anew at each use of a frozen one."""
        if isinstance(weight, Tensor) or weight.size == 2:
            return weight
        if weight.cast is None or not self.needs(weight):
            made = self.op(self.new(weight.n, 2), weight)
            if not self.needs(weight):
                return made
            weight.cast = made
            self.casts.append(weight)
        return weight.cast

    def leave_autocast(self):
        """Drop the 16-bit copies that nothing else holds."""
        while self.casts:
            self.casts.pop().cast = None

    def add(self, a, b):
        """Both inputs share the result's gradient, unless one has to be cast back or summed."""
        n, size = max(a.n, b.n), max(a.size, b.size)
        return self.op(self.new(n, size), *((t, (t.n, t.size) == (n, size)) for t in (a, b)))

    def matmul(self, a, b, n):
        """A product of two tensors with n numbers: keeps each for the other's gradient."""
        if self.mixed:
            a, b = self.cast(a, 2), self.cast(b, 2)
        return self.op(self.new(n, a.size), a, b, keep=[a] * self.needs(b) + [b] * self.needs(a))

    def mul(self, a, b):
        """Keeps each factor for the other's gradient; a smaller factor's gradient is summed from a full product."""
        n, size = max(a.n, b.n), max(a.size, b.size)
        work = sum(n * size for t in (a, b) if self.needs(t) and (t.n < n or t.size < size))
        return self.op(self.new(n, size), a, b, keep=[a] * self.needs(b) + [b] * self.needs(a), work=work)

    def unary(self, x, keep="", work=0, part="workspace"):
        """A function of each number; keep: "x", its input, "out", its result, or nothing as scaling does."""
        out = self.new(x.n, x.size, part)
        return self.op(out, x, keep={"x": [x], "out": [out]}.get(keep, []), work=work)

    def view(self, x):
        """The same numbers in an order that makes the gradient a copy."""
        return self.op(Tensor(x.n, x.size, x.storage), x)

    def checkpoint(self, function, x):
        """function(x) keeping x alone; backward runs it again."""
        nodes, self.nodes, self.keeping = self.nodes, [], False
        out = function(x)
        self.nodes, self.keeping = nodes, True
        wanted, out = out.node, Tensor(out.n, out.size, out.storage)
        if not wanted:
            return out
        x.storage.move("activations")
        out.node = Node([(x.node, None, "")] if x.node else [], [x.storage], 0, (function, x))
        self.nodes.append(out.node)
        return out

    def split(self, x, parts):
        """Views of x in `parts` numbers each; their gradients wait and are then joined."""
        if not self.needs(x):
            return [Tensor(n, x.size, x.storage) for n in parts]
        join = Join([(x.node, x.n * x.size, "workspace")], [], 0)
        self.nodes.append(join)
        return [Tensor(n, x.size, x.storage, join) for n in parts]

    # --- backward

    def backward(self, loss):
        loss.node.grad = Storage(self, 4)
        self._run(self.nodes)

    def _run(self, nodes):
        while nodes:
            node = nodes.pop()
            if node.grad is None:
                continue
            if node.again:
                self._recompute(node)
                continue
            grad, node.grad = node.grad, None
            work = Storage(self, node.work) if node.work else None
            made = [(t, grad if size is None else Storage(self, size, part)) for t, size, part in node.targets]
            node.kept, grad = [], None
            del work
            while made:
                target, own = made.pop(0)
                target.receive(self, own)
                own = None

    def _recompute(self, node):
        function, x = node.again
        outer, self.nodes = self.nodes, []
        leaf = Leaf(x) if x.node else None
        out = function(Tensor(x.n, x.size, x.storage, leaf))
        self.leave_autocast()
        out.node.grad, node.grad, out = node.grad, None, None
        self._run(self.nodes)
        self.nodes, node.again, node.kept = outer, None, []
        for target, _, _ in node.targets:
            target.receive(self, leaf.grad)
