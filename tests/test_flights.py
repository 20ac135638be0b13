"""The showcase on its real data."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from treadle.check import check, has_errors

LOOP = Path(__file__).resolve().parent.parent / "loops" / "flights.yaml"


@pytest.mark.flights
def test_the_showcase_has_no_fault_and_no_usual_mistake() -> None:
    findings = check(LOOP)
    assert not has_errors(findings)
    assert [f for f in findings if f.severity == "warning" and not f.ignored_because] == []


@pytest.mark.slow
@pytest.mark.flights
def test_one_two_and_four_threads_give_the_same_digests(tmp_path: Path) -> None:
    digests = set()
    for threads in (1, 2, 4):
        overrides = [f"data.threads={threads}", f"train.threads={threads}"]
        loop = treadle.Loop.load(LOOP, overrides=overrides)
        run = treadle.run(
            loop, as_of="2013-03-01", to="train", store=tmp_path / str(threads), track="threads"
        )
        digests.add(tuple(record.digest for record in run.values()))
    assert len(digests) == 1
