"""The command line as a user meets it: real processes, their output and exit status."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Iterator

import pytest
from children import Process
from running import Cli, Done, ended
from scripted_server import ScriptedServer
from serving import Serving, ServingProcess, documents, free_port, get, stored, texts
from transcripts import made_transcript

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from pathlib import Path

# -- serve --------------------------------------------------------------------------------------------


def serve(cli: Cli, *args: str) -> tuple[Process, str]:
    """The process and its URL, the first line it prints; the second says what it is not."""
    process = cli.start("serve", "--port", "0", *args)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert "not the Hindsight memory engine" in process.stdout.readline()
    return process, url


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_told_to_stop(cli: Cli, number: signal.Signals) -> None:
    """serve says where it is and what it is not, and ends well with Ctrl-C and SIGTERM."""
    process, url = serve(cli, "--data", "data", "--api-key", "k")
    assert get(f"{url}/version")["features"]["memory_engine"] is False
    process.send_signal(number)
    done = ended(process)
    assert (done.status, done.err) == (0, "")
    assert [path.name for path in (cli.folder / "data").iterdir()] == ["server.sqlite3"]


def test_serve_while_somebody_listens(cli: Cli) -> None:
    """With --until-eof it ends with whoever has started it."""
    process, url = serve(cli, "--memory", "--until-eof")
    assert get(f"{url}/health")["status"] == "healthy"
    assert ended(process).status == 0  # which closes its standard input


def test_serve_where_it_cannot(cli: Cli) -> None:
    """A port in use and an unwritable folder are one line, exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli.one_line("serve", "--memory", "--port", str(port))
    assert done.status == 2
    assert f"port {port}" in done.err
    (cli.folder / "file").write_text("")
    done = cli.one_line("serve", "--data", "file/data", "--port", "0")
    assert done.status == 2
    assert "file/data" in done.err
    assert cli.one_line("serve", "--memory", "--host", "a..b").status == 2


@pytest.mark.parametrize("option", ["--host", "--api-key"])
def test_serve_with_an_unset_variable(cli: Cli, option: str) -> None:
    """An empty address would be all of them, and an empty key none."""
    done = cli("serve", "--memory", option, "")
    assert done.status == 2
    assert option in done.err


def test_two_servers_on_one_database(cli: Cli) -> None:
    """The second is refused, with what to do instead."""
    serve(cli)
    cli.transcript(1)
    done = cli.one_line("retain", "talk.jsonl")
    assert (done.status, "name that server by --url" in done.err) == (2, True)


# -- retain -------------------------------------------------------------------------------------------


def test_a_real_transcript_is_stored_whole_once_and_in_order(cli: Cli, server: Serving) -> None:
    """300 turns with umlauts, emoji and tool calls are read back as they were said."""
    said = cli.transcript(300)
    done = cli("retain", "talk.jsonl", "--url", server.url, "--bank", "b", "--session", "s/1")
    assert done.status == 0, done.err
    assert "300 of 300 turns stored in bank 'b'" in done.out
    assert stored(server.url) == {"s/1": said}
    found = documents(server.url)
    assert f"{len(found)} documents" in done.out
    assert len(found) < 100  # a document holds a few turns


def test_what_waited_is_not_counted(cli: Cli, tmp_path: Path) -> None:
    """What ended processes left is delivered beside the transcript, and is no part of it."""
    server = ServingProcess(tmp_path / "server")
    cli.give(server.url, 30)
    cli.transcript(2)
    server.start()
    try:
        done = cli("retain", "talk.jsonl", "--url", server.url, "--json")
        assert (done.json["turns"], done.json["stored"]) == (2, 2)
    finally:
        server.kill()


def test_a_list_from_standard_input(cli: Cli, server: Serving) -> None:
    """`-` reads standard input; a JSON list is read as JSON Lines are; --json tells a script."""
    lines, said = made_transcript(5)
    configured = {"HINDSIGHT_API_URL": server.url, "HINDSIGHT_BANK_ID": "b"}
    done = cli(
        "retain", "-", "--session", "s", "--json", given=f"[{','.join(lines)}]", **configured
    )
    assert done.status == 0
    told = done.json
    assert (told["turns"], told["stored"], told["dead"], told["waiting"]) == (5, 5, 0, 0)
    assert (told["bank"], told["session"], told["bad_lines"]) == ("b", "s", [])
    assert told["documents"] == len(documents(server.url))
    assert stored(server.url)["s"][0] == f"User: {said[0][0]}"


