"""One flat tree of exceptions: catch `HindsightExecError` to catch them all."""

# ruff: noqa: N818 (what happened is the name: `except Unavailable`, as in the standard library)

from __future__ import annotations


class HindsightExecError(Exception):
    """Base of everything this package raises on purpose."""


class ExecutorClosed(HindsightExecError, RuntimeError):
    """A job was given to an executor that no longer takes any."""


class ServerError(HindsightExecError):
    """A request to a Hindsight server did not succeed.

    Attributes:
        method: The request's HTTP method; "" if nothing was sent.
        url: Its URL without secrets: no userinfo, no query.
        status: The HTTP status, or None when no answer came.
        detail: What the server said, or what went wrong on the way there.
    """

    def __init__(self, method: str, url: str, status: int | None = None, detail: str = "") -> None:
        # All of them are args, so that the exception survives pickle and copy.
        super().__init__(method, url, status, detail)
        self.method = method
        self.url = url
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        # Without a method nothing was sent: the detail says why, and to whom.
        parts = [f"{self.method} {self.url}"] if self.method else []
        if self.status is not None:
            parts.append(f"HTTP {self.status}")
        if self.detail:
            parts.append(self.detail)
        return ": ".join(parts)


class Unavailable(ServerError):
    """The server could not be reached or cannot answer now: the same request may succeed later.

    Connection refused or reset, time-out, DNS, TLS, and HTTP 408, 429, 499, 500, 502, 503, 504.

    Attributes:
        retry_after: Seconds the server asked to wait, or None.
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
    """The server is being started; ``retry_after`` says when to ask again. No trouble yet."""


class Rejected(ServerError):
    """The request itself is wrong (HTTP 4xx): it never succeeds as it is."""


class Unauthorized(ServerError):
    """The API key is missing or wrong (HTTP 401, 403)."""


class BadResponse(ServerError):
    """An answer that is not what the Hindsight API says: not JSON, other types, a redirect."""


class OutboxError(HindsightExecError):
    """The outbox on disk could not do what was asked."""


class OutboxFull(OutboxError):
    """The outbox holds as much as its bound allows."""


class OutboxUnavailable(OutboxError):
    """The outbox cannot be written: disk full, read-only, or it cannot be opened."""


class OutboxCorrupt(OutboxUnavailable):
    """The outbox file is damaged, or is no outbox."""


class OutboxNewer(OutboxUnavailable):
    """A newer version of this program wrote the outbox file."""


class ConfigError(HindsightExecError, ValueError):
    """A setting or an argument is unusable; the message names its value and the remedy."""


class TranscriptError(HindsightExecError, ValueError):
    """A transcript, or a line of it, cannot be read."""
