"""One HTTP request and its answer: connections, bounds, typed errors.

aiohttp is imported where it is used: that takes 0.2 s, which a program that
merely makes a client does not wait for.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from hindsight_exec.errors import (
    BadResponse,
    ExecutorClosed,
    Rejected,
    ServerError,
    Unauthorized,
    Unavailable,
)

from .response import BodyError, error_detail, loads, read_body, retry_after
from .urls import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import SimpleNamespace


__all__ = ["Request", "Server", "import_aiohttp"]

_MAX_ANSWER = 32 * 2**20  # bytes of a decoded answer that are read
_MAX_ERROR = 64 * 2**10  # the same of an error's answer
_MAX_DETAIL = 500  # characters of the server's words in an error
_PIECE = 2**16  # bytes of a large body that are written at once
_LARGE_BODY = 2**20  # aiohttp warns about bodies of bytes above it

# Seconds that an idle connection is kept. uvicorn closes after 5 by default;
# a request on a connection that is just being closed is lost, and one that is
# not idempotent cannot be sent again.
_KEEP_ALIVE = 4.0

# Of these the request is not to blame: load, restarts, a client too slow (408,
# 425, 499), and a plan (402) or a proxy (407) that someone can put right.
_TRANSIENT = frozenset({402, 407, 408, 425, 429, 499})


_importing = threading.RLock()  # held while aiohttp is imported, and around a fork


def import_aiohttp() -> None:
    """Import aiohttp now rather than with the first request. Safe from any thread.

    A fork waits for it: a child forked in the middle of another thread's import
    could never import the same module, nor send anything.
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
    """Where requests go, with what key, and how long they may take.

    A session belongs to the loop that opened it.
    """

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
        # A session of a loop that is gone, or of the parent of this forked
        # process, stays here unused: if it were collected, it would write to
        # connections that are not ours.
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def session(self) -> _Session:
        """The running loop's session."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            self._sessions[loop] = _Session(self)
        return self._sessions[loop]

    async def close(self) -> None:
        """Close the running loop's session."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.aiohttp.close()
            # Transports close in a callback, and this may be the loop's end.
            await asyncio.sleep(0)


class _Session:
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
                # By name: with aiodns installed aiohttp would take another one,
                # which no bound and no executor of ours covers.
                resolver=aiohttp.ThreadedResolver(),
                # Waiting for a free connection would count as connecting.
                limit=0,
                keepalive_timeout=_KEEP_ALIVE,
                **options,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=server.timeout, connect=server.connect_timeout),
            # We decode: aiohttp's decoder has a bound in its newest versions only.
            auto_decompress=False,
            # Not trust_env, which means ~/.netrc too, and that clashes with the key.
            trust_env=False,
            trace_configs=[trace],
        )