def test_bad_lines_are_named_and_the_rest_is_stored(cli: Cli, server: Serving) -> None:
    """A bad line: its number and reason; the rest goes on; exit status 1."""
    lines, _ = made_transcript(4)
    text = "\n".join([*lines[:3], "{oops", *lines[3:], '{"role": "wizard"}'])
    (cli.folder / "talk.jsonl").write_text(text, encoding="utf-8")
    done = cli("retain", "talk.jsonl", "--url", server.url, "--bank", "b")
    assert done.status == 1
    assert "4 of 4 turns stored" in done.out
    assert "talk.jsonl line 4: not JSON" in done.err
    assert f'talk.jsonl line {len(lines) + 2}: unknown role "wizard"' in done.err
    assert len(stored(server.url)["talk"]) == 8


def test_a_transcript_without_turns(cli: Cli, server: Serving) -> None:
    """Nothing to store is told, with exit status 1."""
    (cli.folder / "empty").write_text("")
    done = cli("retain", "empty", "--url", server.url)
    assert done.status == 1
    assert "no turn in empty" in done.err


def test_without_a_server_the_embedded_one_keeps_it(cli: Cli) -> None:
    """With nothing configured the data goes to the state directory, and `serve` shows it."""
    said = cli.transcript(20)
    done = cli("retain", "talk.jsonl")
    assert done.status == 0
    assert "the embedded server, which has no LLM" in done.err
    assert "in bank 'hermes' of the embedded server as" in done.out
    process, url = serve(cli)
    try:
        assert stored(url, "hermes") == {"talk": said}
        busy = cli("retain", "talk.jsonl")
        assert busy.status == 2
        assert "in use by another server" in busy.err
    finally:
        process.terminate()
        ended(process)


def test_what_the_server_refuses(cli: Cli, server: Serving) -> None:
    """Turns the server does not take are told, and are dead letters; exit status 1."""
    cli.transcript(2)
    done = cli("retain", "talk.jsonl", "--url", server.url, "--bank", "_reserved")
    assert done.status == 1
    assert "0 of 2 turns stored" in done.out
    assert "the server refused 2 turns: rejected" in done.err


@pytest.fixture
def deaf() -> Iterator[ScriptedServer]:
    """A server that lets everybody in and then takes nothing."""

    def script(connection: Any) -> None:
        while (request := connection.request()) is not None:
            if request.target == "/version":
                connection.answer(200, {"api_version": "1.1.0"})
            elif request.method == "GET":
                connection.answer(200, {"items": [], "total": 0})
            else:
                connection.answer(503, {"detail": "not now"})

    with ScriptedServer(script) as scripted:
        yield scripted


def test_a_server_that_fails_on_the_way(cli: Cli, deaf: ScriptedServer) -> None:
    """Turns that cannot be sent wait on disk, and the exit status is 3."""
    cli.transcript(7)
    done = cli("retain", "talk.jsonl", "--url", deaf.url, "--bank", "b", "--timeout", "1")
    assert done.status == 3
    assert "0 of 7 turns stored" in done.out
    assert "7 turns saved on disk; 'hindsight-exec flush' sends them" in done.err
    assert "not now" in done.err
    assert cli("status", "--json").json["waiting"] == 7


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_keeps_what_was_taken(cli: Cli, deaf: ScriptedServer) -> None:
    """Ctrl-C ends the command with 130 and one line; what was taken waits on disk."""
    cli.transcript(7)
    # A child of a shell's background job starts with SIGINT ignored.
    listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = cli.start("retain", "talk.jsonl", "--url", deaf.url, "--bank", "b", **listen)
    assert process.stderr is not None
    assert "turns stored: 0 of 7" in process.stderr.readline()  # a line of progress
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.status == 130
    assert "interrupted; accepted 7 of 7 turns of talk.jsonl\n" in done.err
    assert "7 turns saved on disk" in done.err
    assert "Traceback" not in done.err
    assert cli("status", "--json").json["waiting"] == 7


