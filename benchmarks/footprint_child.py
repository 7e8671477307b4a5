"""A process from its start to its first delivered turn: ``footprint_child.py URL HOME [bare]``.

Prints JSON: after each step the memory in MiB and the milliseconds of the step.
"""

from __future__ import annotations

import time

begun = time.perf_counter()

import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Callable  # noqa: E402

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _memory() -> float:
    gc.collect()
    return int(Path(f"/proc/{os.getpid()}/statm").read_text().split()[1]) * _PAGE / (1 << 20)


def main() -> None:
    url, home = sys.argv[1:3]
    bank = "b"
    os.environ["HERMES_HOME"] = home
    config = Path(home, "hindsight", "config.json")
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"mode": "local_external", "api_url": url, "bank_id": bank}))
    steps: dict[str, tuple[float, float]] = {"bare": (_memory(), 0.0)}
    last = time.perf_counter()

    def step(name: str, action: Callable[[], Any]) -> Any:
        nonlocal last
        last = time.perf_counter()
        made = action()
        took = time.perf_counter() - last
        steps[name] = (_memory(), 1e3 * took)
        return made

    def imports(*names: str) -> Callable[[], Any]:
        return lambda: [__import__(name) for name in names]

    step("import ssl", imports("ssl"))
    step("import asyncio", imports("asyncio"))
    step("import sqlite3", imports("sqlite3"))
    step("import hindsight_exec.hermes", imports("hindsight_exec.hermes"))
    provider = step(
        "a provider, initialized",
        lambda: _initialized(sys.modules["hindsight_exec.hermes"].HindsightMemoryProvider(), home),
    )
    step("import aiohttp (a writer does it on the worker)", imports("aiohttp"))
    step(
        "a turn, until it is on disk", lambda: provider.sync_turn("hello", "hello", session_id="s")
    )
    step("until it is delivered", lambda: _delivered(provider))
    print(json.dumps(steps))
    sys.stdout.flush()
    os._exit(0)


def first_turn() -> None:
    """Only the way to the first delivered turn, without looks at the memory."""
    url, home = sys.argv[1:3]
    from hindsight_exec import RetainWriter, Settings

    imported = time.perf_counter()
    writer = RetainWriter(Settings(api_url=url, bank_id="b"), state=Path(home))
    writer.put([{"role": "user", "content": "hello"}], session="s")
    put = time.perf_counter()
    assert writer.flush(60)
    done = time.perf_counter()
    times = {"imports": imported - begun, "put": put - imported, "flush": done - put}
    print(json.dumps({**{name: 1e3 * took for name, took in times.items()}}))
    sys.stdout.flush()
    os._exit(0)


def _initialized(provider: Any, home: str) -> Any:
    provider.initialize("s", hermes_home=home, agent_context="primary", platform="cli")
    return provider


def _delivered(provider: Any) -> None:
    provider.on_session_end([])
    assert provider._writer.flush(60, completed=True)


if __name__ == "__main__":
    first_turn() if sys.argv[3:] else main()
