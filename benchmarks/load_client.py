"""Keeps an endpoint busy from outside and prints what came back as one JSON object.

    python benchmarks/load_client.py http://127.0.0.1:8080/invocations request.json --connections 16 --seconds 5

Only the standard library, one process, one asyncio loop. It ends after --seconds, after --requests, or when its
standard input closes (--until-closed), whichever comes first.

    requests, failed, failures   answers; those that were not 200, and the first few of them in words
    versions                     for each connection the models' versions in the order in which they answered
    seconds, p50_ms, p99_ms      wall time, and latency as the client saw it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Seen:
    """What all connections saw."""

    failures: list[str] = field(default_factory=list)
    versions: list[list[int]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    left: int = sys.maxsize
    over: bool = False


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, dict[str, str]]:
    """Status and headers of one answer; its body is read and dropped."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers


async def connection(host: str, port: int, request: bytes, seen: Seen) -> None:
    """Sends requests one after the other on one connection; a broken one is counted and opened again."""
    versions: list[int] = []
    seen.versions.append(versions)
    while not seen.over and seen.left > 0:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            seen.failures.append(f"connect: {error}")
            await asyncio.sleep(0.05)
            continue
        try:
            while not seen.over and seen.left > 0:
                seen.left -= 1
                started = time.perf_counter()
                status, headers = await exchange(reader, writer, request)
                seen.latencies.append(time.perf_counter() - started)
                if status != 200:
                    seen.failures.append(f"status {status}")
                version = int(headers.get("x-treadle-version", 0))
                if not versions or versions[-1] != version:
                    versions.append(version)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.failures.append(f"connection: {error!r}")
        finally:
            writer.close()


async def load(
    url: str,
    body: bytes,
    content_type: str,
    connections: int,
    seconds: float,
    requests: int,
    until_closed: bool,
) -> Seen:
    """Drives the endpoint until it is time to stop."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    seen = Seen(left=requests or sys.maxsize)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        seen.over = True

    if until_closed:
        loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stop)))
    loop.call_later(seconds, stop)
    request = head.encode() + body
    await asyncio.gather(
        *(connection(parts.hostname or "", parts.port or 80, request, seen) for _ in range(connections))
    )
    return seen


def main() -> None:
    """Parses the command line, drives, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("body", type=Path, help="a file that holds the request's body")
    parser.add_argument("--content-type", default="application/json")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--until-closed", action="store_true")
    a = parser.parse_args()
    started = time.perf_counter()
    seen = asyncio.run(
        load(a.url, a.body.read_bytes(), a.content_type, a.connections, a.seconds, a.requests, a.until_closed)
    )
    latencies = sorted(seen.latencies) or [0.0]
    result = {
        "requests": len(seen.latencies),
        "failed": len(seen.failures),
        "failures": seen.failures[:5],
        "versions": seen.versions,
        "seconds": round(time.perf_counter() - started, 3),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 3),
        "p99_ms": round(1000 * latencies[int(len(latencies) * 0.99)], 3),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
