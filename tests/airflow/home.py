"""What the tests need of Airflow's insides, in one place: its database, its parser, and whole runs in this process."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DROP_IN = Path(__file__).parents[2] / "dags" / "treadle_loops.py"


def migrate(folder: Path) -> Path:
    """A copy of a database that has all tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Airflow's own, on its imports
        from airflow.utils.db import initdb

        initdb()
    _close()
    return Path(shutil.copy(folder / "airflow.db", folder / "template.db"))


def _close() -> None:
    from airflow import settings

    settings.dispose_orm(do_log=False)


@dataclass
class Ran:
    """A run that ended: its state, and by task its state and what it returned."""

    state: str
    states: dict[str, str]
    told: dict[str, Any]
    run_id: str


@dataclass
class Home:
    """A DAGs folder with the drop-in file, and a metadata database."""

    dags: Path
    database: Path

    def begin(self, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow import settings

        self.dags.mkdir()
        bundle = {
            "name": "test",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(self.dags)},
        }
        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps([bundle]))
        _close()
        shutil.copy(template, self.database)
        settings.configure_orm()

    def end(self) -> None:
        _close()

    def drop_in(self, loops: Path) -> None:
        """Copies the drop-in file and a folder of loops into the DAGs folder."""
        shutil.copy(DROP_IN, self.dags)
        if loops != self.dags / "loops":
            shutil.copytree(loops, self.dags / "loops")

    def bag(self) -> Any:
        """The DAGs folder, parsed."""
        from airflow.dag_processing.dagbag import BundleDagBag

        return BundleDagBag(dag_folder=str(self.dags), bundle_path=self.dags, bundle_name="test")

    def dag(self, dag_id: str) -> Any:
        bag = self.bag()
        assert not bag.import_errors, bag.import_errors
        return bag.dags[dag_id]

    def parsed(self, file: Path) -> Any:
        """What the DAG processor makes of a file: `serialized_dags` and `import_errors`."""
        return parsed(file, self.dags)

    def run(self, dag: Any, **conf: Any) -> Ran:
        """One run from beginning to end, deferrals and all."""
        return self.ran(dag.test(run_conf=conf or None))

    def ran(self, run: Any) -> Ran:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            mine = XComModel.run_id == run.run_id, XComModel.key == "return_value"
            told = {
                row.task_id: json.loads(row.value) if isinstance(row.value, str) else row.value
                for row in session.scalars(select(XComModel).where(*mine))
            }
            states = {ti.task_id: str(ti.state) for ti in run.get_task_instances(session=session)}
        return Ran(str(run.state), states, told, run.run_id)

    def events(self, uri: str) -> list[dict[str, Any]]:
        """The extras of an asset's events, oldest first."""
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            rows = session.scalars(
                select(AssetEvent)
                .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
                .where(AssetModel.uri == uri)
                .order_by(AssetEvent.id)
            )
            return [dict(row.extra) for row in rows]


def parsed(file: Path, folder: Path) -> Any:
    """What the DAG processor makes of a file: `serialized_dags` and `import_errors`."""
    import structlog
    from airflow.dag_processing.processor import DagFileParseRequest, _parse_file

    request = DagFileParseRequest(
        file=str(file), bundle_path=folder, bundle_name="test", callback_requests=[]
    )
    return _parse_file(request, structlog.get_logger())


def environment() -> dict[str, str]:
    """For subprocesses."""
    return dict(os.environ)
