"""A control plane in one process: the real fold and decisions, scripted agents and diskboxes, no network.

The actors act on state as the real daemons do: `agent_due` and `diskbox_due` say what one of them would write next,
with ids that follow from causes. Integration tests use the same actors on a real Kafka.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

from failover_actors import agent_failovers, diskbox_failovers
from rephub.agent.memory import decide as decide_sync
from rephub.core.control.ids import event_id
from rephub.core.errors import NotFoundError, RephubError, from_json
from rephub.projections.catalogue import Catalogue
from rephub.projections.decisions import decide, pending
from rephub.projections.entities import Comparison, DiskboxRequest, Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
DISK_BYTES = 64 << 20

_ids = itertools.count()


def head(kind: type, cause: str, subject: str, now: int, source: str) -> dict[str, Any]:
    """The fields that all events of a daemon have."""
    return {
        "id": event_id(cause, kind.__name__, subject),
        "at": now,
        "source": source,
        "cause_id": cause,
        "hub_epoch": 0,
    }


def node(name: str, **changes: Any) -> ev.NodeInfo:
    """A node as a VM announces it."""
    fields = {
        "node": name,
        "device": f"dev-{name}",
        "size_bytes": DISK_BYTES,
        "driver": "qcow2",
        "read_only": False,
    }
    return ev.NodeInfo(**(fields | changes))


def agent_due(
    catalogue: Catalogue, name: str, vms: dict[str, list[ev.NodeInfo]], now: int
) -> list[ev.Record]:
    """What agent `name` would write next, having `vms` by monitor path."""
    source = f"agent/{name}"
    due: list[ev.Record] = []
    agent = catalogue.agents.get(name)
    for qmp, probe in (agent.probes if agent else {}).items():
        if qmp in vms:
            due.append(
                ev.VmAnnounced(
                    **head(ev.VmAnnounced, probe, qmp, now, source),
                    agent=name,
                    qmp=qmp,
                    vm=qmp.rpartition("/")[2],
                    version="7.2.0",
                    nodes=tuple(vms[qmp]),
                )
            )
        else:
            error = NotFoundError(f"no monitor at {qmp}", hint="check --qmp").to_json()
            fields = head(ev.VmProbeFailed, probe, qmp, now, source)
            due.append(ev.VmProbeFailed(**fields, agent=name, qmp=qmp, error=error))
    for volume in catalogue.volumes.values():
        if volume.agent == name:
            sizes = {item.node: item.size_bytes for item in vms.get(volume.qmp, [])}
            due += _agent_volume(catalogue, volume, now, source, sizes.get(volume.node))
    for run in catalogue.comparisons.values():
        volume = catalogue.volumes.get(run.volume)
        if run.state == "digesting" and volume is not None and volume.agent == name and volume.attached:
            due.append(digested(run, now))
    for checkpoint in catalogue.checkpoints.values():
        if checkpoint.agent == name and checkpoint.state == "requested":
            due.append(
                ev.CheckpointCreated(
                    **head(ev.CheckpointCreated, checkpoint.event_id, checkpoint.name, now, source),
                    command_id=checkpoint.command_id,
                    checkpoint=checkpoint.name,
                    kind=checkpoint.kind,
                    offsets=dict.fromkeys(checkpoint.volumes, 100),
                    captured_at=now,
                )
            )
    for fot in catalogue.fots.values():
        if fot.agent == name and fot.redirected and fot.state != "started":
            fields = head(ev.FotDetached, fot.event_id, fot.name, now, source)
            due.append(ev.FotDetached(**fields, fot=fot.name, agent=name))
        elif fot.agent == name and fot.redirect == "due" and fot.qmp in vms:
            fields = head(ev.FotAttached, fot.event_id, fot.name, now, source)
            due.append(ev.FotAttached(**fields, fot=fot.name, agent=name))
        elif fot.agent == name and fot.redirect == "due":
            fields = head(ev.FotAttachFailed, fot.event_id, fot.name, now, source)
            error = NotFoundError(f"no monitor at {fot.qmp}", hint="check --qmp").to_json()
            due.append(ev.FotAttachFailed(**fields, fot=fot.name, agent=name, error=error))
    return due + agent_failovers(catalogue, name, vms, now)


def _agent_volume(
    catalogue: Catalogue, volume: Volume, now: int, source: str, size_bytes: int | None
) -> list[ev.Record]:
    name = volume.name
    promotion = catalogue.promotions.get(volume.promotion)
    if (volume.unprotect_id and not volume.detached) or (promotion and name not in promotion.detached):
        cause = volume.unprotect_id or promotion.event_id
        fields = head(ev.CaptureDetached, cause, f"{name}/{volume.epoch}/{volume.attached}", now, source)
        epoch = volume.epoch if volume.attached else 0
        return [ev.CaptureDetached(**fields, command_id=volume.command_id, volume=name, epoch=epoch)]
    if volume.failover and volume.attached:
        return [lost(volume, now, "failed over")]
    if volume.pause_id:
        return [paused(volume, now)]
    if volume.attached and size_bytes not in (None, volume.size_bytes):
        fields = head(ev.VolumeResized, volume.attachment_id, name, now, source)
        return [ev.VolumeResized(**fields, volume=name, epoch=volume.epoch, size_bytes=size_bytes)]
    if catalogue.wants_capture(volume) and (not volume.attached or volume.resync_id):
        cause = volume.resync_id or volume.resume_id or volume.start_id
        return [attached(volume, volume.epoch + 1, now, cause)]
    if catalogue.wants_sync(volume):
        fields = {"volume": name, "epoch": volume.epoch}
        began = head(ev.VolumeSyncStarted, volume.attachment_id, name, now, source)
        run = catalogue.comparisons.get(volume.attachment_id)
        if volume.to_compare and run is None:
            return [ev.VolumeSyncStarted(**began, **fields, mode="compare", total_bytes=volume.size_bytes)]
        if volume.to_compare and run is not None and run.state != "copying":
            return []
        if run is not None:
            began = head(ev.VolumeSyncStarted, volume.attachment_id, f"{name}/full", now, source)
        ended = head(ev.VolumeSyncCompleted, volume.attachment_id, name, now, source)
        mode = "delta" if volume.bitmap.get("based") else "full"
        begin = ev.VolumeSyncStarted(**began, **fields, mode=mode, total_bytes=volume.size_bytes)
        return [
            *([] if volume.to_compare else [begin]),
            ev.VolumeSyncCompleted(**ended, **fields, offset=volume.epoch * 100),
        ]
    return []


def paused(volume: Volume, now: int) -> ev.VolumePaused:
    """The agent's VolumePaused of the current epoch."""
    fields = head(ev.VolumePaused, volume.pause_id or "late", volume.name, now, f"agent/{volume.agent}")
    return ev.VolumePaused(
        **fields,
        command_id=volume.command_id,
        volume=volume.name,
        epoch=volume.epoch,
        offset=volume.epoch * 100 - 1,
        bitmap=f"rephub-b-{volume.epoch}",
        persistent=True,
        image="/disk.qcow2",
    )


