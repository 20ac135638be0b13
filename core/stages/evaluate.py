"""evaluate: challenger and champion predict the identical holdout, and the gate decides."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from treadle.clock import format_duration, format_instant
from treadle.errors import Fault, HoldoutTooSmall, SpecError, TreadleError, UserError
from treadle.loop import Loop
from treadle.records import Candidate, Criterion, FeatureSet, Holdout, Json
from treadle.stages import Context, Outcome
from treadle.store import fetch_blob

if TYPE_CHECKING:
    from treadle.gate.case import Case, Judgement, Predictions, Span
    from treadle.gate.holdout import HoldoutRows
    from treadle.models.predictor import Predictor

VERSION = 2
TIMED_CALLS = 100


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model and the features that its own files make of today's data; `fault` says why there are none."""

    candidate: Candidate
    features: FeatureSet | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is judged: a challenger, the champion if there is one, and the last champion that earned its place.

    `looks` counts the verdicts in the log that used some of the same rows.
    """

    challenger: Contestant
    champion: Contestant | None
    anchor: Contestant | None
    looks: int = 0


def key(context: Context, contest: Contest) -> Json:
    """What makes a verdict: the gate, the clock, and every model with its features."""
    data = context.loop.data
    return {
        "stage": "evaluate",
        "version": VERSION,
        "spec": context.loop.part("gate"),
        "as_of": format_instant(context.as_of),
        "label_delay": format_duration(data.label_delay),
        "holdout": format_duration(data.holdout),
        "trust": context.loop.train.trust,
        "challenger": _key_of(contest.challenger),
        "champion": _key_of(contest.champion),
        "anchor": _key_of(contest.anchor),
        "looks": contest.looks,
    }


def _key_of(contestant: Contestant | None) -> Json | None:
    if contestant is None:
        return None
    features = contestant.features.digest if contestant.features else None
    return {"candidate": contestant.candidate.digest, "features": features}


def holdout_span(context: Context, *candidates: Candidate) -> tuple[datetime, datetime]:
    """The holdout's start and end: labels were known by the end, and no candidate learned from a row in it.

    The start lies at or after the end where a candidate was trained through it.
    """
    data = context.loop.data
    end = context.as_of - data.label_delay
    return max([end - data.holdout, *(candidate.trained_through for candidate in candidates)]), end


def evaluate(context: Context, contest: Contest) -> Outcome:
    """The verdict on a challenger.

    Raises:
        HoldoutTooSmall: Too few labelled blocks or positives that no model was trained on; a longer holdout
            or a later `as_of` helps. SpecError: The gate names a loss, metric or column that there is not.
        DataRefused: A feature of the challenger is infinite in the holdout.
        BlobLost: The challenger's model or features are gone; their stages make them again.
    """
    from treadle.gate.judge import judge

    faults = gate_faults(context.loop)
    if faults:
        raise SpecError(faults)
    challenger, champion = contest.challenger.candidate, contest.champion
    if champion is not None and champion.candidate.digest == challenger.digest:
        return _same_model(context, contest)
    span = _span(context, contest)
    rows = _rows(context, contest.challenger, span)
    predictor = _load(context, challenger)
    case = _case(context, contest, span, rows, predictor)
    gate = context.loop.gate
    latency = None if gate.latency_ms is None or not rows.ids else _latency_ms(predictor, rows)
    size = None if gate.size_mb is None else _size_mb(context, challenger)
    judged = judge(case, gate, latency_ms=latency, size_mb=size)
    holdout = Holdout(
        start=span.start,
        end=span.end,
        rows=len(rows.ids),
        unlabelled=rows.unlabelled,
        blocks=len(set(case.blocks.tolist())),
        positives=int((rows.labels == 1).sum()) if challenger.task == "binary" else None,
        digest=rows.digest,
    )
    return _outcome(contest, judged, holdout, {} if latency is None else {"latency_ms": round(latency, 4)})


def gate_faults(loop: Loop) -> list[Fault]:
    """The losses and metrics that the gate names and the task does not have."""
    from treadle.gate.metrics import LOSSES, names_for

    gate, task = loop.gate, loop.train.task
    faults = []
    if gate.loss is not None and gate.loss not in LOSSES[task]:
        problem = f"{gate.loss!r} is no loss for a {task} task."
        faults.append(loop.fault("gate.loss", problem, f"Choose one of {', '.join(LOSSES[task])}."))
    for section in ("guard", "floor"):
        for name in getattr(gate, section):
            if name not in names_for(task):
                problem = f"{name!r} is no metric for a {task} task."
                fix = f"Choose from {', '.join(names_for(task))}."
                faults.append(loop.fault(f"gate.{section}.{name}", problem, fix))
    return faults


def _span(context: Context, contest: Contest) -> Span:
    from treadle.gate.case import Span

    others = [other.candidate for other in (contest.champion, contest.anchor) if other is not None]
    wished, end = holdout_span(context, contest.challenger.candidate)
    start, _ = holdout_span(context, contest.challenger.candidate, *others)
    remark = ""
    if start > wished:
        remark = (
            f"It can't begin before {start:%Y-%m-%d %H:%M}, as a champion learned from rows up to then: "
            "judge at a later as_of. "
        )
    if start >= end:
        who = remark or f"The challenger learned from rows up to {start:%Y-%m-%d %H:%M}. "
        raise HoldoutTooSmall(
            f"there is no holdout at this as_of: it would end at {end:%Y-%m-%d %H:%M} "
            f"(as_of less data.label_delay). {who.strip()}"
        )
    return Span(start, end, remark)


def _rows(context: Context, contestant: Contestant, span: Span) -> HoldoutRows:
    from treadle.gate.holdout import read_holdout

    if contestant.features is None:
        raise UserError(f"{contestant.candidate} has no features to be judged on: {contestant.fault}")
    return read_holdout(context.store, contestant.features, span, contestant.candidate.task)


def _load(context: Context, candidate: Candidate) -> Predictor:
    from treadle.models import load_candidate

    return load_candidate(context.store, candidate, trust=context.loop.train.trust)


def _predictions(predictor: Predictor, rows: HoldoutRows) -> Predictions:
    from treadle.data.findings import rows_in_words
    from treadle.gate.case import Predictions
    from treadle.models.rows import refuse_infinite

    x = predictor.schema.encode(rows.table)
    refuse_infinite(
        predictor.schema, x, lambda few: rows_in_words(rows.table.take(few), "entity", "event_time")
    )
    values = predictor.predict(x)
    return Predictions(values, predictor.classes if predictor.task == "multiclass" else ())


def _case(context: Context, contest: Contest, span: Span, rows: HoldoutRows, predictor: Predictor) -> Case:
    """The frozen inputs of the decision."""
    from treadle.gate.case import Case
    from treadle.gate.case import Predictions as Values
    from treadle.gate.stats import block_ids

    gate, challenger = context.loop.gate, contest.challenger.candidate
    champion, fault = _other(context, contest.champion, contest, span, rows)
    anchor, anchor_fault = _other(context, _asked_anchor(contest), contest, span, rows)
    return Case(
        task=challenger.task,
        labels=rows.labels,
        blocks=block_ids(rows.times_us, gate.block),
        span=span,
        challenger=_predictions(predictor, rows) if rows.ids else Values(rows.labels, ()),
        champion=champion,
        anchor=anchor,
        baseline=None if champion else _baseline(context, contest, rows),
        same_recipe=contest.champion is not None and contest.champion.candidate.recipe == challenger.recipe,
        fault=fault,
        anchor_fault=anchor_fault,
        slices=_groupings(context, rows, "slices"),
        fairness=_groupings(context, rows, "fairness"),
        looks=contest.looks,
    )


def _asked_anchor(contest: Contest) -> Contestant | None:
    """The anchor, where it is another model than the champion."""
    if contest.anchor is None or contest.champion is None:
        return None
    same = contest.anchor.candidate.digest == contest.champion.candidate.digest
    return None if same else contest.anchor


def _other(
    context: Context, other: Contestant | None, contest: Contest, span: Span, rows: HoldoutRows
) -> tuple[Predictions | None, str]:
    """An earlier model's predictions for the challenger's rows, or why there can be none."""
    from treadle.gate.guards import unusable
    from treadle.gate.holdout import difference_of

    if other is None:
        return None, ""
    challenger = contest.challenger.candidate
    if other.features is None:
        return None, f"its features can't be made any more ({_without_places(other.fault)})"
    if other.candidate.task != challenger.task:
        return None, f"it solves a {other.candidate.task} task and the challenger a {challenger.task} task"
    if other.candidate.label_definition != challenger.label_definition:
        return None, "the label's definition changed"
    try:
        own = rows if other.features == contest.challenger.features else _rows(context, other, span)
        changed = difference_of(rows, own)
        if changed or not rows.ids:
            return None, changed
        predictions = _predictions(_load(context, other.candidate), own)
    except TreadleError as error:
        if error.retryable:
            raise
        return None, f"it can't be asked any more ({_without_places(str(error))})"
    problem = unusable(challenger.task, predictions, len(rows.ids))
    return (None, f"its predictions can't be used: {problem}") if problem else (predictions, "")


def _without_places(text: str) -> str:
    """A fault's first and last line, without the machine's folders: the digest covers it."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()] or ["unknown"]
    short = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    return re.sub(r"(?<![\w:/])/(?:[^\s/:'\"]+/)*([^\s/:'\"]+)", r"\1", short)[:400]


