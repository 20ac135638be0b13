"""The documentation says what the code does: fields, defaults, commands, YAML, imports and links."""

from __future__ import annotations

import ast
import importlib
import re
import types
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
import yaml
from pydantic import BaseModel
from treadle.cli import app
from treadle.clock import format_duration
from treadle.loop import Loop
from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
)
BASE: dict[str, Any] = {
    "name": "orders",
    "data": {
        "sources": {"orders": "orders.csv"},
        "tables": {
            "orders": {
                "sql": "orders.sql",
                "entity": "order_id",
                "event_time": "placed_at",
                "known_at": "placed_at",
                "label": "late",
                "label_known_at": "delivered_at",
            }
        },
    },
}


def blocks(language: str) -> Iterator[Any]:
    """Each fenced block of a language, as a parameter that names its page and line."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: found.start()].count("\n") + 2
            yield pytest.param(found[1], id=f"{page.name}:{line}")


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each field's dotted name with its default as the page writes it; sections with a row of their own too."""
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{info.alias or name}"
        section = model_in(info.annotation)
        by_name = isinstance(info.default, dict) or str(info.annotation).startswith("dict")
        if section is None or by_name or not prefix or info.default is None:
            yield dotted, default_of(info, section if not by_name else None)
        if section is not None:
            yield from fields(section, f"{dotted}.NAME." if by_name else f"{dotted}.")


def default_of(info: Any, section: type[BaseModel] | None) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is None or value in ({}, ()) or section is not None:
        return "none"
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    if isinstance(value, tuple):
        return "`[{}]`".format(", ".join(f'"{item}"' for item in value))
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return '`""`' if value == "" else f"`{value}`"


def described() -> dict[str, list[str]]:
    """The rows of the tables of docs/loop.md: default, unit and meaning by field."""
    text = (ROOT / "docs" / "loop.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-zA-Z_.]+)` \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return {field: [default, unit, meaning] for field, default, unit, meaning in rows}


@pytest.mark.parametrize(("field", "default"), list(fields(Loop)), ids=lambda value: value)
def test_loop_page_describes_each_field_with_its_default(field: str, default: str) -> None:
    row = described().get(field)
    assert row is not None, f"docs/loop.md has no row for {field}"
    assert row[0] == default
    assert len(row[1]) > 2
    assert row[2].endswith((".", ")."))


def test_loop_page_describes_no_field_that_there_is_not() -> None:
    assert set(described()) == {field for field, _ in fields(Loop)}


@pytest.mark.parametrize("block", list(blocks("yaml")))
def test_yaml_in_the_docs_is_part_of_a_loop(block: str) -> None:
    content = yaml.safe_load(block)
    assert isinstance(content, dict)
    assert content
    Loop.model_validate({**BASE, **word_keys(content)})


def word_keys(value: Any) -> Any:
    """YAML 1.1 reads the key `on` as true; the loop's reader knows."""
    if isinstance(value, dict):
        return {"on" if key is True else key: word_keys(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_in_the_docs_imports_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("treadle"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command with its options, from lines that begin with `$ treadle` and inline code with `treadle`."""
    lines = re.findall(r"^\$ (?:.*; do )?treadle ([a-z-]+)(.*)$", text, re.MULTILINE)
    spans = re.findall(r"`treadle ([a-z-]+)([^`\n]*)`", text)
    for name, rest in [*lines, *spans]:
        yield name, re.findall(r"(?<!\S)(--[a-z-]+)", rest.partition("#")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path) -> None:
    whole = typer.main.get_command(app)
    known: dict[str, Any] = whole.commands  # type: ignore[attr-defined]
    alone = {option for parameter in whole.params for option in parameter.opts}
    for name, options in commands_in(page.read_text(encoding="utf-8")):
        if name in alone:
            continue
        assert name in known, f"{page.name} speaks of `treadle {name}`"
        offered = {option for parameter in known[name].params for option in parameter.opts}
        assert set(options) - offered == set(), f"{page.name}: treadle {name}"


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_each_command_has_help_with_an_example_and_stands_in_the_docs(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"Example: treadle {name}" in shown.output
    assert any(f"treadle {name}" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_in_the_docs_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"`make ([a-z -]+)`", page.read_text(encoding="utf-8"))
    assert {target for words in named for target in words.split()} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_docs_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_file(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_docs_name_no_path_of_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.:/*>-])/(?:tmp|home|work|root|Users|var|opt)/\S*", text) == []
