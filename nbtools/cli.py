"""The `nbtools` command: one function a subcommand, each returns an exit status.

What a subcommand needs is imported inside it, so that `nbtools --help` answers at once; only the planner, which brings
no torch, is imported for its choices. An error meant for the reader
(NbtoolsError) is one line and status 2, Ctrl-C one line and 130; any other error is a bug and keeps its traceback.
"""

import argparse
import os
import subprocess
import sys
import time

from nbtools import formulas, notebooks, planner
from nbtools.errors import NbtoolsError


def doctor(args):
    """say whether this machine is ready for the course, and how to mend what is not"""
    from nbtools.doctor import doctor

    return doctor()


def fetch(args):
    """download models and data and verify them: those named, those of some lessons, or all"""
    from nbtools import assets

    lessons = {f"{lesson.partition('_')[0]:0>2}" for lesson in args.lessons or []}  # "1" and "01_title" are "01"
    chosen = [name for name, card in assets.cards().items() if lessons & {*card.lessons}] + args.names
    chosen = chosen if lessons or args.names else [*assets.cards()]
    missing = [name for name in chosen if assets.status(name) != "ok"]
    for name in chosen:
        assets.fetch(name)
    size = sum(file.bytes for name in {*chosen} for file in assets.cards()[name].files) / 1e6
    print(f"{len(chosen)} assets ({size:.0f} MB) are in {assets.cache()}, {len(missing)} of them fetched now.")
    return 0


def lab(args):
    """open JupyterLab on the course"""
    folder = notebooks.ROOT / "notebooks"
    calm = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    root = ["--allow-root"] if os.geteuid() == 0 else []
    command = [sys.executable, "-m", "jupyterlab", *calm, *root, *args.options]
    first = next((path.name for path in sorted(folder.glob("*.ipynb"))), None)
    print(f"JupyterLab opens {folder / (first or '')}; Ctrl-C here ends it.", flush=True)
    process = subprocess.Popen([*command, "--ServerApp.answer_yes=True", *([first] if first else [])], cwd=folder)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        status = process.wait() * 0  # it got the Ctrl-C too, and shuts its kernels down first
    print(f"JupyterLab has ended; what you saved is in {folder}.")
    return status


def run(args):
    """run one notebook headless: executed copy as .ipynb and HTML, result table"""
    notebooks.run(args.notebook, profile=args.profile)
    return 0


def test(args):
    """run the tests, all stages or those named: style, package, alone, notebooks, contract, colab"""
    python, pytest = sys.executable, ["-m", "pytest", "-ra"]
    nbval = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "notebooks"]
    stages = {
        "style": [python, "-m", "ruff", "check", "."],
        "package": [python, *pytest, "-m", "not alone", "-n", "2", "--dist", "loadfile", "tests"],
        "alone": [python, *pytest, "-m", "alone", "tests"],
        "notebooks": [python, *pytest, *nbval],
        "contract": [python, "-m", "nbtools.cli", "check"],
        "colab": [".venv-colab/bin/python", *pytest, "tests/test_widgets.py", "tests/test_meters.py"],
    }
    if unknown := {*args.stages} - {*stages}:
        raise NbtoolsError(f"There is no test stage {min(unknown)!r}: choose from {', '.join(stages)}.")
    if "colab" in (args.stages or stages) and not (notebooks.ROOT / ".venv-colab").exists():
        raise NbtoolsError("The stage colab needs the environment .venv-colab: run `make test` or `make test-colab`.")
    environment, rows = os.environ | {"PYTHONPATH": str(notebooks.ROOT)}, []
    for stage in args.stages or stages:
        print(f"\n== {stage}: {' '.join(stages[stage])}", flush=True)
        start, one = time.monotonic(), {"OMP_NUM_THREADS": "1"} if stage == "package" else {}
        status = subprocess.run(stages[stage], cwd=notebooks.ROOT, env=environment | one).returncode
        rows.append((stage, "FAILED" if status else "ok", time.monotonic() - start))
    print("\n== stage      result   seconds")
    for stage, result, seconds in rows:
        print(f"   {stage:10} {result:6} {seconds:9.1f}")
    return int(any(result != "ok" for _, result, _ in rows))


def clean(args):
    """make notebooks fit for git; with --check only say which are not"""
    changed = [book.name for book in _books(args) if notebooks.clean(book, args.check, args.outputs_from)]
    print(f"{'To be cleaned' if args.check else 'Cleaned'}: {', '.join(changed) or 'none'}.")
    return int(args.check and bool(changed))


def check(args):
    """check the contract of notebooks: what is stated, shown, measured and saved"""
    from nbtools import studies

    found = {book: [*notebooks.contract(book), *studies.stale(book)] for book in _books(args)}
    for book, problems in found.items():
        print("\n  - ".join([f"{book.name}: {len(problems)} problems" if problems else f"{book.name}: ok", *problems]))
    return int(any(found.values()))


def student(args):
    """build the student copies, without solutions and outputs"""
    for book in _books(args):
        print(f"Wrote {notebooks.student(book)}.")
    return 0


def build(args):
    """build the reading copies (each notebook is run; HTML with all outputs) and the student copies"""
    for book in _books(args):
        notebooks.run(book, out="build/lessons")
    return student(args)


def bench(args):
    """measure our own code: train, meter, import, or lesson 09's ppo against trl's"""
    from nbtools import bench

    return getattr(bench, args.what.replace("import", "import_"))() or 0


