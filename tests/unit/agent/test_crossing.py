"""The coordinator of a checkpoint over several agents, on real sockets; the workers behind them are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rephub.agent import crossing
from rephub.agent.crossing import ATTEMPTS_MAX, Crossing
from rephub.agent.hold_side import HoldSide
from rephub.agent.peers import PeerServer, connected
from rephub.core.config import load_settings
from rephub.core.errors import ConflictError, UnavailableError, UsageError

FIELDS = {"checkpoint": "c", "group": "g", "kind": "crash", "periodic": False}


class Site:
    """Agents a, b, … with a worker each that notes what it was asked; `a` coordinates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[tuple[str, str]] = []
        self.fails: dict[tuple[str, str], list[Exception]] = {}
        """By agent and step: what to raise, one for each time."""
        self.consistent = True
        self.sides: dict[str, HoldSide] = {}
        self.servers: dict[str, PeerServer] = {}
        self.addresses: dict[str, str] = {}

    async def add(self, name: str, **agent: Any) -> None:
        async def call(op: str, _seconds: float, **_fields: Any) -> dict[str, Any]:
            self.log.append((name, op))
            if waiting := self.fails.get((name, op)):
                raise waiting.pop()
            await asyncio.sleep(0)
            return {"offsets": {f"v{name}": 7}, "captured_at": ord(name), "hold_ms": float(ord(name))}

        worker = SimpleNamespace(call=call)

        def worker_of(_volumes: list[str]) -> Any:
            if not self.consistent:
                raise ConflictError("volume is not consistent now")
            return worker

        self.sides[name] = HoldSide(worker_of)
        settings = load_settings(state_dir=self.folder, agent={"id": name, **agent})
        self.servers[name] = PeerServer(settings, self.sides[name].serve)
        self.addresses[name] = await self.servers[name].start()

    async def mark(self) -> dict[str, Any]:
        members = {name: [f"v{name}"] for name in self.sides}
        return await Crossing("a", self.sides["a"], members, self.addresses, 50).mark(FIELDS)

    def steps(self, op: str) -> list[int]:
        """When the step was asked of workers."""
        return [number for number, (_name, done) in enumerate(self.log) if done == op]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "PAUSE_SECONDS", 0.001)


@pytest.fixture
async def site(short_dir: Path) -> AsyncIterator[Site]:
    site = Site(short_dir)
    await site.add("a")
    await site.add("b", peer_host="127.0.0.1")
    await site.add("c")
    yield site
    for server in site.servers.values():
        await server.stop()


async def test_all_hold_before_any_marks_and_all_mark_before_any_lets_go(site: Site) -> None:
    answer = await site.mark()
    assert answer == {
        "offsets": {"va": 7, "vb": 7, "vc": 7},
        "captured_at": ord("c"),
        "kind": "crash",
        "hold_ms": float(ord("c")),
        "attempts": 1,
    }
    assert len(site.steps("hold")) == len(site.steps("hold_mark")) == len(site.steps("hold_release")) == 3
    assert max(site.steps("hold")) < min(site.steps("hold_mark"))
    assert max(site.steps("hold_mark")) < min(site.steps("hold_release"))
    assert not site.steps("hold_drop")


@pytest.mark.parametrize("agent", ["a", "b", "c"])
@pytest.mark.parametrize("step", ["hold", "hold_mark", "hold_release"])
async def test_a_step_that_fails_voids_the_attempt_and_all_let_go(site: Site, agent: str, step: str) -> None:
    site.fails[agent, step] = [UnavailableError("the limit of 50 ms was over")]
    answer = await site.mark()
    assert answer["attempts"] == 2
    released_or_dropped = {name for name, op in site.log if op in ("hold_drop", "hold_release")}
    assert released_or_dropped == {"a", "b", "c"}
    first = site.log[: site.steps("hold")[3]]
    if step == "hold":
        assert not [op for _name, op in first if op == "hold_mark"], "nobody marks unless all hold"


async def test_an_attempt_that_is_always_void_fails_and_names_the_agent(site: Site) -> None:
    site.fails["b", "hold_release"] = [UnavailableError("over") for _ in range(ATTEMPTS_MAX)]
    with pytest.raises(UnavailableError, match="void: agent b: over") as caught:
        await site.mark()
    assert caught.value.hint
    assert len(site.steps("hold")) == 3 * ATTEMPTS_MAX


async def test_nobody_holds_for_a_checkpoint_that_cannot_be(site: Site) -> None:
    site.consistent = False
    with pytest.raises(UnavailableError, match="not consistent"):
        await site.mark()
    assert site.log == []


@pytest.mark.parametrize("address", ["", "unix:/nowhere", "tcp:127.0.0.1:1"])
async def test_an_agent_that_cannot_be_reached_is_named(site: Site, address: str) -> None:
    site.addresses["b"] = address
    with pytest.raises(UnavailableError, match="agent b"):
        await site.mark()
    assert site.log == []


async def test_a_peer_that_dies_in_between_voids(site: Site) -> None:
    async def die(op: str, fields: dict[str, Any]) -> dict[str, Any]:
        if op == "mark":
            await site.servers["b"].stop()
        return await HoldSide.serve(site.sides["c"], op, fields)

    site.sides["c"].serve = die  # type: ignore[method-assign]
    site.servers["c"]._serve = die
    with pytest.raises(UnavailableError, match="agent b"):
        await site.mark()


async def test_a_stranger_gets_an_error_and_no_more(site: Site) -> None:
    async with connected("b", site.addresses["b"]) as channel:
        with pytest.raises(UsageError):
            await channel.call("open", 5, spec={})
        with pytest.raises(UsageError):
            await channel.call("hold", 5, nonsense=1)
        with pytest.raises(UnavailableError):
            await channel.call("release", 5, hold="h")
    assert site.log == []


async def test_the_unix_socket_is_ours_alone(site: Site) -> None:
    path = Path(site.addresses["a"].removeprefix("unix:"))
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    assert site.addresses["a"] != site.addresses["c"]
