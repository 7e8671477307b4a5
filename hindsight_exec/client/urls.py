"""Server URLs: one spelling for each server, and no secrets."""

from __future__ import annotations

import ipaddress
import re
from typing import NoReturn, cast
from urllib.parse import quote, urlsplit

from hindsight_exec.errors import ConfigError

__all__ = [
    "CLOUD_URL",
    "EMBEDDED_URL",
    "LOCAL_URL",
    "MAX_BANK_BYTES",
    "bank_problem",
    "is_loopback",
    "normalise_url",
]

CLOUD_URL = "https://api.hindsight.vectorize.io"
LOCAL_URL = "http://localhost:8888"
# Stands for Hindsight's own daemon, whatever its port, in front of the profile's name. No host
# name ends in .invalid (RFC 2606): code that does not know this prefix reaches nobody.
EMBEDDED_URL = "http://hindsight-embed.invalid/"
MAX_BANK_BYTES = 192  # of a bank's id, in UTF-8 (Hindsight 1.1.0)

_LOOPBACK_NAME = re.compile(r"(?:.+\.)?localhost\.?")


def normalise_url(url: str) -> str:
    """Return a server's base URL, spelled the same for the same server.

    Scheme and host become lower case; a default port and a trailing slash are
    dropped; a path prefix stays.

    Raises:
        ConfigError: It is no HTTP URL, or has parts that a base URL cannot have.
    """

    def bad(remedy: str) -> NoReturn:
        # Neither a password nor a query, which may be one, is shown.
        shown = re.sub(r"//.*@", "//***@", re.split(r"[?#]", str(url))[0])
        raise ConfigError(f"unusable Hindsight URL {shown!r}: {remedy}")

    if not isinstance(cast("object", url), str):
        bad("it must be text such as http://localhost:8888")
    stripped = url.strip()
    try:
        parts = urlsplit(stripped)
        host, port = parts.hostname, parts.port
        if host and ":" in host:
            ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError as error:
        bad(f"{error}; write it as http://localhost:8888")
    if parts.scheme not in ("http", "https"):
        bad("it must begin with http:// or https://")
    if not host:
        bad("it names no host; write it as http://localhost:8888")
    if "@" in parts.netloc:
        bad("remove user and password; set the API key instead")
    if "?" in stripped or "#" in stripped:
        bad("remove the query and the fragment")
    if re.search(r"[\x00-\x20\x7f\\]", stripped):
        bad("remove spaces, backslashes and control characters")
    try:
        host = host if ":" in host else host.encode("idna").decode("ascii").lower()
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~").rstrip("/")
    except UnicodeError as error:
        bad(f"{error}")
    if port == {"http": 80, "https": 443}[parts.scheme]:
        port = None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def bank_problem(bank: str) -> str:
    """Return why no URL can carry a bank's id, in words; "" if one can (Hindsight 1.1.0)."""
    if not bank.strip():
        return "must not be empty"
    if "/" in bank:
        return "must not hold a '/'"
    try:
        size = len(bank.encode())
    except UnicodeEncodeError:
        return "must not hold a lone surrogate"
    if size > MAX_BANK_BYTES:
        return f"must have at most {MAX_BANK_BYTES} bytes in UTF-8, not {size}"
    return ""


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, judging by its name."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return _LOOPBACK_NAME.fullmatch(host) is not None
