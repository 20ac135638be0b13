from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))

from planted import AS_OF, START, make_loop, parcels, run
from treadle.commit import commit_record, make_record
from treadle.data.sources import source_digests
from treadle.errors import AsOfError, DataRefused, UserError
from treadle.loop import Loop
from treadle.records import Snapshot
from treadle.stages import Context
from treadle.stages.prepare import key, prepare
from treadle.store import LocalStore, put_blob


def _context(loop: Loop, folder: Path, as_of: datetime = AS_OF) -> Context:
    return Context(loop, as_of, LocalStore(folder / "store"), None, folder, print)  # type: ignore[arg-type]


def _commit(loop: Loop, folder: Path, as_of: datetime) -> dict[str, list[str]]:
    """Commits a snapshot as the runner does; the partitions whose past had changed."""
    context = _context(loop, folder, as_of)
    made_by = key(context, source_digests(loop))
    outcome = run(loop, folder, as_of, context.store)
    blobs = {name: put_blob(context.store, file) for name, file in outcome.files.items()} | dict(outcome.kept)
    record = make_record(
        Snapshot,
        loop=loop.name,
        as_of=as_of,
        key=made_by,
        digest=outcome.digest or "",
        results=dict(outcome.results),
        blobs=blobs,
        notes=dict(outcome.notes),
    )
    commit_record(context.store, record)
    return dict(outcome.notes.get("changed_partitions", {}))


def test_an_overwritten_past_is_named_and_late_labels_are_not(tmp_path: Path) -> None:
    rows = parcels()
    assert _commit(make_loop(tmp_path, rows), tmp_path, AS_OF) == {}
    later = AS_OF + timedelta(days=7)
    more = [*rows, {**rows[0], "id": "new", "sent_at": AS_OF, "known_at": AS_OF, "came_at": later}]
    assert _commit(make_loop(tmp_path, more), tmp_path, later) == {}
    more[20] = {**more[20], "weight": 1.0}
    assert _commit(make_loop(tmp_path, more), tmp_path, later + timedelta(days=7)) == {"parcels": ["2024-01"]}


def test_the_key_holds_what_decides_the_result_and_no_place(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels(50))
    made_by = key(_context(loop, tmp_path), {"parcels": "0"})
    moved = make_loop(tmp_path / "moved", None, sources={"parcels": "/elsewhere/parcels.csv"})
    assert key(_context(moved, tmp_path), {"parcels": "0"}) == made_by
    assert "parcels.csv" not in json.dumps(made_by)
    others = [
        key(_context(loop, tmp_path), {"parcels": "1"}),
        key(_context(loop, tmp_path, AS_OF + timedelta(days=1)), {"parcels": "0"}),
        key(_context(make_loop(tmp_path / "sql", None, sql="SELECT 1"), tmp_path), {"parcels": "0"}),
        key(_context(make_loop(tmp_path / "window", None, window="30d"), tmp_path), {"parcels": "0"}),
    ]
    assert made_by not in others


def test_a_key_and_source_digests_import_nothing_heavy(tmp_path: Path) -> None:
    make_loop(tmp_path, parcels(20))
    (tmp_path / "loop.yaml").write_text(
        "name: parcels\ndata:\n  sources: {parcels: parcels.csv}\n  tables:\n    parcels:"
        " {sql: parcels.sql, entity: id,"
        " event_time: sent_at, known_at: known_at, label: late, label_known_at: came_at}\n"
    )
    code = (
        "import sys; from datetime import *; from pathlib import Path; from treadle.loop import Loop\n"
        "from treadle.stages import Context; from treadle.stages.prepare import key\n"
        "from treadle.data.sources import source_digests\n"
        f"loop = Loop.load({str(tmp_path / 'loop.yaml')!r})\n"
        "context = Context(loop, datetime(2024, 3, 1, tzinfo=UTC), None, None, Path(), print)\n"
        "key(context, source_digests(loop))\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'duckdb', 'ibis', 'great_expectations'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_as_of_before_the_data_says_where_they_begin(tmp_path: Path) -> None:
    with pytest.raises(AsOfError, match="begins in 2024-01"):
        run(make_loop(tmp_path, parcels()), tmp_path, datetime(2023, 6, 1, tzinfo=UTC))


def test_an_empty_window_is_refused(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels(), window="10d")
    with pytest.raises(DataRefused, match="the window is empty"):
        run(loop, tmp_path, datetime(2025, 1, 1, tzinfo=UTC))


def test_labels_of_one_class_or_none_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "late": False} for row in parcels()]
    with pytest.raises(DataRefused, match="one value only, False"):
        run(make_loop(tmp_path / "one", rows), tmp_path / "one")
    with pytest.raises(DataRefused, match="no label is known before 2024-01-02"):
        run(make_loop(tmp_path / "none", parcels()), tmp_path / "none", START + timedelta(days=1))


def test_a_binary_label_in_words_is_refused_with_the_remedy(tmp_path: Path) -> None:
    rows = [{**row, "late": "yes please" if row["late"] else "not at all"} for row in parcels()]
    with pytest.raises(UserError, match="a binary label is a boolean"):
        run(make_loop(tmp_path, rows), tmp_path)


def test_rows_without_entity_or_time_are_refused(tmp_path: Path) -> None:
    rows = parcels()
    rows[4]["id"] = None
    with pytest.raises(DataRefused, match="1 of 900 rows of the table 'parcels' have no 'id'"):
        run(make_loop(tmp_path, rows), tmp_path)


def test_one_process_makes_a_table_once_for_many_as_ofs(tmp_path: Path) -> None:
    lines: list[str] = []
    loop = make_loop(tmp_path, parcels(seed=77))
    for day in range(3):
        context = Context(
            loop, AS_OF + timedelta(days=day), LocalStore(tmp_path / "store"), None, tmp_path, lines.append
        )  # type: ignore[arg-type]
        prepare(context)
    assert sum("made the table" in line for line in lines) == 1
