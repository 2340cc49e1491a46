"""Time and memory of a block of code, measured where the reader sits.

Four kinds of memory are told apart, never added up or mixed:
- allocated: bytes that torch's CUDA allocator has handed out to tensors; its own counter, exact.
- reserved: bytes that this allocator took from the device, in use or not; its own counter, exact.
- device used: what all processes together hold on the device at the end of the block, by the driver's count.
- process: resident memory of this process, read about every 50 ms by a thread. Sampled: a shorter peak can be missed.
  What the process held before the block is in it, so the value at the start is kept beside the peak.

The allocator has one peak counter per device, and a meter that starts resets it. So it first hands the old peak to all
open meters: nested ones, and those of other threads, keep theirs. What else runs on the device in the block counts too.
A meter creates no CUDA context (that alone takes hundreds of MiB): where none is, the CUDA numbers are None.

Out of memory: a meter's block raises OutOfMemory, one sentence, and lets go of what the failed code held. The names of
the cell itself stay, and so do their tensors.
"""

import functools
import html
import os
import re
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping

import psutil

from .errors import NbtoolsError

SAMPLE = 0.05  # seconds between two readings of the process's memory: waking the thread is what costs
_OPEN = weakref.WeakSet()  # meters inside their block
_LOCK = threading.RLock()  # guards _OPEN and the peaks that meters hand to each other


def size(n):
    """Bytes in words: `812 MiB`, `1.25 GiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n >= 2**power:
            return f"{n / 2**power:{'.0f' if n >= 100 * 2**power else '.3g'}} {unit}"
    return f"{n} B"


def _cuda():
    """torch.cuda where this process has a CUDA context, else None; imports nothing and creates no context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # another thread may be importing torch just now
    return cuda if hasattr(cuda, "is_initialized") and cuda.is_initialized() else None


def _fold(cuda):
    """Bring the allocator's peaks into every open meter, before somebody resets or reads them."""
    for meter in list(_OPEN):
        meter.peak_allocated = max(meter.peak_allocated or 0, cuda.max_memory_allocated(meter._device))
        meter.peak_reserved = max(meter.peak_reserved or 0, cuda.max_memory_reserved(meter._device))


def _resident():
    """Resident bytes of this process; on Linux read from an open file, at a fraction of psutil's price."""
    if _STATM is None:
        return psutil.Process().memory_info().rss
    return int(os.pread(_STATM(), 99, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _open_statm(pid):
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY)


_STATM = (lambda: _open_statm(os.getpid())) if os.path.exists("/proc/self/statm") else None  # anew after a fork


class OutOfMemory(NbtoolsError):
    """What was asked for, what was free, and what to turn."""


ASKED = r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)|Unable to allocate ([\d.]+) (bytes|[KMGT]iB)"
DRIVER = r"CUDA error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
WAYS = "take a smaller batch, shorter rows, a smaller model or checkpointing (`nbtools plan` says what fits)"


def room(gpu=True):
    """Bytes that this process may still take: of the CUDA device where it has a context and gpu, else of the machine.

    A limit that the system sets on the process's data (`ulimit -d`) counts too; a container's limit is not seen.
    """
    cuda = _cuda()
    if cuda and gpu:
        free, _ = cuda.mem_get_info(cuda.current_device())
        return free + cuda.memory_reserved(cuda.current_device()) - cuda.memory_allocated(cuda.current_device())
    free = psutil.virtual_memory().available
    if _STATM is None:
        return free
    import resource

    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit == resource.RLIM_INFINITY:
        return free
    return max(0, min(free, limit - int(os.pread(_STATM(), 99, 0).split()[5]) * os.sysconf("SC_PAGE_SIZE")))


def out_of_memory(error, free=None):
    """An OutOfMemory for an error of torch or numpy that says there is no memory left; None for any other error.

    free: bytes that were free; without it they are looked up now. Sources of the texts: torch's CUDA and CPU
    allocators, its driver and cuBLAS, numpy; an error that names no size is one all the same if it is a MemoryError.
    """
    if isinstance(error, OutOfMemory):
        return error
    asked = re.search(ASKED, str(error))
    cuda = type(error).__name__ == "OutOfMemoryError" or bool(re.search(DRIVER, str(error)))
    if not cuda and not isinstance(error, MemoryError) and not (asked and "Allocator" in str(error)):
        return None
    number, unit = (asked[1] or asked[3], asked[2] or asked[4]) if asked else (None, None)
    wanted = f"{size(round(float(number) * UNITS[unit]))} more were" if asked else "more was"
    where = "on the GPU" if cuda else "in the machine's memory"
    return OutOfMemory(
        f"Out of memory: {wanted} asked for, {size(room(cuda) if free is None else free)} free {where}; {WAYS}."
    )


