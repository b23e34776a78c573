"""Runs the monitor in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

from functools import partial

from rephub.consumers import faust_main
from rephub.consumers.monitor.app import build
from rephub.core.config import Settings


def run(settings: Settings) -> int:
    """Run the monitor.

    Returns:
        0 after a signal.

    Raises:
        UnavailableError: Kafka does not answer.
    """
    return faust_main.run(partial(build, settings))
