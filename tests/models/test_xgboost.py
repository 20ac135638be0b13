from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from treadle import spec
from treadle.errors import DataRefused, UserError
from treadle.models import get_flavour, load_predictor
from treadle.models.predictor import FitTask, MemoryCheckpoints
from treadle.models.xgboost.flavour import XGBoostFlavour
from treadle.testing.flavour import SCHEMA, TRAINED_THROUGH, make_sample

MANIFEST_1 = (
    '{"classes":["0","1"],"extra":{},"flavour":"xgboost","format":1,"rounds":5,"schema":['
    '{"categories":[],"kind":"number","name":"wind"},{"categories":[],"kind":"number","name":"hour"},'
    '{"categories":[],"kind":"boolean","name":"holiday"},'
    '{"categories":["EWR","JFK","LGA"],"kind":"category","name":"origin"}],'
    '"task":"binary","trained_through":"2013-03-18T00:00:00Z"}'
)


def work(task="binary", valid=False, checkpoints=None, report=None, **train):
    sample = make_sample(task)
    cut = 300 if valid else len(sample.x)
    return FitTask(
        train=spec.Train(task=task, **train),
        schema=SCHEMA,
        x=sample.x[:cut],
        y=sample.y[:cut],
        times_us=np.zeros(cut, dtype=np.int64),
        x_valid=sample.x[cut:] if valid else None,
        y_valid=sample.y[cut:] if valid else None,
        classes=sample.classes,
        trained_through=TRAINED_THROUGH,
        checkpoints=checkpoints or MemoryCheckpoints(),
        report=report or (lambda number, metrics: None),
    )


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (
            {"params": {"max_dpeth": 3}},
            "params.max_dpeth: xgboost has no such parameter; did you mean 'max_depth'?",
        ),
        ({"params": {"max_depth": 3.5}}, "params.max_depth: must be a whole number at least 0, not 3.5"),
        ({"params": {"subsample": 0}}, "params.subsample: must be a number above 0 and at most 1, not 0"),
        ({"params": {"learning_rate": True}}, "params.learning_rate: must be a number at least 0, not True"),
        ({"params": {"grow_policy": "deep"}}, "params.grow_policy: must be one of depthwise, lossguide"),
        ({"params": {"seed": 3}}, "params.seed: is not for the loop to set: it is train.seed"),
        ({"params": {"nthread": 3}}, "params.nthread: is not for the loop to set: it is train.threads"),
        ({"params": {"eta": 0.1, "learning_rate": 0.1}}, "params.learning_rate: is the same as eta"),
        ({"params": {"objective": "reg:gamma"}}, "params.objective: 'reg:gamma' is not for the task binary"),
        ({"params": {"rate_drop": 0.1}}, "params.rate_drop: only counts with booster: dart"),
        ({"params": {"booster": "dart"}, "early_stopping": {}}, "early_stopping: dart changes earlier trees"),
        ({"params": {"monotone_constraints": [1, 0]}}, "params.monotone_constraints: must be a mapping"),
        ({"hook": "hooks:model"}, "hook: xgboost takes no hook"),
        ({"seed": -1}, "seed: xgboost takes no negative seed"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_xgboost_would_not_take_is_named(train, words):
    problems = XGBoostFlavour().problems(spec.Train(**train))
    assert len(problems) == 1
    assert problems[0].startswith(words)


def test_every_known_parameter_is_one_that_xgboost_takes():
    values = {
        **dict.fromkeys(["alpha", "reg_alpha", "reg_lambda", "lambda", "gamma", "min_split_loss"], 0.1),
        **dict.fromkeys(["colsample_bylevel", "colsample_bynode", "colsample_bytree", "subsample"], 0.9),
        **{"eta": 0.2, "learning_rate": 0.2, "base_score": 0.4, "max_delta_step": 1, "scale_pos_weight": 2.0},
        **{"grow_policy": "lossguide", "max_bin": 64, "max_cat_threshold": 8, "max_cat_to_onehot": 2},
        **{"max_depth": 3, "max_leaves": 7, "min_child_weight": 2, "num_parallel_tree": 2},
        **{"monotone_constraints": {"wind": 1}, "interaction_constraints": [["wind", "hour"], ["origin"]]},
        **{"objective": "binary:logistic", "booster": "gbtree"},
    }
    for name, value in values.items():
        train = {"params": {name: value}, "rounds": 2}
        assert XGBoostFlavour().problems(spec.Train(**train)) == []
        XGBoostFlavour().fit(work(**train))
    for name, value in {"huber_slope": 2.0, "tweedie_variance_power": 1.2}.items():
        objective = "reg:pseudohubererror" if name == "huber_slope" else "reg:squarederror"
        XGBoostFlavour().fit(work("regression", params={name: value, "objective": objective}, rounds=2))
    dart = {"booster": "dart", "rate_drop": 0.3, "skip_drop": 0.1, "one_drop": 1, "sample_type": "weighted"}
    dart["normalize_type"] = "forest"
    assert XGBoostFlavour().problems(spec.Train(params=dart)) == []
    XGBoostFlavour().fit(work(params=dart, rounds=3))


def test_constraints_hold_for_the_features_they_name():
    free = XGBoostFlavour().fit(work("regression", rounds=60, params={"max_depth": 6}))
    bound = XGBoostFlavour().fit(
        work("regression", rounds=60, params={"max_depth": 6, "monotone_constraints": {"hour": -1}})
    )
    rows = np.column_stack([np.full(24, 10.0), np.arange(24.0), np.zeros(24), np.ones(24)])
    assert (np.diff(free.predict(rows)) > 0).any()
    assert (np.diff(bound.predict(rows)) <= 0).all()
    with pytest.raises(UserError, match="constrains wnid; the features are: wind, hour"):
        XGBoostFlavour().fit(work(params={"monotone_constraints": {"wnid": 1}}))


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_a_fit_from_any_checkpoint_ends_in_the_same_bytes(booster):
    train = {"params": {"subsample": 0.7, "booster": booster}, "rounds": 20, "checkpoint_every": 6}
    kept = MemoryCheckpoints()
    whole = XGBoostFlavour().fit(work(**train, checkpoints=kept))
    assert sorted(kept.kept) == [6, 12, 18, 20]
    for rounds in (6, 18, 20):
        reported = []
        resumed = XGBoostFlavour().fit(
            work(
                **train,
                checkpoints=MemoryCheckpoints({rounds: kept.kept[rounds]}),
                report=lambda number, metrics, seen=reported: seen.append(number),
            )
        )
        assert resumed.raw == whole.raw
        assert reported == list(range(20))


def test_sampling_in_stretches_differs_from_stretch_to_stretch():
    one = XGBoostFlavour().fit(work(params={"subsample": 0.5}, rounds=12, checkpoint_every=6))
    other = XGBoostFlavour().fit(work(params={"subsample": 0.5}, rounds=12, checkpoint_every=12))
    plain = [XGBoostFlavour().fit(work(rounds=12, checkpoint_every=every)).raw for every in (6, 12)]
    assert one.raw != other.raw
    assert plain[0] == plain[1]


def test_early_stopping_returns_to_the_first_best_round():
    losses = []
    predictor = XGBoostFlavour().fit(
        work(
            valid=True,
            rounds=200,
            checkpoint_every=13,
            params={"learning_rate": 0.5},
            early_stopping={"rounds": 7},
            report=lambda number, metrics: losses.append(metrics["valid_log_loss"]),
        )
    )
    best = losses.index(min(losses))
    assert predictor.rounds == best + 1
    assert len(losses) == best + 1 + 7


def test_a_checkpoint_of_another_format_is_not_guessed_at():
    with pytest.raises(UserError, match="another treadle"):
        XGBoostFlavour().fit(work(checkpoints=MemoryCheckpoints({5: b"{}"})))


def test_names_that_xgboost_refuses_do_no_harm(tmp_path):
    schema = replace(
        SCHEMA, features=(replace(SCHEMA.features[0], name="wind [m/s] <x>"), *SCHEMA.features[1:])
    )
    predictor = XGBoostFlavour().fit(replace(work(rounds=3), schema=schema))
    predictor.save(tmp_path)
    assert load_predictor(tmp_path).schema == schema
    assert predictor.contributions(make_sample("binary").x[:4]).shape == (4, 4)


def test_a_manifest_of_format_1_is_read(tmp_path):
    predictor = XGBoostFlavour().fit(work(rounds=5))
    predictor.save(tmp_path)
    assert (tmp_path / "predictor.json").read_text() == MANIFEST_1 + "\n"
    (tmp_path / "predictor.json").write_text(MANIFEST_1)
    x = make_sample("binary").x
    assert np.array_equal(load_predictor(tmp_path).predict(x), predictor.predict(x))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "schema": 3}'])
