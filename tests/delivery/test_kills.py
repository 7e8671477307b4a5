"""Whoever is killed, and whenever: a turn that was taken is stored once, and in order."""

from __future__ import annotations

import random
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Optional

import pytest
from children import Process
from hindsight.proxy import Cut, Exchange, Proxy, at_random
from serving import ServingProcess, stored

from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.settings.config import Settings

pytestmark = pytest.mark.slow

# Gives turns until it is killed, or so many; says of each that it was taken.
GIVE = """\
import sys
from pathlib import Path
from hindsight_exec.settings.config import Settings
from hindsight_exec.delivery.writer import RetainWriter

url, state, name, session, count = sys.argv[1:]
writer = RetainWriter(
    Settings(api_url=url, bank_id="b", retain_document_chars=400), state=Path(state)
)
for number in range(int(count)):
    writer.put([{"role": "user", "content": f"{name}.{number}"}], session=session)
    print(f"{name}.{number}", flush=True)
    if number % 10 == 9:
        writer.end_session(session)
"""


class Giver:
    """A process that gives turns, and what it said it had taken."""

    def __init__(self, url: str, state: Path, name: str, session: str, count: int) -> None:
        self.taken: list[str] = []
        arguments = [url, str(state), name, session, str(count)]
        self.process = Process(
            [sys.executable, "-c", GIVE, *arguments], stdout=PIPE, stderr=DEVNULL, text=True
        )
        self._reached: Optional[int] = None
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):
                self.taken.append(line.strip())
                if len(self.taken) == self._reached:
                    self.kill()

    def kill_after(self, turns: int) -> None:
        self._reached = turns

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> list[str]:
        self.process.wait(120)
        self._reader.join(120)
        return self.taken

    def __enter__(self) -> Giver:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._reader.join(120)
        self.process.close()


def deliver_the_rest(url: str, state: Path) -> None:
    """Start once more, undisturbed, and wait until nothing waits any longer."""
    patience = threading.Event()
    writer = RetainWriter(Settings(api_url=url, bank_id="b"), state=state)
    for _ in range(1200):
        if not [one for one in state.iterdir() if one.name.endswith(".db")]:
            assert writer.close()
            return
        patience.wait(0.1)
    raise AssertionError(f"still there: {sorted(state.iterdir())}")


def check(found: list[str], taken: list[str]) -> None:
    """Each turn that was taken is there once, in order; no other is there twice."""
    assert len(found) == len(set(found)), "stored twice"
    assert [one for one in found if one in set(taken)] == taken


def kill_clients(rounds: int, seed: int, server_process: ServingProcess, state: Path) -> None:
    chance = random.Random(seed)
    taken: list[str] = []
    with Proxy(server_process.url) as proxy, ExitStack() as givers:
        for number in range(rounds):
            giver = givers.enter_context(Giver(proxy.url, state, str(number), "s", 60))
            how = chance.choice(["put", "request", "answer", "exit", "cuts"])
            cuts = at_random(0.3, seed=chance.randrange(1 << 30))
            requests = chance.randint(1, 4)

            def plan(
                exchange: Exchange,
                giver: Giver = giver,
                how: str = how,
                start: int = len(proxy.exchanges),
                requests: int = requests,
                cuts: Any = cuts,
            ) -> Optional[Cut]:
                if how == "cuts":
                    return cuts(exchange)  # type: ignore[no-any-return]
                if how in ("request", "answer") and len(proxy.exchanges) - start == requests:
                    giver.kill()
                    return Cut.AFTER if how == "answer" else Cut.BEFORE
                return None

            proxy.plan = plan
            if how in ("put", "cuts"):
                giver.kill_after(chance.randint(1, 60))
            taken += giver.wait()
        proxy.plan = lambda exchange: None
        deliver_the_rest(proxy.url, state)
    check(stored(server_process.url)["s"], taken)


@pytest.mark.timeout(300)
def test_killed_at_random(server_process: ServingProcess, tmp_path: Path) -> None:
    """After put(), during a send, before the answer, at exit: 20 kills, nothing lost or doubled."""
    kill_clients(20, 1, server_process, tmp_path / "state")


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(2, 12))
def test_killed_at_random_for_long(
    server_process: ServingProcess, tmp_path: Path, seed: int
) -> None:
    """The same with 200 kills and more."""
    kill_clients(30, seed, server_process, tmp_path / "state")


def kill_servers(rounds: int, seed: int, server_process: ServingProcess, state: Path) -> None:
    chance = random.Random(seed)
    patience = threading.Event()
    taken: list[str] = []
    for number in range(rounds):
        with Giver(server_process.url, state, str(number), "s", 40) as giver:
            giver.kill_after(chance.randint(20, 60))
            patience.wait(chance.random())
            server_process.kill()
            patience.wait(chance.random() / 4)
            server_process.start()
            taken += giver.wait()
    deliver_the_rest(server_process.url, state)
    check(stored(server_process.url)["s"], taken)


@pytest.mark.timeout(300)
def test_the_server_is_killed_at_random(server_process: ServingProcess, tmp_path: Path) -> None:
    """The server dies and comes back, with what it had committed: nothing lost or doubled."""
    kill_servers(6, 1, server_process, tmp_path / "state")


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_the_server_is_killed_for_long(server_process: ServingProcess, tmp_path: Path) -> None:
    """The same, a hundred times."""
    kill_servers(100, 2, server_process, tmp_path / "state")


def share_a_folder(rounds: int, seed: int, server_process: ServingProcess, state: Path) -> None:
    chance = random.Random(seed)
    taken: dict[str, list[str]] = {"left": [], "right": []}

    def side(session: str, seed: int) -> None:
        own = random.Random(seed)
        for number in range(rounds):
            with Giver(server_process.url, state, f"{session}{number}", session, 40) as giver:
                if own.random() < 0.7:
                    giver.kill_after(own.randint(1, 40))
                taken[session] += giver.wait()

    sides = [
        threading.Thread(target=side, args=(session, chance.randrange(1 << 30)))
        for session in taken
    ]
    for one in sides:
        one.start()
    for one in sides:
        one.join()
    deliver_the_rest(server_process.url, state)
    found = stored(server_process.url)
    for session, turns in taken.items():
        check(found[session], turns)


@pytest.mark.timeout(300)
def test_two_processes_on_one_folder(server_process: ServingProcess, tmp_path: Path) -> None:
    """Started and killed at random beside each other, they adopt what the other left, once."""
    share_a_folder(6, 1, server_process, tmp_path / "state")


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_two_processes_on_one_folder_for_long(
    server_process: ServingProcess, tmp_path: Path
) -> None:
    """The same for more than a minute."""
    share_a_folder(60, 2, server_process, tmp_path / "state")
