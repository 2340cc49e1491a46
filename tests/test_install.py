"""The two doors into the environment, ranges and pins, the Makefile and the workflows: read, compared, tried."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name as canonical

import nbtools

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ["requirements.lock", "requirements-gpu.lock", "tests/requirements-colab.txt"]
MACHINES = [
    {"python_version": v, "python_full_version": f"{v}.5", "sys_platform": s, "platform_machine": m, "os_name": "posix"}
    for v in ("3.11", "3.12", "3.13")
    for s, m in (("linux", "x86_64"), ("darwin", "arm64"))
]
# The runtimes that the course must run on as they are, not as we would lock them.
COLAB = {"torch": "2.11", "transformers": "5.15", "peft": "0.20", "datasets": "4.0", "ipywidgets": "7.7.1"}
COLAB |= {"ipython": "7.34", "matplotlib": "3.10"}
GPU_IMAGE = {"torch": "2.11", "torchvision": "0.26", "transformers": "5.17", "accelerate": "1.15"}


def lines(name):
    """The requirement lines of a lock file, without comments."""
    text = (ROOT / name).read_text().splitlines()
    return [line for line in text if line.strip() and not line.lstrip().startswith("#")]


def pins(name, machine=None):
    """{package: version} of a lock file on a machine, a dict of marker values; this one if None."""
    wanted = [Requirement(line) for line in lines(name)]
    environment = default_environment() | (machine or {})
    wanted = [need for need in wanted if not need.marker or need.marker.evaluate(environment)]
    found = {canonical(need.name): str(need.specifier).removeprefix("==") for need in wanted}
    assert len(found) == len(wanted), f"{name} pins a package twice for {machine}"
    return found


def declared(*extras):
    """pyproject's requirements: its dependencies and those of the extras."""
    every = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in every]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_exact_pins_and_no_address(name):
    assert len(lines(name)) > 50
    for line in lines(name):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [^/@]+)?", line), line
    assert "://" not in (ROOT / name).read_text()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['python_version']}-{m['sys_platform']}")
def test_the_lock_fits_the_ranges_and_the_constraints(machine):
    locked = pins("requirements.lock", machine)
    for need in declared("lab", "test"):
        assert locked[canonical(need.name)] in need.specifier, f"{need} is locked at {locked[canonical(need.name)]}"
    assert pins("constraints.txt").items() <= locked.items()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['python_version']}-{m['sys_platform']}")
def test_the_gpu_lock_agrees_with_the_first(machine):
    base, gpu = pins("requirements.lock", machine), pins("requirements-gpu.lock", machine)
    assert {name: gpu[name] for name in gpu.keys() & base.keys() if gpu[name] != base[name]} == {}
    assert ({"unsloth", "xformers"} <= gpu.keys()) == (machine["sys_platform"] == "linux")
    for need in declared("gpu"):
        if not need.marker or need.marker.evaluate(default_environment() | machine):
            assert gpu[canonical(need.name)] in need.specifier


@pytest.mark.parametrize(("python", "image"), [("3.13.0", COLAB), ("3.12.0", GPU_IMAGE)], ids=["colab", "gpu"])
def test_the_ranges_admit_the_runtimes_we_do_not_choose(python, image):
    assert python in SpecifierSet(PROJECT["requires-python"])
    ranges = {canonical(need.name): need.specifier for need in declared()}
    outside = [f"{name} {version}: {ranges[name]}" for name, version in image.items() if version not in ranges[name]]
    assert outside == []


def test_colab_leg_has_colabs_widgets():
    locked = pins("tests/requirements-colab.txt")
    assert {name: locked[name] for name in ("ipywidgets", "ipython")} == {"ipywidgets": "7.7.1", "ipython": "7.34.0"}


def test_both_doors_install_the_same(tmp_path):
    """conda's pip section names the very file that `make env` installs, so there is no second list to drift."""
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (section,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    plain = [entry for entry in conda if isinstance(entry, str)]
    files = [line.split()[1] for line in section if line.split()[0] in ("-r", "--requirement")]
    assert [re.split(r"[=<>]", entry)[0] for entry in plain] == ["python", "pip"]
    assert f"{plain[0].removeprefix('python=')}.0" in SpecifierSet(PROJECT["requires-python"])
    assert {line for line in section if line.split()[1] not in files} == {"--editable ."}
    recipe = make("-n", "env", f"VENV={tmp_path}/venv").stdout
    (synced,) = re.findall(r"pip sync ([^$;|]+?) +\$quiet", recipe)
    assert [pins(file) for file in synced.split()] == [pins(file) for file in files]
    assert "--editable ." in recipe


def test_facts_that_stand_in_more_than_one_file_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert nbtools.__version__ == PROJECT["version"] == citation["version"]
    assert PROJECT["urls"]["Repository"] == citation["repository-code"]
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text()
    assert "creativecommons.org/licenses/by/4.0" in (ROOT / "LICENSE-TEXT").read_text()


def test_the_folder_datasets_does_not_hide_the_library():
    assert list((ROOT / "datasets").rglob("*.py")) == []
    code = "from importlib.util import find_spec; print(find_spec('datasets').origin)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "site-packages" in found


# --- the Makefile


def make(*arguments, **environment):
    """Run make in the project's root, without the variables that an outer make would hand down."""
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=clean | environment)


def targets():
    """The targets of the Makefile that people call."""
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    return set(phony.split())


