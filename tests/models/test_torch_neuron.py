"""Compiled networks predict what was judged, or are refused; by a stand-in for AWS's compiler, never on a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neuron_machine import VERSIONS, neuron_machine
from torch_cases import net_task
from treadle.errors import SpecError, UserError
from treadle.loop import Loop
from treadle.models import compiled
from treadle.models.compiled import BATCHES, TOLERANCE, refuse_no_device, toolchain
from treadle.models.devices import COMPILED_FOR, compile_problem, refuse_device
from treadle.models.torch import neuron as torch_neuron
from treadle.models.torch.flavour import TorchFlavour, TorchPredictor
from treadle.testing.flavour import SCHEMA, make_sample

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
TASKS = ("binary", "multiclass", "regression")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs on a machine with a Neuron device."""
    neuron_machine(tmp_path / "machine").be_here(monkeypatch)


def loop_of(folder: Path, train: Any, hooks: str = "") -> Loop:
    """The loop of a train section, with its hooks' file."""
    table = {
        "sql": "a.sql",
        "entity": "id",
        "event_time": "t",
        "known_at": "t",
        "label": "y",
        "label_known_at": "t",
    }
    folder.mkdir(exist_ok=True)
    if hooks:
        (folder / "hooks.py").write_text(hooks)
    loop = Loop(name="a", data={"sources": {"a": "a.csv"}, "tables": {"a": table}}, train=train.model_dump())
    return loop.placed(folder, source_folder=folder)


def fitted(task: Any) -> TorchPredictor:
    predictor = TorchFlavour().fit(task)
    assert isinstance(predictor, TorchPredictor)
    return predictor


def compile_(
    folder: Path, work: Any, hooks: str = "", tuned: Any = None
) -> tuple[TorchPredictor, Any, float]:
    """A trained model, the same from its compiled nets, and the gap that was measured."""
    predictor = fitted(work)
    loop = loop_of(folder / "loop", work.train, hooks)
    files, gap = torch_neuron.compile_net(
        predictor, loop, tuned or {}, "inferentia", folder, lambda line: None
    )
    return predictor, torch_neuron.load_nets(predictor, files, "inferentia"), gap


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("task", TASKS)
def test_a_compiled_network_predicts_what_was_judged_for_any_number_of_rows(
    tmp_path: Path, task: Any
) -> None:
    predictor, found, gap = compile_(tmp_path, net_task(task))
    assert gap < 1e-5
    x = make_sample(task).x
    assert np.isnan(x).any(), "gaps are part of the sample"
    for rows in (0, 1, 2, 16, 17, 128, 129, 300):
        wanted = predictor.predict(x[:rows])
        assert found.predict(x[:rows]).shape == wanted.shape
        np.testing.assert_allclose(found.predict(x[:rows]), wanted, atol=1e-5)
    np.testing.assert_allclose(found.contributions(x[:40]), predictor.contributions(x[:40]), atol=1e-3)
    assert (found.classes, found.schema, found.task) == (predictor.classes, predictor.schema, predictor.task)


@pytest.mark.usefixtures("machine")
def test_missing_and_unseen_values_count_as_they_do_in_the_judged_model(tmp_path: Path) -> None:
    predictor, found, _ = compile_(tmp_path, net_task())
    x = make_sample("binary").x[:20].copy()
    for column in range(x.shape[1]):
        x[column, column] = np.nan
    x[-1] = np.nan
    assert len(set(predictor.predict(x).tolist())) > 10
    np.testing.assert_allclose(found.predict(x), predictor.predict(x), atol=1e-6)


