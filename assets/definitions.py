"""Every loop in `loops/` as Dagster assets: `dagster dev -m assets.definitions`, or `dg dev`, from the root.

TREADLE_LOOPS names other folders, separated by colons.
"""

import os
from pathlib import Path

import dagster as dg
from treadle_dagster import folder_definitions

LOOPS = Path(__file__).parent.parent / "loops"


@dg.definitions
def defs() -> dg.Definitions:
    """Assets, jobs, schedules and sensors of the loops; one that can't be loaded says why, and stops no other."""
    return folder_definitions(*os.environ.get("TREADLE_LOOPS", str(LOOPS)).split(os.pathsep))
