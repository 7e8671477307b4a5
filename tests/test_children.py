"""The processes that tests start do not outlive them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from children import Process
from waiting import eventually

# It starts another, says which, ignores what is asked of it, and lives on.
PARENT = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
if sys.argv[1] == "lives":
    time.sleep(600)
"""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return stat.stdout.strip() != "" and not stat.stdout.startswith("Z")


@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize("parent", ["lives", "has ended"])
def test_a_failing_test_leaves_no_process(parent: str) -> None:
    """What a process started ends with the block, also when the block raises."""
    with (
        pytest.raises(ZeroDivisionError),
        Process(
            [sys.executable, "-c", PARENT, parent], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        pid = int(process.stdout.readline())
        if parent == "has ended":
            process.wait(60)
        assert _is_alive(pid)
        raise ZeroDivisionError
    assert process.returncode is not None
    eventually(lambda: not _is_alive(pid))