def _baseline(context: Context, contest: Contest, rows: HoldoutRows) -> Predictions:
    from treadle.gate.case import Predictions
    from treadle.gate.holdout import baseline_values, training_labels
    from treadle.gate.metrics import default_loss

    candidate, features = contest.challenger.candidate, contest.challenger.features
    assert features is not None
    labels = training_labels(context.store, candidate, features)
    if not len(labels):
        through = format_instant(candidate.trained_through)
        raise UserError(
            f"{candidate} was trained through {through}, but its features hold no label before that"
        )
    loss = context.loop.gate.loss or default_loss(candidate.task)
    classes = candidate.classes if candidate.task == "multiclass" else ()
    return Predictions(baseline_values(candidate.task, loss, labels, classes, len(rows.ids)), classes)


def _groupings(context: Context, rows: HoldoutRows, field: str) -> dict[str, Any]:
    from treadle.gate.holdout import grouping

    columns: Sequence[str] = getattr(context.loop.gate, field)
    held = set(rows.table.column_names)
    fix = f"They have: {', '.join(sorted(held))}."
    missing = [name for name in columns if name not in held]
    faults = [
        context.loop.fault(f"gate.{field}", f"the features have no column {name!r}.", fix) for name in missing
    ]
    if faults and rows.ids:
        raise SpecError(faults)
    return {name: grouping(rows, name) for name in columns} if rows.ids else {}


