"""deploy: states what production should be; the log's last entry decides, projections follow.

On a pool of Inferentia or Trainium it also compiles the champion's network, for `treadle serve --device`.
"""

from __future__ import annotations

from treadle.models.compiled import blob_name, refuse_candidate, toolchain
from treadle.models.devices import COMPILED_FOR
from treadle.records import Candidate, FeatureSet, Json
from treadle.registry.log import Entry
from treadle.stages import Context, Outcome

VERSION = 1


def key(context: Context, champion: Entry | None) -> Json:
    """What makes a deployment: who serves, how, and with what it is compiled if it is.

    Raises:
        UserError: The device's compiler is not installed.
    """
    compiles = champion is not None and context.device in COMPILED_FOR
    return {
        "stage": "deploy",
        "version": VERSION,
        "spec": context.loop.part("deploy"),
        "candidate": champion.candidate if champion else None,
        **({"compiled": toolchain(context.device)} if compiles else {}),
    }


def deploy(context: Context, candidate: Candidate | None, features: FeatureSet | None) -> Outcome:
    """The desired state: the champion's digest and the online views that it reads. Starts nothing by itself.

    Raises:
        UserError: The champion can't be compiled for the pool's device. HookError: Its own module failed.
    """
    stated = Outcome(
        {
            "candidate": candidate.digest if candidate else None,
            "candidate_id": candidate.id if candidate else None,
            "mode": context.loop.deploy.mode,
            "views": dict(features.views) if features else {},
        }
    )
    if candidate is None or context.device not in COMPILED_FOR:
        return stated
    return _with_compiled(context, candidate, stated)


def _with_compiled(context: Context, candidate: Candidate, stated: Outcome) -> Outcome:
    """The champion's network beside what is stated, made from the files that the candidate carries."""
    refuse_candidate(candidate, context.device)
    from treadle.models import load_candidate
    from treadle.models.own_code import own_code
    from treadle.models.torch.flavour import TorchPredictor
    from treadle.models.torch.neuron import compile_net
    from treadle.recipe import restore_loop

    loop = restore_loop(context.store, candidate, context.loop)
    predictor = load_candidate(context.store, candidate)
    assert isinstance(predictor, TorchPredictor)
    tuned = candidate.notes.get("search", {}).get("params", {})
    with own_code(loop, "compiling"):
        files, gap = compile_net(predictor, loop, tuned, context.device, context.scratch, context.say)
    context.say(
        f"deploy: compiled for {context.device}; its predictions are those that were judged to {gap:.2g}"
    )
    return Outcome(
        {**stated.results, "compiled": {**toolchain(context.device), "gap": gap}},
        files={blob_name(rows): file for rows, file in files.items()},
    )
