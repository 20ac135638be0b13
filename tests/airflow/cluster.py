"""A cluster on the loopback: jobs run at its server, whatever becomes of those who asked for them.

    Cluster (named in pools.yaml as `cluster:Cluster`) ─► HTTP ─► serving_cluster() ─► a process of the server's

It is told nothing but commands. It can hold jobs back, so that a test has the time to end those who wait for them.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.errors import Transient, UserError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, Json, Resources, Status
from treadle.hardware.local import LocalBackend
from treadle.hardware.pools import Pool

if TYPE_CHECKING:
    from treadle.hardware.backend import Backend

ADDRESS = "TEST_CLUSTER"  # the variable that says where the server is


class Cluster:
    """See Backend."""

    name = "cluster:Cluster"

    def capabilities(self) -> Capabilities:
        return Capabilities(poll_s=0.5)

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        if pool.image or pool.spot or pool.options:
            raise UserError(f"the pool {pool.name}: this cluster has no images, spot machines or options")
        return {"job": asdict(job), "pool": pool.name}

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        _ask("submit", self.plan(job, pool))
        return Handle(backend=self.name, name=job.name, pool=pool.name)

    def status(self, handle: Handle) -> Status:
        return Status.model_validate(_ask("status", {"name": handle.name}))

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        lines, following = _ask("logs", {"name": handle.name, "since": since})
        return lines, following

    def cancel(self, handle: Handle, grace: float) -> None:
        _ask("cancel", {"name": handle.name, "grace": grace})

    def find(self, name: str, pool: Pool) -> Handle | None:
        there = _ask("find", {"name": name})
        return Handle(backend=self.name, name=name, pool=pool.name) if there else None


def _ask(path: str, question: Json) -> Any:
    request = urllib.request.Request(f"{os.environ[ADDRESS]}/{path}", data=json.dumps(question).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection open
            raise Transient(f"the cluster can't be reached: {error}") from None
    except (urllib.error.URLError, OSError) as error:
        raise Transient(f"the cluster can't be reached: {error}") from error


@dataclass
class Server:
    """The server's side: the jobs that it was given, in order, and those that it lets run.

    Attributes:
        meanwhile: What happens while it is too busy to answer; set, it refuses one request.
    """

    address: str
    backend: LocalBackend
    held: bool = False
    jobs: dict[str, JobSpec] = field(default_factory=dict)
    submits: int = 0
    started: dict[str, Handle] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    meanwhile: Callable[[], None] | None = None

    def release(self) -> None:
        """Starts what was held back, and holds nothing back any more."""
        self.held = False
        for name in self.jobs.keys() - self.started.keys() - self.stopped:
            self._start(name)

    def answer(self, path: str, asked: Json) -> Any:
        """What a request is answered with."""
        if path == "submit":
            return self._submit(asked["job"])
        name = asked["name"]
        if path == "find":
            return name in self.jobs
        if path == "cancel":
            self.stopped.add(name)
            return self.backend.cancel(self.started[name], asked["grace"]) if name in self.started else None
        if name in self.started:
            handle = self.started[name]
            return (
                self.backend.logs(handle, asked["since"])
                if path == "logs"
                else self.backend.status(handle).model_dump()
            )
        state = "stopped" if name in self.stopped else "queued"
        return ([], 0) if path == "logs" else {"state": state}

    def _submit(self, told: Json) -> None:
        self.submits += 1
        if told["name"] not in self.jobs:
            told = {**told, "command": tuple(told["command"]), "resources": Resources(**told["resources"])}
            self.jobs[told["name"]] = JobSpec(**told)
            if not self.held:
                self._start(told["name"])

    def _start(self, name: str) -> None:
        self.started[name] = self.backend.submit(self.jobs[name], Pool(name="cluster"))


@contextmanager
def serving_cluster(folder: Path) -> Iterator[Server]:
    """A server with nothing submitted."""
    lock = threading.Lock()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                meanwhile, server.meanwhile = server.meanwhile, None
                if meanwhile is not None:
                    meanwhile()
                    self.send_error(503)
                    return
                told = json.dumps(server.answer(self.path.strip("/"), asked)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}", LocalBackend(folder))
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            for handle in server.started.values():
                server.backend.cancel(handle, 0)
            http.shutdown()
            thread.join()


if TYPE_CHECKING:
    _cluster: Backend = Cluster()
