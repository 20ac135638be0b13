"""One loop by three faces: the core itself, as `treadle run` and `treadle monitor` call it, Airflow, and Dagster.

In three fresh stores, at the same clocks and on the same track, they come to the same records, kind by kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import treadle
from airflow_face import turn_by_airflow
from small import write_small_loop
from treadle.commit import all_records
from treadle.records import KINDS
from treadle.registry.log import Entry, ReleaseLog
from treadle.store import open_store
from treadle_dagster import TreadleResource, loop_assets
from wheel import FIRST, SECOND, Wheel, lenient

TRACK = "faces"
# Everything that says what happened: not the wall clock, nor who asked, whom Airflow knows by itself.
TOLD = (
    "sequence",
    "kind",
    "subject",
    "candidate",
    "champion",
    "as_of",
    "effective_at",
    "evidence",
    "why",
)


def by_shell(wheel: Wheel, clocks: list[str]) -> None:
    loop = treadle.Loop.load(wheel.path)
    for as_of in clocks:
        treadle.run(loop, as_of=as_of, store=wheel.store, track=TRACK, who="ann")
        treadle.watch(loop, as_of=as_of, store=wheel.store, track=TRACK, who="ann")


def by_airflow(wheel: Wheel, clocks: list[str]) -> None:
    turn_by_airflow(wheel, clocks, TRACK)


def by_dagster(wheel: Wheel, clocks: list[str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for as_of in clocks:
            result = dg.materialize(
                loop_assets(wheel.path),
                instance=instance,
                resources={"treadle": TreadleResource(store=str(wheel.store), user="ann")},
                tags={"treadle/as_of": as_of, "treadle/track": TRACK},
            )
            assert result.success


def records_of(wheel: Wheel) -> dict[str, dict[str, str]]:
    """Digest by id, by kind."""
    store = open_store(str(wheel.store))
    return {
        name: {record.id: record.digest for record in all_records(store, kind, "orders")}
        for name, kind in KINDS.items()
    }


def log_of(wheel: Wheel) -> list[dict[str, Any]]:
    def told(entry: Entry) -> dict[str, Any]:
        return {name: getattr(entry, name) for name in TOLD}

    return [told(entry) for entry in ReleaseLog(open_store(str(wheel.store)), "orders", TRACK).entries()]


def turned_by(face: Callable[[Wheel, list[str]], None], folder: Path, clocks: list[str]) -> Wheel:
    wheel = Wheel(write_small_loop(folder / "loop"), folder / "store")
    lenient(wheel)
    face(wheel, clocks)
    return wheel


@pytest.mark.slow
def test_the_same_loop_by_three_faces_comes_to_the_same_records(tmp_path: Path) -> None:
    clocks = [FIRST, SECOND]
    shell = turned_by(by_shell, tmp_path / "shell", clocks)
    found = records_of(shell)
    assert all(len(records) >= len(clocks) for records in found.values()), found
    assert [entry["kind"] for entry in log_of(shell)] == ["propose", "promote"] * len(clocks)
    for face in (by_airflow, by_dagster):
        other = turned_by(face, tmp_path / face.__name__, clocks)
        assert records_of(other) == found, face.__name__
        assert log_of(other) == log_of(shell), face.__name__
