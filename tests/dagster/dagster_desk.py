"""A running Dagster, driven by GraphQL as a browser drives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LOCATION = "assets.definitions"
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
OVER = ("SUCCESS", "FAILURE", "CANCELED")
# A shell that starts tests in the background has its children ignore SIGINT: `dagster dev` needs it.
HEED_SIGINT = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])"""

LOADED = """{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename
  ... on PythonError { message } } } } } }"""
LAUNCH = """mutation ($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
BACKFILL = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
TERMINATE = """mutation ($id: String!) { terminateRun(runId: $id) { __typename
  ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
SENSOR = """mutation ($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) { __typename
  ... on PythonError { message } } }"""
TICKS = """query ($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) { ... on Sensor {
  sensorState { ticks(limit: 20) { status } } } } }"""
RUNS = """query ($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status startTime endTime tags { key value } } } } }"""
EVENTS = """query ($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events { __typename
  ... on MessageEvent { message stepKey }
  ... on MaterializationEvent { assetKey { path } partition metadataEntries { label
    ... on TextMetadataEntry { text } ... on IntMetadataEntry { intValue } ... on BoolMetadataEntry { boolValue } } }
  ... on AssetCheckEvaluationEvent { evaluation { checkName success severity assetKey { path } } }
  ... on ExecutionStepFailureEvent { error { message } failureMetadata { description } } } } } }"""


@dataclass
class Desk:
    """A project with its own DAGSTER_HOME, a webserver, a daemon and a code server."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    loops: list[Path] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self, dagster_yaml: Path) -> None:
        """Starts all of it, and waits until the code location is loaded."""
        home = self.folder / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text(dagster_yaml.read_text())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "TREADLE_LOOPS": os.pathsep.join(str(path.parent) for path in self.loops),
            "TREADLE_STORE": str(self.store),
            "TREADLE_USER": "ann",
        }
        dagster = Path(sys.executable).parent / "dagster"
        command = [dagster, "dev", "-m", LOCATION, "-h", "127.0.0.1", "-p", str(self.port)]
        with open(self.folder / "dev.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HEED_SIGINT, sys.executable, *command],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait(self._loaded, "the code location", 120)

    def _loaded(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "dev.log").read_text()[-2000:]
        try:
            entries = self.ask(LOADED)["workspaceOrError"]["locationEntries"]
        except (OSError, KeyError):
            return False
        told = entries[0]["locationOrLoadError"] if entries else None
        assert told is None or told["__typename"] == "RepositoryLocation", told
        return told is not None

    def stop(self) -> None:
        """Ends it as Ctrl-C would; whatever it started is gone afterwards."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not self.alive(), "the end of all that it started", 10)

    def alive(self) -> list[int]:
        """The processes of its session that are not dead already."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if self.process and state != "Z" and int(session) == self.process.pid:
                found.append(int(entry.name))
        return found

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """What GraphQL answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        assert "errors" not in told, told["errors"]
        return dict(told["data"])

    def wait(self, look: Callable[[], T], what: str, seconds: float = 150) -> T:
        """What `look` tells, once it tells something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = look()
            if told:
                return told
            time.sleep(0.5)
        raise AssertionError(
            f"waited {seconds:.0f} s for {what}; {(self.folder / 'dev.log').read_text()[-3000:]}"
        )

    def launch(
        self, job: str, *assets: str, config: dict[str, Any] | None = None, partition: str = "", **tags: str
    ) -> str:
        """Starts a job, or some of its assets; the run's id."""
        said = {f"treadle/{key}": value for key, value in tags.items()}
        if partition:
            said["dagster/partition"] = partition
        selector: dict[str, Any] = {**REPOSITORY, "pipelineName": job}
        if assets:
            selector["assetSelection"] = [{"path": asset.split("/")} for asset in assets]
        params = {
            "selector": selector,
            "mode": "default",
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in said.items()]},
        }
        told = self.ask(LAUNCH, params=params)["launchPipelineExecution"]
        assert told["__typename"] == "LaunchRunSuccess", told
        return str(told["run"]["runId"])

    def backfill(self, job: str, partitions: list[str], **tags: str) -> str:
        """Starts a backfill of a job; its id."""
        params = {
            "selector": {"repositorySelector": REPOSITORY, "partitionSetName": f"{job}_partition_set"},
            "partitionNames": partitions,
            "tags": [{"key": f"treadle/{key}", "value": value} for key, value in tags.items()],
        }
        told = self.ask(BACKFILL, params=params)["launchPartitionBackfill"]
        assert told["__typename"] == "LaunchBackfillSuccess", told
        return str(told["backfillId"])

    def terminate(self, run: str) -> None:
        """Ends a run as the button in the UI does."""
        told = self.ask(TERMINATE, id=run)["terminateRun"]
        assert told["__typename"] == "TerminateRunSuccess", told

    def switch_on(self, sensor: str) -> None:
        """Switches a sensor on."""
        told = self.ask(SENSOR, sensor={**REPOSITORY, "sensorName": sensor})["startSensor"]
        assert told["__typename"] == "Sensor", told

    def ticks(self, sensor: str) -> list[str]:
        """How the ticks of a sensor ended, the newest first: SUCCESS asked for a run, SKIPPED for none."""
        found = self.ask(TICKS, sensor={**REPOSITORY, "sensorName": sensor})["sensorOrError"]["sensorState"]
        return [tick["status"] for tick in found["ticks"]]

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """The runs with some tags, the oldest first."""
        wanted = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
        found = self.ask(RUNS, filter={"tags": wanted})["runsOrError"]["results"]
        return list(reversed(found))

    def ended(self, run: str) -> str:
        """How a run ended."""

        def look() -> str | None:
            (found,) = self.ask(RUNS, filter={"runIds": [run]})["runsOrError"]["results"]
            return str(found["status"]) if found["status"] in OVER else None

        return str(self.wait(look, f"run {run}"))

    def events(self, run: str) -> list[dict[str, Any]]:
        """What a run told so far."""
        return list(self.ask(EVENTS, id=run)["logsForRun"]["events"])

    def made(self, run: str) -> dict[str, dict[str, Any]]:
        """The metadata of what a run materialized, by the last part of the asset's key."""
        values = ("text", "intValue", "boolValue")
        return {
            event["assetKey"]["path"][-1]: {
                entry["label"]: next((entry[value] for value in values if value in entry), None)
                for entry in event["metadataEntries"]
            }
            for event in self.events(run)
            if event["__typename"] == "MaterializationEvent"
        }

    def failed_checks(self, run: str) -> dict[str, str]:
        """The severity of each check of a run that failed, by its name."""
        found = [event["evaluation"] for event in self.events(run) if "evaluation" in event]
        return {check["checkName"]: check["severity"] for check in found if not check["success"]}

    def words(self, run: str) -> str:
        """All lines of a run's log."""
        return "\n".join(event["message"] for event in self.events(run) if event.get("message"))
