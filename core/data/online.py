"""The online store: each view's newest values by entity, never older over newer, read with their age checked.

A view lies there under its online name, which holds the digest of its definition, so that the champion and
its predecessor each read their own. Beside the features stands when they became known, to the microsecond.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.clock import format_duration, format_instant
from treadle.data.built import EPOCH, as_microseconds
from treadle.data.feast_store import PLAN_BLOB, Plan, View, feature_plan, legal_name
from treadle.errors import Transient, UserError
from treadle.loop import Loop
from treadle.records import FeatureSet, Snapshot
from treadle.store import LocalStore, Store, fetch_blob, scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

KNOWN_US = "treadle_known_at_us"
_BATCH = 1000


def materialize(
    loop: Loop, store: Store, track: str, snapshot: Snapshot, views: Mapping[str, str], as_of: datetime
) -> dict[str, int]:
    """Writes each entity's newest value known before `as_of`, never an older over a newer.

    Args:
        loop: Whose features: that of today, or a restored one with the files of an earlier candidate.
        store: Where the snapshot is; beside a local one lies the online store if the loop names none.
        track: Each track has an online store of its own.
        snapshot: The tables, as of `as_of` or later.
        views: Feature view to online name, as a feature set has them.
        as_of: The clock.

    Returns:
        Rows written, by online name.

    Raises:
        UserError: The views are not those that the loop's files define, or there is no online store.
    """
    plan = feature_plan(loop, store, snapshot)
    defined = {view.name: view.online for view in plan.views}
    if defined != dict(views):
        raise UserError(
            f"the online views {sorted(views.values())} were defined otherwise than the loop's files now say:"
            f" {sorted(defined.values())}. Give the loop as the model carries it."
        )
    if not plan.views:
        return {}
    with scratch_folder() as folder, _writing(loop, store, track):
        feast = _open(loop, store, track, plan, folder)
        return {
            view.online: _write_newest(feast, view, _newest(store, snapshot, view, as_of))
            for view in plan.views
        }


def _newest(store: Store, snapshot: Snapshot, view: View, as_of: datetime) -> pa.Table:
    """Each entity's newest row known before `as_of`, with the microsecond at which it became known."""
    import pyarrow as pa
    from treadle.data.feast_join import KNOWN, read_view

    rows = read_view(store, snapshot, view, snapshot.tables[view.table].partitions)
    rows = rows.append_column(KNOWN_US, rows[KNOWN].cast(pa.int64()))
    rows = rows.filter(pa.array(rows[KNOWN_US].to_numpy() < as_microseconds(as_of)))
    keys = [key.labelled for key in view.keys]
    rows = rows.sort_by([(key, "ascending") for key in keys] + [(KNOWN_US, "descending")])
    seen: set[tuple[Any, ...]] = set()
    first = []
    for position, key in enumerate(zip(*(rows[name].to_pylist() for name in keys), strict=True)):
        if key not in seen:
            seen.add(key)
            first.append(position)
    return rows.take(pa.array(first, pa.int64()))


def _write_newest(feast: FeatureStore, view: View, rows: pa.Table) -> int:
    """Writes the rows that are not older than what is there; how many these are."""
    import numpy as np

    keys = [key.labelled for key in view.keys]
    entities = rows.select(keys).to_pylist()
    there: list[int | None] = []
    for start in range(0, len(entities), _BATCH):
        answer = _ask(feast, view, [KNOWN_US], entities[start : start + _BATCH])
        there.extend(answer[KNOWN_US])
    known: list[int] = rows[KNOWN_US].to_numpy().tolist()
    chosen = [
        position
        for position, (new, old) in enumerate(zip(known, there, strict=True))
        if old is None or new >= old
    ]
    if chosen:
        # Feast makes an Arrow table of the frame again: objects keep integers with gaps whole.
        frame = rows.take(np.asarray(chosen)).to_pandas(integer_object_nulls=True)
        feast.write_to_online_store(view.online, df=frame)
    return len(chosen)


