"""Providers: who brings a new diskbox when all are full.

`SupervisorProvider` adds its name to the list that the supervisor of `rephub up` follows; `CommandProvider` runs a
program of the site. Both may be asked for the same diskbox twice. What they bring announces itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import Protocol

from rephub.core.config import ENV_PREFIX, Settings
from rephub.core.errors import DeadlineError, RephubError, UnavailableError
from rephub.infra.diskbox_list import add_diskbox
from rephub.infra.files import private_dir
from rephub.infra.process import kill_session, last_lines, spawn

POLL_SECONDS = 0.05

SUPERVISOR_FILE = "supervisor.json"
"""There as long as a supervisor runs under the state directory (`cli/parts.py`)."""


class Provider(Protocol):
    """Brings diskboxes."""

    name: str
    """For messages: "the supervisor"."""
    announce_seconds: float
    """How long what it brought may take to announce itself."""

    async def bring(self, diskbox: str) -> None:
        """Have a diskbox of this name started; returns when it is on its way.

        Raises:
            RephubError: it will not come.
        """

    def hint(self, diskbox: str) -> str:
        """Where to look if it does not announce itself."""


def provider_of(settings: Settings) -> Provider:
    """The provider that the settings name."""
    if settings.provider.command:
        return CommandProvider(settings)
    return SupervisorProvider(settings)


class SupervisorProvider:
    """A new process under the local supervisor."""

    name = "the supervisor"

    def __init__(self, settings: Settings) -> None:
        self._state_dir = settings.state_dir
        self.announce_seconds = settings.provider.announce_seconds

    async def bring(self, diskbox: str) -> None:
        """See `Provider.bring`."""
        if not (self._state_dir / SUPERVISOR_FILE).exists():
            raise UnavailableError(
                f"all diskboxes are full, and no supervisor runs under {self._state_dir} that could start {diskbox}",
                hint="start another diskbox, or set provider.command",
            )
        add_diskbox(self._state_dir, diskbox)

    def hint(self, diskbox: str) -> str:
        """See `Provider.hint`."""
        return f"see {self._state_dir}/logs/{diskbox}.log"


class CommandProvider:
    """A program of the site; exit code 0 says that the diskbox is on its way.

    `{diskbox}` in an argument becomes the name; the environment has REPHUB_DISKBOX__ID, REPHUB_KAFKA__BOOTSTRAP and
    REPHUB_REDIS__URL, so that `rephub diskbox` started from it finds all it needs.
    """

    def __init__(self, settings: Settings) -> None:
        self._argv = settings.provider.command
        self._seconds = settings.provider.command_seconds
        self._directory = settings.hub_dir
        self._environment = {
            f"{ENV_PREFIX}KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
            f"{ENV_PREFIX}REDIS__URL": settings.redis.url,
        }
        self.name = f"provider command {self._argv[0]}"
        self.announce_seconds = settings.provider.announce_seconds

    @property
    def _output(self) -> Path:
        return self._directory / "provider.log"

    def hint(self, diskbox: str) -> str:
        """See `Provider.hint`."""
        return f"see the log of diskbox {diskbox}, and what the command said: {self._output}"

    async def bring(self, diskbox: str) -> None:
        """See `Provider.bring`.

        Raises:
            UnavailableError: the program is not there.
            DeadlineError: it did not end in time; it was killed, with all of its process group.
            RephubError: it failed; carries its exit code and its last line.
        """
        private_dir(self._directory)
        self._output.unlink(missing_ok=True)
        process = spawn(
            [word.replace("{diskbox}", diskbox) for word in self._argv],
            log=self._output,
            env=os.environ | self._environment | {f"{ENV_PREFIX}DISKBOX__ID": diskbox},
            only_errors=True,
            hint="check provider.command",
        )
        status = await self._ended(process)
        if status:
            how = f"exit code {status}" if status > 0 else f"signal {-status}"
            raise RephubError(
                f"{self.name} failed with {how}: {last_lines(self._output, 1) or 'it said nothing'}",
                hint=f"all it said is in {self._output}",
                exit_code=status,
            )

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit status; killed at the limit, or when we end first."""
        deadline = time.monotonic() + self._seconds
        try:
            while (status := process.poll()) is None:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"{self.name} did not end within {self._seconds:g} s and was killed: "
                        f"{last_lines(self._output, 1) or 'it said nothing'}",
                        hint="provider.command_seconds is the limit",
                    )
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if process.returncode is None:
                kill_session(process.pid)
                process.wait()
        return status