HOOKS = """\
import torch
from torch import cat, nn


class Deep(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.vectors = nn.ModuleList(nn.Embedding(n, size) for n, size in zip(inputs.levels, inputs.vectors))
        self.norm = nn.BatchNorm1d(inputs.numbers)
        self.first = nn.Linear(inputs.numbers + sum(inputs.vectors), width)
        self.last = nn.Linear(width, inputs.outputs)

    def forward(self, numbers, codes):
        vectors = [vector(codes[:, i]) for i, vector in enumerate(self.vectors)]
        return self.last(self.first(cat([self.norm(numbers), *vectors], 1)).relu())


class InDoubles(Deep):
    def forward(self, numbers, codes):
        return super().forward(numbers.double().float(), codes)


class Together(Deep):
    def forward(self, numbers, codes):
        return super().forward(numbers, codes) - numbers.mean()


def net(inputs, width=16):
    return Deep(inputs, width)


def doubles(inputs, width=16):
    return InDoubles(inputs, width)


def together(inputs, width=16):
    return Together(inputs, width)
"""


def hook_of(name: str) -> Any:
    space: dict[str, Any] = {}
    exec(HOOKS, space)
    return space[name]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("task", TASKS)
def test_a_module_of_the_loops_own_is_made_again_by_its_hook(tmp_path: Path, task: Any) -> None:
    work = net_task(task, hook=hook_of("net"), params={"width": 24, "batch_size": 100})
    predictor, found, gap = compile_(tmp_path, work, HOOKS)
    assert gap < 1e-5
    x = make_sample(task).x
    np.testing.assert_allclose(found.predict(x), predictor.predict(x), atol=1e-5)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (
            "doubles",
            r"can't be compiled for inferentia: .*data type that is not supported.*--pool deploy=none",
        ),
        ("together", r"predicts otherwise than the one that was judged, by up to .*; 0.001 is allowed"),
    ],
)
def test_a_module_that_the_device_can_not_hold_is_refused(tmp_path: Path, hook: str, words: str) -> None:
    work = net_task(hook=hook_of(hook))
    work = replace(work, train=work.train.model_copy(update={"hook": f"hooks:{hook}"}))
    with pytest.raises(UserError, match=words):
        compile_(tmp_path, work, HOOKS)


@pytest.mark.usefixtures("machine")
def test_weights_of_another_module_than_the_hook_makes_now_are_refused(tmp_path: Path) -> None:
    predictor = fitted(net_task(hook=hook_of("net"), params={"width": 24, "batch_size": 100}))
    loop = loop_of(tmp_path / "loop", net_task(hook=hook_of("net")).train, HOOKS)
    with pytest.raises(UserError, match=r"hooks:net makes another network than .*first.weight is"):
        torch_neuron.rebuilt(predictor, loop, {})


@pytest.mark.usefixtures("machine")
def test_parameters_that_a_search_found_make_the_network(tmp_path: Path) -> None:
    work = net_task(params={"hidden": [24, 8], "activation": "relu"})
    predictor = fitted(work)
    loop = loop_of(tmp_path / "loop", net_task(params={"hidden": [8]}).train)
    whole = torch_neuron.rebuilt(predictor, loop, {"hidden": [24, 8], "activation": "relu"})
    x = make_sample("binary").x
    with torch.no_grad():
        np.testing.assert_allclose(whole(torch.from_numpy(x)).numpy(), predictor.predict(x), atol=1e-6)


@pytest.mark.usefixtures("machine")
def test_weights_that_began_as_anothers_keep_their_vectors(tmp_path: Path) -> None:
    first = fitted(net_task(params={"embedding": 2}))
    first.save(tmp_path)
    work = net_task(params={"embedding": 8}, init=tmp_path / "model.safetensors")
    predictor, found, _ = compile_(tmp_path, work)
    x = make_sample("binary").x
    np.testing.assert_allclose(found.predict(x), predictor.predict(x), atol=1e-6)


@pytest.mark.usefixtures("machine")
def test_what_the_compiler_does_by_default_is_another_model_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_neuron, "ARGUMENTS", ())
    monkeypatch.setattr(torch_neuron, "TOLERANCE", 1e-4)
    with pytest.raises(UserError, match="predicts otherwise than the one that was judged"):
        compile_(tmp_path, net_task(rounds=20))


@pytest.mark.usefixtures("machine")
def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    predictor = fitted(net_task())
    bad = tmp_path / "1.pt"
    bad.write_bytes(b"no TorchScript")
    with pytest.raises(UserError, match="compiled for 1 rows on inferentia can't be loaded here"):
        torch_neuron.load_nets(predictor, {1: bad}, "inferentia")


