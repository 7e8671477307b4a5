"""URLs of servers: one spelling, and nothing secret in them."""

from __future__ import annotations

import ipaddress
import re
from typing import NoReturn, cast
from urllib.parse import quote, urlsplit

from hindsight_exec.errors import ConfigError

__all__ = ["CLOUD_URL", "EMBEDDED_URL", "LOCAL_URL", "is_loopback", "normalise_url"]

CLOUD_URL = "https://api.hindsight.vectorize.io"
LOCAL_URL = "http://localhost:8888"
# Stands for Hindsight's own daemon, whatever its port, in front of the profile's name. No host
# name ends in .invalid (RFC 2606): code that does not know this prefix reaches nobody.
EMBEDDED_URL = "http://hindsight-embed.invalid/"

_LOOPBACK_NAME = re.compile(r"(?:.+\.)?localhost\.?")


def normalise_url(url: str) -> str:
    """Return a server's base URL in one spelling: equal servers, equal strings.

    Scheme and host in lower case, a default port and a trailing slash left
    out, a path prefix kept.

    Raises:
        ConfigError: It is not an HTTP URL, or holds what a base URL cannot.
    """

    def bad(remedy: str) -> NoReturn:
        # A password in it is not shown, nor a query, which may be one.
        shown = re.sub(r"//.*@", "//***@", re.split(r"[?#]", str(url))[0])
        raise ConfigError(f"unusable Hindsight URL {shown!r}: {remedy}")

    if not isinstance(cast("object", url), str):
        bad("it must be text, as http://localhost:8888")
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
        bad("user and password cannot stand in it; give the API key as the key")
    if "?" in stripped or "#" in stripped:
        bad("leave out the query and the fragment")
    if re.search(r"[\x00-\x20\x7f\\]", stripped):
        bad("take out the blanks, backslashes and control characters")
    try:
        host = host if ":" in host else host.encode("idna").decode("ascii").lower()
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~").rstrip("/")
    except UnicodeError as error:
        bad(f"{error}")
    if port == {"http": 80, "https": 443}[parts.scheme]:
        port = None
    where = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{where}{'' if port is None else f':{port}'}{path}"


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, as far as its name tells."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return _LOOPBACK_NAME.fullmatch(host) is not None
