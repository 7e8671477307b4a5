"""A transcript that is retained again: after an interruption, a crash, or because it has grown."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from running import Cli, ended
from serving import Serving, ServingProcess, stored
from transcripts import made_transcript
from waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

ARGS = ("--bank", "b", "--session", "s")


def test_retained_twice(cli: Cli, server: Serving) -> None:
    """A transcript that is stored is not stored again, and that is no failure."""
    said = cli.transcript(40)
    for before in (0, 40):
        done = cli("retain", "talk.jsonl", "--url", server.url, *ARGS, "--json")
        assert done.status == 0
        told = done.json
        assert (told["turns"], told["stored"], told["stored_before"]) == (40, 40 - before, before)
        assert stored(server.url) == {"s": said}
    done = cli("retain", "talk.jsonl", "--url", server.url, *ARGS)
    assert "0 of 40 turns stored (40 already stored) in bank 'b'" in done.out


def test_a_transcript_that_has_grown(cli: Cli, server: Serving) -> None:
    """Only the turns that are new are stored, wherever the last document ended."""
    lines, spoken = made_transcript(30)
    messages = [
        text for user, answer in spoken for text in (f"User: {user}", f"Assistant: {answer}")
    ]
    for end in (len(lines) // 3, len(lines) // 2, len(lines)):
        # Up to the end of a turn: half of one would be stored as a turn.
        while end < len(lines) and '"user"' not in lines[end]:
            end += 1
        (cli.folder / "talk.jsonl").write_text("\n".join(lines[:end]), encoding="utf-8")
        assert cli("retain", "talk.jsonl", "--url", server.url, *ARGS).status == 0
    assert stored(server.url) == {"s": messages}


def test_secrets_are_hidden(cli: Cli, server: Serving) -> None:
    """Secrets are replaced as in a live turn; the same documents are found with and without that."""
    lines, spoken = made_transcript(12)
    text = "\n".join(lines).replace("#5 ", "#5 password: hunter22 ")
    (cli.folder / "talk.jsonl").write_text(text, encoding="utf-8")
    done = cli("retain", "talk.jsonl", "--url", server.url, *ARGS)
    assert "12 of 12 turns stored in" in done.out
    said = stored(server.url)["s"]
    assert len(said) == 2 * len(spoken)
    assert "hunter22" not in str(said)
    assert "password: [redacted]" in str(said)
    cli.settings(redact=False)
    done = cli("retain", "talk.jsonl", "--url", server.url, *ARGS)
    assert "0 of 12 turns stored (12 already stored)" in done.out
    assert stored(server.url)["s"] == said


def test_what_the_settings_keep(cli: Cli, server: Serving) -> None:
    """Patterns leave turns out, which is no failure, and cut pieces away, as in live turns."""
    lines, _ = made_transcript(12)
    (cli.folder / "talk.jsonl").write_text("\n".join(lines), encoding="utf-8")
    cli.settings(retain_skip_patterns=["#5 "], retain_strip_patterns=["#\\d+ "])
    done = cli("retain", "talk.jsonl", "--url", server.url, *ARGS, "--json")
    assert (done.status, done.json["stored"], done.json["left_out"]) == (0, 11, 1)
    assert "#" not in str(stored(server.url))


def test_other_settings_cut_otherwise(cli: Cli, server: Serving) -> None:
    """Documents that were cut by other settings are found all the same."""
    said = cli.transcript(30)
    for chars in ("500", "20000", "0"):
        environ = {"HINDSIGHT_RETAIN_DOCUMENT_CHARS": chars}
        assert cli("retain", "talk.jsonl", "--url", server.url, *ARGS, **environ).status == 0
    assert stored(server.url) == {"s": said}


def test_two_transcripts_that_begin_alike(cli: Cli, server: Serving) -> None:
    """They go into one session without replacing each other's documents."""
    lines, spoken = made_transcript(9)
    other = [line.replace("#5 ", "#5 otherwise ") for line in lines]
    assert other != lines
    for name, text in (("one", lines), ("two", other)):
        (cli.folder / name).write_text("\n".join(text), encoding="utf-8")
        assert cli("retain", name, "--url", server.url, *ARGS).status == 0
    found = stored(server.url)["s"]
    for user, _ in spoken:
        assert f"User: {user}" in found
    assert any(text.startswith("User: #5 otherwise ") for text in found)


def test_equal_turns_without_times(cli: Cli, server: Serving) -> None:
    """Turns that say the same, and when is not known, are as many as they were."""
    line = '{"role": "user", "content": "again"}\n{"role": "assistant", "content": "and again"}\n'
    (cli.folder / "talk").write_text(line * 300)
    for _ in range(2):
        assert cli("retain", "talk", "--url", server.url, *ARGS).status == 0
    assert stored(server.url) == {"s": ["User: again", "Assistant: and again"] * 300}


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_and_run_again(cli: Cli, tmp_path: Path, number: signal.Signals) -> None:
    """An interrupted run says how far it came; run again, it stores what is missing, once."""
    said = cli.transcript(3000)
    server = ServingProcess(tmp_path / "server")
    server.start()
    try:
        command = ("retain", "talk.jsonl", "--url", server.url, *ARGS)
        listen = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        process = cli.start(*command, **listen)
        eventually(lambda: list(cli.state.glob("*.db")))
        time.sleep(0.1)  # wherever it is by then
        process.send_signal(number)
        done = ended(process)
        if number != signal.SIGKILL:
            assert done.status == 128 + number
            assert "interrupted; accepted " in done.err
            assert " of 3000 turns of talk.jsonl\n" in done.err
        done = cli(*command)
        assert done.status == 0, done.err
        assert cli("status", "--json").json["waiting"] == 0
        assert stored(server.url) == {"s": said}
    finally:
        server.kill()


def test_what_waits_on_disk_is_not_given_again(cli: Cli, tmp_path: Path) -> None:
    """Turns that an earlier run left on disk count as stored, though the server lacks them."""
    said = cli.transcript(50)
    server = ServingProcess(tmp_path / "server")
    server.start()
    try:
        command = ("retain", "talk.jsonl", "--url", server.url, *ARGS)
        process = cli.start(*command)
        eventually(lambda: list(cli.state.glob("*.db")))
        server.kill()
        process.kill()
        ended(process)
        server.start()
        assert cli(*command).status == 0
        assert cli("flush").status == 0
        assert stored(server.url) == {"s": said}
    finally:
        server.kill()


def test_bad_lines_are_counted(cli: Cli, server: Serving) -> None:
    """Ten bad lines are shown, then a count; JSON has all of them."""
    lines, _ = made_transcript(2)
    (cli.folder / "talk").write_text("\n".join([*lines, *["{oops"] * 25]), encoding="utf-8")
    done = cli("retain", "talk", "--url", server.url)
    assert done.status == 1
    assert done.err.count("not JSON") == 10
    assert "talk: 15 more lines with problems" in done.err
    assert len(cli("retain", "talk", "--url", server.url, "--json").json["bad_lines"]) == 25


def test_a_session_whose_name_is_no_text(cli: Cli, server: Serving) -> None:
    """A file's name that is not UTF-8 needs a session with a name."""
    lines, _ = made_transcript(1)
    name = os.fsdecode(b"gr\xfc\xdfe.jsonl")
    (cli.folder / name).write_text("\n".join(lines), encoding="utf-8")
    command = ["retain", name, "--url", server.url]
    done = cli.one_line(*command)
    assert done.status == 2
    assert "name the session with --session" in done.err
    assert cli(*command, "--session", "s").status == 0
