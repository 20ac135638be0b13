"""treadle in Dagster: a loop becomes a graph of assets.

>>> from treadle_dagster import loop_definitions
>>> defs = loop_definitions("loops/flights.yaml")    # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from treadle_dagster.assets import loop_assets as loop_assets
from treadle_dagster.component import LoopComponent as LoopComponent
from treadle_dagster.conditions import loop_conditions as loop_conditions
from treadle_dagster.definitions import folder_definitions as folder_definitions
from treadle_dagster.definitions import loop_definitions as loop_definitions
from treadle_dagster.resources import TreadleResource as TreadleResource
from treadle_dagster.translator import StageData as StageData
from treadle_dagster.translator import TreadleTranslator as TreadleTranslator

if TYPE_CHECKING:
    from treadle_dagster.pipes import TreadlePipesClient as TreadlePipesClient

__all__ = [
    "LoopComponent",
    "StageData",
    "TreadlePipesClient",
    "TreadleResource",
    "TreadleTranslator",
    "folder_definitions",
    "loop_assets",
    "loop_conditions",
    "loop_definitions",
]


def __getattr__(name: str) -> Any:
    if name == "TreadlePipesClient":  # only stages on pools need what it imports
        from treadle_dagster.pipes import TreadlePipesClient

        return TreadlePipesClient
    raise AttributeError(f"module 'treadle_dagster' has no attribute {name!r}")
