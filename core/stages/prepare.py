"""Prepare: sources become a checked snapshot of tables as they were known at `as_of`.

sources ─► tables, whole (engine) ─► cut at as_of (tables) ─► label and duplicates ─► rules, leaks ─►
partitions in the store
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from treadle.clock import format_instant, parse_instant
from treadle.errors import AsOfError, DataRefused, SpecError, Transient, UserError
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.records import CheckResult, Json, SnapshotTable
from treadle.stages import Context, Outcome
from treadle.store import Store
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.data.built import BuiltTable
    from treadle.data.tables import CutPartition

VERSION = 2


def key(context: Context, sources: Mapping[str, str]) -> Json:
    """What makes the snapshot of this `as_of`.

    Args:
        context: The loop and `as_of`.
        sources: sha256 of each source's bytes, by name.
    """
    from treadle.loop_code import code_of, hooks_of

    loop = context.loop
    return {
        "stage": "prepare",
        "version": VERSION,
        "as_of": format_instant(context.as_of),
        "data": _declared(loop),
        "task": loop.train.task,
        "files": code_of(loop, hooks_of(loop)["prepare"]),
        "sources": dict(sorted(sources.items())),
    }


def _declared(loop: Loop) -> Json:
    """The loop's data section as it enters the key: without the places that the sources are at."""
    data = dict(loop.part("data")["data"])
    data["sources"] = {
        name: source.model_dump(mode="json", exclude={"uri"}, exclude_defaults=True)
        for name, source in sorted(loop.data.sources.items())
    }
    return data


def prepare(context: Context, sources: Mapping[str, str] | None = None) -> Outcome:
    """The snapshot of the loop's tables as they were known at `as_of`.

    Args:
        context: The loop, `as_of`, the store.
        sources: sha256 of each source's bytes as the key has them; None means to hash them now.

    Raises:
        DataRefused: No rows, no usable label, duplicates, or checks that block; with evidence.
        AsOfError: `as_of` lies before the first row.
        UserError: A source or a table is not as the loop says. HookError: SQL or a hook failed.
        Transient: A source changed while it was read.
    """
    from treadle.data.engine import build_tables
    from treadle.data.sources import source_digests
    from treadle.data.tables import cut_table, keep_partitions, snapshot_table

    loop, as_of = context.loop, context.as_of
    found = source_digests(loop)
    changed = sorted(name for name in found if sources is not None and sources.get(name) != found[name])
    if changed:
        raise Transient(
            f"the source {', '.join(changed)} changed while it was read. Try again when it is at rest."
        )
    tables = build_tables(loop, found, context.scratch, context.say)
    start = window_start(loop, as_of)
    cuts = {
        name: cut_table(built, as_of, start if built.label else None)
        for name, built in sorted(tables.items())
    }
    labelled = tables[loop.data.labelled]
    labelled_rows = _check_label(loop, labelled, cuts[labelled.name], as_of, start)
    _refuse_duplicates(tables, cuts)
    checks = _checked(context, tables, cuts)
    entries: dict[str, SnapshotTable] = {}
    files, kept = {}, {}
    for name, built in sorted(tables.items()):
        partitions, new, old = keep_partitions(context.store, built, cuts[name], context.scratch)
        entries[name] = snapshot_table(built, partitions)
        files.update(new)
        kept.update(old)
    altered = changed_partitions(context, tables, found)
    for table, names in altered.items():
        context.say(
            f"prepare: the past of {table} is not what it was at the last snapshot: {', '.join(names)}."
            " A source overwrites its history, so as_of can't show it as it was known."
        )
    rows = sum(part.rows for part in entries[labelled.name].partitions)
    context.say(
        f"prepare: {counted(rows, 'row')}, {labelled_rows:,} labelled; {counted(len(files), 'new partition')},"
        f" {len(kept)} as before"
    )
    shown_checks = [check.model_dump(mode="json") for check in checks]
    window = format_instant(start) if start else None
    digests = {name: entry.digest for name, entry in entries.items()}
    return Outcome(
        results={
            "window_start": window,
            "tables": {name: entry.model_dump(mode="json") for name, entry in entries.items()},
            "checks": shown_checks,
            "labelled_rows": labelled_rows,
            "rows": rows,
        },
        files=files,
        kept=kept,
        digest=digest_of({"window_start": window, "tables": digests, "checks": shown_checks}),
        notes={"changed_partitions": altered} if altered else {},
    )


