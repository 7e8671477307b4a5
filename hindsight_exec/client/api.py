"""An asynchronous client of the Hindsight HTTP API, on aiohttp alone.

It follows the API of hindsight-api 1.1.0. A request that fails raises one of
four errors, which say what to do next: `Unavailable` (try again later),
`Rejected` (never send it again as it is), `Unauthorized` (wait until the key
has changed), `BadResponse` (the URL is not the API's).
"""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hindsight_exec.errors import ConfigError

from .request import Request
from .session import Server
from .urls import bank_problem, is_loopback, normalise_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["HindsightClient", "all_documents"]

_logger = logging.getLogger("hindsight_exec")

_BANKS = "/v1/default/banks/"
_PAGE = 500  # documents that the server lists at once


class HindsightClient:
    """A client of one Hindsight server.

    Args:
        url: Base URL; it may have a path prefix.
        api_key: Sent as ``Authorization: Bearer``. It appears in no repr, log
            or error, and redirects are never followed with it.
        timeout: Seconds for a whole request, its response included.
        connect_timeout: Seconds until there is a connection: name lookup,
            TCP and TLS.

    Raises:
        ConfigError: An unusable URL, key or time-out.

    Every request raises `Unavailable`, `Rejected`, `Unauthorized` or
    `BadResponse`, and `ConfigError` for an id that no URL can hold.

    May be made on any thread. Requests run on the loop that awaits them, any
    number at once; each loop gets its own connections, opened by its first
    request, and `close` closes those of the loop that calls it. A request
    after that opens new ones.

    Proxies come from ``http_proxy``, ``https_proxy`` and ``no_proxy``; a server
    on this machine is always asked directly. Certificates are checked against
    ``SSL_CERT_FILE``/``SSL_CERT_DIR``, else ``REQUESTS_CA_BUNDLE``, else
    ``CURL_CA_BUNDLE``, else the system's. The environment is read when a loop's
    connections are opened.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 120.0,
        connect_timeout: float = 5.0,
    ) -> None:
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "the API key holds characters that no HTTP header can carry;"
                " check that it was copied completely and alone"
            )
        self._server = Server(
            normalise_url(url),
            key,
            timeout=_seconds("timeout", timeout),
            connect_timeout=_seconds("connect_timeout", connect_timeout),
        )
        if key and self.url.startswith("http:") and not is_loopback(self.url):
            _logger.warning("%s: the API key is sent unencrypted; use https", self.url)

    @property
    def url(self) -> str:
        """The server's base URL, normalised; it holds no secrets."""
        return self._server.url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url!r}{' with a key' if self._server.key else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of the running loop. Idempotent."""
        await self._server.close()

    # --- the server ---------------------------------------------------------

    async def version(self) -> str:
        """Return the server's version."""
        request = Request(self._server, "GET", "/version")
        response = await request.send()
        # Older servers call it "version".
        name = "api_version" if "api_version" in response else "version"
        found: str = request.field(response, name, str)
        return found

    async def health(self) -> dict[str, Any]:
        """Return ``{"status": "healthy", …}``; `Unavailable` when it is not."""
        return await Request(self._server, "GET", "/health").send(status=str)

    # --- memories -----------------------------------------------------------

    async def retain(
        self,
        bank: str,
        items: Sequence[Mapping[str, Any] | bytes],
        *,
        asynchronous: bool = True,
        operation_id: str | None = None,
    ) -> dict[str, Any]:
        """Store items; return ``{"success": True, "operation_id": …, …}``.

        Args:
            bank: The bank, made on first use.
            items: ``{"content": …, "document_id": …, …}``; bytes are an item
                that is JSON already, sent as it is.
            asynchronous: Let the server store them after its response.
            operation_id: A UUID of the caller's choice. Servers since 0.8.6
                perform an asynchronous retain once, however often it is sent
                under one id. Only with an id does the client itself send it
                again, once, when a connection turns out to be closed.
        """
        parts = [item if isinstance(item, bytes) else _dumps(item) for item in items]
        body = b'{"items":[%b],"async":%b' % (
            b",".join(parts),
            b"true" if asynchronous else b"false",
        )
        if operation_id is not None:
            body += b',"operation_id":' + _dumps(operation_id)
        idempotent = asynchronous and operation_id is not None
        request = Request(
            self._server, "POST", _bank(bank) + "/memories", body + b"}", idempotent=idempotent
        )
        response = await request.send()
        if response.get("success") is not True:
            raise request.bad("the response does not say that it succeeded")
        if response.get("operation_id") is not None:
            request.field(response, "operation_id", str)
        if response.get("operation_ids") is not None:
            for one in (ids := request.field(response, "operation_ids", list)):
                if type(one) is not str:
                    raise request.bad(f"'operation_ids' should hold strings, not {ids!r:.100}")
        return response

    async def recall(
        self,
        bank: str,
        query: str,
        *,
        budget: str | None = None,
        max_tokens: int | None = None,
        types: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        tags_match: str | None = None,
        prefer_observations: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return the memories that fit the query, best first.

        Each has ``id``, ``text``, ``type``, ``document_id``, ``metadata``, ….
        Arguments that are None are left to the server. ``prefer_observations``
        leaves out facts that an observation among the results was made of.
        """
        body = _dumps_given(
            query=query,
            budget=budget,
            max_tokens=max_tokens,
            types=types and list(types),
            tags=tags and list(tags),
            tags_match=tags_match,
            prefer_observations=prefer_observations,
        )
        request = Request(
            self._server, "POST", _bank(bank) + "/memories/recall", body, idempotent=True
        )
        return request.rows(await request.send(), "results", "text")

    async def reflect(self, bank: str, query: str, *, budget: str | None = None) -> str:
        """Return the server's reply to the query, reasoned from the memories."""
        body = _dumps_given(query=query, budget=budget)
        request = Request(self._server, "POST", _bank(bank) + "/reflect", body, idempotent=True)
        text: str = (await request.send(text=str))["text"]
        return text

    async def mental_model(self, bank: str, model_id: str) -> str:
        """Return a mental model's text; `Rejected` with status 404 when there is none."""
        path = f"{_bank(bank)}/mental-models/{_quoted('the mental model id', model_id)}"
        request = Request(self._server, "GET", path, query=[("detail", "content")])
        text = (await request.send()).get("content")
        return text if isinstance(text, str) else ""

    # --- documents ----------------------------------------------------------

    async def document(self, bank: str, document_id: str) -> dict[str, Any]:
        """Return a document; `Rejected` with status 404 when there is none."""
        request = Request(self._server, "GET", _document(bank, document_id))
        response = await request.send()
        for name in ("original_text", "content_hash"):
            if response.get(name) is not None:
                request.field(response, name, str)
        return response

    async def documents(
        self,
        bank: str,
        *,
        limit: int = 100,
        offset: int = 0,
        query: str | None = None,
        tags: Sequence[str] = (),
        tags_match: str | None = None,
    ) -> dict[str, Any]:
        """Return a page of the bank's documents: ``{"items": […], "total": …}``.

        Args:
            bank: The bank; `Rejected` with status 404 when there is none.
            limit: Number of documents at most.
            offset: Number of documents to skip.
            query: A part of the document's id or text.
            tags: Tags that the documents must have.
            tags_match: ``any_strict`` (the server's default), ``all_strict``, ….
        """
        given: list[tuple[str, object]] = [("limit", limit), ("offset", offset)]
        if query is not None:
            given.append(("q", query))
        given += [("tags", tag) for tag in tags]
        if tags_match is not None:
            given.append(("tags_match", tags_match))
        request = Request(self._server, "GET", _bank(bank) + "/documents", query=given)
        response = await request.send()
        request.rows(response, "items", "id")
        request.field(response, "total", int)
        return response

    async def delete_document(self, bank: str, document_id: str) -> dict[str, Any]:
        """Delete a document and the memories drawn from it."""
        return await Request(self._server, "DELETE", _document(bank, document_id)).send()

    # --- operations ---------------------------------------------------------

    async def operation(self, bank: str, operation_id: str) -> dict[str, Any]:
        """Return an operation's ``{"status": …, "error_message": …, …}``.

        The status is ``pending``, ``processing``, ``completed``, ``failed``,
        ``cancelled``, or ``not_found`` for an id that the server does not know.
        """
        request = Request(self._server, "GET", _operation(bank, operation_id))
        return await request.send(status=str)

    async def retry_operation(self, bank: str, operation_id: str) -> dict[str, Any]:
        """Run a failed operation again; `Rejected` with 409 if it has not failed."""
        return await Request(self._server, "POST", _operation(bank, operation_id) + "/retry").send()

    # --- a bank's settings --------------------------------------------------

    async def bank_config(self, bank: str) -> dict[str, Any]:
        """Return ``{"config": …, "overrides": …}``: what holds, what the bank sets."""
        return await Request(self._server, "GET", _bank(bank) + "/config").send(config=dict)

    async def update_bank_config(self, bank: str, updates: Mapping[str, Any]) -> dict[str, Any]:
        """Set some of the bank's settings, making the bank if need be.

        ``retain_mission`` (what to look for in what is stored),
        ``reflect_mission`` (the bank's own mission), ``observations_mission``,
        and more. Answers as `bank_config`. `Rejected` with status 404 where the
        server has this switched off; `update_bank` sets missions there too.
        """
        body = _dumps({"updates": dict(updates)})
        request = Request(self._server, "PATCH", _bank(bank) + "/config", body, idempotent=True)
        return await request.send(config=dict)

    async def update_bank(self, bank: str, updates: Mapping[str, Any]) -> dict[str, Any]:
        """Set the missions of a bank, making it if need be; return its profile."""
        return await Request(
            self._server, "PUT", _bank(bank), _dumps(dict(updates)), idempotent=True
        ).send()


async def all_documents(client: HindsightClient, bank: str, **filters: Any) -> list[dict[str, Any]]:
    """Return the documents of a bank that the filters of `documents` let through, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        page = await client.documents(bank, limit=_PAGE, offset=len(found), **filters)
        found += page["items"]
        if not page["items"] or len(found) >= page["total"]:
            return found


def _seconds(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ConfigError(f"{name} is {value!r}; it must be a number of seconds above 0")


def _quoted(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{what} is {value!r}; it must be text, and not empty")
    if value.isascii() and value.replace("-", "").isalnum():
        return value  # nearly always, and an eighth of the time
    try:
        if value.strip("."):
            return quote(value, safe="")
    except UnicodeEncodeError:
        raise ConfigError(f"{what} {value!r} holds a lone surrogate; remove it") from None
    # "." and ".." would be taken for steps within the path.
    return value.replace(".", "%2E")


def _bank(bank: str) -> str:
    quoted = _quoted("the bank id", bank)
    if problem := bank_problem(bank):
        raise ConfigError(f"the bank id {bank!r:.60} {problem}")
    return _BANKS + quoted


def _document(bank: str, document_id: str) -> str:
    quoted = _quoted("the document id", document_id)
    steps = document_id.split("/")
    if all(step.strip(".") for step in steps):
        # The API takes the rest of the path, and some proxies refuse %2F.
        quoted = quoted.replace("%2F", "/")
    else:
        # Neither steps nor double slashes survive every proxy.
        quoted = quoted.replace(".", "%2E")
    return f"{_bank(bank)}/documents/{quoted}"


def _operation(bank: str, operation_id: str) -> str:
    return f"{_bank(bank)}/operations/{_quoted('the operation id', operation_id)}"


def _dumps(value: object) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except UnicodeEncodeError:
        # A lone surrogate: JSON's escapes can carry it, and the server drops it.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _dumps_given(**fields: object) -> bytes:
    return _dumps({name: value for name, value in fields.items() if value is not None})
