"""Writes docs/asyncapi.yaml: all topics and what is on them, as AsyncAPI 3.0.

Made from the `.avsc` files, the history of schemas and `infra/kafka/topics.py`. `make check` runs it with `--check`, so
that they never part; an integration test compares it with what a running stack makes and writes.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from rephub.core.codec.registry import REGISTRY, Entry
from rephub.core.names import (
    ALERTS_TOPIC,
    COMMANDS_TOPIC,
    EVENTS_TOPIC,
    JOURNAL_PREFIX,
    NAME,
    STATS_TOPIC,
)
from rephub.infra.kafka.topics import (
    CONTROL_TOPICS,
    MIN_IN_SYNC,
    MONITOR_TOPICS,
    REPLICAS,
    TopicSpec,
    journal_topic_spec,
)

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs/asyncapi.yaml"

SCHEMA_FORMAT = "application/vnd.apache.avro;version=1.9.0"
CONTENT_TYPE = "avro/binary"

KEEPING = {
    "retention.ms": int, "retention.bytes": int, "max.message.bytes": int, "segment.bytes": int,
    "message.timestamp.type": str,
}  # fmt: skip

JOURNAL_TEXT = """\
The journal of one volume: its writes in the order in which they happened, and what marks points between them. Records
that the diskbox has applied are deleted from the beginning, so it need not begin with offset 0. Nobody but the agent of
the volume and a diskbox that fences it may write here.
"""

CHANNELS = {
    # kind of schemas: (address, what it is, who writes it)
    "commands": (COMMANDS_TOPIC, "Wishes of operators. The hub reads them and answers with events.", "rephub"),
    "events": (EVENTS_TOPIC, "Facts. The state of everything is their fold, in the order of their offsets.", "hub, agents, diskboxes"),
    "stats": (STATS_TOPIC, "Measurements: one of each volume, view and daemon a second. Some may be missing.", "hub, agents, diskboxes"),
    "alerts": (ALERTS_TOPIC, "What the monitor raises and clears.", "monitor"),
    "journal": (
        f"{JOURNAL_PREFIX}{{volume}}",
        JOURNAL_TEXT,
        "agents; diskboxes fence",
    ),
}  # fmt: skip

DESCRIPTION = """\
Continuous data protection for QEMU/KVM disks, with Kafka as the journal.

Records have no key, and a value in Avro single-object encoding: the bytes C3 01, the 8 bytes of the fingerprint of
the schema that it was written with (CRC-64-AVRO, little-endian; `x-avro-fingerprint`), the datum. There is one schema
for each type, and the fingerprint chooses it. Earlier schemas of a type, which may still be on a topic, are in
`schemas/history`; their fingerprints are in `x-avro-earlier-fingerprints`. Every topic has one partition.
"""


TABLE_CHANGE = "TableChange"


def document() -> dict[str, Any]:
    """The whole document."""
    specs = {spec.name: spec for spec in CONTROL_TOPICS}
    specs[CHANNELS["journal"][0]] = journal_topic_spec("{volume}")
    if specs.keys() != {address for address, *_ in CHANNELS.values()}:
        raise ValueError("CHANNELS and infra/kafka/topics.py do not have the same topics")
    tables = {f"monitorTable{number}": spec for number, spec in enumerate(MONITOR_TOPICS, 1)}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "RepHub",
            "version": _version(),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {kind: _channel(kind, specs[CHANNELS[kind][0]]) for kind in CHANNELS}
        | {name: _table_channel(spec) for name, spec in tables.items()},
        "operations": {
            f"receive{kind.capitalize()}": {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{kind}"},
                "summary": f"Read what {writers} wrote; a position is an offset, there is no consumer group.",
            }
            for kind, (_, _, writers) in CHANNELS.items()
        },
        "components": {
            "messages": {_message_id(entry): _message(entry) for kind in CHANNELS for entry in _today(kind)}
            | {
                TABLE_CHANGE: {
                    "name": TABLE_CHANGE,
                    "summary": "A row of a table of the monitor, as Faust stores it, or its end; may change with any version.",
                    "contentType": "application/json",
                }
            }
        },
    }


def _today(kind: str) -> list[Entry]:
    found = [entry for entry in REGISTRY.entries(kind) if entry.reader is None]
    return sorted(found, key=lambda entry: entry.name)


def _version() -> str:
    """Of the project, without asking for an installed one."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _channel(kind: str, spec: TopicSpec) -> dict[str, Any]:
    address, text, _ = CHANNELS[kind]
    channel: dict[str, Any] = {"address": address, "title": kind.capitalize(), "description": text}
    if "{volume}" in address:
        pattern = NAME.pattern.removesuffix(r"\Z")
        channel["parameters"] = {"volume": {"description": f"Name of the volume: {pattern}"}}
    channel["messages"] = {
        entry.name: {"$ref": f"#/components/messages/{_message_id(entry)}"} for entry in _today(kind)
    }
    return channel | _kept_how(spec)


def _table_channel(spec: TopicSpec) -> dict[str, Any]:
    text = "The monitor's own memory, in Faust's format: nobody else should rely on it."
    messages = {TABLE_CHANGE: {"$ref": f"#/components/messages/{TABLE_CHANGE}"}}
    return {"address": spec.name, "description": text, "messages": messages} | _kept_how(spec)


def _kept_how(spec: TopicSpec) -> dict[str, Any]:
    config: dict[str, Any] = {"cleanup.policy": [spec.config["cleanup.policy"]]}
    config |= {key: KEEPING[key](value) for key, value in spec.config.items() if key != "cleanup.policy"}
    kafka = {"partitions": spec.partitions, "replicas": REPLICAS, "topicConfiguration": config}
    return {
        "bindings": {"kafka": kafka | {"bindingVersion": "0.5.0"}},
        "x-replicas": f"{REPLICAS}, min.insync.replicas={MIN_IN_SYNC}, where there are {REPLICAS} brokers; else 1",
    }


def _message_id(entry: Entry) -> str:
    return f"{entry.kind}.{entry.name}"


def _message(entry: Entry) -> dict[str, Any]:
    schema = json.loads((ROOT / "schemas" / entry.kind / f"{entry.name}.avsc").read_text())
    earlier = [
        one.prefix[2:].hex()
        for one in REGISTRY.entries(entry.kind)
        if one.name == entry.name and one.reader is not None
    ]
    message = {
        "name": entry.name,
        "title": entry.name,
        "summary": schema.get("doc", entry.name),
        "contentType": CONTENT_TYPE,
        "payload": {"schemaFormat": SCHEMA_FORMAT, "schema": schema},
        "x-avro-fingerprint": entry.prefix[2:].hex(),
    }
    return message | ({"x-avro-earlier-fingerprints": sorted(earlier)} if earlier else {})


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def render() -> str:
    """The text of docs/asyncapi.yaml."""
    head = "# Made by scripts/asyncapi.py from schemas/ and infra/kafka/topics.py: do not edit.\n"
    text = yaml.dump(document(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"{head}{text}"


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` say whether it is out of date (exit code 1)."""
    text = render()
    if PATH.exists() and PATH.read_text() == text:
        return 0
    if "--check" in arguments:
        print(f"out of date, run `make asyncapi`: {PATH.relative_to(ROOT)}", file=sys.stderr)
        return 1
    PATH.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
