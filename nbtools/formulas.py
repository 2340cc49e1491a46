"""transformers' and peft's modules as entries in a ledger: what each line of their forward makes and keeps, in bytes.

Design choices
- Each function follows a forward of transformers 5.17 or peft 0.21 line by line, with its local names, for what is
  alive depends on them. `nbtools.tracing` runs the originals; tests compare the two.
- Assumed throughout: rows of full length (so no padding mask), no dropout, no key-value cache while training,
  LoRA without dropout or bias, attention kernels that keep their inputs, their output and one number a row and head.
- On a GPU: CUDA's allocator, a cuBLAS workspace for each of the two threads that multiply, and softmax's kernel, which
  reads 16-bit floats without a 32-bit copy and makes grad x output in backward. The rest is as on a CPU.
- transformers computes the loss inside forward, so there the last hidden state is alive until the loss is.
- A reference policy (DPO, PPO) is the model without its adapter, or a frozen copy where there is no adapter. PPO's
  value is a linear layer on the policy's last hidden state; a reward model lies there frozen, and its own forward
  pass, without gradients or logits, is taken to need less than the policy's.
"""

from .allocator import CachingAllocator
from .ledger import Leaf, Ledger, Storage, Tensor

CHUNK = 256  # tokens of logits at a time in the chunked loss
MANY = 16  # chunks that are followed one by one
DECODERS, ENCODERS = ("llama", "mistral", "qwen2", "gemma2"), ("bert", "vit")
LINEAR = {
    **dict.fromkeys(DECODERS, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense", "pooler.dense"),
    "vit": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
}


def sides(c):
    """{linear layer: (d_in, d_out)} of one block, by the names in LINEAR."""
    d, f, kind = c["hidden_size"], c["intermediate_size"], c["model_type"]
    q, k = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    shapes = [(d, q), (d, k), (d, k), (q, d), (d, f), (f, d), (d, d)]
    if kind in DECODERS:
        shapes[5:] = [(d, f), (f, d)]
    return dict(zip(LINEAR[kind], shapes, strict=False))


def nf4_statistics(n, double=True):
    """Bytes beside n NF4 numbers: scales of 64, a table; doubly quantised, also the scales' scales, table, offset."""
    blocks = -(-n // 64)
    return (blocks, 4 * -(-blocks // 256), 4 * 16, 4 * 256, 4) if double else (4 * blocks, 4 * 16)


class Linear:
    """A linear layer: plain, with LoRA, or NF4 with LoRA (peft's lora.Linear and lora.Linear4bit)."""

    def __init__(self, net, name, d_in, d_out, bias=False):
        self.ledger, s = net.ledger, net.s
        self.d_in, self.d_out, self.rank, self.net = d_in, d_out, s.rank, net
        self.four = s.method == "qlora" and name in LINEAR[s.kind]
        self.weight = net.weight(d_in * d_out // 2, 1) if self.four else net.weight(d_in * d_out)
        self.weight.count = d_in * d_out
        for size in nf4_statistics(d_in * d_out, s.double_quant) if self.four else ():
            net.weight(size, 1).count = 0
        self.bias = net.weight(d_out) if bias else None
        self.lora = None
        if name in s.targets:
            self.lora = [self.ledger.parameter(s.rank * d, 4, True, "adapters") for d in (d_in, d_out)]

    def __call__(self, x):
        ledger = self.ledger
        result = self._four(x) if self.four else ledger.linear(x, self.weight, self.d_out, self.bias)
        if self.lora is None or self.net.plain:
            return result
        a, b = self.lora
        size = result.size
        if self.four:
            result = ledger.unary(result)  # peft clones it
        if not (self.four and ledger.mixed):
            x = ledger.cast(x, 4)
        if self.four:
            output = ledger.unary(ledger.linear(ledger.linear(x, a, self.rank), b, self.d_out))
            output = output if ledger.mixed else ledger.cast(output, size)
            return ledger.add(result, output)
        result = ledger.add(result, ledger.unary(ledger.linear(ledger.linear(x, a, self.rank), b, self.d_out)))
        return ledger.cast(result, size)

    def _four(self, x):
        ledger, size = self.ledger, x.size
        x = ledger.cast(x, 4 if self.net.s.precision == "fp32" else 2)
        whole = ledger.new(self.d_in * self.d_out, x.size)  # de-quantised, again in backward
        out = ledger.op(ledger.new(x.n // self.d_in * self.d_out, x.size), x, work=whole.n * whole.size)
        if self.bias:
            out = ledger.op(Tensor(out.n, out.size, out.storage), (out, True))
        del whole
        return ledger.cast(out, size)


class Net:
    """What decoders and encoders share: weights, attention, checkpointing of blocks."""

    def __init__(self, s, cuda=False, ledger=None):
        self.s, self.plain, self.cuda = s, False, cuda
        self.size = 2 if s.precision in ("bf16", "fp16", "amp") and not s.upcast else 4
        self.ledger = ledger or Ledger(s.precision in ("mixed", "amp"), CachingAllocator() if cuda else None)
        c = self.c = s.config
        self.d, self.f, self.heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
        self.kv, self.hd, self.tokens = c["num_key_value_heads"], c["head_dim"], s.rows * s.seq

    def weight(self, n, size=None, trained=None):
        return self.ledger.parameter(n, size or self.size, self.s.method == "full" if trained is None else trained)

    def inputs(self):
        """Bytes of the batch, which stays for the whole step: token numbers or pixels."""
        image = self.c["num_channels"] * self.c["image_size"] ** 2 if self.s.kind == "vit" else 0
        return self.s.rows * (4 * image or 8 * self.s.seq)

    def head_layer(self, d_out, bias):
        """The output layer (weight, bias): with adapters on a classifier peft trains a copy of it."""
        new = self.s.head != "lm"
        trained = self.s.method in ("full", "head")
        sizes = [self.d * d_out, *[d_out] * bias]
        weights = [self.weight(n, None, trained) for n in sizes]
        if new and self.s.targets:
            weights = [self.ledger.parameter(n, self.size, True, "adapters") for n in sizes]
        return weights

    def sdpa(self, q, k, v, mask=None):
        ledger = self.ledger
        if mask is not None:
            k, v = self.repeated(k), self.repeated(v)
        if ledger.mixed:
            q, k, v = (ledger.cast(t, 2) for t in (q, k, v))
        bias = [] if mask is None else [ledger.new(self.tokens * self.s.seq, q.size)]  # made of a mask of bits
        out, rows = ledger.new(q.n, q.size), ledger.new(q.n // self.hd, 4)
        return ledger.op(out, q, k, v, keep=[q, k, v, out, rows, *bias]), None

    flash = sdpa

    def efficient(self, q, k, v, mask=None):
        """The memory-efficient kernel wants a key for each query: grouped heads are repeated for it."""
        return self.sdpa(q, k, v, mask) if mask is not None else self.sdpa(q, self.repeated(k), self.repeated(v))

    def math(self, q, k, v, mask=None):
        """torch's fallback, which keeps the weights in 32 bits; with a mask transformers repeats the heads instead."""
        if mask is not None:
            return self.sdpa(q, k, v, mask)
        ledger, n = self.ledger, self.tokens * self.heads * self.s.seq
        size = 2 if ledger.mixed else q.size
        whole = [ledger.cast(ledger.cast(t, size), 4) for t in (q, k, v)]
        q, causal = ledger.unary(whole[0]), ledger.new(self.s.seq**2, 4)
        repeated = k, v = self.repeated(whole[1]), self.repeated(whole[2])
        k = ledger.unary(k)
        weights = ledger.op(ledger.new(n, 4), q, k, keep=[q] * ledger.needs(k) + [k] * ledger.needs(q))
        del k
        weights = ledger.op(ledger.new(n, 4), (weights, True))  # the mask is added
        out = ledger.new(n, 4)
        scratch = [ledger.new(n, size) for size in (1, 4)] if self.cuda else []  # which rows are empty, and without
        out = ledger.op(out, weights, keep=[out], work=4 * n * self.cuda)
        del scratch
        weights = out
        del out
        copy = ledger.new(n, size) if size == 2 else None  # returned beside the result, and dropped
        out = ledger.new(q.n, 4)
        out = ledger.op(out, weights, v, keep=[weights] * ledger.needs(v) + [v] * ledger.needs(weights))
        out = ledger.cast(out, size)
        del copy, whole, repeated, causal
        return out, None

    def repeated(self, x):
        repeats = self.heads // self.kv
        return self.ledger.op(self.ledger.new(x.n * repeats, x.size), x) if repeats > 1 else x

    def eager(self, query, key, value, mask=None):
        ledger, n = self.ledger, self.tokens * self.heads * self.s.seq
        key_states, value_states = self.repeated(key), self.repeated(value)
        if ledger.mixed:
            key_states, query = ledger.cast(key_states, 2), ledger.cast(query, 2)
        weights = ledger.unary(ledger.matmul(self.rows_apart(query), self.rows_apart(key_states, key), n))
        if self.c.get("attn_logit_softcapping"):
            weights = ledger.unary(weights)
            weights = ledger.unary(weights, "out")
            weights = ledger.unary(weights)
        if mask is not None:
            weights = ledger.op(ledger.new(n, max(weights.size, mask.size)), (weights, weights.size >= mask.size))
        weights = self.softmax(weights)
        output = ledger.matmul(weights, self.rows_apart(value_states, value), query.n)
        return ledger.unary(output), weights

    def softmax(self, weights):
        """Of attention weights, in 32 bits but for BERT, which leaves that to autocast on a GPU."""
        ledger, bert = self.ledger, self.s.kind == "bert"
        size = weights.size if bert and not (self.cuda and ledger.mixed) else 4
        given = weights if self.cuda and self.s.precision == "fp16" else ledger.cast(weights, size)
        out = ledger.new(weights.n, size)
        out = ledger.op(out, given, keep=[out], work=out.n * size * self.cuda)
        del given
        return out if bert else ledger.cast(out, self.stream_size)

    def rows_apart(self, x, whole=None):
        """Heads of several rows are copied to lie one after the other; a repeated key does so already."""
        return x if self.s.rows == 1 or (whole is not None and x.n > whole.n) else self.ledger.unary(x)

    def run(self, x, blocks):
        for i, block in enumerate(blocks):
            saved = self.s.checkpointing == "block" or (self.s.checkpointing == "selective" and i % 2 == 0)
            x = (
                self.ledger.checkpoint(lambda x, block=block: self.layer(x, block), x)
                if saved and self.ledger.grad
                else self.layer(x, block)
            )
        return x

    def open_input(self, x):
        """The gradient that transformers' checkpointing opens at the input, frozen blocks or not."""
        if self.s.checkpointing != "off" and self.ledger.grad and x.node is None:
            x.node = Leaf(x)
        return x


class Decoder(Net):
    """Llama, Mistral, Qwen2 and Gemma2, each as ForCausalLM and as ForSequenceClassification (task reward)."""

    def __init__(self, s, cuda=False, ledger=None):
        super().__init__(s, cuda, ledger)
        c, norms = self.c, 4 if s.kind == "gemma2" else 2
        self.vocabulary, self.gemma = c["vocab_size"], s.kind == "gemma2"
        self.embedding = self.weight(self.vocabulary * self.d)
        biased = (
            {*LINEAR[s.kind][:3]} if s.kind == "qwen2" else {*LINEAR[s.kind][:4]} if c.get("attention_bias") else {}
        )
        self.blocks = []
        for i in range(c["num_hidden_layers"]):
            block = {name: Linear(self, name, *shape, name in biased) for name, shape in sides(c).items()}
            block |= {"norms": [self.weight(self.d) for _ in range(norms)], "local": self.local(i)}
            self.blocks.append(block)
        self.norm = self.weight(self.d)
        if s.head == "score":
            self.output = self.head_layer(1, False)[0]
        else:
            self.output = self.embedding if c["tie_word_embeddings"] else self.head_layer(self.vocabulary, False)[0]
        if s.task == "ppo":
            self.value = self.weight(self.d, 4, True)

    def local(self, i):
        """Whether layer i attends to a window that is shorter than the rows: then a mask is made."""
        window = self.c["sliding_window"]
        return bool(window) and self.s.seq >= window and (not self.gemma or i % 2 == 0)

    def rms_norm(self, x, weight):
        ledger = self.ledger
        hidden = ledger.cast(x, 4)
        inverse = ledger.new(hidden.n // self.d, 4)
        if ledger.needs(hidden):
            inverse = ledger.op(inverse, hidden, keep=[hidden, inverse], work=3 * 4 * hidden.n)
        square = ledger.new(hidden.n, 4)
        del square
        hidden = ledger.mul(hidden, inverse)
        if self.gemma:
            return ledger.cast(ledger.mul(hidden, ledger.op(ledger.new(self.d, 4), weight)), x.size)
        return ledger.mul(weight, ledger.cast(hidden, x.size))

    def rotary(self, x):
        ledger = self.ledger
        turned = ledger.mul(x, self.cos)
        negative = ledger.new(x.n // 2, x.size)
        half = ledger.op(ledger.new(x.n, x.size), x, work=2 * x.n * x.size)
        del negative
        half = ledger.mul(half, self.sin)
        return ledger.add(turned, half)

    def attention(self, x, block):
        ledger = self.ledger
        q, k, v = (block[name](x) for name in ("q_proj", "k_proj", "v_proj"))
        q, k = ledger.view(q), ledger.view(k)
        turned, key = self.rotary(q), self.rotary(k)
        q, k = turned, key
        del turned, key
        mask = self.mask if self.s.attention == "eager" or block["local"] else None
        x, weights = getattr(self, self.s.attention)(q, k, v, mask)
        return block["o_proj"](x), weights

    def layer(self, x, block):
        ledger, norms = self.ledger, block["norms"]
        residual = x
        x = self.rms_norm(x, norms[0])
        x, weights = self.attention(x, block)  # the weights stay until the layer is left
        if self.gemma:
            x = self.rms_norm(x, norms[1])
        x = ledger.add(residual, x)
        residual = x
        x = self.rms_norm(x, norms[-2] if self.gemma else norms[1])
        gate = ledger.unary(block["gate_proj"](x), "x")
        up = block["up_proj"](x)
        gate = ledger.mul(gate, up)
        del up
        x = block["down_proj"](gate)
        del gate
        if self.gemma:
            x = self.rms_norm(x, norms[-1])
        return ledger.add(residual, x)

    def hidden(self):
        """The last hidden state (B, T, d)."""
        ledger, s = self.ledger, self.s
        x = ledger.op(ledger.new(self.tokens * self.d, self.size), self.embedding)
        if self.gemma:
            x = ledger.unary(x)
        x, self.stream_size = self.open_input(x), x.size
        self.cos, self.sin = (ledger.new(s.seq * self.hd, x.size) for _ in range(2))
        self.mask = self.masks(x.size)
        x = self.rms_norm(self.run(x, self.blocks), self.norm)
        if not ledger.grad or s.checkpointing == "off":
            self.cos = self.sin = self.mask = None
        return x

    def masks(self, size):
        """Eager attention adds a mask for each kind of layer; sdpa needs none but for a window, there one of bits."""
        if self.s.attention == "eager":
            return self.ledger.new(self.tokens * self.s.seq * (1 + self.gemma), size)
        local = self.s.attention == "sdpa" and any(block["local"] for block in self.blocks)
        return self.ledger.new(self.s.seq**2, 1) if local else None

    def logits(self, x):
        ledger, d_out = self.ledger, 1 if self.s.head == "score" else self.vocabulary
        logits = ledger.linear(x, self.output, d_out)
        logits.storage.move("logits")
        for keep in self.caps if self.s.head == "lm" else ():
            logits = ledger.unary(logits, keep, part="logits")
        return logits

    @property
    def caps(self):
        """What soft-capping keeps: of a division, a tanh and a product."""
        return ("", "out", "") if self.c.get("final_logit_softcapping") else ()


class Encoder(Net):
    """BertForSequenceClassification and ViTForImageClassification."""

    def __init__(self, s, cuda=False, ledger=None):
        super().__init__(s, cuda, ledger)
        c, d, self.bert = self.c, self.d, s.kind == "bert"
        if self.bert:
            self.tables = [
                self.weight(n * d) for n in (c["vocab_size"], c["max_position_embeddings"], c["type_vocab_size"])
            ]
        else:
            self.patch = [self.weight(c["num_channels"] * c["patch_size"] ** 2 * d), self.weight(d)]
            self.tables = [self.weight(d), self.weight(s.seq * d)]
        self.first = self.norm_weights() if self.bert else None
        shapes = sides(c)
        pooler = shapes.pop("pooler.dense", None)
        self.blocks = []
        for _ in range(c["num_hidden_layers"]):
            block = {name: Linear(self, name, *shape, True) for name, shape in shapes.items()}
            self.blocks.append((list(block.values()), self.norm_weights(), self.norm_weights()))
        self.last = None if self.bert else self.norm_weights()
        self.pooler = Linear(self, "pooler.dense", *pooler, True) if pooler else None
        self.output = self.head_layer(s.labels, True)

    def norm_weights(self):
        return self.weight(self.d), self.weight(self.d)

    def layer_norm(self, x, weights):
        ledger = self.ledger
        mean, spread = (ledger.new(x.n // self.d, x.size) for _ in range(2))
        return ledger.op(ledger.new(x.n, x.size), *weights, x, keep=[x, mean, spread])

    def attention(self, x, linear):
        q, k, v = (layer(x) for layer in linear[:3])
        x, weights = getattr(self, self.s.attention)(*(self.ledger.view(t) for t in (q, k, v)))
        return x if self.bert else linear[3](x), weights

    def layer(self, x, block):
        ledger, (linear, one, two) = self.ledger, block
        hidden = x if self.bert else self.layer_norm(x, one)
        hidden, weights = self.attention(hidden, linear)
        if self.bert:
            hidden = self.after(linear[3], hidden, x, one)
            inner = ledger.unary(linear[4](hidden), "x")
            return self.after(linear[5], inner, hidden, two)
        hidden = ledger.add(hidden, x)
        normed = self.layer_norm(hidden, two)
        inner = ledger.unary(linear[4](normed), "x")
        inner = linear[5](inner)
        return ledger.add(inner, hidden)

    def after(self, dense, x, residual, norm):
        """BertSelfOutput and BertOutput."""
        hidden = dense(x)
        return self.layer_norm(self.ledger.add(hidden, residual), norm)

    def hidden(self):
        x = self.words() if self.bert else self.patches()
        self.stream_size = x.size
        x = self.run(x, self.blocks)
        x, self.copied = x if self.bert else self.layer_norm(x, self.last), []
        return x

    def words(self):
        ledger, (words, places, kinds) = self.ledger, self.tables
        indices = ledger.new(self.s.seq, 8)
        word = self.open_input(ledger.op(ledger.new(self.tokens * self.d, self.size), words))
        kind = ledger.op(ledger.new(self.tokens * self.d, self.size), kinds, keep=[indices])
        x = ledger.add(word, kind)
        place = ledger.op(ledger.new(self.s.seq * self.d, self.size), places)
        x = ledger.add(x, place)
        return self.layer_norm(x, self.first)

    def patches(self):
        ledger, s = self.ledger, self.s
        self.copied = [] if s.precision == "fp32" else [ledger.new(self.inputs() // 4, 2)]
        weight, bias = ((ledger.half(w) if ledger.mixed else w) for w in self.patch)
        x = ledger.new(s.rows * (s.seq - 1) * self.d, weight.size)
        x = self.open_input(ledger.op(x, bias, weight, keep=[*self.copied, weight]))
        if ledger.mixed:
            self.copied = []
        first, places = self.tables
        x = ledger.op(ledger.new(self.tokens * self.d, max(x.size, first.size)), first, x)
        return ledger.add(x, places)

    def logits(self, x):
        ledger = self.ledger
        x = ledger.op(Tensor(self.s.rows * self.d, x.size, x.storage), x)  # the first token
        if self.bert:
            x = ledger.unary(self.pooler(x), "out")
        return ledger.linear(x, self.output[0], self.s.labels, self.output[1])


# --- losses: each runs a net, calls `forward` at the end of that phase, and returns the loss


def cross_entropy(net, forward):
    ledger, s = net.ledger, net.s
    hidden = net.hidden()
    logits = net.logits(hidden)
    net.held = logits if s.held else None
    forward()
    floats = ledger.cast(logits, 4) if s.head == "lm" or ledger.mixed else logits
    floats.storage.move("logits")
    labels = ledger.new(s.rows if s.head != "lm" else s.seq + 1 if s.rows == 1 else net.tokens, 8)
    return nll(ledger, ledger.unary(floats, "out", part="logits"), [labels])


def nll(ledger, logprobs, labels=()):
    return ledger.op(ledger.new(1, 4), logprobs, keep=[logprobs, ledger.new(1, logprobs.size), *labels])


def chunked(net, forward):
    """Logits of CHUNK tokens at a time, each made again in backward."""
    ledger, hidden = net.ledger, net.hidden()
    forward()

    def part(x):
        logits = net.logits(x)
        floats = ledger.cast(logits, 4)
        floats.storage.move("logits")
        return nll(ledger, ledger.unary(floats, "out", part="logits"))

    return in_chunks(net, hidden, part)


def trl(net, forward):
    """trl's chunked_nll: each chunk copies the head to 32 bits, and makes the entropy too."""
    ledger, s, weight = net.ledger, net.s, net.output
    hidden = net.hidden()
    forward()
    packed = ledger.new(s.rows * (s.seq - 1) * net.d, hidden.size)
    packed = ledger.op(packed, hidden)

    def part(x):
        x = ledger.cast(x, 4)
        if weight.size == 4:
            logits = ledger.linear(x, weight, net.vocabulary)
        else:
            whole = ledger.op(ledger.new(weight.n, 4), weight)
            logits = ledger.matmul(x, whole, x.n // net.d * net.vocabulary)
            del whole
        logits.storage.move("logits")
        for keep in net.caps:
            logits = ledger.unary(logits, keep, part="logits")
        logits = ledger.cast(logits, 4) if net.cuda else logits  # by autocast, and there on a GPU alone
        logprobs = ledger.unary(logits, "out", part="logits")
        loss = nll(ledger, ledger.cast(logprobs, 4))
        entropy = [ledger.new(logprobs.n, logprobs.size, "logits") for _ in range(2)]
        del entropy
        return loss

    return in_chunks(net, packed, part)


def in_chunks(net, hidden, part):
    """The sum of part(CHUNK tokens of hidden), each made again in backward."""
    ledger, tokens = net.ledger, hidden.n // net.d
    sizes = [min(CHUNK, tokens - at) * net.d for at in range(0, tokens, CHUNK)]
    sizes, rest = sizes[:MANY], sum(sizes[MANY:])  # of more chunks than MANY only the hidden states' gradients add up
    total = None
    for piece in ledger.split(hidden, [*sizes, rest] if rest else sizes):
        same = len(sizes) == MANY and piece.n == rest
        loss = ledger.op(ledger.new(1, 4), piece) if same else ledger.checkpoint(part, piece)
        total = loss if total is None else ledger.add(total, loss)
    return total


def logprob(net, logits):
    """Log-probability of each row's tokens, summed (DPO) or not (PPO)."""
    ledger, s = net.ledger, net.s
    n = s.rows * (s.seq - 1) * net.vocabulary
    shifted = ledger.op(Tensor(n, logits.size, logits.storage), logits)  # a view; its gradient is padded
    floats = ledger.cast(shifted, 4)
    floats.storage.move("logits")
    logprobs = ledger.unary(floats, "out", part="logits")
    return ledger.op(ledger.new(n // net.vocabulary, 4), logprobs)


def preference(net, forward):
    logits = net.logits(net.hidden())
    forward()
    return logprob(net, logits)


def ppo(net, forward):
    hidden = net.hidden()
    logits = net.logits(hidden)
    value = net.ledger.linear(net.ledger.cast(hidden, 4), net.value, 1)
    forward()
    del hidden
    return net.ledger.add(logprob(net, logits), net.ledger.cast(value, 4))


def score(net, forward):
    logits = net.logits(net.hidden())
    forward()
    return net.ledger.op(net.ledger.new(1, 4), logits)


# --- the step


def states(s, parameter):
    """(bytes of optimizer state of one weight on the device, bytes that its step needs beside)."""
    n, size = parameter.n, parameter.size
    if s.optimizer in ("adamw", "adamw-fused"):
        return [n * size, n * size, 4], n * size if s.optimizer == "adamw" else 0
    if s.optimizer == "sgd":
        return [], 0
    if s.optimizer == "lion":
        return [4 * n], 0
    small, paged = n < 4096, s.optimizer == "adamw-paged" and n >= 100_000
    own = [] if paged else [4 * n, 4 * n] if small else [n, n]
    return own + ([] if small else [4 * -(-n // 256)] * 2), 0


def model(s, cuda=False, ledger=None):
    """The net of a planner.Setup."""
    return (Decoder if s.kind in DECODERS else Encoder)(s, cuda, ledger)


def phases(s, workspace=0):
    """({phase: {part: bytes}}, facts) of a planner.Setup's second step; facts: bytes kept for backward and so on.

    workspace: bytes that cuBLAS keeps for a thread on this card, 0 for a CPU. Fact "reserved", bytes, is a GPU's alone.
    """
    net = model(s, workspace > 0)
    ledger, threads = net.ledger, []
    loss_of = {"dpo": preference, "ppo": ppo, "reward": score}.get(
        s.task, {"chunked": chunked, "trl": trl}.get(s.loss, cross_entropy)
    )
    copy = None
    if s.task in ("dpo", "ppo") and not s.targets:
        copy = [Storage(ledger, p.home.bytes, "weights") for p in ledger.parameters]
    parameters, own = [*ledger.parameters], [p for p in ledger.parameters if p.trained]
    judge = model(s.judge, ledger=ledger) if s.judge else None
    found = {"load": ledger.peak()}
    batch, kept_states = ledger.new(net.inputs(), 1), []
    for _ in range(2):
        for _ in range(min(s.accumulation, 2)):
            net.held = None
            ledger.peak()
            _thread(ledger, threads, workspace, 1)
            if s.task in ("dpo", "ppo"):
                with ledger.no_grad():
                    net.plain = True
                    logprob(net, net.logits(net.hidden()))
                    net.plain = False
            loss = loss_of(net, lambda: found.update(forward=ledger.peak()))
            found["loss"] = ledger.peak()
            ledger.leave_autocast()
            kept = ledger.kept()
            _thread(ledger, threads, workspace, 2)
            ledger.backward(loss)
            del loss
            net.cos = net.sin = net.mask = None
            found["backward"] = ledger.peak()
        kept_states = kept_states or _states(ledger, s, own)
        work = [Storage(ledger, n) for p in own if (n := states(s, p)[1])]
        found["step"] = ledger.peak()
        del work
        for p in own:
            p.gradient = None
    ledger.peak()
    if s.task == "ppo":
        found["generation"] = generation(net)
    facts = {
        "kept for backward": kept,
        "parameters": sum(p.count for p in parameters if p.part == "weights"),
        "trained": sum(p.n for p in own),
        "weights": sum(p.home.bytes for p in parameters if p.part == "weights"),
        "adapters": sum(p.home.bytes for p in parameters if p.part == "adapters"),
        "gradients": sum(p.n * p.size for p in own),
        "optimizer": sum(state.bytes for state in kept_states),
    }
    if workspace:
        facts["reserved"] = ledger.allocator.reserved
    del copy, batch, threads, judge
    return found, facts


def _thread(ledger, threads, workspace, wanted):
    """Forward's thread and backward's: each gets a cuBLAS workspace at its first product, and keeps it."""
    if workspace and len(threads) < wanted:
        threads.append(Storage(ledger, workspace))


def _states(ledger, s, own):
    """The optimizer's states, made in its first step."""
    found = [Storage(ledger, n, "optimizer") for p in own for n in states(s, p)[0]]
    if s.optimizer in ("adamw-8bit", "adamw-paged") and any(p.n >= 4096 for p in own):
        found += [Storage(ledger, 1024, "optimizer") for _ in range(2)]
    return found


def generation(net):
    """The last token of rows of full length: the cache, one layer's copy of it, one row of logits each."""
    ledger, s, c = net.ledger, net.s, net.c
    size = net.size
    cache = ledger.new(2 * net.tokens * net.kv * net.hd * c["num_hidden_layers"], size)
    grown = ledger.new(net.tokens * net.kv * net.hd, size)
    logits = ledger.new(s.rows * net.vocabulary, size, "logits")
    found = ledger.peak()
    del cache, grown, logits
    return found
