"""Losses and metrics against scikit-learn's, and the area under the ROC curve by blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from treadle.errors import UserError
from treadle.gate.auc import concordance, roc_auc
from treadle.gate.metrics import (
    HIGHER_IS_BETTER,
    LOSSES,
    METRICS,
    default_loss,
    metric,
    metric_resampled,
    names_for,
    row_losses,
)
from treadle.gate.stats import resample_weights

CLASSES = ("ash", "birch", "cedar")
ALL = [(task, name) for task in LOSSES for name in names_for(task)]


def rows(task: str, seed: int = 0, n: int = 300) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    rng = np.random.default_rng(seed)
    if task == "binary":
        labels = (rng.random(n) < 0.3).astype(float)
        return labels, np.round(np.clip(rng.random(n) * 0.6 + labels * 0.3, 0.01, 0.99), 2), ()
    if task == "multiclass":
        return np.array(CLASSES, dtype=object)[rng.integers(0, 3, n)], rng.dirichlet([1, 1, 1], n), CLASSES
    labels = rng.normal(100, 10, n)
    return labels, labels + rng.normal(0, 5, n), ()


def test_every_name_says_which_way_is_better() -> None:
    assert set(HIGHER_IS_BETTER) == {name for _, name in ALL}
    assert [default_loss(task) for task in METRICS] == ["log_loss", "log_loss", "squared_error"]


def test_binary_metrics_agree_with_sklearn() -> None:
    labels, scores, _ = rows("binary")
    expected = {
        "roc_auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "accuracy": sk.accuracy_score(labels, scores >= 0.5),
        "log_loss": sk.log_loss(labels, scores),
        "brier": sk.brier_score_loss(labels, scores),
    }
    assert {name: metric(name, "binary", labels, scores) for name in expected} == pytest.approx(expected)


def test_multiclass_metrics_agree_with_sklearn() -> None:
    labels, scores, classes = rows("multiclass")
    hot = (labels[:, None] == np.array(classes, dtype=object)).astype(float)
    expected = {
        "roc_auc": sk.roc_auc_score(list(labels), scores, multi_class="ovr"),
        "accuracy": sk.accuracy_score(list(labels), np.array(classes)[scores.argmax(axis=1)]),
        "log_loss": sk.log_loss(list(labels), scores),
        "brier": ((hot - scores) ** 2).sum(axis=1).mean(),
    }
    found = {name: metric(name, "multiclass", labels, scores, classes) for name in expected}
    assert found == pytest.approx(expected)


def test_regression_metrics_agree_with_sklearn() -> None:
    labels, values, _ = rows("regression")
    expected = {
        "rmse": sk.root_mean_squared_error(labels, values),
        "mae": sk.mean_absolute_error(labels, values),
        "r2": sk.r2_score(labels, values),
        "squared_error": sk.mean_squared_error(labels, values),
        "absolute_error": sk.mean_absolute_error(labels, values),
    }
    assert {name: metric(name, "regression", labels, values) for name in expected} == pytest.approx(expected)


@given(data=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=60))
def test_the_area_by_blocks_equals_sklearns_with_ties_and_any_weights(
    data: list[tuple[bool, int, int]],
) -> None:
    positive, scores, blocks = (np.array(column) for column in zip(*data, strict=True))
    by_block = concordance(positive, scores / 5, blocks)
    assert (by_block.auc() == roc_auc(positive, scores / 5)) or np.isnan(by_block.auc())
    weights = resample_weights(len(np.unique(blocks)), 5, seed=0)
    for weight, found in zip(weights, by_block.resampled(weights), strict=True):
        drawn = weight[np.unique(blocks, return_inverse=True)[1]]
        if len(np.unique(positive[drawn > 0])) == 2:
            assert found == pytest.approx(sk.roc_auc_score(positive, scores, sample_weight=drawn))
        else:
            assert np.isnan(found)


@pytest.mark.parametrize(("task", "name"), ALL)
def test_a_resample_gives_what_the_repeated_rows_give(task: str, name: str) -> None:
    labels, predictions, classes = rows(task)
    blocks = np.random.default_rng(1).integers(0, 6, len(labels))
    weights = resample_weights(6, 4, seed=2)
    found = metric_resampled(name, task, labels, predictions, blocks, weights, classes)
    for weight, value in zip(weights, found, strict=True):
        again = np.repeat(np.arange(len(labels)), weight[blocks].astype(int))
        assert value == pytest.approx(metric(name, task, labels[again], predictions[again], classes))
    once = metric_resampled(name, task, labels, predictions, blocks, np.ones((1, 6)), classes)
    assert once[0] == pytest.approx(metric(name, task, labels, predictions, classes))


@given(st.floats(0, 1), st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_a_certain_mistake_costs_much_but_not_everything(probability: float, label: float) -> None:
    loss = row_losses("binary", "log_loss", np.array([label]), np.array([probability]))[0]
    assert 0 <= loss <= 16.2


def test_a_class_that_the_model_never_saw_had_probability_zero() -> None:
    labels = np.array(["yew", "ash"], dtype=object)
    scores = np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    losses = row_losses("multiclass", "log_loss", labels, scores, CLASSES)
    assert losses == pytest.approx([-np.log(1e-7), -np.log(0.2)])
    assert row_losses("multiclass", "brier", labels, scores, CLASSES)[0] == pytest.approx(1.38)


def test_a_metric_without_meaning_is_nan() -> None:
    ones, values = np.ones(5), np.linspace(0, 1, 5)
    assert np.isnan(metric("roc_auc", "binary", ones, values))
    assert np.isnan(metric("average_precision", "binary", ones * 0, values))
    assert np.isnan(metric("r2", "regression", ones, values))


def test_a_name_of_another_task_is_refused_with_those_that_fit() -> None:
    with pytest.raises(UserError, match=r"roc_auc.*regression.*rmse"):
        metric("roc_auc", "regression", np.ones(2), np.ones(2))
    with pytest.raises(UserError, match=r"gate.loss.*log_loss, brier"):
        row_losses("binary", "squared_error", np.ones(2), np.ones(2))
