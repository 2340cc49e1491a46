"""Assets against a package index of the test's own, on loopback, with every fault it can have.

Each fault ends in success or in one clear sentence, and the cache is good afterwards: `world.heals()` fetches again.
"""

import errno
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import socketserver
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from nbtools import assets

ROOT = Path(__file__).resolve().parent.parent
BIG = random.Random(0).randbytes(400_000)  # does not compress, so the archive is about as long
SETUP = b"import os, pathlib; pathlib.Path(os.environ['MARKER']).touch()\n"
FILES = {"big.bin": BIG, "small.txt": b"hello\n"}
FETCH = """
import sys
from pathlib import Path
from nbtools import assets
assets.CARDS = Path(sys.argv[1])
print(assets.fetch("toy"))
"""


def tar_of(members, links=()):
    """A .tar.gz, as bytes, of {path: bytes}; `links` are (path, target, type)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as box:
        for path, target, kind in links:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, target
            box.addfile(info)
        for path, data in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            box.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(members, links=()):
    """A wheel, as bytes, of {path: bytes}; `links` are (path, target)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as box:
        for path, target in links:
            info = zipfile.ZipInfo(path)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            box.writestr(info, target)
        for path, data in members.items():
            box.writestr(path, data)
    return out.getvalue()


class Index(socketserver.ThreadingTCPServer):
    """A simple package index: serves `archives`, obeys `faults` (one a request, the last one for ever if `stuck`)."""

    allow_reuse_address = daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives, self.faults, self.stuck, self.log = {}, [], False, []
        self.pages, self.release, self.pause = True, threading.Event(), 0.0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/simple"

    def asked(self):
        """Range headers of the archive requests so far, None where a request had none."""
        return [rng for path, rng in self.log if path.startswith("/files/")]

    def fault(self):
        if not self.faults:
            return None
        return self.faults[0] if self.stuck else self.faults.pop(0)

    def stop(self):
        self.release.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        index = self.server
        index.log.append((self.path, self.headers["Range"]))
        if self.path.startswith("/simple/"):
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in index.archives)
            return self.answer(200 if index.pages else 404, links.encode(), "text/html")
        name = self.path.removeprefix("/files/")
        data, fault = index.archives[name], index.fault()
        if fault in (404, 403, 500, 503):
            return self.answer(fault, b"no")
        if fault == "hang":
            return index.release.wait(30)
        if fault == "other":
            data = data[:-9] + b"different"
        start = 0 if fault == "no range" else int((self.headers["Range"] or "bytes=0-")[6:-1])
        body = data[start:]
        if fault == "short":  # says nothing of the length that is missing
            return self.answer(200, body[: len(body) // 2])
        self.send_response(206 if start else 200)
        if fault == "encoded":
            self.send_header("Content-Encoding", "gzip")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            return index.release.wait(30) if fault == "stall" else None
        for at in range(0, len(body), 20_000):
            time.sleep(index.pause)
            self.wfile.write(body[at : at + 20_000])

    def answer(self, code, body, kind="application/octet-stream"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class World:
    """An index, a folder of cards and a cache, all new."""

    def __init__(self, folder, index):
        self.index, self.cards, self.cache = index, folder / "cards", folder / "cache"
        self.cards.mkdir()

    def add(self, name="toy", archive="toy-1.0.tar.gz", data=None, files=FILES, prefix="toy-1.0/data/"):
        """Put an archive on the index and its card in the folder."""
        build = zip_of if archive.endswith(".whl") else tar_of
        data = data or build({"toy-1.0/setup.py": SETUP} | {prefix + key: value for key, value in files.items()})
        self.index.archives[archive] = data
        texts = "title what licence licence_source upstream hub notes".split()
        card = dict.fromkeys(texts, "text") | {"name": name, "package": "toy", "version": "1.0", "archive": archive}
        card |= {"archive_sha256": hashlib.sha256(data).hexdigest(), "archive_bytes": len(data), "lessons": ["01"]}
        lines = [f"{key} = {json.dumps(value)}" for key, value in card.items()]
        for key, value in files.items():
            file = {"member": prefix + key, "name": key, "sha256": hashlib.sha256(value).hexdigest()}
            lines += ["[[files]]", *(f"{k} = {json.dumps(v)}" for k, v in (file | {"bytes": len(value)}).items())]
        (self.cards / f"{name}.toml").write_text("\n".join(lines))
        return self

    @property
    def part(self):
        return self.cache / ".partial" / "toy-1.0.tar.gz.part"

    def fails(self, *parts):
        """fetch("toy") fails in one sentence that holds the name and `parts`, and leaves nothing that looks good."""
        with pytest.raises(assets.AssetError) as caught:
            assets.fetch("toy", progress=False)
        one_sentence(str(caught.value), "toy", *parts)
        assert assets.status("toy") == "missing"

    def heals(self):
        """Once the fault is over, fetch("toy") brings the right bytes and leaves nothing behind."""
        self.index.faults, self.index.stuck = [], False
        folder = assets.fetch("toy", progress=False)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
        assert assets.status("toy", verify=True) == "ok"
        assert [path.name for path in folder.parent.iterdir() if path.name != ".partial"] == [folder.name]
        left = [path.suffix for path in (self.cache / ".partial").iterdir()]
        assert left == [".lock"]


def one_sentence(text, *parts):
    assert text.endswith(".") and "\n" not in text and len(text) < 500, text
    assert "Traceback" not in text and "Pool(" not in text and "object at" not in text, text
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


@pytest.fixture
def make_index():
    made = []
    yield lambda: made.append(Index()) or made[-1]
    for index in made:
        index.stop()


@pytest.fixture
def world(tmp_path, monkeypatch, make_index):
    for name in list(os.environ):
        if name.startswith(("PIP_", "NBTOOLS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    made = World(tmp_path, make_index())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # no settings of this machine
    monkeypatch.setenv("PIP_INDEX_URL", made.index.url)
    monkeypatch.setenv("NBTOOLS_CACHE", str(made.cache))
    monkeypatch.setenv("MARKER", str(tmp_path / "built"))
    monkeypatch.setattr(assets, "CARDS", made.cards)
    monkeypatch.setattr(assets, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(assets, "STALL", 0.4)
    yield made.add()
    assert not (tmp_path / "built").exists(), "the setup.py of a downloaded archive was run"


def child(world):
    return subprocess.Popen(
        [sys.executable, "-I", "-c", FETCH, world.cards], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


# --- the straight way


@pytest.mark.parametrize("archive", ["toy-1.0.tar.gz", "toy-1.0-py3-none-any.whl"])
def test_fetches_once_and_runs_nothing(world, archive):
    world.index.archives.clear()
    world.add(archive=archive)
    assert assets.status("toy") == "missing"
    world.heals()
    requests = len(world.index.log)
    assert assets.fetch("toy") == assets.path("toy") and assets.file("toy", "small.txt").read_bytes() == b"hello\n"
    assert len(world.index.log) == requests, "an asset that is here was asked for again"
    assert "toy" not in sys.modules


def test_is_quiet_and_leaves_logging_alone(world, monkeypatch, capfd):
    monkeypatch.setenv("PIP_FIND_LINKS", "/no/such/folder")  # pip warns of it
    logging.setLoggerClass(logging.Logger)
    before = logging.getLogger("pip").level
    world.heals()
    assert logging.getLoggerClass() is logging.Logger and logging.getLogger("pip").level == before
    assert logging.getLogger("pip").propagate and not logging.getLogger("pip").handlers
    assert capfd.readouterr() == ("", "")


def test_progress_bar(world, capfd):
    world.index.pause = 0.02
    assets.fetch("toy")
    assert re.search(r"toy: +[1-9]\d%", capfd.readouterr().err)


def test_missing_asset_and_file_say_what_to_do(world):
    for ask, parts in [
        (lambda: assets.path("toy"), ["toy", "missing", "nbtools fetch"]),
        (lambda: assets.fetch("tyo"), ["'tyo'", "choose one of toy"]),
        (lambda: assets.file("toy"), ["None", "big.bin, small.txt"]),
        (lambda: assets.file("toy", "x"), ["'x'", "big.bin, small.txt"]),
    ]:
        with pytest.raises(assets.AssetError) as caught:
            ask()
        one_sentence(str(caught.value), *parts)
    assert not world.index.log and not world.cache.exists()


def test_fetch_all_says_what_and_where(world, tmp_path):
    lines = assets.fetch_all(progress=False)
    assert (
        lines[0].startswith("toy: fetched")
        and lines[-1] == f"1 assets are ready in {world.cache}, 1 of them fetched now."
    )
    assert assets.fetch_all(["toy"], progress=False)[0].startswith("toy: already here")
    assert assets.fetch_all(lessons=["02"]) == [f"0 assets are ready in {world.cache}, 0 of them fetched now."]


def test_fetch_all_goes_on_after_a_failure(world):
    world.add(name="aaa", archive="aaa-1.0.tar.gz")
    del world.index.archives["aaa-1.0.tar.gz"]
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch_all(progress=False)
    one_sentence(str(caught.value), "1 of 2 assets", "aaa-1.0.tar.gz")
    assert assets.status("toy") == "ok"


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(BIG[::-1])])
def test_a_broken_copy_is_found_and_replaced(world, damage):
    damage(assets.fetch("toy", progress=False) / "big.bin")
    assert assets.status("toy", verify=True).startswith("broken: big.bin")
    assert assets.fetch_all(progress=False)[0].startswith("toy: fetched")
    world.heals()


# --- where from


def test_mirror_of_a_pip_configuration_file(world, tmp_path, monkeypatch, make_index):
    mirror = make_index()
    mirror.archives = dict(world.index.archives)
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {mirror.url}\nonly-binary = :all:\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_INDEX_URL")
    world.heals()
    assert mirror.asked() == [None] and not world.index.log


def test_second_index_and_folder_of_links(world, tmp_path, monkeypatch, make_index):
    other = make_index()
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", world.index.url)
    monkeypatch.setenv("PIP_INDEX_URL", other.url)
    world.heals()
    assert other.log and world.index.asked() == [None]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "toy-1.0.tar.gz").write_bytes(world.index.archives["toy-1.0.tar.gz"])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "second"))
    assert (assets.fetch("toy", progress=False) / "big.bin").read_bytes() == BIG
    assert world.index.asked() == [None]


def test_pip_that_cannot_be_used(world, monkeypatch, capfd):
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "soon")
    world.fails("pip cannot be used", "pip config list")
    monkeypatch.delenv("PIP_DEFAULT_TIMEOUT")
    monkeypatch.setitem(sys.modules, "pip._internal.commands", None)  # as if pip had moved its inside
    world.fails("pip cannot be used", "install pip")
    monkeypatch.undo()


# --- faults of the network


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_truncated_then_resumes(world, fault):
    world.index.faults = [fault]
    half = len(world.index.archives["toy-1.0.tar.gz"]) // 2
    folder = assets.fetch("toy", progress=False)
    assert (folder / "big.bin").read_bytes() == BIG
    first, second = world.index.asked()
    assert first is None and 0 < int(second[6:-1]) <= half
    world.heals()


def test_truncated_for_ever(world):
    world.index.faults, world.index.stuck = ["cut"], True
    world.fails("127.0.0.1 cannot be reached", "nbtools fetch", "kept")
    assert len(world.index.asked()) == 4 and world.part.stat().st_size > 0
    world.heals()


def test_progress_earns_new_tries(world, monkeypatch):
    monkeypatch.setattr(assets, "ENOUGH", 1000)
    monkeypatch.setattr(assets, "BLOCK", 1000)
    world.index.faults = ["cut"] * 7  # more than there are waits; each brings half of the rest
    assert (assets.fetch("toy", progress=False) / "big.bin").read_bytes() == BIG
    assert len(world.index.asked()) == 8


def test_server_that_cannot_resume(world):
    world.index.faults = ["cut", "no range"]
    assert (assets.fetch("toy", progress=False) / "big.bin").read_bytes() == BIG
    assert len(world.index.asked()) == 2 and world.index.asked()[1] is not None
    world.heals()


def test_server_that_calls_the_archive_an_encoding(world):
    world.index.faults = ["encoded"]
    assert (assets.fetch("toy", progress=False) / "big.bin").read_bytes() == BIG
    assert len(world.index.asked()) == 1


def test_wrong_hash(world):
    world.index.faults = ["other"]
    world.fails("sha256", "PIP_INDEX_URL", "deleted")
    assert len(world.index.asked()) == 1 and not world.part.exists()
    world.heals()


@pytest.mark.parametrize("size", [100_000, "whole", "more"])
def test_rotten_part_is_thrown_away(world, size):
    whole = len(world.index.archives["toy-1.0.tar.gz"])
    world.part.parent.mkdir(parents=True)
    world.part.write_bytes(bytes({"whole": whole, "more": whole + 5}.get(size, size)))
    world.heals()


def test_whole_part_is_not_downloaded_again(world):
    world.part.parent.mkdir(parents=True)
    world.part.write_bytes(world.index.archives["toy-1.0.tar.gz"])
    world.heals()
    assert world.index.asked() == []


@pytest.mark.parametrize("code", [404, 403])
def test_refused(world, code):
    world.index.faults, world.index.stuck = [code], True
    world.fails(f"answered {code}", "pip config list")
    assert len(world.index.asked()) == 1, "a refusal was asked for again"
    world.heals()


def test_no_index_has_it(world):
    world.index.pages = False
    world.fails("no index", "toy-1.0.tar.gz", "PIP_INDEX_URL")
    world.index.pages = True
    world.heals()


def test_500_then_good(world):
    world.index.faults = [500, 503]
    assert (assets.fetch("toy", progress=False) / "big.bin").read_bytes() == BIG
    assert len(world.index.asked()) == 3
    world.heals()


def test_500_for_ever(world):
    world.index.faults, world.index.stuck = [500], True
    world.fails("answered 500", "nbtools fetch")
    assert len(world.index.asked()) == 4
    world.heals()


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_hang(world, fault):
    world.index.faults, world.index.stuck = [fault], True
    began = time.monotonic()
    world.fails("did not answer in time", "nbtools fetch")
    assert time.monotonic() - began < 8
    world.heals()


def test_no_network(world, monkeypatch, make_index):
    closed = make_index()
    closed.server_close()
    url = closed.url.replace("//", "//reader:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch("toy", progress=False)
    one_sentence(str(caught.value), "toy", "127.0.0.1 cannot be reached", "nbtools fetch")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PIP_INDEX_URL", world.index.url)
    world.heals()


def test_offline_is_obeyed(world, monkeypatch):
    monkeypatch.setenv("NBTOOLS_OFFLINE", "1")
    world.fails("NBTOOLS_OFFLINE", "nbtools fetch")
    assert not world.index.log and not world.cache.exists()
    monkeypatch.setenv("NBTOOLS_OFFLINE", "0")
    world.heals()
    monkeypatch.setenv("NBTOOLS_OFFLINE", "1")
    assert assets.fetch("toy") == assets.path("toy")


# --- faults of the disk and of other processes


def test_too_little_space_is_seen_before(world, monkeypatch):
    usage = type("Usage", (), {"free": 500_000})
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda path: usage)
    world.fails("1 MB of disk", "NBTOOLS_CACHE")
    assert not world.index.log
    monkeypatch.undo()


class Full(io.FileIO):
    def write(self, data):
        if self.tell() + len(data) > 150_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("where", [".part", "big.bin"])
def test_disk_full_while_writing(world, monkeypatch, where):
    def opened(path, mode="r"):
        return Full(path, mode) if str(path).endswith(where) and "r" not in mode else open(path, mode)

    monkeypatch.setattr(assets, "open", opened, raising=False)
    world.fails("is full", "NBTOOLS_CACHE")
    assert world.part.stat().st_size > 100_000, "what arrived was not kept"
    assert not (world.cache / ".partial" / "toy.new").exists()
    monkeypatch.delattr(assets, "open")
    asked = len(world.index.asked())
    world.heals()
    assert world.index.asked()[asked:] in ([f"bytes={150_000 // assets.BLOCK * assets.BLOCK}-"], [])


def test_read_only_cache(world, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:  # by hand: to root nothing is read-only
        patch.setattr(Path, "mkdir", refused)
        world.fails("Read-only file system", "NBTOOLS_CACHE")
    world.heals()
    before = {path: path.stat().st_mtime_ns for path in world.cache.rglob("*")}
    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr(assets, "_lock", refused)
    for path in (*before, world.cache):
        path.chmod(path.stat().st_mode & 0o555)
    try:
        assert assets.fetch("toy", verify=True) == assets.path("toy")
        assert {path: path.stat().st_mtime_ns for path in world.cache.rglob("*")} == before
    finally:
        for path in (world.cache, *before):
            path.chmod(path.stat().st_mode | 0o700)


def test_cache_that_is_a_file(world, monkeypatch, tmp_path):
    (tmp_path / "plain").touch()
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "plain" / "cache"))
    world.fails("cannot be used", "NBTOOLS_CACHE")


