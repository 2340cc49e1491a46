"""Panels and quizzes without a browser and without torch: ipywidgets 8, or Colab's 7.7.1 with IPython 7.34."""

import gc
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import ipywidgets as W
import pytest

from nbtools import profiles, widgets
from nbtools.errors import NbtoolsError
from nbtools.widgets import PanelError, Stopped, log, panel, quiz

pytestmark = pytest.mark.alone

KEY = "application/vnd.jupyter.stderr"


@pytest.fixture
def front(monkeypatch):
    """A front end: `front.shown` holds what was displayed, `front.cell` is the number of the cell being executed."""
    end = SimpleNamespace(shown=[], request={"allow_stdin": True}, execution_count=1)
    end.kernel = SimpleNamespace(get_parent=lambda channel: {"content": end.request})
    monkeypatch.setattr(widgets, "_ipython", lambda: end)
    monkeypatch.setattr(widgets, "show", end.shown.append)
    monkeypatch.setattr(widgets, "QUEUED", 0)  # tests click faster than people
    yield end
    for made in list(widgets._PANELS):
        made.stop()
        assert made._idle.wait(5), "a run was left behind"
    assert not [t for t in threading.enumerate() if t.name.startswith("nbt-")]


@pytest.fixture
def headless(monkeypatch):
    monkeypatch.setattr(widgets, "_ipython", lambda: None)


def train(tick, rank=4, steps=3, pause=0.0):
    """Stands in for a training run: the loss falls with the rank."""
    for step in range(steps):
        time.sleep(pause)
        tick(step, steps, loss=1 / (rank + step))
    return {"accuracy": rank / 10}


def until(true, seconds=5):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds} s: {inspect.getsource(true).strip()}"
        time.sleep(0.005)


def long_panel(**more):
    """A panel whose first run was short and whose next ones last until they are stopped."""
    made = panel(train, rank=(1, 32, 1, 4), steps=(1, 10**6, 1, 3), pause=0.005, **more)
    made.controls["steps"].value = 10**6
    return made


def status(made):
    return re.sub("<.*?>", "", made._status.value)


# Who is looking


@pytest.mark.parametrize(
    ("override", "colab", "kernel", "stdin", "expected"),
    [
        (None, False, True, True, "thread"),
        (None, False, True, False, "headless"),
        (None, False, False, True, "headless"),
        (None, True, True, True, "inline"),
        (None, True, True, False, "inline"),
        (None, True, False, True, "headless"),
        ("inline", False, True, True, "inline"),
        ("headless", False, True, True, "headless"),
        ("thread", False, False, False, "thread"),
        ("", False, True, True, "thread"),
    ],
)
def test_mode(override, colab, kernel, stdin, expected, front, monkeypatch):
    if override is not None:
        monkeypatch.setenv("NBTOOLS_PANEL", override)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    if not kernel:
        front.kernel = None
    front.request["allow_stdin"] = stdin
    assert widgets.mode() == expected


def test_wrong_mode_is_named(front, monkeypatch):
    with pytest.raises(PanelError, match="mode must be one of thread, inline, headless, got 'magic'"):
        panel(train, mode="magic")
    monkeypatch.setenv("NBTOOLS_PANEL", "off")
    with pytest.raises(PanelError, match="NBTOOLS_PANEL must be .* got 'off'; unset"):
        widgets.mode()


# Controls


