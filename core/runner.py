"""The runner: the only caller of stages. It finds what exists, makes what is missing, and commits it.

prepare ─► featurize ─► train ─► evaluate ─► release ─► deploy      run(...)
│           │                    ▲
└───────────┴─ again, by the champion's own files, for the same rows
features of the champion ─► monitor ─► retrain                      watch(...)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from treadle.clock import format_instant
from treadle.commit import commit_record, find_record, get_record, lost_blobs, make_record
from treadle.errors import TreadleError, UserError
from treadle.identity import digest_of
from treadle.leases import lease
from treadle.loop import Loop
from treadle.records import (
    Candidate,
    Deployment,
    FeatureSet,
    Json,
    Record,
    Release,
    Snapshot,
    Verdict,
    record_id,
)
from treadle.registry.log import PRODUCTION, anchor_in, looks_in, verdict_entry
from treadle.session import Run, Session, open_session
from treadle.stages import STAGES, Context, Outcome
from treadle.store import Store, put_blob, scratch_folder

R = TypeVar("R", bound=Record)


def make(
    session: Session,
    kind: type[R],
    stage: str,
    key: Json,
    work: Callable[[Context], Outcome],
    *,
    loop: Loop | None = None,
    as_of: datetime | None = None,
    trusted: Callable[[], bool] = lambda: True,
) -> R:
    """The record that a key makes: the one in the store if it is intact, else made now under a lease.

    Args:
        session: Where to look and to commit.
        kind: The class of the record.
        stage: The stage's name.
        key: What makes the record.
        work: The stage.
        loop: Another loop than the session's: that of an earlier candidate.
        as_of: Another clock than the session's: that of an earlier window.
        trusted: Whether a record that is there may be reused, beyond being intact.

    Raises:
        Whatever the stage raises; a transient failure only after the loop's `retry.attempts`.
    """
    own = loop is None and as_of is None
    loop, as_of = loop or session.loop, as_of or session.as_of
    id_ = record_id(kind.kind, loop.name, key)

    def intact() -> R | None:
        found = find_record(session.store, kind, loop.name, id_)
        if found is None or lost_blobs(session.store, found) or not trusted():
            return None
        return found

    found = intact()
    if own:
        session.reused[stage] = found is not None
    if found is not None:
        session.say(f"{stage}: nothing changed, {found}")
        return found
    if own and STAGES.index(stage) < STAGES.index(session.first_stage):
        raise UserError(
            f"--from {session.first_stage} needs what {stage} makes, and the store has none for these data,"
            f" this loop and this as_of. Run with --from {stage}."
        )
    with lease(session.store, f"{kind.kind}-{id_}", done=lambda: intact() is not None) as held:
        found = intact()
        if found is not None:
            session.say(f"{stage}: made by another process, {found}")
            return found
        del held
        session.say(f"{stage} ...")
        started = time.monotonic()
        with scratch_folder() as scratch:
            context = Context(loop, as_of, session.store, session.log, scratch, session.say)
            outcome = _with_retries(session, stage, lambda: work(context))
            record = _commit(session, kind, loop, as_of, key, outcome, time.monotonic() - started)
        session.say(f"{stage}: {record!r} in {time.monotonic() - started:.1f} s")
        return record


def _commit(
    session: Session, kind: type[R], loop: Loop, as_of: datetime, key: Json, outcome: Outcome, seconds: float
) -> R:

    blobs = dict(outcome.kept)
    for name, content in sorted(outcome.files.items()):
        blobs[name] = put_blob(session.store, content)
    results = dict(outcome.results)
    digest = outcome.digest or digest_of({"results": results, "blobs": blobs})
    made = {"made_at": format_instant(datetime.now(UTC)), "seconds": round(seconds, 3), "by": session.who}
    record = make_record(
        kind,
        loop=loop.name,
        as_of=as_of,
        key=key,
        digest=digest,
        results=results,
        blobs=dict(sorted(blobs.items())),
        notes={**made, **outcome.notes},
    )
    return commit_record(session.store, record)


def _with_retries(session: Session, what: str, work: Callable[[], Any]) -> Any:
    """Tries transient failures again, with pauses that double; everything else is raised at once."""
    retry = session.loop.retry
    for attempt in range(1, retry.attempts + 1):
        try:
            return work()
        except (TreadleError, ConnectionError, TimeoutError) as error:
            retryable = getattr(error, "retryable", True)
            if not retryable or attempt == retry.attempts:
                raise
            pause = retry.wait.total_seconds() * 2 ** (attempt - 1)
            session.say(f"{what}: {error} Trying again in {pause:g} s ({attempt} of {retry.attempts}).")
            time.sleep(pause)
    raise AssertionError("attempts is at least 1")


def run(
    loop: Loop,
    *,
    as_of: datetime | str | None = None,
    start: str = "prepare",
    to: str = "deploy",
    store: Store | str | Path | None = None,
    track: str = PRODUCTION,
    who: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Turns the wheel once: every stage from `start` to `to`, what exists reused.

    Args:
        loop: The loop.
        as_of: The clock; defaults to the end of the loop's history, else today in UTC.
        start: The first stage that may do work; the records of those before it must be in the store.
        to: The last stage.
        store: A Store, a folder or a URI; defaults to `TREADLE_STORE`, else `.treadle` beside the loop.
        track: Whose release log is read and written.
        who: Who asks; defaults to `TREADLE_USER`, else the login name.
        say: Takes lines of progress.

    Raises:
        UserError, Refusal, StoreError, Transient: see `treadle.errors`; production keeps what it had.
    """
    _check_stages(start, to)
    session = open_session(loop, as_of=as_of, store=store, track=track, who=who, say=say)
    return run_session(session, start=start, to=to)


