"""NBD URIs (the NBD project's doc/uri.md): `nbd+unix:///NAME?socket=PATH` and `nbd://HOST:PORT/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rephub.core.errors import UsageError

NBD_PORT: Final = 10809


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """Where an export is: a socket path, or host and port."""

    export: str
    path: Path | None = None
    host: str | None = None
    port: int = NBD_PORT


def unix_uri(path: Path | str, export: str) -> str:
    """The URI of an export behind a unix socket."""
    return f"nbd+unix:///{quote(export, safe='')}?socket={quote(str(path), safe='/')}"


def tcp_uri(host: str, port: int, export: str) -> str:
    """The URI of an export on TCP."""
    return f"nbd://{f'[{host}]' if ':' in host else host}:{port}/{quote(export, safe='')}"


def parse_uri(uri: str) -> NbdAddress:
    """Take an NBD URI apart.

    Raises:
        UsageError: not one that we can reach (TLS and vsock included).
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or NBD_PORT
    except ValueError as error:
        raise UsageError(f"bad NBD URI {uri!r}: {error}") from error
    if "\0" in unquote(uri):
        raise UsageError(f"bad NBD URI {uri!r}: it has a NUL")
    export = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd+unix":
        sockets = parse_qs(parts.query).get("socket", [])
        if len(sockets) == 1 and not parts.netloc:
            return NbdAddress(export, path=Path(sockets[0]))
    elif parts.scheme == "nbd" and parts.hostname:
        return NbdAddress(export, host=parts.hostname, port=port)
    raise UsageError(f"bad NBD URI {uri!r}", hint="nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME")
