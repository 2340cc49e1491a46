"""Meters: peaks that nested blocks cannot lose, threads that always end, and saved bytes counted by hand.

The process and CUDA parts need no torch (a toy allocator stands in for torch.cuda); saved_bytes is skipped without it.
"""

import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from nbtools import meters, widgets
from nbtools.meters import Meter, live_meter, saved_bytes, size

pytestmark = pytest.mark.alone

MB = 2**20


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("nbt-meter")]


class ToyCuda:
    """torch.cuda as far as a meter asks it, over an allocator of one device that reserves blocks of 100 bytes."""

    def __init__(self):
        self.now = self.peak = self.blocks = self.blocks_peak = self.synced = 0
        self.initialized, self.broken = True, False

    def use(self, n):
        self.now += n
        self.blocks = max(self.blocks, -(-self.now // 100) * 100)  # memory is not given back to the device
        self.peak, self.blocks_peak = max(self.peak, self.now), max(self.blocks_peak, self.blocks)

    def reset_peak_memory_stats(self, device=None):
        self.peak, self.blocks_peak = self.now, self.blocks

    def synchronize(self, device=None):
        self.synced += 1
        if self.broken:
            raise RuntimeError("device-side assert")

    def is_initialized(self):
        return self.initialized

    def current_device(self):
        return 0

    def max_memory_allocated(self, device=None):
        return self.peak

    def max_memory_reserved(self, device=None):
        return self.blocks_peak

    def memory_allocated(self, device=None):
        return self.now

    def memory_reserved(self, device=None):
        return self.blocks

    def mem_get_info(self, device=None):
        return 1000 - self.blocks - 7, 1000  # another process has 7


@pytest.fixture
def cuda(monkeypatch):
    toy = ToyCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=toy))
    return toy


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_process_peak_and_start(no_cuda):
    with Meter("block") as m:
        block = mmap.mmap(-1, 120 * MB)  # new pages: a heap may have as many left over from earlier tests
        block[::4096] = b"x" * len(block[::4096])  # touch every page
        time.sleep(0.15)
        block.close()
        time.sleep(0.1)
    assert 110 * MB < m.peak_process - m.start_process < 200 * MB
    assert 0.25 <= m.seconds < 5
    assert (m.peak_allocated, m.peak_reserved, m.device_used) == (None, None, None)
    assert not threads()


def test_reading_the_process_is_cheap():
    m, cost = Meter(), []
    for _ in range(200):
        start = time.perf_counter()
        m._sample()
        cost.append(time.perf_counter() - start)
    assert min(cost) < 0.01 * meters.SAMPLE, "sampling must stay under 1 % of the time"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_errors_pass_through_and_leave_nothing(error, no_cuda):
    with pytest.raises(error), Meter() as outer, Meter() as inner:
        raise error
    assert not threads() and not meters._OPEN
    assert outer.seconds >= inner.seconds > 0


def test_a_real_interrupt(no_cuda):
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), Meter() as m:
        time.sleep(5)
    timer.join()
    assert m.seconds < 4 and not threads()


def test_nested_meters_keep_their_own_peaks(cuda):
    with Meter() as outer:
        cuda.use(500)
        cuda.use(-450)
        with Meter() as inner:
            cuda.use(120)
            cuda.use(-120)
        cuda.use(10)
    assert (inner.peak_allocated, inner.peak_reserved) == (170, 500)
    assert (outer.peak_allocated, outer.peak_reserved) == (500, 500)
    assert cuda.synced == 4, "both ends of both blocks wait for the device"


def test_meters_that_overlap_without_nesting(cuda):
    first, second = Meter(), Meter()
    first.__enter__()
    cuda.use(300)
    second.__enter__()  # resets the counter while the first is open
    cuda.use(-300)
    first.__exit__(None, None, None)
    cuda.use(50)
    second.__exit__(None, None, None)
    assert (first.peak_allocated, second.peak_allocated) == (300, 300)
    with Meter() as third:
        pass
    assert third.peak_allocated == 50, "what was freed before the block is not its peak"


def test_allocated_reserved_and_device_are_not_mixed(cuda):
    with Meter() as m:
        cuda.use(130)
    assert (m.peak_allocated, m.peak_reserved, m.device_used) == (130, 200, 207)


def test_cuda_that_starts_inside_the_block(cuda):
    cuda.initialized = False
    with Meter() as outer:
        cuda.initialized = True
        cuda.use(40)
        cuda.use(-40)
        with Meter() as inner:
            cuda.use(5)
    assert (outer.peak_allocated, inner.peak_allocated) == (40, 5)


