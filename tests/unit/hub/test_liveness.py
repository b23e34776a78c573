"""Who counts as silent, and what more it takes to be lost."""

from __future__ import annotations

from rephub.consumers.hub.liveness import FAILED_LOOKS_MAX, LOOK_SECONDS, Answer, Liveness
from rephub.projections.entities import Diskbox

GOOD, NO_LEASE, NOTHING = Answer.GOOD, Answer.NO_LEASE, Answer.NOTHING


def box(name: str, life: str = "life") -> Diskbox:
    return Diskbox(name, "h", 1, "http://h", 27, announced_id=life)


def look(liveness: Liveness, times: int, **answers: Answer) -> None:
    for _ in range(times):
        liveness.note([(box(name), answer) for name, answer in answers.items()])


def test_silence_and_loss_are_counted_in_failed_looks() -> None:
    liveness = Liveness("redis://nowhere")
    look(liveness, FAILED_LOOKS_MAX - 1, a=NO_LEASE, b=GOOD)
    assert not liveness.silent()
    look(liveness, 1, a=NO_LEASE, b=GOOD)
    assert liveness.silent() == {"a"}
    assert liveness.gone(LOOK_SECONDS * FAILED_LOOKS_MAX) == {"a": "life"}
    assert not liveness.gone(LOOK_SECONDS * FAILED_LOOKS_MAX + 1)
    look(liveness, 1, a=GOOD, b=GOOD)
    assert not liveness.silent()
    assert not liveness.gone(1)


def test_a_hub_that_hears_nobody_and_no_redis_blames_itself() -> None:
    liveness = Liveness("redis://nowhere")
    look(liveness, 100, a=NOTHING, b=NOTHING)
    assert liveness.silent() == {"a", "b"}
    assert not liveness.gone(1)
    look(liveness, 3, a=NOTHING, b=GOOD)
    assert liveness.gone(1) == {"a": "life"}


def test_a_new_process_starts_with_a_clean_record() -> None:
    liveness = Liveness("redis://nowhere")
    look(liveness, 50, a=NO_LEASE)
    liveness.note([(box("a", "second"), NO_LEASE)])
    assert not liveness.silent()
    assert not liveness.gone(LOOK_SECONDS + 1)
    assert liveness.gone(LOOK_SECONDS) == {"a": "second"}
