"""The page says what the provider does: its examples run, its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import treadle_airflow
from airflow.sdk import DAG
from airflow_cases import context
from treadle_airflow import clock
from wheel import FIRST, Wheel

PAGE = (Path(__file__).parents[2] / "docs" / "airflow.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_a_subclass_adds_a_step_in_under_twenty_lines(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in BLOCKS if "class " in block)
    assert len([line for line in block.splitlines() if line.strip()]) < 20
    monkeypatch.chdir(wheel.store)
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("AIRFLOW_CONN_TREADLE_DEFAULT", '{"conn_type": "treadle"}')
    made: dict[str, Any] = {"__name__": "mine"}
    exec(block.replace("loops/flights.yaml", str(wheel.path)), made)
    operator = made["dag"].get_task("evaluate.run")
    operator.inputs = {}
    assert operator.execute(context(conf={"as_of": FIRST}))["decision"] == "promote"
    assert (wheel.store / "board.txt").read_text() == f"orders {FIRST}T00:00:00Z: promote\n"


def test_a_dag_on_a_new_champion_is_a_dag() -> None:
    (block,) = (block for block in BLOCKS if "champion(" in block)
    made: dict[str, Any] = {}
    exec(block.replace("score_again()\n", "made = score_again()\n").replace("def made = ", "def "), made)
    dag = made["made"]
    assert isinstance(dag, DAG)
    assert "treadle://flights/champion" in str(dag.schedule)


def test_a_group_stands_between_the_tasks_of_an_etl(wheel: Wheel) -> None:
    (block,) = (block for block in BLOCKS if "LabelsAvailableSensor" in block)
    made: dict[str, Any] = {}
    exec(block.replace("loops/flights.yaml", str(wheel.path)), made)
    dag = made["dag"]
    assert dag.get_task("orders.prepare.run").upstream_task_ids == {"labels"}
    assert dag.get_task("labels").upstream_task_ids == {"load"}
    assert dag.get_task("tell").upstream_task_ids == {"orders.deploy.run"}


def test_the_rules_of_the_clock_are_those_of_the_code() -> None:
    rules = [line.split("|")[2:5] for line in (clock.__doc__ or "").splitlines() if re.match(r"\| \d", line)]
    told = [line.split("|")[2:5] for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert [[cell.strip() for cell in row[1:]] for row in rules] == [
        [cell.strip() for cell in row[1:]] for row in told
    ]
    assert len(rules) == 5


def test_the_page_names_every_public_class() -> None:
    for name in treadle_airflow.__all__:
        stage = re.fullmatch(r"Treadle(Featurize|Train|Evaluate|Release|Deploy|Monitor)Operator", name)
        assert stage or name in PAGE or name in ("load_loops", "candidate", "retrain"), name
