"""What a request does in the web applications: it gives some of its process's turns.

The module gives a turn when it is loaded: where a master loads the application, the workers
inherit a writer that is in use. With CALM=1 it waits until that turn is stored: a host that
forks without Python's at-fork hooks must not do it while a thread of the master is inside
SQLite or an import, as nothing in Python can mend its children then.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import defaultdict

import giving

_lock = threading.Lock()
_left: defaultdict[int, int] = defaultdict(lambda: int(os.environ["TURNS_OF_A_PROCESS"]))


def serve() -> bytes:
    """Give up to 5 turns, as long as this process has any left; say how many."""
    with _lock:
        turns = min(5, _left[os.getpid()])
        _left[os.getpid()] -= turns
    if turns:
        giving.give(turns)
    else:
        time.sleep(0.02)  # so that the next request meets another worker
    return json.dumps({"pid": os.getpid(), "turns": turns}).encode()


giving.give()
if os.environ.get("CALM"):
    assert giving.writer.flush(30)
