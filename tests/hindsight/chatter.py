"""A chat with the provider, in the environment of a user: told what to do, a line each, on stdin."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hindsight_exec.hermes import HindsightMemoryProvider


def say(*words: object) -> None:
    """Print a line whole, and at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> None:
    from hindsight_embed import get_embed_manager

    home = Path(os.environ["HERMES_HOME"])
    provider = HindsightMemoryProvider()
    provider.initialize("s", hermes_home=str(home), agent_context="primary")
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "turn":
            provider.sync_turn(rest, "Noted.")
            say("kept", rest)
        elif word == "recall":
            provider.queue_prefetch(rest)
            say("recalled", json.dumps(provider.prefetch(rest)))
        elif word == "join":
            provider._writer.flush()
            say("delivered")
        elif word == "stop":
            say("stopped", get_embed_manager().stop("hermes"))
        elif word == "clean":
            get_embed_manager().ensure_running({}, "hermes")  # one that is starting is stopped, too
            say("clean", get_embed_manager().stop("hermes"))
            return
    provider.shutdown()


if __name__ == "__main__":
    main()
