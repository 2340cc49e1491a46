"""Models and data by name: downloaded once through pip's settings, verified, cached, never executed.

- One card an asset (`datasets/*.toml`): package, version, archive, the files wanted from it, a sha256 for each.
- pip is used as a library to find the archive and to open the connection, so the index, mirrors, find-links, proxies,
  certificates and netrc that the reader configured count. `pip download` is not used: it runs an sdist's build code.
- The archive arrives in `<cache>/.partial`, resumes where it stopped, is hashed before it is opened, and only the files
  on the card are read out of it. They are hashed too, and one rename puts the finished folder in place.
- A lock on an open file keeps two processes apart; the system drops it when its holder dies.
- Every failure is an AssetError of one sentence and leaves the cache good.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tarfile
import time
import tomllib
import zipfile
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from nbtools.errors import NbtoolsError

CARDS = Path(__file__).resolve().parent.parent / "datasets"
STALL = 30.0  # seconds of silence after which a connection counts as hung, where pip's own time-out is not shorter
WAITS = (0.5, 1.0, 2.0)  # seconds between tries that bring nothing
ENOUGH = 1 << 20  # bytes: a try that brought this much starts the waits afresh
BLOCK = 1 << 16  # bytes


class AssetError(NbtoolsError):
    """An asset is missing, cannot be fetched or is not what its card says."""


class _Passing(AssetError):
    """A failure that may go away by itself: worth another try."""


File = namedtuple("File", "member name sha256 bytes")
Fields = namedtuple("Fields", "name title what licence licence_source upstream hub package version archive "
                    "archive_sha256 archive_bytes lessons notes files")  # fmt: skip


class Card(Fields):
    """What an asset is, whose it is and where its bytes are; datasets/README.md explains the fields."""

    @property
    def folder(self):
        """Where the files are or will be; the name changes with their content, so an old copy is never mistaken."""
        digest = hashlib.sha256(" ".join(file.sha256 for file in self.files).encode()).hexdigest()
        return cache() / f"{self.name}-{digest[:12]}"


def cache():
    """Root of the cache: NBTOOLS_CACHE, else the system's place for caches."""
    import platformdirs

    return Path(os.environ.get("NBTOOLS_CACHE") or platformdirs.user_cache_dir("nbtools")).expanduser().absolute()


def cards():
    """All asset cards by name, in alphabetical order."""
    found = {}
    for source in sorted(CARDS.glob("*.toml")):
        try:
            fields = tomllib.loads(source.read_text(encoding="utf-8"))
            fields["files"] = [File(**file) for file in fields["files"]]
            found[source.stem] = Card(**fields)
        except (KeyError, TypeError, ValueError) as err:
            raise AssetError(f"The asset card {source} cannot be used ({err}): restore it from git.") from err
    if not found:
        raise AssetError(f"There are no asset cards in {CARDS}: install from a clone, with `pip install -e .`.")
    return found


def status(name, verify=False):
    """`"ok"`, `"missing"` or `"broken: why"`; compares sizes, and with `verify` the sha256 of every file."""
    card = _card(name)
    if not card.folder.is_dir():
        return "missing"
    for file in card.files:
        size = _size(card.folder / file.name)
        if size != file.bytes:
            return f"broken: {file.name} has {size:,} bytes instead of {file.bytes:,}"
        if verify and _sha256(card.folder / file.name) != file.sha256:
            return f"broken: {file.name} does not have the sha256 of its card"
    return "ok"


def path(name):
    """Folder of an asset that is already here; AssetError says how to get one that is not."""
    state = status(name)
    if state != "ok":
        raise AssetError(f"{name} in {cache()} is {state}; run `nbtools fetch` with network.")
    return _card(name).folder


def file(name, filename=None):
    """Path of one file of an asset, fetched when missing; `filename` may be left out where there is only one."""
    names = [file.name for file in _card(name).files]
    if filename is None and len(names) == 1:
        filename = names[0]
    if filename not in names:
        raise AssetError(f"{name} has no file {filename!r}: choose one of {', '.join(names)}.")
    return fetch(name) / filename


