"""The monitor connection against a monitor that only greets."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

from rephub.agent.vm import Vm


async def test_nothing_pends_after_close(tmp_path: Path) -> None:
    """The listener's task is ended with the connection, not destroyed while pending."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        writer.write(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n")
        while line := await reader.read(65536):
            request = json.loads(line)
            answer = {"return": {}} | ({"id": request["id"]} if "id" in request else {})
            writer.write(json.dumps(answer).encode() + b"\r\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "qmp")
    vm = Vm(str(tmp_path / "qmp"), lambda _vm: None)
    await vm.connect()
    await vm.execute("stop")
    before = asyncio.all_tasks()
    await vm.close()
    del vm
    gc.collect()
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if "EventListener" in repr(task)]
    assert not left, before
    assert not complaints
    server.close()
    await server.wait_closed()
