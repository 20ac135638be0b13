"""A record as Dagster shows it: numbers that it plots over time, small drawings, tables, links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import singledispatch
from math import isfinite
from typing import TYPE_CHECKING

import dagster as dg
from treadle.clock import format_instant
from treadle.records import (
    Candidate,
    Column,
    Deployment,
    DriftReport,
    FeatureSet,
    Record,
    Release,
    RetrainDecision,
    Snapshot,
    Verdict,
)
from treadle.registry.log import Entry, champion_in, pending_in
from treadle_dagster import drawings
from treadle_dagster.drawn import ENTRY, RECORD

if TYPE_CHECKING:
    from treadle.session import Session
    from treadle_dagster.resources import TreadleResource

Metadata = dict[str, dg.MetadataValue]
Cell = str | float | int | bool | None


def metadata_of(record: Record, session: Session, treadle: TreadleResource, *, reused: bool) -> Metadata:
    """Everything that an asset's materialization says, in the order that the UI shows: words, numbers, tables, ids."""
    told = {**_of(record), **_by_the_log(record, session), **_links(record, session, treadle)}
    tables = {
        key: told.pop(key) for key, value in [*told.items()] if isinstance(value, dg.TableMetadataValue)
    }
    return {
        **told,
        **tables,
        "treadle/as_of": dg.MetadataValue.text(format_instant(session.as_of)),
        "treadle/track": dg.MetadataValue.text(session.track),
        "treadle/reused": dg.MetadataValue.bool(reused),
        RECORD: dg.MetadataValue.text(record.id),
    }


@singledispatch
def _of(record: Record) -> Metadata:
    return {}


@_of.register
def _snapshot(record: Snapshot) -> Metadata:
    labelled = next((table for table in record.tables.values() if table.label), None)
    rows: list[list[Cell]] = [
        [name, t.rows, len(t.columns), len(t.partitions), t.digest[:12]] for name, t in record.tables.items()
    ]
    return {
        "dagster/row_count": dg.MetadataValue.int(record.rows),
        "labelled_rows": dg.MetadataValue.int(record.labelled_rows),
        "tables": table_of(["table", "rows", "columns", "partitions", "digest"], rows),
        **_schema(labelled.columns if labelled else ()),
    }


@_of.register
def _features(record: FeatureSet) -> Metadata:
    views = [[view, online] for view, online in sorted(record.views.items())]
    shown: Metadata = {"views": table_of(["view", "online copy"], views)} if views else {}
    return {"dagster/row_count": dg.MetadataValue.int(record.rows), **shown, **_schema(record.columns)}


@_of.register
def _candidate(record: Candidate) -> Metadata:
    return {
        "model": dg.MetadataValue.text(record.digest[:12]),
        "flavour": dg.MetadataValue.text(record.flavour),
        "trained_through": dg.MetadataValue.timestamp(record.trained_through),
        "rows": dg.MetadataValue.int(record.rows),
        **numbers({"rounds": record.rounds, **record.metrics}),
    }


@_of.register
def _verdict(record: Verdict) -> Metadata:
    from treadle_dagster.told import criteria_tables

    shown: Metadata = {
        "decision": dg.MetadataValue.text(record.decision),
        "why": dg.MetadataValue.text(record.why),
    }
    compared, held = record.comparison, record.holdout
    if compared is not None:
        picture = drawings.interval(compared)
        if picture:
            shown["interval"] = dg.MetadataValue.md(picture)
        told = ("difference", "low", "high", "p", "bound", "detectable")
        shown |= numbers({f"{compared.loss}_{name}": getattr(compared, name) for name in told})
        shown |= numbers(
            {
                f"champion_{compared.loss}": compared.champion,
                f"challenger_{compared.loss}": compared.challenger,
            }
        )
    if held is not None:
        shown |= numbers({"holdout_rows": held.rows, "holdout_blocks": held.blocks, "looks": record.looks})
    names = sorted({name for values in record.metrics.values() for name in values})
    rows = [
        [name, *(record.metrics.get(who, {}).get(name) for who in ("challenger", "champion"))]
        for name in names
    ]
    if rows:
        shown["metrics"] = table_of(["metric", "challenger", "champion"], rows)
        shown |= numbers(record.metrics.get("challenger", {}))
    return {**shown, **criteria_tables(record.criteria)}


@_of.register
def _release(record: Release) -> Metadata:
    return {
        "proposed": dg.MetadataValue.bool(record.proposed),
        "why": dg.MetadataValue.text(record.why),
        "candidate": dg.MetadataValue.text(record.candidate[:12]),
        "champion_before": dg.MetadataValue.text((record.champion or "none")[:12]),
    }


@_of.register
def _deployment(record: Deployment) -> Metadata:
    views = [[view, online] for view, online in sorted(record.views.items())]
    return {
        "champion": dg.MetadataValue.text((record.candidate or "none")[:12]),
        "mode": dg.MetadataValue.text(record.mode),
        **({"views": table_of(["view", "online copy"], views)} if views else {}),
    }


@_of.register
def _drift_report(record: DriftReport) -> Metadata:
    shown: Metadata = {"words": dg.MetadataValue.text(record.words)}
    picture = drawings.strip(record.columns)
    if picture:
        shown["drift"] = dg.MetadataValue.md(picture)
    shown |= {
        "window": dg.MetadataValue.text(f"{format_instant(record.start)} to {format_instant(record.end)}"),
        "drifted": dg.MetadataValue.bool(record.drifted),
        "dagster/row_count": dg.MetadataValue.int(record.rows),
        **numbers({"share": record.share, "attribution": record.attribution, "captured": record.captured}),
    }
    if record.columns:
        shown["columns"] = _moved(record)
    quality = record.quality
    if quality is not None:
        told = {quality.loss: quality.value, f"expected_{quality.loss}": quality.expected}
        shown |= numbers({**told, "coverage": quality.coverage, **quality.metrics})
    return shown


