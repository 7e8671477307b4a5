"""A scripted host plays every order of its calls: nothing of one session reaches another."""

from __future__ import annotations

import concurrent.futures
import itertools
import re
from typing import Any

import pytest

from hindsight_exec.delivery.writer import RetainWriter
from hindsight_exec.errors import HindsightExecError
from hindsight_exec.hermes import provider as provider_module
from hindsight_exec.hermes.connection import Connection

LENGTH = 5


class Client:
    """Answers a recall with the bank and the words that were asked for."""

    async def recall(self, bank: str, query: str, **_: Any) -> list[dict[str, str]]:
        return [{"text": f"({bank}) knows ({query})"}]


class ScriptedConnection(Connection):
    """Answers when the script says so, and not before."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.asked: list[tuple[concurrent.futures.Future[Any], Any]] = []

    def submit(self, call: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.asked.append((future, call))
        return future

    def check(self, wait: float) -> str:
        return ""

    def answer(self) -> None:
        """Answer the oldest request that nobody has cancelled."""
        while self.asked:
            future, call = self.asked.pop(0)
            if future.set_running_or_notify_cancel():
                try:
                    call(Client()).send(None)
                except StopIteration as done:
                    future.set_result(done.value)
                return

    def fail(self) -> None:
        while self.asked:
            future, _ = self.asked.pop(0)
            if future.set_running_or_notify_cancel():
                future.set_exception(HindsightExecError("refused"))
                return


class Host:
    """Plays calls to the provider, and checks what comes of each."""

    calls = ("switch", "queue", "queue_late", "answer", "prefetch", "prefetch_late", "sync_late")

    def __init__(self, provider: Any, kept: list[tuple[str, str]]) -> None:
        self.provider = provider
        self.connection = provider._parts.connection
        self.kept = kept
        self.number = 0

    def play(self, script: tuple[str, ...]) -> None:
        self.number += 1
        self.current, self.left = f"{self.number}a", f"{self.number}b"
        self.provider.on_session_switch(self.left)
        self.provider.on_session_switch(self.current)
        self.connection.asked.clear()
        self.kept.clear()
        for call in script:
            getattr(self, call)()
        for session, text in self.kept:
            assert session in text, script

    def switch(self) -> None:
        self.current, self.left = self.left, self.current
        self.provider.on_session_switch(self.current, parent_session_id=self.left)

    def queue(self) -> None:
        self.provider.queue_prefetch(f"words of {self.current}", session_id=self.current)

    def queue_late(self) -> None:
        self.provider.queue_prefetch(f"words of {self.left}", session_id=self.left)

    def answer(self) -> None:
        self.connection.answer()

    def prefetch(self) -> None:
        self.check(self.provider.prefetch("next", session_id=self.current), self.current)

    def prefetch_late(self) -> None:
        self.check(self.provider.prefetch("next", session_id=self.left), self.left)

    def sync_late(self) -> None:
        for session in (self.current, self.left):
            self.provider.sync_turn(f"said in {session}", "ok", session_id=session)

    def check(self, shown: str, session: str) -> None:
        for bank, words in re.findall(r"\((.*?)\) knows \((.*?)\)", shown):
            assert (bank, words) == (f"of-{session}", f"words of {session}")


@pytest.fixture
def host(make, monkeypatch):
    kept: list[tuple[str, str]] = []

    def put(self, messages, *, session, **_):
        kept.append((session, messages[0]["content"]))
        return True

    monkeypatch.setattr(RetainWriter, "put", put)
    monkeypatch.setattr(RetainWriter, "end_session", lambda self, session: None)
    monkeypatch.setattr(provider_module, "Connection", ScriptedConnection)
    values = {"recall_wait_seconds": 0, "recall_unprocessed": False}
    provider = make("start", bank_id_template="of-{session}", **values)
    return Host(provider, kept)


@pytest.mark.slow
@pytest.mark.parametrize("length", range(1, LENGTH + 1))
def test_every_order_of_calls(host, length):
    """Whatever order the host calls in, memories and turns stay in their session."""
    shown = 0
    check = host.check

    def counting(text, session):
        nonlocal shown
        shown += bool(text)
        check(text, session)

    host.check = counting
    for script in itertools.product(Host.calls, repeat=length):
        host.play(script)
    assert shown or length < 3  # queue, answer, prefetch show something
