from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from treadle import spec
from treadle.errors import UserError
from treadle.models import skops_file
from treadle.models.estimator import EstimatorFlavour, to_frame
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.schema import Feature, InputSchema
from treadle.testing.flavour import SCHEMA, TRAINED_THROUGH, make_sample

NUMBERS = InputSchema((Feature("a", "number"), Feature("b", "number")))


def fit(hook, task="regression", schema=NUMBERS, x=None, y=None, classes=(), **train):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 2)) if x is None else x
    y = x @ [2.0, -1.0] + 3 if y is None else y
    settings = spec.Train(flavour="estimator", hook="hooks:model", task=task, **train)
    return EstimatorFlavour().fit(
        FitTask(
            train=settings,
            schema=schema,
            x=x,
            y=y,
            times_us=np.zeros(len(x), dtype=np.int64),
            x_valid=None,
            y_valid=None,
            classes=classes,
            trained_through=TRAINED_THROUGH,
            checkpoints=MemoryCheckpoints(),
            report=lambda number, metrics: None,
            hook=hook,
        )
    )


def test_the_frame_holds_levels_missing_values_and_names():
    frame = to_frame(
        SCHEMA,
        SCHEMA.encode({"wind": [1.0, None], "hour": [3, 4], "holiday": [True, None], "origin": ["JFK", "?"]}),
    )
    assert list(frame.columns) == ["wind", "hour", "holiday", "origin"]
    assert list(frame["origin"].cat.categories) == ["EWR", "JFK", "LGA"]
    assert frame["origin"].astype(object).where(frame["origin"].notna(), None).tolist() == ["JFK", None]
    assert np.array_equal(frame["holiday"].to_numpy(), [1.0, np.nan], equal_nan=True)


def test_contributions_of_a_linear_model_are_coefficient_times_deviation():
    from sklearn.linear_model import LinearRegression

    generator = np.random.default_rng(1)
    x = generator.normal(5, 2, size=(100, 2))
    predictor = fit(LinearRegression, x=x)
    wanted = (x - x.mean(axis=0)) * [2.0, -1.0]
    np.testing.assert_allclose(predictor.contributions(x), wanted, atol=1e-9)


def test_log_odds_contributions_of_a_logistic_model_are_coefficient_times_deviation():
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(1).normal(size=(300, 2))
    predictor = fit(LogisticRegression, "binary", x=x, y=(x[:, 0] > 0).astype(float), classes=("0", "1"))
    wanted = (x - x.mean(axis=0)) * predictor.estimator.coef_[0]
    np.testing.assert_allclose(predictor.contributions(x), wanted, atol=1e-6)


def test_a_class_that_the_rows_lack_gets_no_probability():
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(1).normal(size=(100, 2))
    y = np.where(x[:, 0] > 0, 2.0, 0.0)
    predictions = fit(LogisticRegression, "multiclass", x=x, y=y, classes=("a", "b", "c")).predict(x)
    assert (predictions[:, 1] == 0).all()
    np.testing.assert_allclose(predictions.sum(axis=1), 1)


def test_the_seed_goes_to_every_random_state_that_is_open():
    from sklearn.ensemble import BaggingRegressor
    from sklearn.tree import DecisionTreeRegressor

    def hook(state):
        return BaggingRegressor(DecisionTreeRegressor(random_state=state), n_estimators=2)

    predictor = fit(hook, params={"state": 5}, seed=11)
    assert predictor.estimator.random_state == 11
    assert predictor.estimator.estimator.random_state == 5
    assert fit(hook, params={"state": None}, seed=11).estimator.estimator.random_state == 11


def test_wrong_sections_are_named():
    problems = EstimatorFlavour().problems(
        spec.Train(flavour="estimator", early_stopping={}, rounds=50, params={"n estimators": 5})
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "hook",
        "early_stopping",
        "rounds",
        "params.n estimators",
    ]


def test_an_estimator_without_probabilities_is_refused_before_fitting():
    from sklearn.svm import LinearSVC

    with pytest.raises(UserError, match="LinearSVC, which has no predict_proba"):
        fit(LinearSVC, "binary", classes=("0", "1"))


