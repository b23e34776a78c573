"""The promises of design.md §3 as checks; each failure names its promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rephub.core.errors import IntegrityError, RephubError
from rephub.core.names import dirty_key
from simulation.guest import Op

if TYPE_CHECKING:
    from rephub.consumers.diskbox.projector import Projector
    from simulation.world import World

STALL_SECONDS_MAX = 6.5
"""Held answers are looked at for 5 s at most, every 0.25 s; the rest is what else was before in the queue of the disk."""

READ_FAILS = frozenset({"bitrot", "eio", "outage", "failed_sync", "enospc"})
"""Faults after which a read may fail, but never lie."""


class BrokenError(AssertionError):
    """A promise is broken."""


def require(holds: Any, promise: str, what: str) -> None:
    """Raises BrokenError unless it holds."""
    if not holds:
        raise BrokenError(f"{promise}: {what}")


class Judge:
    """Args: world: that is judged."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.views = 0
        self.failed_reads = 0

    def may_open(self, offset: int) -> None:
        """The timeline says that the point can be opened."""
        ledger = self.world.ledger
        require(0 <= offset < ledger.next_offset, "1 prefix", f"point {offset} is not in the journal")
        require(ledger.points[offset].good, "6 restart", f"point {offset} is called good inside a gap")

    def read(self, offset: int, start: int, data: bytes | None) -> None:
        """A view at a pinned point says this; None: it fails, which something else must explain."""
        if data is None:
            self.failed_reads += 1
            explained = self.world.faults.enabled & READ_FAILS
            require(explained, "10 retention", f"the view at {offset} fails, though it is pinned")
            return
        self.views += 1
        wanted = self.world.ledger.points[offset].image[start : start + len(data)]
        if data != wanted:
            first = next(at for at, (a, b) in enumerate(zip(data, wanted, strict=True)) if a != b)
            raise BrokenError(f"1 prefix: byte {start + first} of the view at {offset} is wrong")

    def answered(self, epoch: int, op: Op, errno: int) -> None:
        """The agent answers the guest."""
        world = self.world
        require(not errno, "11 guest impact", f"write {op.number} failed with errno {errno}")
        sent = dict(op.sent)
        if epoch not in sent or world.ledger.poisoned:
            # A poisoned volume needs a full resync, whatever is marked.
            return
        landed = self._landed(epoch, op, sent[epoch])
        key = dirty_key("v", epoch)
        _, marked = world.redis.bitmaps.get(key, (0, set()))
        lost = key in world.redis.emptied_at
        if world.policy == "journal":
            require(landed, "4 acked", f"write {op.number} was answered and is not in the journal")
        require(
            landed or lost or set(op.regions()) <= marked,
            "4 acked",
            f"write {op.number} was answered, is not in the journal, and of its regions {list(op.regions())} only "
            f"{sorted(marked)} are marked",
        )

    def _landed(self, epoch: int, op: Op, before: int) -> bool:
        """Whether all events of the write are in the journal, in an attachment that counts."""
        offsets = self.world.ledger.offset_of
        pieces = [op.what] if op.data is None else world_pieces(op)
        return all(len(offsets.get((epoch, piece), ())) > before for piece in pieces)

    def stopped(self, offset: int, error: RephubError) -> None:
        """8: a volume stops at what must not be, and at nothing else."""
        world = self.world
        if isinstance(error, IntegrityError):
            cause = world.ledger.poisons or world.rotted
            require(cause, "9 fencing", f"stopped at {offset} for nothing: {error.message}")

    def disk(self) -> None:
        """5, 6: what is on the disk after a crash is between applied and intent, byte by byte."""
        world = self.world
        points = world.ledger.points
        if world.ledger.poisons or world.rotted:
            return
        found = world.recovery_state()
        if found is None:
            return
        applied, intent, data = found
        images = [
            points[offset].image if offset >= 0 else bytes(world.size)
            for offset in range(applied, intent + 1)
        ]
        for start in range(0, world.size, 512):
            piece = data[start : start + 512]
            allowed = [image[start : start + 512] for image in images]
            if piece in allowed:
                continue
            for at, byte in enumerate(piece):
                require(
                    any(image[at] == byte for image in allowed),
                    "6 restart",
                    f"byte {start + at} on disk is of no point in [applied {applied}, intent {intent}]",
                )

    def order(self) -> None:
        """2: a write that was submitted after another was answered is later in the journal."""
        offsets = self.world.ledger.offset_of
        for epoch in range(1, self.world.ledger.epoch + 1):
            found = []
            for op in self.world.guest.ops:
                ordinal = dict(op.sent).get(epoch)
                if ordinal is None or op.data is None:
                    continue
                where = [offsets.get((epoch, piece), []) for piece in world_pieces(op)]
                if all(len(item) > ordinal for item in where) and len(op.data) > 8:
                    found.append(
                        (op, min(item[ordinal] for item in where), max(item[ordinal] for item in where))
                    )
            self._in_order(found)

    @staticmethod
    def _in_order(found: list[tuple[Op, int, int]]) -> None:
        """Walk through time; what was answered raises the bar for what is submitted."""
        moments = [(op.answered, 0, op, last) for op, _, last in found if op.answered is not None]
        moments += [(op.submitted, 1, op, first) for op, first, _ in found]
        bar, whose = -1, -1
        for _at, is_submit, op, offset in sorted(moments, key=lambda item: (item[0], item[1])):
            if not is_submit:
                if offset > bar:
                    bar, whose = offset, op.number
            else:
                require(
                    offset > bar,
                    "2 order",
                    f"write {op.number} came after {whose} was answered, and is before it",
                )

    def deleting(self, next_offset: int) -> None:
        """10: records below are about to be deleted."""
        world = self.world
        from simulation.diskbox_side import durable_position  # noqa: PLC0415 - they know each other

        applied, _ = durable_position(world)
        require(next_offset <= applied, "10 retention", f"deletes below {next_offset}, applied is {applied}")
        projector = world.projector
        if projector is not None:
            floor, pins = projector.floor_offset, projector.pins
            require(
                next_offset <= floor, "10 retention", f"deletes below {next_offset}, the floor is {floor}"
            )
            for holder, pin in pins.items():
                require(
                    next_offset <= pin, "10 retention", f"deletes below {next_offset}, {holder} pins {pin}"
                )

    def opened(self, projector: Projector) -> None:
        """6: after a start the floor is the intent."""
        applier = projector.applier
        wanted = max(applier.intent_offset, applier.applied_offset)
        require(
            projector.floor_offset == wanted,
            "6 restart",
            f"the floor is {projector.floor_offset}, the intent {wanted}",
        )

    def guest(self) -> None:
        """11: no write waited longer than it may."""
        longest = self.world.guest.longest_seconds
        limit = STALL_SECONDS_MAX + self.world.hung_seconds
        require(longest <= limit, "11 guest impact", f"a write took {longest:.1f} s")


def world_pieces(op: Op) -> list[Any]:
    """The events that a write becomes."""
    from simulation import scale  # noqa: PLC0415

    assert op.data is not None
    if op.length <= scale.EVENT:
        return [(op.start, op.data)]
    pieces, at = [], op.start
    while at < op.end:
        end = min(op.end, (at // scale.EVENT + 1) * scale.EVENT)
        pieces.append((at, op.data[at - op.start : end - op.start]))
        at = end
    return pieces
