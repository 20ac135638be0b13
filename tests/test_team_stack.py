"""The team stack's files, by the Compose Specification's own schema and by what they say of each other.

No container is started: what is tested is that the files are whole.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "tests" / "compose" / "compose-spec.json").read_text())
TEXT = (ROOT / "docker-compose.yml").read_text()
STACK: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
ONCE = "airflow-init"


def problems(stack: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(stack)]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_stack_is_a_compose_file() -> None:
    assert problems(STACK) == []


@pytest.mark.parametrize(
    "change",
    [{"volume": {}}, {"services": {"postgres": {"image": 17}}}, {"services": {"a b": {"image": "x"}}}],
    ids=["unknown section", "wrong type", "bad name"],
)
def test_the_schema_finds_what_is_no_compose_file(change: dict[str, Any]) -> None:
    assert problems({**STACK, **change})


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_pinned_watched_and_waits_only_for_what_can_come(name: str) -> None:
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert re.fullmatch(r"\d+(\.\d+)+", tag), "an image is pinned by its version"
    if service["image"].startswith("treadle-"):
        assert tag == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
        assert service["build"]["target"] in stages
    assert ("healthcheck" in service) == (name != ONCE)
    for other, asked in service.get("depends_on", {}).items():
        met = "service_completed_successfully" if other == ONCE else "service_healthy"
        assert asked["condition"] == met, other
        assert set(SERVICES[other].get("profiles", ())) <= set(service.get("profiles", ()))


def test_what_is_mounted_is_there_and_what_is_published_is_on_the_loopback() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in STACK["volumes"], volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_secrets_come_from_a_file_that_is_not_committed() -> None:
    example = [line for line in (ROOT / ".env.example").read_text().splitlines() if not line.startswith("#")]
    asked = dict(re.findall(r"(?<!\$)\$\{(\w+)(:\?[^}]*)?\}", TEXT))
    assert {line.removesuffix("=") for line in example} == asked.keys()
    assert all(line.endswith("=") for line in example), "an example holds no value"
    assert all(asked.values()), "what is missing is said before anything starts"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_images_hold_the_versions_that_are_tested() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"apache/airflow:slim-{pins()['apache-airflow']}-" in dockerfile
    own = dict(
        line.split("==")
        for line in (ROOT / "docker" / "airflow.txt").read_text().splitlines()
        if "==" in line
    )
    assert {name: version for name, version in own.items() if name in pins()}.items() <= pins().items()


def test_the_stacks_dagster_is_the_instance_of_the_docs_with_postgres() -> None:
    ours = yaml.safe_load((ROOT / "docker" / "dagster.yaml").read_text())
    assert ours.pop("storage").keys() == {"postgres"}
    assert ours == yaml.safe_load((ROOT / "assets" / "dagster.yaml").read_text())
