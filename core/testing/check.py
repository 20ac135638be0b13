"""The conformance suite of a rule of `treadle check`: give a loop where it fires and one where not.

class TestOwnerIsATeam(RuleSuite):
    @pytest.fixture
    def code(self): return "ACME001"

    @pytest.fixture
    def bad(self): return Loop.load("tests/loops/nobodys.yaml")

    @pytest.fixture
    def good(self): return Loop.load("tests/loops/ours.yaml")
"""

from __future__ import annotations

from pathlib import Path

import pytest
from treadle.check import Finding, Rule, check, render, rules, to_json
from treadle.loop import Loop

__all__ = ["RuleSuite"]


class RuleSuite:
    """What every rule must do. Import the module that registers the rule before."""

    @pytest.fixture
    def code(self) -> str:
        """The rule's code."""
        raise NotImplementedError("give the fixture `code`")

    @pytest.fixture
    def bad(self) -> Loop | Path:
        """A loop, or a loop file, where the rule must fire."""
        raise NotImplementedError("give the fixture `bad`")

    @pytest.fixture
    def good(self) -> Loop | Path:
        """A loop, or a loop file, where the rule must be silent."""
        raise NotImplementedError("give the fixture `good`")

    @pytest.fixture
    def rule(self, code: str) -> Rule:
        """The registered rule."""
        return next(each for each in rules() if each.code == code)

    @pytest.fixture
    def only(self, code: str) -> list[str]:
        """The rules to run: this one, and others where it speaks of their findings."""
        return [code]

    @pytest.fixture
    def found(self, code: str, bad: Loop | Path, only: list[str]) -> list[Finding]:
        """What the rule finds in the bad loop."""
        return [finding for finding in check(bad, only=only) if finding.code == code]

    def test_it_says_what_it_finds_and_how_to_fix_it(self, rule: Rule) -> None:
        """Title and fix are sentences that fit a line; the title ends without a period, the fix with one."""
        assert rule.severity in ("error", "warning", "info")
        assert rule.title
        assert not rule.title.endswith(".")
        assert rule.fix.endswith((".", "`."))
        assert "\n" not in rule.title + rule.fix

    def test_it_fires_where_it_must(self, found: list[Finding]) -> None:
        """Each finding has evidence and a fix."""
        assert found
        for finding in found:
            assert finding.evidence.strip()
            assert finding.fix.strip()

    def test_it_names_the_place(self, bad: Loop | Path, found: list[Finding]) -> None:
        """A file, and in a loop file a line that exists."""
        for finding in found:
            assert finding.file
            if isinstance(bad, Path) and finding.field:
                assert 1 <= finding.line <= Path(finding.file).read_bytes().count(b"\n") + 1

    def test_it_is_silent_where_it_must_be(self, code: str, good: Loop | Path, only: list[str]) -> None:
        """No finding of this code, and no failure of the rule."""
        assert [finding for finding in check(good, only=only) if finding.code in (code, "TR004")] == []

    def test_it_finds_the_same_again(self, bad: Loop | Path, only: list[str]) -> None:
        """Two checks of one loop agree."""
        assert check(bad, only=only) == check(bad, only=only)

    def test_its_findings_can_be_printed(self, code: str, found: list[Finding]) -> None:
        """As text and as JSON."""
        import json

        assert code in render(found)
        assert json.loads(json.dumps(to_json(found)))[0]["code"] == code
