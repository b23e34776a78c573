"""Alerts of a real stack's monitor reach a webhook and a command, beside a webhook that hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qsd import StorageDaemon
from stack import Stack

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.qemu, pytest.mark.timeout(300)]

SIZE = 16 << 20


class Receiver:
    """Two webhooks on loopback: `/hook` fails at first and then takes, `/hang` never answers."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []
        self.hung = 0
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/hang":
                    receiver.hung += 1
                    receiver._released.wait(300)
                    return
                receiver.got.append((self.headers["Idempotency-Key"], body))
                self.send_response(500 if len(receiver.got) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, kind: str, rule: str) -> list[dict[str, Any]]:
        return [body for _, body in self.got if (body["kind"], body["rule"]) == (kind, rule)]

    def stop(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.stop()


@pytest.fixture
def told(short_dir: Path) -> Path:
    """Where the command writes, one document a line."""
    return short_dir / "told"


@pytest.fixture
def _settings(receiver: Receiver, told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "REPHUB_MONITOR__WEBHOOKS", json.dumps([f"{receiver.url}/hang", f"{receiver.url}/hook"])
    )
    monkeypatch.setenv("REPHUB_MONITOR__COMMAND", json.dumps(["sh", "-c", f"(cat; echo) >>{told}"]))


@pytest.fixture
def noisy_stack(_settings: None, own_stack: Stack) -> Stack:
    return own_stack


def test_alerts_reach_who_is_told(
    noisy_stack: Stack, receiver: Receiver, told: Path, short_dir: Path
) -> None:
    stack = noisy_stack
    disk = StorageDaemon(short_dir / "q", [SIZE])
    try:
        stack.protect("v", disk.qmp, "disk0")
        began = time.time_ns() // 1000
        disk.kill()
        stack.wait_until("the gap is told", lambda: receiver.of("raised", "gap_open"), 90)
        disk = StorageDaemon(short_dir / "q", [SIZE])
        stack.wait_until("its end is told", lambda: receiver.of("cleared", "gap_open"), 90)
    finally:
        disk.stop()
    (raised,), (cleared,) = (
        {body["id"]: body for body in receiver.of(kind, "gap_open")}.values()
        for kind in ("raised", "cleared")
    )
    assert (raised["subject_kind"], raised["subject"], raised["severity"]) == ("volume", "v", "critical")
    assert raised["at"] > began
    assert cleared["alert"] == raised["alert"]
    assert all(key == body["id"] for key, body in receiver.got)
    first = receiver.got[0][0]
    assert [key for key, _ in receiver.got].count(first) == 2, "the answer 500 was followed by a second try"
    assert receiver.hung, "it hung all the while"

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in told.read_text().splitlines() if line]

    stack.wait_until("the command was told", lambda: cleared in lines(), 30)
    assert raised in lines()
