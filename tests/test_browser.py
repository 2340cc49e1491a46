"""Panels, quizzes and meters in a real JupyterLab in a real browser; pictures of it go to build/screenshots.

Found by class names and driven by keyboard and mouse only, so the same steps work on a toy and on a real lesson.
"""

import contextlib
import shutil
import time
from pathlib import Path

import pytest

HOW = "JupyterLab and playwright are not installed: pip install -e '.[lab,test]'"
pytest.importorskip("jupyterlab", reason=HOW)
sync_api = pytest.importorskip("playwright.sync_api", reason=HOW)

import nbformat  # noqa: E402
from lab import PanelPage, browser, complaints, jupyterlab, menu, run_all, wait_until_executed  # noqa: E402

expect = sync_api.expect
pytestmark = pytest.mark.alone
ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "build" / "screenshots"
LESSONS = sorted((ROOT / "notebooks").glob("11_*.ipynb"))  # the shortest whose panel trains for seconds

SETUP = """
import math, os, time
os.environ["NBTOOLS_PANEL"] = "@MODE@"  # empty: found out
from nbtools.meters import live_meter
from nbtools.widgets import panel, log, quiz
kept = []
def train(tick, rank, learning_rate, data, augment):
    for step in range(60):
        time.sleep(0.05)
        kept.append(bytearray(b"x" * 2_000_000))
        if data == "broken" and step == 10:
            raise ValueError("label 11 is out of <range>")
        tick(step, 60, loss=2 * math.exp(-step * (rank + 300 * learning_rate) / 400), accuracy=step / 60)
    kept.clear()
    return {"accuracy": 0.5 + rank / 100, "trainable": rank * 1024}
"""
PANEL = """
p = panel(train, title="LoRA rank and loss", task="Predict: does rank 16 end lower than rank 4? Move `rank`, then Run.",
          rank=(1, 32, 1, 4), learning_rate=log(1e-5, 1e-1, 1e-3), data=["movie", "broken"], augment=True)
p
"""
QUIZ = """
quiz("What does `requires_grad=False` on the first layer save?",
     ["The gradient of its weight only", "Its gradient, its optimizer state and the input of backward", "Nothing"],
     1, ["More: see `saved_bytes`.", "Backward has no business below the first trained layer.", "Measure it."])
"""
LIVE = """
with live_meter() as m:
    for i in range(25):
        time.sleep(0.1)
        kept.append(bytearray(b"x" * 8_000_000))
        m.update()
kept.clear()
print(m)
"""


def write(path, mode=""):
    cells = [SETUP.replace("@MODE@", mode), PANEL, 'print("the first run", p.wait().state)', QUIZ, LIVE]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def open_page(tmp_path):
    """Open a notebook that was put into `open_page.root` in a fresh JupyterLab and choose Run All."""
    root = tmp_path / "root"
    root.mkdir()
    with contextlib.ExitStack() as stack:

        def start(name, subshells=True):
            page = stack.enter_context(browser(tmp_path))  # first: it skips the test where there is none
            url, token = stack.enter_context(jupyterlab(root, tmp_path, subshells))
            run_all(page, url, token, name)
            return page

        start.root = root
        yield start


def seconds_until(locator, text, limit):
    """Wait until the element says `text`; the seconds that it took."""
    start = time.monotonic()
    expect(locator).to_contain_text(text, timeout=limit * 1000)
    return time.monotonic() - start


def answer_quiz(quiz):
    """Choose every option; the feedback of each, which must not be empty."""
    said = []
    for option in quiz.locator("input[type=radio]").all():
        before = quiz.locator(".nbt-feedback").inner_text()
        option.focus()
        option.press("Space")
        expect(quiz.locator(".nbt-feedback")).not_to_have_text(before, timeout=5000)
        said.append(quiz.locator(".nbt-feedback").inner_text())
    return said


