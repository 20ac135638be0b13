"""What tests do to a small loop's data and code, and how they ask that nothing was lost by it."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator

import pytest
import treadle
from wheel import Wheel

Rows = list[list[str]]
ENTITY, TIME, REGION, AMOUNT, ITEMS, LATE, DELIVERED = range(7)


def orders_of(wheel: Wheel) -> Rows:
    with open(wheel.path.parent / "orders.csv", newline="") as file:
        return list(csv.reader(file))


def write_orders(wheel: Wheel, rows: Rows) -> None:
    with open(wheel.path.parent / "orders.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def change(wheel: Wheel, column: int, value: Callable[[list[str], int], str]) -> None:
    """Replaces a column of the orders by `value(row, number)`."""
    header, *rows = orders_of(wheel)
    write_orders(wheel, [header, *([*r[:column], value(r, n), *r[column + 1 :]] for n, r in enumerate(rows))])


def bytes_of(wheel: Wheel, content: bytes) -> None:
    (wheel.path.parent / "orders.csv").write_bytes(content)


def hook(wheel: Wheel, text: str, name: str = "made:orders") -> None:
    wheel.edit("orders.yaml", "{sql: orders.sql,", f"{{python: '{name}',")
    (wheel.path.parent / "made.py").write_text(text)


def parquet(wheel: Wheel, content: bytes) -> None:
    wheel.edit("orders.yaml", "orders: orders.csv", "orders: orders.parquet")
    (wheel.path.parent / "orders.parquet").write_bytes(content)


@contextlib.contextmanager
def refused(wheel: Wheel, kind: type[treadle.TreadleError], words: str) -> Iterator[None]:
    """Within it an error of exactly this kind is raised, whose text matches; and the log stays as it was."""
    before = wheel.kinds()
    with pytest.raises(kind, match=words) as found:
        yield
    assert type(found.value) is kind
    assert wheel.kinds() == before
