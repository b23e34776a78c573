"""An NBD server that dies, hangs, refuses to flush, or does not do: nothing is called durable that may be gone."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from conformance.recovery_cases import data
from processes import freeze, thaw
from recovery_servers import NbdProcess, qemu_nbd
from rephub.consumers.diskbox import recovery_nbd
from rephub.consumers.diskbox.recovery_nbd import NbdVolume
from rephub.consumers.diskbox.recovery_targets import check_target
from rephub.core.errors import ConflictError, RequestError, StorageError, UsageError
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.memory import MemoryExport
from rephub.core.nbd.server import NbdServer
from rephub.core.nbd.uri import unix_uri

SIZE = 1 << 20


@pytest.fixture
def server(short_dir: Path):
    disk = short_dir / "disk"
    disk.write_bytes(bytes(SIZE))
    server = qemu_nbd(short_dir, disk)
    yield server
    thaw(server.process.pid)
    server.kill()


@pytest.mark.qemu
async def test_a_restart_between_write_and_flush_fails_the_flush(server: NbdProcess) -> None:
    volume = await NbdVolume.open(server.uri, SIZE)
    await volume.write([data(0, b"flushed")])
    await volume.fdatasync()
    await volume.write([data(100, b"perhaps")])
    server.kill()
    server.start()
    assert await volume.pread(0, 7) == b"flushed"  # reads reconnect ...
    for change in (volume.fdatasync(), volume.write([data(200, b"more")]), volume.fdatasync()):
        with pytest.raises(StorageError, match="lost before a flush") as lost:  # ... changes do not
            await change
        assert lost.value.fields["errno"] == errno.ENOTCONN
    await volume.reopen(SIZE)
    await volume.write([data(100, b"perhaps")])
    await volume.fdatasync()
    assert await volume.pread(100, 7) == b"perhaps"
    await volume.close()


@pytest.mark.qemu
async def test_a_restart_with_nothing_unflushed_is_not_noticed(server: NbdProcess) -> None:
    volume = await NbdVolume.open(server.uri, SIZE)
    await volume.write([data(0, b"one")])
    await volume.fdatasync()
    server.kill()
    server.start()
    async with asyncio.timeout(10):
        while volume._client.alive:
            await asyncio.sleep(0.01)
    await volume.write([data(3, b"two")])
    await volume.fdatasync()
    assert await volume.pread(0, 6) == b"onetwo"
    await volume.close()


@pytest.mark.qemu
async def test_reads_wait_for_a_server_but_not_for_ever(server: NbdProcess, monkeypatch) -> None:
    volume = await NbdVolume.open(server.uri, SIZE)
    server.kill()
    reading = asyncio.create_task(volume.pread(0, 4))
    done, _ = await asyncio.wait({reading}, timeout=0.3)
    assert not done
    server.start()
    assert await reading == bytes(4)
    server.kill()
    monkeypatch.setattr(recovery_nbd, "READ_RETRY_SECONDS", 0.2)
    with pytest.raises(StorageError) as away:
        await volume.pread(0, 4)
    assert away.value.fields["errno"] == errno.ENOTCONN
    assert "start the NBD server" in away.value.hint
    with pytest.raises(StorageError):
        await volume.reopen(SIZE)
    await volume.close()


@pytest.mark.qemu
async def test_a_write_that_is_not_answered_is_not_overtaken(server: NbdProcess, monkeypatch) -> None:
    """A server that hangs still has the write: until it answers, nothing newer is written anywhere."""
    monkeypatch.setattr(recovery_nbd, "ANSWER_SECONDS", 0.2)
    volume = await NbdVolume.open(server.uri, SIZE)
    freeze(server.process.pid)
    with pytest.raises(StorageError, match="no answer") as stuck:
        await volume.write([data(0, b"old")])
    assert stuck.value.fields["errno"] == errno.ETIMEDOUT
    with pytest.raises(StorageError, match="has not answered"):
        await volume.reopen(SIZE)
    with pytest.raises(StorageError):
        await volume.pread(0, 3)
    thaw(server.process.pid)
    monkeypatch.setattr(recovery_nbd, "ANSWER_SECONDS", 10.0)
    async with asyncio.timeout(10):
        while volume._changes:
            await asyncio.sleep(0.01)
    with pytest.raises(StorageError):
        await volume.fdatasync()
    await volume.reopen(SIZE)
    await volume.write([data(0, b"new")])
    await volume.fdatasync()
    assert await volume.pread(0, 3) == b"new"
    await volume.close()


class FlakyExport(MemoryExport):
    """Flushes fail while told so; each is counted."""

    failing = False

    async def flush(self) -> None:
        await super().flush()
        if self.failing:
            raise RequestError("flush failed", errno=errno.EIO)


async def test_a_failed_flush_is_never_made_again(short_dir: Path) -> None:
    export = FlakyExport(ExportInfo("", SIZE, can_flush=True, can_zero=True))
    server = NbdServer()
    server.add_export(export)
    await server.listen_unix(short_dir / "s")
    volume = await NbdVolume.open(unix_uri(short_dir / "s", ""), SIZE)
    await volume.write([data(0, b"x")])
    export.failing = True
    with pytest.raises(StorageError) as failed:
        await volume.fdatasync()
    assert failed.value.fields["errno"] == errno.EIO
    export.failing = False
    with pytest.raises(StorageError):
        await volume.fdatasync()
    assert export.flushes == 1
    await volume.reopen(SIZE)
    await volume.write([data(0, b"x")])
    await volume.fdatasync()
    assert export.flushes == 2
    await volume.close()
    await server.close()


async def test_exports_that_do_not_do(short_dir: Path) -> None:
    server = NbdServer()
    good = {"can_flush": True, "can_zero": True}
    full = MemoryExport(ExportInfo("full", 3 * SIZE, **good))
    await full.write(3 * SIZE - 1, b"\1", fua=False)
    for export in (
        MemoryExport(ExportInfo("small", SIZE - 1, **good)),
        MemoryExport(ExportInfo("frozen", SIZE, read_only=True, **good)),
        MemoryExport(ExportInfo("noflush", SIZE, can_flush=False, can_zero=True)),
        MemoryExport(ExportInfo("good", 3 * SIZE, **good)),
        full,
    ):
        server.add_export(export)
    await server.listen_unix(short_dir / "s")

    def uri(name: str) -> str:
        return unix_uri(short_dir / "s", name)

    for name, why in (
        ("small", "bytes"),
        ("frozen", "read-only"),
        ("noflush", "no flush"),
        ("full", "not empty"),
    ):
        with pytest.raises(ConflictError, match=why) as refused:
            await check_target(uri(name), SIZE, ours=False)
        assert refused.value.hint
        assert uri(name) in refused.value.message
    for name in ("small", "frozen", "noflush"):
        with pytest.raises(StorageError):
            await NbdVolume.open(uri(name), SIZE)
    await check_target(uri("good"), SIZE, ours=False)
    await check_target(uri("full"), SIZE, ours=True)
    with pytest.raises(StorageError, match="no export"):
        await check_target(uri("nobody"), SIZE, ours=False)
    for bad in ("http://x/y", "nbd+unix:///x?socket=relative"):
        with pytest.raises(UsageError):
            await check_target(bad, SIZE, ours=False)
    volume = await NbdVolume.open(uri("good"), SIZE)
    with pytest.raises(StorageError) as small:
        await volume.resize(3 * SIZE + 1)
    assert small.value.fields["errno"] == errno.ENOSPC
    await volume.close()
    await server.close()
