"""The torch flavour by torch_xla, on XLA's own CPU device: what trn1 runs, but for the device.

torch_xla needs a torch of its own: `make test-xla` makes that environment, and runs these tests there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_cases import Interrupted, StopAfter, net_task
from treadle.errors import UserError
from treadle.models.predictor import MemoryCheckpoints, Predictor
from treadle.models.torch.flavour import TorchFlavour
from treadle.testing.flavour import make_sample

pytest.importorskip("torch_xla", reason="torch_xla is not installed: make test-xla")

Fit = Callable[..., Predictor]


@pytest.fixture
def fit_by_xla(monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits on XLA's CPU device, which no pool can promise."""
    from treadle.models.torch import device as torch_device
    from treadle.models.torch import fit as torch_fit

    monkeypatch.setattr(torch_fit, "open_device", lambda kind: torch_device.open_xla("CPU"))

    def fit(*task: Any, **settings: Any) -> Predictor:
        return TorchFlavour().fit(net_task(*task, **settings))

    return fit


def compilations() -> int:
    """How many graphs XLA has compiled in this process."""
    from torch_xla.debug import metrics

    found = metrics.metric_data("CompileTime")
    return 0 if found is None else int(found[0])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_same_model_as_on_the_cpu_but_for_rounding(fit_by_xla: Fit, task: Any, accumulate: int) -> None:
    settings = {"rounds": 4, "valid": True, "params": {"dropout": 0, "accumulate": accumulate}}
    x = make_sample(task).x
    found = fit_by_xla(task, **settings).predict(x)
    wanted = TorchFlavour().fit(net_task(task, **settings)).predict(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_products_in_bfloat16_come_near(fit_by_xla: Fit) -> None:
    x = make_sample("binary").x
    exact, rough = (
        fit_by_xla(rounds=4, params={"dropout": 0, "precision": precision}).predict(x)
        for precision in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_a_cut_training_goes_on_to_the_same_model(fit_by_xla: Fit) -> None:
    x = make_sample("binary").x
    settings = {"rounds": 6, "valid": True, "checkpoint_every": 2, "early_stopping": {"rounds": 3}}
    whole = fit_by_xla(**settings).predict(x)
    kept = MemoryCheckpoints()
    with pytest.raises(Interrupted):
        fit_by_xla(**settings, checkpoints=StopAfter(kept, 2))
    reported: list[int] = []
    resumed = fit_by_xla(
        **settings, checkpoints=kept, report=lambda number, metrics: reported.append(number)
    ).predict(x)
    assert reported[:2] == [0, 1]  # told again from the checkpoint, not trained again
    np.testing.assert_array_equal(resumed, whole)


def test_no_graph_is_compiled_after_the_second_epoch(fit_by_xla: Fit) -> None:
    """500 rows in batches of 150: the last one is short, and compiling for its shape would take minutes on trn1."""
    seen: list[int] = []
    fit_by_xla(
        rounds=6,
        valid=True,
        params={"batch_size": 70, "accumulate": 3},
        report=lambda number, metrics: seen.append(compilations()),
    )
    assert seen[0] > 0
    assert seen[1:] == [seen[1]] * 5, f"graphs compiled by the end of each epoch: {seen}"


def test_several_workers_are_refused(fit_by_xla: Fit) -> None:
    with pytest.raises(Exception, match="trains in one process"):
        fit_by_xla(workers=2)


def test_a_pool_of_trainium_is_refused_where_xla_sees_a_cpu() -> None:
    with pytest.raises(UserError, match="the pool promises Trainium, and torch_xla here runs on CPU"):
        TorchFlavour().fit(net_task(device="trainium"))