def attached(volume: Volume, epoch: int, now: int, cause: str) -> ev.FilterAttached:
    """The agent's FilterAttached of an epoch; QEMU has kept what it noted."""
    mode, _why = decide_sync(volume, "", 0)
    fields = head(ev.FilterAttached, cause, f"{volume.name}/{epoch}", now, f"agent/{volume.agent}")
    return ev.FilterAttached(
        **fields,
        command_id=volume.command_id,
        volume=volume.name,
        agent=volume.agent,
        epoch=epoch,
        attachment_id=f"{volume.name}-{epoch}-{cause}",
        offset=epoch * 100 - 99,
        reason="",
        bitmap=f"rephub-b-{epoch}",
        persistent=True,
        image="/image",
        based=mode == "delta",
        compare=mode == "compare",
    )


def lost(volume: Volume, now: int, reason: str = "worker died") -> ev.CaptureLost:
    """The agent's CaptureLost of the current epoch."""
    fields = head(ev.CaptureLost, volume.attachment_id, volume.name, now, f"agent/{volume.agent}")
    return ev.CaptureLost(**fields, volume=volume.name, epoch=volume.epoch, reason=reason)


def diskbox_due(catalogue: Catalogue, name: str, now: int) -> list[ev.Record]:
    """What diskbox `name` would write next."""
    source = f"diskbox/{name}"
    due: list[ev.Record] = []
    for volume in catalogue.volumes.values():
        if volume.diskbox != name:
            continue
        if volume.unprotect_id:
            if not volume.released:
                fields = head(ev.RecoveryVolumeReleased, volume.unprotect_id, volume.name, now, source)
                due.append(ev.RecoveryVolumeReleased(**fields, volume=volume.name, purged=volume.purge))
        elif volume.live and not volume.path:
            fields = head(ev.RecoveryVolumeCreated, volume.recovery_id, volume.name, now, source)
            due.append(
                ev.RecoveryVolumeCreated(
                    **fields,
                    volume=volume.name,
                    diskbox=name,
                    path=volume.recovery or f"/boxes/{name}/{volume.name}",
                    seeded=volume.seed is not None or None,
                    size_bytes=volume.size_bytes,
                    first_offset=volume.epoch * 100 + 1,
                )
            )
    for move in catalogue.moves.values():
        for moving in () if move.ended else move.volumes:
            fields = {"command_id": move.command_id, "move": move.name, "volume": moving}
            if move.previous == name and moving not in move.served:
                began = head(ev.MoveServed, move.event_id, moving, now, source)
                due.append(ev.MoveServed(**began, **fields, uri="nbd+unix:///v?socket=/s", position="{}"))
            if move.diskbox == name and moving in move.served and moving not in move.copied:
                ended = head(ev.MoveCopied, move.event_id, moving, now, source)
                due.append(ev.MoveCopied(**ended, **fields, path=f"/boxes/{name}/{moving}"))
    due += _diskbox_views(catalogue, name, now, source) + _diskbox_compares(catalogue, name, now, source)
    return due + diskbox_failovers(catalogue, name, now)


