"""Logging: one line per record, `key=value`, on stderr.

Only `cli/` calls `configure`; all other code does `log = logging.getLogger(__name__)` and passes facts as
`extra`: `log.info("attached", extra={"volume": name, "epoch": epoch})`. DEBUG per I/O, INFO state change,
WARNING reduced protection, ERROR data at risk; never payload.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """`at=… level=… logger=… msg="…" key=value…`, always one line per record; a traceback is escaped into `exc`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = dt.datetime.fromtimestamp(record.created, dt.UTC)
        fields: dict[str, object] = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name.removeprefix("rephub."),
            "msg": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["exc"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={quoted(value)}" for key, value in fields.items())


def quoted(value: object) -> str:
    """The value as logfmt writes it: in quotes if it has blanks, quotes, `=` or control characters."""
    text = str(value)
    if text and text.isprintable() and not any(sign in text for sign in ' "=\\'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    plain = "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in escaped)
    return f'"{plain}"'


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the records of the whole process to one stream.

    Args:
        level: DEBUG, INFO, WARNING or ERROR for our code; libraries speak from WARNING on.
        stream: default stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("rephub").setLevel(level)
    # aiokafka logs each reconnect attempt as an error while a broker is away; our own code says that once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
