"""The page of a drifted window: Evidently's plots of the columns that moved, drawn from samples."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treadle.errors import MissingPackage
from treadle.records import ColumnDrift

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 10_000
_FEWEST_VALUES = 2


def drift_page(
    reference: pa.Table,
    window: pa.Table,
    columns: Sequence[ColumnDrift],
    *,
    categories: Sequence[str],
    title: str,
    words: str,
) -> bytes:
    """A page of HTML that opens without a network: treadle's decision on top, Evidently's plots under it.

    Plotted are the columns that drifted, or all where none did; each costs about a tenth of a second, and a
    page 5 MB. Evidently's own verdicts use our thresholds, but its bins and a sample: ours decides.

    Args:
        reference: A sample of the training data with the columns, at most `MOST_ROWS` rows.
        window: A sample of the window, likewise.
        columns: As the drift report has them.
        categories: Which of the columns are categories or booleans.
        title: The page's heading.
        words: The report's.

    Raises:
        MissingPackage: Evidently is not installed.
        ValueError: A sample is larger than `MOST_ROWS`.
    """
    for table in (reference, window):
        if table.num_rows > MOST_ROWS:
            raise ValueError(f"a page is drawn from at most {MOST_ROWS} rows a side; here: {table.num_rows}")
    wanted = [column for column in columns if column.drifted] or list(columns)
    names = [c.name for c in wanted if _has_values(reference, c.name) and _has_values(window, c.name)]
    thresholds = {column.name: column.threshold for column in wanted}
    left, right = (_frame(table, names, categories) for table in (reference, window))
    page = _evidently(left, right, [n for n in names if n not in categories], thresholds) if names else _EMPTY
    top = _summary(title, words, wanted, reference.num_rows, window.num_rows)
    head, body, rest = page.partition("<body>")
    return f"{head}{body}{top}{rest}".encode()


def _evidently(
    left: pd.DataFrame, right: pd.DataFrame, numbers: list[str], thresholds: dict[str, float]
) -> str:
    # On import and while it counts, Evidently 0.7 warns about its own use of NumPy and Litestar.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from evidently import DataDefinition, Dataset, Report
            from evidently.presets import DataDriftPreset
        except ImportError:
            raise MissingPackage("evidently", "draw the page of a drifted window", "stages") from None
        definition = DataDefinition(
            numerical_columns=numbers,
            categorical_columns=[name for name in left.columns if name not in numbers],
        )
        preset = DataDriftPreset(
            columns=list(left.columns),
            method="jensenshannon",
            per_column_threshold={name: thresholds[name] for name in left.columns},
        )
        snapshot = Report([preset]).run(
            current_data=Dataset.from_pandas(right, data_definition=definition),
            reference_data=Dataset.from_pandas(left, data_definition=definition),
        )
        return str(snapshot.get_html_str(as_iframe=False))


def _has_values(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table.num_rows - table[name].null_count >= _FEWEST_VALUES


def _frame(table: pa.Table, names: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    frame: Any = table.select(list(names)).to_pandas()
    for name in names:
        frame[name] = (
            frame[name].astype("string").astype(object) if name in categories else frame[name].astype(float)
        )
    return frame  # type: ignore[no-any-return]


def _summary(title: str, words: str, columns: Sequence[ColumnDrift], reference: int, window: int) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(c.name)}</td><td>{c.distance:.3f}</td><td>{c.threshold:.3f}</td>"
        f"<td>{_number(c.reference_mean)}</td><td>{_number(c.mean)}</td>"
        f"<td>{c.reference_missing:.1%}</td><td>{c.missing:.1%}</td>"
        f"<td>{html.escape(', '.join(c.new_categories))}</td></tr>"
        for c in columns
    )
    return (
        '<div style="font-family:sans-serif;margin:2em">'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(words)}</p>"
        '<table cellpadding="4"><tr><th>column</th><th>distance</th><th>threshold</th>'
        "<th>mean in training</th><th>mean now</th><th>missing in training</th><th>missing now</th>"
        f"<th>new categories</th></tr>{rows}</table><p>Distances are of all rows, thresholds from redrawn"
        f" training data. The plots below are Evidently's, from samples of {reference} and {window} rows; its"
        " verdicts decide nothing.</p></div>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_EMPTY = "<!DOCTYPE html><html><head><meta charset='utf-8'></head><body></body></html>"
