"""What the commands share: options, errors that become words and exit codes, sessions."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from treadle.loop import Loop
    from treadle.session import Session

_IN_ORDER = (
    *("init", "check", "run", "monitor", "status", "history", "approve", "reject", "rollback"),
    *("predict", "serve", "materialize", "explain-cache"),
    *("pools", "jobs", "cost", "tune-pool", "job"),
)


class _InOrder(TyperGroup):
    """Lists commands as a loop's life needs them, whatever file they stand in."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names; those that have no place in the order come last."""
        return sorted(self.commands, key=lambda name: (*_IN_ORDER, name).index(name))


app = typer.Typer(
    name="treadle",
    cls=_InOrder,
    help="Keeps machine-learning models alive: prepare, train, judge, release, serve, watch, retrain.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from treadle.jobs.file import treadle_version

        print(f"treadle {treadle_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before the command."""


LoopFile = Annotated[Path, typer.Argument(metavar="LOOP", help="The loop's YAML file.", show_default=False)]
StoreUri = Annotated[
    str | None,
    typer.Option("--store", metavar="URI", envvar="TREADLE_STORE", help="Default: .treadle beside the loop."),
]
Track = Annotated[
    str,
    typer.Option(
        "--track", metavar="NAME", help="Another than production is a life apart: a replay, a trial."
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="TIME", help="The clock, such as 2013-04-01; default: today in UTC, or history.to."
    ),
]
ActAt = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="Since when; default: today, but the log's last entry on other tracks and with history.to.",
    ),
]
By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who acts; default: TREADLE_USER, or the login.")
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, for the log.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, e.g. train.rounds=50."),
]

Pools = Annotated[
    list[str] | None,
    typer.Option("--pool", metavar="STAGE=NAME", help="Where a stage runs; none: in this process."),
]

OverBudget = Annotated[
    bool, typer.Option("--over-budget", help="Submit jobs beyond the loop's budget; records say who did.")
]


def pools_of(given: list[str] | None) -> dict[str, str]:
    """Pool by stage, as `--pool` gives them; raises UserError."""
    from treadle.errors import UserError

    found = {}
    for text in given or ():
        stage, equals, name = text.partition("=")
        if not (stage and equals and name):
            raise UserError(f"--pool {text}: write STAGE=NAME, such as train=gpu, or train=none")
        found[stage.strip()] = name.strip()
    return found


def command(name: str) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """A command whose errors become words on standard error and an exit code."""

    def register(work: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(work)
        def run(*args: Any, **options: Any) -> None:
            from treadle.errors import TreadleError

            try:
                code = work(*args, **options)
            except TreadleError as error:
                fail(error, as_json=bool(options.get("as_json")))
                code = error.exit_code
            except BrokenPipeError:
                code = 0
            except KeyboardInterrupt:
                say("interrupted; what was committed stays, and the next run goes on from there")
                code = 3
            raise typer.Exit(code or 0)

        return app.command(name)(run)

    return register


def fail(error: Any, *, as_json: bool) -> None:
    """An error in words on standard error, and with --json as an object on standard output."""
    if as_json:
        problem = {"type": type(error).__name__, "message": str(error), "retryable": error.retryable}
        print_json({"error": problem})
    hint = " (a retry can help)" if error.retryable else ""
    print(f"treadle: {type(error).__name__}{hint}: {error}", file=sys.stderr)


def say(line: str) -> None:
    """A line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def load_loop(path: Path, overrides: list[str] | None = None) -> Loop:
    """The loop of a file; raises SpecError."""
    from treadle.loop import Loop

    return Loop.load(path, overrides=overrides or ())


def session_of(
    path: Path,
    store: str | None,
    track: str,
    as_of: str | None = None,
    by: str | None = None,
    *,
    act: bool = False,
) -> Session:
    """A session on a loop's file; an `act` that names no time says which one it takes."""
    from treadle.acts import act_time
    from treadle.session import open_session

    loop = load_loop(path)
    return open_session(
        loop,
        as_of=as_of,
        store=store,
        track=track,
        who=by,
        say=say,
        as_of_default=(lambda log: act_time(loop, log, say)) if act else None,
    )
