"""What the hub decides about named checkpoints; pure."""

from __future__ import annotations

from collections.abc import Mapping

from rephub.core.errors import ConflictError, NotFoundError, UsageError
from rephub.core.names import check_name
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import fulfilled, listed, make, targets
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

CHECKPOINTS_MAX = 10_000
"""Named ones that can be opened; some 300 bytes each in every snapshot of the catalogue."""

TAGS_MAX = 16
TAG_LENGTH_MAX = 200
"""Of one checkpoint, and characters of a value: notes, not documents."""


def create_checkpoint(catalogue: Catalogue, command: cmd.CreateCheckpoint, now: int) -> ev.Record:
    """Ask the agent for markers in all journals of the target.

    Raises:
        UsageError: bad name or tag.
        NotFoundError: unknown volume or group.
        ConflictError: the name is taken, a member is not protected, members on several agents are to be frozen, or there are too many.
    """
    name = check_name(command.checkpoint, "checkpoint")
    old = catalogue.checkpoints.get(name)
    if old is not None and not old.ended:
        raise ConflictError(
            f"checkpoint {name} exists already", hint="choose another name: rephub checkpoint list"
        )
    tags = _checked_tags(command.tags or {})
    if sum(not checkpoint.ended for checkpoint in catalogue.checkpoints.values()) >= CHECKPOINTS_MAX:
        raise ConflictError(
            f"there are {CHECKPOINTS_MAX} named checkpoints", hint="rephub checkpoint delete those not needed"
        )
    volumes = targets(catalogue, command.volume, command.group, one_diskbox=False)
    for volume in volumes:
        if volume.state != "protected" or not volume.attached:
            raise ConflictError(
                f"volume {volume.name} is {volume.state}: a checkpoint would not be consistent",
                hint=f"rephub resume {volume.name}"
                if volume.paused_at
                else f"rephub wait {volume.name} --state protected",
                state=volume.state,
            )
    agents = sorted({volume.agent for volume in volumes})
    if len(agents) > 1 and command.quiesce:
        raise ConflictError(
            f"group {command.group} spans the agents {', '.join(agents)}: its guests cannot be frozen together",
            hint="leave --quiesce out, or freeze the applications yourself",
        )
    return make(
        catalogue,
        ev.CheckpointRequested,
        now,
        command.id,
        name,
        command_id=command.id,
        checkpoint=name,
        volumes=tuple(volume.name for volume in volumes),
        group=command.group,
        agent=agents[0],
        kind="app" if command.quiesce else "crash",
        deadline_at=command.deadline_at,
        tags=tags or None,
    )


def delete_checkpoint(catalogue: Catalogue, command: cmd.DeleteCheckpoint, now: int) -> ev.Record:
    """Forget a named checkpoint; the points around it stay what they are.

    Raises:
        NotFoundError: there is none of this name.
        ConflictError: it is being made.
    """
    name = check_name(command.checkpoint, "checkpoint")
    checkpoint = catalogue.checkpoints.get(name)
    if checkpoint is None:
        names = [other.name for other in catalogue.checkpoints.values() if not other.ended]
        raise NotFoundError(f"no checkpoint {name}", hint=listed(names, "checkpoints"))
    if checkpoint.state == "requested":
        raise ConflictError(f"checkpoint {name} is being made", hint="wait until it is done, or gave up")
    if checkpoint.state == "deleted":
        return fulfilled(catalogue, command, now, {"checkpoint": name})
    return make(
        catalogue, ev.CheckpointDeleted, now, command.id, name, command_id=command.id, checkpoint=name
    )


def _checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > TAGS_MAX:
        raise UsageError(f"{len(tags)} tags are too many", hint=f"at most {TAGS_MAX}")
    for key, value in tags.items():
        check_name(key, "tag")
        if len(value) > TAG_LENGTH_MAX or not value.isprintable():
            raise UsageError(
                f"the value of tag {key} is not fit", hint=f"one line of at most {TAG_LENGTH_MAX} characters"
            )
    return dict(sorted(tags.items()))