# -- what waits ---------------------------------------------------------------------------------------


def test_nothing_waits(cli: Cli) -> None:
    """Without any turn all commands say so, succeed, and make no folder."""
    assert cli("status", "--json").json["waiting"] == 0
    assert "0 turns" in cli("status").out
    assert cli("flush").out == "no turns are waiting\n"
    assert cli("outbox", "list").out == "no turns are waiting\n"
    assert cli("dead", "list").out == "there are no dead letters\n"
    assert not cli.state.exists()


def test_flush_delivers_what_ended_processes_left(cli: Cli, tmp_path: Path) -> None:
    """What waits is counted by status; flush is 1 while the server is down, 0 when it is done."""
    server = ServingProcess(tmp_path / "server")
    cli.give(server.url, 30, session="s")
    cli.give(server.url, 5, session="t")
    status = cli("status", "--json").json
    assert (status["waiting"], status["accepted"], status["dead"]) == (35, 0, 0)
    (place,) = status["folders"]
    assert [file["live"] for file in place["files"]] == [False, False]
    assert "35 turns, the oldest for" in cli("status").out
    down = cli("flush", "--timeout", "1")
    assert down.status == 1
    assert "35 turns still waiting" in down.err
    server.start()
    try:
        done = cli("flush")
        assert done.status == 0, done.err
        assert done.out.startswith("no turns are waiting")  # though the server may still process it
        cli("flush")  # asks whether it has
        assert stored(server.url) == {"s": texts(range(30)), "t": texts(range(5))}
        assert cli("flush", "--json").json["waiting"] == 0
        assert cli("status", "--json").json["waiting"] == 0
    finally:
        server.kill()


def test_a_running_process_is_shown_and_left_alone(cli: Cli) -> None:
    """Turns of a running process are counted as its own; they do not make flush fail."""
    url = f"http://127.0.0.1:{free_port()}"
    with cli.giving(url, 3):
        (place,) = cli("status", "--json").json["folders"]
        assert [(file["live"], file["waiting"]) for file in place["files"]] == [(True, 3)]
        done = cli("flush", "--timeout", "1")
        assert (done.status, done.out) == (0, "no turns are waiting\n")
        assert "running processes hold 3 turns and will send them" in done.err
        assert cli("flush", "--json").json == {
            "waiting": 3,
            "accepted": 0,
            "live": 3,
            "errors": [],
        }
        done = cli("outbox", "purge", "--yes")
        assert done.status == 1
        assert "a running process owns " in done.err
        assert cli("status", "--json").json["waiting"] == 3


def test_the_outbox_is_readable(cli: Cli) -> None:
    """list and show tell what waits, with every word of it."""
    url = f"http://127.0.0.1:{free_port()}"
    cli.give(url, 2, session="grüße")
    (entry,) = cli("outbox", "list", "--json").json
    assert (entry["state"], entry["session"], entry["turns"]) == ("queued", "grüße", 2)
    listed = cli("outbox", "list").out
    assert entry["id"] in listed
    assert "grüße" in listed
    shown = cli("outbox", "show", entry["id"]).out
    for text in (*texts(range(2)), url, "session grüße"):
        assert text.strip() in shown
    assert cli("outbox", "show", entry["id"], "--json").json["document_id"].startswith("grüße/")


def test_conversations_do_not_steer_the_terminal(cli: Cli) -> None:
    """Escape sequences in what is shown are shown as text."""
    cli.give(f"http://127.0.0.1:{free_port()}", 1, session="a\x1b[2Jb")
    (entry,) = cli("outbox", "list", "--json").json
    for args in (("outbox", "list"), ("outbox", "show", entry["id"])):
        out = cli(*args).out
        assert "a\\x1b[2Jb" in out
        assert "\x1b" not in out


