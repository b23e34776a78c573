"""The compose file keeps its promises: loopback only, named volumes, health checks, Redis that loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from rephub.infra.compose import FILE
from rephub.infra.kafka.broker import CLEANER_BYTES, HEAP, JVM

DOCUMENT = yaml.safe_load(FILE.read_text())
SERVICES = DOCUMENT["services"]


def test_every_port_is_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) >= 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_data_are_in_named_volumes() -> None:
    for name in ("kafka", "redis", "hub", "agent", "diskbox", "prometheus", "grafana"):
        volume = SERVICES[name]["volumes"][0].partition(":")[0]
        assert volume in DOCUMENT["volumes"], name


def test_all_that_runs_on_has_a_health_check_and_comes_back() -> None:
    for name in ("kafka", "redis", "hub", "agent", "diskbox", "prometheus", "grafana"):
        assert SERVICES[name]["healthcheck"]["test"], name
        assert SERVICES[name]["restart"] == "unless-stopped", name


def test_images_are_those_of_the_project() -> None:
    assert SERVICES["kafka"]["image"] == "apache/kafka:4.3.1"
    assert SERVICES["redis"]["image"].startswith("redis:7")
    pom = FILE.with_name("pom.xml").read_text()
    assert "<kafka.version>4.3.1</kafka.version>" in pom


def test_redis_and_kafka_keep_what_they_answered() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--appendfsync always" in command
    environment = SERVICES["kafka"]["environment"]
    assert environment["KAFKA_HEAP_OPTS"].split() == list(HEAP)
    assert environment["KAFKA_JVM_PERFORMANCE_OPTS"].split() == list(JVM)
    assert environment["KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE"] == str(CLEANER_BYTES)
    assert environment["KAFKA_LOG_RETENTION_MS"] == "-1"
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_daemons_are_behind_a_profile_and_built_from_our_dockerfile() -> None:
    for name in ("hub", "agent", "diskbox"):
        assert SERVICES[name]["profiles"] == ["daemons"]
        build = SERVICES[name]["build"]
        assert (FILE.parent / build["context"] / build["dockerfile"]).resolve() == FILE.with_name(
            "Dockerfile"
        ).resolve()


def test_what_watches_is_behind_a_profile_and_uses_our_files() -> None:
    for name in ("prometheus", "grafana"):
        service = SERVICES[name]
        assert service["profiles"] == ["monitoring"]
        assert service["image"].rpartition(":")[2] not in ("", "latest"), (
            "a version, so that it stays what it is"
        )
        for volume in service["volumes"][1:]:
            source, target, mode = volume.split(":")
            assert (FILE.parent / source).exists(), source
            assert mode == "ro", target
    targets = json.loads((FILE.parent / "../prometheus/compose-targets.json").read_text())
    for target in targets:
        (address,) = target["targets"]
        name, _, port = address.partition(":")
        assert SERVICES[name]["environment"][f"REPHUB_{name.upper()}__PORT"] == port
        assert target["labels"]["kind"] == name
    source = yaml.safe_load((FILE.parent / "../grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_docker_itself_accepts_it() -> None:
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose does not work here; the tests above read the file themselves")
    done = subprocess.run(
        ["docker", "compose", "--file", str(FILE), "--profile", "*", "config", "--quiet"],
        capture_output=True,
        check=False,
        text=True,
        cwd=Path("/"),
    )
    assert done.returncode == 0, done.stderr
