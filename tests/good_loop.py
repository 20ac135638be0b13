"""A loop that no rule of `treadle check` minds, and loops that differ from it."""

from __future__ import annotations

import copy
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

GOOD: dict[str, Any] = {
    "name": "orders",
    "description": "When an order is placed: will it arrive late?",
    "owner": "ops",
    "history": {"from": "2024-01-01", "to": "2024-12-31"},
    "data": {
        "sources": {"orders": "orders.csv"},
        "tables": {
            "orders": {
                "sql": "orders.sql",
                "entity": "order_id",
                "event_time": "placed_at",
                "known_at": "placed_at",
                "label": "late",
                "label_known_at": "delivered_at",
            }
        },
        "window": "120d",
        "holdout": "14d",
        "label_delay": "1d",
        "checks": [{"type": "expect_column_values_to_not_be_null", "column": "region"}],
    },
    "train": {"flavour": "xgboost", "params": {"max_depth": 3}},
    "gate": {"floor": {"roc_auc": 0.6}, "guard": {"roc_auc": -0.01}, "slices": ["region"]},
    "monitor": {"every": "8d"},
    "retrain": {"schedule": "monthly", "on": ["drift"], "strikes": 2, "cooldown": "14d"},
}
SQL = "select order_id, placed_at, region, amount, late, delivered_at\nfrom orders\n"
FEAST = """\
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


def write_good(folder: Path) -> Path:
    """The file of a loop that no rule minds, committed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["order_id,placed_at,region,amount,late,delivered_at"]
    for number in range(20):
        at = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        rows.append(f"o{number},{at:%Y-%m-%d %H:%M:%S},north,{number}.5,{number % 2},{at:%Y-%m-%d} 23:00:00")
    (folder / "orders.csv").write_text("\n".join(rows) + "\n")
    (folder / "orders.sql").write_text(SQL)
    write_loop(folder, GOOD)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run([*git, *words], check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})
    return folder / "orders.yaml"


def write_loop(folder: Path, content: dict[str, Any], name: str = "orders.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The good loop with dotted fields set, or taken out where the value is None."""
    content = copy.deepcopy(GOOD)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place = content
        for step in path:
            place = place.setdefault(step, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return content


def with_views(folder: Path, **more: Any) -> dict[str, Any]:
    """The good loop with a view table and its files; `more` are further changes, `__` for each dot."""
    (folder / "load.csv").write_text("region,known_at,open_orders\nnorth,2024-01-01 00:00:00,3.5\n")
    (folder / "load.sql").write_text("select region, known_at, open_orders from load\n")
    (folder / "order_features.py").write_text(FEAST)
    return changed(
        {
            "data.sources.load": "load.csv",
            "data.tables.load": {"sql": "load.sql", "entity": "region", "known_at": "known_at"},
            "features": {"file": "order_features.py", "use": ["load"]},
        }
        | {key.replace("__", "."): value for key, value in more.items()}
    )
