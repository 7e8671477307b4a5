"""Streams that are closed, full or of another encoding, terminals that are narrow, and signals."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from children import Process
from running import PROGRAM, Cli, ended
from serving import Serving, documents, free_port, stored
from waiting import eventually

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell's streams")

COMMANDS = [
    (),
    ("--help",),
    ("--version",),
    ("dance",),
    ("status",),
    ("status", "--json"),
    ("flush",),
    ("outbox", "list"),
    ("outbox", "purge"),
    ("dead", "list"),
    ("dead", "retry", "--all"),
    ("doctor",),
    ("retain", "-"),
    ("retain", "nowhere"),
    ("import", "hermes"),
    ("hermes", "status"),
]


def shell(cli: Cli, redirection: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, "bash", *PROGRAM, *args],
        cwd=cli.folder,
        env={**cli.environ, "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_closed_streams(cli: Cli, args: tuple[str, ...]) -> None:
    """With any standard stream closed, a command ends without a traceback, in a status of its own."""
    usual = shell(cli, "</dev/null", *args)
    for redirection in ("<&-", ">&- </dev/null", "2>&- </dev/null", "<&- >&- 2>&-"):
        done = shell(cli, redirection, *args)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert done.returncode == usual.returncode


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
@pytest.mark.parametrize("args", [("--help",), ("status",), ("outbox", "list", "--json")])
def test_a_full_disk_behind_the_output(cli: Cli, args: tuple[str, ...]) -> None:
    """Output that cannot be written is one line on stderr, and status 1."""
    done = shell(cli, ">/dev/full", *args)
    assert done.stderr == "hindsight-exec: cannot write the output: No space left on device\n"
    assert done.returncode == 1


def test_json_is_json_in_every_encoding(cli: Cli) -> None:
    """What a terminal's encoding lacks is an escape of JSON's own."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1, session="grüße🎈")
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = cli("outbox", "list", "--json", PYTHONIOENCODING=encoding)
        assert done.json[0]["session"] == "grüße🎈"


def test_tables_do_not_steer_the_terminal(cli: Cli) -> None:
    """A row stays a line, and control characters of foreign origin are shown as such."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1, bank="b\x1b[31m", session="one\ntwo")
    shown = cli("outbox", "list").out
    assert len(shown.splitlines()) == 2
    assert "one two" in shown
    assert "\x1b" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 20, 40, 79])
def test_narrow_terminals(cli: Cli, columns: int) -> None:
    """Tables are cut to the terminal; help is wrapped, however narrow it is."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1, session="a-session-with-a-long-name" * 3)
    for args in (("outbox", "list"), ("retain", "--help"), ("--help",)):
        terminal, ours = os.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        process = cli.start(*args, stdout=ours, environ={"TERM": "xterm"})
        os.close(ours)
        written = b""
        try:
            while True:
                written += os.read(terminal, 65536)
        except OSError:
            pass  # the end of a terminal
        finally:
            os.close(terminal)
        done = ended(process)
        assert (done.status, done.err) == (0, "")
        if args == ("outbox", "list") and columns > 60:
            lines = re.sub("\x1b\\[[0-9;]*m", "", written.decode()).splitlines()
            assert max(map(len, lines)) <= columns


@pytest.mark.slow
def test_a_locale_without_an_encoding_stores_what_was_typed(cli: Cli, server: Serving) -> None:
    """In the C locale arguments arrive as bytes; UTF-8 is stored as such, all else is refused."""
    cli.transcript(1)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    typed = ("--session", "grüße", "--bank", "b", "--context", "Küche")
    done = cli("retain", "talk.jsonl", "--url", server.url, *typed, **plain)
    assert done.status == 0, done.err
    (session,) = stored(server.url)
    assert session == "grüße"
    latin = os.fsdecode("grüße".encode("latin-1"))
    done = cli.one_line("retain", "talk.jsonl", "--url", server.url, "--session", latin, **plain)
    assert done.status == 2
    assert "not UTF-8" in done.err
    assert len(documents(server.url)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(cli: Cli, number: signal.Signals) -> None:
    """A demo that a signal ends removes its folder and its processes."""
    process = cli.start("demo", "--turns", "2000", environ={"TMPDIR": str(cli.folder)})
    assert process.stdout is not None
    process.stdout.readline()
    eventually(lambda: list(cli.folder.glob("hindsight-exec-*/ours-0/*.db")))
    process.send_signal(number)
    done = ended(process)
    assert (done.status, done.err) == (128 + number, "")
    assert sorted(path.name for path in cli.folder.iterdir()) == ["home"]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(cli.folder) not in listed.stdout


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="PyPy does not tell that a signal was ignored before"
)
def test_a_signal_that_is_ignored_stays_so(cli: Cli) -> None:
    """Under nohup a hang-up does not end a command."""
    ignore = "trap '' HUP; exec \"$@\""
    command = ("status", "--watch", "0.1", "--json")
    process = cli.start(*command, before=("bash", "-c", ignore, "bash"))
    shown = _json_values(process)
    next(shown)
    process.send_signal(signal.SIGHUP)
    next(shown)
    next(shown)
    process.send_signal(signal.SIGTERM)
    assert ended(process).status == 0  # nothing was left undone


def _json_values(process: Process) -> Any:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            yield json.loads(text)
            text = ""
