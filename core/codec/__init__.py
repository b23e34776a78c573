"""Typed records to bytes and back: `docs/schemas.md`."""

from rephub.core.codec.control import ControlRecord, decode_control, encode_control
from rephub.core.codec.journal import (
    DATA_BYTES_MAX,
    OVERHEAD_BYTES_MAX,
    Header,
    WriteEncoder,
    check,
    decode_journal,
    encode_journal,
    peek,
)
from rephub.core.codec.registry import REGISTRY, Registry

__all__ = [
    "DATA_BYTES_MAX",
    "OVERHEAD_BYTES_MAX",
    "REGISTRY",
    "ControlRecord",
    "Header",
    "Registry",
    "WriteEncoder",
    "check",
    "decode_control",
    "decode_journal",
    "encode_control",
    "encode_journal",
    "peek",
]