def test_a_damaged_manifest_is_refused_in_words(tmp_path, text):
    (tmp_path / "predictor.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        load_predictor(tmp_path)


def test_a_damaged_model_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no model of treadle"):
        load_predictor(tmp_path)
    XGBoostFlavour().fit(work(rounds=2)).save(tmp_path)
    (tmp_path / "model.ubj").write_bytes(b"\x00\x01")
    with pytest.raises(UserError, match="no model that this xgboost reads"):
        load_predictor(tmp_path)


def test_an_unknown_flavour_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no flavour 'xgbost'.*Did you mean 'xgboost'\?"):
        get_flavour("xgbost")


def test_contributions_and_bias_add_up_to_the_margin():
    predictor = XGBoostFlavour().fit(work(rounds=10))
    x = make_sample("binary").x[:50]
    margin = np.log(predictor.predict(x) / (1 - predictor.predict(x)))
    rest = margin - predictor.contributions(x).sum(axis=1)
    assert np.ptp(rest) < 1e-4


def test_contributions_of_an_infinite_number_are_refused_by_column_and_row():
    predictor = XGBoostFlavour().fit(work(rounds=3))
    x = make_sample("binary").x[:4].copy()
    x[2, 1] = np.inf
    with pytest.raises(DataRefused, match=r"infinite(?s:.)*hour: inf in row 3"):
        predictor.contributions(x)
