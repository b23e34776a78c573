"""Ports that a stack keeps: chosen once, below the ephemeral range, written under the state directory.

A port of the ephemeral range could be taken by any outgoing connection while its owner restarts; one below it is
only taken by somebody who asks for it. No other stack of this host does: see `_claim`.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rephub.core.documents import parse_object
from rephub.core.errors import UnavailableError
from rephub.infra.files import write_atomic

PORT_MIN = 15_000
"""Below it are the ports that other software is known by."""

TRIES_MAX = 200

_claims: dict[int, socket.socket] = {}


def kept_ports(file: Path, names: Iterable[str], host: str = "127.0.0.1") -> dict[str, int]:
    """A port for each name: the one of last time if it is free, else a new one; ours until this process ends.

    Args:
        file: where they are remembered.
        names: what the ports are for.
        host: address they are to be bound on.

    Raises:
        UnavailableError: no free port was found.
        StorageError: the file cannot be written.
    """
    names = list(names)
    known: dict[str, int] = {}
    with suppress(OSError, ValueError):  # a file that is damaged is worth no more than one that is gone
        found = parse_object(file.read_bytes())
        known = {name: port for name, port in found.items() if type(port) is int and 0 < port < 1 << 16}
    ports: dict[str, int] = {}
    for name in names:
        old = known.get(name)
        usable = isinstance(old, int) and old not in ports.values() and is_free(old, host) and _claim(old)
        ports[name] = (
            old if usable and old is not None else _new_port(host, {*ports.values(), *known.values()})
        )
    if known | ports != known:
        write_atomic(file, json.dumps(known | ports))
    return ports


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody could listen there now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def _claim(port: int) -> bool:
    """Whether the port is ours: no other process claims it, also while nobody listens there.

    A claim is an abstract Unix socket (unix(7)): seen by all of the host, gone with its process, killed or not.
    """
    if port in _claims:
        return True
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0rephub-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims[port] = claim
    return True


def _new_port(host: str, taken: set[int]) -> int:
    ceiling = _ephemeral_first()
    for _ in range(TRIES_MAX):
        port = random.randrange(PORT_MIN, ceiling)
        if port not in taken and port not in _claims and is_free(port, host) and _claim(port):
            return port
    raise UnavailableError(
        f"no free port between {PORT_MIN} and {ceiling} on {host} after {TRIES_MAX} tries",
        hint="see what listens there: ss -ltn",
    )


def _ephemeral_first() -> int:
    """First port that the kernel gives to outgoing connections (ip(7), ip_local_port_range)."""
    with suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > PORT_MIN + 1000:
            return first
    return 32_768
