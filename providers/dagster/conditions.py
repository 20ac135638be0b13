"""Declarative automation: the same rhythm as the schedules and sensors, as conditions on the assets.

Use one or the other. Conditions fit a stack that is automated by them already, where an upstream table should set a
loop going. They know no cooldown and no strikes: each report that drifted asks for a run. The sensor asks the policy.
"""

from __future__ import annotations

from collections.abc import Mapping

from dagster import AutomationCondition
from treadle.loop import Loop
from treadle_dagster.clock import cron_of, cron_of_every
from treadle_dagster.specs import Condition, Source, loop_specs
from treadle_dagster.translator import TreadleTranslator


def loop_conditions(
    loop: Loop,
    *,
    translator: TreadleTranslator | None = None,
    sources: Mapping[str, Source] | None = None,
) -> dict[str, Condition]:
    """A condition for each stage, for the `conditions` of `loop_assets` and `loop_definitions`.

    The snapshot is made at each tick of `retrain.schedule`, when the newest drift report drifted, and when an asset
    among `sources` has new data; the other stages follow it. The drift report is made every `monitor.every`.

    Args:
        loop: The loop.
        translator: That of the assets.
        sources: Those of the assets.
    """
    keys = {s: spec.key for s, spec in loop_specs(loop, translator=translator, sources=sources).items()}
    found: dict[str, Condition] = {stage: AutomationCondition.eager() for stage in keys}
    begin: list[Condition] = [AutomationCondition.newly_missing()]
    if loop.retrain is not None and loop.retrain.schedule:
        begin.append(AutomationCondition.cron_tick_passed(cron_of(loop.retrain.schedule), "UTC"))
    if loop.retrain is not None and "drift" in loop.retrain.on and "monitor" in keys:
        drifted = AutomationCondition.check_failed() & AutomationCondition.newly_updated()
        begin.append(
            AutomationCondition.asset_matches(keys["monitor"], AutomationCondition.any_checks_match(drifted))
        )
    if sources:
        begin.append(AutomationCondition.any_deps_match(AutomationCondition.data_version_changed()))
    asked: Condition = begin[0]
    for one in begin[1:]:
        asked = asked | one
    found["prepare"] = (
        AutomationCondition.in_latest_time_window() & asked & ~AutomationCondition.in_progress()
    ).with_label(f"{loop.name} asks for a challenger")
    if loop.monitor is not None:
        tick = AutomationCondition.cron_tick_passed(cron_of_every(loop.monitor.every), "UTC")
        found["monitor"] = (tick & ~AutomationCondition.in_progress()).with_label(f"{loop.name} is looked at")
    return found
