"""Strikes at the n-th point in the executor's code where CPython may run other code.

A signal handler or a finalizer may run there. From CPython 3.10 on these points are the entry of a
function, the end of a call, and jumps backward; before, every bytecode. PyPy traces lines only.
"""

from __future__ import annotations

import dis
import platform
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Callable

import hindsight_exec.executor

ROOM = str(Path(hindsight_exec.executor.__file__).parent)


def interrupt() -> None:
    raise KeyboardInterrupt


class Strike:
    """While it is entered, calls the action at the n-th point of this thread."""

    def __init__(self, number: int, action: Callable[[], object] = interrupt) -> None:
        self.left = number
        self.action = action
        self.previous: dict[FrameType, str] = {}

    def __enter__(self) -> Strike:
        sys._getframe().f_trace_opcodes = True  # or 3.12 traces none
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.previous.clear()

    def call(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        frame.f_trace_opcodes = platform.python_implementation() == "CPython"
        frame.f_trace = self.trace  # 3.13 looks at f_trace_opcodes here, not on return
        return self.trace

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == ("opcode" if frame.f_trace_opcodes else "line"):
            previous = self.previous.get(frame, "RESUME")
            self.previous[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if (
                sys.version_info < (3, 10)
                or not frame.f_trace_opcodes
                or previous.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE"))
            ):
                self.left -= 1
                if self.left == -1:
                    self.action()
        return self.trace


def at_each_point(
    scene: Callable[[Strike], object],
    action: Callable[[], object] = interrupt,
    *,
    first: int = 0,
) -> int:
    """Play the scene with a strike at each point, up to the first that is beyond its end."""
    for number in range(first, 100_000):
        strike = Strike(number, action)
        scene(strike)
        if strike.left >= 0:
            return number
    raise AssertionError("no end")
