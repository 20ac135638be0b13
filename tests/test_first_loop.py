"""docs/first_loop.md, done as it says: its files written, its commands run in order, its output compared."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import TREADLE
from treadle.cli import app
from treadle.scaffold.example import example_files
from typer.testing import CliRunner

PAGE = Path(__file__).parent.parent / "docs" / "first_loop.md"


def steps() -> Iterator[tuple[str, str, str]]:
    """The page's fenced blocks: language, content, and the paragraph before."""
    text = PAGE.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2], text[: found.start()].rstrip().rpartition("\n\n")[2]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield line, output


def plain(text: str) -> str:
    """A text as it is compared: in one line, without what another version of a library may change.

    These are ids, and all but two digits of fractions.
    """
    text = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.2g}", text)
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "ID", text)
    return " ".join(text.replace("│", " ").split())


def missing(shown: str, said: str) -> str | None:
    """The first stretch between dots of a shown output that a command did not say, in order; None when all was."""
    rest = plain(said)
    for stretch in filter(None, map(plain, shown.split("..."))):
        before, found, rest = rest.partition(stretch)
        if not found:
            return f"{stretch!r} is not in {before!r}"
    return None


class Reader:
    """Who follows the page in a folder of their own."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._port, self._times = stack, "", dict[str, int]()

    def does(self, line: str) -> str:
        """What a command prints; asserts its exit code."""
        loop = re.fullmatch(r"for day in (.*); do (.*); done", line)
        if loop:
            return "".join(self.does(loop[2].replace("$day", day)) for day in loop[1].split())
        if line.startswith("treadle serve"):
            return self._serves(line)
        if line.startswith("treadle "):
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            self._times[line] = self._times.get(line, 0) + 1
            assert result.exit_code == self._code(line), result.output
            return result.stdout
        line = line.replace("localhost:8080", self._port)
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout

    def _code(self, line: str) -> int:
        first = {"treadle check loops/trials.yaml": 1, "treadle run loops/churn.yaml": 2}
        return 1 if first.get(line) == self._times[line] else 0

    def _serves(self, line: str) -> str:
        args = line.replace("--port 8080", "--port 0").split()[1:]
        server = subprocess.Popen(
            [TREADLE, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._stack.callback(lambda: (server.kill(), server.communicate()))
        assert server.stdout is not None
        lines = [server.stdout.readline(), server.stdout.readline()]
        self._port = re.sub(r".*http://(\S+)\n", r"\1", lines[0])
        return "".join(lines).replace(self._port, "127.0.0.1:8080")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks the endpoint by curl")
def test_page_can_be_followed_from_a_file_to_a_champion_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TREADLE_STORE", raising=False)
    monkeypatch.setenv("TREADLE_USER", "alice")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with ExitStack() as stack:
        reader = Reader(stack)
        for language, content, before in steps():
            if language == "console":
                for line, shown in commands(content):
                    assert missing(shown, reader.does(line)) is None, line
            elif language in ("sql", "python"):
                path = Path(re.findall(r"`(loops/\S+)`", before)[-1])
                assert not path.exists()
                path.write_text(content, encoding="utf-8")
            else:
                text = Path("loops/churn.yaml").read_text(encoding="utf-8")
                assert content.strip() in text.replace("# features:", "features:")
    written = example_files("churn", features=True)
    assert {name: Path("loops", name).read_text(encoding="utf-8") for name in written} == written


def test_a_page_that_shows_what_is_not_said_is_noticed() -> None:
    said = "one 0.25 two 450cf7aaaef9\n three"
    assert missing("one 0.2501\n...\nthree", said) is None
    assert missing("one 0.35\n...\nthree", said)
    assert missing("one 0.25 three", said)
    assert missing("three\n...\none", said)
