"""The online store: each view's newest values by entity, never older over newer, read with their age checked.

A view lies there under its online name, which holds the digest of its definition, so that the champion and
its predecessor each read their own. Beside the features stands when they became known, to the microsecond.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.clock import format_duration, format_instant
from treadle.data.built import EPOCH, as_microseconds
from treadle.data.feast_store import PLAN_BLOB, Plan, View, feature_plan
from treadle.data.online_store import KNOWN_US, answering, online_file, open_feast, writing
from treadle.errors import Transient, UserError
from treadle.loop import Loop
from treadle.records import FeatureSet, Snapshot
from treadle.store import Store, fetch_blob, scratch_folder
from treadle.words import lasting

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

_BATCH = 1000
_PAUSE_S = 1.0  # after a failure, requests are refused at once for so long: each try may take seconds


class RowRefused(UserError):
    """A row that names an entity can't be answered: `row` counts from 0 among those given, `code` is for programs."""

    def __init__(self, row: int, field: str | None, problem: str, code: str = "features_unavailable") -> None:
        super().__init__(row, field, problem, code)
        self.row, self.field, self.problem, self.code = row, field, problem, code

    def words(self) -> str:
        """The row and what is wrong with it."""
        return f"row {self.row}: {self.problem}"


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
        Transient: The online store does not answer.
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
    with scratch_folder() as folder, writing(loop, store, track) as check:
        feast = open_feast(loop, store, track, plan, folder)
        return {
            view.online: _write_newest(feast, view, _newest(store, snapshot, view, as_of), check)
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


def _write_newest(feast: FeatureStore, view: View, rows: pa.Table, check: Callable[[], None]) -> int:
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
        check()
        with answering(f"can't be written for {view.online!r}"):
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
        self._down_until, self._down = 0.0, ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns that a request names its entities by."""
        return tuple(dict.fromkeys(key.labelled for view in self.plan.views for key in view.keys))

    def warm(self) -> None:
        """Imports Feast and opens the online store, so that no request has to wait for it.

        Raises:
            Transient: The online store does not answer; a later read tries again.
        """
        with self._lock:
            feast = self._connected()
            for view in self.plan.views:
                nobody = {key.labelled: "" if key.dtype == "String" else 0 for key in view.keys}
                _ask(feast, view, [KNOWN_US], [nobody])

    def read(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> dict[str, list[Any]]:
        """The views' features of n entities: feature to n values, in the rows' order; a value may be None.

        Args:
            rows: Join key to value; each row has all of `keys`, and may have more.
            at: The time of the question: a value must be known by then and no older than its view's TTL.

        Raises:
            RowRefused: A key is missing or mistyped; a value is not there, too old, or newer than `at`. The
                text names row, view, entity and age.
            Transient: The online store does not answer.
        """
        with self._lock:
            if time.monotonic() < self._down_until:
                raise Transient(self._down)
            try:
                return self._read(rows, at)
            except Transient as error:
                self._down_until, self._down = time.monotonic() + _PAUSE_S, error.words()
                raise

    def _read(self, rows: Sequence[Mapping[str, Any]], at: datetime) -> dict[str, list[Any]]:
        features: dict[str, list[Any]] = {}
        wanted = [
            [_entity_of(view, row, number) for number, row in enumerate(rows)] for view in self.plan.views
        ]
        feast = self._connected()
        for view, entities in zip(self.plan.views, wanted, strict=True):
            names = [_plain(view, field.name) for field in view.fields]
            answer = _ask(feast, view, [KNOWN_US, *names], entities)
            for row, (entity, known) in enumerate(zip(entities, answer[KNOWN_US], strict=True)):
                problem = absence(view, entity, known, at)
                if problem:
                    raise RowRefused(
                        row,
                        view.keys[0].labelled,
                        f"{problem} Feed the online store with `treadle materialize`.",
                    )
            for field, name in zip(view.fields, names, strict=True):
                features[view.feature(field)] = answer[name]
        return features

    def _connected(self) -> FeatureStore:
        """The open store; opened again when its file was replaced, as SQLite would go on with the old one."""
        path = online_file(self._loop, self._store, self._track)
        now = _file_identity(path) if path else None
        if self._feast is None or now != self._file:
            with scratch_folder() as folder:
                self._feast = open_feast(self._loop, self._store, self._track, self.plan, folder)
            self._file = _file_identity(path) if path else None
        return self._feast


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _entity_of(view: View, row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The view's keys out of a request's row."""
    entity = {}
    for key in view.keys:
        value = row.get(key.labelled)
        kind, words = (str, "text") if key.dtype == "String" else (int, "a whole number")
        if not isinstance(value, kind) or isinstance(value, bool):
            problem = (
                f"the view {view.name!r} is read by {key.labelled!r}: give it as {words}; it is {value!r}."
            )
            raise RowRefused(number, key.labelled, problem, "wrong_type")
        entity[key.labelled] = value
    return entity


def absence(view: View, entity: Mapping[str, Any], known_us: int | None, at: datetime) -> str:
    """Why a view's value can't answer a question asked at `at`; empty when it can.

    Args:
        view: Whose value.
        entity: Key to value.
        known_us: When the newest value became known, in microseconds since 1970; None where there is none.
        at: A value known at this very time, and one exactly as old as the view's TTL, answer.
    """
    who = ", ".join(f"{name} = {value!r}" for name, value in entity.items())
    if known_us is None:
        return f"the view {view.name!r} has no value for {who}."
    age_us = as_microseconds(at) - known_us
    since = format_instant(EPOCH + timedelta(microseconds=known_us))
    if age_us < 0:
        return (
            f"the view {view.name!r} knows {who} only as of {since}, after {format_instant(at)}. For a time in the"
            " past use `treadle predict`, which joins by time."
        )
    if view.ttl_us and age_us > view.ttl_us:
        lengths = [timedelta(microseconds=us) for us in (age_us, view.ttl_us)]
        age, limit = map(lasting, lengths)
        if age == limit:  # rounded, they don't tell what is wrong
            age, limit = map(format_duration, lengths)
        return (
            f"the value of {view.name!r} for {who} is too old: known since {since}, {age} before"
            f" {format_instant(at)}, its TTL allows {limit}."
        )
    return ""


def _plain(view: View, name: str) -> str:
    from treadle.data.feast_join import plain_name

    return next(plain_name(field) for field in view.fields if field.name == name)


def _ask(
    feast: FeatureStore, view: View, names: Sequence[str], entities: Sequence[Mapping[str, Any]]
) -> dict[str, list[Any]]:
    """What the online store holds for entities; None where it holds nothing."""
    if not entities:
        return {name: [] for name in names}
    with answering(f"does not answer for {view.online!r}"):
        answer = feast.get_online_features(
            features=[f"{view.online}:{name}" for name in names], entity_rows=[dict(e) for e in entities]
        )
    found: dict[str, list[Any]] = answer.to_dict()
    return {name: found[name] for name in names}
