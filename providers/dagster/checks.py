"""Asset checks: what a loop promises to look at, declared when it is loaded, without reading data.

What a record says of them is in `told`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import dagster as dg
from treadle.loop import Loop


@dataclass(frozen=True, slots=True)
class Declared:
    """A check that an asset has.

    Attributes:
        name: Letters, digits and underscores; the same in every run.
        says: What it asks.
        blocking: Whether a failure stops what is downstream.
        rule: The position in `data.checks`, for a rule of Great Expectations.
        silent: What it means when a record does not speak of it.
    """

    name: str
    says: str
    blocking: bool = False
    rule: int | None = None
    silent: str = "not asked this time"


def declared(loop: Loop, stage: str) -> list[Declared]:
    """The checks of a stage's asset."""
    if stage == "prepare":
        return [*_rules(loop), Declared("leakage", "No column tells what could not be known yet.", True)]
    if stage == "featurize" and loop.features.use:
        return [Declared("leakage", "No feature tells what could not be known yet.", True)]
    if stage == "train":
        return [Declared("tracked", "The candidate has its run and version in MLflow.")]
    if stage == "evaluate":
        return _criteria(loop)
    if stage == "release":
        return [Declared("answered", "No person has to decide about this challenger.")]
    if stage == "monitor":
        return [
            Declared("drift", "The window's inputs look like the champion's training data."),
            Declared("quality", "The champion predicts as well as when it was judged."),
        ]
    return []


def specs(key: dg.AssetKey, checks: Iterable[Declared]) -> list[dg.AssetCheckSpec]:
    """The checks as Dagster declares them."""
    return [
        dg.AssetCheckSpec(check.name, asset=key, description=check.says, blocking=check.blocking)
        for check in checks
    ]


def _rules(loop: Loop) -> Iterator[Declared]:
    """One check for each rule of `data.checks`, named by its type and column."""
    seen: Counter[str] = Counter()
    for position, rule in enumerate(loop.data.checks):
        kind, table = str(rule.get("type", "rule")), str(rule.get("table", loop.data.labelled))
        columns = [str(rule[key]) for key in ("column", "column_A", "column_B") if key in rule]
        parts = [kind.removeprefix("expect_"), *([table] if table != loop.data.labelled else []), *columns]
        name = plain_name("_".join(parts))
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}_{seen[name]}"
        limits = {k: v for k, v in rule.items() if k not in ("type", "table", "severity")}
        said = ", ".join(f"{key}={value!r}" for key, value in limits.items())
        blocking = rule.get("severity", "error") == "error"
        yield Declared(name, f"{table}: {kind}({said})", blocking, position)


def _criteria(loop: Loop) -> list[Declared]:
    gate = loop.gate
    budgets = {"latency": gate.latency_ms, "size": gate.size_mb}
    return [
        Declared("challenger_won", "The challenger may replace the champion."),
        Declared("comparison", "The challenger's loss on the identical rows beside the champion's."),
        Declared("anchor", "It does not lose, either, to the last champion that earned its place."),
        Declared(
            "suspicious",
            "It is not better than anyone would believe.",
            silent="nothing is too good to be true",
        ),
        *(
            Declared(plain_name(f"guard_{name}"), f"{name} fell by no more than {-worst:g}.")
            for name, worst in gate.guard.items()
        ),
        *(
            Declared(plain_name(f"floor_{name}"), f"{name} is at least {worst:g}.")
            for name, worst in gate.floor.items()
        ),
        *(
            Declared(plain_name(f"slices_{name}"), f"No value of {name} is served worse.")
            for name in gate.slices
        ),
        *(
            Declared(plain_name(f"fairness_{name}"), f"No group of {name} is served worse.")
            for name in gate.fairness
        ),
        *(Declared(name, f"The {name} stays within {limit:g}.") for name, limit in budgets.items() if limit),
    ]


def plain_name(text: str) -> str:
    """A text as the name of a check: Dagster takes letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
