"""A connection to the leader of one partition, found and found again, with a deadline on everything.

There is no background task but the connection's own reader, so `kill()` ends everything at once and nothing
is sent afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiokafka import errors as kafka_errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from rephub.core.errors import NotFoundError, UnavailableError
from rephub.core.kafka.wire import Payload, Wire

ATTEMPT_SECONDS_MAX = 5.0
"""One request on one connection: a broker that is silent for longer is left for another try."""

CONNECT_SECONDS_MAX = 2.0
"""Per broker: in one try a second broker is asked when the first does not even answer its address."""

BACKOFF_SECONDS = 0.05
"""Before the second try; doubles up to `BACKOFF_SECONDS_MAX`."""

BACKOFF_SECONDS_MAX = 0.5
"""A restarting broker takes seconds: asking twice a second finds it soon and costs nothing."""

TOPIC_MISSING_SECONDS = 2.0
"""A topic that a cluster does not know for so long is not there; a broker may not know of a fresh one yet."""

T = TypeVar("T")

log = logging.getLogger(__name__)

# Its errors reach the caller as ours; without a configured log they would be printed on stderr as well.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where Kafka is and how to speak to it."""

    bootstrap: str
    """`host:port[,host:port…]`."""
    security: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of aiokafka's `create_conn`: `security_protocol`, `ssl_context`, `sasl_…`."""


class TryAgainError(Exception):
    """Raised by a response handler: the broker asks for another try.

    Args:
        reason: name of Kafka's error.
        moved: look for the leader first.
    """

    def __init__(self, reason: str, *, moved: bool = False) -> None:
        super().__init__(reason)
        self.moved = moved


class _TopicMissingError(Exception):
    """No broker that was asked knows the topic."""