def test_make_lists_its_commands():
    assert set(re.findall(r"^  make ([a-z-]+)", make().stdout, re.M)) == targets()


def test_a_wrong_python_is_one_sentence_and_leaves_nothing(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\n[ "$1" = -V ]\n')
    old.chmod(0o755)
    done = make("env", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert sentence.startswith(f"No Python that fits; {old} is Python 3.9.2. The course needs 3.11, 3.12 or 3.13")
    assert "make PYTHON=" in sentence


def test_the_first_python_that_fits_is_taken(tmp_path):
    for name, status in (("python3", 1), ("python3.12", 0)):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {status}\n[ "$1" = -V ] && echo fake\n[ "$1" = -V ]\n')
        fake.chmod(0o755)
    done = make("env", f"VENV={tmp_path}/venv", PYTHON="", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert f"Making {tmp_path}/venv with python3.12 (fake)" in done.stdout


def test_make_run_asks_for_the_notebook():
    done = make("run")
    assert done.returncode == 2 and "make run NB=01" in done.stderr and done.stdout == ""


def test_torch_for_the_cpu_leaves_out_cuda_and_nothing_else(tmp_path):
    """Only the filter is tried: PyTorch's own index is not to be had in a test."""
    recipe = make("-n", "env", f"VENV={tmp_path}/venv", "TORCH=cpu").stdout
    (pattern,) = re.findall(r"grep -vE '([^']+)' requirements.lock", recipe)
    dropped = {line for line in lines("requirements.lock") if re.search(pattern, line)}
    assert dropped and all("sys_platform == 'linux'" in line for line in dropped)
    assert {re.split("[-=]", line)[0] for line in dropped} == {"nvidia", "cuda", "triton"}
    assert "--torch-backend cpu" in recipe


def test_uv_is_handed_the_index_that_pip_uses(tmp_path):
    """A classroom's mirror is set up for pip; uv alone would not see it."""
    (tmp_path / "bin").mkdir()
    scripts = {"python": f'exec {sys.executable} "$@"', "uv": 'echo "index: $UV_DEFAULT_INDEX"'}
    for name, line in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://mirror.test/simple\n")
    quiet = {"UV_DEFAULT_INDEX": "", "UV_INDEX_URL": "", "PIP_INDEX_URL": ""}
    shared = (f"VENV={tmp_path}", "locks", "COMPILE=$(UV)")
    assert "index: http://mirror.test/simple\n" in make(*shared, **quiet, PIP_CONFIG_FILE=f"{tmp_path}/pip.conf").stdout
    assert "index: \n" in make(*shared, **quiet, PIP_CONFIG_FILE=os.devnull).stdout
    own = quiet | {"UV_DEFAULT_INDEX": "http://own.test/simple", "PIP_CONFIG_FILE": f"{tmp_path}/pip.conf"}
    assert "index: http://own.test/simple\n" in make(*shared, **own).stdout


# --- workflows and words


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_call_make_targets_and_few_actions(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    actions = {step["uses"].partition("@")[0] for step in steps if "uses" in step}
    assert actions <= {"actions/checkout", "actions/setup-python", "actions/upload-artifact"}
    called = [word for step in steps for word in step.get("run", "").split() if step["run"].startswith("make ")]
    assert {word for word in called if "=" not in word} - {"make"} <= targets()


def test_ci_covers_what_is_supported():
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    versions, wanted = [f"3.{minor}" for minor in range(8, 20)], SpecifierSet(PROJECT["requires-python"])
    supported = [version for version in versions if f"{version}.0" in wanted]
    assert job["strategy"]["matrix"]["python"] == supported
    assert {os.partition("-")[0] for os in job["strategy"]["matrix"]["os"]} == {"ubuntu", "macos"}
    assert {"run": "make test"} in job["steps"]


def test_ci_run_calls_the_readmes_test_command():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert re.search(r"^stage make test$", script.read_text(), re.M)


@pytest.mark.parametrize(
    ("user", "browser", "installs"),
    [("0", False, ["chromium fonts-liberation"]), ("0", True, []), ("1000", False, [])],
    ids=["root without a browser", "with a browser", "no root"],
)
def test_ci_run_installs_the_browser_it_lacks(user, browser, installs, tmp_path):
    """On stubs: what would be installed and which make targets are called, in which order."""
    log = f'echo "$(basename $0) $*" >> {tmp_path}/log'
    stubs = {"make": log, "apt-get": log, "python3": "exit 0", "id": f"echo {user}"} | (
        {"chromium": ":"} if browser else {}
    )
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for tool in ("bash", "sh", "dirname", "basename"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(["bash", ROOT / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "log").read_text().splitlines()
    assert [line for line in called if line.startswith("make")] == ["make env", "make fetch", "make test"]
    assert [line.partition("recommends ")[2] for line in called if "apt-get install" in line] == installs
    assert ("going on without" in done.stdout) == (user != "0")
    assert "== make test: " in done.stdout


def test_commands_in_the_words_exist():
    from nbtools.cli import parser

    commands = set(parser()._subparsers._group_actions[0].choices)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("datasets/*.md")]:
        text = path.read_text()
        assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", "\n".join(code(text)))) <= targets(), path.name
        assert set(re.findall(r"\bnbtools ([a-z]+)\b", "\n".join(code(text)))) <= commands, path.name


def code(text):
    """What stands in code quotes and code blocks of a Markdown text."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
