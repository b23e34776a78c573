"""The hub's page and API without a stack: who is let in, what is refused, what is served."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from control_world import World
from rephub.consumers.hub.guard import Guard, web_token
from rephub.consumers.hub.web import PAGE, Web
from rephub.core.errors import StorageError
from rephub.core.http import StatusServer, document_response

DEAD = "127.0.0.1:9"
"""The discard port: nobody listens there, and a command that got so far is one too many."""
TOKEN = "t0ken-of-the-test"
KEY = {"Authorization": f"Bearer {TOKEN}"}

WISHES = [("POST", "/api/fots"), ("DELETE", "/api/fots/fot-1"), ("POST", "/api/promote")]
QUESTIONS = ["/", "/page/page.js", "/api/volumes/v1/timeline", "/api/volumes/v1/point?latest"]


class Hub:
    """A hub's server over a catalogue with the volume v1, whose diskbox answers with what it was asked."""

    def __init__(self) -> None:
        self.ready = True
        self.asked: list[str] = []
        world = World()
        world.protected("v1")
        self.catalogue = world.catalogue

        async def box(request: Any) -> Any:
            self.asked.append(str(request.rel_url))
            return document_response({"volume": "v1", "ranges": []})

        self.box = StatusServer("127.0.0.1", 0, dict, {"/timeline/{volume}": box, "/point/{volume}": box})
        page = Web(DEAD, "hub1", lambda: self.catalogue, lambda: self.ready, Guard(TOKEN, ["hub.example"]))
        self.server = StatusServer("127.0.0.1", 0, dict, further=page.routes())

    async def start(self) -> None:
        url = await self.box.start()
        for diskbox in self.catalogue.diskboxes.values():
            diskbox.url = url
        self.client = aiohttp.ClientSession(await self.server.start())

    async def stop(self) -> None:
        await self.client.close()
        await self.server.stop()
        await self.box.stop()

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        async with self.client.request(method, path, **more) as answer:
            return answer.status, await answer.json()

    async def refused(self, status: int, method: str, path: str, **more: Any) -> dict[str, Any]:
        """A call that must fail so: with a message and a hint of one line each."""
        got, document = await self.call(method, path, **more)
        assert got == status, document
        error = document["error"]
        assert error["message"]
        assert error["hint"]
        assert "\n" not in error["message"] + error["hint"]
        return dict(error)


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    made = Hub()
    await made.start()
    yield made
    await made.stop()


def test_the_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    token = web_token(tmp_path)
    assert len(token) >= 32
    assert web_token(tmp_path) == token
    assert (tmp_path / "web-token").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").mkdir()
    assert web_token(tmp_path / "other") != token
    (tmp_path / "web-token").unlink()
    (tmp_path / "web-token").mkdir()
    with pytest.raises(StorageError):
        web_token(tmp_path)


@pytest.mark.parametrize(("method", "path"), WISHES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": f"token={TOKEN}"},
    ],
)
async def test_a_change_needs_the_token(hub: Hub, method: str, path: str, headers: dict[str, str]) -> None:
    error = await hub.refused(401, method, path, headers=headers, json={"volume": "v1", "latest": True})
    assert "web-token" in error["hint"]


async def test_a_token_of_other_signs_is_a_wrong_one(hub: Hub) -> None:
    await hub.refused(401, "POST", "/api/fots", headers={"Authorization": "Bearer tökén"}, json={})


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::1", "127.0.0.1.evil.example"],
)
async def test_a_foreign_name_is_refused(hub: Hub, host: str) -> None:
    for path in QUESTIONS:
        await hub.refused(403, "GET", path, headers={"Host": host})
    for method, path in WISHES:
        await hub.refused(403, method, path, headers=KEY | {"Host": host}, json={})
    assert hub.asked == []


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "192.0.2.7", "HUB.example:1", "hub.example."]
)
async def test_its_own_names_are_not(hub: Hub, host: str) -> None:
    assert (await hub.call("GET", "/api/volumes/v1/point?latest", headers={"Host": host}))[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "x"])
async def test_a_foreign_page_is_refused_also_with_the_token(hub: Hub, origin: str) -> None:
    for method, path in WISHES:
        await hub.refused(403, method, path, headers=KEY | {"Origin": origin}, json={})
    own = KEY | {"Origin": hub.server.url}
    assert (await hub.call("POST", "/api/fots", headers=own, json={}))[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"[" * 50_000,
        b"\xff\xfe",
        b"{}",
        b'{"volume": "v1"}',
        b'{"latest": true}',
        b'{"volume": "v1", "group": "g", "latest": true}',
        b'{"volume": "v1", "latest": true, "offset": 1}',
        b'{"volume": "v1", "latest": false}',
        b'{"volume": "v1", "latest": "yes"}',
        b'{"volume": "v1", "offset": -1}',
        b'{"volume": "v1", "offset": "1"}',
        b'{"volume": "v1", "offset": true}',
        b'{"volume": "v1", "offset": 1.5}',
        b'{"volume": "v1", "time": "yesterday"}',
        b'{"volume": "v1", "time": 1}',
        b'{"volume": "v1", "checkpoint": "<script>"}',
        b'{"volume": "<img src=x onerror=alert(1)>", "latest": true}',
        b'{"volume": ["v1"], "latest": true}',
        b'{"volume": "../v1", "latest": true}',
        b'{"volume": "v1", "latest": true, "qmp": "/run/qemu.sock"}',
        b'{"volume": "v1", "latest": true, "to": "/etc/passwd"}',
    ],
)
async def test_bad_wishes_are_refused_before_anything_is_sent(hub: Hub, body: bytes) -> None:
    for path in ("/api/fots", "/api/promote"):
        await hub.refused(400, "POST", path, headers=KEY, data=body)


