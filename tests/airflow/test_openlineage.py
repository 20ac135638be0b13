"""What OpenLineage is told: sources without credentials, records by their version, the champion."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from home import DROP_IN, environment
from treadle.loop import Loop
from treadle_airflow.openlineage import Named, facets_of, lineage_of, place_of
from treadle_airflow.operators.stages import TreadleStageOperator, run_one
from wheel import FIRST, Wheel

STAGES = ("prepare", "featurize", "train", "evaluate", "release", "deploy")


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("/data/orders.csv", ("file", "/data/orders.csv")),
        ("file:///data/orders.csv", ("file", "/data/orders.csv")),
        ("s3://key:hunter22@bucket/a/b.parquet", ("s3://bucket", "a/b.parquet")),
        ("https://me:hunter22@host:8443/x.csv?token=hunter22#x", ("https://host:8443", "x.csv")),
    ],
)
def test_places_are_named_as_openlineage_names_them_without_credentials(
    uri: str, place: tuple[str, str]
) -> None:
    assert place_of(uri) == place
    assert "hunter22" not in str(place_of(uri))


def test_each_stage_names_what_it_read_and_what_it_made(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter22")
    session = wheel.session(FIRST)
    made = {stage: run_one(session, stage, {}) for stage in STAGES[:1]} | dict(wheel.run(FIRST).items())
    ids = {stage: record.id for stage, record in made.items()}
    first = lineage_of(session, made["prepare"], {})
    folder = wheel.path.parent
    assert first.inputs == (Named("file", f"{folder}/load.csv"), Named("file", f"{folder}/orders.csv"))
    namespace = f"file:{wheel.store}"
    assert first.outputs == (Named(namespace, "orders/snapshot", ids["prepare"]),)
    judged = lineage_of(session, made["evaluate"], {"train": ids["train"], "featurize": ids["featurize"]})
    assert judged.inputs == (
        Named(namespace, "orders/candidate", ids["train"]),
        Named(namespace, "orders/features", ids["featurize"]),
    )
    serving = session.log.champion()
    assert serving is not None
    deployed = lineage_of(session, made["deploy"], {"release": ids["release"]})
    assert deployed.outputs[-1] == Named(namespace, "orders/champion", serving.candidate)

    # A source whose address needs what only the stage's own machine has is still named.
    text = wheel.path.read_text().replace("orders: orders.csv", "orders: 's3://k:${PASSWORD}@b/${NOT_HERE}'")
    wheel.path.write_text(text)
    object.__setattr__(session, "loop", Loop.load(wheel.path))
    assert Named("treadle", "orders/sources/orders") in lineage_of(session, made["prepare"], {}).inputs
    assert "hunter22" not in str(lineage_of(session, made["prepare"], {}))


def test_without_the_provider_nothing_is_said(wheel: Wheel) -> None:
    operator = TreadleStageOperator(task_id="prepare", stage="prepare", loop=wheel.path)
    assert operator.get_openlineage_facets_on_complete(None) is None
    if not has_provider():
        assert facets_of(lineage_of(wheel.session(FIRST), wheel.run(FIRST)["deploy"], {})) is None


def has_provider() -> bool:
    """Whether Airflow's provider for OpenLineage is installed."""
    try:
        return importlib.util.find_spec("airflow.providers.openlineage") is not None
    except ModuleNotFoundError:
        return False


RUN = """
import sys
from pathlib import Path
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import BundleDagBag
folder = Path(sys.argv[1])
bag = BundleDagBag(dag_folder=str(folder), bundle_path=folder, bundle_name="dags-folder")
assert not bag.import_errors, bag.import_errors
print(bag.dags["orders"].test(run_conf={"as_of": sys.argv[2]}).state)
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_provider(), reason="apache-airflow-providers-openlineage is not installed")
def test_airflow_s_own_events_name_inputs_and_outputs(wheel: Wheel, tmp_path: Path) -> None:
    events, dags = tmp_path / "events.json", tmp_path / "home" / "dags"
    dags.mkdir(parents=True)
    (dags / "treadle_loops.py").write_text(DROP_IN.read_text())
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    variables = {
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "test",
        "TREADLE_LOOPS": str(wheel.path.parent),
        "TREADLE_STORE": str(wheel.store),
    }
    # -P: the working folder's treadle.egg-info would be a second plugin, and Airflow stops loading at one it has.
    command = [sys.executable, "-P", "-W", "ignore", "-c", RUN, str(dags), FIRST]
    done = subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = [json.loads(line) for line in events.read_text().splitlines()]
    ended = {event["job"]["name"]: event for event in said if event["eventType"] == "COMPLETE"}
    names = {job: [named(event["inputs"]), named(event["outputs"])] for job, event in ended.items()}
    assert names["orders.prepare.run"] == [
        {str(wheel.path.parent / "load.csv"), str(wheel.path.parent / "orders.csv")},
        {"orders/snapshot"},
    ]
    assert names["orders.train.run"] == [{"orders/features"}, {"orders/candidate"}]
    assert names["orders.deploy.run"] == [{"orders/release"}, {"orders/deployment", "orders/champion"}]


def named(datasets: list[dict[str, Any]]) -> set[str]:
    """The names of an event's datasets."""
    return {dataset["name"] for dataset in datasets}
