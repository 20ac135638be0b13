"""The torch flavour: what it promises beside the suite of all flavours."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from torch_cases import Interrupted, StopAfter, net_task, saved
from treadle import spec
from treadle.errors import UserError
from treadle.models import get_flavour, load_predictor
from treadle.models.predictor import MemoryCheckpoints, Predictor
from treadle.models.torch.flavour import TorchFlavour
from treadle.models.torch.params import Settings
from treadle.testing.flavour import SCHEMA, FlavourSuite, make_sample

_fitted: dict[str, Predictor] = {}


class TestTorch(FlavourSuite):
    @pytest.fixture
    def flavour(self):
        return TorchFlavour()

    @pytest.fixture
    def train(self, task):
        params = {"batch_size": 64, "hidden": [16], "bins": 4, "learning_rate": 0.02}
        return spec.Train(task=task, flavour="torch", rounds=5, params=params)

    @pytest.fixture
    def fitted(self, flavour, fit_task, task):
        """One for each task: most tests only look at it."""
        if task not in _fitted:
            _fitted[task] = flavour.fit(fit_task())
        return _fitted[task]

    @pytest.fixture
    def row_tolerance(self):
        return 1e-6  # a product of matrices sums a row in another order than a batch


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (
            {"params": {"hiden": [8]}},
            "params.hiden: torch has no such parameter; did you mean 'hidden'?",
        ),
        ({"params": {"max_depth": 6}}, "params.max_depth: torch has no such parameter; known are: "),
        ({"params": {"hidden": 8}}, "params.hidden: must be a list of whole numbers above 0, not 8"),
        ({"params": {"dropout": 1}}, "params.dropout: must be a number at least 0 and below 1, not 1"),
        ({"params": {"learning_rate": 0}}, "params.learning_rate: must be a number above 0, not 0"),
        ({"params": {"precision": "half"}}, "params.precision: must be one of float32, bfloat16"),
        ({"params": {"compile": 1}}, "params.compile: must be true or false, not 1"),
        ({"params": {"epochs": 3}}, "params.epochs: is not for the loop to set: it is train.rounds"),
        ({"params": {"device": "cuda"}}, "params.device: is not for the loop to set: the pool decides"),
        ({"params": {"loss": "huber"}}, "params.loss: 'huber' is not for the task binary; log_loss is"),
        ({"params": {"loss": "mse"}}, "params.loss: must be one of log_loss, squared, absolute, huber"),
        (
            {"params": {"batch_size": 4, "accumulate": 3}, "workers": 2},
            "params.batch_size: 4 rows can't be shared by 2 workers in 3 parts each",
        ),
        ({"workers": 1000}, "params.batch_size: 512 rows can't be shared by 1000 workers"),
        ({"seed": -1}, "seed: torch takes no negative seed"),
        ({"trust": "pickle"}, "trust: torch's models need none"),
        ({"hook": "hooks:net", "params": {"not a name": 1}}, "params.not a name: is no name of an argument"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_it_would_not_take_is_named(train, words):
    problems = TorchFlavour().problems(spec.Train(flavour="torch", **train))
    assert len(problems) == 1
    assert problems[0].startswith(words)


def test_every_parameter_is_one_that_it_takes():
    given = {
        **{"batch_size": 100, "accumulate": 2, "clip": 0.5, "deterministic": False, "compile": False},
        **{"schedule": "cosine", "warmup": 0, "weight_decay": 0, "precision": "bfloat16", "loss": "log_loss"},
        **{"hidden": [8, 8], "dropout": 0, "activation": "gelu", "embedding": 2, "bins": 0},
        "learning_rate": 0.01,
    }
    assert set(given) == set(Settings.__slots__) - {"own"}
    assert TorchFlavour().problems(spec.Train(flavour="torch", params=given)) == []
    assert TorchFlavour().fit(net_task(rounds=1, params=given)).rounds == 1


def test_a_hook_takes_what_the_trainer_does_not_know():
    train = spec.Train(
        flavour="torch", hook="hooks:net", params={"width": 3, "epochs": 4, "learning_rate": 0.1}
    )
    assert TorchFlavour().problems(train) == []


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_it_is_interrupted_at_any_checkpoint_and_ends_in_the_same_bytes(task, tmp_path):
    settings = {"rounds": 5, "checkpoint_every": 1, "valid": True, "early_stopping": {"rounds": 3}}
    params = {"batch_size": 90, "hidden": [12], "dropout": 0.2}
    told: list[tuple[int, dict]] = []
    whole = net_task(task, params=params, report=lambda *seen: told.append(seen), **settings)
    wanted = saved(TorchFlavour().fit(whole), tmp_path / "whole")
    kept = MemoryCheckpoints()
    for number in range(1, 5):
        again: list[tuple[int, dict]] = []
        stopping = net_task(
            task,
            params=params,
            checkpoints=StopAfter(kept, number),
            report=lambda *seen, again=again: again.append(seen),
            **settings,
        )
        with pytest.raises(Interrupted):
            TorchFlavour().fit(stopping)
        assert again == told[:number]
    last = net_task(task, params=params, checkpoints=kept, **settings)
    assert saved(TorchFlavour().fit(last), tmp_path / "last") == wanted


def test_how_often_it_keeps_checkpoints_changes_nothing(tmp_path):
    first = TorchFlavour().fit(net_task(rounds=4, checkpoint_every=1))
    second = TorchFlavour().fit(net_task(rounds=4, checkpoint_every=3))
    assert saved(first, tmp_path / "1") == saved(second, tmp_path / "2")


def test_a_batch_in_parts_gives_the_same_model_but_for_rounding():
    x = make_sample("binary").x
    params = {"batch_size": 96, "hidden": [8], "dropout": 0}
    whole = TorchFlavour().fit(net_task(params=params)).predict(x)
    parts = TorchFlavour().fit(net_task(params={**params, "accumulate": 3})).predict(x)
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_early_stopping_returns_to_the_best_epoch():
    losses: list[float] = []
    work = net_task(
        rounds=60,
        valid=True,
        early_stopping={"rounds": 4},
        params={"learning_rate": 0.1, "schedule": "constant", "dropout": 0, "batch_size": 50},
        report=lambda number, metrics: losses.append(metrics["valid_log_loss"]),
    )
    predictor = TorchFlavour().fit(work)
    best = losses.index(min(losses))
    assert len(losses) == best + 5 < 60
    assert predictor.rounds == best + 1
    shares = predictor.predict(work.x_valid)
    own = -np.log(np.where(work.y_valid == 1, shares, 1 - shares)).mean()
    assert own == pytest.approx(losses[best], abs=1e-5)


@pytest.mark.parametrize(("loss", "name"), [("squared", "rmse"), ("absolute", "mae"), ("huber", "huber")])
def test_losses_of_numbers_are_told_in_the_labels_unit(loss, name):
    told: list[dict] = []
    work = net_task(
        "regression",
        params={"loss": loss, "learning_rate": 0.05},
        rounds=8,
        valid=True,
        report=lambda number, seen: told.append(seen),
    )
    work = replace(work, y=work.y * 1000 + 5e6, y_valid=work.y_valid * 1000 + 5e6)
    gaps = TorchFlavour().fit(work).predict(work.x_valid) - work.y_valid
    assert set(told[-1]) == {f"train_{name}", f"valid_{name}"}
    if name != "huber":
        own = np.sqrt((gaps**2).mean()) if name == "rmse" else np.abs(gaps).mean()
        assert own == pytest.approx(told[-1][f"valid_{name}"], rel=1e-4)
        assert own < 1000


def test_statistics_are_of_the_fitted_rows_alone():
    work = net_task(valid=True)
    changed = replace(work, x_valid=work.x_valid * 100 + 7)
    first, second = TorchFlavour().fit(work), TorchFlavour().fit(changed)
    assert first.onnx == second.onnx
    assert first.baseline == second.baseline


def test_a_feature_may_be_constant_missing_or_huge_and_kinds_may_be_absent():
    sample = make_sample("binary")
    x = sample.x.copy()
    x[:, 0], x[:, 1], x[:, 2] = 1e17 + sample.x[:, 0], np.nan, 3.0
    for columns in ([0, 1, 2, 3], [0, 2], [3]):
        schema = replace(SCHEMA, features=tuple(SCHEMA.features[i] for i in columns))
        predictor = TorchFlavour().fit(replace(net_task(), schema=schema, x=x[:, columns]))
        for rows in (x[:50, columns], np.full((3, len(columns)), np.nan), np.full((3, len(columns)), 1e30)):
            rows = np.where([[f.kind == "category" for f in schema.features]], np.nan, rows)
            assert np.isfinite(predictor.predict(rows)).all()


def test_a_loss_that_runs_away_is_an_error_in_words():
    params = {"learning_rate": 1e30, "schedule": "constant", "warmup": 0, "loss": "squared", "clip": 1e30}
    with pytest.raises(UserError, match=r"loss became \w+ in epoch \d: lower params.learning_rate"):
        TorchFlavour().fit(net_task("regression", rounds=8, params=params))


def test_bfloat16_is_another_model_and_its_weights_stay_float32():
    from safetensors.numpy import load

    plain = TorchFlavour().fit(net_task())
    rough = TorchFlavour().fit(net_task(params={"precision": "bfloat16"}))
    x = make_sample("binary").x
    gap = np.abs(plain.predict(x) - rough.predict(x)).max()
    assert 0 < gap < 0.1
    assert {str(array.dtype) for array in load(rough.weights).values()} == {"float32", "float64", "int64"}


WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors", "onnx", "onnxscript"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
from treadle.models import load_predictor
folder = Path(sys.argv[1])
predictor = load_predictor(folder)
x = np.load(folder / "x.npy")
np.savez(folder / "out.npz", predictions=predictor.predict(x), contributions=predictor.contributions(x))
predictor.save(folder / "again")
assert "torch" not in [name for name in sys.modules if sys.modules[name]]
"""


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_it_is_loaded_and_predicts_without_torch_and_agrees_with_torch(task, tmp_path):
    import torch
    from treadle.models.torch.fit import fit_net

    work = net_task(task)
    predictor = TorchFlavour().fit(work)
    predictor.save(tmp_path)
    (tmp_path / "again").mkdir()
    np.save(tmp_path / "x.npy", work.x)
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)], check=True)
    out = np.load(tmp_path / "out.npz")
    assert np.array_equal(out["predictions"], predictor.predict(work.x))
    assert np.array_equal(out["contributions"], predictor.contributions(work.x))
    whole, _ = fit_net(work)
    with torch.no_grad():
        own = whole(torch.from_numpy(work.x)).numpy()
    np.testing.assert_allclose(out["predictions"], own, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "again/model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_a_damaged_file_is_an_error_in_words(tmp_path):
    TorchFlavour().fit(net_task(rounds=1)).save(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model.onnx can't be loaded, so it is damaged"):
        load_predictor(tmp_path)


def test_nothing_of_this_machine_or_moment_is_in_the_files(tmp_path):
    files = saved(TorchFlavour().fit(net_task(rounds=1)), tmp_path / "model")
    assert set(files) == {"model.onnx", "model.safetensors", "predictor.json"}
    for data in files.values():
        assert b"site-packages" not in data
        assert b".py" not in data


def test_the_process_is_left_as_it_was():
    import torch

    torch.manual_seed(5)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    TorchFlavour().fit(net_task(rounds=1))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_schedule_rises_then_falls():
    from treadle.models.torch.fit import rate_at

    cycle = Settings(learning_rate=1.0, warmup=0.1)
    rates = [rate_at(cycle, step, 100) for step in range(100)]
    assert rates[9] == max(rates) == 1.0
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[0] < 0.15
    assert rates[99] < 0.01
    assert rate_at(replace(cycle, schedule="constant"), 99, 100) == 1.0
    assert rate_at(replace(cycle, schedule="cosine", warmup=0), 0, 100) == 1.0


def test_the_version_says_nothing_of_the_device_that_torch_was_built_for():
    assert "+" not in TorchFlavour().version()
    assert isinstance(get_flavour("torch"), TorchFlavour)
