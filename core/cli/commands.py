"""The command line: a thin face. Results go to standard output, progress to standard error.

Exit codes: 0 done; 1 the gate, a check or a rule of the log said no; 2 the user's error; 3 a failure.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from treadle.cli import act, cost, hardware, job, look
from treadle.cli.base import (
    AsJson,
    AsOf,
    By,
    LoopFile,
    OverBudget,
    Overrides,
    Pools,
    StoreUri,
    Track,
    app,
    command,
    load_loop,
    pools_of,
    print_json,
    session_of,
)

if TYPE_CHECKING:
    from treadle.session import Run

__all__ = ["act", "app", "cost", "hardware", "job", "look", "main"]


@command("init")
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The loop's name.", show_default=False)],
    source: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="CSV or Parquet; left out: made-up data.")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="COLUMN", help="What to predict.")] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When it is asked.")] = None,
    entity: Annotated[str | None, typer.Option("--entity", metavar="COLUMN", help="About whom.")] = None,
    label_known_at: Annotated[
        str | None,
        typer.Option(metavar="COLUMN|30d", help="When the answer is known, or how long after the question."),
    ] = None,
    known_at: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="When all values of a row were known.")
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="With a Feast file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a new loop into loops/.

    On made-up data, or on a file of your own. No file is ever overwritten.

    Example: treadle init churn

    Example: treadle init orders --from orders.csv --label late --time placed_at --entity order_id
    """
    from treadle.scaffold import asked_of, init_loop, words_of

    asked = asked_of(source, label, time, entity, label_known_at, known_at)
    written = init_loop(name, Path("loops"), asked=asked, features=features)
    if as_json:
        print_json(written.to_json())
    else:
        print(words_of(written))


@command("check")
def check(
    path: LoopFile, overrides: Overrides = None, store: StoreUri = None, as_json: AsJson = False
) -> int:
    """Find the faults and the usual mistakes of a loop.

    With file and line, before anything runs. Ends with 1 where there is an error. With --set as
    a run with the same would find it.

    Example: treadle check loops/flights.yaml
    """
    from treadle.check import check as check_loop
    from treadle.check import render, to_json

    if not path.exists():
        load_loop(path)
    findings = check_loop(path, log=_known_log(path, store), store=store, overrides=overrides or ())
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
    pools: Pools = None,
    store: StoreUri = None,
    track: Track = "production",
    by: By = None,
    over_budget: OverBudget = False,
    as_json: AsJson = False,
) -> int:
    """Turn the wheel once; what exists is not done again.

    The stages: prepare, featurize, train, evaluate, release, deploy; then, if asked by --to, monitor, retrain.

    Example: treadle run loops/flights.yaml --as-of 2013-04-01 --json
    """
    from treadle.runner import run as run_loop

    loop, where = load_loop(path, overrides), pools_of(pools)
    with _progress() as say:
        result = run_loop(
            loop,
            as_of=as_of,
            start=start,
            to=to,
            store=store,
            track=track,
            who=by,
            say=say,
            pools=where,
            over_budget=over_budget,
        )
    if as_json:
        print_json(_plain(result))
    else:
        from treadle.cli.tables import print_run

        print_run(result)
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
    pools: Pools = None,
    over_budget: OverBudget = False,
    as_json: AsJson = False,
) -> int:
    """Look at the newest window; decide whether to retrain.

    The window is compared with the champion's training data. Ends with 0 whether or not a
    retrain is due; the answer is in `retrain.due`. With --retrain, as `treadle run`.

    Example: treadle monitor loops/flights.yaml --as-of 2013-04-08 --retrain
    """
    from treadle.runner import run as run_loop
    from treadle.runner import watch

    loop, where = load_loop(path), pools_of(pools)
    with _progress() as say:
        shared: dict[str, Any] = {"store": store, "track": track, "who": by, "say": say, "pools": where}
        shared["over_budget"] = over_budget
        looked = watch(loop, as_of=as_of, **shared)
        due = getattr(looked.get("retrain"), "run_as_of", None) if retrain else None
        turned = run_loop(loop, as_of=due, **shared) if due else None
    if as_json:
        print_json({**_plain(looked), **(_plain(turned) if turned else {})})
    else:
        from treadle.cli.tables import print_run

        for result in (looked, turned):
            if result is not None:
                print_run(result)
    return _exit_code(turned) if turned else 0


@command("predict")
def predict(
    path: LoopFile,
    input_file: Annotated[
        Path, typer.Option("--input", metavar="F", help="Parquet or CSV.", show_default=False)
    ],
    output_file: Annotated[
        Path, typer.Option("--output", metavar="F", help="Parquet or CSV.", show_default=False)
    ],
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Processes, by Ray; default: train.workers."),
    ] = None,
    as_of: AsOf = None,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> None:
    """Score a file with the champion.

    Full feature rows, or entity and event time, whose features Feast joins.

    Example: treadle predict loops/flights.yaml --input in.csv --output out.csv
    """
    from treadle.scoring import score_file

    session = session_of(path, store, track, as_of)
    done = score_file(session, input_file, output_file, workers=workers)
    if as_json:
        print_json(done)
    else:
        from treadle.words import counted

        print(f"{counted(done['rows'], 'row')} scored by model {done['candidate'][:12]} into {output_file}")


@command("serve")
def serve(
    path: LoopFile,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one and prints it.")
    ] = 8080,
    device: Annotated[
        str, typer.Option(metavar="KIND", help="What computes: cpu, or inferentia or trainium.")
    ] = "cpu",
    store: StoreUri = None,
    track: Track = "production",
) -> None:
    """Serve the champion over HTTP.

    It follows the release log without dropping a request. With --device it answers from the
    network that deploy compiled on a pool of that kind.

    Example: treadle serve loops/flights.yaml --port 8080

    Example: treadle serve loops/flights.yaml --device inferentia
    """
    from treadle.scoring import online_for
    from treadle.serving.server import serve as serve_loop
    from treadle.session import check_track, open_loop_store

    loop = load_loop(path)
    opened = open_loop_store(loop, store)
    serve_loop(
        loop,
        opened,
        check_track(track),
        host=host,
        port=port,
        device=device,
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
    """Feed the online views that the endpoint reads.

    Those of the champion and of its predecessor, with what is known by --as-of.

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


def _progress() -> Any:
    """A sink for lines of progress on standard error: the running stage with its time where a person looks."""
    from treadle.cli.tables import progress

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
