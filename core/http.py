"""The small HTTP server that every daemon has: `/status`, `/metrics` and the daemon's own routes.

Knows nothing of what the status says. Binds the loopback address unless configured otherwise; has no route of its own
that changes anything.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from rephub.core.errors import (
    ConfirmationRequired,
    ConflictError,
    DeadlineError,
    NotFoundError,
    PointNotAvailableError,
    RephubError,
    UnavailableError,
    UsageError,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_BYTES_MAX = 64 << 10
"""No route takes a body of note."""

DIGITS_MAX = 18
"""Of a number: it fits 64 bits."""

STOP_SECONDS = 1.0
"""How long a stop waits for requests under way."""

_HTTP_STATUS: dict[type[RephubError], int] = {
    UsageError: 400, ConfirmationRequired: 400, NotFoundError: 404, ConflictError: 409, PointNotAvailableError: 409,
    UnavailableError: 503, DeadlineError: 504,
}  # fmt: skip


def document_response(document: Mapping[str, Any], status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(document) + "\n", status=status, content_type="application/json")


def whole_number(request: web.Request, name: str) -> int | None:
    """A parameter of the query, from 0; None: it is not there. Raises UsageError: it is something else."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX):
        raise UsageError(f"{name} {text[:40]!r} is not a number from 0", hint=f"{name}=123")
    return int(text)


class StatusServer:
    """Serves one daemon's state.

    Args:
        host: address to listen on.
        port: 0 takes any free one.
        status: builds the `/status` document; called in the event loop, must not block.
        routes: further GET routes, path (aiohttp pattern) → handler; a RephubError raised by one becomes
            `{"error": …}` with a fitting HTTP status.
        further: routes of any method; their errors are answered in the same way.
        registry: the metrics under `/metrics`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        status: Callable[[], dict[str, Any]],
        routes: Mapping[str, Handler] | None = None,
        *,
        further: Iterable[web.RouteDef] = (),
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._host = host
        self._port = port
        self._status = status
        self._registry = registry
        self._app = web.Application(client_max_size=REQUEST_BYTES_MAX, middlewares=[_errors_as_documents])
        self._app.router.add_get("/status", self._serve_status)
        self._app.router.add_get("/metrics", self._serve_metrics)
        for path, handler in (routes or {}).items():
            self._app.router.add_get(path, handler)
        self._app.router.add_routes(further)
        self._runner: web.AppRunner | None = None
        self.url = ""
        """Base URL without a slash at its end; empty while not listening."""

    async def start(self) -> str:
        """Listen.

        Returns:
            The base URL, for example `http://127.0.0.1:8123`.

        Raises:
            UnavailableError: the address is taken or not ours.
        """
        runner = web.AppRunner(
            self._app, access_log=None, handle_signals=False, shutdown_timeout=STOP_SECONDS
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, reuse_address=True).start()
        except OSError as exc:
            await runner.cleanup()
            reason = "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be used: {exc.strerror or exc}"
            raise UnavailableError(
                f"status address {self._host}:{self._port} {reason}",
                hint="set another host or port for this daemon",
            ) from exc
        self._runner = runner
        address = runner.addresses[0]
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{host}:{address[1]}"
        return self.url

    async def stop(self) -> None:
        """Stop listening; requests under way get STOP_SECONDS. Does nothing when not started."""
        runner, self._runner, self.url = self._runner, None, ""
        if runner:
            await runner.cleanup()

    async def _serve_status(self, _request: web.Request) -> web.Response:
        return document_response(self._status())

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


@web.middleware
async def _errors_as_documents(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RephubError as exc:
        return document_response({"error": exc.to_dict()}, _HTTP_STATUS.get(type(exc), 500))
