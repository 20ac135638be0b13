"""The search for params before a training: Optuna asks, trials are fitted and judged, the store keeps what came out.

    Search.ask ──► a batch of trials ──► here one by one, or by Ray Tune side by side ──► Search.tell ──► ... ──► best

Trials are asked for and told in batches of `train.workers`, in order. So what is asked depends on the spec and on
the rows alone, never on who was quicker; and a search that goes on after a kill asks the same again, and takes the
answers that it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from treadle import spec
from treadle.errors import MissingPackage, UserError
from treadle.loop import Loop
from treadle.models.checkpoints import StoreCheckpoints, clear
from treadle.models.predictor import MemoryCheckpoints
from treadle.models.tuning.space import distributions, params_of, trial_spec
from treadle.preemption import stop_if_asked
from treadle.records import Json
from treadle.store import Store

if TYPE_CHECKING:
    from treadle.models.predictor import Checkpoints, FitTask, Flavour, Floats

_SHOWN_DIGITS = 6
_TIME = re.compile(r"\[\d\d:\d\d:\d\d\] ")  # xgboost's words begin with it


@dataclass(frozen=True, slots=True)
class Trial:
    """One try: the params, and the loss on the newest rows, or why there is none."""

    number: int
    params: dict[str, Any]
    loss: float | None = None
    problem: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it was tried."""
        return self.loss is not None or self.problem != ""


@dataclass(frozen=True, slots=True)
class Judge:
    """What each trial learns from, and what it is judged on.

    Attributes:
        task: Of the rows before the newest; its hook, checkpoints and report are replaced.
        x_newest: (m, k) encoded rows, the newest before the holdout.
        y_newest: (m,) their labels, as in `task`.
        loss: The name of the loss.
    """

    task: FitTask
    x_newest: Floats
    y_newest: Floats
    loss: str

    def attempt(self, flavour: Flavour, trial: Trial, checkpoints: Checkpoints) -> Trial:
        """The trial with its loss; or with the library's words, where it refuses these params.

        Raises:
            Whatever else the fit raises: a hook that fails, a missing package.
        """
        import math

        import numpy as np
        from treadle.gate.metrics import metric

        train = trial_spec(self.task.train, trial.params).model_copy(update={"workers": 1})
        task = replace(self.task, train=train, checkpoints=checkpoints, report=ignore_report)
        try:
            predictions = flavour.fit(task).predict(self.x_newest)
        except UserError as error:
            if type(error) is not UserError:
                raise
            return replace(trial, problem=_TIME.sub("", error.words().strip().splitlines()[0]))
        multiclass = train.task == "multiclass"
        labels = np.array(task.classes)[self.y_newest.astype(int)] if multiclass else self.y_newest
        loss = float(metric(self.loss, train.task, labels, predictions, task.classes))
        if not math.isfinite(loss):
            return replace(trial, problem=f"the {self.loss} on the newest rows is {loss}")
        return replace(trial, loss=loss)


def ignore_report(number: int, metrics: object) -> None:
    """A trial's rounds are of no interest to anyone."""


