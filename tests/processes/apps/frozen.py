"""A clock that stands still: `frozen.py LIBRARY WHEN`, stopped before or after our import.

Each bounded wait has to come back, as those of the standard library do.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time

library, when = sys.argv[1:]


def stop_clock() -> None:
    if library == "freezegun":
        importlib.import_module("freezegun").freeze_time("2026-06-01").start()
    else:
        machine = importlib.import_module("time_machine")
        machine.travel("2026-06-01 00:00 +0000", tick=False).start()


if when == "before":
    stop_clock()
giving = importlib.import_module("giving")
from hindsight_exec import DrainingExecutor  # noqa: E402

if when == "after":
    stop_clock()
now = time.time()
giving.give(20)
assert giving.writer.flush(30)
giving.give(10)  # for exit
release = threading.Event()
executor = DrainingExecutor()
executor.submit(release.wait)
assert not executor.drain(0.2)
release.set()
assert executor.drain(30)
assert time.time() == now, "the clock did not stand still"
