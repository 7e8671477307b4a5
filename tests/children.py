"""Processes that tests start, and how they ended. None outlives its test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

# `say` prints a line whole, whichever thread prints beside it. A child of a shell's background
# job starts with SIGINT ignored.
PRELUDE = """\
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell: `&` ignores it,
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


class Process(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is killed with all that it started by `close`, and by the end of `with`."""

    def __init__(self, command: list[str], **options: Any) -> None:
        # It leads a process group, which is found also once it has ended.
        super().__init__(command, **{**options, "start_new_session": True})

    def close(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        with contextlib.suppress(OSError):  # what was written to it and not read
            super().__exit__(None, None, None)
        self.wait()

    def __exit__(self, *_: object) -> None:
        self.close()


class Ended(NamedTuple):
    """How a child ended: its exit status, and all that it wrote."""

    status: int
    out: str
    err: str


class Child:
    """A Python process that runs a test's program."""

    def __init__(self, folder: Path, program: str, *args: str, **variables: str) -> None:
        self._err = folder / "stderr"
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PYTHON")
        }
        with self._err.open("wb") as err:
            self.process = Process(
                [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *args],
                cwd=folder,  # the sources are not beside it
                env={
                    **environment,
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONFAULTHANDLER": "1",
                    **variables,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        self._read: list[str] = []

    def wait_for(self, line: str) -> None:
        """Wait until the child has printed this line."""
        assert self.process.stdout is not None
        limit = threading.Timer(60, self.process.send_signal, [signal.SIGABRT])
        limit.start()
        try:
            for got in self.process.stdout:
                self._read.append(got)
                if got == f"{line}\n":
                    return
        finally:
            limit.cancel()
        raise AssertionError(f"never printed {line!r}: {self.end()}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 60) -> Ended:
        """Wait for the end. The limit is there to fail a test, not to measure."""
        try:
            rest, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler tells where it hangs
            rest, _ = self.process.communicate()
            written = "".join(self._read) + rest
            raise AssertionError(
                f"still alive after {timeout} s:\n{written}\n{self._err.read_text()}"
            ) from None
        return Ended(self.process.returncode, "".join(self._read) + rest, self._err.read_text())

    def close(self) -> None:
        self.process.close()
