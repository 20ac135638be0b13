"""MLflow's runs, versions and the champion's alias: projections of committed records and of the release log.

    experiment <loop>            or <loop>--<track>; the registered model has the same name
      run                        found by its tag treadle.record_id; of two with one tag the older counts
        artifacts/model          see registry/mlflow_model.py
    version                      found by the same tag
    alias champion               what the log's last entry says, read back after each change

Everything here can be made again from the records, and making it again changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from treadle import spec
from treadle.clock import format_instant
from treadle.environment import variables
from treadle.errors import MissingPackage, Transient, TreadleError, UserError
from treadle.leases import lease
from treadle.loop import Loop
from treadle.records import Candidate, Json
from treadle.redaction import cause, redacted
from treadle.registry.log import PRODUCTION
from treadle.registry.mlflow_database import artifact_folder, create_database
from treadle.registry.mlflow_model import save_pyfunc
from treadle.store import LocalStore, Store, fetch_blob, scratch_folder

T = TypeVar("T")

RECORD_TAG = "treadle.record_id"
ALIAS = "champion"
_TRIES = 5
_LONGEST_PARAM = 6000
# MLflow's own defaults, 120 s and 7 retries, make a dead server cost minutes; a setting of the user's stays.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@dataclass(frozen=True, slots=True)
class Projection:
    """Where a candidate is in MLflow: its run, and its version in the registry."""

    run_id: str
    version: str


def tracking_uri(loop: Loop, store: Store) -> str:
    """Where MLflow is: the loop's `tracking.uri`, else `MLFLOW_TRACKING_URI`, else SQLite in the store.

    Raises:
        UserError: None of them: the store is no folder.
    """
    if loop.tracking.uri:
        return loop.expand(loop.tracking.uri, "tracking.uri")
    found = os.environ.get("MLFLOW_TRACKING_URI")
    if found:
        return found
    if isinstance(store, LocalStore):
        return f"sqlite:///{store.root / 'mlflow.db'}"
    raise UserError(
        f"the store {store.uri} is no folder, so MLflow's database can't be in it."
        " Name a server: tracking: {uri: ...} in the loop, or MLFLOW_TRACKING_URI."
    )


def model_name(loop: Loop, track: str) -> str:
    """The name of a track's experiment and of its registered model."""
    return loop.name if track == PRODUCTION else f"{loop.name}--{track}"


def project_candidate(loop: Loop, store: Store, track: str, candidate: Candidate) -> Projection:
    """The candidate's run and version in MLflow, made where they are missing.

    Args:
        loop: Gives the names, the tags and MLflow's address.
        store: Holds the candidate's files.
        track: `production`, or another with names of its own.
        candidate: A committed record.

    Raises:
        Transient: MLflow can't be reached, or another writer was quicker too often.
        UserError: No address. MissingPackage: MLflow is not installed. BlobLost: a file is gone.
    """
    name = model_name(loop, track)
    with _mlflow(loop, store) as client, lease(store, f"mlflow-{name}-{candidate.id}"):
        experiment = _experiment(client, name, artifact_folder(tracking_uri(loop, store), name))
        run = _run(client, experiment, candidate, _tags(loop, track, candidate))
        if run.info.status != "FINISHED":
            _fill(client, run.info.run_id, store, candidate)
        return Projection(run.info.run_id, ensure_version(client, name, run, candidate))


def set_champion_alias(loop: Loop, store: Store, track: str, version: str) -> None:
    """Moves the alias `champion` of the track's registered model to a version, and reads it back.

    Raises:
        Transient: MLflow can't be reached, has no such version, or another writer moved the alias meanwhile.
    """
    name = model_name(loop, track)
    with _mlflow(loop, store) as client, lease(store, f"mlflow-{name}-alias"):
        if _alias(client, name) == version:
            return
        client.set_registered_model_alias(name, ALIAS, version)
        found = _alias(client, name)
        if found != version:
            raise Transient(
                f"MLflow's alias {ALIAS} of {name} was set to version {version} and reads {found}:"
                " something else moves it. Only treadle should; run deploy again."
            )


def champion_alias(loop: Loop, store: Store, track: str) -> str | None:
    """The version that the alias `champion` names in MLflow now, or None.

    Raises:
        Transient: MLflow can't be reached.
    """
    with _mlflow(loop, store) as client:
        return _alias(client, model_name(loop, track))


def ensure_version(client: Any, name: str, run: Any, candidate: Candidate) -> str:
    """The version of a registered model that has the candidate's tag, made when there is none.

    Raises:
        Transient: Five tries met conflicts.
    """
    from mlflow.exceptions import MlflowException

    where = f"name = '{name}' and tags.`{RECORD_TAG}` = '{candidate.id}'"
    last: Exception | None = None
    for attempt in range(_TRIES):
        try:
            found = [int(version.version) for version in client.search_model_versions(where)]
            if found:
                return str(min(found))
            _unless_there(lambda: client.create_registered_model(name))
            tags = {RECORD_TAG: candidate.id, "treadle.digest": candidate.digest}
            client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags)
        except MlflowException as error:
            last = error
            time.sleep(0.1 * 2**attempt)
    raise Transient(f"MLflow made no version of {name} in {_TRIES} tries: {redacted(str(last))}")


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        _unless_there(lambda: client.create_experiment(name, artifact_location=artifacts))
        found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _run(client: Any, experiment: str, candidate: Candidate, tags: Mapping[str, str]) -> Any:
    """The oldest run with the candidate's tag; made when there is none."""
    where = f"tags.`{RECORD_TAG}` = '{candidate.id}'"
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    found = client.search_runs([experiment], where, order_by=order, max_results=1)
    if found:
        return found[0]
    label = f"{candidate.as_of.date()} {candidate.digest[:12]}"
    made = client.create_run(experiment, tags=tags, run_name=label)
    oldest = client.search_runs([experiment], where, order_by=order, max_results=1)[0]
    if oldest.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
    return oldest


