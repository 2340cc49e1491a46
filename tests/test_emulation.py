"""16-bit products in float32: the numbers of 16-bit units, float32 untouched, nothing above the kernels new."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbtools import emulation, meters

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def emulated():
    """Products of both types in float32, and afterwards as they were."""
    running = emulation._library is not None
    emulation.stop()
    emulation.start({*HALVES})
    yield
    emulation.stop()
    if running:
        emulation.start()


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "mm": lambda t: torch.mm(t(numbers(7, 33)), t(numbers(33, 5))),
    "mm, turned": lambda t: torch.mm(t(numbers(33, 7)).T, t(numbers(5, 33)).T),
    "addmm": lambda t: torch.addmm(t(numbers(5)), t(numbers(7, 33)), t(numbers(33, 5))),
    "addmm, scaled": lambda t: torch.addmm(t(numbers(7, 5)), t(numbers(7, 9)), t(numbers(9, 5)), beta=2, alpha=0.5),
    "bmm": lambda t: torch.bmm(t(numbers(3, 4, 9)), t(numbers(3, 9, 2))),
    "baddbmm": lambda t: torch.baddbmm(t(numbers(3, 4, 2)), t(numbers(3, 4, 9)), t(numbers(3, 9, 2)), beta=0, alpha=3),
    "linear on three axes": lambda t: nn.functional.linear(t(numbers(2, 3, 8)), t(numbers(4, 8)), t(numbers(4))),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_a_product_is_float32_s_rounded_once(emulated, case, dtype):
    wide = CASES[case](lambda x: x.to(dtype).float())
    found = CASES[case](lambda x: x.to(dtype))
    assert found.dtype == dtype and torch.equal(found, wide.to(dtype))


@pytest.mark.parametrize("case", CASES)
def test_torch_s_own_products_are_no_further_than_rounding(emulated, case):
    ours = CASES[case](lambda x: x.bfloat16()).float()
    emulation.stop()
    torch.testing.assert_close(ours, CASES[case](lambda x: x.bfloat16()).float(), rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_products_are_untouched(dtype, emulated):
    ours = {case: run(lambda x: x.to(dtype)) for case, run in CASES.items()}
    emulation.stop()
    assert all(torch.equal(ours[case], run(lambda x: x.to(dtype))) for case, run in CASES.items())


def test_the_kernel_itself_gets_float32(monkeypatch):
    seen = []

    def call_boxed(keys, *tensors, **scalars):
        seen.append({t.dtype for t in tensors})
        return torch.mm(*tensors)

    product = emulation._rounded(SimpleNamespace(call_boxed=call_boxed), {torch.bfloat16})
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert product(None, numbers(3, 4).to(dtype), numbers(4, 2).to(dtype)).dtype == dtype
    assert seen == [{torch.float32}, {torch.float16}, {torch.float32}]


def test_all_products_are_taken_over_and_given_back(emulated, monkeypatch):
    emulation.stop()
    plain = {case: run(lambda x: x.bfloat16()) for case, run in CASES.items()}
    monkeypatch.setattr(emulation, "_rounded", lambda kernel, types: lambda keys, *t, **s: torch.full((1,), 7.0))
    emulation.start({torch.bfloat16})
    for case in ("mm", "addmm", "bmm", "baddbmm"):
        assert CASES[case](lambda x: x.bfloat16()).tolist() == [7.0], case
    emulation.stop()
    assert all(torch.equal(plain[case], run(lambda x: x.bfloat16())) for case, run in CASES.items())


def seen_and_kept():
    """(operations with their types, bytes kept, gradients' types) of a small net's step under autocast."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            heard.append((func._schema.name, getattr(out, "dtype", None)))
            return out

    heard = []

    def run(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    kept = meters.saved_bytes(net, numbers(6, 8), run)
    with Listen():
        run(net, numbers(6, 8)).float().sum().backward()
    return heard, kept, {p.grad.dtype for p in net.parameters()}


def test_autograd_autocast_and_listeners_notice_nothing(emulated):
    ours = seen_and_kept()
    emulation.stop()
    assert ours == seen_and_kept() and ("aten::addmm", torch.bfloat16) in ours[0]


def test_only_what_is_lacking_is_emulated(emulated, monkeypatch):
    emulation.stop()
    asked = {"bf16": True, "fp16": True}
    for kind in asked:
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", lambda kind=kind: asked[kind])
    assert emulation.start() == "" and emulation._library is None and emulation.lacking() == set()
    asked["fp16"] = False
    assert emulation.start() == "" and emulation.lacking() == {torch.float16} and emulation._library
    emulation.stop()
    asked["bf16"] = False
    assert emulation.start() == emulation.start() == emulation.SENTENCE and emulation.lacking() == {*HALVES}
