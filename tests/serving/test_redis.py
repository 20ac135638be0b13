"""Online views on a real Redis: fed, served by entity, apart by track and definition, never older over newer."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import treadle
from treadle.data.online import OnlineReader, materialize
from treadle.errors import MissingPackage, Transient, UserError
from treadle.projections import materialize as feed
from treadle.records import FeatureSet
from treadle.scoring import online_for, score_file
from treadle.serving.server import Running, serve_in_thread
from wheel import FIRST, SECOND, Wheel, lenient, new_wheel

sys.path.append(str(Path(__file__).parents[1] / "data"))
from feast_cases import HOUR, START, Case, many, report, visit

REDIS = shutil.which("redis-server")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        REDIS is None,
        reason="redis-server is not installed: apt-get install redis-server, or brew install redis",
    ),
]
NOW = START + timedelta(days=3)
ORDER = {"region": "north", "amount": 31.5, "items": 2, "hour": 20}


class Redis:
    """A server of its own on the loopback, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [str(REDIS), *options, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while b"PONG" not in self.say("PING"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def say(self, *words: str) -> bytes:
        """Redis' answer to a command; empty when it does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall((" ".join(words) + "\r\n").encode())
                return connection.recv(65536)
        except OSError:
            return b""

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def case(redis: Redis, tmp_path: Path) -> Case:
    return Case(tmp_path / "case", online={"type": "redis", "connection_string": redis.address})


def prepared(case: Case) -> tuple[Any, FeatureSet]:
    snapshot = case.snapshot(*many(5))
    return snapshot, case.record(snapshot)


def wind(case: Case, features: FeatureSet, at: datetime, track: str = "production") -> list[Any]:
    return OnlineReader(case.loop, case.store, track, features).read([{"town": "Ayr"}], at)["weather__wind_y"]


def test_an_older_value_never_overwrites_a_newer(case: Case) -> None:
    snapshot, features = prepared(case)
    views = features.views

    def write(at: datetime) -> dict[str, int]:
        return materialize(case.loop, case.store, "production", snapshot, views, at)

    assert write(NOW) == {views["weather"]: 2}
    assert write(NOW - 5 * HOUR) == {views["weather"]: 0}
    assert wind(case, features, NOW) == [71]
    threads = [threading.Thread(target=write, args=(NOW + hours * HOUR,)) for hours in (3, 9, 1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wind(case, features, NOW + 9 * HOUR) == [80]


def test_values_keep_their_microseconds_and_their_types(case: Case) -> None:
    late, early = NOW - HOUR + timedelta(milliseconds=700), NOW - HOUR + timedelta(milliseconds=300)
    reports = [report(early, 3.0), report(late, 1 / 3, wind=2**53), report(early, None, "Bath", None)]
    snapshot = case.snapshot([visit("a", NOW)], reports)
    features = case.record(snapshot)
    for at in (NOW, late):
        materialize(case.loop, case.store, "production", snapshot, features.views, at)
    reader = OnlineReader(case.loop, case.store, "production", features)
    found = reader.read([{"town": "Ayr"}, {"town": "Bath"}], NOW)
    assert found["weather__temp"] == [1 / 3, None]
    assert found["weather__wind_y"] == [2**53, None]
    assert found["weather__rain"] == [False, False]


def test_a_corrected_value_of_the_same_instant_counts(case: Case) -> None:
    for temp in (10.0, 11.5):
        snapshot = case.snapshot([visit("a", NOW)], [report(NOW - HOUR, temp)])
        features = case.record(snapshot)
        materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
        reader = OnlineReader(case.loop, case.store, "production", features)
        assert reader.read([{"town": "Ayr"}], NOW)["weather__temp"] == [temp]


def test_tracks_are_apart(case: Case) -> None:
    snapshot, features = prepared(case)
    materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
    with pytest.raises(UserError, match="no value for town = 'Ayr'"):
        wind(case, features, NOW, "replay")
    materialize(case.loop, case.store, "replay", snapshot, features.views, NOW - 2 * HOUR)
    assert wind(case, features, NOW, "replay") == [69]
    assert wind(case, features, NOW) == [71]


def test_a_redis_that_is_away_is_said_quickly_and_found_again(case: Case, redis: Redis) -> None:
    snapshot, features = prepared(case)
    materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
    reader = OnlineReader(case.loop, case.store, "production", features)
    ask = [{"town": "Ayr"}]
    assert reader.read(ask, NOW)["weather__wind_y"] == [71]
    redis.stop()
    with pytest.raises(Transient, match="does not answer"):
        reader.read(ask, NOW)
    started = time.monotonic()
    for _ in range(5):
        with pytest.raises(Transient, match="does not answer"):
            reader.read(ask, NOW)
    assert time.monotonic() - started < 2
    with pytest.raises(Transient):
        materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
    redis.start()
    time.sleep(1.1)
    with pytest.raises(UserError, match="no value"):  # it kept nothing
        reader.read(ask, NOW)
    materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
    assert reader.read(ask, NOW)["weather__wind_y"] == [71]


@pytest.mark.parametrize(
    ("online", "words"),
    [
        ({"type": "redis", "connection_string": "localhost"}, "host:port"),
        ({"type": "redis", "adress": "x"}, r"adress: Extra inputs"),
        ({"type": "rediss"}, "'rediss', which Feast does not know"),
    ],
)
def test_a_wrong_section_is_the_users_error(tmp_path: Path, online: dict[str, Any], words: str) -> None:
    case = Case(tmp_path / "case", online=online)
    snapshot, features = prepared(case)
    with pytest.raises(UserError, match=words):
        materialize(case.loop, case.store, "production", snapshot, features.views, NOW)


def test_a_wrong_password_is_the_users_error_and_is_not_shown(case: Case, redis: Redis) -> None:
    assert b"OK" in redis.say("CONFIG", "SET", "requirepass", "right")
    snapshot, features = prepared(case)
    for password in ("", ",password=wrong-one"):
        case.loop.features.online["connection_string"] = redis.address + password  # type: ignore[index]
        with pytest.raises(UserError, match="Redis refuses") as raised:
            materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
        assert "wrong-one" not in str(raised.value)
    case.loop.features.online["connection_string"] = f"{redis.address},password=right"  # type: ignore[index]
    materialize(case.loop, case.store, "production", snapshot, features.views, NOW)
    assert wind(case, features, NOW) == [71]


def test_without_the_client_the_extra_is_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, features = prepared(case)
    for name in [
        name
        for name in sys.modules
        if name == "redis" or name.startswith(("redis.", "feast.infra.online_stores.redis"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingPackage, match=r"treadle\[redis\]"):
        materialize(case.loop, case.store, "production", snapshot, features.views, NOW)


def on_redis(wheel: Wheel, redis: Redis) -> None:
    online = f'online: {{type: redis, connection_string: "{redis.address}"}}'
    wheel.edit("orders.yaml", "use: [load]", f"use: [load], {online}")


@contextmanager
def serving(wheel: Wheel, track: str = "production") -> Iterator[Running]:
    loop = treadle.Loop.load(wheel.path)
    store = wheel.session(FIRST).store

    def lookup(candidate: Any) -> Any:
        return online_for(loop, store, track, candidate)

    with serve_in_thread(loop, store, track, online_for=lookup, say=lambda line: None) as server:
        yield server


def asked(server: Running, at: str) -> Any:
    body = {"entities": [ORDER, {**ORDER, "region": "west"}], "at": at}
    return httpx.post(f"{server.url}/invocations", json=body, timeout=60).json()


def filed(wheel: Wheel, as_of: str, at: str, folder: Path) -> list[float]:
    rows = [{"order_id": "new", "placed_at": at, **ORDER, "region": region} for region in ("north", "west")]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    score_file(wheel.session(as_of), folder / "in.parquet", folder / "out.parquet")
    found: list[float] = pq.read_table(folder / "out.parquet")["prediction"].to_pylist()
    return found


def test_the_wheel_turns_with_redis(redis: Redis, tmp_path: Path) -> None:
    """Two champions after another, each served by its own views, the earlier one again after a rollback."""
    wheel = new_wheel(tmp_path)
    on_redis(wheel, redis)
    lenient(wheel)
    wheel.edit("orders.yaml", "rounds: 30, checkpoint_every: 10", "rounds: 2")
    wheel.run(FIRST)
    assert not wheel.store.joinpath("online").exists()
    with serving(wheel) as server:
        early, late = "2024-02-11T20:00:00Z", "2024-03-03T20:00:00Z"
        first = asked(server, early)
        assert first["predictions"] == filed(wheel, FIRST, early, tmp_path)
        wheel.edit("orders.yaml", "rounds: 2", "rounds: 30")
        wheel.edit("order_features.py", "hours=12", "hours=13")
        second = wheel.run(SECOND)
        assert second.verdict.decision == "promote"  # type: ignore[attr-defined]
        deadline = time.monotonic() + 60
        while server.router.serving[0].candidate != second.candidate.digest:
            assert time.monotonic() < deadline, server.router.trouble
            time.sleep(0.05)
        assert asked(server, late)["predictions"] == filed(wheel, SECOND, late, tmp_path)
        fed = feed(wheel.session(SECOND))
        assert len(fed) == 2
        before = asked(server, late)
        assert set(feed(wheel.session(FIRST)).values()) == {0}  # the predecessor's and the champion's: older
        assert asked(server, late) == before
        from treadle.acts import rollback

        rollback(wheel.session(SECOND), reason="complaints")
        while server.router.serving[0].candidate != first["model"]["digest"]:
            assert time.monotonic() < deadline + 60, server.router.trouble
            time.sleep(0.05)
        back = asked(server, late)
        assert back["model"]["digest"] == first["model"]["digest"]
        assert "predictions" in back
        redis.stop()
        away = httpx.post(f"{server.url}/invocations", json={"entities": [ORDER]}, timeout=60)
        assert (away.status_code, away.json()["error"]["code"]) == (503, "features_unavailable")
        full = {"instances": [{**ORDER, "load__open_orders": 50.0}]}
        assert httpx.post(f"{server.url}/invocations", json=full).status_code == 200
        redis.start()


def test_a_server_starts_with_redis_away_and_answers_once_it_is_back(wheel: Wheel, redis: Redis) -> None:
    on_redis(wheel, redis)
    redis.stop()
    with serving(wheel) as server:
        full = {"instances": [{**ORDER, "load__open_orders": 50.0}]}
        assert httpx.post(f"{server.url}/invocations", json=full).status_code == 200
        redis.start()
        feed(wheel.session(FIRST))
        time.sleep(1.1)
        assert "predictions" in asked(server, "2024-02-11T20:00:00Z")
