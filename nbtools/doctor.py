"""Is this machine ready for the course? One line a check, how to mend what fails, an exit status that tells.

Design:
- A check is a generator of lines (state, what, text, how to mend it); state is "ok", "note" (works, but) or "FAIL".
- What a check raises becomes a failing line, so one broken part never hides the others.
- Versions are compared with what nbtools itself declares; nothing is listed twice.
- That widgets live is tried, not inferred: a kernel is started and must open the channel of a slider.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from nbtools import assets, notebooks

REFERENCE_SECONDS = 0.0135  # calibrate() where minutes are stated from: 2 quiet cores of an AMD EPYC with AVX512-BF16
MANAGERS = {"7": "3", "8": "5"}  # major version of ipywidgets -> that of the widget manager inside JupyterLab
LABEXTENSION = "labextensions/@jupyter-widgets/jupyterlab-manager/package.json"
SLIDER = "import sys, ipywidgets; ipywidgets.IntSlider(); print(sys.prefix)"


def doctor(checks=None):
    """Run all checks, or those given, print their lines as they come; 0 if none failed, else 1."""
    start, failed = time.monotonic(), 0
    for check in checks or (python, memory, disk, device, stored, packages, lab, widgets, minutes):
        try:
            for state, what, text, mend in check():
                failed += state == "FAIL"
                print(f"{state:4}  {what:11}{text}" + (f"\n{'':17}-> {mend}" if mend else ""), flush=True)
        except Exception as error:
            failed += 1
            why = f"could not be checked: {type(error).__name__}: {error}"
            print(f"FAIL  {check.__name__:11}{why}\n{'':17}-> make env builds the environment anew", flush=True)
    verdict = f"Not ready: {failed} failed, each says how to mend it." if failed else "This machine is ready."
    print(f"{verdict} ({time.monotonic() - start:.1f} s)")
    return int(failed > 0)


def python(version=None):
    """The interpreter's version against requires-python."""
    from packaging.specifiers import SpecifierSet

    version = version or platform.python_version()
    wanted = importlib.metadata.metadata("nbtools")["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield "ok", "Python", f"{version} in {sys.prefix}", ""
    else:
        mend = "install Python 3.12, remove .venv, then: make env PYTHON=python3.12"
        yield "FAIL", "Python", f"{version}; the course needs {wanted}", mend


def memory(total=None, free=None):
    """Memory in GB against the largest peak that a notebook states."""
    import psutil

    state = psutil.virtual_memory()
    total, free = total or state.total / 1e9, free or state.available / 1e9
    need = max((peak or 0 for *_, peak in _stated("cpu")), default=0)
    text = f"{free:.1f} of {total:.1f} GB free; the largest notebook takes {need:.1f} GB"
    if total < need:
        yield "FAIL", "memory", text, "take a larger machine, or open the notebooks in Colab by their badges"
    elif free < need + 0.5:
        yield "note", "memory", text, "close other programs, and the kernels of other notebooks, first"
    else:
        yield "ok", "memory", text, ""


def disk(free=None):
    """Free space in GB where the cache is against what is still to come: the files, and one archive at a time."""
    place = next(folder for folder in (assets.cache(), *assets.cache().parents) if folder.exists())
    free = free or shutil.disk_usage(place).free / 1e9
    todo = [card for name, card in assets.cards().items() if assets.status(name) != "ok"]
    archive = max((card.archive_bytes for card in todo), default=0)
    need = 0.5 + (archive + sum(file.bytes for card in todo for file in card.files)) / 1e9
    text = f"{free:.1f} GB free in {place}; {need:.1f} GB are needed"
    if free < need:
        yield "FAIL", "disk", text, "free some, or put the cache on a larger disk: export NBTOOLS_CACHE=/that/disk"
    elif todo and not os.access(place, os.W_OK):
        yield "FAIL", "disk", f"{place} cannot be written", "choose another cache: export NBTOOLS_CACHE=/a/folder"
    else:
        yield "ok", "disk", text, ""


def device():
    """What computes, in which precision, and why."""
    from nbtools import profiles

    yield "ok", "device", profiles.current().describe().replace("\n", f"\n{'':17}"), ""


def stored():
    """Models and data of each lesson: here, and every sha256 as its card says."""
    cards = assets.cards()
    for lesson in sorted({lesson for card in cards.values() for lesson in card.lessons}):
        names = [name for name, card in cards.items() if lesson in card.lessons]
        bad = {name: state for name in names if (state := assets.status(name, verify=True)) != "ok"}
        for name, state in bad.items():
            yield "FAIL", f"lesson {lesson}", f"{name} is {state}", f"with network: nbtools fetch {name}"
        if not bad:
            size = sum(file.bytes for name in names for file in cards[name].files) / 1e6
            yield "ok", f"lesson {lesson}", f"{', '.join(names)}: intact, {size:.0f} MB", ""


def packages():
    """Every installed package against the range that nbtools declares for it; Colab has no JupyterLab."""
    from packaging.requirements import Requirement

    fits, extra = True, {"extra": "" if _colab() else "lab"}
    wanted = [Requirement(line) for line in importlib.metadata.requires("nbtools")]
    wanted = [need for need in wanted if not need.marker or need.marker.evaluate(extra)]
    for need in wanted:
        found = _version(need.name)
        if not found or not need.specifier.contains(found, prereleases=True):
            fits, text = False, f"{need.name} {found or 'is missing'}; the course needs {need.specifier or 'it'}"
            yield "FAIL", "packages", text, f"make env, or: pip install '{need.name}{need.specifier}'"
    if fits:
        key = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "ipywidgets"))
        yield "ok", "packages", f"all {len(wanted)} in their ranges: {key} ...", ""


