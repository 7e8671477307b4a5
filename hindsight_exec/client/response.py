"""Reads what a response holds: bounded, decoded, and not trusted."""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import aiohttp

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_RETRY_AFTER = 3600.0  # seconds


class BodyError(Exception):
    """A response's body is too large, or cannot be decoded."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body of at most `limit` bytes, counted as decoded."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    decoder = None
    if encoding in ("gzip", "x-gzip", "deflate"):
        decoder = zlib.decompressobj(47)  # either header
    elif encoding not in ("identity", ""):
        raise BodyError(f"the response is encoded as {encoding:.40}, which was not asked for")
    parts: list[bytes] = []
    size = 0
    async for received in response.content.iter_any():
        part = received
        if decoder is not None:
            try:
                part = decoder.decompress(received, limit + 1 - size)
            except zlib.error as error:
                raise BodyError(f"the response cannot be decoded: {error}") from error
        size += len(part)
        if size > limit:
            raise BodyError(f"the response has more than {limit} bytes")
        parts.append(part)
    if decoder is not None and not decoder.eof:
        raise BodyError("the response cannot be decoded: it is not complete")
    return b"".join(parts)


def _integer(digits: str) -> int:
    if len(digits) > 20:  # 64 bits; this API has no longer numbers
        raise ValueError(f"number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("number too large")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


# json.loads() would make one for each call.
_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_constant)


def loads(body: bytes) -> Any:
    # Decoded first: json would guess UTF-16 and UTF-32.
    content = _decoder.decode(body.decode("utf-8"))
    if _SURROGATE.search(body):
        # Half a character can be neither stored nor sent. All are replaced that
        # have no other half.
        text = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
        content = _decoder.decode(text.decode("utf-8"))
    return content


def error_detail(body: bytes) -> str:
    """Return an error's text: FastAPI's "detail", another key, or the whole body."""
    text = body.decode("utf-8", "replace")
    try:
        response = loads(body)
    except (ValueError, RecursionError):
        return text
    if not isinstance(response, dict):
        return text
    detail = response.get("detail") or response.get("error") or response.get("message") or text
    if isinstance(detail, list):
        # Location and message, without "input", which would repeat the request.
        return "; ".join(
            f"{'.'.join(map(str, entry['loc']))}: {entry.get('msg')}"
            if isinstance(entry, dict) and isinstance(entry.get("loc"), list)
            else str(entry)
            for entry in detail
        )
    return detail if isinstance(detail, str) else json.dumps(detail)


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        seconds = date.timestamp() - time.time()
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)