def test_a_broken_device_does_not_hide_the_error(cuda):
    with pytest.raises(ValueError, match="the cause"), Meter() as m:
        cuda.broken = True
        raise ValueError("the cause")
    assert m.seconds is not None and not threads() and not meters._OPEN
    cuda.broken = False
    with pytest.raises(RuntimeError, match="device-side"), Meter():
        cuda.broken = True  # here it is the error
    assert not threads()


def test_words_and_record(cuda):
    with Meter("step") as m:
        cuda.use(130)
    text = str(m)
    assert "\n" not in text and text.startswith("step: ")
    assert "sampled" in text and "130 B allocated, 200 B reserved" in text and "207 B used" in text
    assert json.loads(json.dumps(m.as_dict()))["peak_reserved"] == 200
    assert [size(n) for n in (12, 2**10, 812 * MB, 1.25 * 2**30, 300 * 2**30)] == [
        "12 B", "1 KiB", "812 MiB", "1.25 GiB", "300 GiB"]  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """What would be displayed, in a front end of kind `shown.mode`."""
    seen = SimpleNamespace(mode="thread", items=[])
    monkeypatch.setattr(widgets, "mode", lambda: seen.mode)
    monkeypatch.setattr(widgets, "show", seen.items.append)
    return seen


def test_live_view_moves_by_itself(shown, cuda):
    with live_meter(period=0.05) as m:
        (view,) = shown.items
        cuda.use(130)
        time.sleep(0.2)
        first = view.value
        cuda.use(50)
        time.sleep(0.2)
        assert view.value != first
    assert "nbt-meter" in view._dom_classes and not threads()
    assert re.search(r'role="img" aria-label="process memory [\d.]+ [MG]iB, peak [\d.]+ [MG]iB, over \d s"', view.value)
    assert "CUDA allocated 180 B, peak 180 B; CUDA reserved 200 B, peak 200 B" in view.value
    assert view.value.count("<polyline") == 3 and "nan" not in view.value
    assert m.peak_allocated == 180


def test_live_view_where_threads_show_nothing(shown, no_cuda):
    shown.mode = "inline"
    with live_meter(period=1.0) as m:
        (view,) = shown.items
        time.sleep(0.2)
        assert view.value == "", "a thread drew, and nobody saw it"
        m.update()
        m.update()
        assert view.value and len(m._history) == 1, "one picture, the second call was too early"
        time.sleep(1.1)
        m.update()
        assert len(m._history) == 2


def test_live_view_without_front_end_leaves_a_picture(shown, no_cuda):
    shown.mode = "headless"
    with pytest.raises(ValueError), live_meter():
        assert not shown.items
        raise ValueError
    (text,) = shown.items
    assert "<svg" in text and "nbt-meter" in text


# Out of memory

LIMITED = """
import resource
import torch
from nbtools import meters

torch.set_num_threads(1)
data = int(open("/proc/self/statm").read().split()[5]) * 4096
resource.setrlimit(resource.RLIMIT_DATA, (data + 2**30,) * 2)

def train():
    kept = [torch.ones(150 * 2**18) for _ in range(4)]
    return torch.cat(kept)

for _ in range(2):
    try:
        with meters.Meter("step"):
            train()
    except meters.OutOfMemory as error:
        print(error)
    assert meters.room() > 950 * 2**20, meters.room()
    assert torch.ones(900 * 2**18).sum() == 900 * 2**18
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_out_of_memory_is_one_sentence_and_gives_the_memory_back(torch):
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = (
        r"Out of memory: 600 MiB more were asked for, 4\d\d MiB free in the machine's memory; take a smaller batch, .*"
    )
    assert [bool(re.fullmatch(words, line)) for line in done.stdout.splitlines()] == [True, True], done.stdout


class OutOfMemoryError(RuntimeError):
    """torch's own has this name."""


CUDA_TEXT = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.25 GiB"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfMemoryError(CUDA_TEXT), "20.5 GiB more were asked for, 2 KiB free on the GPU"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
            "4 KiB more were",
        ),
        (
            MemoryError("Unable to allocate 8.00 TiB for an array"),
            "8192 GiB more were asked for, 2 KiB free in the mach",
        ),
        (MemoryError(), "more was asked for"),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
            "more was asked for, 2 KiB free on the GPU",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "free on the GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "free on the GPU"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("tried to allocate 7 bytes of trouble"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_counts_as_out_of_memory(error, words):
    found = meters.out_of_memory(error, free=2048)
    assert (words in str(found) and found is meters.out_of_memory(found)) if words else found is None


