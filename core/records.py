"""Records: what each stage leaves behind. Small frozen JSON documents of ids, digests and numbers; never data.

A record's `id` hashes its `key`, what made it; its `digest` hashes what came out. `notes` (durations, addresses,
run ids) are in neither. `blobs` maps names to the sha256 of files in the store.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict
from treadle.identity import digest_of
from treadle.spec import Instant

Decision = Literal["promote", "keep", "hold", "no_change"]
Json = dict[str, Any]


class Part(BaseModel):
    """A frozen piece of a record."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Record(Part):
    """The header that every record shares.

    Attributes:
        id: sha256 of `kind`, `loop` and `key`; with `.N` where a rebuild superseded the first.
        digest: sha256 of the results.
        key: What made it: stage, code version, part of the spec, files of the loop, digests of inputs.
        blobs: Name to sha256, for files in the store.
        notes: What may differ between two makings of the same record: seconds, place, tracker's run id.
    """

    kind: ClassVar[str]
    id: str
    digest: str
    loop: str
    as_of: Instant
    key: Json
    blobs: dict[str, str] = {}
    notes: Json = {}

    def __str__(self) -> str:
        return f"{self.kind} {self.id[:12]}"

    def __repr_args__(self) -> Any:
        shown = [("id", self.id[:12]), ("as_of", self.as_of.date().isoformat())]
        return shown + [(name, _brief(getattr(self, name))) for name in self.headline()]

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        """The fields that a short description shows."""
        return ()

    @classmethod
    def result_fields(cls) -> list[str]:
        """The fields that hold results: all but the header's."""
        return [name for name in cls.model_fields if name not in Record.model_fields]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The record that `to_json` wrote."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """One line of JSON."""
        return self.model_dump_json()

    def summary(self) -> Json:
        """This record in small plain JSON, for an orchestrator's page, a message or a log line; never data.

        Returns:
            `stage`, `kind`, `id`, `digest`, `loop`, `as_of`, `words` (one line), `numbers` (dotted name to float), and
            each of the record's own fields that is a text, a time, yes or no: `decision`, `why`, `drifted`, `due` ...
        """
        from treadle.summary import summary_of

        return summary_of(self)


def _brief(value: Any) -> Any:
    """A value as a short description shows it: times by their date, the first words of a text, hashes cut."""
    if isinstance(value, datetime):
        return value.date().isoformat()
    if isinstance(value, str):
        return value[:12] if len(value) == 64 else value if len(value) <= 80 else f"{value[:77]}..."
    return value


class Column(Part):
    """A column: `type` is DuckDB's name in a snapshot; in features one of number, boolean, category."""

    name: str
    type: str


class Partition(Part):
    """A stretch of time [start, end) of a table: `digest` covers schema and logical values in row-id order."""

    name: str
    start: Instant
    end: Instant
    rows: int
    digest: str
    blob: str


class SnapshotTable(Part):
    """A table of a snapshot. `event_time` is the column that orders and partitions it."""

    columns: tuple[Column, ...]
    entity: str
    event_time: str
    known_at: str | None = None
    label: str | None = None
    label_known_at: str | None = None
    rows: int
    digest: str
    definition: str
    partitions: tuple[Partition, ...]


class CheckResult(Part):
    """A data check: `status` tells a rule that failed from one that could not run.

    `table` is a table, or for a feature its view. `sample` holds rows that fail: entity and time in words.
    """

    name: str
    table: str
    column: str | None = None
    status: Literal["passed", "failed", "warned", "could_not_run"]
    blocking: bool = True
    observed: str = ""
    evidence: str = ""
    sample: tuple[str, ...] = ()


class Snapshot(Record):
    """The data as they were known at `as_of`, made by prepare."""

    kind: ClassVar[str] = "snapshot"
    window_start: Instant | None
    tables: dict[str, SnapshotTable]
    checks: tuple[CheckResult, ...]
    labelled_rows: int
    rows: int

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("rows", "labelled_rows")


class FeatureSet(Record):
    """The labelled table's rows with point-in-time features, made by featurize.

    Partition files hold `row_id`, `entity`, `event_time`, `label`, `label_known_at`, then the feature columns, in
    row-id order. `views` maps each Feast view to the name of its online copy, which holds its definition's digest.
    `checks` are those of the views' columns.
    """

    kind: ClassVar[str] = "features"
    columns: tuple[Column, ...]
    rows: int
    definition: str
    views: dict[str, str]
    partitions: tuple[Partition, ...]
    checks: tuple[CheckResult, ...] = ()

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("rows",)


class Candidate(Record):
    """A trained model, with all that is needed to judge, serve and watch it, made by train.

    `features` is the digest of the features that it learned from, `features_id` their record's id.
    `trained_through` is exclusive: no row at or after it took part in fitting, early stopping or tuning. Blobs:
    `model/...` the flavour's files, `loop/spec.json` and `loop/files/...` the recipe, `reference.npz` the profile of
    the training data that monitoring compares with, `rounds.json` the losses of every round.
    """

    kind: ClassVar[str] = "candidate"
    flavour: str
    task: str
    recipe: str
    trained_from: Instant | None
    trained_through: Instant
    rows: int
    rounds: int | None = None
    metrics: dict[str, float]
    classes: tuple[str, ...] = ()
    label_definition: str
    features: str
    features_id: str = ""

    def __str__(self) -> str:
        # The log, the endpoint and MLflow's tags know a model by its digest: one name for people.
        return f"model {self.digest[:12]}"

    def __repr_args__(self) -> Any:
        return [("model", self.digest[:12]), *super().__repr_args__()[1:]]

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("flavour", "trained_through", "rows")


