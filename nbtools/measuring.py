"""A real training step on real memory, phase by phase: what the planner's formulas are held against.

Design choices
- Model, adapter and step are those that `tracing` builds, with numbers in them; NF4 layers are bitsandbytes' own.
- On a GPU torch's allocator is asked. A CPU has none, so there the storages are counted as in a trace. That shows that
  real tensors take what the formulas say; it says nothing about a GPU.
"""

import gc
from unittest import mock

import bitsandbytes as bnb
import torch

from . import planner, profiles, tracing
from .errors import NbtoolsError


class Allocator:
    """The CUDA allocator's own peak, where a trace has LiveBytes; it knows no parts.

    cuBLAS keeps a workspace a thread between runs: they are given back first, so each run makes its own.
    """

    def __enter__(self):
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        self.before, self.reserved = torch.cuda.memory_allocated(), 0
        torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *error):
        return None

    def move(self, part, tensors=None):
        """Nothing: LiveBytes keeps parts apart."""

    def peak(self):
        """{"all": bytes at the highest moment since the last call, beyond what was there before}."""
        torch.cuda.synchronize()
        top = torch.cuda.max_memory_allocated() - self.before
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        torch.cuda.reset_peak_memory_stats()
        return {"all": top}

    def outside(self):
        """Reserved bytes at their highest, and with them what else is used on the device by all (the context)."""
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        return {"reserved": self.reserved, "process": self.reserved + context, "context": context, "total": total}


def measure(model, **arguments):
    """{"phases": {phase: bytes}, "allocated": peak bytes} for planner.plan's arguments, on the profile's device.

    On a GPU also "reserved", "process", "context" and "total", bytes; the context is what else all processes use there,
    after the steps, for kernels are loaded as they are needed. Phases as in planner.Plan, without generation; "load" is
    what is there after loading, not what loading took for a moment.
    Raises NbtoolsError for attention "flash" on a CPU.
    """
    arguments.pop("card", None)
    s, device = planner.setup(model, **arguments), profiles.current().device
    if s.attention == "flash" and device == "cpu":
        raise NbtoolsError("attention 'flash' runs on a GPU alone: measure 'sdpa' here.")
    with Allocator() if device == "cuda" else tracing.LiveBytes() as gauge, torch.device(device), tracing.heads(s):
        found = tracing.two_steps(s, real(s), gauge, device)
        outside = gauge.outside() if device == "cuda" else {}
    phases = {phase: sum(parts.values()) for phase, parts in found.items()}
    return {"phases": phases, "allocated": max(phases.values())} | outside


def real(s):
    """The model of a planner.Setup on torch's default device, random numbers in it."""
    device = torch.get_default_device()

    def four_bit(layer, compute_dtype, double):
        with torch.device(device):
            made = bnb.nn.Linear4bit(
                1,
                1,
                bias=layer.bias is not None,
                compute_dtype=compute_dtype,
                compress_statistics=double,
                quant_type="nf4",
            )
            made.in_features, made.out_features = layer.in_features, layer.out_features
            whole = torch.randn(layer.weight.shape, dtype=compute_dtype) * 0.02
            kept = {"requires_grad": False, "compress_statistics": double, "quant_type": "nf4"}
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
