"""The usual mistakes of judging: gates that can't say no, holdouts that can't carry a judgement."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec

from treadle.checks.rule import CheckContext, Hit, rule
from treadle.clock import format_duration
from treadle.loop import Loop

LEAST_BLOCKS = 14
LARGEST_MARGIN = 0.05
LARGEST_ALPHA = 0.2


@rule(
    "TR101",
    severity="warning",
    title="A trigger without a gate worth the name",
    fix="Give the gate a floor and a guard: what trains by itself must be stopped by itself.",
    sections=("gate", "retrain"),
)
def no_gate(context: CheckContext) -> Iterator[Hit]:
    """Retraining starts by itself, and neither a guard nor a floor stands before production."""
    loop = context.loop
    triggered = loop.retrain is not None and (loop.retrain.schedule or loop.retrain.on)
    if triggered and not loop.gate.guard and not loop.gate.floor:
        yield context.hit("gate", "retraining starts by itself, and the gate has neither guard nor floor.")


@rule(
    "TR102",
    severity="warning",
    title="No floor",
    fix="Set gate.floor to the least quality that is worth serving, such as {roc_auc: 0.6}, for regression {r2: 0.2}.",
    sections=("gate", "train"),
)
def no_floor(context: CheckContext) -> Iterator[Hit]:
    """Without one the first model need only beat a trivial baseline."""
    if not context.loop.gate.floor:
        such = "{r2: 0.2}" if context.loop.train.task == "regression" else "{roc_auc: 0.6}"
        fix = f"Set gate.floor to the least quality that is worth serving, such as {such}."
        yield context.hit("gate.floor", "no quality is too low to serve.", fix)


@rule(
    "TR103",
    severity="warning",
    title="No slices",
    fix="Name columns under gate.slices in which no group may be harmed.",
    sections=("gate",),
)
def no_slices(context: CheckContext) -> Iterator[Hit]:
    """A mean can rise while a group pays for it."""
    if not context.loop.gate.slices:
        yield context.hit("gate.slices", "a challenger may harm a group of rows unseen.")


@rule(
    "TR104",
    severity="warning",
    title="A margin so wide that worse models pass",
    fix="Set gate.margin to a loss that nobody would mind, such as 0.005 nats.",
    sections=("gate", "train"),
)
def wide_margin(context: CheckContext) -> Iterator[Hit]:
    """Only for losses whose size is known beforehand: log_loss and brier."""
    gate, task = context.loop.gate, context.loop.train.task
    bounded = gate.loss in ("log_loss", "brier") or (gate.loss is None and task != "regression")
    if gate.mode == "non_inferiority" and bounded and gate.margin > LARGEST_MARGIN:
        yield context.hit(
            "gate.margin", f"a challenger may be worse by {gate.margin:g}, each time it is judged."
        )


@rule(
    "TR105",
    severity="warning",
    title="Non-inferiority with a margin of 0",
    fix="Set a small gate.margin, or say mode: superiority if only better models may serve.",
    sections=("gate",),
)
def no_margin(context: CheckContext) -> Iterator[Hit]:
    """An equal model passes a margin of 0 only as often as alpha says."""
    gate = context.loop.gate
    if gate.mode == "non_inferiority" and gate.margin == 0:
        yield context.hit("gate.margin", "with a margin of 0 non-inferiority asks as much as superiority.")


@rule(
    "TR106",
    severity="warning",
    title="An alpha that lets chance decide",
    fix="Set gate.alpha to 0.05, or up to 0.2 where a false promotion costs little.",
    sections=("gate",),
)
def large_alpha(context: CheckContext) -> Iterator[Hit]:
    """`alpha` is the rate of false promotions that the test allows."""
    alpha = context.loop.gate.alpha
    if alpha > LARGEST_ALPHA:
        yield context.hit("gate.alpha", f"{alpha:.0%} of the models that are not good enough would pass.")


def _blocks(loop: Loop) -> int:
    """How many blocks the holdout has."""
    return int(loop.data.holdout / loop.gate.block) if loop.gate.block else 0


@rule(
    "TR107",
    severity="error",
    title="A holdout with fewer blocks than the gate asks for",
    fix="Make data.holdout at least gate.min_blocks times gate.block.",
    sections=("data", "gate"),
)
def holdout_never_judges(context: CheckContext) -> Iterator[Hit]:
    """Every evaluation would be refused as too small."""
    loop = context.loop
    blocks = _blocks(loop)
    if blocks < loop.gate.min_blocks:
        words = (
            f"{format_duration(loop.data.holdout)} hold {blocks} blocks of {format_duration(loop.gate.block)}"
        )
        yield context.hit("data.holdout", f"{words}; gate.min_blocks is {loop.gate.min_blocks}.")


@rule(
    "TR108",
    severity="warning",
    title="Fewer than 14 blocks to judge by",
    fix="Use 14 blocks or more, 28 where the data allow it.",
    sections=("data", "gate"),
)
def few_blocks(context: CheckContext) -> Iterator[Hit]:
    """Tests by block promise their rate of false promotions from about 14 blocks on."""
    loop = context.loop
    blocks = _blocks(loop)
    if loop.gate.min_blocks <= blocks < LEAST_BLOCKS:
        yield context.hit("data.holdout", f"the holdout has {blocks} blocks.")


@rule(
    "TR109",
    severity="warning",
    title="A block shorter than a day",
    fix="Set gate.block to 1d or longer, unless errors of one day are known not to move together.",
    sections=("gate",),
)
def short_block(context: CheckContext) -> Iterator[Hit]:
    """Errors within a day usually move together; shorter blocks make the test too bold."""
    block = context.loop.gate.block
    if block < timedelta(days=1):
        yield context.hit(
            "gate.block", f"blocks of {format_duration(block)} count one day's weather many times."
        )


@rule(
    "TR110",
    severity="warning",
    title="Slices that are never judged",
    fix="Make the holdout longer, or gate.slice_min_blocks smaller.",
    sections=("data", "gate"),
)
def idle_slices(context: CheckContext) -> Iterator[Hit]:
    """A slice needs more blocks than the holdout has."""
    loop = context.loop
    blocks = _blocks(loop)
    if (loop.gate.slices or loop.gate.fairness) and blocks < loop.gate.slice_min_blocks:
        yield context.hit(
            "gate.slice_min_blocks",
            f"a slice needs {loop.gate.slice_min_blocks} blocks, the holdout has {blocks}.",
        )


@rule(
    "TR111",
    severity="warning",
    title="A guard that asks for a gain",
    fix="Write the worst allowed change with its sign, such as {roc_auc: -0.01} or {rmse: 0.1}.",
    sections=("gate",),
)
def guard_sign(context: CheckContext) -> Iterator[Hit]:
    """A guard is the worst allowed change; one on the better side of zero refuses every equal model."""
    if find_spec("numpy") is None:
        return  # TR052 says so
    from treadle.gate.metrics import HIGHER_IS_BETTER

    for name, worst in context.loop.gate.guard.items():
        if worst > 0 and HIGHER_IS_BETTER.get(name) is True:
            yield context.hit(f"gate.guard.{name}", f"{name} must rise by {worst:g} at each promotion.")
        elif worst < 0 and HIGHER_IS_BETTER.get(name) is False:
            yield context.hit(f"gate.guard.{name}", f"{name} must fall by {-worst:g} at each promotion.")


@rule(
    "TR112",
    severity="warning",
    title="Fairness is judged, and nobody looks",
    fix="Set approval: manual, so that a person sees the groups' figures before a model serves.",
    sections=("gate", "approval"),
)
def unseen_fairness(context: CheckContext) -> Iterator[Hit]:
    """A statistical guard alone is weak on small groups."""
    if context.loop.gate.fairness and context.loop.approval == "auto":
        yield context.hit("approval", "gate.fairness names groups, and approval is auto.")


@rule(
    "TR113",
    severity="warning",
    title="A window that is hardly longer than the holdout",
    fix="Make data.window at least twice data.holdout, or `all`.",
    sections=("data",),
)
def short_window(context: CheckContext) -> Iterator[Hit]:
    """A model that sees less than what it is judged by swings from run to run."""
    data = context.loop.data
    if data.window != "all" and data.window < 2 * data.holdout:
        words = f"the window is {format_duration(data.window)}, the holdout {format_duration(data.holdout)}"
        yield context.hit("data.window", f"{words}.")


@rule(
    "TR114",
    severity="warning",
    title="Early stopping or a search keeps a large part of the window from training",
    fix="Set it to at most a quarter of data.window.",
    sections=("data", "train"),
)
def long_tail(context: CheckContext) -> Iterator[Hit]:
    """The newest rows, which matter most, are never fitted."""
    train, window = context.loop.train, context.loop.data.window
    for name, section, purpose in (
        ("early_stopping", train.early_stopping, "not fitted"),
        ("tune", train.tune, "not fitted by the trials"),
    ):
        newest = section.newest if section else None
        if newest is not None and window != "all" and newest > window / 4:
            words = f"the newest {format_duration(newest)} of {format_duration(window)} are {purpose}."
            yield context.hit(f"train.{name}.newest", words)


@rule(
    "TR115",
    severity="warning",
    title="Labels are assumed to be known at once",
    fix="Set data.label_delay to the time after which nearly all labels are known.",
    sections=("data",),
)
def no_label_delay(context: CheckContext) -> Iterator[Hit]:
    """Labels come later than their rows, yet the holdout reaches to `as_of`, where few are known."""
    data = context.loop.data
    table = data.tables[data.labelled]
    if data.label_delay == timedelta(0) and table.label_known_at != table.event_time:
        words = f"labels become known at {table.label_known_at!r}, and label_delay is 0"
        yield context.hit("data.label_delay", f"{words}: the newest rows of the holdout have none yet.")


@rule(
    "TR116",
    severity="warning",
    title="No data checks",
    fix="Add Great Expectations types under data.checks, at least for missing values of what matters.",
    sections=("data",),
)
def no_data_checks(context: CheckContext) -> Iterator[Hit]:
    """A broken feed would be learned from."""
    if not context.loop.data.checks:
        yield context.hit("data.checks", "nothing is asked of the data before a model learns from them.")


@rule(
    "TR117",
    severity="info",
    title="A leakage check is overridden",
    fix="Take the entry out once its reason is gone.",
    sections=("data",),
)
def leakage_allowed(context: CheckContext) -> Iterator[Hit]:
    """Shown at each check, with the reason; without a reason it is a warning."""
    for name, reason in context.loop.data.leakage.allow.items():
        field = f"data.leakage.allow.{name}"
        if reason.strip():
            yield context.hit(field, f"{name} passes because: {reason.strip()}")
        else:
            yield Hit(field, f"{name} passes without a reason.", "Write the reason.", severity="warning")


@rule(
    "TR120",
    severity="warning",
    title="A default in units of a loss that for regression has the label's scale",
    fix="Set it in the loss's own units, such as 1 % of what a prediction of the mean loses.",
    sections=("gate", "monitor", "train"),
)
def unscaled_defaults(context: CheckContext) -> Iterator[Hit]:
    """The defaults are meant for log_loss and brier; minutes, euros and grams differ by any factor."""
    loop = context.loop
    if loop.train.task != "regression":
        return
    gate, quality = loop.gate, loop.monitor.quality if loop.monitor else None
    loss = gate.loss or "squared_error"
    unit = "the label's unit" if loss == "absolute_error" else "the square of the label's unit"
    such = (
        "1 % of the mean distance of the labels from their median"
        if loss == "absolute_error"
        else "1 % of the labels' variance"
    )
    left = {"gate.margin": gate.margin} if "margin" not in gate.model_fields_set else {}
    if (gate.slices or gate.fairness) and "slice_limit" not in gate.model_fields_set:
        left["gate.slice_limit"] = gate.slice_limit
    if quality and "margin" not in quality.model_fields_set:
        left["monitor.quality.margin"] = quality.margin
    for field, value in left.items():
        words = f"the default {value:g} is a difference of {loss}, so in {unit}, whatever the label's scale."
        yield context.hit(field, words, f"Set {field} in {unit}, such as {such}.")
