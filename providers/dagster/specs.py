"""The specs of a loop's assets by a translator, with what depends on a renamed asset following it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg
from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of
from treadle_dagster.drawn import Drawn, stages_of
from treadle_dagster.translator import StageData, TreadleTranslator

Condition = dg.AutomationCondition[Any]
Source = dg.AssetKey | str | Sequence[str] | dg.AssetSpec | dg.AssetsDefinition


def loop_specs(
    loop: Loop, *, translator: TreadleTranslator | None = None, sources: Mapping[str, Source] | None = None
) -> dict[str, dg.AssetSpec]:
    """The spec of each stage's asset, by stage.

    Args:
        loop: The loop.
        translator: Renames, regroups, annotates.
        sources: Assets that make the loop's sources, by the source's name; the snapshot depends on them.

    Raises:
        SpecError: `sources` names what is no source of the loop, or a file of the loop is missing.
    """
    translator = translator or TreadleTranslator()
    _refuse_unknown(loop, sources or {})
    feeding = tuple(_key_of(source) for source in (sources or {}).values())
    stages = stages_of(loop)
    files = _files(loop)
    plain = {drawn.stage: dg.AssetKey([loop.name, drawn.asset]) for drawn in stages}
    found = {
        drawn.stage: translator.get_asset_spec(
            StageData(loop, drawn, _deps(drawn, plain) or feeding, files.get(drawn.stage, {}))
        )
        for drawn in stages
    }
    renamed = {plain[stage]: spec.key for stage, spec in found.items() if spec.key != plain[stage]}
    if not renamed:
        return found
    return {
        stage: spec.replace_attributes(
            deps=[dep._replace(asset_key=renamed.get(dep.asset_key, dep.asset_key)) for dep in spec.deps]
        )
        for stage, spec in found.items()
    }


def _deps(drawn: Drawn, keys: Mapping[str, dg.AssetKey]) -> tuple[dg.AssetKey, ...]:
    """What a stage comes from; where the loop leaves that out, what comes before it."""
    from treadle_dagster.drawn import DRAWN

    after = drawn.after
    while after and after not in keys:
        after = DRAWN[after].after
    return (keys[after],) if after else ()


def _key_of(source: Source) -> dg.AssetKey:
    if isinstance(source, (dg.AssetSpec, dg.AssetsDefinition)):
        return source.key
    return dg.AssetKey.from_coercible(source)


def _refuse_unknown(loop: Loop, sources: Mapping[str, Source]) -> None:
    from treadle.errors import SpecError

    unknown = sorted(set(sources) - set(loop.data.sources))
    if unknown:
        known = ", ".join(loop.data.sources)
        fix = f"The loop's sources are: {known}."
        raise SpecError([loop.fault("data.sources", f"{name!r} is no source.", fix) for name in unknown])


def _files(loop: Loop) -> dict[str, dict[str, str]]:
    """The loop's files by the stage that reads them, with their hashes."""
    found: dict[str, dict[str, str]] = {}
    modules = {path.stem for path in loop.folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    for stage, names in hooks_of(loop).items():
        found[stage] = {}
        for name in names:
            alone = _hash_alone(loop.folder / name, modules)
            found[stage] |= {name: alone} if alone else code_of(loop, [name])
    return found


def _hash_alone(path: Path, modules: set[str]) -> str | None:
    """The hash of a file that can import no other of its folder; None where only parsing could tell."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    text = content.decode(errors="replace")
    reads = path.suffix == ".py" and ("from ." in text or any(name in text for name in modules - {path.stem}))
    return None if reads else sha256(content).hexdigest()
