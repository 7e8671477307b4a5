"""Turns that the host's own queue still holds when main falls off the end."""

from __future__ import annotations

import os
import subprocess
import sys

from .hosts import marks
from .recording import configure

pytestmark = marks

PROGRAM = """\
import sys
from agent.memory_manager import MemoryManager
from hindsight_exec.hermes import HindsightMemoryProvider

manager = MemoryManager()
manager.add_provider(HindsightMemoryProvider())
manager.initialize_all("s", platform="cli", hermes_home=sys.argv[1], agent_context="primary")
for number in range(50):
    manager.sync_all(f"question {number}", f"answer {number}", session_id="s")
"""


def test_turns_in_the_hosts_queue(home, hindsight):
    """The manager's `mem-sync` thread has 50 turns to give as main ends: all 50 are stored."""
    configure(home, api_url=hindsight.url)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(home)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert hindsight.said() == [f"question {number}" for number in range(50)]
