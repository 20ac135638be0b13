"""train: features become a candidate: a model, its recipe, and a profile of what it learned from.

        as_of
    ────┬──────────────┬─────────────┬───────────┬──► event time
        │    training  │   holdout   │label_delay│
        │      ├newest─┤             │           as_of
   trained_from   trained_through

Fitting and early stopping see nothing at or after `trained_through`; the holdout is the gate's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from treadle import spec
from treadle.clock import format_duration, format_instant
from treadle.errors import AsOfError, SpecError, UserError
from treadle.identity import canonical, digest_of, sha256_of_file
from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of, load_hook
from treadle.models import get_flavour
from treadle.models.devices import precision_of, refuse_device
from treadle.models.libraries import libraries_of
from treadle.models.loop_parcel import pack_loop
from treadle.models.own_code import own_code
from treadle.models.predictor import FitTask, Flavour, MemoryCheckpoints, Predictor
from treadle.models.tuning.search import Judge, Search, optuna_version, searched
from treadle.models.tuning.space import search_problems, trial_spec
from treadle.models.weights import fetch_weights, naming_weights, weights_of
from treadle.records import Candidate, FeatureSet, Json, record_id
from treadle.stages import Context, Outcome

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.models.predictor import Checkpoints, Floats
    from treadle.models.rows import Rows, Tail

VERSION = 1
# A fit that takes its time between two checkpoints says how it goes.
_SILENCE_S = 10


def key(context: Context, features: FeatureSet) -> Json:
    """What makes a candidate: the recipe, the features' content, the span, and the library where it runs."""
    loop = context.loop
    trained_from, trained_through = training_span(context)
    return {
        "stage": "train",
        "version": VERSION,
        "spec": recipe_sections(loop),
        "code": recipe_files(loop),
        "features": features.digest,
        "trained_from": format_instant(trained_from) if trained_from else None,
        "trained_through": format_instant(trained_through),
        "flavour": loop.train.flavour,
        "library": libraries_of(loop),
        "device": context.device,
        "precision": precision_of(loop.train, context.device),
        "reference_sample": _sample_size(loop),
        **({"optuna": optuna_version()} if loop.train.tune else {}),
    }


def training_span(context: Context) -> tuple[datetime | None, datetime]:
    """`trained_from` (None: from the first row) and `trained_through`, which is exclusive."""
    data = context.loop.data
    through = context.as_of - data.label_delay - data.holdout
    return (None if data.window == "all" else through - data.window), through


def recipe_sections(loop: Loop) -> Json:
    """The spec's part of the recipe: what a candidate carries, without addresses and thread counts.

    Raises:
        SpecError: There are no such weights as `train.init_from` names.
    """
    sections = loop.part("data", "features", "train")
    for name, dropped in (("data", "threads"), ("train", "threads"), ("features", "online")):
        if name in sections:
            sections[name] = {k: v for k, v in sections[name].items() if k != dropped}
    sources = sections["data"]["sources"]
    sections["data"]["sources"] = {
        name: {k: v for k, v in source.items() if k != "uri"} for name, source in sources.items()
    }
    if weights := weights_of(loop):
        sections["train"]["init_from"] = weights
    return sections


def recipe_files(loop: Loop) -> dict[str, str]:
    """sha256 of each of the loop's files that made data, features or model, by path in the loop's folder."""
    hooks = hooks_of(loop)
    return code_of(loop, [*hooks["prepare"], *hooks["featurize"], *hooks["train"]])


def recipe_of(loop: Loop) -> str:
    """The digest of the recipe: spec and loop files, never code or library versions."""
    return digest_of({"spec": recipe_sections(loop), "files": recipe_files(loop)})


def label_definition_of(loop: Loop) -> str:
    """The digest of what says which column is the label, of what, when, and known when."""
    table = loop.data.tables[loop.data.labelled]
    named = ("label", "label_known_at", "entity", "event_time")
    return digest_of({"task": loop.train.task, **{name: getattr(table, name) for name in named}})


@dataclass(slots=True)
class Progress:
    """Takes down what a fit reports; stands between the fit and its checkpoints to see where it resumed."""

    context: Context
    checkpoints: Checkpoints
    resumed_from: int = 0
    reported: int = 0
    told_at: float = field(default_factory=time.monotonic)
    history: dict[str, list[float]] = field(default_factory=dict)

    def latest(self) -> tuple[int, bytes] | None:
        """See Checkpoints."""
        found = self.checkpoints.latest()
        if found is not None:
            self.resumed_from = found[0]
            self.context.say(f"train: goes on from the checkpoint of round {found[0]}")
        return found

    def save(self, rounds: int, data: bytes) -> None:
        """See Checkpoints."""
        self.checkpoints.save(rounds, data)

    def report(self, number: int, metrics: Mapping[str, float]) -> None:
        """Takes down a round."""
        self.reported = number + 1
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(float(f"{value:.6g}"))
        now, train = time.monotonic(), self.context.loop.train
        if self.reported % train.checkpoint_every == 0 or now - self.told_at > _SILENCE_S:
            self.told_at = now
            words = ", ".join(f"{name} {values[-1]:g}" for name, values in self.history.items())
            self.context.say(f"train: round {self.reported}, {words} ...")


