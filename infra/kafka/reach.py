"""Is there a Kafka, and what is it? Bounded questions to a bootstrap address, in a loop or without one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from rephub.core.errors import UnavailableError, UsageError

REACH_SECONDS_MAX = 10.0
"""Longest wait for a given bootstrap address, all its hosts together."""

_TRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What answered."""

    cluster_id: str
    brokers: int


def parse_bootstrap(bootstrap: str) -> list[tuple[str, int]]:
    """`host:port[,host:port…]` as pairs; `[::1]:9092` for IPv6.

    Raises:
        UsageError: it is something else.
    """
    pairs = []
    for part in bootstrap.split(","):
        host, colon, port = part.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(
                f"bad Kafka address {part.strip()!r}", hint="give host:port, several with commas between"
            )
        pairs.append((host, int(port)))
    return pairs


async def ask(bootstrap: str, deadline_seconds: float = REACH_SECONDS_MAX) -> Cluster:
    """Number of brokers and cluster id.

    Raises:
        UnavailableError: nobody answers like Kafka in time.
        UsageError: the address makes no sense.
    """
    parse_bootstrap(bootstrap)
    reason = f"no answer within {deadline_seconds:.0f} s"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_seconds):
            while True:
                try:
                    return await _ask_once(bootstrap)
                except (KafkaError, OSError) as exc:
                    reason = str(exc) or type(exc).__name__
                if not await any_listens(bootstrap):
                    reason = "nobody listens there"
                await asyncio.sleep(0.3)
    raise UnavailableError(
        f"no Kafka at {bootstrap}: {reason}",
        hint="check --bootstrap or kafka.bootstrap, and that the broker runs",
        bootstrap=bootstrap,
    )


async def any_listens(bootstrap: str) -> bool:
    """Whether one of the hosts takes a TCP connection."""
    for host, port in parse_bootstrap(bootstrap):
        try:
            async with asyncio.timeout(2.0):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:
            continue
        writer.close()
        return True
    return False


def answers(bootstrap: str) -> bool:
    """Whether a broker answers an ApiVersions request (key 18, version 0) there, once, without an event loop."""
    host, port = parse_bootstrap(bootstrap)[0]
    request = b"\x00\x12\x00\x00\x00\x00\x00\x01\x00\x06rephub"
    try:
        with socket.create_connection((host, port), timeout=_TRY_SECONDS) as sock:
            sock.sendall(len(request).to_bytes(4, "big") + request)
            answer = b""
            while len(answer) < 10:
                piece = sock.recv(4096)
                if not piece:
                    return False
                answer += piece
    except OSError:
        return False
    correlation, error = int.from_bytes(answer[4:8], "big"), int.from_bytes(answer[8:10], "big")
    return correlation == 1 and error == 0


async def _ask_once(bootstrap: str) -> Cluster:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap, request_timeout_ms=int(_TRY_SECONDS * 1000), client_id="rephub-ask"
    )
    try:
        await admin.start()
        described = await admin.describe_cluster()
    finally:
        await admin.close()
    return Cluster(str(described["cluster_id"]), len(described["brokers"]))
