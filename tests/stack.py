"""The whole product on this machine, used as its operators use it: by the `rephub` command line.

`up` and `down` run the command itself; other verbs run its code in this process, which saves a second of imports each
(tests/integration/test_contract.py runs the command for every verb).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rephub.cli.main import run
from rephub.core.control.kafka import KafkaControlLog
from rephub.core.names import EVENTS_TOPIC

REPHUB = Path(__file__).resolve().parent.parent / ".venv/bin/rephub"


class Stack:
    """One stack under one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def call(self, *arguments: str, timeout: float = 120) -> tuple[int, dict[str, Any]]:
        """Run a verb; returns exit code and JSON document."""
        command = ["--json", "--state-dir", str(self.state_dir), *arguments]
        if arguments[0] not in ("up", "down"):
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                code = run(command)
            return code, json.loads(stdout.getvalue())
        done = subprocess.run(
            [REPHUB, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=timeout, check=False
        )
        return done.returncode, json.loads(done.stdout)

    def run(self, *arguments: str, timeout: float = 120) -> dict[str, Any]:
        """Run a verb that must succeed."""
        code, document = self.call(*arguments, timeout=timeout)
        assert code == 0, (arguments, code, document)
        return document

    def fails(self, *arguments: str, code: int) -> dict[str, Any]:
        """Run a verb that must fail with the exit code; returns the error, which has message and hint in one line each."""
        got, document = self.call(*arguments)
        assert got == code, (arguments, got, document)
        error = document["error"]
        assert error["message"]
        assert "\n" not in error["message"]
        assert error["hint"], error
        return dict(error)

    def status(self, volume: str) -> dict[str, Any]:
        """One volume's line of `status`."""
        (found,) = self.run("status", volume)["volumes"]
        return dict(found)

    def protect(self, volume: str, qmp: Path, node: str, *options: str) -> dict[str, Any]:
        """Protect and wait until protected."""
        document = self.run("protect", volume, "--qmp", str(qmp), "--node", node, *options)
        self.run("wait", volume, "--state", "protected", "--timeout", "60")
        return document

    def wait_until(self, what: str, condition: Callable[[], Any], timeout: float = 30) -> Any:
        """Ask again until the condition holds; the test fails at the deadline."""
        deadline = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
            time.sleep(0.05)

    def read_view(self, volume: str, *point: str) -> bytes:
        """The whole volume at a point, by a fail-over test and a foreign NBD client."""
        fot = self.run("fot", "start", volume, *point, "--read-only")
        try:
            return read_uri(fot["uri"], self.state_dir / "read")
        finally:
            self.run("fot", "stop", fot["fot"])

    def down(self) -> None:
        """Stop everything."""
        self.call("down")


def bootstrap(stack: Stack) -> str:
    return str(json.loads((stack.state_dir / "endpoints.json").read_text())["bootstrap"])


def events(stack: Stack) -> list[Any]:
    """The event log."""

    async def read() -> list[Any]:
        control = KafkaControlLog(bootstrap(stack))
        await control.start()
        entries = await control.read(EVENTS_TOPIC, 0, await control.next_offset(EVENTS_TOPIC))
        await control.close()
        return [event for _, event in entries]

    return asyncio.run(read())


def read_uri(uri: str, scratch: Path) -> bytes:
    """All bytes of an NBD export, read by nbdcopy."""
    scratch.unlink(missing_ok=True)
    subprocess.run(["nbdcopy", uri, str(scratch)], check=True)
    data = scratch.read_bytes()
    scratch.unlink()
    return data
