"""What the tests of MLflow share: a loop, a candidate of it with its files in a store, MLflow's client."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from treadle.loop import Loop
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.schema import Feature, InputSchema
from treadle.models.xgboost.flavour import XGBoostFlavour
from treadle.records import Candidate, record_id
from treadle.registry import mlflow as projection
from treadle.store import Store, put_blob

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
SCHEMA = InputSchema(
    (
        Feature("amount", "number"),
        Feature("express", "boolean"),
        Feature("region", "category", ("east", "west")),
    )
)


def make_loop(**sections: Any) -> Loop:
    table = {
        "sql": "t.sql",
        "entity": "id",
        "event_time": "at",
        "known_at": "at",
        "label": "late",
        "label_known_at": "known",
    }
    data = {"sources": {"orders": "orders.csv"}, "tables": {"orders": table}}
    train = {"rounds": 5, "params": {"max_depth": 2}}
    return Loop(name="orders", tags={"team": "ops"}, data=data, **{"train": train, **sections})


def make_candidate(store: Store, loop: Loop, folder: Path, seed: int = 0) -> Candidate:
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=200), rng.integers(0, 2, 200), rng.integers(0, 2, 200)]).astype(
        float
    )
    series: list[float] = []
    task = FitTask(
        train=loop.train,
        schema=SCHEMA,
        x=x,
        y=(x[:, 0] + rng.normal(size=200) > 0).astype(float),
        times_us=np.arange(200),
        x_valid=None,
        y_valid=None,
        classes=("0", "1"),
        trained_through=NOON,
        checkpoints=MemoryCheckpoints(),
        report=lambda number, metrics: series.append(next(iter(metrics.values()))),
    )
    model = folder / f"model-{seed}"
    model.mkdir()
    XGBoostFlavour().fit(task).save(model)
    blobs = {f"model/{file.name}": put_blob(store, file) for file in model.iterdir()}
    spec = loop.part("data", "features", "train")
    blobs["loop/spec.json"] = put_blob(store, json.dumps(spec).encode())
    blobs["rounds.json"] = put_blob(store, json.dumps({"train_log_loss": [0.6, 0.5, 0.4]}).encode())
    key = {"seed": seed}
    return Candidate(
        id=record_id("candidate", loop.name, key),
        digest=f"digest-{seed}",
        loop=loop.name,
        as_of=NOON,
        key=key,
        blobs=blobs,
        flavour="xgboost",
        task="binary",
        recipe="recipe",
        trained_from=None,
        trained_through=NOON,
        rows=200,
        rounds=5,
        metrics={"log_loss": 0.39},
        classes=("0", "1"),
        label_definition="label",
        features="features",
    )


def client_of(loop: Loop, store: Store) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=projection.tracking_uri(loop, store))
