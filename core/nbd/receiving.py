"""Where received bytes go: one buffer per connection, and long payloads straight to where they are needed.

No I/O here. The shell asks for `writable()`, receives into it and says `added(n)`; a parser takes bytes from
`view[first:end]` and moves `first`. While `target` is set, received bytes go there instead, and the buffer is empty.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

HANDSHAKE_BUFFER_BYTES: Final = 128 << 10
"""Holds the longest option (64 KiB) and what follows it; small, because a connection may idle in the handshake."""
BUFFER_BYTES: Final = 1 << 20
"""In transmission: a wake-up takes all that a socket buffer holds (208 KiB by default, several MiB on TCP)."""
LONG_PAYLOAD_BYTES: Final = 16 << 10
"""From here on an incomplete payload is received in place; a shorter one waits and is copied once."""


class ReceiveBuffer:
    """Bytes that were received and not parsed.

    Args:
        size_bytes: capacity; a parser never waits for more than this at once.
    """

    __slots__ = ("end", "filled", "first", "target", "view")

    def __init__(self, size_bytes: int = HANDSHAKE_BUFFER_BYTES) -> None:
        self.view = memoryview(bytearray(size_bytes))
        self.first = 0
        self.end = 0
        self.target: memoryview | None = None
        self.filled = 0

    def writable(self) -> memoryview:
        """Where the next bytes are to be received; never empty while the parser keeps up."""
        if self.target is not None:
            return self.target[self.filled :]
        return self.view[self.end :] if self.end else self.view

    def added(self, count: int) -> None:
        """`count` bytes were received into `writable()`."""
        if self.target is not None:
            self.filled += count
        else:
            self.end += count

    def feed(self, data: bytes | memoryview) -> int:
        """Copy in as much of `data` as fits, as if it had been received; returns how much (tests, fake links)."""
        space = self.writable()
        count = min(len(space), len(data))
        space[:count] = data[:count]
        self.added(count)
        return count

    def compact(self) -> None:
        """Move what is unparsed to the front; cheap, because it is less than a request with a short payload."""
        if self.first == self.end:
            self.first = self.end = 0
        elif self.first:
            unparsed = self.end - self.first
            self.view[:unparsed] = self.view[self.first : self.end]
            self.first, self.end = 0, unparsed

    def discard(self) -> None:
        """Forget everything: the connection is closing."""
        self.first = self.end = 0
        self.target = None

    def release(self) -> None:
        """Give the memory back: the connection is gone, but who holds it may be found by the garbage collector only."""
        self.discard()
        self.view = memoryview(bytearray())

    def divert(self, target: memoryview) -> None:
        """Receive `target` in place: takes what is here already, the rest comes straight from the socket."""
        here = min(self.end - self.first, len(target))
        target[:here] = self.view[self.first : self.first + here]
        self.first += here
        self.compact()
        self.target, self.filled = target, here

    @property
    def target_full(self) -> bool:
        """Whether the diverted payload is complete; the parser then sets `target` to None."""
        return self.target is not None and self.filled == len(self.target)

    def grow(self, size_bytes: int) -> None:
        """Change the capacity; unparsed bytes stay."""
        unparsed = self.view[self.first : self.end]
        view = memoryview(bytearray(size_bytes))
        view[: len(unparsed)] = unparsed
        self.view, self.first, self.end = view, 0, len(unparsed)


class Script(Generic[T]):
    """Runs a handshake that is written as a generator: it yields how many bytes it needs and is sent exactly those.

    Args:
        steps: the generator; its return value is the outcome. No step needs more than the buffer holds.
        buffer: where the bytes come from.
    """

    def __init__(self, steps: Generator[int, bytes, T], buffer: ReceiveBuffer) -> None:
        self._steps = steps
        self._buffer = buffer
        self._needed = -1
        self.outcome: T | None = None

    def advance(self) -> bool:
        """Go on as far as the received bytes reach; True once `outcome` is there.

        Raises:
            ProtocolError: from the steps; the conversation is over.
        """
        buffer = self._buffer
        try:
            if self._needed < 0:
                self._needed = next(self._steps)
            while buffer.end - buffer.first >= self._needed:
                taken = bytes(buffer.view[buffer.first : buffer.first + self._needed])
                buffer.first += self._needed
                self._needed = self._steps.send(taken)
        except StopIteration as stop:
            self.outcome = stop.value
            return True
        finally:
            buffer.compact()
        return False
