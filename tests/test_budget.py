"""A budget is asked before money is spent: of the month, of all who ask at once; and a pool's hours before that."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import treadle
from cost_cases import BACKEND, DOLLAR, Place, budget, finished, session_of, submitted
from processes import call_together
from small import write_small_loop
from treadle import jobs
from treadle.cli import app
from treadle.errors import NotSent, SpecError, Transient, UserError
from treadle.hardware.pools import Pool
from treadle.jobs.cost import read_ledger
from treadle.jobs.file import read_job
from treadle.jobs.listing import jobs_in
from treadle.jobs.planning import BudgetSpent, PoolClosed, one_at_a_time, opening, plan_job
from treadle.session import open_session
from typer.testing import CliRunner
from wheel import FIRST


@pytest.fixture(autouse=True)
def place() -> None:
    Place.jobs, Place.unreachable, Place.raises, Place.arrives = {}, False, None, False


@pytest.fixture
def loop(tmp_path: Path) -> treadle.Loop:
    return treadle.Loop.load(write_small_loop(tmp_path / "loop", days=1))


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
    (job,) = jobs_in(session.store, loop.name)
    assert (job.state, job.reason) == (
        "unsubmitted",
        "it was not taken, and nothing was started: no credentials were found",
    )
    # Another job of the loop has the whole budget, though nobody can ask the place about the first.
    assert plan_job(session, "featurize", DOLLAR).usd == 1.0
    Place.raises = None
    ref = submitted(session)
    assert ref.attempt == 2, "the one whose money was freed is not submitted any more"
    assert list(Place.jobs) == [ref.handle.name]
    assert [page.attempt for page, _ in read_ledger(session.store, loop.name).under_way] == [2]
    finished(session, ref, 1800)
    assert [(cost.attempt, cost.usd) for cost in read_ledger(session.store, loop.name).over] == [(2, 0.5)]


def test_a_request_that_was_not_sent_holds_no_money_and_is_told_so(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(1.0))
    closed = Pool(
        name="cluster", backend="ray", price=1.0, max_seconds=3600, options={"address": "http://127.0.0.1:9"}
    )
    for _ in range(2):
        with pytest.raises(NotSent, match="refused"):
            submitted(session, closed)
    assert read_ledger(session.store, loop.name).under_way == ()
    (job,) = jobs_in(session.store, loop.name)
    assert (job.state, job.file.attempt, job.is_over) == ("unsubmitted", 1, True)
    assert "nothing was started: the Ray cluster at http://127.0.0.1:9 can't be reached" in job.reason
    assert plan_job(session, "featurize", DOLLAR).usd == 1.0, "another job has the whole budget"
    Place.raises = NotSent("connection refused")
    with pytest.raises(NotSent):
        submitted(session)
    Place.raises = None
    ref = submitted(session)
    assert ref.attempt == 2, "once its place can be reached, the same job has it, too"
    assert list(Place.jobs) == [ref.handle.name]


def test_an_interpreter_that_is_not_there_is_refused_before_anything_is_claimed(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path, **budget(1.0))
    wrong = Pool(name="other", price=1.0, max_seconds=3600, python="/nowhere/python")
    with pytest.raises(SpecError, match="the pool other: /nowhere/python is no program on this machine"):
        submitted(session, wrong)
    assert session.store.list(f"jobs/{loop.name}") == []


def test_who_waits_for_another_plan_of_the_loop_is_told_in_words(loop: treadle.Loop, tmp_path: Path) -> None:
    told: list[str] = []
    session = session_of(loop, tmp_path, **budget(1.0))
    session.say = told.append
    begun = threading.Event()

    def other() -> None:
        with one_at_a_time(session_of(loop, tmp_path, **budget(1.0))):
            begun.set()
            end = time.monotonic() + 30
            while not told and time.monotonic() < end:
                time.sleep(0.02)

    held = threading.Thread(target=other)
    held.start()
    assert begun.wait(30)
    with one_at_a_time(session):
        held.join()
    assert len(told) == 1
    assert told[0].startswith(f"another run of {loop.name} is asking its budget (process ")


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
