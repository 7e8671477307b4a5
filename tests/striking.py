"""Calls something at the n-th line of code that a thread runs: a signal, a finalizer, a fork there."""

from __future__ import annotations

import linecache
import threading
from types import FrameType
from typing import Any, Callable


class Strike:
    """Calls `call()` at the n-th line that is run of the files whose names start so.

    Not at a `with`: CPython looks for signals, asynchronous exceptions and
    garbage before it enters and after it has left one.

    Args:
        number: The line to strike at, counted over all calls.
        call: What to call there; it may raise.
        files: Beginnings of paths.
        thread: Beginning of the names of threads; of any without it.
    """

    def __init__(
        self, number: int, call: Callable[[], object], *files: str, thread: str = ""
    ) -> None:
        self.left = number
        self._call = call
        self._files = files
        self._thread = thread

    @property
    def struck(self) -> bool:
        return self.left <= 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """For `sys.settrace` and `threading.settrace`."""
        name = frame.f_code.co_filename
        if not name.startswith(self._files):
            return None
        if event == "line" and threading.current_thread().name.startswith(self._thread):
            line = linecache.getline(name, frame.f_lineno).strip()
            if not line.startswith("with "):
                self.left -= 1
                if not self.left:
                    self._call()
        return self.trace