def test_every_control_has_its_kind_label_and_default(front):
    def fn(tick, rank, dropout, learning_rate, optimizer, augment, seed, scale, own):
        return {}

    made = panel(
        fn, rank=(1, 64, 1, 8), dropout=(0.0, 0.5, 0.05, 0.1), learning_rate=log(1e-5, 1e-1, 1e-3),
        optimizer=["AdamW", "SGD"], augment=True, seed=3, scale=0.5, own=W.IntSlider(2, description="My own"),
    )  # fmt: skip
    kinds = {name: type(widget).__name__ for name, widget in made.controls.items()}
    assert kinds == {
        "rank": "IntSlider", "dropout": "FloatSlider", "learning_rate": "FloatLogSlider", "optimizer": "Dropdown",
        "augment": "Checkbox", "seed": "IntText", "scale": "FloatText", "own": "IntSlider",
    }  # fmt: skip
    assert made.values() == {
        "rank": 8, "dropout": 0.1, "learning_rate": 0.001, "optimizer": "AdamW", "augment": True, "seed": 3,
        "scale": 0.5, "own": 2,
    }  # fmt: skip
    labels = [widget.description for widget in made.controls.values()]
    assert labels == ["rank", "dropout", "learning rate", "optimizer", "augment", "seed", "scale", "My own"]
    assert len({widget.style.description_width for widget in made.controls.values()}) == 1
    assert made.controls["dropout"].readout_format == ".2f"
    made.controls["dropout"].value = 0.1 + 0.2
    assert made.values()["dropout"] == 0.3
    made.controls["learning_rate"].value = 0.00123456
    assert made.values()["learning_rate"] == 0.00123, "what the reader sees is what runs"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ((1, 8), "(min, max, step, default)"),
        ((1, 8, 1, 9), "min <= default <= max, got (1, 8, 1, 9)"),
        ((1, 8, 0, 2), "(min, max, step, default)"),
        (("a", "b", "c", "d"), "(min, max, step, default)"),
        (log(0, 1, 1), "log needs 0 < low"),
        ([], "give a number, a bool, a list"),
        ("text", "got 'text'"),
        (None, "got None"),
    ],
)
def test_a_wrong_control_is_named(spec, words, front):
    with pytest.raises(PanelError, match="control rank: ") as caught:
        panel(train, rank=spec)
    assert words in str(caught.value)


def test_controls_must_fit_the_function(front):
    with pytest.raises(PanelError, match=r"train\(tick, rnk\) cannot be called: .*'rnk'"):
        panel(train, rnk=1)


# Without a front end


def test_headless_runs_once_and_leaves_a_figure_and_a_line(front, capsys):
    front.request["allow_stdin"] = False
    made = panel(train, title="Rank & loss", task="Move `rank`", rank=(1, 32, 1, 4))
    assert [run.state for run in made.runs] == ["done"] and made.wait() is made.runs[0]
    assert capsys.readouterr().out == "Rank & loss: 3 steps done, accuracy 0.4\n"
    (text,) = front.shown
    assert "<svg" in text and "Rank &amp; loss" in text and "<code>rank</code>" in text and "<td>0.4</td>" in text
    made._ipython_display_()
    assert len(front.shown) == 1, "the cell that made it has shown it"
    front.execution_count = 2
    made._ipython_display_()
    assert len(front.shown) == 2 and len(made.runs) == 1


def test_plain_python_prints_the_line_only(headless, capsys):
    panel(train, rank=4)
    assert capsys.readouterr().out == "panel: 3 steps done, accuracy 0.4\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stopped])
def test_headless_raises(error, headless):
    def fn(tick):
        raise error("bad")

    with pytest.raises(error):
        panel(fn)


def test_headless_raises_for_a_wrong_result_and_a_wrong_view(headless):
    with pytest.raises(PanelError, match="fn must return a dict of numbers, got list"):
        panel(lambda_named("fn", lambda tick: [1]))
    with pytest.raises(ZeroDivisionError):
        panel(train, view=lambda runs: 1 / 0)


def lambda_named(name, fn):
    fn.__name__ = name
    return fn


BOOK = """
import json, nbformat, sys
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
def run(*cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    try:
        NotebookClient(book, timeout=60, kernel_name="python3").execute()
    except CellExecutionError as error:
        return error.ename
    return [dict(o, text=o.get("text", "")) for cell in book.cells for o in cell.outputs]
good = '''
from nbtools.widgets import panel, quiz
def fn(tick, rank):
    for step in range(4):
        tick(step, 4, loss=1.0 / (step + 1))
    return {"rank": rank}
p = panel(fn, title="T", rank=(1, 4, 1, 2))
p'''
print("RESULT" + json.dumps([run(good, "p.wait().result", "quiz('Q', ['x', 'y'], 1, ['no', 'yes'])"),
                             run(good.replace("tick(step", "1 / 0; tick(step"))]))
"""


