"""`treadle job --selftest`: a machine proves in a minute that treadle trains on its device, and goes on after a cut.

    device ─► matmul against the CPU ─► a training whose loss falls ─► cut at a checkpoint ─► resumed to the same model

The training is the flavour's own code, with checkpoints in a real store: xgboost on a CPU, torch on an accelerator.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from treadle import spec
from treadle.errors import TreadleError, UserError
from treadle.hardware.devices import devices_seen
from treadle.hardware.gauges import open_gauge
from treadle.hardware.pools import Kind
from treadle.jobs.file import treadle_version
from treadle.jobs.measure import usable_cores
from treadle.records import Json
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.models.predictor import FitTask, Flavour, Floats
    from treadle.store import Store

_ROWS, _ROUNDS, _EVERY, _CUT_AFTER = 2_000, 12, 4, 2
# On an accelerator products may be rounded to 10 bits and sums come in any order; on a CPU nothing may differ.
_MATMUL_TOLERANCE, _RESUME_TOLERANCE = 2e-2, 2e-2


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried, and what it told."""

    name: str
    ok: bool
    seconds: float
    told: str


@dataclass(slots=True)
class Proof:
    """What a selftest came to."""

    device: Kind
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every step was tried and did well."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def to_json(self) -> Json:
        """Plain JSON."""
        about = {"device": self.device, "node": platform.node(), "treadle": treadle_version()}
        return {"ok": self.ok, **about, "steps": [asdict(step) for step in self.steps]}

    def tried(self, name: str, work: Callable[[], str]) -> bool:
        """Does one step; whether it did well."""
        started = time.monotonic()
        try:
            told, ok = work(), True
        except Exception as error:  # whatever a driver or library raises is what the step has to tell
            plain = str(error) if isinstance(error, TreadleError) else f"{type(error).__name__}: {error}"
            told, ok = plain.strip(), False
        self.steps.append(Step(name, ok, round(time.monotonic() - started, 2), told))
        return ok


def prove(device: str | None = None) -> Proof:
    """Tries a kind of device here, step by step; after one that fails nothing more is tried.

    Args:
        device: cpu, gpu, trainium or inferentia; None: the accelerator that this machine shows, else cpu.

    Raises:
        UserError: There is no such kind.
    """
    kind = _kind(device)
    proof = Proof(kind)
    if not proof.tried("device", lambda: _device(kind)):
        return proof
    if not proof.tried("matmul", lambda: _matmul(kind)) or kind == "inferentia":
        return proof
    with tempfile.TemporaryDirectory(prefix="treadle-selftest-") as folder:
        trial = _Trial(kind, Path(folder))
        for name, work in (("training", trial.train), ("checkpoint", trial.cut), ("resume", trial.resume)):
            if not proof.tried(name, work):
                break
    return proof


def _kind(device: str | None) -> Kind:
    if device is None:
        shown: tuple[Kind, ...] = ("gpu", "trainium")
        return next((kind for kind in shown if devices_seen(kind)), "cpu")
    if device not in get_args(Kind):
        raise UserError(f"there is no device {device!r}; known are: {', '.join(get_args(Kind))}")
    return cast("Kind", device)


def _device(kind: Kind) -> str:
    """What is there; raises UserError where it is not."""
    if kind == "cpu":
        return f"{platform.machine()}, {counted(usable_cores(), 'core')}"
    seen = devices_seen(kind)
    if not seen:
        raise UserError(
            f"this machine shows no {kind} to this process: look at its driver, and at the container's options"
        )
    return ", ".join([*seen, *_models(kind)])


def _models(kind: Kind) -> list[str]:
    gauge = open_gauge(kind)
    if gauge is None:
        return []
    try:
        return [reading.name for reading in gauge.read()]
    finally:
        gauge.close()


def _matmul(kind: Kind) -> str:
    """A product of matrices on the device, compared with one in whole numbers or in 64 bits on the CPU."""
    import numpy as np

    random, size = np.random.default_rng(5), 256 if kind == "cpu" else 1024
    if kind == "cpu":
        whole = [random.integers(-9, 10, (size, size)) for _ in range(2)]
        found = whole[0].astype(np.float32) @ whole[1].astype(np.float32)
        wrong = int(np.count_nonzero(found.astype(np.int64) != whole[0] @ whole[1]))
        if wrong:
            raise RuntimeError(f"{wrong} of {size * size} sums are not those of whole numbers")
        return f"{size} x {size}, exact"
    import torch
    from treadle.models.torch.device import open_device

    # An Inferentia is reached as a Trainium is; it only trains nothing.
    device = open_device("trainium" if kind == "inferentia" else kind)
    a, b = (random.standard_normal((size, size)) for _ in range(2))
    there = [torch.tensor(each, dtype=torch.float32).to(device.name) for each in (a, b)]
    product = there[0] @ there[1]
    device.sync()
    exact = a @ b
    gap = float(np.abs(product.cpu().double().numpy() - exact).max() / np.abs(exact).max())
    if not gap <= _MATMUL_TOLERANCE:
        raise RuntimeError(
            f"the greatest gap to the CPU is {gap:.2g} of the greatest value, not {_MATMUL_TOLERANCE:g}"
        )
    return f"{size} x {size} on {product.device}, within {gap:.1g} of the CPU"