class OnlineReader:
    """Reads the newest values of a model's views. Safe to share between threads."""

    def __init__(self, loop: Loop, store: Store, track: str, features: FeatureSet) -> None:
        """Opens the online store.

        Args:
            loop: Names the online store.
            store: Holds the feature set's plan.
            track: Whose online store.
            features: Those that the model was trained on; they say which views, under which names.

        Raises:
            UserError: There is no online store. BlobLost: The feature set's plan is gone.
        """
        self.plan = Plan.model_validate_json(fetch_blob(store, features.blobs[PLAN_BLOB]).read_bytes())
        self._loop, self._store, self._track = loop, store, track
        self._lock = threading.Lock()
        self._feast: FeatureStore | None = None
        self._file: tuple[int, int] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that a request names its entities by."""
        return tuple(dict.fromkeys(key.labelled for view in self.plan.views for key in view.keys))

    def read(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> dict[str, list[Any]]:
        """The views' features of n entities: feature to n values, in the rows' order; a value may be None.

        Args:
            rows: Join key to value; each row has all of `keys`, and may have more.
            at: The time of the question: a value must be known by then and no older than its view's TTL.

        Raises:
            UserError: A key is missing or mistyped; a value is not there, too old, or newer than `at`. The
                text names view, entity and age.
            Transient: The online store does not answer.
        """
        features: dict[str, list[Any]] = {}
        with self._lock:
            feast = self._connected()
            for view in self.plan.views:
                entities = [_entity_of(view, row) for row in rows]
                names = [_plain(view, field.name) for field in view.fields]
                answer = _ask(feast, view, [KNOWN_US, *names], entities)
                for entity, known in zip(entities, answer[KNOWN_US], strict=True):
                    _check_age(view, entity, known, at)
                for field, name in zip(view.fields, names, strict=True):
                    features[view.feature(field)] = answer[name]
        return features

    def _connected(self) -> FeatureStore:
        """The open store; opened again when its file was replaced, as SQLite would go on with the old one."""
        path = online_file(self._loop, self._store, self._track)
        now = _file_identity(path) if path else None
        if self._feast is None or now != self._file:
            with scratch_folder() as folder:
                self._feast = _open(self._loop, self._store, self._track, self.plan, folder)
            self._file = _file_identity(path) if path else None
        return self._feast


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _entity_of(view: View, row: Mapping[str, Any]) -> dict[str, Any]:
    """The view's keys out of a request's row."""
    entity = {}
    for key in view.keys:
        value = row.get(key.labelled)
        kind, words = (str, "text") if key.dtype == "String" else (int, "a whole number")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(
                f"the view {view.name!r} is read by {key.labelled!r}: give it as {words}; it is {value!r}."
            )
        entity[key.labelled] = value
    return entity


def _check_age(view: View, entity: Mapping[str, Any], known_us: int | None, at: datetime) -> None:
    """Raises UserError when there is no value, or one that was not known at the time, or is too old."""
    who = ", ".join(f"{name} = {value!r}" for name, value in entity.items())
    if known_us is None:
        raise UserError(
            f"the online view {view.online!r} has no value for {who}. Feed it with `treadle materialize`, or"
            f" send the features of {view.name!r} in the request."
        )
    age_us = as_microseconds(at) - known_us
    since = format_instant(EPOCH + timedelta(microseconds=known_us))
    if age_us < 0:
        raise UserError(
            f"the online view {view.online!r} knows {who} only as of {since}, after {format_instant(at)}."
            " For a time in the past use `treadle predict`, which joins by time."
        )
    if view.ttl_us and age_us > view.ttl_us:
        age, limit = (format_duration(timedelta(microseconds=us)) for us in (age_us, view.ttl_us))
        raise UserError(
            f"the value of {view.name!r} for {who} is too old: known since {since}, {age} before"
            f" {format_instant(at)}, its TTL allows {limit}. Feed newer data with `treadle materialize`."
        )


def _plain(view: View, name: str) -> str:
    from treadle.data.feast_join import plain_name

    return next(plain_name(field) for field in view.fields if field.name == name)


def _ask(
    feast: FeatureStore, view: View, names: Sequence[str], entities: Sequence[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """What the online store holds for entities; None where it holds nothing."""
    if not entities:
        return {name: [] for name in names}
    try:
        answer = feast.get_online_features(
            features=[f"{view.online}:{name}" for name in names], entity_rows=[dict(e) for e in entities]
        )
    except (OSError, sqlite3.OperationalError) as error:
        raise Transient(
            f"the online store does not answer for {view.online!r}: {error}. Try again."
        ) from error
    found: dict[str, list[Any]] = answer.to_dict()
    return {name: found[name] for name in names}


def project_name(loop: Loop, track: str) -> str:
    """The Feast project of a loop's track."""
    return legal_name(f"{loop.name}_{track}")


def online_file(loop: Loop, store: Store, track: str) -> Path | None:
    """The SQLite file of the online store; None when the loop names another online store.

    Raises:
        UserError: The store is not on this machine and the loop names no online store.
    """
    if loop.features.online is not None:
        return None
    if not isinstance(store, LocalStore):
        raise UserError(
            f"the store {store.uri} is not a local folder, so the online views need a store of their own:"
            " name one under `features.online`, such as {type: redis, connection_string: host:6379}."
        )
    return store.root / "online" / f"{loop.name}-{legal_name(track)}.db"


def _open(loop: Loop, store: Store, track: str, plan: Plan, folder: Path) -> FeatureStore:
    """Feast on the online store, knowing the plan's views under their online names; makes missing tables."""
    from feast import FeatureStore, RepoConfig
    from treadle.data.feast_join import feast_objects

    path = online_file(loop, store, track)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        online: dict[str, Any] = {"type": "sqlite", "path": str(path)}
    else:
        online = _expanded(loop, loop.features.online)
    config = RepoConfig(
        project=project_name(loop, track),
        # The registry is read once; it is rebuilt from the plan at each opening.
        registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
        provider="local",
        offline_store={"type": "duckdb"},
        online_store=online,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    feast = FeatureStore(config=config)
    objects = [
        made
        for view in plan.views
        for made in feast_objects(
            view, view.online, str(folder / "none.parquet"), extra=[(KNOWN_US, "Int64")]
        )
    ]
    try:
        feast.apply(objects)
    except (OSError, sqlite3.OperationalError) as error:
        raise Transient(f"the online store can't be opened: {error}. Try again.") from error
    return feast


def _expanded(loop: Loop, value: Any) -> Any:
    """The loop's online section with its variables read from the environment."""
    if isinstance(value, str):
        return loop.expand(value, "features.online")
    if isinstance(value, dict):
        return {name: _expanded(loop, item) for name, item in value.items()}
    return [_expanded(loop, item) for item in value] if isinstance(value, list) else value


@contextmanager
def _writing(loop: Loop, store: Store, track: str) -> Iterator[None]:
    """One writer at a time for SQLite, so that comparing and writing are one step; other processes wait.

    Raises:
        Transient: Another writer did not end within a minute.
    """
    path = online_file(loop, store, track)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    gate = sqlite3.connect(path.with_suffix(".lock"), timeout=60, isolation_level=None)
    try:
        gate.execute("BEGIN EXCLUSIVE")
        yield
    except sqlite3.OperationalError as error:
        raise Transient(
            f"the online store {path} is being written by another process: {error}. Try again."
        ) from error
    finally:
        gate.close()