def test_in_a_real_kernel_without_a_front_end():
    """nbclient, as for the reading copies: a figure and a line, no dead widget; an error fails the cell."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("NBTOOLS_PANEL", None)
    done = subprocess.run([sys.executable, "-c", BOOK], env=env, capture_output=True, text=True, timeout=120)
    assert "RESULT" in done.stdout, done.stderr
    outputs, failed = json.loads(done.stdout.split("RESULT")[1])
    assert failed == "ZeroDivisionError"
    assert [o["output_type"] for o in outputs] == ["display_data", "stream", "execute_result", "stream"]
    figure, line, result, question = outputs
    assert "<svg" in figure["data"]["text/html"] and "widget-view" not in json.dumps(outputs)
    assert line["text"] == "T: 4 steps done, rank 2\n" and result["data"]["text/plain"] == "{'rank': 2}"
    assert question["text"] == "Q\n  a) x\n  b) y\n" and KEY not in json.dumps(outputs)


# In a thread


def test_the_first_run_belongs_to_the_cell(front, capfd):
    made = panel(train, title="T", rank=(1, 32, 1, 4), pause=0.01)
    assert made.runs[0].state == "done", "later cells must not race with it"
    assert front.shown == [made.box]
    assert made.runs[0].history == [{"step": i + 1, "loss": 1 / (4 + i)} for i in range(3)]
    assert made.wait().result == {"accuracy": 0.4}
    assert made.runs[0].meter.seconds > 0.02 and made.runs[0].meter.peak_process > 0
    assert status(made) == f"Run 1 done after {made.runs[0].meter.seconds:.1f} s."
    assert capfd.readouterr() == ("", ""), "threads print nothing"


def test_stop_and_run_again(front):
    made = long_panel()
    assert made.start() and made.wait(0.05).state == "running"
    until(lambda: "step" in made._bar.value)
    start = time.monotonic()
    made.stop()
    assert made.wait(5).state == "stopped" and time.monotonic() - start < 1
    assert status(made).startswith("Run 2 stopped after") and made._bar.value == ""
    assert f"stopped at step {len(made.runs[1].history)}" in made._body.value
    made.stop()
    assert status(made) == "Nothing is running."
    made.controls["steps"].value = 5
    assert made.start() and made.wait(5).state == "done", "an old Stop must not stop the next run"


def test_stop_is_kept_when_the_function_returns_what_it_has(front):
    def fn(tick, n):
        try:
            for step in range(n):
                tick(step, n)
                time.sleep(0.005)
        except Stopped:
            return {"steps": step}
        return {"steps": n}

    made = panel(fn, n=(1, 10**6, 1, 2))
    made.controls["n"].value = 10**6
    made.start()
    until(lambda: made.runs[1].history)
    made.stop()
    assert made.wait(5).state == "stopped" and made.wait().result["steps"] < 10**6


def test_twenty_clicks_make_one_run(front):
    made, gate = long_panel(), threading.Barrier(20)
    run_button = made.box.children[2].children[0]
    assert run_button.description == "Run"

    def press():
        gate.wait()
        run_button.click()

    presses = [threading.Thread(target=press) for _ in range(20)]
    for press in presses:
        press.start()
    for press in presses:
        press.join()
    until(lambda: made.runs[1].history)
    run_button.click()
    assert [run.number for run in made.runs] == [1, 2]
    assert status(made) == "A run is going: wait for its end or press Stop."


def test_clicks_that_waited_in_the_queue_start_nothing(front, monkeypatch):
    monkeypatch.setattr(widgets, "QUEUED", 0.2)
    made = panel(train)
    for _ in range(20):  # each within QUEUED of the one before: all of them were made during the run
        made._clicked()
        time.sleep(0.02)
    assert len(made.runs) == 1
    time.sleep(0.25)
    made._clicked()
    assert len(made.runs) == 2


def test_a_slider_moved_during_a_run_waits_for_the_next(front):
    made = long_panel()
    made.start()
    until(lambda: made.runs[1].history)
    made.controls["rank"].value = 9
    assert status(made) == "rank changed: it takes effect at the next Run."
    made.stop()
    assert made.wait(5).params["rank"] == 4
    assert "The controls have changed since: the next Run takes their new values." in status(made)
    made.controls["steps"].value = 3
    made.start()
    assert made.wait(5).params["rank"] == 9 and "changed" not in status(made)


class Tensor:
    """Something large that a failed run must not keep."""


def test_an_error_is_shown_and_the_panel_stays_usable(front):
    kept = []

    def fn(tick, rank):
        big = Tensor()
        kept.append(weakref.ref(big))
        try:
            {}["a"]
        except KeyError as error:
            if rank == 5:
                raise ValueError("rank 5 is <b>bad</b>\nmore") from error
        tick(0, 1, loss=float("nan"))
        return {}

    made = panel(fn, rank=(1, 8, 1, 5))
    assert made.runs[0].state == "error" and isinstance(made.runs[0].error, ValueError)
    words = r"Run 1 failed after .* s: ValueError: rank 5 is &lt;b&gt;bad&lt;/b&gt;\."
    assert re.fullmatch(f'<b role="alert">{words}</b>', made._status.value)
    assert "_carry_out" not in made._body.value, "the traceback begins in the reader's code"
    assert "<details" in made._body.value and "KeyError" in made._body.value and "<b>bad" not in made._body.value
    gc.collect()
    assert kept[0]() is None, "the traceback keeps the tensors of the failed run"
    made.controls["rank"].value = 6
    assert made.start() and made.wait(5).state == "done"
    assert 'role="status"' in made._status.value and "<details" not in made._body.value
    assert "<svg" not in made._body.value, "nothing finite to draw"


@pytest.mark.parametrize("error", [SystemExit, MemoryError, GeneratorExit])
def test_no_error_ends_the_thread_without_a_word(error, front):
    def fn(tick):
        raise error("out of memory")

    made = panel(fn)
    words = "OutOfMemory: Out of memory: more was asked for" if error is MemoryError else f"{error.__name__}: out of"
    assert made.runs[0].state == "error" and words in status(made)
    assert made.start() and made.wait(5).state == "error"


# A run that will not fit


@pytest.fixture
def tight(monkeypatch):
    """1,000 bytes are free."""
    monkeypatch.setattr(widgets, "room", lambda: 1000)


def heavy(**more):
    """A panel whose runs need batch x width bytes; batch 64, width wide (50) or narrow (10), at first."""

    def fn(tick, batch, width, seed):
        tick(0, 1, loss=1.0)

    need = more.pop("fit", lambda batch, width, **_: batch * {"wide": 50, "narrow": 10}[width])
    return panel(fn, fit=need, batch=(1, 64, 1, 64), width=["wide", "narrow"], seed=(0, 9, 1, 0), **more)


def shown(made):
    return made._fit_button.layout.display != "none"


def test_a_run_that_does_not_fit_is_not_begun_and_a_smaller_one_is_offered(front, tight):
    made = heavy()
    assert not made.runs and shown(made)
    assert status(made) == (
        "This run needs about 3.12 KiB and 1000 B are free; Fit this sets batch 16, about 800 B. "
        "Run again tries it all the same."
    )
    made._fit_button.click()
    assert made.values() == {"batch": 16, "width": "wide", "seed": 0} and not shown(made)
    assert made.start() and made.wait(5).state == "done" and len(made.runs) == 1


def test_the_second_click_runs_it_and_a_moved_slider_asks_anew(front, tight):
    made = heavy()
    made.start()
    assert made.wait(5).params["batch"] == 64 and not shown(made)
    made.controls["batch"].value = 63
    made.start()
    assert len(made.runs) == 1 and shown(made), "other values are another question"
    made.controls["batch"].value = 20
    made.start()
    assert made.wait(5).params["batch"] == 20 and not shown(made)
    made.controls["batch"].value = 63
    made.start()
    assert len(made.runs) == 2 and shown(made), "a run in between, and the question is asked again"


def test_a_double_click_is_no_second_thought(front, tight, monkeypatch):
    monkeypatch.setattr(widgets, "QUEUED", 0.3)
    made = heavy()
    made.controls["batch"].value = 63
    time.sleep(0.35)
    for _ in range(3):
        made._clicked()
    assert not made.runs and shown(made)
    time.sleep(0.35)
    made._clicked()
    assert made.wait(5).state == "done"


def test_several_controls_are_made_smaller_where_one_does_not_help(front, monkeypatch):
    monkeypatch.setattr(widgets, "room", lambda: 30)
    made = heavy()
    assert "Fit this sets batch 1, width narrow, about 10 B" in status(made)
    monkeypatch.setattr(widgets, "room", lambda: 5)
    made.fit()
    assert "No setting of this panel fits" in status(made) and made.values()["batch"] == 64


def test_what_fits_is_not_asked_about_and_nobody_is_asked_where_nobody_is(front, tight, capsys):
    assert heavy(fit=lambda **_: 1000).runs[0].state == "done"
    front.request["allow_stdin"] = False
    assert heavy().runs[0].state == "done", "headless: the run itself tells"


def test_the_planner_says_what_a_run_needs(monkeypatch):
    monkeypatch.setattr(profiles, "current", lambda: SimpleNamespace(device="cpu"))
    small, large = (widgets.planned("smollm2-135m", method="lora", batch=batch) for batch in (1, 8))
    assert 200e6 < small < large
    assert widgets.planned({"model_type": "t5"}) == 0, "of what the planner does not know nobody is asked"
    with pytest.raises(NbtoolsError, match="rank"):
        widgets.planned("smollm2-135m", rank=0)


def test_a_wrong_result_is_said(front):
    made = panel(lambda_named("fn", lambda tick: 0.7))
    assert "PanelError: fn must return a dict of numbers, got float" in status(made)


def test_an_interrupt_stops_the_run_that_a_cell_waits_for(front):
    made = long_panel()
    made.start()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert made.wait().state == "stopped"
    timer.join()


def test_a_second_panel_waits_for_its_turn(front):
    first, second = long_panel(title="first"), long_panel(title="second")
    first.start()
    until(lambda: first.runs[1].history)
    second.start()
    until(lambda: "waits until another" in status(second))
    assert not second.runs[1].history
    second.stop()
    assert second.wait(5).state == "stopped" and first.runs[1].state == "running"
    second.start()
    first.stop()
    until(lambda: second.runs[2].history)


def test_a_cell_executed_again_stops_its_old_run(front):
    old = long_panel(title="same")
    old.start()
    until(lambda: old.runs[1].history)
    saved = threading.Timer(4, old.stop)  # else a panel that forgets its old self would wait for ever
    saved.start()
    new = long_panel(title="same")
    assert saved.is_alive(), "the new panel waited for the old one's run"
    saved.cancel()
    assert old.wait(5).state == "stopped" and new.runs[0].state == "done"


def test_runs_are_overlaid_and_limited(front):
    views = []

    def view(runs):
        views.append([run.number for run in runs])
        return f"<i>{len(runs)} runs</i>"

    made = panel(train, rank=(1, 32, 1, 4), view=view, metric="loss", ylabel="mean loss")
    for rank in range(5, 13):
        made.controls["rank"].value = rank
        made.start()
        made.wait(5)
    assert [run.number for run in made.runs] == views[-1] == [4, 5, 6, 7, 8, 9]
    assert "<i>6 runs</i>" in made._body.value and "mean loss" in made._body.value
    assert "9: rank 12" in made._body.value and "4: rank 7" in made._body.value
    made.clear()
    assert made.runs == [] and made._body.value == "" and "waiting" not in status(made)
    made.start()
    assert made.wait(5).number == 10 and "run 10" in made._body.value


def test_clear_keeps_the_run_that_is_going(front):
    made = long_panel()
    made.start()
    until(lambda: made.runs[1].history)
    made.clear()
    assert [run.number for run in made.runs] == [2]


def test_a_view_that_fails_is_said(front):
    made = panel(train, view=lambda runs: 1 / 0)
    assert made.runs[0].state == "done" and "The view failed: ZeroDivisionError" in made._body.value


def test_text_of_the_author_and_of_parameters_is_escaped(front):
    fn = lambda_named("fn", lambda tick, kind: {"<i>": "<u>"})
    made = panel(fn, title="<u>T", task="<script>", kind=["<em>", "x"])
    page = made.box.children[0].value + made._body.value
    assert not re.search("<(script|i>|u>|em>)", page) and "&lt;script&gt;" in page and "&lt;em&gt;" in page


# In the main thread, as in Colab


def test_inline_publishes_from_the_main_thread_and_the_interrupt_stops_at_a_step(front, monkeypatch):
    monkeypatch.setattr(widgets, "PERIOD", 0)
    seen, before = [], signal.getsignal(signal.SIGINT)

    def fn(tick, steps):
        assert threading.current_thread() is threading.main_thread()
        for step in range(steps):
            tick(step, steps, loss=1.0)
            seen.append(made_box()._bar.value)
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    def made_box():
        return next(iter(widgets._PANELS))

    widgets._PANELS.clear()
    made = panel(fn, mode="inline", steps=(1, 100, 1, 100))
    assert made.runs[0].state == "stopped" and len(made.runs[0].history) == 6
    assert "step 3 of 100" in seen[2] and "interrupt the kernel" in made.box.children[2].children[1].value
    assert signal.getsignal(signal.SIGINT) is before
    made.controls["steps"].value = 3
    made._clicked()
    assert made.runs[1].state == "done"


def test_inline_second_interrupt_does_not_wait_for_a_step(front):
    def fn(tick):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    start = time.monotonic()
    assert panel(fn, mode="inline").runs[0].state == "stopped" and time.monotonic() - start < 4


# Front ends


def test_core_widgets_with_names_labels_and_roles(front):
    made = panel(train, title="T", rank=(1, 8, 1, 4))
    assert not hasattr(made, "_repr_mimebundle_") and hasattr(made, "_ipython_display_")
    names, stack = set(), [made.box]
    while stack:
        widget = stack.pop()
        assert type(widget).__module__.startswith("ipywidgets."), "no third-party widgets"
        names |= set(widget._dom_classes)
        stack += getattr(widget, "children", ())
    expected = "head control-rank run stop clear progress status meter view panel"
    assert {f"nbt-{name}" for name in expected.split()} <= names
    assert 'role="img"' in made._meter.value and '<th scope="col">rank</th>' in made._body.value


def test_messages_go_to_the_shell_that_the_front_end_chose():
    """ipykernel 7.4 asks the comm where a message belongs; the answer must not be the shell that is busy."""
    comm = SimpleNamespace(_reply_subshell_for=lambda data, chosen: "busy")
    widgets.free(SimpleNamespace(children=[SimpleNamespace(comm=comm)]))
    assert comm._reply_subshell_for({}, "free") == "free"


# Quiz


def ask(front, **change):
    question = {"question": "Is `x` < y?", "options": ["yes", "no"], "answer": 1, "why": ["<i>no</i>", "since `y`"]}
    quiz(**(question | change))
    return front.shown[-1].children if front.shown else None


def test_quiz_says_right_or_wrong_and_why(front):
    head, choice, feedback = ask(front)
    assert "Is <code>x</code> &lt; y?" in head.value and choice.value is None and feedback.value == ""
    choice.value = 0
    assert feedback.value == '<span role="status"><b>Not this one.</b> &lt;i&gt;no&lt;/i&gt;</span>'
    choice.value = 1
    assert "<b>Right.</b> since <code>y</code>" in feedback.value
    assert "nbt-quiz" in front.shown[0]._dom_classes


def test_quiz_headless_prints_the_question_without_the_answer(headless, capsys):
    quiz("Is it?", ["yes", "no"], 1, ["wrong since", "right since"])
    assert capsys.readouterr().out == "Is it?\n  a) yes\n  b) no\n"


@pytest.mark.parametrize("change", [{"answer": 2}, {"answer": "no"}, {"why": ["1"]}, {"options": ["y"], "why": ["1"]}])
def test_a_wrong_quiz_is_named(change, front):
    with pytest.raises(PanelError, match="quiz 'Is `x` < y.*2 to 8 options"):
        ask(front, **change)
