"""A real Dagster on this machine with the loops of `loops/`: what `make dagster` runs. Ctrl-C ends it.

Webserver, daemon and code location, as `dagster dev` starts them, on the loopback alone. Everything lives in .dagster,
and stays there for the next time.

TREADLE_DAGSTER names another folder, TREADLE_DAGSTER_PORT another port (3000; 0 takes a free one), TREADLE_LOOPS other
loops, TREADLE_STORE another store.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
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
HOME = Path(os.environ.get("TREADLE_DAGSTER", ROOT / ".dagster")).absolute()
BIN = Path(sys.executable).parent
START_S, STOP_S = 180, 20
LOADED = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError {
  ... on PythonError { message }
  ... on RepositoryLocation { repositories { name assetGroups { groupName } } } } } } } }"""
started = time.monotonic()


def main() -> int:
    """Starts, tells where, waits for Ctrl-C, stops."""
    interrupt_on_endings()
    port = free_port("TREADLE_DAGSTER_PORT", 3000, who="a Dagster")
    HOME.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "assets" / "dagster.yaml", HOME / "dagster.yaml")
    dagster: subprocess.Popen[bytes] | None = None
    try:
        say(f"a real Dagster starts in {relative(HOME)}; it takes about 20 seconds ...")
        dagster = start(port)
        tell(port, *wait(port, dagster))
        while True:
            check(dagster)
            time.sleep(1)
    except KeyboardInterrupt:
        return 0
    except Stopped as error:
        say(str(error))
        return 1
    finally:
        ignore_endings()
        stop(dagster)


def start(port: int) -> subprocess.Popen[bytes]:
    """`dagster dev`, in a session of its own: Ctrl-C reaches it through us."""
    env = {
        "TREADLE_STORE": str(HOME / "store"),
        **os.environ,
        "DAGSTER_HOME": str(HOME),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    command = [BIN / "dagster", "dev", "-m", "assets.definitions", "-h", "127.0.0.1", "-p", str(port)]
    with open(HOME / "dev.log", "wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def check(dagster: subprocess.Popen[bytes]) -> None:
    """Raises Stopped if Dagster is no more."""
    if dagster.poll() is not None:
        lines = (HOME / "dev.log").read_text(errors="replace").splitlines()[-15:]
        raise Stopped(
            f"Dagster ended with exit code {dagster.returncode}; {relative(HOME)}/dev.log ends with:\n"
            + "\n".join(lines)
        )


def wait(port: int, dagster: subprocess.Popen[bytes]) -> tuple[str, list[str]]:
    """The address of the code location's groups, and their names, once it is loaded."""
    while time.monotonic() - started < START_S:
        check(dagster)
        try:
            (entry,) = ask(port, LOADED)["workspaceOrError"]["locationEntries"]
        except (OSError, ValueError, KeyError):
            entry = {"locationOrLoadError": None}
        told = entry["locationOrLoadError"] or {}
        if "message" in told:
            raise Stopped(f"the code location can't be loaded:\n{told['message']}")
        if told:
            (repository,) = told["repositories"]
            groups = sorted(group["groupName"] for group in repository["assetGroups"])
            return f"http://127.0.0.1:{port}/locations/{repository['name']}@{entry['name']}", groups
        time.sleep(0.5)
    raise Stopped(f"Dagster was not ready after {START_S} seconds; its log is {relative(HOME)}/dev.log")


def ask(port: int, query: str) -> Any:
    """What GraphQL answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", data=json.dumps({"query": query}).encode()
    )
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["data"]


def tell(port: int, location: str, groups: list[str]) -> None:
    """Where it is, and what to do with it."""
    group = groups[0]
    store = os.environ.get("TREADLE_STORE", relative(HOME / "store"))
    loops = os.environ.get("TREADLE_LOOPS", relative(ROOT / "loops")).split(os.pathsep)[0]
    say(f"""\
Dagster answers after {time.monotonic() - started:.0f} s, with the groups {", ".join(groups)}.

  address    http://127.0.0.1:{port}
  turn it    Materialize all on {location}/asset-groups/{group}
  look       {relative(BIN / "treadle")} status {loops}/{group}.yaml --store {store}
  log        {relative(HOME)}/dev.log
  end        Ctrl-C
""")


def stop(dagster: subprocess.Popen[bytes] | None) -> None:
    """Ends Dagster as Ctrl-C would, and after a while by force whatever it started."""
    if dagster is None:
        return
    if dagster.poll() is None:
        dagster.send_signal(signal.SIGINT)
        try:
            dagster.wait(STOP_S)
        except subprocess.TimeoutExpired:
            dagster.kill()
            dagster.wait()
    kill_sessions([dagster.pid])
    say("stopped; nothing is left running")


if __name__ == "__main__":
    sys.exit(main())
