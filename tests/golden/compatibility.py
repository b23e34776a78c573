"""Avro's resolution rules, as far as our schemas use Avro: can a reader's schema read a writer's data?

Spec: Avro 1.12, "Schema Resolution". fastavro resolves datum by datum; this looks at the schemas themselves,
so that a type is checked also where no golden record reaches.
"""

from __future__ import annotations

from typing import Any

PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
    ("string", "bytes"),
    ("bytes", "string"),
}


def unreadable(reader: Any, writer: Any, at: str = "") -> list[str]:
    """Why data of `writer` cannot be read with `reader`; empty if it always can."""
    if isinstance(writer, list):
        return [why for branch in writer for why in unreadable(reader, branch, at)]
    if isinstance(reader, list):
        found = [unreadable(branch, writer, at) for branch in reader]
        return [] if [] in found else [f"{at}: no branch of {reader} takes {writer}"]
    if isinstance(reader, str) and isinstance(writer, str):
        same = reader == writer or (writer, reader) in PROMOTIONS
        return [] if same else [f"{at}: {writer} cannot become {reader}"]
    if isinstance(reader, str) or isinstance(writer, str) or reader["type"] != writer["type"]:
        return [f"{at}: {writer} cannot become {reader}"]
    match reader["type"]:
        case "array":
            return unreadable(reader["items"], writer["items"], f"{at}[]")
        case "map":
            return unreadable(reader["values"], writer["values"], f"{at}{{}}")
        case "fixed":
            same = (reader["name"], reader["size"]) == (writer["name"], writer["size"])
            return [] if same else [f"{at}: {writer} cannot become {reader}"]
        case "record":
            return _unreadable_record(reader, writer, at)
    return [f"{at}: {reader['type']} is no type of ours"]


def _unreadable_record(reader: Any, writer: Any, at: str) -> list[str]:
    if reader["name"] != writer["name"]:
        return [f"{at}: {writer['name']} cannot become {reader['name']}"]
    written = {field["name"]: field for field in writer["fields"]}
    why = []
    for field in reader["fields"]:
        name = f"{at}.{field['name']}"
        if field["name"] in written:
            why += unreadable(field["type"], written[field["name"]]["type"], name)
        elif "default" not in field:
            why.append(f"{name}: is not in the writer's schema and has no default")
    return why
