"""Identities of commands and events: an event's follows from its cause, so a repeat is seen as one."""

from __future__ import annotations

import uuid

_NAMESPACE = uuid.UUID("5f0a6c1e-3c1d-5b7e-9d0f-7265706875b0")
"""Ours alone; changing it would make every old event look new."""


def command_id() -> str:
    """A fresh id for a command: made once per wish, kept through its repeats."""
    return str(uuid.uuid4())


def event_id(cause_id: str, event_type: str, subject: str) -> str:
    """The id of the event that answers a cause.

    Args:
        cause_id: id of the command or event that it answers.
        event_type: name of the event's type, for example `FilterAttached`.
        subject: what it is about, for example the volume: one cause may have an event for each.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{cause_id}\n{event_type}\n{subject}"))
