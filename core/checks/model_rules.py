"""Rules on training, judging and running: names that something else must know."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.errors import HookError, SpecError, UserError


@rule(
    "TR051",
    severity="error",
    title="The flavour is unknown, or refuses the train section",
    fix="Name a flavour that treadle knows, or write your own as module:attribute; see docs/loop.md.",
    sections=("train",),
)
def bad_flavour(context: CheckContext) -> Iterator[Hit]:
    """Asks the flavour itself; imports no learning library."""
    from treadle.models import get_flavour
    from treadle.models.tuning.space import search_problems

    train = context.loop.train
    try:
        flavour = get_flavour(train.flavour, context.loop)
        problems = [*flavour.problems(train), *search_problems(train, flavour)]
    except SpecError as error:
        yield from (
            Hit(f.field, f.problem, f.fix, f.file, f.line) for f in error.faults if f.field == "train.flavour"
        )
        return
    except HookError:
        return  # TR022 says so
    except UserError as error:
        yield context.hit("train.flavour", str(error))
        return
    for problem in problems:
        field, colon, words = problem.partition(": ")
        field, words = (f"train.{field}", words) if colon and " " not in field else ("train", problem)
        fix = context.file.left_over(field, "train.params", by="train.flavour") if context.file else ""
        yield context.hit(field, words, fix or "Correct the train section.")


@rule(
    "TR052",
    severity="error",
    title="A loss or metric that the task does not have",
    fix="Choose a loss or metric of the task; see docs/loop.md.",
    sections=("train",),
)
def unknown_metric(context: CheckContext) -> Iterator[Hit]:
    """The gate's loss, guards and floors."""
    if find_spec("numpy") is None:
        yield context.unchecked("gate", "losses and metrics need numpy.", 'pip install "treadle[stages]"')
        return
    from treadle.gate.metrics import LOSSES, names_for

    task, gate = context.loop.train.task, context.loop.gate
    if gate.loss is not None and gate.loss not in LOSSES[task]:
        fix = f"Choose one of: {', '.join(LOSSES[task])}."
        yield context.hit("gate.loss", f"{gate.loss!r} is no loss for a {task} task.", fix)
    for field in ("guard", "floor"):
        for name in getattr(gate, field):
            if name not in names_for(task):
                near = get_close_matches(name, names_for(task), n=1)
                fix = (
                    f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(names_for(task))}."
                )
                yield context.hit(f"gate.{field}.{name}", f"{name!r} is no metric for a {task} task.", fix)


_LABELS = {"binary": ("BOOLEAN", "BIGINT", "DOUBLE"), "regression": ("BIGINT", "DOUBLE")}


@rule(
    "TR053",
    severity="error",
    title="The label's type does not suit the task",
    fix="Cast it in the query (boolean or 0 and 1 for binary, number for regression), or change train.task.",
    sections=("train",),
)
def mistyped_label(context: CheckContext) -> Iterator[Hit]:
    """Whether a binary label holds only 0 and 1 is seen when the data are read."""
    name, task = context.loop.data.labelled, context.loop.train.task
    label, columns = context.loop.data.tables[name].label or "", context.data.columns.get(name)
    type_ = columns.get(label) if isinstance(columns, dict) else None
    if type_ is not None and task in _LABELS and type_ not in _LABELS[task]:
        yield context.hit(f"data.tables.{name}.label", f"{label!r} is {type_}; the task is {task}.")


@rule(
    "TR055",
    severity="error",
    title="The retrain schedule can't be read",
    fix="Write daily, weekly, monthly, or five fields of cron such as `0 6 * * 1`.",
)
def bad_schedule(context: CheckContext) -> Iterator[Hit]:
    """Cron as cronsim reads it."""
    schedule = context.loop.retrain.schedule if context.loop.retrain else None
    if schedule is not None and not interval_of(schedule):
        yield context.hit("retrain.schedule", f"{schedule!r} is no schedule.")


def interval_of(schedule: str) -> tuple[float, float] | None:
    """The shortest and longest pause of a schedule in days, over 24 ticks; None where it can't be read."""
    from datetime import UTC, datetime

    named = {"daily": 1.0, "weekly": 7.0}
    if schedule in named:
        return named[schedule], named[schedule]
    if schedule == "monthly":
        return 28.0, 31.0
    from itertools import islice, pairwise

    from cronsim import CronSim, CronSimError

    try:
        ticks = list(islice(CronSim(schedule, datetime(2013, 1, 1, tzinfo=UTC)), 25))
    except CronSimError:
        return None
    gaps = [(after - before).total_seconds() / 86400 for before, after in pairwise(ticks)]
    return (min(gaps), max(gaps)) if gaps else None


@rule(
    "TR056",
    severity="error",
    title="A trigger that only a monitor can pull, without a monitor",
    fix="Add a monitor section, or take the trigger out of retrain.on.",
    sections=("monitor",),
)
def trigger_without_monitor(context: CheckContext) -> Iterator[Hit]:
    """Drift and decay are seen in monitor's reports; without them the trigger would never fire."""
    loop = context.loop
    if loop.retrain and loop.monitor is None:
        for position, trigger in enumerate(loop.retrain.on):
            if trigger in ("drift", "decay"):
                yield context.hit(
                    f"retrain.on.{position}", f"{trigger} triggers a retrain, but nothing watches for it."
                )
