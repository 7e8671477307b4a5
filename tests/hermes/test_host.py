"""Whatever way the real Hermes host ends, each turn is stored once.

The model is a stand-in, the server the embedded one. `hosts.py` says which Hermes it may be.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from .hosts import HERMES, NEW_SESSION, Chat, Gateway, Terminal, Tui, marks, settle, until
from .llm import REPLY
from .recording import configure
from .test_embedded import Daemon

pytestmark = marks


def test_one_question(host, hindsight):
    """`chat -q`: the turn is stored once when it ends, in silence."""
    out = host.run(host.hermes, "chat", "-q", "the door is blue", "-Q")
    assert REPLY in out
    assert hindsight.said() == ["the door is blue"]
    (document,) = hindsight.documents()
    assert document.metadata["platform"] == "cli"
    assert document.tags == [f"session:{document.id.split('/')[0]}"]
    # It was retained live, and may go on.
    assert "0 sessions to import" in host.run(host.hermes, "hindsight_exec", "import")
    host.check_silence()


def test_the_repository_is_a_plugin(host, hindsight, clone, request):
    """`hermes plugins install` of a clone is enough: the turn is stored, the commands are there."""
    host.run(host.ours, "hermes", "uninstall")
    arguments = ["--no-enable"]
    if HERMES.generation >= (0, 22):
        host.use(request.getfixturevalue("checkout"))
        arguments = ["--yes-deps", *arguments]
    out = host.run(host.hermes, "plugins", "install", clone.as_uri(), *arguments)
    if HERMES.generation >= (0, 22):
        # Recognised as what it is, before it is run.
        assert "emory provider installed but not active" in " ".join(out.split())
    host.run(host.hermes, "config", "set", "memory.provider", "hindsight_exec")
    assert REPLY in host.run(host.hermes, "-z", "the door is blue")
    assert hindsight.said() == ["the door is blue"]
    assert "waiting" in host.run(host.hermes, "hindsight_exec", "status")
    host.check_silence()


def test_one_shot(host, hindsight):
    """`-z`: the turn is stored once when it ends."""
    assert REPLY in host.run(host.hermes, "-z", "the door is blue")
    assert hindsight.said() == ["the door is blue"]
    host.check_silence()


def test_memory_is_shown_to_the_model(host, hindsight, llm):
    """What was recalled reaches the model as data, and is not retained again."""
    memory = {"id": "1", "text": "the door is blue", "type": "observation"}
    hindsight.answer("/recall", 200, {"results": [memory]})
    host.run(host.hermes, "-z", "which colour has the door?")
    # A later Hermes also has the session named, at the same time and without tools.
    (chat,) = [one for one in llm.chats if one.get("tools")]
    asked = json.dumps(chat["messages"])
    assert "the door is blue" in asked
    assert "untrusted data" in asked
    assert "hindsight_recall" in json.dumps(chat["tools"])
    (document,) = hindsight.documents()
    assert "blue" not in json.dumps(document.messages)
    host.check_silence()


def test_exit(host, hindsight):
    """`/exit` after two turns: both are stored once, in one document."""
    chat = Chat(host)
    for number in (1, 2):
        chat.type(f"turn-{number}")
        # The first recall is for a session's first message, the others follow its turns.
        hindsight.wait_for("/recall", number + 1)
    chat.type("/exit")
    assert chat.end() == 0
    assert hindsight.said() == ["turn-1", "turn-2"]
    assert len(hindsight.documents()) == 1
    host.check_silence()


def test_new(host, hindsight):
    """`/new` after two turns: they are stored once, the next turn under the new session."""
    chat = Chat(host)
    for number in (1, 2):
        chat.type(f"turn-{number}")
        hindsight.wait_for("/recall", number + 1)
    chat.type("/new")
    hindsight.wait_for_turns(2)
    chat.read_until(NEW_SESSION)
    chat.type("turn-3")
    hindsight.wait_for("/recall", 5)
    chat.type("/exit")
    assert chat.end() == 0
    assert hindsight.said() == ["turn-1", "turn-2", "turn-3"]
    old, new = hindsight.documents()
    assert old.tags == [f"session:{old.id.split('/')[0]}"]
    assert new.tags == [f"session:{new.id.split('/')[0]}", f"parent:{old.id.split('/')[0]}"]
    host.check_silence()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_right_after_the_reply(host, hindsight, number):
    """SIGTERM and SIGHUP right after the reply: the turn is stored once."""
    chat = Chat(host)
    chat.type("turn-1")
    hindsight.wait_for("/recall", 2)
    chat.process.send_signal(number)
    chat.end()
    settle(host, hindsight, ["turn-1"])


def test_killed_right_after_the_turn(host, hindsight):
    """SIGKILL once the turn is on disk: the next start stores it, once."""
    chat = Chat(host)
    chat.type("turn-1")
    until(lambda: host.kept() == 1, "the turn never came to disk")
    chat.process.kill()
    chat.end()
    assert hindsight.said() == []
    settle(host, hindsight, ["turn-1"])


@pytest.mark.parametrize("ending", ["EOF", "SIGTERM"])
def test_tui(host, hindsight, ending):
    """The TUI left right after the reply, by the end of its input or SIGTERM: the turn is stored once."""
    tui = Tui(host)
    tui.say("turn-1")
    tui.end(None if ending == "EOF" else signal.SIGTERM)
    settle(host, hindsight, ["turn-1"])


def test_gateway(host, hindsight):
    """The gateway ended by SIGTERM right after its reply: the turn is stored once."""
    gateway = Gateway(host)
    gateway.say("turn-1")
    gateway.end(signal.SIGTERM)
    settle(host, hindsight, ["turn-1"])


def test_server_down(host, hindsight):
    """With the server down the chat goes on and says so; the next start stores the turn."""
    hindsight.stop()
    assert REPLY in host.run(host.hermes, "chat", "-q", "turn-1", "-Q")
    shown = host.run(host.hermes, "memory", "status")
    assert "waiting: 1 turn," in shown
    hindsight.start()
    settle(host, hindsight, ["turn-1"])


def test_commands(host):
    """Hermes lists the provider and offers our commands."""
    shown = host.run(host.hermes, "memory", "status")
    assert "Provider:  hindsight_exec" in shown
    assert "available" in shown
    assert "waiting: 0 turns" in shown
    host.run(host.hermes, "hindsight_exec", "status")
    host.run(host.hermes, "hindsight_exec", "flush")
    host.run(host.hermes, "hindsight_exec", "doctor")
    host.check_silence()


def test_setup(host, hindsight, request):
    """`hermes memory setup`: our questions on a real terminal, the key unseen, and a working provider."""
    if HERMES.generation >= (0, 22):
        host.use(request.getfixturevalue("checkout"))  # it brings what the manifest names
    host.run(host.hermes, "config", "set", "memory.provider", "none")
    configure(host.home, api_url="http://127.0.0.1:1", recall_budget="low")
    setup = Terminal(host, "memory", "setup", "hindsight_exec")
    for prompt, answer in (
        ("[local_external]: ", ""),
        ("[http://127.0.0.1:1]: ", hindsight.url),
        ("[none]: ", "SECRET-KEY"),
        ("[hermes]: ", "b"),
    ):
        setup.read_until(prompt)
        os.write(setup.master, answer.encode() + b"\n")
    assert setup.end() == 0
    assert "Ready" in host.printed
    assert "SECRET" not in host.printed
    saved = json.loads((host.home / "hindsight" / "config.json").read_text())
    assert (saved["api_url"], saved["bank_id"]) == (hindsight.url, "b")
    assert saved["recall_budget"] == "low"
    assert "HINDSIGHT_API_KEY=SECRET-KEY" in (host.home / ".env").read_text()
    assert "Provider:  hindsight_exec" in host.run(host.hermes, "memory", "status")
    host.check_silence()


def test_embedded_daemon(host, hindsight, tmp_path):
    """A daemon that does not come up holds up no chat; once it does, the turns arrive."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    daemon = Daemon(folder, Path(host.environment["HOME"]))
    (folder / "port").write_text(hindsight.url.rpartition(":")[2])
    hindsight.stop()
    configure(host.home, mode="local_embedded")
    host.environment.update(
        STAND_IN=str(folder),
        PYTHONPATH=str(folder),
        HINDSIGHT_EMBED_API_DATABASE_URL="postgresql://elsewhere",  # else root may not
    )
    assert REPLY in host.run(host.hermes, "chat", "-q", "turn-1", "-Q")
    until(daemon.asked, "nobody asked for the daemon")
    assert "waiting: 1 turn," in host.run(host.hermes, "memory", "status")
    hindsight.start()
    daemon.let()
    until(lambda: "HINDSIGHT_API_PORT" in daemon.profile.read_text(), "it never came up")
    settle(host, hindsight, ["turn-1"])


def test_the_base_class(host):
    """The provider is Hermes' own kind, and has every method that its base class names."""
    host.run(
        [sys.executable, "-c"],
        "from agent.memory_provider import MemoryProvider as Base;"
        "from hindsight_exec.hermes import HindsightMemoryProvider as Ours;"
        "assert issubclass(Ours, Base); Ours();"
        "missing = [n for n in dir(Base) if not n.startswith('_') and n not in Ours.__dict__];"
        "assert not missing, missing",
    )