def plan(args):
    """predict the memory of a training step on one card, phase by phase, and say what to turn to make it fit"""
    import json
    import re
    import shutil
    import textwrap

    from nbtools import meters

    own = ("function", "model", "json", "trace", "figure")
    options = {key: value for key, value in vars(args).items() if key not in own}
    found, traced = planner.plan(args.model, **options), None
    if args.figure:
        _save(found.figure(), args.figure)
    if args.trace:
        planner.traceable(found.setup)
        print("Tracing the model's own code, up to some minutes ...", file=sys.stderr)
        from nbtools import tracing

        traced = tracing.trace(args.model, **options)
        counted = planner.plan(args.model, **options | {"device": "cpu", "card": None})
    if args.json:
        more = {"counted": counted.phases, "traced": traced} if traced else {}
        print(json.dumps(found.json() | more, indent=1))
        return 0
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    for line in str(found).splitlines():
        whole = re.sub(r"(?<=\d) (?=[KMG]?i?B\b|%)", "\xa0", line)  # a number stays with its unit
        print(textwrap.fill(whole, width, subsequent_indent="  ", break_on_hyphens=False).replace("\xa0", " "))
    if traced:
        print("\nwithout a GPU's allocator and kernels:\nphase         formulas      traced")
        for phase, held in traced.items():
            bytes_, off = sum(held.values()), counted.total(phase) / sum(held.values()) - 1
            apart = f"  apart by {off:+.1%}" if abs(off) > 0.02 else ""
            print(f"{phase:10} {meters.size(counted.total(phase)):>11} {meters.size(bytes_):>11}{apart}")
    return 0


def _save(figure, file):
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise NbtoolsError(f"The figure cannot be written to {file!r} ({error}): give another file.") from None


def study(args):
    """run or go on with a long experiment; its rows go to results/"""
    from nbtools import studies

    return studies.run(args.name, full=args.full, seeds=args.seeds) or 0


def report(args):
    """make the tables and figures of results/ anew"""
    from nbtools import records

    return records.report() or 0


def _books(args):
    books = [notebooks.find(name) for name in args.notebooks] or sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))
    if not books:
        raise NbtoolsError(f"There is no notebook in {notebooks.ROOT / 'notebooks'}: restore it from git.")
    return books


class Parser(argparse.ArgumentParser):
    """One that answers a wrong argument with one sentence, as all else here does."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists what there is.\n")


def parser():
    """The argument parser; a subcommand's help is the docstring of its function."""
    main = Parser(prog="nbtools", description="The course's plumbing; `make` has everyday commands.")
    commands, add = main.add_subparsers(required=True, metavar="COMMAND"), {}
    for function in (doctor, fetch, lab, run, test, clean, check, student, build, bench, plan, study, report):
        add[function] = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        add[function].set_defaults(function=function)
    add[fetch].add_argument("names", nargs="*", help="assets, by the names of their cards in datasets/")
    add[fetch].add_argument("--lessons", nargs="+", metavar="NB", help="only what these lessons need, as in 00 01")
    add[lab].add_argument("options", nargs="*", help="options for JupyterLab, after a --")
    add[run].add_argument("notebook", help="number or name, as in 01")
    add[run].add_argument("--profile", choices=["cpu", "gpu"], help="instead of what this machine is")
    add[test].add_argument("stages", nargs="*", help="style, package, alone, notebooks, contract, colab; all without")
    for function in (clean, check, student, build):
        add[function].add_argument("notebooks", nargs="*", metavar="NB", help="numbers or names; all without a name")
    add[clean].add_argument("--check", action="store_true", help="change nothing, exit 1 if something would change")
    add[clean].add_argument("--outputs-from", metavar="IPYNB", help="an executed copy to take the kept outputs from")
    add[bench].add_argument("what", choices=["train", "meter", "import", "ppo"])
    _plan_arguments(add[plan])
    add[study].add_argument("name")
    add[study].add_argument("--full", action="store_true", help="the full grid, for a GPU; else the small form")
    add[study].add_argument("--seeds", type=int, nargs="+", help="these seeds instead of the study's own")
    return main


def _plan_arguments(parser):
    known = ", ".join(formulas.DECODERS + formulas.ENCODERS)
    models = ", ".join(planner.MODELS)
    parser.add_argument("model", help=f"{models}, or a folder with a config.json or a hub name, of type {known}")
    for name, choices in planner.CHOICES.items():
        meaning = f" ({planner.MEANINGS[name]})" if name in planner.MEANINGS else ""
        parser.add_argument(f"--{name}", help=", ".join(choices) + meaning, default=planner.DEFAULTS[name])
    for name in planner.SWITCHES:
        flag, what = f"--{name.replace('_', '-')}", argparse.BooleanOptionalAction
        parser.add_argument(flag, action=what, default=planner.DEFAULTS[name], help=planner.SWITCHES[name])
    counts = {"rank": "of LoRA", "batch": "rows, or examples of two rows", "seq": "tokens a row"}
    for name, what in (counts | {"accumulation": "batches a step"}).items():
        parser.add_argument(f"--{name}", type=int, default=planner.DEFAULTS[name], help=what)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--targets", help="all-linear, attention, mlp, qv, or names of layers", default="all-linear")
    parser.add_argument("--reward-model", help="of ppo, frozen beside the policy; named as the model")
    parser.add_argument("--card", help=f"{', '.join(planner.CARDS)}, or its memory in GiB as CUDA tells it")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--figure", metavar="FILE", help="also draw the phases, to a .png, .svg or .pdf")
    parser.add_argument(
        "--trace", action="store_true", help="also run the model's own code without data, up to minutes"
    )


def main(argv=None):
    """Run one subcommand; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        return args.function(args)
    except NbtoolsError as error:
        print(f"nbtools: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nnbtools: stopped by Ctrl-C; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `nbtools doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
