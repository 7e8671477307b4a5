"""Each turn arrives once and in order, whatever is cut, stopped or killed meanwhile."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from contextlib import suppress
from http.client import HTTPException
from typing import Callable

import pytest

from .host import Host, Program, check, turns_of
from .proxy import Cut, Exchange, Proxy, at_random
from .server import (
    ACCEPTED,
    BUSY,
    COMPLETED,
    STORED,
    Server,
    eventually,
    request,
)

pytestmark = pytest.mark.hindsight

NewHost = Callable[..., Host]


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrizes a test with a few rounds, and as a soak with many."""
    return pytest.mark.parametrize("rounds", [few, pytest.param(many, marks=pytest.mark.soak)])


def retains(exchange: Exchange) -> bool:
    return exchange.path.endswith("/memories")


def test_turns_of_a_program_that_ends(server: Server, bank: str, new_host: NewHost) -> None:
    """A program that gives turns and ends leaves nothing behind: all are stored, few requests."""
    with Proxy(server.url) as proxy:
        host = new_host(proxy.url, bank, retain_idle_seconds=60)
        program = host.give("a", "b/1", "c", turns=40)
        program.end()
        documents = check(server, bank, [program.given])
        # Several turns make a document, and several documents a request.
        assert sum(retains(exchange) for exchange in proxy.exchanges) < documents < 60
        host.deliver()  # what was accepted is kept until a later process knows it was done
        assert host.files() == []


@pytest.mark.parametrize("cut", list(Cut))
def test_cut_requests_are_sent_again(
    cut: Cut, server: Server, bank: str, new_host: NewHost
) -> None:
    """Requests that break off, wherever, are sent again and store nothing twice."""
    left = [4]

    def plan(exchange: Exchange) -> Cut | None:
        if not retains(exchange) or not left[0]:
            return None
        left[0] -= 1
        return cut

    with Proxy(server.url, plan) as proxy:
        program = new_host(proxy.url, bank).give(
            "s", turns=30, pause=0.02, then="flush", seconds=90
        )
        program.end()
        assert program.said("flushed") == ["True"]
        assert left == [0]
    check(server, bank, [program.given])


class Killed:
    """Gives turns of a session in programs that are killed, one after the other."""

    def __init__(self, host: Host, session: str, seed: int, pause: float = 0.002) -> None:
        self.host = host
        self.session = session
        self.pause = pause
        self.chance = random.Random(seed)
        self.given: list[dict[str, list[int]]] = []
        self.perhaps: dict[str, set[int]] = defaultdict(set)
        self._next = 0

    def round(self, meanwhile: Callable[[Program], None] = lambda program: None) -> None:
        program = self.host.give(
            self.session, first=self._next, turns=100_000, pause=self.pause, then="flush", seconds=0
        )
        program.until_given(self.chance.randint(1, 60))
        meanwhile(program)
        time.sleep(self.chance.uniform(0, 0.5))  # the moment is what is random here
        program.kill()
        turns = program.given[self.session]
        self.given.append({self.session: turns})
        # Killed in between, it may have kept one more than it said.
        self.perhaps[self.session].add(turns[-1] + 1)
        self._next = turns[-1] + 2

    def check(self, server: Server, bank: str) -> None:
        self.host.deliver()
        check(server, bank, self.given, perhaps=self.perhaps)


