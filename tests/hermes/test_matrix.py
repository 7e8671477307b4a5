"""Each host, each way to use it and to leave it: what was given, what is stored, and the time to exit.

With HERMES_MATRIX=FILE the results go into that file, from which `docs/hermes.py` makes the
table of `docs/hermes.md`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from .hosts import HERMES, NEW_SESSION, Chat, Gateway, Terminal, Tui, marks, until
from .llm import REPLY
from .recording import configure

pytestmark = [*marks, pytest.mark.soak]

RESULTS = os.environ.get("HERMES_MATRIX")  # the tests' environment has none of these variables


class Seen(NamedTuple):
    """What a scenario gave, and how long its last process took to end."""

    given: list[str]
    seconds: float | None = None
    bank: str = "hermes"


def timed(end, *args):
    began = time.monotonic()
    end(*args)
    return time.monotonic() - began


def command(host, *args):
    """A command of its own; its time is that of all of it."""
    return timed(host.run, host.hermes, *args)


def chatted(host, hindsight, turns=1):
    chat = Chat(host)
    for number in range(1, turns + 1):
        chat.type(f"turn-{number}")
        hindsight.wait_for("/recall", number + 1)
    return chat


def session_of(host):
    """The only session that the host has saved."""
    with closing(sqlite3.connect(host.home / "state.db")) as database:
        ((session,),) = database.execute("SELECT id FROM sessions").fetchall()
    return session


def leave(chat):
    chat.type("/exit")
    return timed(chat.end)


def one_question(host, hindsight, request):
    return Seen(["turn-1"], command(host, "chat", "-q", "turn-1", "-Q"))


def one_shot(host, hindsight, request):
    return Seen(["turn-1"], command(host, "-z", "turn-1"))


def exit_(host, hindsight, request):
    return Seen(["turn-1", "turn-2"], leave(chatted(host, hindsight, 2)))


def new(host, hindsight, request):
    chat = chatted(host, hindsight, 2)
    chat.type("/new")
    hindsight.wait_for_turns(2)
    chat.read_until(NEW_SESSION)
    chat.type("turn-3")
    hindsight.wait_for("/recall", 5)
    return Seen(["turn-1", "turn-2", "turn-3"], leave(chat))


def resume(host, hindsight, request):
    host.run(host.hermes, "chat", "-q", "turn-1", "-Q")
    chat = Chat(host, "--resume", session_of(host))
    seen = len(hindsight.requests("/recall"))
    chat.type("turn-2")
    hindsight.wait_for("/recall", seen + 1)
    until(lambda: host.kept() >= 1, "the turn never came to disk")
    return Seen(["turn-1", "turn-2"], leave(chat))


def compress(host, hindsight, request):
    chat = chatted(host, hindsight, 5)
    asked = len(request.getfixturevalue("llm").chats)
    chat.type("/compress")
    chat.read_until("ompress")
    until(lambda: len(request.getfixturevalue("llm").chats) > asked, "nothing was compressed")
    time.sleep(3)  # what is typed before it is done is dropped
    seen = len(hindsight.requests("/recall"))
    chat.type("turn-6")
    hindsight.wait_for("/recall", seen + 1)
    until(lambda: "turn-6" in host.conversation(), "the turn was never saved")
    return Seen([f"turn-{number}" for number in range(1, 7)], leave(chat))


def _signalled(number):
    def signalled(host, hindsight, request):
        chat = chatted(host, hindsight)
        chat.process.send_signal(number)
        return Seen(["turn-1"], timed(chat.end))

    return signalled


def killed(host, hindsight, request):
    chat = Chat(host)
    chat.type("turn-1")
    chat.read_until(REPLY)
    chat.process.kill()
    chat.end()
    # What the host had not handed over yet when its reply appeared was never given.
    return Seen(["turn-1"] * min(1, host.kept()))


def tui_eof(host, hindsight, request):
    tui = Tui(host)
    tui.say("turn-1")
    return Seen(["turn-1"], timed(tui.end))


def tui_terminated(host, hindsight, request):
    tui = Tui(host)
    tui.say("turn-1")
    return Seen(["turn-1"], timed(tui.end, signal.SIGTERM))


def gateway_terminated(host, hindsight, request):
    gateway = Gateway(host)
    gateway.say("turn-1")
    return Seen(["turn-1"], timed(gateway.end, signal.SIGTERM))


def gateway_killed(host, hindsight, request):
    gateway = Gateway(host)
    gateway.say("turn-1")
    until(lambda: host.kept() or hindsight.said(), "the turn never came to disk")
    gateway.end(signal.SIGKILL)
    return Seen(["turn-1"])


def cron(host, hindsight, request):
    host.run(host.hermes, "cron", "create", "every 1h", "do-it", "--name", "job")
    job = re.search(r"\b[0-9a-f]{12}\b", host.run(host.hermes, "cron", "list"))
    host.run(host.hermes, "cron", "run", job[0])
    seconds = command(host, "cron", "tick")
    until(lambda: "do-it" in json.dumps(request.getfixturevalue("llm").chats), "it never ran")
    return Seen([], seconds)


def delegation(host, hindsight, request):
    seconds = command(host, "-z", "delegate: subtask")
    asked = [chat["messages"] for chat in request.getfixturevalue("llm").chats]
    assert any(
        "subtask" in json.dumps(one) and "delegate: " not in json.dumps(one) for one in asked
    )
    return Seen(["delegate: subtask"], seconds)


def profile(host, hindsight, request):
    host.run(host.hermes, "profile", "create", "work", "--clone", "--no-alias")
    home = host.home / "profiles" / "work"
    configure(home, api_url=hindsight.url, bank_id="work")
    host.run(host.ours, "hermes", "install", "--yes", "--home", str(home))
    return Seen(["turn-1"], command(host, "-p", "work", "-z", "turn-1"), "work")


def isolation(host, hindsight, request):
    if HERMES.generation < (0, 22):
        pytest.skip("Hermes before 0.22 has no plugins.isolation")
    with (host.home / "config.yaml").open("a") as config:
        config.write("plugins:\n  isolation: host\n")
    return Seen(["turn-1"], command(host, "-z", "turn-1"))


def setup(host, hindsight, request):
    if HERMES.generation >= (0, 22):
        host.use(request.getfixturevalue("checkout"))
    wizard = Terminal(host, "memory", "setup", "hindsight_exec")
    for prompt in ("[local_external]: ", f"[{hindsight.url}]: ", "[none]: ", "[hermes]: "):
        wizard.read_until(prompt)
        os.write(wizard.master, b"\n")
    seconds = timed(wizard.end)
    assert "Ready" in host.printed
    return Seen([], seconds)


def status(host, hindsight, request):
    seconds = command(host, "memory", "status")
    assert "waiting: 0 turns" in host.printed
    host.run(host.hermes, "hindsight_exec", "status")
    return Seen([], seconds)


def doctor(host, hindsight, request):
    return Seen([], command(host, "hindsight_exec", "doctor"))


def import_(host, hindsight, request):
    host.run(host.ours, "hermes", "uninstall")
    host.run(host.hermes, "-z", "turn-1")
    assert hindsight.said() == []
    host.run(host.ours, "hermes", "install", "--yes")
    # One that has just ended may go on: it is taken when it is named.
    return Seen(
        ["turn-1"],
        command(host, "hindsight_exec", "import", "--yes", f"--session={session_of(host)}"),
    )


def from_a_clone(host, hindsight, request):
    host.run(host.ours, "hermes", "uninstall")
    arguments = ["plugins", "install", request.getfixturevalue("clone").as_uri(), "--no-enable"]
    if HERMES.generation >= (0, 22):
        host.use(request.getfixturevalue("checkout"))
        arguments.append("--yes-deps")
    host.run(host.hermes, *arguments)
    host.run(host.hermes, "config", "set", "memory.provider", "hindsight_exec")
    return Seen(["turn-1"], command(host, "-z", "turn-1"))


def update(host, hindsight, request):
    if HERMES.generation < (0, 22):
        pytest.skip("an update of Hermes before 0.22 leaves plugins as they are")
    checkout = request.getfixturevalue("checkout")
    host.use(checkout)
    host.run(host.hermes, "memory", "setup", "hindsight_exec")
    host.run(checkout.update())
    python = [host.python, "-m", "hermes_cli.main"]
    return Seen(["turn-1"], timed(host.run, python, "-z", "turn-1"))


SCENARIOS = {
    "`chat -q`": one_question,
    "`-z`": one_shot,
    "`/exit`": exit_,
    "`/new`": new,
    "`/resume`": resume,
    "`/compress`": compress,
    "SIGTERM as the reply shows": _signalled(signal.SIGTERM),
    "SIGHUP as the reply shows": _signalled(signal.SIGHUP),
    "SIGKILL as the reply shows": killed,
    "TUI, end of input": tui_eof,
    "TUI, SIGTERM": tui_terminated,
    "gateway, SIGTERM": gateway_terminated,
    "gateway, SIGKILL": gateway_killed,
    "cron": cron,
    "delegation": delegation,
    "another profile": profile,
    "`plugins.isolation: host`": isolation,
    "`memory setup`": setup,
    "`memory status`": status,
    "`doctor`": doctor,
    "`import`": import_,
    "installed from a clone": from_a_clone,
    "after an update": update,
}


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_scenario(host, hindsight, request, name):
    """Each turn that the host gave is stored once, now or after the next start, in silence."""
    given, seconds, bank = SCENARIOS[name](host, hindsight, request)
    left = len(given) - len(hindsight.said(bank))
    if left:
        host.run(host.ours, "flush", "--state", str(host.home / "hindsight" / "outbox"))
        hindsight.wait_for_turns(len(given))
    stored = hindsight.said(bank)
    heard = host.heard()
    result = {
        "given": len(given),
        "stored": len(stored),
        "later": left,
        "noise": bool(heard),
        "seconds": None if seconds is None else round(seconds, 1),
    }
    if RESULTS:
        path = Path(RESULTS)
        results = json.loads(path.read_text()) if path.exists() else {}
        results.setdefault(name, {})[HERMES.version] = result
        path.write_text(json.dumps(results, indent=1) + "\n")
    assert sorted(stored) == sorted(given)
    assert heard == ""
