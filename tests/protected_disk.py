"""One disk of a storage daemon that a `Rig` protects, and what can be asked of both."""

from __future__ import annotations

from typing import Any

from agent_rig import Rig, fresh
from qsd import Load, StorageDaemon
from rephub.schemas import events as ev
from rephub.schemas import journal as jr


class ProtectedDisk:
    """A volume of its own name on node `disk0`.

    Args:
        rig: its agent.
        qsd: its QEMU; may be exchanged for another process on the same disk.
        size: of the disk, in bytes.
    """

    def __init__(self, rig: Rig, qsd: StorageDaemon, size: int) -> None:
        self.rig, self.qsd, self.name, self.size = rig, qsd, fresh(), size

    async def protect(self) -> None:
        """Until it is protected."""
        await self.rig.protect(self.name, self.qsd.qmp, "disk0", self.size)
        await self.rig.protected(self.name)

    def write(self, start: int, length: int, seed: int) -> None:
        """As the guest, and flush: a QEMU that is killed loses what it noted in its own memory alone."""
        load = Load(self.qsd.uri())
        load("write", start=start, length=length, seed=seed)
        load("flush")
        load.close()

    def bitmaps(self) -> list[str]:
        """Names of the node's dirty bitmaps."""
        nodes = self.qsd.execute("query-named-block-nodes", flat=True)["return"]
        (node,) = [node for node in nodes if node["node-name"] == "disk0"]
        return sorted(bitmap["name"] for bitmap in node.get("dirty-bitmaps", []) if "name" in bitmap)

    async def tidied(self) -> None:
        """Until only the newest attachment's chain is there: two records and a guard; its sync is over then."""
        await self.rig.protected(self.name)
        base = self.rig.of(ev.FilterAttached, self.name)[-1].bitmap

        def is_tidy() -> bool:
            return len(self.bitmaps()) == 3 and sum(base in name for name in self.bitmaps()) == 2

        await self.rig.until("records of the newest attachment alone", is_tidy)

    async def last_sync(self) -> tuple[Any, int]:
        """The newest `VolumeSyncStarted`, and how many bytes of data its sync journaled."""
        started = self.rig.of(ev.VolumeSyncStarted, self.name)[-1]
        records = [record for _, record in await self.rig.records(self.name) if record.epoch == started.epoch]
        (sync,) = [record for record in records if isinstance(record, jr.SyncStarted)]
        assert (sync.mode, sync.total_bytes) == (started.mode, started.total_bytes)
        return started, sum(len(record.data) for record in records if isinstance(record, jr.SyncData))

    async def same(self) -> bytes:
        """The journal's replay, which must equal the disk as QEMU shows it."""
        offset = (await self.rig.checkpoint(fresh("c"), self.name))[self.name]
        image, state = await self.rig.replay(self.name, self.size, offset)
        assert state.gap_first_offset is None
        assert image == self.qsd.content()
        return image
