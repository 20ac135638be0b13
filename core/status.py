"""What a loop's state is, from its release log and records; and the history that a reviewer reads."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from pathlib import Path

from treadle.clock import format_instant
from treadle.commit import all_records, find_record
from treadle.records import Candidate, DriftReport, Json, Verdict
from treadle.redaction import redacted
from treadle.registry.log import (
    PRODUCTION,
    Entry,
    champion_in,
    is_verdict,
    pending_in,
    predecessor_in,
    promotion_of,
)
from treadle.review import data_warnings
from treadle.session import Session
from treadle.words import counted, moment


def status(session: Session) -> Json:
    """The champion, what waits for a person, the last verdict, drift and trigger, and alerts in words."""
    from treadle.projections import read_receipt

    entries = session.log.entries()
    champion = champion_in(entries)
    pending, before = pending_in(entries), predecessor_in(entries)
    answers = _answers(session, pending) if pending is not None else []
    verdicts = [entry for entry in entries if is_verdict(entry)]
    retrains = [entry for entry in entries if entry.kind == "retrain"]
    report = _newest_report(session, champion)
    untracked = [
        entry.details["candidate_id"]
        for entry in verdicts[-5:]
        if read_receipt(session, f"candidate-{entry.details['candidate_id']}") is None
    ]
    return {
        "loop": session.loop.name,
        "track": session.track,
        "store": redacted(session.store.uri),
        "entries": len(entries),
        "champion": _champion(session, entries, champion),
        "predecessor": before.candidate if before else None,
        "pending": None if pending is None else {**(_brief(pending) or {}), "commands": answers},
        "last_verdict": _brief(verdicts[-1] if verdicts else None),
        "last_retrain": _brief(retrains[-1] if retrains else None),
        "drift": _drift(report),
        "untracked": untracked,
        "alerts": _alerts(entries, pending, answers, report, untracked),
    }


def _answers(session: Session, pending: Entry) -> list[str]:
    """The commands that end a proposal: a person's answers, or the run that finishes it."""
    if not pending.details.get("waits_for"):
        return [
            _command(session, "run", ["--as-of", format_instant(pending.as_of).removesuffix("T00:00:00Z")])
        ]
    other = ["--by", "NAME"] if session.loop.approval == "manual" else []
    return [_command(session, act, ["--reason", "WHY", *other]) for act in ("approve", "reject")]


def _command(session: Session, act: str, options: list[str]) -> str:
    """A command on this loop, store and track, to be typed where this process runs."""
    path = session.loop.file.path if session.loop.file else None
    if path is not None and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    words = ["treadle", act, str(path or "LOOP"), *options]
    usual = os.environ.get("TREADLE_STORE") or str(session.loop.folder / ".treadle")
    if session.store.uri not in (usual, str(Path(usual).absolute())):
        words += ["--store", redacted(session.store.uri)]
    if session.track != PRODUCTION:
        words += ["--track", session.track]
    return shlex.join(words)


def _champion(session: Session, entries: list[Entry], champion: Entry | None) -> Json | None:
    if champion is None:
        return None
    promotion = promotion_of(entries, champion.candidate or "") or champion
    record = find_record(session.store, Candidate, session.loop.name, champion.details["candidate_id"])
    verdict = find_record(session.store, Verdict, session.loop.name, promotion.evidence or "")
    return {
        "candidate": champion.candidate,
        "candidate_id": champion.details["candidate_id"],
        "version": champion.sequence,
        "since": format_instant(champion.effective_at),
        "by": champion.who,
        "approved_by": promotion.details.get("approved_by"),
        "why": champion.why,
        "verdict": promotion.evidence,
        "trained_through": format_instant(record.trained_through) if record else None,
        "features": record.features if record else None,
        "recipe": record.recipe if record else None,
        "files": _files(record),
        "metrics": verdict.metrics.get("challenger", {}) if verdict else {},
        "criteria": {criterion.name: criterion.status for criterion in verdict.criteria} if verdict else {},
        "warnings": data_warnings(session, record),
    }


def _files(record: Candidate | None) -> dict[str, str]:
    """The loop's files that the model was made by, with their hashes."""
    if record is None:
        return {}
    return {
        name.removeprefix("loop/files/"): sha256[:12]
        for name, sha256 in record.blobs.items()
        if name.startswith("loop/files/")
    }


def _brief(entry: Entry | None) -> Json | None:
    if entry is None:
        return None
    return {
        "sequence": entry.sequence,
        "kind": entry.kind,
        "candidate": entry.candidate,
        "why": entry.why,
        "who": entry.who,
        "as_of": format_instant(entry.as_of),
        "decision": entry.details.get("decision"),
        "waits_for": entry.details.get("waits_for"),
        "evidence": entry.evidence,
    }


def _newest_report(session: Session, champion: Entry | None) -> DriftReport | None:
    if champion is None:
        return None
    reports = [
        report
        for report in all_records(session.store, DriftReport, session.loop.name)
        if report.candidate == champion.candidate
    ]
    return max(reports, key=lambda report: (report.end, report.id), default=None)


def _drift(report: DriftReport | None) -> Json | None:
    if report is None:
        return None
    return {
        "report": report.id,
        "start": format_instant(report.start),
        "end": format_instant(report.end),
        "drifted": report.drifted,
        "share": report.share,
        "decayed": bool(report.quality and report.quality.decayed),
        "words": report.words,
    }


def _alerts(
    entries: list[Entry],
    pending: Entry | None,
    answers: list[str],
    report: DriftReport | None,
    untracked: list[str],
) -> list[str]:
    alerts = []
    if pending is not None:
        who = "a challenger" if pending.champion else "a first model"
        reason = pending.details.get("waits_for")
        if reason == pending.why:
            reason = "the gate holds it, as its verdict says"
        problem = f"waits for a person: {reason}" if reason else "was proposed, and its run never finished"
        alerts.append("\n".join([f"{who} of {moment(pending.as_of)} {problem}", *answers]))
    verdicts = [entry for entry in entries if is_verdict(entry)]
    if verdicts and verdicts[-1].details.get("decision") == "keep":
        alerts.append(
            f"the challenger of {moment(verdicts[-1].as_of)} lost; `history --verdict last` says why"
        )
    if report is not None and report.drifted:
        alerts.append(f"inputs drifted in the window to {moment(report.end)}: {report.words}")
    if report is not None and report.quality and report.quality.decayed:
        alerts.append(f"quality decayed in the window to {moment(report.end)}: {report.quality.words}")
    if untracked:
        are = "is" if len(untracked) == 1 else "are"
        alerts.append(f"{counted(len(untracked), 'model')} {are} not in MLflow yet; the next run tries again")
    return alerts


def champion_at(session: Session, at: datetime) -> Json | None:
    """Who served at a time, and what stands behind that model."""
    entries = session.log.entries()
    return _champion(session, entries, champion_in(entries, at))
