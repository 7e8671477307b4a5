"""Trouble that is not the network's: a model that fails, a wrong key, a server under load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Callable

import pytest

from .conftest import KEY
from .host import Host, check
from .proxy import Proxy
from .server import Hindsight, Server, eventually

pytestmark = pytest.mark.hindsight

NewHost = Callable[..., Host]

FAILED = "SELECT count(*) AS count FROM async_operations WHERE status = 'failed'"
TROUBLE = "the model is on holiday"


@pytest.fixture
def trouble(hindsight: Hindsight) -> Iterator[None]:
    """The LLM fails until the test says otherwise."""
    hindsight.models.trouble = TROUBLE
    yield
    hindsight.models.trouble = None


@pytest.mark.since("1.0", "says that an operation whose model failed is completed")
def test_failed_operation_is_retried(
    thinking: Server, hindsight: Hindsight, trouble: None, bank: str, new_host: NewHost
) -> None:
    """An operation that failed since the model did is told to run again, and arrives whole."""
    before = thinking.sql(FAILED)[0]["count"]
    host = new_host(thinking.url, bank)
    program = host.give("s", turns=6, then="flush", seconds=90, retries=[0.5] * 100)
    eventually(lambda: thinking.sql(FAILED)[0]["count"] > before)
    hindsight.models.trouble = None
    program.end()
    assert program.said("flushed") == ["True"]
    counters = program.counters
    assert (counters["given"], counters["completed"], counters["dead"]) == (6, 6, 0)
    assert TROUBLE in counters["last_error"]
    check(thinking, bank, [program.given])


@pytest.mark.since("1.0", "says that an operation whose model failed is completed")
def test_operation_that_fails_for_good_is_a_dead_letter(
    thinking: Server, hindsight: Hindsight, trouble: None, bank: str, new_host: NewHost
) -> None:
    """When retries do not help, turns are kept as dead letters with the server's words.

    `dead retry` brings them in later.
    """
    host = new_host(thinking.url, bank)
    program = host.give("s", turns=6, then="flush", seconds=90, retries=[0.0, 0.1])
    program.end()
    assert program.counters["dead"] == 6
    assert program.counters["dead_by_reason"] == {"failed": 6}
    assert TROUBLE in program.counters["last_error"]
    assert any(TROUBLE in words for words in program.said("trouble"))
    assert len(host.files()) == 1

    hindsight.models.trouble = None
    listed = host.run("-m", "hindsight_exec", "dead", "list", "--json")
    listed.end()
    assert all(TROUBLE in letter["error"] for letter in json.loads("".join(listed.lines)))
    host.run("-m", "hindsight_exec", "dead", "retry", "--all").end()
    host.deliver()
    assert host.files() == []
    check(thinking, bank, [program.given])


def test_wrong_key_keeps_everything(locked: Server, bank: str, new_host: NewHost) -> None:
    """With a wrong key all is kept, and the user told; the next start with the right one sends."""
    with Proxy(locked.url) as proxy:
        host = new_host(proxy.url, bank, api_key="a wrong key")
        program = host.give("s", turns=40, then="flush", seconds=3)
        program.end()
        assert program.said("flushed") == ["False"]
        assert program.counters["waiting"] == 40
        assert len(program.said("trouble")) == 1
        assert "does not accept the API key" in program.said("trouble")[0]
        # Asked once or twice, not again and again.
        assert [exchange.status for exchange in proxy.exchanges].count(401) < 5

        host.api_key = KEY
        host.deliver()
        assert host.files() == []
        check(locked, bank, [program.given])


@pytest.mark.since("1.0", "has no admission control")
def test_server_that_refuses_under_load(hindsight: Hindsight, bank: str, new_host: NewHost) -> None:
    """Twenty programs at a server that lets in one request at a time: 503s, and all arrives."""
    busy = hindsight.server(admission_retain_max_in_flight=1, admission_retain_max_wait_ms=0)
    with busy as server, Proxy(server.url) as proxy:
        host = new_host(proxy.url, bank)
        programs = [host.give(f"s{number}", turns=20, pause=0.01) for number in range(20)]
        for program in programs:
            program.end()
        host.deliver()
        check(server, bank, [program.given for program in programs])
        refused = [exchange for exchange in proxy.exchanges if exchange.status == 503]
        assert refused
        assert all("retry-after" in (exchange.answer_headers or {}) for exchange in refused)


@pytest.mark.soak
def test_five_thousand_turns_in_one_session(server: Server, bank: str, new_host: NewHost) -> None:
    """A session of 5000 turns, held as by default, is whole and in order."""
    host = new_host(server.url, bank, retain_document_chars=3000, retain_idle_seconds=60)
    program = host.give("s", turns=5000, size=600, then="flush", seconds=3000)
    program.end(3000)
    assert program.said("flushed") == ["True"]
    check(server, bank, [program.given])
