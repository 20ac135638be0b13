"""The page's HTML: one table, everything escaped, no scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from treadle_airflow.page.plugin import PREFIX

Json = dict[str, Any]
_COLUMNS = ("Loop", "Champion", "Last verdict", "Last drift", "Waits for a person", "Other alerts")
# Alerts that a column to the left tells already.
_TOLD = re.compile(
    r"a (challenger|first model) of |the challenger of .* lost;|inputs drifted in |quality decayed in "
)
_NO_LOOPS = (
    "No loops to show: put loop files into <code>loops/</code> in the DAGs folder, or set <code>TREADLE_LOOPS</code>"
    " for the API server, too."
)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #8a8a8a; --warn: #c2620a; --link: #2a7ae2; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.3rem; margin: 0 0 .6rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .6rem .8rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--dim); } td { max-width: 24rem; overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
a { color: var(--link); } .dim { color: var(--dim); } .warn { color: var(--warn); }
code { font: 12px ui-monospace, monospace; } ul { margin: 0; padding-left: 1.1rem; }
.big { font-weight: 600; } form { margin: 0 0 1rem; } input, button { font: inherit; }
"""


def page_of(rows: Sequence[Json], *, track: str, base: str, readable: Set[str]) -> str:
    """The page.

    Args:
        rows: As of `treadle_airflow.page.rows`.
        track: Whose log they speak of.
        base: The path of Airflow's own pages.
        readable: The DAGs that whoever looks may see: others have no link.
    """
    body = "".join(_row(row, base, readable) for row in rows)
    if not rows:
        body = f'<tr><td colspan="{len(_COLUMNS)}">{_NO_LOOPS}</td></tr>'
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Treadle loops</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Treadle loops</h1>{_track_form(track)}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></body></html>"
    )


def _track_form(track: str) -> str:
    field = f'<input name="track" value="{escape(track)}" size="14" aria-label="Track">'
    return f'<form class="dim">Track {field} <button>Show</button></form>'


def _row(row: Json, base: str, readable: Set[str]) -> str:
    if "error" in row:
        name = row.get("loop") or Path(row.get("file", "?")).name
        cell = f'<td colspan="{len(_COLUMNS) - 1}" class="warn">{escape(row["error"])}</td>'
        return f'<tr><td class="big">{escape(name)}</td>{cell}</tr>'
    name, status = row["loop"], row["status"]
    cells = (
        "<br>".join(_names(row, base, readable)),
        _champion(status["champion"], row.get("mlflow")),
        _verdict(status["last_verdict"]),
        _drift(status["drift"], name, base),
        _pending(status["pending"], name, base, readable),
        _list([alert for alert in status["alerts"] if not _TOLD.match(alert)]),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _names(row: Json, base: str, readable: Set[str]) -> Iterator[str]:
    name = row["loop"]
    yield f'<span class="big">{_link(f"{base}/dags/{quote(name)}", name)}</span>'
    for role in ("monitor", "release"):
        if f"{name}__{role}" in readable:
            yield _link(f"{base}/dags/{quote(name)}__{role}", role)


def _champion(champion: Json | None, mlflow: str | None) -> str:
    if champion is None:
        return _dim("none yet")
    by = champion["by"] if champion["approved_by"] in (None, champion["by"]) else champion["approved_by"]
    model = f"<code>{escape(str(champion['candidate'])[:12])}</code>"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in list(champion["metrics"].items())[:2])
    lines = [
        f"{model} {_link(mlflow, 'MLflow') if mlflow else ''}",
        f"since {_day(champion['since'])}, by {escape(str(by))}",
    ]
    return "<br>".join([*lines, *([_dim(metrics)] if metrics else [])])


def _verdict(verdict: Json | None) -> str:
    if verdict is None:
        return _dim("none yet")
    decision = escape(str(verdict["decision"] or verdict["kind"]))
    return f'<span class="big">{decision}</span>, {_day(verdict["as_of"])}<br>{_dim(verdict["why"])}'


def _drift(drift: Json | None, name: str, base: str) -> str:
    if drift is None:
        return _dim("not watched yet")
    found = [word for word, is_so in (("drifted", drift["drifted"]), ("decayed", drift["decayed"])) if is_so]
    headline = f'<span class="{"warn big" if found else "big"}">{" and ".join(found) or "none"}</span>'
    report = f"{base}{PREFIX}/report/{quote(name)}/drift_report/{quote(drift['report'])}"
    link = f" {_link(report, 'report')}" if drift["drifted"] else ""
    return f"{headline}, to {_day(drift['end'])}{link}<br>{_dim(drift['words'])}"


def _pending(pending: Json | None, name: str, base: str, readable: Set[str]) -> str:
    if pending is None:
        return _dim("nothing")
    model = f"<code>{escape(str(pending['candidate'])[:12])}</code> of {_day(pending['as_of'])}"
    lines = [f'<span class="warn">{model}</span>', escape(str(pending["waits_for"] or "its run never ended"))]
    dag = f"{name}__release"
    if dag in readable:
        lines.append(_link(f"{base}/dags/{quote(dag)}/required_actions?response_received=false", "Answer"))
    commands = [f"<code>{escape(command)}</code>" for command in pending["commands"]]
    return "<br>".join([*lines, *commands])


def _list(alerts: Sequence[str]) -> str:
    if not alerts:
        return _dim("none")
    return f"<ul>{''.join(f'<li>{escape(alert.splitlines()[0])}</li>' for alert in alerts)}</ul>"


def _day(instant: str) -> str:
    return escape(instant.removesuffix("Z").removesuffix("T00:00:00").replace("T", " "))


def _dim(text: str) -> str:
    return f'<span class="dim">{escape(text)}</span>'


def _link(address: str, text: str) -> str:
    """A link out of the frame that Airflow shows the page in."""
    return f'<a href="{escape(address)}" target="_top" rel="noopener">{escape(text)}</a>'
