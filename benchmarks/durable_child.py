"""A crowd of threads that give turns at once, to the outbox of whatever code is first on the path.

Prints how long a turn took, in microseconds, and how long all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

try:
    from hindsight_exec.conversation import turns
    from hindsight_exec.outbox.store import Outbox
except ImportError:  # c19c66f, before there were rooms
    from hindsight_exec import turns  # type: ignore[attr-defined,no-redef]
    from hindsight_exec.outbox import Outbox  # type: ignore[attr-defined,no-redef]


def main() -> None:
    threads, each = int(sys.argv[1]), int(sys.argv[2])
    message = {"role": "user", "content": "a word " * 140}
    turn = turns.turn([message], given_at=1.76e9, index=1)
    taken: list[int] = []
    go = threading.Event()
    with tempfile.TemporaryDirectory(dir=sys.argv[3]) as folder:
        outbox = Outbox(Path(folder) / "o.db")

        def give(session: str) -> None:
            source = turns.source(url="http://h", credential="", bank="b", session=session)
            go.wait()
            for _ in range(each):
                start = time.perf_counter_ns()
                outbox.put(source, turn)
                taken.append(time.perf_counter_ns() - start)

        givers = [threading.Thread(target=give, args=(str(n),)) for n in range(threads)]
        for giver in givers:
            giver.start()
        start = time.perf_counter_ns()
        go.set()
        for giver in givers:
            giver.join()
        whole = time.perf_counter_ns() - start
        outbox.close()
    print(json.dumps({"turns": [one / 1e3 for one in taken], "all": whole / 1e3}))


if __name__ == "__main__":
    main()
