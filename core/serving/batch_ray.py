"""Scoring a file on several workers by Ray Data: the same batches in the same order, so the same bytes as by one.

    read (beside the file) ──► batches ──► workers, each with the model ──► scored batches, in order ──► the file

The file is read on the machine of whoever asks, and written there; only batches travel. Few of them are on their way at
a time, so that memory does not grow with the file.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treadle.errors import Transient, TreadleError
from treadle.models import load_predictor
from treadle.models.loop_parcel import LoopParcel
from treadle.models.ray_session import Workers, ray_workers
from treadle.serving.batch import Scoring
from treadle.wire import error_from_json, error_to_json

if TYPE_CHECKING:
    import pyarrow as pa
    from treadle.data.feast_store import Plan
    from treadle.models.predictor import Predictor
    from treadle.records import Snapshot
    from treadle.serving.batch import Spread

_ON_THEIR_WAY = 512 << 20


@dataclass(frozen=True, slots=True)
class ModelParcel:
    """A model's files by name, and its loop where it needs the loop's code."""

    files: Mapping[str, bytes]
    trust: str
    loop: LoopParcel | None

    def load(self, stack: ExitStack) -> Predictor:
        """The predictor; what it needs stays until the stack is closed."""
        from treadle.loop_code import loop_imports
        from treadle.store import scratch_folder

        loop = stack.enter_context(self.loop.laid_out()) if self.loop else None
        with scratch_folder() as folder, loop_imports(loop) if loop else nullcontext():
            for name, content in self.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            return load_predictor(folder, trust=self.trust, loop=loop)


@dataclass(frozen=True, slots=True)
class JoinParcel:
    """What a worker needs to look features up; it reads the store itself."""

    loop: LoopParcel
    store: str
    plan: Plan
    snapshot: Snapshot
    allow_gaps: bool


class RaySpread:
    """See Spread. Every worker has the model, and looks features up where the file lacks them.

    Attributes:
        gaps: By view, how many rows had no fresh value of it: see EntityJoin.
    """

    def __init__(self, workers: int, model: ModelParcel, join: Callable[[], JoinParcel]) -> None:
        self.workers, self.model, self.join = workers, model, join
        self.gaps: Counter[str] = Counter()

    def __call__(
        self, scoring: Scoring, read: Callable[[], Iterator[pa.Table]], *, joins: bool
    ) -> Generator[tuple[pa.Table, Mapping[str, int]]]:
        """See Spread.

        Raises:
            MissingPackage: Ray is not installed. UserError: A row can't be scored. Transient: A worker was lost.
        """
        parcel = (scoring, self.model, self.join() if joins else None)
        with ray_workers(self.workers, 1, "score a file with several workers") as workers:
            for answer in _answers(read, parcel, workers):
                if answer["error"]:
                    raise error_from_json(json.loads(answer["error"]))
                counts = json.loads(answer["counts"])
                self.gaps.update(counts["gaps"])
                yield _unpacked(answer["rows"]), counts["unseen"]


def _answers(
    read: Callable[[], Iterator[pa.Table]],
    parcel: tuple[Scoring, ModelParcel, JoinParcel | None],
    workers: Workers,
) -> Iterator[Mapping[str, Any]]:
    """What `_Worker` says of each batch, in order."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, read_datasource
    from ray.exceptions import RayError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fields of Ray's own that it copies along
        context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=_ON_THEIR_WAY)
    context.target_max_block_size = 1  # each batch by itself
    context.enable_progress_bars = context.print_on_execution_start = False
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    reads_local_store = parcel[2] is not None and "://" not in parcel[2].store
    kept = ray.put(parcel)
    with DataContext.current(context), _quiet():
        batches = read_datasource(_source(read), override_num_blocks=1, num_cpus=0, label_selector=here)
        scored = batches.map_batches(
            _Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=workers.count, initial_size=workers.count),
            num_cpus=workers.cpus,
            fn_constructor_args=([kept],),
            label_selector=here if reads_local_store else None,
        )
        try:
            for table in scored.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
                yield table.to_pylist()[0]
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise Transient(f"a worker that scored was lost or failed: {reason} Try again.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own words on how it goes."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _source(read: Callable[[], Iterator[pa.Table]]) -> Any:
    """Ray's view of the file: a single task that reads on as batches are taken."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Batches(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *rest: Any, **options: Any) -> list[ReadTask]:
            about = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _packed_batches(read), about)]

    made: Any = Batches  # its __init__ has no types
    return made()


def _packed_batches(read: Callable[[], Iterator[pa.Table]]) -> Iterable[pa.Table]:
    """One row for each batch; what can't be read comes last, after all that can."""
    before = 0
    try:
        for batch in read():
            yield _row(before=before, rows=_packed(batch), error="")
            before += batch.num_rows
    except TreadleError as error:
        yield _row(before=before, rows=b"", error=json.dumps(error_to_json(error)))


class _Worker:
    """Scores batches in a process of its own."""

    def __init__(self, kept: list[Any]) -> None:
        import ray

        self.scoring, model, join = ray.get(kept[0])
        self.stack = ExitStack()
        self.predictor = model.load(self.stack)
        self.join = _entity_join(join, self.stack) if join else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        (given,) = batch.to_pylist()
        if given["error"]:
            return _row(rows=b"", counts="", error=given["error"])
        try:
            if self.join:
                self.join.gaps.clear()
            table, unseen = self.scoring.score(
                self.predictor, self.join, _unpacked(given["rows"]), given["before"]
            )
        except TreadleError as error:
            return _row(rows=b"", counts="", error=json.dumps(error_to_json(error)))
        counts = {"unseen": dict(unseen), "gaps": dict(self.join.gaps) if self.join else {}}
        return _row(rows=_packed(table), counts=json.dumps(counts), error="")


def _entity_join(parcel: JoinParcel, stack: ExitStack) -> Any:
    from treadle.serving.by_entity import EntityJoin
    from treadle.store import open_store

    loop = stack.enter_context(parcel.loop.laid_out())
    return EntityJoin(
        loop, open_store(parcel.store), parcel.plan, lambda: parcel.snapshot, allow_gaps=parcel.allow_gaps
    )


def _row(**cells: Any) -> pa.Table:
    import pyarrow as pa

    types = {bytes: pa.large_binary(), int: pa.int64(), str: pa.string()}
    return pa.table({name: pa.array([value], types[type(value)]) for name, value in cells.items()})


def _packed(table: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()


if TYPE_CHECKING:
    _spread: Spread = RaySpread(1, ModelParcel({}, "none", None), lambda: ...)  # type: ignore[arg-type, return-value]
