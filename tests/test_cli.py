"""The `nbtools` command and its doctor. Assets are small ones made here; the kernel that doctor starts is real."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import types

import pytest

from nbtools import assets, cli, notebooks, profiles
from nbtools import doctor as clinic
from nbtools.errors import NbtoolsError

CARD = """
name = "toy"
title = "A toy"
what = "eleven bytes"
licence = "CC0-1.0"
licence_source = "made here"
upstream = "none"
hub = ""
package = "toy"
version = "1"
archive = "toy.tar.gz"
archive_sha256 = ""
archive_bytes = 300000000
lessons = ["00"]
notes = ""
[[files]]
member = "toy/toy.txt"
name = "toy.txt"
sha256 = "{digest}"
bytes = 11
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The file of a small asset, the only one there is, intact in a cache of its own."""
    (tmp_path / "cards").mkdir()
    digest = hashlib.sha256(b"hello world").hexdigest()
    (tmp_path / "cards/toy.toml").write_text(CARD.format(digest=digest))
    monkeypatch.setattr(assets, "CARDS", tmp_path / "cards")
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "cache"))
    file = assets.cards()["toy"].folder / "toy.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"hello world")
    return file


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A project root whose only notebook is 00_toy and states two minutes and 3 GB on a CPU, nothing on a GPU."""
    front = {"title": "A toy", "minutes": {"cpu": 2, "gpu": None}, "peak_gb": {"cpu": 3, "gpu": None}}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 3, "outputs": [], "source": ["1 + 1"]}
    path = tmp_path / "root/notebooks/00_toy.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": [cell], "metadata": {"nbtools": front}, "nbformat": 4, "nbformat_minor": 5}))
    (tmp_path / "root/pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path / "root")
    return path


def states(check):
    return [state for state, *_ in check]


# --- doctor


def test_doctor_of_a_healthy_machine(toy, book, capsys):
    """Everything real but the asset and the notebook: torch is asked, a kernel runs, a slider lives."""
    assert clinic.doctor() == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out and "This machine is ready." in out
    for line in ("ok    Python", "ok    lesson 00  toy: intact", "ok    JupyterLab", "ok    widgets", "00_toy: "):
        assert line in out


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "missing"), (b"hello", "broken: toy.txt has 5 bytes"), (b"hello_world", "broken: toy.txt does not have")],
    ids=["missing", "cut short", "same size"],
)
def test_doctor_finds_an_asset_that_is_not_intact(toy, content, why, capsys):
    if content is None:
        toy.unlink()
        toy.parent.rmdir()
    else:
        toy.write_bytes(content)
    assert clinic.doctor([clinic.stored]) == 1
    out = capsys.readouterr().out
    assert f"FAIL  lesson 00  toy is {why}" in out
    assert "-> with network: nbtools fetch toy" in out and "Not ready: 1 failed" in out


def test_doctor_finds_too_little_disk(toy, monkeypatch):
    assert states(clinic.disk(free=0.6)) == ["ok"]
    toy.unlink()
    ((state, _, text, mend),) = clinic.disk(free=0.6)  # the archive of 0.3 GB is still to come
    assert state == "FAIL" and "0.8 GB are needed" in text and "NBTOOLS_CACHE" in mend
    monkeypatch.setattr(clinic.os, "access", lambda *_: False)
    assert states(clinic.disk(free=9)) == ["FAIL"]


def test_doctor_compares_memory_with_what_notebooks_state(book):
    assert states(clinic.memory(total=16, free=8)) == ["ok"]
    assert states(clinic.memory(total=16, free=3.2)) == ["note"]
    ((state, _, text, mend),) = clinic.memory(total=2, free=1)
    assert state == "FAIL" and "takes 3.0 GB" in text and "Colab" in mend


@pytest.mark.parametrize(
    ("version", "state"), [("3.10.9", "FAIL"), ("3.11.0", "ok"), ("3.13.2", "ok"), ("3.14.0", "FAIL")]
)
def test_doctor_knows_the_pythons(version, state):
    assert states(clinic.python(version)) == [state]