def window_start(loop: Loop, as_of: datetime) -> datetime | None:
    """Where the labelled table begins: window, holdout and the label's delay before `as_of`; None for all."""
    if loop.data.window == "all":
        return None
    return holdout_start(loop, as_of) - loop.data.window


def holdout_start(loop: Loop, as_of: datetime) -> datetime:
    """Where training ends and the holdout begins."""
    return as_of - loop.data.label_delay - loop.data.holdout


def _check_label(
    loop: Loop, built: BuiltTable, parts: Sequence[CutPartition], as_of: datetime, start: datetime | None
) -> int:
    """How many rows have a label; raises where nothing could be learnt from them."""
    import pyarrow.compute as pc

    shown = as_of.date().isoformat()
    if not parts:
        _refuse_empty(built, as_of, start, shown)
    label = built.label or ""
    labels = [part.rows.column(label) for part in parts]
    known: int = sum(len(column) - column.null_count for column in labels)
    if not known:
        raise DataRefused(
            f"no label is known before {shown}: {built.label_known_at!r} is missing or later in all"
            f" {sum(len(column) for column in labels):,} rows of {built.name!r}. Choose a later as_of.",
            [],
        )
    kind = next(column.type for column in built.columns if column.name == label)
    classes: set[Any] = set()
    for column in labels:
        classes.update(pc.unique(column.drop_null()).to_pylist())
    task = loop.train.task
    if task == "binary" and not (kind != "VARCHAR" and classes <= {0, 1}):
        raise UserError(
            f"{built.place}: the label {label!r} is {kind} with values such as"
            f" {sorted(map(str, classes))[:4]}; a binary label"
            " is a boolean, or 0 and 1. Write a comparison there, or set train.task to multiclass or"
            " regression."
        )
    if task == "regression" and kind not in {"BIGINT", "DOUBLE"}:
        raise UserError(
            f"{built.place}: the label {label!r} is {kind}; for regression it is a number. Cast it there."
        )
    if len(classes) < 2:
        raise DataRefused(
            f"the label {label!r} has one value only, {next(iter(classes))!r}, in all {known:,} labelled"
            f" rows before {shown}:"
            " nothing can be learnt. Choose a later as_of or a longer window, or correct the label.",
            [],
        )
    return known


def _refuse_empty(built: BuiltTable, as_of: datetime, start: datetime | None, shown: str) -> None:
    if not built.stretches:
        raise DataRefused(
            f"{built.place}: the table {built.name!r} has no rows at all. Look at its sources.", []
        )
    first, last = built.stretches[0].start, built.stretches[-1].end
    if as_of <= first:
        raise AsOfError(
            f"as_of {shown} lies before the data: the table {built.name!r} begins in"
            f" {built.stretches[0].name}."
            " Choose a later as_of."
        )
    since = f" and from {start.date().isoformat()} on" if start else ""
    raise DataRefused(
        f"the window is empty: the table {built.name!r} has no row before {shown}{since}; its rows lie"
        " between"
        f" {first.date().isoformat()} and {last.date().isoformat()}. Choose another as_of or a longer"
        " data.window.",
        [],
    )


def _refuse_duplicates(tables: Mapping[str, BuiltTable], cuts: Mapping[str, Sequence[CutPartition]]) -> None:
    from treadle.data.tables import duplicates

    for name, built in sorted(tables.items()):
        count, examples = duplicates(built, cuts[name])
        if count:
            time = built.event_time if built.label else built.known_at or built.event_time
            raise DataRefused(
                f"{built.place}: {count:,} rows of the table {name!r} share {built.entity!r} and {time!r}"
                " with another, so"
                " nobody can say which of them counts. Keep one of each there, such as with QUALIFY"
                " row_number().",
                examples,
            )


