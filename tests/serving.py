"""The embedded server for tests: on a thread of its own, or as a process to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Optional

from children import Process

from hindsight_exec.server import EmbeddedServer

_PROGRAM = """\
import asyncio, sys
from pathlib import Path
from hindsight_exec.server import EmbeddedServer

async def main():
    server = EmbeddedServer(Path(sys.argv[1]), port=int(sys.argv[2]))
    print(await server.start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Serving:
    """An embedded server on a thread of its own."""

    def __init__(self, data: Optional[Path] = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = EmbeddedServer(data, **options)
        self.url = self._run(self._server.start())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self._run(end_accepting(*(one._server for one in self._server._runner.sites)))
        self._run(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


async def end_accepting(*servers: asyncio.AbstractServer) -> None:
    """Take listeners off the running loop, and let what was accepted become connections.

    asyncio never closes a connection that it accepts just as its listener closes,
    and whichever test runs when that is collected fails by a ResourceWarning.
    """
    for server in servers:
        for one in server.sockets:
            asyncio.get_running_loop().remove_reader(one.fileno())
    for _ in range(5):
        await asyncio.sleep(0)


class ServingProcess:
    """An embedded server as a process: to be killed, and started again where it was."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: Optional[Process] = None

    def start(self) -> None:
        self._process = Process(
            [sys.executable, "-c", _PROGRAM, str(self._data), str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert self._process.stdout.readline().strip() == self.url
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def free_port() -> int:
    """A port that nobody listens at, and that the system gives to no other soon.

    From below those that Linux gives to who asks for any: another test, also of
    another run beside this one, would get what this one is about to use.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            return port


def get(url: str, key: str = "") -> Any:
    """GET, the body as JSON. The standard library's client, so as not to test ours with ours."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def documents(url: str, bank: str = "b", key: str = "") -> list[dict[str, Any]]:
    """All documents of a bank with their texts, sorted by id."""
    base = f"{url}/v1/default/banks/{bank}/documents"
    found: list[str] = []
    while True:
        try:
            page = get(f"{base}?limit=500&offset={len(found)}", key)
        except urllib.error.HTTPError as error:
            error.close()
            assert error.code == 404, error  # the bank is made by the first retain
            return []
        found += [item["id"] for item in page["items"]]
        if len(found) >= page["total"]:
            break
    return [get(f"{base}/{urllib.parse.quote(one, safe='')}", key) for one in sorted(found)]


def stored(url: str, bank: str = "b", key: str = "") -> dict[str, list[str]]:
    """What each session's documents hold, message by message, in the order of the documents."""
    sessions: dict[str, list[str]] = {}
    for document in documents(url, bank, key):
        session = next(
            tag[len("session:") :] for tag in document["tags"] if tag.startswith("session:")
        )
        messages = json.loads(document["original_text"])
        sessions.setdefault(session, []).extend(message["content"] for message in messages)
    return sessions


def turn(number: int, words: str = "") -> list[dict[str, str]]:
    """The messages of a turn that can be told from all others."""
    return [
        {"role": "user", "content": f"User: {number} {words}"},
        {"role": "assistant", "content": f"Assistant: {number} {words}"},
    ]


def texts(numbers: Any, words: str = "") -> list[str]:
    """What `stored` shows for the turns of these numbers."""
    return [message["content"] for number in numbers for message in turn(number, words)]
