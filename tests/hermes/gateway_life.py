"""An hour of a gateway's life, in fast motion; the program of `test_gateway_soak.py`.

Prints a line of JSON for every sample, and at the end how often each turn was given.
"""

import gc
import json
import random
import sys
import threading
import time
from pathlib import Path

from hindsight_exec.hermes import HindsightMemoryProvider

home, chats, steps, samples = Path(sys.argv[1]), *map(int, sys.argv[2:])
chance = random.Random(20)
alive: dict[str, HindsightMemoryProvider] = {}
made = turns = 0


def rss() -> float:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def make() -> None:
    global made
    made += 1
    name = f"chat{made}"
    provider = alive[name] = HindsightMemoryProvider()
    provider.initialize(name, hermes_home=str(home), agent_context="primary", platform="telegram")
    provider.system_prompt_block()


def use(name: str) -> None:
    global turns
    provider = alive[name]
    provider.on_turn_start(0, "hello")
    provider.sync_turn(f"turn {turns} {'x' * chance.randint(0, 2000)}", "ok", session_id=name)
    provider.queue_prefetch("hello")
    turns += 1


def switch(name: str) -> None:
    global made
    made += 1
    new = f"chat{made}"
    provider = alive.pop(name)
    provider.on_session_switch(new, parent_session_id=name)
    alive[new] = provider


def leave(name: str) -> None:
    provider = alive.pop(name)
    if chance.random() < 0.5:
        provider.on_session_end([])
    if chance.random() < 0.1:  # the last turn of many, as when a gateway drops a chat
        provider.shutdown()
    # Otherwise it is dropped: hosts do not always say goodbye.


for step in range(steps):
    if len(alive) < chats and (not alive or chance.random() < 0.4):
        make()
    name = chance.choice(list(alive))
    chance.choices([use, switch, leave], [20, 1, 2 if len(alive) > chats // 2 else 0])[0](name)
    if step % (steps // samples) == 0:
        gc.collect()
        sample = {
            "step": step,
            "made": made,
            "memory": rss(),
            "threads": threading.active_count(),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        }
        print(json.dumps(sample), flush=True)
    time.sleep(0.002)  # chats speak now and then
for provider in alive.values():
    provider.shutdown()
print(json.dumps({"turns": turns}), flush=True)
