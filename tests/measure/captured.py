"""A disk of QEMU's with the agent's data path behind its mirror, and nothing else of the product: the journal is in memory and is thrown away.

Run by tests/measure/detection.py and sampling.py as a process of its own, so that the guest's tools and the capture do not share an interpreter:

    captured.py FOLDER SIZE_BYTES [no-sampling]

Attaches to FOLDER/qmp, syncs, then prints one JSON document a second: `at`, and the sums of what was written.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rephub.agent import attach
from rephub.agent.attachment import Attachment, AttachmentSpec
from rephub.agent.epochs import claim
from rephub.core.bitmap.memory import MemoryBitmapStore
from rephub.core.config import AgentSettings
from rephub.core.errors import RephubError
from rephub.core.journal.memory import MemoryJournalStore

KEPT_EVENTS = 2000


async def execute(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str, **fields: Any
) -> None:
    """A QMP command that must succeed."""
    writer.write(json.dumps({"execute": command, "arguments": fields}).encode() + b"\n")
    while "return" not in (answer := json.loads(await reader.readline())):
        if "error" in answer:
            raise RuntimeError(answer)


def lost(_attachment: Attachment, error: RephubError) -> None:
    """The session is of no use."""
    print(json.dumps({"lost": error.message}), flush=True)


async def main(folder: Path, size_bytes: int, *, sampling: bool) -> None:
    """Attach, sync, tell."""
    journals = MemoryJournalStore()
    await journals.create("v")
    taken = await claim(journals, "v", [], uuid.uuid4().hex, size_bytes, "measure")
    spec = AttachmentSpec(
        volume="v", epoch=taken.epoch, attachment_id=taken.attachment_id, epoch_offset=taken.offset,
        size_bytes=size_bytes, ack="async", overload="throttle", socket=str(folder / "capture"), export="e",
    )  # fmt: skip
    attachment = Attachment(spec, AgentSettings(sampling=sampling), journals, MemoryBitmapStore(), lost)
    await attachment.open()
    monitor = await asyncio.open_unix_connection(folder / "qmp")
    await monitor[0].readline()
    await execute(*monitor, "qmp_capabilities")
    await execute(
        *monitor, "blockdev-add", driver="nbd", export="e",
        server={"type": "unix", "path": spec.socket}, **{"node-name": "target"},
    )  # fmt: skip
    mirror = {"job-id": "mirror", "copy-mode": "write-blocking", "on-target-error": "report"}
    mirror |= {"filter-node-name": "filter"}
    await execute(
        *monitor, "blockdev-mirror", device="disk0", target="target", sync="none",
        granularity=attach.GRANULARITY_BYTES, **mirror,
    )  # fmt: skip
    await attachment.start_sync({"path": str(folder / "nbd")}, "disk0", lambda _offset: None)
    while True:
        await asyncio.sleep(1.0)
        await journals.delete_records("v", max(0, attachment.acked_offset - KEPT_EVENTS))
        if attachment.synced_offset is not None:
            said = attachment.stats()["written"] | {"at": time.time_ns() // 1000}
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), sampling=sys.argv[3:] != ["no-sampling"]))
