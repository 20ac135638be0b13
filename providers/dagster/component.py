"""A loop as a component: `type: treadle_dagster.LoopComponent` in a `defs.yaml`.

No `from __future__ import annotations` here: Dagster reads the annotations of a component's fields.
"""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from pydantic import Field
from treadle.loop import Loop
from treadle_dagster.conditions import loop_conditions
from treadle_dagster.definitions import loop_definitions
from treadle_dagster.resources import TreadleResource
from treadle_dagster.scaffolder import LoopScaffolder
from treadle_dagster.specs import Condition
from treadle_dagster.translator import StageData, TreadleTranslator


@dg.scaffold_with(LoopScaffolder)
class LoopComponent(dg.Component, dg.Model, dg.Resolvable):
    """A treadle loop: data, training, judgement, release and monitoring of one model as assets."""

    loop: str = Field(description="The loop file, from the project's root.")
    partitions: str | None = Field(
        default="auto", description="auto, daily, weekly, monthly, a cron, or null for none."
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Assets that make the loop's sources: source name to asset key, a/b.",
    )
    automation: bool = Field(
        default=False,
        description="Conditions on the assets; the schedules and the retrain sensor then stay off.",
    )
    in_process: bool = Field(
        default=False,
        description="Whether the loop's own jobs run all steps in the run's process; else the project's executor does.",
    )
    store: str | None = Field(default=None, description="A folder or URI; default: TREADLE_STORE.")
    tracking_uri: str | None = Field(default=None, description="MLflow; default: MLFLOW_TRACKING_URI.")
    track: str = Field(default="production", description="Whose release log is read and written.")

    def get_asset_spec(self, data: StageData) -> dg.AssetSpec:
        """The spec of one stage's asset; override it to rename, regroup and annotate.

        Example:
            >>> class Ours(LoopComponent):
            ...     def get_asset_spec(self, data):
            ...         return super().get_asset_spec(data).replace_attributes(group_name="models")
        """
        return TreadleTranslator().get_asset_spec(data)

    def resource(self) -> TreadleResource | None:
        """The resource `treadle` of this component; None takes the one that all loops without fields share."""
        if self.store is None and self.tracking_uri is None and self.track == "production":
            return None
        return TreadleResource(store=self.store, tracking_uri=self.tracking_uri, track=self.track)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The loop's definitions. Raises SpecError, with file and line, where the loop file is wrong."""
        loop = Loop.load(Path(context.project_root) / self.loop)
        translator = _ByComponent(self)
        feeding = {name: dg.AssetKey.from_user_string(key) for name, key in self.sources.items()}
        conditions: Mapping[str, Condition] | None = None
        if self.automation:
            conditions = loop_conditions(loop, translator=translator, sources=feeding)
        return loop_definitions(
            loop,
            translator=translator,
            sources=feeding,
            partitions=self.partitions,
            conditions=conditions,
            resource=self.resource(),
            executor=dg.in_process_executor if self.in_process else None,
        )


class _ByComponent(TreadleTranslator):
    """Asks the component, so that a subclass of it needs no translator of its own."""

    def __init__(self, component: LoopComponent) -> None:
        self.component = component

    def get_asset_spec(self, data: StageData) -> dg.AssetSpec:
        return self.component.get_asset_spec(data)