def test_killed_half_way(world):
    world.index.pause = 0.1
    process = child(world)
    deadline = time.monotonic() + 20
    while not (world.part.exists() and world.part.stat().st_size > 50_000):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    world.index.pause = 0.0
    kept = world.part.stat().st_size
    assert assets.status("toy") == "missing"
    world.heals()
    assert world.index.asked() == [None, f"bytes={kept}-"]


def test_two_processes_download_once(world):
    world.index.pause = 0.05
    first = child(world)
    while not world.part.exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    second = child(world)
    said, waited = first.communicate(timeout=30)[0], second.communicate(timeout=30)[0]
    assert (first.returncode, second.returncode) == (0, 0), said + waited
    assert world.index.asked() == [None], "the second process downloaded too"
    assert "Another process is fetching toy" in waited and waited.split()[-1] == said.split()[-1]
    world.heals()


def test_one_archive_for_two_assets_is_downloaded_once(world):
    whole = world.index.archives["toy-1.0.tar.gz"]
    world.add("other", data=whole)
    folder = assets.fetch("toy", progress=False)
    assert assets.status("toy", verify=True) == assets.status("other", verify=True) == "ok"
    assert assets.fetch("other", progress=False) != folder and world.index.asked() == [None]
    assert not world.part.exists()


