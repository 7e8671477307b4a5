"""A WSGI application, for gunicorn and uWSGI."""

from __future__ import annotations

from typing import Any, Callable

import handling


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = handling.serve()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
