"""A real guest for demo and tests: Debian's cloud kernel and a busybox initramfs, booted under TCG in a few seconds.

The guest runs what the host types at its serial console and answers with its output and exit code, so that a test
can format, mount and write a disk as any guest would. Nothing of the guest knows of RepHub.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent

MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
"""Loaded at boot, with what they depend on."""

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.order); do insmod "$module"; done
i=0; until [ -e /sys/class/virtio-ports/vport0p1/name ] || [ $i = 50 ]; do i=$((i+1)); sleep 0.1; done
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] && /qemu-ga -p "/dev/${port##*/}" -t /tmp &
done
stty -echo -onlcr < /dev/ttyS0
echo GUEST-READY
while read -r line; do
  [ "$line" = poweroff ] && poweroff -f
  echo "$line" | base64 -d > /tmp/command
  sh /tmp/command < /dev/null 2>&1
  echo "GUEST-EXIT $?"
done
"""


class GuestError(Exception):
    """The guest did not do what it was told."""


def _apt(folder: Path, *command: str) -> str:
    """Run apt with the package lists of `scripts/private-apt` in `folder`; returns what it prints."""
    environment = os.environ | {"APT_CONFIG": str(folder / "apt.conf")}
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def _package_files(package: str, folder: Path) -> Path:
    """Download a Debian package and unpack it, without installing it."""
    _apt(folder, "apt-get", "-qq", "download", package)
    (deb,) = folder.glob(f"{package}_*.deb")
    target = folder / package
    subprocess.run(["dpkg-deb", "-x", deb, target], check=True)
    return target


def _kernel_package(folder: Path) -> str:
    """The package that linux-image-cloud-amd64 stands for at the moment."""
    shown = _apt(folder, "apt-cache", "depends", "linux-image-cloud-amd64")
    found = re.search(r"Depends: (linux-image-[0-9]\S*-cloud-amd64)", shown)
    if not found:
        raise GuestError(f"no kernel in {shown!r}")
    return found.group(1)


def _modules_in_order(root: Path, kernel: str) -> list[Path]:
    """The modules' files, each after those it needs."""
    lib = root / "lib/modules" / kernel
    subprocess.run(["depmod", "-b", root, kernel], check=True)
    needs = {}
    for line in (lib / "modules.dep").read_text().splitlines():
        path, rest = line.split(":", 1)
        needs[path] = rest.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for needed in needs[path]:
            add(needed)
        if path not in order:
            order.append(path)

    for name in (*MODULES, "crc32c_generic"):
        if name in by_name:
            add(by_name[name])
    return [lib / path for path in order]


def _add_guest_agent(folder: Path, image: Path) -> None:
    """QEMU's guest agent and the libraries it needs, which are this machine's: QEMU needs them, too."""
    binary = _package_files("qemu-guest-agent", folder) / "usr/sbin/qemu-ga"
    shutil.copy(binary, image / "qemu-ga")
    shown = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", shown):
        target = image / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _add_sqlite(folder: Path, image: Path) -> None:
    """The shell of SQLite, with the library of its own package; the rest is this machine's."""
    binary = _package_files("sqlite3", folder) / "usr/bin/sqlite3"
    shutil.copy(binary, image / "sqlite3")
    library = next((_package_files("libsqlite3-0", folder) / "usr/lib").rglob("libsqlite3.so.0"))
    environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
    shown = subprocess.run(
        ["ldd", binary], capture_output=True, text=True, check=True, env=environment
    ).stdout
    missing = re.findall(r"(\S+) => not found", shown)
    if missing:
        raise GuestError(f"sqlite3 needs {', '.join(missing)}, which this machine does not have")
    for found in (*re.findall(r"(/\S+) \(0x", shown),):
        name = Path(found)
        target = image / ("lib/" + name.name if name.is_relative_to(folder) else found.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name.resolve(), target)


def build(cache: Path) -> tuple[Path, Path]:
    """Kernel and initramfs, made once and kept in `cache`.

    Returns:
        Paths of kernel and initramfs.
    """
    cache = cache.resolve()
    kernel_file, initramfs = cache / "vmlinuz", cache / "initramfs-ga-sqlite.gz"
    if kernel_file.exists() and initramfs.exists():
        return kernel_file, initramfs
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        subprocess.run([SCRIPTS / "private-apt", folder, ""], check=True)
        package = _kernel_package(folder)
        root = _package_files(package, folder)
        busybox = _package_files("busybox-static", folder) / "bin/busybox"
        kernel = package.removeprefix("linux-image-")
        image = folder / "image"
        (image / "bin").mkdir(parents=True)
        shutil.copy(busybox, image / "bin/busybox")
        _add_guest_agent(folder, image)
        _add_sqlite(folder, image)
        names = []
        for module in _modules_in_order(root, kernel):
            shutil.copy(module, image / module.name)
            names.append(f"/{module.name}")
        (image / "modules.order").write_text("\n".join(names) + "\n")
        (image / "init").write_text(INIT)
        (image / "init").chmod(0o755)
        listing = "\n".join(sorted(str(path.relative_to(image)) for path in image.rglob("*")))
        archive = subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"],
            cwd=image,
            input=listing.encode(),
            capture_output=True,
            check=True,
        ).stdout
        part = cache / "initramfs.part"
        part.write_bytes(gzip.compress(archive))
        shutil.copy(root / f"boot/vmlinuz-{kernel}", kernel_file)
        part.rename(initramfs)
    return kernel_file, initramfs