class Request:
    """One request and its answer."""

    def __init__(
        self,
        server: Server,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Iterable[tuple[str, object]] = (),
        again: bool = False,
    ) -> None:
        self.server = server
        self.method = method
        self.url = server.url + path
        self.body = body
        self.query = urlencode([(name, str(value)) for name, value in query])
        self.again = again or method in ("GET", "DELETE")

    async def send(self) -> dict[str, Any]:
        """Return the answer, a JSON object, or raise a `ServerError`."""
        import_aiohttp()
        import aiohttp  # noqa: PLC0415

        failure: ServerError
        cause: BaseException | None
        while True:
            context = {"reused": False}
            try:
                session = self.server.session()
                status, headers, body = await self.exchange(session, context)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if self.again and context["reused"] and not session.aiohttp.closed:
                    # The server closed an idle connection just then. Once: the
                    # next one may be such a one too, but fresh ones exist.
                    self.again = False
                    continue
                failure, cause = self.lost(error)
            except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
                failure, cause = self.lost(error)
            except BodyError as error:
                failure, cause = self.bad(str(error)), None
            except ExecutorClosed as error:
                # The resolver's: exit has come further than this request.
                failure, cause = self.unavailable("the process is exiting"), error
            else:
                return self.judge(status, headers, body)
            # Raised out here and not in the handlers: the error would refer to
            # aiohttp's own, and that may hold the request's headers.
            raise failure from cause

    async def exchange(
        self, session: _Session, context: dict[str, bool]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send; return status, headers and the decoded body."""
        import aiohttp  # noqa: PLC0415
        from yarl import URL  # noqa: PLC0415

        headers = dict(self.server.headers)
        data: bytes | AsyncIterator[bytes] | None = self.body
        if self.body is not None:
            headers["Content-Type"] = "application/json"
            if len(self.body) > _LARGE_BODY:
                headers["Content-Length"] = str(len(self.body))
                data = _pieces(self.body)
        address = self.url + ("?" + self.query if self.query else "")
        response = await session.aiohttp.request(
            self.method,
            URL(address, encoded=True),
            data=data,
            headers=headers,
            allow_redirects=False,
            proxy=session.proxy,
            trace_request_ctx=context,
        )
        try:
            if 200 <= response.status < 300:
                body = await read_body(response, _MAX_ANSWER)
            else:
                body = b""
                # The status is known; a server that refuses a large request
                # may reset the connection before its words are read.
                with suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError, BodyError):
                    body = await read_body(response, _MAX_ERROR)
        except BaseException:
            response.close()
            raise
        response.release()
        return response.status, response.headers, body

    def judge(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Return what a good answer holds."""
        if 200 <= status < 300:
            try:
                content = loads(body)
            except (ValueError, RecursionError) as error:
                raise self.bad(f"its answer is not JSON: {error}", status) from error
            if not isinstance(content, dict):
                raise self.bad("its answer is not a JSON object", status)
            return content
        detail = self.clean(error_detail(body))
        if status in (401, 403):
            raise Unauthorized(self.method, self.url, status, detail)
        if status in _TRANSIENT or 500 <= status < 600:
            wait = retry_after(headers.get("Retry-After"))
            raise Unavailable(self.method, self.url, status, detail, wait)
        if 400 <= status < 500:
            raise Rejected(self.method, self.url, status, detail)
        where = headers.get("Location")
        if where is None:
            raise self.bad("not a status of the Hindsight API", status)
        # Its query, or a user in it, may be a secret.
        where = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", where)[0])
        raise self.bad(f"it redirects to {where}, and redirects are not followed", status)

    def lost(self, error: BaseException) -> tuple[ServerError, BaseException | None]:
        """The error for a request that got no answer, and its cause."""
        import aiohttp  # noqa: PLC0415

        cause: BaseException | None = error
        if isinstance(error, aiohttp.ClientHttpProxyError):
            # Not chained: it holds the proxy's URL, password included.
            detail, cause = f"the proxy answered {error.status} {error.message}", None
        elif isinstance(error, aiohttp.ClientResponseError):
            # Not chained itself, since it holds the request's headers.
            return self.bad("its answer is not HTTP"), error.__cause__
        elif isinstance(error, aiohttp.ClientConnectorCertificateError):
            detail, cause = f"TLS: {error.certificate_error}", error.certificate_error
        elif isinstance(error, aiohttp.ClientConnectorError):
            # The proxy's password may be in this one too, not in its cause.
            cause = error.os_error
            kind = "TLS" if isinstance(cause, ssl.SSLError) else "no connection"
            detail = f"{kind}: {cause}"
        elif isinstance(error, aiohttp.ServerTimeoutError):
            detail = f"no connection within {self.server.connect_timeout:g} s"
        elif isinstance(error, asyncio.TimeoutError):
            detail = f"no answer within {self.server.timeout:g} s"
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            detail = "the server closed the connection"
        elif isinstance(error, aiohttp.ClientPayloadError):
            detail = "the answer was cut off"
        else:
            detail = f"{error}" or type(error).__name__
        return self.unavailable(detail), cause

    def bad(self, detail: str, status: int | None = 200) -> BadResponse:
        return BadResponse(self.method, self.url, status, self.clean(detail))

    def unavailable(self, detail: str) -> Unavailable:
        return Unavailable(self.method, self.url, None, self.clean(detail))

    def clean(self, text: str) -> str:
        """One bounded, printable line without the key, should it be echoed."""
        text = " ".join(text[: 4 * _MAX_DETAIL].split())
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        if self.server.key:
            text = text.replace(self.server.key, "***")
        return text if len(text) <= _MAX_DETAIL else text[: _MAX_DETAIL - 1] + "…"

    def field(self, content: dict[str, Any], name: str, kind: type[Any]) -> Any:
        """Return ``content[name]``, which must be of that type."""
        value = content.get(name)
        if type(value) is not kind:
            raise self.bad(f"{name!r} in its answer should be {kind.__name__}, not {value!r:.100}")
        return value

    def rows(self, content: dict[str, Any], name: str, text: str) -> list[dict[str, Any]]:
        """Return ``content[name]``: a list of objects that have a text."""
        rows: list[Any] = self.field(content, name, list)
        for row in rows:
            if not isinstance(row, dict):
                raise self.bad(f"{name!r} in its answer should hold objects, not {row!r:.100}")
            self.field(row, text, str)
        return rows


# --- what goes out -----------------------------------------------------------


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def _proxy(url: str) -> str | None:
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    # Asking a proxy for this very machine cannot be meant, whatever no_proxy
    # says; Go's net/http sees it the same way.
    if not proxy or is_loopback(url):
        return None
    if proxy_bypass(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _tls() -> ssl.SSLContext:
    # OpenSSL itself heeds SSL_CERT_FILE and SSL_CERT_DIR.
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
