"""The endpoint follows the release log: swaps under load, failures, retirement."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving_models import ROW, SCHEMA, Logistic, promote, small_loop, stored_candidate, trained, variant_of
from treadle.errors import StoreError, TreadleError, UserError
from treadle.loop import Loop
from treadle.registry.log import ReleaseLog
from treadle.serving.router import Desired, Follower, Router, Variant
from treadle.serving.server import no_champion, run_in_thread, serve_in_thread
from treadle.store import LocalStore, Store, blob_path

LOAD_CLIENT = Path(__file__).parents[2] / "benchmarks" / "load_client.py"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store")


def quiet(line: str) -> None:
    pass


def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def test_a_promotion_under_load_fails_no_request_and_versions_come_in_order(
    store: Store, tmp_path: Path
) -> None:
    first = stored_candidate(store, trained(1), tmp_path / "1")
    second = stored_candidate(store, trained(2), tmp_path / "2")
    one = promote(store, first, 0)
    body = tmp_path / "request.json"
    body.write_text(json.dumps({"dataframe_records": [ROW]}))
    with serve_in_thread(small_loop(), store, say=quiet) as server:
        command = [sys.executable, str(LOAD_CLIENT), f"{server.url}/invocations", str(body), "--until-closed"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            time.sleep(1)
            two = promote(store, second, 1, first.digest)
            until(lambda: server.router.serving[0].version == two)
            time.sleep(0.5)
            client.stdin.close()
            assert client.stdout is not None
            seen = json.loads(client.stdout.read())
    assert seen["failed"] == 0, seen["failures"]
    assert seen["requests"] > 200
    assert seen["versions"] == [[one, two]] * 16


def test_the_server_answers_with_the_released_models_own_predictions(store: Store, tmp_path: Path) -> None:
    predictor = trained(1)
    candidate = stored_candidate(store, predictor, tmp_path / "1")
    promote(store, candidate, 0)
    with serve_in_thread(small_loop(), store, say=quiet) as server:
        answer = httpx.post(f"{server.url}/invocations", json={"instances": [ROW]}).json()
    x = SCHEMA.encode({name: [ROW[name]] for name in SCHEMA.names})
    assert answer["predictions"] == predictor.predict(x).tolist()
    assert answer["model"] == {"name": "flights", "version": 1, "digest": candidate.digest}


def test_a_rollback_serves_the_earlier_model_under_a_higher_version(store: Store, tmp_path: Path) -> None:
    first = stored_candidate(store, trained(1), tmp_path / "1")
    second = stored_candidate(store, trained(2), tmp_path / "2")
    promote(store, first, 0)
    promote(store, second, 1, first.digest)
    with serve_in_thread(small_loop(), store, say=quiet) as server:
        assert server.router.serving[0].candidate == second.digest
        entry, _ = ReleaseLog(store, "flights").append(
            "rollback",
            subject=first.digest,
            candidate=first.digest,
            champion=second.digest,
            why="worse",
            who="test",
            as_of=second.as_of,
            details={"candidate_id": first.id},
        )
        until(lambda: server.router.serving[0].version == entry.sequence)
        assert server.router.serving[0].candidate == first.digest


def test_tracks_are_served_apart(store: Store, tmp_path: Path) -> None:
    promote(store, stored_candidate(store, trained(1), tmp_path / "1"), 0, track="demo")
    with serve_in_thread(small_loop(), store, wait_s=0, say=quiet) as server:
        assert httpx.get(f"{server.url}/ping").status_code == 503
    with serve_in_thread(small_loop(), store, "demo", say=quiet) as server:
        assert httpx.get(f"{server.url}/ping").status_code == 200
    with (
        pytest.raises(
            TreadleError,
            match="the track production has no champion yet; those of flights with one are: demo",
        ),
        serve_in_thread(small_loop(), store, wait_s=0.1),
    ):
        pass


def test_an_altered_new_model_is_not_served_and_the_old_one_goes_on(store: Store, tmp_path: Path) -> None:
    first = stored_candidate(store, trained(1), tmp_path / "1")
    second = stored_candidate(store, trained(2), tmp_path / "2")
    promote(store, first, 0)
    lines: list[str] = []
    with serve_in_thread(small_loop(), store, say=lines.append) as server:
        altered = Path(store.uri) / blob_path(second.blobs["model/model.ubj"])
        whole = altered.read_bytes()
        altered.write_bytes(whole[:-1])
        two = promote(store, second, 1, first.digest)
        until(lambda: server.router.trouble)
        assert server.router.serving[0].candidate == first.digest
        assert "altered" in server.router.trouble
        assert "treadle_follow_failures_total" in httpx.get(f"{server.url}/metrics").text
        altered.write_bytes(whole)
        until(lambda: server.router.serving[0].version == two)
        assert not server.router.trouble
    assert len([line for line in lines if "altered" in line]) == 1


def test_a_champion_lost_before_the_start_leaves_its_predecessor_serving(
    store: Store, tmp_path: Path
) -> None:
    first = stored_candidate(store, trained(1), tmp_path / "1")
    second = stored_candidate(store, trained(2), tmp_path / "2")
    promote(store, first, 0)
    promote(store, second, 1, first.digest)
    (Path(store.uri) / blob_path(second.blobs["model/model.ubj"])).unlink()
    with serve_in_thread(small_loop(), store, say=quiet) as server:
        assert server.router.serving[0].candidate == first.digest
        assert "missing" in server.router.trouble


def test_a_rebuild_that_differs_from_what_was_released_is_not_served(store: Store, tmp_path: Path) -> None:
    candidate = stored_candidate(store, trained(1), tmp_path / "1")
    ReleaseLog(store, "flights").append(
        "promote", subject="f" * 64, candidate="f" * 64, why="", who="t", as_of=candidate.as_of,
        details={"candidate_id": candidate.id},
    )  # fmt: skip
    with (
        pytest.raises(TreadleError, match="only what was judged serves"),
        serve_in_thread(small_loop(), store, wait_s=0.5, say=quiet),
    ):
        pass


def test_a_track_without_a_champion_is_told_at_the_start_and_served_once_it_has_one(
    store: Store, tmp_path: Path
) -> None:
    candidate = stored_candidate(store, trained(1), tmp_path / "1")
    for track in ("production", "replay"):
        promote(store, candidate, 0, track=track)
    lines: list[str] = []
    with serve_in_thread(small_loop(), store, "prodution", wait_s=0, say=lines.append) as server:
        until(lambda: lines)
        waits = httpx.get(f"{server.url}/ping")
        assert (waits.status_code, waits.json()["status"]) == (503, "waiting for a champion")
        trouble = waits.json()["trouble"]
        assert httpx.get(server.url).json()["trouble"] == trouble
        assert trouble.startswith(
            "the track prodution has no champion yet; those of flights with one are: production, replay."
            " Did you mean --track production?"
        )
        assert "`treadle run LOOP --track prodution`" in trouble
        time.sleep(1)
        assert lines == [f"nothing serves: {trouble}"], "said once, however often it looks"
        promote(store, candidate, 0, track="prodution")
        until(lambda: server.router.serving)
        serves = httpx.get(f"{server.url}/ping")
        assert (serves.status_code, serves.json()) == (200, {"status": "serving", "trouble": None})
    with serve_in_thread(small_loop(name="other"), store, wait_s=0, say=lines.append) as server:
        until(lambda: server.router.trouble)
        assert f"no track of other has one in {store.uri}" in server.router.trouble


def test_the_command_that_brings_a_champion_works_from_the_working_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "my loops", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    path = folder / "small.yaml"
    path.write_text(json.dumps(small_loop().model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    for here, shown in (
        (tmp_path, "'my loops/small.yaml'"),
        (folder, "small.yaml"),
        (elsewhere, f"'{path}'"),
    ):
        monkeypatch.chdir(here)
        assert f"`treadle run {shown} --track trial`" in no_champion(Loop.load(path), store, "trial")


def follower_of(router: Router, desired: Any, load: Any, lines: list[str]) -> Follower:
    return Follower(router, desired, load, every_s=0.01, say=lines.append)


def test_a_log_that_cannot_be_read_changes_nothing(store: Store) -> None:
    router, lines = Router("flights", variant_of(Logistic())), []  # type: ignore[var-annotated]

    def broken() -> Desired | None:
        raise StoreError("the disk is gone")

    follower = follower_of(router, broken, None, lines)
    for _ in range(3):
        follower.look()
        time.sleep(0.05)
    assert router.serving[0].version == 7
    assert "the disk is gone" in router.trouble
    assert len(lines) == 1
    assert follower.failures >= 2


def test_a_failing_model_is_tried_again_after_growing_pauses_and_another_at_once() -> None:
    tries: list[int] = []

    def load(desired: Desired) -> Variant:
        tries.append(desired.version)
        if desired.version == 8:
            raise StoreError("no such file")
        return variant_of(Logistic(), desired.version)

    wanted = Desired(8, "b")
    router, lines = Router("flights", variant_of(Logistic())), []  # type: ignore[var-annotated]
    follower = follower_of(router, lambda: wanted, load, lines)
    started = time.monotonic()
    while time.monotonic() < started + 0.5:
        follower.look()
        time.sleep(0.002)
    assert 3 <= len(tries) <= 8
    wanted = Desired(9, "c")
    follower.look()
    assert router.serving[0].version == 9
    assert not router.trouble


def test_a_retired_model_serves_no_longer() -> None:
    router, lines = Router("flights", variant_of(Logistic())), []  # type: ignore[var-annotated]
    follower_of(router, lambda: None, None, lines).look()
    assert router.serving == ()
    assert router.route("any") is None


def test_weights_share_the_requests_and_a_key_stays_with_its_variant() -> None:
    old, new = variant_of(Logistic(), 1, weight=3), variant_of(Logistic(), 2, weight=1)
    router = Router("flights", old, new)
    keys = [f"request-{number}" for number in range(4000)]
    chosen = [router.route(key) for key in keys]
    assert chosen == [router.route(key) for key in keys]
    assert np.isclose(sum(variant is new for variant in chosen) / 4000, 0.25, atol=0.03)


SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from serving_models import small_loop
from treadle.serving.server import serve
from treadle.store import LocalStore
serve(small_loop(), LocalStore(Path(sys.argv[2])), port=0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_its_captures_are_written(
    store: Store, tmp_path: Path, number: int
) -> None:
    candidate = stored_candidate(store, trained(1), tmp_path / "1")
    promote(store, candidate, 0)
    command = [sys.executable, "-c", SERVE, str(Path(__file__).parent), store.uri]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split(" on ")[1].strip()
            until(lambda: httpx.get(f"{url}/ping").status_code == 200, seconds=90)
            assert httpx.post(f"{url}/invocations", json={"instances": [ROW]}).status_code == 200
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(20) == 0, rest
        finally:
            process.kill()
    assert len(store.list(f"captures/flights/production/{candidate.digest[:16]}")) == 1
    assert "Traceback" not in rest


def test_a_taken_port_is_the_users_error() -> None:
    from treadle.serving.app import build_app

    with (
        pytest.raises(UserError, match="choose another --port"),
        run_in_thread(build_app(Router("x")), port=80000),
    ):
        pass
    with run_in_thread(build_app(Router("flights"))) as url:
        port = int(url.rsplit(":", 1)[1])
        with (
            pytest.raises(UserError, match="choose another --port"),
            run_in_thread(build_app(Router("x")), port=port),
        ):
            pass
