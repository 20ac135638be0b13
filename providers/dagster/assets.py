"""A loop as assets: one op a stage, whose body asks the core's runner for the stage's record.

No `from __future__ import annotations` here: Dagster reads the annotations of decorated functions.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from os import PathLike
from typing import Any, TypeVar

import dagster as dg
from treadle.loop import Loop
from treadle_dagster import checks
from treadle_dagster.clock import partitions_of
from treadle_dagster.drawn import CHAIN, DRAWN
from treadle_dagster.specs import Condition, Source, loop_specs
from treadle_dagster.translator import TreadleTranslator

AUTO = "auto"
Body = TypeVar("Body", bound=Callable[..., Any])


def loop_assets(
    loop: Loop | str | PathLike[str],
    *,
    translator: TreadleTranslator | None = None,
    sources: Mapping[str, Source] | None = None,
    partitions: dg.TimeWindowPartitionsDefinition | str | None = AUTO,
    conditions: Mapping[str, Condition] | None = None,
) -> list[dg.AssetsDefinition]:
    """A loop's stages as assets, to combine with others; they need a resource `treadle` (`TreadleResource`).

    Args:
        loop: The loop, or its file.
        translator: Renames, regroups and annotates the assets.
        sources: Assets that make the loop's sources, by the source's name: the snapshot depends on them.
        partitions: Of the stages from `prepare` to `deploy`: `auto` takes the loop's schedule over its history;
            `daily`, `weekly`, `monthly` or a cron another cadence; None none.
        conditions: Automation conditions by stage; see `treadle_dagster.conditions`.

    Raises:
        SpecError: The loop file is wrong, or `sources` names no source.

    Example:
        >>> [assets.key.path for assets in loop_assets("loops/flights.yaml")][0]    # doctest: +SKIP
        ['flights', 'snapshot']
    """
    if not isinstance(loop, Loop):
        loop = Loop.load(loop)
    specs = loop_specs(loop, translator=translator, sources=sources)
    return assets_of(loop, specs, windows_of(loop, partitions), conditions or {})


def assets_of(
    loop: Loop,
    specs: Mapping[str, dg.AssetSpec],
    windows: dg.TimeWindowPartitionsDefinition | None,
    conditions: Mapping[str, Condition],
) -> list[dg.AssetsDefinition]:
    """The assets of specs by stage."""
    keys = {stage: spec.key for stage, spec in specs.items()}
    return [
        _asset(loop, stage, _with_condition(spec, conditions.get(stage)), keys, windows)
        for stage, spec in specs.items()
    ]


def windows_of(
    loop: Loop, partitions: dg.TimeWindowPartitionsDefinition | str | None
) -> dg.TimeWindowPartitionsDefinition | None:
    """The partitions that an argument of `loop_assets` means."""
    if isinstance(partitions, str):
        return partitions_of(loop, None if partitions == AUTO else partitions)
    return partitions


def _with_condition(spec: dg.AssetSpec, condition: Condition | None) -> dg.AssetSpec:
    return spec if condition is None else spec.replace_attributes(automation_condition=condition)


def _asset(
    loop: Loop,
    stage: str,
    spec: dg.AssetSpec,
    keys: Mapping[str, dg.AssetKey],
    windows: dg.TimeWindowPartitionsDefinition | None,
) -> dg.AssetsDefinition:
    """One stage as one op: so each has its own pool, log and retry, and a failed check stops those after it."""

    @dg.multi_asset(
        name=f"{loop.name}__{stage}",
        specs=[spec],
        check_specs=checks.specs(spec.key, checks.declared(loop, stage)),
        partitions_def=windows if stage in CHAIN else None,
        backfill_policy=dg.BackfillPolicy.multi_run(1) if windows and stage in CHAIN else None,
        required_resource_keys={"treadle"},
        op_tags={"treadle/loop": loop.name, "treadle/stage": stage},
        pool=loop.pool_names.get(stage),
    )
    @_read_before
    def step(context):  # type: ignore[no-untyped-def]  # Dagster reads hints anew for each asset: a fifth of its load
        from treadle_dagster.step import run_stage  # what only runs need is not loaded with the location

        yield from run_stage(context, loop, DRAWN[stage], keys, windows)

    return step


_SIGNATURE = signature(lambda context: None)


def _read_before(function: Body) -> Body:
    """Gives the op's body its signature, of which Dagster asks `inspect` some sixteen times an asset."""
    function.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    return function
