"""Kafka and Redis as containers, where an operator asks for them: `infra/kafka/compose.yaml` by Docker Compose.

Containers are Docker's to restart, not our supervisor's; their data are in named volumes of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rephub.core.errors import UnavailableError
from rephub.infra.ports import kept_ports

FILE = Path(__file__).resolve().parent / "kafka" / "compose.yaml"
START_SECONDS_MAX = 300.0
"""Images may have to be fetched."""
STOP_SECONDS_MAX = 60.0


class ComposeServices:
    """The containers of one stack.

    Args:
        state_dir: of the stack; names the project, so that two stacks do not share containers.
        services: which of `kafka` and `redis`.

    Raises:
        UnavailableError: Docker or its compose plugin is missing.
    """

    def __init__(self, state_dir: Path, services: Sequence[str]) -> None:
        if not shutil.which("docker") or _run(["docker", "compose", "version"], 20.0).returncode:
            raise UnavailableError(
                "docker compose does not work here",
                hint="install Docker's compose plugin, or leave --compose out",
            )
        self.services = list(services)
        self.project = f"rephub-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:10]}"
        self._ports = kept_ports(state_dir / "compose-ports.json", ["kafka", "redis"])

    @property
    def bootstrap(self) -> str:
        """Kafka's address."""
        return f"127.0.0.1:{self._ports['kafka']}"

    @property
    def redis_url(self) -> str:
        """Redis's URL."""
        return f"redis://127.0.0.1:{self._ports['redis']}/0"

    def start(self) -> None:
        """Start them and wait until they are healthy.

        Raises:
            UnavailableError: they do not get there; carries what Docker said.
        """
        self._compose(["up", "--detach", "--wait", *self.services], START_SECONDS_MAX)

    def stop(self) -> None:
        """Stop them; their data stay. Raises UnavailableError."""
        self._compose(["stop", *self.services], STOP_SECONDS_MAX)

    def pids(self) -> dict[str, int | None]:
        """Host pid of each container's process, by the kind of part it is."""
        kinds = {"kafka": "broker", "redis": "redis"}
        found: dict[str, int | None] = {}
        for service in self.services:
            container = self._compose(["ps", "--quiet", service], 20.0).strip()
            told = _run(["docker", "inspect", container], 20.0).stdout
            found[kinds[service]] = int(json.loads(told)[0]["State"]["Pid"]) if container else None
        return found

    def _compose(self, words: Sequence[str], deadline_seconds: float) -> str:
        env = {f"REPHUB_{name.upper()}_PORT": str(port) for name, port in self._ports.items()}
        done = _run(
            ["docker", "compose", "--project-name", self.project, "--file", str(FILE), *words],
            deadline_seconds,
            env,
        )
        if done.returncode:
            said = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise UnavailableError(
                f"docker compose {words[0]} failed: {said}", hint="is the Docker daemon running?"
            )
        return done.stdout


def _run(
    argv: Sequence[str], deadline_seconds: float, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=deadline_seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as exc:
        raise UnavailableError(
            f"{' '.join(argv[:3])} took over {deadline_seconds:.0f} s", hint="is the Docker daemon healthy?"
        ) from exc
