"""What a person does at the command line: approve, reject, roll back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from treadle.cli.base import (
    ActAt,
    AsJson,
    By,
    LoopFile,
    Reason,
    StoreUri,
    Track,
    command,
    print_json,
    session_of,
)

if TYPE_CHECKING:
    from treadle.registry.log import Entry


@command("approve")
def approve(
    path: LoopFile,
    reason: Reason,
    as_of: ActAt = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Approve the challenger that waits for a person.

    It serves from then on.

    Example: treadle approve loops/flights.yaml --reason "slices are fine"
    """
    from treadle import acts
    from treadle.runner import deploy_champion

    session = session_of(path, store, track, as_of, by, act=True)
    approval, promotion = acts.approve(session, reason)
    deploy_champion(session)
    if as_json:
        _print_entries(approval, promotion)
    else:
        _tell(promotion)


@command("reject")
def reject(
    path: LoopFile,
    reason: Reason,
    as_of: ActAt = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Reject the challenger that waits for a person.

    Its recipe is held from then on, until someone approves it.

    Example: treadle reject loops/flights.yaml --reason "a holiday week"
    """
    from treadle import acts

    entry = acts.reject(session_of(path, store, track, as_of, by, act=True), reason)
    if as_json:
        _print_entries(entry)
    else:
        _tell(entry)


@command("rollback")
def rollback(
    path: LoopFile,
    reason: Reason,
    undo: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Only if this one serves; repeated, it goes back once."),
    ] = None,
    as_of: ActAt = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Return to the champion that the current one replaced.

    Scripts say --from MODEL, so that a repeated command never goes back one more.

    Example: treadle rollback loops/flights.yaml --reason "complaints from EWR"
    """
    from treadle import acts
    from treadle.runner import deploy_champion

    session = session_of(path, store, track, as_of, by, act=True)
    entry = acts.rollback(session, reason, undo=undo)
    deploy_champion(session)
    if as_json:
        _print_entries(entry)
    else:
        _tell(entry)


def _print_entries(*entries: Entry) -> None:
    print_json([entry.model_dump(mode="json") for entry in entries])


def _tell(entry: Entry) -> None:
    """An entry in a line; a rollback says from which model to which."""
    from treadle.words import moment, short

    about = f"of {short(entry.candidate)}"
    if entry.kind == "rollback":
        about = f"from {short(entry.champion)} to {short(entry.candidate)}"
    print(f"{entry.kind} {about} as of {moment(entry.as_of)} by {entry.who}: {entry.why}")
