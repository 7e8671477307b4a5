"""A program that gives 30 turns and ends: `plain.py HOW`."""

from __future__ import annotations

import os
import signal
import sys

import giving

from hindsight_exec import drain_on_signal


def end(how: str) -> None:
    if how == "execv":
        if giving.has_line:
            giving.writer.close(5)
        os.execv(sys.executable, [sys.executable, "-c", "pass"])
    elif how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        signal.pause()
    else:
        assert how == "end"


if giving.has_line:
    drain_on_signal()
giving.give(30)
end(sys.argv[1])
