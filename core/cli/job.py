"""Commands about jobs: `treadle job` is what a backend runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from treadle.cli.base import AsJson, command, print_json, say


@command("job")
def job(
    uri: Annotated[
        str | None, typer.Argument(metavar="[URI]", help="The job in its store.", show_default=False)
    ] = None,
    devices: Annotated[
        bool, typer.Option("--devices", help="Instead: tell what this machine shows to a job.")
    ] = False,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Instead: prove this machine's device by a training.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="KIND", help="For --selftest: cpu, gpu, trainium or inferentia."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run one attempt at a stage that was submitted to a pool.

    A backend calls it at the place where the stage runs. Its exit codes are its own: 0 done,
    75 ended early, 64 the user's error, 65 the data or a rule said no, 70 a failure.
    With --selftest a machine proves itself: it ends with 1 where a step fails.

    Example: treadle job s3://bucket/store/jobs/flights/KEY/1.job.json

    Example: treadle job --selftest --device gpu
    """
    from treadle.errors import TreadleError, UserError
    from treadle.hardware.backend import FAILED_EXIT, USER_ERROR_EXIT

    try:
        if devices or selftest:
            if uri is not None:
                raise UserError(
                    "a job's URI and --devices or --selftest are different things: give one of them"
                )
            return _look_at_this_machine(devices=devices, selftest=selftest, device=device, as_json=as_json)
        if uri is None:
            raise UserError("which job? Give its URI, or --devices, or --selftest")
        return _execute(uri)
    except TreadleError as error:
        print(f"treadle: {type(error).__name__}: {error}", file=sys.stderr)
        return USER_ERROR_EXIT if isinstance(error, UserError) else FAILED_EXIT


def _execute(uri: str) -> int:
    from treadle.jobs.execute import execute
    from treadle.reporting import telling

    with telling(say) as teller:
        return execute(uri, teller.say, teller.result)


def _look_at_this_machine(*, devices: bool, selftest: bool, device: str | None, as_json: bool) -> int:
    if devices:
        from treadle.jobs.probe import here, told

        print(told(here()), flush=True)
    if not selftest:
        return 0
    from treadle.jobs.selftest import prove

    proof = prove(device)
    if as_json:
        print_json(proof.to_json())
    else:
        for step in proof.steps:
            print(f"{'ok    ' if step.ok else 'FAILED'}  {step.name} ({step.seconds:.1f} s): {step.told}")
        print(f"{proof.device}: {'works' if proof.ok else 'does not work'}")
    return 0 if proof.ok else 1
