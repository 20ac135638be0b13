"""What is asked before a job is submitted and money is spent: the pool's hours, the policy, the loop's budget.

    hours ─► policy.yaml ─► the store's reach ─► price and duration ─► budget ─► Plan, which travels with the job's file

Whoever raises here has spent nothing, and nothing was claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from treadle.errors import Refusal
from treadle.hardware.backends import get_backend
from treadle.hardware.catalogue import price_of, why_unpriced
from treadle.hardware.chosen import with_machine
from treadle.hardware.devices import refuse_missing_devices
from treadle.hardware.local import refuse_missing_program
from treadle.hardware.policy import labels_of, refuse_by_policy, workers_of
from treadle.hardware.pools import Pool
from treadle.hardware.reach import refuse_store_out_of_reach
from treadle.jobs.cost import cost_of, earlier_costs, read_ledger
from treadle.jobs.file import Plan
from treadle.leases import lease
from treadle.models.compiled import refuse_champion
from treadle.models.devices import refuse_device
from treadle.session import Session
from treadle.words import moment, money, portion

_WARNED_AT = (0.5, 0.8)


class PoolClosed(Refusal):
    """A job outside of its pool's hours. A retry helps once the pool opens.

    Attributes:
        opens: When that is.
    """

    retryable = True

    def __init__(self, pool: str, hours: str, now: datetime, opens: datetime) -> None:
        super().__init__(pool, hours, now, opens)
        self.pool, self.hours, self.now, self.opens = pool, hours, now, opens

    def words(self) -> str:
        """When it opens, and what else could be done."""
        wait = int((self.opens - self.now).total_seconds() / 60) + 1
        return (
            f"the pool {self.pool} takes jobs at {self.hours} UTC, and it is {self.now:%H:%M}: it opens at"
            f" {moment(self.opens)} UTC, in {wait // 60} h {wait % 60} min. Run again then, name another pool with"
            f" --pool, or change its hours."
        )


class BudgetSpent(Refusal):
    """A job that would take its loop beyond the month's budget. Nothing was submitted.

    Attributes:
        monthly: The budget, in US dollars.
        spent: What the month has cost.
        under_way: What its jobs that still run may come to.
        job: What this job may cost; None where that is not known.
    """

    def __init__(
        self, loop: str, month: str, monthly: float, spent: float, under_way: float, job: float | None
    ) -> None:
        super().__init__(loop, month, monthly, spent, under_way, job)
        self.loop, self.month, self.monthly = loop, month, monthly
        self.spent, self.under_way, self.job = spent, under_way, job

    def words(self) -> str:
        """The sum, and what can be done."""
        return (
            f"{_sum_in_words(self.loop, self.month, self.monthly, self.spent, self.under_way, self.job)}:"
            " nothing was submitted. Raise budget.monthly, name a cheaper pool with --pool, wait for the next month, or"
            " run with --over-budget."
        )


@contextmanager
def one_at_a_time(session: Session) -> Iterator[None]:
    """Holds others off who plan a job of the same loop, so that two can't both take the last of a budget."""
    if session.loop.budget is None:
        yield
        return
    name = session.loop.name
    words = f"another run of {name} is asking its budget"
    with lease(session.store, f"budget-{name}", words=words, say=session.say):
        yield


