"""One kind of work, so many times, by whatever code is first on the path.

``cost_child.py KIND COUNT URL [profile]``; with ``profile``, the bytecodes of each function are
printed as JSON: those of this process's Python threads, by module and name.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

MESSAGES = [{"role": role, "content": "of some words " * 36} for role in ("user", "assistant")]

bytecodes: Counter[str] = Counter()


def _trace(frame: Any, event: str, _: Any) -> Any:
    if event == "call":
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
    elif event == "opcode":
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        bytecodes[f"{frame.f_globals.get('__name__')}.{name}"] += 1
    return _trace


def work(kind: str, count: int, url: str, state: Path) -> None:
    # The worker would import it at some moment, which differs.
    import aiohttp  # noqa: F401

    from hindsight_exec import DrainingExecutor, RetainWriter, Settings

    if kind == "submit":
        executor = DrainingExecutor()
        for _ in range(count):
            executor.submit(int)
        executor.shutdown()
        return
    # A hold that nothing ends: without a server, the worker has nothing to do.
    more = {"retain_document_chars": 10**6} if kind == "put" else {}
    settings = Settings(api_url=url, bank_id="b", durability="normal", drain_timeout=0.0, **more)
    writer = RetainWriter(settings, state=state)
    writer.put(MESSAGES, session="s")
    _rest()
    # A full collection goes through all that was imported, and comes at some moment.
    gc.collect()
    gc.freeze()
    for _ in range(count):
        writer.put(MESSAGES, session="s")
        if kind == "deliver":
            assert writer.flush(120, completed=True)
    if kind == "bulk":
        assert writer.flush(120, completed=True)


def _rest() -> None:
    """Wait until the worker has looked at the first turn, and sleeps."""
    for _ in range(120):
        before = time.process_time()
        time.sleep(0.5)
        if time.process_time() - before < 0.02:
            return


def main() -> None:
    kind, count, url, *profile = sys.argv[1:]
    with tempfile.TemporaryDirectory() as state:
        if profile:
            threading.settrace(_trace)
            sys.settrace(_trace)
        work(kind, int(count), url, Path(state))
        sys.settrace(None)
    if profile:
        print(json.dumps(bytecodes))
        sys.stdout.flush()
    os._exit(0)  # the end is measured by `presence`


if __name__ == "__main__":
    main()
