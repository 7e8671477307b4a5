"""A program that gives 30 turns and ends: `plain.py HOW`."""

from __future__ import annotations

import os
import signal
import sys

import giving


def end(how: str) -> None:
    if how == "execv":
        os.execv(sys.executable, [sys.executable, "-c", "pass"])
    elif how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        signal.pause()
    else:
        assert how == "end"


giving.give(30)
end(sys.argv[1])
