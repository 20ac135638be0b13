"""monitor: what a window looked like, who answered in it, and how well."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from treadle.errors import UserError
from treadle.records import Candidate, DriftReport, FeatureSet, Verdict
from treadle.stages import monitor
from watched_orders import World, at, orders, report_of, world

TABLE = orders(84)


def verdict(champion: Candidate, loss: float, blocks: int = 14) -> Verdict:
    """The part of a verdict that a monitor reads."""
    found = SimpleNamespace(
        comparison=SimpleNamespace(loss="log_loss", champion=None, challenger=loss),
        holdout=SimpleNamespace(blocks=blocks),
        champion=None,
        challenger=champion.digest,
    )
    return cast("Verdict", found)


def watch(
    place: World,
    champion: Candidate,
    features: FeatureSet,
    day: int,
    expected: Verdict | None = None,
    **sections: Any,
) -> DriftReport:
    context = place.context(at(day), **sections)
    key = monitor.key(context, champion, features, expected)
    return report_of(monitor.monitor(context, champion, features, expected), key, at(day))


def shifted(columns: dict[str, Any], day: Any) -> None:
    columns["amount"][day >= 63] += 2


@pytest.fixture
def place(tmp_path: Path) -> World:
    return world(tmp_path)


def test_a_window_like_the_training_data_holds(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    report = watch(place, champion, place.features(TABLE, at(77)), 77, verdict(champion, 0.60))
    assert (report.rows, report.captured, report.replayed) == (420, 0, 420)
    assert (report.start, report.end) == (at(70), at(77))
    assert not report.drifted
    assert report.share == 0
    assert report.attribution is not None
    assert report.attribution < 0.05
    assert report.prediction is not None
    assert not report.prediction.drifted
    assert report.words.startswith("inputs hold, quality holds: 0 of 3 columns drifted")
    assert "drift.html" not in report.blobs
    quality = report.quality
    assert quality is not None
    # the last day's orders of the evening have no label yet
    assert (quality.rows, quality.labelled) == (420, 405)
    assert quality.metrics["roc_auc"] > 0.7


def test_without_a_champion_or_a_section_the_remedy_is_named(place: World, tmp_path: Path) -> None:
    champion = place.champion(TABLE, promoted=None)
    features = place.features(TABLE, at(77))
    with pytest.raises(UserError, match="first `treadle run`"):
        monitor.monitor(place.context(at(77)), None, features)
    with pytest.raises(UserError, match="no `monitor` section"):
        monitor.key(world(tmp_path / "other", monitor=None).context(at(77)), champion, features)


def test_moved_inputs_and_held_quality_are_told_apart_and_get_a_page(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    moved = orders(84, change=shifted)
    report = watch(place, champion, place.features(moved, at(77)), 77, verdict(champion, 0.60))
    assert report.drifted
    assert [column.name for column in report.columns if column.drifted] == ["amount"]
    assert report.words.startswith(
        "inputs moved, quality holds: 1 of 3 columns drifted (amount), 33% (drift from 30% on)"
    )
    assert report.blobs.keys() == {"drift.html"}


def test_the_page_opens_without_a_network_and_shows_the_decision(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(orders(84, change=shifted), at(77))
    page = cast(
        "bytes", monitor.monitor(place.context(at(77)), champion, features).files["drift.html"]
    ).decode()
    assert "<h1>orders: 2024-03-11 to 2024-03-18</h1>" in page
    assert "<td>amount</td>" in page
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=[\"']?http", page)
    assert len(page) < 8_000_000


def test_decay_with_inputs_that_hold_is_told_apart(place: World) -> None:
    def flipped(columns: dict[str, Any], day: Any) -> None:
        columns["flip"] = (day >= 63) & (np.arange(len(day)) % 2 == 0)

    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(orders(84, change=flipped), at(77))
    report = watch(place, champion, features, 77, verdict(champion, 0.55))
    assert not report.drifted
    assert report.quality is not None
    assert report.quality.decayed
    assert report.words.startswith("inputs hold, quality decayed: what the inputs mean has changed")


def test_without_an_expectation_or_enough_labels_nothing_is_called_decayed(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(TABLE, at(77))
    unknown = watch(place, champion, features, 77)
    assert unknown.quality is not None
    assert unknown.quality.value is not None
    assert "expected loss is not known" in unknown.quality.words
    late = TABLE.set_column(
        4, "label_known_at", pa.array([at(300)] * TABLE.num_rows, pa.timestamp("us", tz="UTC"))
    )
    none = watch(place, champion, place.features(late, at(77)), 77, verdict(champion, 0.1))
    assert none.quality is not None
    assert (none.quality.value, none.quality.coverage, none.quality.decayed) == (None, 0.0, False)
    assert "quality is not known yet" in none.words


def test_quality_trails_by_the_labels_delay(tmp_path: Path) -> None:
    place = world(tmp_path, data={"label_delay": "3d"})
    champion = place.champion(TABLE, promoted=at(56))
    report = watch(place, champion, place.features(TABLE, at(77)), 77)
    assert report.rows == 420
    assert report.quality is not None
    assert (report.quality.rows, report.quality.labelled) == (420, 420)


def test_a_window_with_few_rows_is_not_judged(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    report = watch(
        place,
        champion,
        place.features(TABLE, at(77)),
        77,
        monitor={"every": "7d", "drift": {"min_rows": 500}},
    )
    assert not report.drifted
    assert report.columns == ()
    assert report.words.startswith("too few rows to judge drift, 420 of 500")
    assert watch(place, champion, place.features(TABLE, at(77)), 200).rows == 0


def test_rows_are_scored_by_the_champion_of_their_time(place: World) -> None:
    first = place.champion(TABLE, promoted=at(56))
    second = place.champion(TABLE, promoted=at(75), seed=1, depth=1)
    report = watch(place, second, place.features(TABLE, at(77)), 77, verdict(second, 0.01))
    assert report.replayed == 420
    assert report.quality is not None
    assert "answered by an earlier champion" in report.quality.words
    assert report.key["served"] == [
        ["2024-03-11T00:00:00Z", first.digest],
        ["2024-03-16T00:00:00Z", second.digest],
    ]


def test_an_earlier_champion_that_is_gone_is_said_and_its_rows_are_not_counted(place: World) -> None:
    first = place.champion(TABLE, promoted=at(56))
    second = place.champion(TABLE, promoted=at(75), seed=1, depth=1)
    (place.folder / "store" / "records" / "orders" / "candidate" / f"{first.id}.json").unlink()
    report = watch(place, second, place.features(TABLE, at(77)), 77)
    assert report.replayed == 120
    assert any(first.digest[:12] in line for line in place.said)


def test_same_window_is_the_same_record_though_later_data_came(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    early, late = place.features(TABLE, at(70)), place.features(TABLE, at(84))
    first = watch(place, champion, early, 70)
    more = [*early.partitions, *(part for part in late.partitions if part.start >= at(70))]
    assert len(more) > len(early.partitions)
    again = watch(
        place, champion, early.model_copy(update={"digest": "later", "partitions": tuple(more)}), 70
    )
    assert (first.id, first.digest) == (again.id, again.digest)
    changed = place.features(orders(84, change=shifted), at(70))
    assert watch(place, champion, changed, 70).id != first.id


def test_the_page_does_not_enter_the_digest(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(orders(84, change=shifted), at(77))
    assert watch(place, champion, features, 77).digest == watch(place, champion, features, 77).digest


def capture(
    place: World, champion: Candidate, rows: pa.Table, name: str, prediction: float, **changes: Any
) -> None:
    """A capture file as the endpoint writes it."""
    table = pa.table(
        {
            "entity": rows["entity"],
            "event_time": rows["event_time"],
            "request_id": pa.array([f"{name}-{i}" for i in range(rows.num_rows)]),
            "model": pa.array([champion.digest] * rows.num_rows),
            "prediction": pa.array([prediction] * rows.num_rows),
            "amount": rows["amount"],
            "region": rows["region"],
            "express": rows["express"],
        }
    )
    for column, values in changes.items():
        table = table.set_column(
            table.column_names.index(column), column, pa.array(values, table[column].type)
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    day = rows["event_time"][0].as_py().date().isoformat()
    path = f"captures/orders/production/{champion.digest[:16]}/{day}-{name}.parquet"
    place.store.create(path, bytes(sink.getvalue()))


def test_captured_predictions_count_before_replayed_ones(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(TABLE, at(77))
    capture(place, champion, TABLE.slice(72 * 60, 60), "one", 0.999)
    report = watch(place, champion, features, 77)
    assert (report.captured, report.replayed) == (60, 360)
    assert report.quality is not None
    assert report.quality.value is not None
    plain = watch(place, champion, features, 70).quality
    assert plain is not None
    assert plain.value is not None
    assert report.quality.value > plain.value + 0.1


def test_captures_of_another_track_do_not_count(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    capture(place, champion, TABLE.slice(72 * 60, 60), "one", 0.999)
    place.log.track = "replay"
    assert watch(place, champion, place.features(TABLE, at(77)), 77).captured == 0


def test_repeated_requests_are_one_capture_and_change_no_id(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    features = place.features(TABLE, at(77))
    capture(place, champion, TABLE.slice(72 * 60, 60), "one", 0.9)
    first = watch(place, champion, features, 77)
    capture(place, champion, TABLE.slice(72 * 60, 30), "again", 0.9)
    second = watch(place, champion, features, 77)
    assert (first.id, first.digest) == (second.id, second.digest)
    capture(place, champion, TABLE.slice(73 * 60, 10), "new", 0.9)
    assert watch(place, champion, features, 77).id != first.id


def test_a_request_without_event_time_belongs_to_the_only_row_of_its_entity(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    rows = TABLE.slice(72 * 60, 60)
    arrived = [at(72.9)] * 60
    capture(place, champion, rows, "one", 0.9, event_time=arrived)
    assert watch(place, champion, place.features(TABLE, at(77)), 77).captured == 60


def test_answers_for_entities_without_a_row_enter_the_inputs(place: World) -> None:
    champion = place.champion(TABLE, promoted=at(56))
    rows = TABLE.slice(72 * 60, 200)
    strangers = [f"live{i}" for i in range(200)]
    capture(place, champion, rows, "live", 0.9, entity=strangers, region=["moon"] * 200)
    report = watch(place, champion, place.features(TABLE, at(77)), 77)
    assert (report.rows, report.captured, report.replayed) == (620, 200, 420)
    region = next(column for column in report.columns if column.name == "region")
    assert region.new_categories == ("moon",)
    assert region.drifted


def test_a_key_imports_nothing_heavy(place: World) -> None:
    import subprocess
    import sys

    code = (
        "import sys, treadle.stages.monitor, treadle.stages.retrain;"
        "print([m for m in ('numpy','pyarrow','pandas','scipy','xgboost','evidently') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
