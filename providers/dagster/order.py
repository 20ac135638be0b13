"""Months in order: a verdict depends on the champion before it, so a loop's partitions are judged one by one.

A backfill may start its partitions at once; all but the earliest then wait here, with data and model ready.
"""

from __future__ import annotations

import dagster as dg
from treadle.loop import Loop
from treadle_dagster.clock import PARTITION_TAG
from treadle_dagster.resources import TRACK_TAG, TreadleResource

WAIT_SECONDS = 15
LONGEST_WAITS = 240
_OPEN = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def wait_for_earlier(
    context: dg.AssetExecutionContext,
    loop: Loop,
    windows: dg.TimeWindowPartitionsDefinition | None,
    track: str,
) -> None:
    """Returns when no run of an earlier partition of this loop and track is open.

    Raises:
        dg.RetryRequested: One is; after `WAIT_SECONDS` it is asked again, `LONGEST_WAITS` times.
    """
    own = context.run.tags.get(PARTITION_TAG)
    if windows is None or own is None:
        return
    treadle: TreadleResource = context.resources.treadle
    first = windows.time_window_for_partition_key(own).start
    for run in context.instance.get_runs(dg.RunsFilter(statuses=_OPEN)):
        partition = run.tags.get(PARTITION_TAG)
        if (
            partition is None
            or run.run_id == context.run.run_id
            or not _is_of(run, loop, context.assets_def.key)
        ):
            continue
        same_track = run.tags.get(TRACK_TAG, treadle.track) == track
        if same_track and windows.time_window_for_partition_key(partition).start < first:
            context.log.info(
                f"the partition {partition} of {loop.name} is not judged yet (run {run.run_id[:8]}): its champion is"
                f" what {own} is judged against, so this waits"
            )
            raise dg.RetryRequested(max_retries=LONGEST_WAITS, seconds_to_wait=WAIT_SECONDS)


def _is_of(run: dg.DagsterRun, loop: Loop, verdict: dg.AssetKey) -> bool:
    """Whether a run judges this loop: one of its job, or of assets that its verdict is among."""
    return run.job_name == f"{loop.name}_loop" or verdict in (run.asset_selection or ())
