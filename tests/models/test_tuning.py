"""The search for params: what it finds, that a killed one ends the same, and what it refuses."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import treadle
import yaml
from treadle import spec
from treadle.errors import HookError, SpecError, UserError
from treadle.models.tuning.search import KeptTrials
from treadle.preemption import Preempted
from treadle.store import fetch_blob
from wheel import FIRST, Wheel, copy_of

TUNE = {
    "trials": 6,
    "space": {
        "max_depth": {"low": 2, "high": 5, "int": True},
        "learning_rate": {"low": 0.01, "high": 0.5, "log": True},
        "grow_policy": ["depthwise", "lossguide"],
    },
}


def tuned(wheel: Wheel, tune: dict[str, Any] = TUNE, **train: Any) -> Wheel:
    """The wheel with a search in its loop, few rounds, and other fields of `train`."""
    content = yaml.safe_load(wheel.path.read_text())
    content["train"] = {
        "rounds": 8,
        "checkpoint_every": 4,
        "params": {"subsample": 0.8},
        "tune": tune,
        **train,
    }
    wheel.path.write_text(yaml.safe_dump(content, sort_keys=False))
    return wheel


def trials_of(wheel: Wheel, candidate: Any) -> list[dict[str, Any]]:
    store = wheel.session(FIRST).store
    return json.loads(fetch_blob(store, candidate.blobs["trials.json"]).read_bytes())


def model_of(candidate: Any) -> dict[str, str]:
    return {name: sha for name, sha in candidate.blobs.items() if name.startswith("model/")}


def test_the_best_trial_s_params_make_the_model(wheel: Wheel) -> None:
    lines: list[str] = []
    candidate = tuned(wheel).run(FIRST, to="train", say=lines.append).train
    told, trials = candidate.notes["search"], trials_of(wheel, candidate)
    assert [trial["number"] for trial in trials] == [1, 2, 3, 4, 5, 6]
    best = min(trials, key=lambda trial: trial["loss"])
    assert told == {
        "trials": 6,
        "failed": 0,
        "best": best["number"],
        "loss": "log_loss",
        "best_loss": best["loss"],
        "params": best["params"],
    }
    assert candidate.metrics["search_log_loss"] == best["loss"]
    assert all(2 <= trial["params"]["max_depth"] <= 5 for trial in trials)
    assert len({json.dumps(trial["params"]) for trial in trials}) == 6
    shown = [line.partition(":")[2].split()[:4] for line in lines if line.startswith("train: trial ")]
    assert shown == [["trial", str(number), "of", "6:"] for number in range(1, 7)]
    tuned(wheel, params={"subsample": 0.8, **best["params"]}, tune=None)
    plain = wheel.run(FIRST, to="train").train
    assert model_of(plain) == model_of(candidate)
    assert plain.id != candidate.id


def test_trials_are_judged_on_the_newest_rows_before_the_holdout(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.models.tuning import search as tuning

    seen = []

    def watched(judge: Any, *rest: Any) -> Any:
        seen.append(judge)
        return real(judge, *rest)

    real = tuning.Judge.attempt
    monkeypatch.setattr(tuning.Judge, "attempt", watched)
    one = {**TUNE, "trials": 1}
    candidate = tuned(wheel, {**one, "newest": "5d"}).run(FIRST, to="train").train
    tuned(wheel, one, early_stopping={"rounds": 3, "newest": "9d"}).run(FIRST, to="train")
    for judge, newest in zip(seen, (5, 9), strict=True):
        since = np.datetime64((candidate.trained_through - timedelta(days=newest)).replace(tzinfo=None), "us")
        assert judge.task.times_us.max() < since.astype(np.int64)
        assert len(judge.x_newest) == newest * 40  # the orders of a day
        assert judge.task.trained_through == candidate.trained_through
    assert seen[0].task.x_valid is None
    assert len(seen[1].task.x_valid) == 9 * 40


def test_a_search_that_is_ended_goes_on_from_its_trials(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = copy_of(tuned(wheel), tmp_path / "cut")
    whole = wheel.run(FIRST, to="train").train
    put, made = KeptTrials.put, []

    def ended(kept: KeptTrials, trial: Any) -> None:
        put(kept, trial)
        made.append(trial.number)
        if len(made) == 4:
            raise Preempted

    with monkeypatch.context() as patch:
        patch.setattr(KeptTrials, "put", ended)
        with pytest.raises(Preempted):
            cut.run(FIRST, to="train")
        patch.setattr(KeptTrials, "put", lambda kept, trial: (made.append(trial.number), put(kept, trial)))
        resumed = cut.run(FIRST, to="train").train
    assert made == [1, 2, 3, 4, 5, 6]
    assert (resumed.id, resumed.digest, resumed.blobs) == (whole.id, whole.digest, whole.blobs)
    assert resumed.notes["search"] == whole.notes["search"]
    assert not list((cut.store / "checkpoints").rglob("*.json"))


def test_a_damaged_trial_is_made_again(wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = copy_of(tuned(wheel), tmp_path / "cut")
    whole = wheel.run(FIRST, to="train").train
    with monkeypatch.context() as patch:
        patch.setattr("treadle.stages.train._reference", lambda *_: (_ for _ in ()).throw(Preempted))
        with pytest.raises(Preempted):
            cut.run(FIRST, to="train")
    kept = sorted((cut.store / "checkpoints" / whole.id).glob("trial-*.json"))
    assert len(kept) == 6
    kept[2].write_text("{")
    resumed = cut.run(FIRST, to="train").train
    assert resumed.blobs == whole.blobs


def test_trials_that_the_library_refuses_are_named_and_passed_over(wheel: Wheel) -> None:
    # A base score outside of (0, 1) is none for log loss; xgboost says so when it trains.
    space = {"base_score": [0.3, 0.5, 7.0], "max_depth": [2, 3]}
    candidate = tuned(wheel, {"trials": 8, "space": space}).run(FIRST, to="train").train
    trials = trials_of(wheel, candidate)
    failed = [trial for trial in trials if trial["loss"] is None]
    assert failed
    assert {trial["params"]["base_score"] for trial in failed} == {7.0}
    assert all("base_score" in trial["problem"] for trial in failed)
    assert candidate.notes["search"]["failed"] == len(failed)
    assert candidate.notes["search"]["params"]["base_score"] != 7.0


def test_a_search_without_any_good_trial_fails_with_the_reason(wheel: Wheel) -> None:
    tuned(wheel, {"trials": 2, "space": {"base_score": [7.0, 8.0]}})
    with pytest.raises(UserError, match=r"all 2 trials of train.tune failed, the first so: .*base_score"):
        wheel.run(FIRST, to="train")


def test_an_estimator_s_params_are_searched_too(wheel: Wheel) -> None:
    (wheel.path.parent / "hooks.py").write_text(
        "from sklearn.dummy import DummyClassifier\n\n\n"
        "def model(share):\n    return DummyClassifier(strategy='constant', constant=int(share > 0.5))\n"
    )
    content = yaml.safe_load(wheel.path.read_text())
    space = {"share": {"low": 0.0, "high": 1.0}}
    content["train"] = {"flavour": "estimator", "hook": "hooks:model", "tune": {"trials": 5, "space": space}}
    wheel.path.write_text(yaml.safe_dump(content))
    candidate = wheel.run(FIRST, to="train").train
    losses = {trial["params"]["share"] > 0.5: trial["loss"] for trial in trials_of(wheel, candidate)}
    assert losses[False] != losses[True]
    assert candidate.notes["search"]["best_loss"] == min(losses.values())


def test_a_hook_that_fails_ends_the_search(wheel: Wheel) -> None:
    (wheel.path.parent / "hooks.py").write_text("def model(share):\n    raise RuntimeError('broken hook')\n")
    content = yaml.safe_load(wheel.path.read_text())
    space = {"share": {"low": 0.0, "high": 1.0}}
    content["train"] = {"flavour": "estimator", "hook": "hooks:model", "tune": {"trials": 5, "space": space}}
    wheel.path.write_text(yaml.safe_dump(content))
    with pytest.raises(HookError, match="broken hook"):
        wheel.run(FIRST, to="train")


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ({"low": 9, "high": 3}, "low 9 must be below high 3"),
        ({"low": 3, "high": 3}, "low 3 must be below high 3"),
        ({"low": 3}, "give a list of choices, or both low and high"),
        ({"low": 0, "high": 1, "log": True}, "low 0 must be above 0, as log is true"),
        ({"low": 2.5, "high": 4, "int": True}, "must be whole numbers, as int is true"),
        ({"low": 2, "high": float("inf")}, "low and high are finite"),
        ([], "choices are two or more different values"),
        ([3], "choices are two or more different values"),
        ([3, 3], "choices are two or more different values"),
        ({"choices": [1, 2], "low": 1}, "give either choices or low and high"),
        ({"low": 1, "hihg": 2}, "Did you mean 'high'?"),
        (4, "write what is tried: a list such as [2, 4, 8], or {low: 2, high: 8}."),
        ("low", "write what is tried"),
    ],
)
def test_a_space_that_is_none_is_refused_with_its_line(wheel: Wheel, dimension: Any, words: str) -> None:
    tuned(wheel, {"space": {"subsample": [0.5, 0.9], "max_depth": dimension}}, params={})
    with pytest.raises(SpecError) as refused:
        treadle.Loop.load(wheel.path)
    (fault,) = refused.value.faults
    assert words in f"{fault.problem} {fault.fix}"
    assert fault.field.startswith("train.tune.space.max_depth")
    assert "max_depth" in wheel.path.read_text().splitlines()[fault.line - 1] or "hihg" in str(dimension)


@pytest.mark.parametrize(
    ("space", "train", "field", "words"),
    [
        ({"subsample": [0.5, 0.9]}, {}, "tune.space.subsample", "is in train.params as well"),
        ({"max_dept": [3, 4]}, {}, "tune.space.max_dept", "did you mean 'max_depth'?"),
        ({"max_depth": {"low": 2, "high": 5}}, {}, "tune.space.max_depth", "must be a whole number"),
        (
            {"colsample_bytree": {"low": 0.5, "high": 1.5}},
            {},
            "tune.space.colsample_bytree",
            "at most 1, not 1.5",
        ),
        ({"rate_drop": [0.1, 0.2]}, {}, "tune.space.rate_drop", "only counts with booster: dart"),
        ({"seed": [1, 2]}, {}, "tune.space.seed", "it is train.seed"),
        ({"eta": [0.1, 0.2]}, {"params": {"learning_rate": 0.1}}, "", "is the same as eta"),
        ({"booster": ["gbtree", "dart"]}, {"early_stopping": {}}, "tune.space", "early_stopping: dart"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_flavour_refuses_at_an_edge_is_refused(
    wheel: Wheel, space: Any, train: dict[str, Any], field: str, words: str
) -> None:
    from treadle.check import check
    from treadle.stages.train import accepted_flavour

    loop = treadle.Loop.load(tuned(wheel, {"space": space}, **train).path)
    with pytest.raises(SpecError) as refused:
        accepted_flavour(loop)
    (fault,) = refused.value.faults
    assert words in str(fault)
    assert fault.field.startswith(f"train.{field}")
    assert fault.line > 0
    found = [finding for finding in check(wheel.path, only=["TR051"]) if finding.code == "TR051"]
    assert [(f.field, f.line) for f in found] == [(fault.field, fault.line)]
    assert words in found[0].evidence


def test_all_that_is_wrong_with_a_search_is_told_at_once(wheel: Wheel) -> None:
    from treadle.check import check

    space = {"max_depth": [2, 3], "maxx_bin": [64, 128], "booster": ["gbtree", "dart"]}
    path = tuned(wheel, {"space": space}, params={"max_depth": 3}, early_stopping={}).path
    found = [finding for finding in check(path, only=["TR051"]) if finding.code == "TR051"]
    assert {finding.field for finding in found} == {
        "train.tune.space.max_depth",
        "train.tune.space.maxx_bin",
        "train.tune.space",
    }
    assert len(found) == 3


def test_a_parameter_that_counts_beside_one_choice_is_right() -> None:
    from treadle.models.tuning.space import search_problems
    from treadle.models.xgboost.flavour import XGBoostFlavour

    space = {"booster": ["gbtree", "dart"], "rate_drop": {"low": 0.0, "high": 0.5}}
    train = spec.Train(tune=spec.Tune.model_validate({"space": space}))
    assert search_problems(train, XGBoostFlavour()) == []


def test_newest_rows_are_named_once(wheel: Wheel) -> None:
    from treadle.stages.train import accepted_flavour

    tuned(wheel, {**TUNE, "newest": "5d"}, early_stopping={"newest": "7d"})
    with pytest.raises(SpecError, match=r"train.tune.newest: the rows that judge are early_stopping.newest"):
        accepted_flavour(treadle.Loop.load(wheel.path))


def test_no_rows_to_judge_by_is_told_with_the_field(wheel: Wheel) -> None:
    tuned(wheel, {**TUNE, "newest": "1s"})
    with pytest.raises(UserError, match=r"train.tune needs rows from .* lengthen train.tune.newest"):
        wheel.run(FIRST, to="train")


@pytest.mark.parametrize("field", ["tune", "early_stopping"])
def test_newest_rows_beyond_the_data_are_told_with_the_field_and_what_would_do(
    wheel: Wheel, field: str
) -> None:
    tune = {**TUNE, "newest": "400d"} if field == "tune" else TUNE
    train = {} if field == "tune" else {"early_stopping": {"newest": "400d"}}
    path = tuned(wheel, tune, **train).path
    with pytest.raises(SpecError) as refused:
        wheel.run(FIRST, to="train")
    (fault,) = refused.value.faults
    assert fault.field == f"train.{field}.newest"
    assert "400d" in path.read_text().splitlines()[fault.line - 1]
    assert re.match(
        r"the newest 400d are kept for .*, and the [\d,]+ labelled rows span \d+ days, 2024-01-01 to 2024-0.-.*:"
        r" none of them are left to fit on, and at least 30 are needed",
        fault.problem,
    )
    days = int(re.search(r"rows span (\d+) days", fault.problem)[1])  # type: ignore[index]
    (usual,) = map(int, re.findall(r"(\d+)d\b", fault.fix))
    assert 0.15 * days < usual < 0.25 * days, "four fifths are left to learn from"
    wheel.edit("orders.yaml", "400d", f"{usual}d")
    assert wheel.run(FIRST, to="train").train


def test_the_search_enters_the_id_and_nothing_else_of_old_loops(wheel: Wheel) -> None:
    from treadle.stages import train
    from treadle.steps import key_context

    def keys(features: Any) -> dict[str, Any]:
        return train.key(key_context(wheel.session(FIRST)), features)

    features = wheel.run(FIRST, to="featurize").featurize
    assert "optuna" not in keys(features)
    tuned(wheel)
    key = keys(features)
    assert key["spec"]["train"]["tune"]["trials"] == 6
    assert key["optuna"]
