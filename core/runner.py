"""The runner: the only caller of stages. It finds what exists, makes what is missing, and commits it.

prepare ─► featurize ─► train ─► evaluate ─► release ─► deploy      run(...)
│           │                    ▲
└───────────┴─ again, by the champion's own files, for the same rows
features of the champion ─► monitor ─► retrain                      watch(...)
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.commit import find_record, get_record
from treadle.errors import TreadleError, UserError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.making import make
from treadle.records import (
    Candidate,
    Deployment,
    DriftReport,
    FeatureSet,
    Record,
    Release,
    RetrainDecision,
    Snapshot,
    Verdict,
)
from treadle.registry.log import (
    PRODUCTION,
    Entry,
    anchor_in,
    is_verdict,
    looks_in,
    pending_in,
    verdict_entry,
)
from treadle.session import Run, Session, open_session
from treadle.stages import STAGES, Context
from treadle.store import Store, read_memo, write_memo

if TYPE_CHECKING:
    from treadle.stages.evaluate import Contestant


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
        loop: Whose wheel.
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
    from treadle.registry.mlflow import tracking_uri
    from treadle.stages import release

    if last >= 4:
        tracking_uri(session.loop, session.store)  # a release needs one: better said now than after training
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
    waiting = pending_in(session.log.entries())
    if waiting is not None and waiting.subject == verdict.id:
        session.warn(f"the challenger waits for a person: {waiting.details.get('waits_for')}")
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

    read = loop or session.loop
    about = digest_of(read.part("data"))
    if about not in session.sources:
        session.sources[about] = source_digests(read)
    sources = session.sources[about]
    return make(
        session,
        Snapshot,
        "prepare",
        prepare.key(_key_context(session, loop, as_of), sources),
        lambda context: prepare.prepare(context, sources),
        loop=loop,
        as_of=as_of,
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
    from treadle.models import checkpoints
    from treadle.stages import train

    key = train.key(_key_context(session), features)
    candidate = make(session, Candidate, "train", key, lambda context: train.train(context, features))
    if not session.reused["train"]:
        checkpoints.clear(session.store, candidate.id.partition(".")[0])
    return candidate


def verdict_of(session: Session, candidate: Candidate, features: FeatureSet) -> Verdict:
    """The verdict on a candidate: that of the log at this `as_of` unless it went stale, else a new one."""
    from treadle.stages import evaluate

    entries = session.log.entries()
    told = verdict_entry(entries, candidate.digest, session.as_of)
    if told is not None and told.evidence and not _went_stale(session, told):
        session.reused["evaluate"] = True
        session.say(f"evaluate: the log holds the verdict on {candidate}")
        verdict = get_record(session.store, Verdict, session.loop.name, told.evidence)
        if verdict.key.get("spec") != session.loop.part("gate"):
            session.warn(
                f"the gate has judged this candidate as of {session.as_of.date()} by other settings;"
                " that verdict stands. To try a gate, use a track of its own: --track NAME."
            )
        return verdict
    champion, anchor = session.log.champion(session.as_of), anchor_in(entries, session.as_of)
    rivals = [_candidate(session, champion)] if champion else []
    start, end = evaluate.holdout_span(_key_context(session), candidate, *rivals)
    contest = evaluate.Contest(
        challenger=evaluate.Contestant(candidate, features),
        champion=contestant(session, champion, candidate, features) if champion else None,
        anchor=contestant(session, anchor, candidate, features) if champion and anchor else None,
        looks=looks_in(entries, start, end),
    )
    key = evaluate.key(_key_context(session), contest)
    return make(session, Verdict, "evaluate", key, lambda context: evaluate.evaluate(context, contest))


def _candidate(session: Session, entry: Entry) -> Candidate:
    return get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])


def _went_stale(session: Session, told: Entry) -> bool:
    """Whether a proposal in the log can't be released any more because another champion serves."""
    entries = session.log.entries()
    answered = any(
        e.kind in ("promote", "reject", "approve") and e.subject == told.subject
        for e in entries[told.sequence :]
    )
    head = session.log.champion()
    return told.kind == "propose" and not answered and (head.candidate if head else None) != told.champion