def test_a_gpu_has_room_in_what_the_allocator_keeps(cuda):
    cuda.use(130)
    cuda.use(-100)  # 200 stay reserved
    assert meters.room() == 1000 - 200 - 7 + 200 - 30
    assert meters.room(gpu=False) > 2**20, "the machine's own"
    assert " 970 B free on" not in str(meters.out_of_memory(MemoryError())), "numpy's error is not about the GPU"


def test_gpu_memory_of_known_tensors_is_read_back_exactly(torch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    mib, before = 2**20, torch.cuda.memory_allocated()
    with Meter("outer") as outer:
        kept = torch.empty(64 * mib, dtype=torch.uint8, device="cuda")
        with Meter("inner") as inner:
            more = torch.empty(32 * mib, dtype=torch.uint8, device="cuda")
            del more
        last = torch.empty(16 * mib, dtype=torch.uint8, device="cuda")
        with Meter("later") as later:
            del kept
    peaks = [m.peak_allocated - before for m in (outer, inner, later)]
    assert peaks == [96 * mib, 96 * mib, 80 * mib] and len(last) == 16 * mib


# Parts


def test_parts_are_the_bytes_of_what_is_held(torch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    optimizer = torch.optim.Adam(model.parameters())
    assert meters.parts(model, optimizer) == {"parameters": 4 * (9 + 3 + 3 + 12) + 8, "gradients": 0, "optimizer": 0}
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    held = meters.parts(model, optimizer)
    assert held["gradients"] == 4 * (9 + 3 + 3 + 6) and held["optimizer"] == 2 * held["gradients"] + 5 * 4


def test_the_bar_tells_parts_from_the_rest(shown, cuda):
    layer = SimpleNamespace(parameters=lambda: [held(120)], buffers=list)
    with Meter("step", live=True, period=0, model=layer) as m:
        (view,) = shown.items
        cuda.use(200)
        m.update()
        assert (
            "parameters 120 B" in view.value and "activations and the rest 80 B" in view.value and "(now)" in view.value
        )
        cuda.use(-150)  # less than the parameters alone
        m.update()
        assert "activations and the rest 0 B" in view.value
    assert "activations and the rest 80 B (at the highest moment drawn)" in re.sub("<.*?>", "", view.value)
    assert view.value.count("<rect") == 1 + 4 + 2


def held(count):
    """As much of a tensor of `count` bytes as parts asks for."""
    storage = SimpleNamespace(_cdata=count, nbytes=lambda: count)
    return SimpleNamespace(grad=None, untyped_storage=lambda: storage)


# saved_bytes: hidden layer h, batch B, fp32


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch


def test_the_bar_knows_gradients_by_hooks_and_no_other_thread_looks_at_them(torch, shown, monkeypatch):
    model, asked = torch.nn.Linear(8, 8), []
    optimizer, parts = torch.optim.SGD(model.parameters(), lr=0.1), meters.parts

    def spied(model, optimizer=None, gradients=None):
        asked.append((threading.current_thread() is threading.main_thread(), gradients))
        return parts(model, optimizer, gradients)

    monkeypatch.setattr(meters, "parts", spied)
    with Meter("step", live=True, period=0, model=model, optimizer=optimizer) as m:
        (view,) = shown.items
        model(torch.ones(2, 8)).sum().backward()
        m.update()
        assert "gradients 288 B" in view.value
        optimizer.step()
        m.update()
        assert "gradients 0 B" in view.value
        time.sleep(0.2)
    assert any(not main for main, _ in asked), "the sampling thread has drawn"
    assert all(main or gradients is not None for main, gradients in asked)
    before = len(m._gradients)
    model(torch.ones(2, 8)).sum().backward()
    assert len(m._gradients) == before, "the hooks are gone"


B, D, H, C = 5, 7, 11, 3


def mlp(torch):
    return torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.ReLU(), torch.nn.Linear(H, C))


def test_mlp_by_hand(torch):
    """Linear saves its input (the batch: excluded), ReLU its output, the second Linear the same storage again."""
    model, x = mlp(torch), torch.randn(B, D)
    assert saved_bytes(model, x) == B * H * 4
    assert saved_bytes(model, x, breakdown=True) == {"1": B * H * 4}
    assert saved_bytes(model.to("meta"), x.to("meta")) == B * H * 4, "no device is needed to count"


def test_loss_by_hand(torch):
    """Cross-entropy saves the log-probabilities (B, C) and the sum of class weights, one number."""
    batch = {"x": torch.randn(B, D), "y": torch.zeros(B, dtype=torch.long)}
    loss = saved_bytes(mlp(torch), batch, lambda m, b: torch.nn.functional.cross_entropy(m(b["x"]), b["y"]))
    assert loss == B * H * 4 + B * C * 4 + 4


def test_frozen_layer_does_not_save_its_input(torch):
    """The gradient of the input needs the weight only; the gradient of the weight needs the input."""
    model = torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.Linear(H, H), torch.nn.Linear(H, C))
    x = torch.randn(B, D)
    assert saved_bytes(model, x) == 2 * B * H * 4
    model[1].requires_grad_(False)
    assert saved_bytes(model, x) == B * H * 4
    model[0].requires_grad_(False)
    assert saved_bytes(model, x) == B * H * 4, "the head alone still needs its input"
    model.requires_grad_(False)
    assert saved_bytes(model, x) == 0


