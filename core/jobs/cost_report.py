"""What a loop's jobs cost, summed by stage, month, pool or tag: for `treadle cost`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from treadle.errors import UserError
from treadle.hardware.catalogue import price_of
from treadle.hardware.chosen import with_machine
from treadle.hardware.pools import known_pools
from treadle.jobs.cost import Cost, Ledger, last_uses, read_ledger
from treadle.loop import Loop
from treadle.records import Json
from treadle.store import Store
from treadle.words import counted, money

_BUILT_IN = "local"


@dataclass(frozen=True, slots=True)
class Sum:
    """What some attempts took.

    Attributes:
        name: What they have in common.
        jobs: How many attempts.
        hours: From start to end, on every machine of each.
        lost_hours: The part of `hours` that was lost with its place.
        usd: The estimate for those that have a price.
        unpriced: How many have none, and so are not in `usd`.
    """

    name: str
    jobs: int
    hours: float
    lost_hours: float
    usd: float
    unpriced: int


def sums_by(costs: Iterable[Cost], by: str) -> list[Sum]:
    """The sums, in the order of their names.

    Args:
        costs: The attempts.
        by: `stage`, `month`, `pool`, `track`, or `tag:NAME`; an attempt without the tag counts under `(none)`.

    Raises:
        UserError: Another `by`.
    """
    kind, _, tag = by.partition(":")
    if by not in ("stage", "month", "pool", "track") and not (kind == "tag" and tag):
        raise UserError(f"--by {by}: write stage, month, pool, track, or tag:NAME such as tag:team")
    groups: dict[str, list[Cost]] = {}
    for cost in costs:
        name = cost.plan.labels.get(tag, "(none)") if tag else str(getattr(cost, kind))
        groups.setdefault(name, []).append(cost)
    return [sum_of(name, groups[name]) for name in sorted(groups)]


def sum_of(name: str, costs: Iterable[Cost]) -> Sum:
    """One sum of them all."""
    rows = list(costs)
    return Sum(
        name=name,
        jobs=len(rows),
        hours=round(sum(_machine_hours(cost) for cost in rows), 4),
        lost_hours=round(sum(_machine_hours(cost) for cost in rows if cost.is_lost), 4),
        usd=round(sum(cost.usd or 0 for cost in rows), 9),
        unpriced=sum(cost.usd is None for cost in rows),
    )


def _machine_hours(cost: Cost) -> float:
    return cost.seconds * cost.plan.workers / 3600


def report(
    store: Store, loop: Loop, *, by: str = "stage", idle_days: int = 14, now: datetime | None = None
) -> Json:
    """What a loop cost, in plain JSON.

    Args:
        store: Where its ledger is.
        loop: The loop; its budget and its file of pools are told of, too.
        by: See `sums_by`.
        idle_days: A pool without a job in so many days counts as idle.
        now: The time, in UTC.

    Returns:
        `groups` and `total` as of `Sum`; `unpriced` by pool, why; `under_way`; `budget` of this month, or none; `idle`
        pools with words.

    Raises:
        UserError: See `sums_by`. SpecError: The file of pools has a mistake. StoreError: A page can't be read.
    """
    now, ledger = now or datetime.now(UTC), read_ledger(store, loop.name)
    return {
        "loop": loop.name,
        "currency": "USD",
        "by": by,
        "groups": [asdict(each) for each in sums_by(ledger.over, by)],
        "total": asdict(sum_of("total", ledger.over)),
        "unpriced": {cost.pool: cost.plan.price for cost in ledger.over if cost.usd is None},
        "reservations": {
            cost.pool: cost.plan.price
            for cost in ledger.over
            if cost.usd is not None and cost.plan.usd_per_hour
        },
        "under_way": [
            {"stage": page.stage, "pool": page.pool, "name": page.name, "usd": usd}
            for page, usd in ledger.under_way
        ],
        "budget": _budget(loop, ledger, now),
        "idle": _idle(store, loop, now, idle_days),
    }


def _budget(loop: Loop, ledger: Ledger, now: datetime) -> Json | None:
    if loop.budget is None:
        return None
    month = now.strftime("%Y-%m")
    spent, under_way = ledger.usd_in(month)
    return {
        "month": month,
        "monthly": loop.budget.monthly,
        "enforce": loop.budget.enforce,
        "spent": round(spent, 9),
        "under_way": round(under_way, 9),
        "share": round((spent + under_way) / loop.budget.monthly, 9),
    }


def _idle(store: Store, loop: Loop, now: datetime, days: int) -> list[Json]:
    """The pools of the loop's file of pools that nobody used lately, by any loop of this store."""
    used, found = last_uses(store), []
    for name, pool in sorted(known_pools(loop).items()):
        last = used.get(name)
        if name == _BUILT_IN or (last is not None and now - last < timedelta(days=days)):
            continue
        price = price_of(with_machine(pool, ""))
        words = "no job of this store ever ran there"
        if last is not None:
            words = (
                f"no job of this store ran there in {counted(days, 'day')}, the last one on {last:%Y-%m-%d}"
            )
        if price is not None and price.usd_per_hour:
            words += f". A machine that stands ready for it costs {money(price.usd_per_hour * 24)} USD a day"
        found.append({"pool": name, "last": last.isoformat() if last else None, "words": f"{words}."})
    return found