def plan_job(
    session: Session, stage: str, pool: Pool, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Plan:
    """What a job takes and may cost, where it may be submitted now.

    Args:
        session: Which loop, on which track, in which store. Warnings about the budget are said through it.
        stage: The stage.
        pool: Where it would run.
        clock: The time, in UTC.

    Raises:
        PoolClosed: Outside of the pool's hours. SpecError: Against a policy, the flavour can't learn there, or the
            pool's interpreter or devices are not on this machine.
        UserError: The pool's machines can't reach the store. BudgetSpent: Beyond the loop's budget.
        StoreError, Transient: The ledger can't be read.
    """
    loop, now = session.loop, clock()
    refuse_closed(pool, now)
    refuse_device(loop, pool.kind, stage, pool=pool.name)
    refuse_missing_devices(pool)
    refuse_missing_program(pool)
    if stage == "deploy":
        refuse_champion(session.store, session.log, pool.kind)
    refuse_by_policy(loop, stage, session.track, pool)
    refuse_store_out_of_reach(get_backend(pool.backend), pool, session.store.uri)
    machine = with_machine(pool, stage)
    workers, price = workers_of(loop, stage), price_of(machine)
    rate = price.usd_per_hour if price else None
    seconds = expected_seconds(session, stage, pool) if rate else None
    plan = Plan(
        labels=labels_of(loop, stage, session.track, pool),
        workers=workers,
        usd_per_hour=rate,
        instance_type=machine.instance_type,
        price=price.words if price else why_unpriced(machine),
        seconds=seconds,
        usd=0.0 if rate == 0 else None if seconds is None else cost_of(rate, workers, seconds),
    )
    return plan.model_copy(update={"over_budget": _beyond_budget(session, stage, pool, plan, now)})


def expected_seconds(session: Session, stage: str, pool: Pool) -> float | None:
    """How long a job may last: the longest of the newest on this pool and track that did something, within the limit.

    Where there was none yet: the time limit; None without one.
    """
    earlier = earlier_costs(session.store, session.loop.name, stage, pool.name)
    workers = workers_of(session.loop, stage)
    lasted = [
        cost.seconds
        for cost in earlier
        if cost.state == "succeeded" and not cost.reused
        if (cost.plan.workers, cost.track) == (workers, session.track)
    ]
    known = [*([max(lasted)] if lasted else []), *([float(pool.max_seconds)] if pool.max_seconds else [])]
    return min(known, default=None)


def _beyond_budget(session: Session, stage: str, pool: Pool, plan: Plan, now: datetime) -> bool:
    """Whether the job goes beyond the budget and someone wants it all the same."""
    budget, loop, month = session.loop.budget, session.loop.name, now.strftime("%Y-%m")
    if budget is None or plan.usd == 0:
        return False
    if plan.usd_per_hour is None:
        if pool.backend != "local":
            session.warn(f"{stage} on the pool {pool.name} counts nothing in the budget: {plan.price}")
        return False
    spent, under_way = read_ledger(session.store, loop, month).usd_in(month)
    stands = spent + under_way + (plan.usd or 0)
    words = _sum_in_words(loop, month, budget.monthly, spent, under_way, plan.usd)
    if stands > budget.monthly or (plan.usd is None and stands >= budget.monthly):
        if not budget.enforce:
            session.warn(f"{words}; it only warns, by budget.enforce")
            return False
        if not session.over_budget:
            raise BudgetSpent(loop, month, budget.monthly, spent, under_way, plan.usd)
        session.warn(f"{words}; {session.who} runs it all the same")
        return True
    if plan.usd is None:
        session.warn(
            f"what {stage} on the pool {pool.name} may cost is not known: it has no max_seconds, and none ran before"
        )
    half, most = (stands >= share * budget.monthly for share in _WARNED_AT)
    if half:
        session.warn(f"{words}; less than a fifth of it is left" if most else words)
    return False


def _sum_in_words(
    loop: str, month: str, monthly: float, spent: float, under_way: float, job: float | None
) -> str:
    runs = f", {money(under_way)} in jobs that run" if under_way else ""
    this = (
        ", and what this job costs is not known" if job is None else f", and this job may cost {money(job)}"
    )
    share = (spent + under_way + (job or 0)) / monthly
    head = f"the budget of {loop} is {money(monthly)} USD a month"
    return f"{head}; {month} has {money(spent)} spent{runs}{this}: {portion(share)}"


def refuse_closed(pool: Pool, now: datetime) -> None:
    """Nothing, where a pool takes jobs now.

    Raises:
        PoolClosed: Outside of its hours.
    """
    opens = opening(pool.hours, now)
    if opens is not None:
        raise PoolClosed(pool.name, pool.hours or "", now, opens)


def opening(hours: str | None, now: datetime) -> datetime | None:
    """When a pool opens next; None while it is open.

    Args:
        hours: `20:00-06:00`, in UTC: from the first minute to before the second, over midnight where that is later.
            Twice the same time is the whole day.
        now: In UTC.
    """
    if hours is None:
        return None
    start, _, end = hours.partition("-")
    first, last = (int(text[:2]) * 60 + int(text[3:]) for text in (start, end))
    minute = now.hour * 60 + now.minute
    is_open = first <= minute < last if first < last else minute >= first or minute < last
    if is_open:
        return None
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    opens = midnight + timedelta(minutes=first)
    return opens if opens > now else opens + timedelta(days=1)
