"""Leases, by processes that race for one and are killed while they hold it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from treadle import leases
from treadle.leases import Holder, lease, process_start, this_host
from treadle.store import LocalStore

WORKER = """
import os, sys, time
from pathlib import Path
from treadle.leases import lease
from treadle.store import LocalStore

folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(sys.argv[2])):
    with lease(LocalStore(folder), "work") as held:
        assert held
        inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)   # fails when another is inside
        time.sleep(0.002)
        os.unlink(folder / "inside")
        os.close(inside)
        with open(folder / "done", "a") as file:
            file.write(f"{os.getpid()}\\n")
"""

HOLDER = """
import sys, time
from pathlib import Path
from treadle.leases import lease
from treadle.store import LocalStore

with lease(LocalStore(Path(sys.argv[1])), "work"):
    print("held", flush=True)
    time.sleep(600)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def write_generation(store: LocalStore, number: int, **changes: object) -> None:
    holder = {
        "token": "another",
        "host": "elsewhere",
        "pid": 1,
        "started": "1",
        "expires_at": time.time() + 600,
        "released": False,
        **changes,
    }
    assert store.create(f"leases/work/{number}.json", json.dumps(holder).encode())


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_of_eight_racing_processes_one_at_a_time_works(tmp_path: Path) -> None:
    workers = [start(WORKER, str(tmp_path), "6") for _ in range(8)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdin is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, errors
    assert len((tmp_path / "done").read_text().split()) == 48


def test_a_killed_holder_is_succeeded_within_a_second_on_the_same_machine(store: LocalStore) -> None:
    holder = start(HOLDER, str(store.root))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    taken_after: list[float] = []

    def wait_for_it() -> None:
        with lease(store, "work") as held:
            assert held
            taken_after.append(time.monotonic() - killed)

    killed = time.monotonic()
    waiter = threading.Thread(target=wait_for_it)
    waiter.start()
    time.sleep(0.3)
    assert not taken_after
    killed = time.monotonic()
    holder.send_signal(signal.SIGKILL)  # and not reaped: a zombie holds nothing
    waiter.join(timeout=20)
    assert taken_after[0] < 1.0
    holder.communicate()


def test_a_waiter_adopts_the_result_of_another(store: LocalStore) -> None:
    finished = threading.Event()
    seen: list[bool] = []

    def wait_for_it() -> None:
        with lease(store, "work", done=finished.is_set) as held:
            seen.append(bool(held))

    with lease(store, "work"):
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        time.sleep(0.1)
        finished.set()
        waiter.join(timeout=20)
        assert seen == [False]


def test_a_waiter_that_takes_the_lease_after_the_work_was_done_adopts_it_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(time, "sleep", lambda seconds: holding.__exit__(None, None, None))
    holding = lease(store, "work")
    holding.__enter__()
    with lease(store, "work", done=lambda: next(answers)) as held:
        assert not held
    with lease(store, "work", wait=False) as held:
        assert held, "the adopter gave the lease back"


def test_without_waiting_a_taken_lease_is_not_held_and_a_free_one_is(store: LocalStore) -> None:
    with lease(store, "work", wait=False) as first, lease(store, "work", wait=False) as second:
        assert first
        assert not second
    with lease(store, "work", wait=False) as third:
        assert third


def test_a_lease_outlives_its_time_to_live_while_its_holder_works(store: LocalStore) -> None:
    with lease(store, "work", ttl_s=0.3) as held:
        time.sleep(1.0)
        with lease(store, "work", wait=False) as other:
            assert not other
        assert held
        assert not held.lost


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        pytest.param({}, False, id="held on another machine"),
        pytest.param({"expires_at": 0.0}, True, id="expired on another machine"),
        pytest.param({"released": True}, True, id="given back"),
        pytest.param({"host": this_host(), "pid": 2**22 + 1}, True, id="process gone here"),
        pytest.param({"host": this_host(), "pid": os.getpid()}, True, id="process id reused here"),
        pytest.param(
            {"host": this_host(), "pid": os.getpid(), "started": process_start(os.getpid())},
            False,
            id="held by a process here",
        ),
    ],
)
def test_when_a_lease_is_free(store: LocalStore, changes: dict[str, object], free: bool) -> None:
    write_generation(store, 3, **changes)
    with lease(store, "work", wait=False) as held:
        assert bool(held) is free


def test_the_holder_is_told_when_another_took_over(store: LocalStore) -> None:
    with lease(store, "work", ttl_s=0.3) as held:
        write_generation(store, 2)
        deadline = time.monotonic() + 10
        while not held.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held.lost
        assert not held
    with lease(store, "work", wait=False) as again:
        assert not again, "the loser must not free what is another's"


def test_a_number_that_was_used_and_deleted_wins_nothing(store: LocalStore) -> None:
    write_generation(store, 14)
    late = leases.Lease(store, "work", 30)
    late._generation = 5
    assert not late._advance(expires_at=time.time() + 30)
    assert store.list("leases/work") == ["14.json"]


def test_old_generations_are_cleared_away(store: LocalStore) -> None:
    for _ in range(12):
        with lease(store, "work"):
            pass
    assert len(store.list("leases/work")) == 8


def test_an_altered_lease_file_holds_nothing(store: LocalStore) -> None:
    store.create("leases/work/4.json", b"{")
    with lease(store, "work", wait=False) as held:
        assert held


def test_a_lease_is_given_back_when_the_work_fails(store: LocalStore) -> None:
    with pytest.raises(ZeroDivisionError), lease(store, "work"):
        raise ZeroDivisionError
    with lease(store, "work", wait=False) as held:
        assert held


def test_a_forked_child_does_not_give_back_its_parents_lease(store: LocalStore) -> None:
    with lease(store, "work") as held:
        elsewhere = Holder(held._holder.token, this_host(), os.getppid(), "", held._holder.expires_at)
        mine, held._holder = held._holder, elsewhere
        held._give_back()
        held._holder = mine
        with lease(store, "work", wait=False) as other:
            assert not other
