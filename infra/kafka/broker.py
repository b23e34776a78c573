"""A single-node KRaft broker of our own: for `rephub up` and for tests.

Makes its configuration and formats its storage once (idempotent), keeps its ports over restarts, and is started as
the Java process itself. Whoever starts it owns it: `infra/process.py` ends it with its parent.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rephub.core.errors import UnavailableError
from rephub.infra.files import private_dir, storage_error, write_atomic
from rephub.infra.kafka import reach
from rephub.infra.ports import is_free, kept_ports
from rephub.infra.process import last_lines, spawn, stop

LIBS = Path(__file__).resolve().parent / "libs"
"""Where `make setup` puts Kafka's jars."""

HEAP = ("-Xms512m", "-Xmx512m", "-Xmn256m")
JVM = ("-server", "-XX:+UseParallelGC", "-Djava.awt.headless=true")
"""Not Kafka's own choice (kafka-run-class.sh), G1: to it, batches of 1 MiB are humongous in a heap of this size, and it marks all
the time (docs/data-path.md). `compose.yaml` has the same."""
CLEANER_BYTES = 16 << 20
"""Room for 600,000 keys. Kafka's own 128 MiB fill the old generation so far that every collection becomes a full one."""

FORMAT_SECONDS_MAX = 60.0
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
MESSAGE_BYTES_MAX = 4 << 20
NODE_ID = 1

_LOG4J = """\
# Written by RepHub at each start.
status = warn
appenders = file
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {directory}/server.log
appender.file.filePattern = {directory}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 16MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 4
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
logger.request.name = kafka.request.logger
logger.request.level = warn
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the broker runs on.

    Args:
        java: the program.
        libs: directory of Kafka's jars.
    """

    java: str
    libs: Path

    @property
    def classpath(self) -> str:
        """All jars."""
        return f"{self.libs}/*"


def find_runtime(kafka_home: str | None = None) -> Runtime:
    """Java and the jars: those of KAFKA_HOME if it is set, else those that `make setup` fetched.

    Raises:
        UnavailableError: one of them is missing; says which.
    """
    java_home = os.environ.get("JAVA_HOME", "")
    java = shutil.which(f"{java_home}/bin/java") if java_home else None
    java = java or shutil.which("java")
    if not java:
        raise UnavailableError(
            "java is not installed; the broker needs it", hint="run `make setup`, or give --bootstrap"
        )
    home = kafka_home if kafka_home is not None else os.environ.get("KAFKA_HOME", "")
    libs = Path(home) / "libs" if home else LIBS
    if not any(libs.glob("kafka-server-common*.jar")):
        place = f"KAFKA_HOME ({libs})" if home else str(libs)
        raise UnavailableError(
            f"Kafka's jars are not in {place}", hint="run `make setup`, or give --bootstrap"
        )
    return Runtime(java, libs)


