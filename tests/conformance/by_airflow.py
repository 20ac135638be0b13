"""Turns the loop `orders` by its Airflow DAGs, in a process and a metadata database of its own.

    python by_airflow.py DAGS_FOLDER TRACK AS_OF [AS_OF ...]

AIRFLOW_HOME, TREADLE_STORE and TREADLE_LOOPS come from the environment.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(folder: str, track: str, *clocks: str) -> None:
    """Each DAG at each clock, one after another; fails with the first run that does."""
    bundle = {
        "name": "test",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": folder},
    }
    os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps([bundle])
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.utils.db import initdb

    initdb()
    bag = BundleDagBag(dag_folder=folder, bundle_path=Path(folder), bundle_name="test")
    assert not bag.import_errors, bag.import_errors
    for as_of in clocks:
        for name in ("orders", "orders__monitor"):
            run = bag.dags[name].test(run_conf={"as_of": as_of, "track": track})
            assert str(run.state) == "success", f"{name} as of {as_of}: {run.state}"


if __name__ == "__main__":
    main(*sys.argv[1:])
