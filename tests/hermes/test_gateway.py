"""A gateway: hundreds of providers in one process."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from hindsight_exec.hermes import HindsightMemoryProvider

from .recording import configure

pytestmark = pytest.mark.slow

tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")

CHATS = 300


def life(home, name, turns=1):
    """A chat's provider, some turns into its life."""
    provider = HindsightMemoryProvider()
    provider.initialize(name, hermes_home=str(home), agent_context="primary", platform="telegram")
    provider.system_prompt_block()
    for number in range(turns):
        provider.on_turn_start(number, "hello")
        provider.prefetch("hello")
        provider.sync_turn(f"{name}:{number}", "ok", session_id=name)
        provider.queue_prefetch("hello")
    return provider


def test_many_chats_share_what_there_is(run, home, hindsight):
    """300 providers: at most four threads of ours, one session, one outbox file; shut down in any order."""
    configure(home, api_url=hindsight.url)
    ended = run(
        f"""
        import gc, json, random, sys, threading
        from pathlib import Path
        from hindsight_exec.hermes import HindsightMemoryProvider
        home = Path(sys.argv[1])
        providers = []
        for number in range({CHATS}):
            provider = HindsightMemoryProvider()
            providers.append(provider)
            provider.initialize(f"c{{number}}", hermes_home=str(home), agent_context="primary")
            provider.system_prompt_block()
            for turn in range(1):
                provider.on_turn_start(turn, "hello")
                provider.prefetch("hello")
                provider.sync_turn(f"c{{number}}:{{turn}}", "ok")
                provider.queue_prefetch("hello")
        threads = sorted(one.name for one in threading.enumerate() if "hindsight" in one.name)
        files = [one.name for one in (home / "hindsight" / "outbox").glob("*.db")]
        import aiohttp
        sessions = [one for one in gc.get_objects() if isinstance(one, aiohttp.ClientSession)]
        print(json.dumps([threads, files, len(sessions)]))
        random.Random(4).shuffle(providers)
        for provider in providers:
            provider.shutdown()
        print(sum(not one.closed for one in sessions))
        """,
        str(home),
    )
    counted, still_open = ended.out.splitlines()
    threads, files, sessions = json.loads(counted)
    assert len(threads) <= 4, threads
    assert len(files) == 1
    assert (sessions, still_open) == (1, "0")
    assert sorted(hindsight.said()) == sorted(f"c{n}:{t}" for n in range(CHATS) for t in range(1))
    assert ended.err == ""


def test_nothing_leaks(home, hindsight):
    """Providers that were shut down leave no memory and no descriptor behind.

    A leak shows in every round. What is allocated once, whenever it is needed first, does not.
    """
    configure(home, api_url=hindsight.url)

    def lives(count):
        for number in range(count):
            life(home, f"c{number}").shutdown()
        hindsight.seen.clear()
        gc.collect()
        folder = Path("/proc/self/fd")
        descriptors = len(list(folder.iterdir())) if folder.is_dir() else 0
        return tracemalloc.get_traced_memory()[0], descriptors

    tracemalloc.start()
    try:
        lives(10)
        before, growths = lives(5), []
        for _ in range(4):
            after = lives(25)
            growths.append((after[0] - before[0], after[1] - before[1]))
            if growths[-1][0] < 25 * 4096 and growths[-1][1] <= 4:
                break
            before = after
        else:
            raise AssertionError(f"memory and descriptors grow: {growths}")
    finally:
        tracemalloc.stop()


def test_providers_dropped_without_shutdown(home, hindsight):
    """Hosts that never call shutdown leak no provider: it is collected, and its turns are delivered."""
    configure(home, api_url=hindsight.url)
    keep = life(home, "keep")
    for number in range(20):
        life(home, f"c{number}")
    gc.collect()
    alive = [one for one in gc.get_objects() if isinstance(one, HindsightMemoryProvider)]
    assert alive == [keep]
    for number in range(20):
        keep._writer.end_session(f"c{number}")
    hindsight.wait_for("/memories")
    keep.shutdown()
    hindsight.wait_for_turns(21)
    assert len(set(hindsight.said())) == 21
