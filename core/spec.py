"""The sections of a loop: what a loop file may say, with its defaults.

Every section is frozen and refuses unknown keys. Durations are written `14d`, `12h`, `30m`.
A new field needs a default: ids hash a section without its defaults, so old ids stay as they are.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from treadle.clock import format_duration, format_instant, parse_duration, parse_instant


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    # A bare number would silently count as seconds.
    told = f"{value} has no unit" if type(value) in (int, float) else "a length of time is asked for"
    raise ValueError(f"{told}: write a whole number and w, d, h, m or s, such as 14d")


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", value):
        raise ValueError(
            f"{value[:63]!r} can't be a name: write a letter, then up to 62 letters, digits and _"
        )
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str),
]
Instant = Annotated[
    datetime, BeforeValidator(parse_instant), PlainSerializer(format_instant, return_type=str)
]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, AfterValidator(_name)]
Task = Literal["binary", "multiclass", "regression"]


class Section(BaseModel):
    """A part of a loop file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            kinds = _kinds_in(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise PydanticCustomError("int_type" if int in kinds else "float_type", "no number")
        return value


def _kinds_in(annotation: Any) -> set[Any]:
    """The types that a field may have, out of a union."""
    return {annotation}.union(*map(_kinds_in, get_args(annotation))) if get_args(annotation) else {annotation}


class History(Section):
    """The stretch of time that the data cover; `as_of` stays within it and defaults to its end."""

    from_: Instant | None = Field(default=None, alias="from")
    to: Instant | None = None


class Source(Section):
    """A file that the tables read: `uri` is a path (from the loop's folder), an fsspec URI or `package://DIST/PATH`."""

    uri: str
    format: Literal["csv", "parquet"] | None = None
    nulls: tuple[str, ...] = ("",)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"uri": value}
        if isinstance(value, (dict, Source)):
            return value
        raise ValueError("write where it is: a path, or an address such as s3://BUCKET/FILE")


class Table(Section):
    """A table that `prepare` makes, by a SQL file or a Python function `module:function`, from the sources.

    The table with a `label` holds the entities to learn from; the others are the sources of feature views.
    `known_at` names the column that says when a row's values became known; `known_at_of` does so for single columns.
    """

    sql: str | None = None
    python: str | None = None
    entity: str
    event_time: str | None = None
    known_at: str | None = None
    known_at_of: dict[str, str] = {}
    label: str | None = None
    label_known_at: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Table:
        if (self.sql is None) == (self.python is None):
            raise ValueError("a table is made by either sql or python: give one of them")
        if self.label and not (self.event_time and self.label_known_at):
            raise ValueError("a table with a label needs event_time and label_known_at as well")
        if not self.label and not (self.event_time or self.known_at):
            raise ValueError(
                "a table without a label needs known_at: the column that says when a row became known"
            )
        return self


class Leakage(Section):
    """What the leakage checks let pass, each with a reason, and where they draw the line (AUC, 0.5 to 1)."""

    allow: dict[str, str] = {}
    block_auc: Share = 0.85
    warn_auc: Share = 0.75


class Data(Section):
    """Where the data come from, which tables they make, and which rows count."""

    sources: dict[Name, Source] = Field(min_length=1)
    tables: dict[Name, Table] = Field(min_length=1)
    window: Duration | Literal["all"] = "all"
    holdout: Duration = timedelta(days=14)
    label_delay: Duration = timedelta(0)
    partition: Literal["day", "week", "month"] = "month"
    checks: tuple[dict[str, Any], ...] = ()
    leakage: Leakage = Leakage()
    threads: Count = 1

    @model_validator(mode="after")
    def _one_label(self) -> Data:
        labelled = [name for name, table in self.tables.items() if table.label]
        if len(labelled) != 1:
            raise ValueError(f"exactly one table has a label; here: {', '.join(labelled) or 'none'}")
        return self

    @property
    def labelled(self) -> str:
        """The name of the table that holds the label."""
        return next(name for name, table in self.tables.items() if table.label)


class Features(Section):
    """The Feast file, the views of it that the model uses, and the labelled table's own columns that it uses.

    `columns` left out means all columns but entity, times and label.
    `online` is Feast's own online store section; left out means SQLite beside the store.
    """

    file: str | None = None
    use: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    online: dict[str, Any] | None = None


class EarlyStopping(Section):
    """Stop when the loss on the tail has not fallen for `rounds` rounds.

    The tail is the `newest` of the training rows; it is kept out of fitting.
    """

    rounds: Count = 20
    newest: Duration = timedelta(days=7)


