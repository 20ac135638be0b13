"""What the command line shows of a loop's life: status, history, why a stage ran again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from treadle.cli.base import AsJson, LoopFile, StoreUri, Track, command, print_json, session_of
from treadle.errors import UserError

if TYPE_CHECKING:
    from treadle.session import Session


@command("status")
def status(
    path: LoopFile, store: StoreUri = None, track: Track = "production", as_json: AsJson = False
) -> None:
    """Show who serves, what waits for a person, and alerts.

    Example: treadle status loops/flights.yaml
    """
    from treadle.status import status as status_of

    found = status_of(session_of(path, store, track))
    if as_json:
        print_json(found)
    else:
        from treadle.cli.tables import print_status

        print_status(found)


@command("history")
def history(
    path: LoopFile,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Who served then, e.g. 2013-08-15.")
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option("--verdict", metavar="ID", help="A verdict in full: its id, its model's name, or last."),
    ] = None,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> None:
    """Print the release log, who served when, or a verdict.

    With --at who served at a time; with --verdict why a model was let in or not. ID may be cut
    after a few characters. With --json a verdict is printed as it is recorded.

    Example: treadle history loops/flights.yaml --at 2013-08-15

    Example: treadle history loops/flights.yaml --verdict last
    """
    from treadle.session import resolve_as_of
    from treadle.status import champion_at

    session = session_of(path, store, track)
    if verdict is not None:
        if at is not None:
            raise UserError("--at and --verdict ask different questions: give one of them")
        _show_verdict(session, verdict, as_json)
        return
    if at is not None:
        found = champion_at(session, resolve_as_of(session.loop, at))
        if as_json:
            print_json({"at": at, "champion": found})
        else:
            from treadle.cli.tables import print_champion

            print_champion(at, found)
        return
    entries = session.log.entries()
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        from treadle.cli.tables import print_history

        print_history(entries)


def _show_verdict(session: Session, which: str, as_json: bool) -> None:
    from treadle.review import find_verdict, review

    found = find_verdict(session, which)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        from treadle.cli.review_table import print_review

        print_review(session.track, review(session, found))


@command("explain-cache")
def explain_cache(path: LoopFile, store: StoreUri = None, as_json: AsJson = False) -> None:
    """Say why each stage ran again.

    That is, which part of its key changed since the record before.

    Example: treadle explain-cache loops/flights.yaml
    """
    from treadle.explain import explain_cache as explain

    explained = explain(session_of(path, store, "production"))
    if as_json:
        print_json(explained)
    else:
        from treadle.cli.tables import print_explained

        print_explained(explained)
