"""Every event has its line, and is found under the volumes that it is about."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from rephub.core.codec import decode_control
from rephub.projections.event_text import TEXTS, Concerned, text_of
from rephub.schemas import alerts
from rephub.schemas import events as ev

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def event(record: type[Any], /, **fields: Any) -> Any:
    return record(id="1", at=1, source="hub/h", hub_epoch=1, **fields)


@pytest.mark.parametrize("kind", [*ev.RECORDS, *alerts.RECORDS], ids=lambda kind: kind.__name__)
def test_every_type_has_a_line_with_all_that_it_promises(kind: type[Any]) -> None:
    """On the golden records of the type: one of usual values, one of odd ones."""
    room = "alerts" if kind in alerts.RECORDS else "events"
    values = [
        bytes.fromhex(record["value"])
        for path in (GOLDEN / room).glob(f"{kind.__name__}.*.json")
        for record in json.loads(path.read_text())["records"]
    ]
    assert values
    for value in values:
        record = decode_control(value)
        line = text_of(record)  # type: ignore[arg-type]
        literals = [literal for literal, *_ in string.Formatter().parse(TEXTS[kind])]
        assert all(literal in line for literal in literals), line


def test_lines_say_what_happened() -> None:
    lost = event(ev.CaptureLost, volume="web", epoch=2, reason="the worker died")
    assert text_of(lost) == "web: writes do not reach the journal any more: the worker died"
    view = ev.ViewItem(volume="web", offset=7, uri="nbd+unix:///web")
    assert text_of(event(ev.FotStarted, fot="fot-1", views=(view,))) == "test fot-1 is open: web at offset 7"
    error = json.dumps({"class": "NotFoundError", "message": "no monitor", "hint": "look"})
    assert text_of(event(ev.ProtectFailed, volume="web", error=error)).endswith("did not start: no monitor")
    assert text_of(event(ev.ProtectFailed, volume="web", error="odd")).endswith("did not start: odd")
    shortened = event(
        ev.HistoryShortened, volume="web", earliest_offset=1, window_seconds=90.0, asked_seconds=86_400, limit_bytes=1 << 20
    )  # fmt: skip
    assert text_of(shortened) == "web: history is 90 s and not 24.0 h, because of its limit of 1.0 MiB"


def test_text_from_elsewhere_is_no_template() -> None:
    assert text_of(event(ev.CaptureLost, volume="web", epoch=2, reason="{id} {0}")).endswith("{id} {0}")


def test_the_end_of_a_test_is_about_the_volumes_of_its_beginning() -> None:
    concerned = Concerned()
    asked = event(
        ev.FotRequested, fot="f", volumes=("a", "b"), diskbox="d", point_kind="latest", point_value="", read_only=True
    )  # fmt: skip
    assert concerned.apply(asked) == {"a", "b"}
    assert concerned.apply(event(ev.FotScratchFull, fot="f", volume="b", scratch_bytes=1)) == {"b"}
    assert concerned.apply(event(ev.FotStopped, fot="f", reason="asked")) == {"a", "b"}
    assert concerned.apply(event(ev.FotStopped, fot="other", reason="asked")) == frozenset()
    assert concerned.volumes == {"a", "b"}


def test_other_volumes_of_a_record() -> None:
    concerned = Concerned()
    created = event(
        ev.CheckpointCreated, checkpoint="c", kind="crash", offsets={"a": 1, "b": 2}, captured_at=1
    )
    assert concerned.apply(created) == {"a", "b"}
    assert concerned.apply(event(ev.AgentAnnounced, agent="x", host="h", pid=1, url="")) == frozenset()
    assert concerned.apply(event(ev.CheckpointDeleted, checkpoint="c")) == {"a", "b"}
