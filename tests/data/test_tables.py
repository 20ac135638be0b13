from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from planted import AS_OF, START, make_loop, parcels, recorded, run
from treadle.data.tables import read_partitions
from treadle.store import LocalStore, put_blob


def _as_known_then() -> list[dict[str, Any]]:
    """Parcels with only the labels that were known at AS_OF."""
    rows = parcels()
    for row in rows:
        if row["came_at"] >= AS_OF:
            row["late"] = row["came_at"] = None
    return rows


@pytest.fixture(scope="module")
def digest_then(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    folder = tmp_path_factory.mktemp("then")
    return run(make_loop(folder, _as_known_then()), folder).digest


FUTURE = st.timedeltas(timedelta(0), timedelta(days=200))


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    future=st.lists(FUTURE, max_size=8),
    late_created=st.lists(FUTURE, max_size=8),
    relabelled=st.lists(st.tuples(st.integers(870, 899), FUTURE), max_size=8),
    seed=st.integers(0, 99),
)
def test_what_became_known_at_or_after_as_of_changes_nothing(
    digest_then: str,
    tmp_path_factory: pytest.TempPathFactory,
    future: list[timedelta],
    late_created: list[timedelta],
    relabelled: list[tuple[int, timedelta]],
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("future")
    rows = _as_known_then()
    template = dict(rows[5])
    planted = [
        {**template, "id": f"f{i}", "sent_at": AS_OF + d, "known_at": AS_OF + d} for i, d in enumerate(future)
    ]
    planted += [
        {**template, "id": f"c{i}", "known_at": AS_OF + delay} for i, delay in enumerate(late_created)
    ]
    after_rows = [dict(row) for row in rows]
    for place, delay in relabelled:
        if after_rows[place]["came_at"] is None:
            after_rows[place] |= {"late": True, "came_at": AS_OF + delay}
    after_rows += planted
    random.Random(seed).shuffle(after_rows)
    after = run(make_loop(folder / "after", after_rows), folder / "after")
    assert after.digest == digest_then


def test_a_value_that_came_in_time_changes_the_digest(tmp_path: Path) -> None:
    rows = parcels()
    before = run(make_loop(tmp_path / "before", rows), tmp_path / "before")
    rows[3]["weight"] += 1
    after = run(make_loop(tmp_path / "after", rows), tmp_path / "after")
    assert after.digest != before.digest


def test_the_digest_does_not_depend_on_the_file_that_holds_the_rows(tmp_path: Path) -> None:
    rows = parcels()
    digests = {run(make_loop(tmp_path / "csv", rows), tmp_path / "csv").digest}
    random.Random(1).shuffle(rows)
    for size in (7, 500):
        folder = tmp_path / str(size)
        loop = make_loop(folder, None, sources={"parcels": "parcels.parquet"})
        pq.write_table(pa.Table.from_pylist(rows), folder / "parcels.parquet", row_group_size=size)
        digests.add(run(loop, folder).digest)
    assert len(digests) == 1


def test_one_thread_or_two_give_the_same_digest_but_other_ids(tmp_path: Path) -> None:
    from treadle.stages import Context
    from treadle.stages.prepare import key

    rows = parcels()
    outcomes, keys = [], []
    for threads in (1, 2):
        loop = make_loop(tmp_path / str(threads), rows, threads=threads)
        outcomes.append(run(loop, tmp_path / str(threads)))
        context = Context(loop, AS_OF, LocalStore(tmp_path), None, tmp_path, print)  # type: ignore[arg-type]
        keys.append(key(context, {"parcels": "0"}))
    assert outcomes[0].digest == outcomes[1].digest
    assert keys[0] != keys[1]


def test_labels_not_yet_known_are_null_and_so_is_the_time_at_which_they_come(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels())
    outcome = run(loop, tmp_path)
    store = LocalStore(tmp_path / "blobs")
    for file in outcome.files.values():
        put_blob(store, file)
    table = read_partitions(store, recorded(outcome).tables["parcels"].partitions, time_column="sent_at")
    known = [row for row in table.to_pylist() if row["late"] is not None]
    unknown = [row for row in table.to_pylist() if row["late"] is None]
    assert unknown
    assert all(row["came_at"] is None for row in unknown)
    assert all(row["came_at"] < AS_OF for row in known)
    assert all(row["sent_at"] < AS_OF for row in table.to_pylist())


def test_reading_a_stretch_gives_the_rows_in_it_in_row_id_order(tmp_path: Path) -> None:
    outcome = run(make_loop(tmp_path, parcels()), tmp_path)
    store = LocalStore(tmp_path / "blobs")
    for file in outcome.files.values():
        put_blob(store, file)
    partitions = recorded(outcome).tables["parcels"].partitions
    assert [part.name for part in partitions] == ["2024-01", "2024-02", "2024-03"]
    start, end = datetime(2024, 1, 20, tzinfo=UTC), datetime(2024, 2, 3, tzinfo=UTC)
    table = read_partitions(
        store, partitions, columns=["row_id", "weight"], start=start, end=end, time_column="sent_at"
    )
    assert table.column_names == ["row_id", "weight"]
    whole = read_partitions(store, partitions, time_column="sent_at").to_pylist()
    wanted = [row["row_id"] for row in whole if start <= row["sent_at"] < end]
    assert table.column("row_id").to_pylist() == wanted
    january = [row["row_id"] for row in whole if row["sent_at"] < datetime(2024, 2, 1, tzinfo=UTC)]
    assert january == sorted(january)
    nothing = read_partitions(store, partitions, end=START, time_column="sent_at")
    assert nothing.num_rows == 0
    assert "weight" in nothing.column_names


@pytest.mark.parametrize(
    ("partition", "names"),
    [("day", ["2024-02-29", "2024-03-01"]), ("week", ["2024-02-26"]), ("month", ["2024-02", "2024-03"])],
)
def test_partitions_are_days_weeks_from_monday_or_months(
    tmp_path: Path, partition: str, names: list[str]
) -> None:
    rows = [row for row in parcels(2000) if row["sent_at"].date().isoformat() in ("2024-02-29", "2024-03-01")]
    outcome = run(make_loop(tmp_path, rows, partition=partition), tmp_path)
    assert [part.name for part in recorded(outcome).tables["parcels"].partitions] == names


def test_a_window_counts_back_from_holdout_and_label_delay(tmp_path: Path) -> None:
    outcome = run(make_loop(tmp_path, parcels(), window="20d", holdout="14d", label_delay="3d"), tmp_path)
    record = recorded(outcome)
    assert record.window_start == AS_OF - timedelta(days=37)
    assert record.rows == sum(
        row["sent_at"] >= record.window_start and row["sent_at"] < AS_OF for row in parcels()
    )


def test_a_partition_that_is_in_the_store_is_not_written_again(tmp_path: Path) -> None:
    loop, store = make_loop(tmp_path, parcels()), LocalStore(tmp_path / "store")
    first = run(loop, tmp_path, store=store)
    for file in first.files.values():
        put_blob(store, file)
    second = run(loop, tmp_path, AS_OF + timedelta(days=3), store)
    assert sorted(second.kept) == ["parcels/2024-01.parquet", "parcels/2024-02.parquet"]
    assert sorted(second.files) == ["parcels/2024-03.parquet"]
    (
        store.root
        / "blobs"
        / second.kept["parcels/2024-01.parquet"][:2]
        / second.kept["parcels/2024-01.parquet"]
    ).unlink()
    third = run(loop, tmp_path, AS_OF + timedelta(days=3), store)
    assert "parcels/2024-01.parquet" in third.files


def test_duplicates_of_entity_and_time_are_refused_with_examples(tmp_path: Path) -> None:
    from treadle.errors import DataRefused

    rows = parcels()
    with pytest.raises(DataRefused, match=r"2 rows .* 'id' and 'sent_at'") as error:
        run(make_loop(tmp_path, [*rows, {**rows[7], "weight": 9}]), tmp_path)
    assert "'p7'" in error.value.findings[0]


@pytest.mark.parametrize("days", [(0, 43), (43, 0)], ids=["forth", "back"])
def test_an_as_of_gives_the_same_whatever_the_process_made_before(
    tmp_path: Path, days: tuple[int, int]
) -> None:
    first = datetime(2024, 2, 1, tzinfo=UTC)
    used = make_loop(tmp_path / "used", parcels())
    fresh = make_loop(tmp_path / "fresh", parcels())
    run(used, tmp_path / "used", first + timedelta(days=days[0]))
    second = first + timedelta(days=days[1])
    again, alone = run(used, tmp_path / "used", second), run(fresh, tmp_path / "fresh", second)
    assert again.digest == alone.digest
    assert again.results["labelled_rows"] == alone.results["labelled_rows"]
