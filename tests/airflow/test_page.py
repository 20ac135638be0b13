"""The page of all loops: who may see it, what it shows, and what it does when a store or a file is broken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import treadle
from desk import client, stored
from home import Home
from small import write_small_loop
from treadle.session import open_session
from treadle.status import status
from treadle_airflow.hooks.treadle import Settings
from treadle_airflow.page import rows
from treadle_airflow.page.table import page_of
from wheel import FIRST, SECOND, Wheel, copy_of


@pytest.fixture
def page(home: Home, unanswered: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A loop with a champion and a challenger that waits, known to Airflow."""
    wheel = copy_of(unanswered, tmp_path)
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    home.drop_in(wheel.path.parent)
    stored(home)
    monkeypatch.setenv("TREADLE_LOOPS", str(home.dags / "loops"))
    rows.forget()
    return wheel


def test_it_asks_for_a_login(page: Wheel) -> None:
    # The first request has the whole server built, plugins and all.
    assert client().get("/treadle/").status_code == 401
    assert client().get(f"/treadle/report/orders/drift_report/{'0' * 64}").status_code == 401


def test_it_shows_champion_verdict_and_what_waits(page: Wheel) -> None:
    (broken := Path(os.environ["TREADLE_LOOPS"]) / "broken.yaml").write_text("name: [")
    champion = page.session(SECOND).log.champion()
    assert champion is not None
    for role in ("ADMIN", "VIEWER"):
        answer = client("eva", role).get("/treadle/")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        for shown in (
            f"<code>{str(champion.candidate)[:12]}</code>",
            "since 2024-02-12, by ann",
            '<span class="big">promote</span>, 2024-03-04',
            "the loop&#x27;s approval is manual",
            "treadle approve",
            'href="/dags/orders"',
            'href="/dags/orders__release/required_actions?response_received=false"',
            broken.name,
            "import errors",
        ):
            assert shown in answer.text
        assert answer.text.count("approval is manual") == 1  # among what waits, and not among the alerts
    assert client("eva").get("/treadle/?track=<b>").status_code == 400
    assert "none yet" in client("eva").get("/treadle/?track=trial").text


def test_a_loop_whose_dag_a_user_may_not_see_is_not_there(
    page: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    monkeypatch.setattr(SimpleAuthManager, "get_authorized_dag_ids", lambda self, **_: {"other"})
    answer = client("eva").get("/treadle/")
    assert answer.status_code == 200
    assert "orders" not in answer.text.replace("TREADLE_LOOPS", "")


def test_a_store_that_hangs_costs_its_row_and_no_more(page: Wheel) -> None:
    loops = Path(os.environ["TREADLE_LOOPS"])
    text = (loops / "orders.yaml").read_text()
    (loops / "slow.yaml").write_text(text.replace("name: orders", "name: slow"))
    folder = page.store / "logs" / "slow" / "production"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "00000001.json")  # who reads it waits for ever
    found = {Path(row["file"]).name: row for row in rows.rows_of("production", Settings(), limit=8)}
    assert "did not answer within 8 s" in found["slow.yaml"]["error"]
    assert found["slow.yaml"]["loop"] == "slow"  # so that only those see it who may
    assert found["orders.yaml"]["status"]["champion"]["by"] == "ann"


def test_a_store_that_is_no_store_and_a_connection_s_secrets(page: Wheel) -> None:
    settings = Settings(
        store="s3://key:hunter22@nowhere/x", environment={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )
    (row,) = rows.rows_of("production", settings)
    assert "error" in row
    assert "hunter22" not in str(row)
    assert "AWS_ENDPOINT_URL" not in os.environ


def test_everything_is_escaped() -> None:
    bad = "<script>alert(1)</script>\"'"
    brief = {"candidate": bad, "as_of": bad, "why": bad, "decision": bad, "kind": bad, "waits_for": bad}
    champion = {"candidate": bad, "since": bad, "by": bad, "approved_by": bad, "metrics": {bad: 1.0}}
    told = {
        "champion": champion,
        "last_verdict": brief,
        "drift": {"drifted": True, "decayed": True, "end": bad, "report": bad, "words": bad},
        "pending": {**brief, "commands": [bad]},
        "alerts": [bad],
    }
    names = {bad, f"{bad}__monitor", f"{bad}__release"}
    shown = page_of(
        [{"loop": bad, "status": told, "mlflow": f"https://x/{bad}"}, {"file": bad, "error": bad}],
        track=bad,
        base="",
        readable=names,
    )
    assert "<script" not in shown
    assert bad not in shown


@pytest.mark.slow
def test_a_drift_report_s_page_opens_in_a_box_of_its_own(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = Wheel(write_small_loop(tmp_path / "shifted", shift_from=50), tmp_path / "other")
    wheel.run(FIRST)
    report = treadle.watch(treadle.Loop.load(wheel.path), as_of=SECOND, store=wheel.store)["monitor"]
    assert report.blobs, "nothing drifted"
    monkeypatch.setenv("TREADLE_STORE", str(wheel.store))
    monkeypatch.setenv("TREADLE_LOOPS", str(wheel.path.parent))
    home.drop_in(wheel.path.parent)
    stored(home)
    rows.forget()
    address = f"/treadle/report/orders/drift_report/{report.id}"
    page = client("eva").get("/treadle/").text
    assert f'href="{address}"' in page
    assert (
        status(open_session(treadle.Loop.load(wheel.path), store=wheel.store))["alerts"][0][:8] == "inputs d"
    )
    assert "inputs drifted in" not in page  # the column of drift says it
    answer = client("eva").get(address)
    assert answer.status_code == 200
    assert "amount" in answer.text
    assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    for other in (f"/treadle/report/others/drift_report/{report.id}", f"{address[:-1]}x"):
        assert client("eva").get(other).status_code == 404
