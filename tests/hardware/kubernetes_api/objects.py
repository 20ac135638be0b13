"""The objects of a cluster, and what a client does with them: create, get, list, patch, delete, read a log.

No admission beyond what a test relies on: manifests are held against the published schemas elsewhere.
"""

from __future__ import annotations

import copy
import threading
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from kubernetes_api.node import Container

Json = dict[str, Any]
Key = tuple[str, str, str]


def moment(seconds: float | None = None) -> str:
    """A time as the API writes it: whole seconds."""
    return datetime.fromtimestamp(seconds or time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Problem(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code, self.reason, self.message = code, reason, message


class Objects:
    """`objects` are by kind, namespace and name. Everything happens under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[Key, Json] = {}
        self.containers: dict[str, Container] = {}
        self.namespaces, self.secrets, self.has_kuberay = {"default"}, dict[str, Json](), True
        self.without_log: set[str] = set()
        self.created: list[Key] = []

    def create(self, kind: str, namespace: str, content: Json) -> Json:
        with self.lock:
            name = content["metadata"]["name"]
            key = (kind, namespace, name)
            if namespace not in self.namespaces or (kind == "RayJob" and not self.has_kuberay):
                raise Problem(404, "NotFound", f'namespaces "{namespace}" not found')
            if key in self.objects:
                raise Problem(409, "AlreadyExists", f'{kind.lower()}s "{name}" already exists')
            made = copy.deepcopy(content)
            made["metadata"] |= {"namespace": namespace, "uid": str(uuid4()), "creationTimestamp": moment()}
            made.setdefault("status", {})
            self.objects[key] = made
            self.created.append(key)
            return copy.deepcopy(made)

    def get(self, kind: str, namespace: str, name: str) -> Json:
        with self.lock:
            if (kind, namespace, name) not in self.objects:
                raise Problem(404, "NotFound", f'{kind.lower()}s "{name}" not found')
            return copy.deepcopy(self.objects[kind, namespace, name])

    def list(self, kind: str, namespace: str, labels: dict[str, str]) -> list[Json]:
        with self.lock:
            return [
                copy.deepcopy(item)
                for (of, place, _), item in self.objects.items()
                if (of, place) == (kind, namespace)
                and labels.items() <= item["metadata"].get("labels", {}).items()
            ]

    def patch(self, kind: str, namespace: str, name: str, change: Json) -> Json:
        with self.lock:
            self.get(kind, namespace, name)
            fixed = set(change.get("spec", {})) - {"activeDeadlineSeconds", "suspend", "parallelism"}
            if fixed or (kind == "Pod" and set(change.get("spec", {})) - {"activeDeadlineSeconds"}):
                raise Problem(422, "Invalid", f"{kind} {name} is invalid: spec: field is immutable")
            merge(self.objects[kind, namespace, name], change)
            return self.get(kind, namespace, name)

    def delete(self, kind: str, namespace: str, name: str, options: Json) -> None:
        with self.lock:
            self.get(kind, namespace, name)
            if kind == "Pod":
                self.leave(self.objects[kind, namespace, name], options.get("gracePeriodSeconds"))
                return
            if options.get("propagationPolicy") not in ("Foreground", "Background"):
                # The default of batch/v1 through the API orphans nothing; through old clients it did.
                raise Problem(400, "BadRequest", "this cluster wants to be told what becomes of dependents")
            owner = self.objects.pop((kind, namespace, name))
            for item in list(self.objects.values()):
                if owner["metadata"]["uid"] in owners(item):
                    place = item["metadata"]
                    self.delete(item["kind"], namespace, place["name"], options)

    def log(self, namespace: str, name: str, container: str) -> list[tuple[int, bytes]]:
        with self.lock:
            pod = self.get("Pod", namespace, name)
            if container not in [each["name"] for each in pod["spec"]["containers"]]:
                raise Problem(400, "BadRequest", f"container {container} is not valid for pod {name}")
            if name in self.without_log:
                raise Problem(
                    500, "InternalError", f'Get "https://node-1:10250/{name}": dial tcp: connection refused'
                )
            found = self.containers.get(pod["metadata"]["uid"])
            if found is None:
                text = f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating'
                raise Problem(400, "BadRequest", text)
            return list(found.lines)

    def leave(self, pod: Json, grace_s: int | None) -> None:
        """Marks a pod to leave after its grace."""
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        metadata = pod["metadata"]
        metadata["deletionGracePeriodSeconds"] = min(grace, metadata.get("deletionGracePeriodSeconds", grace))
        metadata["deletionTimestamp"] = moment(time.time() + metadata["deletionGracePeriodSeconds"])


def merge(into: Json, change: Json) -> None:
    """A JSON merge patch."""
    for name, value in change.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


def owners(item: Json) -> set[str]:
    return {owner["uid"] for owner in item["metadata"].get("ownerReferences", ())}
