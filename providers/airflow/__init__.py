"""The Airflow provider of treadle: every loop becomes DAGs. Nothing here knows any machine learning; the core does.

>>> from treadle_airflow import LoopDag, load_loops        # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle_airflow.assets import candidate, champion, retrain
    from treadle_airflow.dags import LoopDag, MonitorDag
    from treadle_airflow.files import load_loops
    from treadle_airflow.groups import loop_task_group
    from treadle_airflow.hooks.treadle import TreadleHook
    from treadle_airflow.operators.acts import TreadlePredictOperator, TreadleRollbackOperator
    from treadle_airflow.operators.approval import (
        TreadleAnswerOperator,
        TreadleAskOperator,
        TreadleProposeOperator,
    )
    from treadle_airflow.operators.stages import (
        TreadleDeployOperator,
        TreadleEvaluateOperator,
        TreadleFeaturizeOperator,
        TreadleGateOperator,
        TreadleMonitorOperator,
        TreadlePrepareOperator,
        TreadleReleaseOperator,
        TreadleRetrainOperator,
        TreadleStageOperator,
        TreadleTrainOperator,
    )
    from treadle_airflow.release import ReleaseDag
    from treadle_airflow.sensors.treadle import ChampionChangedSensor, LabelsAvailableSensor, TreadleJobSensor

_WHERE = {
    "ChampionChangedSensor": "sensors.treadle",
    "LabelsAvailableSensor": "sensors.treadle",
    "LoopDag": "dags",
    "MonitorDag": "dags",
    "ReleaseDag": "release",
    "TreadleAnswerOperator": "operators.approval",
    "TreadleAskOperator": "operators.approval",
    "TreadleDeployOperator": "operators.stages",
    "TreadleEvaluateOperator": "operators.stages",
    "TreadleFeaturizeOperator": "operators.stages",
    "TreadleGateOperator": "operators.stages",
    "TreadleHook": "hooks.treadle",
    "TreadleJobSensor": "sensors.treadle",
    "TreadleMonitorOperator": "operators.stages",
    "TreadlePredictOperator": "operators.acts",
    "TreadlePrepareOperator": "operators.stages",
    "TreadleProposeOperator": "operators.approval",
    "TreadleReleaseOperator": "operators.stages",
    "TreadleRetrainOperator": "operators.stages",
    "TreadleRollbackOperator": "operators.acts",
    "TreadleStageOperator": "operators.stages",
    "TreadleTrainOperator": "operators.stages",
    "candidate": "assets",
    "champion": "assets",
    "load_loops": "files",
    "loop_task_group": "groups",
    "retrain": "assets",
}

__all__ = [
    "ChampionChangedSensor",
    "LabelsAvailableSensor",
    "LoopDag",
    "MonitorDag",
    "ReleaseDag",
    "TreadleAnswerOperator",
    "TreadleAskOperator",
    "TreadleDeployOperator",
    "TreadleEvaluateOperator",
    "TreadleFeaturizeOperator",
    "TreadleGateOperator",
    "TreadleHook",
    "TreadleJobSensor",
    "TreadleMonitorOperator",
    "TreadlePredictOperator",
    "TreadlePrepareOperator",
    "TreadleProposeOperator",
    "TreadleReleaseOperator",
    "TreadleRetrainOperator",
    "TreadleRollbackOperator",
    "TreadleStageOperator",
    "TreadleTrainOperator",
    "candidate",
    "champion",
    "load_loops",
    "loop_task_group",
    "retrain",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: Airflow reads this package for its metadata, too."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
