"""A state machine as a table: fact → state → state after it. What is missing in a row is forbidden there."""

from __future__ import annotations

from dataclasses import dataclass

from rephub.core.errors import ConflictError


@dataclass(frozen=True, slots=True)
class StateTable:
    """The states of one kind of thing, and the facts that move it.

    Attributes:
        what: the thing, for errors: "diskbox".
        first: the state in which it appears.
        appears: the fact with which it appears.
        rows: fact → {state: state after it}.
    """

    what: str
    first: str
    appears: str
    rows: dict[str, dict[str, str]]

    def may(self, state: str, fact: str) -> bool:
        """Whether the table allows the fact in the state."""
        return state in self.rows[fact]

    def next_state(self, name: str, state: str, fact: str) -> str:
        """The state after the fact.

        Args:
            name: of the thing, for the error.
            state: before.
            fact: a row of the table.

        Raises:
            ConflictError: the table forbids it; names both states.
        """
        row = self.rows[fact]
        if state not in row:
            targets = " or ".join(sorted(set(row.values())))
            raise ConflictError(
                f"{self.what} {name} is {state} and cannot become {targets} ({fact.replace('_', ' ')})",
                hint="rephub status shows its state",
                state=state,
            )
        return row[state]

    def diagram(self) -> str:
        """The table as a Mermaid state diagram, for the documentation; self-loops left out."""
        return draw(self.rows, self.first, self.appears)


def draw(rows: dict[str, dict[str, str]], first: str, appears: str) -> str:
    """A Mermaid state diagram: one arrow for each pair of states, with all facts on it."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for fact, row in rows.items():
        for before, after in row.items():
            if before != after:
                arrows.setdefault((before, after), []).append(fact.replace("_", " "))
    lines = ["stateDiagram-v2", f"    [*] --> {first}: {appears}"]
    lines += [
        f"    {before} --> {after}: {', '.join(facts)}" for (before, after), facts in sorted(arrows.items())
    ]
    return "\n".join(lines)
