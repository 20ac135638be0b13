"""What jobs cost: every attempt is in the ledger, the budget is asked before money is spent, and no id knows of it."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import treadle
from processes import call_together, one_json
from small import write_small_loop
from treadle import jobs
from treadle.cli import app
from treadle.errors import JobFailed, Transient, TreadleError, UserError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, State, Status
from treadle.hardware.policy import labels_of
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.cost import costed, read_ledger
from treadle.jobs.cost_report import report
from treadle.jobs.file import Result, read_job, write_result
from treadle.jobs.planning import BudgetSpent, PoolClosed, opening, plan_job
from treadle.session import Session, open_session
from typer.testing import CliRunner
from wheel import FIRST, Wheel, copy_of, ids

BACKEND = "test_cost:Place"
# A dollar an hour, and never longer than an hour: a job may cost a dollar at most.
DOLLAR = Pool(name="dollar", backend=BACKEND, price=1.0, max_seconds=3600)


class Place:
    """A backend where jobs end as a test says; it keeps its state in the class, as a place does between clients."""

    name = BACKEND
    jobs: dict[str, tuple[JobSpec, Status]] = {}
    unreachable = False
    # What a submit raises, and whether the job arrives all the same; without credentials nothing can be asked either.
    raises: TreadleError | None = None
    arrives = False

    def capabilities(self) -> Capabilities:
        return Capabilities()

    def plan(self, job: JobSpec, pool: Pool) -> dict[str, Any]:
        return {"name": job.name}

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        if self.raises is None or self.arrives:
            self.jobs.setdefault(job.name, (job, Status(state="running", started=time.time())))
        if self.raises is not None:
            raise self.raises
        return Handle(backend=BACKEND, name=job.name, pool=pool.name)

    def status(self, handle: Handle) -> Status:
        if self.unreachable:
            raise Transient("the place can't be reached.")
        return self.jobs[handle.name][1]

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        return [], since

    def cancel(self, handle: Handle, grace: float) -> None:
        end(handle.name, "stopped", 0)

    def find(self, name: str, pool: Pool) -> Handle | None:
        if self.raises is not None:
            raise self.raises
        return Handle(backend=BACKEND, name=name, pool=pool.name) if name in self.jobs else None


def end(name: str, state: State, seconds: float, **told: Any) -> None:
    """Has a job come to its end after some seconds."""
    job, _ = Place.jobs[name]
    ended = Status(state=state, started=1000.0, ended=1000.0 + seconds, **told)
    Place.jobs[name] = (job, ended)


@pytest.fixture(autouse=True)
def place() -> None:
    Place.jobs, Place.unreachable, Place.raises, Place.arrives = {}, False, None, False


@pytest.fixture
def loop(tmp_path: Path) -> treadle.Loop:
    return treadle.Loop.load(write_small_loop(tmp_path / "loop", days=1))


def session_of(loop: treadle.Loop, folder: Path, *, as_of: str = FIRST, **changes: Any) -> Session:
    loop = loop.model_copy(update=changes)
    return open_session(loop, as_of=as_of, store=folder / "store", who="ann")


def budget(monthly: float, *, enforce: bool = True) -> dict[str, Any]:
    from treadle.spec import Budget

    return {"budget": Budget(monthly=monthly, enforce=enforce)}


def submitted(session: Session, pool: Pool = DOLLAR, stage: str = "prepare") -> JobRef:
    return jobs.submit(session, stage, pool, {})


def finished(session: Session, ref: JobRef, seconds: float) -> None:
    """A job that wrote a result and ended; its record does not matter here."""
    file = read_job(session.store, ref.loop, ref.job, ref.attempt)
    assert file is not None
    error = {
        "type": "Refusal",
        "known_as": ["Refusal"],
        "arguments": ["no"],
        "message": "no",
        "retryable": False,
        "exit_code": 1,
        "job_exit_code": 65,
    }
    result = Result(error=error, seconds=seconds - 1, device="cpu", versions={}, peak_rss_mib=1, node="n")
    write_result(session.store, file, result)
    end(ref.handle.name, "failed", seconds, exit_code=65)
    with pytest.raises(treadle.errors.Refusal):
        jobs.settle(session, ref)


def spent(session: Session) -> float:
    return sum(cost.usd or 0 for cost in read_ledger(session.store, session.loop.name).over)


def test_every_attempt_is_paid_for_the_lost_ones_too(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path)
    ref = submitted(session)
    end(ref.handle.name, "preempted", 1800)
    again = jobs.settle(session, ref, pool=DOLLAR)
    assert isinstance(again, JobRef)
    finished(session, again, 900)
    Place.unreachable = True
    costs = read_ledger(session.store, loop.name).over
    assert [(cost.attempt, cost.state, cost.seconds, cost.usd) for cost in costs] == [
        (1, "preempted", 1800, 0.5),
        (2, "refused", 900, 0.25),
    ]
    total = report(session.store, loop)["total"]
    assert (total["jobs"], total["usd"], total["hours"], total["lost_hours"]) == (2, 0.75, 0.75, 0.5)


def test_a_job_that_was_cancelled_or_ran_out_of_time_is_paid_for(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path)
    for state, seconds in (("stopped", 360), ("timed_out", 3600)):
        ref = submitted(session)
        end(ref.handle.name, state, seconds)  # type: ignore[arg-type]
        with pytest.raises(JobFailed):
            jobs.settle(session, ref)
    assert spent(session) == pytest.approx(1.1)


def test_every_machine_is_paid_for_by_what_the_place_bills(loop: treadle.Loop, tmp_path: Path) -> None:
    two = loop.train.model_copy(update={"workers": 2})
    session = session_of(loop, tmp_path, train=two)
    ref = submitted(session, stage="train")
    assert Place.jobs[ref.handle.name][0].workers == 2
    end(ref.handle.name, "failed", 3600, billed_seconds=900.0)
    with pytest.raises(JobFailed):
        jobs.settle(session, ref)
    (cost,) = read_ledger(session.store, loop.name).over
    assert (cost.seconds, cost.billed_seconds, cost.usd) == (3600, 900, 0.5)


def test_a_pool_without_a_price_is_named_and_never_counted_as_nothing(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path)
    finished(session, submitted(session, Pool(name="free", backend=BACKEND)), 3600)
    found = report(session.store, loop)
    assert (found["total"]["usd"], found["total"]["unpriced"]) == (0, 1)
    assert "neither price" in found["unpriced"]["free"]


def test_what_a_dead_client_left_open_is_closed_by_the_next_who_looks(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path)
    ref = submitted(session)
    under_way = read_ledger(session.store, loop.name).under_way
    assert [(page.name, usd) for page, usd in under_way] == [(ref.handle.name, 1.0)]
    end(ref.handle.name, "lost", 720)
    assert spent(session) == pytest.approx(0.2)
    Place.unreachable = True
    assert spent(session) == pytest.approx(0.2)


def test_a_result_tells_the_cost_where_the_place_is_gone(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path)
    ref = submitted(session)
    finished_later = read_job(session.store, ref.loop, ref.job, ref.attempt)
    assert finished_later is not None
    result = Result(record={"id": "x"}, seconds=1800, device="cpu", versions={}, peak_rss_mib=1, node="n")
    write_result(session.store, finished_later, result)
    Place.unreachable = True
    assert spent(session) == pytest.approx(0.5)


def test_a_settle_goes_on_where_the_cost_cannot_be_noted(loop: treadle.Loop, tmp_path: Path) -> None:
    said: list[str] = []
    session = session_of(loop, tmp_path)
    session.say = said.append
    ref = submitted(session)
    file = read_job(session.store, ref.loop, ref.job, ref.attempt)
    assert file is not None
    error = {
        "type": "Refusal",
        "known_as": ["Refusal"],
        "arguments": [],
        "message": "no",
        "job_exit_code": 65,
    }
    result = Result(error=error, seconds=9, device="cpu", versions={}, peak_rss_mib=1, node="n")
    write_result(session.store, file, result)
    Place.unreachable = True
    with pytest.raises(treadle.errors.Refusal):
        jobs.settle(session, ref)
    assert any("not noted yet" in line for line in said)


def test_a_budget_blocks_before_anything_is_submitted(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path, **budget(1.4))
    finished(session, submitted(session), 1800)
    other = session_of(loop, tmp_path, as_of="2024-02-13", **budget(1.4))
    with pytest.raises(BudgetSpent) as told:
        plan_job(other, "featurize", DOLLAR)
    assert "0.50 spent, and this job may cost 1.00: 107%" in str(told.value)
    with pytest.raises(BudgetSpent):
        submitted(other, stage="featurize")
    assert len(Place.jobs) == 1
    assert len(session.store.list(f"jobs/{loop.name}")) == 1


def test_what_the_place_can_not_plan_is_not_claimed_and_holds_no_money(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(1.4))
    wrong = Pool(name="dear", price=1.0, max_seconds=3600, options={"devises": 1})
    with pytest.raises(UserError, match="devises"):
        submitted(session, wrong)
    assert session.store.list(f"jobs/{loop.name}") == []
    assert read_ledger(session.store, loop.name).under_way == ()
    submitted(session)
    assert len(Place.jobs) == 1


def test_a_place_that_takes_no_job_for_want_of_credentials_holds_no_money(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(1.0))
    Place.raises = UserError("no credentials were found")
    with pytest.raises(UserError, match="no credentials"):
        submitted(session)
    assert read_ledger(session.store, loop.name).under_way == ()
    # Another job of the loop has the whole budget, though nobody can ask the place about the first.
    assert plan_job(session, "featurize", DOLLAR).usd == 1.0
    Place.raises = None
    ref = submitted(session)
    assert ref.attempt == 2, "the one whose money was freed is not submitted any more"
    assert list(Place.jobs) == [ref.handle.name]
    assert [page.attempt for page, _ in read_ledger(session.store, loop.name).under_way] == [2]
    finished(session, ref, 1800)
    assert [(cost.attempt, cost.usd) for cost in read_ledger(session.store, loop.name).over] == [(2, 0.5)]


def test_money_stays_set_aside_while_nobody_knows_whether_the_job_arrived(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(1.0))
    Place.raises, Place.arrives = Transient("no answer in time"), True
    with pytest.raises(Transient):
        submitted(session)
    Place.raises = UserError("no credentials were found")
    assert [usd for _, usd in read_ledger(session.store, loop.name).under_way] == [1.0]
    with pytest.raises(BudgetSpent):
        plan_job(session, "featurize", DOLLAR)
    Place.raises = None
    assert submitted(session).attempt == 1
    assert len(Place.jobs) == 1


def test_jobs_under_way_count_with_what_they_may_come_to(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path, **budget(1.5))
    submitted(session)
    with pytest.raises(BudgetSpent, match=r"1\.00 in jobs that run"):
        submitted(session_of(loop, tmp_path, as_of="2024-02-13", **budget(1.5)))


def test_a_job_is_expected_to_last_as_long_as_the_longest_of_the_newest(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path)
    assert plan_job(session, "prepare", DOLLAR).usd == 1.0
    for day, seconds, reused in (("12", 360, False), ("13", 720, False), ("14", 1800, True)):
        ref = submitted(session_of(loop, tmp_path, as_of=f"2024-02-{day}"))
        file = read_job(session.store, ref.loop, ref.job, ref.attempt)
        assert file is not None
        made = Result(
            record={}, reused=reused, seconds=1, device="cpu", versions={}, peak_rss_mib=1, node="n"
        )
        write_result(session.store, file, made)
        end(ref.handle.name, "succeeded", seconds)
    end(submitted(session_of(loop, tmp_path, as_of="2024-02-15")).handle.name, "failed", 2400)
    read_ledger(session.store, loop.name)
    assert plan_job(session, "prepare", DOLLAR).usd == pytest.approx(0.2)
    assert plan_job(session, "featurize", DOLLAR).usd == 1.0
    trial = open_session(loop, as_of=FIRST, store=tmp_path / "store", track="trial")
    assert plan_job(trial, "prepare", DOLLAR).usd == 1.0
    unlimited = DOLLAR.model_copy(update={"max_seconds": None})
    assert plan_job(session, "featurize", unlimited).usd is None


def test_a_budget_warns_from_half_of_it_on(loop: treadle.Loop, tmp_path: Path) -> None:
    little = "; less than a fifth of it is left"
    for monthly, share in ((2.1, ""), (2.0, ": 50%"), (1.25, f": 80%{little}"), (1.0, f": 100%{little}")):
        session = session_of(loop, tmp_path, **budget(monthly))
        plan_job(session, "prepare", DOLLAR)
        told = [words for words in session.warnings if "budget" in words]
        assert len(told) == bool(share)
        assert not share or told[0].endswith(share)


def test_a_budget_that_is_not_enforced_only_warns(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path, **budget(0.5, enforce=False))
    submitted(session)
    assert any("it only warns" in words for words in session.warnings)


def test_the_command_refuses_a_run_beyond_the_budget_and_says_how_to_go_on(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    (loop.folder / "pools.yaml").write_text("priced: {price: 1.0, max_seconds: 3600}\n")
    path = loop.folder / "orders.yaml"
    path.write_text(path.read_text() + "budget: {monthly: 0.5}\n")
    asked = ["run", str(path), "--to", "prepare", "--pool", "prepare=priced", "--store", str(tmp_path / "s")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 1
    assert "BudgetSpent" in refused.output
    assert "--over-budget" in refused.output
    assert not (tmp_path / "s" / "jobs").exists()


def test_whoever_goes_beyond_the_budget_is_named_with_the_job(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path, **budget(0.5))
    session.over_budget = True
    ref = submitted(session)
    file = read_job(session.store, ref.loop, ref.job, ref.attempt)
    assert file is not None
    assert file.plan.over_budget
    assert file.who == "ann"
    within = session_of(loop, tmp_path, as_of="2024-02-13", **budget(50))
    within.over_budget = True
    assert not plan_job(within, "prepare", DOLLAR).over_budget


def test_last_months_money_is_not_this_months(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path, **budget(1.2))
    finished(session, submitted(session), 3600)
    later = datetime.now(UTC).replace(day=28) + timedelta(days=10)
    assert plan_job(session, "featurize", DOLLAR, clock=lambda: later).usd == 1.0
    with pytest.raises(BudgetSpent):
        plan_job(session, "featurize", DOLLAR)


def test_raising_the_budget_goes_on_with_the_job_that_runs(loop: treadle.Loop, tmp_path: Path) -> None:
    first = submitted(session_of(loop, tmp_path, **budget(5)))
    assert submitted(session_of(loop, tmp_path, **budget(50))).handle == first.handle


def test_of_two_at_once_only_one_gets_the_last_of_a_budget(loop: treadle.Loop, tmp_path: Path) -> None:
    session_of(loop, tmp_path)
    together, came = threading.Barrier(4), []

    def ask(day: int) -> None:
        session = session_of(loop, tmp_path, as_of=f"2024-02-{day}", **budget(1.5))
        together.wait()
        try:
            came.append(submitted(session).handle.name)
        except BudgetSpent:
            came.append("refused")

    threads = [threading.Thread(target=ask, args=(day,)) for day in range(12, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert came.count("refused") == 3
    assert len(Place.jobs) == 1


def test_a_pool_that_cannot_be_priced_is_told_when_there_is_a_budget(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(5))
    plan_job(session, "prepare", Pool(name="free", backend=BACKEND))
    assert any("counts nothing in the budget" in words for words in session.warnings)


@pytest.mark.parametrize(
    ("hours", "now", "opens"),
    [
        (None, "03:00", None),
        ("20:00-06:00", "19:59", "2026-11-21T20:00"),
        ("20:00-06:00", "20:00", None),
        ("20:00-06:00", "05:59", None),
        ("20:00-06:00", "06:00", "2026-11-21T20:00"),
        ("08:00-17:30", "07:00", "2026-11-21T08:00"),
        ("08:00-17:30", "17:29", None),
        ("08:00-17:30", "17:30", "2026-11-22T08:00"),
        ("00:00-00:00", "12:00", None),
    ],
)
def test_a_pool_opens_at_its_hours(hours: str | None, now: str, opens: str | None) -> None:
    at = datetime.fromisoformat(f"2026-11-21T{now}").replace(tzinfo=UTC)
    expected = datetime.fromisoformat(opens).replace(tzinfo=UTC) if opens else None
    assert opening(hours, at) == expected


def test_a_job_outside_of_the_hours_is_told_when_the_pool_opens(loop: treadle.Loop, tmp_path: Path) -> None:
    session = session_of(loop, tmp_path)
    night = DOLLAR.model_copy(update={"hours": "20:00-06:00"})
    noon = datetime(2026, 11, 21, 12, 29, 30, tzinfo=UTC)
    with pytest.raises(PoolClosed, match=r"opens at 2026-11-21 20:00 UTC, in 7 h 31 min") as told:
        plan_job(session, "prepare", night, clock=lambda: noon)
    assert told.value.retryable
    assert told.value.opens.hour == 20
    plan_job(session, "prepare", night, clock=lambda: noon.replace(hour=21))


def test_a_job_carries_the_standard_tags(
    loop: treadle.Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREADLE_ENVIRONMENT", "staging")
    tags = {"team": "ops", "project": "punctuality"}
    session = session_of(loop, tmp_path, tags=tags)
    ref = submitted(session, DOLLAR.model_copy(update={"tags": {"team": "night-shift"}}))
    assert Place.jobs[ref.handle.name][0].labels == {
        "team": "night-shift",
        "project": "punctuality",
        "environment": "staging",
        "loop": "orders",
        "stage": "prepare",
        "track": "production",
    }
    monkeypatch.delenv("TREADLE_ENVIRONMENT")
    assert "environment" not in labels_of(loop, "train", "production", DOLLAR)


def test_sums_are_by_stage_month_pool_and_tag(loop: treadle.Loop, tmp_path: Path) -> None:
    for stage, team, seconds in (("prepare", "ops", 360), ("featurize", "ops", 720), ("prepare", "ml", 36)):
        session = session_of(loop, tmp_path, tags={"team": team})
        finished(session, submitted(session, stage=stage), seconds)

    def sums(by: str) -> dict[str, float]:
        return {group["name"]: group["usd"] for group in report(session.store, loop, by=by)["groups"]}

    assert sums("stage") == {"prepare": 0.11, "featurize": 0.2}
    assert sums("month") == {datetime.now(UTC).strftime("%Y-%m"): 0.31}
    assert sums("tag:team") == {"ops": 0.3, "ml": 0.01}
    assert sums("tag:project") == {"(none)": 0.31}
    assert sums("pool") == {"dollar": 0.31}


def test_pools_that_nobody_uses_are_named_with_what_they_may_cost(loop: treadle.Loop, tmp_path: Path) -> None:
    text = "dollar: {price: 1.0}\nbig: {instance_type: g6.xlarge}\nfree: {}\n"
    (loop.folder / "pools.yaml").write_text(text)
    session = session_of(loop, tmp_path)
    finished(session, submitted(session), 60)
    idle = {each["pool"]: each["words"] for each in report(session.store, loop)["idle"]}
    assert set(idle) == {"big", "free"}
    assert (
        "no job of this store ever ran there. A machine that stands ready for it costs 19.32 USD a day."
        in idle["big"]
    )
    in_a_month = datetime.now(UTC) + timedelta(days=30)
    idle = {each["pool"]: each["words"] for each in report(session.store, loop, now=in_a_month)["idle"]}
    assert "in 14 days, the last one on 20" in idle["dollar"]


def test_the_command_shows_sums_reservations_and_the_budget(loop: treadle.Loop, tmp_path: Path) -> None:
    path = loop.folder / "orders.yaml"
    path.write_text(path.read_text() + "budget: {monthly: 4}\n")
    session = session_of(treadle.Loop.load(path), tmp_path)
    there = {"name": "there", "backend": BACKEND, "instance_type": "ml.g6.xlarge", "max_seconds": 3600}
    finished(session, submitted(session, Pool.model_validate(there)), 3600)
    finished(session, submitted(session, Pool(name="free", backend=BACKEND), stage="featurize"), 3600)
    place = [str(path), "--store", session.store.uri]
    shown = CliRunner().invoke(app, ["cost", *place])
    assert shown.exit_code == 0, shown.output
    told = " ".join(shown.output.split())
    for words in ("0.80", "not priced: free", "SageMaker's own is higher", "0.80 of 4.00 USD, 20%"):
        assert words in told
    found = one_json(CliRunner().invoke(app, ["cost", *place, "--by", "month", "--json"]).stdout)
    assert found["budget"]["spent"] == 0.8048
    assert found["total"]["unpriced"] == 1
    refused = CliRunner().invoke(app, ["cost", *place, "--by", "tag"])
    assert refused.exit_code == 2
    assert "tag:NAME" in refused.output


def test_notes_say_what_a_job_has_cost_with_its_lost_attempts() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    job = {"pool": "gpu", "started_at": "2026-11-21T11:30:00Z", "workers": 2, "usd_per_hour": 0.8}
    notes = {"job": job, "attempts": [{"seconds": 900}, {"seconds": 900}]}
    assert costed(notes, now)["job"]["usd"] == 1.6
    assert costed({"job": {**job, "usd_per_hour": None}}, now)["job"].get("usd") is None
    assert costed({"by": "ann"}, now) == {"by": "ann"}


def submit_within_a_budget(path: str, store: str, day: str) -> str:
    loop = treadle.Loop.load(path)
    session = open_session(loop, as_of=day, store=store)
    ref = jobs.submit(session, "prepare", jobs.pool_of(loop, "prepare", "priced"), {})  # type: ignore[arg-type]
    return ref.handle.name


@pytest.mark.slow
def test_two_processes_do_not_both_get_the_last_of_a_budget(loop: treadle.Loop, tmp_path: Path) -> None:
    (loop.folder / "pools.yaml").write_text("priced: {price: 1.0, max_seconds: 3600}\n")
    path = loop.folder / "orders.yaml"
    path.write_text(path.read_text() + "budget: {monthly: 1.5}\n")
    store = str(tmp_path / "store")
    open_session(loop, as_of=FIRST, store=store)
    calls = [(submit_within_a_budget, str(path), store, f"2024-02-{day}") for day in (12, 13)]
    came = sorted(kind for kind, _ in call_together(*calls))
    assert came == ["BudgetSpent", "done"]


@pytest.mark.slow
def test_two_pools_make_the_same_records_and_each_says_what_it_cost(
    turned: tuple[Wheel, treadle.Run], tmp_path: Path
) -> None:
    found = []
    for name, price in (("cheap", 0.1), ("dear", 10.0)):
        wheel = copy_of(turned[0], tmp_path / name)
        (wheel.path.parent / "pools.yaml").write_text(f"{name}: {{price: {price}, max_seconds: 600}}\n")
        wheel.edit("orders.yaml", "rounds: 30", "rounds: 31")
        wheel.edit("orders.yaml", "owner: ops", "owner: ops\nbudget: {monthly: 0.000001}")
        run = wheel.run("2024-02-12", to="train", track="trial", pools={"train": name}, over_budget=True)
        job = run["train"].notes["job"]
        (cost,) = read_ledger(wheel.session(FIRST).store, "orders").over
        assert (job["pool"], job["usd_per_hour"], job["over_budget_by"]) == (name, price, "ann")
        assert 0 < job["usd"] <= (cost.usd or 0)
        assert cost.usd == pytest.approx(price * cost.seconds / 3600, abs=1e-5)
        assert cost.seconds >= run["train"].notes["seconds"]
        found.append((ids(run), json.dumps(run["train"].blobs)))
    assert found[0] == found[1]
