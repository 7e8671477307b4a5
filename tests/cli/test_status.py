"""status for monitors, flush in an environment that lacks something, and wrong state directories."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from running import Cli
from serving import Serving, free_port, stored
from waiting import eventually

from hindsight_exec.outbox.schema import VERSION

pytestmark = pytest.mark.slow

# A program as a user of Hermes calls it.
AS_HERMES = (
    "import sys; from hindsight_exec.cli.main import main;"
    " sys.exit(main(sys.argv[1:], program='hermes hindsight_exec'))"
)


def test_a_check_for_monitors(cli: Cli, server: Serving) -> None:
    """Waiting too long, a dead letter and an unreadable file are status 1, with the reason."""
    assert cli("status", "--check").status == 0
    cli.give(f"http://127.0.0.1:{free_port()}", 2)
    done = cli("status", "--check", "--max-age", "15min")
    assert (done.status, done.out) == (0, "ok: no turn waits too long, and none is dead\n")
    eventually(lambda: cli("status", "--check", "--max-age", "0.05s").status == 1)
    done = cli("status", "--check", "--max-age", "0.05s")
    assert done.status == 1
    assert "a turn waits for " in done.out
    assert f" in {cli.state} (limit 0 s)" in done.out
    cli.give(server.url, 1, bank="_reserved")
    cli("flush", "--timeout", "1")
    (cli.state / "x.damaged-20260101T000000.aside").write_text("")
    done = cli("status", "--check", "--json")
    assert done.status == 1
    assert done.json["problems"] == [
        f"1 dead letter in {cli.state}",
        f"1 unreadable file in {cli.state}",
    ]


def test_files_that_this_version_cannot_read(cli: Cli) -> None:
    """A newer file, a damaged one and those set aside are told apart, each with what to do."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1)
    (newer,) = cli.state.glob("*.db")
    with contextlib.closing(sqlite3.connect(newer)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    damaged = newer.with_name(f"f{newer.name[1:]}")
    damaged.write_bytes(b"no database" * 1000)
    for reason in ("newer", "damaged"):
        (cli.state / f"0.{reason}-20260101T000000.aside").write_text("")
    expected = [
        (
            "newer",
            f"a newer hindsight-exec wrote {newer.name}; it is left as it is",
            "start the newer version: it delivers the turns",
        ),
        (
            "damaged",
            f"the outbox {damaged} is damaged",
            "run 'hindsight-exec flush' to deliver what can be read and set the file aside",
        ),
        (
            "set aside",
            "0.damaged-20260101T000000.aside was damaged; what could be read",
            "look at it, or delete it",
        ),
        (
            "set aside",
            "a newer hindsight-exec wrote 0.newer-20260101T000000.aside; its turns were not sent",
            "rename it to 0.db, then start the newer version",
        ),
    ]
    shown = cli("status").out.splitlines()[-len(expected) :]
    checks = [check for check in cli("doctor", "--json").json if "hindsight" not in check["name"]]
    checks = [check for check in checks if check["name"] in {kind for kind, *_ in expected}]
    for line, check, (kind, about, remedy) in zip(shown, checks, expected):
        assert line.startswith(f"  {kind}")
        assert about in line
        assert line.endswith(remedy)
        assert (check["name"], check["state"], check["remedy"]) == (kind, "warning", remedy)
        assert about in check["found"]
    assert len(shown) == len(checks) == len(expected)
    assert f"4 unreadable files in {cli.state}" in cli("status", "--check").out


def test_metrics(cli: Cli) -> None:
    """Prometheus' text format: each metric with its help and type, and a value for each directory."""
    cli.give(f"http://127.0.0.1:{free_port()}", 2)
    lines = cli("status", "--prometheus").out.splitlines()
    values = {}
    for help_, type_, value in zip(*[iter(lines)] * 3):
        name = type_.split()[2]
        assert help_.startswith(f"# HELP {name} ")
        assert type_ == f"# TYPE {name} gauge"
        found = re.fullmatch(r'(\w+)\{folder="([^"]*)"\} ([0-9.]+)', value)
        assert found is not None
        assert (found[1], found[2]) == (name, str(cli.state))
        values[name] = float(found[3])
    assert values["hindsight_exec_waiting_turns"] == 2
    assert values["hindsight_exec_dead_turns"] == 0
    assert values["hindsight_exec_oldest_waiting_seconds"] > 0
    assert values["hindsight_exec_outbox_bytes"] > 100


def test_flush_without_the_key(cli: Cli) -> None:
    """An environment that lacks the server or the key of turns hears which, not that time is up."""
    serving = Serving(api_key="sesame")
    configured = {"HINDSIGHT_API_URL": serving.url, "HINDSIGHT_API_KEY": "sesame"}
    leave = (
        "import os, sys; from pathlib import Path; from hindsight_exec import RetainWriter, Settings\n"
        "writer = RetainWriter(eval(sys.argv[2]), state=Path(sys.argv[1]))\n"
        "writer.put([{'role': 'user', 'content': 'x'}], session='s')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    try:
        for settings, reason in (
            ("Settings.load()", f"{serving.url} is not configured here; set HINDSIGHT_API_URL"),
            (
                f"Settings(api_url={serving.url!r}, api_key='sesame')",
                f"a program gave the key for {serving.url}; set HINDSIGHT_API_KEY to this key",
            ),
        ):
            command = [sys.executable, "-c", leave, str(cli.state), settings]
            subprocess.run(command, env={**cli.environ, **configured}, check=False)
            done = cli("flush", "--timeout", "5")
            assert (done.status, done.out) == (1, "")
            assert f"1 turn still waiting: {reason}" in done.err
            asked = {check["name"]: check for check in cli("doctor", "--json").json}
            assert reason in asked["waiting"]["remedy"]
            assert cli("flush", **configured).status == 0
    finally:
        serving.close()


def test_a_folder_of_hermes_that_was_renamed(cli: Cli) -> None:
    """Its turns find their key in the folder where they are now, for the server that it names."""
    serving = Serving(api_key="sesame")
    before, after = cli.folder / "old", cli.folder / "new"
    (before / "hindsight").mkdir(parents=True)
    (before / ".env").write_text("HINDSIGHT_API_KEY=sesame\n")
    leave = (
        "import os, sys; from pathlib import Path; from hindsight_exec import RetainWriter, Settings\n"
        "home = Path(sys.argv[1])\n"
        "writer = RetainWriter(Settings.load(home), state=home / 'hindsight' / 'outbox')\n"
        "writer.put([{'role': 'user', 'content': 'x'}], session='s')\n"
        "os.kill(os.getpid(), 9)\n"
    )

    def configure(home: Path, url: str) -> None:
        (home / "hindsight" / "config.json").write_text(json.dumps({"api_url": url}))

    try:
        configure(before, serving.url)
        command = [sys.executable, "-c", leave, str(before)]
        subprocess.run(command, env=cli.environ, check=False)
        before.rename(after)
        cli.environ["HINDSIGHT_EXEC_STATE"] = str(after / "hindsight" / "outbox")
        configure(after, f"http://127.0.0.1:{free_port()}")
        done = cli("flush", "--timeout", "5")
        assert (done.status, "is not the server that" in done.err) == (1, True)
        configure(after, serving.url)
        assert cli("flush").status == 0
        assert [*stored(serving.url, bank="hermes", key="sesame")] == ["s"]
    finally:
        serving.close()


def test_doctor_asks_the_servers_of_waiting_turns(cli: Cli, server: Serving) -> None:
    """A server that turns wait for is checked, though another one is configured."""
    gone = f"http://127.0.0.1:{free_port()}"
    cli.give(gone, 1)
    done = cli("doctor", "--json", HINDSIGHT_API_URL=server.url)
    servers = [check for check in done.json if check["name"] == "server"]
    assert [check["state"] for check in servers] == ["ok", "failed"]
    assert gone in servers[1]["found"]


@pytest.mark.parametrize("command", ["status", "flush", "outbox list", "dead list", "doctor"])
def test_a_wrong_state_directory(cli: Cli, command: str) -> None:
    """A --state that is no state directory is an error that names it, and perhaps the right one."""
    (cli.folder / "hermes" / "hindsight" / "outbox").mkdir(parents=True)
    for name, words in (
        ("nowhere", "no state directory"),
        ("hermes", f"did you mean {cli.folder / 'hermes' / 'hindsight' / 'outbox'}?"),
    ):
        done = cli(*command.split(), "--state", str(cli.folder / name))
        assert done.status == (1 if command == "doctor" else 2)
        assert words in (done.out if command == "doctor" else done.err)
        assert not (cli.folder / "nowhere").exists()


@pytest.mark.parametrize("command", ["status --check", "flush", "outbox purge --yes"])
def test_a_state_directory_that_cannot_be_read(cli: Cli, command: str) -> None:
    """It never reads as "nothing waits", also where the environment names it."""
    cli.environ["HINDSIGHT_EXEC_STATE"] = str(cli.folder / "file")
    (cli.folder / "file").write_text("")
    done = cli.one_line(*command.split())
    assert done.status == 2
    assert "Not a directory; check HINDSIGHT_EXEC_STATE" in done.err


def test_flush_beside_a_file_that_cannot_be_read(cli: Cli) -> None:
    """Nobody knows how many turns such a file holds: it is no turn, and keeps the status at 1."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1)
    (newer,) = cli.state.glob("*.db")
    with contextlib.closing(sqlite3.connect(newer)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    done = cli("flush")
    assert done.status == 1
    assert f"hindsight-exec: 1 unreadable file still waiting: {newer} has schema" in done.err
    assert cli("flush", "--json").json["waiting"] == 0


def test_advice_names_commands_of_the_program(cli: Cli) -> None:
    """Advice can be typed as it stands: for the directory, and for the program that gave it."""
    url = f"http://127.0.0.1:{free_port()}"
    cli.give(url, 1)
    assert "→ hindsight-exec flush\n" in cli("status").out
    state = ["--state", str(cli.state)]
    assert f"→ hindsight-exec flush --state {cli.state}\n" in cli("status", *state).out
    for command in ("status", "doctor", "flus"):
        asked = [sys.executable, "-c", AS_HERMES, command]
        shown = subprocess.run(asked, env=cli.environ, capture_output=True, text=True, check=False)
        assert "hindsight-exec flush" not in shown.stdout
        wanted = "--help" if command == "flus" else "flush"
        assert f"hermes hindsight_exec {wanted}" in shown.stdout + shown.stderr
