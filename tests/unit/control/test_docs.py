"""What the documents say about states and exit codes is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from rephub.cli.main import VERBS
from rephub.core import errors
from rephub.projections import states
from rephub.projections.fleet_states import AGENT, DISKBOX, group_diagram
from rephub.schemas import events

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_diagram_is_drawn_from_the_table() -> None:
    assert states.diagram() in (DOCS / "control-plane.md").read_text()


def test_so_are_those_of_the_fleet() -> None:
    text = (DOCS / "control-plane.md").read_text()
    for diagram in (DISKBOX.diagram(), AGENT.diagram(), group_diagram()):
        assert diagram in text, diagram


def test_every_error_class_has_its_exit_code() -> None:
    text = (DOCS / "cli.md").read_text()
    for name, kind in errors._subclasses(errors.RephubError).items():
        (row,) = [line for line in text.splitlines() if f"`{name}`" in line and line.startswith("| ")]
        assert row.split("|")[1].strip() == str(kind.exit_code)


def test_every_verb_has_its_place() -> None:
    text = (DOCS / "cli.md").read_text()
    headings = " ".join(line for line in text.splitlines() if line.startswith("### "))
    for verb in VERBS:
        assert re.search(rf"`{verb}\b", headings), verb


def test_every_event_that_is_named_exists() -> None:
    text = (DOCS / "control-plane.md").read_text()
    known = {kind.__name__ for kind in events.RECORDS}
    suffixes = "Requested|Announced|Failed|Created|Attached|Lost|Detached|Started|Completed|Stopped|Resumed|Released|Planned|Placed"
    named = set(re.findall(rf"`([A-Z][A-Za-z]+(?:{suffixes}))`", text))
    assert len(named) > 10
    assert named <= known, named - known
