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
from treadle.store import Store, fetch_blob

if TYPE_CHECKING:
    from treadle.data.online import OnlineReader, RowRefused
    from treadle.serving.batch_ray import RaySpread
    from treadle.serving.by_entity import EntityJoin


def score_file(
    session: Session,
    source: Path,
    target: Path,
    *,
    keep: Sequence[str] = (),
    allow_gaps: bool = False,
    workers: int | None = None,
) -> Json:
    """Scores a Parquet or CSV file with the champion of the session's `as_of`, batch by batch.

    Args:
        session: Whose champion.
        source: Rows with all features, or rows that name entity and event time, whose features are then joined.
        target: Where the rows' ids and predictions go.
        keep: More columns of the source to carry over.
        allow_gaps: Let values of views that are absent, or older than their TTL, count as missing; else a row
            without one is refused, as a request is.
        workers: Over how many processes Ray spreads the work; left out, `train.workers` of the loop. The output
            is the same for any number.

    Returns:
        `rows`, `candidate` (digest), `output`; `unseen`, by feature the rows with a category that the model never
        saw, and `gaps`, by view the rows without a value: both counted as missing.

    Raises:
        UserError: No champion, or the file lacks what is needed or has what nobody reads; names file, column, row.
        MissingPackage: Several workers, and Ray is not installed. Transient: A worker was lost.
    """
    from treadle.models import load_candidate
    from treadle.serving.batch import predict_file
    from treadle.words import counted

    entry = session.log.champion(session.as_of)
    if entry is None or entry.candidate is None:
        raise UserError(
            f"{session.loop.name} has no champion on track {session.track} as of {session.as_of.date()}: run the loop."
        )
    candidate = get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
    predictor = load_candidate(session.store, candidate, trust=session.loop.train.trust)
    labelled = session.loop.data.tables[session.loop.data.labelled]
    named = [labelled.entity, labelled.event_time]
    about = [labelled.label, labelled.known_at, labelled.label_known_at, *labelled.known_at_of.values()]
    joins: list[EntityJoin] = []

    def join() -> EntityJoin:
        joins.append(_entity_join(session, candidate, allow_gaps))
        return joins[0]

    spread = _spread(session, candidate, allow_gaps, workers or session.loop.train.workers)
    scored = predict_file(
        predictor,
        source,
        target,
        model=candidate.digest,
        join=join,
        keep=[*(name for name in named if name), *keep],
        ignore=[name for name in about if name],
        spread=spread,
    )
    unseen = {name: count for name, count in scored.unseen.items() if count}
    gaps = dict(spread.gaps) if spread else dict(joins[0].gaps) if joins else {}
    for name, count in unseen.items():
        session.say(
            f"{counted(count, 'row')}: {name} is a category that the model never saw; it counts as missing"
        )
    for name, count in gaps.items():
        session.say(
            f"{counted(count, 'row')}: the view {name} has no value, or one that is too old; it counts as missing"
        )
    return {
        "rows": scored.rows,
        "candidate": candidate.digest,
        "output": str(target),
        "unseen": unseen,
        "gaps": gaps,
    }


def _spread(session: Session, candidate: Candidate, allow_gaps: bool, workers: int) -> RaySpread | None:
    """What scores on several workers; None for one."""
    if workers == 1:
        return None
    from treadle.models.loop_parcel import pack_loop
    from treadle.recipe import restore_loop
    from treadle.serving.batch_ray import JoinParcel, ModelParcel, RaySpread

    trust = session.loop.train.trust
    loop = restore_loop(session.store, candidate, session.loop)
    needs_code = ":" in candidate.flavour or trust != "none"
    files = {
        name.removeprefix("model/"): fetch_blob(session.store, sha256).read_bytes()
        for name, sha256 in candidate.blobs.items()
        if name.startswith("model/")
    }
    model = ModelParcel(files, trust, pack_loop(loop, "train") if needs_code else None)

    def join() -> JoinParcel:
        made = _entity_join(session, candidate, allow_gaps)
        parcel = pack_loop(loop, "prepare", "featurize")
        return JoinParcel(parcel, session.store.uri, made.plan, made.snapshot(), allow_gaps)

    return RaySpread(workers, model, join)


def _entity_join(session: Session, candidate: Candidate, allow_gaps: bool) -> EntityJoin:
    from treadle.data.feast_store import PLAN_BLOB, Plan
    from treadle.recipe import restore_loop
    from treadle.serving.by_entity import EntityJoin
    from treadle.steps import snapshot_of

    features = get_record(session.store, FeatureSet, session.loop.name, candidate.features_id)
    plan = Plan.model_validate_json(fetch_blob(session.store, features.blobs[PLAN_BLOB]).read_bytes())
    loop = restore_loop(session.store, candidate, session.loop)
    return EntityJoin(
        loop,
        session.store,
        plan,
        lambda: snapshot_of(session, loop, session.as_of),
        allow_gaps=allow_gaps,
    )


class OnlineLookup:
    """Features of requests that name entities: own columns as they bring them, views from the online store."""

    def __init__(self, reader: OnlineReader, own: Sequence[str]) -> None:
        self._reader, self._own = reader, tuple(own)
        self._names = tuple(dict.fromkeys((*own, *reader.keys)))
        self._expected = frozenset(self._names)

    def columns_for(self, rows: Sequence[Mapping[str, Any]], at: datetime | None) -> dict[str, list[Any]]:
        """The model's features by name, in the order of `rows`.

        Raises:
            RowRefused: A row lacks one of the model's own columns or a join key, has a column that is neither, or
                a value is absent or too old.
            Transient: The online store does not answer.
        """
        for number, row in enumerate(rows):
            if row.keys() != self._expected:
                raise self._misnamed(number, row)
        columns = {name: [row[name] for row in rows] for name in self._own}
        return columns | self._reader.read(rows, at or datetime.now(UTC))

    def warm(self) -> None:
        """Imports Feast and opens the online store.

        Raises:
            Transient: It does not answer.
        """
        self._reader.warm()

    def _misnamed(self, number: int, row: Mapping[str, Any]) -> RowRefused:
        from treadle.data.online import RowRefused

        if missing := [name for name in self._names if name not in row]:
            problem = (
                f"{missing[0]!r} is missing; an entity brings the keys of the views and the model's own columns"
                f" ({', '.join(self._names)}), the views come from the online store."
            )
            return RowRefused(number, missing[0], problem, "missing_column")
        extra = sorted(row.keys() - self._expected)[0]
        problem = (
            f"{extra[:60]!r} is neither a key of the views nor one of the model's own columns; leave it out"
            " (identifiers go into `ids`, times into `event_time`)."
        )
        return RowRefused(number, extra, problem, "extra_column")


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
