"""`hindsight-exec serve`: run the embedded server until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

from hindsight_exec.server import NOTICE, EmbeddedServer

from .console import OK, say
from .targets import server_data

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def run(args: argparse.Namespace) -> int:
    data = None if args.memory else args.data or server_data()
    return asyncio.run(_serve(args, data))


async def _serve(args: argparse.Namespace, data: Path | None) -> int:
    server = EmbeddedServer(
        data, host=args.host, port=args.port, api_key=args.api_key, latency=args.latency
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    if args.until_eof:
        # A daemon, because nothing ends a read of standard input.
        threading.Thread(target=_wait_for_eof, args=(loop, stop), daemon=True).start()
    try:
        url = await server.start()
        # First, and at once: a program that starts us waits for this line.
        say(url)
        say(NOTICE)
        say(f"Data: {data or 'in memory, lost when the server ends'}. Ctrl-C stops the server.")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await server.close()
    return OK


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    sys.stdin.read()
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop.set)
