"""Numbers of the NBD protocol, by section of the spec (doc/proto.md), and our limits with their reasons."""

from __future__ import annotations

import errno
from struct import Struct
from typing import Final

# Fixed newstyle negotiation
NBD_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
OLDSTYLE_MAGIC: Final = 0x00420281861253

GREETING: Final = Struct(">QQH")
CLIENT_FLAGS: Final = Struct(">I")
OPTION_HEADER: Final = Struct(">QII")
OPTION_REPLY_HEADER: Final = Struct(">QIII")
EXPORT_NAME_REPLY: Final = Struct(">QH")
EXPORT_NAME_PADDING_BYTES: Final = 124

# Handshake flags, client flags
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

# Option types
OPT_EXPORT_NAME: Final = 1
OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

# Option reply types
REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR_BIT: Final = 1 << 31
REP_ERR_UNSUP: Final = REP_ERROR_BIT + 1
REP_ERR_POLICY: Final = REP_ERROR_BIT + 2
REP_ERR_INVALID: Final = REP_ERROR_BIT + 3
REP_ERR_PLATFORM: Final = REP_ERROR_BIT + 4
REP_ERR_TLS_REQD: Final = REP_ERROR_BIT + 5
REP_ERR_UNKNOWN: Final = REP_ERROR_BIT + 6
REP_ERR_SHUTDOWN: Final = REP_ERROR_BIT + 7
REP_ERR_BLOCK_SIZE_REQD: Final = REP_ERROR_BIT + 8
REP_ERR_TOO_BIG: Final = REP_ERROR_BIT + 9

INFO_EXPORT: Final = 0
INFO_NAME: Final = 1
INFO_DESCRIPTION: Final = 2
INFO_BLOCK_SIZE: Final = 3

# Transmission flags
FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_SEND_DF: Final = 1 << 7
FLAG_CAN_MULTI_CONN: Final = 1 << 8
FLAG_SEND_FAST_ZERO: Final = 1 << 11

# Transmission: request message, simple reply message, structured reply chunk message
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

REQUEST: Final = Struct(">IHHQQI")
"""magic, command flags, type, cookie, offset, length."""
SIMPLE_REPLY: Final = Struct(">IIQ")
"""magic, error, cookie."""
CHUNK: Final = Struct(">IHHQI")
"""magic, flags, type, cookie, length of payload."""

# Request types, command flags
CMD_READ: Final = 0
CMD_WRITE: Final = 1
CMD_DISC: Final = 2
CMD_FLUSH: Final = 3
CMD_TRIM: Final = 4
CMD_WRITE_ZEROES: Final = 6
CMD_BLOCK_STATUS: Final = 7

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1
CMD_FLAG_DF: Final = 1 << 2
CMD_FLAG_REQ_ONE: Final = 1 << 3
CMD_FLAG_FAST_ZERO: Final = 1 << 4

# Structured reply flags and types
REPLY_FLAG_DONE: Final = 1 << 0
REPLY_NONE: Final = 0
REPLY_OFFSET_DATA: Final = 1
REPLY_OFFSET_HOLE: Final = 2
REPLY_BLOCK_STATUS: Final = 5
REPLY_ERROR_BIT: Final = 1 << 15
REPLY_ERROR: Final = REPLY_ERROR_BIT + 1
REPLY_ERROR_OFFSET: Final = REPLY_ERROR_BIT + 2

# Metadata querying
BASE_ALLOCATION: Final = "base:allocation"
STATE_HOLE: Final = 1 << 0
STATE_ZERO: Final = 1 << 1

# Limits of the spec
NAME_BYTES_MAX: Final = 4096
"""Spec, "Values": strings are at most 4,096 bytes."""
PAYLOAD_BYTES_MAX: Final = 32 << 20
"""Spec, "Block size constraints": what a client may send without asking; QEMU and libnbd send no more."""
MIN_BLOCK_BYTES_MAX: Final = 64 << 10
"""Spec, "Block size constraints": the minimum block is at most 64 KiB."""
REQUEST_BYTES_MAX: Final = (1 << 32) - 1
"""The length field of a request without payload."""

# Our limits
OPTION_BYTES_MAX: Final = 64 << 10
"""A name of 4,096 bytes and a dozen queries of 4,096 fit; anything longer is no honest client."""
CONTEXT_QUERIES_MAX: Final = 256
"""In one option; a client asks for a few contexts. 16,000 empty ones would fit, and each costs time."""
OPTIONS_MAX: Final = 64
"""Options of one handshake; QEMU sends 4, nbdinfo 9; nbdkit allows 32."""
HANDSHAKE_SECONDS_MAX: Final = 10.0
"""From connect to transmission; a handshake is 5 round trips, this is a hundredfold of a bad day."""
CONNECTIONS_MAX: Final = 100
"""At once, per server: 27 volumes and a few connections each."""
IN_FLIGHT_BYTES_MAX: Final = 32 << 20
"""Per connection, requests parsed and not answered; one more request may pass it by its own length (32 MiB)."""
IN_FLIGHT_REQUESTS_MAX: Final = 1024
"""Per connection; QEMU keeps 16, libnbd 64, fio its depth."""
EXTENTS_MAX: Final = 8192
"""Descriptors in one block status reply; the client asks again for the rest. 64 KiB on the wire."""
BLOCK_STATUS_COST_BYTES: Final = 1 << 20
"""What a block status request counts against `IN_FLIGHT_BYTES_MAX`: EXTENTS_MAX tuples in memory."""
ERROR_MESSAGE_BYTES_MAX: Final = NAME_BYTES_MAX

NBD_ERRNOS: Final = {
    errno.EPERM: 1,
    errno.EROFS: 1,
    errno.EIO: 5,
    errno.ENOMEM: 12,
    errno.EINVAL: 22,
    errno.ENOSPC: 28,
    errno.EDQUOT: 28,
    errno.EFBIG: 28,
    errno.EOVERFLOW: 75,
    errno.EOPNOTSUPP: 95,
    errno.ESHUTDOWN: 108,
}
"""Spec, "Error values": host errno → number on the wire; every other one travels as EIO."""

HOST_ERRNOS: Final = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.EOPNOTSUPP,
    108: errno.ESHUTDOWN,
}
"""Number on the wire → host errno; the spec says to treat an unknown one as EINVAL."""


def nbd_errno(host_errno: int) -> int:
    """The number on the wire for a host errno; 0 stays 0."""
    return NBD_ERRNOS.get(host_errno, 5) if host_errno else 0


def host_errno(wire_errno: int) -> int:
    """The host errno for a number on the wire; 0 stays 0."""
    return HOST_ERRNOS.get(wire_errno, errno.EINVAL) if wire_errno else 0
