"""A source on a server that is away for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from small import write_small_loop
from treadle.errors import Transient
from wheel import FIRST, Wheel


class Restarting(SimpleHTTPRequestHandler):
    """Serves a folder; to the first requests it hangs up, or says that it is busy."""

    away, busy = 0, False

    def do_GET(self) -> None:
        if type(self).away and self.path == "/orders.csv":
            type(self).away -= 1
            self.close_connection = True
            if self.busy:
                self.send_error(503)
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(params=["hangs up", "is busy"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    Restarting.busy = request.param == "is busy"
    write_small_loop(tmp_path / "loop")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Restarting, directory=str(tmp_path / "loop")))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def by_http(folder: Path, address: str) -> Wheel:
    path = folder / "loop" / "orders.yaml"
    path.write_text(
        path.read_text().replace("orders: orders.csv", f"orders: {address}/orders.csv")
        + "retry: {attempts: 3, wait: 0s}\n"
    )
    return Wheel(path, folder / "store")


def test_a_source_that_is_away_for_a_moment_is_asked_again(tmp_path: Path, address: str) -> None:
    wheel, said = by_http(tmp_path, address), []
    Restarting.away = 2
    run = wheel.run(FIRST, to="prepare", say=said.append)
    assert run["prepare"].kind == "snapshot"
    assert any("the source 'orders'" in line and "Trying again" in line for line in said), said


def test_a_source_that_stays_away_is_a_failure_that_may_pass(tmp_path: Path, address: str) -> None:
    wheel = by_http(tmp_path, address)
    Restarting.away = 10**6
    with pytest.raises(Transient, match=r"the source 'orders' .*could not be read.* Try again"):
        wheel.run(FIRST, to="prepare")
    Restarting.away = 0