class _Cut(BaseException):
    """The training is cut here on purpose; no Exception, so that nothing takes it for a failure."""


class _Trial:
    """One small training, whole and cut, by the flavour that uses the device."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.whole: Floats | None = None

    def train(self) -> str:
        """The whole training; its loss must fall."""
        losses: list[float] = []
        flavour, task = self._work("whole", losses)
        started = time.monotonic()
        self.whole = flavour.fit(task).predict(task.x)
        seconds = time.monotonic() - started
        if not losses or not losses[-1] < losses[0]:
            raise RuntimeError(f"the loss does not fall: {losses}")
        return (
            f"{flavour.name}, {_ROUNDS} rounds in {seconds:.1f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}"
        )

    def cut(self) -> str:
        """The same training, cut right after a checkpoint that is in the store then."""
        flavour, task = self._work("cut", [], cut_after=_CUT_AFTER)
        try:
            flavour.fit(task)
        except _Cut:
            pass
        else:
            raise RuntimeError(f"it wrote fewer than {_CUT_AFTER} checkpoints")
        found = self._checkpoints("cut").latest()
        if found is None:
            raise RuntimeError("the checkpoint can't be read back")
        return f"cut after round {found[0]}, {len(found[1]):,} bytes"

    def resume(self) -> str:
        """The cut training goes on and must come to the whole one's model."""
        import numpy as np

        flavour, task = self._work("cut", [])
        found = flavour.fit(task).predict(task.x)
        if cast("_Checkpoints", task.checkpoints).given is None:
            raise RuntimeError("it began anew: it did not find its checkpoint again")
        assert self.whole is not None
        gap = float(np.abs(found - self.whole).max())
        if gap > (0 if self.kind == "cpu" else _RESUME_TOLERANCE):
            raise RuntimeError(f"its predictions differ from the whole training's by up to {gap:.2g}")
        return "the same predictions to the bit" if gap == 0 else f"the same predictions within {gap:.1g}"

    def _checkpoints(self, name: str, cut_after: int | None = None) -> _Checkpoints:
        from treadle.store import open_store

        return _Checkpoints(open_store(self.folder), name, cut_after)

    def _work(
        self, name: str, losses: list[float], *, cut_after: int | None = None
    ) -> tuple[Flavour, FitTask]:
        """The flavour and its task; `losses` takes the first metric of each round."""
        from treadle.models import get_flavour
        from treadle.models.predictor import FitTask
        from treadle.models.schema import Feature, InputSchema

        flavour = get_flavour("xgboost" if self.kind == "cpu" and find_spec("xgboost") else "torch")
        x, y, times_us = _rows()

        def report(number: int, metrics: Mapping[str, float]) -> None:
            losses.append(next(iter(metrics.values())))

        task = FitTask(
            train=spec.Train(
                flavour=flavour.name,
                task="binary",
                rounds=_ROUNDS,
                checkpoint_every=_EVERY,
                threads=_threads(),
            ),
            schema=InputSchema(tuple(Feature(f"x{number}", "number") for number in range(x.shape[1]))),
            x=x,
            y=y,
            times_us=times_us,
            x_valid=None,
            y_valid=None,
            classes=("0", "1"),
            trained_through=datetime(2024, 1, 1, tzinfo=UTC),
            checkpoints=self._checkpoints(name, cut_after),
            report=report,
            device=self.kind,
        )
        return flavour, task


def _threads() -> int:
    return max(int(usable_cores()), 1) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows() -> tuple[Any, Any, Any]:
    """Made-up rows (n, 8), labels that depend on them, and times: the same each time."""
    import numpy as np

    random = np.random.default_rng(11)
    x = random.standard_normal((_ROWS, 8))
    score = x[:, 0] - x[:, 1] * x[:, 2] + 0.5 * random.standard_normal(_ROWS)
    return x, (score > 0).astype(np.float64), np.arange(_ROWS, dtype=np.int64) * 60_000_000


class _Checkpoints:
    """Those of a store; cuts the training right after the given number of them."""

    def __init__(self, store: Store, name: str, cut_after: int | None) -> None:
        from treadle.models.checkpoints import StoreCheckpoints

        self._kept, self._left = StoreCheckpoints(store, name), cut_after
        self.given: int | None = None

    def latest(self) -> tuple[int, bytes] | None:
        """See Checkpoints."""
        found = self._kept.latest()
        self.given = None if found is None else found[0]
        return found

    def save(self, rounds: int, data: bytes) -> None:
        """See Checkpoints."""
        self._kept.save(rounds, data)
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise _Cut
