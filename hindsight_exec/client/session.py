"""A server's HTTP sessions: one for each event loop, with its proxy and certificates.

aiohttp is imported where it is used. The import takes 0.2 s, and a program
that only makes a client should not wait for it.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .urls import is_loopback

if TYPE_CHECKING:
    from types import SimpleNamespace

__all__ = ["Server", "Session", "import_aiohttp"]

# Seconds to keep an idle connection. uvicorn closes after 5 by default. A
# request on a connection that is being closed is lost, and one that is not
# idempotent cannot be sent again.
_KEEP_ALIVE = 4.0

_importing = threading.RLock()  # held during the import of aiohttp, and around a fork


def import_aiohttp() -> None:
    """Import aiohttp now, not with the first request. Safe from any thread.

    A fork waits for the import: a child that is forked in the middle of it
    could never import the module, nor send anything.
    """
    with _importing:
        import aiohttp  # noqa: F401, PLC0415


def _before_fork() -> None:
    _importing.acquire()


def _after_fork_in_parent() -> None:
    _importing.release()


def _after_fork_in_child() -> None:
    global _importing
    _importing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class Server:
    """A server's URL and key, its timeouts, and its session on each loop."""

    def __init__(self, url: str, key: str, *, timeout: float, connect_timeout: float) -> None:
        self.url = url
        self.key = key
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": "hindsight-exec",
        }
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        # Sessions of a loop that has ended, or of the parent of this forked
        # process, stay here unused: collected, they would write to connections
        # that are not ours.
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}

    def session(self) -> Session:
        """Return the running loop's session, opened if need be."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = Session(self)
        return self._sessions[loop]

    async def close(self) -> None:
        """Close the running loop's session."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.aiohttp.close()
            # Transports close in a callback, and this may be the loop's end.
            await asyncio.sleep(0)


class Session:
    """The connections of one loop."""

    def __init__(self, server: Server) -> None:
        import aiohttp  # noqa: PLC0415

        self.proxy = _proxy(server.url)
        options: dict[str, Any] = {"ssl": _tls()} if server.url.startswith("https:") else {}

        async def reused(_: object, context: SimpleNamespace, __: object) -> None:
            context.trace_request_ctx["reused"] = True

        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(reused)
        self.aiohttp = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Explicit: with aiodns installed, aiohttp would choose another
                # resolver, which our bounds and executors do not cover.
                resolver=aiohttp.ThreadedResolver(),
                # The wait for a free connection would count as connecting.
                limit=0,
                keepalive_timeout=_KEEP_ALIVE,
                **options,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=server.timeout, connect=server.connect_timeout),
            # We decode: only the newest versions of aiohttp bound their decoder.
            auto_decompress=False,
            # trust_env would read ~/.netrc, too, which clashes with the key.
            trust_env=False,
            trace_configs=[trace],
        )


def _proxy(url: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    # A proxy cannot be meant for this machine itself, whatever no_proxy says;
    # Go's net/http does the same.
    if not proxy or is_loopback(url):
        return None
    if proxy_bypass(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _tls() -> ssl.SSLContext:
    # OpenSSL itself reads SSL_CERT_FILE and SSL_CERT_DIR.
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            if path := os.environ.get(name):
                try:
                    if Path(path).is_dir():
                        return ssl.create_default_context(capath=path)
                    return ssl.create_default_context(cafile=path)
                except OSError as error:
                    raise OSError(f"{name} names {path!r}: {error}") from error
    return ssl.create_default_context()
