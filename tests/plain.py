"""Loops without Feast on scikit-learn's own tables, as if rows had come in shuffled order, some each day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from wheel import Wheel

START = datetime(2024, 1, 1, tzinfo=UTC)

LOOP = """\
name: {name}
data:
  sources: {{rows: rows.parquet}}
  tables:
    rows: {{{made}, entity: row, event_time: seen_at, known_at: seen_at, label: target, label_known_at: told_at}}
  holdout: 28d
  label_delay: 1d
  leakage: {{block_auc: 1.0, warn_auc: 1.0}}  # single columns of these tables tell much, honestly
train: {{flavour: xgboost, task: {task}, rounds: 20, params: {{max_depth: 3}}}}
gate: {{margin: {margin}, slice_min_rows: 50}}
monitor: {{every: 14d, drift: {{min_rows: 50}}}}
retrain: {{schedule: weekly, on: [new_labels], new_labels: 50}}
"""
TASKS = {
    "digits": ("multiclass", "sql: rows.sql", 20, 0.5),
    "diabetes": ("regression", "python: 'rows:seen'", 5, 2000.0),
    "breast_cancer": ("binary", "sql: rows.sql", 6, 0.5),
}
HOOK = """\
def seen(sources):
    rows = sources["rows"]
    return rows.mutate(half_s5=rows.s5 / 2)
"""


def plain_wheel(folder: Path, name: str) -> Wheel:
    """A loop on `digits` (multiclass), `diabetes` (regression) or `breast_cancer` (binary), 84 days of it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn import datasets

    task, made, a_day, margin = TASKS[name]
    found = getattr(datasets, f"load_{name}")(as_frame=True)
    count = min(len(found.target), 84 * a_day)
    order = np.random.default_rng(0).permutation(len(found.target))[:count]
    times = [START + timedelta(minutes=round(i * 1440 / a_day) + 1) for i in range(count)]
    frame = found.data.iloc[order].rename(columns=lambda name: str(name).replace(" ", "_"))
    target = found.target.iloc[order]
    label = [f"digit {each}" for each in target] if name == "digits" else target.tolist()
    at = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "row": order,
            "seen_at": pa.array(times, at),
            **{column: frame[column].to_numpy() for column in frame.columns},
            "target": label,
            "told_at": pa.array([time + timedelta(hours=12) for time in times], at),
        }
    )
    loop = folder / "loop"
    loop.mkdir(parents=True)
    pq.write_table(table, loop / "rows.parquet")
    (loop / "rows.sql").write_text("select * from rows\n")
    (loop / "rows.py").write_text(HOOK)
    (loop / f"{name}.yaml").write_text(LOOP.format(name=name, task=task, made=made, margin=margin))
    return Wheel(loop / f"{name}.yaml", folder / "store")
