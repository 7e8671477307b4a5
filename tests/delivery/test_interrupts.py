"""SystemExit and finalizers, anywhere inside the delivery: it goes on, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from serving import Serving, free_port, stored, texts, turn
from striking import Strike

import hindsight_exec.delivery.worker
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.settings.config import Settings

ROOM = str(Path(hindsight_exec.delivery.worker.__file__).parent)


def exit_here() -> None:
    raise SystemExit("injected")


def test_a_callback_that_exits_ends_no_delivery(server: Serving, write: Any) -> None:
    """SystemExit out of `on_trouble` is logged, and the turns are delivered."""
    port = free_port()
    called = threading.Event()

    def leave(_: str) -> None:
        called.set()
        raise SystemExit("from a callback")

    writer = write(f"http://127.0.0.1:{port}", on_trouble=leave, retain_idle_seconds=0)
    writer.put(turn(1), session="s")
    assert called.wait(60)
    serving = Serving(port=port)
    try:
        assert writer.flush(60)
        assert writer.close()
        assert stored(serving.url) == {"s": texts([1])}
    finally:
        serving.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", range(1, 4))
def test_an_exception_injected_anywhere_ends_no_delivery(
    server: Serving, tmp_path: Path, start: int, caplog: Any
) -> None:
    """Wherever SystemExit strikes the worker, each turn is stored once, and flush() returns."""
    trace: Optional[Strike] = None
    for number in range(start, 100_000, 61):
        bank = f"b{number}"
        settings = Settings(api_url=server.url, bank_id=bank, drain_timeout=30)
        trace = Strike(number, exit_here, ROOM, thread="hindsight-writer")
        threading.settrace(trace.trace)
        try:
            writer = RetainWriter(settings, state=tmp_path / bank)
            writer.put(turn(1), session="s")
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        writer.put(turn(2), session="t", immediate=True)
        assert writer.flush(60, completed=True), number
        writer.put(turn(3), session="s")
        assert writer.close(), number
        found = stored(server.url, bank)
        assert found == {"s": texts([1, 3]), "t": texts([2])}, number
        if not trace.struck:
            break
    assert trace is not None
    assert number > 600
    assert sys.gettrace() is None
