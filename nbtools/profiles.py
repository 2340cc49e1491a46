"""What this machine is and the budget that follows: one place decides device, precision and size.

Design choices
- Two profiles, `cpu` and `gpu`. The environment variable NBTOOLS_PROFILE overrides what is found; asking for `gpu`
  without a GPU is an error, never a silent fall-back.
- bfloat16 on CUDA is decided by compute capability >= (8, 0). `torch.cuda.is_bf16_supported()` alone answers True on a
  T4, where every product is emulated.
- On a CPU bfloat16 is used where the processor multiplies it in hardware (AMX or AVX512-BF16); elsewhere float32.
- Apple's MPS is reported, and not used: the lessons' numbers were never checked on it.
"""

import os
import platform
from dataclasses import dataclass
from functools import lru_cache

import psutil

from .errors import NbtoolsError

GIB = 2**30


@dataclass(frozen=True)
class Profile:
    """The decision: `name` is cpu or gpu, `dtype` the compute type under autocast, memory in GiB."""

    name: str
    device: str
    dtype: str
    cores: int
    memory_gb: float
    gpu_memory_gb: float | None
    processor: str
    reasons: tuple[str, ...]

    @property
    def autocast(self):
        """True where a 16-bit type is multiplied in hardware."""
        return self.dtype != "float32"

    def describe(self):
        """A few lines for people: what was decided and why."""
        gpu = f", {self.gpu_memory_gb:.0f} GiB on the GPU" if self.gpu_memory_gb else ""
        line = (
            f"profile {self.name}: device {self.device}, compute type {self.dtype}, {self.cores} cores, "
            f"{self.memory_gb:.0f} GiB memory{gpu}"
        )
        return "\n".join([line, *(f"  because {reason}" for reason in self.reasons)])


def cuda_dtype(capability):
    """Compute type of a CUDA device from its (major, minor) capability, with the reason."""
    label = ".".join(map(str, capability))
    if capability >= (8, 0):
        return "bfloat16", f"compute capability {label} multiplies bfloat16 in hardware"
    why = f"compute capability {label} is under 8.0: bfloat16 would be emulated, so float16 (with a loss scaler)"
    return "float16", why


def cpu_dtype():
    """Compute type of the processor, with the reason."""
    import torch

    for probe, label in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        if getattr(torch.cpu, probe, lambda: False)():
            return "bfloat16", f"the processor multiplies bfloat16 in hardware ({label})"
    return "float32", "this processor has no bfloat16 arithmetic, so 16 bit would be slower, not faster"


@lru_cache(maxsize=1)
def current():
    """The Profile of this process; decided once."""
    return decide(os.environ.get("NBTOOLS_PROFILE", ""))


def decide(wanted=""):
    """Decide a Profile; `wanted` is "", "cpu" or "gpu". Raises NbtoolsError for another, or for gpu without one."""
    import torch

    if wanted not in ("", "cpu", "gpu"):
        raise NbtoolsError(f"NBTOOLS_PROFILE is {wanted!r}; set it to cpu or gpu, or unset it to have it found out.")
    found = torch.cuda.is_available()
    if wanted == "gpu" and not found:
        raise NbtoolsError(
            "NBTOOLS_PROFILE asks for gpu, but torch finds no CUDA device; set it to cpu, or install a CUDA driver."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / GIB
    if found and wanted != "cpu":
        dtype, why = cuda_dtype(torch.cuda.get_device_capability())
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        reasons = ("torch finds a CUDA device", why)
        return Profile("gpu", "cuda", dtype, cores, memory, total, torch.cuda.get_device_name(0), reasons)
    reasons = ["NBTOOLS_PROFILE says so" if wanted else "torch finds no CUDA device"]
    dtype, why = cpu_dtype()
    if torch.backends.mps.is_available():
        reasons.append("the Apple GPU is left alone: these lessons were not checked on it")
    processor = platform.processor() or platform.machine()
    return Profile("cpu", "cpu", dtype, cores, memory, None, processor, (*reasons, why))
