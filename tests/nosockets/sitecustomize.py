"""Cut this Python off from the network, loopback apart: tests put this folder first on PYTHONPATH for child processes.

An audit hook sees every connection, datagram and name look-up of the socket module, whoever makes it, and cannot be
removed. A sitecustomize that is further down the path still runs.
"""

import importlib.machinery
import importlib.util
import ipaddress
import socket
import sys
from pathlib import Path

OWN = socket.gethostname().lower()
LOCAL_NAMES = {"", "localhost", "localhost.localdomain", OWN, f"{OWN}.local"}  # looked up by Jupyter at its start


class NetworkBlocked(RuntimeError):
    """Not an OSError, so that no retry or fallback swallows it."""


def is_local(host):
    """Whether a host, as str, bytes or anything that is no internet address, is this machine."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str) or host.lower() in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def audit(event, args):
    """Raise where a socket is about to leave this machine."""
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # Unix sockets have no tuple
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if not is_local(host):
        raise NetworkBlocked(f"{event} to {host!r} is blocked: tests run without a network; fetch the assets first.")


def run_next():
    """Run the sitecustomize that this one hides."""
    here = Path(__file__).resolve().parent
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec and spec.loader:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if not hasattr(sys, "_nbtools_no_sockets"):
    sys._nbtools_no_sockets = True
    sys.addaudithook(audit)
if __name__ == "sitecustomize":
    run_next()
