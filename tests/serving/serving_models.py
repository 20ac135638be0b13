"""Small models for the serving tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from treadle import spec
from treadle.commit import commit_record, make_record
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle.models import Predictor, get_flavour
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.schema import Feature, InputSchema
from treadle.records import Candidate
from treadle.registry.log import ReleaseLog
from treadle.serving.router import Variant, make_variant
from treadle.store import Store, put_blob

AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
SCHEMA = InputSchema(
    (
        Feature("temperature", "number"),
        Feature("night", "boolean"),
        Feature("carrier", "category", ("AA", "DL", "UA")),
        Feature("distance", "number"),
    )
)
ROW = {"temperature": 21.5, "night": True, "carrier": "DL", "distance": 1400}


@dataclass
class Logistic:
    """A logistic curve; a missing value counts as `missing`, or fails where that is None."""

    offset: float = 0.0
    missing: float | None = 0.25
    schema: InputSchema = SCHEMA
    calls: list[int] = field(default_factory=list)
    flavour: str = "logistic"
    task: Any = "binary"
    classes: tuple[str, ...] = ("0", "1")
    trained_through: datetime = datetime(2013, 4, 1, tzinfo=UTC)
    rounds: int | None = None

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls.append(len(x))
        if self.missing is None and np.isnan(x).any():
            raise ValueError("Input contains NaN")
        filled = np.where(np.isnan(x), self.missing or 0.0, x)
        weights = np.linspace(0.1, 1.0, x.shape[1])
        return 1 / (1 + np.exp(-(np.tanh(filled) * weights).sum(axis=1) - self.offset))

    def contributions(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros_like(x)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class ThreeClasses(Logistic):
    """Probabilities of three classes."""

    def predict(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        first = super().predict(x) / 2
        return np.column_stack([first, first / 3, 1 - first - first / 3])


def variant_of(predictor: Any, version: int = 7, candidate: str = "", **more: Any) -> Variant:
    return make_variant(predictor, candidate or f"{version:064x}", version, **more)


def expected(predictor: Any, rows: Sequence[dict[str, Any]]) -> list[float]:
    columns = {name: [row[name] for row in rows] for name in predictor.schema.names}
    return list(predictor.predict(predictor.schema.encode(columns)))


def small_loop(name: str = "flights", **sections: Any) -> Loop:
    """A loop that only its name and its deploy section matter of."""
    table = {
        "sql": "t.sql",
        "entity": "id",
        "event_time": "at",
        "known_at": "at",
        "label": "late",
        "label_known_at": "known",
    }
    return Loop(name=name, data={"sources": {"t": "t.csv"}, "tables": {"t": table}}, **sections)


def trained(seed: int = 0) -> Predictor:
    """A small xgboost model of SCHEMA's features."""
    random = np.random.default_rng(seed)
    x = np.column_stack(
        [
            random.normal(size=400),
            random.integers(2, size=400),
            random.integers(3, size=400),
            random.normal(size=400),
        ]
    )
    y = (x[:, 0] + x[:, 2] + random.normal(size=400) > 1).astype(float)
    section = spec.Train(rounds=5, params={"max_depth": 3}, threads=1)
    return get_flavour("xgboost").fit(
        FitTask(
            train=section,
            schema=SCHEMA,
            x=x,
            y=y,
            times_us=np.arange(400, dtype=np.int64),
            x_valid=None,
            y_valid=None,
            classes=("0", "1"),
            trained_through=datetime(2013, 4, 1, tzinfo=UTC),
            checkpoints=MemoryCheckpoints(),
            report=lambda round_, metrics: None,
        )
    )


def stored_candidate(store: Store, predictor: Predictor, folder: Path) -> Candidate:
    """The record of a candidate whose files are in the store."""
    folder.mkdir(parents=True)
    predictor.save(folder)
    blobs = {f"model/{path.name}": put_blob(store, path) for path in sorted(folder.iterdir())}
    results = {
        "flavour": predictor.flavour, "task": predictor.task, "recipe": "r", "trained_from": None,
        "trained_through": predictor.trained_through, "rows": 400, "metrics": {}, "label_definition": "l",
        "classes": predictor.classes, "features": "f",
    }  # fmt: skip
    record = make_record(
        Candidate,
        loop="flights",
        as_of=AS_OF,
        key=blobs,
        digest=digest_of(blobs),
        results=results,
        blobs=blobs,
        notes={},
    )
    return commit_record(store, record)


def promote(
    store: Store, candidate: Candidate, day: int, champion: str | None = None, track: str = "production"
) -> int:
    """The sequence of the entry that made a candidate the champion."""
    entry, _ = ReleaseLog(store, "flights", track).append(
        "promote",
        subject=candidate.digest,
        candidate=candidate.digest,
        champion=champion,
        why="better",
        who="test",
        as_of=AS_OF + timedelta(days=day),
        details={"candidate_id": candidate.id},
    )
    return entry.sequence