async def test_what_only_one_of_them_takes(hub: Hub) -> None:
    point = {"volume": "v1", "latest": True}
    await hub.refused(400, "POST", "/api/fots", headers=KEY, json=point | {"read_only": "no"})
    await hub.refused(400, "POST", "/api/fots", headers=KEY, json=point | {"confirmed_offsets": {"v1": 1}})
    await hub.refused(400, "POST", "/api/promote", headers=KEY, json=point | {"read_only": True})
    await hub.refused(400, "POST", "/api/promote", headers=KEY, json=point | {"confirmed_offsets": 1})
    await hub.refused(400, "DELETE", "/api/fots/%3Cscript%3E", headers=KEY)


async def test_a_hub_that_is_not_in_charge_takes_no_wish(hub: Hub) -> None:
    hub.ready = False
    error = await hub.refused(503, "POST", "/api/fots", headers=KEY, json={"volume": "v1", "latest": True})
    assert error["class"] == "UnavailableError"


async def test_points_and_timelines_are_the_diskbox_s(hub: Hub) -> None:
    assert (await hub.call("GET", "/api/volumes/v1/timeline?columns=500&from=1&to=2"))[0] == 200
    assert (await hub.call("GET", "/api/volumes/v1/point?time=1970-01-01T00:00:01Z"))[0] == 200
    assert (await hub.call("GET", "/api/volumes/v1/point?checkpoint=c1"))[0] == 200
    assert hub.asked == [
        "/timeline/v1?columns=500&from=1&to=2",
        "/point/v1?kind=time&value=1000000",
        "/point/v1?kind=checkpoint&value=c1",
    ]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/volumes/v1/point", 400),
        ("/api/volumes/v1/point?offset=-1", 400),
        ("/api/volumes/v1/point?offset=1e9", 400),
        ("/api/volumes/v1/point?offset=9999999999999999999", 400),
        ("/api/volumes/v1/point?offset=1&latest", 400),
        ("/api/volumes/v1/point?time=now", 400),
        ("/api/volumes/v1/point?checkpoint=a%20b", 400),
        ("/api/volumes/v1/timeline?columns=x", 400),
        ("/api/volumes/v1/timeline?from=%D9%A1", 400),
        ("/api/volumes/nope/point?latest", 404),
        ("/api/volumes/nope/timeline", 404),
        ("/api/volumes/%3Cscript%3Ealert(1)%3C%2Fscript%3E/timeline", 400),
        ("/api/volumes/..%2Fstatus/timeline", 400),
        ("/page/nope.js", 404),
        ("/page/../web.py", 404),
        ("/page/%2e%2e/web.py", 404),
        ("/page/vendor/README.md", 404),
    ],
)
async def test_bad_questions_are_refused(hub: Hub, path: str, status: int) -> None:
    url = URL(hub.server.url + path, encoded=True)
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        assert answer.status == status
        if path.startswith("/api"):
            assert (await answer.json())["error"]["hint"]
    assert hub.asked == []


async def test_the_page_comes_whole_and_lets_nothing_in(hub: Hub) -> None:
    async with hub.client.get("/") as answer:
        text, headers = await answer.text(), answer.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    files = set(re.findall(r'(?:href|src)="(/[^"]+)"', text))
    for name in list(files):
        async with hub.client.get(name) as answer:
            assert answer.status == 200, name
            module = await answer.text()
            tag = answer.headers["ETag"]
        async with hub.client.get(name, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        for other in re.findall(r'^import .* from "\./([^"]+)";$', module, re.MULTILINE):
            files.add(f"/page/{other}")
    for name in files:
        async with hub.client.get(name) as answer:
            assert answer.status == 200, name


def test_nothing_of_ours_parses_html_or_reaches_elsewhere() -> None:
    """Names go in as text alone; the policy would stop scripts, not a forged page."""
    own = [path for path in PAGE.iterdir() if path.suffix in (".js", ".html", ".css")]
    assert len(own) > 8
    for path in own:
        text = path.read_text()
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
        )
        assert not found, (path.name, found)
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text, re.IGNORECASE), path.name
        assert not re.search(r"\sstyle=|\son[a-z]+=\"", text), path.name