def test_purge_erases_for_good(cli: Cli) -> None:
    """A purge erases a session or all, from the files too."""
    url = f"http://127.0.0.1:{free_port()}"
    cli.give(url, 2, session="secret")
    cli.give(url, 3, session="other")
    (cli.state / "x.damaged-20260101T000000.aside").write_text("User: 0")
    done = cli("outbox", "purge", "--session", "secret", "--yes")
    assert done.out == "2 turns erased\n"
    assert done.status == 1  # one file may hold more of it, and is told
    assert "set aside" in done.err
    assert {entry["session"] for entry in cli("outbox", "list", "--json").json} == {"other"}
    done = cli("outbox", "purge", "--yes", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json == {"erased": 3, "files_set_aside": 1, "errors": []}
    assert not any(b"User: " in path.read_bytes() for path in cli.state.iterdir())


def test_dead_letters(cli: Cli, server: Serving) -> None:
    """Dead letters are listed with the server's words, retried, and discarded."""
    cli.give(server.url, 2, bank="_reserved", session="s")
    assert cli("status", "--json").json["dead"] == 2
    (letter,) = cli("dead", "list", "--json").json
    assert "that prefix is reserved" in letter["error"]
    assert "dead list" in cli("status").out
    assert cli("flush").status == 0  # a dead letter does not wait

    assert cli("dead", "retry", letter["id"], "--json").json == {"revived": 1, "errors": []}
    assert cli("status", "--json").json["waiting"] == 2
    cli("flush")
    assert len(cli("dead", "list", "--json").json) == 1
    assert cli("dead", "discard", "nothing").status == 2
    assert "1 dead letter queued again" in cli("dead", "retry", "--all").out
    cli("flush")
    assert cli("dead", "discard", "--all", "--json").json == {"erased": 1, "errors": []}
    assert cli("dead", "list", "--json").json == []
    assert not list(cli.state.glob("*.db"))


# -- doctor -------------------------------------------------------------------------------------------


def checks(done: Done) -> dict[str, str]:
    return {check["name"]: check["state"] for check in done.json}


def test_doctor_when_all_is_well(cli: Cli, server: Serving) -> None:
    """Everything is ok, the status 0, and the folder that was only looked at is not left behind."""
    done = cli("doctor", "--json", "--url", server.url)
    assert set(checks(done).values()) == {"ok"}
    assert done.status == 0
    assert not cli.state.exists()
    assert "ok" in cli("doctor", "--url", server.url).out


def test_doctor_names_each_trouble_with_its_remedy(cli: Cli, server: Serving) -> None:
    """A server that is down, a refused key, an open folder and what waits come with remedies."""
    url = f"http://127.0.0.1:{free_port()}"
    done = cli("doctor", "--json", "--url", url)
    assert (done.status, checks(done)["server"]) == (1, "failed")
    assert checks(cli("doctor", "--json"))["configuration"] == "warning"
    bad = cli("doctor", "--json", HINDSIGHT_API_URL="ftp://x")
    assert (bad.status, checks(bad)["configuration"]) == (1, "failed")
    cli.give(url, 1)
    cli.give(server.url, 1, bank="_reserved")
    found = checks(cli("doctor", "--json", "--url", server.url))
    assert (found["waiting"], found["dead letters"]) == ("warning", "warning")
    serving = Serving(api_key="sesame")
    try:
        done = cli("doctor", "--url", serving.url)
        assert done.status == 1
        assert "HINDSIGHT_API_KEY" in done.out
    finally:
        serving.close()


def test_doctor_looks_at_hermes_too(cli: Cli, server: Serving) -> None:
    """What is configured in Hermes alone is checked as well, and one server once."""
    config = cli.folder / "home" / ".hermes" / "hindsight" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"mode": "local_external", "api_url": server.url}))
    found = cli("doctor", "--json", HINDSIGHT_EXEC_STATE="")
    assert found.status == 0
    names = [check["name"] for check in found.json]
    assert names == ["state directory"] * 2 + ["SQLite", "configuration", "server", "key"]
    assert str(config) in found.out
    both = cli("doctor", "--json", HINDSIGHT_EXEC_STATE="", HINDSIGHT_API_URL=server.url)
    assert [check["name"] for check in both.json] == names
    assert [path.name for path in config.parent.iterdir()] == ["config.json"]


