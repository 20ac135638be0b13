"""What a job's use of its place says in words: data-bound, oversized, loss not falling, more workers that do not pay.

The thresholds stand in docs/hardware.md too. They are rules of thumb, and short jobs are not judged by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from treadle.hardware.pools import Pool
from treadle.jobs.measure import Use
from treadle.words import counted

# Seconds below which start and chance weigh more than the work.
SHORT_S = 20.0
# Share of a training's time that goes into data rather than into fitting.
DATA_BOUND = 0.4
# Share of a fit in which an accelerator waits for its next rows.
LOADER_BOUND = 0.2
# Share of what was asked for below which less would do.
CPU_IDLE, MEMORY_IDLE, DEVICE_IDLE = 0.3, 0.25, 0.3
SMALLEST_MEMORY_GIB = 2.0
# Rounds below which a course of losses is not judged, and the least part of its fall that its second half must bring.
FEW_ROUNDS, FLAT = 20, 0.01
# How much faster the same work must be with more workers, as a share of what their number promises.
WORKERS_PAY = 0.6


def words_of(
    use: Use,
    pool: Pool,
    *,
    trains: bool,
    history: Mapping[str, Sequence[float]] | None = None,
    earlier: Iterable[tuple[str, Use]] = (),
) -> list[str]:
    """Sentences about a job; none where nothing is wrong.

    Args:
        use: What it used.
        pool: What it asked for.
        trains: Whether it trained: only then its time is divided into data and fit.
        history: Metric to its values by round, as the fit reported them; of several, the loss stands first.
        earlier: Name and use of earlier jobs of the same loop and stage.
    """
    found: list[str] = []
    if use.seconds >= SHORT_S:
        if trains:
            found += _data_bound(use)
        found += _oversized(use, pool)
    found += _loss(history or {})
    found += _workers(use, earlier)
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _data_bound(use: Use) -> Iterator[str]:
    if use.reading + use.waiting >= DATA_BOUND:
        yield (
            f"data-bound: {_percent(use.reading)} of {use.seconds:.0f} s went into reading and encoding data"
            f" and {_percent(use.waiting)} into waiting for rows within the fit; a faster device or more workers"
            " will not help much, fewer columns, a shorter window or a store nearer by will"
        )
    elif use.devices and use.fitting and use.waiting / use.fitting >= LOADER_BOUND:
        yield (
            f"data-bound: for {_percent(use.waiting / use.fitting)} of the fit the device waited for its next rows;"
            " larger batches or more cores for loading will help, a faster device will not"
        )
    if use.blocked >= DATA_BOUND:
        yield f"data-bound: {_percent(use.blocked)} of {use.seconds:.0f} s went into waiting for a disk"


def _oversized(use: Use, pool: Pool) -> Iterator[str]:
    if pool.cpu is not None and pool.cpu >= 2 and pool.kind == "cpu" and use.cpu_share < CPU_IDLE:
        used = use.cpu_seconds / use.seconds
        yield (
            f"oversized: {used:.1f} of {pool.cpu:g} cores were used on average; cpu: {max(1, math.ceil(used * 1.25))}"
            f" would do in the pool {pool.name}"
        )
    memory = pool.memory_gib or 0
    if memory >= SMALLEST_MEMORY_GIB and use.peak_memory_gib / memory < MEMORY_IDLE:
        yield (
            f"oversized: {use.peak_memory_gib:.1f} of {memory:g} GiB of memory were used at most;"
            f" memory_gib: {max(1, math.ceil(use.peak_memory_gib * 1.5))} would do in the pool {pool.name}"
        )
    shares = [device.share for device in use.devices if device.share is not None]
    if shares and sum(shares) / len(shares) < DEVICE_IDLE:
        named = ", ".join(device.name for device in use.devices)
        yield (
            f"oversized: {named} worked {_percent(sum(shares) / len(shares))} of the time; try a smaller device,"
            " fewer of them, or larger batches"
        )


def _loss(history: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """By the course of the first metric that falls when a model gets better."""
    name = next((name for name in history if _falls(name)), None)
    if name is None:
        return
    values = history[name]
    if not all(math.isfinite(value) for value in values):
        number = next(i for i, value in enumerate(values) if not math.isfinite(value))
        yield f"loss not falling: {name} is no number from round {number + 1} on; lower the learning rate"
        return
    if len(values) < FEW_ROUNDS:
        return
    first, best, half = values[0], min(values), min(values[: len(values) // 2])
    if best >= first - FLAT * abs(first):
        yield (
            f"loss not falling: {name} was {first:g} in the first of {counted(len(values), 'round')} and"
            f" {best:g} at best; the features, the labels or the learning rate are to blame"
        )
    elif half - best <= FLAT * (first - best):
        yield (
            f"loss not falling any more: the second half of {counted(len(values), 'round')} brought {name} from"
            f" {half:g} to {best:g} only; fewer rounds or early stopping would do"
        )


def _falls(metric: str) -> bool:
    name = metric.lower()
    return any(part in name for part in ("loss", "error", "rmse", "mae", "deviance", "mse", "nll"))


def _workers(use: Use, earlier: Iterable[tuple[str, Use]]) -> Iterator[str]:
    """Compared with the best earlier job that did like work with fewer workers."""
    if use.workers < 2 or not use.work:
        return
    speed = use.work / use.seconds
    fewer = [
        (each.work / each.seconds, name, each)
        for name, each in earlier
        if each.work and each.workers < use.workers and each.seconds >= 1
    ]
    for rate, name, other in sorted(fewer, key=lambda found: -found[0])[:1]:
        promised = use.workers / other.workers
        if speed / rate < max(1.0, WORKERS_PAY * promised):
            times = speed / rate
            told = f"{times:.1f} times as fast as" if times >= 1 else f"slower ({times:.1f} times) than"
            yield (
                f"more workers do not pay: {use.workers} were {told}"
                f" {counted(other.workers, 'worker')} ({name}, {other.seconds:.0f} s), at {promised:g} times the price"
            )
