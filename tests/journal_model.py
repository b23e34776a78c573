"""A journal under test and what every offset of it must look like."""

from __future__ import annotations

import random

from rephub.core.codec import encode_journal
from rephub.schemas import journal as j

SIZE = 256 << 10


class JournalModel:
    """Makes encoded events with right seq and epoch, and keeps the disk image after each offset."""

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        self.size = size
        self.random = random.Random(seed)
        self.epoch = 0
        self.attachment = b""
        self.seq = 0
        self.at = 4_000_000_000_000_000  # later than now: a fence made meanwhile does not end the window
        self.values: list[bytes] = []
        self.images: list[bytes] = []
        self.image = bytearray(size)
        self.source = bytearray(size)

    @property
    def last(self) -> int:
        return len(self.values) - 1

    def image_at(self, offset: int) -> bytes:
        return self.images[offset] if offset >= 0 else bytes(self.size)

    def put(self, event_type: type, /, apply: bool = True, **fields) -> int:
        self.at += fields.pop("step", 1000)
        header = {
            "crc32c": bytes(4),
            "epoch": self.epoch,
            "attachment_id": self.attachment,
            "seq": self.seq,
            "captured_at": self.at,
        }
        record = event_type(**header | fields)
        self.values.append(encode_journal(record))
        if apply:
            self.seq += 1
            if isinstance(record, (j.Write, j.SyncData)):
                self.image[record.start : record.start + len(record.data)] = record.data
            elif isinstance(record, j.Zero):
                self.image[record.start : record.start + record.length] = bytes(record.length)
        self.images.append(bytes(self.image))
        return self.last

    def start_epoch(self, reason: str = "protect") -> int:
        prev, self.epoch = self.epoch, self.epoch + 1
        self.attachment, self.seq = self.random.randbytes(16), 0
        return self.put(j.EpochStarted, prev_epoch=prev, reason=reason, size_bytes=self.size)

    def write(self, start: int, data: bytes) -> int:
        self.source[start : start + len(data)] = data
        return self.put(j.Write, start=start, flags=0, data=data)

    def zero(self, start: int, length: int) -> int:
        self.source[start : start + length] = bytes(length)
        return self.put(j.Zero, start=start, flags=0, length=length, unmap=True)

    def checkpoint(self, name: str) -> int:
        return self.put(j.Checkpoint, checkpoint=name, group="g", kind="crash", periodic=False)

    def some_writes(self, count: int) -> None:
        for _ in range(count):
            length = self.random.choice([1, 512, 4096, 30_000])
            start = self.random.randrange(self.size - length)
            if self.random.random() < 0.2:
                self.zero(start, length)
            else:
                self.write(start, self.random.randbytes(length))

    def sync(self, writes_between: int = 2, mode: str = "full") -> int:
        """SyncStarted, all of the source in chunks with live writes between, SyncCompleted."""
        self.put(j.SyncStarted, mode=mode, total_bytes=self.size)
        chunk = 64 << 10
        for start in range(0, self.size, chunk):
            data = bytes(self.source[start : start + chunk])
            if any(data):
                self.put(j.SyncData, start=start, flags=0, data=data)
            else:
                self.put(j.Zero, start=start, flags=2, length=chunk, unmap=True)
            self.some_writes(writes_between)
        return self.put(j.SyncCompleted, total_bytes=self.size)

    def protect(self, writes: int = 20) -> int:
        self.source[:] = self.random.randbytes(self.size)
        self.start_epoch()
        self.some_writes(2)
        done = self.sync()
        self.some_writes(writes)
        return done
