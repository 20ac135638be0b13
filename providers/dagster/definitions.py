"""Everything that Dagster needs of a loop, or of a folder of loops."""

import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from treadle.errors import SpecError, TreadleError, UserError
from treadle.loop import Loop
from treadle_dagster import jobs, schedules, sensors
from treadle_dagster.assets import AUTO, assets_of, windows_of
from treadle_dagster.checks import plain_name
from treadle_dagster.resources import TreadleResource
from treadle_dagster.specs import Condition, Source, loop_specs
from treadle_dagster.translator import TreadleTranslator

log = logging.getLogger(__name__)
_DEFAULT = TreadleResource()


def loop_definitions(
    loop: Loop | str | os.PathLike[str],
    *,
    translator: TreadleTranslator | None = None,
    sources: Mapping[str, Source] | None = None,
    partitions: dg.TimeWindowPartitionsDefinition | str | None = AUTO,
    conditions: Mapping[str, Condition] | None = None,
    resource: TreadleResource | None = None,
    executor: dg.ExecutorDefinition | None = None,
) -> dg.Definitions:
    """A loop's assets with its jobs, schedules and sensors, and the resource `treadle`.

    Args:
        loop: The loop, or its file.
        translator: See `loop_assets`.
        sources: See `loop_assets`.
        partitions: See `loop_assets`.
        conditions: See `loop_assets`.
        resource: Store, MLflow, pools; left out as for `treadle run`. Definitions that are merged need one and the
            same object.
        executor: Of the loop's own jobs, and so of its schedules, sensors and backfills; left out, the location's.

    Raises:
        SpecError: The loop file is wrong, or `sources` names no source.
    """
    if not isinstance(loop, Loop):
        loop = Loop.load(loop)
    specs = loop_specs(loop, translator=translator, sources=sources)
    keys = {stage: spec.key for stage, spec in specs.items()}
    windows = windows_of(loop, partitions)
    job = jobs.loop_job(loop, keys, executor)
    ticks = [schedules.train_schedule(loop, job, keys, windows), schedules.watch_schedule(loop, job, keys)]
    looks = [
        sensors.retrain_sensor(loop, job, keys, windows),
        sensors.release_sensor(loop, job, keys, windows),
    ]
    return dg.Definitions(
        assets=assets_of(loop, specs, windows, conditions or {}),
        jobs=[job, jobs.decide_job(loop, keys, windows, executor)],
        schedules=[tick for tick in ticks if tick is not None],
        sensors=[look for look in looks if look is not None],
        resources={"treadle": resource or _DEFAULT},
    )


def folder_definitions(
    *folders: str | os.PathLike[str],
    translator: TreadleTranslator | None = None,
    resource: TreadleResource | None = None,
    strict: bool = False,
) -> dg.Definitions:
    """Every loop of some folders, run one step after another in the run's process.

    A loop that can't be loaded becomes one asset, `[file, load_error]`, that says why; the others load.

    Args:
        folders: Their `*.yaml` and `*.yml` files are loops, but for `pools.yaml`.
        translator: See `loop_assets`.
        resource: See `loop_definitions`.
        strict: Whether a loop that can't be loaded is an error of the whole location, as for a test.

    Raises:
        SpecError: A loop file is wrong, where `strict`. UserError: There is no such folder.
    """
    with _collector_paused():
        found = list(_each([Path(folder) for folder in folders], translator, resource or _DEFAULT, strict))
    shared = dg.Definitions(executor=dg.in_process_executor, resources={"treadle": resource or _DEFAULT})
    return dg.Definitions.merge(*found, shared)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the garbage collector, which leaves alone what was made: it stays, and to look at it costs a fifth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def _each(
    folders: Sequence[Path], translator: TreadleTranslator | None, resource: TreadleResource, strict: bool
) -> Iterator[dg.Definitions]:
    names: dict[str, Path] = {}
    for path in [path for folder in folders for path in _loops_in(folder)]:
        try:
            loop = Loop.load(path)
            if loop.name in names:
                problem = f"{names[loop.name].name} has a loop of the name {loop.name!r} already."
                raise SpecError([loop.fault("name", problem, "Give one of them another name.")])
            yield loop_definitions(loop, translator=translator, resource=resource)
            names[loop.name] = path
        except (TreadleError, dg.DagsterError) as error:
            if strict:
                raise
            log.error("the loop %s can't be loaded: %s", path, error)
            yield dg.Definitions(assets=[broken_loop(path, str(error))])


def _loops_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: where are the loops?")
    return sorted(
        path for path in folder.iterdir() if path.suffix in (".yaml", ".yml") and path.stem != "pools"
    )


def broken_loop(path: Path, problem: str) -> dg.AssetsDefinition:
    """What stands in for a loop that can't be loaded: its description is the error, and so is its failure."""

    @dg.asset(
        key=[plain_name(path.stem) or "loop", "load_error"],
        group_name=plain_name(path.stem) or "loop",
        description=f"{path.name} can't be loaded:\n\n```\n{problem}\n```",
        kinds={"yaml"},
    )
    def load_error() -> None:
        raise dg.Failure(description=problem, allow_retries=False)

    return load_error