@pytest.mark.parametrize(
    ("package", "version", "text"),
    [
        ("ipywidgets", "7.6.5", "ipywidgets 7.6.5; the course needs"),
        ("jupyterlab", "3.6.8", "jupyterlab 3.6.8; the course needs"),
        ("torch", None, "torch is missing"),
    ],
)
def test_doctor_finds_packages_outside_their_range(package, version, text, monkeypatch):
    def found(name, real=importlib.metadata.version):
        if name == package and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == package else real(name)

    assert states(clinic.packages()) == ["ok"]
    monkeypatch.setattr(importlib.metadata, "version", found)
    ((state, _, said, mend),) = clinic.packages()
    assert state == "FAIL" and said.startswith(text) and "make env" in mend


def test_doctor_wants_the_widget_manager_of_this_ipywidgets(tmp_path, monkeypatch):
    assert states(clinic.lab()) == ["ok"]
    manager = tmp_path / clinic.LABEXTENSION
    manager.parent.mkdir(parents=True)
    manager.write_text('{"version": "3.1.4"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # an old one that stands first, as in ~/.local
    ((state, _, text, mend),) = clinic.lab()
    assert state == "FAIL" and "widget manager 3.1.4 where 5.x is needed" in text and str(manager.parent) in mend
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda: [])
    ((state, _, text, mend),) = clinic.lab()
    assert state == "FAIL" and "widget manager none" in text and "jupyterlab_widgets" in mend


def test_doctor_on_colab_asks_for_no_jupyterlab(monkeypatch):
    def found(name, real=importlib.metadata.version):
        return "1.0" if name == "jupyterlab" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    assert states(clinic.packages()) == ["FAIL"]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260801")
    assert states(clinic.packages()) == ["ok"] and states(clinic.lab()) == ["note"]


def test_doctor_finds_a_kernel_without_widgets(tmp_path, monkeypatch):
    """An ipywidgets that cannot be imported there, though it is installed here."""
    (tmp_path / "ipywidgets.py").write_text("raise ImportError('broken on purpose')")
    kernel = tmp_path / "kernels/crooked/kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "crooked", "language": "python", "env": {"PYTHONPATH": str(tmp_path)}}
    kernel.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    ((state, _, text, _),) = clinic.widgets("crooked")
    assert state == "FAIL" and "ImportError: broken on purpose" in text