def fetch(name, progress=True, verify=False):
    """Folder with the asset's files, downloaded when missing or broken; `verify` also hashes what is already here."""
    card = _card(name)
    if status(name, verify) == "ok":
        return card.folder
    if os.environ.get("NBTOOLS_OFFLINE", "0") not in ("", "0"):
        raise AssetError(f"{name} is not in {cache()} and NBTOOLS_OFFLINE is set: run `nbtools fetch` with network.")
    partial = cache() / ".partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        said = f"Another process is fetching {card.archive}: waiting for it." * progress
        with _lock(partial / f"{card.archive}.lock", said) as held:
            if status(name, verify) != "ok":  # else another process brought it while we waited
                own = "" if held else f".{os.getpid()}"  # without locks, nobody continues another's half file
                part = partial / f"{card.archive}{own}.part"
                _download(card, part, progress)
                for other in _of_one_archive(card):
                    _install(other, part, partial / f"{other.name}{own}.new")
                part.unlink()
    except OSError as err:
        why = f"{cache()} cannot be used ({err.strerror or err}); set NBTOOLS_CACHE to a folder that you can write"
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk of {cache()} is full; free some space or set NBTOOLS_CACHE to another disk"
        raise _failed(card, why) from err
    return card.folder


def fetch_all(names=None, lessons=None, progress=True):
    """Fetch and verify the named assets, those of some lessons, or all; returns lines that say what was done and where.

    Goes on after a failure, so that a workshop gets what can be had, and raises one AssetError at the end.
    """
    if names is None:
        names = [card.name for card in cards().values() if lessons is None or set(lessons) & set(card.lessons)]
    lines, failures = [], []
    for name in names:
        try:
            done = "already here" if status(name, verify=True) == "ok" else "fetched"
            lines.append(f"{name}: {done} and verified, in {fetch(name, progress, verify=done == 'fetched')}")
        except AssetError as err:
            failures.append(str(err).rstrip("."))
    if failures:
        raise AssetError(f"{len(failures)} of {len(names)} assets are not ready: {'; '.join(failures)}.")
    fetched = sum(": fetched" in line for line in lines)
    return [*lines, f"{len(names)} assets are ready in {cache()}, {fetched} of them fetched now."]


