"""Dependent writes across two disks, and the judge of what a checkpoint shows of them.

In each chain, write i goes to the one disk only after write i - 1 was answered on the other. So at one instant no disk
shows a write without the one before it on the other.
"""

from __future__ import annotations

from qsd import Load
from rephub.core.codec import decode_journal
from rephub.core.journal.port import JournalStore
from rephub.schemas import journal as jr

DISK_BYTES = 4 << 20
SECTOR = 512
CHAINS = 16
CHAIN_SECTOR = (3 << 20) // SECTOR
"""The background load stays below."""

Shown = list[int]
"""The write that each chain shows on one disk."""


class Loads:
    """The chains, and independent writes at depth 4 on each disk.

    Args:
        uris: of the two disks.
        seconds: for which the chains grow, at most.
        seed: of the independent writes.
        chains: further fields of that order.
    """

    def __init__(self, uris: tuple[str, str], seconds: float, seed: int, **chains: object) -> None:
        self._chains = Load(uris[0])
        self._others = [Load(uri) for uri in uris]
        order = {"others": [uris[1]], "chains": CHAINS, "sector": CHAIN_SECTOR, "seconds": seconds}
        self._chains.send("chains", **order | chains)
        for number, load in enumerate(self._others):
            load.send("numbered", depth=4, count=1000, first=1, sectors=CHAIN_SECTOR, seed=seed + number)

    def end(self) -> Shown:
        """Wait for the end; the last write of each chain."""
        answers = [load.receive() for load in (self._chains, *self._others)]
        for load in (self._chains, *self._others):
            load.close()
        assert not any("error" in answer for answer in answers), answers
        return list(answers[0]["answered"])


def shown_by_view(view: bytes) -> Shown:
    """What each chain's sector holds."""
    starts = [(CHAIN_SECTOR + 8 * chain) * SECTOR for chain in range(CHAINS)]
    for start in starts:
        assert view[start : start + SECTOR] == view[start : start + 8] * (SECTOR // 8), "a torn sector"
    return [int.from_bytes(view[start : start + 8], "little") for start in starts]


async def shown_by_journal(journals: JournalStore, volume: str) -> dict[str, Shown]:
    """For every checkpoint of the volume: the last write of each chain that lies before its marker."""
    reader = journals.reader(volume)
    await reader.start()
    try:
        found: dict[str, Shown] = {}
        shown = [0] * CHAINS
        at, head = await reader.first_offset(), await reader.next_offset()
        while at < head:
            for stored in await reader.fetch(at):
                if stored.journal_offset < at:
                    continue
                at = stored.journal_offset + 1
                record = decode_journal(stored.value)
                if isinstance(record, jr.Checkpoint):
                    found[record.checkpoint] = list(shown)
                elif isinstance(record, jr.Write) and record.start >= CHAIN_SECTOR * SECTOR:
                    chain = (record.start // SECTOR - CHAIN_SECTOR) // 8
                    shown[chain] = int.from_bytes(record.data[:8], "little")
        return found
    finally:
        await reader.close()


def violations(first: Shown, second: Shown) -> list[str]:
    """Chains in which a write shows, but not the one before it on the other disk."""
    return [
        f"chain {chain}: write {max(pair)} shows, the other disk stands at {min(pair)}"
        for chain, pair in enumerate(zip(first, second, strict=True))
        if max(pair) - min(pair) > 1
    ]


def judge(first: dict[str, Shown], second: dict[str, Shown]) -> dict[str, list[str]]:
    """Violations by checkpoint, of those that both disks have."""
    return {
        name: found for name in first if name in second and (found := violations(first[name], second[name]))
    }
