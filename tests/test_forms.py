"""Forms in which data may come that change nothing, and names that may be strange."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import treadle
from spoil import ENTITY, LATE, TIME, bytes_of, change, orders_of, write_orders
from wheel import FIRST, Wheel

HARMLESS: dict[str, Callable[[Wheel], object]] = {
    "a byte order mark": lambda w: bytes_of(w, b"\xef\xbb\xbf" + (w.path.parent / "orders.csv").read_bytes()),
    "Windows line ends": lambda w: bytes_of(
        w, (w.path.parent / "orders.csv").read_bytes().replace(b"\r\n", b"\n")
    ),
    "another zone": lambda w: change(w, TIME, lambda r, n: elsewhere(r[TIME])),
    "times without zone": lambda w: change(w, TIME, lambda r, n: r[TIME].removesuffix("+00:00")),
    "true and false": lambda w: change(w, LATE, lambda r, n: ("false", "true")[int(r[LATE])]),
    "0.0 and 1.0": lambda w: change(w, LATE, lambda r, n: r[LATE] + ".0"),
    "rows in another order": lambda w: write_orders(w, [orders_of(w)[0], *reversed(orders_of(w)[1:])]),
    "rows of the future": lambda w: change(
        w, TIME, lambda r, n: "2999-01-01T00:00:00+00:00" if n > 3400 else r[TIME]
    ),
}


def elsewhere(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()


@pytest.mark.parametrize("form", HARMLESS)
def test_the_same_data_in_another_form_are_the_same_data(
    wheel: Wheel, turned: tuple[Wheel, treadle.Run], form: str
) -> None:
    HARMLESS[form](wheel)
    again = wheel.run(FIRST, to="evaluate")
    assert again.candidate.digest == turned[1].candidate.digest
    assert again.verdict.id == turned[1].verdict.id
    assert (again.snapshot.digest == turned[1].snapshot.digest) is (form != "true and false")


def test_unicode_ids_days_as_times_and_columns_of_strange_names_work(wheel: Wheel, tmp_path: Path) -> None:
    change(wheel, ENTITY, lambda row, number: f"Größe 日本 😀 '{row[ENTITY]}\"")
    wheel.edit("orders.sql", "placed_at, region", "placed_at::date as placed_at, region")
    wheel.edit("orders.sql", "items,", 'items as "it <e>[m]s, \'x",')
    run = wheel.run(FIRST, to="evaluate", track="strange")
    assert run.snapshot.rows == 1680  # type: ignore[attr-defined]
    assert run.verdict.comparison is not None  # type: ignore[attr-defined]
