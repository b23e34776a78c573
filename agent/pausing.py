"""Lets go of a volume so that what is written from then on is remembered in QEMU."""

from __future__ import annotations

import asyncio
from typing import Any

from rephub.agent import attach, source
from rephub.agent.grip import DRAIN_SECONDS, JOB_ENDS, Grip, step_back
from rephub.agent.vm import Vm
from rephub.core.errors import UnavailableError

END_SECONDS = 5.0
"""QEMU's event about a job's end comes with its end."""


async def pause(grip: Grip) -> dict[str, Any]:
    """Detach cleanly, and leave bitmaps in QEMU that record since before capture ended.

    Every write is in the journal or in the bitmap, or in both: the bitmap records before the job is looked at; a job
    that is alive then has lost nothing, and its end says whether it lost something later.

    Returns:
        `Volume.bitmap`.

    Raises:
        RephubError: capture is on as before if `worker` is not None; else it is off, and what is in the bitmaps is not
            all that the journal lacks.
    """
    vm = await grip.vm()
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    acked = (await grip.call("position"))["acked_offset"]
    async with grip.changing(vm):
        marks = await _remember(grip, vm, acked)
        vm.on_job(grip.names.job, lambda name, data: _end(ended, name, data))
        try:
            await grip.call("expect_end")
            await attach.detach(vm, grip.names)
            await source.close_source(vm, grip.names, grip.server_path)
            async with asyncio.timeout(END_SECONDS):
                clean = await ended
        except BaseException as exc:
            await grip.give_up()
            if isinstance(exc, TimeoutError):
                raise UnavailableError("QEMU does not say how the mirror ended") from exc
            raise
        finally:
            vm.on_job(grip.names.job, None)
    if not clean:
        await grip.give_up()
        raise UnavailableError("the mirror failed while the volume was paused")
    worker = grip.worker
    assert worker is not None
    try:
        answer = await grip.close(worker, DRAIN_SECONDS)
        async with grip.changing(vm):
            # Records that stay make the way back longer, and nothing else.
            await step_back(lambda: grip.memory.paused(vm, grip.node))
    finally:
        grip.forget()
    return marks | {"epoch": grip.held.epoch, "offset": answer["acked_offset"]}


async def _remember(grip: Grip, vm: Vm, acked_offset: int) -> dict[str, Any]:
    """A record in QEMU that begins now, and the mirror alive after that; all or nothing."""
    try:
        marks = await grip.memory.pause(vm, grip.node, grip.server_path, acked_offset)
        await attach.check_job(vm, grip.names.job)
    except BaseException:
        await step_back(lambda: attach.clean(vm, grip.node, grip.names))
        raise
    return marks


def _end(ended: asyncio.Future[bool], name: str, data: dict[str, Any]) -> None:
    """The job's first word about its end: COMPLETED without an error means that we have every write."""
    if name in JOB_ENDS and not ended.done():
        ended.set_result(name == "BLOCK_JOB_COMPLETED" and not data.get("error"))
