"""Control panel and quiz, of core ipywidgets alone; without a front end they leave a static result.

Why Stop is done the way it is. A kernel handles one message after the other: while a cell or a button's callback
trains, a click on Stop waits in the queue until the training is over, and then stops nothing. So `fn` trains in a
thread, the kernel stays free for clicks, and Stop sets an Event that `tick` reads at every step: `tick` raises
`Stopped`, the run ends in a known state and the next Run works. Nothing is killed: a thread cannot be, and a killed
kernel would take the model with it.

How a run is carried out depends on who is looking (`mode()`; NBTOOLS_PANEL overrides it):
- thread: JupyterLab, Notebook, VS Code. The first run belongs to the cell, which waits for it, so that later cells do
  not race with it; interrupting the kernel stops it. In JupyterLab with ipykernel 7 the Stop button works then too:
  clicks arrive on a subshell. (ipykernel 7.4 binds a widget to the shell that last wrote to it, here the busy one;
  `free` undoes that.) Elsewhere the button works from the second run on, when no cell is waiting.
- inline: Colab, where values set in a thread never reach the page. `fn` runs in the main thread, `tick` publishes
  between steps, the kernel's interrupt is the stop: the first ends the run at its next step, a second one at once.
- headless: nbclient, nbconvert, nbval, scripts. One run with the defaults, errors raised, a figure and a line left.

One run at a time in a kernel: two would falsify each other's seconds and memory, so a second panel waits for its turn.
Threads print nothing and draw SVG only: prints get lost there, matplotlib is not safe there. A thread starts with
torch's defaults: set no_grad, autocast or a default device inside `fn`. The global random generator is one for all
threads: seed it in `fn`, or use a torch.Generator.
"""

import contextlib
import functools
import html
import inspect
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import weakref
from dataclasses import dataclass, field
from decimal import Decimal

import ipywidgets as W

from .errors import NbtoolsError
from .meters import Meter, room, size

KEEP = 6  # runs that a panel remembers
PERIOD = 0.25  # seconds between two refreshes during a run
QUEUED = 0.3  # a click on Run this soon after the kernel was busy with a run had waited in the queue: it starts nothing
MODES = ("thread", "inline", "headless")
_TURN = threading.Lock()  # held by the thread whose run is going
_PANELS = weakref.WeakSet()
STYLE = """<style>
.nbt-panel .widget-label {text-align: left}
.nbt-panel .widget-html-content, .nbt-quiz .widget-html-content {line-height: 1.5; white-space: normal}
.nbt-head b.title {font-size: 1.15em}
.nbt-number {font-variant-numeric: tabular-nums}
.nbt-scroll {overflow-x: auto; max-width: 100%}
table.nbt-table {border-collapse: collapse; margin: 4px 0}
table.nbt-table :is(th, td) {padding: 1px 10px; text-align: right; border-bottom: 1px solid rgba(128, 128, 128, .5)}
.nbt-quiz label {height: auto; line-height: 1.5; white-space: normal}
</style>"""


class Stopped(Exception):
    """Raised by `tick` when the reader asked to stop; let it pass."""


class PanelError(NbtoolsError):
    """A panel or a quiz was described wrongly."""


def mode():
    """How panels run here, found out without configuration: "thread", "inline" or "headless"; see the module's text."""
    asked, kernel = os.environ.get("NBTOOLS_PANEL"), getattr(_ipython(), "kernel", None)
    if asked and asked not in MODES:
        raise PanelError(f"NBTOOLS_PANEL must be one of {', '.join(MODES)}, got {asked!r}; unset it to detect it")
    if asked or kernel is None:
        return asked or "headless"
    if "google.colab" in sys.modules:  # Colab's kernel has imported it before the first cell
        return "inline"
    request = kernel.get_parent("shell").get("content", {})
    nobody = request.get("allow_stdin") is False  # nobody there to answer a question: nbclient and its kin
    return "headless" if nobody else "thread"


def _ipython():
    from IPython import get_ipython

    return get_ipython()


