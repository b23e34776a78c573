"""A real QEMU block layer without a guest: `qemu-storage-daemon` with one or more raw or qcow2 disks.

`StorageDaemon` offers each disk to a load over NBD (the "guest"), and a monitor for the RepAgent.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SYSTEM_PYTHON = Path("/usr/bin/python3")
LOAD = Path(__file__).parent / "tools/nbd_load.py"


class StorageDaemon:
    """One daemon; disk N is node `diskN` in file `diskN.raw`, exported under that name.

    Args:
        folder: short path for files and sockets.
        sizes: of the disks, in bytes; a file that exists is kept.
        binary: another version of qemu-storage-daemon.
    """

    def __init__(self, folder: Path, sizes: list[int], binary: str = "qemu-storage-daemon") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.qmp, self._nbd = folder, folder / "qmp", folder / "nbd"
        self.files = [folder / f"disk{number}.raw" for number in range(len(sizes))]
        for stale in (self.qmp, self._nbd):
            stale.unlink(missing_ok=True)
        arguments = [binary, "--chardev", f"socket,id=qmp,path={self.qmp},server=on,wait=off"]
        arguments += ["--monitor", "chardev=qmp", "--nbd-server", f"addr.type=unix,addr.path={self._nbd}"]
        for number, (path, size) in enumerate(zip(self.files, sizes, strict=True)):
            if not path.exists():
                with path.open("wb") as file:
                    file.truncate(size)
            node = f"disk{number}"
            arguments += [
                "--blockdev",
                f"driver=raw,node-name={node},file.driver=file,file.filename={path},discard=unmap",
            ]
            arguments += ["--export", f"type=nbd,id=guest{number},node-name={node},name={node},writable=on"]
        with (folder / "qsd.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stderr=log)
        deadline = time.monotonic() + 10
        while not (self.qmp.exists() and self._nbd.exists()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "qsd.log").read_text())
            time.sleep(0.01)

    def uri(self, number: int = 0) -> str:
        """Where the "guest" reads and writes disk `number`."""
        return f"nbd+unix:///disk{number}?socket={self._nbd}"

    def query(self, command: str) -> Any:
        """Run a QMP command on the monitor; only while no RepAgent uses it."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self.qmp))
            lines = monitor.makefile("rw")
            lines.readline()
            for execute in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": execute}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
        return answer["return"]

    def kill(self) -> None:
        """As if the host had lost power."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the daemon cleanly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class Load:
    """The load process of `tools/nbd_load.py`, one order at a time.

    It runs under the system's Python, which is where Debian's python3-libnbd is.
    """

    def __init__(self, uri: str) -> None:
        python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable
        self._process = subprocess.Popen(
            [python, str(LOAD), uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send an order and wait for its answer; an error answer fails the test."""
        answer = self.ask(op, **fields)
        assert "error" not in answer, answer
        return answer

    def send(self, op: str, **fields: Any) -> None:
        """Send an order without waiting; `receive()` gets its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op} | fields) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send an order and wait for its answer, error or not."""
        self.send(op, **fields)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
