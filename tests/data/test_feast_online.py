from __future__ import annotations

import sqlite3
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from feast_cases import FEATURES, HOUR, START, Case, many, report, visit
from treadle.data.feast_rows import join_for_prediction
from treadle.data.online import OnlineReader, materialize, online_file
from treadle.data.tables import read_partitions
from treadle.errors import UserError
from treadle.records import FeatureSet, Snapshot

NOW = START + timedelta(days=3)
MICRO = timedelta(microseconds=1)


def feed(
    case: Case, snapshot: Snapshot, features: FeatureSet, as_of: datetime, track: str = "production"
) -> dict[str, int]:
    return materialize(case.loop, case.store, track, snapshot, features.views, as_of)


def reader(case: Case, features: FeatureSet, track: str = "production") -> OnlineReader:
    return OnlineReader(case.loop, case.store, track, features)


def prepared(folder: Path, **loop: str) -> tuple[Case, Snapshot, FeatureSet]:
    case = Case(folder, **loop)
    visits, reports = many(5)
    snapshot = case.snapshot(visits, reports)
    return case, snapshot, case.record(snapshot)


def test_online_and_offline_give_the_same_values(tmp_path: Path) -> None:
    case = Case(tmp_path)
    reports = [report(NOW - 2 * HOUR, 0.1, wind=None), report(NOW - HOUR, 1 / 3, "Bath", 2**53)]
    snapshot = case.snapshot([visit("a", NOW), visit("b", NOW, "Bath")], reports)
    features = case.record(snapshot)
    assert feed(case, snapshot, features, NOW + MICRO) == {features.views["weather"]: 2}
    online = reader(case, features).read([{"town": "Ayr"}, {"town": "Bath"}], NOW)
    rows = sorted(read_partitions(case.store, features.partitions).to_pylist(), key=lambda row: row["entity"])
    for name, values in online.items():
        assert values == [row[name] for row in rows], name
    assert online["weather__wind_y"] == [None, 2**53]
    assert online["weather__temp"] == [0.1, 1 / 3]


def test_a_changed_weather_value_changes_digest_and_online_answer_alike(tmp_path: Path) -> None:
    case = Case(tmp_path)
    asked = [visit("a", NOW)]
    answers = []
    for temp in (10.0, 11.5):
        snapshot = case.snapshot(asked, [report(NOW - HOUR, temp)])
        features = case.record(snapshot)
        feed(case, snapshot, features, NOW)
        offline = read_partitions(case.store, features.partitions)["weather__temp"].to_pylist()
        online = reader(case, features).read([{"town": "Ayr"}], NOW)["weather__temp"]
        assert offline == online == [temp]
        answers.append(features.digest)
    assert answers[0] != answers[1]