def test_an_asset_of_the_same_archive_that_is_broken_is_left_alone(world):
    world.add("other", data=world.index.archives["toy-1.0.tar.gz"])
    folder = assets.fetch("other", progress=False)
    file = next(iter(folder.iterdir()))
    file.write_bytes(b"mine")
    shutil.rmtree(assets.path("toy"))
    assets.fetch("toy", progress=False)
    assert file.read_bytes() == b"mine" and assets.status("toy", verify=True) == "ok"


def test_file_system_without_locks(world, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(assets.fcntl, "flock", refused)
    world.heals()


# --- archives that mean harm


@pytest.mark.parametrize("build", [tar_of, zip_of])
def test_paths_cannot_escape(world, build, tmp_path):
    archive = "toy-1.0.tar.gz" if build is tar_of else "toy-1.0-py3-none-any.whl"
    outside = str(tmp_path / "escape.txt")
    harm = dict.fromkeys(["../escape.txt", "toy-1.0/../../../escape.txt", outside], b"harm")
    world.add(archive=archive, data=build(harm | {f"toy-1.0/data/{k}": v for k, v in FILES.items()}))
    world.heals()
    assert not list(tmp_path.rglob("escape.txt"))


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "zip", "absent"])
def test_links_are_not_followed(world, kind, tmp_path):
    (tmp_path / "secret.txt").write_bytes(FILES["small.txt"])
    path, target, rest = "toy-1.0/data/small.txt", str(tmp_path / "secret.txt"), {"toy-1.0/data/big.bin": BIG}
    data = {
        "symlink": lambda: tar_of(rest, [(path, target, tarfile.SYMTYPE)]),
        "hardlink": lambda: tar_of(rest, [(path, target, tarfile.LNKTYPE)]),
        "zip": lambda: zip_of(rest, [(path, target)]),
        "absent": lambda: tar_of(rest),
    }[kind]()
    world.index.archives.clear()
    world.add(archive="toy-1.0-py3-none-any.whl" if kind == "zip" else "toy-1.0.tar.gz", data=data)
    world.fails("no plain file toy-1.0/data/small.txt")
    assert not list((world.cache / ".partial").glob("*.new"))