class KeptTrials:
    """Trials that are done, in the store until the candidate is committed.

    They lie among the checkpoints of the training, which pass them over and are cleared with them.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def get(self, number: int) -> Trial | None:
        """A trial, or None where it was not done yet, or its file is damaged."""
        try:
            return Trial(**json.loads(self.store.read(self._path(number))))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, trial: Trial) -> None:
        """Keeps a trial."""
        content = json.dumps(asdict(trial)).encode()
        if not self.store.create(self._path(trial.number), content) and self.get(trial.number) != trial:
            self.store.delete(self._path(trial.number))
            self.store.create(self._path(trial.number), content)

    def _path(self, number: int) -> str:
        return f"checkpoints/{self.name}/trial-{number:05d}.json"


@dataclass(slots=True)
class Search:
    """A search as far as it has come; `done` holds the trials in order."""

    train: spec.Train
    kept: KeptTrials
    say: Callable[[str], None]
    loss: str
    done: list[Trial] = field(default_factory=list)
    _asked: list[Any] = field(default_factory=list)
    _study: Any = None

    def ask(self) -> list[Trial]:
        """The next batch; of those of its trials that are known already, the answers are there. Empty at the end."""
        assert self.train.tune is not None
        space = self.train.tune.space
        if self._study is None:
            self._study = _new_study(abs(self.train.seed))
        count = min(self.train.workers, self.train.tune.trials - len(self.done))
        self._asked = [self._study.ask(distributions(space)) for _ in range(count)]
        batch = []
        for asked in self._asked:
            trial = Trial(asked.number + 1, params_of(space, asked.params))
            known = self.kept.get(trial.number)
            # Another version of a library may ask otherwise than the one that was interrupted.
            same = known is not None and known.params == _plain(trial.params)
            batch.append(replace(trial, loss=known.loss, problem=known.problem) if same and known else trial)
        return batch

    def tell(self, batch: Sequence[Trial]) -> None:
        """Takes the answers of a batch, in the order in which it was asked."""
        from optuna.trial import TrialState

        for asked, trial in zip(self._asked, batch, strict=True):
            if trial.loss is None:
                self._study.tell(asked, state=TrialState.FAIL)
            else:
                self._study.tell(asked, trial.loss)
            self.done.append(trial)

    def keep(self, trial: Trial) -> None:
        """Stores a trial that was made, says so, and ends here if the process was asked to."""
        self.kept.put(trial)
        assert self.train.tune is not None
        told = f"{self.loss} {trial.loss:.6g}" if trial.loss is not None else f"failed, {trial.problem}"
        named = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        self.say(f"train: trial {trial.number} of {self.train.tune.trials}: {told} with {named}")
        stop_if_asked()

    def best(self) -> Trial:
        """The trial with the lowest loss, the first of equals.

        Raises:
            UserError: All failed.
        """
        found = [trial for trial in self.done if trial.loss is not None]
        if not found:
            raise UserError(
                f"all {len(self.done)} trials of train.tune failed, the first so: {self.done[0].problem}"
                " Change train.tune.space."
            )
        return min(found, key=lambda trial: (trial.loss, trial.number))

    def summary(self) -> Json:
        """What a record says of the search."""
        best = self.best()
        return {
            "trials": len(self.done),
            "failed": sum(trial.loss is None for trial in self.done),
            "best": best.number,
            "loss": self.loss,
            "best_loss": best.loss,
            "params": _plain(best.params),
        }

    def table(self) -> list[Json]:
        """All trials, as JSON."""
        return [_plain(asdict(trial)) for trial in self.done]


def optuna_version() -> str:
    """Optuna's version, without importing it.

    Raises:
        MissingPackage: It is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("optuna")
    except PackageNotFoundError:
        raise MissingPackage("optuna", "search for params (train.tune)", "tune") from None


def searched(
    judge: Judge, flavour: Flavour, loop: Loop, store: Store, name: str, say: Callable[[str], None]
) -> Search:
    """A search that is done: by Ray Tune where the loop has several workers, else in this process.

    Args:
        judge: What the trials learn from.
        flavour: Who learns.
        loop: Says what to search, and holds the files that workers need.
        store: Keeps what is done.
        name: The id of the candidate that it is for.
        say: Takes a line of progress for each trial.

    Raises:
        UserError: Every trial failed. MissingPackage: Optuna or Ray is not installed.
        Transient: The cluster can't be reached, or lost a worker; trials that are done stay.
    """
    search = Search(loop.train, KeptTrials(store, name), say, judge.loss)
    if loop.train.workers > 1:
        from treadle.models.tuning.ray import search_by_ray

        search_by_ray(search, judge, loop)
    else:
        search_here(search, judge, flavour)
    best = search.best()
    say(f"train: the best of {len(search.done)} trials is {best.number}: {search.loss} {best.loss:.6g}")
    return search


def search_here(search: Search, judge: Judge, flavour: Flavour) -> None:
    """Makes all trials in this process, one by one; an interrupted trial goes on from its last checkpoint."""
    store = search.kept.store
    while batch := search.ask():
        made = []
        for trial in batch:
            if not trial.is_done:
                name = f"{search.kept.name}-{trial.number}"
                trial = judge.attempt(flavour, trial, StoreCheckpoints(store, name))
                clear(store, name)
                search.keep(trial)
            made.append(trial)
        search.tell(made)


def portable(judge: Judge) -> Judge:
    """The same without what can't travel to another process: the worker puts its own in."""
    task = replace(judge.task, hook=None, code=None, checkpoints=MemoryCheckpoints(), report=ignore_report)
    return replace(judge, task=task)


def _new_study(seed: int) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingPackage("optuna", "search for params (train.tune)", "tune") from error
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), direction="minimize")
    finally:
        optuna.logging.set_verbosity(before)


def _plain(value: Any) -> Any:
    """As it reads after a trip through JSON."""
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    return f"{value:.{_SHOWN_DIGITS}g}" if isinstance(value, float) else str(value)
