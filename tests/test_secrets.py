"""Credentials never reach records, the log, lines of progress or errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import treadle
from processes import command
from spoil import hook, refused
from treadle.errors import HookError, Transient, UserError
from treadle.redaction import redacted
from wheel import FIRST, SECOND, Wheel, lenient


@pytest.mark.parametrize(
    ("address", "kind", "words"),
    [
        ("http://bob:hunter2@127.0.0.1:9/o.csv", Transient, "server did not answer"),
        ("http://127.0.0.1:9/o.csv?X-Amz-Signature=hunter2", Transient, "server did not answer"),
        ("ftp://bob:hunter2@127.0.0.1:9/o.csv", Transient, "refused"),
        ("s3://bob:hunter2@bucket/o.csv", UserError, "Correct the address"),
        ("nowhere://bob:hunter2@host/o.csv", UserError, "Protocol not known"),
    ],
)
def test_credentials_of_a_source_are_never_shown(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch, address: str, kind: type[treadle.TreadleError], words: str
) -> None:
    monkeypatch.setenv("ORDERS", address)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    wheel.edit("orders.yaml", "orders: orders.csv", "orders: ${ORDERS}\n")
    lines: list[str] = []
    with pytest.raises(kind, match=words) as found:
        wheel.run(SECOND, say=lines.append)
    told = [str(found.value), repr(found.value), *lines]
    assert not any("hunter2" in text for text in told)
    assert found.value.__cause__ is None or "hunter2" not in str(found.value.__cause__)
    assert "hunter2" not in everything_in(wheel.store)


@pytest.mark.parametrize(
    "address",
    [
        "http://bob:hunter2@127.0.0.1:9",
        "postgresql://bob:hunter2@127.0.0.1:9/x",
        "databricks://bob:hunter2@x",
    ],
)
def test_credentials_of_tracking_are_never_shown(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    lenient(wheel)
    wheel.edit("orders.yaml", "monitor:", "retry: {attempts: 1}\nmonitor:")
    lines: list[str] = []
    with refused(wheel, Transient, r"://\*\*\*@"):
        wheel.run(SECOND, say=lines.append)
    assert any("tracking failed" in line for line in lines)
    assert "hunter2" not in "\n".join(lines) + everything_in(wheel.store)


@pytest.mark.parametrize(
    "store", ["s3://bob:hunter2@bucket/x", "ftp://bob:hunter2@127.0.0.1:9/x", "nowhere://bob:hunter2@h/x"]
)
def test_credentials_of_a_store_are_never_shown(wheel: Wheel, store: str) -> None:
    done = command(
        "run",
        wheel.path,
        "--as-of",
        FIRST,
        "--json",
        "--store",
        store,
        env={"AWS_EC2_METADATA_DISABLED": "true"},
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "***" in done.stdout


def everything_in(folder: Path) -> str:
    return "\n".join(
        path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()
    )


def test_hook_that_raises_with_credentials_shows_none(wheel: Wheel) -> None:
    hook(
        wheel,
        "def orders(s):\n    raise OSError('no answer from postgres://bob:hunter2@db/x?password=hunter2')\n",
    )
    with pytest.raises(HookError, match=r"postgres://\*\*\*@db/x\?password=\*\*\*"):
        wheel.run(SECOND)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at s3://a/b@c/d and x@y.org", "at s3://a/b@c/d and x@y.org"),
        ("(https://u:p@h/x?sig=abc&part=2)", "(https://***@h/x?sig=***&part=2)"),
        ("two a://u:p@h b://v:q@i", "two a://***@h b://***@i"),
    ],
)
def test_redaction_takes_credentials_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown
