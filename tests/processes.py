"""Processes that turn the wheel and may be killed at a chosen write; forked from one that imported it all already."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import treadle
from wheel import Wheel

TREADLE = Path(sys.executable).with_name("treadle")


@dataclass(frozen=True, slots=True)
class Death:
    """SIGKILL at the first write whose path holds `path`.

    `before` it; `within` it, when the temporary file is whole and has no name yet; or right `after` it.
    """

    when: str
    path: str

    def __str__(self) -> str:
        return f"{self.when} {self.path}"


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    return context


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(death: Death) -> None:
    from treadle import store

    write, link = store.LocalStore._write, store._link

    def dying_write(self: Any, path: str, *args: Any, **options: Any) -> bool:
        if death.when == "before" and death.path in path:
            _kill_self()
        done = write(self, path, *args, **options)
        if death.when == "after" and death.path in path:
            _kill_self()
        return done

    def dying_link(temporary: Path, final: Path, descriptor: int) -> bool:
        if death.when == "within" and death.path in final.as_posix():
            _kill_self()
        return link(temporary, final, descriptor)

    store.LocalStore._write, store._link = dying_write, dying_link  # type: ignore[method-assign]


def _turn(pipe: Connection, start: Any, wheel: Wheel, as_of: str, death: Death | None, options: Any) -> None:
    if death is not None:
        _arm(death)
    lines: list[str] = []
    if start is not None:
        start.wait(60)
    try:
        run = wheel.run(as_of, say=lines.append, **options)
        records = {stage: (record.id, record.digest) for stage, record in run.items()}
        pipe.send({"ids": records, "reused": run.reused, "lines": lines, "error": None})
    except treadle.TreadleError as error:
        pipe.send({"ids": {}, "error": type(error).__name__, "message": str(error), "lines": lines})
    except BaseException:
        pipe.send({"ids": {}, "error": "traceback", "message": traceback.format_exc(), "lines": lines})
        raise


def turn_together(
    wheel: Wheel, as_of: str, *, times: int = 1, death: Death | None = None, **options: Any
) -> list[dict[str, Any] | None]:
    """What each of several processes that run at once came to; None for one that was killed."""
    context = _context()
    barrier = context.Barrier(times) if times > 1 else None
    started = []
    for _ in range(times):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_turn, args=(theirs, barrier, wheel, as_of, death, options))
        process.start()
        theirs.close()
        started.append((process, ours))
    results = []
    for process, pipe in started:
        try:
            results.append(pipe.recv())
        except EOFError:
            results.append(None)
        process.join()
        if results[-1] is None:
            assert process.exitcode == -signal.SIGKILL
    return results


def turn(wheel: Wheel, as_of: str, *, death: Death | None = None, **options: Any) -> dict[str, Any] | None:
    """What one process came to; None when it was killed."""
    return turn_together(wheel, as_of, death=death, **options)[0]


def _call(pipe: Connection, start: Any, death: Death | None, function: Any, args: Any) -> None:
    if death is not None:
        _arm(death)
    start.wait(60)
    try:
        pipe.send(("done", function(*args)))
    except treadle.TreadleError as error:
        pipe.send((type(error).__name__, str(error)))
    except BaseException:
        pipe.send(("traceback", traceback.format_exc()))


def call_together(*calls: tuple[Any, ...], death: Death | None = None) -> list[tuple[str, Any]]:
    """What several functions, each in a process of its own, came to.

    That is ("done", value), (error's name, words) or ("killed", None).
    """
    context = _context()
    barrier = context.Barrier(len(calls))
    started = []
    for function, *args in calls:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_call, args=(theirs, barrier, death, function, args))
        process.start()
        theirs.close()
        started.append((process, ours))
    results: list[tuple[str, Any]] = []
    for process, pipe in started:
        try:
            results.append(pipe.recv())
        except EOFError:
            results.append(("killed", None))
        process.join()
    return results


def command(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The console script, run to its end."""
    return subprocess.run(
        [str(TREADLE), *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, **(env or {})},
    )


@contextmanager
def running_command(*args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The console script, running; its standard error can be read line by line."""
    with subprocess.Popen(
        [str(TREADLE), *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def one_json(text: str) -> Any:
    """The one JSON value that a text holds, and nothing else."""
    lines: Sequence[str] = text.splitlines()
    assert len(lines) == 1, text
    return json.loads(lines[0])
