"""A fit that is spread over several processes by Ray Train, on the cluster that this runs on or one of its own.

    this process ── rows ──► Ray's object store ──► N workers: the flavour's own fit, joined by its library's collective
         ▲                                             │ the first of them
         └─── stretches: losses, checkpoint; files ◄───┘

All workers hold the same model after each round, so the first one speaks for all. Checkpoints are kept and signals are
minded here, where the store is. The same rows and the same N give the same bytes, interrupted or not.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from treadle.errors import Transient, TreadleError, UserError
from treadle.models.loop_parcel import parcel_of
from treadle.models.predictor import FitTask
from treadle.models.ray_session import Workers, ray_workers

if TYPE_CHECKING:
    from treadle.models.predictor import Checkpoints

_START_S = 600
# By flavour: Ray Train's trainer, and whether each worker gets a part of the rows or, as it cuts batches itself, all.
_TRAINERS = {
    "xgboost": ("ray.train.xgboost", "XGBoostTrainer", True),
    "torch": ("ray.train.torch", "TorchTrainer", False),
}
Round = tuple[int, dict[str, float]]


def fit_spread(task: FitTask) -> dict[str, bytes]:
    """The files of the model that `task.train.workers` processes learn together, as its predictor saves them.

    Raises:
        MissingPackage: Ray is not installed. UserError: As the fit in one process; a worker lacks its device.
        Transient: A worker or its machine was lost, or the cluster has no room: the next attempt goes on from the last
            checkpoint.
    """
    train = task.train
    if task.device not in ("cpu", "gpu"):
        raise UserError(
            f"train.workers: on {task.device} the flavour {train.flavour} trains in one process. Leave workers out."
        )
    code = parcel_of(task)
    with ray_workers(
        train.workers, train.threads, "train with several workers", device=task.device
    ) as workers:
        import ray
        from ray.util.queue import Queue

        desk = Queue(actor_options={"num_cpus": 0})
        try:
            order = {
                "task": replace(
                    task,
                    **_WITHOUT_ROWS,
                    checkpoints=_Nowhere(),
                    report=_ignore,
                    init=None,
                    hook=None,
                    code=code,
                ),
                "init": (task.init.name, task.init.read_bytes()) if task.init else None,
                "rows": [ray.put(part) for part in _rows(task, workers.count)],
                "desk": desk,
                "begun": task.checkpoints.latest(),
            }
            with _training(order, workers) as training:
                return _attend(task, desk, training)
        finally:
            # Workers that still train fail at their next word, and so end.
            with suppress(ray.exceptions.RayError):
                desk.shutdown(force=True)


def _rows(task: FitTask, workers: int) -> Iterator[dict[str, Any]]:
    """The rows of each worker, neighbours in time and as evenly as can be; once where each takes all."""
    import numpy as np

    names = ("x", "y", "times_us", *(("x_valid", "y_valid") if task.x_valid is not None else ()))
    parts = workers if _TRAINERS[task.train.flavour][2] else 1
    split = {name: np.array_split(getattr(task, name), parts) for name in names}
    for number in range(parts):
        yield {name: np.ascontiguousarray(cut[number]) for name, cut in split.items()}


_WITHOUT_ROWS: dict[str, Any] = dict.fromkeys(("x", "y", "times_us", "x_valid", "y_valid"))


class _Training:
    """Ray Train's run, in a thread of its own: this one keeps checkpoints and minds signals."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.error = trainer, None
        self.thread = Thread(target=self._run, daemon=True)

    error: BaseException | None

    def _run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self.thread.is_alive()


