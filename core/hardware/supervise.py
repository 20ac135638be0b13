"""The supervisor of one local job: a detached process of its own that outlives whoever submitted it.

    <folder>/job.json      what to run, written by the submitter
             alive         locked while the supervisor lives: the one proof that it does
             began         from here on the command is never started a second time
             running.json  written when the command starts; until then the job waits for a slot
             output.log    what the command prints
             cancel.json   someone asks it to end
             exit.json     how it ended, last

Only the standard library is imported, and nothing of treadle: it starts in a few hundredths of a second under any
interpreter, and lives on when treadle is upgraded below it.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

COOKIE = "TREADLE_JOB_FOLDER"
_TICK_S, _LOOK_S = 0.2, 0.5
_PAGE = os.sysconf("SC_PAGE_SIZE")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def write_once(path: Path, content: dict[str, Any]) -> bool:
    """Whether this call made the file; it is whole or not there."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    with open(temporary, "x") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_once` wrote, or None."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the file's lock until it is closed or the process dies; None when another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def sweep(folder: Path) -> list[int]:
    """Kills every process that a job's command left behind, known by a variable that they all inherit."""
    mark, killed = f"{COOKIE}={folder}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(int(process.name))
    return killed


def main(folder: Path) -> int:
    """Starts the supervisor and returns when it has the job in hand; 0 also when another has it already."""
    reader, writer = os.pipe()
    if not os.fork():
        os.close(reader)
        _supervise(folder, writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        words = told.read()
    if words != "ok":
        print(words or "the supervisor died while it started", file=sys.stderr)
    return 0 if words == "ok" else 1


def _supervise(folder: Path, writer: int) -> NoReturn:
    words, mine = "", False
    try:
        os.setsid()
        empty = os.open(os.devnull, os.O_RDWR)
        errors = os.open(folder / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard, descriptor in ((0, empty), (1, empty), (2, errors)):
            os.dup2(descriptor, standard)
        mine = _take(folder)
        words = "ok"
    except BaseException as error:
        words = f"{type(error).__name__}: {error}"
    finally:
        os.write(writer, words.encode())
        os.close(writer)
    code = 0
    try:
        if mine:
            _Job(folder).run()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _take(folder: Path) -> bool:
    """Whether the job is ours to run. Whoever only asks whether a supervisor lives holds the lock for an instant."""
    for _ in range(100):
        if try_lock(folder / "alive") is not None:
            return write_once(folder / "began", {"pid": os.getpid(), "node": platform.node()})
        if (folder / "began").exists():
            return False
        time.sleep(0.05)
    raise TimeoutError(f"{folder}/alive is locked, and nothing begins")


class _Ended(Exception):
    """The job is over before its command began."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(state, reason)
        self.state, self.reason = state, reason


class _Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.told_to_end = ""
        self.started: float | None = None
        self.next_look = 0.0
        # Waited for by sigtimedwait: what comes between two looks is not lost.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, no exit code would be known
        signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)

    def run(self) -> None:
        """Waits for a slot, runs the command, says how it ended. The lock goes with this process."""
        try:
            ended = self._attend(self._wait_for_slot())
        except _Ended as end:
            ended = {"state": end.state, "exit_code": None, "reason": end.reason}
        except OSError as error:
            ended = {"state": "failed", "exit_code": None, "reason": f"it can't be started: {error}"}
        sweep(self.folder)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        scale = 1 if sys.platform == "darwin" else 1024
        content = {**ended, "peak_rss_mib": round(peak * scale / 2**20, 1)}
        times = {"started": self.started, "ended": time.time(), "node": platform.node()}
        write_once(self.folder / "exit.json", {**content, **times})

    def _wait_for_slot(self) -> int:
        """The slot's number, its lock held by this process; who came first gets one first."""
        slots = self.request["slots"]
        if not slots:
            return 0
        pool = self.folder.parent
        for name in ("slots", "queue"):
            (pool / f".{name}").mkdir(exist_ok=True)
        ticket = pool / ".queue" / f"{time.time_ns():020d}-{self.folder.name}"
        try_lock(ticket)
        try:
            while True:
                if _is_first(ticket):
                    for number in range(slots):
                        if try_lock(pool / ".slots" / str(number)) is not None:
                            return number
                self._pause()
                if cancelled := read_json(self.folder / "cancel.json"):
                    raise _Ended("stopped", f"cancelled while it waited{_by(cancelled)}")
                if self.told_to_end:
                    raise _Ended("preempted", self.told_to_end)
        finally:
            ticket.unlink(missing_ok=True)

    def _pause(self) -> None:
        """A moment; the end of the command, or a signal that asks to end, cuts it short."""
        if hasattr(signal, "sigtimedwait"):
            came = signal.sigtimedwait(_AWAITED, _TICK_S)
            if came is not None and came.si_signo != signal.SIGCHLD:
                name = signal.Signals(came.si_signo).name
                self.told_to_end = f"the machine asked it to end ({name})"
        else:
            time.sleep(_TICK_S)

    def _attend(self, slot: int) -> dict[str, Any]:
        """Runs the command and sees to its limits."""
        self.started = time.time()
        with open(self.folder / "output.log", "ab") as output:
            process = subprocess.Popen(
                self.request["command"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.request["cwd"] if os.path.isdir(self.request["cwd"]) else self.folder,
                env=self._environment(slot),
                start_new_session=True,
                preexec_fn=_prepare(os.getpid(), self._cores(slot)),
            )
        running = {"pid": process.pid, "slot": slot, "started": self.started, "node": platform.node()}
        write_once(self.folder / "running.json", running)
        limit_s, grace_s = self.request["max_seconds"], self.request["grace_s"]
        cut: tuple[str, str] | None = None
        kill_at = float("inf")
        while process.poll() is None:
            self._pause()
            if process.poll() is not None:
                break
            if cut is None:
                cut = self._reason_to_end(process.pid, limit_s)
                if cut is not None:
                    asked = read_json(self.folder / "cancel.json")
                    kill_at = time.monotonic() + (asked["grace"] if asked else grace_s)
                    _signal_group(process.pid, signal.SIGKILL if cut[0] == "failed" else signal.SIGTERM)
            elif time.monotonic() >= kill_at:
                _signal_group(process.pid, signal.SIGKILL)
        code = process.returncode
        if cut is not None and not (code == 0 and cut[0] == "preempted"):
            return {"state": cut[0], "exit_code": code if code >= 0 else None, "reason": cut[1]}
        return _ending(code)

    def _reason_to_end(self, pid: int, limit_s: float | None) -> tuple[str, str] | None:
        """The state and the words of a job that must end now."""
        if cancelled := read_json(self.folder / "cancel.json"):
            return "stopped", f"cancelled{_by(cancelled)}"
        if self.told_to_end:
            return "preempted", self.told_to_end
        if limit_s is not None and time.time() - (self.started or 0) > limit_s:
            return "timed_out", f"it ran longer than max_seconds, {limit_s:g} s"
        limit_gib = self.request["memory_gib"]
        if limit_gib is not None and time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + _LOOK_S
            if _used_gib(pid, limit_gib) > limit_gib:
                return "failed", f"out of memory: it used more than memory_gib, {limit_gib:g} GiB"
        return None

    def _environment(self, slot: int) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in self.request["without"]}
        for name, value in self.request["env"].items():
            missing = [key for key in _VARIABLE.findall(value) if key not in os.environ]
            if missing:
                raise OSError(f"env.{name} needs the variable {missing[0]}, which is not set here")
            env[name] = _VARIABLE.sub(lambda match: os.environ[match[1]], value)
        for name, by_slot in self.request["devices"].items():
            env[name] = by_slot[slot % len(by_slot)]
        return {**env, COOKIE: str(self.folder)}

    def _cores(self, slot: int) -> set[int]:
        count = self.request["cpu"]
        if not count or not hasattr(os, "sched_getaffinity"):
            return set()
        cores = sorted(os.sched_getaffinity(0))
        return {cores[(slot * count + number) % len(cores)] for number in range(count)}


_AWAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def _by(cancelled: dict[str, Any]) -> str:
    return f" by {cancelled['by']}" if cancelled.get("by") else ""


def _is_first(ticket: Path) -> bool:
    """Whether nobody who still lives came earlier; takes away the tickets of the dead."""
    for name in sorted(os.listdir(ticket.parent)):
        if name >= ticket.name:
            break
        with suppress(FileNotFoundError):
            lock = try_lock(ticket.with_name(name))
            if lock is None:
                return False
            ticket.with_name(name).unlink(missing_ok=True)
            os.close(lock)
    return True


def _prepare(supervisor: int, cores: set[int]) -> Any:
    """What the child does before its command: dies with its supervisor, goes first when memory runs out."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def prepare() -> None:
        for number in _AWAITED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != supervisor:
                os._exit(1)
        if cores:
            os.sched_setaffinity(0, cores)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")

    return prepare


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _ending(code: int) -> dict[str, Any]:
    """How a command that nobody cut short ended."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        outside = -code in (signal.SIGKILL, signal.SIGTERM)
        reason = f"killed by {name} from outside{hint}" if outside else f"killed by {name}"
        return {"state": "lost" if outside else "failed", "exit_code": None, "reason": reason}
    state = {0: "succeeded", 75: "preempted"}.get(code, "failed")
    return {"state": state, "exit_code": code, "reason": "" if code == 0 else f"exit code {code}"}


def _used_gib(session: int, limit_gib: float) -> float:
    """What the command and its children use; what they share is counted once where it matters."""
    pids, rough = [], 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session:
                pids.append(process)
                rough += int(fields[21]) * _PAGE
    if rough / 2**30 <= limit_gib:
        return rough / 2**30
    precise = 0
    for process in pids:
        with suppress(OSError):
            rollup = (process / "smaps_rollup").read_text()
            precise += sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)) * 1024
    return (precise or rough) / 2**30


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