def _moved(report: DriftReport) -> dg.MetadataValue:
    """The columns, the farthest first; what is missing only where something is, as the page is narrow."""
    names = ["column", "drifted", "distance", "threshold", "mean", "before"]
    columns = drawings.farthest_first(report.columns)
    rows: list[list[Cell]] = [
        [c.name, c.drifted, c.distance, c.threshold, c.mean, c.reference_mean] for c in columns
    ]
    if any(c.missing or c.reference_missing for c in columns):
        names += ["missing", "missing before"]
        rows = [[*row, c.missing, c.reference_missing] for row, c in zip(rows, columns, strict=True)]
    return table_of(names, rows)


@_of.register
def _retrain_decision(record: RetrainDecision) -> Metadata:
    shown: Metadata = {
        "due": dg.MetadataValue.bool(record.due),
        "trigger": dg.MetadataValue.text(record.trigger),
        "why": dg.MetadataValue.text(record.why),
    }
    if record.run_as_of is not None:
        shown["run_as_of"] = dg.MetadataValue.timestamp(record.run_as_of)
    if record.alerts:
        shown["alerts"] = dg.MetadataValue.text("; ".join(record.alerts))
    return shown


def _by_the_log(record: Record, session: Session) -> Metadata:
    """What the release log says of a release, and of who serves; notes of no record, as it goes on."""
    entries = session.log.entries()
    if isinstance(record, Release):
        return {"status": dg.MetadataValue.text(status_of(entries, record.verdict))}
    champion = champion_in(entries)
    if not isinstance(record, Deployment) or champion is None:
        return {}
    told = {"since": format_instant(champion.effective_at), "by": champion.who, "why": champion.why}
    approved_by = champion.details.get("approved_by")
    if approved_by:
        told["approved_by"] = str(approved_by)
    return {
        ENTRY: dg.MetadataValue.int(champion.sequence),
        **{name: dg.MetadataValue.text(value) for name, value in told.items()},
    }


def status_of(entries: Sequence[Entry], verdict: str) -> str:
    """What became of a verdict: promoted, pending, rejected, kept out, overtaken."""
    about = [entry for entry in entries if entry.subject == verdict]
    if any(entry.kind == "promote" for entry in about):
        return "promoted"
    rejected = next((entry for entry in reversed(about) if entry.kind == "reject"), None)
    if rejected is not None:
        return (
            "kept out by the gate" if rejected.details.get("by") == "gate" else f"rejected by {rejected.who}"
        )
    waiting = pending_in(entries)
    if waiting is not None and waiting.subject == verdict:
        return "pending"
    return "overtaken by a later proposal" if about else "not in the log"


def _schema(columns: Sequence[Column]) -> Metadata:
    schema = dg.TableSchema([dg.TableColumn(column.name, column.type) for column in columns])
    return {"dagster/column_schema": dg.MetadataValue.table_schema(schema)} if columns else {}


def numbers(values: Mapping[str, float | int | None]) -> Metadata:
    """Numbers under the names that they keep from run to run, so that Dagster can plot them."""
    return {
        re.sub(r"[^A-Za-z0-9_]+", "_", name): dg.MetadataValue.float(float(f"{value:.6g}"))
        for name, value in values.items()
        if value is not None and isfinite(value)
    }


def table_of(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> dg.MetadataValue:
    """A table; what is not known is left empty, long numbers are cut."""
    records = [dg.TableRecord(dict(zip(names, map(_cell, row), strict=True))) for row in rows]
    schema = dg.TableSchema([dg.TableColumn(name) for name in names])
    return dg.MetadataValue.table(records, schema)


def _cell(value: Cell) -> str | float | int | bool:
    if value is None:
        return ""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _links(record: Record, session: Session, treadle: TreadleResource) -> Metadata:
    """MLflow's version of a model, its endpoint, and the pages that a record carries."""
    shown: Metadata = {}
    candidate = record.id if isinstance(record, Candidate) else getattr(record, "candidate_id", None)
    version = version_link(session, treadle, candidate) if candidate else None
    if version:
        shown["mlflow"] = dg.MetadataValue.url(version)
    if isinstance(record, Deployment) and treadle.endpoint_url:
        shown["endpoint"] = dg.MetadataValue.url(treadle.endpoint_url.replace("{loop}", session.loop.name))
    for name, sha256 in sorted(record.blobs.items()):
        if name.endswith(".html"):
            from treadle.store import blob_path

            shown[plain_page(name)] = dg.MetadataValue.path(f"{session.store.uri}/{blob_path(sha256)}")
    return shown


def plain_page(name: str) -> str:
    """The key of a page: `drift.html` is `drift_page`."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", name.removesuffix(".html")) + "_page"


def version_link(session: Session, treadle: TreadleResource, candidate_id: str) -> str | None:
    """Where a browser finds a candidate's version in MLflow; None where MLflow is a file or was not reached."""
    from treadle.errors import TreadleError
    from treadle.projections import read_receipt
    from treadle.redaction import redacted
    from treadle.registry.mlflow import model_name, tracking_uri

    receipt = read_receipt(session, f"candidate-{candidate_id}")
    try:
        base = treadle.tracking_url or tracking_uri(session.loop, session.store)
    except TreadleError:
        return None
    if receipt is None or not base.startswith(("http://", "https://")):
        return None
    name = model_name(session.loop, session.track)
    return f"{redacted(base).rstrip('/')}/#/models/{name}/versions/{receipt['version']}"
