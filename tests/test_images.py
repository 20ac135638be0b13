"""The images of pools and endpoints, by what their files say: no image is built here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from treadle.hardware.image import image_notes

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = ("pool.Dockerfile", "neuron.Dockerfile")


def steps_of(name: str) -> list[tuple[str, str]]:
    """Instruction and value, comments left out."""
    path = ROOT / "docker" / name
    parser = DockerfileParser(path=str(path), cache_content=True)
    return [
        (step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"
    ]


def stages_of(name: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each FROM with what follows it."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for instruction, value in steps_of(name):
        if instruction == "FROM":
            found.append((value, []))
        elif found:
            found[-1][1].append((instruction, value))
    return found


def arguments_of(name: str) -> dict[str, str]:
    pairs = [value.partition("=") for instruction, value in steps_of(name) if instruction == "ARG"]
    return {variable: default for variable, _, default in pairs}


def final_stages(name: str) -> dict[str, list[tuple[str, str]]]:
    """By target, what an image ends in: stages that no other is made of."""
    stages = stages_of(name)
    bases = {value.split()[0] for value, _ in stages}
    copied = re.findall(r"--from=(\S+)", " ".join(value for _, steps in stages for _, value in steps))
    targets = {value.split(" AS ")[-1]: steps for value, steps in stages}
    return {target: steps for target, steps in targets.items() if target not in {*bases, *copied}}


def test_there_is_an_image_for_every_kind_of_device() -> None:
    assert set(final_stages("pool.Dockerfile")) == {"cpu", "gpu"}
    assert len(final_stages("neuron.Dockerfile")) == 1


@pytest.mark.parametrize("name", FILES)
def test_an_image_starts_from_a_version_and_not_from_whatever_is_newest(name: str) -> None:
    known = {value.split(" AS ")[-1] for value, _ in stages_of(name)}
    for value, _ in stages_of(name):
        base = value.split(" AS ")[0]
        if base in known:
            continue
        variable = re.fullmatch(r"\$\{(\w+)\}", base)
        assert variable, f"{base}: a base is an argument, so that it can be pinned by its digest"
        default = arguments_of(name)[variable[1]]
        # An argument without a default has to be given: docker refuses a build without it.
        assert not default or re.search(r":\d+\.\d+\.\d+|@sha256:", default), default


@pytest.mark.parametrize("name", FILES)
def test_an_image_holds_treadle_of_this_version_with_pinned_libraries(name: str) -> None:
    assert arguments_of(name)["VERSION"] == PROJECT["version"]
    text = " ".join(value for _, steps in stages_of(name) for _, value in steps)
    assert "org.opencontainers.image.version=${VERSION}" in text
    assert "file:///opt/treadle/src" in text, "treadle comes from this tree and from no index"
    for install in re.findall(r"pip install [^&;]*", text):
        assert "--no-cache-dir" in install
        assert re.search(r"-c \S+\.txt", install), install
    assert text.count("pip check") == len(final_stages(name))


@pytest.mark.parametrize("name", FILES)
def test_an_image_can_train_and_serve(name: str) -> None:
    extras = [
        value.removeprefix("EXTRAS=") for i, value in steps_of(name) if i == "ARG" and "EXTRAS=" in value
    ]
    assert extras
    for named in extras:
        asked = set(named.split(","))
        assert {"stages", "serve"} <= asked
        assert asked <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_a_user_that_a_cluster_can_tell_is_not_root(name: str) -> None:
    for target, steps in final_stages(name).items():
        users = [value for instruction, value in steps if instruction == "USER"]
        number = users[-1].partition(":")[0]
        assert number.isdigit(), target
        assert int(number) > 0, target
        last = max(i for i, (instruction, _) in enumerate(steps) if instruction == "USER")
        assert all(instruction in ("USER", "ENTRYPOINT", "CMD") for instruction, _ in steps[last:]), target


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_is_not_kept_out(name: str) -> None:
    ignored = (ROOT / "docker" / f"{name}.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*", "only what is named gets into a build: no .env, no store, no history"
    copied = set()
    for instruction, value in steps_of(name):
        if instruction == "COPY" and "--from=" not in value:
            copied |= set(value.split()[:-1])
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)


def test_the_neuron_image_leaves_the_neuron_sdk_alone() -> None:
    text = " ".join(value for _, steps in stages_of("neuron.Dockerfile") for _, value in steps)
    assert "diff neuron.txt" in text
    assert "torch" not in arguments_of("neuron.Dockerfile")["EXTRAS"]
    # Their namesakes on PyPI are empty.
    assert not re.search(r"install [^&]*(torch-neuronx|neuronx-cc|libneuronxla)", text)


def test_the_record_of_a_job_names_its_image_and_the_digest_that_anybody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TREADLE_IMAGE_DIGEST", raising=False)
    by_digest = "registry.example.com/treadle@sha256:4e0c"
    assert image_notes(by_digest) == {"image": by_digest, "image_digest": "sha256:4e0c"}
    assert image_notes("treadle:1") == {"image": "treadle:1"}
    assert image_notes(None) == {}
    monkeypatch.setenv("TREADLE_IMAGE_DIGEST", "sha256:77aa")
    assert image_notes("treadle:1") == {"image": "treadle:1", "image_digest": "sha256:77aa"}
    assert image_notes(by_digest)["image_digest"] == "sha256:4e0c"
