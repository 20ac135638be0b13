"""The files that `treadle init NAME --from FILE` writes: a loop, its SQL, and a Feast file where one is asked for."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from treadle.clock import format_duration, parse_duration
from treadle.scaffold.inspection import KEPT, TIME, Asked, Facts, FileColumn, look_at, quoted

_POSITIVES = 300  # gate.min_positives
_DAY = timedelta(days=1)


def files_on(name: str, asked: Asked, folder: Path, *, features: bool) -> dict[str, str]:
    """The files of a loop on a file of one's own, by their path from the loop's folder.

    Raises:
        As `look_at`.
    """
    facts = look_at(name, asked)
    loop = _loop_lines(name, asked, facts, folder, features=features)
    files = {f"{name}.yaml": "\n".join(loop) + "\n", f"sql/{name}.sql": _sql(name, asked, facts)}
    return files | (_history_files(name, asked, facts) if features else {})


def _loop_lines(name: str, asked: Asked, facts: Facts, folder: Path, *, features: bool) -> Iterator[str]:
    """The loop file, line by line."""
    rhythm = _rhythm(facts)
    yield f"# Written by `treadle init` from {_line(asked.uri)}; docs/loop.md has every field. DECIDE marks"
    yield "# what only a person can know; `treadle check` on this file finds what is still missing."
    yield f"name: {name}"
    yield _said('description: ""', "what is predicted, when, and for what")
    yield _said('owner: ""', "a team or a person, for alerts")
    if facts.last < datetime.now(UTC) - 2 * _DAY:
        end = (facts.last + _DAY).date()
        yield _said(f"history: {{to: {end}}}", "the file ends here; take this out once the file grows")
    yield from ("", "data:", "  sources:")
    uri = _yaml(_from_folder(asked.uri, folder))
    nulls = json.dumps(["", *facts.nulls])
    yield f"    {name}: {{uri: {uri}, nulls: {nulls}}}" if facts.nulls else f"    {name}: {uri}"
    yield from ("  tables:", f"    {name}:", f"      sql: sql/{name}.sql")
    yield _said(f"      entity: {_yaml(asked.entity)}", "whom or what a row is about")
    yield _said(f"      event_time: {_yaml(asked.time)}", "when the question is asked")
    yield from _known_lines(name, asked)
    if features:
        entity = _yaml(asked.entity)
        yield f"    {name}_history: {{sql: sql/{name}_history.sql, entity: {entity}, known_at: known_at}}"
    if facts.delay_s is None:
        yield _said("  # label_delay: 30d", "after this time nearly all answers are known")
    elif rhythm.delay:
        delay = format_duration(rhythm.delay)
        yield _said(f"  label_delay: {delay}", "by then 99 of 100 answers are known")
    holdout = format_duration(rhythm.holdout)
    yield _said(f"  holdout: {holdout}", "the newest answered stretch, kept to judge models by")
    yield from _check_lines(asked, facts)
    if features:
        yield from ("", f"features: {{file: {name}_features.py, use: [{name}_history]}}")
    task = "" if facts.task == "binary" else f"task: {facts.task}, "
    yield from (
        "",
        f"train: {{{task}flavour: xgboost, rounds: 60, params: {{max_depth: 3, learning_rate: 0.1}}}}",
    )
    yield from ("", "gate:", *_gate_lines(asked, facts, rhythm), "")
    yield f"monitor: {{every: {format_duration(rhythm.every)}}}"
    cooldown = "" if rhythm.every <= 14 * _DAY else f", cooldown: {format_duration(rhythm.every)}"
    strikes = "" if rhythm.strikes == 2 else f", strikes: {rhythm.strikes}"
    schedule = "monthly" if rhythm.every <= 28 * _DAY else '"0 0 1 1,4,7,10 *"'
    yield f"retrain: {{schedule: {schedule}, on: [drift]{strikes}{cooldown}}}"


def _known_lines(name: str, asked: Asked) -> Iterator[str]:
    """The label, and when it and the other columns became known."""
    yield f"      label: {_yaml(asked.label)}"
    if asked.label_known_at is None:
        yield "      # DECIDE: when did each answer become known? Name its column here, or make one in the SQL."
        yield "      label_known_at: label_known_at"
    else:
        known = "label_known_at" if asked.answered_after else asked.label_known_at
        yield f"      label_known_at: {_yaml(known)}"
    if asked.known_at is None:
        yield "      # DECIDE: were all values of a row known when its question was asked? Then take the next `# ` out."
        yield "      # What is filled in later must leave the SQL, or be given its own time in known_at_of."
        yield f"      # known_at: {_yaml(asked.time)}"
    else:
        yield _said(f"      known_at: {_yaml(asked.known_at)}", "when all values of a row were known")


def _check_lines(asked: Asked, facts: Facts) -> Iterator[str]:
    whole = [column.name for column in _features(asked, facts) if column.known == facts.rows][:5]
    if whole:
        yield _said("  checks:", "Great Expectations; true of the file, and asked of every month")
        for column in whole:
            yield f"    - {{type: expect_column_values_to_not_be_null, column: {_yaml(column)}}}"


def _gate_lines(asked: Asked, facts: Facts, rhythm: _Rhythm) -> Iterator[str]:
    if rhythm.block != _DAY:
        yield _said(f"  block: {format_duration(rhythm.block)}", "most days have no row")
    if rhythm.blocks != 14:
        yield _said(f"  min_blocks: {rhythm.blocks}", "fewer than 14 judge weakly: use more data if you can")
    if rhythm.positives != _POSITIVES:
        yield _said(
            f"  min_positives: {rhythm.positives}", "fewer than 300 judge weakly: use more data if you can"
        )
    if facts.task == "regression":
        margin = float(f"{facts.spread / 100:.1g}")
        yield _said(f"  margin: {margin:g}", "in the label's unit, squared: a hundredth of its variance")
        yield _said("  # floor: {r2: 0.2}", "the least quality that is worth serving")
    else:
        yield _said("  guard: {roc_auc: -0.02}", "how far a challenger may fall behind the champion")
        yield _said("  # floor: {roc_auc: 0.60}", "the least quality that is worth serving")
    kinds = ("VARCHAR", "BOOLEAN")
    few = [c.name for c in _features(asked, facts) if c.type in kinds and 2 <= c.distinct <= 20]
    if few:
        names = ", ".join(map(_yaml, few[:3]))
        yield _said(f"  # slices: [{names}]", "groups that no challenger may harm")


@dataclass(frozen=True, slots=True)
class _Rhythm:
    """Lengths of time that fit how often there are rows and answers."""

    delay: timedelta
    holdout: timedelta
    block: timedelta
    blocks: int
    positives: int
    every: timedelta
    strikes: int


def _rhythm(facts: Facts) -> _Rhythm:
    span = max(1.0, (facts.last - facts.first) / _DAY)
    daily = facts.active >= span / 2
    block = 1 if daily else 7
    delay = timedelta(hours=math.ceil((facts.delay_s or 0) / 3600))
    if delay > 2 * _DAY:
        delay = _DAY * math.ceil(delay / _DAY)
    least, most = 14 * block, max(14, int(span / 3))
    days, positives = least, _POSITIVES
    if facts.task == "binary":
        a_day = facts.rows * min(facts.share, 1.0) / span
        days = max(least, math.ceil(1.2 * _POSITIVES / a_day / 7) * 7)
        if days > most:
            days = most // block * block
            positives = max(10, min(_POSITIVES, int(0.7 * a_day * days)))
    days = min(days, most // block * block) if not daily else max(days, 14)
    blocks = min(14, max(2, days // block))
    weeks = max(1, math.ceil(2 * delay / _DAY / 7))
    strikes = max(2, math.ceil((days + delay / _DAY) / (weeks * 7)))
    if strikes > 2 and weeks == 1:
        weeks, strikes = 2, max(2, math.ceil((days + delay / _DAY) / 14))
    return _Rhythm(delay, _DAY * days, _DAY * block, blocks, positives, _DAY * 7 * weeks, strikes)


def _sql(name: str, asked: Asked, facts: Facts) -> str:
    """The table's SQL: each column on a line of its own, those that are no features as comments."""
    lines = [
        f"-- One row a question, from {_line(asked.uri)}. treadle cuts at as_of: rows, and answers, that came later.",
        "-- A time without a zone counts as UTC, a date as its midnight.",
        "SELECT",
        *_column_lines(asked, facts),
        f"FROM {quoted(name)}",
    ]
    entity, time = quoted(asked.entity), facts.times[asked.time]
    if facts.nameless:
        lines.append(
            f"WHERE {entity} IS NOT NULL AND {time} IS NOT NULL  -- {facts.nameless} rows lack one of them"
        )
    if facts.repeated:
        lines.append(
            f"-- DECIDE: {facts.repeated} rows share {_line(asked.entity)} and {_line(asked.time)} with another:"
            " which counts? Such as the first by some column:"
        )
        lines.append(f"-- QUALIFY row_number() OVER (PARTITION BY {entity}, {time} ORDER BY some_column) = 1")
    return "\n".join(lines) + "\n"


