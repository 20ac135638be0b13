"""What a step takes: the records that the steps before it made in this very run, by their ids.

So a source that changes while a run is under way does not pull the ground from under its later steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
from treadle_dagster.drawn import CHAIN, RECORD


def made_in_this_run(
    context: dg.AssetExecutionContext, keys: Mapping[str, dg.AssetKey], stage: str
) -> dict[str, str]:
    """The record's id of each stage before this one that the run, or the run that it goes on from, materialized."""
    if stage not in CHAIN:
        return {}
    before = {keys[name]: name for name in CHAIN[: CHAIN.index(stage)]}
    found: dict[str, str] = {}
    runs = [context.run.root_run_id, context.run.parent_run_id, context.run.run_id]
    for run_id in dict.fromkeys(run for run in runs if run):
        for event in context.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            made = event.asset_materialization
            told = made.metadata.get(RECORD) if made else None
            if made is not None and made.asset_key in before and told is not None:
                found[before[made.asset_key]] = str(told.value)
    return found