def test_doctor_in_a_folder_that_cannot_be_used(cli: Cli) -> None:
    """A state directory that is a file is named, with what to do."""
    (cli.folder / "file").write_text("")
    done = cli("doctor", "--json", "--state", str(cli.folder / "file"))
    assert (done.status, checks(done)["state directory"]) == (1, "failed")
    assert "Not a directory; check --state" in done.out
    done = cli("doctor", "--json", HINDSIGHT_EXEC_STATE=str(cli.folder / "file"))
    assert (done.status, checks(done)["state directory"]) == (1, "failed")
    assert "name another with HINDSIGHT_EXEC_STATE" in done.out


# -- demo and terminals -------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_demo(cli: Cli) -> None:
    """The demo shows that nothing of ours is lost, needs no configuration and leaves nothing."""
    done = cli("demo", "--turns", "20", TMPDIR=str(cli.folder))
    assert (done.status, done.err) == (0, "")
    assert "hindsight-exec stored every accepted turn once." in done.out
    for ending in ("end of main", "Ctrl-C", "exception", "SIGKILL", "server down"):
        (line,) = [line for line in done.out.splitlines() if ending in line]
        ours, _, _, asynchronous, _, _, blocking, *_ = line.split()[-9:]
        assert ours == "20"
        # A pool's jobs that block run at exit; those that use asyncio do not.
        assert int(asynchronous) < 20
        assert blocking == ("0" if ending in ("SIGKILL", "server down") else "20")
    assert sorted(path.name for path in cli.folder.iterdir()) == ["home"]


def test_status_is_watched(cli: Cli) -> None:
    """It is shown again and again, until Ctrl-C, which is no failure."""
    process = cli.start("status", "--json", "--watch", "0.1")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += '"folders"' in line
        if seen == 3:
            break
    process.send_signal(signal.SIGINT)
    assert ended(process).status == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str) -> None:
    """The script knows the commands and is one that the shell reads, where there is one."""
    shtab = pytest.importorskip("shtab", reason="completion comes with the extra `cli`")
    if shell not in shtab.SUPPORTED_SHELLS:
        pytest.skip(f"this shtab is too old for {shell}")
    done = cli("completion", shell)
    assert done.status == 0
    assert "import" in done.out
    assert "dry-run" in done.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out.encode(), check=True)


def test_no_completion(cli: Cli) -> None:
    """An unknown shell is named."""
    pytest.importorskip("shtab", reason="completion comes with the extra `cli`")
    done = cli.one_line("completion", "dos")
    assert done.status == 2
    assert "'dos'" in done.err


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_only_where_they_are_welcome(cli: Cli, server: Serving, no_color: str) -> None:
    """On a terminal there are colours and a bar, unless NO_COLOR is set."""
    if not no_color:
        pytest.importorskip("rich", reason="colours come with the extra `cli`")
    cli.transcript(3)
    terminal, ours = os.openpty()
    process = cli.start(
        "retain",
        "talk.jsonl",
        "--url",
        server.url,
        environ={"TERM": "xterm", "NO_COLOR": no_color},
        stdout=ours,
        stderr=ours,
    )
    os.close(ours)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while select.select([terminal], [], [], 60)[0]:
            written += os.read(terminal, 65536)
    os.close(terminal)
    assert ended(process).status == 0
    assert b"3 of 3 turns stored" in written
    assert (b"\x1b[" in written) is not bool(no_color)


def test_hermes_commands(cli: Cli) -> None:
    """`hermes` has its own commands, read only when they are asked for."""
    assert "install" in cli("hermes", "--help").out
    assert cli.one_line("hermes", "dance").status == 2


def test_the_command_and_the_module_are_the_same() -> None:
    """`python -m hindsight_exec` and the installed command call one function."""
    from importlib import metadata

    (point,) = [
        point
        for point in metadata.distribution("hindsight-exec").entry_points
        if point.group == "console_scripts"
    ]
    from hindsight_exec.cli.main import main

    assert point.load() is main
