"""An ASGI application, for uvicorn."""

from __future__ import annotations

from typing import Any

import giving
import handling


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            if event == "lifespan.shutdown" and giving.has_line:
                giving.writer.close(5)
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": handling.serve()})
