"""The real Hermes host, driven from outside: whatever way it ends, each turn is stored once.

Needs hermes-agent==0.19.0 in the environment of the tests (``tox -e hermes``).
The model is a stand-in, the server the embedded one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .llm import REPLY, FakeLLM
from .recording import LIMIT, configure
from .test_embedded import Daemon

VERSION = "0.19.0"
try:
    found = importlib.metadata.version("hermes-agent")
except importlib.metadata.PackageNotFoundError:
    found = "not installed"

pytestmark = [
    pytest.mark.hermes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(found != VERSION, reason=f"hermes-agent is {found}; needed is {VERSION}"),
]

NOISE = re.compile(r"Unclosed|cannot schedule|Traceback|never retrieved|was destroyed")
PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}"
START = 120  # seconds for Hermes to start on a busy machine


class Host:
    """Hermes in a folder of its own, with our plugin installed by our command alone."""

    def __init__(self, folder: Path, home: Path, llm: FakeLLM, url: str) -> None:
        self.folder = folder
        self.home = home
        self.printed = ""
        # Hermes leaves sockets of its own unclosed; those to our server are ours.
        self.noise = re.compile(f"{NOISE.pattern}|unclosed.*, {url.rpartition(':')[2]}\\)")
        (folder / "work").mkdir()
        configure(home, api_url=url)
        (home / "config.yaml").write_text(
            f"""\
model:
  default: fake-model
  provider: custom
  base_url: {llm.url}
  api_key: sk-fake
  context_length: 131072
memory:
  memory_enabled: true
  user_profile_enabled: true
approvals:
  destructive_slash_confirm: false
