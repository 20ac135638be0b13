"""A short sample of one stage on several pools, side by side: time, cost, and cost by what the model learned.

    the loop, cut short ─► prepared once ─► a store of its own for each pool ─► a job there ─► judged here

Samples lie in stores of their own, so no record, log or tracker of production is touched, and no pool finds another's
work done. The money is real: it counts in the loop's ledger, and its budget, policies and hours hold.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from treadle.errors import Fault, SpecError, TreadleError, UserError
from treadle.hardware.backends import get_backend
from treadle.hardware.pools import IN_PROCESS, Pool
from treadle.hardware.reach import refuse_store_out_of_reach
from treadle.jobs.client import pool_of, run_on_pool
from treadle.jobs.cost import Cost, read_ledger
from treadle.loop import Loop
from treadle.records import Candidate, FeatureSet, Json, Record, Verdict, record_id
from treadle.runner import run_session
from treadle.session import Session, open_loop_store, open_session
from treadle.stages import STAGES
from treadle.stages import train as train_stage
from treadle.steps import key_context
from treadle.store import Store, open_store
from treadle.walk import NEEDS
from treadle.words import counted, money

TRACK = "tune-pool"
MEASURED = ("prepare", "featurize", "train", "evaluate")
_HERE = dict.fromkeys(STAGES, IN_PROCESS)
_ALIKE = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """What is run on each pool: `overrides` of the loop, and a time limit for each pool in seconds."""

    stage: str = "train"
    rounds: int = 20
    window: str | None = None
    max_seconds: int = 600
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """What a sample came to on a pool.

    Attributes:
        seconds: All attempts, from the start of the command to its end.
        work_seconds: The stage itself: without the interpreter's start, imports and checks.
        usd: The estimate; None where the pool has no price.
        price: The price in words, or why there is none.
        gain: How far the loss lies below that of the base rate on the holdout; None for other stages than train.
        usd_per_gain: US dollars for 1 of it.
        words: What the job says of its use of the place.
        error: Why there is no record.
    """

    pool: str
    seconds: float
    work_seconds: float | None = None
    usd: float | None = None
    price: str = ""
    gain: float | None = None
    usd_per_gain: float | None = None
    words: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The trials, in the order in which the pools were named, and what they say."""

    loop: str
    stage: str
    sample: str
    loss: str | None
    trials: tuple[Trial, ...]
    verdict: str

    def to_json(self) -> Json:
        """Plain JSON."""
        return asdict(self)