def _checked(
    context: Context, tables: Mapping[str, BuiltTable], cuts: Mapping[str, Sequence[CutPartition]]
) -> list[CheckResult]:
    """Every check's result; raises DataRefused when one that blocks failed or could not run."""
    from treadle.data.findings import stop_or_warn
    from treadle.data.leakage import check_leakage
    from treadle.data.quality import run_rules

    loop = context.loop
    _refuse_unknown_allowed(loop, tables)
    boundary = holdout_start(loop, context.as_of)
    checks = [
        result
        for name, built in sorted(tables.items())
        for result in check_leakage(loop, built, cuts[name], boundary)
    ]
    checks += run_rules(loop, cuts, context.store, context.say)
    stop_or_warn(checks, "prepare", f"the snapshot of {context.as_of.date().isoformat()}", context.say)
    return checks


def _refuse_unknown_allowed(loop: Loop, tables: Mapping[str, BuiltTable]) -> None:
    """Raises where `data.leakage.allow` names what no table has; features of views are for featurize to know."""
    known = {column.name for built in tables.values() for column in built.columns}
    views = tuple(f"{view}__" for view in loop.features.use)
    faults = [
        loop.fault(f"data.leakage.allow.{name}", f"no table has a column {name!r}.", "Correct it.")
        for name in sorted(set(loop.data.leakage.allow) - known)
        if not name.startswith(views)
    ]
    if faults:
        raise SpecError(faults)


def changed_partitions(
    context: Context, tables: Mapping[str, BuiltTable], sources: Mapping[str, str]
) -> dict[str, list[str]]:
    """Partitions that would not have looked, at the last snapshot's `as_of`, as they did then; by table.

    The sources of today are cut at the moment of then: labels that came since make no difference, an
    overwritten past does. Tables whose own code changed are left out.
    """
    from treadle.data.tables import cut_table

    before = _last_snapshot(context.store, context.loop.name, context.as_of)
    if before is None or before["key"].get("sources") == dict(sources):
        return {}
    as_of = parse_instant(before["as_of"])
    start = parse_instant(before["window_start"]) if before["window_start"] else None
    found = {}
    for name, built in sorted(tables.items()):
        then = before["tables"].get(name)
        if (
            then is None
            or then["definition"] != built.definition
            or not _same_layout(context.loop, name, before)
        ):
            continue
        now = {part.name: part.digest for part in cut_table(built, as_of, start if built.label else None)}
        was = {part["name"]: part["digest"] for part in then["partitions"]}
        differing = sorted(part for part in {*now, *was} if now.get(part) != was.get(part))
        if differing:
            found[name] = differing
    return found


def _same_layout(loop: Loop, table: str, before: Mapping[str, Any]) -> bool:
    """Whether a table was declared, partitioned and its sources read then as they are now."""
    now, was = _declared(loop), before["key"].get("data", {})
    return bool(
        was.get("tables", {}).get(table) == now["tables"][table]
        and all(was.get(field) == now.get(field) for field in ("partition", "sources"))
    )


_seen: dict[str, dict[str, Any]] = {}


def _last_snapshot(store: Store, loop: str, as_of: datetime) -> dict[str, Any] | None:
    """The loop's newest snapshot before `as_of`, as JSON; of several at one `as_of` the one made last."""
    folder = f"records/{loop}/snapshot"
    best: tuple[tuple[str, str, str], dict[str, Any]] | None = None
    limit = as_of - timedelta(microseconds=1)
    for name in store.list(folder):
        path = f"{store.uri}/{folder}/{name}"
        if path not in _seen:
            try:
                record = json.loads(store.read(f"{folder}/{name}"))
                _seen[path] = {
                    field: record[field] for field in ("as_of", "window_start", "tables", "key", "notes")
                }
            except (ValueError, KeyError, FileNotFoundError):
                continue
        record = _seen[path]
        if parse_instant(record["as_of"]) <= limit:
            order = (record["as_of"], str(record["notes"].get("made_at", "")), name)
            if best is None or order > best[0]:
                best = (order, record)
    return best[1] if best else None