def free(widget):
    """Let the front end choose the shell for the messages of `widget` and its children; private to ipykernel 7.4."""
    with contextlib.suppress(AttributeError):
        widget.comm._reply_subshell_for = lambda data, chosen: chosen
    for child in getattr(widget, "children", ()):
        free(child)


def show(content):
    """Display a widget so that it answers while a cell runs, or HTML text; nothing in a plain Python process."""
    from IPython.display import HTML, display

    if _ipython():
        display(HTML(content) if isinstance(content, str) else content)
        free(content)


def html_widget(name, value=""):
    """An HTML widget with the class `name`."""
    return W.HTML(value, layout=W.Layout(width="auto", margin="0 2px")).add_class(name)


def _words(name):
    return name.replace("_", " ")


def _text(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _code(text):
    """Escaped text with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


@dataclass(frozen=True)
class log:
    """A slider over powers of ten, for learning rates: `lr=log(1e-5, 1e-1, 1e-3)`. Values are rounded to 3 digits."""

    low: float
    high: float
    default: float


def _control(name, spec):
    """The widget for one control; `panel` says what `spec` may be."""
    if hasattr(spec, "description") and hasattr(spec, "value"):
        return spec  # a widget
    if isinstance(spec, log):
        if not 0 < spec.low <= spec.default <= spec.high:
            raise PanelError(f"control {name}: log needs 0 < low <= default <= high, got {spec}")
        low, high = math.log10(spec.low), math.log10(spec.high)
        return W.FloatLogSlider(spec.default, min=low, max=high, step=(high - low) / 40, readout_format=".3g")
    if isinstance(spec, tuple):
        numbers = len(spec) == 4 and all(isinstance(v, int | float) for v in spec)
        if not numbers or not spec[0] <= spec[3] <= spec[1] or spec[2] <= 0:
            raise PanelError(f"control {name}: give (min, max, step, default) with min <= default <= max, got {spec}")
        digits = max(0, *(-Decimal(str(v)).as_tuple().exponent for v in spec))
        kind, form = (W.FloatSlider, f".{digits}f") if digits else (W.IntSlider, "d")
        return kind(spec[3], min=spec[0], max=spec[1], step=spec[2], readout_format=form)
    if isinstance(spec, list) and spec:
        return W.Dropdown(options=spec, value=spec[0])
    kind = {bool: W.Checkbox, int: W.IntText, float: W.FloatText}.get(type(spec))
    if kind is None:
        wanted = "a number, a bool, a list, (min, max, step, default), log(...) or a widget"
        raise PanelError(f"control {name}: give {wanted}, got {spec!r}")
    return kind(spec)


def _controls(specs):
    """{name: widget}; labels visible and equally wide."""
    made = {name: _control(name, spec) for name, spec in specs.items()}
    for name, widget in made.items():
        widget.description = widget.tooltip = widget.description or _words(name)
        widget.style.description_width = f"{max(len(w.description or n) for n, w in made.items()) * 7 + 12}px"
        widget.layout.width = "auto"
        widget.add_class(f"nbt-control-{name}")
        if hasattr(widget, "continuous_update"):
            widget.continuous_update = False  # a drag is one change
    return made


@dataclass
class Run:
    """One run: `params` given to fn, `history` rows {"step": steps done, metric: ..}, `result` that fn returned."""

    number: int
    params: dict
    history: list = field(default_factory=list)
    result: dict | None = None
    state: str = "running"  # then done, stopped or error
    error: BaseException | None = None  # without its frames, which would keep the failed run's tensors
    trace: str = ""
    meter: Meter | None = None  # seconds and memory
    pace: tuple = ()  # time and step of the first tick


def _legend(run, runs):
    """What sets a run apart from the others: `2: rank 8, lr 0.001`."""
    differ = [key for key in run.params if len({_text(other.params[key]) for other in runs}) > 1]
    words = ", ".join(f"{_words(key)} {_text(run.params[key])}" for key in differ)
    return f"{run.number}: {words}" if words else f"run {run.number}"


def _table(runs):
    """Runs as an HTML table: parameters, results, seconds, state."""
    params, results = runs[-1].params, dict.fromkeys(key for run in runs for key in run.result or {})
    head = ["run", *params, *results, "time", "state"]
    rows = "".join(f'<th scope="col">{html.escape(_words(key))}</th>' for key in head)
    for run in runs:
        seconds, result, last = run.meter and run.meter.seconds, run.result or {}, run.history[-1:]
        cells = [run.number, *(run.params[key] for key in params), *(result.get(key, "–") for key in results)]
        cells += ["–" if seconds is None else f"{seconds:.1f} s", run.state]
        cells[-1] += f" at step {last[0]['step']}" if run.state == "stopped" and last else ""
        rows += "<tr>" + "".join(f"<td>{html.escape(_text(cell))}</td>" for cell in cells)
    return f'<div class="nbt-scroll"><table class="nbt-table">{rows}</table></div>'


def _progress(run, steps):
    """A bar, the metrics now, and the time left by the pace since the first step."""
    now, (since, first) = run.history[-1], run.pace
    words = [f"step {now['step']} of {steps}", *(f"{_words(key)} {_text(now[key])}" for key in list(now)[1:])]
    if now["step"] > first:
        words.append(f"{(time.monotonic() - since) / (now['step'] - first) * (steps - now['step']):.0f} s left")
    bar = f'<progress value="{now["step"]}" max="{steps}" aria-label="progress of run {run.number}"></progress>'
    return f'{bar} <span class="nbt-number">{html.escape(", ".join(words))}</span>'


def planned(model, **options):
    """Bytes that a training step needs at its peak, for `panel(fit=...)`; arguments as nbtools.planner.plan's.

    On a GPU what is reserved. 0 for a model of a kind that the planner does not know: then nobody is asked.
    """
    from . import profiles
    from .planner import UnknownKind, plan

    try:
        return plan(model, device=profiles.current().device, **options).reserved
    except UnknownKind:
        return 0


def _smaller(widget, value):
    """Other values of a control: a slider's halves down to its smallest, a list's other options, else none."""
    if isinstance(widget, W.Dropdown):
        return [option for option in widget.options if option != value]
    if not isinstance(widget, W.IntSlider):
        return []
    found = []
    while value > widget.min:
        value = max(widget.min, widget.min + (value // 2 - widget.min) // widget.step * widget.step)
        found.append(value)
    return found


def panel(
    fn, *, title="", task="", xlabel="step", ylabel=None, metric=None, view=None, mode=None, fit=None, **controls
):
    """Show controls for `fn`, run it once with their defaults and return the Panel: `.runs`, `.wait()`, `.stop()`.

    fn(tick, **params) -> dict of numbers. After each of its steps 0, 1 .. it calls tick(step, steps, **metrics).
    controls: name=(min, max, step, default), log(low, high, default), number, bool, list of options (the first is the
    default) or a widget. task: what the reader is to predict and try. metric: which one the chart shows (or the first).
    view(runs) -> HTML, shown under the chart after each run; called in the run's thread, so no matplotlib in it.
    fit(**params) -> bytes that a run needs, such as `planned` says: where they are not free, Run waits for a second
    click, and "Fit this" sets the first controls that can be smaller to values that fit.
    mode: one that `mode()` returns. Raises PanelError if controls and fn do not fit, and fn's errors where headless.
    """
    made = Panel(fn, title, task, (xlabel, ylabel), metric, view, mode, fit, controls)
    for old in list(_PANELS):
        if old.mode == "thread" and (old.title, old.name) == (title, made.name):
            old.stop()  # its cell is being executed again: nobody can reach it any more
    _PANELS.add(made)
    made._first()
    return made


class Panel:
    """What `panel` returns. `runs` holds the last runs, oldest first."""

    def __init__(self, fn, title, task, axes, metric, view, how, fit, controls):
        self.fn, self.title, self.task, self.runs, self.controls = fn, title, task, [], _controls(controls)
        self.name, self.mode = getattr(fn, "__name__", repr(fn)), how or mode()
        self._axes, self._metric, self._view, self._seen = axes, metric, view, ""
        self._need, self._warned = fit, None
        try:
            inspect.signature(fn).bind(None, **self.values())
        except TypeError as error:
            raise PanelError(f"{self.name}(tick, {', '.join(controls)}) cannot be called: {error}") from None
        if self.mode not in MODES:
            raise PanelError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        self._lock, self._stop, self._idle = threading.Lock(), threading.Event(), threading.Event()
        self._idle.set()
        self._count, self._freed, self._drawn, self._cell = 0, -QUEUED, 0.0, None
        self._build()

    def _build(self):
        buttons = []
        acts = {"Run": self._clicked, "Stop": self.stop, "Clear": self.clear, "Fit this": self.fit}
        for name, act in acts.items():
            button = W.Button(description=name, layout=W.Layout(width="76px"))
            button.add_class(f"nbt-{name.lower().replace(' ', '-')}")
            button.on_click(lambda _, act=act: act())
            buttons.append(button)
        buttons[0].button_style = "primary"
        buttons[3].layout.display = "none"
        self._fit_button = buttons[3]
        if self.mode == "inline":
            buttons[1] = html_widget("nbt-stop", "To stop, interrupt the kernel.")
        for widget in self.controls.values():
            widget.observe(self._moved, "value")
        names = ("nbt-status", "nbt-progress", "nbt-meter", "nbt-view")
        self._status, self._bar, self._meter, self._body = map(html_widget, names)
        columns = "repeat(auto-fit, minmax(300px, 1fr))"
        layout = W.Layout(grid_template_columns=columns, grid_gap="0 24px", max_width="760px")
        grid = W.GridBox(list(self.controls.values()), layout=layout)
        row = W.HBox([*buttons, self._bar], layout=W.Layout(flex_flow="row wrap", align_items="center"))
        head = html_widget("nbt-head", self._head())
        self.box = W.VBox([head, grid, row, self._status, self._meter, self._body]).add_class("nbt-panel")

    def _head(self):
        title = f'<b class="title">{html.escape(self.title)}</b><br>' if self.title else ""
        return STYLE + title + (f"<b>Task.</b> {_code(self.task)}" if self.task else "")

    def values(self):
        """What the controls say now, {name: value}."""
        values = {name: widget.value for name, widget in self.controls.items()}
        for name, widget in self.controls.items():
            if isinstance(values[name], float):  # what the reader sees is what runs, 0.3 and not 0.30000000000000004
                values[name] = float(f"{values[name]:.{2 if isinstance(widget, W.FloatLogSlider) else 9}e}")
        return values

    def start(self):
        """Begin a run with the controls' values, or say that it will not fit. False while one is going.

        Many quick clicks make one run.
        """
        with self._lock:  # not by the button's disabled state, which lags behind clicks
            if not self._idle.is_set():
                return False
            values = self.values()
            if not self._fits(values):
                return True
            self._idle.clear()
            self._stop.clear()
            self._count += 1
            run = Run(self._count, values)
            self.runs = [*self.runs[1 - KEEP :], run]
        if self.mode == "thread":
            threading.Thread(target=self._carry_out, args=(run,), name=f"nbt-run {run.number}", daemon=True).start()
        else:
            self._carry_out(run)
        return True

    def _fits(self, values):
        """Whether a run may begin: what it needs is free, or the reader asked for it twice, or nobody is there."""
        asked = self._need and self.mode != "headless" and values != self._warned
        need, free = (self._need(**values), room()) if asked else (0, 0)
        self._warned = values if need > free else None
        self._fit_button.layout.display = "" if need > free else "none"
        if need <= free:
            return True
        self._freed = time.monotonic()  # a double click is no second thought
        smaller = self._fitting(values, free)
        way = "no setting of this panel fits: close what else holds memory"
        if smaller:
            changed = ", ".join(
                f"{_words(key)} {_text(smaller[key])}" for key in smaller if smaller[key] != values[key]
            )
            way = f"Fit this sets {changed}, about {size(self._need(**smaller))}"
        self._say(
            f"This run needs about {size(need)} and {size(free)} are free; {way}. Run again tries it all the same."
        )
        return False

    def _fitting(self, values, free):
        """The values with the first controls made smaller until a run fits; None if that does not help."""
        for name, widget in self.controls.items():
            here = self._need(**values)
            tries = [values | {name: value} for value in _smaller(widget, values[name])]
            tries = sorted((t for t in tries if self._need(**t) < here), key=lambda t: -self._need(**t))
            for values in tries:
                if self._need(**values) <= free:
                    return values
        return None

    def fit(self):
        """Set the controls to values of which a run fits."""
        smaller = self._need and self._fitting(self.values(), room())
        if not smaller:
            return self._say("No setting of this panel fits: close what else holds memory.")
        for name, value in smaller.items():
            self.controls[name].value = value
        self._fit_button.layout.display, self._warned = "none", None
        return self._say("The controls are set: press Run.")

    def stop(self):
        """Ask the run to end at its next step."""
        self._stop.set()
        self._say("Nothing is running." if self._idle.is_set() else "Stopping at the next step.")

    def clear(self):
        """Forget all runs but one that is going."""
        self.runs = [run for run in self.runs if run.state in ("running", "stopping")]
        self._draw(view=True)

    def wait(self, timeout=None):
        """Wait until no run is going and return the last Run; an interrupt stops the run and keeps what there is."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self._idle.wait(0.05) and time.monotonic() < end:
                pass  # an Event, because on 3.11 an interrupt in Thread.join marks a live thread as ended
        except KeyboardInterrupt:
            self.stop()
            self._idle.wait()
        self._freed = time.monotonic()
        return self.runs[-1] if self.runs else None

    def _clicked(self):
        if time.monotonic() - self._freed < QUEUED:
            self._freed = time.monotonic()
        elif not self.start():
            self._say("A run is going: wait for its end or press Stop.")

    def _moved(self, change):
        if not self._idle.is_set():
            self._say(f"{change['owner'].description} changed: it takes effect at the next Run.")

    def _carry_out(self, run):
        """The whole of a run, in its thread or in the main one; leaves the panel idle whatever happens."""
        run.meter = Meter(f"run {run.number}", live=self.mode != "headless" and self._meter)
        try:
            with contextlib.ExitStack() as stack:
                if self.mode == "thread":
                    self._wait_for_turn(run)
                    stack.callback(_TURN.release)
                if self.mode == "inline" and threading.current_thread() is threading.main_thread():
                    stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._interrupted))
                self._say(f"Run {run.number} is going.")
                stack.enter_context(run.meter)
                result = self.fn(functools.partial(self._tick, run), **run.params)
            if not isinstance(result, dict | None):
                raise PanelError(f"{self.name} must return a dict of numbers, got {type(result).__name__}")
            run.result = result
            run.state = "stopped" if run.state == "stopping" else "done"
        except (Stopped, KeyboardInterrupt):
            run.state = "stopped"
            if self.mode == "headless":
                raise
        except BaseException as error:  # SystemExit too: a thread must not end without a word
            frames = error.__traceback__.tb_next  # without this one
            trace = "".join(traceback.format_exception(type(error), error, frames))
            run.state, run.error, run.trace = "error", error, trace
            if self.mode == "headless":
                raise
            while error is not None:
                error.__traceback__, error = None, error.__cause__ or error.__context__
        finally:
            self._end(run)

    def _wait_for_turn(self, run):
        while not _TURN.acquire(timeout=0.05):
            self._say(f"Run {run.number} waits until another panel's run has ended.")
            if self._stop.is_set():
                raise Stopped

    def _interrupted(self, number, frame):
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()

    def _tick(self, run, step, steps, **metrics):
        """Given to fn as `tick`: keeps the numbers, publishes them, stops when asked."""
        run.pace = run.pace or (time.monotonic(), step + 1)
        run.history.append({"step": step + 1, **{key: float(value) for key, value in metrics.items()}})
        if self.mode != "headless" and time.monotonic() - self._drawn >= PERIOD:
            self._drawn = time.monotonic()
            self._bar.value = _progress(run, steps)
            self._draw()
        run.meter.update()
        if self._stop.is_set():
            run.state = "stopping"
            raise Stopped

    def _end(self, run):
        said = f"Run {run.number} {'failed' if run.error else run.state}"
        if run.meter.seconds is not None:
            said += f" after {run.meter.seconds:.1f} s"
        if run.error:
            said += f": {type(run.error).__name__}: {run.error}".splitlines()[0]
        if self.values() != run.params:
            said += ". The controls have changed since: the next Run takes their new values"
        try:
            self._bar.value = ""
            self._draw(view=True)
            self._say(f"{said}.", alert=bool(run.error))
        finally:
            self._freed = time.monotonic() if self.mode == "inline" else self._freed
            self._idle.set()

    def _first(self):
        """The run that belongs to the cell."""
        self._cell = getattr(_ipython(), "execution_count", None)
        if self.mode != "headless":
            self._show()
        self.start()
        run = self.wait()
        if self.mode == "headless":
            self._show()
            numbers = [f"{_words(key)} {_text(value)}" for key, value in (run.result or {}).items()]
            print(", ".join([f"{self.title or 'panel'}: {len(run.history)} steps {run.state}", *numbers]))

    def _show(self):
        if self.mode == "headless":
            show(f'<div class="nbt-static">{self._head()}{self._body.value}</div>')
        else:
            show(self.box)

    def _ipython_display_(self):
        if self._cell != getattr(_ipython(), "execution_count", None):  # the cell that made the panel shows it already
            self._show()

    def _say(self, text, alert=False):
        said = html.escape(text)
        self._status.value = f'<b role="alert">{said}</b>' if alert else f'<span role="status">{said}</span>'

    def _draw(self, view=False):
        """The error of the last run, chart, view and table."""
        if view and self._view:
            try:
                self._seen = self._view(self.runs)
            except Exception as error:
                if self.mode == "headless":
                    raise
                self._seen = f'<b role="alert">{html.escape(f"The view failed: {error!r}")}</b>'
        parts = [self._chart(), self._seen if self._view else "", _table(self.runs)] if self.runs else []
        if self.runs and self.runs[-1].trace:
            trace = f'<pre class="nbt-scroll">{html.escape(self.runs[-1].trace)}</pre>'
            parts.insert(0, f'<details class="nbt-error"><summary>Traceback</summary>{trace}</details>')
        self._body.value = "".join(parts)

    def _chart(self):
        """The metric by step, one line a run; "" while there is no finite point."""
        from .plots import svg_chart

        metric = self._metric or next((key for run in self.runs for row in run.history for key in list(row)[1:]), None)
        series = []
        for run in self.runs:
            rows = [row for row in run.history if math.isfinite(row.get(metric, math.nan))]
            rows = [*rows[:: len(rows) // 300 + 1], *rows[-1:]]  # more than the chart has room for only costs time
            x, y = [row["step"] for row in rows], [row[metric] for row in rows]
            series += [{"label": _legend(run, self.runs), "x": x, "y": y}] if rows else []
        xlabel, ylabel = self._axes
        return svg_chart(series, xlabel=xlabel, ylabel=ylabel or _words(metric), title=self.title) if series else ""


def quiz(question, options, answer, why):
    """Show one question; a chosen option is said to be right or not, and why. Nothing is stored or sent.

    options: 2 to 8 str; answer: index of the right one; why: a reason for each option. Headless: prints the question.
    """
    if not 2 <= len(options) <= 8 or len(why) != len(options) or answer not in range(len(options)):
        given = f"{len(options)} options, {len(why)} reasons, answer {answer}"
        raise PanelError(f"quiz {question!r} needs 2 to 8 options, reasons for all, an index as answer: got {given}")
    if mode() == "headless":
        print(question, *(f"  {'abcdefgh'[i]}) {text}" for i, text in enumerate(options)), sep="\n")
        return
    choice = W.RadioButtons(options=[(text, i) for i, text in enumerate(options)], value=None).add_class("nbt-choice")
    choice.layout.width, feedback = "auto", html_widget("nbt-feedback")

    def chosen(change):
        verdict = "Right." if change["new"] == answer else "Not this one."
        feedback.value = f'<span role="status"><b>{verdict}</b> {_code(why[change["new"]])}</span>'

    choice.observe(chosen, "value")
    head = html_widget("nbt-question", f"{STYLE}<b>{_code(question)}</b>")
    show(W.VBox([head, choice, feedback]).add_class("nbt-quiz"))
