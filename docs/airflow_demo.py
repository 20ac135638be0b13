"""A real Airflow on this machine with the loops of `loops/`: what `make airflow` runs. Ctrl-C ends it.

API server, scheduler, DAG processor and triggerer, as `airflow standalone` starts them, but on the loopback alone: its
log servers would listen on every address. Everything lives in .treadle/airflow, and stays there for the next time.

TREADLE_AIRFLOW names another folder, TREADLE_AIRFLOW_PORT another port (8080; 0 takes a free one), TREADLE_LOOPS other
loops. Airflow's own variables, such as AIRFLOW__CORE__PARALLELISM, are passed on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from on_this_machine import (
    Stopped,
    free_port,
    ignore_endings,
    interrupt_on_endings,
    kill_sessions,
    relative,
    say,
)

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("TREADLE_AIRFLOW", ROOT / ".treadle" / "airflow")).absolute()
BIN = Path(sys.executable).parent
COMPONENTS = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
START_S, STOP_S = 300, 30
started = time.monotonic()


def main() -> int:
    """Starts, tells where, waits for Ctrl-C, stops."""
    interrupt_on_endings()
    port = free_port("TREADLE_AIRFLOW_PORT", 8080, who="an Airflow")
    HOME.mkdir(parents=True, exist_ok=True)
    env = environment(port)
    parts: dict[str, subprocess.Popen[bytes]] = {}
    try:
        say(f"a real Airflow starts in {relative(HOME)}; it takes a minute or two ...")
        migrate(env)
        for name, options in COMPONENTS.items():
            parts[name] = start(name, options, env)
            if name == "api-server":  # a task that can't reach it fails, and is tried again
                wait(lambda: ask(f"{env['AIRFLOW__API__BASE_URL']}/api/v2/version"), parts)
        tell(port, wait(lambda: dags_of(env["AIRFLOW__API__BASE_URL"]), parts), env)
        while True:
            check(parts)
            time.sleep(1)
    except KeyboardInterrupt:
        return 0
    except Stopped as error:
        say(str(error))
        return 1
    finally:
        ignore_endings()
        stop(parts)


def environment(port: int) -> dict[str, str]:
    """Airflow's settings. What is set outside counts, but for the folder and its database: no other's is touched."""
    address = f"http://127.0.0.1:{port}"
    return {
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "TREADLE_LOOPS": str(ROOT / "loops"),
        "TREADLE_STORE": str(HOME / "store"),
        **os.environ,
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def migrate(env: dict[str, str]) -> None:
    """Makes the tables, or brings those of an older Airflow up to date."""
    with open(HOME / "migrate.log", "wb") as log:
        done = subprocess.run(
            [BIN / "airflow", "db", "migrate"], env=env, stdout=log, stderr=log, start_new_session=True
        )
    if done.returncode:
        raise Stopped(f"`airflow db migrate` failed:\n{last_lines('migrate')}")


def start(name: str, options: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """One part of Airflow, in a session of its own: Ctrl-C reaches it through us, in order."""
    with open(HOME / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [BIN / "airflow", name, *options], env=env, stdout=log, stderr=log, start_new_session=True
        )


def check(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raises Stopped if one of the parts is no more."""
    for name, part in parts.items():
        if part.poll() is not None:
            raise Stopped(
                f"the {name} ended with exit code {part.returncode}; {relative(HOME / name)}.log ends with:\n"
                f"{last_lines(name)}"
            )


def last_lines(name: str) -> str:
    """The end of a part's log."""
    return "\n".join((HOME / f"{name}.log").read_text(errors="replace").splitlines()[-15:])


def wait(look: Callable[[], Any], parts: dict[str, subprocess.Popen[bytes]]) -> Any:
    """What `look` tells, once it tells something."""
    while time.monotonic() - started < START_S:
        check(parts)
        try:
            told = look()
        except (OSError, ValueError, KeyError):
            told = None  # not there yet
        if told:
            return told
        time.sleep(0.5)
    raise Stopped(f"Airflow was not ready after {START_S} seconds; its logs are in {relative(HOME)}/*.log")


def dags_of(address: str) -> list[str]:
    """The DAGs' names, once all parts are healthy and the DAGs were read; nothing before."""
    health = ask(f"{address}/api/v2/monitor/health")
    if any(part["status"] != "healthy" for part in health.values()):
        return []
    user, password = login()
    token = ask(f"{address}/auth/token", {"username": user, "password": password})["access_token"]
    return sorted(dag["dag_id"] for dag in ask(f"{address}/api/v2/dags?tags=treadle", token=token)["dags"])


def ask(url: str, body: dict[str, Any] | None = None, token: str | None = None) -> Any:
    """What an address answers."""
    request = urllib.request.Request(url, data=json.dumps(body).encode() if body else None)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def login() -> tuple[str, str]:
    """The first user, with the password that Airflow made for them."""
    told = json.loads((HOME / "simple_auth_manager_passwords.json.generated").read_text())
    user = "admin" if "admin" in told else next(iter(told))
    return user, str(told[user])


def tell(port: int, dags: list[str], env: dict[str, str]) -> None:
    """Where it is, and what to do with it."""
    user, password = login()
    loop = next((name for name in dags if "__" not in name), dags[0])
    file = relative(Path(env["TREADLE_LOOPS"].split(os.pathsep)[0]) / f"{loop}.yaml")
    say(f"""\
Airflow answers after {time.monotonic() - started:.0f} s, with the DAGs {", ".join(dags)}.

  address    http://127.0.0.1:{port}
  login      {user} / {password}
  turn it    Trigger on http://127.0.0.1:{port}/dags/{loop}, or in another shell:
             AIRFLOW_HOME={HOME} {relative(BIN / "airflow")} dags trigger {loop}
  look       {relative(BIN / "treadle")} status {file} --store {relative(Path(env["TREADLE_STORE"]))}
  logs       {relative(HOME)}/*.log, and those of tasks in {relative(HOME)}/logs
  end        Ctrl-C

The newest tick of each schedule runs by itself the first time; a run that you trigger meanwhile waits for it.
""")


def stop(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Ends all parts and whatever they started; a task that is cut off is tried again the next time."""
    if not parts:
        return
    say("stopping ...")
    for part in parts.values():
        if part.poll() is None:
            part.terminate()
    end = time.monotonic() + STOP_S
    for part in parts.values():
        try:
            part.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.kill()
            part.wait()
    kill_sessions([part.pid for part in parts.values()])
    say("stopped; nothing is left running")


if __name__ == "__main__":
    sys.exit(main())