def _fill(client: Any, run_id: str, store: Store, candidate: Candidate) -> None:
    """Params, metrics and the model into a run; the same again when a killed process left it half done."""
    from mlflow.entities import Metric, Param

    blob = candidate.blobs.get("loop/spec.json")
    sections = json.loads(fetch_blob(store, blob).read_bytes()) if blob else {}
    train = sections.get("train", {})
    # What a search found stands beside what the loop says.
    found = candidate.notes.get("search", {}).get("params", {})
    train = {**train, "params": {**train.get("params", {}), **found}} if found else train
    params = [Param(key, value) for key, value in _params(train).items()]
    # One time for all, so that logging a point again is the same point.
    moment = int(candidate.as_of.timestamp() * 1000)
    rounds = candidate.blobs.get("rounds.json")
    series: dict[str, list[float | None]] = (
        json.loads(fetch_blob(store, rounds).read_bytes()) if rounds else {}
    )
    metrics = [
        Metric(_key(name), value, moment, step)
        for name, values in series.items()
        for step, value in enumerate(values)
        if value is not None
    ]
    single = {**candidate.metrics, "rows": candidate.rows}
    metrics += [Metric(_key(name), value, moment, 0) for name, value in single.items() if name not in series]
    for start in range(0, max(len(params), 1), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    with scratch_folder() as scratch:
        save_pyfunc(store, candidate, scratch / "model")
        client.log_artifacts(run_id, str(scratch / "model"), "model")
    client.set_terminated(run_id, "FINISHED")


def _params(train: Json) -> dict[str, str]:
    """The train section with its defaults, flattened: `params.max_depth` and so on."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[_key(prefix)] = text[:_LONGEST_PARAM]

    walk("", spec.Train.model_validate(train).model_dump(mode="json"))
    return flat


def _key(name: str) -> str:
    """A name as MLflow allows for params and metrics."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _tags(loop: Loop, track: str, candidate: Candidate) -> dict[str, str]:
    return {
        **loop.tags,
        RECORD_TAG: candidate.id,
        "treadle.loop": loop.name,
        "treadle.track": track,
        "treadle.owner": loop.owner,
        "treadle.digest": candidate.digest,
        "treadle.features": candidate.features,
        "treadle.recipe": candidate.recipe,
        "treadle.flavour": candidate.flavour,
        "treadle.as_of": format_instant(candidate.as_of),
        "treadle.trained_through": format_instant(candidate.trained_through),
    }


def _alias(client: Any, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, ALIAS).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _unless_there(create: Callable[[], object]) -> None:
    """Runs a creation; that another process was quicker is as good."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def import_mlflow() -> Any:
    """The mlflow module with its pyfunc part, without the warnings that its own type hints give it.

    Raises:
        MissingPackage: It is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import mlflow.pyfunc
        except ImportError as error:
            raise MissingPackage("mlflow", "track models", "stages") from error
    return mlflow


@contextmanager
def _mlflow(loop: Loop, store: Store) -> Iterator[Any]:
    """A client of MLflow that answers; within it MLflow is quiet, and its errors become ours.

    Raises:
        Transient: It can't be reached. MissingPackage, UserError: See `project_candidate`.
    """
    uri = tracking_uri(loop, store)
    with _settings(_SETTINGS):
        mlflow = import_mlflow()
        with _quiet():
            try:
                create_database(uri, store)
                client = mlflow.MlflowClient(tracking_uri=uri)
                with _settings(_FIRST_CONTACT):
                    client.get_experiment_by_name(loop.name)
                yield client
            except TreadleError:
                raise
            except Exception as error:
                raise _explained(error, uri) from cause(error, uri)


def _explained(error: Exception, uri: str) -> TreadleError:
    problem = f"MLflow at {redacted(uri)} failed: {type(error).__name__}: {redacted(str(error), uri)[:500]}"
    if type(error).__name__.startswith("Unsupported"):
        return UserError(f"{problem} Correct tracking.uri in the loop, or MLFLOW_TRACKING_URI.")
    return Transient(f"{problem} What is recorded stands; run again once it answers.")


@contextmanager
def _settings(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that MLflow reads, for a while; those that the user set stay as they are.

    One that holds our own setting is ours, so that the first contact's can stand within the others.
    """
    ours = {
        name: value
        for name, value in settings.items()
        if name not in os.environ or os.environ[name] == _SETTINGS[name]
    }
    with variables(ours):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's and Alembic's notes of progress, and what both call that is deprecated."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