def _column_lines(asked: Asked, facts: Facts) -> Iterator[str]:
    played = dict.fromkeys([asked.entity, *facts.times])
    for column in played:
        shown = _named(facts.times[column], column) if column in facts.times else _entity(asked, facts)
        yield f"  {shown},"
    features = {column.name for column in _features(asked, facts)}
    for found in facts.columns:
        if found.name in features:
            reserved = found.name.lower() == "row_id"
            yield f"  {_named(quoted(found.name), 'source_row_id' if reserved else found.name)},"
        elif found.name not in played and found.name != asked.label:
            yield f"  -- {_line(quoted(found.name))},  -- {_why_not(found, facts)}"
    time, label = facts.times[asked.time], quoted(asked.label)
    if asked.label_known_at is None:
        times = [_line(c.name) for c in facts.columns if c.type == TIME and c.name != asked.time]
        if times:
            yield f"  -- When was the answer known? Take the `-- ` from {' or '.join(times)} and name it in the loop,"
            yield "  -- or the one from the next line, with the right length of time."
        else:
            yield "  -- When was the answer known? Take the `-- ` from the next line, with the right length of time."
        yield f"  -- {time} + INTERVAL 30 DAY AS label_known_at,"
    elif asked.answered_after:
        seconds = int(parse_duration(asked.answered_after).total_seconds())
        yield f"  {time} + to_seconds({seconds}) AS label_known_at,  -- {asked.answered_after} after the question"
    if facts.positive is not None:
        text = facts.positive.replace("'", "''")
        yield "  -- DECIDE: which text counts as 1? This is the rarer one."
        yield f"  {label} = '{text}' AS {label}"
    else:
        yield f"  {label}"