def compare(
    path: str | os.PathLike[str],
    pools: Sequence[str],
    sample: Sample,
    *,
    as_of: str | None = None,
    scratch: str | None = None,
    store: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Runs a sample on each pool, one after the other.

    Args:
        path: The loop's file.
        pools: The pools' names.
        sample: What runs there.
        as_of: See `treadle.run`.
        scratch: Where the samples' stores lie; left out: a temporary folder, which only pools on this machine reach.
        store: The loop's own store, for its ledger.
        say: Takes lines of progress.

    Raises:
        UserError: A stage that is not measured; pools elsewhere without a `scratch` that they reach.
        SpecError: No such pool; the loop can't be read. What preparing the sample raises. What happens on a pool is
            told in its trial.
    """
    if sample.stage not in MEASURED:
        raise UserError(f"--stage {sample.stage}: samples are run of {', '.join(MEASURED)}")
    loop = Loop.load(path, overrides=sample.overrides)
    found = [_bounded(_named(loop, sample.stage, name), sample.max_seconds) for name in pools]
    ledger = open_loop_store(loop, store)
    with _scratch_of(scratch, found) as root:
        cut = Loop.load(path, overrides=(*sample.overrides, *_cuts(loop, sample, root)))
        bench = _Bench(cut, sample.stage, as_of, root, ledger, say)
        trials = tuple(bench.trial(pool) for pool in found)
    words = f"{counted(cut.train.rounds, 'round')}" if sample.stage in ("train", "evaluate") else "a sample"
    words += f" over {cut.part('data')['data'].get('window', 'all')} of data" if sample.window else ""
    return Comparison(loop.name, sample.stage, words, bench.loss, trials, verdict_on(sample.stage, trials))


def _named(loop: Loop, stage: str, name: str) -> Pool:
    pool = pool_of(loop, stage, override=name)
    if pool is None:
        problem = f"{name!r} is the calling process, which is no pool."
        raise SpecError([Fault("--pools", 0, stage, problem, "local is a process of its own here.")])
    return pool


def _bounded(pool: Pool, max_seconds: int) -> Pool:
    return pool.model_copy(update={"max_seconds": min(max_seconds, pool.max_seconds or max_seconds)})


def _cuts(loop: Loop, sample: Sample, root: str) -> list[str]:
    """The overrides that make the loop a sample: short, without a search or a budget of its own, no tracker touched."""
    tracker = root if "://" not in root else tempfile.gettempdir()
    cuts = [
        f"train.rounds={min(sample.rounds, loop.train.rounds)}",
        f"tracking.uri=sqlite:///{tracker}/mlflow-{uuid.uuid4().hex[:8]}.db",
    ]
    cuts += [f"data.window={sample.window}"] if sample.window else []
    return cuts + (["train.tune=null"] if loop.train.tune else [])


@contextmanager
def _scratch_of(scratch: str | None, pools: Sequence[Pool]) -> Iterator[str]:
    """Where the samples' stores lie."""
    if scratch is not None:
        for pool in pools:
            refuse_store_out_of_reach(get_backend(pool.backend), pool, scratch)
        yield f"{scratch.rstrip('/')}/tune-pool-{uuid.uuid4().hex[:8]}"
        return
    far = [pool.name for pool in pools if pool.backend != "local"]
    if far:
        raise UserError(
            f"the pools {', '.join(far)} are elsewhere and need a place for samples that they can reach:"
            " --scratch s3://bucket/folder"
        )
    with tempfile.TemporaryDirectory(prefix="treadle-tune-pool-") as folder:
        yield os.path.realpath(folder)


class _Bench:
    """Where samples run. `loss` is what the models were judged by, once one was."""

    def __init__(
        self,
        loop: Loop,
        stage: str,
        as_of: str | None,
        root: str,
        ledger: Store,
        say: Callable[[str], None],
    ) -> None:
        self.loop, self.stage, self.as_of, self.root, self.ledger = loop, stage, as_of, root, ledger
        self.say = say
        self.loss: str | None = None
        self._prepared: str | None = None
        self._gains: dict[str, float | None] = {}

    def trial(self, pool: Pool) -> Trial:
        """The stage on one pool."""
        place = self._place(pool)
        inputs = self._inputs(place)
        session = self._session(_WithLedger(open_store(place), self.ledger))
        session.first_stage = self.stage
        if self.stage == "train":
            self._keep_off_trackers(session, pool, inputs)
        record, gain, error = None, None, None
        try:
            record = run_on_pool(session, self.stage, pool, {name: each.id for name, each in inputs.items()})
            gain = self._gain(place, record, inputs) if isinstance(record, Candidate) else None
        except TreadleError as failure:
            error = str(failure)
        costs = self._costs(open_store(place))
        usd = [cost.usd for cost in costs]
        paid = sum(each for each in usd if each is not None) if costs and None not in usd else None
        notes = record.notes if record is not None else {}
        return Trial(
            pool=pool.name,
            seconds=round(sum(cost.seconds for cost in costs), 3),
            work_seconds=notes.get("seconds"),
            usd=paid,
            price=costs[0].plan.price if costs else "",
            gain=gain,
            usd_per_gain=paid / gain if paid is not None and gain is not None and gain > 0 else None,
            words=tuple(notes.get("job", {}).get("words", ())),
            error=error,
        )

    def _session(self, store: Store) -> Session:
        return open_session(self.loop, as_of=self.as_of, store=store, track=TRACK, say=self.say)

    def _place(self, pool: Pool) -> str:
        """A store for a pool: on this machine a copy of the one that was prepared first, by links."""
        place = f"{self.root}/{pool.name}"
        if self._prepared is not None and "://" not in place:
            shutil.copytree(self._prepared, place, copy_function=os.link)
        return place

    def _inputs(self, place: str) -> dict[str, Record]:
        """What the stage takes, made here in the pool's store."""
        needed = NEEDS.get(self.stage, ())
        if not needed:
            return {}
        session = self._session(open_store(place))
        last = max(needed, key=STAGES.index)
        made = run_session(session, to=last, pools=_HERE)
        if self._prepared is None and "://" not in place:
            self._prepared = f"{self.root}/.prepared"
            shutil.copytree(place, self._prepared, copy_function=os.link)
        return {name: made[name] for name in needed}

    def _keep_off_trackers(self, session: Session, pool: Pool, inputs: dict[str, Record]) -> None:
        """Says in the sample's store that a tracker has its model already: it is nobody's, and none need hear of it."""
        features = inputs["featurize"]
        assert isinstance(features, FeatureSet)
        session.device = pool.kind
        id_ = record_id(Candidate.kind, self.loop.name, train_stage.key(key_context(session), features))
        receipt = f"projections/{self.loop.name}/{TRACK}/candidate-{id_}.json"
        session.store.create(receipt, b'{"run_id": "none", "version": "0"}')

    def _gain(self, place: str, candidate: Candidate, inputs: dict[str, Record]) -> float | None:
        """How far the model's loss lies below the base rate's on the holdout; None where that can't be judged."""
        if candidate.digest not in self._gains:
            ids = {**{name: record.id for name, record in inputs.items()}, "train": candidate.id}
            try:
                run = run_session(
                    self._session(open_store(place)), start="evaluate", to="evaluate", inputs=ids, pools=_HERE
                )
                self._gains[candidate.digest] = self._gain_in(run["evaluate"])
            except TreadleError as error:
                self.say(f"the sample's model can't be judged: {error}")
                self._gains[candidate.digest] = None
        return self._gains[candidate.digest]

    def _gain_in(self, verdict: Record) -> float | None:
        from treadle.gate.metrics import default_loss

        assert isinstance(verdict, Verdict)
        loss = self.loop.gate.loss or default_loss(self.loop.train.task)
        losses = [verdict.metrics.get(who, {}).get(loss) for who in ("baseline", "challenger")]
        if losses[0] is None or losses[1] is None:
            return None
        self.loss = loss
        return losses[0] - losses[1]

    def _costs(self, samples: Store) -> list[Cost]:
        """The pages of the jobs that a pool's store holds."""
        keys = {name.removesuffix(".json") for name in samples.list(f"jobs/{self.loop.name}")}
        return [cost for cost in read_ledger(self.ledger, self.loop.name).over if cost.job in keys]


class _WithLedger:
    """A store of samples whose ledger, and who may write it, is that of the loop's own store."""

    def __init__(self, samples: Store, ledger: Store) -> None:
        self.uri, self._samples, self._ledger = samples.uri, samples, ledger

    def _of(self, path: str) -> Store:
        return self._ledger if path.startswith(("costs", "leases/budget-")) else self._samples

    def create(self, path: str, data: bytes) -> bool:
        return self._of(path).create(path, data)

    def create_from(self, path: str, source: Path) -> bool:
        return self._of(path).create_from(path, source)

    def replace(self, path: str, data: bytes) -> None:
        self._of(path).replace(path, data)

    def read(self, path: str) -> bytes:
        return self._of(path).read(path)

    def exists(self, path: str) -> bool:
        return self._of(path).exists(path)

    def list(self, folder: str) -> list[str]:
        return self._of(folder).list(folder)

    def delete(self, path: str) -> None:
        self._of(path).delete(path)

    def local_path(self, path: str) -> Path:
        return self._of(path).local_path(path)


def verdict_on(stage: str, trials: Sequence[Trial]) -> str:
    """What the trials say, in words: which pool to take, by cost where all have a price, else by time."""
    ended = [trial for trial in trials if trial.error is None]
    if not ended:
        return "No pool came to an end: see why above."
    failed = [trial.pool for trial in trials if trial.error is not None]
    lead = f"{', '.join(failed)} did not come to an end. " if failed else ""
    if len(ended) == 1:
        return f"{lead}Only {ended[0].pool} did, in {ended[0].seconds:,.1f} s."
    unpriced = [trial.pool for trial in ended if trial.usd is None]
    return lead + (_by_time(ended, unpriced) if unpriced else _by_cost(stage, ended)) + _on_start(ended)


def _by_time(ended: Sequence[Trial], unpriced: Sequence[str]) -> str:
    first, second = sorted(ended, key=lambda trial: trial.seconds)[:2]
    why = (
        f"Cost is not compared, as {', '.join(unpriced)} {'has' if len(unpriced) == 1 else 'have'} no price."
    )
    if first.seconds > second.seconds * (1 - _ALIKE):
        return f"{first.pool} and {second.pool} take about as long, {first.seconds:,.1f} s. {why}"
    times = f"{first.seconds:,.1f} s against {second.seconds:,.1f} s on {second.pool}"
    return f"{first.pool} is the fastest: {times}. {why}"


def _by_cost(stage: str, ended: Sequence[Trial]) -> str:
    by_gain = stage == "train" and all(trial.usd_per_gain is not None for trial in ended)

    def price(trial: Trial) -> float:
        return (trial.usd_per_gain if by_gain else trial.usd) or 0.0

    first, second = sorted(ended, key=price)[:2]
    for_what = " for what the model learned" if by_gain else ""
    fastest = min(ended, key=lambda trial: trial.seconds)
    if price(first) > price(second) * (1 - _ALIKE):
        text = f"{first.pool} and {second.pool} cost about the same{for_what}."
        return f"{text} {fastest.pool} is the fastest, with {fastest.seconds:,.1f} s."
    times = price(second) / price(first) if price(first) else None
    more = f"{times:.1f} times as much" if times else f"{money(price(second))} USD, and it nothing"
    text = f"Take {first.pool}: {second.pool}, the next, costs {more}{for_what}."
    if fastest.pool == first.pool:
        return f"{text} It is the fastest, too, with {fastest.seconds:,.1f} s."
    dearer = f", for {price(fastest) / price(first):.1f} times the cost" if price(first) else ""
    against = f"{fastest.seconds:,.1f} s against {first.seconds:,.1f} s"
    return f"{text} {fastest.pool} is the fastest, with {against}{dearer}."


def _on_start(ended: Sequence[Trial]) -> str:
    """A warning where little of the time was work, so that a longer sample may say something else."""
    started = [
        trial.pool
        for trial in ended
        if trial.work_seconds is not None and trial.work_seconds < trial.seconds / 2
    ]
    if not started:
        return ""
    return f" On {', '.join(started)} most of the time was the start: a longer sample tells more (--rounds, --window)."
