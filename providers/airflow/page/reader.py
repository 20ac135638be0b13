"""What the page shows, read in a process of its own: a hung store, or its credentials, then stay out of Airflow's.

Reads a question as JSON from its input, and prints a line of JSON for each answer as it comes. Nothing of Airflow.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]
_WORKERS = 8


def read_rows(question: Json) -> Iterator[Json]:
    """First every file's name, then of each loop its name, then its row, in the order in which they are done.

    A row has `file`, `loop`, `status` and `mlflow`, or `error`.

    Args:
        question: `folders` of loops, `track`, and `mlflow_ui`, the address of MLflow's pages where it differs.
    """
    from queue import Empty, SimpleQueue

    files = [path for folder in question["folders"] for path in _files(Path(folder))]
    yield {"files": [str(path) for path in files]}
    todo: SimpleQueue[Path] = SimpleQueue()
    done: SimpleQueue[Json] = SimpleQueue()
    for path in files:
        todo.put(path)

    def work() -> None:
        while True:
            try:
                path = todo.get_nowait()
            except Empty:
                return
            for row in _rows(path, question):
                done.put(row)
            done.put({})

    for _ in range(min(_WORKERS, len(files))):
        threading.Thread(target=work, daemon=True).start()
    left = len(files)
    while left:
        row = done.get()
        left -= not row
        if row:
            yield row


def _files(folder: Path) -> list[Path]:
    """As treadle_airflow.files.loop_files, of a folder that may be gone."""
    if not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    return sorted(path for path in named if path.stem != "pools")


def _rows(path: Path, question: Json) -> Iterator[Json]:
    from treadle.errors import SpecError
    from treadle.loop import Loop
    from treadle.redaction import redacted
    from treadle.session import open_session
    from treadle.status import status

    row: Json = {"file": str(path)}
    try:
        loop = Loop.load(path)
        row["loop"] = loop.name
        yield dict(row)
        session = open_session(loop, track=question["track"], say=lambda line: None)
        row["status"] = status(session)
        champion = row["status"]["champion"]
        if champion:
            row["mlflow"] = _run_page(session, champion["candidate_id"], question.get("mlflow_ui"))
    except SpecError:
        row["error"] = "the file can't be used: Airflow shows why among its import errors"
    except Exception as error:  # whatever a store may raise: it is this row's, and the others stay
        row["error"] = redacted(f"{type(error).__name__}: {error}")
    yield row


def _run_page(session: Any, candidate_id: str, mlflow_ui: str | None) -> str | None:
    """The champion's run among MLflow's pages, without credentials."""
    from treadle.projections import read_receipt
    from treadle.registry.mlflow import tracking_uri

    receipt = read_receipt(session, f"candidate-{candidate_id}")
    address = urlsplit(mlflow_ui or tracking_uri(session.loop, session.store))
    if not receipt or not receipt.get("run_id") or address.scheme not in ("http", "https"):
        return None
    host = address.netloc.rpartition("@")[2]
    return f"{address.scheme}://{host}{address.path.rstrip('/')}/#/runs/{receipt['run_id']}"


def read_report(question: Json) -> Json:
    """The HTML page of a drift report, as `html`; None where there is none."""
    from treadle.commit import find_record
    from treadle.loop import Loop
    from treadle.records import DriftReport
    from treadle.session import open_session
    from treadle.store import fetch_blob

    for path in [path for folder in question["folders"] for path in _files(Path(folder))]:
        if not re.search(rf"^name:\s*['\"]?{re.escape(question['loop'])}\b", path.read_text(), re.MULTILINE):
            continue
        session = open_session(Loop.load(path), say=lambda line: None)
        record = find_record(session.store, DriftReport, question["loop"], question["id"])
        names = [name for name in record.blobs if name.endswith(".html")] if record else []
        if record and names:
            return {"html": fetch_blob(session.store, record.blobs[names[0]]).read_text(encoding="utf-8")}
    return {"html": None}


def main(answer: Callable[[Json], None]) -> None:
    """Answers the question on the input."""
    question = json.load(sys.stdin)
    if "id" in question:
        answer(read_report(question))
        return
    for row in read_rows(question):
        answer(row)


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(row: Json) -> None:
        """One line."""
        out.write(json.dumps(row) + "\n")
        out.flush()

    main(say)
    os._exit(0)  # a thread may hang in a store
