"""What may stand for a number in a loop's file, and what is told where something else does."""

from __future__ import annotations

from typing import Any

import pytest
from good_loop import changed
from treadle.errors import SpecError
from treadle.loop import Loop


def test_yes_is_no_number_anywhere_and_numbers_are_as_before() -> None:
    changes: dict[str, Any] = {
        "train.rounds": True,
        "gate.margin": False,
        "gate.latency_ms": True,
        "train.seed": False,
        "train.tune": {"space": {"max_depth": {"low": True, "high": 3}}},
    }
    with pytest.raises(SpecError) as told:
        Loop.model_validate(changed(changes))
    assert {fault.field for fault in told.value.faults} == {
        *changes,
        "train.tune.space.max_depth.low",
    } - {"train.tune"}
    loop = Loop.model_validate(
        changed({"deploy.capture": True, "train.params": {"hist": True}, "train.rounds": 1})
    )
    assert (loop.deploy.capture, loop.train.params["hist"], loop.train.rounds) == (True, True, 1)


@pytest.mark.parametrize(
    ("monthly", "fix"),
    [
        ("200 USD", "Write 200, without a unit."),
        ("$99.5", "Write 99.5, without a unit."),
        ("2k", "Write one without a unit, such as 0.05."),
        ("1,000", "Write one, such as 0.05."),
        ("much", "Write one, such as 0.05."),
    ],
)
def test_a_number_with_its_unit_is_told_the_number(monthly: str, fix: str) -> None:
    with pytest.raises(SpecError) as told:
        Loop.model_validate(changed({"budget": {"monthly": monthly}}))
    assert [(fault.problem, fault.fix) for fault in told.value.faults] == [
        (f"{monthly!r} is no number.", fix)
    ]