def _diskbox_compares(catalogue: Catalogue, name: str, now: int, source: str) -> list[ev.Record]:
    """Accepts every comparison, and finds everything equal."""
    due: list[ev.Record] = []
    for run in catalogue.comparisons.values():
        volume = catalogue.volumes.get(run.volume)
        if volume is None or volume.diskbox != name:
            continue
        if run.state == "requested":
            fields = head(ev.ComparisonAccepted, run.event_id, run.name, now, source)
            due.append(ev.ComparisonAccepted(**fields, run=run.name, volume=run.volume, diskbox=name))
        elif run.state == "comparing":
            due.append(compared(run, now))
    return due


def compared(run: Comparison, now: int, *differing: tuple[int, int]) -> ev.ExtentsCompared:
    """The diskbox's answer to the round that the comparison is at."""
    fields = head(ev.ExtentsCompared, run.event_id, f"{run.name}/{run.round}", now, "diskbox/d")
    return ev.ExtentsCompared(
        **fields,
        run=run.name,
        round=run.round,
        volume=run.volume,
        offset=run.last_offset,
        compared_bytes=run.digested_bytes,
        differing_bytes=sum(length for _, length in differing),
        differing=tuple(ev.ExtentItem(start=start, length=length) for start, length in differing),
    )


def digested(run: Comparison, now: int) -> ev.ExtentsDigested:
    """The agent's answer to the round that the comparison is at."""
    size = sum(length for _, length in run.extents) or DISK_BYTES
    return ev.ExtentsDigested(
        **head(ev.ExtentsDigested, run.event_id, f"{run.name}/{run.round}", now, "agent/a"),
        run=run.name,
        round=run.round,
        volume=run.volume,
        epoch=run.epoch,
        last_offset=1000 + run.round,
        digested_bytes=size,
        skipped_bytes=0,
        copied_bytes=size if run.copies else 0,
    )


