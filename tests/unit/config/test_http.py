"""The status server, asked by a foreign client."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from rephub.core.errors import NotFoundError, UnavailableError
from rephub.core.http import StatusServer, document_response


async def test_status_metrics_and_own_routes() -> None:
    registry = CollectorRegistry()
    Counter("rephub_things", "Things.", ["volume"], registry=registry).labels("v").inc()

    async def timeline(request: web.Request) -> web.Response:
        if request.match_info["volume"] == "none":
            raise NotFoundError("no volume none")
        return document_response({"volume": request.match_info["volume"]})

    server = StatusServer(
        "127.0.0.1", 0, lambda: {"ready": True}, {"/timeline/{volume}": timeline}, registry=registry
    )
    base = await server.start()
    async with aiohttp.ClientSession(base) as client:
        async with client.get("/status") as answer:
            assert await answer.json() == {"ready": True}
        async with client.get("/metrics") as answer:
            assert 'rephub_things_total{volume="v"} 1.0' in await answer.text()
        async with client.get("/timeline/v") as answer:
            assert await answer.json() == {"volume": "v"}
        async with client.get("/timeline/none") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["class"] == "NotFoundError"
        async with client.post("/status") as answer:
            assert answer.status == 405
    await server.stop()
    await server.stop()
    assert server.url == ""


async def test_a_taken_port_is_said() -> None:
    first = StatusServer("127.0.0.1", 0, dict)
    base = await first.start()
    second = StatusServer("127.0.0.1", int(base.rpartition(":")[2]), dict)
    with pytest.raises(UnavailableError, match="is taken"):
        await second.start()
    await first.stop()