def test_rows_to_compare_on_cover_levels_gaps_and_numbers_far_out() -> None:
    whole = torch_neuron.rebuilt(fitted(net_task()), loop_of(Path.cwd(), net_task().train), {})
    x = torch_neuron.plausible_rows(whole.encoder, SCHEMA, 300)
    for column, feature in enumerate(SCHEMA.features):
        known = x[:, column][~np.isnan(x[:, column])]
        assert 200 < len(known) < 300
        if feature.kind == "category":
            assert set(known) == set(range(len(feature.categories)))
        elif feature.kind == "boolean":
            assert set(known) == {0.0, 1.0}
        else:
            assert np.ptp(known) > 5 * known.std() / 2
    assert np.array_equal(x, torch_neuron.plausible_rows(whole.encoder, SCHEMA, 300), equal_nan=True)


def test_without_the_sdk_it_is_said_where_that_is(tmp_path: Path) -> None:
    words = "torch-neuronx, which is not installed here. It comes with AWS's Neuron images"
    with pytest.raises(UserError, match=r"neuronx-cc, which is not installed here"):
        toolchain("inferentia")
    predictor = fitted(net_task())
    with pytest.raises(UserError, match=words):
        torch_neuron.load_nets(predictor, {}, "inferentia")
    with pytest.raises(UserError, match="this machine shows no Neuron device"):
        refuse_no_device("inferentia")


def test_a_server_needs_the_library_beside_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.hardware.devices import devices_seen

    (tmp_path / "neuron0").touch()
    monkeypatch.setitem(devices_seen.__kwdefaults__, "dev", tmp_path)
    with pytest.raises(UserError, match="served there, by torch-neuronx, which is not installed here"):
        refuse_no_device("inferentia")
    with pytest.raises(UserError, match="--device gpu: a server answers from cpu, inferentia, trainium"):
        refuse_no_device("gpu")


@pytest.mark.usefixtures("machine")
def test_what_compiles_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = tmp_path / "product_name"
    product.write_text("inf2.xlarge\n")
    monkeypatch.setattr(compiled, "_PRODUCT", product)
    made = toolchain("inferentia")
    assert made["machine"] == "inf2"
    assert made["versions"] == {**VERSIONS, "torch": torch.__version__}
    assert (made["batches"], made["arguments"]) == ([1, 16, 128], ["--auto-cast", "none"])
    product.write_text("m7i.large\n")
    assert toolchain("trainium")["machine"] == ""
    documented = (Path(__file__).parents[2] / "docs" / "torch.md").read_text()
    assert f"by more than {TOLERANCE:g}" in documented
    assert "1, 16 and 128 rows" in documented
    assert BATCHES == (1, 16, 128)


@pytest.mark.parametrize(
    ("flavour", "words"),
    [
        ("xgboost", "it computes neural networks only, and no trees"),
        ("estimator", "scikit-learn computes on the CPU"),
        ("hooks:Mine", "nobody knows whether a flavour of a loop's own makes networks"),
    ],
)
@pytest.mark.parametrize("device", COMPILED_FOR)
def test_what_is_no_network_can_not_be_compiled_and_what_can_is_said(
    flavour: str, words: str, device: str, tmp_path: Path
) -> None:
    problem = compile_problem(flavour, device)
    assert problem is not None
    assert f"{flavour} can't be compiled for {device}: {words}" in problem
    assert "What can is torch" in problem
    loop = loop_of(tmp_path / "loop", net_task().train)
    other = loop.model_copy(update={"train": loop.train.model_copy(update={"flavour": flavour})})
    with pytest.raises(SpecError, match=f"pools.deploy: models of the flavour {flavour} can't be compiled"):
        refuse_device(other, device, "deploy")
    refuse_device(other, device, "evaluate")
    refuse_device(loop, device, "deploy")
    assert compile_problem(flavour, "gpu") is None
