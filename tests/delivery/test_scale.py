"""Many turns: memory stays flat, and all of them arrive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ServingProcess, stored, texts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status"),
]

# Gives so many turns while the server is down, or delivers them, and prints by
# how many kilobytes the process grew meanwhile.
PROGRAM = """\
import sys
from pathlib import Path
import aiohttp, asyncio, sqlite3, urllib.request
from hindsight_exec.settings.config import Settings
from hindsight_exec.delivery.writer import RetainWriter

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

url, state, turns, sessions, what = sys.argv[1:]
writer = RetainWriter(
    Settings(api_url=url, bank_id="b", durability="normal", drain_timeout=0.5), state=Path(state)
)
writer.put([{"role": "user", "content": "warm"}], session="warm")
writer.flush(1)
before = peak()
if what == "give":
    for number in range(int(turns)):
        session = number % int(sessions)
        writer.put(
            [
                {"role": "user", "content": f"User: {number} {'x' * 300}"},
                {"role": "assistant", "content": f"Assistant: {number} {'x' * 300}"},
            ],
            session=f"s{session}",
        )
else:
    assert writer.deliver_all(1000)
print(peak() - before)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServingProcess]:
    serving = ServingProcess(tmp_path / "data")
    yield serving
    serving.kill()


def fill_and_deliver(
    turns: int, sessions: int, server: ServingProcess, state: Path, start: Any
) -> None:
    arguments = (server.url, str(state), str(turns), str(sessions))
    given = start(PROGRAM, *arguments, "give").end(timeout=1500)
    assert given.status == 0, given.err
    assert int(given.out) < 30_000
    server.start()
    delivered = start(PROGRAM, *arguments, "deliver").end(timeout=1500)
    assert delivered.status == 0, delivered.err
    assert int(delivered.out) < 30_000
    found = stored(server.url)
    for session in range(sessions):
        assert found[f"s{session}"] == texts(range(session, turns, sessions), "x" * 300)


@pytest.mark.timeout(300)
def test_thousands_of_turns_wait(server: ServingProcess, tmp_path: Path, start: Any) -> None:
    """Five thousand turns wait on disk and not in memory, and all arrive with the next start."""
    fill_and_deliver(5_000, 20, server, tmp_path / "state", start)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_hundred_thousand_turns_wait(server: ServingProcess, tmp_path: Path, start: Any) -> None:
    """The same with a hundred thousand."""
    fill_and_deliver(100_000, 50, server, tmp_path / "state", start)


# Gives each turn in a session of its own, and prints how many objects of ours there are after.
SESSIONS = """\
import gc, sys
from pathlib import Path
from hindsight_exec.settings.config import Settings
from hindsight_exec.delivery.writer import RetainWriter

url, state, sessions = sys.argv[1:]
settings = Settings(api_url=url, bank_id="b", durability="normal", drain_timeout=60)
writer, other = (RetainWriter(settings, state=Path(state)) for _ in range(2))
for number in range(int(sessions)):
    writer.put([{"role": "user", "content": "x"}], session=f"{number}", immediate=True)
    if number % 250 == 0:  # as fast as they are delivered
        other.put([{"role": "user", "content": "x"}], session="other", immediate=True)
        assert other.flush(100, completed=True)
progress = writer._engine.delivery.progress
assert progress.wait_for(lambda: not progress.unfinished, 100)
gc.collect()
print(sum(str(type(one).__module__).startswith("hindsight_exec") for one in gc.get_objects()))
print(len(writer._sources))
"""


@pytest.mark.timeout(300)
def test_sessions_that_are_over_are_forgotten(
    server: ServingProcess, tmp_path: Path, start: Any
) -> None:
    """A writer that sees new sessions for a year keeps thousands in mind, and not all."""
    server.start()
    ended = start(SESSIONS, server.url, str(tmp_path / "state"), "10000").end(timeout=280)
    assert ended.status == 0, ended.err
    objects, sources = map(int, ended.out.split())
    assert objects < 9000
    assert sources < 1000