def let_go(error):
    """Drop what the frames of a failed call hold, so that its tensors are freed; give back what CUDA's cache keeps."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    if _cuda():
        _cuda().empty_cache()


def parts(model, optimizer=None, gradients=None):
    """{"parameters", "gradients", "optimizer"}: bytes of the storages that a model and its optimizer hold now.

    Exact on any device. A storage that several tensors share, such as tied embeddings, counts once; buffers count as
    parameters. Activations are not in it: see `saved_bytes`. gradients: their bytes where they are known; without it
    they are looked up, which only the thread that trains may do, and not while it is in backward.
    """
    tensors = [*model.parameters(), *model.buffers()]
    grads = [p.grad for p in model.parameters() if p.grad is not None] if gradients is None else []
    states = [t for state in list(optimizer.state.values()) for t in list(state.values())] if optimizer else []
    states = [t for t in states if hasattr(t, "untyped_storage")]
    found = {
        part: sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}.values())
        for part, held in (("parameters", tensors), ("gradients", grads), ("optimizer", states))
    }
    return found if gradients is None else found | {"gradients": gradients}


class Meter:
    """`with Meter("step") as m:` measures the block. Then `print(m)`, or `m.seconds` and, in bytes, `m.start_process`,
    `m.peak_process` and (None without a CUDA context) `m.peak_allocated`, `m.peak_reserved`, `m.device_used`.

    live=True shows memory while it runs, `period` seconds a refresh (or give an ipywidgets.HTML to draw into). Where
    threads can show nothing (Colab) call `m.update()` now and then from the main thread; a call too early does nothing.
    With a model, and its optimizer, a bar tells parameters, gradients and optimizer (exact) from activations and the
    rest: on CUDA what else the allocator has handed out, on a CPU what else the process has grown by. Gradients count
    from when backward has made them until the optimizer's step is over: hooks tell, for another thread must not look.
    Where memory runs out in the block it raises OutOfMemory.
    """

    def __init__(self, name="", live=False, period=0.6, model=None, optimizer=None):
        self.name, self.period, self._live, self._of = name, period, live, (model, optimizer)
        self._clear()

    def _clear(self):
        self.seconds = self.peak_allocated = self.peak_reserved = self.device_used = None
        self.start_process = self.peak_process = _resident()
        self._device = self._thread = self._widget = self._mode = None
        self._stop, self._history, self._drawn = threading.Event(), [], 0.0
        self._hooks, self._gradients = [], {}
        self._at_start = sum(self._parts().values())

    def _parts(self, gradients=None):
        return parts(*self._of, gradients) if self._of[0] is not None else {}

    def _listen(self):
        """Note each gradient's bytes as backward makes it, and forget them after the optimizer's step."""
        model, optimizer = self._of
        for p in model.parameters() if model is not None else ():
            if p.grad is not None:
                self._gradients[id(p)] = p.grad.untyped_storage().nbytes()
            if getattr(p, "requires_grad", False):
                self._hooks.append(p.register_post_accumulate_grad_hook(self._made))
        if optimizer is not None and hasattr(optimizer, "register_step_post_hook"):
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._gradients.clear()))

    def _made(self, p):
        self._gradients[id(p)] = p.grad.untyped_storage().nbytes()

    def __enter__(self):
        self._clear()
        if self._live:
            self._listen()
            self._open_view()
        cuda = _cuda()
        if cuda:
            self._device = cuda.current_device()  # torch keeps it per thread: the sampling thread must be told
            cuda.synchronize(self._device)
        with _LOCK:
            if cuda:
                _fold(cuda)
                cuda.reset_peak_memory_stats(self._device)
            _OPEN.add(self)
        self._thread = threading.Thread(target=self._watch, name=f"nbt-meter {self.name}", daemon=True)
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self._stop.set()
        try:
            self._finish(_cuda())
        except Exception:
            if kind is None:  # a broken device must not hide the error that broke it
                raise
        finally:
            with _LOCK:
                _OPEN.discard(self)
            self._thread.join()
            while self._hooks:
                self._hooks.pop().remove()
            self._sample()
            if self._live:
                self._draw(final=True)
        if told := out_of_memory(error):
            let_go(error)
            raise told from None

    def _finish(self, cuda):
        try:
            if cuda:
                cuda.synchronize(self._device)
        finally:
            self.seconds = time.perf_counter() - self._started
        if cuda:
            with _LOCK:
                _fold(cuda)
            free, total = cuda.mem_get_info(self._device)  # the driver's count for the whole device: NVML is not needed
            self.device_used = total - free

    def _sample(self):
        now = _resident()
        self.peak_process = max(self.peak_process, now)
        return now

    def _watch(self):
        while not self._stop.wait(SAMPLE):
            self._sample()
            if self._live and self._mode != "inline":  # there only the main thread's update() shows
                self._draw()

    def update(self):
        """Refresh the live view from this thread if `period` has passed."""
        if self._live and self._thread is not None:
            self._draw()

    def _open_view(self):
        from . import widgets

        self._mode = widgets.mode()
        if self._live is not True:
            self._widget = self._live
        elif self._mode != "headless":
            self._widget = widgets.html_widget("nbt-meter")
            widgets.show(self._widget)

    def _draw(self, final=False):
        """One more point and one more picture, not oftener than every `period` seconds."""
        with _LOCK:
            if not final and time.monotonic() - self._drawn < self.period:
                return
            self._drawn, cuda, point = time.monotonic(), _cuda(), {"process": self._sample()}
            if cuda:
                _fold(cuda)
                point["allocated"] = cuda.memory_allocated(self._device)
                point["reserved"] = cuda.memory_reserved(self._device)
            if known := self._parts(None if final else sum(list(self._gradients.values()))):
                new = point.get("allocated", point["process"] - self.start_process + self._at_start)
                point["parts"] = known | {"activations and the rest": max(0, new - sum(known.values()))}
        self._history = [*self._history, point][-120:]
        if self._widget is not None:
            self._widget.value = self.to_html()
        elif final:
            from . import widgets

            widgets.show(f'<div class="nbt-meter">{self.to_html()}</div>')

    def to_html(self):
        """The live view: a small curve and a line of text for each kind of memory."""
        seconds = time.perf_counter() - self._started if self.seconds is None else self.seconds
        rows = _bar([point["parts"] for point in self._history if "parts" in point], self.seconds is not None)
        rows += _row("", self._history, {"process": self.peak_process}, seconds)
        if self.peak_reserved is not None:
            peaks = {"allocated": self.peak_allocated, "reserved": self.peak_reserved}
            rows += _row("CUDA ", self._history, peaks, seconds)
        return rows

    def as_dict(self):
        """All numbers, bytes and seconds, for a record."""
        keys = ("name", "seconds", "start_process", "peak_process", "peak_allocated", "peak_reserved", "device_used")
        return {key: getattr(self, key) for key in keys}

    def __str__(self):
        took = "still running" if self.seconds is None else f"{self.seconds:.3g} s"
        parts = [took, f"process peak {size(self.peak_process)} (sampled; {size(self.start_process)} at the start)"]
        if self.peak_allocated is not None:
            parts.append(f"CUDA peak {size(self.peak_allocated)} allocated, {size(self.peak_reserved)} reserved")
        if self.device_used is not None:
            parts.append(f"{size(self.device_used)} used on the device by all")
        return f"{self.name or 'block'}: " + "; ".join(parts)


def live_meter(period=0.6):
    """`with live_meter() as m:` shows memory while the block runs, refreshed every `period` seconds."""
    return Meter("live", live=True, period=period)


def _bar(history, over):
    """A stacked bar of what a model holds: now, and once the block is over at the highest of the moments drawn."""
    if not history:
        return ""
    totals = [sum(point.values()) for point in history]
    shown = history[totals.index(max(totals))] if over else history[-1]
    width, left, bars, colours = 220, 0.0, "", ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for held, colour in zip(shown.values(), colours, strict=True):
        wide = width * held / max(1, *totals)
        bars += f'<rect x="{left:.1f}" width="{wide:.1f}" height="14" fill="{colour}" stroke="#fff"/>'
        left += wide
    marks = [f'<span style="color:{c}" aria-hidden="true">&#9632;</span>' for c in colours]
    text = [f"{part} {size(held)}" for part, held in shown.items()]
    when = "at the highest moment drawn" if over else "now"
    words = ", ".join(f"{mark} {word}" for mark, word in zip(marks, text, strict=True))
    return (
        '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:2px 12px;line-height:1.4;margin:2px 0">'
        f'<svg role="img" aria-label="{", ".join(text)}, {when}" width="{width}" height="14">'
        f'<rect width="{width}" height="14" fill="#fff" stroke="#999"/>{bars}</svg>'
        f'<span style="font-variant-numeric:tabular-nums">{words} ({when})</span></div>'
    )


def _row(prefix, history, peaks, seconds):
    """Curves of the keys of `peaks` over one scale that starts at zero; their values now and at the peak in words."""
    width, height, curves, words = 220, 30, "", []
    styles = ('stroke="#0072B2"', 'stroke="#D55E00" stroke-dasharray="5 3"')
    for (key, peak), style in zip(peaks.items(), styles, strict=False):
        values = [point.get(key, 0) for point in history]
        values = values * 2 if len(values) == 1 else values  # a single point is no line
        step, scale = (width - 4) / (len(values) - 1), (height - 5) / max(1, *peaks.values())
        dots = " ".join(f"{2 + i * step:.1f},{height - 2 - v * scale:.1f}" for i, v in enumerate(values))
        curves += f'<polyline points="{dots}" fill="none" stroke-width="2" {style}/>'
        words.append(f"{prefix}{key}{' memory' * (not prefix)} {size(values[-1])}, peak {size(peak)}")
    text = html.escape("; ".join(words))
    return (
        '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:2px 12px;line-height:1.4;margin:2px 0">'
        f'<svg role="img" aria-label="{text}, over {seconds:.0f} s" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" rx="3" fill="#fff" stroke="#999"/>{curves}</svg>'
        f'<span style="font-variant-numeric:tabular-nums">{text} ({seconds:.0f} s)</span></div>'
    )


class _Saved:
    """What autograd holds in place of a saved tensor: it dies with the graph node that saved it."""

    def __init__(self, tensor, owner):
        self.tensor, self.owner = tensor.detach(), owner  # a saved output leads back to its node: a circle never dies


def saved_bytes(model, batch, forward=None, breakdown=False):
    """Bytes that autograd keeps for backward after one forward pass; exact on any device (cpu, cuda, meta, fake).

    batch: tensor, tuple, list or mapping, given to the model as its arguments, or to `forward(model, batch)`.
    Counted: every storage that a living graph node of the returned value saved, whole and once, however many views of
    it are saved; low-precision copies of weights (autocast) too. Not counted: storages of the batch and of the model's
    parameters and buffers, which are there anyway; what is freed before the forward ends; what a custom
    autograd.Function keeps outside `save_for_backward`. The model stays in its train or eval mode; no_grad gives 0.
    breakdown=True: {module name: bytes} instead, largest first. A storage goes to the innermost module that saved it
    first, "" is the model itself or code outside of it; the sum is the plain answer.
    """
    import torch
    from torch.nn.modules import module as hooks
    from torch.utils._pytree import tree_leaves

    batch = dict(batch) if isinstance(batch, Mapping) else batch  # a tokenizer's output is no dict
    there = [t for t in (*model.parameters(), *model.buffers(), *tree_leaves(batch)) if isinstance(t, torch.Tensor)]
    names, stack, alive = {m: name for name, m in model.named_modules()}, [""], []

    def pack(tensor):
        saved = _Saved(tensor, stack[-1])
        alive.append(weakref.ref(saved))
        return saved

    def leave(module, args, result):
        stack.pop()  # returns None: anything else would replace the result

    handles = [hooks.register_module_forward_pre_hook(lambda module, args: stack.append(names.get(module, stack[-1])))]
    handles.append(hooks.register_module_forward_hook(leave, always_call=True))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            result = forward(model, batch) if forward else _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    owned = _bytes_by_owner([ref() for ref in alive], there)
    del result  # it held the graph until here
    return dict(sorted(owned.items(), key=lambda item: -item[1])) if breakdown else sum(owned.values())


def optimizer_bytes(optimizer):
    """Bytes of the state that a torch optimizer keeps: for AdamW two numbers a parameter, in the parameter's type."""
    import torch

    states = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in states)


def _bytes_by_owner(kept, there):
    seen, owned = {t.untyped_storage()._cdata for t in there}, {}
    for saved in filter(None, kept):
        storage = saved.tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            owned[saved.owner] = owned.get(saved.owner, 0) + storage.nbytes()
    return owned


def _call(model, batch):
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
