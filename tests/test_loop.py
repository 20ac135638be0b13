"""Loop files: every kind of bad spec gives file, line, field and remedy; nothing else is ever raised."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from good_loop import GOOD, changed
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from treadle.errors import Fault, SpecError
from treadle.loop import Loop
from treadle.loop_file import LoopFile, _model_in, apply_overrides, read_loop_file


def write(folder: Path, content: dict[str, Any] | str) -> Path:
    path = folder / "orders.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def faults_of(path: Path, **options: Any) -> tuple[Fault, ...]:
    with pytest.raises(SpecError) as caught:
        Loop.load(path, **options)
    return caught.value.faults


TABLE = "data.tables.orders"
WRONG: list[tuple[dict[str, Any], str, str, str]] = [
    # what is changed, the field of the fault, the line's text, what the fault says
    ({"gate.flor": {"roc_auc": 0.6}}, "gate.flor", "flor:", "Did you mean 'floor'?"),
    ({"gates": {}}, "gates", "gates:", "Did you mean 'gate'?"),
    ({"zzz": 1}, "zzz", "zzz:", "Known are: approval, budget, data"),
    ({f"{TABLE}.entiy": "x"}, f"{TABLE}.entiy", "entiy:", "Did you mean 'entity'?"),
    ({"train.rounds": "many"}, "train.rounds", "rounds:", "'many' is no whole number"),
    ({"train.rounds": 0}, "train.rounds", "rounds:", "0 is below 1. Write 1 or more."),
    ({"train.task": "clustering"}, "train.task", "task:", "one of: binary, multiclass, regression"),
    ({"train": 3}, "train", "train:", "a section, not 3. Write its keys below it"),
    ({"gate.alpha": 0.7}, "gate.alpha", "alpha:", "0.7 is not below 0.5"),
    ({"gate.margin": -1}, "gate.margin", "margin:", "Write 0 or more"),
    ({"gate.slices": "region"}, "gate.slices", "slices:", "not a list. Write [region]."),
    ({"data.holdout": "two weeks"}, "data.holdout", "holdout:", "such as 14d"),
    ({"data.holdout": 14}, "data.holdout", "holdout:", "14 has no unit: write a whole number"),
    ({"data.holdout": "99999999999w"}, "data.holdout", "holdout:", "longer than any time"),
    ({"history.from": []}, "history.from", "from:", "2013-04-01"),
    ({"data.window": "some"}, "data.window", "window:", "'some' is not a duration: write a whole number"),
    ({"data.window": "some"}, "data.window", "window:", "such as 14d, or all."),
    ({"history.from": "yesterday"}, "history.from", "from:", "2013-04-01"),
    ({"name": "no spaces"}, "name", "name:", "'no spaces' can't be a name: write a letter"),
    ({"name": None}, "name", "", "this key is required. Write it."),
    ({"data.sources": {}}, "data.sources", "sources:", "Write at least one"),
    ({"data.sources.orders": {"url": "x"}}, "data.sources.orders.url", "url:", "Did you mean 'uri'?"),
    ({f"{TABLE}.python": "a:b"}, TABLE, "orders:", "either sql or python"),
    ({f"{TABLE}.event_time": None}, TABLE, "orders:", "needs event_time and label_known_at"),
    (
        {f"{TABLE}.label": None, f"{TABLE}.event_time": None, f"{TABLE}.known_at": None},
        TABLE,
        "orders:",
        "known_at",
    ),
    ({f"{TABLE}.label": None}, "data", "data:", "exactly one table has a label"),
    ({"retrain.on": ["rain"]}, "retrain.on.0", "- rain", "one of: drift, decay, new_labels"),
    ({"ignore": {"TR101": 3}}, "ignore.TR101", "TR101:", "Put it in quotes"),
    ({"approval": True}, "approval", "approval:", "true is not one of: auto, manual"),
    ({"deploy.capture": "perhaps"}, "deploy.capture", "capture:", "neither true nor false"),
    ({"gate.guard": {"roc_auc": "low"}}, "gate.guard.roc_auc", "roc_auc:", "'low' is no number"),
    ({"monitor": "7d"}, "monitor", "monitor:", "not '7d'. Write its keys (drift, every, quality) below it"),
    ({"data.sources.orders": 3}, "data.sources.orders", "orders:", "write where it is: a path"),
    ({"data.tables.a-b": {"sql": "a"}}, "data.tables.a-b", "a-b:", "'a-b' can't be a name"),
    ({"approval": "maybe"}, "approval", "approval:", "one of: auto, manual"),
]


@pytest.mark.parametrize(("changes", "field", "line", "says"), WRONG, ids=[case[1] for case in WRONG])
def test_a_bad_field_is_named_with_file_line_and_remedy(
    tmp_path: Path, changes: dict[str, Any], field: str, line: str, says: str
) -> None:
    path = write(tmp_path, changed(changes))
    faults = {fault.field: fault for fault in faults_of(path)}
    fault = faults[field]
    assert fault.file == str(path)
    assert path.read_text().splitlines()[fault.line - 1].strip().startswith(line)
    assert says in f"{fault.problem} {fault.fix}"
    assert f"{path}:{fault.line}: {field}:" in str(fault)


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a section and of those below it, dotted."""
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{info.alias or name}"
        yield dotted
        below = _model_in(info.annotation)
        if below is not None:
            yield from _fields(below, f"{dotted}.x." if "dict" in str(info.annotation) else f"{dotted}.")


