"""A Hindsight-compatible server that remembers its requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from serving import end_accepting, free_port
from waiting import eventually

from hindsight_exec.server import create_app

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 30  # seconds; fails a test, measures nothing


class Seen(NamedTuple):
    """A request, as it came in."""

    method: str
    path: str
    body: Any
    key: str | None
    peer: Any


class Document(NamedTuple):
    id: str
    messages: list[dict[str, str]]
    tags: list[str]
    metadata: dict[str, str]


class Hindsight:
    """The embedded server in this process, on a thread of its own.

    It can be stopped and started again at the same address, hold back or
    refuse requests, and tell which came in.
    """

    def __init__(self, database: Path, api_key: str | None = None) -> None:
        self.database = database
        self.api_key = api_key
        self.seen: list[Seen] = []
        self._changed = threading.Condition()
        self._held: dict[str, threading.Event] = {}
        self._answers: dict[str, tuple[int, Any]] = {}
        self._operations = ""
        self._unanswered = 0
        self._port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        async def start() -> None:
            app = create_app(self.database, api_key=self.api_key)
            app.middlewares.append(self._remember)
            self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
            await site.start()

        self._run(start())

    def stop(self) -> None:
        async def stop(runner: web.AppRunner) -> None:
            await end_accepting(*(one._server for one in runner.sites))
            await runner.cleanup()
            for _ in range(5):  # transports close in callbacks
                await asyncio.sleep(0)

        if self._runner is not None:
            self._run(stop(self._runner))
            self._runner = None

    def close(self) -> None:
        for event in self._held.values():
            event.set()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def holding(self, path: str):
        """Requests to paths with this ending are not answered in the meantime."""
        self._held[path] = event = threading.Event()
        try:
            yield
        finally:
            del self._held[path]
            event.set()

    def answer(self, path: str, status: int, body: Any) -> None:
        """From now on, paths with this ending get this answer."""
        self._answers[path] = (status, body)

    def answer_operations(self, status: str) -> None:
        """From now on, all operations are said to be in this state."""
        self._operations = status

    def requests(self, ending: str, method: str | None = None) -> list[Seen]:
        with self._changed:
            return [
                one
                for one in self.seen
                if one.path.endswith(ending) and method in (None, one.method)
            ]

    def wait_for(self, ending: str, count: int = 1, method: str | None = None) -> list[Seen]:
        """Waits until so many requests to such paths have come in."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.requests(ending, method)) >= count, LIMIT
            ), [one.path for one in self.seen]
        return self.requests(ending, method)

    def wait_for_turns(self, count: int) -> None:
        """Waits until so many turns were sent."""

        def sent() -> int:
            return sum(item["content"].count('"role": "user"') for item in self.items())

        with self._changed:
            assert self._changed.wait_for(lambda: sent() >= count, LIMIT), sent()

    def documents(self, bank: str = "hermes") -> list[Document]:
        """The bank's documents, sorted by id, when what has come in is answered."""
        with self._changed:
            held = len(self._held)
            assert self._changed.wait_for(lambda: held or not self._unanswered, LIMIT)
        listed = self.get(f"/v1/default/banks/{bank}/documents?limit=1000")
        found = []
        for item in listed.get("items", []):
            full = self.get(f"/v1/default/banks/{bank}/documents/{item['id']}")
            text = full["original_text"]
            messages = json.loads(text) if text.startswith("[") else text
            metadata = full["document_metadata"]
            found.append(Document(item["id"], messages, full["tags"], metadata))
        return sorted(found)

    def items(self) -> list[dict[str, Any]]:
        """All that was sent to be retained, in its order."""
        sent = self.requests("/memories", "POST")
        return [item for request in sent for item in request.body["items"]]

    def said(self, bank: str = "hermes") -> list[str]:
        """What users said in the bank's turns, in the order of the documents."""
        return [
            message["content"].partition(": ")[2]
            for document in self.documents(bank)
            for message in document.messages
            if message["role"] == "user"
        ]

    def get(self, path: str) -> Any:
        async def get() -> Any:
            # Past the remembering, so that a test's own looks are not seen.
            import aiohttp

            headers = {"X-Test": "1"}
            if self.api_key:
                headers["Authorization"] = f"Bearer {self.api_key}"
            async with (
                aiohttp.ClientSession() as session,
                session.get(self.url + path, headers=headers) as answer,
            ):
                return await answer.json()

        return self._run(get())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(LIMIT)

    @web.middleware
    async def _remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if "X-Test" in request.headers:
            return await handler(request)
        try:
            return await self._answer(request, handler)
        finally:
            with self._changed:
                self._unanswered -= 1
                self._changed.notify_all()

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self._unanswered += 1
        text = await request.text()
        seen = Seen(
            request.method,
            request.path,
            json.loads(text) if text else None,
            request.headers.get("Authorization"),
            request.transport.get_extra_info("peername") if request.transport else None,
        )
        with self._changed:
            self.seen.append(seen)
            self._changed.notify_all()
        for ending, event in list(self._held.items()):
            if request.path.endswith(ending):
                await asyncio.get_running_loop().run_in_executor(None, event.wait)
        for ending, (status, body) in self._answers.items():
            if request.path.endswith(ending):
                return web.json_response(body, status=status)
        if self._operations and "/operations/" in request.path:
            return web.json_response({"status": self._operations})
        return await handler(request)


#: Waits for something that only polling can tell.
until = partial(eventually, seconds=LIMIT)


def configure(home: Path, **values: Any) -> None:
    """Writes config.json, at once: a worker may be reading it."""
    path = home / "hindsight" / "config.json"
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"mode": "local_external", **values}), encoding="utf-8")
    new.replace(path)
