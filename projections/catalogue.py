"""What RepHub knows: the fold of `rephub.events`.

Every daemon folds the same events with this module; nothing here touches a clock or a network. The position of the
fold is `next_offset`: an event below it was folded already and is skipped, an event id that was seen counts once,
and events of a hub that another one has replaced count for nothing. An event that cannot be (an older epoch, a
transition that `states.py` forbids) is noted in `ignored` and changes nothing else: the fold never stops.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict
from typing import Any, ClassVar

from rephub.core.errors import ConflictError
from rephub.projections.entities import (
    Agent,
    Checkpoint,
    Comparison,
    Diskbox,
    DiskboxRequest,
    Fot,
    Move,
    PendingProtect,
    Promotion,
    Volume,
)
from rephub.projections.failover import Failover
from rephub.projections.fold import FOLDS
from rephub.schemas import events as ev

__all__ = [
    "Agent",
    "Catalogue",
    "Checkpoint",
    "Comparison",
    "Diskbox",
    "DiskboxRequest",
    "Failover",
    "Fot",
    "Move",
    "PendingProtect",
    "Promotion",
    "Volume",
]

SEEN_MAX = 10_000
"""Ids remembered: repeats come from a restart between an event and its reaction, seconds apart and never this many
events; older repeats are caught by the state they would change."""
IGNORED_MAX = 20
"""Ignored events shown to whoever asks why."""


class Catalogue:
    """The state of all of RepHub at `next_offset` of `rephub.events`.

    Attributes:
        next_offset: offset of the first event that was not folded.
        hub_epoch: epoch of the hub that is in charge, 0 before the first.
        hub: its id.
        hub_event_id: id of its HubStarted: which of two that chose the same epoch won.
        agents, diskboxes, diskbox_requests, volumes, protects, checkpoints, fots, promotions, comparisons, moves, failovers: by
            name.
        ignored_events: how many events could not be.
        ignored: the last of them: {"offset", "event", "reason"}.
    """

    _TABLES: ClassVar[dict[str, type[Any]]] = {
        "agents": Agent,
        "diskboxes": Diskbox,
        "diskbox_requests": DiskboxRequest,
        "protects": PendingProtect,
        "volumes": Volume,
        "checkpoints": Checkpoint,
        "fots": Fot,
        "promotions": Promotion,
        "comparisons": Comparison,
        "moves": Move,
        "failovers": Failover,
    }

    def __init__(self) -> None:
        self.next_offset = 0
        self.hub_epoch = 0
        self.hub = ""
        self.hub_event_id = ""
        self.agents: dict[str, Agent] = {}
        self.diskboxes: dict[str, Diskbox] = {}
        self.diskbox_requests: dict[str, DiskboxRequest] = {}
        self.protects: dict[str, PendingProtect] = {}
        self.volumes: dict[str, Volume] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.fots: dict[str, Fot] = {}
        self.promotions: dict[str, Promotion] = {}
        self.comparisons: dict[str, Comparison] = {}
        self.moves: dict[str, Move] = {}
        self.failovers: dict[str, Failover] = {}
        self.ignored_events = 0
        self.ignored: list[dict[str, Any]] = []
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._commands: OrderedDict[str, None] = OrderedDict()

    def apply(self, offset: int, event: ev.Record) -> bool:
        """Fold one event.

        Args:
            offset: its offset in `rephub.events`; offsets may be skipped, never come back.
            event: any record of that topic; a type of a newer version is ignored.

        Returns:
            Whether it counted: False for a repeat, a fenced hub's event, or one that cannot be.
        """
        if offset < self.next_offset:
            return False
        self.next_offset = offset + 1
        if event.id in self._seen:
            return False
        try:
            self._fold(event)
        except ConflictError as error:
            self.ignored_events += 1
            self.ignored.append({"offset": offset, "event": type(event).__name__, "reason": error.message})
            del self.ignored[:-IGNORED_MAX]
            return False
        _remember(self._seen, event.id)
        if event.command_id and event.hub_epoch:
            _remember(self._commands, event.command_id)
        return True

    def skip_to(self, next_offset: int) -> None:
        """Go on at an offset: what lies below is folded, or was not an event that this version knows."""
        self.next_offset = max(self.next_offset, next_offset)

    def _fold(self, event: ev.Record) -> None:
        fold = FOLDS.get(type(event))
        if fold is None:
            raise ConflictError("unknown event")
        if 0 < event.hub_epoch < self.hub_epoch:
            raise ConflictError(f"hub epoch {event.hub_epoch} is over, the current one is {self.hub_epoch}")
        fold(self, event)

    def knows_event(self, event_id: str) -> bool:
        """Whether an event of this id was folded."""
        return event_id in self._seen

    def knows_command(self, command_id: str) -> bool:
        """Whether the hub has answered a command of this id."""
        return command_id in self._commands

    def live_volumes(self) -> list[Volume]:
        """All volumes that are protected, or on the way there or back, by name."""
        return [volume for _, volume in sorted(self.volumes.items()) if volume.live]

    def group_members(self, group: str) -> list[Volume]:
        """The group's live volumes, by name; empty: there is no such group."""
        return [volume for volume in self.live_volumes() if volume.group == group]

    def wants_capture(self, volume: Volume) -> bool:
        """Whether the agent has to have the volume attached: what an agent compares with what it does."""
        asked = volume.resume_id or volume.resync_id
        return (
            volume.live
            and bool(volume.path or volume.placed_id)
            and not volume.unprotect_id
            and not volume.taken
            and not volume.pause_id
            and (not volume.paused_at or bool(asked))
        )

    def wants_sync(self, volume: Volume) -> bool:
        """Whether sync of the volume's current epoch was asked for and has not completed."""
        return volume.attached and volume.sync_epoch == volume.epoch and volume.synced_epoch < volume.epoch

    def comparison_of(self, volume: str) -> Comparison | None:
        """The one that is under way with the volume."""
        return next(
            (one for one in self.comparisons.values() if one.volume == volume and not one.ended), None
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as a JSON document; `from_dict` makes an equal catalogue of it."""
        return self.summary() | {"seen": list(self._seen), "commands": list(self._commands)}

    def summary(self) -> dict[str, Any]:
        """`to_dict()` without the ids that only the fold needs."""
        document: dict[str, Any] = {
            "next_offset": self.next_offset,
            "hub_epoch": self.hub_epoch,
            "hub": self.hub,
            "hub_event_id": self.hub_event_id,
            "ignored_events": self.ignored_events,
            "ignored": [dict(item) for item in self.ignored],
        }
        for table in self._TABLES:
            document[table] = {name: asdict(entity) for name, entity in getattr(self, table).items()}
        return document

    def to_json(self) -> str:
        """Text of `to_dict()`: the same log gives the same bytes, whichever snapshots lay between.

        Keys stay in the order in which the log brought them: what is forgotten first depends on it.
        """
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Catalogue:
        """The catalogue that `to_dict()` or `summary()` described.

        Raises:
            KeyError, TypeError: the document is of another version; replay from offset 0 instead.
        """
        catalogue = cls()
        for name in ("next_offset", "hub_epoch", "hub", "hub_event_id", "ignored_events"):
            setattr(catalogue, name, document[name])
        catalogue.ignored = [dict(item) for item in document["ignored"]]
        for table, entity in cls._TABLES.items():
            setattr(catalogue, table, {name: entity(**fields) for name, fields in document[table].items()})
        catalogue._seen = OrderedDict.fromkeys(document.get("seen", []))
        catalogue._commands = OrderedDict.fromkeys(document.get("commands", []))
        return catalogue


def _remember(ids: OrderedDict[str, None], new_id: str) -> None:
    """Keep the id, forget the oldest beyond the limit; a plain dict would look for the oldest behind thousands deleted."""
    ids[new_id] = None
    ids.move_to_end(new_id)
    if len(ids) > SEEN_MAX:
        ids.popitem(last=False)
