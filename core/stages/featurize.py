"""Featurize: a snapshot's labelled rows, with the values of feature views as known at each row's time.

snapshot ─► plan of the views ─► partitions whose inputs are known: from the store            ─► leaks
                               └► the others: one point-in-time join by Feast, into the store ─┘
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from treadle.data.feast_store import PLAN_BLOB, Plan, feature_plan
from treadle.errors import BlobLost, SpecError
from treadle.identity import digest_of
from treadle.loop_code import code_of, hooks_of
from treadle.records import CheckResult, Json, Partition, Snapshot
from treadle.stages import Context, Outcome
from treadle.store import fetch_blob, put_blob, read_memo, write_memo
from treadle.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
_JOIN_VERSION = 1  # raised when a partition's content can change
_MEMO = "featurize"


def key(context: Context, snapshot: Snapshot) -> Json:
    """What makes the features of a snapshot."""
    loop = context.loop
    return {
        "stage": "featurize",
        "version": VERSION,
        "features": loop.features.model_dump(mode="json", exclude={"online"}, exclude_defaults=True),
        "files": code_of(loop, hooks_of(loop)["featurize"]),
        "leakage": loop.data.leakage.model_dump(mode="json", exclude_defaults=True),
        "task": loop.train.task,
        "snapshot": snapshot.digest,
    }


def featurize(context: Context, snapshot: Snapshot) -> Outcome:
    """The labelled rows of a snapshot with their features, partitioned as the labelled table is.

    Raises:
        SpecError: A view, key or column that does not exist. HookError: the Feast file raised.
        DataRefused: A view's rows tie, or a column of a view alone tells the label. StoreError: the join lost
        or altered rows.
    """
    loop, store = context.loop, context.store
    plan = feature_plan(loop, store, snapshot)
    _refuse_unknown_allowed(context, snapshot, plan)
    labelled = snapshot.tables[loop.data.labelled]
    keys = [_partition_key(context, snapshot, plan, part) for part in labelled.partitions]
    found = [
        _known_partition(context, part, memo) for part, memo in zip(labelled.partitions, keys, strict=True)
    ]
    missing = [part for part, known in zip(labelled.partitions, found, strict=True) if known is None]
    rows_joined = sum(part.rows for part in missing)
    context.say(
        f"featurize: {counted(rows_joined, 'row')} to join with {counted(len(plan.views), 'view')},"
        f" {sum(part.rows for part in labelled.partitions) - rows_joined:,} known"
    )
    made = iter(_join(context, snapshot, plan, missing))
    partitions: list[Partition] = []
    for known, memo in zip(found, keys, strict=True):
        if known is None:
            known = next(made)
            value = {"blob": known.blob, "digest": known.digest, "rows": known.rows}
            write_memo(store, _MEMO, memo, value)
        partitions.append(known)
    checks = _checked(context, snapshot, plan, partitions)
    results: Json = {
        "columns": [column.model_dump() for column in plan.columns],
        "rows": sum(part.rows for part in partitions),
        "definition": plan.definition,
        "views": {view.name: view.online for view in plan.views},
        "partitions": [part.model_dump(mode="json") for part in partitions],
        "checks": [check.model_dump(mode="json") for check in checks],
    }
    contents = [
        {name: value for name, value in part.items() if name != "blob"} for part in results["partitions"]
    ]
    return Outcome(
        results=results,
        files={PLAN_BLOB: json.dumps(plan.model_dump(mode="json"), sort_keys=True).encode()},
        kept={f"{part.name}.parquet": part.blob for part in partitions},
        digest=digest_of({**results, "partitions": contents}),
        notes={"rows_joined": rows_joined, "partitions_joined": [part.name for part in missing]},
    )


def _refuse_unknown_allowed(context: Context, snapshot: Snapshot, plan: Plan) -> None:
    """Raises where `data.leakage.allow` names a column that neither a table nor a view has."""
    tables = {column.name for table in snapshot.tables.values() for column in table.columns}
    features = [column.name for column in plan.columns]
    faults = [
        context.loop.fault(
            f"data.leakage.allow.{name}",
            f"no table and no view has a column {name!r}.",
            f"The columns of views are: {', '.join(name for name in features if name not in tables)}.",
        )
        for name in sorted(set(context.loop.data.leakage.allow) - tables - set(features))
    ]
    if faults:
        raise SpecError(faults)


def _checked(
    context: Context, snapshot: Snapshot, plan: Plan, partitions: Sequence[Partition]
) -> list[CheckResult]:
    """What the leakage checks say about the views' columns; raises DataRefused where one tells the label."""
    if not plan.views:
        return []
    from treadle.data.findings import stop_or_warn

    loop = context.loop
    made_by = {
        "version": VERSION,
        "leakage": loop.data.leakage.model_dump(mode="json"),
        "task": loop.train.task,
        "views": [view.model_dump(mode="json") for view in plan.views],
        "partitions": [(part.name, part.digest) for part in partitions],
    }
    memo = read_memo(context.store, "leaks", digest_of(made_by))
    if memo is None:
        from treadle.data.leakage import check_features

        checks = check_features(loop, context.store, plan, partitions, snapshot.labelled_rows)
        value = {"checks": [check.model_dump(mode="json") for check in checks]}
        write_memo(context.store, "leaks", digest_of(made_by), value)
    else:
        checks = [CheckResult.model_validate(check) for check in memo["checks"]]
    stop_or_warn(checks, "featurize", f"the features of {context.as_of.date().isoformat()}", context.say)
    return checks


