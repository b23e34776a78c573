"""The client's side of fixed newstyle negotiation, without I/O.

Order: structured replies, metadata contexts, GO; a server that knows no GO gets EXPORT_NAME.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from rephub.core.errors import NotFoundError, ProtocolError, RephubError, UnavailableError
from rephub.core.nbd import constants as nbd
from rephub.core.nbd import options
from rephub.core.nbd.receiving import ReceiveBuffer, Script

REPLIES_MAX: Final = 256
"""Replies to one option: a few infos, or a context each; then the server is broken."""
SIZE_BYTES_MAX: Final = (1 << 63) - 1
"""Of an export: what a file can have, here and in QEMU."""


@dataclass(frozen=True, slots=True)
class ServerOffer:
    """What the client learnt about the export."""

    size_bytes: int
    flags: int
    """Transmission flags."""
    structured: bool
    contexts: dict[str, int]
    """Selected metadata contexts: name → id in replies."""
    min_block: int = 1
    preferred_block: int = 4096
    max_block: int = nbd.PAYLOAD_BYTES_MAX

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return bool(self.flags & nbd.FLAG_READ_ONLY)


class _Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    """The server answered an option with an error."""

    def __init__(self, reply_type: int, message: str) -> None:
        super().__init__(message)
        self.reply_type = reply_type


class ClientHandshake:
    """One handshake.

    Args:
        export: name.
        contexts: metadata contexts to select; what the server does not have is missing from the offer.
        buffer: where received bytes are.
    """

    def __init__(self, export: str, contexts: Sequence[str], buffer: ReceiveBuffer) -> None:
        self._export = export
        self._contexts = contexts
        self.out: list[bytes] = []
        """Bytes to send, in order; the shell empties it."""
        self._script = Script(self._steps(), buffer)

    def advance(self) -> ServerOffer | None:
        """Go on as far as the received bytes reach; the offer once transmission begins.

        Raises:
            NotFoundError: no such export.
            UnavailableError: the server will not serve us: it wants TLS, or shuts down.
            ProtocolError: the server breaks the protocol or speaks another.
        """
        try:
            self._script.advance()
        except struct.error as error:
            raise ProtocolError(f"NBD server sent a malformed option reply: {error}") from error
        return self._script.outcome

    def _steps(self) -> Generator[int, bytes, ServerOffer]:
        magic, option_magic, flags = nbd.GREETING.unpack((yield nbd.GREETING.size))
        if magic != nbd.NBD_MAGIC or option_magic != nbd.OPTION_MAGIC:
            what = "an oldstyle NBD server" if option_magic == nbd.OLDSTYLE_MAGIC else "no NBD server"
            raise ProtocolError(f"{what} answers", hint="a fixed newstyle NBD server is needed")
        if not flags & nbd.FLAG_FIXED_NEWSTYLE:
            raise ProtocolError("the NBD server does not speak fixed newstyle")
        no_zeroes = flags & nbd.FLAG_NO_ZEROES
        self.out.append(nbd.CLIENT_FLAGS.pack(nbd.FLAG_FIXED_NEWSTYLE | no_zeroes))
        structured = yield from self._structured()
        contexts: dict[str, int] = {}
        if structured and self._contexts:
            contexts = yield from self._select_contexts()
        query = options.InfoQuery(self._export, frozenset([nbd.INFO_BLOCK_SIZE]))
        try:
            replies = yield from self._ask(nbd.OPT_GO, query.pack())
        except _Refused as refused:
            if refused.reply_type != nbd.REP_ERR_UNSUP:
                raise self._cannot(refused) from refused
        else:
            return _offer(replies, structured=structured, contexts=contexts)
        self.out.append(options.option(nbd.OPT_EXPORT_NAME, self._export.encode()))
        padding = 0 if no_zeroes else nbd.EXPORT_NAME_PADDING_BYTES
        answer = yield nbd.EXPORT_NAME_REPLY.size + padding
        size_bytes, export_flags = nbd.EXPORT_NAME_REPLY.unpack_from(answer)
        return ServerOffer(_checked_size(size_bytes), export_flags, structured, contexts)

    def _structured(self) -> Generator[int, bytes, bool]:
        try:
            yield from self._ask(nbd.OPT_STRUCTURED_REPLY, b"")
        except _Refused:
            return False
        return True

    def _select_contexts(self) -> Generator[int, bytes, dict[str, int]]:
        data = options.contexts_of(self._contexts, self._export)
        try:
            replies = yield from self._ask(nbd.OPT_SET_META_CONTEXT, data)
        except _Refused as refused:
            if refused.reply_type == nbd.REP_ERR_UNKNOWN:
                raise self._cannot(refused) from refused
            return {}
        contexts: dict[str, int] = {}
        for reply_type, payload in replies:
            if reply_type == nbd.REP_META_CONTEXT:
                try:
                    identifier, name = options.parse_context(payload)
                except options.OptionRefused as error:
                    raise ProtocolError(f"NBD server sent a malformed context: {error}") from error
                if name not in self._contexts or name in contexts or identifier in contexts.values():
                    raise ProtocolError(
                        f"NBD server sent context {name!r}, which was not asked for, or twice"
                    )
                contexts[name] = identifier
        return contexts

    def _ask(self, option: int, data: bytes) -> Generator[int, bytes, list[tuple[int, bytes]]]:
        """Send an option; its replies before the final ACK.

        Raises:
            _Refused: the final reply is an error.
        """
        self.out.append(options.option(option, data))
        replies: list[tuple[int, bytes]] = []
        while len(replies) < REPLIES_MAX:
            header = yield nbd.OPTION_REPLY_HEADER.size
            magic, answered, reply_type, length = nbd.OPTION_REPLY_HEADER.unpack(header)
            if magic != nbd.OPTION_REPLY_MAGIC or answered != option or length > nbd.OPTION_BYTES_MAX:
                raise ProtocolError(f"NBD server answered option {option} with a malformed reply")
            payload = (yield length) if length else b""
            if reply_type & nbd.REP_ERROR_BIT:
                raise _Refused(reply_type, payload.decode(errors="replace"))
            if reply_type == nbd.REP_ACK:
                return replies
            replies.append((reply_type, payload))
        raise ProtocolError(f"NBD server answered option {option} more than {REPLIES_MAX} times")

    def _cannot(self, refused: _Refused) -> RephubError:
        """The error for a refusal that ends the handshake."""
        number = refused.reply_type - nbd.REP_ERROR_BIT
        text = f"NBD export {self._export!r} is refused (reply {number}): {refused}"
        if refused.reply_type == nbd.REP_ERR_UNKNOWN:
            return NotFoundError(f"the NBD server has no export {self._export!r}")
        if refused.reply_type in {nbd.REP_ERR_POLICY, nbd.REP_ERR_TLS_REQD, nbd.REP_ERR_SHUTDOWN}:
            return UnavailableError(text)
        return ProtocolError(text)


def _offer(replies: list[tuple[int, bytes]], *, structured: bool, contexts: dict[str, int]) -> ServerOffer:
    """Put together what GO's infos say.

    Raises:
        ProtocolError: the one that must be there is missing, or block sizes that make no sense.
        struct.error: malformed.
    """
    export: tuple[int, int] | None = None
    blocks = (1, 4096, nbd.PAYLOAD_BYTES_MAX)
    for reply_type, payload in replies:
        kind = int.from_bytes(payload[:2], "big")
        if reply_type == nbd.REP_INFO and kind == nbd.INFO_EXPORT:
            export = options.parse_info_export(payload)
        elif reply_type == nbd.REP_INFO and kind == nbd.INFO_BLOCK_SIZE:
            blocks = options.parse_info_block_size(payload)
    if export is None:
        raise ProtocolError("NBD server did not say the export's size")
    minimum, preferred, maximum = blocks
    if not 1 <= minimum <= nbd.MIN_BLOCK_BYTES_MAX or minimum & (minimum - 1) or maximum < minimum:
        raise ProtocolError(f"NBD server asks for impossible block sizes {blocks}")
    maximum = min(maximum, nbd.PAYLOAD_BYTES_MAX) // minimum * minimum
    size_bytes, flags = export
    return ServerOffer(_checked_size(size_bytes), flags, structured, contexts, minimum, preferred, maximum)


def _checked_size(size_bytes: int) -> int:
    """The export's size.

    Raises:
        ProtocolError: nothing can be so large.
    """
    if size_bytes > SIZE_BYTES_MAX:
        raise ProtocolError(f"NBD server says that the export has {size_bytes} bytes")
    return size_bytes
