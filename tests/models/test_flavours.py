"""Both flavours keep the promises of the conformance suite."""

from __future__ import annotations

import numpy as np
import pytest
from treadle import spec
from treadle.models.estimator import EstimatorFlavour
from treadle.models.xgboost.flavour import XGBoostFlavour
from treadle.testing.flavour import FlavourSuite


class TestXGBoost(FlavourSuite):
    @pytest.fixture
    def flavour(self):
        return XGBoostFlavour()

    @pytest.fixture
    def train(self, task):
        return spec.Train(task=task, params={"max_depth": 3, "subsample": 0.8}, rounds=20, checkpoint_every=7)


def linear(task):
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include="category")),
        remainder=make_pipeline(SimpleImputer(), StandardScaler()),
    )
    return lambda C=1.0: make_pipeline(
        columns, Ridge(alpha=1 / C) if task == "regression" else LogisticRegression(C=C)
    )


class TestLinearEstimator(FlavourSuite):
    @pytest.fixture
    def flavour(self):
        return EstimatorFlavour()

    @pytest.fixture
    def train(self, task):
        return spec.Train(task=task, flavour="estimator", hook="hooks:linear", params={"C": 0.5})

    @pytest.fixture
    def hook(self, task):
        return linear(task)

    @pytest.fixture
    def row_tolerance(self):
        return 1e-12  # BLAS sums a row in another order than a matrix


def histogram_trees(task):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return lambda **params: kind(categorical_features="from_dtype", **params)


class TestHistogramTreesEstimator(FlavourSuite):
    @pytest.fixture(params=["multiclass", "regression"])
    def task(self, request):
        return request.param

    @pytest.fixture
    def flavour(self):
        return EstimatorFlavour()

    @pytest.fixture
    def train(self, task):
        return spec.Train(task=task, flavour="estimator", hook="hooks:trees", params={"max_iter": 5})

    @pytest.fixture
    def hook(self, task):
        return histogram_trees(task)


def forest(task):
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    return lambda **params: make_pipeline(FunctionTransformer(codes), kind(**params))


def codes(frame):
    return frame.assign(origin=frame["origin"].cat.codes.replace(-1, np.nan))


class TestPickledEstimator(FlavourSuite):
    """A forest behind a function of the loop's own, which only a pickle can hold."""

    @pytest.fixture(params=["binary"])
    def task(self, request):
        return request.param

    @pytest.fixture
    def flavour(self):
        return EstimatorFlavour()

    @pytest.fixture
    def train(self, task):
        return spec.Train(
            task=task, flavour="estimator", hook="hooks:forest", trust="pickle", params={"n_estimators": 10}
        )

    @pytest.fixture
    def hook(self, task):
        return forest(task)
