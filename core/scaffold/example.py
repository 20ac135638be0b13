"""The loop that `treadle init NAME` writes when no file is given: made-up trials of a service, and what became of them.

The rows are drawn by `random()` of a fixed seed alone, whose sequence Python promises: everyone gets the same files.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, A_DAY = 152, 45
END = START + timedelta(days=DAYS)
CHANNELS = ("advert", "friend", "partner", "search", "shop")

LOOP = """\
# Made-up data, written by `treadle init`: trials of a service, asked about on their seventh day of ten.
# docs/first_loop.md goes on from here.
name: {name}
description: "Made-up data: three days before a trial ends, will it be cancelled?"
owner: nobody yet
history: {{to: {end}}}           # the data end here; it is also the as_of of a run that names none

data:
  sources:
    trials: data/{name}.csv
    {channels}channels: data/{name}_channels.csv
  tables:
    # One row a question: whom it is about, when it is asked, when its values and its answer became known.
    trials: {{sql: sql/{name}.sql, entity: trial_id, event_time: asked_at, known_at: asked_at,
             label: cancelled, label_known_at: ended_at}}
    {channels}channels: {{sql: sql/{name}_channels.sql, entity: channel, known_at: known_at}}
  label_delay: 3d                # a trial ends three days after the question
  holdout: 21d                   # the newest labelled days: models are judged on them, and learn from none of them
  checks:                        # Great Expectations; each must hold in every month
    - {{type: expect_column_values_to_not_be_null, column: plan}}
    - {{type: expect_column_values_to_be_between, column: logins, min_value: 0}}

{channels}features: {{file: {name}_features.py, use: [channels]}}

train: {{flavour: xgboost, rounds: 60, params: {{max_depth: 3, learning_rate: 0.1}}}}

gate:
  floor: {{roc_auc: 0.60}}         # no model below it may serve
  guard: {{roc_auc: -0.02}}        # how far a challenger may fall behind the champion
  slices: [plan]                 # groups that none may harm

monitor: {{every: 14d}}
retrain: {{schedule: monthly, on: [drift]}}
"""

SQL = """\
-- One row a trial, as it stood on its seventh day. treadle cuts at as_of: rows, and answers, that came later.
SELECT
  trial_id,
  asked_at,
  plan,
  channel,
  logins,
  minutes,
  tickets,
  cancelled,
  ended_at
FROM trials
"""

CHANNELS_SQL = """\
-- One row a channel and day. A day's figures are known when the day is over, so known_at is the next midnight.
SELECT
  channel,
  day + INTERVAL 1 DAY AS known_at,
  complaints
FROM channels
"""

FEATURES = '''\
"""What is known beside a trial: how many complaints its channel had. Ordinary Feast."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64
from treadle.features import snapshot_source

channel = Entity(name="channel", value_type=ValueType.STRING)  # a column of both tables

channels = FeatureView(
    name="channels",  # named in features.use; its column is channels__complaints
    entities=[channel],
    ttl=timedelta(days=2),  # an older value is no value
    schema=[Field(name="complaints", dtype=Int64)],
    source=snapshot_source("channels"),  # data.tables.channels of the loop
)
'''


def example_files(name: str, *, features: bool) -> dict[str, str]:
    """The files of the example loop by their path from the loop's folder; with `features`, the Feast file is in use.

    Without it what the Feast file needs stands in the loop as comments, and its data are written all the same.
    """
    trials, channels = _rows()
    files = {
        f"{name}.yaml": LOOP.format(name=name, end=END.date(), channels="" if features else "# "),
        f"sql/{name}.sql": SQL,
        f"data/{name}.csv": trials,
        f"data/{name}_channels.csv": channels,
    }
    if features:
        files |= {f"sql/{name}_channels.sql": CHANNELS_SQL, f"{name}_features.py": FEATURES}
    return files


def _rows() -> tuple[str, str]:
    """Both CSV files: trials in order of time, and each channel's day with what it brought on."""
    draw = random.Random(2024).random
    trials, channels = io.StringIO(), io.StringIO()
    trial_rows = csv.writer(trials, lineterminator="\n")
    channel_rows = csv.writer(channels, lineterminator="\n")
    trial_rows.writerow(
        ["trial_id", "asked_at", "plan", "channel", "logins", "minutes", "tickets", "cancelled", "ended_at"]
    )
    channel_rows.writerow(["channel", "day", "complaints"])
    mood = {channel: _normal(draw) for channel in CHANNELS}
    number = 0
    for day in range(-1, DAYS):
        for _ in range(A_DAY if day >= 0 else 0):
            at = START + timedelta(days=day, minutes=int(draw() * 1440))
            number += 1
            trial_rows.writerow([f"t{number:05d}", *_trial(draw, at, mood)])
        for channel in CHANNELS:
            # A channel's mood of one day is seen in its complaints, and felt by who is asked on the next.
            mood[channel] = 0.6 * mood[channel] + 0.8 * _normal(draw)
            complaints = max(0, round(40 + 12 * mood[channel] + 2 * _normal(draw)))
            channel_rows.writerow([channel, (START + timedelta(days=day)).date(), complaints])
    return trials.getvalue(), channels.getvalue()


def _trial(draw: Callable[[], float], at: datetime, mood: dict[str, float]) -> list[object]:
    plan = "team" if draw() < 0.35 else "basic"
    channel = CHANNELS[int(draw() * len(CHANNELS))]
    logins = int(-6 * math.log(1 - draw()))
    minutes = round(-12 * logins * math.log(1 - draw()), 1) if logins else ""
    tickets = int(-0.8 * math.log(1 - draw()))
    score = 0.6 - 0.25 * logins + 0.8 * tickets - (0.5 if plan == "team" else 0) + 1.2 * mood[channel]
    cancelled = draw() < 1 / (1 + math.exp(-score))
    ended = at + timedelta(hours=66, minutes=int(draw() * 360))
    return [_text(at), plan, channel, logins, minutes, tickets, str(cancelled).lower(), _text(ended)]


def _normal(draw: Callable[[], float]) -> float:
    """Nearly a standard normal number: the sum of twelve uniform ones."""
    return sum(draw() for _ in range(12)) - 6


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
