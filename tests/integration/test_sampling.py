"""Encryption of a protected disk shows in the agent's status within seconds: real QEMU, capture, Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_rig import Rig
from protected_disk import ProtectedDisk
from qsd import Load, StorageDaemon

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu]

MIB = 1 << 20
SIZE = 64 * MIB
TEXT = b"All happy families are alike; each unhappy family is unhappy in its own way. "


async def test_readable_data_that_are_encrypted_have_turned(rig: Rig, short_dir: Path) -> None:
    (short_dir / "q").mkdir()
    text = TEXT * (32 * MIB // len(TEXT) + 1)
    (short_dir / "q/disk0.raw").write_bytes(text[: 32 * MIB] + bytes(SIZE - 32 * MIB))
    qsd = StorageDaemon(short_dir / "q", [SIZE])
    try:
        disk = ProtectedDisk(rig, qsd, SIZE)
        await disk.protect()
        before = rig.volume_status(disk.name)["written"]
        assert before == dict.fromkeys(before, 0), "what sync reads is nobody's write"
        load = Load(qsd.uri())
        # Over the text, over zeroes, and zeroes.
        load("write", start=0, length=8 * MIB, seed=1)
        load("write", start=40 * MIB, length=4 * MIB, seed=2)
        load("zero", start=50 * MIB, length=MIB)
        load.close()

        def written() -> dict[str, float]:
            return dict(rig.volume_status(disk.name)["written"])

        await rig.until("all is counted", lambda: written()["bytes"] == 12 * MIB, 5)
        await rig.until("all is looked into", lambda: written()["sampled_blocks"] == 48, 5)
        found = written()
        assert found["random_blocks"] == 48
        assert found["turned_blocks"] == found["rewritten_blocks"] == 32
        assert 7.9 < found["entropy_sum"] / 48 < 8
        assert found["packed_sum"] == 48
        assert found["writes"] >= 3
    finally:
        qsd.stop()
