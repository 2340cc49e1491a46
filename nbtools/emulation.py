"""16-bit matrix products on processors without units for them: computed in float32, the result rounded once.

Design choices
- torch is fast in bfloat16 and float16 only where oneDNN has kernels for them. On other processors, most laptops among
  them, the products of a backward pass take tens of times as long as in float32.
- Units for 16 bits multiply such numbers, add up in 32 bits and round the sum. So does this: the same numbers, up to
  the order of adding.
- The CPU's kernels are replaced, below autograd and autocast: which operation runs in which type, and what is kept for
  backward, stays as it is. Where oneDNN has kernels nothing is touched.
"""

import torch

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
SENTENCE = "this processor has no units for 16-bit products: they run in float32 here, and are rounded"
_library = None


def lacking():
    """The 16-bit types that this processor's products are slow in."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return {dtype for dtype, ask in supported.items() if not ask()}


def start(types=None):
    """Compute products of `types` (default: those that are lacking) in float32 from here on, in this process.

    Returns a sentence for people, "" where nothing is to be done. Called again it changes nothing.
    """
    global _library
    types = lacking() if types is None else types
    if types and _library is None:
        _library = torch.library.Library("aten", "IMPL")
        for name in PRODUCTS:
            _library.impl(
                name, _rounded(torch.library.get_kernel(f"aten::{name}", "CPU"), types), "CPU", with_keyset=True
            )
    return SENTENCE if torch.bfloat16 in types else ""


def stop():
    """Give the kernels back."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _rounded(kernel, types):
    def product(keys, *tensors, **scalars):
        dtype = tensors[-1].dtype
        if dtype not in types:
            return kernel.call_boxed(keys, *tensors, **scalars)
        return kernel.call_boxed(keys, *(t.float() for t in tensors), **scalars).to(dtype)

    return product