def lab():
    """JupyterLab's widget manager against ipywidgets; the first one on Jupyter's path is the one that is loaded."""
    from jupyter_core.paths import jupyter_path

    if _colab():
        yield "note", "JupyterLab", "not needed: this is Colab, which brings its own front end", ""
        return
    first = next((path for folder in jupyter_path() if (path := Path(folder, LABEXTENSION)).is_file()), None)
    manager = json.loads(first.read_text(encoding="utf-8"))["version"] if first else "none"
    wanted = MANAGERS.get((_version("ipywidgets") or "").partition(".")[0])
    text = f"{_version('jupyterlab')}, ipywidgets {_version('ipywidgets')}, widget manager {manager}"
    if manager.partition(".")[0] == wanted:
        yield "ok", "JupyterLab", text, ""
    else:
        mend = f"remove {first.parent}, then: " if first else ""
        mend += "pip install --force-reinstall --no-deps ipywidgets jupyterlab_widgets"
        yield "FAIL", "JupyterLab", f"{text} where {wanted}.x is needed: widgets would show as text", mend


def widgets(kernel="python3", timeout=30):
    """A kernel, started as Jupyter starts it, opens the channel of a slider, and it is this Python; seconds."""
    from jupyter_client.manager import start_new_kernel

    start, seen = time.monotonic(), []
    manager, client = start_new_kernel(startup_timeout=timeout, kernel_name=kernel, stderr=subprocess.DEVNULL)
    try:
        reply = client.execute_interactive(SLIDER, timeout=timeout, output_hook=seen.append)["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    prefix = "".join(message["content"].get("text", "") for message in seen).strip()
    if reply["status"] != "ok" or not any(message["msg_type"] == "comm_open" for message in seen):
        why = f"{reply['ename']}: {reply['evalue']}" if reply["status"] == "error" else "no channel was opened"
        yield "FAIL", "widgets", f"a slider in a kernel does not live: {why}", "make env"
    elif Path(prefix).resolve() != Path(sys.prefix).resolve():
        mend = f"{sys.executable} -m ipykernel install --sys-prefix, then look at: jupyter kernelspec list"
        yield "FAIL", "widgets", f"Jupyter starts another Python ({prefix}) than this one ({sys.prefix})", mend
    else:
        yield "ok", "widgets", f"a slider lives in a kernel of this Python ({time.monotonic() - start:.1f} s)", ""


def minutes():
    """How long each notebook will take: its stated minutes, on a CPU times how much slower than the reference it is."""
    from nbtools import profiles

    name, ratio, how = profiles.current().name, 1.0, "as stated for a GPU, not scaled to this one"
    if name == "cpu":
        ratio = calibrate() / REFERENCE_SECONDS
        how = f"{ratio:.1f} times the reference machine's time, by a short trial just now"
    for stem, stated, _ in _stated(name):
        text = f"about {stated * ratio:.1f} min ({how})" if stated else f"no time is stated for the {name} profile"
        yield "ok" if stated else "note", "time", f"{stem}: {text}", ""


def calibrate():
    """Seconds of one fixed training step on the CPU, in the profile's precision: the best of half a second's worth.

    Two convolutions with BatchNorm, two matrix products, forward and backward. The best, because load comes and goes.
    """
    import torch
    from torch import nn

    from nbtools import profiles

    low = profiles.current().dtype == "bfloat16"
    body = [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    images, seconds, end = torch.ones(8, 32, 48, 48), [], time.perf_counter() + 0.5
    while len(seconds) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = net(images).square().mean()
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _stated(profile):
    """(stem, minutes, peak in GB) of each notebook, as its front matter states them; None where it states nothing."""
    for path in sorted((notebooks.ROOT / "notebooks").glob("*.ipynb")):
        yield path.stem, *notebooks.stated(notebooks.read(path), profile)[1:]


def _version(name):
    """The installed version of a package, None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _colab():
    return "COLAB_RELEASE_TAG" in os.environ
