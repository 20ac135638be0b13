"""The usual mistakes of watching and retraining: rhythms that don't fit, triggers that can't fire."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from treadle.checks.model_rules import interval_of
from treadle.checks.rule import CheckContext, Hit, rule
from treadle.clock import format_duration
from treadle.spec import Monitor, Retrain


def _rhythms(context: CheckContext) -> tuple[Monitor, Retrain] | None:
    monitor, retrain = context.loop.monitor, context.loop.retrain
    return (monitor, retrain) if monitor and retrain else None


@rule(
    "TR121",
    severity="warning",
    title="No monitor",
    fix="Add `monitor: {every: 7d}`.",
    sections=("monitor",),
)
def no_monitor(context: CheckContext) -> Iterator[Hit]:
    """Nobody would learn that inputs drift or that quality decays."""
    if context.loop.monitor is None:
        yield context.hit("monitor", "nothing watches what the model is given and how good it is.")


@rule(
    "TR122",
    severity="warning",
    title="No retraining",
    fix="Add `retrain: {schedule: monthly, on: [drift]}`; the gate decides what serves.",
    sections=("retrain",),
)
def no_retrain(context: CheckContext) -> Iterator[Hit]:
    """The champion only gets older."""
    retrain = context.loop.retrain
    if retrain is None or not (retrain.schedule or retrain.on):
        yield context.hit("retrain", "no schedule and no trigger ever asks for a challenger.")


@rule(
    "TR123",
    severity="warning",
    title="Labels are never looked at",
    fix="Make monitor.every longer than data.label_delay, and quality.min_coverage between 0.2 and 0.95.",
    sections=("data", "monitor"),
)
def labels_unseen(context: CheckContext) -> Iterator[Hit]:
    """Quality is judged on a window's rows whose labels are known when it ends."""
    monitor, delay = context.loop.monitor, context.loop.data.label_delay
    if monitor is None or not monitor.every:  # TR044
        return
    coverage = monitor.quality.min_coverage
    if delay >= monitor.every:
        words = f"a window is {format_duration(monitor.every)} long, and labels take {format_duration(delay)}"
        yield context.hit("monitor.every", f"{words}: none is known when quality is looked at.")
    elif 1 - delay / monitor.every < coverage:
        known = 1 - delay / monitor.every
        words = (
            f"when a window ends at most {known:.0%} of its labels are known; {coverage:.0%} are asked for"
        )
        yield context.hit("monitor.quality.min_coverage", f"{words}.")
    elif coverage > 0.99:
        yield context.hit("monitor.quality.min_coverage", f"quality waits for {coverage:.0%} of all labels.")


@rule(
    "TR124",
    severity="warning",
    title="A schedule without drift",
    fix="Add drift to retrain.on, so that a change between two ticks is answered.",
    sections=("retrain",),
)
def schedule_without_drift(context: CheckContext) -> Iterator[Hit]:
    """The schedule alone is blind between its ticks."""
    retrain = context.loop.retrain
    if retrain and retrain.schedule and "drift" not in retrain.on:
        yield context.hit("retrain.on", "challengers come by schedule only, whatever happens in between.")


@rule(
    "TR125",
    severity="warning",
    title="Drift without a schedule",
    fix="Add retrain.schedule: slow change is learned by trying often, and the gate decides.",
    sections=("retrain",),
)
def drift_without_schedule(context: CheckContext) -> Iterator[Hit]:
    """Inputs can stay the same while what they mean changes."""
    retrain = context.loop.retrain
    if retrain and not retrain.schedule and set(retrain.on) & {"drift", "decay"}:
        yield context.hit("retrain", f"challengers come only on {' and '.join(retrain.on)}.")


@rule(
    "TR126",
    severity="warning",
    title="A drift retrain that can't have learned the drift",
    fix="Make strikes x monitor.every at least data.holdout plus data.label_delay, or the holdout shorter.",
    sections=("data", "monitor", "retrain"),
)
def drift_too_young(context: CheckContext) -> Iterator[Hit]:
    """Training ends a holdout before `as_of`, perhaps before the drift began; the retrain then waits."""
    found, data = _rhythms(context), context.loop.data
    if found and "drift" in found[1].on:
        monitor, retrain = found
        seen, unseen = retrain.strikes * monitor.every, data.holdout + data.label_delay
        if seen < unseen:
            words = f"drift is called after {retrain.strikes} x {format_duration(monitor.every)}"
            yield context.hit(
                "retrain.strikes", f"{words}, while the newest {format_duration(unseen)} are not trained on."
            )


