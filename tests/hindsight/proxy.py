"""A proxy between client and server that records what they say, and cuts what a test tells it to."""

from __future__ import annotations

import asyncio
import enum
import gzip
import itertools
import random
import socket
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Optional
from urllib.parse import urlsplit

from serving import end_accepting


class Cut(enum.Enum):
    """Where a request is cut: both connections are reset at once."""

    BEFORE = "before the server has any of it"
    MIDDLE = "when the server has half of it"
    AFTER = "when the server has done it, before the client has any of the answer"
    HALF = "when the client has half of the answer"


@dataclass
class Exchange:
    """A request, and what became of it: `status` is None until the server has answered."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    status: Optional[int] = None
    answer_headers: Optional[dict[str, str]] = None
    answer: bytes = b""
    cut: Optional[Cut] = None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Plan = Callable[[Exchange], Optional[Cut]]


def at_random(share: float, *, seed: int) -> Plan:
    """Cut this share of the requests, in each of the ways by turns."""
    chance, ways = random.Random(seed), itertools.cycle(Cut)
    return lambda exchange: next(ways) if chance.random() < share else None


class Proxy:
    """On a thread of its own; `plan` says for each request where it is cut, None is nowhere.

    `plan` is called on the proxy's thread and may be replaced at any time. `exchanges` grows in
    the order the requests came in. With several servers it balances: each connection goes to the
    next one that takes it, and `served` counts them by URL. `at` is a socket that is bound, if the
    port is to be known before anybody listens.
    """

    def __init__(
        self,
        server: str,
        plan: Optional[Plan] = None,
        *,
        also: Sequence[str] = (),
        at: Optional[socket.socket] = None,
    ) -> None:
        self._servers = deque([server, *also])
        self.served: Counter[str] = Counter()
        self.plan: Plan = plan or (lambda exchange: None)
        self.exchanges: list[Exchange] = []
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=at or socket.create_server(("127.0.0.1", 0)))
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _stop(self) -> None:
        await end_accepting(self._server)
        self._server.close()
        # Again until there are none: a connection that was just taken makes another one.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # an aborted connection is closed by the loop's next turns
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: Optional[asyncio.StreamWriter] = None
        task = asyncio.current_task()
        assert task is not None
        # The loop alone does not keep a task whose client is gone, and that waits for the server.
        self._tasks.add(task)
        try:
            # Whatever breaks, a reset of both sides is what a broken network looks like.
            with suppress(OSError, EOFError, asyncio.CancelledError):
                answers, upstream = await self._connect()
                while await self._exchange(reader, writer, answers, upstream):
                    pass
        finally:
            self._tasks.discard(task)
            for side in (writer, upstream):
                if side is not None:
                    side.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(len(self._servers)):
            self._servers.rotate(1)
            url = self._servers[0]
            parts = urlsplit(url)
            with suppress(OSError):
                streams = await asyncio.open_connection(parts.hostname, parts.port)
                self.served[url] += 1
                return streams
        raise OSError("no server takes a connection")

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """Carry one request and its answer over; whether the connection goes on."""
        raw, first, headers, body = await read_message(reader)
        method, target, _ = first.split(" ", 2)
        exchange = Exchange(method, target, headers, body)
        self.exchanges.append(exchange)
        exchange.cut = cut = self.plan(exchange)
        if cut is Cut.BEFORE:
            return False
        upstream.write(raw[: len(raw) - len(body) // 2 - 1] if cut is Cut.MIDDLE else raw)
        await upstream.drain()
        if cut is Cut.MIDDLE:
            upstream.close()  # not a reset, which could overtake the bytes
            await upstream.wait_closed()
            return False
        raw, first, exchange.answer_headers, exchange.answer = await read_message(answers)
        if exchange.answer_headers.get("content-encoding") == "gzip":
            exchange.answer = gzip.decompress(exchange.answer)
        exchange.status = int(first.split(" ", 2)[1])
        if cut is Cut.AFTER:
            return False
        writer.write(raw[: len(raw) // 2] if cut is Cut.HALF else raw)
        await writer.drain()
        if cut is Cut.HALF:
            writer.close()
            await writer.wait_closed()
            return False
        return exchange.answer_headers.get("connection", "").lower() != "close"


async def read_message(
    reader: asyncio.StreamReader,
) -> tuple[bytes, str, dict[str, str], bytes]:
    """One HTTP message: its bytes, first line, headers by lower-case name, and body."""
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        size = -1
        while size:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            chunk = await reader.readexactly(size + 2)
            raw += line + chunk
            body += chunk[:-2]
    else:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        raw += body
    return raw, first, headers, body
