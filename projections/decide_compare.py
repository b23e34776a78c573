"""What the hub decides about verify: begin, end, give up; pure."""

from __future__ import annotations

from collections.abc import Iterator

from rephub.core.errors import ConflictError, NotFoundError, RephubError, UnavailableError, UsageError
from rephub.projections.catalogue import Catalogue
from rephub.projections.decide import expired, fulfilled, make, protected_volume, too_late, undisturbed
from rephub.projections.entities import Comparison, Volume
from rephub.schemas import commands as cmd
from rephub.schemas import events as ev

ACCEPT_SECONDS_MAX = 20
"""A diskbox that runs accepts within a second; one that does not know Digest events never does."""


def verify(catalogue: Catalogue, command: cmd.Verify, now: int) -> ev.Record:
    """Begin a comparison; the same one that is under way is joined.

    Raises:
        UsageError: bad rate.
        NotFoundError: unknown volume.
        ConflictError: not protected, or another verify is under way.
    """
    if command.rate_bytes is not None and command.rate_bytes <= 0:
        raise UsageError("a rate of zero ends never", hint="for example --rate 50MiB")
    volume = protected_volume(catalogue, command.volume)
    undisturbed(catalogue, volume)
    running = catalogue.comparison_of(volume.name)
    if running is not None and not running.sync:
        if running.repair == command.repair:
            return fulfilled(catalogue, command, now, {"verify": running.name})
        raise ConflictError(
            f"another verify of volume {volume.name} is under way",
            hint="wait until it is done, or end it with Ctrl-C where it runs",
            state=volume.state,
        )
    if why := _unfit(volume):
        raise ConflictError(
            f"volume {volume.name} cannot be verified: {why}",
            hint=f"rephub wait {volume.name} --state protected",
            state=volume.state,
        )
    return make(
        catalogue,
        ev.VerifyRequested,
        now,
        command.id,
        command.id,
        command_id=command.id,
        verify=command.id,
        volume=volume.name,
        epoch=volume.epoch,
        repair=command.repair,
        rate_bytes=command.rate_bytes,
        deadline_at=command.deadline_at,
    )


def cancel(catalogue: Catalogue, command: cmd.CancelVerify, now: int) -> ev.Record:
    """End a verify. Raises NotFoundError: there is none of this id."""
    running = catalogue.comparisons.get(command.verify)
    if running is None or running.sync:
        raise NotFoundError(f"no verify {command.verify}", hint="rephub status")
    if running.ended:
        return fulfilled(catalogue, command, now, {"verify": running.name})
    error = RephubError(f"verify of volume {running.volume} was cancelled", hint="begin it again")
    return _failed(catalogue, running, now, command.id, error, command.id)


def pending(catalogue: Catalogue, now: int) -> list[ev.Record]:
    """Results that are known, and comparisons that cannot go on."""
    return [event for one in catalogue.comparisons.values() for event in _of_comparison(catalogue, one, now)]


def _of_comparison(catalogue: Catalogue, comparison: Comparison, now: int) -> Iterator[ev.Record]:
    if comparison.ended:
        return
    error = _impossible(catalogue, comparison, now)
    if error is not None:
        yield _failed(catalogue, comparison, now, comparison.event_id, error, comparison.command_id)
    elif comparison.state == "compared":
        yield make(
            catalogue,
            ev.VerifyCompleted,
            now,
            comparison.event_id,
            comparison.name,
            command_id=comparison.command_id or None,
            verify=comparison.name,
            volume=comparison.volume,
            offset=comparison.last_offset,
            compared_bytes=comparison.compared_bytes,
            skipped_bytes=comparison.skipped_bytes,
            differing=tuple(ev.ExtentItem(start=start, length=length) for start, length in comparison.found),
            differing_bytes=comparison.found_bytes,
            repaired_bytes=comparison.repaired_bytes,
            equal=comparison.equal,
        )


def _impossible(catalogue: Catalogue, comparison: Comparison, now: int) -> RephubError | None:
    """Why a comparison cannot come to its end."""
    name = comparison.volume
    volume = catalogue.volumes.get(name)
    if volume is None or volume.retired:
        return NotFoundError(f"no volume {name} is protected any more", hint="rephub status")
    if volume.unprotect_id or volume.taken or not volume.live:
        return ConflictError(
            f"volume {name} was unprotected or promoted while it was verified",
            hint="rephub status",
            state=volume.state,
        )
    if not volume.attached or volume.epoch != comparison.epoch or volume.resync_id:
        return UnavailableError(
            f"capture of volume {name} ended while it was verified",
            hint=f"rephub wait {name} --state protected, then verify again",
        )
    if comparison.sync:
        # It has no deadline: a first copy has none either.
        return None
    if volume.stopped:
        return UnavailableError(
            f"volume {name} stopped while it was verified: {volume.stopped}", hint="rephub status"
        )
    return _late(comparison, volume, now)


def _late(comparison: Comparison, volume: Volume, now: int) -> RephubError | None:
    """The error of a part that did not answer in time."""
    name = volume.name
    if comparison.state == "requested" and now > comparison.requested_at + ACCEPT_SECONDS_MAX * 1_000_000:
        return UnavailableError(
            f"diskbox {volume.diskbox} did not take the verify of volume {name}",
            hint="rephub status says whether it runs; update it if it is older than this hub",
        )
    if comparison.state != "compared" and expired(comparison.deadline_at, now):
        who = f"diskbox {volume.diskbox}" if comparison.state == "comparing" else f"agent {volume.agent}"
        return too_late(f"{who} did not end its part of the verify of volume {name}")
    return None


def _unfit(volume: Volume) -> str:
    if volume.stopped:
        return volume.stopped
    if not volume.attached or volume.synced_epoch != volume.epoch or volume.resync_id:
        return f"it is {volume.state}"
    if volume.state != "protected" and not volume.differs:
        return f"it is {volume.state}"
    return ""


def _failed(
    catalogue: Catalogue, comparison: Comparison, now: int, cause_id: str, error: RephubError, command_id: str
) -> ev.VerifyFailed:
    return make(
        catalogue,
        ev.VerifyFailed,
        now,
        cause_id,
        comparison.name,
        command_id=command_id or None,
        verify=comparison.name,
        volume=comparison.volume,
        error=error.to_json(),
    )
