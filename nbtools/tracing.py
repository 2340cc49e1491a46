"""Peak memory of a training step, traced: the real modules of transformers and peft run without weights, data or a GPU.

Design choices
- The model is built on torch's meta device, wrapped by peft there (peft cannot wrap a fake model), then given fake
  tensors. A dispatch mode sees every operation and counts each storage from birth to death, rounded up to 512 bytes.
- Two steps run; the second is measured, for then the optimizer's states are there.
- Fake tensors on a GPU fail in backward without a device, so this traces the CPU's operations. Where a GPU's kernels
  keep something else (attention's random state, autocast's choice for softmax) the trace does not know.
- bitsandbytes' Params4bit cannot be faked: `FourBit` stands in for its layer, with the same bytes and de-quantising.
  Its optimizers and flash attention have no form that can be faked: `trace` says so.
- Rows have the full length and are not packed; no dropout; no key-value cache while training.
"""

import contextlib
import weakref
from unittest import mock

import bitsandbytes as bnb
import peft
import torch
import torch.nn.functional as F
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import masking_utils
from transformers.integrations import sdpa_attention

from . import formulas, planner
from .ledger import PARTS

HEADS = {
    "lm": transformers.AutoModelForCausalLM,
    "score": transformers.AutoModelForSequenceClassification,
    "bert": transformers.AutoModelForSequenceClassification,
    "vit": transformers.AutoModelForImageClassification,
}


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and nobody has dropped yet, by part; `peak()` since the last call."""

    def __init__(self, vocabulary=None):
        super().__init__()
        self.now, self.top, self.vocabulary = dict.fromkeys(PARTS, 0), {}, vocabulary
        self._kept = weakref.WeakKeyDictionary()  # storage -> [part, bytes]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self._kept:
                self._born(leaf)
        return out

    def _born(self, tensor):
        storage = tensor.untyped_storage()
        part = "logits" if tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary else "workspace"
        entry = self._kept[storage] = [part, -(-storage.nbytes() // 512) * 512]
        self.now[part] += entry[1]
        if sum(self.now.values()) > sum(self.top.values()):
            self.top = dict(self.now)
        weakref.finalize(storage, self._died, entry)

    def _died(self, entry):
        self.now[entry[0]] -= entry[1]

    def move(self, part, tensors=None):
        """Count these tensors (or all that is workspace now) as `part` from here on."""
        if tensors is None:
            wanted = [entry for entry in self._kept.values() if entry[0] == "workspace"]
        else:  # a library's tables may be older than this mode
            wanted = [self._kept[t.untyped_storage()] for t in tensors if t.untyped_storage() in self._kept]
        for entry in wanted:
            self._died(entry)
            entry[0] = part
            self.now[part] += entry[1]

    def peak(self):
        """{part: bytes} at the highest moment since the last call."""
        top, self.top = self.top, dict(self.now)
        return top


class _Dequantised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return F.linear(x, layer.dequantised(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.layer.dequantised(grad.dtype), None


class FourBit(bnb.nn.Linear4bit):
    """Stands in for bitsandbytes' NF4 layer: as many bytes, and a whole weight while it is used."""

    def __init__(self, layer, compute_dtype, double):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.compute_dtype = compute_dtype
        packed = torch.empty(layer.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = double, "nf4"
        for i, size in enumerate(formulas.nf4_statistics(layer.weight.numel(), double)):
            self.register_buffer(f"statistic{i}", torch.empty(size, dtype=torch.uint8))

    def dequantised(self, dtype):
        return torch.empty(self.out_features, self.in_features, dtype=dtype)

    def forward(self, x):
        return _Dequantised.apply(x.to(self.compute_dtype), self).to(x.dtype)


def build(s):
    """The model of a planner.Setup on the meta device, in train mode, adapted and frozen as the method says."""
    config = transformers.AutoConfig.for_model(**s.config)
    for name, value in vars(config).items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    if s.head != "lm":
        config.num_labels, config.pad_token_id = s.labels if s.head == "classifier" else 1, 0
    dtype = {"bf16": torch.bfloat16, "amp": torch.bfloat16, "fp16": torch.float16}.get(s.precision, torch.float32)
    with torch.device("meta"):
        auto = HEADS[s.kind if s.head == "classifier" else s.head]
        attention = "sdpa" if s.attention in ("math", "efficient") else s.attention
        model = auto.from_config(config, dtype=dtype, attn_implementation=attention)
        if s.method == "qlora":
            _quantise(model, s)
            model = peft.prepare_model_for_kbit_training(model, False) if s.upcast else model
        if s.targets:
            model = _with_lora(model, s)
    if s.method == "head":
        model.requires_grad_(False)
        output = model.get_output_embeddings() if s.head == "lm" else getattr(model, "classifier", None) or model.score
        output.requires_grad_(True)
    if s.checkpointing != "off":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        blocks = [m for m in model.modules() if isinstance(m, transformers.modeling_layers.GradientCheckpointingLayer)]
        for block in blocks[1::2] if s.checkpointing == "selective" else ():
            block.gradient_checkpointing = False
    return model.train()


def _with_lora(model, s):
    everything = s.targets == formulas.LINEAR[s.kind]
    kind = "CAUSAL_LM" if s.head == "lm" else "SEQ_CLS" if s.kind != "vit" else None
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=s.rank,
            target_modules="all-linear" if everything and kind else list(s.targets),
            task_type=kind,
            modules_to_save=None if kind else ["classifier"],
        ),
    )


