"""The one tree of errors, and what a caller may do about each.

    RephubError                  exit 1   base: a clear message, a hint, fields
    ├── DifferenceError          exit 1   `verify`: the recovery volume differs; names the extents
    ├── UsageError               exit 2   the request itself is wrong; ask differently
    │   └── ConfirmationRequired exit 2   no --yes and no terminal to ask
    ├── DegradedError            exit 3   `status --check`: protection is not whole
    ├── NotFoundError            exit 4   unknown volume, group, node, socket, checkpoint, test
    ├── ConflictError            exit 5   the name is taken, or the state forbids it; names the state
    ├── UnavailableError         exit 6   Kafka, Redis, hub, QEMU not there; retriable, bounded
    ├── DeadlineError            exit 7   waited as long as was asked; the last state is named
    ├── IndeterminateError       exit 8   it may or may not have happened; ask what happened, never resend
    ├── PointNotAvailableError   exit 9   outside the window or in a gap; names the nearest good offset
    ├── FencedError              exit 10  a newer epoch took over; stop writing
    ├── IntegrityError           exit 11  wrong crc, unknown schema, seq jump: stop, never retry or skip
    ├── StorageError             exit 12  ENOSPC, EIO under our own files; what was written is not trusted
    ├── ProtocolError            exit 13  the peer breaks the protocol: close the connection
    ├── RequestError             exit 14  one request fails with an errno; the connection lives
    └── QemuError                exit 15  QEMU refused a command; field `description` is what it said

Errors travel: a daemon's error reaches the operator as `to_dict()` inside an event, and `from_dict()`
makes it the same class again, with the same exit code.
"""

from __future__ import annotations

import errno
import json
from typing import Any, ClassVar


class RephubError(Exception):
    """Base of all errors that an operator may see.

    Args:
        message: one line, says what is wrong and names the thing.
        hint: one line, says what to do; empty uses the class's own.
        **fields: further JSON-serialisable facts, for example `nearest_offset`.
    """

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        """`{"class", "message", "hint", …fields}`."""
        return {"class": type(self).__name__, "message": self.message, "hint": self.hint} | self.fields

    def to_json(self) -> str:
        """`to_dict()` as text, for the `error` field of events."""
        return json.dumps(self.to_dict())


class DifferenceError(RephubError):
    """`verify` found that the recovery volume differs; fields are those of its answer."""


class UsageError(RephubError):
    """The request itself is wrong."""

    exit_code = 2
    default_hint = "see --help"


class ConfirmationRequired(UsageError):  # noqa: N818 - the name says what is asked for
    """The verb changes things for good and nobody confirmed it."""

    default_hint = "look at --dry-run, then repeat with --yes"


class DegradedError(RephubError):
    """Some protection is not whole (`status --check`)."""

    exit_code = 3


class NotFoundError(RephubError):
    """A thing that was named is not there."""

    exit_code = 4


class ConflictError(RephubError):
    """The state of a thing forbids what was asked."""

    exit_code = 5


class UnavailableError(RephubError):
    """A service does not answer; the caller may try again, a bounded number of times."""

    exit_code = 6
    retriable = True


class DeadlineError(RephubError):
    """Waited as long as was asked."""

    exit_code = 7
    default_hint = "give more time with --timeout, or look at `rephub status`"


class IndeterminateError(RephubError):
    """It may or may not have happened: ask what happened, never send it again."""

    exit_code = 8


class PointNotAvailableError(RephubError):
    """A point outside the history window or inside a gap; field `nearest_offset` (or None)."""

    exit_code = 9


class FencedError(RephubError):
    """A newer epoch took over."""

    exit_code = 10


class IntegrityError(RephubError):
    """Data that must not be used: stop, never retry, never skip."""

    exit_code = 11


class StorageError(RephubError):
    """Our own files could not be written or read; fields `errno`, `path`."""

    exit_code = 12


class ProtocolError(RephubError):
    """The peer breaks a protocol: close the connection."""

    exit_code = 13


class RequestError(RephubError):
    """One request fails; the connection lives.

    Args:
        errno: a number of the `errno` module, sent to the peer.
    """

    exit_code = 14

    def __init__(self, message: str, *, errno: int, hint: str = "", **fields: Any) -> None:
        super().__init__(message, hint=hint, errno=errno, **fields)
        self.errno = errno


class QemuError(RephubError):
    """QEMU refused a command of its monitor; fields `command` and `description` (QEMU's words)."""

    exit_code = 15
    default_hint = "the agent's log says what was asked of QEMU"

    @property
    def description(self) -> str:
        """What QEMU said."""
        return str(self.fields.get("description", ""))


def _subclasses(cls: type[RephubError]) -> dict[str, type[RephubError]]:
    found = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        found |= _subclasses(sub)
    return found


def from_dict(document: dict[str, Any]) -> RephubError:
    """The error that `to_dict()` described; a class of a newer version becomes RephubError. Takes anything."""
    if not isinstance(document, dict):
        return RephubError(str(document))
    fields = {name: value for name, value in document.items() if name != "self"}
    cls = _subclasses(RephubError).get(str(fields.pop("class", "")), RephubError)
    message = str(fields.pop("message", ""))
    hint = str(fields.pop("hint", ""))
    if cls is RequestError and not isinstance(fields.get("errno"), int):
        fields["errno"] = errno.EIO
    return cls(message, hint=hint, **fields)


def from_json(text: str) -> RephubError:
    """The error in the `error` field of an event; one with the text as its message where that describes none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return RephubError(text)
    return from_dict(document) if isinstance(document, dict) else RephubError(text)
