"""The server: one process that answers with whatever the release log says should serve."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import MissingPackage, StoreError, TreadleError, UserError
from treadle.loop import Loop
from treadle.models.compiled import find_compiled, load_compiled, not_compiled, refuse_no_device
from treadle.models.predictor import Predictor
from treadle.records import Candidate
from treadle.redaction import redacted
from treadle.registry.log import (
    PRODUCTION,
    Entry,
    ReleaseLog,
    champion_in,
    predecessor_in,
    tracks_with_champion,
)
from treadle.serving.router import Desired, Follower, OnlineFeatures, Router, Variant, make_variant
from treadle.serving.versions import compilers_that_differ, versions_that_differ
from treadle.store import LocalStore, Store

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

OnlineFor = Callable[[Candidate], OnlineFeatures | None]
Say = Callable[[str], None]
GRACE_S = 10
_LAST_PORT = 65535


def to_stderr(line: str) -> None:
    """Prints a line of progress where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)


def desired_by(log: ReleaseLog) -> Desired | None:
    """What the release log says should serve now, with the model before it to fall back on.

    Raises:
        LogBroken, StoreError, Transient: The log can't be read.
    """
    entries = log.entries()
    return _desired(champion_in(entries), predecessor_in(entries))


def _desired(entry: Entry | None, before: Entry | None) -> Desired | None:
    if entry is None or entry.candidate is None:
        return None
    return Desired(entry.sequence, entry.candidate, entry.details, _desired(before, None))


def no_champion(loop: Loop, store: Store, track: str) -> str:
    """Why nothing serves on a track, which tracks have a champion, and how this one gets one."""
    others = tracks_with_champion(store, loop.name)
    where = redacted(store.uri)
    if others:
        known = f"those of {loop.name} with one are: {', '.join(others)}"
    elif others is None:
        known = f"the store is {where}"
    else:
        known = f"no track of {loop.name} has one in {where}"
    near = get_close_matches(track, others or [], n=1)
    hint = f" Did you mean --track {near[0]}?" if near else ""
    return (
        f"the track {track} has no champion yet; {known}.{hint} It will serve as soon as"
        f" `treadle run {_typed(loop)}{'' if track == PRODUCTION else f' --track {track}'}` has promoted one."
    )


def _typed(loop: Loop) -> str:
    """The loop's file as it can be typed in the working folder."""
    if loop.file is None:
        return "LOOP"
    path, here = loop.file.path, Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def load_desired(
    store: Store,
    loop: Loop,
    desired: Desired,
    online_for: OnlineFor = lambda candidate: None,
    say: Say = to_stderr,
    device: str = "cpu",
) -> Variant:
    """The variant of a desired model, warmed, and so is its lookup of online features.

    A lookup that can't be warmed is said and does not hold the model up: full rows need none.

    Raises:
        StoreError: The record is absent, or a rebuild that differs from what was judged.
        BlobLost: A file of the model is missing or altered. UserError: It is not compiled for the device.
    """
    candidate = _candidate_of(store, loop, desired)
    predictor = _predictor_of(store, loop, candidate, device, say)
    online = online_for(candidate)
    if online is not None:
        try:
            online.warm()
        except TreadleError as error:
            say(f"requests by entity can't be answered yet: {error}")
    return make_variant(predictor, candidate.digest, desired.version, online=online, device=device)


def _predictor_of(store: Store, loop: Loop, candidate: Candidate, device: str, say: Say) -> Predictor:
    if device == "cpu":
        from treadle.models import load_candidate

        predictor = load_candidate(store, candidate, trust=loop.train.trust)
        differing = versions_that_differ(candidate)
    else:
        predictor, deployment = load_compiled(store, loop, candidate, device)
        assert deployment.compiled is not None
        differing = compilers_that_differ(candidate, deployment.compiled)
    for words in differing:
        say(words)
    return predictor


def _candidate_of(store: Store, loop: Loop, desired: Desired) -> Candidate:
    candidate_id = desired.details.get("candidate_id")
    path = f"records/{loop.name}/{Candidate.kind}/{candidate_id}.json"
    try:
        candidate = Candidate.from_json(store.read(path))
    except FileNotFoundError:
        raise StoreError(
            f"{store.uri}/{path} is missing: the log's entry {desired.version} names it"
        ) from None
    except ValueError as error:
        raise StoreError(f"{store.uri}/{path} is no candidate record: {error}") from None
    if candidate.digest != desired.candidate:
        raise StoreError(
            f"{path} has the digest {candidate.digest[:12]}, but entry {desired.version} of the log released "
            f"{desired.candidate[:12]}; only what was judged serves. Run the loop, or `treadle rollback`."
        )
    return candidate


