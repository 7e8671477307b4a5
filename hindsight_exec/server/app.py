"""The embedded server's routes, and the server itself."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, TypeVar

from aiohttp import web

from hindsight_exec.errors import ConfigError
from hindsight_exec.server import requests

from .store import Store

if TYPE_CHECKING:
    from pathlib import Path

_logger = logging.getLogger("hindsight_exec")

#: The version of Hindsight that this server imitates.
API_VERSION = "1.1.0"

#: Part of the answer to /version, and of what `serve` prints.
NOTICE = (
    "hindsight-exec's embedded server stores documents and finds them by their words."
    " It is not the Hindsight memory engine: no facts, no observations, no reflection."
)

#: Size limit of a request body in bytes, far above what a client sends. The real server has none.
MAX_BODY = 256 * 1024 * 1024

#: The name of the database in the data directory.
DATABASE = "server.sqlite3"

# What /version says of the real server's features.
_LACKING = (
    *("memory_engine", "observations", "mcp", "bank_llm_health", "file_upload_api"),
    *("document_export_api", "document_import_api", "audit_log", "llm_trace"),
)
_PRESENT = ("worker", "bank_config_api", "store_document_text", "embedded")

_OPEN = ("/version", "/v1/version", "/health", "/health/ready", "/health/live")
_BANK = "/v1/default/banks/{bank}"
_DOCUMENT = _BANK + r"/documents/{id:(?s:.+)}"  # with slashes and line ends

# Seconds before operations that failed to run (a full disk) are retried.
_AGAIN = 1.0

# Seconds that requests in flight have to end when the server closes.
_CLOSING = 2.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Answers a request, whose body is the second argument, from the store.
_Answer = Callable[[web.Request, bytes], Any]

T = TypeVar("T")


class _Api:
    """The handlers.

    JSON and SQLite run on one thread of their own, request after request: a large body keeps it
    busy for seconds, while the loop goes on to answer what needs no store.
    """

    def __init__(self, database: Path | None, api_key: str | None, latency: float) -> None:
        self._database = database
        self._api_key = api_key
        self._latency = latency
        self._store: Store  # made, used and closed on the thread

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        app.cleanup_ctx.append(self._lifetime)
        app.router.add_get("/version", self.version)
        app.router.add_get("/v1/version", self.version)
        app.router.add_get("/health", self.health)
        app.router.add_get("/health/ready", self.health)
        app.router.add_get("/health/live", self.live)
        app.router.add_post(f"{_BANK}/memories", self._stored(self.retain))
        app.router.add_post(f"{_BANK}/memories/recall", self._stored(self.recall))
        app.router.add_post(f"{_BANK}/reflect", self.reflect)
        app.router.add_get(f"{_BANK}/operations/{{id}}", self._stored(self.operation))
        app.router.add_post(f"{_BANK}/operations/{{id}}/retry", self._stored(self.retry))
        app.router.add_get(f"{_BANK}/documents", self._stored(self.documents))
        app.router.add_get(_DOCUMENT, self._stored(self.document))
        app.router.add_delete(_DOCUMENT, self._stored(self.delete_document))
        app.router.add_get(f"{_BANK}/config", self._stored(self.config))
        app.router.add_patch(f"{_BANK}/config", self._stored(self.update_config))
        return app

    async def _lifetime(self, _app: web.Application) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, "hindsight-exec-server") as self._thread:
            self._store = await self._on_thread(Store, self._database)
            self._accepted = asyncio.Event()
            self._accepted.set()  # a killed server may have left some
            worker = asyncio.ensure_future(self._run_operations())
            try:
                yield
            finally:
                worker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await worker
                await self._on_thread(self._store.close)

    async def _on_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(function, *arguments))

    def _stored(self, answer: _Answer) -> _Handler:
        """Return the handler that reads the body, and answers on the thread."""

        def encoded(request: web.Request, raw: bytes) -> tuple[bytes, int]:
            try:
                return _encode(answer(request, raw)), 200
            except requests.Refused as refused:  # its detail may quote the whole body
                return _encode({"detail": refused.detail}), refused.status

        async def handle(request: web.Request) -> web.Response:
            response = await self._on_thread(encoded, request, await request.read())
            if request.method == "POST":  # it may have brought an operation
                self._accepted.set()
            return _response(*response)

        return handle

    async def _run_operations(self) -> None:
        """Run accepted operations in their order, each after the latency."""
        while True:
            await self._accepted.wait()
            self._accepted.clear()
            await asyncio.sleep(self._latency)
            try:
                while await self._on_thread(self._store.run_pending):
                    pass  # requests that came meanwhile are before the next call in the queue
            except sqlite3.Error as error:
                _logger.warning("operations stay pending: %s", error)
                await asyncio.sleep(_AGAIN)
                self._accepted.set()

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Check the key, wait for the latency, and word errors as the real server does."""
        if self._latency:
            await asyncio.sleep(self._latency)
        try:
            if request.path not in _OPEN:
                self._authorize(request)
            return await handler(request)
        except requests.Refused as refused:
            return _json({"detail": refused.detail}, refused.status)
        except web.HTTPException as error:
            return _json({"detail": error.reason}, error.status)
        except sqlite3.Error as error:
            _logger.warning("%s %s: %s", request.method, request.path, error)
            return _json({"detail": str(error)}, 500)
        except (ConnectionError, web.RequestPayloadError):
            # Raising it would log an error. The client does not read this response.
            return _json({"detail": "The client closed the connection during its request"}, 400)
        except Exception:
            _logger.exception("%s %s", request.method, request.path)
            return _json({"detail": "Internal server error"}, 500)

    def _authorize(self, request: web.Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("Authorization", "").strip()
        if given.lower().startswith("bearer "):
            given = given[7:].strip()
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._api_key.encode()):
            raise requests.Refused(401, "Invalid API key")

    async def version(self, _request: web.Request) -> web.Response:
        features = {**dict.fromkeys(_LACKING, False), **dict.fromkeys(_PRESENT, True)}
        return _json({"api_version": API_VERSION, "features": features, "notice": NOTICE})

    async def health(self, _request: web.Request) -> web.Response:
        try:
            await self._on_thread(self._store.check)
        except sqlite3.Error as error:
            return _json({"status": "unhealthy", "database": "error", "error": repr(error)}, 503)
        return _json({"status": "healthy", "database": "connected"})

    async def live(self, _request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    def retain(self, request: web.Request, raw: bytes) -> Any:
        bank = requests.bank_id(request.match_info["bank"])
        items, later, chosen = requests.retain(requests.body(raw))
        operation, count, usage = None, len(items), None
        if not later:
            self._store.retain(bank, items)
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        elif items:
            operation, count = self._store.accept(bank, items, chosen)
        return {
            "success": True,
            "bank_id": bank,
            "items_count": count,
            "async": later,
            "operation_id": operation,
            "operation_ids": None,
            "usage": usage,
        }

    def recall(self, request: web.Request, raw: bytes) -> Any:
        arguments = requests.recall(requests.body(raw))
        return {"results": self._store.recall(request.match_info["bank"], **arguments)}

    async def reflect(self, _request: web.Request) -> web.Response:
        raise requests.Refused(400, f"Reflect requires an LLM provider. {NOTICE}")

    def operation(self, request: web.Request, _: bytes) -> Any:
        operation = requests.operation_id(request.match_info["id"])
        return self._store.operation(request.match_info["bank"], operation)

    def retry(self, request: web.Request, _: bytes) -> Any:
        operation = requests.operation_id(request.match_info["id"])
        self._store.retry(request.match_info["bank"], operation)
        message = f"Operation {operation} queued for retry"
        return {"success": True, "message": message, "operation_id": operation}

    def documents(self, request: web.Request, _: bytes) -> Any:
        match = request.query.get("tags_match", "any_strict")
        if match not in requests.TAGS_MATCH:
            raise requests.Refused(422, f"tags_match must be one of {requests.TAGS_MATCH}")
        return self._store.documents(
            request.match_info["bank"],
            query=request.query.get("q"),
            tags=request.query.getall("tags", []),
            tags_match=match,
            limit=requests.count(request.query, "limit", 100),
            offset=requests.count(request.query, "offset", 0),
        )

    def document(self, request: web.Request, _: bytes) -> Any:
        return self._store.document(request.match_info["bank"], request.match_info["id"])

    def delete_document(self, request: web.Request, _: bytes) -> Any:
        document = request.match_info["id"]
        count = self._store.delete_document(request.match_info["bank"], document)
        message = f"Document '{document}' and {count} associated memory units deleted successfully"
        deleted = {"document_id": document, "memory_units_deleted": count}
        return {"success": True, "message": message, **deleted}

    def config(self, request: web.Request, _: bytes) -> Any:
        return self._store.config(request.match_info["bank"])

    def update_config(self, request: web.Request, raw: bytes) -> Any:
        bank = requests.bank_id(request.match_info["bank"])
        updates = requests.missions(requests.body(raw))
        return self._store.update_config(bank, updates)


def _json(value: Any, status: int = 200) -> web.Response:
    return _response(_encode(value), status)


def _encode(value: Any) -> bytes:
    # With ASCII escapes: a refused request's content may not be UTF-8.
    return json.dumps(value).encode("ascii")


def _response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


def create_app(
    database: Path | None, *, api_key: str | None = None, latency: float = 0.0
) -> web.Application:
    """Return the server as an aiohttp application.

    ``database`` is the SQLite file; for the others see :class:`EmbeddedServer`.

    Raises at start-up:
        ConfigError: The database cannot be opened, or another server uses it.
    """
    return _Api(database, api_key, latency).application()


class EmbeddedServer:
    """A server in this process. Start and close it on the same loop.

    Args:
        data: The directory of the database, created if necessary; None keeps all in memory.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        api_key: The key that requests must carry; /version and /health stay open.
        latency: Seconds by which each request is delayed, and each operation stays pending.
    """

    def __init__(
        self,
        data: Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        latency: float = 0.0,
    ) -> None:
        database = None if data is None else data / DATABASE
        self._make_app = partial(create_app, database, api_key=api_key, latency=latency)
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The server's URL; empty until it is started."""
        return self._url

    async def start(self) -> str:
        """Open the database, listen, and return the URL.

        Raises:
            ConfigError: The directory is not writable, another server uses it, or the port is taken.
        """
        runner = web.AppRunner(self._make_app(), access_log=None, shutdown_timeout=_CLOSING)
        try:
            await runner.setup()
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException as error:
            await runner.cleanup()
            if not isinstance(error, (OSError, OverflowError, UnicodeError)):
                raise
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cannot listen on {self._host} port {self._port}: {reason}"
            ) from error
        self._runner = runner
        port = runner.addresses[0][1]
        self._url = f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}"
        return self._url

    async def close(self) -> None:
        """Stop listening, end requests in flight and close the database. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
