"""What a recovery volume can lie on: NBD servers of others, and loop devices."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from services import cannot


class NbdProcess:
    """An NBD server on a unix socket that may be killed and started again.

    Args:
        socket_path: short.
        *argv: the command; SOCKET in it is replaced.
        uri: how clients name the export.
    """

    def __init__(self, socket_path: Path, *argv: str, uri: str) -> None:
        self._socket, self.uri = socket_path, uri
        self._argv = [part.replace("SOCKET", str(socket_path)) for part in argv]
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(self._argv)
        deadline = time.monotonic() + 10
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if self._socket.exists() and probe.connect_ex(str(self._socket)) == 0:
                    return
            assert self.process.poll() is None, self._argv
            assert time.monotonic() < deadline, self._argv
            time.sleep(0.02)

    def kill(self) -> None:
        """At once, as by a crash."""
        self.process.kill()
        self.process.wait()


def qemu_nbd(folder: Path, disk: Path, *options: str) -> NbdProcess:
    """qemu-nbd on a raw file; one client at a time, as by default."""
    where = folder / "qn"
    command = ["qemu-nbd", "--persistent", "--format=raw", "--discard=unmap", "--detect-zeroes=off"]
    return NbdProcess(
        where,
        *command,
        *options,
        "--socket=SOCKET",
        "--export-name=r",
        str(disk),
        uri=f"nbd+unix:///r?socket={where}",
    )


def nbdkit(folder: Path, disk: Path, *options: str, settings: tuple[str, ...] = ()) -> NbdProcess:
    """nbdkit on a raw file, with filters as options and their settings."""
    if shutil.which("nbdkit") is None:
        cannot("nbdkit is not installed")
    where = folder / "nk"
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--unix=SOCKET", *options]
    return NbdProcess(where, *command, "file", str(disk), *settings, uri=f"nbd+unix:///?socket={where}")


def storage_daemon(folder: Path, disk: Path) -> NbdProcess:
    """QEMU's own NBD server, as that of a virtual machine in the recovery site."""
    where = folder / "qs"
    return NbdProcess(
        where,
        "qemu-storage-daemon", "--nbd-server", "addr.type=unix,addr.path=SOCKET",
        "--blockdev", f"driver=raw,node-name=vol1r,file.driver=file,file.filename={disk},discard=unmap",
        "--export", "type=nbd,id=e,node-name=vol1r,name=vol1r,writable=on",
        uri=f"nbd+unix:///vol1r?socket={where}",
    )  # fmt: skip


def attach_loop(disk: Path) -> Path | None:
    """A loop device on a file; None where the kernel gives none to us."""
    done = subprocess.run(
        ["losetup", "--find", "--show", str(disk)], capture_output=True, text=True, check=False
    )
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def detach_loop(device: Path) -> None:
    """Undo `attach_loop`."""
    subprocess.run(["losetup", "--detach", str(device)], check=True)