def test_no_gradient_saves_nothing(torch):
    with torch.no_grad():
        assert saved_bytes(mlp(torch), torch.randn(B, D)) == 0


def test_dropout_saves_its_mask_in_train_mode_only(torch):
    model, x = torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.Dropout(0.5)), torch.randn(B, D)
    assert saved_bytes(model.eval(), x) == 0
    assert saved_bytes(model.train(), x) in (B * H, B * H * 4), "a mask of bytes or of floats, by device"


def test_batchnorm_counts_batch_statistics_not_buffers(torch):
    model, x = torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.BatchNorm1d(H)), torch.randn(B, D)
    assert saved_bytes(model.train(), x) == B * H * 4 + 2 * H * 4  # its input, mean and inverse deviation
    assert saved_bytes(model.eval(), x) == B * H * 4  # running statistics are buffers


def test_views_and_repeats_count_once(torch):
    weight = torch.ones(H, requires_grad=True)

    def forward(model, x):
        y = x * 2  # one storage of B * H
        return (y[0] * weight).sum() + (y[1:].flatten() * weight.repeat(B - 1)).sum() + (y * weight).sum()

    total = saved_bytes(torch.nn.Identity(), torch.randn(B, H), forward)
    # y whole and once, though three views of it are saved; x needs no gradient, so the weight is not saved
    assert total == B * H * 4


def test_what_is_dropped_during_the_forward_does_not_count(torch):
    def forward(model, x):
        model(x).exp().exp().sum()  # its graph dies here
        return model(x)

    assert saved_bytes(mlp(torch), torch.randn(B, D), forward) == B * H * 4


def test_a_forward_that_differentiates_still_works(torch):
    model, x, found = mlp(torch), torch.randn(B, D), []

    def forward(model, x):
        loss = model(x).exp().sum()
        found.append(torch.autograd.grad(loss, model[0].weight)[0])
        return loss

    saved_bytes(model, x, forward)
    forward(model, x)
    assert torch.equal(*found)


def test_checkpointing_saves_less(torch):
    from torch.utils.checkpoint import checkpoint

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.on = torch.nn.Linear(D, H), False
            self.rest = torch.nn.Sequential(*[block() for _ in range(3)])

        def forward(self, x):
            x = self.first(x)
            return checkpoint(self.rest, x, use_reentrant=False) if self.on else self.rest(x)

    def block():
        return torch.nn.Sequential(torch.nn.Linear(H, H), torch.nn.ReLU())

    model, x = Net(), torch.randn(B, D)
    assert saved_bytes(model, x) == 4 * B * H * 4  # the output of the first layer and of three ReLUs
    model.on = True
    assert saved_bytes(model, x) == B * H * 4  # what goes into the checkpointed part


def test_breakdown_adds_up_and_hooks_are_gone(torch):
    from torch.nn.modules import module

    model, x = mlp(torch), torch.randn(B, D)
    rows = saved_bytes(torch.nn.Sequential(model, torch.nn.Tanh()), (x,), breakdown=True)
    assert rows == {"0.1": B * H * 4, "1": B * C * 4}
    with pytest.raises(RuntimeError):
        saved_bytes(model, torch.randn(B, D + 1))
    assert not module._global_forward_hooks and not module._global_forward_pre_hooks
    assert torch.isfinite(model(x)).all()


def test_inputs_as_mapping(torch):
    from collections import UserDict

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(torch)

        def forward(self, x):
            return self.inner(x)

    assert saved_bytes(Net(), UserDict(x=torch.randn(B, D))) == B * H * 4
    assert saved_bytes(Net(), [torch.randn(B, D)]) == B * H * 4


def test_optimizer_bytes_are_two_floats_a_trainable_parameter():
    """And AdamW's step counter, one float a tensor; nothing before the first step."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    assert meters.optimizer_bytes(optimizer) == 0
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert meters.optimizer_bytes(optimizer) == 8 * 20 + 4 * 2
