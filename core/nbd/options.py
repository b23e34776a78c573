"""What is inside the options of a handshake: queries decoded, answers encoded. Pure; used by both ends and tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from rephub.core.nbd import constants as nbd
from rephub.core.nbd.export import ExportInfo
from rephub.core.nbd.transmission import BASE_ALLOCATION_ID

_U16: Final = Struct(">H")
_U32: Final = Struct(">I")
_INFO_EXPORT: Final = Struct(">HQH")
_INFO_BLOCK_SIZE: Final = Struct(">HIII")


class OptionRefused(Exception):  # noqa: N818 - an answer to the peer, not a failure of ours
    """This option gets an error reply; the handshake goes on.

    Args:
        reply_type: REP_ERR_…
        message: for the peer's log.
    """

    def __init__(self, reply_type: int, message: str) -> None:
        super().__init__(message)
        self.reply_type = reply_type


class _Reader:
    """Takes fields off an option's data; what does not fit is REP_ERR_INVALID."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise OptionRefused(nbd.REP_ERR_INVALID, "lengths inside the option disagree")
        self._at += count
        return self._data[self._at - count : self._at]

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def text(self) -> str:
        return name_of(self.take(self.u32()))

    def end(self) -> None:
        if self._at != len(self._data):
            raise OptionRefused(nbd.REP_ERR_INVALID, "lengths inside the option disagree")


def name_of(data: bytes) -> str:
    """A string of the protocol.

    Raises:
        OptionRefused: too long, not UTF-8, or with NUL (spec, "Values").
    """
    if len(data) > nbd.NAME_BYTES_MAX:
        raise OptionRefused(nbd.REP_ERR_TOO_BIG, f"a string is at most {nbd.NAME_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise OptionRefused(nbd.REP_ERR_INVALID, "not UTF-8") from error
    if "\0" in text:
        raise OptionRefused(nbd.REP_ERR_INVALID, "NUL in a string")
    return text


def _packed(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data


@dataclass(frozen=True, slots=True)
class InfoQuery:
    """Data of INFO and GO."""

    name: str
    requests: frozenset[int]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Decode. Raises OptionRefused."""
        reader = _Reader(data)
        name = reader.text()
        requests = frozenset(item for (item,) in _U16.iter_unpack(reader.take(_U16.size * reader.u16())))
        reader.end()
        return cls(name, requests)

    def pack(self) -> bytes:
        """Encode."""
        requests = b"".join(map(_U16.pack, sorted(self.requests)))
        return _packed(self.name) + _U16.pack(len(self.requests)) + requests


def info_replies(info: ExportInfo, query: InfoQuery, *, structured: bool) -> Iterator[bytes]:
    """Data of the REP_INFO replies: export and block sizes always, name and description if asked."""
    flags = info.transmission_flags(structured=structured)
    yield _INFO_EXPORT.pack(nbd.INFO_EXPORT, info.size_bytes, flags)
    yield _INFO_BLOCK_SIZE.pack(nbd.INFO_BLOCK_SIZE, info.min_block, info.preferred_block, info.max_block)
    if nbd.INFO_NAME in query.requests:
        yield _U16.pack(nbd.INFO_NAME) + info.name.encode()
    if nbd.INFO_DESCRIPTION in query.requests and info.description:
        yield _U16.pack(nbd.INFO_DESCRIPTION) + info.description.encode()


def parse_info_export(data: bytes) -> tuple[int, int]:
    """(size in bytes, transmission flags) of a REP_INFO of type EXPORT. Raises struct.error."""
    _, size_bytes, flags = _INFO_EXPORT.unpack(data)
    return size_bytes, flags


def parse_info_block_size(data: bytes) -> tuple[int, int, int]:
    """(minimum, preferred, maximum) of a REP_INFO of type BLOCK_SIZE. Raises struct.error."""
    _, minimum, preferred, maximum = _INFO_BLOCK_SIZE.unpack(data)
    return minimum, preferred, maximum


def server_entry(info: ExportInfo) -> bytes:
    """Data of a REP_SERVER: name and description."""
    return _packed(info.name) + info.description.encode()


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Decode. Raises OptionRefused."""
        reader = _Reader(data)
        name = reader.text()
        count = reader.u32()
        if count > nbd.CONTEXT_QUERIES_MAX and count * _U32.size <= len(data):
            message = f"more than {nbd.CONTEXT_QUERIES_MAX} context queries"
            raise OptionRefused(nbd.REP_ERR_TOO_BIG, message)
        queries = tuple([reader.text() for _ in range(count)])
        reader.end()
        return cls(name, queries)

    def pack(self) -> bytes:
        """Encode."""
        return _packed(self.name) + _U32.pack(len(self.queries)) + b"".join(map(_packed, self.queries))

    def selects_base_allocation(self, *, listing: bool) -> bool:
        """Whether it names our only context; a listing may also name the namespace, or nothing for all."""
        if nbd.BASE_ALLOCATION in self.queries:
            return True
        return listing and (not self.queries or "base:" in self.queries)


def base_allocation_entry() -> bytes:
    """Data of the REP_META_CONTEXT for base:allocation."""
    return _U32.pack(BASE_ALLOCATION_ID) + nbd.BASE_ALLOCATION.encode()


def parse_context(data: bytes) -> tuple[int, str]:
    """(id, name) of a REP_META_CONTEXT.

    Raises:
        OptionRefused: not one.
    """
    reader = _Reader(data[:4])
    return reader.u32(), name_of(data[4:])


def option(kind: int, data: bytes = b"") -> bytes:
    """One option as a client sends it."""
    return nbd.OPTION_HEADER.pack(nbd.OPTION_MAGIC, kind, len(data)) + data


def contexts_of(names: Iterable[str], export: str) -> bytes:
    """Data of a SET_META_CONTEXT that asks for `names`."""
    return ContextQuery(export, tuple(names)).pack()
