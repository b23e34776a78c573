"""What the operator's `--recovery` names: a file, a block device, or an NBD export. By the text alone, without a look."""

from __future__ import annotations

from typing import Literal

Kind = Literal["file", "device", "nbd"]


def target_kind(target: str) -> Kind:
    """The kind of a recovery volume.

    All of /dev but /dev/shm counts as devices, so that a device that is missing is never replaced by a file in its place.
    """
    if "://" in target:
        return "nbd"
    in_memory = target.startswith("/dev/shm/")  # noqa: S108 - a file system, not a temporary file of ours
    return "device" if target.startswith("/dev/") and not in_memory else "file"


def is_ours_to_delete(target: str) -> bool:
    """Whether `unprotect --purge` deletes it; devices and exports are somebody's and keep their content."""
    return target_kind(target) == "file"
