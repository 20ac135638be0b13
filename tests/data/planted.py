"""A made-up loop whose rows a test can plant: parcels, and whether they came late."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from treadle.loop import Loop
from treadle.records import Snapshot
from treadle.stages import Context, Outcome
from treadle.stages.prepare import prepare
from treadle.store import LocalStore, Store

START = datetime(2024, 1, 1, tzinfo=UTC)
AS_OF = datetime(2024, 3, 15, tzinfo=UTC)
FIELDS = ("id", "sent_at", "known_at", "weight", "town", "late", "came_at")


def parcels(count: int = 900, days: int = 80, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        sent = START + timedelta(days=days) * number / count
        rows.append(
            {
                "id": f"p{number}",
                "sent_at": sent,
                "known_at": sent,
                "weight": rng.randrange(1, 400) / 8,
                "town": rng.choice(["Ayr", "Bath", "Cork", None]),
                "late": rng.random() < 0.3,
                "came_at": sent + timedelta(days=rng.randrange(1, 5)),
            }
        )
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    def shown(value: Any) -> str:
        return "" if value is None else value.isoformat() if isinstance(value, datetime) else str(value)

    names = list(dict.fromkeys([*FIELDS, *(name for row in rows for name in row)]))
    lines = [",".join(names), *(",".join(shown(row.get(name)) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def make_loop(
    folder: Path,
    rows: Sequence[dict[str, Any]] | None,
    *,
    sql: str = "SELECT * FROM parcels",
    table: dict[str, Any] | None = None,
    task: str = "binary",
    **data: Any,
) -> Loop:
    folder.mkdir(parents=True, exist_ok=True)
    if rows is not None:
        write_csv(folder / "parcels.csv", rows)
    (folder / "parcels.sql").write_text(sql)
    declared = {
        "sql": "parcels.sql",
        "entity": "id",
        "event_time": "sent_at",
        "known_at": "known_at",
        "label": "late",
        "label_known_at": "came_at",
        **(table or {}),
    }
    data = {"sources": {"parcels": "parcels.csv"}, "tables": {"parcels": declared}, **data}
    loop = Loop(name="parcels", data=data, train={"task": task})
    loop._folder = folder
    return loop


def run(loop: Loop, folder: Path, as_of: datetime = AS_OF, store: Store | None = None) -> Outcome:
    scratch = folder / f"scratch-{len(list(folder.glob('scratch-*')))}"
    scratch.mkdir(parents=True)
    store = store or LocalStore(folder / "store")
    return prepare(Context(loop, as_of, store, None, scratch, lambda line: None))  # type: ignore[arg-type]


def recorded(outcome: Outcome) -> Snapshot:
    header = {"id": "0", "digest": outcome.digest, "loop": "parcels", "as_of": AS_OF, "key": {}}
    return Snapshot.model_validate({**header, **outcome.results})