def run_session(session: Session, *, start: str = "prepare", to: str = "deploy") -> Run:
    """As `run`, in a session that is open."""
    first, last = STAGES.index(start), STAGES.index(to)
    session.first_stage = start
    records: dict[str, Record] = {}
    if first <= STAGES.index("deploy"):
        _circle(session, records, last)
    if last >= STAGES.index("monitor"):
        records["monitor"] = drift_report(session, session.as_of)
    if last >= STAGES.index("retrain"):
        records["retrain"] = retrain_decision(session)
    wanted = {stage: record for stage, record in records.items() if STAGES.index(stage) >= first}
    return Run(
        session.loop.name, session.track, session.as_of, wanted, dict(session.reused), tuple(session.warnings)
    )


def _check_stages(start: str, to: str) -> None:
    for stage in (start, to):
        if stage not in STAGES:
            raise UserError(f"{stage!r} is no stage; the stages are: {', '.join(STAGES)}")
    if STAGES.index(start) > STAGES.index(to):
        raise UserError(f"--from {start} comes after --to {to}; the stages in order: {', '.join(STAGES)}")


def _circle(session: Session, records: dict[str, Record], last: int) -> None:
    """Prepare to deploy, as far as `last`."""
    from treadle import projections
    from treadle.stages import release

    records["prepare"] = snapshot = snapshot_of(session)
    if last < 1:
        return
    records["featurize"] = features = features_of(session, snapshot)
    if last < 2:
        return
    records["train"] = candidate = candidate_of(session, features)
    projections.project_candidate(session, candidate)
    if last < 3:
        return
    records["evaluate"] = verdict = verdict_of(session, candidate, features)
    if last < 4:
        return
    if verdict.decision in ("promote", "hold") and not release.is_intact(session.log, verdict, session.as_of):
        projections.require_version(session, candidate)
    records["release"] = make(
        session,
        Release,
        "release",
        release.key(_key_context(session), verdict),
        lambda context: release.release(context, verdict, candidate, who=session.who),
        trusted=lambda: release.is_intact(session.log, verdict, session.as_of),
    )
    if last >= 5:
        records["deploy"] = deploy_champion(session)


def _key_context(session: Session, loop: Loop | None = None, as_of: datetime | None = None) -> Context:
    """A context for `key` functions, which write nothing."""
    return Context(
        loop or session.loop, as_of or session.as_of, session.store, session.log, Path(), session.say
    )


