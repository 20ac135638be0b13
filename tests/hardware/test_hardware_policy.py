"""An organisation's policy: what it forbids is refused before a job is planned any further, with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import treadle
from small import write_small_loop
from treadle import jobs
from treadle.errors import SpecError, UserError
from treadle.hardware.policy import Policy, find_policies, read_policy, refuse_by_policy, violations
from treadle.hardware.pools import known_pools
from treadle.session import open_session

POOLS = """\
cheap: {max_seconds: 3600, price: 0.5}
cloud:
  backend: sagemaker
  accelerator: nvidia-l4
  count: 1
  instance_type: ml.g6.xlarge
  region: eu-west-1
  price: 1.2
  max_seconds: 7200
bare: {backend: sagemaker, accelerator: gpu, count: 1}
endless: {price: 3}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pools.yaml").write_text(POOLS)
    return tmp_path


def loop_in(folder: Path, workers: int = 1, **tags: str) -> treadle.Loop:
    table = {"sql": "t.sql", "entity": "id", "event_time": "at", "known_at": "at", "label": "late"}
    data = {"sources": {"t": "t.csv"}, "tables": {"t": {**table, "label_known_at": "at"}}}
    content = {"name": "orders", "data": data, "train": {"workers": workers}, "tags": tags}
    return treadle.Loop.model_validate(content).placed(folder, source_folder=folder)


def against(folder: Path, policy: str, name: str, workers: int = 1, **tags: str) -> list[str]:
    (folder / "policy.yaml").write_text(policy)
    found = violations(loop_in(folder, workers, **tags), "train", "production", known_pools(folder)[name])
    return [str(fault) for fault in found]


@pytest.mark.parametrize(
    ("policy", "name", "line", "field", "words"),
    [
        ("regions: [us-*]", "cloud", 7, "cloud.region", "'eu-west-1' is not among the regions"),
        ("regions: [us-*]", "bare", 10, "bare.region", "it is not said"),
        ("instance_types: [ml.g5.*]", "cloud", 6, "cloud.instance_type", "allows: ml.g5.*"),
        ("accelerators: [cpu, trainium*]", "cloud", 4, "cloud.accelerator", "'nvidia-l4'"),
        ("backends: [local]", "cloud", 3, "cloud.backend", "'sagemaker'"),
        ("required_tags: [team]", "cheap", 1, "cheap.tags", "the tag 'team' is missing"),
        ("dearest_job: 2", "cloud", 9, "cloud.max_seconds", "may cost 2.40 USD, above dearest_job, 2 USD"),
        ("dearest_job: 2", "endless", 11, "endless.max_seconds", "without a time limit"),
        ("dearest_job: 2", "bare", 10, "bare.price", "at least 0.8048 USD an hour for g6.xlarge"),
    ],
)
def test_what_a_policy_forbids_is_told_with_both_files_and_lines(
    folder: Path, policy: str, name: str, line: int, field: str, words: str
) -> None:
    (told,) = against(folder, f"# ours\n{policy}\n", name)
    assert told.startswith(f"{folder / 'pools.yaml'}:{line}: {field}:")
    assert words in told
    assert f"{folder / 'policy.yaml'}:2" in told


@pytest.mark.parametrize(
    ("policy", "name", "labels"),
    [
        (
            "regions: [eu-*]\ninstance_types: ['ml.g?.*']\naccelerators: [nvidia-*]\ndearest_job: 2.4",
            "cloud",
            {},
        ),
        ("required_tags: [team, environment]", "cheap", {"team": "ops", "environment": "test"}),
        ("dearest_job: 0.5", "cheap", {}),
        ("regions: [eu-*]\ninstance_types: [ml.*]\ndearest_job: 1", "local", {}),
    ],
)
def test_what_it_allows_passes(folder: Path, policy: str, name: str, labels: dict[str, str]) -> None:
    assert against(folder, policy, name, **labels) == []


def test_the_dearest_job_counts_every_machine(folder: Path) -> None:
    assert against(folder, "dearest_job: 2.4", "cloud") == []
    (told,) = against(folder, "dearest_job: 2.4", "cloud", workers=2)
    assert "7,200 s on 2 machines may cost 4.80 USD" in told


def test_a_tag_that_is_empty_is_missing(folder: Path) -> None:
    (told,) = against(folder, "required_tags: [environment]", "cheap", environment="")
    assert "or set TREADLE_ENVIRONMENT" in told


def test_policies_of_all_folders_hold_and_the_organisations_own_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = folder / "team" / "loops"
    inner.mkdir(parents=True)
    (folder / "team" / "policy.yaml").write_text("required_tags: [team]\n")
    own = folder / "elsewhere.yaml"
    own.write_text("backends: [kubernetes]\n")
    monkeypatch.setenv("TREADLE_POLICY", str(own))
    (folder / "policy.yaml").write_text("dearest_job: 0.1\n")
    found = violations(loop_in(inner), "train", "production", known_pools(inner)["cheap"])
    assert [fault.field for fault in found] == ["cheap.backend", "cheap.tags", "cheap.max_seconds"]


def test_a_policy_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREADLE_POLICY", str(folder / "gone.yaml"))
    with pytest.raises(UserError, match="TREADLE_POLICY names"):
        find_policies(folder)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("regions: [eu-*]\nregion: eu\n", 2, "Did you mean 'regions'?"),
        ("dearest_job: -1\n", 1, "-1 is not above 0"),
        ("regions: eu-west-1\n", 1, "not a list. Write [eu-west-1]."),
        ("- a\n", 1, "a policy is a mapping"),
    ],
)
def test_a_mistake_in_a_policy_is_told_with_its_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(SpecError) as told:
        read_policy(tmp_path / "policy.yaml")
    assert f"policy.yaml:{line}" in str(told.value)
    assert words in str(told.value)


def test_a_job_against_the_policy_is_refused_and_nothing_is_claimed(tmp_path: Path) -> None:
    loop_file = write_small_loop(tmp_path / "loop", days=1)
    (tmp_path / "loop" / "pools.yaml").write_text("cheap: {price: 0.5}\n")
    (tmp_path / "policy.yaml").write_text("required_tags: [team]\n")
    loop = treadle.Loop.load(loop_file)
    session = open_session(loop, as_of="2024-02-12", store=tmp_path / "store")
    with pytest.raises(SpecError, match="the tag 'team' is missing"):
        jobs.submit(session, "prepare", known_pools(loop.folder)["cheap"], {})
    assert session.store.list(f"jobs/{loop.name}") == []
    tagged = loop.model_copy(update={"tags": {"team": "ops"}})
    refuse_by_policy(tagged, "prepare", "production", known_pools(loop.folder)["cheap"])


def test_the_policy_of_the_docs_is_right_and_every_field_has_its_row(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "cost.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (policy,) = (block for block in blocks if "dearest_job" in block)
    (tmp_path / "policy.yaml").write_text(policy)
    assert read_policy(tmp_path / "policy.yaml").policy.dearest_job == 50
    rows = set(re.findall(r"^\| `(\w+)` \| (?:all|none) \|", text, re.MULTILINE))
    assert rows == set(Policy.model_fields)
