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

from rephub.core.nbd.uri import parse_uri

SYSTEM_PYTHON = Path("/usr/bin/python3")
LOAD = Path(__file__).parent / "tools/nbd_load.py"


class StorageDaemon:
    """One daemon; disk N is node `diskN` in file `diskN.raw` (or .qcow2), exported under that name.

    Args:
        folder: short path for files and sockets.
        sizes: of the disks, in bytes; a file that exists is kept.
        binary: another version of qemu-storage-daemon.
        driver: raw or qcow2.
        nodes: names of the nodes instead of `diskN`; exports and files keep their names.
        view: an NBD URI in place of a file, for the one disk: what a recovery VM runs from.
    """

    def __init__(
        self,
        folder: Path,
        sizes: list[int],
        binary: str = "qemu-storage-daemon",
        driver: str = "raw",
        nodes: list[str] | None = None,
        view: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.qmp, self._nbd = folder, folder / "qmp", folder / "nbd"
        self.admin = folder / "admin"
        """A second monitor, the administrator's."""
        self.files = [folder / f"disk{number}.{driver}" for number in range(len(sizes))]
        for stale in (self.qmp, self.admin, self._nbd):
            stale.unlink(missing_ok=True)
        arguments = [binary, "--chardev", f"socket,id=qmp,path={self.qmp},server=on,wait=off"]
        arguments += ["--chardev", f"socket,id=admin,path={self.admin},server=on,wait=off"]
        arguments += ["--monitor", "chardev=qmp", "--monitor", "chardev=admin"]
        arguments += ["--nbd-server", f"addr.type=unix,addr.path={self._nbd}"]
        for number, (path, size) in enumerate(zip(self.files, sizes, strict=True)):
            if view:
                pass
            elif not path.exists() and driver == "qcow2":
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
            elif not path.exists():
                with path.open("wb") as file:
                    file.truncate(size)
            node = nodes[number] if nodes else f"disk{number}"
            below = f"driver={driver},node-name={node},file.driver=file,file.filename={path},discard=unmap"
            arguments += ["--blockdev", _view_node(node, view) if view else below]
            arguments += [
                "--export",
                f"type=nbd,id=guest{number},node-name={node},name=disk{number},writable=on",
            ]
        with (folder / "qsd.log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stderr=log)
        deadline = time.monotonic() + 10
        while not (self.qmp.exists() and self.admin.exists() and self._nbd.exists()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "qsd.log").read_text())
            time.sleep(0.01)

    def uri(self, number: int = 0) -> str:
        """Where the "guest" reads and writes disk `number`."""
        return f"nbd+unix:///disk{number}?socket={self._nbd}"

    def query(self, command: str) -> Any:
        """Run a QMP command on the monitor; only while no RepAgent uses it."""
        return self._run(self.qmp, command, {})["return"]

    def execute(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run a QMP command as the administrator, whoever uses the other monitor; the answer has `return` or `error`.

        Args:
            command: of QMP.
            **arguments: `_` in names becomes `-`.
        """
        fields = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._run(self.admin, command, fields)

    def _run(self, path: Path, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(path))
            lines = monitor.makefile("rw")
            lines.readline()
            for order in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                lines.write(json.dumps(order) + "\n")
                lines.flush()
                answer: dict[str, Any] = json.loads(lines.readline())
                while "event" in answer:
                    answer = json.loads(lines.readline())
        return answer

    def resize(self, size_bytes: int, number: int = 0) -> dict[str, Any]:
        """As an administrator does. An NBD export forbids it, where a virtual disk of a VM would not: it is made anew."""
        self.execute("block-export-del", id=f"guest{number}", mode="hard")
        deadline = time.monotonic() + 10
        while any(item["id"] == f"guest{number}" for item in self.execute("query-block-exports")["return"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        node = f"disk{number}"
        answer = self.execute("block_resize", node_name=node, size=size_bytes)
        export = {"type": "nbd", "id": f"guest{number}", "node-name": node, "name": node, "writable": True}
        self.execute("block-export-add", **export)
        return answer

    def content(self, number: int = 0) -> bytes:
        """All bytes of a disk, through QEMU's own eyes."""
        copy = self.folder / "content"
        copied = subprocess.run(["nbdcopy", self.uri(number), str(copy)], check=False).returncode == 0
        assert copied, (self.process.poll(), (self.folder / "qsd.log").read_text())
        data = copy.read_bytes()
        copy.unlink()
        return data

    def is_let_go(self) -> bool:
        """Whether no mirror is on it. QEMU's NBD server may hang where clients come while a mirror goes."""
        return self.execute("query-block-jobs")["return"] == []

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


def _view_node(node: str, uri: str) -> str:
    """A client that waits for a diskbox which is started anew."""
    at = parse_uri(uri)
    server = f"server.type=unix,server.path={at.path},export={at.export}"
    return f"driver=nbd,node-name={node},{server},reconnect-delay=60,discard=unmap"


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
