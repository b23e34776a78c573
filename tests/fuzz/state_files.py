"""Every file that RepHub reads back from disk: how it is written, and what reading may do when it is damaged.

Each reader writes the content where the daemon expects it and reads it as the daemon does. Where the file has a checksum, what
is read is what was written or an error; where it has none, it is of the right types or an error or the default.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from rephub.agent.draining import stopped_note
from rephub.agent.freezer import frozen_note
from rephub.cli import endpoints, parts, stack_lock
from rephub.consumers.diskbox import position
from rephub.consumers.diskbox.position import Position
from rephub.consumers.hub import snapshot
from rephub.core.config import load_settings
from rephub.core.errors import StorageError, UnavailableError, UsageError
from rephub.infra import diskbox_list, ports
from rephub.projections.catalogue import Catalogue
from rephub.projections.journal_fold import FoldState
from rephub.schemas import events as ev

POSITION = Position(
    "vol",
    "/data/vol.raw",
    "start",
    FoldState(
        41, 3, 7, "0badcafe", 3, "00" * 16, 8, size_bytes=1 << 30, gap_first_offset=None, gap_reason=""
    ),
    42,
    ready=True,
)


def _catalogue() -> Catalogue:
    catalogue = Catalogue()
    catalogue.apply(0, ev.HubStarted(id="e0", at=1, source="hub", hub_epoch=1, hub="hub1"))
    return catalogue


CATALOGUE = _catalogue()


def read_position(directory: Path, content: bytes) -> None:
    """The diskbox's position of a volume. Format 1 had no checksum: what it says is believed if it is of the right types."""
    (directory / position.FILE).write_bytes(content)
    with contextlib.suppress(StorageError):
        found = position.load_position(directory)
        assert found is not None
        assert found == POSITION or b'"format": 1' in content.replace(b":1", b": 1")
        assert isinstance(found.applied_offset, int)
        assert isinstance(found.applied.size_bytes, int)


def read_snapshot(directory: Path, content: bytes) -> None:
    """The hub's snapshot: the whole log is folded anew where it is damaged."""
    (directory / snapshot.FILE).write_bytes(content)
    assert snapshot.load(directory).to_json() in {CATALOGUE.to_json(), Catalogue().to_json()}


def read_endpoints(directory: Path, content: bytes) -> None:
    """Where a stack is."""
    (directory / endpoints.FILE).write_bytes(content)
    with contextlib.suppress(StorageError):
        found = endpoints.read_endpoints(directory)
        assert isinstance(found.bootstrap, str)
        assert all(pid is None or isinstance(pid, int) for pid in found.pids.values())


def read_parts(directory: Path, content: bytes) -> None:
    """The supervisor's processes: none where it is damaged; a pid counts only with its start time."""
    (directory / parts.FILE).write_bytes(content)
    json.dumps(parts.parts(directory))


def read_lock(directory: Path, content: bytes) -> None:
    """Who supervises; that somebody does is said by the kernel, so the content may be anything."""
    (directory / stack_lock.FILE).write_bytes(content)
    found = stack_lock._read(directory / stack_lock.FILE)
    assert isinstance(found.pid, int)


def read_frozen(directory: Path, content: bytes) -> None:
    """The note of guests that may be frozen: an agent starts whatever it holds."""
    (directory / "frozen.json").write_bytes(content)
    found = frozen_note(directory).read()
    assert all(isinstance(path, str) for path in found)


def read_stopped(directory: Path, content: bytes) -> None:
    """The note of VMs that a move stopped: an agent starts whatever it holds."""
    (directory / "stopped.json").write_bytes(content)
    for monitors in stopped_note(directory).read().values():
        assert all(isinstance(monitor, str) for monitor in monitors)


def read_ports(directory: Path, content: bytes) -> None:
    """Ports of last time: new ones where it is damaged."""
    file = directory / "ports.json"
    file.write_bytes(content)
    with contextlib.suppress(UnavailableError):
        found = ports.kept_ports(file, ["hub"])
        assert 0 < found["hub"] < 1 << 16


def read_diskboxes(directory: Path, content: bytes) -> None:
    """Diskboxes beside the first one."""
    (directory / diskbox_list.FILE).write_bytes(content)
    with contextlib.suppress(StorageError):
        assert all(isinstance(name, str) for name in diskbox_list.grown_diskboxes(directory))


def read_settings(directory: Path, content: bytes) -> None:
    """The settings of a daemon."""
    config = directory / "config.toml"
    config.write_bytes(content)
    with contextlib.suppress(UsageError):
        load_settings(config=config, state_dir=directory)


Reader = Callable[[Path, bytes], None]

READERS: dict[str, Reader] = {
    "position": read_position,
    "snapshot": read_snapshot,
    "endpoints": read_endpoints,
    "parts": read_parts,
    "lock": read_lock,
    "frozen": read_frozen,
    "stopped": read_stopped,
    "ports": read_ports,
    "diskboxes": read_diskboxes,
    "settings": read_settings,
}


def good(directory: Path) -> dict[str, bytes]:
    """A valid content of each."""
    snapshot.save(directory, CATALOGUE)
    part = parts.Part("agent1", "agent", 1, 1.5)
    parts.write_parts(directory, [part])
    stack = endpoints.Endpoints(
        "127.0.0.1:1", "unix:///r", "http://h:1", directory, {"hub": 1}, {"hub": "http://h"}
    )
    return {
        "position": POSITION.to_json(),
        "snapshot": (directory / snapshot.FILE).read_bytes(),
        "endpoints": json.dumps(stack.to_document()).encode(),
        "parts": (directory / parts.FILE).read_bytes(),
        "lock": b'{"pid": 1, "started_at": 1.5}',
        "stopped": b'{"fo-1": ["/run/vm/qmp.sock"]}',
        "frozen": b'["/run/vm/qga.sock"]',
        "ports": b'{"hub": 15001}',
        "diskboxes": b'{"diskboxes": ["diskbox2"]}',
        "settings": b'[agent]\nid = "a1"\nbuffer_bytes = "64MiB"\n[kafka]\nbootstrap = "h:1"\n',
    }