def snapshot_of(session: Session, loop: Loop | None = None, as_of: datetime | None = None) -> Snapshot:
    """The data of a loop as they were known at `as_of`."""
    from treadle.data.sources import source_digests
    from treadle.stages import prepare

    loop = loop or session.loop
    digests = session.sources.setdefault(digest_of(loop.part("data")), source_digests(loop))
    context = _key_context(session, loop, as_of)
    return make(
        session, Snapshot, "prepare", prepare.key(context, digests), prepare.prepare, loop=loop, as_of=as_of
    )


def features_of(
    session: Session, snapshot: Snapshot, loop: Loop | None = None, as_of: datetime | None = None
) -> FeatureSet:
    """The features of a snapshot by a loop's own definitions."""
    from treadle.stages import featurize

    key = featurize.key(_key_context(session, loop, as_of), snapshot)
    return make(
        session,
        FeatureSet,
        "featurize",
        key,
        lambda context: featurize.featurize(context, snapshot),
        loop=loop,
        as_of=as_of,
    )


def candidate_of(session: Session, features: FeatureSet) -> Candidate:
    """The model that a loop trains on features."""
    from treadle.stages import train

    key = train.key(_key_context(session), features)
    return make(session, Candidate, "train", key, lambda context: train.train(context, features))


def verdict_of(session: Session, candidate: Candidate, features: FeatureSet) -> Verdict:
    """The verdict on a candidate: that of the log at this `as_of` unless it went stale, else a new one."""
    from treadle.stages import evaluate

    entries = session.log.entries()
    told = verdict_entry(entries, candidate.digest, session.as_of)
    if told is not None and told.evidence and not _went_stale(session, told):
        session.reused["evaluate"] = True
        session.say(f"evaluate: the log holds the verdict on {candidate}")
        return get_record(session.store, Verdict, session.loop.name, told.evidence)
    champion, anchor = session.log.champion(session.as_of), anchor_in(entries, session.as_of)
    start, end = evaluate.holdout_span(_key_context(session), candidate)
    contest = evaluate.Contest(
        challenger=evaluate.Contestant(candidate, features),
        champion=contestant(session, champion, candidate, features) if champion else None,
        anchor=contestant(session, anchor, candidate, features) if champion and anchor else None,
        looks=looks_in(entries, start, end),
    )
    key = evaluate.key(_key_context(session), contest)
    return make(session, Verdict, "evaluate", key, lambda context: evaluate.evaluate(context, contest))


def _went_stale(session: Session, told: Any) -> bool:
    """Whether a proposal in the log can't be released any more because another champion serves."""
    entries = session.log.entries()
    answered = any(
        e.kind in ("promote", "reject", "approve") and e.subject == told.subject
        for e in entries[told.sequence :]
    )
    head = session.log.champion()
    return told.kind == "propose" and not answered and (head.candidate if head else None) != told.champion


def contestant(session: Session, entry: Any, candidate: Candidate, features: FeatureSet) -> Any:
    """The model of a log's entry with the features that its own files make of today's data."""
    from treadle.stages import evaluate

    other = get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
    if other.recipe == candidate.recipe:
        return evaluate.Contestant(other, features)
    try:
        return evaluate.Contestant(other, features_by_own_files(session, other, session.as_of))
    except TreadleError as error:
        if error.retryable:
            raise
        return evaluate.Contestant(other, None, fault=str(error))


def features_by_own_files(session: Session, candidate: Candidate, as_of: datetime) -> FeatureSet:
    """A candidate's features at `as_of`: made by the spec and files that it carries, from today's sources."""
    from treadle.recipe import restore_loop

    loop = restore_loop(session.store, candidate, session.loop)
    return features_of(session, snapshot_of(session, loop, as_of), loop, as_of)


def deploy_champion(session: Session) -> Deployment:
    """The desired state by the log, with every projection of it brought into agreement."""
    from treadle.projections import project
    from treadle.stages import deploy

    entry = session.log.champion()
    candidate = (
        get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
        if entry
        else None
    )
    features = (
        get_record(session.store, FeatureSet, session.loop.name, candidate.features) if candidate else None
    )
    deployment = make(
        session,
        Deployment,
        "deploy",
        deploy.key(_key_context(session), entry),
        lambda context: deploy.deploy(context, candidate, features),
    )
    project(session, entry, candidate)
    return deployment
