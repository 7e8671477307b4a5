"""One Hindsight for all tests of a run; each test has a bank, or a server, of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .host import Host
from .server import BUSY, VARIABLE, Absent, Hindsight, Server, eventually

KEY = "the right key"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "since(version, reason): needs this Hindsight, or a newer")


@pytest.fixture(scope="session")
def hindsight() -> Iterator[Hindsight]:
    """PostgreSQL and the processes to make servers of; skips where no Hindsight is named."""
    try:
        running = Hindsight()
    except Absent as absent:
        # Who names one wants it to be used.
        tell = pytest.fail if os.environ.get(VARIABLE) else pytest.skip
        tell(f"{absent}; tox -e hindsight makes one")
    with running:
        yield running


@pytest.fixture(scope="session")
def server(hindsight: Hindsight) -> Iterator[Server]:
    """A server that is never killed, shared by the tests that do not need to."""
    with hindsight.server() as running:
        yield running


@pytest.fixture(scope="session")
def killed(hindsight: Hindsight) -> Iterator[Server]:
    with hindsight.server() as running:
        yield running


@pytest.fixture
def mortal(killed: Server) -> Server:
    """A server that tests kill, alive and with nothing left to do."""
    if killed.ended(0) is not None:
        killed.start()
    eventually(lambda: not killed.sql(BUSY), seconds=100)
    return killed


@pytest.fixture(scope="session")
def locked(hindsight: Hindsight) -> Iterator[Server]:
    """A server that lets in only who has KEY."""
    with hindsight.server(api_key=KEY) as running:
        yield running


@pytest.fixture(scope="session")
def thinking(hindsight: Hindsight) -> Iterator[Server]:
    """A server that extracts facts with an LLM, and gives up at its first failure."""
    with hindsight.server(llm=True, llm_max_retries=0, worker_max_retries=0) as running:
        yield running


@pytest.fixture(autouse=True)
def since(request: pytest.FixtureRequest) -> None:
    """`@pytest.mark.since("0.8.6", "what older ones do")`: a run on an older server skips it."""
    marker = request.node.get_closest_marker("since")
    if marker and request.node.get_closest_marker("hindsight"):
        oldest, reason = marker.args
        found = request.getfixturevalue("server").version()
        if found < tuple(map(int, oldest.split("."))):
            pytest.skip(f"Hindsight {'.'.join(map(str, found))} {reason}")


@pytest.fixture
def bank() -> str:
    return f"bank-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def new_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Makes hosts: `new_host(url, bank, **settings)`; their programs end with the test."""
    hosts: list[Host] = []

    def make(url: str, bank: str, **settings: Any) -> Host:
        hosts.append(Host(tmp_path / f"host{len(hosts)}", url, bank, **settings))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()