@rule(
    "TR127",
    severity="warning",
    title="Monitoring is rarer than retraining",
    fix="Make monitor.every at most as long as the time between two ticks of retrain.schedule.",
    sections=("monitor", "retrain"),
)
def rare_monitor(context: CheckContext) -> Iterator[Hit]:
    """A model would be replaced before anybody looked at it."""
    found = _rhythms(context)
    gaps = interval_of(found[1].schedule) if found and found[1].schedule else None
    if found and gaps and found[0].every > timedelta(days=gaps[1]):
        words = (
            f"a window is {format_duration(found[0].every)}, the schedule's longest pause {gaps[1]:g} days"
        )
        yield context.hit("monitor.every", f"{words}.")


@rule(
    "TR128",
    severity="warning",
    title="A cooldown shorter than the monitor's rhythm",
    fix="Make retrain.cooldown at least monitor.every: a shorter one never holds anything back.",
    sections=("monitor", "retrain"),
)
def short_cooldown(context: CheckContext) -> Iterator[Hit]:
    """Triggers arise once in a window."""
    found = _rhythms(context)
    if found and found[1].on and found[1].cooldown < found[0].every:
        words = (
            f"cooldown is {format_duration(found[1].cooldown)}, a window {format_duration(found[0].every)}"
        )
        yield context.hit("retrain.cooldown", f"{words}.")


@rule(
    "TR129",
    severity="warning",
    title="A setting of a trigger that is not listed",
    fix="List the trigger under retrain.on, or take the setting out.",
    sections=("retrain",),
)
def idle_setting(context: CheckContext) -> Iterator[Hit]:
    """`strikes` belongs to drift and decay, `new_labels` to new_labels."""
    retrain = context.loop.retrain
    if retrain is None:
        return
    for field, triggers in (("strikes", {"drift", "decay"}), ("new_labels", {"new_labels"})):
        if field in retrain.model_fields_set and not triggers & set(retrain.on):
            yield context.hit(
                f"retrain.{field}",
                f"{field} is set, but retrain.on lists no {' or '.join(sorted(triggers))}.",
            )


@rule(
    "TR130",
    severity="warning",
    title="Decay as a trigger",
    fix="Let decay alert, and retrain by schedule and drift; name it only where seasons are weak.",
    sections=("retrain",),
)
def decay_trigger(context: CheckContext) -> Iterator[Hit]:
    """A season can hide decay or feign it: on a year of flights it was the worst of all triggers."""
    retrain = context.loop.retrain
    if retrain and "decay" in retrain.on:
        yield context.hit(f"retrain.on.{retrain.on.index('decay')}", "a fall in quality triggers a retrain.")


@rule(
    "TR131",
    severity="warning",
    title="What is served is not what is watched",
    fix="Set deploy.capture: true.",
    sections=("deploy", "monitor"),
)
def no_capture(context: CheckContext) -> Iterator[Hit]:
    """Without captures the monitor scores rows again, and can't see what the endpoint was really asked."""
    loop = context.loop
    if loop.monitor and loop.deploy.mode == "realtime" and not loop.deploy.capture:
        yield context.hit("deploy.capture", "the endpoint's requests and answers are not kept.")


@rule(
    "TR132",
    severity="warning",
    title="Online features that nobody refreshes",
    fix="Add a monitor: views are materialized on its rhythm; or run `treadle materialize` yourself.",
    sections=("deploy", "features", "monitor"),
)
def stale_online(context: CheckContext) -> Iterator[Hit]:
    """A realtime endpoint reads views whose values only a deployment writes."""
    loop = context.loop
    if loop.deploy.mode == "realtime" and loop.features.use and loop.monitor is None:
        yield context.hit(
            "features.use", f"{', '.join(loop.features.use)} are served online, and nothing refreshes them."
        )