def train(context: Context, features: FeatureSet) -> Outcome:
    """The candidate that the loop trains on features.

    Raises:
        SpecError: The flavour refuses the train section. HookError: A hook of the loop failed.
        AsOfError: No rows lie in the span. UserError: Too few, or the library refuses them.
        DataRefused: The labels have one class only, or are not of the task; a feature is infinite.
    """
    from treadle.models.checkpoints import StoreCheckpoints

    loop = context.loop
    flavour = accepted_flavour(loop)
    refuse_device(loop, context.device)
    rows = read_rows(context, features)
    candidate_id = record_id(Candidate.kind, loop.name, key(context, features))
    progress = Progress(context, StoreCheckpoints(context.store, candidate_id))
    context.say(f"train: {loop.train.flavour} on {len(rows.y)} rows ...")
    folder = context.scratch / "model"
    folder.mkdir(parents=True, exist_ok=True)
    with own_code(loop), naming_weights(loop):
        search = _search(context, features, flavour, rows, candidate_id) if loop.train.tune else None
        task = _fit_task(context, rows, progress)
        if search:
            task = replace(task, train=trial_spec(task.train, search.best().params))
        predictor = flavour.fit(task)
        predictor.save(folder)
        predictions = predictor.predict(rows.x)
        reference = _reference(loop, predictor, rows, predictions)
    made = _outcome(context, features, rows, predictor, predictions, folder, reference, progress)
    return _with_search(made, search) if search else made


def _search(
    context: Context, features: FeatureSet, flavour: Flavour, rows: Rows, candidate_id: str
) -> Search:
    """The search for params, each judged on the newest rows before the holdout: those of early stopping, if any."""
    from treadle.gate.metrics import default_loss
    from treadle.models.rows import Tail

    loop, train_spec = context.loop, context.loop.train
    assert train_spec.tune is not None
    if train_spec.early_stopping is None:
        newest = train_spec.tune.newest or spec.EarlyStopping().newest
        rows = read_rows(context, features, tail=Tail(newest, "train.tune", "train.tune.newest"))
    task = _fit_task(context, rows, Progress(context, MemoryCheckpoints()))
    if train_spec.early_stopping is None:
        task = replace(task, x_valid=None, y_valid=None)
    judge = Judge(task, rows.x[rows.newest], rows.y[rows.newest], default_loss(train_spec.task))
    return searched(judge, flavour, loop, context.store, candidate_id, context.say)


def _with_search(made: Outcome, search: Search) -> Outcome:
    """What the search came to, beside the model that it led to."""
    told = search.summary()
    metrics = {**made.results["metrics"], f"search_{told['loss']}": told["best_loss"]}
    return replace(
        made,
        results={**made.results, "metrics": metrics},
        files={**made.files, "trials.json": canonical(search.table()).encode()},
        notes={**made.notes, "search": told},
    )


def accepted_flavour(loop: Loop) -> Flavour:
    """The loop's flavour, if it accepts the train section.

    Raises:
        SpecError: With each thing wrong, at its line.
    """
    flavour = get_flavour(loop.train.flavour, loop)
    faults = []
    for problem in [*flavour.problems(loop.train), *search_problems(loop.train, flavour)]:
        place, _, words = problem.partition(": ")
        field = f"train.{place}"
        fix = loop.file.left_over(field, "train.params", by="train.flavour") if loop.file else ""
        faults.append(loop.fault(field, f"{words}." if fix else words, fix))
    if faults:
        raise SpecError(faults)
    return flavour


def read_rows(context: Context, features: FeatureSet, *, tail: Tail | None = None) -> Rows:
    """The labelled rows of the span, the newest marked: those of `tail`, else of early stopping.

    Raises:
        AsOfError, UserError, DataRefused: As `train`.
    """
    from treadle.data.findings import rows_in_words
    from treadle.data.tables import read_partitions
    from treadle.models.rows import prepare_rows, refuse_infinite

    if not features.columns:
        raise UserError(
            "there are no features to learn from: name some under features.use or features.columns"
        )
    trained_from, trained_through = training_span(context)

    def labelled(columns: Sequence[str]) -> pa.Table:
        table = read_partitions(
            context.store, features.partitions, columns=columns, start=trained_from, end=trained_through
        )
        return table.filter(table["label"].is_valid()) if table.num_columns else table

    table = labelled(["event_time", "label", *(column.name for column in features.columns)])
    if not table.num_rows:
        raise AsOfError(_nothing(context, features))
    rows = prepare_rows(
        context.loop,
        table,
        features.columns,
        trained_through,
        lambda: _when_enough(context, features),
        tail=tail,
    )
    refuse_infinite(
        rows.schema,
        rows.x,
        lambda few: rows_in_words(
            labelled(["entity", "event_time", "label"]).take(few), "entity", "event_time"
        ),
    )
    return rows