def _diskbox_views(catalogue: Catalogue, name: str, now: int, source: str) -> list[ev.Record]:
    due: list[ev.Record] = []
    for fot in catalogue.fots.values():
        if fot.diskbox == name and fot.state == "requested":
            views = tuple(
                ev.ViewItem(
                    volume=volume, offset=_offset(fot), captured_at=now, uri=f"nbd+unix:///{volume}?socket=/s"
                )
                for volume in fot.volumes
            )
            fields = head(ev.FotStarted, fot.event_id, fot.name, now, source)
            due.append(ev.FotStarted(**fields, command_id=fot.command_id, fot=fot.name, views=views))
        elif fot.diskbox == name and fot.state == "stopping" and not fot.redirected:
            fields = head(ev.FotStopped, fot.stop_id, fot.name, now, source)
            due.append(ev.FotStopped(**fields, fot=fot.name, reason="asked"))
    for promotion in catalogue.promotions.values():
        if promotion.diskbox != name:
            continue
        plans = tuple(
            ev.PlanItem(
                volume=volume,
                offset=_offset(promotion),
                captured_at=now,
                path=promotion.to or f"/boxes/{name}/{volume}",
                events=3,
                bytes=12288,
                lost_events=1,
                lost_bytes=4096,
                lost_seconds=0.5,
            )
            for volume in promotion.volumes
        )
        rest = {"command_id": promotion.command_id, "promotion": promotion.name, "plans": plans}
        copied = promotion.state == "planned" and not promotion.dry_run and promotion.to is not None
        if promotion.state == "requested":
            fields = head(ev.PromotePlanned, promotion.event_id, promotion.name, now, source)
            due.append(ev.PromotePlanned(**fields, **rest))
        elif copied or (promotion.state == "started" and set(promotion.detached) == set(promotion.volumes)):
            fields = head(ev.Promoted, promotion.event_id, promotion.name, now, source)
            due.append(ev.Promoted(**fields, **rest))
    return due


def _offset(entity: Any) -> int:
    return int(entity.point_value) if entity.point_kind == "offset" else 150


