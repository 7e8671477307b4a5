"""A process that has nothing to do sleeps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from serving import Serving

pytestmark = pytest.mark.slow

# Each window is longer than any pause of a poll, a retry or a connection that has just been used.
PROGRAM = """
import sys, threading, time
from pathlib import Path
from hindsight_exec import DrainingExecutor, RetainWriter, Settings

def slept():
    "Voluntary switches of all threads but this one: each is a wake-up."
    found = {}
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) != threading.get_native_id():
            status = (task / "status").read_text().split()
            found[task.name] = int(status[status.index("voluntary_ctxt_switches:") + 1])
    return found

url, state, *first = sys.argv[1:]
executor = DrainingExecutor()
executor.submit(int).result()
writer = RetainWriter(Settings(api_url=url, bank_id="b"), state=Path(state))
if first:
    writer.put([{"role": "user", "content": "x"}], session="s")
    assert writer.flush(60, completed=True)
for _ in range(3):
    before = slept()
    time.sleep(20)
    woken = {name: count for name, count in slept().items() if count != before.get(name)}
    say(len(before), len(woken))
    if not woken:
        break
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
@pytest.mark.parametrize("first", [(), ("turn",)], ids=["before the first turn", "after it"])
def test_an_idle_process_never_wakes(
    first: tuple[str, ...], run: Any, server: Serving, tmp_path: Path
) -> None:
    """With executor, loop and writer at rest no thread wakes within 20 s.

    After a request the loop has its connection to close, twice within 8 s. So a window may have
    wake-ups, and the next one has none.
    """
    ended = run(PROGRAM, server.url, str(tmp_path / "state"), *first)
    assert (ended.status, ended.err) == (0, "")
    *windows, last = (tuple(map(int, line.split())) for line in ended.out.splitlines())
    assert len(windows) <= 1
    threads, woken = last
    assert threads >= (3 if first else 1)
    assert woken == 0
