"""What all programs share: one writer for the process, and turns that are noted once given.

Importing this module imports hindsight_exec and makes the writer, as an application does when it
is loaded. The environment says where: URL, BANK, STATE, GIVEN (the file of the notes), IDLE
(seconds until held turns are sent) and DRAIN (seconds for exit). With LINE, a program has the line
that docs/executor.md proposes for its host.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from hindsight_exec import RetainWriter, Settings

writer = RetainWriter(
    Settings(
        mode="local_external",
        api_url=os.environ["URL"],
        bank_id=os.environ["BANK"],
        retain_idle_seconds=float(os.environ["IDLE"]),
        drain_timeout=float(os.environ["DRAIN"]),
    ),
    state=Path(os.environ["STATE"]),
)
has_line = "LINE" in os.environ
_numbers = itertools.count()


def give(count: int = 1) -> int:
    """Give so many turns, and note each when `put` has returned."""
    for _ in range(count):
        pid = os.getpid()
        text = f"{pid}-{next(_numbers)}-{os.urandom(4).hex()}"  # an exec keeps the pid
        writer.put([{"role": "user", "content": text}], session=str(pid))
        notes = os.open(os.environ["GIVEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(notes, f"{text}\n".encode())
        finally:
            os.close(notes)
    return count
