"""What stands behind a verdict, for a reviewer: who was judged, on which rows, by what, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from treadle import spec
from treadle.commit import all_records, find_record, get_record
from treadle.errors import UserError
from treadle.gate.words import number_apart, signed, signed_apart
from treadle.records import Candidate, Criterion, FeatureSet, Snapshot, Verdict
from treadle.registry.log import Entry, is_verdict, pending_in
from treadle.session import Session
from treadle.words import moment, short


@dataclass(frozen=True, slots=True)
class Review:
    """A verdict with what it speaks of; `champion` is None for a first model, `entries` are the log's about it."""

    verdict: Verdict
    challenger: Candidate | None
    champion: Candidate | None
    entries: tuple[Entry, ...]
    waits: bool
    warnings: tuple[str, ...]


def find_verdict(session: Session, which: str) -> Verdict:
    """A verdict by its id or how that begins, by its model's name, or `last` for the newest of the track's log.

    Raises:
        UserError: There is none, or several.
    """
    told = [entry for entry in session.log.entries() if is_verdict(entry) and entry.evidence]
    if which == "last":
        if not told:
            raise UserError(
                f"the gate has judged no model of {session.loop.name} on track {session.track}: run the loop first"
            )
        return get_record(session.store, Verdict, session.loop.name, told[-1].evidence or "")
    if not re.fullmatch(r"[0-9a-f]{4,64}(\.\d+)?", which):
        raise UserError(
            f"--verdict {which!r} is no id: give the first characters, four or more, of a verdict's id or of a model's"
            " name, or last"
        )
    found = {verdict.id: verdict for verdict in all_records(session.store, Verdict, session.loop.name)}
    # A model that was judged again has several verdicts: its newest counts.
    newest = {e.candidate: e.evidence or "" for e in told if (e.candidate or "").startswith(which)}
    matching = {*(id_ for id_ in found if id_.startswith(which)), *newest.values()} & found.keys()
    if len(matching) == 1:
        return found[matching.pop()]
    listed = [f"{short(id_)} (model {short(found[id_].challenger)})" for id_ in sorted(matching)]
    if matching:
        raise UserError(f"--verdict {which} begins several: {', '.join(listed)}. Give more of it.")
    known = [f"{short(e.evidence)} (model {short(e.candidate)}, {moment(e.as_of)})" for e in told[-5:]]
    raise UserError(
        f"no verdict of {session.loop.name}, and no model that was judged on track {session.track}, begins with"
        f" {which}. The newest are: {', '.join(known) or 'none'}."
    )


def review(session: Session, verdict: Verdict) -> Review:
    """All that a reviewer of a verdict asks for."""
    entries = session.log.entries()
    about = tuple(entry for entry in entries if entry.subject == verdict.id)
    pending = pending_in(entries)
    challenger = find_record(session.store, Candidate, session.loop.name, verdict.challenger_id)
    return Review(
        verdict=verdict,
        challenger=challenger,
        champion=_by_digest(session, entries, verdict.champion),
        entries=about,
        waits=pending is not None and pending.subject == verdict.id,
        warnings=tuple(data_warnings(session, challenger)),
    )


def _by_digest(session: Session, entries: Sequence[Entry], digest: str | None) -> Candidate | None:
    ids = [entry.details.get("candidate_id") for entry in entries if entry.candidate == digest]
    known = next((id_ for id_ in ids if id_), None) if digest else None
    return find_record(session.store, Candidate, session.loop.name, known) if known else None


def data_warnings(session: Session, candidate: Candidate | None) -> list[str]:
    """What the checks of a model's data and features found and let pass."""
    from treadle.data.findings import warnings_of

    if candidate is None or not candidate.features_id:
        return []
    features = find_record(session.store, FeatureSet, session.loop.name, candidate.features_id)
    if features is None:
        return []
    made_from = features.notes.get("snapshot_id", "")
    snapshot = find_record(session.store, Snapshot, session.loop.name, made_from) if made_from else None
    return warnings_of([*(snapshot.checks if snapshot else ()), *features.checks])


def interval_share(verdict: Verdict) -> float:
    """Which share of trials the verdict's interval covers."""
    gate = spec.Gate.model_validate(verdict.key.get("spec", {}).get("gate", {}))
    return 1 - 2 * gate.alpha


CRITERIA = ("criterion", "challenger", "champion", "difference", "interval", "asked", "status")


def criteria_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """A row for each criterion but those of slices and groups; see `CRITERIA`."""
    return [_row(verdict, criterion) for criterion in verdict.criteria if not is_group(criterion)]


def is_group(criterion: Criterion) -> bool:
    """Whether a criterion is about a part of the rows."""
    return criterion.name.startswith(("slice:", "fairness:"))


def _row(verdict: Verdict, criterion: Criterion) -> tuple[str, ...]:
    kind, _, metric = criterion.name.partition(":")
    loss = verdict.comparison.loss if verdict.comparison else ""
    observed, allowed = criterion.observed, criterion.allowed
    bound = "" if observed is None else signed_apart(observed, allowed or 0.0)
    limit = "" if allowed is None else signed(allowed)
    if kind in ("non_inferiority", "superiority", "baseline"):
        name, cells = (
            f"{loss} ({kind})",
            _main_cells(verdict, "baseline" if kind == "baseline" else "champion"),
        )
    elif kind == "anchor":
        name = f"{loss} (anchor)"
        interval = f"up to {bound}" if bound else ""
        cells = (
            *_pair(verdict, loss, "anchor"),
            _change(verdict, loss, "anchor"),
            interval,
            f"below {limit}",
        )
    elif kind == "guard":
        name, side = f"{metric} (guard)", _side(metric)
        interval = f"{side} {bound}" if bound else ""
        pair = _pair(verdict, metric, "champion")
        cells = (*pair, _change(verdict, metric, "champion"), interval, f"{side} {limit}")
    else:
        name = f"{metric} (floor)" if kind == "floor" else criterion.name
        own = "" if observed is None else number_apart(observed, allowed or 0.0)
        side = _side(metric) if kind == "floor" else "up to"
        cells = (own, "", "", "", "" if allowed is None else f"{side} {allowed:.4g}")
    return name, *cells, criterion.status


def _main_cells(verdict: Verdict, other: str) -> tuple[str, ...]:
    seen = verdict.comparison
    if seen is None:
        return ("",) * 5
    interval = ""
    if seen.low is not None and seen.high is not None:
        interval = f"{signed(seen.low)} to {signed_apart(seen.high, seen.bound or 0.0)}"
    difference = "" if seen.difference is None else signed(seen.difference)
    return (
        *_pair(verdict, seen.loss, other),
        difference,
        interval,
        f"below {signed(seen.bound) if seen.bound else 0}",
    )


def _side(metric: str) -> str:
    from treadle.gate.metrics import HIGHER_IS_BETTER

    return "from" if HIGHER_IS_BETTER[metric] else "up to"


def _pair(verdict: Verdict, metric: str, other: str) -> tuple[str, str]:
    """A metric of the challenger and of another model, which is named where it is not the champion."""
    mine, theirs = (verdict.metrics.get(model, {}).get(metric) for model in ("challenger", other))
    if mine is None or theirs is None:
        return "" if mine is None else f"{mine:.4g}", ""
    name = "" if other == "champion" else f" ({other})"
    return number_apart(mine, theirs), f"{number_apart(theirs, mine)}{name}"


def _change(verdict: Verdict, metric: str, other: str) -> str:
    mine, theirs = (verdict.metrics.get(model, {}).get(metric) for model in ("challenger", other))
    return "" if mine is None or theirs is None else signed(mine - theirs)
