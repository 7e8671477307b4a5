"""Past one machine: replicas of the API with their workers on one PostgreSQL, several hosts."""

from __future__ import annotations

from typing import Callable

import pytest

from .host import Host, check
from .proxy import Proxy
from .server import Hindsight, Server, eventually

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
