"""A cluster's API as JSON in and JSON out, over the official client, with its errors in treadle's words."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from treadle.errors import MissingPackage, NotSent, Transient, TreadleError, UserError
from treadle.hardware.backend import Json
from treadle.redaction import redacted

_TIMEOUT_S = (5, 30)  # to connect; to wait for a part of the answer
_KINDS = {"Job": "/apis/batch/v1", "RayJob": "/apis/ray.io/v1", "Pod": "/api/v1"}


class NotFound(TreadleError):
    """There is no such object."""


class Exists(TreadleError):
    """There is such an object already."""


class Refused(Transient):
    """The cluster answered, and could not do it now. `code` is HTTP's."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(code, words)
        self.code, self.told = code, words

    def words(self) -> str:
        """What it said."""
        return self.told


def path_of(kind: str, namespace: str, name: str = "", part: str = "") -> str:
    """The address of an object, of a part of it such as `log`, or without a name of all of them."""
    path = f"{_KINDS[kind]}/namespaces/{quote(namespace)}/{kind.lower()}s"
    return "/".join([path, *(quote(word) for word in (name, part) if word)])


class Cluster:
    """Calls to one cluster. It never tries twice: whoever asked decides on that.

    Raises, from every call:
        NotFound, Exists: 404, 409. NotSent: No connection came about to create something. Transient: Nobody answered,
        or the cluster is busy. UserError: It says no: the
        credentials, the rights or the request are wrong.
    """

    def __init__(self, context: str | None = None, config_file: str | None = None) -> None:
        self.client = _client(context, config_file or os.environ.get("KUBECONFIG"))

    def get(self, path: str, **query: str) -> Json:
        """An object, or a list's `items`."""
        found: Json = json.loads(self._call("GET", path, query))
        return found

    def create(self, path: str, content: Json) -> Json:
        """The object as the cluster made it."""
        made: Json = json.loads(self._call("POST", path, {}, content))
        return made

    def patch(self, path: str, content: Json) -> None:
        """Changes what is named, and leaves the rest."""
        self._call("PATCH", path, {}, content, "application/merge-patch+json")

    def delete(self, path: str, **options: Any) -> None:
        """Asks for its deletion; `options` are those of Kubernetes."""
        self._call("DELETE", path, {}, {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def read(self, path: str, **query: str) -> bytes:
        """Plain text."""
        return self._call("GET", path, query)

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        errors = import_module("urllib3.exceptions")
        request = self.client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self.client.call_api(*request, _request_timeout=_TIMEOUT_S)
            content: bytes = answer.read() or b""
        except (errors.HTTPError, OSError) as error:
            host = redacted(self.client.configuration.host)
            # A question that was not sent says nothing about a request that was, so only what creates is told so.
            unsent = method == "POST" and isinstance(error, errors.NewConnectionError)
            kind = NotSent if unsent else Transient
            raise kind(f"the cluster at {host} can't be reached: {_short(error)}.") from error
        if answer.status >= 400:
            raise _refusal(answer.status, method, path, content)
        return content


def _short(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return redacted(str(reason)).rpartition(": ")[2] or type(error).__name__


def _refusal(code: int, method: str, path: str, content: bytes) -> TreadleError:
    try:
        words = str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        words = content.decode(errors="replace")[:500].strip()
    told = f"{method} {path}: the cluster answers {code}: {redacted(words) or 'nothing more'}"
    if code == 404:
        return NotFound(told)
    if code == 409 and method == "POST":
        return Exists(told)
    if code == 401:
        return UserError(f"{told}. The credentials are wrong or out of date: log in again.")
    if code == 403 and "exceeded quota" not in words:
        return UserError(f"{told}. docs/kubernetes.md shows the rights that treadle needs.")
    if code in (403, 408, 409, 410, 429) or code >= 500:
        return Refused(code, told)
    return UserError(told)


@lru_cache(maxsize=8)
def _client(context: str | None, config_file: str | None) -> Any:
    """The official client: by a kubeconfig, else by the service account of the pod that this runs in.

    Kept, as it renews its own token, and as a program that gives credentials may take a second.
    """
    try:
        config: Any = import_module("kubernetes.config")
    except ImportError as error:
        raise MissingPackage("kubernetes", "run jobs on kubernetes", "kubernetes") from error
    try:
        if config_file or Path("~/.kube/config").expanduser().exists():
            made = config.new_client_from_config(config_file=config_file, context=context)
        else:
            settings = import_module("kubernetes.client").Configuration()
            config.load_incluster_config(client_configuration=settings)
            made = import_module("kubernetes.client").ApiClient(settings)
    except (config.ConfigException, OSError) as error:
        # It may quote the file, which holds credentials.
        words = redacted(str(error)).splitlines()[0][:200] if str(error) else type(error).__name__
        words = words.rstrip(".")
        where = f"the context {context!r} of {config_file or '~/.kube/config'}" if context else "a cluster"
        raise UserError(
            f"there are no credentials for {where}: {words}. Set KUBECONFIG, correct options.context of the pool, or"
            " run in a pod with a service account."
        ) from error
    made.configuration.retries = False
    made.rest_client = type(made.rest_client)(made.configuration)
    return made
