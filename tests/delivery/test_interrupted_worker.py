"""SystemExit and finalizers, anywhere inside the delivery: it goes on, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from serving import Serving, free_port, stored, texts, turn
from striking import Strike
from waiting import eventually

import hindsight_exec.delivery.worker
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.settings.config import Settings

ROOM = str(Path(hindsight_exec.delivery.worker.__file__).parent)
ROOMS = (ROOM, *(str(Path(ROOM).parent / room) for room in ("client", "outbox")))


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


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(1, 4))
def test_an_exception_injected_anywhere_ends_no_delivery(
    server: Serving, tmp_path: Path, start: int, caplog: Any
) -> None:
    """Wherever SystemExit strikes the worker, each turn is stored once, and flush() returns."""
    trace: Optional[Strike] = None
    for number in range(start, 100_000, 97):
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


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["put", "counters", "flush", "close", "make"])
def test_a_finalizer_anywhere_in_a_put_hangs_nothing(
    server: Serving, tmp_path: Path, method: str
) -> None:
    """Whatever the collector calls inside a put works, or says that it cannot; nothing is lost."""
    number, stride = 1, 7 if method == "put" else 23
    while True:
        bank, folder = f"{method}{number}", tmp_path / f"{method}{number}"
        settings = Settings(api_url=server.url, bank_id=bank, drain_timeout=30)
        writer = RetainWriter(settings, state=folder)
        other = RetainWriter(settings, state=folder)
        refused: list[str] = []

        def finalize(
            writer: RetainWriter = writer,
            other: RetainWriter = other,
            settings: Settings = settings,
            folder: Path = folder,
            refused: list[str] = refused,
        ) -> None:
            try:
                if method == "put":
                    other.put(turn(0), session="finalizer")
                elif method == "counters":
                    assert writer.counters().given <= 1
                elif method == "flush":
                    writer.flush()
                elif method == "close":
                    other.close()
                else:
                    RetainWriter(settings, state=folder).put(turn(0), session="finalizer")
            except RuntimeError as error:
                refused.append(str(error))

        strike = Strike(number, finalize, *ROOMS, thread="MainThread")
        sys.settrace(strike.trace)
        writer.put(turn(1), session="s")
        sys.settrace(None)
        writer.put(turn(2), session="s")
        assert writer.flush(60, completed=True), number
        expected = {"s": texts([1, 2])}
        if strike.struck and method in ("put", "make"):
            expected["finalizer"] = texts([0])
        writer.end_session("finalizer")
        eventually(lambda bank=bank, expected=expected: stored(server.url, bank) == expected)
        assert all("would wait for itself" in one for one in refused), refused
        assert not refused or method in ("flush", "close")
        assert other.close()
        assert writer.close()
        if not strike.struck:
            break
        number += stride
    assert number > 100


@pytest.mark.parametrize("method", ["flush", "close", "deliver_all"])
def test_waiting_in_a_callback_is_refused(server: Serving, write: Any, method: str) -> None:
    """Who waits for the delivery on the thread that delivers gets an error instead of a deadlock."""
    refused: list[str] = []
    called = threading.Event()

    def wait(_: str) -> None:
        try:
            {
                "flush": writer.flush,
                "close": writer.close,
                "deliver_all": lambda: writer.deliver_all(60),
            }[method]()
        except RuntimeError as error:
            refused.append(str(error))
        called.set()

    port = free_port()
    writer = write(f"http://127.0.0.1:{port}", on_trouble=wait, retain_idle_seconds=0)
    writer.put(turn(1), session="s")
    assert called.wait(60)
    assert "would wait for itself" in refused[0]
    serving = Serving(port=port)
    try:
        assert writer.close()
    finally:
        serving.close()
