"""The status document: what the catalogue says, corrected by what agents and diskboxes say now; pure.

Honest first: what nobody confirms is not claimed. A silent agent means that nobody knows whether writes are
captured: the volume is in a gap. A number that nobody reports is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rephub.core.errors import from_dict
from rephub.core.units import format_bytes, format_duration, rfc3339
from rephub.projections import decide_sync
from rephub.projections.catalogue import Catalogue
from rephub.projections.entities import Volume
from rephub.projections.fleet_states import group_state

CAPTURED = ("syncing", "protected", "resyncing", "gap")
"""States that stand and fall with the agent."""

STALE_SECONDS = 5.0
"""A status document older than this is no confirmation: its maker hangs."""

GOOD = ("protected", "promoted")

Documents = Mapping[str, dict[str, Any] | None]
"""`/status` documents by daemon name; None: it did not answer."""


def merge(
    catalogue: Catalogue,
    now: int,
    agents: Documents,
    diskboxes: Documents,
    parts: list[dict[str, Any]],
    hub_problem: str = "",
    waited_seconds: float = 0.0,
) -> dict[str, Any]:
    """The document of `rephub status`.

    Args:
        catalogue: the newest that could be had.
        now: microseconds since the Unix epoch.
        agents: their answers, by name.
        diskboxes: theirs.
        parts: processes of the local stack, see `cli/parts.py`.
        hub_problem: why the catalogue does not come from the hub itself; empty if it does.
        waited_seconds: how long a daemon that did not answer was waited for.

    Returns:
        `{"volumes", "groups", "parts", "problems", "hub": {…}}`; `problems` is empty when protection is whole.
    """
    silent = {
        name: _silence("agent", name, agents.get(name), now, waited_seconds) for name in catalogue.agents
    }
    silent_boxes = {
        name: _silence("diskbox", name, diskboxes.get(name), now, waited_seconds)
        for name in catalogue.diskboxes
    }
    volumes = [
        _volume(
            volume,
            now,
            _entry(agents.get(volume.agent), volume.name),
            silent.get(volume.agent, f"agent {volume.agent} is unknown"),
            _entry(diskboxes.get(volume.diskbox), volume.name),
            silent_boxes.get(volume.diskbox, f"diskbox {volume.diskbox} is unknown"),
        )
        for _, volume in sorted(catalogue.volumes.items())
        if not volume.retired
    ]
    problems = [hub_problem] if hub_problem else []
    problems += [f"{part['kind']} {part['name']} is not running" for part in parts if not part["alive"]]
    holding = {volume.diskbox for volume in catalogue.volumes.values() if not volume.retired}
    problems += [why for why in silent.values() if why]
    problems += [
        why
        for name, why in silent_boxes.items()
        if why and (name in holding or not catalogue.diskboxes[name].lost)
    ]
    for volume in volumes:
        if volume["state"] not in GOOD or not volume["consistent"] or volume["reason"]:
            problems.append(_sentence(volume))
    return {
        "volumes": volumes,
        "groups": _groups(volumes),
        "parts": parts,
        "problems": list(dict.fromkeys(problems)),
        "hub": {
            "alive": not hub_problem,
            "hub_epoch": catalogue.hub_epoch,
            "next_offset": catalogue.next_offset,
        },
    }


def _groups(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each group is as its worst member says."""
    members: dict[str, list[dict[str, Any]]] = {}
    for volume in volumes:
        members.setdefault(volume["group"], []).append(volume)
    return [
        {
            "group": group,
            "state": group_state(one["state"] for one in found),
            "consistent": all(one["consistent"] for one in found),
            "volumes": [one["volume"] for one in found],
        }
        for group, found in sorted(members.items())
    ]


def only(document: dict[str, Any], volume: str) -> dict[str, Any] | None:
    """The document with one volume in it and the problems of that one and of all parts; None: no such volume."""
    found = [entry for entry in document["volumes"] if entry["volume"] == volume]
    if not found:
        return None
    others = {_sentence(entry) for entry in document["volumes"] if entry["volume"] != volume}
    problems = [line for line in document["problems"] if line not in others]
    groups = [group for group in document["groups"] if group["group"] == found[0]["group"]]
    return document | {"volumes": found, "groups": groups, "problems": problems}


def _sentence(volume: dict[str, Any]) -> str:
    why = f": {volume['reason']}" if volume["reason"] else ""
    return f"volume {volume['volume']} is {volume['state']}{why}"


def _silence(kind: str, name: str, document: dict[str, Any] | None, now: int, waited_seconds: float) -> str:
    """Why the daemon counts as silent; empty if it does not."""
    if document is None:
        return (
            f"{kind} {name} silent for {waited_seconds:.1f} s"
            if waited_seconds
            else f"{kind} {name} is silent"
        )
    age = (now - document.get("at", now)) / 1e6
    return f"{kind} {name} silent for {age:.0f} s" if age > STALE_SECONDS else ""