class Guest:
    """A running VM with one virtio disk.

    `qmp` is the monitor for a RepAgent, which wants one of its own; `monitor` is a second one for the host.

    Args:
        cache: folder of `build()`.
        folder: a short path for its sockets and log.
        drive: a complete `-drive`/`-blockdev` argument list for its disk, for example
            `["-drive", "file=disk.raw,format=raw,if=virtio,node-name=vol1"]`.
        qemu: the emulator.
        memory: of the VM.
        halted: start it with `-S`: it boots when somebody says `cont`; then call `wait_booted`.
    """

    def __init__(
        self,
        cache: Path,
        folder: Path,
        drive: list[str],
        qemu: str = "qemu-system-x86_64",
        memory: str = "192M",
        *,
        halted: bool = False,
    ) -> None:
        self.folder = folder
        self.qmp = folder / "qmp"
        self.monitor = folder / "monitor"
        self.guest_agent = folder / "ga"
        self._serial_path = folder / "serial"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (self.qmp, self.monitor, self.guest_agent, self._serial_path):
            stale.unlink(missing_ok=True)
        kernel, initramfs = build(cache)
        self._log = (folder / "qemu.log").open("wb")
        self.process = subprocess.Popen(
            [
                qemu,
                *("-accel", "tcg", "-m", memory, "-nodefaults", "-display", "none", "-no-reboot"),
                *("-kernel", str(kernel), "-initrd", str(initramfs)),
                *("-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off"),
                *("-chardev", f"socket,id=serial,path={self._serial_path},server=on,wait=off"),
                *("-serial", "chardev:serial"),
                *("-chardev", f"socket,id=ga,path={self.guest_agent},server=on,wait=off"),
                *(
                    "-device",
                    "virtio-serial",
                    "-device",
                    "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
                ),
                *("-qmp", f"unix:{self.qmp},server=on,wait=off"),
                *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
                *(["-S"] if halted else []),
                *drive,
            ],
            stdout=self._log,
            stderr=self._log,
        )
        self._buffer = b""
        try:
            self._console = self._connect()
            if not halted:
                self.wait_booted()
        except GuestError:
            self.process.kill()
            self.process.wait()
            raise

    def wait_booted(self) -> None:
        """Wait until it takes scripts. Raises GuestError."""
        self._wait_for(rb"GUEST-READY\r?\n", 60)

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            console = socket.socket(socket.AF_UNIX)
            try:
                console.connect(str(self._serial_path))
            except OSError:
                console.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise GuestError((self.folder / "qemu.log").read_text()) from None
                time.sleep(0.02)
            else:
                return console

    def _wait_for(self, pattern: bytes, timeout: float) -> re.Match[bytes]:
        """Read the console up to the pattern; what stood before it is `match.string[:match.start()]`."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self._buffer)
            if found:
                self._buffer = self._buffer[found.end() :]
                return found
            self._console.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self._console.recv(65536)
            except TimeoutError:
                raise GuestError(
                    f"no {pattern!r} within {timeout} s; console ends {self._buffer[-500:]!r}"
                ) from None
            if not data:
                raise GuestError(f"the guest is gone; console ends {self._buffer[-500:]!r}")
            self._buffer += data

    def run(self, script: str, *, timeout: float = 60, check: bool = True) -> str:
        """Run a shell script in the guest.

        Returns:
            Its output.

        Raises:
            GuestError: it failed (and `check`), or the guest did not answer in time.
        """
        text = base64.b64encode(script.encode()).decode()
        if len(text) > 4000:  # the tty's line discipline takes 4,095 bytes a line
            raise GuestError("script too long for one console line")
        self._console.sendall(text.encode() + b"\n")
        found = self._wait_for(rb"GUEST-EXIT (\d+)\r?\n", timeout)
        output = found.string[: found.start()].decode(errors="replace")
        if check and found.group(1) != b"0":
            raise GuestError(f"exit code {found.group(1).decode()} from {script!r}: {output[-2000:]}")
        return output

    def query(self, command: str) -> Any:
        """Run a QMP command without arguments on the host's own monitor."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self.monitor))
            lines = monitor.makefile("rw")
            lines.readline()
            for execute in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": execute}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    if "error" in answer:
                        raise GuestError(str(answer["error"]))
        return answer["return"]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the virtual CPUs; on return all I/O of the guest is finished."""
        self.query("stop")
        try:
            yield
        finally:
            self.query("cont")

    def stop(self) -> None:
        """Power the VM off; kill it if it does not go."""
        if self.process.poll() is None:
            try:
                self._console.sendall(b"poweroff\n")
                self.process.wait(10)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        self._console.close()
        self._log.close()
        for path in (self.qmp, self.monitor, self.guest_agent, self._serial_path):
            path.unlink(missing_ok=True)
