"""A whole Airflow for a test: what `make airflow` runs, on a port and in a folder of its own, asked by its API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

SCRIPT = Path(__file__).parents[2] / "docs" / "airflow_demo.py"
PATIENCE_S = 600
_Seen = TypeVar("_Seen")


@dataclass
class Airflow:
    """A running Airflow, its users, and what they can ask."""

    process: subprocess.Popen[str]
    home: Path
    address: str
    tokens: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: Any = None, *, user: str = "admin", method: str | None = None) -> Any:
        """What the API answers a user."""
        return _ask(f"{self.address}/api/v2{path}", body, token=self._token(user), method=method)

    def _token(self, user: str) -> str:
        if user not in self.tokens:
            passwords = json.loads((self.home / "simple_auth_manager_passwords.json.generated").read_text())
            login = {"username": user, "password": passwords[user]}
            self.tokens[user] = _ask(f"{self.address}/auth/token", login)["access_token"]
        return self.tokens[user]

    def dags(self) -> list[str]:
        """The DAGs that were parsed so far."""
        return [dag["dag_id"] for dag in self.ask("/dags?limit=100")["dags"]]

    def trigger(self, dag: str, **conf: Any) -> str:
        """The new run's path."""
        until(lambda: dag in self.dags(), f"{dag} is parsed")
        run = self.ask(f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})
        return _path(run)

    def runs(self, dag: str, run_type: str) -> list[str]:
        """The paths of a DAG's runs of one type."""
        runs = self.ask(f"/dags/{dag}/dagRuns")["dag_runs"]
        return [_path(run) for run in runs if run["run_type"] == run_type]

    def task(self, run: str, task: str) -> dict[str, Any]:
        """A task of a run: `state`, `pid`, `try_number`."""
        found: dict[str, Any] = self.ask(f"{run}/taskInstances/{task}")
        return found

    def told(self, run: str, task: str) -> Any:
        """What a task returned."""
        return self.ask(f"{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true")["value"]

    def ended(self, run: str) -> str:
        """A run's state, once it has ended."""

        def state() -> str | None:
            found: str = self.ask(run)["state"]
            return found if found in ("success", "failed") else None

        return until(state, f"{run} ends")

    def questions(self, dag: str) -> list[dict[str, Any]]:
        """What waits for a person in a DAG: `run`, `path`, `subject`, `body`."""
        told = self.ask(f"/dags/{dag}/dagRuns/~/hitlDetails?response_received=false")["hitl_details"]
        runs = [(_path(one["task_instance"]), one) for one in told]
        return [
            {
                **one,
                "run": run,
                "path": f"{run}/taskInstances/{one['task_instance']['task_id']}/-1/hitlDetails",
            }
            for run, one in runs
        ]

    def question(self, dag: str) -> dict[str, Any]:
        """The first that waits for a person in a DAG, as soon as there is one."""
        return until(lambda: self.questions(dag), f"{dag} asks someone")[0]

    def log(self, run: str, task: str, *, attempt: int = 1) -> str:
        """A try's log, errors included."""
        lines = self.ask(f"{run}/taskInstances/{task}/logs/{attempt}?full_content=true")["content"]
        errors = [error for line in lines for error in line.get("error_detail") or []]
        return "\n".join([*(str(line["event"]) for line in lines), *(str(e["exc_value"]) for e in errors)])

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """What someone types on the scheduler's machine."""
        env = {
            **os.environ,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
        }
        command = [str(Path(sys.executable).with_name("airflow")), *args]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=240)

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def left(self) -> list[str]:
        """The commands of the processes that belong to this Airflow, itself included."""
        return [command for _, command in self._processes()]

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Stands still within it: a command that writes several times then never finds SQLite locked by another."""
        still = [
            pid
            for pid, command in self._processes()
            if any(
                part in command
                for part in ("airflow scheduler", "airflow dag-processor", "airflow triggerer")
            )
        ]
        for pid in still:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in still:
                os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[tuple[int, str]]:
        mark, found = f"TREADLE_AIRFLOW={self.home}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(folder.name), command))
            except OSError:
                continue
        return [(pid, command) for pid, command in found if command]


def _path(run: dict[str, Any]) -> str:
    return f"/dags/{run['dag_id']}/dagRuns/{urllib.parse.quote(run['dag_run_id'])}"


def _ask(url: str, body: Any = None, *, token: str | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def until(
    look: Callable[[], _Seen | None], what: str, *, seconds: float = PATIENCE_S, pause: float = 0.5
) -> _Seen:
    """What `look` sees, as soon as it sees something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(TimeoutError):  # the machine may be busy
            seen = look()
            if seen:
                return seen
        time.sleep(pause)
    raise AssertionError(f"waited {seconds} s in vain until {what}")


@contextmanager
def running_airflow(home: Path, **settings: str) -> Iterator[Airflow]:
    """A whole Airflow, which is ended whatever happens."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env = {**outside, "TREADLE_AIRFLOW": str(home), "TREADLE_AIRFLOW_PORT": "0", **settings}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if "address" in line), None)
            assert line is not None, "it did not start; its words are above"
            yield Airflow(process, home, line.split()[-1])
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
