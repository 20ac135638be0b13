"""Rules on features: the Feast file can be imported, and the columns that the loop names are there."""

from __future__ import annotations

from collections.abc import Iterator

from treadle.checks.code_rules import hook_failed
from treadle.checks.rule import CheckContext, Hit, rule
from treadle.errors import HookError, MissingPackage, SpecError, TreadleError


@rule(
    "TR041",
    severity="error",
    title="The features can't be made as the loop and its Feast file say",
    fix="Correct the Feast file, or `features` in the loop.",
    sections=("data.tables", "features"),
)
def bad_features(context: CheckContext) -> Iterator[Hit]:
    """Makes the plan of the features as featurize does, over tables without rows."""
    if context.data.missing or context.data.unplanned:
        if not context.data.missing:
            tables = ", ".join(context.data.unplanned)
            why = f"the columns of {tables} are not known, so features could not be planned."
            yield context.unchecked(
                "features", why, "Correct what is said of these tables; Python tables need a run."
            )
        return
    try:
        context.data.features()
    except MissingPackage as error:
        yield context.unchecked("features.file", str(error), "Check again where it is installed.")
    except SpecError as error:
        yield from (Hit(f.field, f.problem, f.fix, f.file, f.line) for f in error.faults)
    except HookError as error:
        yield from hook_failed(context, "features.file", error)
    except TreadleError as error:
        yield context.hit("features", str(error))


@rule(
    "TR042",
    severity="warning",
    title="A Feast file without views in use, so that none of it is used",
    fix="Name the views under features.use, or take features.file out.",
    sections=("features",),
)
def unused_feast_file(context: CheckContext) -> Iterator[Hit]:
    """The reverse, views without a file, is an error that TR041 finds."""
    features = context.loop.features
    if features.file and not features.use:
        yield context.hit("features.file", f"{features.file} is named, but features.use is empty.")


@rule(
    "TR043",
    severity="error",
    title="A slice or a fairness group is no column that rows can be told apart by",
    fix="Name a feature: a column of the labelled table, or view__column.",
    sections=("data.tables", "features"),
)
def unknown_slice(context: CheckContext) -> Iterator[Hit]:
    """Slices and fairness groups are columns of the feature set."""
    if context.data.missing or context.data.unplanned:
        return  # TR041 says so
    try:
        known = context.data.features()
    except TreadleError:
        return  # TR041 says so
    for field in ("slices", "fairness"):
        for position, column in enumerate(getattr(context.loop.gate, field)):
            if column not in known:
                fix = f"Name a feature; known are: {', '.join(known)}."
                yield context.hit(f"gate.{field}.{position}", f"there is no feature {column!r}.", fix)