def test_doctor_finds_a_slider_that_opens_no_channel_and_a_foreign_kernel(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(clinic, "SLIDER", "import sys; print(sys.prefix)")
        ((state, _, text, _),) = clinic.widgets()
    assert state == "FAIL" and "no channel was opened" in text
    monkeypatch.setattr(sys, "prefix", "/opt/elsewhere")
    ((state, _, text, mend),) = clinic.widgets()
    assert state == "FAIL" and "another Python" in text and "ipykernel install" in mend


def test_doctor_scales_stated_minutes_on_a_cpu_only(book, monkeypatch):
    monkeypatch.setattr(clinic, "calibrate", lambda: 3 * clinic.REFERENCE_SECONDS)
    monkeypatch.setattr(profiles, "current", lambda: types.SimpleNamespace(name="cpu"))
    ((state, _, text, _),) = clinic.minutes()
    assert state == "ok" and text.startswith("00_toy: about 6.0 min (3.0 times")
    monkeypatch.setattr(profiles, "current", lambda: types.SimpleNamespace(name="gpu"))
    ((state, _, text, _),) = clinic.minutes()
    assert state == "note" and text == "00_toy: no time is stated for the gpu profile"
    monkeypatch.setattr(clinic, "_stated", lambda profile: [("00_toy", 0.5, 2)])
    ((state, _, text, _),) = clinic.minutes()
    assert state == "ok" and text.startswith("00_toy: about 0.5 min (as stated for a GPU")


def test_doctor_goes_on_after_a_check_that_breaks(toy, capsys):
    def broken():
        yield "ok", "first", "fine", ""
        raise OSError("no such thing")

    assert clinic.doctor([broken, clinic.stored]) == 1
    out = capsys.readouterr().out
    assert "FAIL  broken     could not be checked: OSError: no such thing" in out and "ok    lesson 00" in out


def test_doctor_by_its_command(toy, monkeypatch):
    monkeypatch.setattr(clinic, "doctor", lambda: 1)
    assert cli.main(["doctor"]) == 1


# --- the command


def test_the_command_loads_nothing_heavy():
    """`nbtools --help` and a mistyped command answer at once."""
    heavy = "torch transformers matplotlib ipywidgets nbformat nbclient IPython pip numpy"
    code = f"import sys, nbtools.cli; print([name for name in '{heavy}'.split() if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_an_error_for_the_reader_is_one_line(monkeypatch, capsys):
    def fails(book, **_):
        raise NbtoolsError("lesson 7 does not exist: there are 00 and 01.")

    monkeypatch.setattr(notebooks, "run", fails)
    assert cli.main(["run", "7"]) == 2
    assert capsys.readouterr() == ("", "nbtools: lesson 7 does not exist: there are 00 and 01.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("plan minilm --batch x", "nbtools plan: argument --batch: invalid int value: 'x'; nbtools plan --help lists"),
        ("plan minilm --gpus 2", "unrecognized arguments: --gpus 2"),
        ("", "required: COMMAND"),
    ],
)
def test_a_wrong_argument_is_one_line_too(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_ctrl_c_is_one_line_and_a_bug_keeps_its_traceback(monkeypatch, capsys):
    def interrupted(book, **_):
        raise KeyboardInterrupt

    def wrong(book, **_):
        raise ZeroDivisionError

    monkeypatch.setattr(notebooks, "run", interrupted)
    assert cli.main(["run", "1"]) == 130
    assert capsys.readouterr().err == "\nnbtools: stopped by Ctrl-C; what was finished is kept.\n"
    monkeypatch.setattr(notebooks, "run", wrong)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "1"])