@contextmanager
def _training(order: dict[str, Any], workers: Workers) -> Iterator[_Training]:
    """A run of Ray Train that has begun."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.config import FailureConfig

    module, name, _ = _TRAINERS[order["task"].train.flavour]
    trainer_class = getattr(import_module(module), name)
    own: dict[str, Any] = {}
    if name == "TorchTrainer":
        from treadle.models.torch.ray import without_group

        own["torch_config"] = without_group()
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    with tempfile.TemporaryDirectory(prefix="treadle-train-") as folder:
        trainer = trainer_class(
            train_as_one,
            **own,
            train_loop_config=order,
            scaling_config=ScalingConfig(
                num_workers=workers.count,
                use_gpu="GPU" in workers.others,
                resources_per_worker={"CPU": workers.cpus, **workers.others},
            ),
            # Retries are the runner's: it goes on from the store's checkpoint.
            run_config=RunConfig(
                name="fit",
                storage_path=folder,
                failure_config=FailureConfig(
                    max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                ),
            ),
        )
        training = _Training(trainer)
        training.thread.start()
        yield training


def _attend(task: FitTask, desk: Any, training: _Training) -> dict[str, bytes]:
    """Takes what the workers say until they have the model."""
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    while True:
        was_over = training.is_over
        try:
            said: _Said = desk.get(timeout=0.5)
        except Empty:
            if was_over:
                raise _lost(training.error) from training.error
            continue
        except RayError as error:
            raise _lost(error) from error
        for number, losses in said.rounds:
            task.report(number, losses)
        if said.error is not None:
            raise said.error
        if said.files is not None:
            training.thread.join()
            return said.files
        task.checkpoints.save(said.done, said.checkpoint)


def _lost(error: BaseException | None) -> Transient:
    reason = " ".join(str(error or "they said nothing").split())
    return Transient(
        f"the workers of the training were lost, or never started: {reason[:600]}. If the cluster has no room for"
        " train.workers of them, ask for fewer, or for smaller ones by the pool's cpu and memory_gib."
    )


@dataclass(frozen=True, slots=True)
class _Said:
    """What the first worker says: a stretch's end, the model, or why there is none."""

    rounds: list[Round] = field(default_factory=list)
    done: int = 0
    checkpoint: bytes = b""
    files: dict[str, bytes] | None = None
    error: TreadleError | None = None


class _Nowhere:
    """Checkpoints of a fit that has yet to be given its own."""

    def latest(self) -> tuple[int, bytes] | None:
        return None

    def save(self, rounds: int, data: bytes) -> None:
        """Keeps nothing."""


def _ignore(number: int, metrics: Mapping[str, float]) -> None:
    pass


class _Speaker:
    """Stands between a worker's fit and the process that asked for it; only the first worker's words are sent."""

    def __init__(self, desk: Any, begun: tuple[int, bytes] | None, *, is_first: bool) -> None:
        self.desk, self.begun, self.is_first = desk, begun, is_first
        self.rounds: list[Round] = []

    def latest(self) -> tuple[int, bytes] | None:
        """See Checkpoints."""
        return self.begun

    def save(self, rounds: int, data: bytes) -> None:
        """See Checkpoints."""
        self.say(done=rounds, checkpoint=data)

    def report(self, number: int, losses: Mapping[str, float]) -> None:
        """Keeps a round's losses until the stretch's end."""
        self.rounds.append((number, dict(losses)))

    def say(self, **words: Any) -> None:
        """Sends what there is, with the rounds since the last time."""
        if self.is_first or words.get("error"):
            self.desk.put(_Said(rounds=self.rounds if self.is_first else [], **words))
        self.rounds = []


def train_as_one(order: Mapping[str, Any]) -> None:
    """What each worker does: the fit of its rows, in step with the others."""
    import ray
    from ray.train import get_context
    from treadle.models import get_flavour

    rank = get_context().get_world_rank()
    speaker = _Speaker(order["desk"], order["begun"], is_first=rank == 0)
    shared = order["rows"]
    rows = ray.get(shared[rank % len(shared)])
    with tempfile.TemporaryDirectory(prefix="treadle-worker-") as name:
        folder = Path(name)
        task = replace(order["task"], checkpoints=speaker, report=speaker.report, **rows)
        if order["init"]:
            task = replace(task, init=folder / order["init"][0])
            (folder / order["init"][0]).write_bytes(order["init"][1])
        try:
            with _as_one(task) as own:
                predictor = get_flavour(own.train.flavour).fit(own)
        except TreadleError as error:
            # Ray Train would wrap it, and may kill this process before anyone has read it.
            if not _is_others_end(error):
                speaker.say(error=error)
            raise
        model = folder / "model"
        model.mkdir()
        predictor.save(model)
        speaker.say(files={file.name: file.read_bytes() for file in model.iterdir()})


def _is_others_end(error: TreadleError) -> bool:
    """Whether xgboost's collective, or torch's, only says that another worker is gone, which Ray tells better."""
    cause = error.__cause__
    if type(cause).__module__ == "torch.distributed":
        return True
    return any(place in str(cause) for place in ("/collective/", "/gloo/"))


@contextmanager
def _as_one(task: FitTask) -> Iterator[FitTask]:
    """A worker's task, within what makes one of all workers: Ray joins xgboost's, and not torch's."""
    if task.train.flavour != "torch":
        # Who is one of a group already starts no workers.
        yield replace(task, train=task.train.model_copy(update={"workers": 1}))
        return
    from treadle.loop_code import load_hook
    from treadle.models.torch.ray import joined

    hook = task.train.hook
    with joined(task.device), task.code.at_work() if task.code else nullcontext() as loop:
        yield replace(task, hook=load_hook(loop, hook, "train.hook") if loop and hook else None)


if TYPE_CHECKING:
    _checkpoints: Checkpoints = _Nowhere()
