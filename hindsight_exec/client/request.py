"""One HTTP request and its response: bounds, one resend, typed errors."""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from hindsight_exec.errors import (
    BadResponse,
    ExecutorClosed,
    Rejected,
    ServerError,
    Unauthorized,
    Unavailable,
)

from .response import BodyError, error_detail, loads, read_body, retry_after
from .session import import_aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from .session import Server, Session

__all__ = ["Request"]

_MAX_RESPONSE = 32 * 2**20  # bytes of a decoded response that are read
_MAX_ERROR = 64 * 2**10  # the same for an error's response
_MAX_DETAIL = 500  # characters of the server's text in an error
_PIECE = 2**16  # bytes of a large body that are written at once
_LARGE_BODY = 2**20  # aiohttp warns about larger bodies of bytes

# The request is not to blame for these: load, restarts, a slow client (408,
# 425, 499), a plan (402) or a proxy (407) that an operator can correct.
_TRANSIENT = frozenset({402, 407, 408, 425, 429, 499})


class Request:
    """One request and its response.

    Args:
        idempotent: Send it again, once, if an idle connection turns out to be
            closed; GET and DELETE always are.
    """

    def __init__(
        self,
        server: Server,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Iterable[tuple[str, object]] = (),
        idempotent: bool = False,
    ) -> None:
        self.server = server
        self.method = method
        self.url = server.url + path
        self.body = body
        self.query = urlencode([(name, str(value)) for name, value in query]) if query else ""
        self.may_resend = idempotent or method in ("GET", "DELETE")

    async def send(self, **fields: type[Any]) -> dict[str, Any]:
        """Return the response, a JSON object with these fields, or raise a `ServerError`."""
        try:
            import_aiohttp()
        except ImportError as error:
            raise self.unavailable(f"{error}: install aiohttp for {sys.executable}") from None
        import aiohttp  # noqa: PLC0415

        failure: ServerError
        cause: BaseException | None
        while True:
            context = {"reused": False}
            try:
                session = self.server.session()
                status, headers, body = await self.exchange(session, context)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if self.may_resend and context["reused"] and not session.aiohttp.closed:
                    # The server closed an idle connection just then. Only once:
                    # the next connection may be as old.
                    self.may_resend = False
                    continue
                failure, cause = self.lost(error)
            except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
                failure, cause = self.lost(error)
            except BodyError as error:
                failure, cause = self.bad(str(error)), None
            except ExecutorClosed as error:
                # From the resolver: exit has overtaken this request.
                failure, cause = self.unavailable("the process is exiting"), error
            else:
                content = self.judge(status, headers, body)
                for name, kind in fields.items():
                    self.field(content, name, kind)
                return content
            # Raised outside the handlers: otherwise the error would refer to
            # aiohttp's, which may hold the request's headers.
            raise failure from cause

    async def exchange(
        self, session: Session, context: dict[str, bool]
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
                body = await read_body(response, _MAX_RESPONSE)
            else:
                body = b""
                # The status is known. A server that refuses a large request
                # may reset the connection before its text is read.
                with suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError, BodyError):
                    body = await read_body(response, _MAX_ERROR)
        except BaseException:
            response.close()
            raise
        response.release()
        return response.status, response.headers, body

    def judge(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Return the content of a successful response."""
        if 200 <= status < 300:
            try:
                content = loads(body)
            except (ValueError, RecursionError) as error:
                raise self.bad(f"the response is not JSON: {error}", status) from error
            if not isinstance(content, dict):
                raise self.bad("the response is not a JSON object", status)
            return content
        detail = self.clean(error_detail(body))
        if status in (401, 403):
            raise Unauthorized(self.method, self.url, status, detail)
        if status in _TRANSIENT or 500 <= status < 600:
            wait = retry_after(headers.get("Retry-After"))
            raise Unavailable(self.method, self.url, status, detail, wait)
        if 400 <= status < 500:
            raise Rejected(self.method, self.url, status, detail)
        location = headers.get("Location")
        if location is None:
            raise self.bad("not a status of the Hindsight API", status)
        # Its query or user may be a secret.
        location = re.sub(r"//[^/]*@", "//", re.split(r"[?#]", location)[0])
        raise self.bad(f"it redirects to {location}, and redirects are not followed", status)

    def lost(self, error: BaseException) -> tuple[ServerError, BaseException | None]:
        """Return the error for a request without a response, and its cause."""
        import aiohttp  # noqa: PLC0415

        cause: BaseException | None = error
        if isinstance(error, aiohttp.ClientHttpProxyError):
            # Not chained: it holds the proxy's URL with the password.
            detail, cause = f"the proxy responded {error.status} {error.message}", None
        elif isinstance(error, aiohttp.InvalidURL):
            # The proxy's, as ours is normalised. Neither shown nor chained, for its password.
            detail, cause = "the proxy's URL is invalid; correct http_proxy or https_proxy", None
        elif isinstance(error, aiohttp.ClientResponseError):
            # Not chained itself: it holds the request's headers.
            return self.bad("the response is not HTTP"), error.__cause__
        elif isinstance(error, aiohttp.ClientConnectorCertificateError):
            detail, cause = f"TLS: {error.certificate_error}", error.certificate_error
        elif isinstance(error, aiohttp.ClientConnectorError):
            # The proxy's password may be in this one, too, but not in its cause.
            cause = error.os_error
            kind = "TLS" if isinstance(cause, ssl.SSLError) else "no connection"
            if isinstance(error, aiohttp.ClientProxyConnectionError):
                kind = "no connection to the proxy"
            detail = f"{kind}: {cause}"
        elif isinstance(error, aiohttp.ServerTimeoutError):
            detail = f"no connection within {self.server.connect_timeout:g} s"
        elif isinstance(error, asyncio.TimeoutError):
            detail = f"no response within {self.server.timeout:g} s"
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            detail = "the server closed the connection"
        elif isinstance(error, aiohttp.ClientPayloadError):
            detail = "the response was cut off"
        else:
            detail = f"{error}" or type(error).__name__
        return self.unavailable(detail), cause

    def bad(self, detail: str, status: int | None = 200) -> BadResponse:
        return BadResponse(self.method, self.url, status, self.clean(detail))

    def unavailable(self, detail: str) -> Unavailable:
        return Unavailable(self.method, self.url, None, self.clean(detail))

    def clean(self, text: str) -> str:
        """Return one bounded, printable line, without the key if it was echoed."""
        text = " ".join(text[: 4 * _MAX_DETAIL].split())
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        if self.server.key:
            text = text.replace(self.server.key, "***")
        return text if len(text) <= _MAX_DETAIL else text[: _MAX_DETAIL - 1] + "…"

    def field(self, content: dict[str, Any], name: str, kind: type[Any]) -> Any:
        """Return ``content[name]``, which must be of that type."""
        value = content.get(name)
        if type(value) is not kind:
            raise self.bad(
                f"{name!r} in the response should be {kind.__name__}, not {value!r:.100}"
            )
        return value

    def rows(self, content: dict[str, Any], name: str, text: str) -> list[dict[str, Any]]:
        """Return ``content[name]``: a list of objects that have a text."""
        rows: list[Any] = self.field(content, name, list)
        for row in rows:
            if not isinstance(row, dict):
                raise self.bad(f"{name!r} in the response should hold objects, not {row!r:.100}")
            self.field(row, text, str)
        return rows


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
