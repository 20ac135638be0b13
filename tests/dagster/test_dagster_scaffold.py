"""`dg scaffold defs treadle_dagster.LoopComponent`: a loop that runs, or one usage error and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pytest
from dagster_cases import failure
from pydantic import ValidationError
from treadle_dagster import TreadleResource, loop_assets
from treadle_dagster.scaffolder import LoopParams, LoopScaffolder


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"label": "late"}, "--label: of which file"),
        ({"data": "flights.csv", "label": "late"}, "--data flights.csv also needs --time, --entity"),
    ],
)
def test_parameters_that_do_not_go_together_are_a_usage_error_before_anything_is_made(
    said: dict[str, Any], words: str
) -> None:
    with pytest.raises(click.UsageError, match=words):
        LoopParams(**said)
    with pytest.raises(ValidationError, match="lable"):
        LoopParams(**{"lable": "late"})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "later.csv.*by --data"),
        ({"data": "here.csv", "label": "lost"}, "no column 'lost' for --label"),
        ({"loops": "/elsewhere"}, "--loops /elsewhere"),
    ],
)
def test_what_only_the_files_show_is_a_usage_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.csv").write_text("who,when,late\n1,2024-01-01,0\n2,2024-01-02,1\n")
    asked = {"data": "later.csv", "label": "late", "time": "when", "entity": "who", **said}
    folder = tmp_path / "defs" / "churn"
    folder.mkdir(parents=True)  # as Dagster does
    with pytest.raises(click.UsageError, match=words):
        LoopScaffolder().scaffold(
            dg.ScaffoldRequest(
                type_name="treadle_dagster.LoopComponent",
                target_path=folder,
                scaffold_format="yaml",
                project_root=tmp_path,
                params=LoopParams(**asked),
                append=False,
            )
        )
    assert not folder.exists()
    assert not (tmp_path / "loops").exists()


@pytest.mark.slow
def test_dg_lists_scaffolds_and_checks_a_loop_that_runs(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    (project / "shop" / "defs").mkdir(parents=True)
    (project / "shop" / "__init__.py").touch()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "0.1"\nrequires-python = ">=3.11"\n'
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "shop"\n'
        'code_location_name = "shop"\n'
    )
    (project / "shop" / "definitions.py").write_text(
        "from pathlib import Path\nimport dagster as dg\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )

    def dg_command(*words: str, code: int = 0) -> str:
        binaries = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(binaries.parent),
            "PYTHONPATH": str(project),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [binaries / "dg", *words],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "treadle_dagster.LoopComponent" in dg_command("list", "components")
    dg_command("scaffold", "defs", "treadle_dagster.LoopComponent", "churn")
    written = (project / "shop" / "defs" / "churn" / "defs.yaml").read_text()
    assert "loop: loops/churn.yaml" in written
    assert "in_process: true" in written
    wrong = dg_command(
        "scaffold", "defs", "treadle_dagster.LoopComponent", "again", "--label", "late", code=2
    )
    assert "Usage: dg scaffold defs" in wrong
    assert "--label: of which file? Name it by --data" in wrong
    wrong = dg_command("scaffold", "defs", "treadle_dagster.LoopComponent", "2nd", code=2)
    assert "'2nd' can't name a loop" in wrong
    assert [path.name for path in (project / "shop" / "defs").iterdir()] == ["churn"]
    assert "successfully" in dg_command("check", "defs")
    assert "churn/champion" in dg_command("list", "defs")
    result = dg.materialize(
        loop_assets(project / "loops" / "churn.yaml"),
        resources={"treadle": TreadleResource(store=str(tmp_path / "store"))},
        raise_on_error=False,
    )
    assert result.success, failure(result)
