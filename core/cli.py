"""The command line: a thin face. Results go to standard output, progress to standard error.

Exit codes: 0 done; 1 the gate, a check or a rule of the log said no; 2 the user's error; 3 a failure.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from treadle.commands import (
    AsJson,
    AsOf,
    By,
    LoopFile,
    Overrides,
    Reason,
    StoreUri,
    Track,
    app,
    command,
    load_loop,
    print_json,
    session_of,
)

if TYPE_CHECKING:
    from treadle.session import Run


@command("check")
def check(path: LoopFile, store: StoreUri = None, as_json: AsJson = False) -> int:
    """Find every fault and every usual mistake of a loop, with file and line, before anything runs.

    Example: treadle check loops/flights.yaml
    """
    from treadle.check import check as check_loop
    from treadle.check import render, to_json

    if not path.exists():
        load_loop(path)
    findings = check_loop(path, log=_known_log(path, store))
    if as_json:
        print_json(to_json(findings))
    else:
        print(render(findings))
    return (
        1 if any(finding.severity == "error" and not finding.ignored_because for finding in findings) else 0
    )


def _known_log(path: Path, store: str | None) -> Any:
    """The entries of the loop's log where there is a store already, for rules that look at them."""
    from treadle.errors import TreadleError
    from treadle.registry.log import ReleaseLog
    from treadle.session import open_loop_store

    try:
        loop = load_loop(path)
        local = store or loop.folder / ".treadle"
        if "://" not in str(local) and not Path(local).exists():
            return None
        return ReleaseLog(open_loop_store(loop, store), loop.name).entries()
    except TreadleError:
        return None