def contestant(session: Session, entry: Entry, candidate: Candidate, features: FeatureSet) -> Contestant:
    """The model of a log's entry with the features that its own files make of today's data."""
    from treadle.stages import evaluate

    other = _candidate(session, entry)
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
    candidate = _candidate(session, entry) if entry else None
    features = (
        get_record(session.store, FeatureSet, session.loop.name, candidate.features_id) if candidate else None
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


def watch(
    loop: Loop,
    *,
    as_of: datetime | str | None = None,
    store: Store | str | Path | None = None,
    track: str = PRODUCTION,
    who: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Looks at the newest window and applies the retrain policy; a retrain that is due enters the log.

    Arguments and errors are those of `run`. A loop that has no `retrain` section is only monitored.
    """
    session = open_session(loop, as_of=as_of, store=store, track=track, who=who, say=say)
    records: dict[str, Record] = {"monitor": drift_report(session, session.as_of)}
    if loop.retrain is not None:
        records["retrain"] = retrain_decision(session)
    return Run(loop.name, track, session.as_of, records, dict(session.reused), tuple(session.warnings))


def drift_report(session: Session, as_of: datetime) -> DriftReport:
    """The report of the window that ends at `as_of`, beside the data of the model that was champion then.

    Raises:
        UserError: There was no champion then, or the loop has no `monitor` section.
    """
    from treadle.stages import monitor

    entry = session.log.champion(as_of)
    if entry is None:
        raise UserError(
            f"{session.loop.name} had no champion on track {session.track} as of {as_of.date()}:"
            " run the loop first, then monitor it."
        )
    champion = _candidate(session, entry)
    features = features_by_own_files(session, champion, as_of)
    expected = _expected(session, champion, as_of)
    return make(
        session,
        DriftReport,
        "monitor",
        monitor.key(_key_context(session, None, as_of), champion, features, expected),
        lambda context: monitor.monitor(context, champion, features, expected),
        as_of=None if as_of == session.as_of else as_of,
    )


def _expected(session: Session, champion: Candidate, as_of: datetime) -> Verdict | None:
    """The newest verdict before `as_of` that measured the champion's loss."""
    for entry in reversed(session.log.entries()):
        known = entry.effective_at <= as_of and is_verdict(entry) and entry.evidence
        if known and champion.digest in (entry.candidate, entry.champion):
            return find_record(session.store, Verdict, session.loop.name, entry.evidence or "")
    return None


def retrain_decision(session: Session) -> RetrainDecision:
    """Whether the policy asks for a new challenger; if so, it asks in the log, once a trigger.

    Raises:
        UserError: The loop has no `retrain` section.
    """
    from treadle.stages import retrain

    context = _key_context(session)
    reports = _reports(session, retrain.reports_wanted(context))
    features = None
    if session.loop.retrain is not None and "new_labels" in session.loop.retrain.on:
        features = features_of(session, snapshot_of(session))
    decision = make(
        session,
        RetrainDecision,
        "retrain",
        retrain.key(context, reports=reports, features=features),
        lambda context: retrain.retrain(context, reports=reports, features=features),
    )
    if decision.due and decision.subject and decision.run_as_of:
        session.log.append(
            "retrain",
            subject=decision.subject,
            evidence=decision.id,
            why=decision.why,
            who=session.who,
            as_of=decision.run_as_of,
            details=decision.details,
        )
    return decision


def _reports(session: Session, wanted: int) -> list[DriftReport]:
    """The reports of the newest windows that do not overlap, newest first, each made or reused at its own time."""
    found: list[DriftReport] = []
    monitoring = session.loop.monitor
    for number in range(wanted if monitoring is not None else 0):
        assert monitoring is not None
        as_of = session.as_of - number * monitoring.every
        entry = session.log.champion(as_of)
        if entry is None:
            break
        # Sources grow every day; the window of last week does not, so its report is found by what it was about.
        memo = digest_of(
            {
                "loop": session.loop.name,
                "track": session.track,
                "as_of": as_of.isoformat(),
                "champion": entry.candidate,
                "spec": session.loop.part("monitor", "gate"),
            }
        )
        told = read_memo(session.store, "report", memo)
        report = find_record(session.store, DriftReport, session.loop.name, told["id"]) if told else None
        if report is None:
            report = drift_report(session, as_of)
            write_memo(session.store, "report", memo, {"id": report.id})
        found.append(report)
    return found
