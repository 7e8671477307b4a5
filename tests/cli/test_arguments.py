"""Arguments, errors and exit statuses of the command line, and its way in short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from running import Cli
from scripted_server import ScriptedServer
from serving import Serving, ServingProcess, free_port, stored, texts

import hindsight_exec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_the_way_of_a_turn(cli: Cli, tmp_path: Path) -> None:
    """Turns wait while the server is down, are shown, are delivered by flush, and are stored once."""
    server = ServingProcess(tmp_path / "server")
    cli.give(server.url, 3)
    assert "waiting   3 turns" in cli("status").out
    assert cli("flush", "--timeout", "1").status == 1
    server.start()
    try:
        assert cli("flush").out.startswith("no turns are waiting")
        assert cli("status", "--json").json["waiting"] == 0
        assert stored(server.url) == {"s": texts(range(3))}
    finally:
        server.kill()


def test_help_and_version(cli: Cli) -> None:
    """--help names every command and exit status, --version the version."""
    done = cli("--help")
    assert done.status == 0
    for word in ("retain", "serve", "demo", "flush", "doctor", "unreachable", "NO_COLOR"):
        assert word in done.out
    assert cli("--version").out == f"hindsight-exec {hindsight_exec.__version__}\n"
    for command in ("serve", "retain", "demo", "status", "flush", "outbox", "dead", "doctor"):
        assert cli(command, "--help").status == 0


@pytest.mark.parametrize(
    "args, words",
    [
        (["dance"], "unknown command 'dance'; see"),
        (["statsu"], "unknown command 'statsu' (did you mean 'status'?)"),
        (["dead", "lits"], "unknown command 'lits' (did you mean 'list'?)"),
        (["flush", "--timeot", "3"], "unknown argument '--timeot' (did you mean '--timeout'?)"),
        (["hermes", "instal"], "unknown command 'instal' (did you mean 'install'?)"),
        (["retain"], "FILE"),
        (["retain", "--colour", "x"], "--colour"),
        (["retain", "nowhere.jsonl"], "cannot read nowhere.jsonl: No such file"),
        (["retain", "."], "Is a directory"),
        (["retain", "--url", "ftp://x", "/dev/null"], "ftp://x"),
        (["retain", "--timeout", "soon", "x"], "invalid value 'soon'"),
        (["serve", "--port", "70000"], "invalid value '70000' (expected a number from 0 to 65535)"),
        (["serve", "--data", "x", "--memory"], "not allowed with"),
        (["serve", "--host", "no.such.host.invalid", "--memory"], "cannot listen"),
        (["flush", "--timeout", "-1"], "of at least 0"),
        (["demo", "--turns", "0"], "of at least 1"),
        (["import", "hermes", "--since", "yesterday"], "invalid date 'yesterday' (expected YYYY"),
        (["outbox", "show", "x"], "no entry 'x'; run 'hindsight-exec outbox list'"),
        (["dead", "retry", "x"], "no entry 'x'; run 'hindsight-exec dead list'"),
        (["import", "hermes", "--home", "missing"], "missing; name Hermes' folder by --home"),
        (["service", "install", "--every", "5"], "invalid value '5' (expected 1min or more)"),
        (["outbox", "purge"], "--yes"),
        (["dead", "retry"], "--all"),
        (["dead", "discard", "x", "--all"], "--all"),
        (["retain", "--bank", "", "/dev/null"], "argument --bank: must not be empty"),
        (["retain", "--session", " ", "/dev/null"], "argument --session: must not be empty"),
        (["retain", "--url", "", "/dev/null"], "argument --url: must not be empty"),
        (["doctor", "--bank", ""], "argument --bank: must not be empty"),
        (["outbox", "purge", "--yes", "--session", ""], "argument --session: must not be empty"),
        (["import", "hermes", "--session", ""], "argument --session: must not be empty"),
        (["status", "--state", ""], "argument --state: must not be empty"),
    ],
)
def test_wrong_arguments(cli: Cli, args: list[str], words: str) -> None:
    """What cannot be run is told in one line, with exit status 2."""
    done = cli.one_line(*args)
    assert done.status == 2
    assert words in done.err


@pytest.mark.parametrize("args", [[], ["outbox"], ["dead"], ["import"], ["hermes"]])
def test_no_command(cli: Cli, args: list[str]) -> None:
    """Without a command the program shows its help, with exit status 2."""
    done = cli(*args)
    assert (done.status, done.err) == (2, "")
    assert done.out == cli(*args, "--help").out


def test_unreachable_server(cli: Cli) -> None:
    """A server that is not there is exit status 3, before anything is taken."""
    cli.transcript(3)
    url = f"http://127.0.0.1:{free_port()}"
    done = cli.one_line("retain", "talk.jsonl", "--url", url)
    assert done.status == 3
    assert url in done.err
    assert cli("status", "--json").json["waiting"] == 0


def test_another_kind_of_server(cli: Cli) -> None:
    """A server that is not Hindsight is exit status 3."""
    cli.transcript(3)

    def script(connection: Any) -> None:
        while connection.request() is not None:
            connection.answer(200, b"<html>hello</html>")

    with ScriptedServer(script) as other:
        done = cli.one_line("retain", "talk.jsonl", "--url", other.url)
    assert done.status == 3


def test_a_refused_key(cli: Cli) -> None:
    """A missing or wrong key is exit status 4, and the key is in no message."""
    cli.transcript(3)
    serving = Serving(api_key="sesame")
    try:
        assert cli.one_line("retain", "talk.jsonl", "--url", serving.url).status == 4
        done = cli.one_line("retain", "talk.jsonl", "--url", serving.url, "--api-key", "wrong-key")
        assert done.status == 4
        assert "wrong-key" not in done.err
        configured = {"HINDSIGHT_API_URL": serving.url, "HINDSIGHT_API_KEY": "sesame"}
        assert cli("retain", "talk.jsonl", **configured).status == 0
    finally:
        serving.close()


def test_the_configured_key_goes_to_no_other_server(cli: Cli) -> None:
    """A key of the environment is not sent to a server that --url names."""
    cli.transcript(1)
    with ScriptedServer(lambda connection: connection.request() and None) as stranger:
        configured = {"HINDSIGHT_API_URL": "http://127.0.0.1:1", "HINDSIGHT_API_KEY": "sesame"}
        cli("retain", "talk.jsonl", "--url", stranger.url, **configured)
        assert stranger.requests
        assert all("authorization" not in request.headers for request in stranger.requests)


def test_a_reader_that_goes_away(cli: Cli) -> None:
    """Output into a closed pipe ends the command quietly."""
    process = cli.start("status", "--json")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


def test_a_terminal_without_unicode(cli: Cli) -> None:
    """Characters that the terminal cannot show are escaped, not an error."""
    url = f"http://127.0.0.1:{free_port()}"
    cli.give(url, 1, session="grüße🎈")
    done = cli("outbox", "list", PYTHONIOENCODING="ascii")
    assert done.status == 0
    assert "gr\\xfc\\xdfe" in done.out
