"""MLflow's SQLite file beside the store: made whole, or not at all."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

from treadle.leases import lease, process_start
from treadle.store import Store


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path).absolute() if uri.startswith("sqlite:///") and path else None


def artifact_folder(uri: str, name: str) -> str | None:
    """Beside an SQLite file; a server knows its own. MLflow's default would be the working directory."""
    file = sqlite_file(uri)
    return (file.parent / "mlartifacts" / name).as_uri() if file else None


def create_database(uri: str, store: Store) -> None:
    """Makes a missing SQLite file whole, then links it to its name.

    MLflow takes seconds for its tables, fails when two make them at once, and never mends half of them.
    """
    file = sqlite_file(uri)
    if file is None or file.exists():
        return
    from mlflow import MlflowClient

    name = f"mlflow-database-{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    with lease(store, name, done=file.exists) as held:
        if not held or file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".new-{os.getpid()}-{file.name}")
        _clear_unfinished(file)
        try:
            MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments(max_results=1)
            os.link(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


def _clear_unfinished(file: Path) -> None:
    """Removes what killed processes left of a database: those of this process's own number, or of none that lives."""
    for left in file.parent.glob(f".new-*-{glob.escape(file.name)}*"):
        pid = left.name.removeprefix(".new-").partition("-")[0]
        if pid.isdigit() and (int(pid) == os.getpid() or process_start(int(pid)) is None):
            left.unlink(missing_ok=True)
