"""One flat tree of exceptions: catch `HindsightExecError` to catch them all."""

# ruff: noqa: N818 (the names say what happened: `except Unavailable`)

from __future__ import annotations


class HindsightExecError(Exception):
    """Base of this package's own exceptions."""


class ExecutorClosed(HindsightExecError, RuntimeError):
    """A job was submitted to an executor that no longer accepts any."""


class ServerError(HindsightExecError):
    """A request to a Hindsight server did not succeed.

    Attributes:
        method: The request's HTTP method; "" if nothing was sent.
        url: Its URL without secrets: no userinfo, no query.
        status: The HTTP status, or None without a response.
        detail: The server's words, or what went wrong on the way there.
    """

    def __init__(self, method: str, url: str, status: int | None = None, detail: str = "") -> None:
        # All are args, so that the exception survives pickle and copy.
        super().__init__(method, url, status, detail)
        self.method = method
        self.url = url
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        # Without a method nothing was sent; the detail says why, and names the server.
        parts = [f"{self.method} {self.url}"] if self.method else []
        if self.status is not None:
            parts.append(f"HTTP {self.status}")
        if self.detail:
            parts.append(self.detail)
        return ": ".join(parts)


class Unavailable(ServerError):
    """The server is unreachable or cannot answer now; the same request may succeed later.

    Connection refused or reset, timeout, DNS, TLS, and HTTP 408, 429, 499, 500, 502, 503, 504.

    Attributes:
        retry_after: Seconds that the server asks to wait, or None.
    """

    def __init__(
        self,
        method: str,
        url: str,
        status: int | None = None,
        detail: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(method, url, status, detail)
        self.args += (retry_after,)
        self.retry_after = retry_after


class Starting(Unavailable):
    """The server is starting; ``retry_after`` says when to ask again. This is no failure yet."""


class Rejected(ServerError):
    """The request itself is wrong (HTTP 4xx) and never succeeds unchanged."""


class Unauthorized(ServerError):
    """The API key is missing or wrong (HTTP 401, 403)."""


class BadResponse(ServerError):
    """The response does not follow the Hindsight API: not JSON, wrong types, a redirect."""


class OutboxError(HindsightExecError):
    """Base of the errors of the outbox on disk."""


class OutboxFull(OutboxError):
    """The outbox has reached its size limit; the turn was not accepted."""


class OutboxUnavailable(OutboxError):
    """The outbox cannot be opened or written: disk full, read-only, no permission."""


class OutboxCorrupt(OutboxUnavailable):
    """The outbox file is damaged, or is not an outbox."""


class OutboxNewer(OutboxUnavailable):
    """A newer version of this program wrote the outbox file."""


class ConfigError(HindsightExecError, ValueError):
    """A setting or an argument is unusable; the message names the value and the remedy."""


class TranscriptError(HindsightExecError, ValueError):
    """A transcript, or one of its lines, cannot be read."""
