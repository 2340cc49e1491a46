"""A real JupyterLab and a real browser for the tests: loopback only, a token, its own configuration, thrown away."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW = "no Chromium found: apt-get install chromium (Debian), playwright install chromium (elsewhere), or set CHROME"


def find_chromium(playwright):
    """Path of a Chromium: CHROME, the system's, macOS's Chrome or playwright's own; None where there is none."""
    places = [os.environ.get("CHROME"), *map(shutil.which, NAMES)]
    places += ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", playwright.chromium.executable_path]
    return next((place for place in places if place and Path(place).exists()), None)


@contextlib.contextmanager
def jupyterlab(root, tmp, subshells=True):
    """Start JupyterLab on `root`; yields (url, token). Everything it writes about itself goes under `tmp`.

    subshells=False: clicks wait for the running cell, as in Colab, VS Code and with older kernels.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    folders = [f"JUPYTER_{kind}_DIR" for kind in ("CONFIG", "DATA", "RUNTIME")]
    folders += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"]
    env = os.environ | {name: str(tmp / name.lower()) for name in folders} | {"JUPYTER_TOKEN": token}
    for name in ("NBTOOLS_PANEL", "NBTOOLS_STRICT"):  # the panels must find out by themselves
        env.pop(name, None)
    _settings(tmp, "apputils-extension/notification", fetchNews="false", checkForUpdates=False)
    _settings(tmp, "notebook-extension/tracker", windowingMode="none")  # cells out of sight are on the page too
    if not subshells:
        _settings(tmp, "apputils-extension/kernels-settings", commsOverSubshells="disabled")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.extension_manager=readonly"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(tmp / "lab.log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _answers(process, f"{url}/api/status?token={token}", tmp / "lab.log")
        yield url, token
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # kernels are of its group and go with it
        process.wait(30)


def _settings(tmp, plugin, **values):
    file = tmp / "jupyterlab_settings_dir/@jupyterlab" / f"{plugin}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def _answers(process, url, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not answer within {seconds} s; its log ends:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def browser(tmp):
    """A page of a headless Chromium with a profile under `tmp`; skips the test where no Chromium is."""
    import pytest
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            pytest.skip(HOW)
        size = {"width": 1280, "height": 1000}
        context = playwright.chromium.launch_persistent_context(
            str(tmp / "profile"), executable_path=path, args=FLAGS, headless=True, viewport=size
        )
        try:
            yield context.pages[0] if context.pages else context.new_page()
        finally:
            context.close()


def menu(page, *names):
    """Choose an entry of the menu bar, `menu(page, "Run", "Run All Cells")`."""
    page.get_by_role("menuitem", name=names[0], exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text(names[1], exact=True).click()


def run_all(page, url, token, name):
    """Open a notebook in a clean workspace and choose Run All Cells; returns once they have been asked for."""
    page.goto(f"{url}/lab/tree/{name}?token={token}&reset")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=90_000)
    page.locator(".jp-StatusBar-Widget").get_by_text("| Idle").first.wait_for(timeout=90_000)
    menu(page, "Run", "Run All Cells")


def complaints(page):
    """Texts of all error and stderr outputs on the page, and of widgets that could not be drawn."""
    kinds = ("application/vnd.jupyter.stderr", "application/vnd.jupyter.error")
    outputs = page.locator(", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in kinds))
    return outputs.all_inner_texts() + page.get_by_text("Error displaying widget").all_inner_texts()


def wait_until_executed(page, seconds):
    """Wait until every code cell with a visible input has run, or one has failed; the kernel's Idle can be early."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)").all_inner_texts()
        waiting = [i for i, text in enumerate(prompts) if not any(c.isdigit() for c in text)]
        if prompts and not waiting or complaints(page):
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"code cells {waiting} of {len(prompts)} had not run after {seconds} s")


class PanelPage:
    """A panel on the page, driven by keyboard and mouse and found by its class names only."""

    def __init__(self, page, index=0):
        self.page, self.box = page, page.locator(".nbt-panel").nth(index)
        self.run, self.stop, self.clear = (self.box.locator(f".nbt-{name}") for name in ("run", "stop", "clear"))
        self.status, self.meter, self.view = (self.box.locator(f".nbt-{name}") for name in ("status", "meter", "view"))
        self.progress = self.box.locator(".nbt-progress progress")
        self.rows = self.view.locator(".nbt-table tr:has(td)")

    def slider(self, name=None):
        """(handle, readout) of a slider."""
        row = self.box.locator(f".nbt-control-{name}" if name else ".widget-slider").first
        return row.locator(".noUi-handle"), row.locator(".widget-readout")

    def by_keyboard(self, name=None, keys=("ArrowRight",)):
        handle, readout = self.slider(name)
        handle.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(150)
        return readout.inner_text()

    def by_mouse(self, name=None, pixels=40):
        handle, readout = self.slider(name)
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y + 3, steps=6)
        self.page.mouse.up()
        self.page.wait_for_timeout(150)
        return readout.inner_text()

    def press_twenty_times(self):
        self.run.scroll_into_view_if_needed()
        self.run.click(click_count=20, delay=10)

    def meter_values(self, seconds=2.0):
        """The different states of the live meter within some seconds."""
        seen, end = set(), time.monotonic() + seconds
        while time.monotonic() < end:
            seen.add(self.meter.inner_html())
            self.page.wait_for_timeout(200)
        return seen

    def shot(self, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.box.screenshot(path=str(path))
