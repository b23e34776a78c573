"""The QEMU guest agent of a VM: where its socket is, and the few commands that freeze and thaw file systems.

The agent in the guest answers one command after the other over a serial port. What a former client left in the port
is skipped by `guest-sync-delimited`, which precedes every conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from typing import Any

from rephub.agent.vm import Vm, find
from rephub.core.documents import parse_json
from rephub.core.errors import ConflictError, NotFoundError, ProtocolError, QemuError, UnavailableError

PORT = "org.qemu.guest_agent.0"
"""The name under which every guest looks for its port."""

ANSWER_BYTES_MAX = 1 << 20
"""Answers to our commands are short; a longer line is not from a guest agent."""

HINT = "give the VM a virtserialport named org.qemu.guest_agent.0 on a unix socket, and run qemu-guest-agent in it"

_DELIMITER = b"\xff"
_sync_ids = itertools.count(int.from_bytes(os.urandom(3), "big") << 16)


async def find_socket(vm: Vm) -> str:
    """The unix socket of a VM's guest agent, free for us.

    Raises:
        NotFoundError: the VM has no such port, or it is no unix socket on which QEMU listens.
        ConflictError: somebody else is connected to it.
        UnavailableError: nobody in the guest has opened the port, or QEMU went away.
    """
    try:
        label = await _chardev_of_port(vm)
        chardev = find(await vm.execute("query-chardev"), "label", label) or {}
    except QemuError:
        # A storage daemon has no devices at all.
        chardev = {}
    filename = str(chardev.get("filename", ""))
    free = filename.startswith("disconnected:")
    kind, _, path = filename.removeprefix("disconnected:").partition(":")
    path = path.rpartition(",server")[0]
    if kind != "unix" or not path.startswith("/"):
        raise NotFoundError(f"the VM at {vm.path} has no guest agent socket", hint=HINT)
    if not free:
        raise ConflictError(
            f"another client holds the guest agent socket {path}",
            hint="give RepHub's VM a guest agent socket that no other tool uses",
        )
    if not chardev.get("frontend-open"):
        raise UnavailableError(f"no guest agent runs in the VM at {vm.path}", hint=HINT)
    return path


async def _chardev_of_port(vm: Vm) -> str:
    for parent in ("/machine/peripheral", "/machine/peripheral-anon"):
        for item in await vm.execute("qom-list", {"path": parent}):
            if item["type"] != "child<virtserialport>":
                continue
            path = f"{parent}/{item['name']}"
            if await vm.execute("qom-get", {"path": path, "property": "name"}) == PORT:
                return str(await vm.execute("qom-get", {"path": path, "property": "chardev"}))
    return ""


class GuestAgent:
    """One conversation. The caller bounds every wait, by `asyncio.timeout`.

    Args:
        path: unix socket on which QEMU listens for us.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.may_be_frozen = False
        """A freeze was sent and no thaw was confirmed."""
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def sync(self) -> None:
        """Connect if not connected, and skip whatever is still on its way.

        Raises:
            NotFoundError: the socket is gone, and so is the VM.
            UnavailableError: the connection ended.
        """
        if self._streams is None:
            try:
                self._streams = await asyncio.open_unix_connection(self.path, limit=ANSWER_BYTES_MAX)
            except (FileNotFoundError, ConnectionRefusedError):
                raise NotFoundError(f"nobody listens on guest agent socket {self.path}", hint=HINT) from None
            except OSError as exc:
                raise UnavailableError(
                    f"guest agent socket {self.path} cannot be reached: {exc.strerror or exc}",
                    hint="the agent's user needs access to it",
                ) from exc
        number = next(_sync_ids)
        answer = None
        self._send("guest-sync-delimited", {"id": number}, before=_DELIMITER)
        while answer != number:
            await self._read(_DELIMITER)
            with contextlib.suppress(ProtocolError, UnavailableError):
                # The answer to an older sync, or an error about what a former client left: the next may be ours.
                answer = self._parse("guest-sync-delimited", await self._read(b"\n"))

    async def freeze(self) -> int:
        """Freeze all file systems; returns how many. The guest flushes first: its writes must be answered.

        Raises:
            UnavailableError: it refused, or the connection ended.
        """
        self.may_be_frozen = True
        count = await self._call("guest-fsfreeze-freeze")
        return count if isinstance(count, int) else 0

    async def is_frozen(self) -> bool:
        """Whether the guest is still frozen: some thaw by themselves after a while.

        Raises:
            UnavailableError: it refused, or the connection ended.
        """
        return bool(await self._call("guest-fsfreeze-status") == "frozen")

    async def thaw(self) -> None:
        """Thaw all file systems, whatever happened before. Not an error if none is frozen.

        Raises:
            NotFoundError: the VM is gone.
            UnavailableError: it refused, or the connection ended.
        """
        await self.sync()
        await self._call("guest-fsfreeze-thaw")
        self.may_be_frozen = False

    def close(self) -> None:
        """Leave the socket to others."""
        if self._streams:
            self._streams[1].close()
            self._streams = None

    async def _call(self, command: str) -> Any:
        self._send(command)
        return self._parse(command, await self._read(b"\n"))

    def _send(self, command: str, arguments: dict[str, Any] | None = None, *, before: bytes = b"") -> None:
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._stream()[1].write(before + json.dumps(request).encode() + b"\n")

    async def _read(self, end: bytes) -> bytes:
        try:
            return await self._stream()[0].readuntil(end)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            raise UnavailableError(f"guest agent socket {self.path} was closed") from None
        except asyncio.LimitOverrunError:
            self.close()
            raise ProtocolError(f"who answers on {self.path} is no guest agent") from None

    def _stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            raise UnavailableError(f"guest agent socket {self.path} was closed")
        return self._streams

    def _parse(self, command: str, line: bytes) -> Any:
        try:
            answer = parse_json(line)
            if "return" in answer:
                return answer["return"]
            description = str(answer["error"]["desc"])
        except (ValueError, TypeError, KeyError):
            raise ProtocolError(f"the guest agent answers {command} with {line[:80]!r}") from None
        raise UnavailableError(f"the guest agent refused {command}: {description}")
