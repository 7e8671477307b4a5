"""A daemon thread gives 50 turns out of a slow queue; main ends when it has given the first."""

from __future__ import annotations

import queue
import threading
import time

import giving

waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
begun = threading.Event()


def work() -> None:
    while True:
        giving.give(waiting.get())
        begun.set()
        time.sleep(0.01)


for _ in range(50):
    waiting.put(1)
threading.Thread(target=work, daemon=True).start()
begun.wait()
