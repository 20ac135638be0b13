"""Answers by the champion: for a file, and for requests that name entities only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.commit import get_record
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.records import Candidate, FeatureSet, Json
from treadle.session import Session
from treadle.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.data.online import OnlineReader


def score_file(session: Session, source: Path, target: Path) -> Json:
    """Scores a Parquet or CSV file with the champion of the session's `as_of`, batch by batch.

    Args:
        session: Whose champion.
        source: Rows with all features, or rows that name entity and event time, whose features are then joined.
        target: Where the rows' ids and predictions go.

    Returns:
        `rows`, `candidate` (digest) and `output`.

    Raises:
        UserError: No champion, or the file lacks what is needed; names file, column and row.
    """
    from treadle.models import load_candidate
    from treadle.serving.batch import predict_file

    entry = session.log.champion(session.as_of)
    if entry is None or entry.candidate is None:
        raise UserError(
            f"{session.loop.name} has no champion on track {session.track} as of {session.as_of.date()}: run the loop."
        )
    candidate = get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
    predictor = load_candidate(session.store, candidate, trust=session.loop.train.trust)
    labelled = session.loop.data.tables[session.loop.data.labelled]
    rows = predict_file(
        predictor,
        source,
        target,
        model=candidate.digest,
        join=_Join(session, candidate),
        keep=[name for name in (labelled.entity, labelled.event_time) if name],
    )
    return {"rows": rows, "candidate": candidate.digest, "output": str(target)}


class _Join:
    """Gives batches of entities and times the features of a candidate, by its own files."""

    def __init__(self, session: Session, candidate: Candidate) -> None:
        self._session, self._candidate = session, candidate
        self._ready: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        from treadle.data.feast_rows import join_for_prediction
        from treadle.recipe import restore_loop
        from treadle.runner import snapshot_of

        if self._ready is None:
            loop = restore_loop(self._session.store, self._candidate, self._session.loop)
            self._ready = loop, snapshot_of(self._session, loop, self._session.as_of)
        loop, snapshot = self._ready
        return join_for_prediction(loop, self._session.store, snapshot, batch)


class OnlineLookup:
    """Features of requests that name entities: own columns as they bring them, views from the online store."""

    def __init__(self, reader: OnlineReader, own: Sequence[str]) -> None:
        self._reader, self._own = reader, tuple(own)

    def columns_for(self, rows: Sequence[Mapping[str, Any]], at: datetime | None) -> dict[str, list[Any]]:
        """The model's features by name, in the order of `rows`.

        Raises:
            UserError: A row lacks one of the model's own columns or a join key, or a value is absent or too old.
        """
        columns: dict[str, list[Any]] = {}
        for name in self._own:
            for number, row in enumerate(rows):
                if name not in row:
                    raise UserError(
                        f"row {number}: {name!r} is missing; an entity brings its own columns "
                        f"({', '.join(self._own)}), the views come from the online store."
                    )
            columns[name] = [row[name] for row in rows]
        return columns | self._reader.read(rows, at or datetime.now(UTC))


def online_for(loop: Loop, store: Store, track: str, candidate: Candidate) -> OnlineLookup | None:
    """The lookup of a candidate's online features; None for a model that uses no view."""
    from treadle.recipe import restore_loop

    own_loop = restore_loop(store, candidate, loop)
    if not own_loop.features.use:
        return None
    from treadle.data.online import OnlineReader

    features = get_record(store, FeatureSet, loop.name, candidate.features_id)
    reader = OnlineReader(own_loop, store, track, features)
    return OnlineLookup(reader, [column.name for column in reader.plan.own])
