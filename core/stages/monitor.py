"""monitor: how a window looks beside what the champion was trained on, and how well it was predicted.

    window  = [as_of - every, as_of)                          inputs, predictions, attributions
    quality = the same, earlier by the label's delay          losses, once labels are known

A window `drifted` when the share of drifted columns reaches `drift.share`, or when the model's attention
moved: the total variation of the contribution shares is above `drift.attribution` and above what redrawn
training data show. The drift of predictions is reported and decides nothing: a model is sharper on rows that
it learned from.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from treadle.clock import format_duration, format_instant
from treadle.commit import get_record
from treadle.errors import MissingPackage, StoreError, UserError
from treadle.identity import digest_of
from treadle.records import Candidate, ColumnDrift, FeatureSet, Json, Partition, Quality, Verdict
from treadle.spec import Monitor
from treadle.stages import Context, Outcome
from treadle.words import apart, counted, percents

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.models.predictor import Predictor
    from treadle.monitoring.gather import Gathered
    from treadle.monitoring.profile import Reference

VERSION = 2
PAGE_ROWS = 5_000


def key(
    context: Context, champion: Candidate | None, features: FeatureSet, expected: Verdict | None = None
) -> Json:
    """What makes a drift report. Only partitions that the window touches count: later data change nothing.

    Args:
        context: Where and when.
        champion: The model that serves at `as_of`.
        features: By the champion's own definitions.
        expected: The newest verdict that measured the champion's loss.

    Raises:
        UserError: There is no champion, or the loop has no `monitor` section.
    """
    champion, monitoring = _needed(context, champion)
    start = context.as_of - monitoring.every
    return {
        "stage": "monitor",
        "version": VERSION,
        "spec": {
            **context.loop.part("monitor"),
            "loss": context.loop.gate.loss,
            "block": format_duration(context.loop.gate.block),
            "label_delay": format_duration(context.loop.data.label_delay),
        },
        "start": format_instant(start),
        "end": format_instant(context.as_of),
        "candidate": champion.digest,
        "served": [[format_instant(moment), digest] for moment, digest in _changes(context, _first(context))],
        "expected": _expected_numbers(expected, champion),
        "features": [[part.name, part.digest] for part in _touched(features, _first(context), context.as_of)],
        "captures": _captures_digest(context, champion),
    }


def monitor(
    context: Context, champion: Candidate | None, features: FeatureSet, expected: Verdict | None = None
) -> Outcome:
    """The drift report of the window that ends at `as_of`, with the page `drift.html` where it drifted.

    Args:
        context: Where and when.
        champion: The model that serves at `as_of`.
        features: By the champion's own definitions.
        expected: The newest verdict that measured the champion's loss; without, decay can't be judged.

    Raises:
        UserError: There is no champion, or the loop has no `monitor` section.
        BlobLost: A partition, the champion's files or its reference are gone.
    """
    from treadle.data.tables import read_partitions
    from treadle.models import load_candidate
    from treadle.monitoring.captures import read_captures
    from treadle.monitoring.gather import gather
    from treadle.monitoring.quality import in_words

    champion, monitoring = _needed(context, champion)
    start, end, first = context.as_of - monitoring.every, context.as_of, _first(context)
    touched = _touched(features, first, end)
    results: Json = {
        "candidate": champion.digest,
        "start": format_instant(start),
        "end": format_instant(end),
    }
    counts = {"rows": 0, "captured": 0, "replayed": 0}
    if not touched:
        return _outcome({**results, **counts, "words": "there are no rows in this window"})
    predictor = load_candidate(context.store, champion, trust=context.loop.train.trust)
    gathered = gather(
        read_partitions(context.store, touched, start=first, end=end),
        read_captures(context.store, _capture_paths(context, champion), first, end),
        champion.digest,
        predictor,
        start=start,
        end=end,
        changes=_changes(context, first),
        load=lambda digest: _earlier(context, digest),
    )
    rows = gathered.inputs.num_rows
    quality = _quality(context, monitoring, predictor, gathered, _expected_numbers(expected, champion))
    results |= {"rows": rows, "captured": gathered.captured, "replayed": gathered.replayed}
    results["quality"] = quality.model_dump(mode="json")
    if rows < monitoring.drift.min_rows:
        few = f"too few rows to judge drift, {rows:,} of {monitoring.drift.min_rows:,}"
        return _outcome({**results, "words": f"{few}; {quality.words}"})
    drift, why = _drift(_reference(context, champion), predictor, gathered, monitoring)
    results |= drift
    results["words"] = f"{in_words(bool(drift['drifted']), quality)}: {why}; {quality.words}"
    if not drift["drifted"]:
        return _outcome(results)
    return _with_page(context, champion, features, predictor, gathered, results)


def _needed(context: Context, champion: Candidate | None) -> tuple[Candidate, Monitor]:
    if context.loop.monitor is None:
        raise UserError(
            f"the loop {context.loop.name!r} has no `monitor` section: add `monitor: {{every: 7d}}`"
        )
    if champion is None:
        when = format_instant(context.as_of)
        raise UserError(f"nothing serves at {when}, so there is nothing to monitor: first `treadle run`")
    return champion, context.loop.monitor


def _first(context: Context) -> datetime:
    """Where reading begins: the window's start, earlier by the label's delay."""
    assert context.loop.monitor is not None
    return context.as_of - context.loop.monitor.every - context.loop.data.label_delay


def _touched(features: FeatureSet, start: datetime, end: datetime) -> list[Partition]:
    return [part for part in features.partitions if part.rows and part.start < end and part.end > start]


def _changes(context: Context, first: datetime) -> list[tuple[datetime, str | None]]:
    """When who became champion, ascending, as far as it matters from `first` to `as_of`."""
    changes: list[tuple[datetime, str | None]] = []
    for entry in context.log.entries():
        if entry.kind in ("promote", "rollback", "retire") and entry.effective_at < context.as_of:
            if entry.effective_at <= first:
                changes.clear()
            served = None if entry.kind == "retire" else entry.candidate
            changes.append((max(entry.effective_at, first), served))
    return changes


def _capture_paths(context: Context, champion: Candidate) -> list[str]:
    from treadle.monitoring.captures import capture_files

    models = {entry.candidate for entry in context.log.entries() if entry.candidate} | {champion.digest}
    where = context.store, context.loop.name, context.log.track
    return capture_files(*where, models, _first(context), context.as_of)


def _earlier(context: Context, digest: str) -> Predictor | None:
    """An earlier champion, by the log's word for where its record is; None when it can't be had."""
    from treadle.models import load_candidate

    for entry in reversed(context.log.entries()):
        id_ = entry.details.get("candidate_id")
        if entry.candidate != digest or not id_:
            continue
        try:
            found = get_record(context.store, Candidate, context.loop.name, id_)
            return load_candidate(context.store, found, trust=context.loop.train.trust)
        except (StoreError, UserError) as error:
            context.say(f"monitor: the earlier champion {digest[:12]} can't score its rows: {error}")
            return None
    return None


def _captures_digest(context: Context, champion: Candidate) -> str | None:
    """The digest of what was captured; nothing heavy is imported where there are no captures."""
    from treadle.monitoring.captures import captures_digest, read_captures

    paths = _capture_paths(context, champion)
    if not paths:
        return None
    return captures_digest(read_captures(context.store, paths, _first(context), context.as_of))


def _expected_numbers(verdict: Verdict | None, champion: Candidate) -> list[Any] | None:
    """[loss, mean, blocks] of the champion where a verdict measured it, else None."""
    if verdict is None or verdict.comparison is None or verdict.holdout is None:
        return None
    comparison = verdict.comparison
    measured = {verdict.champion: comparison.champion, verdict.challenger: comparison.challenger}
    value = measured.get(champion.digest)
    return None if value is None else [comparison.loss, value, verdict.holdout.blocks]


def _reference(context: Context, champion: Candidate) -> Reference:
    from treadle.monitoring.profile import Reference
    from treadle.store import fetch_blob

    return Reference.load(fetch_blob(context.store, champion.blobs["reference.npz"]).read_bytes())


def _quality(
    context: Context,
    monitoring: Monitor,
    predictor: Predictor,
    gathered: Gathered,
    expected: list[Any] | None,
) -> Quality:
    from treadle.gate.metrics import default_loss
    from treadle.monitoring.answers import micros_of
    from treadle.monitoring.gather import labels_of
    from treadle.monitoring.quality import Answered, Expected, judge_quality

    labels, known = labels_of(gathered, predictor.task)
    old = gathered.times_us < micros_of(context.as_of - context.loop.data.label_delay)
    answers = gathered.answers
    return judge_quality(
        Answered(
            labels=labels[old],
            known=known[old],
            predictions=answers.predictions[old],
            by_champion=answers.by_champion[old],
            times_us=gathered.times_us[old],
        ),
        task=predictor.task,
        loss=context.loop.gate.loss or default_loss(predictor.task),
        classes=predictor.classes,
        block=context.loop.gate.block,
        expected=Expected(*expected) if expected else None,
        limits=monitoring.quality,
    )


def _drift(
    reference: Reference, predictor: Predictor, gathered: Gathered, monitoring: Monitor
) -> tuple[Json, str]:
    """The report's fields about drift, and why it did or did not."""
    from treadle.monitoring.drift import (
        attribution_drift,
        column_drift,
        encode_window,
        prediction_drift,
        share_drifted,
    )
    from treadle.monitoring.gather import sample_of

    limits = monitoring.drift
    columns = column_drift(reference, encode_window(predictor.schema, gathered.inputs), alpha=limits.alpha)
    share = share_drifted(columns)
    prediction, attribution = None, None
    if len(gathered.predictions) >= limits.min_rows:
        times = gathered.prediction_times_us
        prediction = prediction_drift(reference, gathered.predictions, times, alpha=limits.alpha)
    if len(reference.attribution):
        sample = encode_window(predictor.schema, sample_of(gathered.inputs, limits.sample))
        attribution = attribution_drift(
            reference,
            predictor.schema,
            predictor.contributions(sample.x),
            sample.times_us,
            alpha=limits.alpha,
        )
    moved = [column.name for column in columns if column.drifted]
    attention = attribution is not None and attribution.distance > max(limits.attribution, attribution.floor)
    why = _why(columns, moved, share, limits.share)
    if attribution is not None:
        allowed = max(limits.attribution, attribution.floor)
        relation = "above" if attention else "within"
        far, most = apart(attribution.distance, allowed)
        why += f"; attribution {far}, {relation} {most}"
    if prediction is not None and prediction.drifted:
        far, most = apart(prediction.distance, prediction.threshold)
        why += f"; predictions moved ({far}, allowed {most})"
    return {
        "columns": [column.model_dump(mode="json") for column in columns],
        "share": share,
        "prediction": prediction.model_dump(mode="json") if prediction else None,
        "attribution": attribution.distance if attribution else None,
        "attribution_movers": list(attribution.movers) if attribution else [],
        "drifted": bool(attention or (moved and share >= limits.share)),
    }, why


