"""Models: the flavours by name, and loading what they saved."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from treadle.errors import SpecError, UserError
from treadle.models.predictor import Flavour, Predictor, read_manifest

if TYPE_CHECKING:
    from treadle.loop import Loop
    from treadle.records import Candidate
    from treadle.store import Store

__all__ = ["FLAVOURS", "Flavour", "Predictor", "get_flavour", "load_candidate", "load_predictor"]

FLAVOURS: Mapping[str, str] = MappingProxyType(
    {
        "estimator": "treadle.models.estimator:EstimatorFlavour",
        "torch": "treadle.models.torch.flavour:TorchFlavour",
        "xgboost": "treadle.models.xgboost.flavour:XGBoostFlavour",
    }
)


def get_flavour(name: str, loop: Loop | None = None) -> Flavour:
    """The flavour of a name, imported on use; imports no learning library.

    Args:
        name: One of `FLAVOURS`, or `module:attribute` for a class or function in the loop's folder that takes
            no arguments and gives a Flavour.
        loop: The loop whose folder holds `module`.

    Raises:
        UserError: There is no such flavour. HookError: The loop's own could not be imported.
    """
    if ":" in name:
        if loop is None:
            raise UserError(f"the flavour {name!r} is a loop's own: it can only be had with its loop")
        from treadle.loop_code import load_hook

        return cast("Flavour", load_hook(loop, name, "train.flavour")())
    try:
        module, _, attribute = FLAVOURS[name].partition(":")
    except KeyError:
        near = get_close_matches(name, FLAVOURS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problem = f"there is no flavour {name!r}; known are: {', '.join(FLAVOURS)}."
        fix = f"{hint} Your own is written module:attribute.".strip()
        if loop is None:
            raise UserError(f"{problem} {fix}") from None
        raise SpecError([loop.fault("train.flavour", problem, fix)]) from None
    return cast("Flavour", getattr(importlib.import_module(module), attribute)())


def load_predictor(folder: Path, *, trust: str = "none", loop: Loop | None = None) -> Predictor:
    """The predictor that was saved in a folder.

    Args:
        folder: Holds `predictor.json` and the flavour's own file.
        trust: `pickle` lets a pickled estimator be loaded, which executes code from the folder.
        loop: The loop that the model was trained by, for a flavour or classes of the loop's own.

    Raises:
        UserError: No model, a damaged or a newer one, or one that needs trust.
    """
    return get_flavour(read_manifest(folder).flavour, loop).load(folder, trust)


def load_candidate(store: Store, candidate: Candidate, *, trust: str = "none") -> Predictor:
    """A candidate's predictor, its files fetched from the store and their hashes checked.

    A flavour of the loop's own runs from the loop's files that the candidate carries, not from today's.

    Raises:
        BlobLost: A file is missing or altered. UserError: As `load_predictor`.
    """
    import shutil

    from treadle.loop_code import loop_imports
    from treadle.store import fetch_blob, scratch_folder

    with scratch_folder() as folder:
        for name, sha256 in candidate.blobs.items():
            if name.startswith("model/"):
                target = folder / name.removeprefix("model/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fetch_blob(store, sha256), target)
        if ":" not in candidate.flavour and trust == "none":
            return load_predictor(folder, trust=trust)
        loop = _loop_of(store, candidate)
        with loop_imports(loop):
            return load_predictor(folder, trust=trust, loop=loop)


def _loop_of(store: Store, candidate: Candidate) -> Loop:
    """The loop that the candidate carries, as it was."""
    import json

    from treadle.loop import Loop
    from treadle.recipe import restore_loop
    from treadle.store import fetch_blob

    sections = json.loads(fetch_blob(store, candidate.blobs["loop/spec.json"]).read_bytes())
    # A candidate carries no addresses of sources; loading a model needs none.
    for source in sections["data"]["sources"].values():
        source["uri"] = "unknown"
    return restore_loop(store, candidate, Loop(name=candidate.loop, **sections))
