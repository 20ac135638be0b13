"""What jobs cost: every attempt is in the ledger, the sums are told by it, and no id knows of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import treadle
from cost_cases import BACKEND, DOLLAR, Place, end, finished, session_of, spent, submitted
from processes import one_json
from small import write_small_loop
from treadle import jobs
from treadle.cli import app
from treadle.errors import JobFailed
from treadle.hardware.policy import labels_of
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef
from treadle.jobs.cost import costed, read_ledger
from treadle.jobs.cost_report import report
from treadle.jobs.file import Result, read_job, write_result
from treadle.jobs.planning import BudgetSpent, plan_job
from treadle.session import open_session
from typer.testing import CliRunner
from wheel import FIRST, Wheel, copy_of, ids


@pytest.fixture(autouse=True)
def place() -> None:
    Place.jobs, Place.unreachable, Place.raises, Place.arrives = {}, False, None, False


@pytest.fixture
def loop(tmp_path: Path) -> treadle.Loop:
    return treadle.Loop.load(write_small_loop(tmp_path / "loop", days=1))


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


def test_jobs_under_way_without_a_price_are_never_said_to_cost_nothing(
    loop: treadle.Loop, tmp_path: Path
) -> None:
    session = session_of(loop, tmp_path)
    place = [str(loop.folder / "orders.yaml"), "--store", session.store.uri]
    submitted(session, Pool(name="free", backend=BACKEND))
    told = " ".join(CliRunner().invoke(app, ["cost", *place]).output.split())
    assert "1 job, not priced" in told
    assert "may come to" not in told
    submitted(session, stage="featurize")
    told = " ".join(CliRunner().invoke(app, ["cost", *place]).output.split())
    assert "2 jobs, which may come to 1.00 USD; 1 of them not priced" in told


def test_notes_say_what_a_job_has_cost_with_its_lost_attempts() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    job = {"pool": "gpu", "started_at": "2026-11-21T11:30:00Z", "workers": 2, "usd_per_hour": 0.8}
    notes = {"job": job, "attempts": [{"seconds": 900}, {"seconds": 900}]}
    assert costed(notes, now)["job"]["usd"] == 1.6
    assert costed({"job": {**job, "usd_per_hour": None}}, now)["job"].get("usd") is None
    assert costed({"by": "ann"}, now) == {"by": "ann"}


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


def test_a_sum_below_a_cent_is_never_shown_as_nothing(loop: treadle.Loop, tmp_path: Path) -> None:
    path = loop.folder / "orders.yaml"
    path.write_text(path.read_text() + "budget: {monthly: 0.004}\n")
    (loop.folder / "pools.yaml").write_text("idle: {price: 0.0001}\n")
    session = session_of(treadle.Loop.load(path), tmp_path)
    cheap = Pool(name="cheap", backend=BACKEND, price=0.001, max_seconds=9)
    finished(session, submitted(session, cheap), 9)
    shown = CliRunner().invoke(app, ["cost", str(path), "--store", session.store.uri])
    assert shown.exit_code == 0, shown.output
    told = " ".join(shown.output.split())
    for words in ("0.0000025 ", "0.0000025 of 0.004 USD, less than 1%", "costs 0.0024 USD a day"):
        assert words in told
    dear = Pool(name="dear", backend=BACKEND, price=1.0, max_seconds=36)
    with pytest.raises(
        BudgetSpent, match=r"is 0\.004 USD a month; .* 0\.0000025 spent, .* may cost 0\.01: 250%"
    ):
        submitted(session, dear, stage="featurize")