def test_a_reader_that_goes_away_is_no_traceback():
    """As in `nbtools doctor | head -1`."""
    code = "import sys; from nbtools import cli, notebooks; notebooks.run = lambda *_, **__: print('x' * 10**6)"
    command = [sys.executable, "-c", f"{code}; sys.exit(cli.main(['run', '1']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 1


def test_run_hands_on_notebook_and_profile(monkeypatch):
    seen = []
    monkeypatch.setattr(notebooks, "run", lambda book, **options: seen.append((book, options)))
    assert cli.main(["run", "01", "--profile", "gpu"]) == 0
    assert seen == [("01", {"profile": "gpu"})]


@pytest.mark.parametrize(
    ("arguments", "fetched"),
    [
        ([], ["a", "b", "c"]),
        (["--lessons", "00"], ["a"]),
        (["--lessons", "1", "00"], ["a", "b"]),
        (["--lessons", "01_transfer_learning"], ["b"]),
        (["--lessons", "07"], []),
        (["c"], ["c"]),
        (["c", "--lessons", "00"], ["a", "c"]),
    ],
)
def test_fetch_takes_names_lessons_or_all(arguments, fetched, tmp_path, monkeypatch, capsys):
    def card(lesson):
        return types.SimpleNamespace(lessons=(lesson,), files=[types.SimpleNamespace(bytes=10**6)])

    seen = []
    monkeypatch.setattr(assets, "cards", lambda: {"a": card("00"), "b": card("01"), "c": card("02")})
    monkeypatch.setattr(assets, "status", lambda name: "missing" if name == "a" else "ok")
    monkeypatch.setattr(assets, "fetch", seen.append)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    assert cli.main(["fetch", *arguments]) == 0
    assert sorted(seen) == fetched
    said = f"{len(fetched)} assets ({len(fetched)} MB) are in {tmp_path}, {int('a' in fetched)} of them fetched now.\n"
    assert capsys.readouterr().out == said


def test_test_runs_all_stages_and_fails_if_one_does(monkeypatch, capsys):
    ran = []

    def fake(command, **_):
        ran.append(command)
        return types.SimpleNamespace(returncode=int("notebooks" in command))

    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(notebooks.Path, "exists", lambda self: True)
    assert cli.main(["test"]) == 1
    out = capsys.readouterr().out
    assert [command[command.index("-m", 3) + 1] for command in ran[1:3]] == ["not alone", "alone"], "each test once"
    assert len(ran) == 6 and "notebooks  FAILED" in out and "package    ok" in out
    assert cli.main(["test", "style", "package"]) == 0
    assert cli.main(["test", "speling"]) == 2
    assert "no test stage 'speling'" in capsys.readouterr().err


def test_test_says_how_to_get_the_colab_environment(book, capsys):
    assert cli.main(["test", "colab"]) == 2
    assert "make test-colab" in capsys.readouterr().err


def test_clean_and_check_tell_by_their_status(book, capsys):
    assert cli.main(["clean", "--check"]) == 1
    assert "00_toy.ipynb" in capsys.readouterr().out and '"execution_count": 3' in book.read_text()
    assert cli.main(["clean"]) == 0
    assert cli.main(["clean", "--check"]) == 0
    assert "none" in capsys.readouterr().out
    assert cli.main(["check"]) == 1  # it has no claim, no badge, no panel
    assert "00_toy.ipynb: " in capsys.readouterr().out


def test_check_is_content_when_no_notebook_has_a_problem(book, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "contract", lambda path: [])
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "00_toy.ipynb: ok\n"
    book.unlink()
    assert cli.main(["check"]) == 2


def test_student_and_build_write_copies(book, monkeypatch, capsys):
    assert cli.main(["student", "00"]) == 0
    assert (book.parents[1] / "build/student/00_toy.ipynb").exists()
    ran = []
    monkeypatch.setattr(notebooks, "run", lambda path, out: ran.append((path, out)))
    assert cli.main(["build"]) == 0 and ran == [(book, "build/lessons")]


def test_lab_opens_the_first_notebook_and_ends_with_ctrl_c(book, monkeypatch, capsys):
    started = []

    class Lab:
        def __init__(self, command, cwd):
            started.append((command, cwd))
            self.interrupted = False

        def wait(self):
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return 1

    monkeypatch.setattr(subprocess, "Popen", Lab)
    assert cli.main(["lab", "--", "--no-browser"]) == 0
    ((command, cwd),) = started
    assert cwd == book.parent and command[1:3] == ["-m", "jupyterlab"]
    assert {"--no-browser", "--LabApp.news_url=None"} <= {*command} and command[-1] == "00_toy.ipynb"
    assert f"what you saved is in {book.parent}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "module", "function", "called"),
    [
        (["bench", "meter"], "bench", "meter", ((), {})),
        (["bench", "import"], "bench", "import_", ((), {})),
        (["study", "frontier"], "studies", "run", (("frontier",), {"full": False, "seeds": None})),
        (
            ["study", "frontier", "--full", "--seeds", "1", "2"],
            "studies",
            "run",
            (("frontier",), {"full": True, "seeds": [1, 2]}),
        ),
        (["report"], "records", "report", ((), {})),
    ],
)
def test_the_other_commands_hand_on(arguments, module, function, called, monkeypatch):
    seen = []
    fake = types.ModuleType(f"nbtools.{module}")
    setattr(fake, function, lambda *positional, **named: seen.append((positional, named)))
    monkeypatch.setitem(sys.modules, f"nbtools.{module}", fake)
    monkeypatch.setattr("nbtools." + module, fake, raising=False)
    assert cli.main(arguments) == 0 and seen == [called]