@command("run")
def run(
    path: LoopFile,
    as_of: AsOf = None,
    start: Annotated[str, typer.Option("--from", metavar="STAGE", help="The first stage.")] = "prepare",
    to: Annotated[str, typer.Option("--to", metavar="STAGE", help="The last stage.")] = "deploy",
    overrides: Overrides = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> int:
    """Turn the wheel once: prepare, featurize, train, evaluate, release, deploy. What exists is not done again.

    Example: treadle run loops/flights.yaml --as-of 2013-04-01 --json
    """
    from treadle.runner import run as run_loop

    loop = load_loop(path, overrides)
    with _progress() as say:
        result = run_loop(loop, as_of=as_of, start=start, to=to, store=store, track=track, who=by, say=say)
    if as_json:
        print_json(_plain(result))
    else:
        print(result)
    return _exit_code(result)


def _plain(result: Run) -> dict[str, Any]:
    """Stage name to record, as JSON."""
    return {stage: record.model_dump(mode="json") for stage, record in result.items()}


def _exit_code(result: Run) -> int:
    """1 where the gate said no, or not without a person."""
    return 1 if getattr(result.get("evaluate"), "decision", None) in ("keep", "hold") else 0


@command("monitor")
def monitor(
    path: LoopFile,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Run the loop at once if a retrain is due.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Look at the newest window beside the champion's training data, and decide whether to retrain.

    Ends with 0 whether or not a retrain is due; the answer is in `retrain.due`. With --retrain, as `treadle run`.

    Example: treadle monitor loops/flights.yaml --as-of 2013-04-08 --retrain
    """
    from treadle.runner import run as run_loop
    from treadle.runner import watch

    loop = load_loop(path)
    with _progress() as say:
        looked = watch(loop, as_of=as_of, store=store, track=track, who=by, say=say)
        due = getattr(looked.get("retrain"), "run_as_of", None) if retrain else None
        turned = run_loop(loop, as_of=due, store=store, track=track, who=by, say=say) if due else None
    if as_json:
        print_json({**_plain(looked), **(_plain(turned) if turned else {})})
    else:
        print("\n".join(str(result) for result in (looked, turned) if result is not None))
    return _exit_code(turned) if turned else 0


@command("status")
def status(
    path: LoopFile, store: StoreUri = None, track: Track = "production", as_json: AsJson = False
) -> None:
    """Show who serves, what waits for a person, the last verdict and drift, and alerts.

    Example: treadle status loops/flights.yaml
    """
    from treadle.status import status as status_of

    found = status_of(session_of(path, store, track))
    if as_json:
        print_json(found)
    else:
        from treadle.tables import print_status

        print_status(found)


@command("history")
def history(
    path: LoopFile,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Who served then, e.g. 2013-08-15.")
    ] = None,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> None:
    """Print the release log, or with --at who served at a time and what stands behind that model.

    Example: treadle history loops/flights.yaml --at 2013-08-15
    """
    from treadle.session import resolve_as_of
    from treadle.status import champion_at

    session = session_of(path, store, track)
    if at is not None:
        found = champion_at(session, resolve_as_of(session.loop, at))
        if as_json:
            print_json({"at": at, "champion": found})
        else:
            from treadle.tables import print_champion

            print_champion(at, found)
        return
    entries = session.log.entries()
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in entries])
    else:
        from treadle.tables import print_history

        print_history(entries)


@command("approve")
def approve(
    path: LoopFile,
    reason: Reason,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Approve the challenger that waits for a person, and put it into production.

    Example: treadle approve loops/flights.yaml --reason "looked at the slices; EWR is fine" --by maria
    """
    from treadle import acts
    from treadle.runner import deploy_champion

    session = session_of(path, store, track, as_of, by, act=True)
    approval, promotion = acts.approve(session, reason)
    deploy_champion(session)
    _print_entry(promotion if not as_json else [approval, promotion], as_json)


@command("reject")
def reject(
    path: LoopFile,
    reason: Reason,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Reject the challenger that waits for a person; its recipe is held until someone approves.

    Example: treadle reject loops/flights.yaml --reason "the holdout was a holiday week"
    """
    from treadle import acts

    entry = acts.reject(session_of(path, store, track, as_of, by, act=True), reason)
    _print_entry([entry] if as_json else entry, as_json)


@command("rollback")
def rollback(
    path: LoopFile,
    reason: Reason,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Return to the champion that the current one's promotion beat.

    Example: treadle rollback loops/flights.yaml --reason "complaints from the EWR desk"
    """
    from treadle import acts
    from treadle.runner import deploy_champion

    session = session_of(path, store, track, as_of, by, act=True)
    entry = acts.rollback(session, reason)
    deploy_champion(session)
    _print_entry([entry] if as_json else entry, as_json)


def _print_entry(entry: Any, as_json: bool) -> None:
    if as_json:
        print_json([item.model_dump(mode="json") for item in entry])
    else:
        print(
            f"{entry.kind} of {(entry.candidate or 'none')[:12]} as of {entry.as_of.date()} by {entry.who}: {entry.why}"
        )


@command("predict")
def predict(
    path: LoopFile,
    input_file: Annotated[
        Path, typer.Option("--input", metavar="F", help="Parquet or CSV.", show_default=False)
    ],
    output_file: Annotated[
        Path, typer.Option("--output", metavar="F", help="Parquet or CSV.", show_default=False)
    ],
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> None:
    """Score a file with the champion: full feature rows, or entity and event time, whose features Feast joins.

    Example: treadle predict loops/flights.yaml --input tomorrow.parquet --output scores.parquet
    """
    from treadle.scoring import score_file

    session = session_of(path, store, track, as_of)
    done = score_file(session, input_file, output_file)
    if as_json:
        print_json(done)
    else:
        print(f"{done['rows']} rows scored by {done['candidate'][:12]} into {output_file}")


@command("serve")
def serve(
    path: LoopFile,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one and prints it.")] = 8080,
    store: StoreUri = None,
    track: Track = "production",
) -> None:
    """Serve the champion over HTTP, following the release log without dropping a request.

    Example: treadle serve loops/flights.yaml --port 8080
    """
    from treadle.scoring import online_for
    from treadle.serving.server import serve as serve_loop
    from treadle.session import open_loop_store

    loop = load_loop(path)
    opened = open_loop_store(loop, store)
    serve_loop(
        loop,
        opened,
        track,
        host=host,
        port=port,
        online_for=lambda candidate: online_for(loop, opened, track, candidate),
    )


@command("materialize")
def materialize(
    path: LoopFile,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> None:
    """Feed the online views of the champion and its predecessor with what is known as of now.

    Example: treadle materialize loops/flights.yaml
    """
    from treadle.projections import materialize as feed

    written = feed(session_of(path, store, track, as_of))
    if as_json:
        print_json(written)
    else:
        print(
            "\n".join(f"{view}: {rows} rows" for view, rows in written.items()) or "no online views to feed"
        )


@command("explain-cache")
def explain_cache(path: LoopFile, store: StoreUri = None, as_json: AsJson = False) -> None:
    """Say why each stage ran again: which part of its key changed since the record before.

    Example: treadle explain-cache loops/flights.yaml
    """
    from treadle.explain import explain_cache as explain

    explained = explain(session_of(path, store, "production"))
    if as_json:
        print_json(explained)
    else:
        from treadle.tables import print_explained

        print_explained(explained)


def _progress() -> Any:
    """A sink for lines of progress on standard error: the running stage with its time where a person looks."""
    from treadle.tables import progress

    return progress()


def main() -> None:
    """The entry point."""
    try:
        app()
    except SystemExit:
        raise
    except Exception as error:  # a bug: the traceback helps whoever reports it
        import traceback

        from treadle.redaction import redacted

        shown = f"{traceback.format_exc()}treadle: failed unexpectedly: {type(error).__name__}: {error}"
        print(redacted(shown), file=sys.stderr)
        sys.exit(3)
    finally:
        # The interpreter's last collection would walk a million objects of the libraries: 1 to 2 s of CPU.
        gc.freeze()
