"""`status` and its relatives without any service: from the hub's snapshot, quickly, honestly."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_world import World
from rephub.cli.main import run
from rephub.cli.view import status_document
from rephub.consumers.hub import snapshot
from rephub.core.errors import NotFoundError, PointNotAvailableError, UnavailableError
from rephub.core.fetch import fetch, fetch_or_raise
from rephub.core.http import StatusServer

DEAD = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The state directory of a stack that died: one volume was protected."""
    world = World()
    world.protected("v1")
    for daemon in (*world.catalogue.agents.values(), *world.catalogue.diskboxes.values()):
        daemon.url = DEAD
    snapshot.save(tmp_path / "hub", world.catalogue)
    endpoints(tmp_path, DEAD)
    return tmp_path


def endpoints(state_dir: Path, web: str) -> None:
    document = {"bootstrap": "127.0.0.1:9", "redis": "", "web": web, "state_dir": str(state_dir)}
    (state_dir / "endpoints.json").write_text(json.dumps(document | {"pids": {}, "urls": {}, "config": ""}))


@pytest.fixture
async def hung() -> AsyncIterator[str]:
    """A server that takes connections and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}"
    for writer in writers:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_everything_down_answers_from_the_snapshot(site: Path) -> None:
    began = time.monotonic()
    document = await status_document(site)
    assert time.monotonic() - began < 4
    (volume,) = document["volumes"]
    assert (volume["state"], volume["consistent"]) == ("gap", False)
    assert volume["reason"].startswith("agent a1")
    assert document["problems"][0] == f"the hub at {DEAD} does not answer, this is its last snapshot"


async def test_everything_hung_answers_in_time(site: Path, hung: str) -> None:
    """Hub, agent and diskbox are stopped processes: connections are taken, nothing comes."""
    endpoints(site, hung)
    catalogue = snapshot.load(site / "hub")
    for daemon in (*catalogue.agents.values(), *catalogue.diskboxes.values()):
        daemon.url = hung
    snapshot.save(site / "hub", catalogue)
    began = time.monotonic()
    (volume,) = (await status_document(site))["volumes"]
    assert time.monotonic() - began < 4
    assert (volume["state"], volume["reason"]) == ("gap", "agent a1 silent for 2.0 s")


async def test_no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPHUB_KAFKA__BOOTSTRAP", raising=False)
    with pytest.raises(UnavailableError):
        await status_document(tmp_path)


async def test_a_stack_that_never_had_a_hub(tmp_path: Path) -> None:
    endpoints(tmp_path, DEAD)
    with pytest.raises(UnavailableError) as caught:
        await status_document(tmp_path)
    assert caught.value.hint


async def test_a_damaged_snapshot_is_none(site: Path) -> None:
    (site / "hub" / "catalogue.json").write_text('{"catalogue": 3')
    with pytest.raises(UnavailableError):
        await status_document(site)
    assert snapshot.load(site / "hub").next_offset == 0


async def test_unknown_volume(site: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        await status_document(site, "nope")
    assert caught.value.hint == "volumes: v1"


def test_check_exits_3_with_a_line_for_each_reason(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--check", "--json", "--state-dir", str(site)]) == 3
    out, err = capsys.readouterr()
    problems = json.loads(out)["problems"]
    assert len(problems) >= 3
    assert err.splitlines() == problems


def test_wait_exits_1_naming_the_last_state(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["wait", "v1", "--state", "protected", "--timeout", "0.1", "--json", "--state-dir", str(site)]
    assert run(arguments) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["state"] == "gap"
    assert error["hint"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["wait", "v1", "--state", "well"], 2),
        (["wait", "nope", "--state", "gap"], 4),
        (["status", "nope"], 4),
        (["status", "--watch", "--check"], 2),
        (["timeline", "v1"], 6),
        (["timeline", "nope"], 4),
        (["timeline", "-x"], 2),
        (["unprotect", "v1", "--timeout", "0.5"], 6),
        (["protect", "v2", "--qmp", "q", "--node", "n", "--timeout", "0.5"], 6),
        (["protect", "a/b", "--qmp", "q", "--node", "n"], 2),
        (["protect", "v2", "--qmp", "q"], 2),
        (["protect", "v2", "--qmp", "q", "--node", "n", "--history", "0h"], 2),
        (["protect", "v2", "--qmp", "q", "--node", "n", "--ack", "maybe"], 2),
        (["checkpoint", "create", "c"], 2),
        (["checkpoint", "create", "c", "--volume", "v", "--group", "g"], 2),
        (["fot", "start", "v1"], 2),
        (["fot", "start", "v1", "--latest", "--offset", "1"], 2),
        (["fot", "start", "--latest"], 2),
        (["fot", "start", "v1", "--offset", "-1"], 2),
        (["promote", "v1", "--time", "yesterday"], 2),
        (["promote", "v1"], 2),
        (["resync", "v1", "--timeout", "0"], 2),
    ],
)
def test_exit_codes_without_services(
    site: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json", "--state-dir", str(site)]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"]
    assert error["hint"]
    assert "\n" not in error["message"] + error["hint"]


def test_lists_work_from_the_snapshot(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, field in (("checkpoint", "checkpoints"), ("fot", "fots")):
        assert run([verb, "list", "--json", "--state-dir", str(site)]) == 0
        assert json.loads(capsys.readouterr().out) == {field: []}


async def test_errors_of_daemons_travel() -> None:
    async def fail(_request: Any) -> Any:
        raise PointNotAvailableError("gone", hint="take 3", nearest_offset=3)

    server = StatusServer("127.0.0.1", 0, lambda: {"ready": True}, {"/fail": fail})
    url = await server.start()
    try:
        assert await fetch(f"{url}/status", 2) == {"ready": True}
        assert await fetch(f"{url}/fail", 2) is None
        assert await fetch(f"{url}/nowhere", 2) is None
        with pytest.raises(PointNotAvailableError) as caught:
            await fetch_or_raise(f"{url}/fail", 2)
        assert caught.value.fields == {"nearest_offset": 3}
    finally:
        await server.stop()