@pytest.mark.parametrize("value", ["?", 3.5, -1, True, [1], [{}], {"a b": []}, None], ids=repr)
def test_whatever_stands_in_a_field_is_told_in_words_of_the_loop_file(value: Any) -> None:
    told = 0
    for field in _fields(Loop):
        try:
            Loop.model_validate(changed({field: value}) if value is not None else _emptied(field))
        except SpecError as error:
            told += 1
            for fault in error.faults:
                assert not re.search("Input should|does not fit|instance of|validation", str(fault)), fault
                assert fault.problem.endswith((".", "?")), fault
    assert told > 10


def _emptied(field: str) -> dict[str, Any]:
    """The good loop with a field that has a key and no value."""
    content = changed({field: 0})
    *path, last = field.split(".")
    place = content
    for step in path:
        place = place[step]
    place[last] = None
    return content


NOT_YAML: list[tuple[str, int, str]] = [
    ("name: orders\ndata: [", 2, "not YAML"),
    ("name: orders\n\tdata: x", 2, "not YAML"),
    ("name: a\nname: b\n", 2, "stands twice in its section, also in line 1."),
    ("- name: orders\n", 1, "is a mapping"),
    ("", 1, "is a mapping"),
    ("name: a\n---\nname: b\n", 2, "not YAML"),
    ("name: a\nhistory: {from: 2013-02-31}\n", 0, "can't be read: day is out of range"),
    ("name: &a [*a]\n", 0, "within itself"),
    ("name: " + "[" * 5000 + "]" * 5000, 0, "nested too deep"),
    ("name: !!python/object:os.system x\n", 1, "not YAML"),
    ("? [a]\n: b\n", 1, "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "says"), NOT_YAML, ids=[str(n) for n in range(len(NOT_YAML))])
def test_a_file_that_is_no_loop_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, says: str
) -> None:
    path = write(tmp_path, text)
    (fault,) = faults_of(path)
    assert (fault.file, fault.line) == (str(path), line)
    assert says in fault.problem
    assert fault.fix


def test_a_missing_file_a_folder_and_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    for name, says in (("gone.yaml", "does not exist"), ("", "is a folder"), ("bytes.yaml", "not UTF-8")):
        (fault,) = faults_of(tmp_path / name)
        assert says in fault.problem
        assert fault.fix


def test_every_fault_is_named_not_only_the_first(tmp_path: Path) -> None:
    path = write(tmp_path, changed({"train.rounds": "many", "gate.flor": {}, "data.holdout": "x", "zzz": 1}))
    assert [fault.field for fault in faults_of(path)] == ["data.holdout", "train.rounds", "gate.flor", "zzz"]


def test_an_unset_variable_names_its_line_and_both_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TREADLE_NOT_SET", raising=False)
    loop = Loop.load(write(tmp_path, changed({"data.sources.orders": "${TREADLE_NOT_SET}/a.csv"})))
    with pytest.raises(
        SpecError, match=r"export TREADLE_NOT_SET=\.\.\., or write \$\{TREADLE_NOT_SET:-default\}"
    ) as caught:
        loop.source_uri("orders")
    assert caught.value.faults[0].line == loop.file.line_of("data.sources.orders")
    monkeypatch.setenv("TREADLE_NOT_SET", "/data")
    assert loop.source_uri("orders") == "/data/a.csv"
    assert "/data" not in str(loop.part("data")), "variables never enter a key"


def test_a_default_stands_in_for_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREADLE_NOT_SET", raising=False)
    loop = Loop.load(write(tmp_path, changed({"data.sources.orders": "${TREADLE_NOT_SET:-here}/a.csv"})))
    assert loop.source_uri("orders") == str(tmp_path / "here" / "a.csv")


def test_a_package_that_is_not_installed_is_named_with_the_command(tmp_path: Path) -> None:
    loop = Loop.load(write(tmp_path, changed({"data.sources.orders": "package://no-such-thing/a.csv"})))
    with pytest.raises(SpecError, match="pip install no-such-thing"):
        loop.source_uri("orders")


def test_overrides_are_as_if_written_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    loop = Loop.load(path, overrides=["train.params.max_depth=8", "train.rounds=7", "gate.slices=[amount]"])
    assert (loop.train.params["max_depth"], loop.train.rounds, loop.gate.slices) == (8, 7, ("amount",))
    assert loop.overrides == ("train.params.max_depth=8", "train.rounds=7", "gate.slices=[amount]")
    assert Loop.load(path).train.rounds == 100


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.rounds", "section.field=value"),
        ("name.x=1", "no section"),
        ("train.rounds=[", "no YAML"),
        ("=3", "section"),
    ],
)
def test_a_bad_override_is_refused_with_the_way_to_write_it(tmp_path: Path, override: str, says: str) -> None:
    (fault,) = faults_of(write(tmp_path, GOOD), overrides=[override])
    assert fault.file == "--set"
    assert says in f"{fault.problem} {fault.fix}"


