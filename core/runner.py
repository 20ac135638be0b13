"""The runner: it walks the stages in order; what exists is found, what is missing is made and committed.

prepare ─► featurize ─► train ─► evaluate ─► release ─► deploy      run(...)
│           │                    ▲
└───────────┴─ again, by the champion's own files, for the same rows
features of the champion ─► monitor ─► retrain                      watch(...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from treadle.commit import find_record, get_record
from treadle.errors import SpecError, UserError
from treadle.hardware.backends import get_backend
from treadle.hardware.devices import refuse_missing_devices
from treadle.hardware.pools import Pool
from treadle.hardware.reach import refuse_store_out_of_reach
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.making import make
from treadle.models.devices import refuse_device
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
from treadle.registry.log import PRODUCTION, is_verdict, pending_in
from treadle.session import Run, Session, open_session
from treadle.stages import STAGES
from treadle.stages.train import accepted_flavour
from treadle.steps import (
    candidate_at,
    candidate_of,
    features_by_own_files,
    features_of,
    key_context,
    snapshot_of,
    verdict_of,
)
from treadle.store import Store, read_memo, write_memo
from treadle.walk import Maker, Records, Walk, the


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
    pools: Mapping[str, str] | None = None,
    over_budget: bool = False,
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
        pools: Pool by stage, in place of what the loop's `pools` say; `none` means this process.
        over_budget: Whether jobs may go beyond the loop's budget; their records say who wanted it.

    Raises:
        UserError, Refusal, StoreError, Transient: see `treadle.errors`; production keeps what it had.
    """
    _check_stages(start, to)
    session = open_session(loop, as_of=as_of, store=store, track=track, who=who, say=say)
    session.over_budget = over_budget
    return run_session(session, start=start, to=to, pools=pools)


def run_session(
    session: Session,
    *,
    start: str = "prepare",
    to: str = "deploy",
    inputs: Mapping[str, str] | None = None,
    pools: Mapping[str, str] | None = None,
) -> Run:
    """As `run`, in a session that is open.

    Args:
        session: Where to look and to commit.
        start: The first stage.
        to: The last stage.
        inputs: Ids of records by stage, which another process made for this run: taken as they are. What a stage needs
            and is not among them is found or made; without `inputs`, what comes before `start` is only found.
        pools: See `run`.

    Raises:
        UserError: An input that is no record of this loop, that stage and this as_of. Else as `run`.
    """
    _check_stages(start, to)
    if inputs is None:
        session.first_stage = start
    walk = Walk(session, _MAKERS, inputs=inputs, pools=pools)
    wanted = STAGES[STAGES.index(start) : STAGES.index(to) + 1]
    for stage, pool in walk.pools.items():
        if stage in wanted:
            _refuse_pool(session, stage, pool)
    if "train" in wanted and ":" not in session.loop.train.flavour:
        accepted_flavour(session.loop)  # likewise; a flavour of the loop's own is imported where it trains
    if any(stage in wanted and stage not in walk.pools for stage in ("release", "deploy")):
        from treadle.registry.mlflow import tracking_uri

        tracking_uri(session.loop, session.store)  # a release needs one: better said now than after training
    return _run_of(session, {stage: walk.record(stage) for stage in wanted})


def _refuse_pool(session: Session, stage: str, pool: Pool) -> None:
    """Nothing, where a stage can run on a pool as far as can be told from here: better said before the first stage.

    Raises:
        SpecError: At the pool's line, or at who named it. UserError: The pool's machines can't reach the store.
    """
    from treadle.hardware.local import refuse_missing_program
    from treadle.hardware.look import refuse_what_it_can_not

    refuse_device(session.loop, pool.kind, stage, pool=pool.name)
    refuse_missing_devices(pool)
    refuse_missing_program(pool)
    backend = get_backend(pool.backend)
    try:
        refuse_what_it_can_not(backend, pool, {"stage": stage})
    except SpecError:
        raise
    except UserError as error:
        raise SpecError([pool.fault("", str(error))]) from error
    refuse_store_out_of_reach(backend, pool, session.store.uri)


def _run_of(session: Session, records: dict[str, Record]) -> Run:
    reused, warnings = dict(session.reused), tuple(session.warnings)
    return Run(session.loop.name, session.track, session.as_of, records, reused, warnings)


def _check_stages(start: str, to: str) -> None:
    for stage in (start, to):
        if stage not in STAGES:
            raise UserError(f"{stage!r} is no stage; the stages are: {', '.join(STAGES)}")
    if STAGES.index(start) > STAGES.index(to):
        raise UserError(f"--from {start} comes after --to {to}; the stages in order: {', '.join(STAGES)}")


def _train(session: Session, records: Records) -> Record:
    from treadle import projections

    candidate = candidate_of(session, the(FeatureSet, records))
    projections.project_candidate(session, candidate)
    return candidate


def _release(session: Session, records: Records) -> Record:
    """The verdict's entry in the log; MLflow must know the candidate before."""
    from treadle import projections
    from treadle.stages import release

    verdict, candidate = the(Verdict, records), the(Candidate, records)
    if verdict.decision in ("promote", "hold") and not release.is_intact(session.log, verdict, session.as_of):
        projections.require_version(session, candidate)
    made = make(
        session,
        Release,
        "release",
        release.key(key_context(session), verdict),
        lambda context: release.release(context, verdict, candidate, who=session.who),
        trusted=lambda: release.is_intact(session.log, verdict, session.as_of),
    )
    waiting = pending_in(session.log.entries())
    if waiting is not None and waiting.subject == verdict.id:
        session.warn(f"the challenger waits for a person: {waiting.details.get('waits_for')}")
    return made


def deploy_champion(session: Session) -> Deployment:
    """The desired state by the log, with every projection of it brought into agreement."""
    from treadle.projections import project
    from treadle.stages import deploy

    entry = session.log.champion()
    candidate = candidate_at(session, entry) if entry else None
    features = (
        get_record(session.store, FeatureSet, session.loop.name, candidate.features_id) if candidate else None
    )
    deployment = make(
        session,
        Deployment,
        "deploy",
        deploy.key(key_context(session), entry),
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
    pools: Mapping[str, str] | None = None,
    over_budget: bool = False,
) -> Run:
    """Looks at the newest window and applies the retrain policy; a retrain that is due enters the log.

    Arguments and errors are those of `run`. A loop that has no `retrain` section is only monitored.
    """
    session = open_session(loop, as_of=as_of, store=store, track=track, who=who, say=say)
    session.over_budget = over_budget
    walk = Walk(session, _MAKERS, pools=pools)
    stages = ("monitor", "retrain") if loop.retrain is not None else ("monitor",)
    return _run_of(session, {stage: walk.record(stage) for stage in stages})


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
    champion = candidate_at(session, entry)
    features = features_by_own_files(session, champion, as_of)
    expected = _expected(session, champion, as_of)
    return make(
        session,
        DriftReport,
        "monitor",
        monitor.key(key_context(session, None, as_of), champion, features, expected),
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

    context = key_context(session)
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


_MAKERS: dict[str, Maker] = {
    "prepare": lambda session, records: snapshot_of(session),
    "featurize": lambda session, records: features_of(session, the(Snapshot, records)),
    "train": _train,
    "evaluate": lambda session, records: verdict_of(
        session, the(Candidate, records), the(FeatureSet, records)
    ),
    "release": _release,
    "deploy": lambda session, records: deploy_champion(session),
    "monitor": lambda session, records: drift_report(session, session.as_of),
    "retrain": lambda session, records: retrain_decision(session),
}
