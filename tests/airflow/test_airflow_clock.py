"""The rules for the time of a run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow_cases import context
from treadle import Loop
from treadle.errors import AsOfError, UserError
from treadle_airflow.asking import asked_of
from treadle_airflow.clock import cron_every, cron_of, run_as_of
from wheel import Wheel


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


TICK, CLICK = at(2024, 3, 4, 3, 30), at(2026, 11, 21, 15, 7, 9)
EVENTS = [{"as_of": "2024-02-26T00:00:00Z"}, {"as_of": "2024-02-19"}]


@pytest.fixture
def loop(wheel: Wheel) -> Loop:
    return Loop.load(wheel.path)


@pytest.fixture
def ended(wheel: Wheel) -> Loop:
    wheel.edit("orders.yaml", "name: orders\n", "name: orders\nhistory: {from: 2024-01-01, to: 2024-03-31}\n")
    return Loop.load(wheel.path)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            {"asked": "2024-02-12", "events": EVENTS, "logical_date": TICK}, at(2024, 2, 12), id="conf wins"
        ),
        pytest.param({"asked": "2024-02-12T06:30Z"}, at(2024, 2, 12, 6, 30), id="conf is not rounded"),
        pytest.param({"events": EVENTS, "logical_date": TICK}, at(2024, 2, 26), id="then the newest event"),
        pytest.param(
            {"events": [{"etl": 7}], "run_after": CLICK}, at(2026, 11, 21), id="an event without as_of"
        ),
        pytest.param({"logical_date": TICK, "is_tick": True}, TICK, id="a tick stays as it is"),
        pytest.param({"logical_date": TICK, "run_after": CLICK}, at(2024, 3, 4), id="a click by its day"),
        pytest.param({"run_after": CLICK}, at(2026, 11, 21), id="no logical date: run_after"),
    ],
)
def test_the_time_of_a_run(loop: Loop, given: dict[str, Any], expected: datetime) -> None:
    assert run_as_of(loop, **given).as_of == expected


@pytest.mark.parametrize(
    "given", [{"logical_date": CLICK}, {"logical_date": CLICK, "is_tick": True}, {"run_after": CLICK}]
)
def test_a_click_in_any_year_works_on_data_that_end(ended: Loop, given: dict[str, Any]) -> None:
    time = run_as_of(ended, **given)
    assert time.as_of == at(2024, 3, 31)
    assert "2026-11-21 lies after it" in time.words


def test_what_a_person_asks_for_is_not_changed(ended: Loop) -> None:
    assert run_as_of(ended, asked="2025-01-01").as_of == at(2025, 1, 1)  # refused later, as at a shell


def test_a_finer_cron_rounds_a_click_to_the_hour(wheel: Wheel) -> None:
    wheel.edit("orders.yaml", "schedule: weekly", "schedule: '0 */6 * * *'")
    assert run_as_of(Loop.load(wheel.path), logical_date=CLICK).as_of == at(2026, 11, 21, 15)


@pytest.mark.parametrize("given", [{"asked": "soon"}, {"events": [{"as_of": 7}]}, {}])
def test_no_time_is_said_so(loop: Loop, given: dict[str, Any]) -> None:
    with pytest.raises(AsOfError, match=r"as_of|no time"):
        run_as_of(loop, **given)


def event(uri: str, minute: int, **extra: Any) -> SimpleNamespace:
    return SimpleNamespace(asset=SimpleNamespace(uri=uri), timestamp=at(2024, 3, 4, 0, minute), extra=extra)


def test_several_events_count_by_their_time_and_once() -> None:
    given = context(conf={})
    old, new = event("treadle://a/retrain", 1, as_of="2024-02-19"), event("s3://b", 2, as_of="2024-02-26")
    given["triggering_asset_events"] = {"a": [old], "alias of a": [old], "b": [new]}
    assert [extra["as_of"] for extra in asked_of(given).events] == ["2024-02-26", "2024-02-19"]


def test_conf_comes_before_an_event_and_an_event_before_the_form() -> None:
    given = context(conf={})
    extra = {"track": "replay", "set": ["approval=auto"]}
    given["triggering_asset_events"] = {"a": [event("treadle://orders/candidate", 1, **extra)]}
    given["params"] = {"track": "production", "set": []}
    assert (asked_of(given).track, asked_of(given).overrides) == ("replay", ("approval=auto",))
    given["dag_run"].conf = {"track": "trial"}
    assert asked_of(given).track == "trial"


def test_an_event_of_someone_elses_asset_changes_no_track_and_no_setting() -> None:
    given = context(conf={})
    given["triggering_asset_events"] = {"a": [event("s3://b/a", 1, track="x", set=["gate.margin=9"])]}
    assert (asked_of(given).track, asked_of(given).overrides) == (None, ())


@pytest.mark.parametrize("conf", [{"set": "train"}, {"set": [7]}, {"pools": {"train": "gpu"}}])
def test_conf_that_is_no_list_of_settings_says_what_is(conf: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="list of name=value"):
        asked_of(context(conf=conf))


@pytest.mark.parametrize(
    ("days", "hours", "cron"),
    [(7, 0, "0 0 * * 1"), (1, 0, "0 0 * * *"), (0, 6, "0 */6 * * *"), (3, 0, None), (0, 5, None)],
)
def test_a_rhythm_as_cron(days: int, hours: int, cron: str | None) -> None:
    assert cron_every(timedelta(days=days, hours=hours)) == cron


def test_schedules_tick_as_in_the_core() -> None:
    from treadle.monitoring import policy

    assert {name: cron_of(name) for name in policy._CRON} == policy._CRON