def _quantise(model, s):
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(s.precision, torch.bfloat16)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in formulas.LINEAR[s.kind]:
            model.set_submodule(name, FourBit(layer, dtype, s.double_quant))
    model.is_loaded_in_4bit = True
    model.requires_grad_(False)


def materialise(model, live):
    """Meta parameters and buffers become fake ones, counted as weights or adapters; tied ones stay tied."""
    made = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in made:
                    made[id(p)] = torch.nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
                module._parameters[name] = made[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
    live.move("weights")
    live.move("adapters", [p for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n])
    for p in model.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: live.move("gradients", [p.grad]))
    return model


class Step:
    """A training step of a Setup by the real model: `forward(net)`, then `loss(state)`."""

    def __init__(self, s, net, value=None):
        self.s, self.net, self.value = s, net, value
        self.base, self.hidden, self.held = net.get_base_model() if s.targets else net, None, None
        if s.task in ("sft", "classify") and s.loss == "stock":
            self.base.base_model.register_forward_hook(self.hold)
        if s.kind == "vit":
            edge = s.config["image_size"]
            self.batch = {"pixel_values": torch.rand(s.rows, s.config["num_channels"], edge, edge)}
        else:
            self.ids = torch.randint(1, s.config["vocab_size"], (s.rows, s.seq))
            self.batch = {"input_ids": self.ids} | ({} if s.kind == "bert" else {"use_cache": False})

    def hold(self, module, given, output):
        """transformers computes such a loss inside forward, where the last hidden state is still a local."""
        self.hidden = output.last_hidden_state

    def forward(self):
        """What the loss needs: logits, or the last hidden state, or both."""
        if self.s.loss != "stock":
            return self.base.model(**self.batch).last_hidden_state
        if self.s.task == "ppo":
            hidden = self.base.model(**self.batch).last_hidden_state
            return self.base.lm_head(hidden), self.value(hidden.to(self.value.weight.dtype))
        return self.net(**self.batch).logits

    def loss(self, found):
        s = self.s
        if s.loss == "trl":
            from trl.trainer.sft_trainer import _chunk  # its loop asks fake tensors for a number

            head, cap = self.base.lm_head.weight, s.config.get("final_logit_softcapping")
            flat, labels = (t[:, :-1].flatten(0, 1) for t in (found, self.ids))
            parts = zip(flat[torch.arange(len(flat))].split(formulas.CHUNK), labels.split(formulas.CHUNK), strict=True)
            return sum(checkpoint(_chunk, h, head, None, y, 1.0, cap, use_reentrant=False)[0] for h, y in parts)
        if s.loss == "chunked":
            parts = zip(
                found.view(-1, found.shape[-1]).split(formulas.CHUNK),
                self.ids.view(-1).split(formulas.CHUNK),
                strict=True,
            )
            return sum(checkpoint(self.chunk, hidden, labels, use_reentrant=False) for hidden, labels in parts)
        if s.task in ("dpo", "ppo"):
            logprobs = self.logprobs(found[0] if s.task == "ppo" else found)
            return (
                -logprobs.mean() + found[1].float().mean()
                if s.task == "ppo"
                else -F.logsigmoid(logprobs.sum(-1)).mean()
            )
        if s.head == "lm":
            return self.base.loss_function(logits=found, labels=self.ids, vocab_size=s.config["vocab_size"])
        if s.head == "score":
            return -F.logsigmoid(found[::2] - found[1::2]).mean()
        return F.cross_entropy(found, torch.zeros(s.rows, dtype=torch.long))

    def chunk(self, hidden, labels):
        logits = self.base.lm_head(hidden)
        cap = self.s.config.get("final_logit_softcapping")
        logits = torch.tanh(logits / cap) * cap if cap else logits
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def logprobs(self, logits):
        return F.log_softmax(logits[:, :-1].float(), -1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)

    def reference(self):
        """Log-probabilities by the model without its adapter, or by itself in a frozen copy's place."""
        with torch.no_grad(), self.net.disable_adapter() if self.s.targets else contextlib.nullcontext():
            self.logprobs(self.net(**self.batch).logits)


