"""What a type checker sees of the public names; `tox -e types` checks it, nothing runs it."""

import signal
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from typing_extensions import assert_type

from hindsight_exec import (
    DrainingExecutor,
    ExecutorClosed,
    HindsightClient,
    HindsightExecError,
    RetainWriter,
    Settings,
    drain_on_signal,
)


def executor() -> None:
    with DrainingExecutor(2, "name", drain_timeout=1.0, on_closing=print) as pool:
        theirs: ThreadPoolExecutor = pool
        general: Executor = theirs
        assert_type(pool.submit(divmod, 7, 2), Future[tuple[int, int]])
        assert_type(pool.drain(timeout=1), bool)
        assert_type(pool.pending, int)
        assert_type(pool.closing, bool)
        pool.submit(len, 5)  # type: ignore[arg-type]
        del general
    try:
        pool.submit(print)
    except ExecutorClosed as error:
        closed: RuntimeError = error
        ours: HindsightExecError = error
        del closed, ours


def signals() -> None:
    drain_on_signal()
    drain_on_signal(signal.SIGTERM, 1)
    drain_on_signal("SIGTERM")  # type: ignore[arg-type]


def writer(settings: Settings) -> None:
    writer = RetainWriter(settings, state=Path(), on_trouble=print)
    writer.put([{"role": "user", "content": "x"}], session="s", tags=["t"], metadata={"k": "v"})
    writer.put(["no message"], session="s")  # type: ignore[list-item]
    writer.put_text("x", session="s", timestamp="2026-01-01")
    assert_type(writer.flush(1.0, session="s", completed=True), bool)
    assert_type(writer.close(), bool)
    assert_type(writer.counters().waiting, int)
    assert_type(writer.counters().last_success, Optional[float])


async def client() -> None:
    async with HindsightClient("http://localhost:8888", api_key="k") as client:
        assert_type(await client.version(), str)
        assert_type(await client.document("bank", "id"), dict[str, Any])
