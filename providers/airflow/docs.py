"""The page that Airflow shows with a DAG: what the loop is for, what its gate asks, where to look."""

from __future__ import annotations

from treadle.clock import format_duration
from treadle.loop import Loop


def doc_of(loop: Loop) -> str:
    """Markdown: description, gate, rhythm, how to trigger."""
    lines = [f"### {loop.name}", "", loop.description or "", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {words} |" for name, words in _rows(loop)]
    lines += [
        "",
        f'A run at another time: `airflow dags trigger {loop.name} --conf \'{{"as_of": "2013-04-01"}}\'`.',
        "",
        "The [overview of all loops](/treadle) shows champions, verdicts, drift and what waits for a person.",
    ]
    return "\n".join(lines)


def _rows(loop: Loop) -> list[tuple[str, str]]:
    gate, labelled = loop.gate, loop.data.tables[loop.data.labelled]
    asked = [f"{metric} may fall by {-change:g} at most" for metric, change in gate.guard.items()]
    asked += [f"{metric} at least {least:g}" for metric, least in gate.floor.items()]
    asked += [f"by {', '.join(gate.slices)}"] if gate.slices else []
    rows = [
        ("predicts", f"`{labelled.label}` of `{loop.data.labelled}` with {loop.train.flavour}"),
        (
            "gate",
            f"{gate.mode.replace('_', '-')} on {gate.loss or 'the loss'}, margin {gate.margin:g}, alpha {gate.alpha:g}",
        ),
        ("also asked", "; ".join(asked) or "nothing"),
        ("approval", "by a person" if loop.approval == "manual" else "by the gate"),
    ]
    if loop.monitor is not None:
        rows.append(("watched", f"every {format_duration(loop.monitor.every)}"))
    if loop.retrain is not None:
        on = f"; on {', '.join(loop.retrain.on)}" if loop.retrain.on else ""
        rows.append(("trains", f"{loop.retrain.schedule or 'when asked'}{on}"))
    if loop.file is not None:
        rows.append(("file", f"`{loop.file.path.name}`"))
    return rows