def trace(model, **arguments):
    """{phase: {part: bytes}} for planner.plan's arguments, from running the model once. Seconds. Raises NbtoolsError.

    Phases as in planner.Plan, without generation. What backward makes again under checkpointing counts as workspace.
    """
    arguments.pop("card", None)
    s = planner.setup(model, **arguments)
    planner.traceable(s)
    net = build(s)
    one_text = mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    # peft's 4-bit layers ask for CUDA's autocast, whatever the device: they are to hear of the one that runs here
    asked, here = torch.is_autocast_enabled, mock.patch.object(torch, "is_autocast_enabled", lambda *kind: asked("cpu"))
    fallback = sdpa_kernel(SDPBackend.MATH) if s.attention == "math" else contextlib.nullcontext()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with one_text, here, heads(s), fallback, fake, LiveBytes(s.config.get("vocab_size")) as live:
        materialise(net, live)
        return two_steps(s, net, live)


def heads(s):
    """For attention "efficient": transformers repeats grouped heads before sdpa, as it does where there is a mask."""
    if s.attention != "efficient":
        return contextlib.nullcontext()
    return mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", lambda *given: False)


def two_steps(s, net, gauge, device="cpu"):
    """{phase: gauge.peak()} of the second of two training steps: by then the optimizer has its states.

    gauge: LiveBytes, or what has its peak() and move(). "load" is what is there before the first step.
    """
    phases = {}
    copies = [torch.empty_like(p) for p in net.parameters()] if s.task in ("dpo", "ppo") and not s.targets else []
    value = torch.nn.Linear(s.config["hidden_size"], 1, bias=False) if s.task == "ppo" else None
    copies += [torch.empty_like(p, device=device) for p in build(s.judge).parameters()] if s.judge else []
    gauge.move("weights")
    gauge.peak()
    phases["load"] = gauge.peak()
    own = [p for p in (*net.parameters(), *(value.parameters() if value else ())) if p.requires_grad]
    optimizer, step = _optimizer(s, own), Step(s, net, value)
    for _ in range(2):
        for _ in range(min(s.accumulation, 2)):
            _pass(s, step, gauge, phases, device)
        optimizer.step()
        phases["step"] = gauge.peak()
        step.held = None
        gauge.move("optimizer", [t for v in optimizer.state.values() for t in v.values() if torch.is_tensor(t)])
        optimizer.zero_grad()
    del copies
    return phases


def _pass(s, step, gauge, phases, device):
    step.held = None
    gauge.peak()
    with torch.autocast(device, torch.bfloat16) if s.precision in ("mixed", "amp") else contextlib.nullcontext():
        if s.task in ("dpo", "ppo"):
            step.reference()
        found = step.forward()
        phases["forward"] = gauge.peak()
        loss = step.loss(found)
        step.hidden, step.held = None, found if s.held else None
        del found
        phases["loss"] = gauge.peak()
    gauge.move("activations")
    loss.backward()
    del loss
    phases["backward"] = gauge.peak()


def _optimizer(s, own):
    library = {"adamw-8bit": bnb.optim.AdamW8bit, "adamw-paged": bnb.optim.PagedAdamW8bit, "lion": bnb.optim.Lion}
    if s.optimizer in library:
        return library[s.optimizer](own, lr=1e-4)
    if s.optimizer == "sgd":
        return torch.optim.SGD(own, lr=0.1, foreach=True)
    return torch.optim.AdamW(own, lr=1e-4, **({"fused": True} if s.optimizer == "adamw-fused" else {"foreach": True}))
