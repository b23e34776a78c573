"""Who may do what over the hub's HTTP: names that it is reached by, and the token of those who change something.

A page of somebody else that the operator has open must reach nothing here: a foreign `Host` is DNS rebinding, a foreign
`Origin` is another site, and the token is in no cookie that a browser would send by itself.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from rephub.core.errors import UsageError
from rephub.core.http import Handler, document_response
from rephub.infra.files import storage_error, write_atomic

FILE = "web-token"
"""Below the state directory, mode 0600."""

TOKEN_BYTES = 32

SCHEME = "Bearer "

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer to the page: nothing from elsewhere runs in it, and nobody frames it."""


def web_token(state_dir: Path) -> str:
    """The token, made at the first call.

    Raises:
        StorageError: the file can be neither read nor made.
    """
    path = state_dir / FILE
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    except (OSError, UnicodeDecodeError) as exc:
        raise storage_error(
            exc if isinstance(exc, OSError) else OSError(str(exc)), path, "cannot read"
        ) from exc
    if not token:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        write_atomic(path, f"{token}\n")
    return token


class Guard:
    """Wraps handlers.

    Args:
        token: that changes are allowed with.
        names: host names, beside addresses, `localhost` and this host's own, that the hub is reached by.
    """

    def __init__(self, token: str, names: Iterable[str] = ()) -> None:
        self._token = token.encode()
        self._names = {name.lower() for name in ("localhost", socket.gethostname(), *names)}

    def reads(self, handler: Handler) -> Handler:
        """For whoever reaches the hub by a name of its own."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            return self._foreign(request) or await handler(request)

        return guarded

    def changes(self, handler: Handler) -> Handler:
        """For who has the token, too."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            return self._foreign(request) or self._unknown(request) or await handler(request)

        return guarded

    def _foreign(self, request: web.Request) -> web.Response | None:
        host = request.headers.get("Host", "")
        if not self._is_ours(host):
            return _refusal(
                403, f"this hub is not called {host[:120]!r}", "add the name to the hub's setting hub.names"
            )
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _refusal(
                403, f"the page of {origin[:120]!r} may not ask this hub", "open the hub's own page"
            )
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.removesuffix(".") in self._names
        return True  # nobody's DNS can make that his own

    def _unknown(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        token = given.removeprefix(SCHEME) if given.startswith(SCHEME) else ""
        if token and hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token):
            return None
        what = "the token is wrong" if token else "a change needs the token"
        answer = _refusal(
            401,
            what,
            f"it is in the file {FILE} of the hub's state directory; send Authorization: Bearer TOKEN",
        )
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def _refusal(status: int, message: str, hint: str) -> web.Response:
    return document_response({"error": UsageError(message, hint=hint).to_dict()}, status)
