"""A view as a disk of a VM that an operator starts: ready to be pasted."""

from __future__ import annotations

import shlex
from typing import Any
from xml.etree import ElementTree as ET

from rephub.core.nbd.uri import parse_uri

RECONNECT_SECONDS = 120
"""As long as the guest waits for a diskbox that is started anew."""


def qemu_drive(uri: str, *, read_only: bool = False) -> str:
    """Arguments for QEMU: the view as a virtio disk."""
    at = parse_uri(uri)
    if at.path is not None:
        server = {"type": "unix", "path": str(at.path)}
    else:
        server = {"type": "inet", "host": str(at.host), "port": str(at.port)}
    options = {"if": "virtio", "format": "raw", "file.driver": "nbd"}
    options |= {f"file.server.{key}": value for key, value in server.items()}
    options |= {"file.export": at.export, "file.reconnect-delay": str(RECONNECT_SECONDS)}
    options |= {"read-only": "on"} if read_only else {}
    # A comma in a value is doubled.
    joined = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())
    return f"-drive {shlex.quote(joined)}"


def libvirt_disk(uri: str, *, read_only: bool = False) -> str:
    """A `<disk>` for libvirt's domain XML."""
    at = parse_uri(uri)
    disk = ET.Element("disk", type="network", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    source = ET.SubElement(disk, "source", protocol="nbd", name=at.export)
    if at.path is not None:
        ET.SubElement(source, "host", transport="unix", socket=str(at.path))
    else:
        ET.SubElement(source, "host", name=str(at.host), port=str(at.port))
    ET.SubElement(source, "reconnect", delay=str(RECONNECT_SECONDS))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    if read_only:
        ET.SubElement(disk, "readonly")
    return ET.tostring(disk, encoding="unicode")


def snippets(uri: str, *, read_only: bool = False) -> dict[str, str]:
    """Both, as fields of an answer."""
    return {
        "qemu": qemu_drive(uri, read_only=read_only),
        "libvirt": libvirt_disk(uri, read_only=read_only),
    }


def in_a_vm(view: dict[str, Any]) -> str:
    """Both, as lines for people."""
    return f"  QEMU:    {view['qemu']}\n  libvirt: {view['libvirt']}"
