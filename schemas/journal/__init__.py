# ruff: noqa: E501
"""Typed records of `rephub.journal`. Made by `schemas/generate.py` from the `.avsc` files here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A named or periodic marker."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    checkpoint: str
    group: str
    kind: str
    periodic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What an extent of the protected volume holds at this offset; changes no byte."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    run: str
    round: int
    start: int
    length: int
    chunk_bytes: int
    digests: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted:
    """First event of an epoch; fences every older one. Valid only if epoch is the current one + 1."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    prev_epoch: int
    reason: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """The protected volume has a new size."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCompleted:
    """From this event on, points are crash-consistent."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncData:
    """Data read from the protected volume by sync; younger guest writes are masked out."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    start: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStarted:
    """Sync of the epoch began."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    mode: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A guest write."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    start: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """A guest write of zeroes or a discard; with the sync flag, a hole found by sync."""

    crc32c: bytes
    epoch: int
    attachment_id: bytes
    seq: int
    captured_at: int
    start: int
    flags: int
    length: int
    unmap: bool


Record = Checkpoint | Digest | EpochStarted | Resized | SyncCompleted | SyncData | SyncStarted | Write | Zero
RECORDS: tuple[type[Record], ...] = (Checkpoint, Digest, EpochStarted, Resized, SyncCompleted, SyncData, SyncStarted, Write, Zero,)
