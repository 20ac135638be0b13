"""`treadle check`: every rule fires on its bad loop, is silent on the good one, and names the place."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from check_cases import CASES, NOT_BY_FILE, REGRESSION, Case
from good_loop import GOOD, changed, write_good, write_loop
from treadle.check import (
    CheckContext,
    check,
    has_errors,
    register,
    render,
    rule,
    rules,
    rules_table,
    to_json,
)
from treadle.checks.rule import registry
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.testing.check import RuleSuite

# Great Expectations imports a module that Python 3.11 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")
DOCS = Path(__file__).parent.parent / "docs" / "rules.md"


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_good(tmp_path_factory.mktemp("good")).parent


@pytest.fixture(autouse=True)
def _known_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TREADLE_NOT_SET", raising=False)


def _name(case: Case) -> str:
    return f"{case.code}-{case.field or (case.place or ('',))[0]}"


@pytest.mark.parametrize("case", CASES, ids=_name)
class TestEveryRule(RuleSuite):
    @pytest.fixture
    def code(self, case: Case) -> str:
        return case.code

    @pytest.fixture
    def only(self, case: Case) -> list[str]:
        return [case.code, *case.along]

    @pytest.fixture
    def bad(self, case: Case, tmp_path: Path) -> Path:
        write_good(tmp_path)
        return case.write(tmp_path)

    @pytest.fixture
    def good(self, good_folder: Path) -> Path:
        return good_folder / "orders.yaml"

    def test_it_finds_the_right_place(self, case: Case, bad: Path, found: list) -> None:
        if case.field:
            assert case.field in [f.field for f in found]
        if case.place:
            assert case.place in [(Path(f.file).name, f.line) for f in found]
        assert any(case.says in f.evidence + f.fix for f in found)


def test_the_good_loop_has_no_findings(good_folder: Path) -> None:
    assert check(good_folder / "orders.yaml") == []


def test_every_rule_has_a_bad_example() -> None:
    assert {each.code for each in rules()} == {case.code for case in CASES} | NOT_BY_FILE


def test_more_than_twenty_usual_mistakes_are_known() -> None:
    assert len([each for each in rules() if each.code >= "TR100" and each.severity != "error"]) >= 20


def test_the_page_of_rules_holds_the_registry() -> None:
    assert rules_table() in DOCS.read_text(encoding="utf-8")


def test_all_faults_are_found_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    content = changed(
        {"train.rounds": "many", "gate.flor": {}, "owner": None, "data.sources.orders": "gone.csv"}
    )
    write_loop(tmp_path, content)
    lines = path.read_text().splitlines()
    found = {(f.code, f.field): f for f in check(path)}
    for code, field, text in [
        ("TR001", "train.rounds", "rounds:"),
        ("TR001", "gate.flor", "flor:"),
        ("TR033", "data.sources.orders", "orders: gone.csv"),
    ]:
        finding = found[code, field]
        assert finding.file == str(path)
        assert text in lines[finding.line - 1]
    assert ("TR141", "owner") in found
    assert "wait until" in found["TR003", ""].evidence
    (waits,) = [f for f in check(path, only=["TR102"]) if f.code == "TR003"]
    assert "TR102" in waits.evidence, "a rule on the gate waits while the gate holds a fault"
    assert not any(code == "TR102" for code, _ in found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a list",
        "name: [",
        "\tname: x",
        "name: orders\n",
        "name: orders\ndata: 3\n",
        "a: &a [*a]\n",
        "\0",
    ],
    ids=["empty", "list", "open", "tab", "no data", "data is a number", "in itself", "nul"],
)
def test_a_file_that_is_no_loop_gives_findings_and_no_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    found = check(path)
    assert "TR001" in {f.code for f in found}
    assert has_errors(found)
    assert "x.yaml" in render(found)


def test_file_rules_run_where_no_loop_could_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: 3x\ndata: {sources: {a: '${TREADLE_NOT_SET}/a.csv'}}\ntags: {a: password=hunter22}\n"
    )
    findings = check(path)
    assert {"TR001", "TR011", "TR012", "TR003"} <= {f.code for f in findings}
    (waits,) = [f for f in findings if "wait until" in f.evidence]
    assert len(re.findall(r"TR\d{3}", waits.evidence)) == 5, "all of them would be a paragraph of codes"
    assert re.search(r" and \d\d more", waits.evidence)
    assert "docs/rules.md" in waits.fix


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    (finding,) = [f for f in check(tmp_path / "no.yaml") if f.code == "TR001"]
    assert "does not exist" in finding.evidence


SECRETS = [
    "password=hunter2hunter2",
    "AKIAIOSFODNN7EXAMPLE",
    "s3://key:verysecret@bucket/x",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "https://store.example.org/a?sig=abcdef123456",
    "api_key: abcdef123456",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_and_never_shown(tmp_path: Path, secret: str) -> None:
    path = write_good(tmp_path)
    write_loop(
        tmp_path, changed({"tags": {"note": secret}, "train.rounds": secret, "data.sources.orders": secret})
    )
    found = check(path)
    assert "TR012" in {f.code for f in found}
    shown = render(found) + json.dumps(to_json(found))
    value = secret.split("=")[-1].split("key: ")[-1].split("key:")[-1].split("@")[0]
    assert value not in shown


@pytest.mark.parametrize(
    "text",
    [
        "password=${DB_PASSWORD}",
        "s3://bucket/x",
        "https://example.org:8080/a",
        "the token: a word",
        "secretary",
    ],
)
def test_what_is_no_secret_is_not_called_one(tmp_path: Path, text: str) -> None:
    from treadle.checks.secrets import secrets_in

    assert secrets_in(text) == [] or text == "the token: a word"


def test_an_ignore_with_a_reason_moves_the_finding_aside(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, changed({"gate.slices": [], "ignore": {"TR103": "one region only"}}))
    (finding,) = check(path, only=["TR103"])
    assert finding.ignored_because == "one region only"
    assert not has_errors([finding])
    assert "ignored warning" in render([finding])
    assert "one region only" in render([finding])


def test_an_error_stands_whatever_is_ignored(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    write_loop(tmp_path, changed({"data.sources.orders": "gone.csv", "ignore": {"TR033": "later"}}))
    found = {f.code: f for f in check(path)}
    assert found["TR033"].ignored_because is None
    assert "can't be ignored" in found["TR002"].evidence


def _entry(kind: str, candidate: str, champion: str | None) -> SimpleNamespace:
    at = datetime(2024, 3, 1, tzinfo=UTC)
    return SimpleNamespace(
        kind=kind, candidate=candidate, champion=champion, as_of=at, effective_at=at, details={}
    )


def test_the_first_champion_has_no_predecessor(good_folder: Path) -> None:
    first = _entry("promote", "a", None)
    path = good_folder / "orders.yaml"
    assert [f.code for f in check(path, log=[first], only=["TR145"])] == ["TR145"]
    assert check(path, log=[first, _entry("promote", "b", "a")], only=["TR145"]) == []
    assert check(path, log=[], only=["TR145"]) == []


def test_overrides_are_named(good_folder: Path) -> None:
    loop = Loop.load(good_folder / "orders.yaml", overrides=["train.rounds=7"])
    (finding,) = check(loop, only=["TR152"])
    assert finding.field == "train.rounds"


def test_a_loop_written_in_python_is_checked_too(good_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good_folder)
    loop = Loop(**{**GOOD, "owner": ""})
    (finding,) = check(loop, only=["TR141", "TR033", "TR034", "TR012"])
    assert (finding.code, finding.file, finding.line) == ("TR141", "loop 'orders'", 0)


def test_a_rule_of_ones_own_is_registered_run_and_named_when_it_fails(good_folder: Path) -> None:
    @rule("ACME001", severity="warning", title="The owner is no team", fix="Name a team.")
    def owner_is_a_team(context: CheckContext) -> object:
        if not context.loop.owner.startswith("team-"):
            yield context.hit("owner", f"the owner is {context.loop.owner!r}.")

    @rule("ACME002", severity="info", title="Fails", fix="Mend it.")
    def fails(context: CheckContext) -> object:
        raise ZeroDivisionError("by design")

    try:
        mine, broken = check(good_folder / "orders.yaml", only=["ACME001", "ACME002"])[::-1]
        assert (mine.code, mine.severity, mine.evidence) == ("ACME001", "warning", "the owner is 'ops'.")
        assert broken.code == "TR004"
        assert "ACME002" in broken.evidence
        assert "by design" in broken.evidence
    finally:
        del registry["ACME001"], registry["ACME002"]


@pytest.mark.parametrize(
    ("code", "title", "fix"), [("acme", "T", "F."), ("TR101", "T", "F."), ("ACME003", "", "F.")]
)
def test_a_rule_without_code_or_words_is_refused(code: str, title: str, fix: str) -> None:
    from treadle.check import Rule

    with pytest.raises(UserError):
        register(Rule(code, "warning", title, fix, lambda context: ()))


def test_what_needs_an_absent_package_is_said_not_skipped(
    good_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "treadle.checks.probe.find_spec", lambda name: None if name == "sqlglot" else object()
    )
    found = check(good_folder / "orders.yaml")
    assert [f.code for f in found] == ["TR003"]
    assert "sqlglot" in found[0].evidence


def test_findings_are_grouped_by_file_and_summed_up(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    (tmp_path / "orders.sql").write_text("select from from\n")
    write_loop(tmp_path, changed({"owner": None}))
    text = render(check(path, only=["TR031", "TR141"]))
    assert "\n\n" in text
    assert "orders.sql:1 TR031 error" in text
    assert text.endswith("1 error, 1 warning, 0 info, 0 ignored")


def test_a_secret_that_comes_back_in_other_words_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_good(tmp_path)
    monkeypatch.setenv("TREADLE_TRACKER", "https://me:hunter22@tracker.example.org")
    write_loop(
        tmp_path, changed({"tags": {"a": "token=verysecret1"}, "tracking": {"uri": "${TREADLE_TRACKER}"}})
    )

    @rule("ACME001", severity="info", title="Talks", fix="Say hunter22 less.")
    def talks(context: CheckContext) -> object:
        yield context.hit("", "the server said: no verysecret1 here.")

    try:
        (finding,) = check(path, only=["ACME001"])
    finally:
        del registry["ACME001"]
    assert (finding.evidence, finding.fix) == ("the server said: no *** here.", "Say *** less.")


def test_limits_of_a_regression_that_were_set_are_left_alone(tmp_path: Path) -> None:
    path = write_good(tmp_path)
    limits = {"gate.margin": 0.005, "gate.slice_limit": 4.0, "monitor.quality": {"margin": 1.0}}
    write_loop(tmp_path, changed(REGRESSION | limits))
    assert check(path, only=["TR120"]) == []
    write_loop(tmp_path, changed(REGRESSION | {"gate.slices": [], "monitor": None}))
    assert [f.field for f in check(path, only=["TR120"])] == ["gate.margin"]
