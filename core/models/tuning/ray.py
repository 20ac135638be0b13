"""The same search with its trials side by side: Ray Tune runs them, and asks and tells as `Search` says.

Ray's own OptunaSearch tells each result as it comes, so that who is quicker decides what is tried next. Here a batch
is told as a whole.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.environment import variables
from treadle.errors import Transient, TreadleError
from treadle.loop import Loop
from treadle.loop_code import load_hook
from treadle.models import get_flavour
from treadle.models.loop_parcel import LoopParcel, pack_loop
from treadle.models.predictor import MemoryCheckpoints
from treadle.models.ray_session import Workers, ray_workers
from treadle.models.tuning.search import Judge, Search, Trial, portable
from treadle.wire import error_from_json, error_to_json

if TYPE_CHECKING:
    from treadle.records import Json

# Its loggers need packages of their own; and Ctrl-C shall end the search, not only Tune's part of it.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker needs for a trial, wherever it is.

    Attributes:
        judge: As `portable` makes it.
        loop: The loop, with the files that training needs.
        init: The weights to start from.
    """

    judge: Judge
    loop: LoopParcel
    init: bytes | None


def search_by_ray(search: Search, judge: Judge, loop: Loop) -> None:
    """Makes all trials, `train.workers` at a time, each in a process of its own with `workers: 1`.

    Raises:
        UserError: The cluster has no such resources; a hook failed. MissingPackage: Ray is not installed.
        Transient: The cluster can't be reached, or lost a worker.
    """
    train = loop.train
    purpose = "search for params with several workers"
    with ray_workers(train.workers, train.threads, purpose, device=judge.task.device) as workers:
        _run(search, _parcel(judge, loop, workers), workers)


def _parcel(judge: Judge, loop: Loop, workers: Workers) -> Parcel:
    init = judge.task.init.read_bytes() if judge.task.init else None
    train = judge.task.train.model_copy(update={"threads": workers.cpus})
    light = portable(judge)
    task = replace(light.task, train=train, init=None)
    return Parcel(replace(light, task=task), pack_loop(loop, "train"), init)


def _run(search: Search, parcel: Parcel, workers: Workers) -> None:
    assert search.train.tune is not None
    with variables(_SETTINGS), tempfile.TemporaryDirectory(prefix="treadle-tune-") as folder:
        from ray import tune
        from ray.exceptions import RayError
        from ray.tune.logger import JsonLoggerCallback

        logger: Any = JsonLoggerCallback  # its __init__ has no types
        source = _searcher(search)
        resources = {
            "cpu": workers.cpus,
            **{name.lower() if name == "GPU" else name: n for name, n in workers.others.items()},
        }
        trainable = tune.with_resources(tune.with_parameters(_try, parcel=parcel), resources)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=source,
                num_samples=search.train.tune.trials,
                reuse_actors=True,
                metric="number",
                mode="max",
            ),
            run_config=tune.RunConfig(storage_path=folder, name="search", verbose=0, callbacks=[logger()]),
        )
        try:
            results = tuner.fit()
        except (RayError, tune.TuneError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise Transient(f"Ray Tune failed: {reason} Trials that are done stay. Try again.") from error
        if source.error is not None:
            raise source.error
        for failure in results.errors:
            raise _explained(failure)
        if len(search.done) < search.train.tune.trials:
            raise Transient("Ray Tune ended before the search did; trials that are done stay. Try again.")


def _explained(error: BaseException) -> BaseException:
    from ray.exceptions import RayActorError, RayTaskError

    cause = getattr(error, "cause", None)
    if isinstance(error, RayTaskError) and not isinstance(cause, RayActorError):
        return error
    return Transient(f"a worker of the search was lost: {str(error).strip().splitlines()[0]} Try again.")


def _searcher(search: Search) -> Any:
    """Ray's view of a search."""
    from ray.tune.search import Searcher

    class Batches(Searcher):
        error: TreadleError | None = None
        is_lost = False

        def __init__(self) -> None:
            super().__init__(metric="number", mode="max")
            self.batch: list[Trial] = []
            self.waiting: list[Trial] = []
            self.running: dict[str, int] = {}

        def suggest(self, trial_id: str) -> Any:
            if self.error is not None or self.is_lost:
                return Searcher.FINISHED
            while not self.batch:
                self.batch = search.ask()
                if not self.batch:
                    return Searcher.FINISHED
                self.waiting = [trial for trial in self.batch if not trial.is_done]
                self._tell()
            if not self.waiting:
                return None
            trial = self.waiting.pop(0)
            self.running[trial_id] = trial.number
            return asdict(trial)

        def _tell(self) -> None:
            """Tells a batch of which every trial is done."""
            if all(trial.is_done for trial in self.batch):
                search.tell(self.batch)
                self.batch = []

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            number = self.running.pop(trial_id, None)
            if error or result is None or number is None:
                self.is_lost = True  # why, is among Tune's results
                return
            try:
                trial = _answer_in(result["answer"])
                self.batch = [trial if each.number == number else each for each in self.batch]
                search.keep(trial)
                self._tell()
            except TreadleError as failure:  # Tune would hide it in an error of its own
                self.error = failure

        def save(self, checkpoint_path: str) -> None:
            """The store has the trials."""

        def restore(self, checkpoint_path: str) -> None:
            """The store has the trials."""

    return Batches()


def _try(config: Json, parcel: Parcel) -> Json:
    """A trial in a worker; the answer is one text, as Tune takes results apart."""
    trial = Trial(config["number"], config["params"])
    with tempfile.TemporaryDirectory(prefix="treadle-trial-") as folder:
        init = Path(folder) / "init" if parcel.init is not None else None
        if init is not None and parcel.init is not None:
            init.write_bytes(parcel.init)
        try:
            with parcel.loop.at_work() as loop:
                flavour = get_flavour(loop.train.flavour, loop)
                hook = load_hook(loop, loop.train.hook, "train.hook") if loop.train.hook else None
                task = replace(parcel.judge.task, hook=hook, init=init)
                done = replace(parcel.judge, task=task).attempt(flavour, trial, MemoryCheckpoints())
                answer = {"trial": asdict(done)}
        except TreadleError as error:
            answer = {"error": error_to_json(error)}
    return {"number": trial.number, "answer": json.dumps(answer)}


def _answer_in(text: str) -> Trial:
    """The trial that a worker made; raises the error that it met."""
    content = json.loads(text)
    if "error" in content:
        raise error_from_json(content["error"])
    return Trial(**content["trial"])
