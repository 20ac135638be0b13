from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from feast_cases import FEATURES, HOUR, START, Case, many, report, visit
from treadle.data.tables import read_partitions
from treadle.errors import BlobDeleted
from treadle.stages.featurize import key
from treadle.store import blob_path


def test_a_second_run_joins_only_the_partition_that_changed(tmp_path: Path) -> None:
    visits, reports = many(91)
    case = Case(tmp_path)
    first = case.record(case.snapshot(visits, reports))
    assert first.notes["rows_joined"] == len(visits)
    again = case.record(case.snapshot(visits, reports))
    assert (again.notes["rows_joined"], again.digest) == (0, first.digest)
    february = [row for row in visits if row["asked_at"].month == 2]
    february[3]["size"] += 1
    changed = case.record(case.snapshot(visits, reports))
    assert changed.notes["rows_joined"] == len(february)
    assert changed.notes["partitions_joined"] == ["2024-02"]
    assert changed.digest != first.digest
    assert [a.digest == b.digest for a, b in zip(first.partitions, changed.partitions, strict=True)] == [
        True,
        False,
        True,
    ]


def test_partial_reuse_gives_what_a_fresh_store_gives(tmp_path: Path) -> None:
    visits, reports = many(91)
    one, other = Case(tmp_path / "one"), Case(tmp_path / "other")
    one.record(one.snapshot(visits[:1500], reports))
    grown = one.record(one.snapshot(visits, reports))
    assert 0 < grown.notes["rows_joined"] < len(visits)
    fresh = other.record(other.snapshot(visits, reports))
    assert (grown.digest, grown.views, grown.partitions) == (fresh.digest, fresh.views, fresh.partitions)


def test_a_changed_value_joins_again_only_where_it_can_reach(tmp_path: Path) -> None:
    visits, reports = many(91)
    case = Case(tmp_path)
    case.record(case.snapshot(visits, reports))
    last = max(row["known_at"] for row in reports if row["known_at"].month == 1)
    next(row for row in reports if row["known_at"] == last)["temp"] = -40.0
    changed = case.record(case.snapshot(visits, reports))
    # The last hour of January is still fresh in February's first hours, and never in March.
    assert changed.notes["partitions_joined"] == ["2024-01", "2024-02"]


def test_without_a_ttl_a_changed_value_joins_again_all_that_follows(tmp_path: Path) -> None:
    visits, reports = many(91)
    case = Case(tmp_path, features=FEATURES.replace("hours=6", "0"))
    case.record(case.snapshot(visits, reports))
    next(row for row in reports if row["known_at"].month == 2)["temp"] = -40.0
    assert case.record(case.snapshot(visits, reports)).notes["partitions_joined"] == ["2024-02", "2024-03"]


def test_rows_planted_in_the_future_change_nothing_before_them(tmp_path: Path) -> None:
    visits, reports = many(30)
    case = Case(tmp_path)
    first = case.record(case.snapshot(visits, reports))
    planted = [*reports, report(START + timedelta(days=45), 1000.0)]
    assert case.record(case.snapshot(visits, planted)).digest == first.digest


def test_an_edited_definition_is_another_feature_set_and_another_online_view(tmp_path: Path) -> None:
    visits, reports = many(10)
    case = Case(tmp_path)
    snapshot = case.snapshot(visits, reports)
    first, first_key = case.record(snapshot), key(case.context(snapshot), snapshot)
    (case.loop.folder / "seen.py").write_text(FEATURES.replace("hours=6", "hours=7"))
    second = case.record(snapshot)
    assert first_key != key(case.context(snapshot), snapshot)
    assert first.views["weather"] != second.views["weather"]
    assert first.definition != second.definition
    assert first.digest != second.digest


def test_partitions_hold_ids_times_label_then_features_in_row_id_order(tmp_path: Path) -> None:
    visits, reports = many(40)
    case = Case(tmp_path)
    made = case.record(case.snapshot(visits, reports))
    table = read_partitions(case.store, made.partitions)
    assert table.column_names == [
        *("row_id", "entity", "event_time", "label", "label_known_at"),
        *(column.name for column in made.columns),
    ]
    assert str(table.schema.field("label").type) == "double"
    assert str(table.schema.field("event_time").type) == "timestamp[us, tz=UTC]"
    for part in made.partitions:
        ids = read_partitions(case.store, [part])["row_id"].to_pylist()
        assert ids == sorted(ids)
    assert made.rows == table.num_rows == len(visits)


def test_a_multiclass_label_is_text(tmp_path: Path) -> None:
    case = Case(tmp_path, task="multiclass")
    made = case.record(case.snapshot([visit("a", START + HOUR)], [report(START, 1.0)]))
    assert read_partitions(case.store, made.partitions)["label"].to_pylist() == ["true"]


def test_a_loop_without_views_has_its_own_columns(tmp_path: Path) -> None:
    case = Case(tmp_path, file=None, use=[])
    made = case.record(case.snapshot([visit("a", START + HOUR, size=5)], []))
    assert [column.name for column in made.columns] == ["town", "size"]
    assert read_partitions(case.store, made.partitions)["size"].to_pylist() == [5]


def test_a_lost_partition_is_made_again_and_a_deleted_one_is_not(tmp_path: Path) -> None:
    case = Case(tmp_path)
    snapshot = case.snapshot([visit("a", START + HOUR)], [report(START, 1.0)])
    first = case.record(snapshot)
    blob = first.partitions[0].blob
    (case.store.root / blob_path(blob)).write_bytes(b"altered")
    again = case.record(snapshot)
    assert (again.digest, again.notes["rows_joined"]) == (first.digest, 1)
    case.store.create(f"tombstones/{blob}.json", b"{}")
    with pytest.raises(BlobDeleted):
        case.featurize(snapshot)


def test_an_empty_view_table_gives_nulls(tmp_path: Path) -> None:
    rows = Case(tmp_path).rows([visit("a", START + HOUR)], [])
    assert rows["a"]["weather__sky"] is None
