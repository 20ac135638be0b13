"""Whole DAGs, run for real in this process on a real metadata database."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from home import Home
from small import write_small_loop
from wheel import SECOND, Wheel, copy_of, ids


@pytest.fixture
def dags(home: Home, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The small loop in Airflow, on a store where it has turned once."""
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    home.drop_in(wheel.path.parent)
    return home


def test_a_run_by_airflow_makes_the_records_of_a_run_at_the_shell(
    dags: Home, turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    shell = copy_of(turned[0], tmp_path / "shell").run(SECOND)
    ran = dags.run(dags.dag("orders"), as_of=SECOND)
    made = {
        name.partition(".")[0]: (told["id"], told["digest"])
        for name, told in ran.told.items()
        if name.endswith(".run")
    }
    assert ran.state == "success"
    assert made.items() <= ids(shell).items()
    assert {"prepare", "featurize", "train", "evaluate"} <= made.keys()


def test_a_losing_challenger_ends_green_with_the_champion_kept(dags: Home, wheel: Wheel) -> None:
    path = dags.dags / "loops" / "orders.yaml"
    path.write_text(path.read_text().replace("floor: {roc_auc: 0.55}", "floor: {roc_auc: 0.99}"))
    ran = dags.run(dags.dag("orders"), as_of=SECOND)
    assert ran.state == "success"
    assert ran.states["evaluate.gate"] == "success"
    assert {ran.states["release.run"], ran.states["deploy.run"]} == {"skipped"}
    assert ran.told["evaluate.gate"]["words"].startswith("champion kept: ")
    assert wheel.kinds() == ["propose", "promote", "reject"]
    assert dags.events("treadle://orders/champion") == []


def test_drift_becomes_one_event_which_carries_its_report(dags: Home, wheel: Wheel) -> None:
    loops = dags.dags / "loops"
    write_small_loop(loops, shift_from=42)
    text = (loops / "orders.yaml").read_text()
    text = text.replace("{schedule: weekly, on: [drift]}", "{on: [drift], strikes: 1, cooldown: 14d}")
    (loops / "orders.yaml").write_text(text.replace("{every: 7d}", "{every: 7d, drift: {share: 0.1}}"))
    monitor = dags.dag("orders__monitor")
    for _ in range(2):
        ran = dags.run(monitor, as_of="2024-02-26")
        assert ran.state == "success"
    (event,) = dags.events("treadle://orders/retrain")
    assert (event["as_of"], event["trigger"]) == ("2024-02-26T00:00:00Z", "drift")
    assert event["report"] == ran.told["monitor"]["id"]
    assert ran.told["retrain"]["event"].startswith("no event: drift:")
    assert wheel.kinds() == ["propose", "promote", "retrain"]


def test_a_refusal_of_the_core_fails_the_task_at_once_and_what_follows_is_not_run(dags: Home) -> None:
    ran = dags.run(dags.dag("orders"), as_of="2124-01-01")
    assert ran.state == "failed"
    assert ran.states["prepare.run"] == "failed"
    assert set(ran.states.values()) == {"failed", "upstream_failed"}
