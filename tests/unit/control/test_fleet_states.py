"""The tables of the fleet: every transition that is not in them is an error that names both states."""

from __future__ import annotations

import itertools

import pytest

from control_world import World, head, node
from rephub.core.errors import ConflictError
from rephub.projections.fleet_states import AGENT, DISKBOX, GROUP_ORDER, group_state
from rephub.projections.state_table import StateTable
from rephub.projections.states import STATES
from rephub.schemas import events as ev


def states(table: StateTable) -> set[str]:
    return {table.first} | {state for row in table.rows.values() for pair in row.items() for state in pair}


@pytest.mark.parametrize("table", [AGENT, DISKBOX], ids=lambda table: table.what)
def test_what_is_not_in_the_table_is_refused_and_both_states_are_named(table: StateTable) -> None:
    for fact, state in itertools.product(table.rows, states(table)):
        row = table.rows[fact]
        assert table.may(state, fact) == (state in row)
        if state in row:
            assert table.next_state("x", state, fact) == row[state]
            continue
        with pytest.raises(ConflictError) as caught:
            table.next_state("x", state, fact)
        assert state in caught.value.message
        assert any(after in caught.value.message for after in row.values())
        assert caught.value.hint
        assert caught.value.fields["state"] == state


@pytest.mark.parametrize("table", [AGENT, DISKBOX], ids=lambda table: table.what)
def test_every_state_can_be_reached_and_left(table: StateTable) -> None:
    arrows = {pair for row in table.rows.values() for pair in row.items() if pair[0] != pair[1]}
    assert {after for _, after in arrows} | {table.first} == states(table)
    assert {before for before, _ in arrows} == states(table)


def test_the_log_cannot_take_a_diskbox_where_the_table_does_not() -> None:
    world = World()
    world.dies("d1")
    world.settle()
    fields = head(ev.DiskboxDrainRequested, "x", "d1", world.now, "hub/h1")
    assert not world.append(ev.DiskboxDrainRequested(**fields, diskbox="d1", drain=True))
    assert "lost and cannot become draining" in world.catalogue.ignored[-1]["reason"]


def test_an_agent_is_probing_until_the_last_monitor_is_answered() -> None:
    world = World()
    agent = world.catalogue.agents["a1"]
    world.vms["a1"]["/vm2.sock"] = [node("n9")]
    world.send(world.protect_command("v1"))
    world.send(world.protect_command("v2", qmp="/vm2.sock", node="n9"))
    seen = [agent.state]
    while due := world.due():
        world.append(due[0])
        seen.append(agent.state)
        if world.catalogue.volumes.get("v2"):
            break
    assert [state for state, _ in itertools.groupby(seen)] == ["ready", "probing", "ready"]


def test_a_group_is_as_its_worst_member() -> None:
    assert set(GROUP_ORDER) == set(STATES)
    for one, other in itertools.product(GROUP_ORDER, repeat=2):
        assert group_state([one, other]) == min(one, other, key=GROUP_ORDER.index)
    assert group_state(["protected", "promoted", "protected"]) == "protected"
    assert group_state(["protected", "syncing", "gap"]) == "gap"
    for wrong in (["lovely", "protected"], []):
        with pytest.raises(ConflictError, match=r"cannot be as (lovely|no member): .*protected"):
            group_state(wrong)