class Holdout(Part):
    """The rows that both models were judged on; `digest` covers row ids, times and labels."""

    start: Instant
    end: Instant
    rows: int
    unlabelled: int
    blocks: int
    positives: int | None = None
    digest: str


class Comparison(Part):
    """Challenger's mean loss minus champion's: negative is better. `low` to `high` covers 1 - 2 alpha.

    `p` is one-sided; `bound` is what `high` must stay below; `detectable` is the least true gain that a holdout like
    this one would show in 80 % of trials.
    """

    loss: str
    champion: float | None
    challenger: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    bound: float | None = None
    detectable: float | None = None


class Criterion(Part):
    """One thing that the gate asked, with what it saw and what it allows."""

    name: str
    status: Literal["passed", "failed", "held", "info"]
    observed: float | None = None
    allowed: float | None = None
    words: str


class Verdict(Record):
    """The decision whether the challenger may replace the champion, with its evidence, made by evaluate.

    `champion` and `challenger` are candidate digests. `looks` counts earlier verdicts in the log that used any block
    of this holdout.
    """

    kind: ClassVar[str] = "verdict"
    decision: Decision
    why: str
    mode: Literal["first", "non_inferiority", "superiority"]
    champion: str | None
    challenger: str
    challenger_id: str
    holdout: Holdout | None
    comparison: Comparison | None
    criteria: tuple[Criterion, ...] = ()
    metrics: dict[str, dict[str, float]] = {}
    looks: int = 0

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("decision", "why")


class Release(Record):
    """What became of a verdict in the release log, made by release. The log says what came after."""

    kind: ClassVar[str] = "release"
    verdict: str
    candidate: str
    candidate_id: str
    champion: str | None
    proposed: bool
    why: str

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("proposed", "why")


class Compiled(Part):
    """A champion's network compiled for an accelerator, in blobs `compiled/<rows>.pt`: one for each size of a batch.

    Attributes:
        device: inferentia or trainium.
        machine: The family of the machine that compiled it, such as inf2; empty where that could not be told.
        batches: How many rows each of them takes at once.
        arguments: What the compiler was told.
        versions: By distribution: compiler and libraries.
        gap: By how much its predictions differ at most from those of the model that was judged, as a share of the
            greatest of them, or of 1 where that is more.
    """

    device: str
    machine: str
    batches: tuple[int, ...]
    arguments: tuple[str, ...]
    versions: dict[str, str]
    gap: float


class Deployment(Record):
    """The state that production should be in: the candidate that serves, and the online views that it reads.

    `compiled` is there where deploy ran on a pool of Inferentia or Trainium.
    """

    kind: ClassVar[str] = "deployment"
    candidate: str | None
    candidate_id: str | None
    mode: str
    views: dict[str, str] = {}
    compiled: Compiled | None = None

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("candidate",)


class ColumnDrift(Part):
    """How far one column moved from the champion's training data; `threshold` holds on resampled references.

    A `calendar` column (a month, a running number) always moves: it drifts only where its values went missing.
    """

    name: str
    distance: float
    threshold: float
    drifted: bool
    mean: float | None = None
    reference_mean: float | None = None
    low: float | None = None
    high: float | None = None
    missing: float = 0.0
    reference_missing: float = 0.0
    new_categories: tuple[str, ...] = ()
    calendar: bool = False


class Quality(Part):
    """The model's quality on the window's rows whose labels are known, `coverage` being their share."""

    loss: str
    value: float | None
    expected: float | None
    metrics: dict[str, float] = {}
    labelled: int
    rows: int
    coverage: float
    p: float | None = None
    decayed: bool = False
    words: str = ""


class DriftReport(Record):
    """What a window looked like beside the champion's training data, made by monitor."""

    kind: ClassVar[str] = "drift_report"
    candidate: str | None
    start: Instant
    end: Instant
    rows: int
    captured: int
    replayed: int
    columns: tuple[ColumnDrift, ...] = ()
    share: float = 0.0
    prediction: ColumnDrift | None = None
    attribution: float | None = None
    attribution_movers: tuple[str, ...] = ()
    quality: Quality | None = None
    drifted: bool = False
    words: str = ""

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("drifted", "words")


class RetrainDecision(Record):
    """Whether to train again and why, made by retrain.

    When due, `subject` is that of the log's retrain entry, created once for `run_as_of`; `details` go into it.
    `alerts` are what a person should know though it triggers nothing.
    """

    kind: ClassVar[str] = "retrain_decision"
    due: bool
    trigger: Literal["none", "first", "schedule", "drift", "decay", "new_labels"] = "none"
    why: str
    subject: str = ""
    run_as_of: Instant | None = None
    details: Json = {}
    reports: tuple[str, ...] = ()
    alerts: tuple[str, ...] = ()

    @classmethod
    def headline(cls) -> tuple[str, ...]:
        return ("due", "trigger", "why")


RECORD_OF: dict[str, type[Record]] = {
    "prepare": Snapshot,
    "featurize": FeatureSet,
    "train": Candidate,
    "evaluate": Verdict,
    "release": Release,
    "deploy": Deployment,
    "monitor": DriftReport,
    "retrain": RetrainDecision,
}
KINDS = {record.kind: record for record in RECORD_OF.values()}
STAGE_OF = {record.kind: stage for stage, record in RECORD_OF.items()}


def record_id(kind: str, loop: str, key: Json) -> str:
    """The id of the record of a kind that a key makes."""
    return digest_of({"kind": kind, "loop": loop, "key": key})
