"""A child forked while another thread is anywhere inside the delivery or the client."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Callable

import pytest
from serving import ServingProcess, stored, texts, turn
from striking import Strike

import hindsight_exec
from hindsight_exec.client.loop import background_loop
from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.settings.config import Settings

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

PACKAGE = Path(hindsight_exec.__file__).parent
ROOMS = (str(PACKAGE / "client"), str(PACKAGE / "delivery"))


def fork_without_hooks() -> int:
    """Fork as a host does that is written in C: our at-fork hooks find no new process."""
    getpid, parent = os.getpid, os.getpid()
    os.getpid = lambda: parent
    try:
        return os.fork()
    finally:
        os.getpid = getpid


def in_child(fork: Callable[[], int], program: Callable[[], object]) -> int:
    """Run something in a forked child; return its exit status, -14 if it hung."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        pid = fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # Where it hangs stands in the captured output; then the alarm ends it.
        faulthandler.register(signal.SIGALRM, file=2, chain=True)
        signal.alarm(60)
        status = 1
        try:
            program()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("fork", [os.fork, fork_without_hooks], ids=["hooks", "no hooks"])
def test_a_child_is_free_of_its_parents_locks(
    server_process: ServingProcess, tmp_path: Path, fork: Callable[[], int]
) -> None:
    """Wherever the other thread is: the child gives and sends its own turn, the parent its own."""
    number = 1
    while True:
        bank = f"b{number}"
        settings = Settings(api_url=server_process.url, bank_id=bank, drain_timeout=30)
        writer = RetainWriter(settings, state=tmp_path / bank)
        reached, go_on = threading.Event(), threading.Event()

        def stop(reached: threading.Event = reached, go_on: threading.Event = go_on) -> None:
            reached.set()
            go_on.wait()

        strike = Strike(number, stop, *ROOMS, thread="giver")

        def give(
            strike: Strike = strike,
            writer: RetainWriter = writer,
            reached: threading.Event = reached,
        ) -> None:
            sys.settrace(strike.trace)
            writer.put(turn(1), session="s", immediate=True)
            sys.settrace(None)
            reached.set()

        def child(writer: RetainWriter = writer) -> None:
            parents = background_loop()._inherited[-1] if fork is os.fork else None
            writer.put(turn(2), session="child", immediate=True)
            assert writer.flush(30)
            assert writer.counters().given == 1
            assert writer.close()
            assert parents is None or background_loop()._run is not parents

        giver = threading.Thread(target=give, name="giver")
        giver.start()
        assert reached.wait(60)
        status = in_child(fork, child)
        go_on.set()
        giver.join(60)
        assert status == 0, number
        assert writer.flush(60), number
        assert writer.close(), number
        assert stored(server_process.url, bank) == {"s": texts([1]), "child": texts([2])}, number
        if not strike.struck:
            break
        number += 11
    assert number > 100


@pytest.mark.parametrize("fork", [os.fork, fork_without_hooks], ids=["hooks", "no hooks"])
def test_children_beside_a_busy_delivery(
    server_process: ServingProcess, tmp_path: Path, fork: Callable[[], int]
) -> None:
    """Children forked while turns are delivered send each turn once, over connections of their own."""
    settings = Settings(
        api_url=server_process.url, bank_id="b", drain_timeout=30, retain_idle_seconds=0
    )
    writer = RetainWriter(settings, state=tmp_path / "state")
    for number in range(40):
        writer.put(turn(number), session="s")
        if number % 10 == 5:

            def child(number: int = number) -> None:
                for more in range(3):
                    writer.put(turn(more), session=f"child{number}")
                assert writer.flush(30, completed=True)
                assert writer.close()

            if fork is fork_without_hooks:
                # A child without hooks of a process that is inside SQLite may hang in it.
                assert writer.flush(30, completed=True)
            assert in_child(fork, child) == 0
    assert writer.flush(60, completed=True)
    assert writer.close()
    expected = {f"child{number}": texts(range(3)) for number in (5, 15, 25, 35)}
    assert stored(server_process.url) == {"s": texts(range(40)), **expected}