class Dimension(Section):
    """What a search tries for one parameter: a list of choices, or numbers from `low` to `high`, both included.

    `log` looks as closely at small numbers as at large ones; `int` leaves whole numbers only.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    int_: bool = Field(default=False, alias="int")
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return {"choices": value}
        if isinstance(value, (dict, Dimension)):
            return value
        raise ValueError("write what is tried: a list such as [2, 4, 8], or {low: 2, high: 8}")

    @model_validator(mode="after")
    def _not_empty(self) -> Dimension:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.int_:
                raise ValueError("give either choices or low and high")
            if len(self.choices) < 2 or any(
                choice in self.choices[:i] for i, choice in enumerate(self.choices)
            ):
                raise ValueError(
                    "choices are two or more different values; a single one stands in train.params"
                )
            return self
        if self.low is None or self.high is None:
            raise ValueError("give a list of choices, or both low and high")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"low and high are finite, not {self.low:g} and {self.high:g}")
        if self.low >= self.high:
            raise ValueError(
                f"low {self.low:g} must be below high {self.high:g}; a single value stands in train.params"
            )
        if self.int_ and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low {self.low:g} and high {self.high:g} must be whole numbers, as int is true")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} must be above 0, as log is true")
        return self


class Tune(Section):
    """A search for params before the training: `trials` by Optuna, each judged by the loss on the newest rows.

    `space` gives, by param, a list of choices, or `{low: , high: }` with `log: true` or `int: true`. `newest` is how
    much of the training rows judges, kept out of the trials' fitting: 7d; with early stopping it is its tail.
    """

    trials: Count = 20
    space: dict[str, Dimension] = Field(min_length=1)
    newest: Duration | None = None


class Train(Section):
    """Which flavour learns, and how.

    `workers` is over how many processes a fit is spread; with more than one the bytes may be others, so it is part of
    the recipe. `init_from` is where the weights to start from are: a path, or `blob:` and a hash of the store.
    """

    flavour: str = "xgboost"
    task: Task = "binary"
    params: dict[str, Any] = {}
    rounds: Count = 100
    early_stopping: EarlyStopping | None = None
    checkpoint_every: Count = 25
    seed: int = 0
    threads: Count = 2
    workers: Count = 1
    init_from: str | None = None
    tune: Tune | None = None
    hook: str | None = None
    trust: Literal["none", "pickle"] = "none"


class Gate(Section):
    """When a challenger may replace the champion. `margin` is in units of the loss; `alpha` is one-sided.

    `guard` gives, by metric, the least allowed change; `floor` the least allowed value. A lower loss is better, and a
    higher metric is. `fairness` and `slices` name columns; a slice is judged with `slice_min_rows` rows or more.
    """

    loss: str | None = None
    mode: Literal["non_inferiority", "superiority"] = "non_inferiority"
    margin: float = Field(default=0.005, ge=0)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    test: Literal["t", "sign_flip"] = "t"
    block: Duration = timedelta(days=1)
    min_blocks: int = Field(default=14, ge=2)
    min_positives: int = Field(default=300, ge=1)
    guard: dict[str, float] = {}
    floor: dict[str, float] = {}
    slices: tuple[str, ...] = ()
    fairness: tuple[str, ...] = ()
    slice_min_rows: Count = 300
    slice_min_blocks: int = Field(default=10, ge=2)
    slice_limit: float = Field(default=0.02, ge=0)
    suspicious: float = Field(default=0.05, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)


class Deploy(Section):
    """How the champion serves. `capture` writes the endpoint's predictions to the store, for monitoring."""

    mode: Literal["realtime", "batch"] = "realtime"
    capture: bool = True


class Drift(Section):
    """When inputs count as drifted.

    That is when a `share` of the columns lies beyond thresholds which `1 - alpha` of resampled references keep, or
    when the shares of attribution moved by more than `attribution`, measured on `sample` rows.
    """

    share: Share = 0.3
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    attribution: float = Field(default=0.05, gt=0)
    sample: Count = 2000
    min_rows: Count = 200


class Quality(Section):
    """When quality counts as decayed: the window's loss lies above the champion's by more than `margin`.

    Tested by blocks at `alpha`, where at least `min_coverage` of the rows have their labels.
    """

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    margin: float = Field(default=0.01, ge=0)
    min_coverage: Share = 0.5


class Monitor(Section):
    """What is watched, and how often."""

    every: Duration = timedelta(days=7)
    drift: Drift = Drift()
    quality: Quality = Quality()


class Retrain(Section):
    """When to train again: on a schedule (`daily`, `weekly`, `monthly` or cron), and on triggers."""

    schedule: str | None = None
    on: tuple[Literal["drift", "decay", "new_labels"], ...] = ()
    strikes: Count = 2
    cooldown: Duration = timedelta(days=14)
    new_labels: Count = 10_000


class Retry(Section):
    """How often a stage is tried when it fails for a reason that may pass, and the first pause between tries."""

    attempts: Count = 3
    wait: Duration = timedelta(seconds=1)


class Tracking(Section):
    """The MLflow server; left out means `MLFLOW_TRACKING_URI`, else SQLite beside the store."""

    uri: str | None = None


class Budget(Section):
    """What the loop's jobs may cost in a calendar month of UTC, in US dollars; `enforce: false` only warns."""

    monthly: float = Field(gt=0)
    enforce: bool = True
