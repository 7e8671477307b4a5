"""Past one machine: replicas of the API with their workers on one PostgreSQL, several hosts."""

from __future__ import annotations

from typing import Callable

import pytest

from .host import Host, check
from .proxy import Proxy
from .server import STORED, Hindsight, Server, eventually

pytestmark = pytest.mark.hindsight


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
def test_hosts_write_through_replicas(
    rounds: int, mortal: Server, hindsight: Hindsight, bank: str, new_host: Callable[..., Host]
) -> None:
    """Three hosts write through two API processes, each killed in turn: nothing lost or doubled."""
    first = mortal
    with hindsight.server(beside=first) as second, Proxy(first.url, also=[second.url]) as balancer:
        hosts = [new_host(balancer.url, bank) for _ in range(3)]
        programs = [
            host.give(f"host{n}", turns=150 * rounds, pause=0.02, then="flush", seconds=300)
            for n, host in enumerate(hosts)
        ]
        eventually(lambda: min(balancer.served[url] for url in (first.url, second.url)))
        for turn in range(rounds):
            victim = (first, second)[turn % 2]
            programs[0].until_given(150 * turn + 30)
            victim.kill()
            programs[0].until_given(150 * turn + 100)
            victim.start()
        for program in programs:
            program.end(300)
            assert program.said("flushed") == ["True"]
        check(first, bank, [program.given for program in programs])


@pytest.mark.soak
def test_workers_of_their_own(
    hindsight: Hindsight, bank: str, new_host: Callable[..., Host]
) -> None:
    """An API process that only answers, and two workers beside it, one killed and started anew."""
    with hindsight.server(worker_enabled=False) as api:
        second = hindsight.server(program="worker", beside=api)
        with hindsight.server(program="worker", beside=api) as first, second:
            given = []
            for number in range(5):
                shot = first.aim(STORED)
                host = new_host(api.url, bank)
                program = host.give(f"s{number}", turns=60, pause=0.01, then="flush", seconds=100)
                assert shot.hit()
                first.start()
                program.end()
                assert program.said("flushed") == ["True"]
                given.append(program.given)
            check(api, bank, given)


@pytest.mark.soak
def test_worker_that_never_comes_back(
    hindsight: Hindsight, bank: str, new_host: Callable[..., Host]
) -> None:
    """What a worker had in hand when it died for good waits, until it is taken from its name."""
    with hindsight.server() as server:
        shot = server.aim(STORED)
        host = new_host(server.url, bank)
        program = host.give("s", turns=20, then="flush", seconds=20)
        assert shot.hit()
        server.start(worker_id="another-name")
        program.end()
        assert program.said("flushed") == ["False"]
        assert server.sql("SELECT status FROM async_operations WHERE status = 'processing'")
        assert len(host.files()) == 1

        server.admin("decommission-worker", server.name, "--yes")
        host.deliver()
        assert host.files() == []
        check(server, bank, [program.given])
