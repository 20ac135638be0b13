"""What each flavour learns in training, and how a loop's own go wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from train_loops import dataset_rows, flight_rows, make_context, make_loop, put_features, trained
from treadle.errors import HookError, SpecError, UserError
from treadle.models import load_candidate
from treadle.stages.train import train
from treadle.store import LocalStore

LINEAR = """\
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def classifier(C=1.0):
    return make_pipeline(columns(), LogisticRegression(C=C))


def regressor(alpha=1.0):
    return make_pipeline(columns(), Ridge(alpha=alpha))


def columns():
    return make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )
"""


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_several_classes_are_learned_by_both_flavours(store, tmp_path, name):
    table, columns, classes = dataset_rows(name)
    span = {"holdout": "6h"}
    as_of = table["event_time"].to_pylist()[-1]
    for own in (
        {"rounds": 20, "params": {"max_depth": 3}},
        {"flavour": "estimator", "hook": "hooks:classifier"},
    ):
        loop = make_loop(
            tmp_path / own.get("flavour", "xgboost"), hooks=LINEAR, data=span, task="multiclass", **own
        )
        _, candidate = trained(loop, store, tmp_path, table, columns, as_of)
        assert list(candidate.classes) == classes
        predictor = load_candidate(store, candidate)
        held_out = table.slice(candidate.rows)
        predictions = predictor.predict(predictor.schema.encode(held_out))
        right = np.array(classes)[predictions.argmax(axis=1)] == np.array(held_out["label"].to_pylist())
        assert predictions.shape == (held_out.num_rows, len(classes))
        assert right.mean() > 0.8
        assert candidate.metrics["train_accuracy"] > 0.9


def test_a_number_is_learned_by_both_flavours(store, tmp_path):
    table, columns, _ = dataset_rows("diabetes")
    as_of = table["event_time"].to_pylist()[-1]
    for own in (
        {"rounds": 40, "params": {"max_depth": 2, "learning_rate": 0.1}},
        {"flavour": "estimator", "hook": "hooks:regressor", "params": {"alpha": 2.0}},
    ):
        loop = make_loop(
            tmp_path / own.get("flavour", "xgboost"),
            hooks=LINEAR,
            data={"holdout": "2d"},
            task="regression",
            **own,
        )
        _, candidate = trained(loop, store, tmp_path, table, columns, as_of)
        assert candidate.classes == ()
        predictor = load_candidate(store, candidate)
        held_out = table.slice(candidate.rows)
        predictions = predictor.predict(predictor.schema.encode(held_out))
        assert np.corrcoef(predictions, held_out["label"].to_numpy())[0, 1] > 0.5
        assert candidate.metrics["train_r2"] > 0.4


def test_the_estimator_takes_categories_and_missing_values(store, tmp_path):
    loop = make_loop(
        tmp_path / "loop", hooks=LINEAR, flavour="estimator", hook="hooks:classifier", params={"C": 0.5}
    )
    _, candidate = trained(loop, store, tmp_path)
    assert set(candidate.blobs) >= {"model/model.skops", "loop/files/hooks.py"}
    assert candidate.key["library"].keys() >= {"estimator", "scikit-learn"}
    assert candidate.metrics["train_roc_auc"] > 0.7
    assert load_candidate(store, candidate).predict(np.full((1, 3), np.nan)).shape == (1,)


OWN_CLASS = """\
from shared import Half
def model():
    return Half()
"""
SHARED = """\
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
class Half(ClassifierMixin, BaseEstimator):
    def fit(self, frame, labels):
        self.classes_ = np.array([0, 1]); self.mean_ = labels.mean(); return self
    def predict_proba(self, frame):
        return np.tile([1 - self.mean_, self.mean_], (len(frame), 1))
"""


def test_a_class_of_the_loops_own_needs_trust_and_is_loaded_from_the_candidates_files(store, tmp_path):
    settings = {"flavour": "estimator", "hook": "hooks:model"}
    folder = tmp_path / "loop"
    loop = make_loop(folder, hooks=OWN_CLASS, **settings)
    (folder / "shared.py").write_text(SHARED)
    with pytest.raises(UserError, match=r"shared.Half.*trust: pickle"):
        trained(loop, store, tmp_path)
    _, candidate = trained(make_loop(folder, hooks=OWN_CLASS, trust="pickle", **settings), store, tmp_path)
    (folder / "shared.py").write_text("raise RuntimeError('today it is broken')")
    assert set(candidate.blobs) >= {"model/model.pkl", "loop/files/hooks.py", "loop/files/shared.py"}
    with pytest.raises(UserError, match="executes code"):
        load_candidate(store, candidate)
    assert 0 < load_candidate(store, candidate, trust="pickle").predict(np.zeros((1, 3)))[0] < 1


OWN_FLAVOUR = """\
from dataclasses import dataclass
from treadle.models.predictor import read_manifest, write_manifest
import numpy as np

@dataclass(frozen=True)
class Mean:
    task: str; schema: object; classes: tuple; trained_through: object; mean: float
    flavour: str = "hooks:Means"
    rounds: None = None
    def predict(self, x): return np.full(len(x), self.mean)
    def contributions(self, x): return np.zeros_like(x)
    def save(self, folder): write_manifest(folder, self, {"mean": self.mean})

class Means:
    name = "hooks:Means"
    def version(self): return "1"
    def problems(self, train): return [f"params.{name}: means take none." for name in train.params]
    def fit(self, task):
        if task.train.seed == 13: raise RuntimeError("unlucky")
        return Mean(task.train.task, task.schema, task.classes, task.trained_through, float(task.y.mean()))
    def load(self, folder, trust):
        m = read_manifest(folder)
        return Mean(m.task, m.schema, m.classes, m.trained_through, m.extra["mean"])
"""


def test_a_flavour_of_the_loops_own_goes_round_and_fails_in_its_own_words(store, tmp_path):
    loop = make_loop(tmp_path / "loop", hooks=OWN_FLAVOUR, flavour="hooks:Means")
    _, candidate = trained(loop, store, tmp_path)
    assert candidate.key["library"]["numpy"] == np.__version__
    assert 0 < load_candidate(store, candidate).predict(np.zeros((1, 3)))[0] < 1
    with pytest.raises(SpecError, match=r"train.params.x: means take none"):
        trained(make_loop(tmp_path / "loop", flavour="hooks:Means", params={"x": 1}), store, tmp_path)
    with pytest.raises(HookError, match="unlucky"):
        trained(make_loop(tmp_path / "loop", flavour="hooks:Means", seed=13), store, tmp_path)


def test_a_mistyped_parameter_is_refused_before_any_row_is_read(store, tmp_path):
    loop = make_loop(tmp_path / "loop", params={"max_dpeth": 3})
    features = put_features(store, flight_rows())
    lost = replace(make_context(loop, store, tmp_path / "scratch"), store=LocalStore(tmp_path / "empty"))
    with pytest.raises(SpecError, match=r"train.params.max_dpeth: .*did you mean 'max_depth'"):
        train(lost, features)
