"""Networks compiled for an accelerator: with what, where the store has them, and what serves from them.

    deploy on a pool of Inferentia ─► Deployment.compiled and its blobs ─► treadle serve --device inferentia

Nothing here is heavy: `torch_neuron` compiles and predicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from treadle.clock import format_instant
from treadle.commit import all_records, get_record
from treadle.errors import UserError
from treadle.hardware.devices import devices_seen
from treadle.models.devices import COMPILED_FOR, compile_problem
from treadle.records import Candidate, Deployment, Json
from treadle.store import Store, fetch_blob

if TYPE_CHECKING:
    from treadle.loop import Loop
    from treadle.models.predictor import Predictor
    from treadle.registry.log import ReleaseLog

# A compiled network takes one number of rows: a request is padded to the next, a larger one is cut into pieces.
BATCHES = (1, 16, 128)
# Its default turns matrix products into bfloat16: that would be another model than the one that was judged.
ARGUMENTS = ("--auto-cast", "none")
# A NeuronCore's exp and its kin come from tables: predictions differ more than by another order of sums.
TOLERANCE = 1e-3
_LIBRARIES = ("neuronx-cc", "torch", "torch-neuronx")
_PRODUCT = Path("/sys/devices/virtual/dmi/id/product_name")


def toolchain(device: str) -> Json:
    """What compiles networks for a device here: part of a deployment's key.

    Raises:
        UserError: The compiler or its library is not installed.
    """
    return {
        "device": device,
        "machine": _machine(),
        "batches": list(BATCHES),
        "arguments": list(ARGUMENTS),
        "versions": {name: _version(name, device) for name in _LIBRARIES},
    }


def _version(name: str, device: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        raise missing_library(name, device) from None


def missing_library(name: str, device: str) -> UserError:
    """That a part of AWS's Neuron SDK is not here, and where it is."""
    return UserError(
        f"a network is compiled for {device}, and served there, by {name}, which is not installed here. It comes with"
        " AWS's Neuron images and package index, not from PyPI: name such an image in the pool, and serve from one."
    )


def _machine() -> str:
    """The family of an EC2 machine with Neuron devices: what one compiled need not load on another."""
    try:
        family = _PRODUCT.read_text(encoding="utf-8").strip().partition(".")[0]
    except OSError:
        return ""
    return family if family.startswith(("inf", "trn")) else ""


def blob_name(rows: int) -> str:
    """The name of the blob that takes so many rows at once."""
    return f"compiled/{rows}.pt"


def refuse_champion(store: Store, log: ReleaseLog, device: str) -> None:
    """Nothing, where deploy can compile what the log's last entry has serve, or compiles nothing.

    Raises:
        UserError: It can't.
    """
    entry = log.champion() if device in COMPILED_FOR else None
    if entry is not None:
        refuse_candidate(get_record(store, Candidate, log.loop, entry.details["candidate_id"]), device)


def refuse_candidate(candidate: Candidate, device: str) -> None:
    """Nothing, where a candidate can be compiled for a device.

    Raises:
        UserError: It can't.
    """
    problem = compile_problem(candidate.flavour, device)
    if problem:
        raise UserError(f"the champion, {candidate}, stays as it is: {problem} Run with --pool deploy=none.")


def refuse_no_device(device: str) -> None:
    """Nothing, where a server can answer from a device here.

    Raises:
        UserError: Networks are compiled for no such device, this machine shows none, or its library is not installed.
    """
    if device not in COMPILED_FOR:
        raise UserError(
            f"--device {device}: a server answers from {', '.join(('cpu', *COMPILED_FOR))}. Left out, it is the CPU."
        )
    if not devices_seen(device):
        raise UserError(
            f"--device {device}: this machine shows no Neuron device (/dev/neuron0 ...). Serve on one that has it, with"
            " the device passed to the container; or leave --device out to serve on the CPU."
        )
    _version("torch-neuronx", device)


def find_compiled(store: Store, candidate: Candidate, device: str) -> Deployment | None:
    """The newest deployment that holds a candidate compiled for a device; None where there is none."""
    found = [
        record
        for record in all_records(store, Deployment, candidate.loop)
        if record.candidate == candidate.digest and record.compiled and record.compiled.device == device
    ]
    return max(found, key=lambda record: (record.notes.get("made_at", ""), record.id), default=None)


def not_compiled(loop: Loop, candidate: Candidate, device: str) -> UserError:
    """That a model can't be served from a device yet, and the command that makes it so."""
    path = loop.file.path.name if loop.file else "LOOP"
    problem = compile_problem(candidate.flavour, device)
    command = f"treadle run {path} --as-of {format_instant(candidate.as_of)} --from deploy --pool deploy=NAME"
    what = problem or f"Compile it on a pool of {device}: `{command}`."
    return UserError(f"{candidate} is not compiled for {device}. {what}")


def load_compiled(
    store: Store, loop: Loop, candidate: Candidate, device: str
) -> tuple[Predictor, Deployment]:
    """A candidate's predictor that computes on a device, and the deployment that holds it.

    Raises:
        UserError: It is not compiled for the device, or can't be loaded here. BlobLost: A file is missing or altered.
    """
    from treadle.models import load_candidate

    deployment = find_compiled(store, candidate, device)
    if deployment is None or deployment.compiled is None:
        raise not_compiled(loop, candidate, device)
    files = {
        rows: fetch_blob(store, deployment.blobs[blob_name(rows)]) for rows in deployment.compiled.batches
    }
    from treadle.models.torch.neuron import load_nets

    return load_nets(load_candidate(store, candidate), files, device), deployment
