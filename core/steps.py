"""A step for each stage up to the verdict: the record that it takes, and the one that it finds or makes.

The runner walks them in order; an earlier model's features are made by the same steps, from its own files.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.commit import get_record
from treadle.errors import TreadleError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.making import make, with_retries
from treadle.records import Candidate, FeatureSet, Snapshot, Verdict
from treadle.registry.log import Entry, anchor_in, looks_in, verdict_entry
from treadle.session import Session
from treadle.stages import Context, Outcome

if TYPE_CHECKING:
    from treadle.stages.evaluate import Contestant


def key_context(session: Session, loop: Loop | None = None, as_of: datetime | None = None) -> Context:
    """A context for `key` functions, which write nothing."""
    return Context(
        loop or session.loop,
        as_of or session.as_of,
        session.store,
        session.log,
        Path(),
        session.say,
        session.device,
    )


def snapshot_of(session: Session, loop: Loop | None = None, as_of: datetime | None = None) -> Snapshot:
    """The data of a loop as they were known at `as_of`."""
    from treadle.data.sources import source_digests
    from treadle.stages import prepare

    read = loop or session.loop
    about = digest_of(read.part("data"))
    if about not in session.sources:
        session.sources[about] = with_retries(session, "prepare", lambda: source_digests(read))
    sources = session.sources[about]
    return make(
        session,
        Snapshot,
        "prepare",
        prepare.key(key_context(session, loop, as_of), sources),
        lambda context: prepare.prepare(context, sources),
        loop=loop,
        as_of=as_of,
    )


def features_of(
    session: Session, snapshot: Snapshot, loop: Loop | None = None, as_of: datetime | None = None
) -> FeatureSet:
    """The features of a snapshot by a loop's own definitions."""
    from treadle.stages import featurize

    def work(context: Context) -> Outcome:
        made = featurize.featurize(context, snapshot)
        return replace(made, notes={**made.notes, "snapshot_id": snapshot.id})

    key = featurize.key(key_context(session, loop, as_of), snapshot)
    return make(session, FeatureSet, "featurize", key, work, loop=loop, as_of=as_of)


def candidate_of(session: Session, features: FeatureSet) -> Candidate:
    """The model that a loop trains on features."""
    from treadle.models import checkpoints
    from treadle.stages import train

    key = train.key(key_context(session), features)
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
    rivals = [candidate_at(session, champion)] if champion else []
    start, end = evaluate.holdout_span(key_context(session), candidate, *rivals)
    contest = evaluate.Contest(
        challenger=evaluate.Contestant(candidate, features),
        champion=contestant(session, champion, candidate, features) if champion else None,
        anchor=contestant(session, anchor, candidate, features) if champion and anchor else None,
        looks=looks_in(entries, start, end),
    )
    key = evaluate.key(key_context(session), contest)
    return make(session, Verdict, "evaluate", key, lambda context: evaluate.evaluate(context, contest))


def candidate_at(session: Session, entry: Entry) -> Candidate:
    """The candidate that an entry of the log is about, or that serves from there on."""
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

    other = candidate_at(session, entry)
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
