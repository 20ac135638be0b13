"""Modules of the loop's own, and weights to start from."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch_cases import net_task, saved
from treadle.errors import SpecError, UserError
from treadle.models.torch.flavour import TorchFlavour
from treadle.models.weights import BadWeights
from treadle.testing.flavour import SCHEMA, TRAINED_THROUGH, FlavourSuite, make_sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

from train_loops import make_context, make_loop, put_features, trained
from treadle.models import load_candidate
from treadle.spec import Train
from treadle.stages.train import key, recipe_of
from treadle.store import LocalStore

HOOKS = """\
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.vectors = nn.ModuleList(nn.Embedding(levels, 2) for levels in inputs.levels)
        self.first = nn.Linear(inputs.numbers + 2 * len(inputs.levels), width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, inputs.outputs)

    def forward(self, numbers, codes):
        parts = [numbers, *(vector(codes[:, i]) for i, vector in enumerate(self.vectors))]
        return self.last(torch.relu(self.norm(self.first(torch.cat(parts, 1)))))

def net(inputs, width=8):
    return Wide(inputs, width)

def half(inputs):
    return nn.Linear(inputs.numbers, 7)

def branching(inputs):
    class Branching(Wide):
        def forward(self, numbers, codes):
            return super().forward(numbers, codes) * (1.0 if float(numbers[:, 0].max()) < 1 else -3.0)
    return Branching(inputs, 4)

def none(inputs):
    return "a network"
"""
FLIGHT_PARAMS = {"batch_size": 64, "hidden": [8]}


@pytest.fixture
def hooks(tmp_path_factory):
    """The functions of HOOKS, as a loop's file has them."""
    space: dict = {}
    exec(compile(HOOKS, "hooks.py", "exec"), space)
    return space