def _entry(document: dict[str, Any] | None, volume: str) -> dict[str, Any]:
    found = (document or {}).get("volumes", {}).get(volume)
    return found if isinstance(found, dict) else {}


def _state(  # noqa: PLR0911 - one line for each piece of news
    volume: Volume, agent: dict[str, Any], agent_silent: str, box: dict[str, Any], box_silent: str
) -> tuple[str, str]:
    """State and reason, from the worst news to the best."""
    if box.get("stopped") and volume.live:
        return "failed", f"stopped: {from_dict(box['stopped']).message}"
    if volume.paused_at and volume.resume_id:
        return volume.state, f"resume under way: {agent.get('reason') or agent_silent or 'attaching'}"
    if volume.state not in CAPTURED:
        return volume.state, box.get("problem") or volume.reason
    if volume.unprotect_id or volume.promotion:
        return volume.state, volume.reason or (
            "promote under way" if volume.promotion else "unprotect under way"
        )
    if agent_silent:
        return "gap", agent_silent
    if volume.attached and not agent.get("attached"):
        return "gap", agent.get("reason") or f"agent {volume.agent} does not capture it"
    resyncing = volume.state == "resyncing" and agent.get("attached")
    if agent.get("gap_since_at") and not resyncing:
        return "gap", agent.get("reason") or volume.reason or "capture lost"
    if volume.state == "protected":
        if agent.get("epoch", volume.epoch) > volume.epoch:
            return "resyncing", agent.get("reason") or "attached anew"
        return "protected", box_silent or ("pause under way" if volume.pause_id else "")
    return volume.state, volume.reason or agent.get("reason", "")


def _volume(
    volume: Volume, now: int, agent: dict[str, Any], agent_silent: str, box: dict[str, Any], box_silent: str
) -> dict[str, Any]:
    if agent_silent:
        agent = {}
    state, reason = _state(volume, agent, agent_silent, box, box_silent)
    held_up = _held_up(volume, state, agent.get("sync")) or _cut(volume, state, box)
    reason = reason or held_up if state == "protected" else held_up or reason
    gap_at = agent.get("gap_since_at") or volume.gap_at
    if state == "protected":
        rpo = agent.get("rpo_seconds")
    elif state == "promoted" or not gap_at:
        rpo = None
    else:
        rpo = max(0.0, (now - gap_at) / 1e6)
    return {
        "volume": volume.name,
        "group": volume.group,
        "agent": volume.agent,
        "diskbox": volume.diskbox,
        "recovery": box.get("path") or volume.path or volume.recovery,
        "size_bytes": box.get("size_bytes") or volume.size_bytes,
        "state": state,
        "consistent": state in GOOD and not (state == "protected" and box.get("in_gap", False)),
        "epoch": volume.epoch,
        "head_offset": box.get("head_offset"),
        "acked_offset": agent.get("acked_offset"),
        "applied_offset": box.get("applied_offset"),
        "earliest_offset": box.get("earliest_offset"),
        "latest_offset": box.get("latest_offset"),
        "rpo_seconds": rpo,
        "window_seconds": box.get("window_seconds"),
        "lag_bytes": agent.get("lag_bytes"),
        "dirty_bytes": agent.get("dirty_bytes"),
        "paused_at": rfc3339(volume.paused_at) if volume.paused_at else None,
        "sync": agent.get("sync"),
        "verify": agent.get("verify"),
        "sync_pace": decide_sync.pace(volume),
        "reason": reason,
    }


def _cut(volume: Volume, state: str, box: dict[str, Any]) -> str:
    """That the byte limit has cut the window; empty if it has not."""
    if not volume.history_short or state != "protected":
        return ""
    left, asked = box.get("window_seconds") or 0.0, format_duration(volume.history_seconds)
    limit = format_bytes(volume.history_bytes)
    return f"history is {format_duration(left)} of {asked}: the limit of {limit} was reached, rephub history changes it"


def _held_up(volume: Volume, state: str, sync: dict[str, Any] | None) -> str:
    """Why the volume's sync stands still, or a later one would; empty if it does not."""
    resume = f"rephub sync resume {volume.name}"
    if volume.sync_paused and state in ("syncing", "resyncing"):
        return f"sync is paused: {resume}"
    if volume.sync_paused and state == "protected":
        return f"sync is paused, no gap would be closed: {resume}"
    if state in ("syncing", "resyncing") and (sync or {}).get("waiting"):
        return "sync waits for its turn"
    return ""
