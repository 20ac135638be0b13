"""What a stage's op does: opens the session of its run, asks the runner, and tells Dagster what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
from treadle.errors import DataRefused, TreadleError
from treadle.loop import Loop
from treadle.records import CheckResult, Record
from treadle.registry.log import Entry
from treadle.session import Session
from treadle.stages import STAGES
from treadle_dagster import told
from treadle_dagster.clock import as_of_of, partition_of
from treadle_dagster.drawn import WATCH, Drawn
from treadle_dagster.inputs import made_in_this_run
from treadle_dagster.metadata import Metadata, metadata_of
from treadle_dagster.order import wait_for_earlier
from treadle_dagster.resources import TRACK_TAG, TreadleResource

_HERE = dict.fromkeys(STAGES, "none")
StepResult = dg.MaterializeResult[None] | dg.AssetCheckResult


def run_stage(
    context: dg.AssetExecutionContext,
    loop: Loop,
    drawn: Drawn,
    keys: Mapping[str, dg.AssetKey],
    windows: dg.TimeWindowPartitionsDefinition | None,
) -> Iterator[StepResult]:
    """Runs one stage as the run's clock and track say, and yields its materialization with its checks.

    Raises:
        dg.Failure: What the core refused or could not do, in its own words. dg.RetryRequested: An earlier
            partition of the loop has to be judged first.
    """
    treadle: TreadleResource = context.resources.treadle
    key = keys[drawn.stage]
    with explained(), treadle.environment():
        as_of = as_of_of(context.instance, context.run, loop, windows)
        session = treadle.session(loop, as_of=as_of, track=track_of(context.run), say=context.log.info)
        if drawn.stage == "evaluate":
            wait_for_earlier(context, loop, windows, session.track)
        try:
            made = _made(context, session, keys, drawn.stage)
        except DataRefused as error:
            found = [CheckResult.model_validate(result) for result in error.results]
            if found:
                yield from told.refused(loop, key, drawn.stage, found)
            raise
        if made is None:
            words = f"{loop.name} has no champion at this as_of: there is nothing to look at"
            context.log.info(words)
            yield from told.unasked(loop, key, drawn.stage, words)
            return
        record, ran = made
        shown = metadata_of(record, session, treadle, reused=session.reused.get(drawn.stage, False))
        yield dg.MaterializeResult(
            asset_key=key,
            data_version=dg.DataVersion(record.digest),
            metadata={**shown, **ran},
            check_results=told.results(loop, key, drawn.stage, record, session),
        )


def track_of(run: dg.DagsterRun) -> str | None:
    """The track that a run names by its tag."""
    return run.tags.get(TRACK_TAG)


def _made(
    context: dg.AssetExecutionContext, session: Session, keys: Mapping[str, dg.AssetKey], stage: str
) -> tuple[Record, Metadata] | None:
    """The stage's record, and where its job ran if it has a pool; None where there is no champion to watch yet."""
    from treadle.jobs import pool_of
    from treadle.runner import deploy_champion, run_session
    from treadle.walk import NEEDS

    if stage in WATCH and session.log.champion(session.as_of) is None:
        return None
    session.first_stage = stage  # what comes before is found, and not made here
    given = made_in_this_run(context, keys, stage)
    pool = pool_of(session.loop, stage)
    if stage == "deploy" and (pool is None or "release" not in given):
        return deploy_champion(
            session
        ), {}  # by the log alone: after an answer there is no release at this as_of
    if pool is None:
        return run_session(session, start=stage, to=stage, inputs=given, pools=_HERE)[stage], {}
    for name in NEEDS.get(stage, ()):
        if name not in given:
            given[name] = run_session(session, start=name, to=name, inputs=given, pools=_HERE)[name].id
    from treadle_dagster.pipes import TreadlePipesClient

    needed = {name: given[name] for name in NEEDS.get(stage, ())}
    job = TreadlePipesClient().run(context=context, session=session, stage=stage, pool=pool, inputs=needed)
    return job.record, job.ran()


def champion_event(
    session: Session,
    treadle: TreadleResource,
    key: dg.AssetKey,
    windows: dg.TimeWindowPartitionsDefinition | None,
    entry: Entry,
) -> dg.AssetMaterialization:
    """What an act on the log makes of the champion, which follows it at once."""
    from treadle.runner import deploy_champion

    record = deploy_champion(session)
    said = {"decided_by": entry.who, "reason": entry.details.get("reason") or entry.why}
    return dg.AssetMaterialization(
        asset_key=key,
        partition=partition_of(windows, entry.effective_at) if windows else None,
        metadata={**metadata_of(record, session, treadle, reused=False), **said},
        tags={"dagster/data_version": record.digest},
    )


@contextmanager
def explained() -> Iterator[None]:
    """Errors of the core as failures that Dagster shows in the core's own words."""
    try:
        yield
    except TreadleError as error:
        raise failure_of(error) from error


def failure_of(error: TreadleError) -> dg.Failure:
    """An error of the core in its own words; Dagster retries, where a policy says so, only what can pass."""
    metadata: dict[str, str | bool | int] = {"error": type(error).__name__, "retry can help": error.retryable}
    return dg.Failure(description=str(error), metadata=metadata, allow_retries=error.retryable)