def _partition_key(context: Context, snapshot: Snapshot, plan: Plan, part: Partition) -> str:
    """The digest of all that a partition's features come from."""
    from treadle.data.feast_join import overlapping

    labelled = snapshot.tables[context.loop.data.labelled]
    sources = {
        view.name: [found.digest for found in overlapping(snapshot, view, part.start, part.end)]
        for view in plan.views
    }
    return digest_of(
        {
            "version": _JOIN_VERSION,
            "views": [view.model_dump(mode="json") for view in plan.views],
            "own": [column.model_dump() for column in plan.own],
            "roles": [labelled.entity, labelled.event_time, labelled.label, labelled.label_known_at],
            "task": context.loop.train.task,
            "labelled": part.digest,
            "sources": sources,
        }
    )


def _known_partition(context: Context, part: Partition, memo: str) -> Partition | None:
    """A partition that was made before from the same inputs and is intact."""
    found = read_memo(context.store, _MEMO, memo)
    if found is None:
        return None
    try:
        fetch_blob(context.store, str(found["blob"]))
    except BlobLost:
        return None
    return part.model_copy(update={"blob": found["blob"], "digest": found["digest"], "rows": found["rows"]})


def _join(context: Context, snapshot: Snapshot, plan: Plan, missing: Sequence[Partition]) -> list[Partition]:
    """Partitions with their features joined, their files in the store."""
    if not missing:
        return []
    import pyarrow.parquet as pq
    from treadle.data.digests import column_digests, rows_digest
    from treadle.data.feast_join import join_snapshot
    from treadle.data.tables import read_partitions

    loop, store = context.loop, context.store
    labelled = snapshot.tables[loop.data.labelled]
    rows = read_partitions(store, missing)
    folder = context.scratch / "featurize"
    folder.mkdir(exist_ok=True)
    features = join_snapshot(store, snapshot, plan, rows, labelled.event_time, folder)
    table = _assemble(context, snapshot, plan, rows, features)
    made, offset = [], 0
    for part in missing:
        piece = table.slice(offset, part.rows)
        offset += part.rows
        path = folder / f"features-{part.name}.parquet"
        pq.write_table(piece, path, compression="zstd")
        digest = rows_digest(column_digests(piece))
        made.append(part.model_copy(update={"blob": put_blob(store, path), "digest": digest}))
        path.unlink()
    return made


def _assemble(
    context: Context, snapshot: Snapshot, plan: Plan, rows: pa.Table, features: pa.Table
) -> pa.Table:
    """The feature set's columns: ids, times and label under their own names, then the features by kind."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from treadle.data.feast_join import utc
    from treadle.data.feast_rows import own_values

    labelled = snapshot.tables[context.loop.data.labelled]
    label = pa.string() if context.loop.train.task == "multiclass" else pa.float64()
    columns = {
        "row_id": rows["row_id"],
        "entity": pc.cast(rows[labelled.entity], pa.string()),
        "event_time": utc(rows[labelled.event_time]),
        "label": pc.cast(rows[labelled.label or ""], label),
        "label_known_at": utc(rows[labelled.label_known_at or ""]),
    }
    for column in plan.own:
        columns[column.name] = own_values(rows[column.name], column.type)
    for name in features.column_names:
        columns[name] = features[name]
    return pa.table(columns)
