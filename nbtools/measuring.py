"""A real training step on real memory, phase by phase: what the planner's formulas are held against.

Design choices
- Model, adapter and step are those that `tracing` builds, with numbers in them; NF4 layers are bitsandbytes' own.
- Two steps are run and the second one counts, as in a trace: by then the optimizer has its states.
- On a GPU torch's allocator is asked. A CPU has none, so there the storages are counted as they come and go. That shows
  that this code measures what the formulas speak of; it says nothing about a GPU.
"""

import contextlib
import gc
from unittest import mock

import bitsandbytes as bnb
import torch

from . import planner, profiles, tracing
from .errors import NbtoolsError


class Allocator:
    """The CUDA allocator's own peak; a context manager, so that it can stand where LiveBytes stands."""

    def __enter__(self):
        gc.collect()
        torch.cuda.empty_cache()
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *error):
        return None

    def now(self):
        """Bytes allocated at this moment."""
        return torch.cuda.memory_allocated() - self.before

    def peak(self):
        """Bytes at the highest moment since the last call."""
        torch.cuda.synchronize()
        top = torch.cuda.max_memory_allocated() - self.before
        torch.cuda.reset_peak_memory_stats()
        return top

    def outside(self):
        """Reserved bytes of this process, and what the driver says is used on the device by all."""
        free, total = torch.cuda.mem_get_info()
        return {"reserved": torch.cuda.max_memory_reserved(), "process": total - free}


class Storages:
    """The same by counting storages, for a CPU."""

    def __init__(self):
        self.live = tracing.LiveBytes()

    def __enter__(self):
        self.live.__enter__()
        return self

    def __exit__(self, *error):
        return self.live.__exit__(*error)

    def now(self):
        return sum(self.live.now.values())

    def peak(self):
        return sum(self.live.peak().values())

    def outside(self):
        return {}


def measure(model, **arguments):
    """{"phases": {phase: bytes}, "allocated": peak bytes} for planner.plan's arguments, on the profile's device.

    On a GPU also "reserved" and "process", bytes; the latter is what all processes use there. Phases as in
    planner.Plan, without generation; "load" is what is there after loading, not what loading took for a moment.
    Raises NbtoolsError for attention "flash" on a CPU.
    """
    arguments.pop("card", None)
    s, device = planner.setup(model, **arguments), profiles.current().device
    if s.attention == "flash" and device == "cpu":
        raise NbtoolsError("attention 'flash' runs on a GPU alone: measure 'sdpa' here.")
    phases = {}
    with Allocator() if device == "cuda" else Storages() as gauge, torch.device(device):
        net = real(s)
        copies = [torch.empty_like(p) for p in net.parameters()] if s.task in ("dpo", "ppo") and not s.targets else []
        value = torch.nn.Linear(s.config["hidden_size"], 1, bias=False) if s.task == "ppo" else None
        phases["load"] = gauge.now()
        own = [p for p in (*net.parameters(), *(value.parameters() if value else ())) if p.requires_grad]
        optimizer, step = _optimizer(s, own), tracing.Step(s, net, value)
        for _ in range(2):
            for _ in range(min(s.accumulation, 2)):
                _measure(s, step, gauge, phases, device)
            optimizer.step()
            phases["step"] = gauge.peak()
            optimizer.zero_grad()
        del copies
        return {"phases": phases, "allocated": max(phases.values())} | gauge.outside()


def _measure(s, step, gauge, phases, device):
    gauge.peak()
    with torch.autocast(device, torch.bfloat16) if s.precision == "mixed" else contextlib.nullcontext():
        if s.task in ("dpo", "ppo"):
            step.reference()
        found = step.forward()
        phases["forward"] = gauge.peak()
        loss = step.loss(found)
        phases["loss"] = gauge.peak()
        del found
    loss.backward()
    del loss
    phases["backward"] = gauge.peak()


def _optimizer(s, own):
    kinds = {"adamw-8bit": bnb.optim.AdamW8bit, "adamw-paged": bnb.optim.PagedAdamW8bit, "lion": bnb.optim.Lion}
    return kinds[s.optimizer](own, lr=1e-4) if s.optimizer in kinds else tracing._optimizer(s, own)


def real(s):
    """The model of a planner.Setup on torch's default device, random numbers in it."""
    device = torch.get_default_device()

    def four_bit(layer, compute_dtype):
        with torch.device(device):
            made = bnb.nn.Linear4bit(
                1,
                1,
                bias=layer.bias is not None,
                compute_dtype=compute_dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
            made.in_features, made.out_features = layer.in_features, layer.out_features
            whole = torch.randn(layer.weight.shape, dtype=compute_dtype) * 0.02
            kept = {"requires_grad": False, "compress_statistics": True, "quant_type": "nf4"}
            made.weight = bnb.nn.Params4bit(whole, **kept).to(device)
            if layer.bias is not None:
                made.bias = torch.nn.Parameter(
                    torch.zeros(layer.out_features, dtype=layer.bias.dtype), requires_grad=False
                )
        return made

    with mock.patch.object(tracing, "FourBit", four_bit):
        net = tracing.build(s)
    made = {}
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None and p.is_meta:
                if id(p) not in made:
                    numbers = torch.randn(p.shape, dtype=p.dtype, device=device) * 0.02
                    made[id(p)] = torch.nn.Parameter(numbers, requires_grad=p.requires_grad)
                module._parameters[name] = made[id(p)]
        for name, b in module._buffers.items():
            if b is not None and b.is_meta:
                module._buffers[name] = torch.zeros(b.shape, dtype=b.dtype, device=device)
    return net