class KafkaLink:
    """Requests to the leader of a topic's only partition, or to any broker.

    Args:
        address: where Kafka is.
        topic: whose leader is spoken to; None: any broker.
        missing_seconds: a topic that is missing for so long makes calls fail.
    """

    def __init__(
        self, address: KafkaAddress, topic: str | None, missing_seconds: float = TOPIC_MISSING_SECONDS
    ) -> None:
        self.sends = 0
        """Requests handed to a connection so far, each try counted."""
        self.connections = 0
        """Made so far: after another one, the broker may be another one too, or one that has lost something."""
        self.killed = False
        self._address = address
        self._topic = topic
        self._missing_seconds = missing_seconds
        self._conn: Wire | None = None
        self._brokers: set[tuple[str, int]] = set()
        self._connecting = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()

    async def call(
        self,
        request: Any,
        handle: Callable[[Any], T],
        deadline: float,
        attempt_seconds: float = ATTEMPT_SECONDS_MAX,
        last_field: Sequence[Payload] = (),
    ) -> T:
        """Send a request until its handler is content with the response.

        Args:
            request: of `aiokafka.protocol`; the same bytes are sent at each try.
            handle: makes the result from the response; raises TryAgainError where the broker asks for it.
                What else it raises goes to the caller.
            deadline: of everything, by the loop's clock; may be infinite.
            attempt_seconds: patience with one try.
            last_field: see `Wire.send`.

        Raises:
            UnavailableError: no good answer before the deadline, or killed.
            NotFoundError: the cluster does not know the topic.
        """
        now = asyncio.get_running_loop().time
        missing_since: float | None = None
        backoff = BACKOFF_SECONDS
        reason = "no answer"
        away = False
        while not self.killed and (left := deadline - now()) > 0:
            conn = None
            try:
                async with self._wait(min(left, attempt_seconds)):
                    conn = await self._connected()
                    self.sends += 1
                    response = await conn.send(request, last_field)
                if away:
                    log.info("kafka=back topic=%s", self._topic)
                    away = False
                return handle(response)
            except TryAgainError as exc:
                reason = str(exc)
                if exc.moved:
                    self._drop(conn)
            except _TopicMissingError:
                missing_since = missing_since or now()
                if now() - missing_since >= self._missing_seconds:
                    raise NotFoundError(f"Kafka has no topic {self._topic}", topic=self._topic) from None
                reason = f"no topic {self._topic}"
            except (kafka_errors.KafkaError, OSError, TimeoutError) as exc:
                reason = str(exc) or type(exc).__name__
                self._drop(conn)
                if not away and not self.killed:
                    log.info("kafka=away topic=%s reason=%r", self._topic, reason)
                    away = True
            with contextlib.suppress(TimeoutError):
                async with self._wait(max(0.0, min(backoff, deadline - now()))):
                    await asyncio.Event().wait()
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)
        if self.killed:
            raise UnavailableError(f"the connection to Kafka for {self._topic or 'any topic'} was given up")
        raise UnavailableError(
            f"Kafka at {self._address.bootstrap} does not answer in time: {reason}",
            hint="is the broker running, and is the address right?",
            bootstrap=self._address.bootstrap,
        )

    def kill(self) -> None:
        """Drop everything now: calls under way fail, what was not sent yet never is."""
        self.killed = True
        self._drop(self._conn)
        for wait in self._waits:
            with contextlib.suppress(RuntimeError):  # it is ending already
                wait.reschedule(0)

    @contextlib.asynccontextmanager
    async def _wait(self, seconds: float) -> AsyncIterator[None]:
        """A timeout that `kill()` ends early; raises TimeoutError."""
        async with asyncio.timeout(seconds) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    async def _connected(self) -> Wire:
        """The connection, made if there is none. Raises what aiokafka raises, and _TopicMissingError."""
        async with self._connecting:
            if self._conn is None or not self._conn.is_open:
                conn = await self._connect()
                if self.killed:
                    conn.abort()
                    raise kafka_errors.KafkaConnectionError("given up")
                self._conn = conn
                self.connections += 1
        return self._conn

    async def _connect(self) -> Wire:
        hosts = [(host, port) for host, port, _ in collect_hosts(self._address.bootstrap)]
        hosts += random.sample(sorted(self._brokers - set(hosts)), len(self._brokers - set(hosts)))
        failure: Exception = kafka_errors.KafkaConnectionError("no broker")
        for host, port in hosts:
            try:
                return await self._connect_by(host, port)
            except (kafka_errors.KafkaError, OSError) as exc:
                failure = exc
        raise failure

    async def _connect_by(self, host: str, port: int) -> Wire:
        """The connection to the leader, asked for at one broker."""
        conn = await self._open(host, port)
        try:
            metadata = await conn.send(MetadataRequest([self._topic] if self._topic else [], False))  # noqa: FBT003 (a protocol field)
            self._brokers = {(broker[1], broker[2]) for broker in metadata.brokers}
            if self._topic is None:
                return conn
            leader = self._leader(metadata)
        except BaseException:
            conn.abort()
            raise
        if leader == (host, port):
            return conn
        conn.abort()
        return await self._open(*leader)

    def _leader(self, metadata: Any) -> tuple[str, int]:
        error, _, _, partitions = metadata.topics[0]
        if error == kafka_errors.UnknownTopicOrPartitionError.errno:
            raise _TopicMissingError
        if error:
            raise kafka_errors.for_code(error)
        node = partitions[0][2]
        for broker in metadata.brokers:
            if broker[0] == node:
                return broker[1], broker[2]
        raise kafka_errors.LeaderNotAvailableError(f"{self._topic} has no leader now")

    async def _open(self, host: str, port: int) -> Wire:
        # aiokafka's own request timeout of 40 s is never reached: `_wait` is shorter.
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            return Wire(await create_conn(host, port, client_id="rephub", **self._address.security))

    def _drop(self, conn: Wire | None) -> None:
        if conn is not None:
            conn.abort()
            if self._conn is conn:
                self._conn = None


RETRIABLE = frozenset(
    {
        2,  # CORRUPT_MESSAGE: broken on the way
        5,  # LEADER_NOT_AVAILABLE
        6,  # NOT_LEADER_OR_FOLLOWER
        7,  # REQUEST_TIMED_OUT
        9,  # REPLICA_NOT_AVAILABLE
        13,  # NETWORK_EXCEPTION
        14,  # COORDINATOR_LOAD_IN_PROGRESS
        15,  # COORDINATOR_NOT_AVAILABLE
        19,  # NOT_ENOUGH_REPLICAS
        20,  # NOT_ENOUGH_REPLICAS_AFTER_APPEND
        41,  # NOT_CONTROLLER
        56,  # KAFKA_STORAGE_ERROR
        74,  # FENCED_LEADER_EPOCH
        75,  # UNKNOWN_LEADER_EPOCH
        78,  # OFFSET_NOT_AVAILABLE
        89,  # THROTTLING_QUOTA_EXCEEDED
    }
)
"""Kafka's error codes after which the same request may be sent again."""

UNKNOWN_TOPIC = 3

MOVED = frozenset({UNKNOWN_TOPIC, 5, 6, 9, 56, 74, 75})
"""Those after which the leader is looked for first; there a topic that is gone shows."""


def check_retriable(code: int) -> None:
    """Raises TryAgainError for a code after which the same request may be sent again."""
    if code in RETRIABLE or code in MOVED:
        raise TryAgainError(error_name(code), moved=code in MOVED)


def error_name(code: int) -> str:
    """Kafka's own name of an error code, for messages."""
    error = kafka_errors.for_code(code)
    return str(getattr(error, "message", "") or error.__name__)
