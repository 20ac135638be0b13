"""What every flavour must hold: subclass FlavourSuite, override its fixtures, and pytest runs it.

class TestMine(FlavourSuite):
@pytest.fixture
def flavour(self):
return MyFlavour()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from treadle import spec
from treadle.errors import UserError
from treadle.models.predictor import MANIFEST, FitTask, Flavour, MemoryCheckpoints, Predictor, read_manifest
from treadle.models.schema import Feature, InputSchema

TRAINED_THROUGH = datetime(2013, 3, 18, tzinfo=UTC)
TASKS: tuple[spec.Task, ...] = ("binary", "multiclass", "regression")
SCHEMA = InputSchema(
    (
        Feature("wind", "number"),
        Feature("hour", "number"),
        Feature("holiday", "boolean"),
        Feature("origin", "category", ("EWR", "JFK", "LGA")),
    )
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Made-up rows of four kinds of feature, some values missing, with a label that depends on them."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    classes: tuple[str, ...]


def make_sample(task: spec.Task, rows: int = 400) -> Sample:
    """The same rows each time; labels as FitTask wants them."""
    generator = np.random.default_rng(7)
    x = np.column_stack(
        [
            generator.normal(10, 4, rows),
            generator.integers(0, 24, rows),
            generator.integers(0, 2, rows),
            generator.integers(0, 3, rows),
        ]
    ).astype(np.float64)
    score = (x[:, 0] - 10) / 4 + (x[:, 1] - 12) / 8 + (x[:, 3] == 1) + generator.normal(0, 0.5, rows)
    x[generator.random(x.shape) < 0.05] = np.nan
    if task == "regression":
        return Sample(x, score, ())
    if task == "binary":
        return Sample(x, (score > 0).astype(np.float64), ("0", "1"))
    return Sample(x, np.digitize(score, [-0.7, 0.9]).astype(np.float64), ("early", "late", "on time"))


class FlavourSuite:
    """The promises of `treadle.models.predictor`, tried on made-up rows for each task."""

    @pytest.fixture
    def flavour(self) -> Flavour:
        """The flavour under test."""
        raise NotImplementedError("override the fixture `flavour`")

    @pytest.fixture(params=TASKS)
    def task(self, request: pytest.FixtureRequest) -> spec.Task:
        """The tasks that the flavour knows; override with fewer params where it knows fewer."""
        found: spec.Task = request.param
        return found

    @pytest.fixture
    def train(self, task: spec.Task) -> spec.Train:
        """A train section that the flavour accepts for a task."""
        return spec.Train(task=task)

    @pytest.fixture
    def hook(self, task: spec.Task) -> Callable[..., Any] | None:
        """What `train.hook` names, for flavours that take one."""
        return None

    @pytest.fixture
    def row_tolerance(self) -> float:
        """How far a row's prediction alone may lie from that in a batch: 0 means the same bits."""
        return 0.0

    @pytest.fixture
    def fit_task(
        self, task: spec.Task, train: spec.Train, hook: Callable[..., Any] | None
    ) -> Callable[[], FitTask]:
        """Makes the work that the tests give to the flavour; each with checkpoints of its own."""
        sample = make_sample(task)

        def make() -> FitTask:
            return FitTask(
                train=train,
                schema=SCHEMA,
                x=sample.x.copy(),
                y=sample.y.copy(),
                times_us=np.arange(len(sample.x), dtype=np.int64) * 3_600_000_000,
                x_valid=None,
                y_valid=None,
                classes=sample.classes,
                trained_through=TRAINED_THROUGH,
                checkpoints=MemoryCheckpoints(),
                report=_ignore,
                hook=hook,
            )

        return make

    @pytest.fixture
    def rows(self, task: spec.Task) -> NDArray[np.float64]:
        """Encoded rows to predict, missing values among them."""
        return make_sample(task).x[:80]

    @pytest.fixture
    def fitted(self, flavour: Flavour, fit_task: Callable[[], FitTask]) -> Predictor:
        """A predictor of the flavour."""
        return flavour.fit(fit_task())

    def test_the_section_under_test_is_accepted(self, flavour: Flavour, train: spec.Train) -> None:
        assert flavour.problems(train) == []
        assert flavour.version()

    def test_predictions_have_the_shape_of_the_task(
        self, fitted: Predictor, task: spec.Task, rows: NDArray[np.float64]
    ) -> None:
        predictions = fitted.predict(rows)
        assert predictions.dtype == np.float64
        assert np.isfinite(predictions).all()
        if task == "multiclass":
            assert predictions.shape == (len(rows), 3)
            np.testing.assert_allclose(predictions.sum(axis=1), 1, atol=1e-5)
        else:
            assert predictions.shape == (len(rows),)
        if task == "binary":
            assert ((predictions >= 0) & (predictions <= 1)).all()

    def test_it_learns_more_than_the_mean(
        self, fitted: Predictor, fit_task: Callable[[], FitTask], task: spec.Task
    ) -> None:
        work = fit_task()
        predictions = fitted.predict(work.x)
        if task == "multiclass":
            assert (predictions.argmax(axis=1) == work.y).mean() > 0.6
        else:
            assert np.corrcoef(predictions, work.y)[0, 1] > 0.6

    def test_no_rows_give_no_predictions(self, fitted: Predictor, task: spec.Task) -> None:
        none = np.empty((0, len(SCHEMA.features)))
        assert fitted.predict(none).shape == ((0, 3) if task == "multiclass" else (0,))
        assert fitted.contributions(none).shape == (0, len(SCHEMA.features))

    def test_it_says_what_it_is(self, fitted: Predictor, flavour: Flavour, task: spec.Task) -> None:
        assert (fitted.flavour, fitted.task) == (flavour.name, task)
        assert fitted.schema == SCHEMA
        assert fitted.classes == make_sample(task).classes
        assert fitted.trained_through == TRAINED_THROUGH

    def test_a_saved_model_predicts_the_same_bits(
        self,
        flavour: Flavour,
        fitted: Predictor,
        train: spec.Train,
        rows: NDArray[np.float64],
        tmp_path: Path,
    ) -> None:
        fitted.save(tmp_path)
        loaded = flavour.load(tmp_path, train.trust)
        assert np.array_equal(loaded.predict(rows), fitted.predict(rows))
        assert np.array_equal(loaded.contributions(rows), fitted.contributions(rows))
        assert loaded.trained_through == TRAINED_THROUGH
        assert (loaded.task, loaded.classes, loaded.schema) == (fitted.task, fitted.classes, fitted.schema)
        assert loaded.rounds == fitted.rounds

    def test_a_loaded_model_saves_the_same_bytes(
        self, flavour: Flavour, fitted: Predictor, train: spec.Train, tmp_path: Path
    ) -> None:
        first, second = _saved(fitted, tmp_path / "first"), tmp_path / "second"
        assert _saved(flavour.load(tmp_path / "first", train.trust), second) == first

    def test_the_same_work_gives_the_same_bytes(
        self, flavour: Flavour, fit_task: Callable[[], FitTask], tmp_path: Path
    ) -> None:
        first = _saved(flavour.fit(fit_task()), tmp_path / "first")
        assert _saved(flavour.fit(fit_task()), tmp_path / "second") == first

    def test_the_thread_count_changes_nothing(
        self, flavour: Flavour, fit_task: Callable[[], FitTask], train: spec.Train, tmp_path: Path
    ) -> None:
        saved = [
            _saved(
                flavour.fit(replace(fit_task(), train=train.model_copy(update={"threads": threads}))),
                tmp_path / str(threads),
            )
            for threads in (1, 2, 4)
        ]
        assert saved[0] == saved[1] == saved[2]

    def test_a_row_alone_gets_what_it_gets_in_a_batch(
        self, fitted: Predictor, rows: NDArray[np.float64], row_tolerance: float
    ) -> None:
        batch = fitted.predict(rows)
        alone = np.concatenate([fitted.predict(rows[i : i + 1]) for i in range(20)])
        np.testing.assert_allclose(alone, batch[:20], rtol=0, atol=row_tolerance)

    def test_a_level_never_seen_counts_as_missing(self, fitted: Predictor, rows: NDArray[np.float64]) -> None:
        unseen = SCHEMA.encode({"wind": [9.0], "hour": [7], "holiday": [False], "origin": ["BOS"]})
        missing = SCHEMA.encode({"wind": [9.0], "hour": [7], "holiday": [False], "origin": [None]})
        assert np.array_equal(fitted.predict(unseen), fitted.predict(missing))

    def test_all_values_may_be_missing(self, fitted: Predictor) -> None:
        assert np.isfinite(fitted.predict(np.full((2, len(SCHEMA.features)), np.nan))).all()

    def test_classes_keep_their_order(
        self, fitted: Predictor, fit_task: Callable[[], FitTask], task: spec.Task
    ) -> None:
        if task == "regression":
            assert fitted.classes == ()
            return
        work = fit_task()
        predictions = fitted.predict(work.x)
        shares = predictions if task == "multiclass" else np.column_stack([1 - predictions, predictions])
        for position in range(len(work.classes)):
            own = work.y == position
            assert shares[own, position].mean() > shares[~own, position].mean()

    def test_contributions_have_a_column_for_each_feature(
        self, fitted: Predictor, rows: NDArray[np.float64], task: spec.Task
    ) -> None:
        shares = fitted.contributions(rows)
        assert shares.shape == rows.shape
        assert np.isfinite(shares).all()
        assert np.abs(shares[:, 0]).mean() > np.abs(shares[:, 2]).mean()
        if task == "multiclass":
            assert (shares >= 0).all()

    def test_predicting_leaves_the_rows_as_they_are(
        self, fitted: Predictor, rows: NDArray[np.float64]
    ) -> None:
        before = rows.copy()
        fitted.predict(rows)
        fitted.contributions(rows)
        assert np.array_equal(rows, before, equal_nan=True)

    def test_a_manifest_of_a_newer_format_is_refused(
        self, flavour: Flavour, fitted: Predictor, train: spec.Train, tmp_path: Path
    ) -> None:
        fitted.save(tmp_path)
        path = tmp_path / MANIFEST
        assert json.loads(path.read_text())["format"] == 1
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
        with pytest.raises(UserError, match="format 2"):
            flavour.load(tmp_path, train.trust)

    def test_half_a_model_is_refused(
        self, flavour: Flavour, fitted: Predictor, train: spec.Train, tmp_path: Path
    ) -> None:
        fitted.save(tmp_path)
        for file in tmp_path.iterdir():
            if file.name != MANIFEST:
                file.unlink()
        assert read_manifest(tmp_path).flavour == flavour.name
        with pytest.raises(UserError):
            flavour.load(tmp_path, train.trust)


def _ignore(_round: int, _metrics: Mapping[str, float]) -> None:
    return None


def _saved(predictor: Predictor, folder: Path) -> dict[str, bytes]:
    """Each file that a predictor saves, by name."""
    folder.mkdir()
    predictor.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}