class TestOwnModule(FlavourSuite):
    @pytest.fixture(params=["multiclass"])
    def task(self, request):
        return request.param

    @pytest.fixture
    def flavour(self):
        return TorchFlavour()

    @pytest.fixture
    def train(self, task):
        params = {"width": 12, "batch_size": 50, "learning_rate": 0.03}
        return Train(task=task, flavour="torch", hook="hooks:net", rounds=6, params=params)

    @pytest.fixture
    def hook(self, hooks):
        return hooks["net"]

    @pytest.fixture
    def row_tolerance(self):
        return 1e-6


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", r"train.hook: hooks:net returned a str; the flavour torch needs a torch.nn.Module"),
        ("branching", r"predicts otherwise than the module.*must not branch on the values"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor:Warning")
def test_a_module_that_can_not_serve_is_refused(hooks, name, words):
    with pytest.raises(UserError, match=words):
        TorchFlavour().fit(net_task(hook=hooks[name]))


def test_a_module_with_other_outputs_is_refused(hooks):
    import torch

    class Seven(torch.nn.Module):
        def forward(self, numbers, codes):
            return numbers[:, :1].repeat(1, 7)

    with pytest.raises(UserError, match=r"gives \(4, 7\) for 4 rows; \(4, 1\) logits are needed"):
        TorchFlavour().fit(net_task(hook=lambda inputs: Seven()))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_a_loops_own_module_goes_round_and_predicts_without_its_code(store, tmp_path):
    settings = {"flavour": "torch", "hook": "hooks:net", "params": {"width": 6}, "rounds": 2}
    _, candidate = trained(make_loop(tmp_path / "loop", hooks=HOOKS, **settings), store, tmp_path)
    assert set(candidate.blobs) >= {"model/model.onnx", "model/model.safetensors", "loop/files/hooks.py"}
    assert candidate.key["library"].keys() >= {"torch"}
    assert candidate.key["precision"] == "float32"
    (tmp_path / "loop/hooks.py").write_text("raise RuntimeError('today it is broken')")
    assert 0 < load_candidate(store, candidate).predict(np.full((1, 3), np.nan))[0] < 1


def test_a_mistake_in_the_module_is_told_with_its_own_traceback(store, tmp_path):
    from treadle.errors import HookError

    broken = HOOKS.replace("self.last(torch.relu", "self.lost(torch.relu")
    loop = make_loop(tmp_path / "loop", hooks=broken, flavour="torch", hook="hooks:net", rounds=1)
    with pytest.raises(HookError, match=r"(?s)hooks\.py.*has no attribute 'lost'"):
        trained(loop, store, tmp_path)


def test_fine_tuning_starts_from_the_same_predictions(tmp_path):
    first = TorchFlavour().fit(net_task("regression", rounds=4, params={"learning_rate": 0.05}))
    first.save(tmp_path)
    still = {"learning_rate": 1e-12, "weight_decay": 0, "dropout": 0}
    moved = replace(
        net_task("regression", rounds=1, params=still, init=tmp_path / "model.safetensors"),
        x=make_sample("regression").x[:200] * [2, 3, 1, 1] + [5, 0, 0, 0],
        y=make_sample("regression").y[:200] * 7,
    )
    x = make_sample("regression").x
    np.testing.assert_allclose(TorchFlavour().fit(moved).predict(x), first.predict(x), rtol=1e-5, atol=1e-5)


def test_levels_move_with_their_names_and_new_ones_start_as_missing(tmp_path):
    first = TorchFlavour().fit(net_task(rounds=4, params={"learning_rate": 0.05}))
    first.save(tmp_path)
    features = list(SCHEMA.features)
    features[3] = replace(features[3], categories=("BOS", "EWR", "JFK", "LGA"))
    still = {"learning_rate": 1e-12, "weight_decay": 0, "dropout": 0}
    work = net_task(rounds=1, params=still, init=tmp_path / "model.safetensors")
    x = work.x.copy()
    x[:, 3] += 1  # the codes of the same levels
    again = TorchFlavour().fit(replace(work, schema=replace(SCHEMA, features=tuple(features)), x=x))
    np.testing.assert_allclose(again.predict(x), first.predict(work.x), atol=1e-5)
    boston, missing = x.copy(), work.x.copy()
    boston[:, 3], missing[:, 3] = 0, np.nan
    np.testing.assert_allclose(again.predict(boston), first.predict(missing), atol=1e-5)


def test_bare_weights_are_taken_where_they_fit(hooks, tmp_path):
    import torch
    from safetensors.torch import save_file
    from treadle.models.torch.net import NetInputs

    torch.manual_seed(3)
    tensors = hooks["net"](NetInputs(6, (4,), (2,), 1)).state_dict()
    save_file(tensors, tmp_path / "backbone.safetensors")
    still = {"learning_rate": 1e-12, "weight_decay": 0}
    first, second = (
        TorchFlavour().fit(
            net_task(
                hook=hooks["net"], rounds=1, params=still, init=tmp_path / "backbone.safetensors", seed=s
            )
        )
        for s in (0, 9)
    )
    from safetensors.numpy import load

    assert np.allclose(load(first.weights)["net.first.weight"], tensors["first.weight"].numpy(), atol=1e-6)
    assert np.allclose(load(second.weights)["net.first.weight"], load(first.weights)["net.first.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"params": {"hidden": [9]}},
            r"network: layers.0.weight is \(8, 1\d\) where this network has \(9, 1\d\)",
        ),
        ({"params": {"hidden": [8, 8]}}, r"layers.\d.*(missing|where this network has)"),
        (
            {"schema": True},
            r"it was trained on the features wind \(number\), .*; here they are gust \(number\)",
        ),
        ({"bytes": b"not weights"}, "is no safetensors file, or a damaged one"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, words):
    file = tmp_path / "model.safetensors"
    TorchFlavour().fit(net_task(rounds=1)).save(tmp_path)
    if "bytes" in change:
        file.write_bytes(change["bytes"])
    work = net_task(rounds=1, params=change.get("params"), init=file)
    if "schema" in change:
        features = (replace(SCHEMA.features[0], name="gust"), *SCHEMA.features[1:])
        work = replace(work, schema=replace(SCHEMA, features=features))
    with pytest.raises(BadWeights, match=words):
        TorchFlavour().fit(work)


def test_weights_enter_ids_by_their_content_and_never_by_their_place(store, tmp_path):
    TorchFlavour().fit(net_task(rounds=1)).save(tmp_path)
    features = put_features(store, __import__("train_loops").flight_rows())
    keys, recipes = [], []
    for name, content in (("a", b"one"), ("b", b"one"), ("b", b"two")):
        loop = make_loop(tmp_path / "loop", flavour="torch", init_from=f"{name}.safetensors")
        (tmp_path / f"loop/{name}.safetensors").write_bytes(content)
        keys.append(key(make_context(loop, store, tmp_path / "scratch"), features))
        recipes.append(recipe_of(loop))
    assert keys[0] == keys[1] != keys[2]
    assert recipes[0] == recipes[1] != recipes[2]
    sha = hashlib.sha256(b"one").hexdigest()
    by_hash = make_loop(tmp_path / "loop", flavour="torch", init_from=f"blob:{sha}")
    assert key(make_context(by_hash, store, tmp_path / "scratch"), features) == keys[0]


def test_a_candidate_goes_on_from_another_by_hash_and_carries_the_weights(store, tmp_path):
    settings = {"flavour": "torch", "params": FLIGHT_PARAMS, "rounds": 1}
    _, first = trained(make_loop(tmp_path / "loop", **settings), store, tmp_path)
    sha = first.blobs["model/model.safetensors"]
    _, second = trained(make_loop(tmp_path / "loop", init_from=f"blob:{sha}", **settings), store, tmp_path)
    assert second.id != first.id
    assert second.blobs["init/weights"] == sha
    assert load_candidate(store, second).predict(np.zeros((1, 3))).shape == (1,)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("lost.safetensors", r"train.init_from: there is no file 'lost.safetensors' in "),
        (f"blob:{'0' * 64}", r"train.init_from: blob 0+ is missing"),
        ("blob:12", r"train.init_from: 'blob:12' is no hash"),
        ("other.safetensors", r"train.init_from: other.safetensors is no safetensors file"),
    ],
)
def test_weights_that_are_not_there_are_named_with_field_and_line(store, tmp_path, where, words):
    folder = tmp_path / "loop"
    make_loop(folder, flavour="torch")
    (folder / "other.safetensors").write_text("not weights")
    from treadle.loop import Loop

    content = {**make_loop(folder, flavour="torch", init_from=where).part("data", "features", "train")}
    (folder / "flights.yaml").write_text(json.dumps({"name": "flights", **content}, indent=1))
    loop = Loop.load(folder / "flights.yaml")
    with pytest.raises(SpecError, match=rf"flights.yaml:\d+: {words}"):
        trained(loop, store, tmp_path)


def test_flavours_that_take_no_weights_say_so():
    from treadle.models import get_flavour

    for flavour, hook in (("xgboost", None), ("estimator", "hooks:model")):
        found = get_flavour(flavour).problems(Train(flavour=flavour, hook=hook, init_from="a.safetensors"))
        assert [problem.partition(":")[0] for problem in found] == ["init_from"]
        assert "torch takes weights" in found[0]


def test_saved_files_of_a_hooks_module_load_without_it(hooks, tmp_path):
    files = saved(TorchFlavour().fit(net_task(hook=hooks["net"], rounds=1)), tmp_path / "model")
    assert TorchFlavour().load(tmp_path / "model", "none").trained_through == TRAINED_THROUGH
    assert b"pickle" not in b"".join(files.values())
