"""Views as disks, for QEMU and libvirt."""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

from rephub.cli.snippets import libvirt_disk, qemu_drive
from rephub.core.nbd.uri import tcp_uri, unix_uri


def test_odd_paths_survive() -> None:
    path, export = Path("/a, b/s'1"), "vol-1"
    flag, drive = shlex.split(qemu_drive(unix_uri(path, export), read_only=True))
    assert flag == "-drive"
    assert "file.server.path=/a,, b/s'1," in drive
    assert drive.endswith("read-only=on")
    source = ET.fromstring(libvirt_disk(unix_uri(path, export)))
    assert source.find("source/host").attrib == {"transport": "unix", "socket": str(path)}
    assert source.find("source").attrib == {"protocol": "nbd", "name": export}
    assert source.find("readonly") is None


def test_on_tcp() -> None:
    uri = tcp_uri("::1", 4711, "v")
    assert "file.server.host=::1,file.server.port=4711," in qemu_drive(uri)
    disk = ET.fromstring(libvirt_disk(uri, read_only=True))
    assert disk.find("source/host").attrib == {"name": "::1", "port": "4711"}
    assert disk.find("readonly") is not None
