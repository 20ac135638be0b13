"""A small loop in Dagster: what the tests share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import treadle
from treadle_dagster import TreadleResource, loop_assets
from wheel import Wheel


@dataclass
class Deployed:
    """A loop with its store on a Dagster instance."""

    wheel: Wheel
    instance: dg.DagsterInstance
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def resource(self) -> TreadleResource:
        return TreadleResource(store=str(self.wheel.store), user="ann", **self.options)

    @property
    def loop(self) -> treadle.Loop:
        return treadle.Loop.load(self.wheel.path)

    def materialize(
        self, as_of: str | None = None, *names: str, partition: str | None = None, **tags: str
    ) -> dg.ExecuteInProcessResult:
        said = {f"treadle/{name}": value for name, value in tags.items()}
        return dg.materialize(
            loop_assets(self.wheel.path),
            instance=self.instance,
            resources={"treadle": self.resource},
            selection=[dg.AssetKey(["orders", name]) for name in names] if names else None,
            partition_key=partition,
            tags={**({"treadle/as_of": as_of} if as_of else {}), **said},
            raise_on_error=False,
        )


def shown(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The metadata of each materialized asset, by the last part of its key."""
    return {
        event.materialization.asset_key.path[-1]: {
            name: getattr(value, "value", None) for name, value in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def told(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """The checks by `asset.check`."""
    return {f"{e.asset_key.path[-1]}.{e.check_name}": e for e in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the first failed step said."""
    event = next(event for event in result.all_events if event.is_step_failure)
    data = event.step_failure_data
    return (data.user_failure_data.description or "") if data.user_failure_data else str(data.error)