@rounds(8, 100)
def test_client_killed_at_random(rounds: int, server: Server, bank: str, new_host: NewHost) -> None:
    """Programs killed at any moment, their requests cut at random: no turn is lost or doubled."""
    with Proxy(server.url, at_random(0.3, seed=rounds)) as proxy:
        killed = Killed(new_host(proxy.url, bank), "s", seed=rounds)
        for _ in range(rounds):
            killed.round()
        killed.check(server, bank)
        cut = {exchange.cut for exchange in proxy.exchanges} & set(Cut)
        assert len(cut) >= min(4, rounds // 8)  # few programs make few requests


@rounds(1, 10)
def test_server_stopped_and_started(
    rounds: int, mortal: Server, bank: str, new_host: NewHost
) -> None:
    """While the server is stopped turns wait on disk; they arrive when it is back."""
    host = new_host(mortal.url, bank)
    program = host.give("s", turns=200 * rounds, pause=0.02, then="flush", seconds=120)
    for turn in range(rounds):
        program.until_given(200 * turn + 30)
        mortal.stop()
        program.until_given(200 * turn + 170)
        mortal.start()
    program.end()
    assert program.said("flushed") == ["True"]
    said = program.said("trouble")
    assert "turns are saved on disk" in said[0]
    assert said[-1] == "Hindsight is back; all turns have arrived"
    check(mortal, bank, [program.given])


@rounds(2, 10)
def test_server_killed_at_random(rounds: int, mortal: Server, bank: str, new_host: NewHost) -> None:
    """A server killed at any moment stores each turn once, when it is back."""
    chance = random.Random(rounds)
    host = new_host(mortal.url, bank)
    program = host.give("s", "t", turns=100 * rounds, pause=0.02, then="flush", seconds=120)
    for turn in range(rounds):
        program.until_given(200 * turn + chance.randint(10, 190))
        time.sleep(chance.uniform(0, 0.3))  # the moment is what is random here
        mortal.kill()
        mortal.start()
    program.end()
    assert program.said("flushed") == ["True"]
    check(mortal, bank, [program.given])


@rounds(1, 10)
@pytest.mark.parametrize("moment", ["accepted", "stored", "completed"])
def test_server_killed_right_after_a_commit(
    rounds: int, moment: str, mortal: Server, bank: str, new_host: NewHost
) -> None:
    """A server killed right after a commit, before it told anybody, stores each turn once."""
    query = {"accepted": ACCEPTED, "stored": STORED, "completed": COMPLETED}[moment]
    host = new_host(mortal.url, bank)
    given = []
    for turn in range(rounds):
        shot = mortal.aim(query)
        program = host.give("s", first=20 * turn, turns=20, then="flush", seconds=120)
        assert shot.hit()
        mortal.start()
        program.end()
        assert program.said("flushed") == ["True"]
        given.append(program.given)
    check(mortal, bank, given)


@pytest.mark.soak
def test_both_killed_at_random(mortal: Server, bank: str, new_host: NewHost) -> None:
    """Client and server killed in turn, requests cut at random: each turn is stored once."""
    with Proxy(mortal.url, at_random(0.3, seed=5)) as proxy:
        # A server takes seconds to start, and the turns given meanwhile are to be stored, too.
        killed = Killed(new_host(proxy.url, bank), "s", seed=5, pause=0.05)

        def kill(program: Program) -> None:
            mortal.kill()
            mortal.start()

        for _ in range(10):
            killed.round(kill)
            killed.round()
        proxy.plan = lambda exchange: None  # what is left now is much, and was cut enough
        killed.check(mortal, bank)


@pytest.mark.soak
def test_appending_doubles_what_these_kills_do_not(mortal: Server, bank: str) -> None:
    """The control: in the same kill, turns appended to one document are stored twice."""
    url = f"{mortal.url}/v1/default/banks/{bank}/memories"
    for number in range(10):
        shot = mortal.aim(STORED)
        item = {
            "content": f'[{{"role": "user", "content": "line {number}"}}]',
            "document_id": "appended",
            "update_mode": "append",
        }
        with suppress(OSError, HTTPException):  # it may fall before it has answered
            request("POST", url, {"items": [item], "async": True})
        assert shot.hit()
        mortal.start()
        eventually(lambda: not mortal.sql(BUSY))
    text = mortal.sql(f"SELECT original_text FROM documents WHERE bank_id = '{bank}'")
    lines = [text[0]["original_text"].count(f'"line {number}"') for number in range(10)]
    assert min(lines) >= 1
    assert max(lines) > 1


def test_turns_beside_the_bundled_provider(server: Server, bank: str, new_host: NewHost) -> None:
    """A bank that also holds one growing document a session lists and recalls both by tag."""
    url = f"{server.url}/v1/default/banks/{bank}"
    for number in range(20):  # as the bundled provider appends: a list of turns
        turn = [{"role": "user", "content": f"User: Turn <s#{number}> in the old way, tram"}]
        old = {
            "content": f"[{json.dumps(turn)}]",
            "document_id": "s",
            "update_mode": "append",
            "tags": ["session:s"],
        }
        assert request("POST", f"{url}/memories", {"items": [old], "async": False})[0] == 200
    program = new_host(server.url, bank).give("s", first=20, turns=40, then="flush", seconds=60)
    program.end()

    listed = request("GET", f"{url}/documents?tags=session:s&limit=1000")[1]["items"]
    names = sorted(document["id"] for document in listed)
    assert names[0] == "s"
    assert all(name.startswith("s/") for name in names[1:])
    found: list[int] = []
    for name in names:
        text = request("GET", f"{url}/documents/{name}")[1]["original_text"]
        found += [number for _, number in turns_of(text)]
    assert found == list(range(60))

    query = {"query": "Turn s tram word31", "tags": ["session:s"], "tags_match": "any_strict"}
    results = request("POST", f"{url}/memories/recall", query)[1]["results"]
    recalled = {result["document_id"] for result in results}
    assert "s" in recalled
    assert any(name.startswith("s/") for name in recalled)


def test_recall_finds_what_was_retained(server: Server, bank: str, new_host: NewHost) -> None:
    """Once a flush has waited for completion, recall finds the turns; tags keep sessions apart."""
    program = new_host(server.url, bank).give("rome", "oslo", turns=5, then="flush", seconds=60)
    program.end()
    assert program.said("flushed") == ["True"]
    url = f"{server.url}/v1/default/banks/{bank}/memories/recall"
    found = request("POST", url, {"query": "Turn oslo#3"})[1]["results"]
    assert any("<oslo#3>" in memory["text"] for memory in found)
    query = {"query": "Turn oslo#3", "tags": ["session:rome"], "tags_match": "any_strict"}
    found = request("POST", url, query)[1]["results"]
    assert found
    assert all(memory["document_id"].startswith("rome/") for memory in found)
