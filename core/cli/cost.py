"""Commands about money: what a loop's jobs cost, and which pool is worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from treadle.cli.base import AsJson, AsOf, LoopFile, Overrides, StoreUri, command, load_loop, print_json, say
from treadle.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treadle.jobs.tune_pool import Comparison


@command("cost")
def cost(
    path: LoopFile,
    by: Annotated[
        str, typer.Option("--by", metavar="WHAT", help="stage, month, pool, track, or tag:NAME.")
    ] = "stage",
    idle_days: Annotated[
        int, typer.Option("--idle-days", min=1, help="A pool without a job for so long is idle.")
    ] = 14,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Show what the loop's jobs on pools cost.

    Every attempt counts, those that were lost too. Prices are estimates: see docs/cost.md.

    Example: treadle cost loops/flights.yaml --by month
    """
    from treadle.jobs.cost_report import report
    from treadle.session import open_loop_store

    loop = load_loop(path)
    found = report(open_loop_store(loop, store), loop, by=by, idle_days=idle_days)
    if as_json:
        print_json(found)
    else:
        _print_report(found)


def _print_report(found: Mapping[str, Any]) -> None:
    from treadle.cli.tables import print_fields, print_table
    from treadle.words import money, portion

    if not found["total"]["jobs"]:
        print(f"{found['loop']}: no job on a pool is over yet")
    else:
        rows = [_cells(row) for row in [*found["groups"], found["total"]]]
        columns = (found["by"], "attempts", "hours", "lost", "USD", "not priced")
        print_table(f"what the jobs of {found['loop']} cost", columns, rows)
    fields = [
        (f"not priced: {pool}", f"{why}. Its jobs are not in the sum.")
        for pool, why in found["unpriced"].items()
    ]
    fields += [(f"price: {pool}", words) for pool, words in found["reservations"].items()]
    if found["under_way"]:
        fields.append(("under way", _under_way([each["usd"] for each in found["under_way"]])))
    if budget := found["budget"]:
        stands = budget["spent"] + budget["under_way"]
        rule = "blocks at 100 %" if budget["enforce"] else "only warns"
        fields.append(
            (
                f"budget: {budget['month']}",
                f"{money(stands)} of {money(budget['monthly'])} USD, {portion(budget['share'])}; it {rule}",
            )
        )
    fields += [(f"idle: {idle['pool']}", idle["words"]) for idle in found["idle"]]
    print_fields(fields)


def _under_way(usd: Sequence[float | None]) -> str:
    """How many jobs there are, what they may come to, and how many of them have no price."""
    from treadle.words import counted, money

    unpriced = sum(each is None for each in usd)
    told = counted(len(usd), "job")
    if unpriced == len(usd):
        return f"{told}, not priced"
    rest = f"; {unpriced} of them not priced" if unpriced else ""
    return f"{told}, which may come to {money(sum(each or 0 for each in usd))} USD{rest}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    from treadle.words import money

    lost = _hours(row["lost_hours"]) if row["lost_hours"] else ""
    unpriced = str(row["unpriced"]) if row["unpriced"] else ""
    usd = money(row["usd"]) if row["unpriced"] < row["jobs"] else "not priced"
    return row["name"], str(row["jobs"]), _hours(row["hours"]), lost, usd, unpriced


def _hours(value: float) -> str:
    """Two digits after the point; what would be cut to nothing is told as such."""
    return "< 0.01" if 0 < value < 0.005 else f"{value:,.2f}"


@command("tune-pool")
def tune_pool(
    path: LoopFile,
    pools: Annotated[
        str, typer.Option("--pools", metavar="A,B", help="The pools to compare.", show_default=False)
    ],
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help="prepare, featurize, train or evaluate.")
    ] = "train",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="The most rounds of training.")] = 20,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="30d", help="How much of the data; left out: the loop's."),
    ] = None,
    max_seconds: Annotated[
        int, typer.Option("--max-seconds", min=1, help="The most that each pool may take.")
    ] = 600,
    overrides: Overrides = None,
    as_of: AsOf = None,
    scratch: Annotated[
        str | None,
        typer.Option("--scratch", metavar="URI", help="Where samples lie; pools elsewhere need to reach it."),
    ] = None,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> int:
    """Compare pools by a short sample of a stage.

    Time, cost, and cost by what the model learned. Production is not touched; the money counts in
    the loop's ledger and budget. Ends with 1 where no pool came to an end.

    Example: treadle tune-pool loops/flights.yaml --stage train --pools local,roomy
    """
    from treadle.jobs.tune_pool import Sample, compare

    names = [name.strip() for name in pools.split(",") if name.strip()]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"--pools {pools}: write the names of pools, each once, such as --pools local,roomy")
    sample = Sample(stage, rounds, window, max_seconds, tuple(overrides or ()))
    found = compare(path, names, sample, as_of=as_of, scratch=scratch, store=store, say=say)
    if as_json:
        print_json(found.to_json())
    else:
        _print_comparison(found)
    return 0 if any(trial.error is None for trial in found.trials) else 1


def _print_comparison(found: Comparison) -> None:
    from treadle.cli.tables import print_fields, print_table, wrapped
    from treadle.words import money

    rows = [
        (
            trial.pool,
            f"{trial.seconds:,.1f}",
            "" if trial.work_seconds is None else f"{trial.work_seconds:,.1f}",
            "not priced" if trial.usd is None else money(trial.usd),
            "" if trial.gain is None else f"{trial.gain:.4g}",
            "" if trial.usd_per_gain is None else money(trial.usd_per_gain),
        )
        for trial in found.trials
    ]
    columns = (
        "pool",
        "seconds",
        "of them at work",
        "USD",
        f"{found.loss or 'loss'} gained",
        "USD per unit of it",
    )
    print_table(f"{found.stage} of {found.loop} on {found.sample}", columns, rows)
    print_fields([(trial.pool, trial.error) for trial in found.trials if trial.error])
    print_fields([(trial.pool, words) for trial in found.trials for words in trial.words])
    print(wrapped(found.verdict, "", 2))