def _named(expression: str, name: str) -> str:
    return expression if expression == quoted(name) else f"{expression} AS {quoted(name)}"


def _features(asked: Asked, facts: Facts) -> list[FileColumn]:
    """The columns that a model is to see."""
    played = {asked.entity, asked.label, *facts.times}
    return [column for column in facts.columns if column.name not in played and not _why_not(column, facts)]


def _why_not(column: FileColumn, facts: Facts) -> str:
    """Why a column is no feature; empty where it is one."""
    if column.type not in KEPT:
        return f"{column.type} is no number, boolean or text"
    if column.type == TIME:
        return "a time is no feature by itself"
    if not column.known:
        return "it is always unknown"
    if column.distinct < 2 and column.known == facts.rows:
        return "it is always the same"
    if column.type == "VARCHAR" and column.distinct > max(100, column.known / 2):
        return "nearly every row has a text of its own"
    return ""


_HISTORY_SQL = """\
-- How often each entity was asked about so far, known once the question is asked. An example: replace it by what you
-- know beside the file. Each row needs the time from which on its values were known.
SELECT DISTINCT
  {shown},
  {time} AS known_at,
  count(*) OVER (PARTITION BY {entity} ORDER BY {time}) AS questions
FROM {table}
WHERE {entity} IS NOT NULL AND {time} IS NOT NULL
"""
_HISTORY_PYTHON = '''\
"""What is known beside a row. Ordinary Feast."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64
from treadle.features import snapshot_source

# The join key is a column of both tables.
entity = Entity(name="{name}", join_keys=[{key}], value_type=ValueType.{kind})

history = FeatureView(
    name="{name}_history",  # named in features.use; its column is {name}_history__questions
    entities=[entity],
    ttl=timedelta(days=365),  # an older value is no value
    schema=[Field(name="questions", dtype=Int64)],
    source=snapshot_source("{name}_history"),  # data.tables.{name}_history of the loop
)
'''


def _history_files(name: str, asked: Asked, facts: Facts) -> dict[str, str]:
    """A Feast file with one view, and its table: how often was the same entity asked about before?"""
    whole = facts.column(asked.entity).type == "BIGINT"
    parts = {"entity": quoted(asked.entity), "time": facts.times[asked.time], "table": quoted(name)}
    sql = _HISTORY_SQL.format(shown=_entity(asked, facts), **parts)
    key = json.dumps(asked.entity, ensure_ascii=False)
    python = _HISTORY_PYTHON.format(key=key, kind="INT64" if whole else "STRING", name=name)
    return {f"sql/{name}_history.sql": sql, f"{name}_features.py": python}


def _entity(asked: Asked, facts: Facts) -> str:
    """The entity as a table keeps it, text or a whole number."""
    name = quoted(asked.entity)
    kept = facts.column(asked.entity).type in ("VARCHAR", "BIGINT")
    return name if kept else f"CAST({name} AS VARCHAR) AS {name}"


def _from_folder(uri: str, folder: Path) -> str:
    """A path as the loop writes it, from its own folder; a URI, or what begins with a variable, as it is."""
    if "://" in uri or uri.startswith("${"):
        return uri
    return Path(os.path.relpath(uri, folder)).as_posix()


def _said(line: str, comment: str) -> str:
    """A line of YAML with a comment that stands in its column where there is room."""
    return f"{line:<33}# {comment}" if len(line) < 33 else f"{line}  # {comment}"


def _line(text: str) -> str:
    """A text within a comment: on one line."""
    return " ".join(text.split())


def _yaml(text: str) -> str:
    """A text as YAML writes it, also within braces; plain where it can't be taken for anything else."""
    words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
    if re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) and text.lower() not in words:
        return text
    return json.dumps(text, ensure_ascii=False)
