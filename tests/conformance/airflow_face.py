"""The loop `orders` turned by Airflow, for the tests that compare faces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wheel import Wheel

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def turn_by_airflow(wheel: Wheel, clocks: list[str], track: str) -> str:
    """Runs both DAGs of the loop as of each clock, in an Airflow and a process of their own; what that printed."""
    home = wheel.store.parent / "airflow"
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "treadle_loops.py").write_text((ROOT / "dags" / "treadle_loops.py").read_text())
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "TREADLE_LOOPS": str(wheel.path.parent),
        "TREADLE_STORE": str(wheel.store),
        "TREADLE_USER": "ann",
    }
    done = subprocess.run(
        [sys.executable, HERE / "by_airflow.py", home / "dags", track, *clocks],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said[-4000:]
    return said