"""
        )
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.endswith("_API_KEY") and not name.startswith(("HINDSIGHT_", "PYTHON"))
        }
        self.environment.update(
            HERMES_HOME=str(home),
            TERM="xterm",
            NO_COLOR="1",
            PYTHONWARNINGS="default::ResourceWarning",
        )
        self._processes: list[subprocess.Popen] = []
        self.run(self.ours, "hermes", "install", "--yes")

    @property
    def ours(self) -> list[str]:
        return [sys.executable, "-m", "hindsight_exec"]

    @property
    def hermes(self) -> list[str]:
        return [str(Path(sys.executable).with_name("hermes"))]

    def run(self, command: list[str], *args: str, status: int | None = 0) -> str:
        """Runs a command to its end; returns what it printed."""
        ended = subprocess.run(
            [*command, *args],
            env=self.environment,
            cwd=self.folder / "work",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START,
            text=True,
            check=False,
        )
        self.printed += ended.stdout
        assert status is None or ended.returncode == status, ended.stdout
        return ended.stdout

    def start(self, command: list[str], **options) -> subprocess.Popen:
        options = {"env": self.environment, "cwd": self.folder / "work", **options}
        process = subprocess.Popen(command, **options)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def check_silence(self) -> None:
        """Nothing in output or logs tells of sessions, futures or tasks left behind."""
        texts = {"output": self.printed}
        for path in (self.home / "logs").rglob("*.log"):
            texts[path.name] = path.read_text(encoding="utf-8", errors="replace")
        # Hermes writes down where a signal found it.
        texts.pop("tui_gateway_crash.log", None)
        for name, text in texts.items():
            found = self.noise.search(text)
            assert found is None, (
                f"{name}: …{text[max(0, found.start() - 500) : found.end() + 1500]}"
            )

    def kept(self) -> int:
        """How many turns are on disk or were, as the outbox files tell."""
        count = 0
        for path in (self.home / "hindsight" / "outbox").glob("*.db"):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database,
            ):
                for table in ("turns", "documents"):
                    count += database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


def until(condition, what: str) -> None:
    """Waits for something that only polling can tell."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Terminal:
    """A command of Hermes on a terminal."""

    def __init__(self, host: Host, *command: str) -> None:
        import pty

        self.host = host
        self.master, slave = pty.openpty()
        self.process = host.start(
            [*host.hermes, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, word: str | None) -> None:
        """Reads until the word is printed; None: until the end."""
        end = time.monotonic() + START
        while word is None or word not in self.text:
            assert time.monotonic() < end, self.text[-3000:]
            ready, _, _ = select.select([self.master], [], [], 1)
            try:
                data = os.read(self.master, 65536) if ready else None
            except OSError:  # the other side has closed it
                data = b""
            if data == b"":
                assert word is None, self.text[-3000:]
                return
            if data is None:
                continue
            if b"\x1b[6n" in data:  # where is the cursor?
                os.write(self.master, b"\x1b[1;1R")
            self.text += re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", data.decode("utf-8", "replace"))

    def type(self, line: str) -> None:
        self.text = ""
        os.write(self.master, line.encode())
        self.read_until(
            line.rsplit(maxsplit=1)[-1]
        )  # its echo; Enter in the same write would be pasted text
        os.write(self.master, b"\r")

    def end(self) -> int:
        self.read_until(None)
        self.host.printed += self.text
        os.close(self.master)
        return self.process.wait(START)


class Chat(Terminal):
    """Hermes' interactive command line."""

    def __init__(self, host: Host) -> None:
        super().__init__(host, "chat")
        self.read_until(PROMPT)


@pytest.fixture
def llm():
    llm = FakeLLM()
    yield llm
    llm.close()


@pytest.fixture
def host(tmp_path, home, llm, hindsight):
    host = Host(tmp_path, home, llm, hindsight.url)
    yield host
    host.close()


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


def test_the_repository_is_a_plugin(host, hindsight):
    """`hermes plugins install` of a checkout is enough: the turn is stored, the commands are there."""
    root = Path(__file__).parents[2]
    if not (root / "plugin.yaml").is_file():
        pytest.skip("the sources are not beside the tests")
    host.run(host.ours, "hermes", "uninstall")
    checkout = host.folder / "checkout"
    parts = ["plugin.yaml", "__init__.py", "cli.py", "config_schema.py", "hindsight_exec"]
    host.run(["git", "init", "-q", str(checkout)])
    for part in parts:
        copy = shutil.copytree if (root / part).is_dir() else shutil.copy
        copy(root / part, checkout / part)
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e"]
    host.run(git, "add", ".")
    host.run(git, "commit", "-q", "-m", "checkout")
    host.run(host.hermes, "plugins", "install", checkout.as_uri(), "--no-enable")
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
    asked = json.dumps(llm.chats[0]["messages"])
    assert "- the door is blue" in asked
    assert "untrusted data" in asked
    assert "hindsight_recall" in json.dumps(llm.chats[0]["tools"])
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
    chat.read_until("New session started")
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
    errors = (host.folder / "errors").open("w")
    tui = host.start(
        [sys.executable, "-m", "tui_gateway.entry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    errors.close()

    def request(method, **params):
        line = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
        tui.stdin.write(json.dumps(line) + "\n")
        tui.stdin.flush()

    def answer(wanted):
        for line in tui.stdout:
            told = json.loads(line)
            if wanted in (told.get("id"), told.get("params", {}).get("type")):
                return told
        raise AssertionError(f"{wanted} never came: {(host.folder / 'errors').read_text()}")

    answer("gateway.ready")
    request("session.create", cols=80)
    session = answer("session.create")["result"]["session_id"]
    request("prompt.submit", session_id=session, text="turn-1")
    answer("message.complete")
    if ending == "EOF":
        tui.stdin.close()
    else:
        tui.send_signal(signal.SIGTERM)
    tui.stdout.read()
    tui.wait(START)
    host.printed += (host.folder / "errors").read_text()
    settle(host, hindsight, ["turn-1"])


def test_gateway(host, hindsight):
    """The gateway ended by SIGTERM right after its reply: the turn is stored once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = "test-key-of-sufficient-length"
    host.environment.update(
        API_SERVER_ENABLED="true",
        API_SERVER_KEY=key,
        API_SERVER_PORT=str(port),
        API_SERVER_HOST="127.0.0.1",
    )
    output = (host.folder / "gateway").open("w")
    gateway = host.start(
        [sys.executable, "-m", "gateway.run"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    output.close()

    def up():
        assert gateway.poll() is None, (host.folder / "gateway").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(up, "the gateway never listened")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "turn-1"}]}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=START) as response:
        assert REPLY in response.read().decode()
    gateway.send_signal(signal.SIGTERM)
    gateway.wait(START)
    host.printed += (host.folder / "gateway").read_text()
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
    """Hermes lists the provider, offers our commands, and finds the panel's settings."""
    shown = host.run(host.hermes, "memory", "status")
    assert "Provider:  hindsight_exec" in shown
    assert "available" in shown
    assert "waiting: 0 turns" in shown
    host.run(host.hermes, "hindsight_exec", "status")
    host.run(host.hermes, "hindsight_exec", "flush")
    host.run(host.hermes, "hindsight_exec", "doctor")
    panel = host.run(
        [sys.executable, "-c"],
        "from plugins.memory.config_schema import get_provider_config_schema as get;"
        "print(get('hindsight_exec').name, len(get('hindsight_exec').fields))",
    )
    assert re.search(r"^hindsight [3-9]\d$", panel, re.MULTILINE)
    host.check_silence()


def test_setup(host, hindsight):
    """`hermes memory setup`: our questions on a real terminal, the key unseen, and a working provider."""
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
        os.write(setup.master, answer.encode() + b"\r")
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


def settle(host, hindsight, expected) -> None:
    """Each turn is stored once: now, or after the next start; and all was silent."""
    if hindsight.said() != expected:
        assert hindsight.said() == []
        host.run(host.hermes, "-z", "next-start")
        expected = sorted([*expected, "next-start"])
    hindsight.wait_for_turns(len(expected))
    assert sorted(hindsight.said()) == expected
    host.check_silence()