def _when_enough(context: Context, features: FeatureSet) -> str:
    """In words, where the known labels lie in time and from when on they are enough."""
    from treadle.data.tables import read_partitions
    from treadle.models.span import when_enough

    columns = ["event_time", "label", "label_known_at"]
    table = read_partitions(context.store, features.partitions, columns=columns)
    return when_enough(context.loop, table, context.as_of)


def _nothing(context: Context, features: FeatureSet) -> str:
    data, (trained_from, through) = context.loop.data, training_span(context)
    since = f"from {format_instant(trained_from)} on and " if trained_from else ""
    return (
        f"no labelled rows lie {since}before {format_instant(through)}: that is as_of "
        f"{format_instant(context.as_of)} less label_delay {format_duration(data.label_delay)} less holdout "
        f"{format_duration(data.holdout)}. {_when_enough(context, features)} Choose another as_of, a"
        " shorter holdout or a longer window."
    )


def _fit_task(context: Context, rows: Rows, progress: Progress) -> FitTask:
    train_spec, fit = context.loop.train, ~rows.newest
    hook = train_spec.hook
    return FitTask(
        train=train_spec,
        schema=rows.schema,
        x=rows.x[fit],
        y=rows.y[fit],
        times_us=rows.times_us[fit],
        x_valid=rows.x[rows.newest] if rows.newest.any() else None,
        y_valid=rows.y[rows.newest] if rows.newest.any() else None,
        classes=rows.classes,
        trained_through=training_span(context)[1],
        checkpoints=progress,
        report=progress.report,
        hook=load_hook(context.loop, hook, "train.hook") if hook else None,
        code=pack_loop(context.loop, "train") if hook else None,
        device=context.device,
        init=fetch_weights(context.loop, context.store),
    )


def _sample_size(loop: Loop) -> int:
    return (loop.monitor or spec.Monitor()).drift.sample


def _reference(loop: Loop, predictor: Predictor, rows: Rows, predictions: Floats) -> bytes:
    """The profile of the training rows, with contributions on a seeded sample of them."""
    import numpy as np
    from treadle.monitoring.profile import build_reference

    size = min(_sample_size(loop), len(rows.x))
    sample = np.sort(np.random.default_rng(abs(loop.train.seed)).choice(len(rows.x), size, replace=False))
    return build_reference(
        rows.schema,
        rows.x,
        rows.times_us,
        predictions,
        predictor.contributions(rows.x[sample]),
        contribution_times_us=rows.times_us[sample],
    )


def _metrics(task: str, rows: Rows, predictions: Floats) -> dict[str, float]:
    """The task's loss and metrics on the rows of the fit and, with early stopping, on the newest."""
    import math

    import numpy as np
    from treadle.gate.metrics import METRICS, default_loss, metric

    labels = np.array(rows.classes)[rows.y.astype(int)] if task == "multiclass" else rows.y
    found = {}
    for part, chosen in (("train", ~rows.newest), ("valid", rows.newest)):
        for name in (default_loss(task), *METRICS[task]) if chosen.any() else ():
            value = metric(name, task, labels[chosen], predictions[chosen], rows.classes)
            if math.isfinite(value):
                found[f"{part}_{name}"] = float(value)
    return found


def _outcome(
    context: Context,
    features: FeatureSet,
    rows: Rows,
    predictor: Predictor,
    predictions: Floats,
    folder: Path,
    reference: bytes,
    progress: Progress,
) -> Outcome:
    loop = context.loop
    trained_from, trained_through = training_span(context)
    model = {f"model/{file.relative_to(folder).as_posix()}": file for file in _files_in(folder)}
    own = {f"loop/files/{name}": loop.folder / name for name in recipe_files(loop)}
    shared = {
        "flavour": loop.train.flavour,
        "task": loop.train.task,
        "recipe": recipe_of(loop),
        "trained_from": format_instant(trained_from) if trained_from else None,
        "trained_through": format_instant(trained_through),
        "classes": list(rows.classes),
        "label_definition": label_definition_of(loop),
    }
    hashes = {name: sha256_of_file(path) for name, path in model.items()}
    return Outcome(
        results={
            **shared,
            "rows": len(rows.y),
            "rounds": predictor.rounds,
            "metrics": _metrics(loop.train.task, rows, predictions),
            "features": features.digest,
            "features_id": features.id,
        },
        files={
            **model,
            **own,
            **({"init/weights": weights} if (weights := fetch_weights(loop, context.store)) else {}),
            "loop/spec.json": canonical(recipe_sections(loop)).encode(),
            "reference.npz": reference,
            "rounds.json": canonical(progress.history).encode(),
        },
        digest=digest_of({**shared, "schema": rows.schema.to_json(), "model": hashes}),
        notes={
            "rounds_trained": progress.reported - progress.resumed_from,
            "resumed_from": progress.resumed_from,
        },
    )


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