@pytest.mark.slow
def test_panel_quiz_and_meter(open_page):
    write(open_page.root / "toy.ipynb")
    page = open_page("toy.ipynb")
    panel = PanelPage(page)

    # the first run belongs to its cell, and Stop works all the same
    expect(panel.progress).to_be_visible(timeout=60_000)
    panel.stop.click()
    assert seconds_until(panel.status, "Run 1 stopped", 5) < 2
    expect(page.locator(".jp-OutputArea-output", has_text="the first run stopped")).to_be_visible(timeout=10_000)

    # the live meter of a cell moves while the cell runs
    live = page.locator(".nbt-meter:not(.nbt-panel *)")
    live.wait_for(timeout=10_000)
    first = live.inner_text()
    expect(live).not_to_have_text(first, timeout=3000)
    assert "process" in live.locator("svg").get_attribute("aria-label")
    wait_until_executed(page, 30)

    # controls: labels, keyboard, mouse
    for name in ("rank", "learning_rate", "data", "augment"):
        expect(panel.box.locator(f".nbt-control-{name}").get_by_text(name.replace("_", " "))).to_be_visible()
    assert panel.by_keyboard("rank", ["ArrowRight"] * 3) == "7"
    assert int(panel.by_mouse("rank")) > 7
    panel.by_keyboard("rank", ["Home"] + ["ArrowRight"] * 11)

    # run, meter, a slider during the run, stop, run again
    panel.run.click()
    expect(panel.progress).to_be_visible(timeout=5000)
    assert len(panel.meter_values(1.5)) >= 2
    assert panel.by_keyboard("rank") == "13"
    expect(panel.status).to_have_text("rank changed: it takes effect at the next Run.")
    panel.shot(SHOTS / "panel-running.png")
    panel.stop.click()
    assert seconds_until(panel.status, "Run 2 stopped", 5) < 2
    panel.run.focus()
    page.keyboard.press("Enter")
    seconds_until(panel.status, "Run 3 done", 20)
    expect(panel.rows).to_have_count(3)
    assert [panel.rows.nth(i).locator("td").nth(1).inner_text() for i in (1, 2)] == ["12", "13"]

    # twenty quick clicks
    page.wait_for_timeout(500)
    panel.press_twenty_times()
    expect(panel.status).to_have_text("A run is going: wait for its end or press Stop.")
    seconds_until(panel.status, "Run 4 done", 20)
    page.wait_for_timeout(500)
    expect(panel.rows).to_have_count(4)

    # an error is shown, and the panel is usable after it
    panel.box.locator(".nbt-control-data select").select_option("broken")
    panel.run.click()
    expect(panel.status.get_by_role("alert")).to_contain_text("ValueError: label 11 is out of <range>", timeout=10_000)
    expect(panel.view.locator("details pre")).to_be_hidden()
    panel.view.locator("summary").click()
    expect(panel.view.locator("details pre")).to_contain_text("in train")
    panel.shot(SHOTS / "panel-error.png")
    panel.box.locator(".nbt-control-data select").select_option("movie")
    panel.run.click()
    seconds_until(panel.status, "Run 6 done", 20)
    panel.shot(SHOTS / "panel.png")

    # the kernel's interrupt ends the run that a cell waits for; the panel made again stands where the old one was
    page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    expect(panel.rows).to_have_count(1)
    expect(panel.progress).to_be_visible(timeout=5000)
    menu(page, "Kernel", "Interrupt Kernel")
    assert seconds_until(panel.status, "Run 1 stopped", 5) < 2

    # the quiz
    said = answer_quiz(page.locator(".nbt-quiz"))
    assert [text.split(".")[0] for text in said] == ["Not this one", "Right", "Not this one"]
    assert "Backward has no business below" in said[1]
    page.locator(".nbt-quiz").screenshot(path=str(SHOTS / "quiz.png"))
    page.screenshot(path=str(SHOTS / "notebook.png"))
    assert complaints(page) == []


@pytest.mark.slow
def test_panel_in_the_main_thread(open_page):
    """As in Colab: clicks wait for the running cell, `tick` publishes, the kernel's interrupt stops at a step."""
    write(open_page.root / "toy.ipynb", mode="inline")
    page = open_page("toy.ipynb", subshells=False)
    panel = PanelPage(page)
    expect(panel.progress).to_be_visible(timeout=60_000)
    assert len(panel.meter_values(1.5)) >= 2
    menu(page, "Kernel", "Interrupt Kernel")
    assert seconds_until(panel.status, "Run 1 stopped", 5) < 2
    wait_until_executed(page, 30)
    panel.by_keyboard("rank", ["ArrowRight"] * 3)
    panel.press_twenty_times()
    seconds_until(panel.status, "Run 2 done", 20)
    page.wait_for_timeout(1000)
    expect(panel.rows).to_have_count(2)
    assert complaints(page) == []


@pytest.mark.slow
@pytest.mark.skipif(not LESSONS, reason="notebooks/11_*.ipynb is not there")
def test_lesson(open_page):
    """The real lesson: all of it runs, and its first panel, its quizzes and its meter do what the toy's do."""
    shutil.copy(LESSONS[0], open_page.root)  # Lab saves what it opens
    page = open_page(LESSONS[0].name)
    panel = PanelPage(page)
    wait_until_executed(page, 360)
    assert complaints(page) == []
    expect(panel.status).to_contain_text("done")
    before = panel.rows.count()

    _, readout = panel.slider()
    start = readout.inner_text()
    assert panel.by_keyboard() != start or panel.by_keyboard(keys=["ArrowLeft"]) != start
    moved = readout.inner_text()
    assert panel.by_mouse(pixels=40) != moved or panel.by_mouse(pixels=-40) != moved

    panel.run.click()
    expect(panel.progress).to_be_visible(timeout=60_000)
    panel.stop.click()
    took = seconds_until(panel.status, "stopped", 30)  # a step, and what the lesson does between two steps
    print(f"the lesson's run stopped {took:.1f} s after the click")
    page.wait_for_timeout(500)
    panel.press_twenty_times()
    assert len(panel.meter_values(2)) >= 2
    panel.shot(SHOTS / "lesson-running.png")
    seconds_until(panel.status, "done", 240)
    expect(panel.rows).to_have_count(min(6, before + 2))
    panel.shot(SHOTS / "lesson.png")

    assert page.locator(".nbt-quiz").count() > 0
    for quiz in page.locator(".nbt-quiz").all():
        said = answer_quiz(quiz)
        assert sum(text.startswith("Right") for text in said) == 1 and len(set(said)) == len(said) > 1
    page.locator(".nbt-quiz").first.screenshot(path=str(SHOTS / "lesson-quiz.png"))
    assert complaints(page) == []