def test_on_is_a_word_as_a_key(tmp_path: Path) -> None:
    text = yaml.safe_dump(GOOD, sort_keys=False).replace("'on':", "on:")
    assert "  on:" in text
    assert Loop.load(write(tmp_path, text)).retrain.on == ("drift",)


def test_the_same_loop_from_yaml_and_from_python_has_the_same_parts(tmp_path: Path) -> None:
    loop = Loop.load(write(tmp_path, GOOD))
    sections = sorted(Loop.model_fields)
    assert loop.part(*sections) == Loop(**GOOD).part(*sections)
    assert Loop(**loop.part(*sections)).part(*sections) == loop.part(*sections)


def test_a_default_written_out_changes_no_part() -> None:
    assert Loop(**changed({"train.rounds": 100})).part("train") == Loop(**GOOD).part("train")


def test_a_loop_written_in_python_names_every_fault_too() -> None:
    with pytest.raises(SpecError) as caught:
        Loop(**changed({"train.rounds": "many", "gate.flor": {}}))
    assert [fault.field for fault in caught.value.faults] == ["train.rounds", "gate.flor"]
    assert "Did you mean 'floor'?" in str(caught.value)


def test_an_old_candidates_loop_reads_todays_sources(tmp_path: Path) -> None:
    old = Loop(**changed({"data.sources.gone": "gone.csv"})).part("data", "train")
    today = Loop.load(write(tmp_path, changed({"data.sources.orders": "newer.csv"})))
    loop = Loop.restore(old, tmp_path / "files", sources_of=today)
    assert loop.source_uri("orders") == str(tmp_path / "newer.csv")
    assert loop.folder == tmp_path / "files"


