"""The rows of the page, from the reader's process: in time, or with a word on what was too slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle_airflow.hooks.treadle import Settings

Json = dict[str, Any]
LIMIT = 10.0  # seconds that a page may wait for stores
_KEEP = 10.0  # seconds that rows are good for
_lock = threading.Lock()
_kept: dict[str, tuple[float, list[Json]]] = {}


def folders() -> list[str]:
    """Where loops are: `TREADLE_LOOPS`, else `loops` in Airflow's DAGs folder."""
    from airflow.sdk.configuration import conf

    told = os.environ.get("TREADLE_LOOPS")
    return told.split(os.pathsep) if told else [str(Path(conf.get("core", "dags_folder")) / "loops")]


def rows_of(track: str, settings: Settings, *, limit: float = LIMIT) -> list[Json]:
    """A row a loop: `loop` and `status`, or `error`.

    Read at most every ten seconds, whoever asks; a store that hangs costs `limit` seconds and has an error row.
    """
    with _lock:
        at, rows = _kept.get(track, (0.0, []))
        if time.monotonic() - at > _KEEP or not rows:
            question = {"folders": folders(), "track": track, "mlflow_ui": settings.mlflow_ui}
            rows = _in_order(_ask(question, settings, limit), limit)
            _kept[track] = time.monotonic(), rows
            while len(_kept) > 20:
                _kept.pop(next(iter(_kept)))
        return rows


def forget() -> None:
    """Has the next page read anew."""
    _kept.clear()


def report_of(loop: str, id_: str, settings: Settings, *, limit: float = LIMIT) -> str | None:
    """The HTML page of a drift report, or None."""
    answers = _ask({"folders": folders(), "loop": loop, "id": id_}, settings, limit)
    return next((str(answer["html"]) for answer in answers if answer.get("html")), None)


def _in_order(answers: list[Json], limit: float) -> list[Json]:
    """The rows by their files; those that did not come are errors."""
    files = next((answer["files"] for answer in answers if "files" in answer), None)
    if files is None:
        return [{"error": f"the loops could not be read within {limit:g} s; Airflow's log says more"}]
    slow = {"error": f"its store did not answer within {limit:g} s"}
    came = {file: {"file": file, **slow} for file in files}
    for answer in answers:
        if "file" in answer:
            is_whole = "status" in answer or "error" in answer
            came[answer["file"]] = answer if is_whole else {**answer, **slow}
    return list(came.values())


def _ask(question: Json, settings: Settings, limit: float) -> list[Json]:
    """What the reader's process answered until it ended or the time was up."""
    command = [sys.executable, "-m", "treadle_airflow.page.reader"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(settings), text=True
    )
    try:
        out, _ = process.communicate(json.dumps(question), timeout=limit)
    except subprocess.TimeoutExpired as late:
        process.kill()
        process.communicate()
        partial = late.output or b""
        out = partial.decode(errors="replace") if isinstance(partial, bytes) else partial
    return [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]


def _environment(settings: Settings) -> Mapping[str, str]:
    """The connection's variables, in the reader's process alone."""
    wanted = {**os.environ, **settings.environment}
    if settings.store:
        wanted["TREADLE_STORE"] = settings.store
    return wanted
