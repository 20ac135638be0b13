"""Bad input gets an error that names what, where and the remedy; the log and the champion stay as they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import treadle
from processes import call_together
from spoil import AMOUNT, ENTITY, LATE, bytes_of, change, hook, orders_of, parquet, refused, write_orders
from treadle import acts
from treadle.errors import (
    AsOfError,
    DataRefused,
    HoldoutTooSmall,
    HookError,
    LogBroken,
    SpecError,
    StaleChampion,
    StoreError,
    Transient,
    UserError,
)
from treadle.scoring import score_file
from treadle.store import blob_path
from wheel import FIRST, SECOND, Wheel, lenient

SPEC = {
    "unknown key": ("monitor:", "monitr:", r"orders\.yaml:24: monitr: there is no such key.*'monitor'"),
    "wrong type": ("rounds: 30", "rounds: [3]", r"orders\.yaml:18: train\.rounds: .*whole number"),
    "bare number for a duration": ("holdout: 14d", "holdout: 14", r"orders\.yaml:12: data\.holdout: .*14d"),
    "missing SQL file": (
        "sql: load.sql",
        "sql: lod.sql",
        r"orders\.yaml:11: data\.tables\.load\.sql: .*lod\.sql",
    ),
    "missing Feast file": (
        "order_features.py",
        "features.py",
        r"orders\.yaml:17: features\.file: .*features\.py",
    ),
    "unknown view": ("use: [load]", "use: [lod]", r"orders\.yaml:17: features\.use\.0: .*defines: load"),
    "unset variable": (
        "load: load.csv",
        "load: ${NOWHERE}/l.csv",
        r"orders\.yaml:7: .*NOWHERE is not set.*export",
    ),
    "unknown check": ("to_not_be_null", "to_be_fine", r"orders\.yaml:15: data\.checks\.0: .*Did you mean"),
    "unknown flavour": (
        "flavour: xgboost",
        "flavour: xgbost",
        r"orders\.yaml:18: train\.flavour: .*Did you mean 'xgboost'",
    ),
    "unknown parameter": (
        "max_depth",
        "max_dept",
        r"orders\.yaml:18: train\.params\.max_dept: .*'max_depth'",
    ),
    "unknown metric": (
        "floor: {roc_auc",
        "floor: {auc",
        r"orders\.yaml:21: gate\.floor\.auc: .*Choose from roc_auc",
    ),
    "unknown slice": (
        "slices: [region]",
        "slices: [area]",
        r"orders\.yaml:23: gate\.slices: .*'area'.*region",
    ),
    "not YAML": ("monitor: {every", "monitor: {{every", r"orders\.yaml:\d+: not YAML"),
}


@pytest.mark.parametrize("fault", SPEC)
def test_fault_in_the_loop_names_file_line_and_field(wheel: Wheel, fault: str) -> None:
    before, after, words = SPEC[fault]
    kinds = wheel.kinds()
    wheel.edit("orders.yaml", before, after)
    with pytest.raises(SpecError, match=words):
        wheel.run(SECOND)
    wheel.edit("orders.yaml", after, before)
    assert wheel.kinds() == kinds


SOURCES: dict[str, tuple[Callable[[Wheel], object], type[treadle.TreadleError], str]] = {
    "no file": (lambda w: (w.path.parent / "orders.csv").unlink(), UserError, r"'orders' \(.*does not exist"),
    "an empty file": (lambda w: bytes_of(w, b""), HookError, r"No rows at all are in the source orders"),
    "a header only": (
        lambda w: write_orders(w, orders_of(w)[:1]),
        HookError,
        r"No rows at all are in the source orders",
    ),
    "noise": (lambda w: bytes_of(w, os.urandom(4000)), UserError, r"'orders' \(.*can't be read as CSV"),
    "UTF-16": (
        lambda w: bytes_of(w, "a,b\n1,2\n".encode("utf-16")),
        UserError,
        r"can't be read as CSV.*utf-8",
    ),
    "a row too long": (
        lambda w: write_orders(w, [r + ["x"] * (n == 50) for n, r in enumerate(orders_of(w))]),
        UserError,
        r"Line: 51 .*Expected Number of Columns: 7 Found: 8",
    ),
    "a row too short": (
        lambda w: write_orders(w, [r[: 7 - (n == 50)] for n, r in enumerate(orders_of(w))]),
        UserError,
        r"Line: 51 .*Expected Number of Columns: 7 Found: 6",
    ),
    "broken Parquet": (
        lambda w: parquet(w, b"PAR1" + bytes(500) + b"PAR1"),
        UserError,
        r"can't be read as Parquet",
    ),
    "cut Parquet": (lambda w: parquet(w, b"PAR1"), UserError, r"can't be read as Parquet"),
    "no label column": (
        lambda w: w.edit("orders.sql", "late, ", ""),
        UserError,
        r"orders\.yaml:10: data\.tables\.orders\.label: .*no column 'late'\. It has: order_id",
    ),
    "no time column": (
        lambda w: w.edit("orders.sql", "placed_at, region", "region"),
        UserError,
        r"orders\.yaml:9: data\.tables\.orders\.event_time: .*no column 'placed_at'",
    ),
    "a time that is text": (
        lambda w: w.edit("orders.sql", "placed_at, region", "'soon' as placed_at, region"),
        UserError,
        r"event_time: 'placed_at' .*is VARCHAR, not a time.*Cast it",
    ),
    "a time beyond time": (
        lambda w: w.edit("orders.sql", "placed_at, region", "'infinity'::timestamptz as placed_at, region"),
        UserError,
        r"'placed_at' holds times outside of the years",
    ),
    "no entity in a row": (
        lambda w: change(w, ENTITY, lambda r, n: r[0] if n else ""),
        DataRefused,
        r"1 of 3,600 rows .*no 'order_id'",
    ),
    "the same entity twice": (
        lambda w: write_orders(w, orders_of(w) + orders_of(w)[5:7]),
        DataRefused,
        r"share 'order_id' and 'placed_at'(?s:.)*'o0000-4' at 2024-01-01T02:25",
    ),
    "no label at all": (
        lambda w: change(w, LATE, lambda r, n: ""),
        DataRefused,
        r"no label is known before 2024-03-04",
    ),
    "one class": (
        lambda w: change(w, LATE, lambda r, n: "1"),
        DataRefused,
        r"one value only, 1.*nothing can be learnt",
    ),
    "three classes": (
        lambda w: change(w, LATE, lambda r, n: "2" if n % 9 == 0 else r[LATE]),
        UserError,
        r"'late' is BIGINT with values such as \['0', '1', '2'\].*multiclass",
    ),
    "classes in words": (
        lambda w: change(w, LATE, lambda r, n: "late" if r[LATE] == "1" else "fine"),
        UserError,
        r"'late' is VARCHAR with values such as \['fine', 'late'\].*Write a comparison",
    ),
    "a failing rule": (
        lambda w: change(w, AMOUNT, lambda r, n: "-1" if n == 9 else r[AMOUNT]),
        DataRefused,
        r"amount: expect_column_values_to_be_between failed: .*1 of .*Rows: o0000-9 at 2024-01-01 05:25\.",
    ),
    "a rule on no column": (
        lambda w: w.edit("orders.yaml", "column: region}", "column: area}"),
        DataRefused,
        r"could not run: .*area",
    ),
    "SQL that is none": (
        lambda w: w.edit("orders.sql", "select", "selekt"),
        HookError,
        r"orders\.sql:1: the SQL .*(?s:.)*selekt",
    ),
    "SQL of two statements": (
        lambda w: (w.path.parent / "orders.sql").write_text("select 1; select 2"),
        HookError,
        "several statements",
    ),
    "SQL that reads a file": (
        lambda w: w.edit("orders.sql", "from orders", "from read_csv('orders.csv')"),
        HookError,
        r"(?s)orders\.sql.*disabled",
    ),
    "a hook that raises": (
        lambda w: hook(w, "def orders(s):\n    return 1 / 0\n"),
        HookError,
        r"(?s)made:orders.*Traceback.*made\.py\", line 2, in orders.*ZeroDivisionError",
    ),
    "a hook that exits": (
        lambda w: hook(w, "def orders(s):\n    raise SystemExit(0)\n"),
        HookError,
        r"(?s)made:orders.*SystemExit",
    ),
    "a hook module that exits": (
        lambda w: hook(w, "raise SystemExit(0)\n"),
        HookError,
        r"(?s)importing made.*SystemExit",
    ),
    "a hook that makes no table": (
        lambda w: hook(w, "def orders(s):\n    return 3\n"),
        HookError,
        r"returned int; return an Ibis table",
    ),
    "no such hook": (
        lambda w: hook(w, "def orders(s):\n    return 3\n", "made:order"),
        SpecError,
        r"made\.py has no function 'order'",
    ),
    "a Feast file that raises": (
        lambda w: w.edit("order_features.py", "region = Entity", "1 / 0\nregion = Entity"),
        HookError,
        r"(?s)order_features\.py.*line 9.*ZeroDivisionError",
    ),
    "a Feast file that exits": (
        lambda w: w.edit("order_features.py", "region = Entity", "raise SystemExit\nregion = Entity"),
        HookError,
        r"(?s)order_features\.py.*SystemExit",
    ),
    "an infinite feature": (
        lambda w: change(w, AMOUNT, lambda r, n: "inf" if n == 5 else r[AMOUNT]),
        DataRefused,
        r"infinite(?s:.)*amount",
    ),
    "a feature too large": (
        lambda w: change(w, AMOUNT, lambda r, n: "1e300" if n == 5 else r[AMOUNT]),
        DataRefused,
        r"3\.4e38(?s:.)*amount",
    ),
}


@pytest.mark.parametrize("fault", SOURCES)
def test_fault_in_data_or_code_is_told_and_production_keeps_what_it_had(wheel: Wheel, fault: str) -> None:
    spoil, kind, words = SOURCES[fault]
    spoil(wheel)
    champion = wheel.session(FIRST).log.champion()
    with refused(wheel, kind, words):
        wheel.run(SECOND, to="train")
    assert wheel.session(FIRST).log.champion() == champion


@pytest.mark.parametrize("value", ["inf", "-1e300"])
def test_feature_that_is_infinite_only_in_the_holdout_is_told_by_column_and_row(
    wheel: Wheel, value: str
) -> None:
    wheel.edit("orders.yaml", "column: amount, min_value: 0", "column: amount, min_value: 0, severity: warn")
    change(wheel, AMOUNT, lambda r, n: value if r[ENTITY] in ("o0050-7", "o0051-0") else r[AMOUNT])
    with refused(wheel, DataRefused, r"infinite(?s:.)*amount: .* in o0050-7 at 2024-02-20 04:13"):
        wheel.run(SECOND)


@pytest.mark.parametrize(
    ("as_of", "kind", "words"),
    [
        ("2023-12-01", AsOfError, "lies before the data: the table 'orders' begins in 2024-01"),
        ("2999-01-01", AsOfError, "lies after now"),
        ("2024-01-10", AsOfError, "no labelled rows lie.*label_delay 3d less holdout 14d.*later as_of"),
        ("9999-99-99", AsOfError, "not a date or time"),
    ],
)
def test_as_of_where_nothing_is_known(
    wheel: Wheel, as_of: str, kind: type[treadle.TreadleError], words: str
) -> None:
    with refused(wheel, kind, words):
        wheel.run(as_of)


@pytest.mark.parametrize(
    ("before", "after", "kind", "words"),
    [
        (
            "holdout: 14d",
            "holdout: 5d",
            HoldoutTooSmall,
            "on 5 days only.*min_blocks asks for 14.*data.holdout",
        ),
        ("holdout: 14d", "holdout: 400d", AsOfError, "no labelled rows lie.*shorter holdout"),
        ("holdout: 14d", "holdout: 14d\n  window: 0d", AsOfError, "longer window"),
        (
            "min_positives: 30",
            "min_positives: 3000",
            HoldoutTooSmall,
            "positive class, and gate.min_positives asks",
        ),
        ("label_delay: 3d", "label_delay: 3d\n  window: 5m", AsOfError, "no labelled rows lie from"),
    ],
)
def test_window_or_holdout_that_holds_too_little(
    wheel: Wheel, before: str, after: str, kind: type[treadle.TreadleError], words: str
) -> None:
    wheel.edit("orders.yaml", before, after)
    with refused(wheel, kind, words):
        wheel.run(SECOND)


def test_act_on_a_champion_that_has_changed_is_refused(wheel: Wheel) -> None:
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "approval: manual\nmonitor:")
    wheel.run(SECOND)
    session = wheel.session(SECOND, who="bea")
    session.log.append("retire", subject="all", why="the shop closed", as_of=session.as_of, who="cem")
    with refused(wheel, StaleChampion, "none serves.*Nothing was released"):
        acts.approve(wheel.session(SECOND, who="bea"), "fine")


@pytest.mark.parametrize("store", ["{file}/store", "/proc/nowhere/store", "/sys/store"])
def test_store_that_cannot_be_written(wheel: Wheel, store: str) -> None:
    place = store.format(file=wheel.path)
    with pytest.raises(StoreError, match=r"can't be written: .*--store"):
        treadle.run(treadle.Loop.load(wheel.path), as_of=FIRST, store=place)


def run_with_little_room(wheel: Wheel, limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    wheel.run(SECOND)


@pytest.mark.parametrize("limit", [200, 40_000, pytest.param(900_000, marks=pytest.mark.slow)])
def test_disk_without_room_is_told_and_the_next_run_finishes(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], limit: int
) -> None:
    lenient(wheel)
    ((kind, words),) = call_together((run_with_little_room, wheel, limit))
    assert kind in ("StoreError", "Transient"), words
    assert "File too large" in words or "MLflow" in words
    assert wheel.kinds() == ["propose", "promote"]
    assert wheel.run(SECOND).evaluate.decision is not None  # type: ignore[attr-defined]


def test_altered_blob_of_the_champion_is_never_served(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    blobs = turned[1].candidate.blobs
    model = wheel.store / blob_path(
        next(sha for name, sha in blobs.items() if name.startswith("model/model"))
    )
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    (tmp_path / "in.csv").write_text("order_id,placed_at\no0000-0,2024-01-01T00:01:00+00:00\n")
    with refused(wheel, treadle.errors.BlobLost, "altered.*the stage that made it"):  # type: ignore[attr-defined]
        score_file(wheel.session(FIRST), tmp_path / "in.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    wheel.run(FIRST)
    assert score_file(wheel.session(FIRST), tmp_path / "in.csv", tmp_path / "out.csv")["rows"] == 1


@pytest.mark.parametrize("harm", ["cut", "edited", "first gone", "last renamed", "swapped"])
def test_broken_log_stops_every_release(wheel: Wheel, harm: str) -> None:
    folder = wheel.store / "logs" / "orders" / "production"
    one, two = folder / "00000001.json", folder / "00000002.json"
    if harm == "cut":
        two.write_bytes(two.read_bytes()[:50])
    elif harm == "edited":
        two.write_text(two.read_text().replace('"who":"ann"', '"who":"eve"'))
    elif harm == "first gone":
        one.unlink()
    elif harm == "last renamed":
        two.rename(folder / "00000003.json")
    else:
        one.rename(folder / "x"), two.rename(one), (folder / "x").rename(two)
    left = sorted(path.name for path in folder.iterdir())
    for act in (lambda: wheel.run(SECOND), lambda: acts.rollback(wheel.session(FIRST), "x")):
        with pytest.raises(LogBroken, match=r"0000000\d\.json.*Nothing is released on a broken log; restore"):
            act()
    assert sorted(path.name for path in folder.iterdir()) == left


def test_source_that_changes_while_it_is_read_is_told_as_transient(wheel: Wheel) -> None:
    from treadle.stages import Context, prepare

    session = wheel.session(SECOND)
    context = Context(
        session.loop, datetime(2024, 3, 4, tzinfo=UTC), session.store, session.log, Path(), session.say
    )
    with pytest.raises(Transient, match="changed while it was read"):
        prepare.prepare(context, {"orders": "0" * 64, "load": "0" * 64})
