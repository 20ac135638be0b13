"""HTTP on loopback before a cluster: what the official client sends and expects, with faults on demand."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from kubernetes_api.cluster import Cluster
from kubernetes_api.objects import Problem

TOKEN = "a-token-of-the-test"
KINDS = {"jobs": "Job", "pods": "Pod", "rayjobs": "RayJob"}


class Api:
    """A cluster and its faults: each answers one request of its method by a code, or cuts the connection."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.faults: deque[tuple[str, int | str]] = deque()
        self.seen: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            api = self
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.api.answer(self)

            do_POST = do_PATCH = do_DELETE = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.cluster.close()

    def write_config(self, path: Path, *, token: str = TOKEN, url: str | None = None) -> Path:
        """A kubeconfig for it, with one context: `test`."""
        named = {
            "clusters": [{"name": "test", "cluster": {"server": url or self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(
            json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "test", **named})
        )
        return path

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else {}
        parts = urlsplit(request.path)
        self.seen.append(f"{request.command} {parts.path}")
        fault = self.faults.popleft()[1] if self.faults and self.faults[0][0] == request.command else None
        if fault == "cut":
            request.connection.close()
            request.close_connection = True
            return
        try:
            if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Problem(401, "Unauthorized", "Unauthorized")
            if isinstance(fault, int):
                raise Problem(fault, "InternalError", "a fault of the test")
            content, kind = self._done(request.command, parts.path, dict(parse_qsl(parts.query)), body)
            code = 201 if request.command == "POST" else 200
        except Problem as problem:
            told = {
                "kind": "Status",
                "status": "Failure",
                "reason": problem.reason,
                "message": problem.message,
            }
            content, kind, code = (
                json.dumps({**told, "code": problem.code}).encode(),
                "application/json",
                problem.code,
            )
        if fault == "cut after":
            request.connection.close()
            request.close_connection = True
            return
        request.send_response(code)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _done(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[bytes, str]:
        words = [unquote(word) for word in path.split("/namespaces/")[1].split("/")]
        namespace, kind = words[0], KINDS[words[1]]
        found: Any
        if words[3:] == ["log"]:
            return self._log(namespace, words[2], query), "text/plain"
        if method == "POST":
            found = self.cluster.create(kind, namespace, body)
        elif method == "PATCH":
            found = self.cluster.patch(kind, namespace, words[2], body)
        elif method == "DELETE":
            self.cluster.delete(kind, namespace, words[2], body)
            found = {"kind": "Status", "status": "Success"}
        elif len(words) == 3:
            found = self.cluster.get(kind, namespace, words[2])
        else:
            labels = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
            found = {"kind": f"{kind}List", "items": self.cluster.list(kind, namespace, labels)}
        return json.dumps(found).encode(), "application/json"

    def _log(self, namespace: str, name: str, query: dict[str, str]) -> bytes:
        since = query.get("sinceTime")
        first = int(datetime.fromisoformat(since).timestamp() * 10**9) if since else 0
        shown = b""
        for at, line in self.cluster.log(namespace, name, query["container"]):
            if at >= first:
                second = datetime.fromtimestamp(at // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
                shown += f"{second}.{at % 10**9:09d}Z ".encode() * (query.get("timestamps") == "true") + line
        return shown


@contextmanager
def api_server() -> Iterator[Api]:
    api = Api()
    try:
        yield api
    finally:
        api.close()