class Broker:
    """One broker with all its files in one directory.

    Args:
        directory: holds ports, configuration, logs and data.
        runtime: Java and jars; None finds them.
    """

    def __init__(self, directory: Path, runtime: Runtime | None = None) -> None:
        self.directory = directory
        self._runtime = runtime
        self._ports: dict[str, int] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`, known after `choose_ports` or `prepare`."""
        return f"127.0.0.1:{self._ports['broker']}"

    @property
    def output(self) -> Path:
        """What the process says before and beside its own log."""
        return self.directory / "logs" / "stdout.log"

    def choose_ports(self) -> None:
        """Make the directory and fix the ports.

        Raises:
            UnavailableError: Java or jars are missing.
            StorageError: the directory cannot be written.
        """
        self._runtime = self._runtime or find_runtime()
        private_dir(self.directory)
        self._ports = self._ports or kept_ports(self.directory / "ports.json", ["broker", "controller"])

    def prepare(self) -> None:
        """Choose ports, write the configuration, format the storage if that was not done. Blocks up to ~3 s.

        Raises:
            UnavailableError: Java or jars are missing, or the storage cannot be formatted.
            StorageError: the directory cannot be written.
        """
        self.choose_ports()
        logs = private_dir(self.directory / "logs")
        private_dir(self.directory / "data")
        write_atomic(self.directory / "log4j2.properties", _LOG4J.format(directory=logs))
        write_atomic(self.directory / "server.properties", self._properties())
        if not (self.directory / "data" / "meta.properties").exists():
            self._format()

    def argv(self) -> list[str]:
        """The command line; `prepare` comes first."""
        return [*self._java(*HEAP, *JVM), "kafka.Kafka", str(self.directory / "server.properties")]

    def start(self) -> None:
        """Prepare, start and wait until it answers.

        Raises:
            UnavailableError: it ended or did not answer in READY_SECONDS_MAX; carries the end of its log.
            StorageError: the directory cannot be written.
        """
        self.prepare()
        self.process = spawn(self.argv(), log=self.output, cwd=self.directory)
        try:
            self._wait_ready(self.process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it cleanly; kill it after STOP_SECONDS_MAX."""
        process, self.process = self.process, None
        if process:
            stop(process, STOP_SECONDS_MAX)

    def kill(self) -> None:
        """End it like a crash."""
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()

    def why(self) -> str:
        """The end of what it said, as one line."""
        return last_lines(self.output) or last_lines(self.directory / "logs" / "server.log")

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise UnavailableError(
                    f"the broker ended with status {process.returncode}: {self.why()}",
                    hint=f"see {self.output}",
                )
            if not is_free(self._ports["broker"]) and reach.answers(self.bootstrap):
                return
            time.sleep(0.05)
        raise UnavailableError(
            f"the broker did not answer within {READY_SECONDS_MAX:.0f} s: {self.why()}",
            hint=f"see {self.output}",
        )

    def _java(self, *options: str) -> list[str]:
        runtime = self._runtime or find_runtime()
        log4j = f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}"
        return [runtime.java, *options, log4j, "-cp", runtime.classpath]

    def _format(self) -> None:
        """`kafka-storage.sh format` (KIP-631); needs no broker."""
        argv = [*self._java("-Xmx128m"), "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        argv += ["-t", _new_cluster_id(), "-c", str(self.directory / "server.properties")]
        try:
            done = subprocess.run(
                argv, capture_output=True, timeout=FORMAT_SECONDS_MAX, check=False, text=True
            )
        except subprocess.TimeoutExpired as exc:
            raise UnavailableError(
                f"formatting the broker's storage took over {FORMAT_SECONDS_MAX:.0f} s",
                hint=f"see {self.directory}",
            ) from exc
        except OSError as exc:
            raise storage_error(exc, self.directory, "cannot format the broker's storage in") from exc
        if done.returncode:
            said = " | ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
            raise UnavailableError(
                f"the broker's storage cannot be formatted: {said}",
                hint=f"see {self.directory / 'server.properties'}",
            )

    def _properties(self) -> str:
        broker, controller = self._ports["broker"], self._ports["controller"]
        values = {
            "process.roles": "broker,controller",
            "node.id": NODE_ID,
            "controller.quorum.voters": f"{NODE_ID}@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self.directory / "data",
            "num.partitions": 1,
            "auto.create.topics.enable": "false",
            "delete.topic.enable": "true",
            # A journal is kept until the projector frees it: retention is not time.
            "log.retention.ms": -1,
            "log.retention.bytes": -1,
            "message.max.bytes": MESSAGE_BYTES_MAX,
            "replica.fetch.max.bytes": MESSAGE_BYTES_MAX * 2,
            "socket.request.max.bytes": 100 << 20,
            "socket.send.buffer.bytes": 1 << 20,
            "socket.receive.buffer.bytes": 1 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "background.threads": 2,
            "log.cleaner.dedupe.buffer.size": CLEANER_BYTES,
            "num.recovery.threads.per.data.dir": 2,
            # A single member need not wait for others to join its group.
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 2,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 2,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Segments are freed soon after DeleteRecords moved the log start past them.
            "log.retention.check.interval.ms": 10_000,
            "log.segment.delete.delay.ms": 1_000,
            "controlled.shutdown.enable": "true",
        }
        return "# Written by RepHub at each start.\n" + "".join(
            f"{key}={value}\n" for key, value in values.items()
        )


def _new_cluster_id() -> str:
    """22 characters as Kafka makes them; never with `-` first, which its tools would take for an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
