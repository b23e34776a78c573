"""Writes the typed records of `schemas/<kind>/__init__.py` from the `.avsc` files beside them.

The `.avsc` files are the source; the dataclasses are what the rest of the code handles. `make check`
runs this with `--check`, so that the two never part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KINDS = ("journal", "commands", "events", "stats", "alerts")
ROOM = Path(__file__).resolve().parent
PRIMITIVES = {
    "long": "int",
    "int": "int",
    "double": "float",
    "string": "str",
    "boolean": "bool",
    "bytes": "bytes",
}


class _Kind:
    """The classes of one kind, in an order in which each stands after those it uses."""

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}

    def type_of(self, avro: Any) -> str:
        """The Python annotation of an Avro type; a record met on the way becomes a class.

        Raises:
            ValueError: an Avro type that no schema of this project uses.
        """
        if isinstance(avro, str):
            return PRIMITIVES[avro]
        if isinstance(avro, list) and len(avro) == 2 and avro[0] == "null":
            return f"{self.type_of(avro[1])} | None"
        if isinstance(avro, dict):
            match avro["type"]:
                case "fixed":
                    return "bytes"
                case "array":
                    return f"tuple[{self.type_of(avro['items'])}, ...]"
                case "map":
                    return f"dict[str, {self.type_of(avro['values'])}]"
                case "record":
                    self.add(avro)
                    return str(avro["name"])
        raise ValueError(f"no Python type for {avro!r}")

    def add(self, schema: dict[str, Any]) -> None:
        """Render one record schema as a dataclass."""
        lines = []
        for field in schema["fields"]:
            default = " = None" if field.get("default", 0) is None else ""
            lines.append(f"    {field['name']}: {self.type_of(field['type'])}{default}")
        doc = schema.get("doc", "Part of another record.")
        self.classes[schema["name"]] = "\n".join(
            [
                "@dataclass(frozen=True, slots=True, kw_only=True)",
                f"class {schema['name']}:",
                f'    """{doc}"""',
                "",
                *lines,
            ]
        )


def render(kind: str) -> str:
    """The text of `schemas/<kind>/__init__.py`."""
    room = _Kind()
    records = []
    for path in sorted((ROOM / kind).glob("*.avsc")):
        schema = json.loads(path.read_text())
        room.add(schema)
        records.append(schema["name"])
    union = " | ".join(records)
    head = (
        f'"""Typed records of `rephub.{kind}`. Made by `schemas/generate.py` from the `.avsc` files here."""'
    )
    parts = [
        head + "\n\nfrom __future__ import annotations\n\nfrom dataclasses import dataclass",
        *room.classes.values(),
        f"Record = {union}\nRECORDS: tuple[type[Record], ...] = ({', '.join(records)},)",
    ]
    return "# ruff: noqa: E501\n" + "\n\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Write the modules, or with `--check` say which of them are out of date (exit code 1)."""
    stale = []
    for kind in KINDS:
        path = ROOM / kind / "__init__.py"
        text = render(kind)
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            stale.append(str(path.relative_to(ROOM.parent)))
        else:
            path.write_text(text)
    if stale:
        print(f"out of date, run `make schemas`: {' '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