class World:
    """The log in memory, a hub, and actors that are moved by hand or all together (`settle`)."""

    def __init__(self, agents: tuple[str, ...] = ("a1",), diskboxes: dict[str, int] | None = None) -> None:
        self.log: list[ev.Record] = []
        self.catalogue = Catalogue()
        self.now = START
        self.silent: set[str] = set()
        """Diskboxes that the hub does not hear."""
        self.gone: dict[str, str] = {}
        """Diskboxes that are silent for too long: name → the announcement of the process that is."""
        self.provides: int | None = None
        """Capacity of the diskboxes that the provider brings; None: it fails."""
        self.vms: dict[str, dict[str, list[ev.NodeInfo]]] = {
            name: {"/vm1.sock": [node("n1"), node("n2"), node("ro", read_only=True)]} for name in agents
        }
        self.new_hub()
        for name in agents:
            fields = head(ev.AgentAnnounced, f"start-{name}", name, self.now, f"agent/{name}")
            self.append(ev.AgentAnnounced(**fields, agent=name, host="h", pid=1, url=f"http://{name}"))
        for name, capacity in (diskboxes if diskboxes is not None else {"d1": 27}).items():
            fields = head(ev.DiskboxAnnounced, f"start-{name}", name, self.now, f"diskbox/{name}")
            self.append(
                ev.DiskboxAnnounced(
                    **fields, diskbox=name, host="h", pid=2, url=f"http://{name}", capacity=capacity
                )
            )

    def new_hub(self) -> None:
        """A hub takes over."""
        epoch = self.catalogue.hub_epoch + 1
        fields = head(ev.HubStarted, f"hub-{epoch}", "h1", self.now, "hub/h1") | {"hub_epoch": epoch}
        self.append(ev.HubStarted(**fields, hub="h1"))

    def append(self, event: ev.Record) -> bool:
        """Write and fold; whether it counted."""
        self.log.append(event)
        self.now += 1000
        return self.catalogue.apply(len(self.log) - 1, event)

    def command(self, kind: type, **fields: Any) -> Any:
        """A command with a minute to live."""
        rest = {
            "id": f"command-{next(_ids)}",
            "at": self.now,
            "source": "cli/h",
            "deadline_at": self.now + 60 * SECOND,
        }
        return kind(**(rest | fields))

    def dies(self, diskbox: str) -> None:
        """A diskbox falls silent, for as long as it takes to be lost."""
        self.silent.add(diskbox)
        self.gone[diskbox] = self.catalogue.diskboxes[diskbox].announced_id

    def announces(self, diskbox: str, life: str, capacity: int = 27) -> None:
        """A process of a diskbox says that it is there."""
        self.silent.discard(diskbox)
        fields = head(ev.DiskboxAnnounced, life, diskbox, self.now, f"diskbox/{diskbox}")
        url = f"http://{diskbox}"
        self.append(
            ev.DiskboxAnnounced(**fields, diskbox=diskbox, host="h", pid=4, url=url, capacity=capacity)
        )

    def protect_command(self, volume: str = "v1", **changes: Any) -> cmd.Protect:
        """A Protect of node n1 that is as it should be."""
        fields = {
            "volume": volume,
            "group": volume,
            "qmp": "/vm1.sock",
            "node": "n1",
            "ack": "async",
            "overload": "throttle",
            "history_seconds": 86400,
            "history_bytes": 20 << 30,
        }
        return self.command(cmd.Protect, **(fields | changes))

    def send(self, command: cmd.Record) -> ev.Record:
        """The hub's answer, written."""
        (event,) = decide(self.catalogue, command, self.now, self.silent)
        assert self.append(event), event
        return event

    def rejected(self, command: cmd.Record) -> RephubError:
        """The error of a command that the hub refuses; nothing else may change."""
        before = self.state()
        event = self.send(command)
        assert isinstance(event, ev.CommandRejected), event
        assert event.command_id == command.id
        assert self.state() == before
        error = from_json(event.error)
        assert error.message
        assert error.hint, error
        return error

    def already(self, command: cmd.Record) -> dict[str, Any]:
        """The answer to a command whose wish was fulfilled before."""
        event = self.send(command)
        assert isinstance(event, ev.CommandFulfilled), event
        answer: dict[str, Any] = json.loads(event.answer)
        return answer

    def due(self) -> list[ev.Record]:
        """What hub and actors would write next."""
        found = list(pending(self.catalogue, self.now, self.silent, self.gone, 300.0))
        found += [self.provided(request) for request in self.catalogue.diskbox_requests.values()]
        for name in self.catalogue.agents:
            found += agent_due(self.catalogue, name, self.vms[name], self.now)
        for name in self.catalogue.diskboxes:
            if name not in self.silent:
                found += diskbox_due(self.catalogue, name, self.now)
        return found

    def provided(self, request: DiskboxRequest) -> ev.Record:
        """What becomes of a request for a diskbox."""
        name, cause = request.name, request.event_id
        if self.provides is None:
            error = RephubError(
                "provider command /hook failed with exit code 3: no quota", hint="see its log"
            )
            failed = head(ev.DiskboxFailed, cause, name, self.now, "hub/h1")
            failed["hub_epoch"] = self.catalogue.hub_epoch
            return ev.DiskboxFailed(**failed, diskbox=name, error=error.to_json())
        fields = head(ev.DiskboxAnnounced, cause, name, self.now, f"diskbox/{name}")
        return ev.DiskboxAnnounced(
            **fields, diskbox=name, host="h", pid=3, url=f"http://{name}", capacity=self.provides
        )

    def settle(self) -> list[ev.Record]:
        """Let everybody act until nobody has anything to do; what was written."""
        first = len(self.log)
        for _ in range(1000):
            due = self.due()
            if not due:
                return self.log[first:]
            for event in due:
                self.append(event)
        raise AssertionError(f"does not settle: {[type(event).__name__ for event in self.due()]}")

    def done(self, command: cmd.Record) -> list[ev.Record]:
        """Send a command that must be taken, and settle."""
        event = self.send(command)
        assert not isinstance(event, ev.CommandRejected), from_json(event.error)
        return [event, *self.settle()]

    def protected(self, volume: str = "v1", **changes: Any) -> Volume:
        """Protect and sync."""
        self.done(self.protect_command(volume, **changes))
        found = self.catalogue.volumes[volume]
        assert found.state == "protected", found
        return found

    def state(self) -> dict[str, Any]:
        """All of the catalogue but its position and the ids it has seen."""
        return state_of(self.catalogue)


def state_of(catalogue: Catalogue) -> dict[str, Any]:
    """All of the catalogue but its position, what it ignored, and the ids it has seen."""
    found = catalogue.summary()
    for name in ("next_offset", "ignored", "ignored_events"):
        del found[name]
    return found


def replay(log: list[ev.Record]) -> Catalogue:
    """The fold of a log from its start."""
    catalogue = Catalogue()
    for offset, event in enumerate(log):
        catalogue.apply(offset, event)
    return catalogue


def fresh(event: ev.Record, suffix: str) -> ev.Record:
    """The same fact told again under another id, as by a daemon that forgot having told it."""
    return replace(event, id=f"{event.id}-{suffix}")
