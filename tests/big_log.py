"""A long event log as a busy site makes it: the control world's volumes, with losses of capture, checkpoints and tests."""

from __future__ import annotations

from control_world import World, attached, head, lost, node
from rephub.projections.decide import make
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

VOLUMES = 60


def big_log(count: int) -> World:
    """A world with at least so many events in its log, each of which counted.

    The actors of `World.settle` look at everything after each event; here the same events are made one after the other.
    """
    world = World(diskboxes={"d1": 27, "d2": 27, "d3": 27})
    world.vms["a1"]["/vm1.sock"] = [node(f"n{number}") for number in range(VOLUMES)]
    for number in range(VOLUMES):
        world.protected(f"v{number}", node=f"n{number}", group=f"g{number // 2}")
    cycle = 0
    while len(world.log) < count:
        _cycle(world, cycle)
        cycle += 1
    assert world.catalogue.ignored_events == 0, world.catalogue.ignored[-1]
    return world


def _cycle(world: World, number: int) -> None:
    """Capture of one volume is lost and comes back, its group is marked, a test looks at it."""
    volume = world.catalogue.volumes[f"v{number % VOLUMES}"]
    agent, box = f"agent/{volume.agent}", f"diskbox/{volume.diskbox}"
    world.append(lost(volume, world.now))
    world.append(attached(volume, volume.epoch + 1, world.now, f"cycle-{number}"))
    about = {"volume": volume.name, "epoch": volume.epoch}
    world.append(
        make(world.catalogue, ev.SyncRequested, world.now, volume.attachment_id, volume.name, **about)
    )
    began = head(ev.VolumeSyncStarted, volume.attachment_id, volume.name, world.now, agent)
    world.append(ev.VolumeSyncStarted(**began, **about, mode="full", total_bytes=volume.size_bytes))
    done = head(ev.VolumeSyncCompleted, volume.attachment_id, volume.name, world.now, agent)
    world.append(ev.VolumeSyncCompleted(**done, **about, offset=volume.epoch * 100))

    checkpoint = world.command(
        cmd.CreateCheckpoint, checkpoint=f"c{number}", group=volume.group, volume=None, quiesce=False
    )
    asked = world.send(checkpoint)
    fields = head(ev.CheckpointCreated, asked.id, f"c{number}", world.now, agent)
    offsets = dict.fromkeys(asked.volumes, number)
    world.append(
        ev.CheckpointCreated(
            **fields, checkpoint=f"c{number}", kind="crash", offsets=offsets, captured_at=world.now
        )
    )

    point = {"point_kind": "latest", "point_value": "", "read_only": False}
    asked = world.send(
        world.command(cmd.StartFot, fot=f"f{number}", volume=volume.name, group=None, qmp=None, **point)
    )
    view = ev.ViewItem(
        volume=volume.name, offset=number, captured_at=world.now, uri="nbd+unix:///v?socket=/s"
    )
    fields = head(ev.FotStarted, asked.id, f"f{number}", world.now, box)
    world.append(ev.FotStarted(**fields, fot=f"f{number}", views=(view,)))
    asked = world.send(world.command(cmd.StopFot, fot=f"f{number}"))
    fields = head(ev.FotStopped, asked.id, f"f{number}", world.now, box)
    world.append(ev.FotStopped(**fields, fot=f"f{number}", reason="stopped"))