def _why(columns: tuple[ColumnDrift, ...], moved: list[str], share: float, allowed: float) -> str:
    judged = sum(column.drifted or not column.calendar for column in columns)
    farthest = sorted((c for c in columns if c.drifted), key=lambda c: (c.threshold - c.distance, c.name))
    named = f" ({', '.join(c.name for c in farthest[:3])})" if farthest else ""
    seen, limit = percents(share, allowed)
    return f"{len(moved)} of {counted(judged, 'column')} drifted{named}, {seen} (drift from {limit} on)"


def _with_page(
    context: Context,
    champion: Candidate,
    features: FeatureSet,
    predictor: Predictor,
    gathered: Gathered,
    results: Json,
) -> Outcome:
    """The outcome with its page; the report stands without one where it can't be drawn, and says so."""
    from treadle.monitoring.gather import sample_of
    from treadle.report.drift import drift_page

    names = predictor.schema.names
    started = time.monotonic()
    reference = _training_sample(context, features, champion, names)
    if reference is None:
        return _outcome(results, notes={"page": "none: today's features no longer hold the training data"})
    try:
        page = drift_page(
            reference,
            sample_of(gathered.inputs.select(list(names)), PAGE_ROWS),
            [ColumnDrift.model_validate(column) for column in results["columns"]],
            categories=[feature.name for feature in predictor.schema.features if feature.kind != "number"],
            title=f"{context.loop.name}: {results['start'][:10]} to {results['end'][:10]}",
            words=results["words"],
        )
    except MissingPackage as error:
        context.say(f"monitor: {error}")
        return _outcome(results, notes={"page": f"none: {error}"})
    return _outcome(results, page, {"page_seconds": round(time.monotonic() - started, 3)})


def _training_sample(
    context: Context, features: FeatureSet, champion: Candidate, names: Sequence[str]
) -> pa.Table | None:
    """A sample of the rows that the champion was trained on; None where today's features lack them."""
    import pyarrow as pa
    from treadle.data.tables import read_partitions
    from treadle.monitoring.gather import sample_of

    start, end = champion.trained_from, champion.trained_through
    touched = [p for p in features.partitions if p.rows and p.start < end and (not start or p.end > start)]
    total = sum(part.rows for part in touched)
    parts = []
    for part in touched:
        # One partition at a time: history may not fit into memory.
        rows = read_partitions(context.store, [part], columns=["event_time", *names], start=start, end=end)
        parts.append(sample_of(rows.select(list(names)), -(-PAGE_ROWS * part.rows // total)))
    return sample_of(pa.concat_tables(parts, promote_options="permissive"), PAGE_ROWS) if parts else None


def _outcome(results: Json, page: bytes | None = None, notes: Json | None = None) -> Outcome:
    # Evidently numbers its plots at random, so the page stays out of the digest.
    return Outcome(
        results=results,
        files={"drift.html": page} if page else {},
        digest=digest_of(results),
        notes=notes or {},
    )
