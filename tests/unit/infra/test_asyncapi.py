"""docs/asyncapi.yaml is what the code makes, and what AsyncAPI says a document is.

tests/data/asyncapi-3.0.0.json.gz is `schemas/3.0.0.json` of `npm pack @asyncapi/specs@6.11.1` (Apache-2.0), unchanged.
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import fastavro
import jsonschema
import pytest
import yaml

from rephub.core.codec.registry import REGISTRY, fingerprint

ROOT = Path(__file__).resolve().parents[3]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("asyncapi_script", ROOT / "scripts/asyncapi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(yaml.load((ROOT / "docs/asyncapi.yaml").read_text(), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def validator() -> Any:
    official = json.loads(gzip.decompress((ROOT / "tests/data/asyncapi-3.0.0.json.gz").read_bytes()))
    return jsonschema.Draft7Validator(official)


def test_it_is_what_the_code_makes() -> None:
    assert script().render() == (ROOT / "docs/asyncapi.yaml").read_text(), "make asyncapi"


def test_the_official_schema_takes_it(document: dict[str, Any], validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("damage", ["no address", "odd action", "bad binding"])
def test_the_official_schema_would_refuse_a_bad_one(
    document: dict[str, Any], validator: Any, damage: str
) -> None:
    bad = copy.deepcopy(document)
    match damage:
        case "no address":
            bad["channels"]["events"]["address"] = 3
        case "odd action":
            bad["operations"]["receiveEvents"]["action"] = "peek"
        case _:
            bad["channels"]["events"]["bindings"]["kafka"]["partitions"] = "one"
    assert list(validator.iter_errors(bad))


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [one for item in value.values() for one in references(item)]
        return [one for item in value for one in references(item)] if isinstance(value, list) else []

    found = references(document)
    assert len(found) > 100
    for reference in found:
        at: Any = document
        for name in reference.removeprefix("#/").split("/"):
            at = at[name]


def test_payloads_are_avro_and_have_their_fingerprints(document: dict[str, Any]) -> None:
    known = {entry.prefix[2:].hex() for kind in ("commands", "events", "stats", "alerts", "journal") for entry in REGISTRY.entries(kind)}  # fmt: skip
    listed = set()
    for message in document["components"]["messages"].values():
        if "x-avro-fingerprint" not in message:
            continue
        schema = message["payload"]["schema"]
        fastavro.parse_schema(copy.deepcopy(schema))
        assert fingerprint(schema).hex() == message["x-avro-fingerprint"]
        listed |= {message["x-avro-fingerprint"], *message.get("x-avro-earlier-fingerprints", ())}
    assert listed == known
