"""The hub's page and what it asks: points of a volume, fail-over tests, promotes.

Questions are answered by the catalogue and the diskboxes; wishes go through `rephub.commands` like everybody's, so that the
page can do nothing that the command line could not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from rephub.consumers import asking
from rephub.consumers.hub.guard import HEADERS, Guard
from rephub.consumers.timelines import point_of, timeline_of
from rephub.core.control.client import ControlClient
from rephub.core.control.wishes import Point, check_target, one_point
from rephub.core.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from rephub.core.http import document_response, whole_number
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue

PAGE = Path(__file__).parent / "page"

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""What is served of the directory; licences and notes are not."""

COMMANDS_MAX = 8
"""Under way at once; each has connections to Kafka of its own."""

START_SECONDS = 60.0
STOP_SECONDS = 30.0
PROMOTE_SECONDS = 120.0
"""As the command line's; a promote is answered once it is being carried out."""

HINT = "exactly one of offset, time, checkpoint, latest"

Reader = Callable[[], Catalogue]


class Web:
    """Handlers of the page.

    Args:
        bootstrap: of Kafka.
        hub: id, for the source of commands.
        catalogue: the hub's.
        is_ready: whether commands are answered.
        guard: who may ask.
    """

    def __init__(
        self, bootstrap: str, hub: str, catalogue: Reader, is_ready: Callable[[], bool], guard: Guard
    ) -> None:
        self._bootstrap = bootstrap
        self._source = f"web/{hub}@{socket.gethostname()}"
        self._catalogue = catalogue
        self._is_ready = is_ready
        self._guard = guard
        self._commands = 0
        self._files = _files()

    def routes(self) -> list[web.RouteDef]:
        """All of them, guarded."""
        reads, changes = self._guard.reads, self._guard.changes
        return [
            web.get("/", reads(self.serve_file), allow_head=True),
            web.get("/page/{name:.+}", reads(self.serve_file)),
            web.get("/api/volumes/{volume}/timeline", reads(self.serve_timeline)),
            web.get("/api/volumes/{volume}/point", reads(self.serve_point)),
            web.post("/api/fots", changes(self.start_fot)),
            web.delete("/api/fots/{fot}", changes(self.stop_fot)),
            web.post("/api/promote", changes(self.promote)),
        ]

    async def serve_file(self, request: web.Request) -> web.StreamResponse:
        """`/` and the files below `/page/`."""
        name = request.match_info.get("name", "index.html")
        found = self._files.get(name)
        if found is None:
            raise NotFoundError(f"the page has no file {name[:120]!r}", hint="open /")
        body, kind, tag = found
        headers = HEADERS | {"Cache-Control": "no-cache", "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def serve_timeline(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/volumes/V/timeline?columns=N&from=T&to=T`; times in microseconds since the Unix epoch."""
        given = {name: whole_number(request, name) for name in ("columns", "from", "to")}
        shown = {name: value for name, value in given.items() if value is not None}
        return document_response(await timeline_of(self._catalogue(), request.match_info["volume"], shown))

    async def serve_point(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/volumes/V/point?offset=N|time=T|checkpoint=NAME|latest`."""
        query = request.query
        point = one_point(
            whole_number(request, "offset"), query.get("time"), query.get("checkpoint"),
            latest="latest" in query, hint=HINT,
        )  # fmt: skip
        return document_response(await point_of(self._catalogue(), request.match_info["volume"], point))

    async def start_fot(self, request: web.Request) -> web.StreamResponse:
        """`POST /api/fots`: `{"volume" | "group", POINT, "read_only"}`."""
        body = await _body(request, "read_only")
        volume, group, point = _target_and_point(body)
        read_only = _typed(body, "read_only", bool, default=False)
        async with self._client(START_SECONDS) as client:
            views = await asking.start_test(client, volume, group, point, read_only=read_only)
        test = {"fot": views[0]["fot"], "group": group, "volumes": views}
        return document_response(views[0] if volume is not None else test, 201)

    async def stop_fot(self, request: web.Request) -> web.StreamResponse:
        """`DELETE /api/fots/ID`."""
        fot = check_name(request.match_info["fot"], "fail-over test")
        warnings: list[str] = []
        async with self._client(STOP_SECONDS) as client:
            already = await asking.end_test(client, fot, warnings.append)
        answer: dict[str, Any] = {"fot": fot} | ({"already": True} if already else {})
        return document_response(answer | ({"warning": "; ".join(warnings)} if warnings else {}))

    async def promote(self, request: web.Request) -> web.StreamResponse:
        """`POST /api/promote`: `{"volume" | "group", POINT, "confirmed_offsets"}`.

        Without `confirmed_offsets`, an object of offsets by volume, it is a dry run; with it, it is done if these are the
        offsets of the point.
        """
        body = await _body(request, "confirmed_offsets")
        volume, group, point = _target_and_point(body)
        confirmed = _typed(body, "confirmed_offsets", dict, default=None)
        async with self._client(PROMOTE_SECONDS) as client:
            plans = await asking.plan_promote(client, volume, group, point)
            if confirmed is not None:
                offsets = {plan["volume"]: plan["offset"] for plan in plans}
                if confirmed != offsets:
                    raise ConflictError(
                        "the point is not the one that was confirmed", hint="look at the plan again",
                        offsets=offsets,
                    )  # fmt: skip
                # What was confirmed, however the point was named.
                point = Point("offset", str(plans[0]["offset"]))
                if len(plans) > 1:
                    point = Point("checkpoint", plans[0]["resolved"]["checkpoint"])
                plans, _ = await asking.promote(
                    client, volume, group, point, None, _unheard, to_the_end=False
                )
        document = plans[0] if volume is not None else {"group": group, "volumes": plans}
        return document_response(document | ({"dry_run": True} if confirmed is None else {"started": True}))

    @contextlib.asynccontextmanager
    async def _client(self, seconds: float) -> AsyncIterator[ControlClient]:
        if not self._is_ready():
            raise UnavailableError("the hub takes no commands yet", hint="try again in some seconds")
        if self._commands >= COMMANDS_MAX:
            raise UnavailableError(f"{COMMANDS_MAX} commands are under way", hint="wait until one is done")
        client = ControlClient(self._bootstrap, self._source, seconds)
        self._commands += 1
        try:
            await client.start()
            yield client
        finally:
            self._commands -= 1
            await client.close()


def _files() -> dict[str, tuple[bytes, str, str]]:
    """The page by name below PAGE: content, type, entity tag."""
    found = {}
    for path in PAGE.rglob("*"):
        if path.suffix in TYPES:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[path.relative_to(PAGE).as_posix()] = body, TYPES[path.suffix], tag
    return found


async def _body(request: web.Request, *more: str) -> dict[str, Any]:
    """The JSON object of a request, which has a target, a point, and of `more` what it likes. Raises UsageError."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise UsageError(
            "the request has no JSON", hint='for example {"volume": "v1", "latest": true}'
        ) from None
    if not isinstance(body, dict):
        raise UsageError("the request is no JSON object", hint='for example {"volume": "v1", "latest": true}')
    known = ("volume", "group", "offset", "time", "checkpoint", "latest", *more)
    for name in body:
        if name not in known:
            raise UsageError(f"the request has {name[:120]!r}", hint=f"there are: {', '.join(known)}")
    return body


def _target_and_point(body: dict[str, Any]) -> tuple[str | None, str | None, Point]:
    volume, group = _typed(body, "volume", str), _typed(body, "group", str)
    check_target(volume, group)
    offset = _typed(body, "offset", int)
    if offset is not None and offset < 0:
        raise UsageError(f"offset {offset} is below 0", hint="offsets count from 0")
    latest = _typed(body, "latest", bool, default=False)
    time, checkpoint = _typed(body, "time", str), _typed(body, "checkpoint", str)
    return volume, group, one_point(offset, time, checkpoint, latest=latest, hint=HINT)


def _typed(body: dict[str, Any], name: str, kind: type, *, default: Any = None) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{name} is no {kind.__name__}", hint="see docs/web.md")
    return value


def _unheard(_line: str) -> None:
    """The page sees each step by the live stream."""