def _latency_ms(predictor: Predictor, rows: HoldoutRows) -> float:
    """The median time of a prediction for one row."""
    one = predictor.schema.encode(rows.table.slice(0, 1))
    for _ in range(TIMED_CALLS // 10):
        predictor.predict(one)
    seconds = []
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        predictor.predict(one)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[TIMED_CALLS // 2] * 1000


def _size_mb(context: Context, candidate: Candidate) -> float:
    """The size of the model's own files in MB (10^6 bytes)."""
    files = [sha256 for name, sha256 in candidate.blobs.items() if name.startswith("model/")]
    return sum(fetch_blob(context.store, sha256).stat().st_size for sha256 in files) / 1e6


def _warned(contest: Contest) -> list[Criterion]:
    """What was found in the challenger's features and stopped nothing, for who reads the verdict."""
    from treadle.data.findings import in_words

    features = contest.challenger.features
    return [
        Criterion(name=f"{check.name}:{check.column}", status="info", words=in_words(check))
        for check in (features.checks if features else ())
        if check.status != "passed"
    ]


def _same_model(context: Context, contest: Contest) -> Outcome:
    from treadle.gate.case import Judgement

    gate = context.loop.gate
    why = "The challenger is the champion: the same data and recipe made the same model."
    return _outcome(contest, Judgement("no_change", why, gate.mode, None), None, {})


def _outcome(contest: Contest, judged: Judgement, holdout: Holdout | None, notes: Json) -> Outcome:
    challenger, champion = contest.challenger.candidate, contest.champion
    faults = {
        f"{name}_fault": other.fault
        for name, other in (("champion", contest.champion), ("anchor", contest.anchor))
        if other is not None and other.fault
    }
    return Outcome(
        {
            "decision": judged.decision,
            "why": judged.why,
            "mode": judged.mode,
            "champion": champion.candidate.digest if champion else None,
            "challenger": challenger.digest,
            "challenger_id": challenger.id,
            "holdout": holdout.model_dump(mode="json") if holdout else None,
            "comparison": judged.comparison.model_dump(mode="json") if judged.comparison else None,
            "criteria": [
                criterion.model_dump(mode="json") for criterion in (*judged.criteria, *_warned(contest))
            ],
            "metrics": {model: dict(values) for model, values in judged.metrics.items()},
            "looks": contest.looks,
        },
        notes={**notes, **faults},
    )
