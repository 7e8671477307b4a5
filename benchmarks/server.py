"""The server of the benchmarks: a request may take a while, and it counts the turns that arrive."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import defaultdict
from typing import Any

from aiohttp import web

from hindsight_exec.server import create_app

_turns: defaultdict[str, set[str]] = defaultdict(set)
_documents: defaultdict[str, set[str]] = defaultdict(set)
_requests: defaultdict[str, int] = defaultdict(int)
_last: dict[str, float] = {}


@web.middleware
async def _count(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.path.startswith("/arrived/"):  # without the latency of the others
        bank = request.path.rpartition("/")[2]
        return web.json_response(
            {
                "turns": len(_turns[bank]),
                "documents": len(_documents[bank]),
                "requests": _requests[bank],
                "last": _last.get(bank),
                "cpu": time.process_time(),
            }
        )
    answer: web.StreamResponse = await handler(request)
    if request.path.endswith("/memories") and answer.status < 300:
        bank = request.path.split("/banks/")[1].split("/")[0]
        text = await request.text()
        _turns[bank].update(re.findall(r"turn-\d+", text))
        _documents[bank].update(re.findall(r'"document_id": ?"([^"]+)"', text))
        _requests[bank] += 1
        _last[bank] = time.time()
    return answer


async def main() -> None:
    app = create_app(None, latency=float(sys.argv[1]))
    app.middlewares.insert(0, _count)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