def test_rows_that_it_refuses_are_an_error_in_words(tmp_path):
    from sklearn.linear_model import LinearRegression

    holed = np.full((60, 2), np.nan)
    with pytest.raises(UserError, match=r"can't learn from these rows.*NaN"):
        fit(LinearRegression, x=holed, y=np.zeros(60))
    with pytest.raises(UserError, match=r"can't predict these rows.*NaN"):
        fit(LinearRegression).predict(holed)


class Touch:
    def __reduce__(self):
        return (open, ("touched", "w"))


def test_loading_without_trust_executes_nothing(tmp_path, monkeypatch):
    from sklearn.linear_model import LinearRegression

    monkeypatch.chdir(tmp_path)
    fit(LinearRegression).save(tmp_path)
    (tmp_path / "model.skops").unlink()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(UserError, match="executes code"):
        EstimatorFlavour().load(tmp_path, "none")
    assert not (tmp_path / "touched").exists()


def forge(data: bytes, change) -> bytes:
    """A skops file with a changed schema."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "schema.json":
                content = change(json.loads(content))
            new.writestr(name, content)
    return out.getvalue()


def test_a_forged_file_that_names_a_function_is_refused(tmp_path):
    from sklearn.linear_model import LinearRegression

    data = skops_file.dump(LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]))
    forged = forge(data, lambda schema: json.dumps({**schema, "__class__": "system", "__module__": "os"}))
    with pytest.raises(UserError, match=r"os\.system"):
        skops_file.load(forged)
    with pytest.raises(UserError, match="damaged"):
        skops_file.load(data[:100])


def test_a_tree_that_leads_out_of_itself_is_refused():
    from sklearn.ensemble import HistGradientBoostingRegressor

    sample = make_sample("regression")
    model = HistGradientBoostingRegressor(max_iter=3).fit(sample.x, sample.y)
    loaded = skops_file.load(skops_file.dump(model))
    assert np.array_equal(loaded.predict(sample.x), model.predict(sample.x))
    for field, value in (("left", 10**6), ("right", 0), ("feature_idx", 99)):
        broken = skops_file.load(skops_file.dump(model))
        broken._predictors[1][0].nodes[field][0] = value
        with pytest.raises(UserError, match="leads nowhere"):
            skops_file.load(skops_file.dump(broken))


@pytest.mark.parametrize("field", ["left_child", "right_child", "feature", "columns"])
def test_a_forest_that_leads_out_of_itself_is_refused(field):
    from sklearn.ensemble import RandomForestRegressor

    sample = make_sample("regression")
    model = RandomForestRegressor(3, random_state=0).fit(np.nan_to_num(sample.x), sample.y)
    loaded = skops_file.load(skops_file.dump(model))
    assert np.array_equal(loaded.predict(np.nan_to_num(sample.x)), model.predict(np.nan_to_num(sample.x)))
    if field == "columns":
        loaded.n_features_in_ = 2
    else:
        tree = loaded.estimators_[1].tree_
        state = tree.__getstate__()
        state["nodes"][field][0] = 10**6
        tree.__setstate__(state)
    with pytest.raises(UserError, match="leads nowhere"):
        skops_file.load(skops_file.dump(loaded))


def test_gradient_boosting_and_stacks_behind_encoders_go_round():
    from sklearn.ensemble import BaggingRegressor, GradientBoostingRegressor, StackingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    x = np.random.default_rng(0).normal(size=(80, 2))
    wide = make_pipeline(PolynomialFeatures(3), GradientBoostingRegressor(n_estimators=5))
    predictor = fit(
        lambda: StackingRegressor([("a", wide), ("b", BaggingRegressor(wide, 2))], Ridge(), cv=2),
        x=x,
        y=x[:, 0],
    )
    loaded = skops_file.load(predictor.raw)
    assert np.array_equal(loaded.predict(to_frame(NUMBERS, x)), predictor.predict(x))
