"""A client of the demo's endpoint, in a process of its own: connections that ask without rest, and count.

Usage: demo_client.py URL ROW.json CONNECTIONS. A line `versions` on standard input is answered by how many versions
have answered so far; `stop` ends it with the whole tally. Both answers are one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from urllib.parse import urlsplit

PAUSE_S = 0.01


class Tally:
    """What the connections were told."""

    def __init__(self) -> None:
        self.answers = self.failed = 0
        self.in_order, self.stopping = True, False
        self.seen: list[str] = []

    def took(self, status: int, version: str | None, last: int) -> int:
        """Counts one answer; the version it came from, to compare the connection's next with."""
        if status != 200 or version is None:
            self.failed += 1
            return last
        self.answers += 1
        if version not in self.seen:
            self.seen.append(version)
        self.in_order &= int(version) >= last
        return int(version)


async def connection(url: str, body: bytes, tally: Tally) -> None:
    """One keep-alive connection; a dropped one counts as a failure and is opened again."""
    parts, last = urlsplit(url), 0
    head = (
        f"POST /invocations HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    while not tally.stopping:
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            while not tally.stopping:
                writer.write(head + body)
                status, version = await answer(reader)
                last = tally.took(status, version, last)
                await asyncio.sleep(PAUSE_S)
            writer.close()
        except (OSError, asyncio.IncompleteReadError, ValueError):
            tally.failed += 1
            await asyncio.sleep(0.1)


async def answer(reader: asyncio.StreamReader) -> tuple[int, str | None]:
    """The status and the model's version of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers.get("x-treadle-version")


async def main() -> None:
    """Asks until told to stop."""
    url, row, count = sys.argv[1:]
    with open(row, "rb") as file:
        body = file.read()
    tally = Tally()
    connections = [asyncio.create_task(connection(url, body, tally)) for _ in range(int(count))]
    loop = asyncio.get_running_loop()
    while True:
        word = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
        if word == "versions":
            print(json.dumps({"versions": len(tally.seen)}), flush=True)
            continue
        tally.stopping = True
        await asyncio.wait(connections, timeout=5)
        told = {
            "answers": tally.answers,
            "failed": tally.failed,
            "in_order": tally.in_order,
            "seen": tally.seen,
        }
        print(json.dumps(told), flush=True)
        return


if __name__ == "__main__":
    asyncio.run(main())
