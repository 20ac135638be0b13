"""How a stage of a loop becomes an asset's spec; a subclass renames, regroups and annotates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import dagster as dg
from treadle.identity import digest_of
from treadle.loop import Loop
from treadle_dagster.clock import cadence_of
from treadle_dagster.drawn import Drawn

_TAG_KEY = re.compile(r"^[A-Za-z0-9_.-]{1,63}$")
_TAG_VALUE = re.compile(r"^[A-Za-z0-9_.-]{0,63}$")
_FLAVOURS = {"xgboost": "xgboost", "estimator": "scikitlearn", "torch": "pytorch"}


@dataclass(frozen=True, slots=True)
class StageData:
    """What a translator is given.

    Attributes:
        loop: The loop.
        drawn: The stage, its asset's name and description.
        deps: Keys of the assets that this one comes from, by the names that an untouched translator gives;
            a renamed asset is followed by what depends on it.
        files: The loop's files that the stage reads, with their hashes.
    """

    loop: Loop
    drawn: Drawn
    deps: tuple[dg.AssetKey, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class TreadleTranslator:
    """Makes the spec of each asset of a loop.

    Example:
        >>> class Regrouped(TreadleTranslator):
        ...     def get_asset_spec(self, data):
        ...         return super().get_asset_spec(data).replace_attributes(group_name="models")
    """

    def get_asset_spec(self, data: StageData) -> dg.AssetSpec:
        """The spec of one stage's asset. Key, group, owners, tags, kinds, metadata may all be replaced."""
        loop, drawn = data.loop, data.drawn
        return dg.AssetSpec(
            key=[loop.name, drawn.asset],
            deps=list(data.deps),
            description=_description(data),
            group_name=loop.name,
            code_version=_code_version(data),
            owners=_owners(loop.owner),
            tags=_tags(loop),
            kinds=set(drawn.kinds) | _flavour(data),
            metadata={"treadle/stage": drawn.stage},
            freshness_policy=_freshness(loop) if drawn.stage == "deploy" else None,
            skippable=drawn.stage in ("monitor", "retrain"),
        )


def _description(data: StageData) -> str:
    last = f"\n\n{data.loop.description}" if data.loop.description else ""
    return f"{data.drawn.says}{last}"


def _code_version(data: StageData) -> str:
    """Changes with the stage's own version, the parts of the loop that it reads, and the loop's files."""
    from importlib import import_module

    stage = import_module(f"treadle.stages.{data.drawn.stage}")
    made_of = {
        "stage": stage.VERSION,
        "spec": data.loop.part(*data.drawn.sections),
        "files": dict(data.files),
    }
    return digest_of(made_of)[:12]


def _owners(owner: str) -> list[str] | None:
    """Dagster takes an e-mail address, or a team of letters, digits and a few signs."""
    if not owner:
        return None
    if re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", owner):
        return [owner]
    team = re.sub(r"[^A-Za-z0-9_-]+", "-", owner.removeprefix("team:")).strip("-")
    return [f"team:{team}"] if team else None


def _tags(loop: Loop) -> dict[str, str]:
    """The loop's tags that Dagster can hold, and the loop's name."""
    fit = {key: value for key, value in loop.tags.items() if _TAG_KEY.match(key) and _TAG_VALUE.match(value)}
    return {**fit, "treadle/loop": loop.name}


def _flavour(data: StageData) -> set[str]:
    if data.drawn.stage != "train":
        return set()
    return {_FLAVOURS.get(data.loop.train.flavour, "python")}


def _freshness(loop: Loop) -> dg.FreshnessPolicy | None:
    """Half a cadence late warns, a whole one fails: a champion should be looked at as often as its loop says."""
    cadence = cadence_of(loop)
    if cadence is None:
        return None
    cadence = max(cadence, timedelta(hours=2))
    return dg.FreshnessPolicy.time_window(fail_window=2 * cadence, warn_window=1.5 * cadence)
