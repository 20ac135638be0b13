"""A Ray cluster's interface for jobs, over HTTP: whoever submits needs no Ray installed."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from treadle.errors import NotSent, Transient, TreadleError, UserError
from treadle.hardware.backend import Json

_PATIENCE_S = 30
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class RayJobs:
    """The jobs of the cluster whose dashboard is at `address`, such as http://head:8265."""

    address: str
    token: str | None = field(default=None, repr=False)

    def get(self, name: str) -> Json | None:
        """What Ray tells of a job; None when there is no such job."""
        found = self._ask("GET", f"/api/jobs/{quote(name)}")
        return found if isinstance(found, dict) else None

    def jobs(self) -> list[Json]:
        """What Ray tells of all jobs that were submitted."""
        found = self._ask("GET", "/api/jobs/") or []
        return [job for job in found if job["type"] == "SUBMISSION"]

    def log(self, name: str) -> str:
        """All that a job printed, with what Ray said before; empty when its machine is gone."""
        try:
            return str((self._ask("GET", f"/api/jobs/{quote(name)}/logs") or {}).get("logs") or "")
        except _ServerError:
            return ""

    def submit(self, request: Json) -> None:
        """Has a job started, unless there is one of its name already.

        Raises:
            UserError: The cluster refuses the request. NotSent: No connection came about. Transient: It can't be
            reached or has no room for it now.
        """
        try:
            self._ask("POST", "/api/jobs/", request)
        except _ServerError as error:
            # Ray tells of a second submit by nothing but an internal error.
            try:
                known = self.get(request["submission_id"])
            except NotSent as gone:  # the question was not; the request itself may have arrived
                raise Transient(gone.words()) from error
            if known is None:
                raise Transient(f"the Ray cluster at {self.address} takes no job: {error}") from error

    def stop(self, name: str) -> None:
        """Asks a job to end."""
        self._ask("POST", f"/api/jobs/{quote(name)}/stop")

    def _ask(self, method: str, path: str, body: Json | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        local = urlsplit(self.address).hostname in _LOOPBACK
        handlers = [urllib.request.ProxyHandler({})] if local else []
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=_PATIENCE_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace").strip()
            return self._refused(error.code, words[-500:], path)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            kind = NotSent if _is_not_sent(error) else Transient
            raise kind(
                f"the Ray cluster at {self.address} can't be reached: {reason}. Correct options.address of the pool,"
                " or RAY_ADDRESS: the address of its dashboard, such as http://head:8265."
            ) from error

    def _refused(self, code: int, words: str, path: str) -> None:
        if code == 404 and path.startswith("/api/jobs/") and "does not exist" in words:
            return
        if code in (401, 403):
            raise UserError(
                f"the Ray cluster at {self.address} asks for another token ({code}): set RAY_AUTH_TOKEN, or"
                " RAY_AUTH_TOKEN_PATH, to the cluster's."
            )
        if code >= 500:
            raise _ServerError(code, words)
        raise UserError(f"{self.address}{path} is not what Ray's dashboard answers: {code} {words[-300:]}")


def _is_not_sent(error: Exception) -> bool:
    """Whether no connection came about: urllib wraps what it meets before an answer, and these two only connecting."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else None
    return isinstance(reason, ConnectionRefusedError | socket.gaierror)


class _ServerError(Transient):
    """The cluster failed at an answer."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(code, words)
        self.code, self.text = code, words

    def words(self) -> str:
        return f"it answered {self.code}: {self.text}"


def remote(address: str) -> RayJobs:
    """The cluster at an address, with the token of this environment.

    Raises:
        UserError: No dashboard can have such an address.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"{address!r} is no address of a Ray dashboard: write http://HEAD:8265 in options.address of the pool, or"
            " in RAY_ADDRESS."
        )
    return RayJobs(address.rstrip("/"), _token())


def _token() -> str | None:
    """The token that Ray's own tools would send."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TreadleError(f"the token of Ray, {path}, can't be read: {error.strerror}") from error
