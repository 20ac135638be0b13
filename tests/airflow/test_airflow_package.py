"""The provider as Airflow finds it, and what parsing loads."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import treadle_airflow
from airflow.providers_manager import ProvidersManager
from home import DROP_IN, environment
from treadle_airflow.provider_info import get_provider_info

HEAVY = {
    *("pandas", "numpy", "mlflow", "feast", "great_expectations", "evidently", "torch", "xgboost", "pyarrow"),
    *("duckdb", "sklearn", "scipy", "ibis", "sqlglot", "ray", "boto3", "dagster"),
}
# What a virtual environment's own start loads.
STARTUP = {
    "sitecustomize",
    "usercustomize",
    "distutils-precedence",
    "zope",
    "mpl_toolkits",
    "google",
    "sphinxcontrib",
}


def python(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment() | variables,
    )
    return done.stdout


LOADED = "print(*{name.partition('.')[0] for name in sys.modules})"


def test_parsing_the_drop_in_file_and_the_plugin_of_the_page_load_nothing_heavy() -> None:
    loops = str(Path(__file__).parents[2] / "loops")
    plugin = "import airflow.sdk, sys; before = set(sys.modules); import treadle_airflow.page.plugin"
    parse = f"import runpy; found = runpy.run_path({str(DROP_IN)!r}); assert 'flights__monitor' in found"
    code = f"{plugin}; print(*(set(sys.modules) - before)); {parse}; {LOADED}"
    of_plugin, of_all = (set(line.split()) for line in python(code, TREADLE_LOOPS=loops).splitlines()[-2:])
    assert "treadle_airflow" in of_all
    assert of_all & HEAVY == set()
    # What the API server loads for the page, a worker has anyway.
    assert {name.split(".")[0] for name in of_plugin} <= {"treadle_airflow", "airflow", "importlib_metadata"}


def test_the_provider_s_description_imports_nothing_beyond_the_standard_library() -> None:
    ask = "import sys; from treadle_airflow.provider_info import get_provider_info; get_provider_info()"
    loaded = set(python(f"{ask}; {LOADED}").split())
    assert "treadle" not in loaded
    assert "airflow" not in loaded
    assert {
        name for name in loaded if not name.startswith(("_", "treadle"))
    } <= sys.stdlib_module_names | STARTUP


def test_airflow_lists_the_provider_its_connection_type_and_its_links() -> None:
    manager = ProvidersManager()
    assert manager.providers["treadle"].data["name"] == "Treadle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the form of a connection reads it so
        hook = manager.hooks["treadle"]
    assert hook is not None
    assert hook.hook_class_name == "treadle_airflow.hooks.treadle.TreadleHook"
    assert "treadle_airflow.links.MlflowLink" in manager.extra_links_class_names
    assert "extra__treadle__store" in manager.connection_form_widgets


@pytest.mark.slow
@pytest.mark.parametrize("what", ["providers list", "providers hooks", "plugins"])
def test_the_command_line_shows_the_provider(what: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("airflow")), *what.split(), "--output", "json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment() | {"PYTHONWARNINGS": "ignore"},
    )
    assert '"treadle"' in done.stdout


@pytest.mark.parametrize("kind", ["operators", "hooks", "triggers"])
def test_what_the_description_names_exists(kind: str) -> None:
    for entry in get_provider_info()[kind]:
        for module in entry["python-modules"]:
            __import__(module)


def test_every_public_name_is_there_once() -> None:
    assert treadle_airflow.__all__ == sorted(treadle_airflow._WHERE)
    for name in treadle_airflow.__all__:
        assert getattr(treadle_airflow, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'LoopDog'"):
        treadle_airflow.LoopDog  # noqa: B018


def test_providers_use_no_insides_of_airflow() -> None:
    root = Path(treadle_airflow.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "airflow.models" not in text, path
        assert "import _" not in text, path
