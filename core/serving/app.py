"""The ASGI app: /invocations and /ping as MLflow and SageMaker clients call them, /metrics for Prometheus."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from treadle.data.online import RowRefused
from treadle.errors import StoreError, Transient, TreadleError
from treadle.serving.capture import Answer, Capture
from treadle.serving.encode import NO_VALUE, RequestRefused, Rows
from treadle.serving.joining import Joiner
from treadle.serving.metrics import CONTENT_TYPE, Metrics
from treadle.serving.protocol import error_body, parse_request
from treadle.serving.router import Follower, OnlineFeatures, Router, Variant

MAX_BODY = 6 * 1024 * 1024  # SageMaker's limit for a real-time request
_LARGE_BODY = 256 * 1024  # from here on, parsing would hold up other connections
_JSON = "application/json"
_LOG = logging.getLogger("treadle.serving")


def build_app(
    router: Router,
    capture: Capture | None = None,
    online: OnlineFeatures | None = None,
    *,
    follower: Follower | None = None,
    max_body: int = MAX_BODY,
) -> Starlette:
    """The app that answers with what `router` holds. Its lifespan starts and stops follower and capture.

    `online` looks up features for requests by entity for variants without a lookup of their own. A body of
    more than `max_body` bytes is refused with 413.
    """
    metrics = Metrics(router, capture, follower)
    pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="treadle-predict")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if follower is not None:
            follower.start()
        if capture is not None:
            capture.start()
        yield
        if follower is not None:
            follower.stop()
        if capture is not None:
            capture.close()
        pool.shutdown()

    async def ping(request: Request) -> Response:
        if router.serving:
            return _json({"status": "serving", "trouble": router.trouble or None})
        waits = {"status": "waiting for a champion", "trouble": router.trouble or None}
        return _json(waits, 503)

    async def index(request: Request) -> Response:
        return _json(_described(router, capture))

    async def version(request: Request) -> Response:
        from importlib.metadata import version

        return Response(version("treadle"), media_type="text/plain")

    async def exposition(request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = error_body("http_error", f"{error.detail}: {request.method} {request.url.path[:80]}")
        return Response(body, error.status_code, headers=error.headers, media_type=_JSON)

    invocations = Invocations(router, capture, online, metrics, pool, max_body)
    return Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),  # other methods get 405
            Route("/ping", ping),
            Route("/health", ping),
            Route("/version", version),
            Route("/metrics", exposition),
            Route("/", index),
        ],
        middleware=[Middleware(Shortcut, invocations=invocations)],
        lifespan=lifespan,
        exception_handlers={HTTPException: refuse},
    )


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=_JSON)


def _described(router: Router, capture: Capture | None) -> dict[str, Any]:
    serving = [
        {
            "version": variant.version,
            "digest": variant.candidate,
            "weight": variant.weight,
            "device": variant.device,
            "task": variant.predictor.task,
            "features": dict(zip(variant.encoder.names, variant.encoder.kinds, strict=True)),
        }
        for variant in router.serving
    ]
    captured = capture and {"written": capture.written, "dropped": capture.dropped}
    return {"loop": router.name, "serving": serving, "trouble": router.trouble or None, "capture": captured}


class Shortcut:
    """Takes requests to predict past Starlette's router, which would cost as much as reading their rows."""

    def __init__(self, app: ASGIApp, invocations: ASGIApp) -> None:
        self._app, self._invocations = app, invocations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the call on."""
        predicts = scope["type"] == "http" and scope["path"] == "/invocations" and scope["method"] == "POST"
        await (self._invocations if predicts else self._app)(scope, receive, send)


class Invocations:
    """POST /invocations, as plain ASGI: Starlette's request and response objects cost half a prediction."""

    def __init__(
        self,
        router: Router,
        capture: Capture | None,
        online: OnlineFeatures | None,
        metrics: Metrics,
        pool: ThreadPoolExecutor,
        max_body: int,
    ) -> None:
        self._router, self._capture, self._online, self._metrics = router, capture, online, metrics
        self._pool, self._max_body = pool, max_body
        self._joiner = Joiner(pool)
        self._prefix, self._numbers = os.urandom(6).hex(), itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever is wrong with it is answered too."""
        started = time.perf_counter()
        headers = {name: value for name, value in scope["headers"] if name in _HEADERS}
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")[:128]
        request_id = request_id or f"{self._prefix}-{next(self._numbers)}"
        out: list[tuple[bytes, bytes]] = []
        try:
            body = await _read(receive, headers, self._max_body)
            if body is None:
                return
            variant, predictions = await self._predict(body, headers, request_id)
            status = 200
            out, content = _answered(self._router.name, variant, predictions)
        except RequestRefused as error:
            self._metrics.refused(error.code)
            status, content = error.status, error_body(error.code, error.message, error.field, error.row)
        except Exception:
            _LOG.exception("request %s failed", request_id)
            self._metrics.refused("failed")
            status, content = (
                500,
                error_body("failed", f"the server's log says why, for request {request_id!r}"),
            )
        out += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"x-request-id", request_id.encode("latin-1")),
        ]
        await send({"type": "http.response.start", "status": status, "headers": out})
        await send({"type": "http.response.body", "body": content})
        self._metrics.answered(status, time.perf_counter() - started)

    async def _predict(
        self, body: bytes, headers: Mapping[bytes, bytes], request_id: str
    ) -> tuple[Variant, NDArray[np.float64]]:
        arrived = datetime.now(UTC)
        variant = self._router.route(request_id)
        if variant is None:
            raise RequestRefused(
                "no_model",
                "no model serves yet: the champion is being loaded, or the log names none",
                status=503,
            )
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if len(body) < _LARGE_BODY:
            rows = parse_request(body, content_type, variant.encoder)
        else:
            rows = await self._in_thread(parse_request, body, content_type, variant.encoder)
        if rows.entities is not None:
            rows.columns = await self._in_thread(look_up, variant.online or self._online, rows, variant)
        if rows.count < 1000:
            matrix, unseen = variant.encoder.encode(rows.columns)
        else:
            matrix, unseen = await self._in_thread(variant.encoder.encode, rows.columns)
        try:
            predictions = await self._joiner.predict(variant, matrix)
        except Exception as error:
            raise _explained(error, matrix, variant) from error
        self._metrics.predicted(rows.count, unseen)
        if self._capture is not None:
            times = rows.event_time or ([rows.at] * rows.count if rows.at else None)
            self._capture.add(
                Answer(variant, rows.columns, predictions, arrived, request_id, rows.ids, times)
            )
        return variant, predictions

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


_HEADERS = frozenset({b"content-type", b"content-length", b"content-encoding", b"x-request-id"})


async def _read(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes | None:
    """The request's body; None when the client has gone.

    Raises:
        RequestRefused: It is longer than `limit` bytes, or compressed.
    """
    if headers.get(b"content-encoding", b"identity") not in (b"identity", b""):
        raise RequestRefused("unsupported_encoding", "send the body uncompressed", status=415)
    length = headers.get(b"content-length", b"0")
    size = int(length) if length.isdigit() else 0
    parts: list[bytes] = []
    if size <= limit:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            parts.append(part)
            if size > limit or not message.get("more_body", False):
                break
    if size > limit:
        text = f"the body is longer than {limit} bytes: send several requests, or use `treadle predict`"
        raise RequestRefused("too_large", text, status=413)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def look_up(online: OnlineFeatures | None, rows: Rows, variant: Variant) -> list[list[Any]]:
    """The features of a request's entities, in the features' order.

    Raises:
        RequestRefused: There is nothing to look them up with, or the lookup says why it can't.
    """
    if online is None:
        text = "this server has no online features: send full feature rows (dataframe_records, ...)"
        raise RequestRefused("no_online_features", text, status=422)
    try:
        found = online.columns_for(rows.entities or (), rows.at)
    except RowRefused as error:
        status = 422 if error.code == "features_unavailable" else 400
        raise RequestRefused(
            error.code, str(error), field=error.field, row=error.row, status=status
        ) from error
    except (StoreError, Transient) as error:
        raise RequestRefused("features_unavailable", str(error), status=503) from error
    except TreadleError as error:
        raise RequestRefused("features_unavailable", str(error), status=422) from error
    variant.encoder.check_names(found)
    columns = [found[name] for name in variant.encoder.names]
    return [column.tolist() if isinstance(column, np.ndarray) else list(column) for column in columns]


def _explained(error: Exception, matrix: NDArray[np.float64], variant: Variant) -> Exception:
    """Some models take no missing values; that is the request's fault, everything else is ours."""
    if not np.isnan(matrix).any():
        return error
    row, j = map(int, np.argwhere(np.isnan(matrix))[0])
    name = variant.encoder.names[j]
    text = f"{name!r} in row {row} is {NO_VALUE}: {str(error)[:300]}"
    return RequestRefused("missing_value", text, field=name, row=row, status=422)


def _answered(
    loop: str, variant: Variant, predictions: NDArray[np.float64]
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of an answer."""
    model: dict[str, Any] = {"name": loop, "version": variant.version, "digest": variant.candidate}
    if predictions.ndim == 2:
        model["classes"] = variant.predictor.classes
    body = orjson.dumps({"predictions": predictions, "model": model}, option=orjson.OPT_SERIALIZE_NUMPY)
    name, version = loop.encode(), str(variant.version).encode()
    return [(b"x-treadle-model", name), (b"x-treadle-version", version)], body
