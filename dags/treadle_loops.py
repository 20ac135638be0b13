"""Every loop in `loops/` beside this file as Airflow DAGs. Copy this file and your loops into the DAGs folder.

TREADLE_LOOPS names other folders, separated by colons.
"""

import os
from pathlib import Path

from treadle_airflow import load_loops

folders = os.environ.get("TREADLE_LOOPS", str(Path(__file__).parent / "loops")).split(os.pathsep)
globals().update(load_loops(*folders))
