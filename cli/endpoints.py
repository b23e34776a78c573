"""`STATE/endpoints.json`: where the parts of a stack are; written by the supervisor, read by all other verbs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rephub.core.config import ENV_PREFIX, load_settings
from rephub.core.documents import parse_object, record_of
from rephub.core.errors import StorageError, UnavailableError

FILE = "endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A stack that was ready once; see `cli/parts.py` for what runs now."""

    bootstrap: str
    """Kafka, `host:port[,host:port…]`."""
    redis: str
    """Redis URL; `unix://…` for the stack's own."""
    web: str
    """Base URL of the hub, without a slash at its end."""
    state_dir: Path
    pids: dict[str, int | None] = field(default_factory=dict)
    """supervisor, broker, redis, hub, agent, diskbox; None for a part that is not ours."""
    urls: dict[str, str] = field(default_factory=dict)
    """Base URL of each daemon's status server: hub, agent, diskbox."""
    config: str = ""
    """The settings file that the daemons run with."""

    def to_document(self) -> dict[str, Any]:
        """What `up` answers."""
        return {"ready": True} | asdict(self) | {"state_dir": str(self.state_dir)}


def read_endpoints(state_dir: Path) -> Endpoints:
    """Where the stack under `state_dir` is.

    Without such a stack, the environment may name the services of a real site (`REPHUB_KAFKA__BOOTSTRAP` at least).

    Raises:
        UnavailableError: no stack was started there, and the environment names none.
        StorageError: the file cannot be read.
    """
    try:
        document = parse_object((state_dir / FILE).read_bytes())
        names = ("bootstrap", "redis", "web", "pids", "urls", "config")
        fields = {name: document[name] for name in names}
        return record_of(Endpoints, fields | {"state_dir": Path(document["state_dir"])})
    except FileNotFoundError:
        if os.environ.get(f"{ENV_PREFIX}KAFKA__BOOTSTRAP"):
            return _from_settings(state_dir)
        raise UnavailableError(
            f"no stack runs under {state_dir}", hint="start one with `rephub up`, or give its --state-dir"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StorageError(
            f"cannot read {state_dir / FILE}: {exc}", hint="`rephub down` and `rephub up` write it anew"
        ) from exc


def _from_settings(state_dir: Path) -> Endpoints:
    settings = load_settings(state_dir=state_dir)
    urls = {
        name: f"http://{section.host}:{section.port}"
        for name, section in (("hub", settings.hub), ("agent", settings.agent), ("diskbox", settings.diskbox))
        if section.port
    }
    return Endpoints(settings.kafka.bootstrap, settings.redis.url, urls.get("hub", ""), state_dir, urls=urls)