def _refuse_unready(store: Store, loop: Loop, log: ReleaseLog, device: str) -> None:
    """Nothing, where a server can answer from a device: by the champion, by its predecessor, or by nothing yet.

    Raises:
        UserError: The device is not here, or none of them is compiled for it.
    """
    refuse_no_device(device)
    desired = desired_by(log)
    if desired is None:
        return
    champion = _candidate_of(store, loop, desired)
    before = [_candidate_of(store, loop, desired.fallback)] if desired.fallback else []
    if not any(find_compiled(store, candidate, device) for candidate in (champion, *before)):
        raise not_compiled(loop, champion, device)


def make_app(
    loop: Loop,
    store: Store,
    track: str = PRODUCTION,
    *,
    online_for: OnlineFor = lambda candidate: None,
    say: Say = to_stderr,
    device: str = "cpu",
) -> tuple[Starlette, Router]:
    """The app of a loop's endpoint on a track, and the router within it. It follows the log while it runs.

    Args:
        loop: Whose endpoint.
        store: Where its log and models lie.
        track: Whose log is followed.
        online_for: Makes the lookup of a candidate's online features; None where it has none.
        say: Takes a line of progress.
        device: What computes: cpu, or inferentia or trainium for networks that deploy compiled for it.

    Raises:
        UserError: The device is not here, or nothing that could serve is compiled for it.
    """
    try:
        from treadle.serving.app import build_app
        from treadle.serving.capture import Capture
    except ImportError as error:
        raise MissingPackage(error.name or str(error), "serve", "serve") from error
    log = ReleaseLog(store, loop.name, track)
    if device != "cpu":
        _refuse_unready(store, loop, log, device)
    router = Router(loop.name)
    follower = Follower(
        router,
        lambda: desired_by(log),
        lambda desired: load_desired(store, loop, desired, online_for, say, device),
        every_s=0.25 if isinstance(store, LocalStore) else 2.0,
        say=say,
        nothing=lambda: no_champion(loop, store, track),
    )
    capture = Capture(store, loop.name, track, say=say) if loop.deploy.capture else None
    return build_app(router, capture, follower=follower), router


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _LAST_PORT:
        raise UserError(f"there is no port {port}: choose another --port, of 0 to {_LAST_PORT}")
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise UserError(
            f"can't listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None


def _server(app: Starlette) -> uvicorn.Server:
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="auto",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )
    return uvicorn.Server(config)


def serve(
    loop: Loop,
    store: Store,
    track: str = PRODUCTION,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    online_for: OnlineFor = lambda candidate: None,
    say: Say = to_stderr,
    device: str = "cpu",
) -> None:
    """Serves until SIGINT or SIGTERM; then requests in flight are answered and captures written.

    Port 0 takes a free one; `say` gets the address.

    Raises:
        UserError: The port is taken, or see `make_app`. MissingPackage: The extra `serve` is not installed.
    """
    app, _ = make_app(loop, store, track, online_for=online_for, say=say, device=device)
    listener = _listen(host, port)
    say(f"serving {loop.name} on http://{host}:{listener.getsockname()[1]}")
    # uvicorn raises the signal again once it has shut down; by then there is nothing left to end.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _server(app).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs in a thread of this process."""

    url: str
    router: Router


@contextmanager
def serve_in_thread(
    loop: Loop,
    store: Store,
    track: str = PRODUCTION,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    online_for: OnlineFor = lambda candidate: None,
    wait_s: float = 60.0,
    say: Say = to_stderr,
    device: str = "cpu",
) -> Iterator[Running]:
    """A server for the length of a `with`, for tests and demonstrations; captures are written before it ends.

    It begins once a model serves, which may take up to `wait_s` seconds; 0 does not wait.

    Raises:
        TreadleError: No model serves after `wait_s` seconds; says why. UserError: See `make_app`.
    """
    app, router = make_app(loop, store, track, online_for=online_for, say=say, device=device)
    with run_in_thread(app, host, port) as url:
        deadline = time.monotonic() + wait_s
        while not router.serving and time.monotonic() < deadline:
            time.sleep(0.02)
        if wait_s and not router.serving:
            raise TreadleError(f"{loop.name} serves nothing: {router.trouble or 'the log names no champion'}")
        yield Running(url, router)


@contextmanager
def run_in_thread(app: Starlette, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Runs any app for the length of a `with`; the value is its address."""
    listener = _listen(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    server = _server(app)
    thread = threading.Thread(target=server.run, args=([listener],), name="treadle-serve", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise TreadleError(f"the server on {address} did not start; its log says why")
            time.sleep(0.01)
        yield address
    finally:
        server.should_exit = True
        thread.join(GRACE_S + 35)
