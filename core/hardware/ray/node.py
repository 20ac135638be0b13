"""What a Ray job runs on its node: the job's command, seen to by the same supervisor as on a local pool.

    Ray ─► this process ─┬─► supervisor ─► the command        limits, grace, leftovers
                         └─► guard         ends the command when this process is killed

Ray itself knows neither time limits nor whom a command left behind. What it can't be told otherwise goes into the job's
log, as lines of JSON that begin with `MARK`; `ray_words` reads them and takes them out.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from treadle.hardware import supervise

MARK = "::treadle"
# Ray's own name for the actor that runs a job, in whose death Ray sees the job's.
ACTOR, NAMESPACE = "_ray_internal_job_actor_{name}", "SUPERVISOR_ACTOR_RAY_NAMESPACE"
_TICK_S = 0.1
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_asked_to_end = False


def main(words: list[str]) -> int:
    """Runs a job's request, or with `--withdraw NAME` takes back a job that still waits."""
    if words[0] == "--withdraw":
        return _withdraw(words[1])
    if os.environ.pop(supervise.COOKIE, None):
        # A cluster of this machine is itself a local job: whoever sweeps up after it must leave time to end this one.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "treadle.hardware.ray.node", *words])
    signal.signal(signal.SIGTERM, _ask)
    return _run(json.loads(words[0]))


def _ask(number: int, frame: Any) -> None:
    global _asked_to_end
    _asked_to_end = True


def _run(request: dict[str, Any]) -> int:
    """The exit code of the command, or 1 where it has none."""
    name, folder = request["name"], Path(tempfile.mkdtemp(prefix="treadle-job-"))
    _mark(name, {"here": time.time()})
    # The supervisor writes into Ray's log of this job, which is this process's output.
    (folder / "output.log").symlink_to(f"/proc/{os.getpid()}/fd/1")
    supervise.write_once(folder / "job.json", {**request, "cwd": os.getcwd()})
    telling = _start_guard(folder, request["grace_s"])
    ended = _unset(request["needs"]) or _attend(name, folder)
    supervise.sweep(folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.close(telling)
    _mark(name, ended)
    code = ended["exit_code"]
    return (0 if ended["state"] == "succeeded" else 1) if code is None else int(code)


def _unset(needs: dict[str, str]) -> dict[str, Any] | None:
    """How a job ends whose variables refer to what is not set here."""
    for name, value in needs.items():
        for missing in (key for key in _VARIABLE.findall(value) if key not in os.environ):
            return _failed(
                f"it can't be started: env.{name} needs the variable {missing}, which is not set here"
            )
    return None


def _failed(reason: str, state: str = "failed") -> dict[str, Any]:
    return {
        "state": state,
        "exit_code": None,
        "reason": reason,
        "started": None,
        "ended": time.time(),
        "node": platform.node(),
    }


def _attend(name: str, folder: Path) -> dict[str, Any]:
    """How the supervised command ended."""
    parent = os.getppid()
    began = subprocess.run(
        [sys.executable, "-I", supervise.__file__, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_ignore_sigterm,  # Ray's stop signals all children of this process
    )
    if began.returncode and not (folder / "began").exists():
        return _failed(f"its supervisor did not start: {began.stderr.strip()}")
    told = False
    while True:
        if _asked_to_end or os.getppid() != parent:
            _cancel(folder)
        if not told and (running := supervise.read_json(folder / "running.json")):
            _mark(name, {"began": running["started"], "node": running["node"]})
            told = True
        lives = supervise.try_lock(folder / "alive", shared=True)
        ended = supervise.read_json(folder / "exit.json")
        if ended is not None:
            orphaned = {"state": "lost", "reason": "Ray's process for the job was killed"}
            return {**ended, **orphaned} if os.getppid() != parent else ended
        if lives is not None:
            return _failed("its supervisor was killed", "lost")
        time.sleep(_TICK_S)


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _cancel(folder: Path) -> None:
    if (folder / "cancel.json").exists():
        return
    grace_s = json.loads((folder / "job.json").read_text())["grace_s"]
    supervise.write_once(folder / "cancel.json", {"grace": grace_s, "at": time.time()})


def _start_guard(folder: Path, grace_s: float) -> int:
    """A process that sees, by the end of a pipe, when this one is killed, and then has the command ended.

    Returns:
        The pipe: closed without the folder being there any more, it lets the guard go.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(reader)
        return writer
    # A session of its own: what kills this process's group, as Ray does, must not reach it.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.close(writer)
    try:
        os.read(reader, 1)  # returns with the end of the pipe: nothing is ever written
        if folder.exists() and not (folder / "exit.json").exists():
            _cancel(folder)
            end = time.monotonic() + grace_s + 10
            while not (folder / "exit.json").exists() and time.monotonic() < end:
                time.sleep(_TICK_S)
            supervise.sweep(folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def _mark(name: str, content: dict[str, Any]) -> None:
    os.write(1, f"{MARK} {name} {json.dumps(content)}\n".encode())


def _withdraw(name: str) -> int:
    """Ends a job that waits for resources, which Ray's own stop can't; 0 also when there is none such any more."""
    import ray

    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    try:
        ray.kill(ray.get_actor(ACTOR.format(name=name), namespace=NAMESPACE))
    except ValueError:
        print(f"{name} does not wait any more")
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
