"""Providers with real processes, and who counts as silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rephub.consumers.hub import liveness as liveness_module
from rephub.consumers.hub.liveness import FAILED_LOOKS_MAX, Liveness
from rephub.consumers.hub.provider import CommandProvider, SupervisorProvider, provider_of
from rephub.core.config import Settings, load_settings
from rephub.core.errors import DeadlineError, RephubError, StorageError, UnavailableError
from rephub.core.http import StatusServer
from rephub.infra.diskbox_list import add_diskbox, grown_diskboxes
from rephub.infra.process import start_time
from rephub.projections.catalogue import Catalogue, Diskbox


def settings(folder: Path, *command: str, seconds: float = 20.0) -> Settings:
    return load_settings(state_dir=folder, provider={"command": command, "command_seconds": seconds})


def command(folder: Path, script: str, seconds: float = 20.0) -> CommandProvider:
    found = provider_of(settings(folder, "sh", "-c", script, "hook", "{diskbox}", seconds=seconds))
    assert isinstance(found, CommandProvider)
    return found


async def test_a_command_gets_the_name_and_the_addresses(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'echo "$1 $REPHUB_DISKBOX__ID $REPHUB_KAFKA__BOOTSTRAP" > {out}; echo fine'
    await command(tmp_path, script).bring("diskbox7")
    assert out.read_text().split() == ["diskbox7", "diskbox7", "127.0.0.1:9092"]


async def test_a_command_that_fails_says_how(tmp_path: Path) -> None:
    with pytest.raises(RephubError) as caught:
        await command(tmp_path, "echo first >&2; echo no quota >&2; echo chatter; exit 3").bring("diskbox2")
    assert caught.value.message == "provider command sh failed with exit code 3: no quota"
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(RephubError, match="failed with signal 9: it said nothing"):
        await command(tmp_path, "kill -9 $$").bring("diskbox2")


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"echo $$ > {pids}; sleep 600 & echo $! >> {pids}; echo asking the cloud >&2; wait"
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"did not end within 1 s and was killed: asking the cloud"):
        await command(tmp_path, script, seconds=1.0).bring("diskbox2")
    assert time.monotonic() - began < 5
    assert len(pids.read_text().split()) == 2
    await until(lambda: not any(start_time(int(pid)) for pid in pids.read_text().split()))


async def test_a_hub_that_stops_takes_its_command_along(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    work = asyncio.create_task(command(tmp_path, f"echo $$ > {pids}; exec sleep 600").bring("diskbox2"))
    await until(lambda: pids.exists() and pids.read_text())
    work.cancel()
    await asyncio.wait([work])
    assert start_time(int(pids.read_text())) is None


async def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    provider = provider_of(settings(tmp_path, "/nonexistent/hook"))
    with pytest.raises(UnavailableError, match="cannot start /nonexistent/hook") as caught:
        await provider.bring("diskbox2")
    assert "provider.command" in caught.value.hint


async def test_without_a_supervisor_nobody_brings_one(tmp_path: Path) -> None:
    provider = provider_of(settings(tmp_path))
    assert isinstance(provider, SupervisorProvider)
    with pytest.raises(UnavailableError, match="no supervisor runs") as caught:
        await provider.bring("diskbox2")
    assert "provider.command" in caught.value.hint
    assert grown_diskboxes(tmp_path) == []
    (tmp_path / "supervisor.json").touch()
    for _ in range(2):
        await provider.bring("diskbox2")
    assert grown_diskboxes(tmp_path) == ["diskbox2"]


def test_the_list_keeps_its_order_and_is_not_guessed(tmp_path: Path) -> None:
    for name in ("diskbox2", "diskbox10", "diskbox3"):
        add_diskbox(tmp_path, name)
    assert grown_diskboxes(tmp_path) == ["diskbox2", "diskbox10", "diskbox3"]
    for text in ("{", "[]", '{"diskboxes": ["../x"]}'):
        (tmp_path / "diskboxes.json").write_text(text)
        with pytest.raises(StorageError):
            grown_diskboxes(tmp_path)


async def test_silence_is_counted_in_looks_and_ends_with_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness_module, "LOOK_SECONDS", 0.05)
    server = StatusServer("127.0.0.1", 0, lambda: {"id": "d1"})
    url = await server.start()
    port = int(url.rpartition(":")[2])
    catalogue = Catalogue()
    for name in ("d1", "d2"):  # d2: somebody else answers at its address
        catalogue.diskboxes[name] = Diskbox(name, "h", 1, url, 27)
    liveness = Liveness(f"unix://{tmp_path}/none.sock")
    assert not liveness.silent()
    watching = asyncio.create_task(liveness.watch(catalogue))
    await until(lambda: liveness.silent() == {"d2"})
    await server.stop()
    await until(lambda: liveness.silent() == {"d1", "d2"})
    assert FAILED_LOOKS_MAX > 1
    again = StatusServer("127.0.0.1", port, lambda: {"id": "d1"})
    await again.start()
    await until(lambda: liveness.silent() == {"d2"})
    watching.cancel()
    await asyncio.wait([watching])
    await again.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)
