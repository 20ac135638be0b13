"""A small loop on made-up orders, real in every stage: will an order be late?"""

from __future__ import annotations

import csv
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

START = datetime(2024, 1, 1, tzinfo=UTC)

LOOP = """\
name: orders
description: Will an order arrive late?
owner: ops
data:
  sources:
    orders: orders.csv
    load: load.csv
  tables:
    orders: {sql: orders.sql, entity: order_id, event_time: placed_at, known_at: placed_at,
             label: late, label_known_at: delivered_at}
    load: {sql: load.sql, entity: region, known_at: known_at}
  holdout: 14d
  label_delay: 3d
  checks:
    - {type: expect_column_values_to_not_be_null, column: region}
    - {type: expect_column_values_to_be_between, column: amount, min_value: 0}
features: {file: order_features.py, use: [load]}
train: {flavour: xgboost, rounds: 30, checkpoint_every: 10, params: {max_depth: 3, learning_rate: 0.3}}
gate:
  min_positives: 30
  floor: {roc_auc: 0.55}
  guard: {roc_auc: -0.05}
  slices: [region]
monitor: {every: 7d}
retrain: {schedule: weekly, on: [drift]}
"""

ORDERS_SQL = """\
select order_id, placed_at, region, amount, items, extract(hour from placed_at) as hour, late, delivered_at
from orders
"""
LOAD_SQL = "select region, known_at, open_orders from load\n"

FEATURES = """\
from datetime import timedelta

from feast import Entity, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType

from treadle.features import snapshot_source

region = Entity(name="region", join_keys=["region"], value_type=ValueType.STRING)
load = FeatureView(
    name="load",
    entities=[region],
    ttl=timedelta(hours=12),
    schema=[Field(name="open_orders", dtype=Float64)],
    source=snapshot_source("load"),
)
"""

REGIONS = ("north", "south", "east", "west")


def write_small_loop(
    folder: Path, *, days: int = 90, a_day: int = 40, seed: int = 0, shift_from: int = 10**6
) -> Path:
    """The loop file's path; from day `shift_from` on, amounts are larger and matter less."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.yaml").write_text(LOOP)
    (folder / "orders.sql").write_text(ORDERS_SQL)
    (folder / "load.sql").write_text(LOAD_SQL)
    (folder / "order_features.py").write_text(FEATURES)
    rng = random.Random(seed)
    load = _write_load(folder / "load.csv", days, rng)
    _write_orders(folder / "orders.csv", days, a_day, load, shift_from, rng)
    return folder / "orders.yaml"


def _write_load(path: Path, days: int, rng: random.Random) -> dict[tuple[str, datetime], float]:
    load = {}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["region", "known_at", "open_orders"])
        for step in range(days * 4):
            at = START + timedelta(hours=6 * step)
            for region in REGIONS:
                load[region, at] = round(rng.gauss(50, 10), 2)
                writer.writerow([region, at.isoformat(), load[region, at]])
    return load


def _write_orders(
    path: Path,
    days: int,
    a_day: int,
    load: dict[tuple[str, datetime], float],
    shift_from: int,
    rng: random.Random,
) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["order_id", "placed_at", "region", "amount", "items", "late", "delivered_at"])
        for day in range(days):
            shifted = day >= shift_from
            for number in range(a_day):
                at = START + timedelta(days=day, minutes=round(number * 1440 / a_day) + 1)
                region = rng.choice(REGIONS)
                amount = round(rng.gammavariate(2, 30 if shifted else 15), 2)
                known = START + timedelta(hours=6 * (int((at - START).total_seconds()) // 21600))
                score = (load[region, known] - 50) / 8 + (0 if shifted else (amount - 30) / 20) - 0.5
                late = int(rng.random() < 1 / (1 + 2.718281828**-score))
                delivered = at + timedelta(hours=rng.uniform(6, 60))
                writer.writerow(
                    [
                        f"o{day:04d}-{number}",
                        at.isoformat(),
                        region,
                        amount,
                        rng.randint(1, 6),
                        late,
                        delivered.isoformat(),
                    ]
                )
