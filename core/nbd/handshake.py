"""The server's side of fixed newstyle negotiation, without I/O: options in, replies out, at the end an export.

Never reads beyond the option that ends the handshake: what follows is the transmission phase's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from rephub.core.errors import ProtocolError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd import options
from rephub.core.nbd.export import ExportInfo, RequestHandler
from rephub.core.nbd.receiving import ReceiveBuffer, Script

Exports: TypeAlias = Mapping[str, tuple[ExportInfo, RequestHandler]]


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a handshake ended with."""

    info: ExportInfo
    handler: RequestHandler
    structured: bool
    block_status: bool


class ServerHandshake:
    """One handshake.

    Args:
        exports: by name; looked up when the client asks, so it may change meanwhile.
        buffer: where received bytes are.
    """

    def __init__(self, exports: Exports, buffer: ReceiveBuffer) -> None:
        self._exports = exports
        self._structured = False
        self._context_export: str | None = None
        self.out: list[bytes] = [
            nbd.GREETING.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
        ]
        """Bytes to send, in order; the shell empties it."""
        self._script = Script(self._steps(), buffer)

    def advance(self) -> bool:
        """Go on as far as the received bytes reach; True once it is over: see `outcome`.

        Raises:
            ProtocolError: close the connection, after sending `out`.
        """
        return self._script.advance()

    @property
    def outcome(self) -> Negotiated | None:
        """After `advance` returned True: the export to serve, or None if the client is to be let go."""
        return self._script.outcome

    def _steps(self) -> Generator[int, bytes, Negotiated | None]:
        (client_flags,) = nbd.CLIENT_FLAGS.unpack((yield nbd.CLIENT_FLAGS.size))
        if client_flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES):
            raise ProtocolError(f"unknown client flags {client_flags:#x}")
        for _ in range(nbd.OPTIONS_MAX):
            magic, option, length = nbd.OPTION_HEADER.unpack((yield nbd.OPTION_HEADER.size))
            if magic != nbd.OPTION_MAGIC:
                raise ProtocolError(f"bad option magic {magic:#x}")
            if length > nbd.OPTION_BYTES_MAX:
                raise ProtocolError(f"option {option} of {length} bytes, limit {nbd.OPTION_BYTES_MAX}")
            data = (yield length) if length else b""
            if option == nbd.OPT_EXPORT_NAME:
                return self._export_name(data, pad=not client_flags & nbd.FLAG_NO_ZEROES)
            if option == nbd.OPT_ABORT:
                self._reply(option, nbd.REP_ACK)
                return None
            try:
                negotiated = self._option(option, data)
            except options.OptionRefused as refused:
                self._reply(option, refused.reply_type, str(refused).encode())
                negotiated = None
            if negotiated:
                return negotiated
        raise ProtocolError(f"more than {nbd.OPTIONS_MAX} options")

    def _option(self, option: int, data: bytes) -> Negotiated | None:
        """Answer one option; what GO negotiated.

        Raises:
            OptionRefused: with an error reply; the handshake goes on.
        """
        if option in {nbd.OPT_GO, nbd.OPT_INFO}:
            return self._go(option, data)
        if option in {nbd.OPT_SET_META_CONTEXT, nbd.OPT_LIST_META_CONTEXT}:
            self._meta_context(option, data)
        elif option in {nbd.OPT_LIST, nbd.OPT_STRUCTURED_REPLY}:
            if data:
                raise options.OptionRefused(nbd.REP_ERR_INVALID, "this option has no data")
            if option == nbd.OPT_LIST:
                for info, _ in list(self._exports.values()):
                    self._reply(option, nbd.REP_SERVER, options.server_entry(info))
            else:
                self._structured = True
            self._reply(option, nbd.REP_ACK)
        else:
            raise options.OptionRefused(nbd.REP_ERR_UNSUP, "not supported, see docs/nbd.md")
        return None

    def _go(self, option: int, data: bytes) -> Negotiated | None:
        query = options.InfoQuery.parse(data)
        info, handler = self._lookup(query.name)
        for reply in options.info_replies(info, query, structured=self._structured):
            self._reply(option, nbd.REP_INFO, reply)
        self._reply(option, nbd.REP_ACK)
        return self._negotiated(query.name, info, handler) if option == nbd.OPT_GO else None

    def _export_name(self, data: bytes, *, pad: bool) -> Negotiated:
        """EXPORT_NAME cannot fail but by closing (spec)."""
        try:
            name = options.name_of(data)
            info, handler = self._lookup(name)
        except options.OptionRefused as refused:
            raise ProtocolError(f"EXPORT_NAME: {refused}") from refused
        flags = info.transmission_flags(structured=self._structured)
        self.out.append(nbd.EXPORT_NAME_REPLY.pack(info.size_bytes, flags))
        if pad:
            self.out.append(bytes(nbd.EXPORT_NAME_PADDING_BYTES))
        return self._negotiated(name, info, handler)

    def _meta_context(self, option: int, data: bytes) -> None:
        if option == nbd.OPT_SET_META_CONTEXT:
            self._context_export = None  # also a failed SET drops what was selected (spec)
        if not self._structured:
            raise options.OptionRefused(nbd.REP_ERR_INVALID, "structured replies come first")
        query = options.ContextQuery.parse(data)
        info, _ = self._lookup(query.name)
        if info.block_status and query.selects_base_allocation(listing=option == nbd.OPT_LIST_META_CONTEXT):
            if option == nbd.OPT_SET_META_CONTEXT:
                self._context_export = query.name
            self._reply(option, nbd.REP_META_CONTEXT, options.base_allocation_entry())
        self._reply(option, nbd.REP_ACK)

    def _lookup(self, name: str) -> tuple[ExportInfo, RequestHandler]:
        found = self._exports.get(name)
        if found is None:
            raise options.OptionRefused(nbd.REP_ERR_UNKNOWN, "no such export")
        return found

    def _negotiated(self, name: str, info: ExportInfo, handler: RequestHandler) -> Negotiated:
        """Contexts count only for the export they were set for (spec, "Metadata querying")."""
        block_status = self._context_export == name and info.block_status
        return Negotiated(info, handler, self._structured, block_status)

    def _reply(self, option: int, reply_type: int, data: bytes = b"") -> None:
        header = nbd.OPTION_REPLY_HEADER.pack(nbd.OPTION_REPLY_MAGIC, option, reply_type, len(data))
        self.out.append(header + data)
