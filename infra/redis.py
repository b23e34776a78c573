"""A Redis of our own that loses nothing it answered: append-only file, fsync at each write.

Listens on a unix socket only (mode 0600): nobody but this user reaches it.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from rephub.core.errors import UnavailableError, UsageError
from rephub.infra.files import private_dir, write_atomic
from rephub.infra.process import last_lines, spawn, stop

READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
ASK_SECONDS_MAX = 5.0
MEMORY_BYTES_MAX = 1 << 30
"""Marks of 27 volumes of 64 TiB each are 216 MiB."""


class RedisServer:
    """One Redis with all its files in one directory.

    Args:
        directory: configuration, log and data.
        socket_path: where it listens.
    """

    def __init__(self, directory: Path, socket_path: Path) -> None:
        self.directory = directory
        self.socket_path = socket_path
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`unix:///path`, as redis-py takes it."""
        return f"unix://{self.socket_path}"

    @property
    def output(self) -> Path:
        """Its log."""
        return self.directory / "redis.log"

    def prepare(self) -> None:
        """Write the configuration.

        Raises:
            UnavailableError: no redis-server is installed.
            StorageError: the directory cannot be written.
        """
        check_installed()
        private_dir(self.directory)
        private_dir(self.socket_path.parent)
        self.socket_path.unlink(missing_ok=True)
        values = {
            "port": "0",
            "unixsocket": _quoted(self.socket_path),
            "unixsocketperm": "600",
            "dir": _quoted(self.directory),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "save": '""',
            "maxmemory": str(MEMORY_BYTES_MAX),
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        text = "# Written by RepHub at each start.\n" + "".join(
            f"{key} {value}\n" for key, value in values.items()
        )
        write_atomic(self.directory / "redis.conf", text)

    def argv(self) -> list[str]:
        """The command line; `prepare` comes first."""
        return ["redis-server", str(self.directory / "redis.conf")]

    def start(self) -> None:
        """Prepare, start and wait until it answers.

        Raises:
            UnavailableError: it ended or did not answer in READY_SECONDS_MAX; carries the end of its log.
            StorageError: the directory cannot be written.
        """
        self.prepare()
        self.process = spawn(self.argv(), log=self.output, cwd=self.directory)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not answers(self.socket_path):
            status = self.process.poll()
            if status is not None or time.monotonic() > deadline:
                self.stop()
                raise UnavailableError(
                    f"Redis did not start (status {status}): {last_lines(self.output)}",
                    hint=f"see {self.output}",
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """End it cleanly; kill it after STOP_SECONDS_MAX."""
        process, self.process = self.process, None
        if process:
            stop(process, STOP_SECONDS_MAX)


def check_installed() -> None:
    """Raise UnavailableError if there is no redis-server."""
    if not shutil.which("redis-server"):
        raise UnavailableError("redis-server is not installed", hint="run `make setup`, or give --redis")


def answers(socket_path: Path) -> bool:
    """Whether a Redis answers PING there (not while it still loads its data)."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(str(socket_path))
            sock.sendall(b"PING\r\n")
            return sock.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def ask_redis(url: str) -> dict[str, str]:
    """Whether a Redis answers there, and its `appendonly` and `appendfsync`; both empty if it does not tell.

    Raises:
        UnavailableError: nobody answers like Redis in ASK_SECONDS_MAX.
    """
    try:
        client = Redis.from_url(
            url, socket_timeout=ASK_SECONDS_MAX, socket_connect_timeout=ASK_SECONDS_MAX, decode_responses=True
        )
    except ValueError as exc:
        raise UsageError(f"bad Redis URL: {exc}", hint="redis://host:port/db or unix:///path") from exc
    try:
        client.ping()
        return _persistence(client)
    except (RedisError, OSError) as exc:
        raise UnavailableError(
            f"no Redis at {without_password(url)}: {exc}", hint="check --redis or redis.url, and that it runs"
        ) from exc
    finally:
        client.close()


def without_password(url: str) -> str:
    """A URL that may be shown."""
    return re.sub(r"(://[^/@]*:)[^/@]*@", r"\1***@", url)


def _persistence(client: Redis) -> dict[str, str]:
    try:
        answer = client.config_get("appendonly", "appendfsync")
    except ResponseError:  # a managed Redis may not allow CONFIG
        return {"appendonly": "", "appendfsync": ""}
    return {str(key): str(value) for key, value in dict(answer).items()}


def _quoted(path: Path) -> str:
    """As redis.conf wants a value with blanks."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
