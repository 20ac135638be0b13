"""What a loop's state is, from its release log and records; and the history that a reviewer reads."""

from __future__ import annotations

from datetime import datetime

from treadle.clock import format_instant
from treadle.commit import all_records, find_record
from treadle.records import Candidate, DriftReport, Json, Verdict
from treadle.redaction import redacted
from treadle.registry.log import Entry, champion_in, is_verdict, pending_in, predecessor_in, promotion_of
from treadle.session import Session


def status(session: Session) -> Json:
    """The champion, what waits for a person, the last verdict, drift and trigger, and alerts in words."""
    from treadle.projections import read_receipt

    entries = session.log.entries()
    champion = champion_in(entries)
    pending, before = pending_in(entries), predecessor_in(entries)
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
        "pending": _brief(pending),
        "last_verdict": _brief(verdicts[-1] if verdicts else None),
        "last_retrain": _brief(retrains[-1] if retrains else None),
        "drift": _drift(report),
        "untracked": untracked,
        "alerts": _alerts(entries, pending, report, untracked),
    }


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
    entries: list[Entry], pending: Entry | None, report: DriftReport | None, untracked: list[str]
) -> list[str]:
    alerts = []
    if pending is not None:
        reason = pending.details.get("waits_for") or "it was never finished: run the loop again"
        alerts.append(
            f"a challenger of {pending.as_of.date()} waits for `treadle approve` or `treadle reject`: {reason}"
        )
    verdicts = [entry for entry in entries if is_verdict(entry)]
    if verdicts and verdicts[-1].details.get("decision") == "keep":
        alerts.append(f"the challenger of {verdicts[-1].as_of.date()} lost; its verdict says why")
    if report is not None and report.drifted:
        alerts.append(f"inputs drifted in the window to {report.end.date()}: {report.words}")
    if report is not None and report.quality and report.quality.decayed:
        alerts.append(f"quality decayed in the window to {report.end.date()}: {report.quality.words}")
    if untracked:
        alerts.append(f"{len(untracked)} candidate(s) are not in MLflow yet; the next run tries again")
    return alerts


def champion_at(session: Session, at: datetime) -> Json | None:
    """Who served at a time, and what stands behind that model."""
    entries = session.log.entries()
    return _champion(session, entries, champion_in(entries, at))
