"""A daemon that cannot end by itself is ended, and says what held it."""

from __future__ import annotations

import subprocess
import sys
import time

STUBBORN = """
import asyncio, logging, sys
from rephub.core.stopping import end_within

logging.basicConfig(format="%(message)s %(tasks)s")

async def stubborn():
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

async def main(seconds):
    asyncio.create_task(stubborn(), name="held") if seconds < 1 else None
    await asyncio.sleep(0)
    end_within(seconds)

asyncio.run(main(float(sys.argv[1])))
"""


def test_what_swallows_its_cancellation_does_not_hold_the_process() -> None:
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", STUBBORN, "0.2"], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "held: " in ended.stderr, ended.stderr
    assert time.monotonic() - began < 30


def test_one_that_ends_is_left_alone() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STUBBORN, "30"], check=False, capture_output=True, timeout=25
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