def test_only_what_was_known_before_as_of_is_written(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    # 71 hours after the start is the newest before NOW, 72 hours after it.
    assert reader(case, features).read([{"town": "Ayr"}], NOW)["weather__wind_y"] == [71]


def test_an_older_value_never_overwrites_a_newer(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    assert feed(case, snapshot, features, NOW - 5 * HOUR) == {features.views["weather"]: 0}
    assert reader(case, features).read([{"town": "Bath"}], NOW)["weather__wind_y"] == [71]
    assert feed(case, snapshot, features, NOW + HOUR) == {features.views["weather"]: 2}


def test_the_order_of_two_values_within_a_second_is_kept(tmp_path: Path) -> None:
    case = Case(tmp_path)
    late, early = NOW - HOUR + timedelta(milliseconds=700), NOW - HOUR + timedelta(milliseconds=300)
    snapshot = case.snapshot([visit("a", NOW)], [report(early, 3.0), report(late, 7.0)])
    features = case.record(snapshot)
    feed(case, snapshot, features, NOW)
    feed(case, snapshot, features, late)
    assert reader(case, features).read([{"town": "Ayr"}], NOW)["weather__temp"] == [7.0]


def test_writers_at_once_leave_the_newest(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    times = [NOW - hours * HOUR for hours in (3, 0, 5, 1)]
    threads = [threading.Thread(target=feed, args=(case, snapshot, features, at)) for at in times]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader(case, features).read([{"town": "Ayr"}], NOW)["weather__wind_y"] == [71]


def test_a_value_older_than_its_ttl_is_refused_with_its_age(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    read = reader(case, features).read
    assert read([{"town": "Ayr"}], NOW - HOUR + 6 * HOUR)["weather__wind_y"] == [71]
    with pytest.raises(UserError) as caught:
        read([{"town": "Ayr"}], NOW - HOUR + 6 * HOUR + timedelta(seconds=1))
    for words in ("'weather'", "town = 'Ayr'", "21601s before", "allows 6h", "treadle materialize"):
        assert words in str(caught.value)


def test_a_value_from_after_the_time_asked_about_is_refused(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    with pytest.raises(UserError, match="only as of 2024-01-03T23:00:00Z"):
        reader(case, features).read([{"town": "Ayr"}], NOW - 2 * HOUR)


def test_an_unknown_entity_or_a_missing_key_is_an_error(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    with pytest.raises(UserError, match="has no value for town = 'Cork'"):
        reader(case, features).read([{"town": "Ayr"}, {"town": "Cork"}], NOW)
    for wrong in ({}, {"town": None}, {"town": 3}):
        with pytest.raises(UserError, match="read by 'town': give it as text"):
            reader(case, features).read([wrong], NOW)


@pytest.mark.parametrize("how", ["rows", "file"])
def test_with_the_online_store_emptied_a_request_fails(tmp_path: Path, how: str) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    opened = reader(case, features)
    assert opened.read([{"town": "Ayr"}], NOW)["weather__wind_y"] == [71]
    path = online_file(case.loop, case.store, "production")
    assert path is not None
    if how == "file":
        path.unlink()
    else:
        with sqlite3.connect(path) as connection:
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall():
                connection.execute(f'DELETE FROM "{name}"')
        connection.close()
    with pytest.raises(UserError, match="has no value for town = 'Ayr'"):
        opened.read([{"town": "Ayr"}], NOW)


def test_each_definition_and_each_track_has_its_own_values(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    feed(case, snapshot, features, NOW)
    with pytest.raises(UserError, match="no value"):
        reader(case, features, "replay").read([{"town": "Ayr"}], NOW)
    (case.loop.folder / "seen.py").write_text(FEATURES.replace("hours=6", "hours=7"))
    edited = case.record(snapshot)
    with pytest.raises(UserError, match="no value"):
        reader(case, edited).read([{"town": "Ayr"}], NOW)
    with pytest.raises(UserError, match="defined otherwise"):
        feed(case, snapshot, features, NOW)
    feed(case, snapshot, edited, NOW - 3 * HOUR)
    assert reader(case, features).read([{"town": "Ayr"}], NOW)["weather__wind_y"] == [71]
    assert reader(case, edited).read([{"town": "Ayr"}], NOW)["weather__wind_y"] == [68]


def test_rows_to_predict_get_what_training_rows_got(tmp_path: Path) -> None:
    case, snapshot, features = prepared(tmp_path)
    trained = read_partitions(case.store, features.partitions)
    names = [column.name for column in features.columns]
    order = list(reversed(range(trained.num_rows)))
    asked = pa.table({"visit": trained["entity"].take(order), "asked_at": trained["event_time"].take(order)})
    joined = join_for_prediction(case.loop, case.store, snapshot, asked)
    assert joined.equals(trained.select(names).take(order).combine_chunks()) or (
        joined.to_pylist() == trained.select(names).take(order).to_pylist()
    )


def test_rows_to_predict_may_bring_their_own_columns(tmp_path: Path) -> None:
    case, snapshot, _ = prepared(tmp_path)
    asked = pa.table(
        {
            "entity": ["new", "new"],
            "event_time": ["2024-01-02T05:30:00"] * 2,
            "town": ["Ayr"] * 2,
            "size": [9, 8],
        }
    )
    joined = join_for_prediction(case.loop, case.store, snapshot, asked)
    assert joined["weather__wind_y"].to_pylist() == [29, 29]
    assert joined["size"].to_pylist() == [9, 8]
    with pytest.raises(UserError, match="1 of 1 rows to predict lack size"):
        join_for_prediction(case.loop, case.store, snapshot, asked.slice(0, 1).drop_columns(["size"]))
    with pytest.raises(UserError, match="name their entity by 'visit'"):
        join_for_prediction(case.loop, case.store, snapshot, asked.drop_columns(["entity"]))
