"""Hermes' own provider in a process of its own: ``extraction_child.py URL BANK HOME``.

It reads a turn a line, JSON of ``[now, user, assistant]`` with ``now`` in POSIX seconds of simulated
time, and answers with a line once the provider has taken it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest import mock

from .measure import bundled_class, configure


def main() -> None:
    url, bank, home = sys.argv[1:]
    configure(Path(home), url, bank)
    provider = bundled_class()()
    provider.initialize("s", hermes_home=home, platform="cli", agent_context="primary")
    real, ahead = time.time, 0.0
    with mock.patch("time.time", side_effect=lambda: real() + ahead):
        for line in sys.stdin:
            now, user, assistant = json.loads(line)
            ahead = now - real()
            provider.sync_turn(user, assistant, session_id="s")
            print(flush=True)
        provider.shutdown()


if __name__ == "__main__":
    main()