def test_member_that_is_not_what_the_card_says(world):
    card = world.cards / "toy.toml"
    right = card.read_text()
    card.write_text(right.replace(hashlib.sha256(FILES["small.txt"]).hexdigest(), "0" * 64))
    world.fails("small.txt does not have the sha256")
    card.write_text(right)
    world.heals()


# --- the cards of the course


def test_cards_of_the_course_are_complete():
    found = assets.cards()
    assert set(found) >= {"cifar10-test", "efficientnet-lite0", "photos", "smollm2-135m-instruct"}
    for name, card in found.items():
        assert card.name == name and re.fullmatch(r"[a-z0-9-]+", name)
        for field in ("title", "what", "licence", "licence_source", "upstream", "package", "notes"):
            assert getattr(card, field).strip(), f"{name} says nothing about {field}"
        assert isinstance(card.hub, str) and card.version in card.archive and card.archive_bytes > 0
        assert card.lessons and all(re.fullmatch(r"\d\d", lesson) for lesson in card.lessons)
        assert card.archive.endswith((".whl", ".zip", ".tar.gz")) and card.files
        for file in card.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.bytes > 0
            assert Path(file.name).name == file.name and not file.member.startswith("/") and ".." not in file.member
        assert re.fullmatch(r"[0-9a-f]{64}", card.archive_sha256)


def test_cards_that_cannot_be_used(world):
    (world.cards / "bad.toml").write_text('name = "bad"\nfiles = []\n')
    with pytest.raises(assets.AssetError) as caught:
        assets.cards()
    one_sentence(str(caught.value), "bad.toml", "git")
    for card in world.cards.iterdir():
        card.unlink()
    with pytest.raises(assets.AssetError) as caught:
        assets.cards()
    one_sentence(str(caught.value), "pip install -e .")


def test_datasets_folder_does_not_shadow_the_library():
    assert not list((ROOT / "datasets").rglob("*.py"))
    code = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(said.strip()).name == "__init__.py" and not Path(said.strip()).is_relative_to(ROOT / "datasets")
