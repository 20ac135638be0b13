"""The wheel on an object storage: the same ids as on local files, reuse, and races."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import treadle
from processes import call_together, command, one_json, running_command
from treadle.registry.log import ReleaseLog
from treadle.store import open_store
from wheel import FIRST, Wheel, ids, new_wheel


@pytest.fixture
def on_s3(s3_environment: str, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Wheel, str]:
    """A loop whose tracking and online store are local files, and a store's URI."""
    wheel = new_wheel(tmp_path)
    wheel.edit("orders.yaml", "monitor:", f"tracking: {{uri: 'sqlite:///{tmp_path}/mlflow.db'}}\nmonitor:")
    online = f"online: {{type: sqlite, path: {tmp_path}/online.db}}"
    wheel.edit("orders.yaml", "use: [load]}", f"use: [load], {online}}}")
    return wheel, f"s3://treadle/{request.node.name}"


def test_same_ids_as_on_local_files_and_reuse(
    turned: tuple[Wheel, treadle.Run], on_s3: tuple[Wheel, str]
) -> None:
    wheel, uri = on_s3
    loop = treadle.Loop.load(wheel.path)
    first = treadle.run(loop, as_of=FIRST, store=uri, who="ann")
    assert ids(first) == ids(turned[1])
    again = treadle.run(loop, as_of=FIRST, store=uri, who="ann")
    assert ids(again) == ids(first)
    assert all(again.reused.values())
    watched = treadle.watch(loop, as_of="2024-02-19", store=uri, who="ann")
    assert watched.retrain_decision.due  # type: ignore[attr-defined]
    log = ReleaseLog(open_store(uri), "orders")
    assert [entry.kind for entry in log.entries()] == ["propose", "promote", "retrain"]


@pytest.mark.slow
def test_two_commands_at_once_make_one_champion(
    turned: tuple[Wheel, treadle.Run], on_s3: tuple[Wheel, str]
) -> None:
    wheel, uri = on_s3
    args = ("run", wheel.path, "--as-of", FIRST, "--store", uri, "--by", "ann", "--json")
    with running_command(*args) as other:
        done = command(*args)
        assert other.stderr is not None
        told = other.stderr.read()
        assert other.wait() == 0, told
    assert done.returncode == 0, done.stderr
    found = {stage: (record["id"], record["digest"]) for stage, record in one_json(done.stdout).items()}
    assert found == ids(turned[1])
    entries = ReleaseLog(open_store(uri), "orders").entries()
    assert [entry.kind for entry in entries] == ["propose", "promote"]


def test_log_race_of_processes_is_won_once_each(s3_environment: str, request: pytest.FixtureRequest) -> None:
    uri = f"s3://treadle/{request.node.name}"
    results = call_together(*[(append_many, uri, who, dict(os.environ)) for who in ("ann", "bea", "cem")])
    assert [kind for kind, _ in results] == ["done"] * 3, results
    entries = ReleaseLog(open_store(uri), "orders").entries()
    assert len(entries) == 15
    assert json.dumps([entry.previous for entry in entries[1:]]) == json.dumps([e.hash for e in entries[:-1]])
    assert sorted(entry.subject for entry in entries) == sorted(
        f"{who} {n}" for who in ("ann", "bea", "cem") for n in range(5)
    )


def test_file_that_came_after_a_listing_is_read(s3_environment: str, request: pytest.FixtureRequest) -> None:
    import boto3

    store = open_store(f"s3://treadle/{request.node.name}")
    store.create("logs/1", b"one")
    assert store.list("logs") == ["1"]
    client = boto3.client("s3", endpoint_url=s3_environment)
    client.put_object(Bucket="treadle", Key=f"{request.node.name}/logs/2", Body=b"two")
    client.close()
    assert store.read("logs/2") == b"two"
    assert not store.create("logs/2", b"other")


def append_many(uri: str, who: str, environment: dict[str, str]) -> None:
    from treadle.clock import parse_instant

    os.environ.update(environment)  # the server that forks has the environment of the first test
    log = ReleaseLog(open_store(uri), "orders")
    for number in range(5):
        log.append("reject", subject=f"{who} {number}", why="a race", as_of=parse_instant(FIRST), who=who)