plain = (
    st.none()
    | st.booleans()
    | st.integers(-5, 400)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.dates()
)
nested = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
fields = st.sampled_from(
    [
        *(
            "name",
            "owner",
            "tags",
            "history",
            "history.from",
            "data",
            "data.sources",
            "data.sources.orders",
            "data.tables",
        ),
        *(
            TABLE,
            f"{TABLE}.sql",
            f"{TABLE}.known_at_of",
            "data.window",
            "data.holdout",
            "data.checks",
            "data.leakage",
        ),
        *(
            "features",
            "features.use",
            "train",
            "train.params",
            "train.rounds",
            "train.early_stopping",
            "gate",
            "gate.guard",
        ),
        *(
            "gate.slices",
            "gate.alpha",
            "monitor",
            "monitor.every",
            "retrain",
            "retrain.on",
            "pools",
            "retry",
            "ignore",
        ),
    ]
)


def load_or_refuse(text: str | bytes, overrides: tuple[str, ...] = ()) -> None:
    """Loads a text as a loop file; every refusal names a file, a problem and a line within it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        faults: tuple[Fault, ...] = ()
        try:
            assert repr(Loop.load(path, overrides=overrides))
        except SpecError as error:
            faults = error.faults or (Fault("", -1, "", ""),)
        for fault in faults:
            assert fault.problem.strip()
            assert fault.file in (str(path), "--set")
            assert 0 <= fault.line <= len(path.read_text(errors="replace").splitlines()) + 1


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_no_text_makes_anything_but_a_spec_error(text: str | bytes) -> None:
    load_or_refuse(text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*list("ab:-[]{}&*!|>'\"#%@`? \n\t,0"), "<<: ", "- ", ": ", "&a ", "*a", "!!int "]),
        max_size=40,
    )
)
def test_no_broken_yaml_makes_anything_but_a_spec_error(pieces: list[str]) -> None:
    load_or_refuse("".join(pieces))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(fields, nested, min_size=1, max_size=3))
def test_no_value_in_any_field_makes_anything_but_a_spec_error(changes: dict[str, Any]) -> None:
    content = changed({})
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place: Any = content
        for step in path:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    load_or_refuse(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.integers() | st.booleans() | st.none() | st.text(max_size=5), nested, max_size=4))
def test_no_mapping_makes_anything_but_a_spec_error(content: dict[Any, Any]) -> None:
    load_or_refuse(yaml.safe_dump(content))
    with pytest.raises(SpecError):
        Loop.model_validate(content)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=20) | st.tuples(fields, st.text(max_size=8)).map("=".join))
def test_no_override_makes_anything_but_a_spec_error(override: str) -> None:
    load_or_refuse(yaml.safe_dump(GOOD), (override,))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(fields, nested, min_size=1, max_size=2))
def test_the_spec_part_of_check_never_raises(changes: dict[str, Any]) -> None:
    from treadle.check import check

    content = changed({})
    for dotted, value in changes.items():
        if "." not in dotted:
            content[dotted] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        findings = check(path, only=["TR011", "TR013", "TR101", "TR115", "TR126", "TR127", "TR129"])
        assert "TR004" not in {finding.code for finding in findings}


def test_lines_are_known_inside_flow_style_and_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "a: {b: 1,\n    c: [x,\n  y]}\n")
    file = read_loop_file(path)
    assert [file.line_of(name) for name in ("a", "a.b", "a.c", "a.c.1", "a.c.9", "z")] == [1, 1, 2, 3, 2, 1]


def test_an_override_leaves_the_file_as_it_was() -> None:
    file = LoopFile(Path("x"), {"train": {"rounds": 1}}, {})
    assert apply_overrides(file, ["train.rounds=2"]) == {"train": {"rounds": 2}}
    assert file.content == {"train": {"rounds": 1}}