def _card(name):
    known = cards()
    if name not in known:
        raise AssetError(f"There is no asset {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def _of_one_archive(card):
    """The card and those missing ones whose files lie in the same archive: what was downloaded once serves them all."""
    others = (other for other in cards().values() if other.archive_sha256 == card.archive_sha256)
    return [card, *(other for other in others if other.name != card.name and status(other.name) == "missing")]


def _failed(card, why, kind=AssetError):
    return kind(f"{card.name} could not be fetched: {' '.join(why.split())}.")


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _sha256(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _lock(path, waiting):
    """Hold an exclusive lock on `path`, saying `waiting` if it is taken; yields False where there are no locks."""
    with open(path, "a") as handle:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                print(waiting, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            held = False
        yield held


def _download(card, part, progress):
    """Bring the archive to `part`, whole and verified; AssetError with the last reason when the tries are used up."""
    need = card.archive_bytes - _size(part) + sum(file.bytes for file in card.files)
    free = shutil.disk_usage(part.parent).free
    if free < need:
        why = f"it needs {need / 1e6:,.0f} MB of disk in {cache()}, which has {free / 1e6:,.0f} MB free"
        raise _failed(card, f"{why}; free some space or set NBTOOLS_CACHE to a folder on another disk")
    waits = iter(WAITS)
    while True:
        before = _size(part)
        try:
            with _registry(card) as (session, url):
                return _receive(card, session, url, part, progress)
        except _Passing:
            if _size(part) - before >= ENOUGH:
                waits = iter(WAITS)
            wait = next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)


@contextmanager
def _listening():
    """Hear pip's log instead of showing it (only there an index is said to be out of reach), then put logging back."""
    heard, listener = [], logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())
    log, logger_class = logging.getLogger("pip"), logging.getLoggerClass()
    level, handlers, propagate = log.level, log.handlers, log.propagate
    log.handlers, log.propagate = [listener], False
    log.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
        logging.setLoggerClass(logger_class)  # pip sets its own for all loggers to come


@contextmanager
def _registry(card):
    """Yield pip's configured session and the address of the card's archive."""
    with _listening() as heard, ExitStack() as stack:
        try:
            session, links = _find(card, stack)
        except (Exception, SystemExit) as err:  # pip's inner functions are no promise, and its settings may be bad
            raise _failed(card, f"pip cannot be used ({err}); look at `pip config list`, or install pip 26.3") from err
        if links:
            yield session, min(links, key=lambda link: link.hash != card.archive_sha256).url_without_fragment
            return
        for text in heard:
            if text.startswith("Could not fetch URL") and "404 Client Error" not in text:
                raise _network_error(card, urlsplit(text.split()[4].rstrip(":")).hostname or "the index", text)
        way = "look at `pip config list` or set PIP_INDEX_URL to one that does"
        raise _failed(card, f"no index that pip is configured for has {card.archive}; {way}")


def _find(card, stack):
    """pip's session, closed by `stack`, and its links to the card's archive."""
    from pip._internal.commands import create_command
    from pip._internal.utils._log import init_logging

    init_logging()
    command = create_command("download")
    # No prompt inside a kernel, no second copy in pip's cache; an sdist is welcome since nothing gets built.
    given = ["--no-input", "--no-cache-dir", "--only-binary", ":none:", "--no-binary", ":none:"]
    options, _ = command.parse_args([*given, card.package])
    stack.enter_context(command.main_context())
    session = command.enter_context(command._build_session(options, retries=0))
    session.timeout = min(session.timeout or STALL, STALL)
    finder = command._build_package_finder(options, session, ignore_requires_python=True)
    found = finder.find_all_candidates(card.package)
    return session, [candidate.link for candidate in found if candidate.link.filename == card.archive]


def _network_error(card, host, text):
    """The error for what pip or requests said; server errors and lost connections pass, refusals do not."""
    code = re.search(r"(?:too many |^|: )([45]\d\d) (?:error|Client|Server)", text)
    if code:
        why = f"answered {code[1]}"
    elif "certificate" in text.lower():
        why = "has a certificate that is not trusted"
    else:
        why = "did not answer in time" if re.search("timed out|respond within", text) else "cannot be reached"
    kind = AssetError if code and code[1][0] == "4" and code[1] not in ("408", "429") else _Passing
    way = "check the network and `pip config list`, then run `nbtools fetch` again (what arrived is kept)"
    return _failed(card, f"{host} {why}; {way}", kind)


def _receive(card, session, url, part, progress):
    """Download what is missing of the archive to `part` and verify the whole."""
    from pip._internal.exceptions import PipError
    from pip._vendor.requests import RequestException
    from pip._vendor.urllib3.exceptions import HTTPError

    have, host = _size(part), urlsplit(url).hostname or "the local folder"
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have < card.archive_bytes:
        try:
            with session.get(url, headers=headers, stream=True) as answer:
                answer.raise_for_status()
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    have = 0  # a server that cannot resume sends the whole
                _write(card, answer, part, have, progress)
        except (RequestException, HTTPError, PipError) as err:
            raise _network_error(card, host, f"{err} {getattr(err, 'context', '')}") from err
    if _size(part) < card.archive_bytes:
        raise _network_error(card, host, "the answer ended early")
    digest = _sha256(part)
    if digest != card.archive_sha256:
        part.unlink()
        why = f"{host} sent a {card.archive} with sha256 {digest[:12]} instead of {card.archive_sha256[:12]}"
        way = "it was deleted; try again, or set PIP_INDEX_URL to another index"
        raise _failed(card, f"{why}; {way}", _Passing if have else AssetError)  # the older half may be the bad one


def _write(card, answer, part, have, progress):
    """Write the answer's body to `part` from byte `have` on, at most one block past the card's size."""
    from pip._internal.network.utils import response_chunks
    from tqdm.auto import tqdm

    bar = tqdm(desc=card.name, total=card.archive_bytes, initial=have, unit="B", unit_scale=True, leave=False,
               disable=not progress)  # fmt: skip
    with open(part, "ab" if have else "wb") as out, bar:
        for block in response_chunks(answer, BLOCK):  # not iter_content: some servers call a .tar.gz gzip-encoded
            out.write(block)
            bar.update(len(block))
            if out.tell() > card.archive_bytes:
                break


def _install(card, part, build):
    """Read the card's files out of the verified archive into `build`, verify them, rename it into place."""
    wanted = {file.member: file for file in card.files}
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir()
    try:
        for member, stream in _members(card, part, wanted):
            file = wanted.pop(member)
            with open(build / file.name, "wb") as out:
                shutil.copyfileobj(stream, out, BLOCK)
                os.fsync(out.fileno())
            if _sha256(build / file.name) != file.sha256:
                raise _failed(card, f"{member} does not have the sha256 of its card; restore the card from git")
        if wanted:
            raise _failed(card, f"{card.archive} has no plain file {', '.join(wanted)}; restore the card from git")
        if card.folder.exists():  # broken, or we would not be here
            shutil.rmtree(card.folder)
        os.replace(build, card.folder)
    finally:
        shutil.rmtree(build, ignore_errors=True)


def _members(card, archive, wanted):
    """Yield (path, stream) of the wanted members until none is left; links are passed over, the rest stays packed."""
    if card.archive.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as box:
            for info in box.infolist():
                if info.filename in wanted and not stat.S_ISLNK(info.external_attr >> 16):
                    yield info.filename, box.open(info)
    else:
        with tarfile.open(archive, "r|gz") as box:  # as a stream, so that it can stop at the last one
            for info in box:
                if info.name in wanted and info.isreg():
                    yield info.name, box.extractfile(info)
                if not wanted:
                    break
